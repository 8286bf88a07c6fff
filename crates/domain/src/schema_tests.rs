use serde_json::json;

use super::*;

fn schema(fields: &Value) -> Schema {
    let mut schema = json!({"type": "object"});
    schema.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Schema::read(&schema).unwrap()
}

fn refusal(schema: &Value) -> String {
    Schema::read(schema).unwrap_err().to_string()
}

#[test]
fn every_keyword_is_checked() {
    let only = |property: Value| schema(&json!({"properties": {"x": property}}));
    for (property, good, bad, told) in [
        (json!({"type": "string"}), json!("a"), json!(1), "output.x is not of type string"),
        (json!({"type": ["string", "null"]}), json!(null), json!(true), "string or null"),
        (json!({"type": "integer"}), json!(1.0), json!(1.5), "integer"),
        (json!({"type": "number"}), json!(1.5), json!("1"), "number"),
        (json!({"type": "boolean"}), json!(false), json!(0), "boolean"),
        (json!({"enum": ["a", 2]}), json!(2), json!("b"), "is none of \"a\", 2"),
        (json!({"const": "v1"}), json!("v1"), json!("v2"), "is not \"v1\""),
        (json!({"minLength": 2}), json!("äö"), json!("ä"), "fewer than 2"),
        (json!({"maxLength": 2}), json!("äö"), json!("äöü"), "more than 2"),
        (json!({"minItems": 1}), json!([0]), json!([]), "0 items, fewer than 1"),
        (json!({"maxItems": 1}), json!([0]), json!([0, 0]), "2 items, more than 1"),
        (json!({"minimum": 1}), json!(1), json!(0), "out of its range"),
        (json!({"maximum": 1}), json!(1), json!(2), "out of its range"),
        (json!({"items": {"type": "string"}}), json!(["a"]), json!(["a", 1]), "output.x[1] is not of type"),
        (json!({"anyOf": [{"type": "null"}, {"minimum": 5}]}), json!(5), json!(4), "none of the forms"),
        (json!({"required": ["y"]}), json!({"y": 0}), json!({}), "output.x.y is missing"),
        (json!({"additionalProperties": false}), json!({}), json!({"z": 0}), "output.x.z is not a field"),
        (
            json!({"additionalProperties": {"type": "null"}}),
            json!({"a": null}),
            json!({"a": 1}),
            "output.x.a is not of type null",
        ),
    ] {
        let schema = only(property.clone());
        assert_eq!(schema.faults(&json!({"x": good})), Vec::<String>::new(), "{property}");
        let faults = schema.faults(&json!({"x": bad}));
        assert!(faults.len() == 1 && faults[0].contains(told), "{property}: {faults:?}");
    }
}

#[test]
fn what_is_not_checked_is_refused_with_what_is() {
    let told = refusal(&json!({"type": "object", "properties": {"a": {"pattern": "^x$"}}}));
    assert!(told.starts_with("schema.properties.a.pattern: ") && told.contains("maxLength"), "{told}");
    for bad in [
        json!({"$ref": "#/x"}),
        json!({"type": "strange"}),
        json!({"type": []}),
        json!({"enum": []}),
        json!({"required": [1]}),
        json!({"minLength": -1}),
        json!({"minimum": "1"}),
        json!({"items": []}),
        json!({"properties": []}),
        json!({"anyOf": []}),
    ] {
        let whole = json!({"type": "object", "properties": {"a": bad}});
        assert!(Schema::read(&whole).is_err(), "{bad}");
    }
    assert!(refusal(&json!({"type": "string"})).contains("must describe an object"));
    assert!(refusal(&json!(true)).contains("must describe an object"));
    schema(&json!({"title": "t", "description": "d", "$schema": "s", "default": {}, "examples": []}));
}

#[test]
fn a_schema_is_taken_at_its_bounds_and_refused_beyond() {
    let long = |bytes: usize| json!({"type": "object", "title": "x".repeat(bytes)});
    let frame = long(0).to_string().len();
    assert!(Schema::read(&long(SCHEMA_BYTES - frame)).is_ok());
    assert!(refusal(&long(SCHEMA_BYTES - frame + 1)).contains("16384"));
    let deep = |levels: usize| {
        let inner = (1..levels).fold(json!({}), |inner, _| json!({"items": inner}));
        json!({"type": "object", "additionalProperties": inner})
    };
    assert!(Schema::read(&deep(SCHEMA_DEPTH)).is_ok());
    assert!(refusal(&deep(SCHEMA_DEPTH + 1)).contains("deeper than 16"));
}

#[test]
fn an_output_is_taken_at_its_bound_and_its_faults_are_counted() {
    let any = schema(&json!({}));
    let long = |bytes: usize| json!({"a": "x".repeat(bytes)});
    let frame = long(0).to_string().len();
    assert!(any.faults(&long(OUTPUT_BYTES - frame)).is_empty());
    assert!(any.faults(&long(OUTPUT_BYTES - frame + 1))[0].contains("65536"));
    let strict = schema(&json!({"properties": {"a": {"items": {"type": "null"}}}}));
    assert_eq!(strict.faults(&json!({"a": vec![0; OUTPUT_FAULTS + 5]})).len(), OUTPUT_FAULTS);
    let named = schema(&json!({"additionalProperties": false}));
    let fault = &named.faults(&json!({"n\n".repeat(1000): 0}))[0];
    assert!(!fault.contains('\n') && fault.len() < 3 * PATH_BYTES, "{fault}");
}
