use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, STANDARD_NO_PAD, URL_SAFE as BASE64_URL};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use super::*;

const SECRET: &str = "sk-ant-canary-7f3a9b2c5d8e1f40";

fn redactor(secrets: &[&str]) -> Arc<Redactor> {
    let secrets: Vec<SecretString> = secrets.iter().map(|secret| SecretString::from(*secret)).collect();
    Arc::new(Redactor::new(&secrets))
}

/// The bytes cut at the given places, through a stream.
fn streamed(redactor: &Arc<Redactor>, bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut stream = Stream::new(Arc::clone(redactor));
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let mut out = Vec::new();
    for pair in cuts.windows(2) {
        out.extend(stream.push(&bytes[pair[0]..pair[1]]));
        let waits = stream.window.len();
        assert!(waits <= 2 * redactor.longest + bytes.len(), "bounded");
    }
    out.extend(stream.finish());
    out
}

/// Independent of the forms above: what well-known encoders make of a text.
fn encoded(secret: &str, before: &str, behind: &str) -> Vec<String> {
    let around = format!("{before}{secret}{behind}");
    vec![
        around.clone(),
        BASE64.encode(&around),
        BASE64_URL.encode(&around),
        STANDARD_NO_PAD.encode(&around),
        hex::encode(&around),
        hex::encode_upper(&around),
        url::form_urlencoded::byte_serialize(around.as_bytes()).collect(),
        Value::from(around.as_str()).to_string(),
        Value::from(around.as_str()).to_string().replace('/', "\\/"),
    ]
}

#[test]
fn every_form_of_a_secret_is_found_wherever_it_begins() {
    let redactor = redactor(&[SECRET]);
    for before in ["", "a", "ab", "x-access-token:"] {
        for text in encoded(SECRET, before, "!") {
            let kept = redactor.text(&text);
            assert!(kept.contains(MARKER), "{text} became {kept}");
            assert!(kept.len() < MARKER.len() + 2 * before.len() + 10, "{kept}");
        }
    }
}

#[test]
fn the_shortest_secret_is_found_and_a_shorter_one_is_left() {
    let shortest = &SECRET[..SECRET_BYTES_MIN];
    assert_eq!(redactor(&[shortest]).text(&format!("a {shortest} b")), format!("a {MARKER} b"));
    let shorter = &SECRET[..SECRET_BYTES_MIN - 1];
    assert!(matches!(redactor(&[shorter]).text(shorter), Cow::Borrowed(_)));
    assert!(matches!(redactor(&[]).text(SECRET), Cow::Borrowed(_)));
}

#[test]
fn a_long_secret_goes_from_its_first_byte_to_its_last() {
    let long = (0..PIECE_BYTES).fold(String::new(), |text, number| text + &format!("{number:05}\n"));
    for length in
        [PIECE_BYTES, PIECE_BYTES + SECRET_BYTES_MIN, PIECE_BYTES + SECRET_BYTES_MIN + 1, long.len()]
    {
        let secret = &long[..length];
        let redactor = redactor(&[secret]);
        let kept = redactor.text(&format!("x{secret}y")).replace(MARKER, "");
        assert_eq!(kept, "xy");
        let line = Value::from(format!("x{secret}y")).to_string();
        assert_eq!(redactor.json(&line).unwrap().replace(MARKER, ""), "\"xy\"");
        let kept = redactor.text(&BASE64.encode(secret)).replace(MARKER, "");
        assert!(kept.len() < 16, "{kept}");
    }
}

#[test]
fn secrets_that_would_not_be_looked_for_are_told() {
    let of = |secrets: &[String]| {
        let secrets: Vec<SecretString> = secrets.iter().cloned().map(SecretString::from).collect();
        check(&secrets)
    };
    let long = |bytes: usize| vec!["x".repeat(bytes / 2); 2];
    assert_eq!(of(&[SECRET[..SECRET_BYTES_MIN].to_owned()]), Ok(()));
    assert_eq!(of(&[SECRET[..SECRET_BYTES_MIN - 1].to_owned()]), Err(SecretFault::TooShort));
    assert_eq!(of(&long(SECRETS_BYTES)), Ok(()));
    assert_eq!(of(&long(SECRETS_BYTES + 2)), Err(SecretFault::TooMany));
}

#[test]
fn secrets_that_overlap_are_gone_altogether() {
    let redactor = redactor(&["aaaabbbb-1", "bbbb-1cccc", "bbbb-1cccc-longer"]);
    assert_eq!(redactor.text("x aaaabbbb-1cccc y"), format!("x {MARKER} y"));
    assert_eq!(redactor.text("x aaaabbbb-1cccc-longer y"), format!("x {MARKER} y"));
    assert_eq!(redactor.text("aaaabbbb-1aaaabbbb-1"), format!("{MARKER}{MARKER}"));
}

#[test]
fn json_stays_json_and_only_the_secret_goes() {
    let redactor = redactor(&[SECRET, "with \"quote\" and ü"]);
    let line = |text: &str| format!("{{\"b\": 1.50, \"a\":{}}}", Value::from(text));
    assert_eq!(redactor.json(&line("nothing here")), None);
    assert_eq!(redactor.json(&line("with \\u0041 only")), None);
    assert_eq!(redactor.json(&line(&format!("x{SECRET}y"))).unwrap(), line(&format!("x{MARKER}y")));
    assert_eq!(redactor.json(&line("a with \"quote\" and ü b")).unwrap(), line(&format!("a {MARKER} b")));
    // Written in other ways, and as a name.
    let slashed = self::redactor(&["canary/7f3a+9b2c"]);
    let other = "{\"a\": \"x canary\\/7f3a+9b2c\"}";
    assert_eq!(slashed.json(other).unwrap(), format!("{{\"a\": \"x {MARKER}\"}}"));
    let other = format!("{{\"a\":\"{}\"}}", SECRET.replace('-', "\\u002d"));
    assert_eq!(redactor.json(&other).unwrap(), format!("{{\"a\":\"{MARKER}\"}}"));
    let named = format!("{{\"{SECRET}\":[1,{{\"c\":\"{SECRET}\"}}]}}");
    assert_eq!(redactor.json(&named).unwrap(), format!("{{\"{MARKER}\":[1,{{\"c\":\"{MARKER}\"}}]}}"));
}

#[test]
fn json_in_which_a_secret_seems_to_begin_with_an_escape_stays_json() {
    let redactor = redactor(&["nabcdefgh", "\":\"xyzxyz"]);
    for line in ["{\"a\":\"\\nabcdefgh\"}", "{\"a\":\"xyzxyz\"}", "{\"\\nabcdefgh\":\":\\\"xyz\"}"] {
        let kept = redactor.json(line).unwrap_or_else(|| line.to_owned());
        assert!(serde_json::from_str::<Value>(&kept).is_ok(), "{line} became {kept}");
        assert!(!kept.contains("abcdefgh") || !kept.contains("\\nabcdefgh"), "{kept}");
    }
}

#[test]
fn a_secret_that_is_cut_off_at_the_end_of_a_text_goes_too() {
    let redactor = redactor(&[SECRET]);
    let of = |bytes: usize| redactor.cut_text(&format!("text {}", &SECRET[..bytes])).into_owned();
    assert_eq!(of(SECRET.len()), format!("text {MARKER}"));
    assert_eq!(of(SECRET_BYTES_MIN), format!("text {MARKER}"));
    assert_eq!(of(SECRET_BYTES_MIN - 1), format!("text {}", &SECRET[..SECRET_BYTES_MIN - 1]));
}

#[test]
fn live_text_waits_only_for_a_beginning_that_says_something() {
    let redactor = redactor(&[SECRET]);
    let mut stream = Stream::holding(Arc::clone(&redactor), 4);
    assert_eq!(stream.push(b"ask"), b"ask", "three letters may pass");
    assert_eq!(stream.push(b"-a"), b"", "five wait");
    assert_eq!(stream.push(b"b."), b"-ab.");
    assert_eq!(stream.push(&SECRET.as_bytes()[..20]), b"");
    assert_eq!(stream.push(&SECRET.as_bytes()[20..]), MARKER.as_bytes());
    assert_eq!((stream.push(b" end"), stream.finish(), stream.found()), (b" end".to_vec(), Vec::new(), 1));
}

#[test]
fn an_open_stream_goes_on_with_what_is_live_by_then() {
    let (old, new) = ("the-secret-of-before", "the-secret-of-now-that-is-longer");
    let mut stream = Stream::new(redactor(&[old]));
    assert_eq!(stream.push(b"a the-sec"), b"a ");
    stream.follow(&redactor(&[old, new]));
    assert_eq!(
        stream.push(format!("ret-of-before {new} {}", &new[..9]).as_bytes()),
        b"[redacted] [redacted] "
    );
    stream.follow(&redactor(&[]));
    assert_eq!(stream.push(b"!"), format!("{}!", &new[..9]).as_bytes(), "what waited is not lost");
    let mut stream = Stream::new(redactor(&[]));
    assert_eq!(stream.push(b"plain "), b"plain ");
    stream.follow(&redactor(&[new]));
    assert_eq!([stream.push(new.as_bytes()), stream.finish()].concat(), b"[redacted]");
}

#[test]
fn secrets_that_begin_alike_are_each_found_to_their_end() {
    let secrets: Vec<String> =
        (0..40).map(|number| format!("sk-ant-oat01-{number:03}-{}", "z".repeat(number))).collect();
    let redactor = redactor(&secrets.iter().map(String::as_str).collect::<Vec<_>>());
    for secret in &secrets {
        assert_eq!(redactor.text(&format!("<{secret}>")), format!("<{MARKER}>"));
        let almost = &secret[..secret.len() - 1];
        assert_eq!(redactor.text(almost), almost);
    }
    let redactor = self::redactor(&["abcdefgh", "abcdefgh-more", "abcdefgh-more-and-more"]);
    for (text, wanted) in [
        ("abcdefgh-mor", "[redacted]-mor"),
        ("abcdefgh-more-and-mor", "[redacted]-and-mor"),
        ("abcdefgh-more-and-more.", "[redacted]."),
        ("abcdefgabcdefgh", "abcdefg[redacted]"),
    ] {
        assert_eq!(redactor.text(text), wanted);
    }
}

#[test]
fn debug_output_shows_no_secret() {
    let shown = format!("{:?}", Stream::new(redactor(&[SECRET])));
    assert!(!shown.contains("canary") && !shown.contains("115, 107"), "{shown}");
}

/// Secrets as a project may have at most, none like another: half of them tokens, half of them keys.
fn as_many_as_may_be() -> Vec<SecretString> {
    let text = |number: usize, bytes: usize| {
        let digits = (0..=bytes / 16)
            .map(|place| format!("{:016x}", (number * 7919 + place).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        digits.collect::<String>()[..bytes].to_owned()
    };
    let tokens = (0..PROJECT_SECRETS_BYTES / 2 / 128).map(|number| text(number, 128));
    let keys = (0..PROJECT_SECRETS_BYTES / 2 / 4096).map(|number| text(1_000_000 + number, 4096));
    tokens.chain(keys).map(SecretString::from).collect()
}

#[test]
fn a_megabyte_costs_little_while_as_much_is_looked_for_as_a_project_may_have() {
    let secrets = as_many_as_may_be();
    let began = Instant::now();
    let redactor = Redactor::new(&secrets);
    let built = began.elapsed();
    let line = "data: some words of a tool that was run, 0123456789abcdef sk-ant-nothing /usr/lib/x86_64-linux-gnu\n";
    let text = line.repeat(1024 * 1024 / line.len());
    let once = || {
        let began = Instant::now();
        assert!(matches!(redactor.text(&text), Cow::Borrowed(_)));
        began.elapsed()
    };
    // The machine may be busy with something else.
    let took = (0..5).map(|_| once()).min().unwrap();
    assert!(took < Duration::from_secs(1), "{took:?}; {} forms were made in {built:?}", redactor.forms.len());
    let last = secrets.last().unwrap().expose_secret();
    assert!(
        !redactor.text(&(text + last)).contains(&last[..16]),
        "the last one is looked for like the first"
    );
}

/// How long a text takes whose every byte comes alone, at best, while many secrets are looked for.
fn time_of(text: &[u8]) -> (Duration, u64) {
    let secrets: Vec<SecretString> = (0..3).map(|number| SecretString::from(a_long_secret(number))).collect();
    let redactor = Arc::new(Redactor::new(&secrets));
    let once = || {
        let mut stream = Stream::new(Arc::clone(&redactor));
        let began = Instant::now();
        for byte in text {
            drop(stream.push(&[*byte]));
        }
        drop(stream.finish());
        (began.elapsed(), stream.found())
    };
    // The machine may be busy with something else.
    (0..5).map(|_| once()).min().unwrap()
}

fn a_long_secret(number: usize) -> String {
    (0..1600).fold(String::new(), |text, place| text + &format!("{number}{place:04}"))
}

#[test]
fn many_small_pieces_cost_little_however_much_is_looked_for() {
    const MOST: Duration = Duration::from_secs(1);
    let plain = "data: some words of a server, 00000 10001 20002\n".repeat(20_000 / 45 + 1).into_bytes();
    let (took, found) = time_of(&plain[..20_000]);
    assert!(took < MOST && found == 0, "{took:?}");
    // Beginnings of a secret over and over, which end before it does.
    let begun = a_long_secret(1)[..PIECE_BYTES - 1].repeat(20_000 / PIECE_BYTES + 1).into_bytes();
    let (took, found) = time_of(&begun[..20_000]);
    assert!(took < MOST && found == 0, "{took:?}");
}

fn a_secret() -> impl Strategy<Value = String> {
    prop_oneof!["[A-Za-z0-9_-]{8,60}", "[ -~]{8,40}", "[a-c]{8,12}", "[A-Za-z0-9äöü€\"\\\\/+= ]{8,40}",]
}

/// Text that has nothing to do with any secret: a control character now and then breaks every form.
fn plain() -> impl Strategy<Value = String> {
    "[A-Za-z0-9 .,ä\u{1}\n]{0,30}"
}

proptest! {
    #[test]
    fn nothing_of_a_secret_remains_and_everything_else_is_unchanged(
        secrets in vec(a_secret(), 1..4),
        parts in vec((plain(), any::<prop::sample::Index>(), 0..9_usize), 0..8),
        end in plain(),
        cuts in vec(any::<usize>(), 0..12),
    ) {
        let redactor = redactor(&secrets.iter().map(String::as_str).collect::<Vec<_>>());
        // A character that is in no form on either side, so that what is plain is known.
        let mut text = String::new();
        let mut plains = Vec::new();
        for (plain, which, form) in &parts {
            text.extend(["\u{2}", plain, "\u{2}"]);
            plains.push(plain.clone());
            text.push_str(&encoded(&secrets[which.index(secrets.len())], "", "")[*form]);
        }
        text.extend(["\u{2}", &end, "\u{2}"]);
        plains.push(end);
        let kept = redactor.text(&text);
        let out = streamed(&redactor, text.as_bytes(), &cuts);
        prop_assert_eq!(std::str::from_utf8(&out).unwrap(), kept.as_ref(), "pieces make no difference");
        for secret in &secrets {
            for form in forms(secret) {
                let gone = !out.windows(form.len()).any(|window| window == form);
                prop_assert!(gone || MARKER.as_bytes().windows(form.len()).any(|window| window == form));
            }
        }
        if plains.iter().all(|plain| redactor.text(plain) == plain.as_str()) {
            let found: Vec<&str> = kept.split('\u{2}').skip(1).step_by(2).collect();
            prop_assert_eq!(found, plains.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }

    #[test]
    fn bytes_of_any_kind_without_a_secret_pass_unchanged(
        bytes in vec(any::<u8>(), 0..4_000),
        cuts in vec(any::<usize>(), 0..20),
    ) {
        let redactor = redactor(&[SECRET, "another-secret"]);
        prop_assert_eq!(streamed(&redactor, &bytes, &cuts), bytes);
    }

    #[test]
    fn a_secret_between_any_bytes_goes_alone(
        before in vec(any::<u8>(), 0..300),
        behind in vec(any::<u8>(), 0..300),
        secret in "[A-Za-z0-9_-]{20,80}",
        cuts in vec(any::<usize>(), 0..20),
    ) {
        let redactor = redactor(&[&secret]);
        let bytes = [&before, secret.as_bytes(), &behind].concat();
        let wanted = [&before, MARKER.as_bytes(), &behind].concat();
        prop_assert_eq!(streamed(&redactor, &bytes, &cuts), wanted);
    }

    #[test]
    fn json_without_secrets_in_its_strings_comes_out_of_json_with_them(
        secret in a_secret(), before in plain(), behind in plain(), number in any::<i32>(),
    ) {
        let redactor = redactor(&[&secret]);
        let value = serde_json::json!({"a": [format!("{before}{secret}{behind}"), number], "b": null});
        let kept: Value = serde_json::from_str(&redactor.json(&value.to_string()).unwrap()).unwrap();
        let shown = kept["a"][0].as_str().unwrap();
        prop_assert!(!shown.contains(&secret) && shown.contains(MARKER), "{}", shown);
        prop_assert_eq!(kept["a"][1].as_i64(), Some(i64::from(number)));
    }
}
