//! What the fuzz targets call: what must hold for any input of the redactor, of the event stream's reader and of the texts
//! that say where tools may go. The first byte says in pieces of which size the rest comes.

use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use secrecy::SecretString;
use serde_json::Value;

use crate::egress::{AddressRange, Choice, Rule, Target, Via, Wanted, is_plain};
use crate::redact::{MARKER, Redactor, SECRET_BYTES_MIN, Stream, forms};
use crate::sse::{Message, Parser};

/// Longest secret that is tried, in bytes: one that is looked for in one piece.
const SECRET_BYTES: usize = 128;
/// Longest text around it, in bytes: the plainest way takes its time.
const TEXT_BYTES: usize = 2048;
/// Stands for the secret in the text, in one of its spellings after the other.
const HERE: u8 = 0x01;

/// A secret, and a text around it: what becomes of the text whole, in pieces, and as JSON.
///
/// The input is the size of the pieces, the secret, a zero byte, and the text, in which each byte 1 stands for the secret
/// in another spelling.
///
/// # Panics
/// A find.
pub fn redactor(data: &[u8]) {
    let Some((size, rest)) = data.split_first() else { return };
    let Some(end) = rest.iter().position(|byte| *byte == 0) else { return };
    let Ok(secret) = std::str::from_utf8(&rest[..end]) else { return };
    let text = &rest[end + 1..];
    if !(SECRET_BYTES_MIN..=SECRET_BYTES).contains(&secret.len()) || text.len() > TEXT_BYTES {
        return;
    }
    let redactor = Arc::new(Redactor::new([&SecretString::from(secret)]));
    let spelled = spellings(secret);
    for spelling in &spelled {
        gone(&redactor, secret, spelling);
    }
    let text = put_in(text, &spelled);
    let wanted = expected(&text, &forms(secret));
    assert_eq!(streamed(&redactor, &text, usize::from(*size) + 1), wanted, "in pieces");
    assert_eq!(streamed(&redactor, &text, text.len().max(1)), wanted, "whole");
    if let Ok(text) = std::str::from_utf8(&text) {
        assert_eq!(redactor.text(text).as_bytes(), wanted, "as a text");
        json(&redactor, secret, text);
    }
}

/// What other people's encoders make of the secret, with and without neighbours.
fn spellings(secret: &str) -> Vec<Vec<u8>> {
    let mut spelled = Vec::new();
    for around in [secret.to_owned(), format!("a{secret}b"), format!("ab{secret}c")] {
        spelled.push(STANDARD.encode(&around).into_bytes());
        spelled.push(URL_SAFE.encode(&around).into_bytes());
        spelled
            .push(url::form_urlencoded::byte_serialize(around.as_bytes()).collect::<String>().into_bytes());
        spelled.push(hex::encode(&around).into_bytes());
        spelled.push(Value::from(around.as_str()).to_string().into_bytes());
        spelled.push(around.into_bytes());
    }
    spelled
}

/// Of a spelling nothing remains but a few characters that the neighbours decide as well.
fn gone(redactor: &Redactor, secret: &str, spelling: &[u8]) {
    let spelling = std::str::from_utf8(spelling).expect("encoders write text");
    let kept = redactor.text(spelling);
    assert!(kept.contains(MARKER), "{spelling:?} of {secret:?} was not found");
    let left: usize = kept.split(MARKER).map(str::len).sum();
    assert!(left <= 10, "{left} bytes of {spelling:?} are left");
}

/// The text with the secret's spellings in their places, one after the other.
fn put_in(text: &[u8], spelled: &[Vec<u8>]) -> Vec<u8> {
    let mut next = spelled.iter().cycle();
    let put = |byte: &u8| match *byte {
        HERE => next.next().cloned().unwrap_or_default(),
        byte => vec![byte],
    };
    text.iter().flat_map(put).collect()
}

/// The plainest way to do the same: every place of every form, those that overlap as one.
fn expected(text: &[u8], forms: &[Vec<u8>]) -> Vec<u8> {
    let places = |form: &Vec<u8>| {
        let length = form.len();
        let found: Vec<Range<usize>> = text
            .windows(length)
            .enumerate()
            .filter(|(_, window)| window == form)
            .map(|(at, _)| at..at + length)
            .collect();
        found
    };
    let mut places: Vec<Range<usize>> = forms.iter().flat_map(places).collect();
    places.sort_by_key(|place| (place.start, place.end));
    let (mut out, mut at, mut open) = (Vec::new(), 0, 0..0);
    for place in places {
        if place.start < open.end {
            open.end = open.end.max(place.end);
            at = open.end;
            continue;
        }
        out.extend_from_slice(&text[at..place.start]);
        out.extend_from_slice(MARKER.as_bytes());
        at = place.end;
        open = place;
    }
    out.extend_from_slice(&text[at..]);
    out
}

fn streamed(redactor: &Arc<Redactor>, text: &[u8], size: usize) -> Vec<u8> {
    let mut stream = Stream::new(Arc::clone(redactor));
    let mut out: Vec<u8> = text.chunks(size).flat_map(|piece| stream.push(piece)).collect();
    out.extend(stream.finish());
    out
}

/// JSON stays JSON, and none of its strings has the secret, however they are escaped.
fn json(redactor: &Redactor, secret: &str, text: &str) {
    let Ok(before) = serde_json::from_str::<Value>(text) else { return };
    let after = match redactor.json(text) {
        None => before,
        Some(kept) => serde_json::from_str(&kept).expect("it stays JSON"),
    };
    assert!(!has(&after, secret), "a string has the secret: {text:?} became {after}");
}

/// Whether a string or a name in the value has the secret, apart from what [`MARKER`] itself says.
fn has(value: &Value, secret: &str) -> bool {
    let in_text = |text: &str| text.split(MARKER).any(|part| part.contains(secret));
    match value {
        Value::String(text) => in_text(text),
        Value::Array(items) => items.iter().any(|item| has(item, secret)),
        Value::Object(fields) => fields.iter().any(|(name, field)| in_text(name) || has(field, secret)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Messages of a stream that comes in pieces of `size` bytes; none where a line is too long.
fn messages(bytes: &[u8], size: usize) -> Option<Vec<Message>> {
    let mut parser = Parser::default();
    let mut messages = Vec::new();
    for piece in bytes.chunks(size) {
        messages.extend(parser.push(piece).ok()?);
    }
    Some(messages)
}

/// How a stream of server-sent events is cut says nothing about what it says, and no message has a line feed where it
/// could begin another field.
///
/// # Panics
/// A find.
pub fn event_stream(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    let whole = messages(bytes, bytes.len().max(1));
    assert_eq!(messages(bytes, usize::from(*size) + 1), whole);
    for message in whole.into_iter().flatten() {
        let fields = [message.event, message.id];
        assert!(fields.iter().flatten().all(|field| !field.contains(['\n', '\r'])));
        assert!(!message.data.contains('\r'));
    }
}

/// A rule, a range or a target as somebody wrote it: what is read is written so that it is read as the same, and a rule
/// made for a wish allows it.
///
/// # Panics
/// A find.
pub fn egress_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(Choice::Rule(rule)) = text.parse::<Choice>() {
        assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule), "{rule}");
    }
    if let Ok(range) = text.parse::<AddressRange>() {
        assert_eq!(range.to_string().parse::<AddressRange>().as_ref(), Ok(&range), "{range}");
    }
    let (authority, path) = text.split_once(' ').unwrap_or((text, "/"));
    let Ok(target) = Target::parse(authority, Some(443)) else { return };
    assert_eq!(Target::parse(&target.to_string(), None).as_ref(), Ok(&target), "{target}");
    let (method, path_of) = ("GET".to_owned(), path.to_owned());
    let https = Via::Https { method: method.clone(), path: path_of.clone() };
    for via in [Via::Tunnel, Via::Http { method, path: path_of }, https] {
        let wanted = Wanted { target: target.clone(), via };
        let rule = Rule::exactly(&wanted);
        assert!(rule.allows(&wanted), "{rule} for {wanted:?}");
        assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule), "{rule}");
    }
    // A plain path has one reading: whoever decodes its slashes leaves no directory by it, and there is nothing to decode twice.
    if is_plain(path) {
        let decoded = path.replace("%2f", "/").replace("%2F", "/");
        assert!(!decoded.contains("/../") && !decoded.ends_with("/..") && path.starts_with('/'), "{path}");
        assert!(!decoded.contains("//") && !decoded.contains("..;") && !decoded.contains("%25"), "{path}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of `make fuzz`, so that the targets stay true without it.
    #[test]
    fn every_target_takes_its_seeds() {
        type Body = fn(&[u8]);
        let targets: [(&str, Body); 3] =
            [("redactor", redactor), ("event_stream", event_stream), ("egress_text", egress_text)];
        for (name, target) in targets {
            let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/");
            let files = std::fs::read_dir(format!("{seeds}{name}")).unwrap();
            let taken = files.map(|file| target(&std::fs::read(file.unwrap().path()).unwrap())).count();
            assert!(taken > 0, "{name} has no seed");
            target(&[]);
        }
    }

    #[test]
    fn the_plainest_way_redacts_what_overlaps_as_one() {
        let forms = [b"aaaabbbb".to_vec(), b"bbbbcccc".to_vec()];
        assert_eq!(expected(b"x aaaabbbbcccc y aaaabbbb", &forms), b"x [redacted] y [redacted]");
        assert_eq!(expected(b"aaaabbbbaaaabbbb", &forms), b"[redacted][redacted]");
    }
}
