//! What a body takes in memory: its text, and not a tree of what is in it, which takes up to a hundred times as much.

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue};

use super::ask::peek;
use super::meter::Meter;
use super::provider::wanted;
use crate::bounds::{JSON_COPY_BYTES, SSE_LINE_BYTES};

/// Runs the test in a process of its own: others in the same would take memory at the same time, or have taken more before.
#[expect(clippy::disallowed_methods, reason = "a test starts itself anew, and is told so by its environment")]
fn alone(test: &str, body: impl FnOnce()) {
    const ALONE: &str = "CAISSON_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("{module}::{test}"), "--nocapture"]).env(ALONE, "1");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

/// The most memory that this process has had at once, in bytes.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// By how much it rises.
fn rise_bytes(act: impl FnOnce()) -> usize {
    let before = peak_bytes();
    act();
    peak_bytes() - before
}

/// As many of `item` as fit, in a list.
fn list_of(item: &str, bytes: usize) -> String {
    let count = bytes / (item.len() + 1);
    format!("[{}]", &format!("{item},").repeat(count)[..count * (item.len() + 1) - 1])
}

#[test]
fn a_request_takes_no_more_memory_than_its_text_wherever_its_values_stand() {
    alone("a_request_takes_no_more_memory_than_its_text_wherever_its_values_stand", requests);
}

fn requests() {
    const BYTES: usize = 2 * 1024 * 1024;
    let (objects, numbers) = (list_of(r#"{"":0}"#, BYTES), list_of("0", BYTES));
    let bodies = ["model", "stream", "max_tokens", "speed", "inference_geo", "x"]
        .map(|name| format!(r#"{{"{name}":{objects}}}"#))
        .into_iter()
        .chain([
            format!(r#"{{"tools":{objects}}}"#),
            format!(r#"{{"messages":{numbers}}}"#),
            format!(r#"{{"context_management":{{"edits":{objects}}}}}"#),
            format!("{{{}}}", &list_of(r#""":0"#, BYTES).trim_matches(['[', ']'])),
        ]);
    for body in bodies {
        let shown = &body[..20];
        let rise = rise_bytes(|| {
            peek(body.as_bytes());
            wanted(body.as_bytes()).unwrap();
        });
        assert!(rise < 4 * BYTES, "{shown} took {rise} bytes more");
    }
}

#[test]
fn a_reply_takes_no_more_memory_than_its_copy_wherever_its_values_stand() {
    alone("a_reply_takes_no_more_memory_than_its_copy_wherever_its_values_stand", replies);
}

fn replies() {
    let feed = |kind: &'static str, text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        let mut meter = Meter::of(&headers);
        text.as_bytes().chunks(64 * 1024).for_each(|piece| meter.feed(piece));
        meter.end();
        meter.reading().text_bytes
    };
    let most = JSON_COPY_BYTES - 100;
    for (before, item) in [(r#"{"model":"#, r#"{"":0}"#), (r#"{"usage":{"iterations":"#, "{}")] {
        let end = "}".repeat(before.matches('{').count());
        let text = format!("{before}{}{end}", list_of(item, most));
        // The copy grows by doubling, and has its old place and its new one for a moment.
        let rise = rise_bytes(|| assert_eq!(feed("application/json", &text), 0));
        assert!(rise < 4 * JSON_COPY_BYTES, "{before} took {rise} bytes more");
    }
    let event = r#"data: {"type":"content_block_delta","delta":{"text":"x"},"message":"#;
    let text = format!("{event}{}}}\n\n", list_of(r#"{"":0}"#, SSE_LINE_BYTES - 100));
    let rise = rise_bytes(|| assert_eq!(feed("text/event-stream", &text), 1, "it was read"));
    assert!(rise < 4 * SSE_LINE_BYTES, "an event took {rise} bytes more");
}
