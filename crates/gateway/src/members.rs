//! JSON objects as they are written: a name that stands twice counts each time, so that no reader finds one that is not
//! seen here. Values stay text: a tree of them may take a hundred times as much memory.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Members of an object, in order.
#[derive(Debug)]
pub(crate) struct Members<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Take;
        impl<'de> Visitor<'de> for Take {
            type Value = Members<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Take)
    }
}

/// A text that is borrowed where it can be.
#[derive(Debug, Deserialize)]
pub(crate) struct Name<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// A value's text, if it is one.
pub(crate) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str(value.get()).ok().map(|Name(text)| text)
}

/// Shows the members of an object to `each`, one by one, and keeps none of them.
///
/// # Errors
/// The first of `each`, which ends the reading; else that of the reader. What it had shown before that is no less shown.
pub(crate) fn each_member<'a, E, F>(json: &'a [u8], each: F) -> Result<(), E>
where
    E: From<serde_json::Error>,
    F: FnMut(&str, &'a RawValue) -> Result<(), E>,
{
    let mut parser = serde_json::Deserializer::from_slice(json);
    let mut refused = None;
    let read =
        parser.deserialize_map(ShowMembers { each, refused: &mut refused }).and_then(|()| parser.end());
    refused.map_or_else(|| read.map_err(E::from), Err)
}

/// Shows the items of a list to `each`, one by one, and keeps none of them.
///
/// # Errors
/// As [`each_member`].
pub(crate) fn each_item<'a, E, F>(json: &'a [u8], each: F) -> Result<(), E>
where
    E: From<serde_json::Error>,
    F: FnMut(&'a RawValue) -> Result<(), E>,
{
    let mut parser = serde_json::Deserializer::from_slice(json);
    let mut refused = None;
    let read = parser.deserialize_seq(ShowItems { each, refused: &mut refused }).and_then(|()| parser.end());
    refused.map_or_else(|| read.map_err(E::from), Err)
}

/// What the reader is told where `each` ended it; its caller is told what `each` said.
const ENDED: &str = "it was not read on";

struct ShowMembers<'r, E, F> {
    each: F,
    refused: &'r mut Option<E>,
}

impl<'de, E, F: FnMut(&str, &'de RawValue) -> Result<(), E>> Visitor<'de> for ShowMembers<'_, E, F> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            if let Err(error) = (self.each)(&name, map.next_value()?) {
                *self.refused = Some(error);
                return Err(A::Error::custom(ENDED));
            }
        }
        Ok(())
    }
}

struct ShowItems<'r, E, F> {
    each: F,
    refused: &'r mut Option<E>,
}

impl<'de, E, F: FnMut(&'de RawValue) -> Result<(), E>> Visitor<'de> for ShowItems<'_, E, F> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            if let Err(error) = (self.each)(item) {
                *self.refused = Some(error);
                return Err(A::Error::custom(ENDED));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Fault {
        Json,
        Own,
    }

    impl From<serde_json::Error> for Fault {
        fn from(_: serde_json::Error) -> Self {
            Self::Json
        }
    }

    #[test]
    fn each_value_is_shown_in_order_until_one_is_refused() {
        let mut seen = Vec::new();
        let mut look = |json: &str| {
            seen.clear();
            let end = each_member(json.as_bytes(), |name, value| {
                seen.push(format!("{name}={}", value.get()));
                if value.get() == "0" { Err(Fault::Own) } else { Ok(()) }
            });
            (end, seen.join(" "))
        };
        assert_eq!(look(r#"{"a":1,"\u0061": [2 ] ,"b":{}}"#), (Ok(()), "a=1 a=[2 ] b={}".to_owned()));
        assert_eq!(look(r#"{"a":0,"b":1}"#), (Err(Fault::Own), "a=0".to_owned()));
        assert_eq!(look(r#"{"a":1}x"#).0, Err(Fault::Json));
        for none in ["[]", "7", "", "{", "null"] {
            assert_eq!(look(none), (Err(Fault::Json), String::new()), "{none}");
        }
        let mut seen = Vec::new();
        let mut look = |json: &str| {
            seen.clear();
            let end = each_item(json.as_bytes(), |value| {
                seen.push(value.get().to_owned());
                if value.get() == "0" { Err(Fault::Own) } else { Ok(()) }
            });
            (end, seen.join(" "))
        };
        assert_eq!(look(r#"[1, [2],"x"]"#), (Ok(()), r#"1 [2] "x""#.to_owned()));
        assert_eq!(look("[0,1]"), (Err(Fault::Own), "0".to_owned()));
        assert_eq!(look("[1]x").0, Err(Fault::Json));
        assert_eq!(look("{}").0, Err(Fault::Json));
    }
}
