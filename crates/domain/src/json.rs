//! How much is in a JSON text, without reading it, and whether every reader can read it.

mod strict;

pub use strict::is_read_by_all;

/// Most values of a JSON text that is read as a tree: each may take some 700 bytes of memory, however short it is written, so a text
/// of so many takes about 14 MB beside its length. More than any field holds within its own bound, such as a schema of
/// [`SCHEMA_BYTES`](crate::schema::SCHEMA_BYTES).
pub const JSON_VALUES: usize = 20_000;

/// How many values a JSON text has at most: members and items, at any depth, and the whole. What is no JSON has as many as its
/// brackets and commas outside of texts would make.
///
/// It reads the bytes once and keeps nothing.
#[must_use]
pub fn values(json: &[u8]) -> usize {
    let (mut values, mut in_text, mut escaped) = (1_usize, false, false);
    for byte in json {
        if in_text {
            in_text = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else {
            in_text = *byte == b'"';
            values += usize::from(matches!(byte, b',' | b'[' | b'{'));
        }
    }
    values
}

/// Deepest JSON text that is passed on as it is: most readers, serde's among them, go no deeper than 128, what stands around it counted.
pub const JSON_DEPTH: usize = 100;

/// How deep lists and objects lie in one another in a JSON text at most; 0 without any.
///
/// It reads the bytes once and keeps nothing.
#[must_use]
pub fn depth(json: &[u8]) -> usize {
    let (mut now, mut most, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        if in_text {
            in_text = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
            continue;
        }
        in_text = *byte == b'"';
        now = match byte {
            b'[' | b'{' => now + 1,
            b']' | b'}' => now.saturating_sub(1),
            _ => now,
        };
        most = most.max(now);
    }
    most
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::schema::SCHEMA_BYTES;

    fn counted(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(counted).sum(),
            Value::Object(members) => members.values().map(counted).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        }
    }

    #[test]
    fn lists_and_objects_in_one_another_are_deep_and_those_beside_one_another_are_not() {
        for (json, deep) in [
            ("7", 0),
            ("[]", 1),
            ("[{},[]]", 2),
            (r#"{"a":[{"b":1}]}"#, 3),
            (r#"["[[[","\"[["]"#, 1),
            ("]]][", 1),
        ] {
            assert_eq!(depth(json.as_bytes()), deep, "{json}");
        }
    }

    #[test]
    fn brackets_and_commas_within_texts_are_no_values() {
        for (json, count) in [
            ("7", 1),
            ("[]", 2),
            ("[1,2]", 3),
            (r#"{"a":[{}]}"#, 4),
            (r#""[,{""#, 1),
            (r#"["\",[",1]"#, 3),
            (r#"["\\",1]"#, 3),
            (r#"["\\\",",1]"#, 3),
            (r#"{"[,{\"":1}"#, 2),
            (r#"["open,,,"#, 2),
            ("", 1),
        ] {
            assert_eq!(values(json.as_bytes()), count, "{json}");
        }
    }

    #[test]
    fn no_schema_within_its_bound_has_too_many() {
        const { assert!(SCHEMA_BYTES < JSON_VALUES) };
        assert!(values("[".repeat(SCHEMA_BYTES).as_bytes()) <= JSON_VALUES);
    }

    fn trees() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<i64>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a,\\[{\"]{0,3}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_tree_never_has_more_than_its_text_says(tree in trees()) {
            let (real, said) = (counted(&tree), values(tree.to_string().as_bytes()));
            // An empty list or object counts as if something were in it.
            prop_assert!(real <= said && said <= 2 * real, "{real} {said} {tree}");
        }
    }
}
