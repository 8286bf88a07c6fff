//! How a repository's checks ended, for people.

use serde_json::Value;

use crate::client::RunInfo;
use crate::render::clean;

/// A check in one line: its name, how it ended, its command.
#[must_use]
pub(crate) fn line(check: &Value) -> String {
    let text = |name: &str| clean(check[name].as_str().unwrap_or_default());
    let how = match (check["outcome"].as_str(), check["exit_code"].as_i64()) {
        (Some("passed"), _) => "passed".to_owned(),
        (Some("failed"), Some(code)) => format!("failed with code {code}"),
        (Some("failed"), None) => "failed".to_owned(),
        (Some("timed_out"), _) => "did not end in its time".to_owned(),
        (Some("not_started"), _) => "could not be started".to_owned(),
        (Some(other), _) => clean(other),
        (None, _) => "ended".to_owned(),
    };
    let mended = match check["turns"].as_u64() {
        None | Some(0) => String::new(),
        Some(1) => " after a turn to mend it".to_owned(),
        Some(turns) => format!(" after {turns} turns to mend it"),
    };
    format!("{} {how}{mended}: {}", text("name"), text("command"))
}

/// Whether it passed.
#[must_use]
pub(crate) fn passed(check: &Value) -> bool {
    check["outcome"] == "passed"
}

/// Which checks of its workflow a run did without, and why; none if none.
#[must_use]
pub(crate) fn not_run(run: &RunInfo) -> Option<String> {
    let checks = run.rest.get("checks_not_run").and_then(Value::as_array)?;
    let names: Vec<String> = checks.iter().filter_map(Value::as_str).map(clean).collect();
    let told =
        || format!("{} not run: .caisson.yaml of the repository names no command for it", names.join(", "));
    (!names.is_empty()).then(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_check_is_told_in_one_line_that_moves_no_terminal() {
        let of = |outcome: &str, code: Value, turns: u32| {
            line(
                &json!({"name": "test", "command": "make test", "outcome": outcome, "exit_code": code, "turns": turns}),
            )
        };
        assert_eq!(of("passed", json!(0), 0), "test passed: make test");
        assert_eq!(of("passed", json!(0), 1), "test passed after a turn to mend it: make test");
        assert_eq!(of("failed", json!(2), 2), "test failed with code 2 after 2 turns to mend it: make test");
        assert_eq!(of("failed", Value::Null, 0), "test failed: make test");
        assert_eq!(of("timed_out", Value::Null, 0), "test did not end in its time: make test");
        assert_eq!(of("not_started", Value::Null, 0), "test could not be started: make test");
        let odd = line(&json!({"name": "a\u{1b}[2J", "outcome": "x\u{202e}"}));
        assert_eq!(odd, clean(&odd), "{odd:?}");
    }
    #[test]
    fn checks_that_a_run_did_without_are_told() {
        let run = |names: Value| -> RunInfo {
            serde_json::from_value(json!({"id": "run_x", "status": "succeeded", "checks_not_run": names}))
                .unwrap()
        };
        assert_eq!(not_run(&run(json!([]))), None);
        let told = not_run(&run(json!(["lint", "test"]))).unwrap();
        assert_eq!(told, "lint, test not run: .caisson.yaml of the repository names no command for it");
    }
}
