//! Whether both sides of a pair really run under the same conditions: their containers, as the engine describes them,
//! and the agent's command line, as the kernel does.

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::docker::{inspect, processes};
use testkit::parts::Parts;

/// Fields of a container's host configuration that differ without a difference in how it runs: what is mounted, where
/// the client notes the container's id, and the size of a terminal that is not there. And what the client cannot ask for: a sandbox hides
/// more of the kernel's views, which costs it some mounts more.
const UNLIKE: [&str; 5] = ["Mounts", "Binds", "ContainerIDFile", "ConsoleSize", "MaskedPaths"];
/// Flag that differs from conversation to conversation.
const CONVERSATION: &str = "--session-id=";

/// Compares a living sandbox of the service with a container of the script.
///
/// # Errors
/// They differ, and so would what is measured on them.
pub(crate) fn compare_containers(parts: &Parts, sandbox: &Value, script: &str) -> anyhow::Result<()> {
    let script = inspect(parts, script)?;
    let different = differences(&sandbox["HostConfig"], &script["HostConfig"]);
    ensure!(
        different.is_empty() && sandbox["Config"]["Image"] == script["Config"]["Image"],
        "the script's container is not like a sandbox: {}",
        different.join("; ")
    );
    Ok(())
}

/// Compares the command line of the agent that lives in a sandbox with the script's.
///
/// # Errors
/// They differ, or no agent is there.
pub(crate) fn compare_agents(parts: &Parts, sandbox: &str, script: &[String]) -> anyhow::Result<()> {
    let found = processes(parts, sandbox)?
        .into_iter()
        .find_map(command_line)
        .context("no agent is in the sandbox")?;
    let (found, expected) = (without_conversation(&found), without_conversation(script));
    ensure!(
        found == expected,
        "the agent of the service is started with {found:?}, the script's with {expected:?}"
    );
    Ok(())
}

/// The arguments of a process, without the program, if it is the agent.
fn command_line(pid: u32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let mut words = text.trim_end_matches('\0').split('\0').map(str::to_owned);
    words.next()?.ends_with("/claude").then(|| words.collect())
}

fn without_conversation(arguments: &[String]) -> Vec<&str> {
    let mut kept: Vec<_> =
        arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with(CONVERSATION)).collect();
    // The order of flags means nothing to the agent.
    kept.sort_unstable();
    kept
}

/// What differs between two host configurations; what is not set is like what is empty.
fn differences(left: &Value, right: &Value) -> Vec<String> {
    let names =
        |value: &Value| value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
    let mut all: Vec<String> = names(left);
    all.extend(names(right));
    all.sort();
    all.dedup();
    all.iter()
        .filter(|name| !UNLIKE.contains(&name.as_str()))
        .filter(|name| !same(&left[name.as_str()], &right[name.as_str()]))
        .map(|name| {
            format!("{name} is {} in one and {} in the other", left[name.as_str()], right[name.as_str()])
        })
        .collect()
}

fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Array(left), Value::Array(right)) => {
            let sorted = |values: &[Value]| {
                let mut texts: Vec<_> = values.iter().map(ToString::to_string).collect();
                texts.sort();
                texts
            };
            sorted(left) == sorted(right)
        }
        _ => left == right || (is_empty(left) && is_empty(right)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_set_is_like_what_is_empty_and_order_does_not_count() {
        let left =
            json!({"Memory": 5, "Devices": null, "Ulimits": [{"a": 1}, {"b": 2}], "Mounts": [1], "Dns": []});
        let right = json!({"Memory": 5, "Devices": [], "Ulimits": [{"b": 2}, {"a": 1}], "Binds": ["x"], "CpuShares": 0});
        assert_eq!(differences(&left, &right), Vec::<String>::new());
    }

    #[test]
    fn a_limit_that_differs_is_told() {
        let found = differences(&json!({"Memory": 5}), &json!({"Memory": 6, "Privileged": true}));
        assert_eq!(
            found,
            ["Memory is 5 in one and 6 in the other", "Privileged is null in one and true in the other"]
        );
    }

    #[test]
    fn agents_are_alike_whatever_the_conversation() {
        let line = |id: &str| vec!["-p".to_owned(), format!("--session-id={id}"), "--verbose".to_owned()];
        assert_eq!(without_conversation(&line("a")), without_conversation(&line("b")));
        assert_ne!(without_conversation(&line("a")), without_conversation(&["-p".to_owned()]));
    }

    #[test]
    fn this_process_is_not_the_agent() {
        assert_eq!(command_line(std::process::id()), None);
        assert_eq!(command_line(u32::MAX), None);
    }
}
