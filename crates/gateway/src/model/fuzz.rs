//! What must hold for any bytes of model API and agent.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};

use super::ask::peek;
use super::meter::{Meter, Reading};
use super::provider::wanted;
use crate::bounds::{MODEL_NAME_READ_BYTES, USAGE_PARTS};
use crate::fuzz::cut;

fn reading(bytes: &[u8], size: usize, (kind, encoding): (&'static str, &'static str)) -> Reading {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    let mut meter = Meter::of(&headers);
    bytes.chunks(size).for_each(|piece| meter.feed(piece));
    meter.end();
    meter.reading().clone()
}

/// A reply of the model API: streamed or not, plain or compressed.
///
/// # Panics
/// A find.
pub fn model_reply(data: &[u8]) {
    let Some((size, bytes)) = cut(data) else { return };
    for kind in ["text/event-stream", "application/json"] {
        let whole = reading(bytes, bytes.len().max(1), (kind, "identity"));
        assert_eq!(reading(bytes, size, (kind, "identity")), whole, "{kind}");
        assert!(whole.model.as_ref().is_none_or(|model| model.len() <= MODEL_NAME_READ_BYTES));
        assert!(whole.parts.len() <= USAGE_PARTS);
        for tokens in whole.tokens.iter().chain(whole.parts.iter().map(|part| &part.tokens)) {
            let read = [tokens.input, tokens.output, tokens.cache_read];
            let written = [tokens.cache_write_5m, tokens.cache_write_1h];
            assert!(read.iter().chain(&written).all(|count| *count >= 0), "{tokens:?}");
        }
        // Where a damaged stream is given up depends on how it is cut; that it ends does not.
        reading(bytes, size, (kind, "gzip"));
    }
}

/// The body of a model request.
///
/// # Panics
/// A find.
pub fn model_request(data: &[u8]) {
    let ask = peek(data);
    // What cannot be read is refused; what can be read is an object to every reader.
    if wanted(data).is_ok() {
        assert!(
            serde_json::from_slice::<std::collections::BTreeMap<String, &serde_json::value::RawValue>>(data)
                .is_ok()
        );
    }
    assert!(ask.model.len() <= MODEL_NAME_READ_BYTES);
    assert!(ask.estimate.input >= 0 && ask.estimate.output >= 0, "{:?}", ask.estimate);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_a_call_and_its_reply() {
        let reply = include_bytes!("../../../../fuzz/seeds/model_reply/stream");
        assert!(reading(&reply[1..], 5, ("text/event-stream", "identity")).exact);
        assert_ne!(peek(include_bytes!("../../../../fuzz/seeds/model_request/call")).model, "unknown");
    }
}
