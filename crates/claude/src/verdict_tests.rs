use serde_json::{Value, json};

use super::*;
use crate::line::{Line, parse};

fn result(fields: Value) -> ResultLine {
    let mut line = json!({ "type": "result", "subtype": "success", "num_turns": 1 });
    if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
        line.extend(fields);
    }
    let Line::Result(result) = parse(line.to_string().as_bytes()) else { panic!("a result") };
    *result
}

fn failed(result: &ResultLine) -> Reason {
    let Verdict::Failed { reason } = judge(result) else { panic!("{result:?} is no failure") };
    reason
}

fn execution(word: &str, text: &str) -> Reason {
    Reason::Execution { word: word.to_owned(), text: text.to_owned() }
}

#[test]
fn success_needs_both_words() {
    assert_eq!(
        judge(&result(json!({ "is_error": false, "terminal_reason": "completed" }))),
        Verdict::Succeeded
    );
    let error = result(json!({ "is_error": true, "terminal_reason": "completed", "result": "no" }));
    assert_eq!(failed(&error), execution("completed", "no"));
    let silent = result(json!({ "terminal_reason": "completed" }));
    assert_eq!(failed(&silent), execution("completed", ""));
    assert_eq!(failed(&result(json!({ "is_error": false }))), execution("success", ""));
    let new = result(json!({ "is_error": false, "terminal_reason": "new_word" }));
    assert_eq!(failed(&new), execution("new_word", ""));
}

#[test]
fn an_interrupt_is_no_failure_of_the_agent() {
    for word in ["aborted_tools", "aborted_streaming", "aborted_new"] {
        let aborted = result(json!({ "subtype": "error_during_execution", "is_error": true,
            "terminal_reason": word, "errors": ["x"] }));
        assert_eq!(judge(&aborted), Verdict::Cancelled, "{word}");
    }
}

#[test]
fn limits_have_their_own_verdicts() {
    let turns = json!({ "subtype": "error_max_turns", "is_error": true, "terminal_reason": "max_turns" });
    assert_eq!(judge(&result(turns)), Verdict::MaxTurns);
    let money = json!({ "subtype": "error_max_budget_usd", "is_error": true,
        "terminal_reason": "budget_exhausted" });
    assert_eq!(judge(&result(money)), Verdict::Budget);
}

#[test]
fn an_api_error_has_the_most_exact_word() {
    let verdict = |fields: Value| {
        let result = result(fields);
        let Verdict::ApiError { status, kind, text } = judge(&result) else { panic!("{result:?}") };
        (status, kind, text)
    };
    let answered = json!({ "is_error": true, "terminal_reason": "api_error", "api_error_status": 529,
        "api_error_type": "overloaded_error", "result": "Overloaded" });
    assert_eq!(verdict(answered), (Some(529), "overloaded_error".to_owned(), "Overloaded".to_owned()));
    let dead = json!({ "is_error": true, "terminal_reason": "api_error", "api_error_status": null,
        "api_error": "connection_failed", "result": "refused" });
    assert_eq!(verdict(dead), (None, "connection_failed".to_owned(), "refused".to_owned()));
    let image = json!({ "is_error": true, "terminal_reason": "image_error", "errors": ["a", "b"] });
    assert_eq!(verdict(image), (None, "image_error".to_owned(), "a; b".to_owned()));
}

#[test]
fn a_refusal_is_not_an_api_error() {
    let refusal = result(json!({ "is_error": true, "terminal_reason": "api_error", "stop_reason": "refusal",
        "safety_stops": 2, "result": "flagged" }));
    assert_eq!(judge(&refusal), Verdict::Refused { text: "flagged".to_owned() });
}

#[test]
fn a_turn_that_never_was_is_told_from_a_failed_one() {
    let command = result(json!({ "is_error": false, "num_turns": 0, "result": "Total cost" }));
    assert_eq!(failed(&command), Reason::LocalCommand { text: "Total cost".to_owned() });
    let unknown = json!({ "subtype": "error_during_execution", "is_error": true, "num_turns": 0,
        "errors": ["No conversation found with session ID: x"] });
    assert_eq!(failed(&result(unknown)), Reason::UnknownSession);
    let other = json!({ "subtype": "error_during_execution", "is_error": true, "num_turns": 0,
        "errors": ["disk"] });
    assert_eq!(failed(&result(other)), execution("error_during_execution", "disk"));
}

fn ended(exit: Exit, spoke: bool, stderr: &str) -> Verdict {
    conclude(&Ending { result: None, exit, spoke, stderr })
}

#[test]
fn silence_and_an_exit_code_are_a_failed_start() {
    let stderr = "error: option '--permission-mode <mode>' argument 'x' is invalid.";
    let reason = Reason::Start { stderr: stderr.to_owned() };
    assert_eq!(ended(Exit::Code(1), false, &format!("\n{stderr}\n")), Verdict::Failed { reason });
}

#[test]
fn an_end_in_the_middle_is_a_failure_whatever_the_code() {
    for code in [0, 1] {
        let reason = Reason::Exited { code, stderr: "e".to_owned() };
        assert_eq!(ended(Exit::Code(code), true, "e"), Verdict::Failed { reason });
    }
    let reason = Reason::Exited { code: 0, stderr: String::new() };
    assert_eq!(ended(Exit::Code(0), false, ""), Verdict::Failed { reason });
}

#[test]
fn a_signal_is_seen_through_the_exit_code() {
    for (exit, signal) in
        [(Exit::Signal(9), 9), (Exit::Code(143), 15), (Exit::Code(129), 1), (Exit::Code(137), 9)]
    {
        assert_eq!(ended(exit, true, "x"), Verdict::Failed { reason: Reason::Killed { signal } });
    }
    let reason = Reason::Exited { code: 128, stderr: String::new() };
    assert_eq!(ended(Exit::Code(128), true, ""), Verdict::Failed { reason });
}

#[test]
fn a_result_counts_for_more_than_the_exit() {
    let done = result(json!({ "is_error": false, "terminal_reason": "completed" }));
    let interrupted = result(json!({ "is_error": true, "terminal_reason": "aborted_tools" }));
    for exit in [Exit::Code(0), Exit::Code(1), Exit::Signal(9)] {
        let conclude = |result| conclude(&Ending { result: Some(result), exit, spoke: true, stderr: "" });
        assert_eq!(conclude(&done), Verdict::Succeeded);
        assert_eq!(conclude(&interrupted), Verdict::Cancelled);
    }
}

#[test]
fn standard_error_is_quoted_from_its_end() {
    let quoted = |stderr: &str| {
        let Verdict::Failed { reason: Reason::Start { stderr } } = ended(Exit::Code(1), false, stderr) else {
            panic!("it did not start")
        };
        stderr
    };
    assert_eq!(quoted(&"x".repeat(STDERR_BYTES_MAX)).len(), STDERR_BYTES_MAX);
    let long = format!("a{}", "x".repeat(STDERR_BYTES_MAX));
    assert_eq!(quoted(&long), "x".repeat(STDERR_BYTES_MAX));
    let split = format!("é{}", "x".repeat(STDERR_BYTES_MAX - 1));
    assert_eq!(quoted(&split), "x".repeat(STDERR_BYTES_MAX - 1));
}

#[test]
fn reasons_are_sentences() {
    let text = || "why".to_owned();
    let reasons = [
        execution("max_retries", ""),
        execution("max_retries", "why"),
        Reason::LocalCommand { text: text() },
        Reason::UnknownSession,
        Reason::Start { stderr: text() },
        Reason::Exited { code: 1, stderr: String::new() },
        Reason::Exited { code: 1, stderr: text() },
        Reason::Killed { signal: 15 },
    ];
    let sentences: Vec<String> = reasons.iter().map(Reason::to_string).collect();
    insta::assert_debug_snapshot!("reasons", sentences);
}
