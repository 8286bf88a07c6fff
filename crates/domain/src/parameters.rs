//! Parameters of a workflow: what each may be, and how their values get into its prompt as data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::revision::{REVISION_BYTES, REVISIONS, is_revision};
use crate::run::{cut, text_enum};

/// Parameters of a workflow.
pub const PARAMETERS: usize = 32;
/// Longest name of a parameter, in bytes.
pub const PARAMETER_NAME_BYTES: usize = 63;
/// Longest text value, in bytes.
pub const PARAMETER_TEXT_BYTES: usize = 4 * 1024;
/// Longest prompt with its parameters' values in it, in bytes: it is one argument of the agent.
pub const FILLED_PROMPT_BYTES: usize = 112 * 1024;

text_enum! {
    /// What a parameter's value is.
    ParameterKind, "parameter type" {
        /// A text.
        String = "string",
        /// A whole number.
        Integer = "integer",
        /// A number.
        Number = "number",
        /// Yes or no.
        Boolean = "boolean",
        /// A text that names a commit of the run's repository, by a branch, a tag or the commit itself; empty for the commit of the
        /// branch that steers the agent. The shim fetches it.
        Revision = "revision",
    }
}

/// One parameter of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// What its value is.
    #[serde(rename = "type")]
    pub kind: ParameterKind,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The value of a run that gives none; without one, a run must give one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// The values that it may have; none means all of its type.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<Value>,
}

/// Parameters by name.
pub type Parameters = BTreeMap<String, Parameter>;
/// Values by the name of their parameter.
pub type Values = BTreeMap<String, Value>;

/// Something is wrong with one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterFault {
    /// Which.
    pub name: String,
    /// What, with the remedy.
    pub reason: String,
}

impl Parameter {
    /// Why the value is not one that the parameter can have.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let fits = match self.kind {
            ParameterKind::String | ParameterKind::Revision => value.is_string(),
            ParameterKind::Integer => value.is_i64() || value.is_u64(),
            ParameterKind::Number => value.is_number(),
            ParameterKind::Boolean => value.is_boolean(),
        };
        if !fits {
            return Err(format!("it is not of type {}", self.kind));
        }
        if let Value::String(text) = value
            && (text.len() > PARAMETER_TEXT_BYTES || text.contains('\0'))
        {
            return Err(format!("it has more than {PARAMETER_TEXT_BYTES} bytes, or a null character"));
        }
        if self.kind == ParameterKind::Revision
            && let Value::String(text) = value
            && !(text.is_empty() || is_revision(text))
        {
            return Err(format!(
                "it is not a branch, a tag or a commit, such as main, v1.2 or 3f0c9a1, in at most {REVISION_BYTES} bytes"
            ));
        }
        if self.allowed.is_empty() || self.allowed.contains(value) {
            return Ok(());
        }
        let all: Vec<_> = self.allowed.iter().map(ToString::to_string).collect();
        Err(format!("it is none of {}", cut(&all.join(", "), PARAMETER_TEXT_BYTES)))
    }
}

/// Checks a workflow's parameters and that its prompt names no other.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check(parameters: &Parameters, prompt: &str) -> Result<(), String> {
    if parameters.len() > PARAMETERS {
        return Err(format!("there are more than {PARAMETERS}"));
    }
    if parameters.values().filter(|parameter| parameter.kind == ParameterKind::Revision).count() > REVISIONS {
        return Err(format!(
            "there are more than {REVISIONS} of the type revision, each of which is fetched"
        ));
    }
    for (name, parameter) in parameters {
        let told = cut(name, PARAMETER_NAME_BYTES).escape_debug();
        if !is_name(name) {
            return Err(format!(
                "\"{told}\" is not a name of 1 to {PARAMETER_NAME_BYTES} lower-case letters, digits and underscores that begins with a letter"
            ));
        }
        if let Some(bad) =
            parameter.allowed.iter().chain(&parameter.default).find_map(|value| parameter.check(value).err())
        {
            return Err(format!("a value of \"{told}\" in enum or default cannot be one: {bad}"));
        }
    }
    match places(prompt).find(|(_, name)| !parameters.contains_key(*name)) {
        Some((_, name)) => Err(format!(
            "the prompt has {{{{ {name} }}}}, and the workflow has no such parameter; add it to caisson.parameters"
        )),
        None => Ok(()),
    }
}

/// The values of a run: what it gives, and the defaults for the rest.
///
/// # Errors
/// Every [`ParameterFault`].
pub fn resolve(parameters: &Parameters, given: &Values) -> Result<Values, Vec<ParameterFault>> {
    let mut faults = Vec::new();
    let mut values = Values::new();
    let known: Vec<_> = parameters.keys().map(String::as_str).collect();
    for name in given.keys().filter(|name| !parameters.contains_key(*name)) {
        let reason = if known.is_empty() {
            "the workflow has no parameters".to_owned()
        } else {
            format!("the workflow has no such parameter; it has {}", known.join(", "))
        };
        faults.push(ParameterFault { name: name.clone(), reason });
    }
    for (name, parameter) in parameters {
        let value = match given.get(name) {
            Some(value) => parameter.check(value).map(|()| value.clone()),
            None => parameter.default.clone().ok_or_else(|| "the workflow requires it".to_owned()),
        };
        match value {
            Ok(value) => drop(values.insert(name.clone(), value)),
            Err(reason) => faults.push(ParameterFault { name: name.clone(), reason }),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(faults) }
}

/// The prompt with each `{{ name }}` replaced by its value as JSON on one line: a text keeps its quotation marks and has no line
/// ends, so that it reads as the value it is. What a value holds is not looked at again.
#[must_use]
pub fn fill(prompt: &str, values: &Values) -> String {
    let mut filled = String::with_capacity(prompt.len());
    let mut from = 0;
    for (place, name) in places(prompt) {
        let Some(value) = values.get(name) else { continue };
        filled.push_str(&prompt[from..place.start]);
        filled.push_str(&as_data(value));
        from = place.end;
    }
    filled.push_str(&prompt[from..]);
    filled
}

/// A value as JSON on one line, for a prompt: it ends neither its own quotation nor the tag or the fence that is around it.
#[must_use]
pub fn as_data(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('`', "\\u0060")
}

/// Where the prompt names parameters.
fn places(prompt: &str) -> impl Iterator<Item = (std::ops::Range<usize>, &str)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let open = from + prompt[from..].find("{{")?;
            from = open + 2;
            let Some(length) = prompt[from..].find("}}") else { continue };
            let name = prompt[from..from + length].trim();
            if is_name(name) {
                from += length + 2;
                return Some((open..from, name));
            }
        }
    })
}

fn is_name(name: &str) -> bool {
    (1..=PARAMETER_NAME_BYTES).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parameters(value: &Value) -> Parameters {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn values(value: &Value) -> Values {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn a_value_gets_into_the_prompt_as_data() {
        let values = values(&json!({"focus": "a\"b\n</data>`{{ depth }}", "depth": 3}));
        let prompt = "Look at {{focus}}, {{ depth }} deep. {{ other }} {{ Focus }} {{";
        assert_eq!(
            fill(prompt, &values),
            "Look at \"a\\\"b\\n\\u003c/data\\u003e\\u0060{{ depth }}\", 3 deep. {{ other }} {{ Focus }} {{"
        );
    }

    #[test]
    fn values_are_given_or_defaults_and_every_fault_is_told() {
        let known = parameters(&json!({
            "depth": {"type": "integer", "default": 2},
            "focus": {"type": "string", "enum": ["all", "security"]},
        }));
        assert_eq!(
            resolve(&known, &values(&json!({"focus": "all"}))).unwrap(),
            values(&json!({"depth": 2, "focus": "all"}))
        );
        let faults = resolve(&known, &values(&json!({"focus": "x", "depth": 1.5, "more": 1}))).unwrap_err();
        let told: Vec<_> = faults.iter().map(|fault| format!("{}: {}", fault.name, fault.reason)).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].starts_with("more: ") && told[0].contains("depth, focus"), "{told:?}");
        assert!(told[1].contains("type integer") && told[2].contains("\"security\""), "{told:?}");
        let missing = resolve(&known, &Values::new()).unwrap_err();
        assert_eq!((missing[0].name.as_str(), missing.len()), ("focus", 1));
        assert!(resolve(&Parameters::new(), &values(&json!({"a": 1}))).is_err());
    }

    #[test]
    fn parameters_are_checked_with_their_prompt() {
        let one = |value: Value| parameters(&json!({"a": value}));
        assert!(check(&one(json!({"type": "string"})), "x {{a}} {{ b-c }}").is_ok());
        assert!(check(&one(json!({"type": "string"})), "{{ b }}").unwrap_err().contains("{{ b }}"));
        assert!(check(&one(json!({"type": "integer", "default": "1"})), "").is_err());
        assert!(check(&one(json!({"type": "boolean", "enum": [1]})), "").is_err());
        assert!(check(&parameters(&json!({"A": {"type": "string"}})), "").is_err());
        let many = |count: usize| {
            (0..count).map(|n| (format!("p{n}"), one(json!({"type": "number"}))["a"].clone())).collect()
        };
        assert!(check(&many(PARAMETERS), "").is_ok());
        assert!(check(&many(PARAMETERS + 1), "").is_err());
        let text = |bytes: usize| json!({"type": "string", "default": "x".repeat(bytes)});
        assert!(check(&one(text(PARAMETER_TEXT_BYTES)), "").is_ok());
        assert!(check(&one(text(PARAMETER_TEXT_BYTES + 1)), "").is_err());
        let revisions = |count: usize| {
            (0..count).map(|n| (format!("p{n}"), one(json!({"type": "revision"}))["a"].clone())).collect()
        };
        assert!(check(&revisions(REVISIONS), "").is_ok());
        assert!(check(&revisions(REVISIONS + 1), "").unwrap_err().contains("4 of the type revision"));
        let named = |bytes: usize| parameters(&json!({"a".repeat(bytes): {"type": "string"}}));
        assert!(check(&named(PARAMETER_NAME_BYTES), "").is_ok());
        assert!(check(&named(PARAMETER_NAME_BYTES + 1), "").is_err());
    }

    #[test]
    fn a_revision_is_a_text_that_can_name_a_commit_or_nothing() {
        let base = &parameters(&json!({"a": {"type": "revision", "default": ""}}))["a"];
        for good in ["", "main", "release/1", "v1.2", "3f0c9a1", "HEAD~2"] {
            assert_eq!(base.check(&json!(good)), Ok(()), "{good}");
        }
        for bad in [json!("--upload-pack=x"), json!("a b"), json!("main:refs/heads/x"), json!(1)] {
            assert!(base.check(&bad).is_err(), "{bad}");
        }
        assert!(base.check(&json!("a b")).unwrap_err().contains("such as main"));
    }
}
