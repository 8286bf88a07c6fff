//! Whether a text is JSON to strict readers, without making a tree of it: a line of an agent as a tree may take a hundred times
//! its memory.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// Whether a reader who takes every value as what it is can read the text: its numbers are in range, its texts have no lone
/// surrogates, and it lies no deeper than `serde_json` reads (127 levels).
#[must_use]
pub fn is_read_by_all(json: &str) -> bool {
    serde_json::from_str::<Read>(json).is_ok()
}

/// A value that was read, and let go.
struct Read;

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Read {
    type Value = Self;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while let Some(Self) = items.next_element()? {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        while let Some((Self, Self)) = members.next_entry()? {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn agrees(text: &str) -> bool {
        let read = is_read_by_all(text);
        assert_eq!(read, serde_json::from_str::<Value>(text).is_ok(), "{text}");
        read
    }

    #[test]
    fn nothing_is_kept_of_what_was_read() {
        const { assert!(size_of::<Read>() == 0) };
    }

    #[test]
    fn it_is_as_strict_as_who_makes_a_tree() {
        for good in [r#"{"a":[1,-2,1.5e3,true,null,"\ud83d\ude00"],"":{}}"#, "18446744073709551616", "7 "] {
            assert!(agrees(good), "{good}");
        }
        for bad in [r#"{"a":1e999}"#, r#"["\ud800"]"#, r#"{"\ud800":1}"#, "{", "{}x", "[1,]", "nul", "{1:2}"]
        {
            assert!(!agrees(bad), "{bad}");
        }
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(agrees(&nested(127)) && !agrees(&nested(128)));
    }

    proptest! {
        #[test]
        fn it_agrees_with_who_makes_a_tree_about_any_text(
            text in r#"([\[\]{},:"0-9e.\-\\ ]|null|true|"a"|\\u|d8|"[a-z]"){0,12}"#,
        ) {
            agrees(&text);
        }
    }
}
