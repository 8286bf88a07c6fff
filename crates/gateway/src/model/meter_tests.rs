use super::super::ask::peek;
use super::*;
use caisson_domain::usage::PriceTable;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

const STREAM: &str = concat!(
    "event: message_start\n",
    r#"data: {"type":"message_start","message":{"model":"claude-x","usage":{"input_tokens":10,"#,
    r#""cache_creation_input_tokens":30,"cache_read_input_tokens":5,"output_tokens":1,"#,
    r#""cache_creation":{"ephemeral_5m_input_tokens":10,"ephemeral_1h_input_tokens":20}}}}"#,
    "\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\n",
    r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hello"}}"#,
    "\n\n",
    r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":42}}"#,
    "\n\ndata: {\"type\":\"message_stop\"}\n\n",
);

const COUNTS: TokenCounts =
    TokenCounts { input: 10, output: 42, cache_read: 5, cache_write_5m: 10, cache_write_1h: 20 };

fn meter(kind: &str, encoding: &str) -> Meter {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, kind.parse().unwrap());
    headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
    Meter::of(&headers)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_streamed_reply_is_exact_once_it_stopped() {
    let mut meter = meter("text/event-stream; charset=utf-8", "identity");
    let before_stop = STREAM.len() - 2;
    meter.feed(&STREAM.as_bytes()[..before_stop]);
    assert!(!meter.is_complete());
    meter.feed(&STREAM.as_bytes()[before_stop..]);
    assert!(meter.is_complete());
    assert_eq!(meter.reading().tokens, Some(COUNTS));
    assert_eq!(meter.reading().model.as_deref(), Some("claude-x"));
}

#[test]
fn a_cut_reply_keeps_its_input_and_never_less_output_than_the_estimate() {
    let mut ask = peek(br#"{"model":"claude-opus-5-5","max_tokens":100}"#);
    ask.estimate.input = 999;
    let prices = PriceTable::shipped();
    let mut meter = meter("text/event-stream", "identity");
    assert_eq!(meter.reading().last_bill(&ask, &prices).tokens, ask.estimate);
    let cut = STREAM.find("data: {\"type\":\"message_delta\"").unwrap();
    meter.feed(&STREAM.as_bytes()[..cut]);
    assert_eq!(meter.reading().last_bill(&ask, &prices).tokens, TokenCounts { output: 100, ..COUNTS });
    let long = format!(
        "data: {{\"type\":\"content_block_delta\",\"delta\":{{\"text\":\"{}\"}}}}\n\n",
        "x".repeat(800)
    );
    meter.feed(long.as_bytes());
    let output = meter.reading().last_bill(&ask, &prices).tokens.output;
    assert!((200..205).contains(&output), "{output}");
    meter.end();
    assert!(!meter.is_complete());
}

#[test]
fn a_compressed_reply_is_read_as_it_passes() {
    let packed = gzip(STREAM.as_bytes());
    let mut meter = meter("text/event-stream", "gzip");
    for byte in packed {
        meter.feed(&[byte]);
    }
    assert!(meter.is_complete());
    assert_eq!(meter.reading().tokens, Some(COUNTS));
}

#[test]
fn bytes_that_are_not_what_they_should_be_make_an_estimate_only() {
    let mut broken = meter("text/event-stream", "gzip");
    broken.feed(b"this is no gzip");
    broken.feed(STREAM.as_bytes());
    broken.end();
    assert!(!broken.is_complete());
    for (kind, encoding) in [("text/html", "identity"), ("application/json", "br")] {
        let mut blind = meter(kind, encoding);
        blind.feed(STREAM.as_bytes());
        blind.end();
        // Nothing is told, but that so many bytes came.
        assert_eq!(blind.reading(), &Reading { text_bytes: STREAM.len(), ..Reading::default() });
    }
}

#[test]
fn a_whole_reply_is_exact_at_its_end() {
    let reply = r#"{"type":"message","model":"m","usage":{"input_tokens":3,"output_tokens":4,
        "cache_creation_input_tokens":7}}"#;
    let mut meter = meter("application/json", "identity");
    assert!(meter.ends_with_its_last_byte());
    meter.feed(reply.as_bytes());
    assert!(!meter.is_complete());
    meter.end();
    let tokens = meter.reading().tokens.unwrap();
    assert_eq!((tokens.input, tokens.output, tokens.cache_write_5m), (3, 4, 7));
    assert!(meter.is_complete());
}

#[test]
fn the_copy_of_a_whole_reply_is_bounded() {
    let reply = |bytes: usize| {
        let head = r#"{"usage":{"output_tokens":4},"x":""#;
        format!("{head}{}\"}}", "x".repeat(bytes - head.len() - 2))
    };
    let read = |bytes: usize| {
        let mut meter = meter("application/json", "identity");
        for piece in reply(bytes).as_bytes().chunks(1 << 20) {
            meter.feed(piece);
        }
        meter.end();
        meter.is_complete()
    };
    assert!(read(JSON_COPY_BYTES));
    assert!(!read(JSON_COPY_BYTES + 1));
}

#[test]
fn a_models_name_is_read_printable_and_within_its_bound() {
    assert_eq!(model_name("a b\n\u{e4}c"), "abc");
    let longest = "m".repeat(MODEL_NAME_READ_BYTES);
    assert_eq!([model_name(&longest), model_name(&format!("{longest} "))], [longest.as_str(), &longest]);
    assert_eq!(model_name(&format!("{longest}m")), UNKNOWN_MODEL);
}

proptest! {
    #[test]
    fn the_counts_do_not_depend_on_chunk_boundaries(
        cuts in prop::collection::vec(0_usize..STREAM.len(), 0..20),
        packed in any::<bool>(),
    ) {
        let bytes = if packed { gzip(STREAM.as_bytes()) } else { STREAM.as_bytes().to_vec() };
        let mut meter = meter("text/event-stream", if packed { "gzip" } else { "identity" });
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            meter.feed(&bytes[pair[0]..pair[1]]);
        }
        prop_assert_eq!(meter.reading().tokens, Some(COUNTS));
        prop_assert!(meter.is_complete());
    }
}
