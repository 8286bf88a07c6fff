//! What a run's structured output must look like: a small part of JSON Schema, all of which is checked.
//!
//! A keyword that is not checked here is refused when the schema comes in, so that nobody counts on it. What the agent's own
//! tool checks is checked again: by the shim, which lets the agent try once more, and by the worker, which believes neither.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::run::cut;

/// Longest schema, in bytes of JSON. It is one argument of the agent.
pub const SCHEMA_BYTES: usize = 16 * 1024;
/// Deepest schema and deepest output, in levels.
pub const SCHEMA_DEPTH: usize = 16;
/// Longest output, in bytes of JSON.
pub const OUTPUT_BYTES: usize = 64 * 1024;
/// Most faults that are told of one output.
pub const OUTPUT_FAULTS: usize = 20;
/// Longest path of a fault, in bytes.
const PATH_BYTES: usize = 200;

/// Keywords that say something to readers and nothing to a check.
const ANNOTATIONS: [&str; 7] =
    ["$schema", "title", "description", "default", "examples", "format", "deprecated"];
const TYPES: [&str; 7] = ["object", "array", "string", "integer", "number", "boolean", "null"];

/// A schema that was read and can be checked whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema(Value);

/// Why a schema cannot be used: where, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct SchemaError {
    path: String,
    reason: String,
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// [`SchemaError`] for one that is too long or too deep, does not describe an object, or has a keyword that is not
    /// known here or has a value that it cannot have.
    pub fn read(value: &Value) -> Result<Self, SchemaError> {
        let fault = |reason: String| Err(SchemaError { path: "schema".to_owned(), reason });
        if value.get("type").and_then(Value::as_str) != Some("object") {
            return fault("it must describe an object: give it \"type\": \"object\"".to_owned());
        }
        let bytes = value.to_string().len();
        if bytes > SCHEMA_BYTES {
            return fault(format!("it has {bytes} bytes, and at most {SCHEMA_BYTES} are taken"));
        }
        read(value, "schema", 0)?;
        Ok(Self(value.clone()))
    }

    /// What is wrong with an output, the first [`OUTPUT_FAULTS`]; nothing if it fits. Each names where and what is wanted.
    #[must_use]
    pub fn faults(&self, output: &Value) -> Vec<String> {
        let bytes = output.to_string().len();
        if bytes > OUTPUT_BYTES {
            return vec![format!("it has {bytes} bytes of JSON, and at most {OUTPUT_BYTES} are taken")];
        }
        let mut faults = Faults::default();
        check(&self.0, output, "output", &mut faults);
        faults.0
    }
}

#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, path: &str, reason: &str) {
        if self.0.len() < OUTPUT_FAULTS {
            self.0.push(format!("{} {reason}", cut(path, PATH_BYTES).escape_debug()));
        }
    }
}

fn read(schema: &Value, path: &str, depth: usize) -> Result<(), SchemaError> {
    let fault = |path: &str, reason: String| {
        Err(SchemaError { path: cut(path, PATH_BYTES).escape_debug().to_string(), reason })
    };
    if depth > SCHEMA_DEPTH {
        return fault(path, format!("it is deeper than {SCHEMA_DEPTH} levels"));
    }
    let Some(fields) = schema.as_object() else { return fault(path, "it is not an object".to_owned()) };
    for (keyword, value) in fields {
        let at = format!("{path}.{keyword}");
        let fits = match keyword.as_str() {
            "type" => types(value).is_some(),
            "enum" => value.as_array().is_some_and(|all| !all.is_empty()),
            "required" => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
            "minItems" | "maxItems" | "minLength" | "maxLength" => value.is_u64(),
            "minimum" | "maximum" => value.is_number(),
            "additionalProperties" if value.is_boolean() => true,
            "additionalProperties" | "items" => return_ok(read(value, &at, depth + 1))?,
            "properties" => read_all(value.as_object().map(Map::iter), &at, depth)?,
            "anyOf" => {
                let all = value.as_array().filter(|all| !all.is_empty());
                let named: Option<Vec<_>> =
                    all.map(|all| all.iter().enumerate().map(|(n, one)| (n.to_string(), one)).collect());
                read_all(named.as_ref().map(|all| all.iter().map(|(n, one)| (n, *one))), &at, depth)?
            }
            "const" => true,
            known if ANNOTATIONS.contains(&known) => true,
            _ => {
                let reason = "it is not a keyword that is checked here: use type, properties, required, \
                              additionalProperties, items, enum, const, anyOf, minItems, maxItems, minLength, maxLength, \
                              minimum, maximum";
                return fault(&at, reason.to_owned());
            }
        };
        if !fits {
            return fault(&at, "its value is not one that it can have".to_owned());
        }
    }
    Ok(())
}

fn return_ok(read: Result<(), SchemaError>) -> Result<bool, SchemaError> {
    read.map(|()| true)
}

/// `false` if there is nothing to read.
fn read_all<'v>(
    schemas: Option<impl Iterator<Item = (&'v String, &'v Value)>>,
    path: &str,
    depth: usize,
) -> Result<bool, SchemaError> {
    let Some(schemas) = schemas else { return Ok(false) };
    for (name, schema) in schemas {
        read(schema, &format!("{path}.{name}"), depth + 1)?;
    }
    Ok(true)
}

/// The names in a `type`; none if there is one that is not known.
fn types(value: &Value) -> Option<Vec<&str>> {
    let names: Vec<&str> = match value {
        Value::String(name) => vec![name],
        Value::Array(names) if !names.is_empty() => names.iter().map(Value::as_str).collect::<Option<_>>()?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    names.iter().all(|name| TYPES.contains(name)).then_some(names)
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn check(schema: &Value, value: &Value, path: &str, faults: &mut Faults) {
    if let Some(names) = schema.get("type").and_then(types)
        && !names.iter().any(|name| is_a(value, name))
    {
        return faults.add(path, &format!("is not of type {}", names.join(" or ")));
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let mut told = String::new();
        for one in allowed {
            let _written = write!(told, "{}{one}", if told.is_empty() { "" } else { ", " });
        }
        faults.add(path, &format!("is none of {}", cut(&told, PATH_BYTES)));
    }
    if let Some(only) = schema.get("const").filter(|only| *only != value) {
        faults.add(path, &format!("is not {}", cut(&only.to_string(), PATH_BYTES)));
    }
    if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
        let fits = |one: &Value| {
            let mut found = Faults::default();
            check(one, value, path, &mut found);
            found.0.is_empty()
        };
        if !any.iter().any(fits) {
            faults.add(path, "fits none of the forms that it may have");
        }
    }
    check_size(schema, value, path, faults);
    match value {
        Value::Object(fields) => check_fields(schema, fields, path, faults),
        Value::Array(items) => {
            if let Some(each) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    check(each, item, &format!("{path}[{index}]"), faults);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn check_size(schema: &Value, value: &Value, path: &str, faults: &mut Faults) {
    let bound = |name: &str| schema.get(name).and_then(Value::as_u64);
    let mut sized = |count: usize, (least, most): (&str, &str), what: &str| {
        let count = count as u64;
        if let Some(least) = bound(least).filter(|least| count < *least) {
            faults.add(path, &format!("has {count} {what}, fewer than {least}"));
        }
        if let Some(most) = bound(most).filter(|most| count > *most) {
            faults.add(path, &format!("has {count} {what}, more than {most}"));
        }
    };
    match value {
        Value::String(text) => sized(text.chars().count(), ("minLength", "maxLength"), "characters"),
        Value::Array(items) => sized(items.len(), ("minItems", "maxItems"), "items"),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
            if bound("minimum").is_some_and(|least| number < least)
                || bound("maximum").is_some_and(|most| number > most)
            {
                faults.add(path, &format!("is {number}, which is out of its range"));
            }
        }
        Value::Null | Value::Bool(_) | Value::Object(_) => {}
    }
}

fn check_fields(schema: &Value, fields: &Map<String, Value>, path: &str, faults: &mut Faults) {
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    for name in required.filter_map(Value::as_str).filter(|name| !fields.contains_key(*name)) {
        faults.add(&format!("{path}.{name}"), "is missing");
    }
    let known = schema.get("properties").and_then(Value::as_object);
    for (name, value) in fields {
        let at = format!("{path}.{name}");
        match (known.and_then(|known| known.get(name)), schema.get("additionalProperties")) {
            (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => check(schema, value, &at, faults),
            (None, Some(Value::Bool(false))) => faults.add(&at, "is not a field that it may have"),
            (None, _) => {}
        }
    }
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
