//! Secrets in JSON texts, also where a string is written with escapes. The text is looked at as it stands, one string after
//! another, and never made anew: what says a name twice or half a surrogate pair, or is nested too deep to be read, is
//! looked through like any other.

use std::ops::Range;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{Redactor, apart, replaced};

impl Redactor {
    /// A JSON text without secrets, in its strings also where they are written with escapes; none if there is none in it.
    /// Everything else in it stays as it is. What would be no JSON any more, since a secret is not a part of one string or the
    /// text was none before, becomes one string.
    #[must_use]
    pub fn json(&self, text: &str) -> Option<String> {
        self.finder.as_ref()?;
        let mut found = self.find(text.as_bytes());
        if text.contains('\\') {
            for string in (Strings { text, at: 0 }) {
                found.extend(self.find_escaped(text, string));
            }
        }
        if found.is_empty() {
            return None;
        }
        let kept = replaced(text, apart(found));
        Some(match serde_json::from_str::<&RawValue>(&kept) {
            Ok(_) => kept.into_owned(),
            Err(_) => Value::from(kept).to_string(),
        })
    }

    /// Where secrets stand in a string with escapes, as the text writes them.
    fn find_escaped(&self, text: &str, string: Range<usize>) -> Vec<Range<usize>> {
        let written = text.get(string.clone()).unwrap_or_default();
        if !written.contains('\\') {
            return Vec::new();
        }
        let (said, places) = said(written);
        let place = |at: usize| places.get(at).map_or(string.end, |place| string.start + place);
        let found = self.find(&said).into_iter();
        found.map(|range| place(range.start)..place(range.end)).collect()
    }
}

/// The insides of the strings of a JSON text, as they are written. In a text that is none they are what stands between quotes.
struct Strings<'t> {
    text: &'t str,
    at: usize,
}

impl Iterator for Strings<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let bytes = self.text.as_bytes();
        let start = self.at + bytes.get(self.at..)?.iter().position(|byte| *byte == b'"')? + 1;
        let mut end = start;
        while let Some(byte) = bytes.get(end).filter(|byte| **byte != b'"') {
            end += if *byte == b'\\' { 2 } else { 1 };
        }
        self.at = end + 1;
        Some(start..end.min(bytes.len()))
    }
}

/// What a string says, and where each byte of it begins to be written. Half a surrogate pair is a part of no secret, and said
/// as its number.
fn said(written: &str) -> (Vec<u8>, Vec<usize>) {
    let (mut said, mut places) = (Vec::with_capacity(written.len()), Vec::with_capacity(written.len()));
    let mut at = 0;
    while let Some(character) = written.get(at..).and_then(|rest| rest.chars().next()) {
        let (means, length) = match character {
            '\\' => escape(&written[at..]),
            other => (other, other.len_utf8()),
        };
        let mut bytes = [0; 4];
        for byte in means.encode_utf8(&mut bytes).bytes() {
            said.push(byte);
            places.push(at);
        }
        at += length;
    }
    (said, places)
}

/// What an escape at the beginning of a text means, and how long it is.
fn escape(text: &str) -> (char, usize) {
    let Some(named) = text.chars().nth(1) else { return ('\\', 1) };
    let means = match named {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'u' => return unicode(text),
        other => other,
    };
    (means, 1 + named.len_utf8())
}

/// The same for `\u`, together with a second one that completes a pair.
fn unicode(text: &str) -> (char, usize) {
    let unit = |at: usize| {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let Some(first) = unit(0) else { return ('u', 2) };
    let units = [Some(first), unit(6)].into_iter().flatten();
    match char::decode_utf16(units).next() {
        Some(Ok(character)) => (character, 6 * character.len_utf16()),
        Some(Err(_)) | None => (char::REPLACEMENT_CHARACTER, 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::MARKER;

    const SECRET: &str = "canary-7f3a/9b2c\u{1f600}\"d";

    fn redactor() -> Redactor {
        Redactor::new(&[SECRET.to_owned().into()])
    }

    /// Every character as `\u`.
    fn escaped(text: &str) -> String {
        text.encode_utf16().fold(String::new(), |text, unit| text + &format!("\\u{unit:04x}"))
    }

    #[test]
    fn a_secret_goes_however_its_string_is_written() {
        let redactor = redactor();
        let slashed = "canary-7f3a\\/9b2c\\ud83d\\uDE00\\\"d";
        for written in [escaped(SECRET).as_str(), slashed, "c\\u0061nary-7f3a/9b2c\u{1f600}\\u0022d"] {
            for (before, behind) in [
                ("{\"a\": \"x ", " y\",  \"b\" : 1.50}"),
                ("{\"", "\":[1, \"\\\\\"]}"),
                // A name twice: a reader keeps the last.
                ("{\"a\":\"", "\",\"a\":1}"),
                ("{\"x\":\"\\ud800\",\"a\":\"", "\"}"),
                ("{\"a\":\"\\ud800", "\\ud800\"}"),
                ("{\"a\":\"\\\\", "\\n\"}"),
                ("{\"n\":1e999,\"a\":\"", "\"}"),
            ] {
                let kept = redactor.json(&format!("{before}{written}{behind}"));
                assert_eq!(kept.unwrap(), format!("{before}{MARKER}{behind}"), "{written}");
            }
            let (deep, end) = ("[".repeat(200), "]".repeat(200));
            let kept = redactor.json(&format!("{deep}\"{written}\"{end}")).unwrap();
            assert_eq!(kept, format!("{deep}\"{MARKER}\"{end}"));
        }
    }

    #[test]
    fn what_nothing_is_found_in_is_no_finding_whatever_it_is() {
        let redactor = redactor();
        let half = escaped(&SECRET[..12]);
        for text in [
            "{\"type\":\"user\",\"s\":\"\\ud83d\"}",
            "{\"s\":\"\\ude00\\ud83d\"}",
            "\"\\u00",
            "\"\\",
            "\"\\uzzzz\\u+123\\q\"",
            "1e999",
            "{\"a\\/b\":\"\\u0041\"",
            &format!("\"{half}\",\"{half}\""),
            &"[".repeat(500),
        ] {
            assert_eq!(redactor.json(text), None, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_json_becomes_a_string_without_the_secret() {
        let redactor = redactor();
        for text in [format!("\"{}", escaped(SECRET)), format!("{{\"a\":\"{}\\u00", escaped(SECRET))] {
            let kept = redactor.json(&text).unwrap();
            let said: String = serde_json::from_str(&kept).unwrap();
            assert!(said.contains(MARKER) && !said.contains("\\u0063"), "{said}");
        }
    }
}
