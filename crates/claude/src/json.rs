//! A lenient look into one JSON object.
//!
//! Two properties of the CLI's output rule out ordinary typed deserialising. A field may have another type in the next
//! release, and must then cost that field, not the line. And a text that was cut between two UTF-16 halves comes out as
//! a lone surrogate (`"\ud83d"`), which is no Rust string: it is decoded with U+FFFD in its place. Values that nobody
//! asks for are skipped without recursion, so deeply nested tool inputs cannot hide a line.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::value::RawValue;

/// One JSON object, its values still unread.
#[derive(Debug)]
pub(crate) struct Object<'a>(BTreeMap<Text, &'a RawValue>);

impl<'a> Object<'a> {
    /// Reads an object; `None` if the text is anything else. Of a repeated name the last value counts.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }

    /// The value's own text.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|value| value.get())
    }

    /// A string; `None` if absent or of another type.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.raw(name).and_then(text)
    }

    /// A string that is empty if absent.
    pub(crate) fn text_or_empty(&self, name: &str) -> String {
        self.text(name).unwrap_or_default()
    }

    /// A truth value; `None` if absent or of another type.
    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.raw(name).and_then(|raw| serde_json::from_str(raw).ok())
    }

    /// A whole number that fits; `None` otherwise.
    pub(crate) fn number<T: TryFrom<u64>>(&self, name: &str) -> Option<T> {
        self.raw(name).and_then(|raw| serde_json::from_str::<u64>(raw).ok()).and_then(|n| T::try_from(n).ok())
    }

    /// An object within.
    pub(crate) fn object(&self, name: &str) -> Option<Object<'a>> {
        self.raw(name).and_then(Object::parse)
    }

    /// The elements of a list; none if absent or of another type.
    pub(crate) fn list(&self, name: &str) -> Vec<&'a str> {
        self.raw(name).map(list).unwrap_or_default()
    }

    /// The objects in a list.
    pub(crate) fn objects(&self, name: &str) -> Vec<Object<'a>> {
        self.list(name).into_iter().filter_map(Object::parse).collect()
    }

    /// The strings in a list.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        self.list(name).into_iter().filter_map(text).collect()
    }
}

/// Decodes a string, lone surrogates included; `None` if it is no string.
pub(crate) fn text(raw: &str) -> Option<String> {
    serde_json::from_str::<Text>(raw).ok().map(|text| text.0)
}

/// Splits a list into its elements' texts.
pub(crate) fn list(raw: &str) -> Vec<&str> {
    let values: Vec<&RawValue> = serde_json::from_str(raw).unwrap_or_default();
    values.into_iter().map(RawValue::get).collect()
}

/// A JSON string, decoded with U+FFFD where it is no Unicode.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Text(String);

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Asked for bytes, serde_json hands lone surrogates on as WTF-8 instead of failing.
        deserializer.deserialize_bytes(TextVisitor).map(Text)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(std::str::from_utf8(bytes).map_or_else(|_| without_surrogates(bytes.to_vec()), str::to_owned))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// Puts U+FFFD where WTF-8 has a surrogate; both are three bytes long, and valid UTF-8 never has these two first bytes.
fn without_surrogates(mut bytes: Vec<u8>) -> String {
    for at in 0..bytes.len().saturating_sub(2) {
        if bytes[at] == 0xed && bytes[at + 1] >= 0xa0 {
            bytes[at..at + 3].copy_from_slice("\u{fffd}".as_bytes());
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_another_type_costs_only_itself() {
        let object =
            Object::parse(r#"{"a":1,"b":"x","c":true,"d":[1,"y",{"e":2}],"n":-1,"big":99999999999}"#)
                .unwrap();
        assert_eq!(object.text("a"), None);
        assert_eq!(object.text_or_empty("a"), "");
        assert_eq!(object.text("b").as_deref(), Some("x"));
        assert_eq!(object.flag("c"), Some(true));
        assert_eq!(object.flag("b"), None);
        assert_eq!(object.texts("d"), ["y"]);
        assert_eq!(object.objects("d").len(), 1);
        assert_eq!(object.list("b").len(), 0);
        assert_eq!(object.number::<u32>("a"), Some(1));
        assert_eq!(object.number::<u32>("n"), None);
        assert_eq!(object.number::<u32>("big"), None);
        assert_eq!(object.number::<u64>("big"), Some(99_999_999_999));
        assert!(object.object("b").is_none());
    }

    #[test]
    fn a_lone_surrogate_becomes_a_replacement_character() {
        let object =
            Object::parse(r#"{"t":"half \ud83d emoji","whole":"\ud83d\ude00","\udc00":"k"}"#).unwrap();
        assert_eq!(object.text("t").as_deref(), Some("half \u{fffd} emoji"));
        assert_eq!(object.text("whole").as_deref(), Some("😀"));
    }

    #[test]
    fn the_last_of_a_repeated_name_counts() {
        assert_eq!(Object::parse(r#"{"a":"1","a":"2"}"#).unwrap().text("a").as_deref(), Some("2"));
    }

    #[test]
    fn deep_nesting_hides_nothing() {
        let deep = format!(r#"{{"deep":{}{},"after":"seen"}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Object::parse(&deep).unwrap().text("after").as_deref(), Some("seen"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "null", "[]", "\"x\"", "1", "{", "{\"a\":}", "{} x", "{\"a\" 1}"] {
            assert!(Object::parse(text).is_none(), "{text}");
        }
    }
}
