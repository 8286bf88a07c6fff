//! In which forms a secret is written.

use std::fmt::Write as _;

use serde_json::Value;

use super::{PIECE_BYTES, SECRET_BYTES_MIN};
/// A secret in pieces; none is short, however it ends.
pub(super) fn pieces(secret: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = secret;
    while rest.len() >= PIECE_BYTES + SECRET_BYTES_MIN {
        let (piece, behind) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        pieces.push(piece);
        rest = behind;
    }
    pieces.push(rest);
    pieces
}

/// Everything that is looked for because of one secret.
pub(crate) fn forms(secret: &str) -> Vec<Vec<u8>> {
    let escaped = json_escaped(secret);
    let mut forms = vec![
        secret.to_owned(),
        json_escaped(&escaped),
        // As PHP and others write a JSON string.
        escaped.replace('/', "\\/"),
        escaped,
        ascii_escaped(secret),
        hex::encode(secret),
        hex::encode_upper(secret),
    ];
    // RFC 3986, HTML forms, and what browsers and Node call encodeURIComponent.
    for kept in [b"-._~".as_slice(), b"-._*", b"-._~!'()*"] {
        let percent = percent_encoded(secret, kept);
        for percent in [lowercase_percent(&percent), percent] {
            forms.push(percent.replace("%20", "+"));
            forms.push(percent);
        }
    }
    for alphabet in [STANDARD, URL_SAFE] {
        forms.extend((0..3).map(|before| base64_core(secret.as_bytes(), before, alphabet)));
    }
    forms.into_iter().map(String::into_bytes).filter(|form| !form.is_empty()).collect()
}

/// As in a JSON string, without the quotes.
fn json_escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// As Python and others write a JSON string: nothing but ASCII.
fn ascii_escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in json_escaped(text).chars() {
        if character.is_ascii() {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(escaped, "\\u{unit:04x}").expect("writing to a string never fails");
        }
    }
    escaped
}

fn percent_encoded(text: &str, kept: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a string never fails");
        }
    }
    encoded
}

/// The same with small letters in the digits of its escapes alone.
fn lowercase_percent(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let mut lower = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at(2.min(part.len()));
        lower.push('%');
        lower.push_str(&digits.to_ascii_lowercase());
        lower.push_str(rest);
    }
    lower
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The part of the base64 of a text, with `before` bytes before the secret in its first group of three, that the secret
/// alone decides. The digits at its ends, which its neighbours decide as well, are left out.
fn base64_core(secret: &[u8], before: usize, alphabet: &[u8; 64]) -> String {
    let bit = |at: usize| {
        let byte = secret[at / 8];
        (byte >> (7 - at % 8)) & 1
    };
    // Digits begin at every sixth bit of the whole; the first whole one of the secret is this far into it.
    let first = (6 - before * 8 % 6) % 6;
    let bits = secret.len() * 8;
    let digits = (bits - first) / 6;
    let digit = |number: usize| {
        let at = first + number * 6;
        let value = (at..at + 6).fold(0, |value: u8, at| value << 1 | bit(at));
        char::from(alphabet[usize::from(value)])
    };
    (0..digits).map(digit).collect()
}
