use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::event::{Block, CommandState, Delta};
use crate::limits::PREVIEW_BYTES_MAX;

fn read(value: &Value) -> Line {
    parse(value.to_string().as_bytes())
}

#[test]
fn what_is_no_object_is_not_json() {
    for line in ["", "\n", "Error: no", "[]", "3", "\"x\"", "null", "{\"type\":\"result\"", "{} {}"] {
        assert_eq!(parse(line.as_bytes()), Line::NotJson, "{line}");
    }
}

#[test]
fn unknown_kinds_are_kept_by_name() {
    let other = |kind: &str, subtype: Option<&str>| Line::Other {
        kind: kind.to_owned(),
        subtype: subtype.map(str::to_owned),
    };
    assert_eq!(read(&json!({ "type": "rate_limit_event", "x": 1 })), other("rate_limit_event", None));
    assert_eq!(
        read(&json!({ "type": "system", "subtype": "task_started" })),
        other("system", Some("task_started"))
    );
    assert_eq!(read(&json!({ "type": "system" })), other("system", None));
    assert_eq!(read(&json!({ "type": 7, "subtype": [] })), other("", None));
    assert_eq!(read(&json!({})), other("", None));
}

#[test]
fn a_line_may_have_its_end_and_bad_bytes() {
    let line = b"  {\"type\":\"user\",\"message\":{\"content\":\"a\xffb\"},\"isReplay\":true}\r\n";
    let Line::User(user) = parse(line) else { panic!("a user line") };
    assert_eq!(user.text, "a\u{fffd}b");
    assert!(user.is_replay);
}

#[test]
fn an_init_line_is_read() {
    let Line::Init(init) = read(&json!({
        "type": "system", "subtype": "init", "session_id": "s", "model": "m", "permissionMode": "dontAsk",
        "tools": ["Bash", 3, "Read"], "claude_code_version": "2.1.330", "new_field": {},
        "mcp_servers": [{ "name": "db", "status": "failed", "source": "sdk" }, "odd"],
    })) else {
        panic!("an init line")
    };
    assert_eq!((init.session_id.as_str(), init.model.as_str()), ("s", "m"));
    assert_eq!((init.permission_mode.as_str(), init.version.as_str()), ("dontAsk", "2.1.330"));
    assert_eq!(init.tools, ["Bash", "Read"]);
    assert_eq!(init.mcp_servers.len(), 1);
    assert_eq!((init.mcp_servers[0].name.as_str(), init.mcp_servers[0].status.as_str()), ("db", "failed"));
}

#[test]
fn an_assistant_line_is_read() {
    let Line::Assistant(said) = read(&json!({
        "type": "assistant", "parent_tool_use_id": "t0", "error": "rate_limit",
        "message": { "id": "m1", "model": "<synthetic>", "content": [
            { "type": "text", "text": "hi" }, { "type": "thinking", "thinking": "hm" },
            { "type": "tool_use", "id": "t1", "name": "Bash", "input": { "command": "ls" } },
            { "type": "image", "source": {} },
        ] },
    })) else {
        panic!("an assistant line")
    };
    assert_eq!(said.parent_tool_use_id.as_deref(), Some("t0"));
    assert_eq!(said.error.as_deref(), Some("rate_limit"));
    assert_eq!((said.message_id.as_str(), said.model.as_str()), ("m1", "<synthetic>"));
    let tool_use = Block::ToolUse {
        id: "t1".to_owned(),
        name: "Bash".to_owned(),
        input: "{\"command\":\"ls\"}".to_owned(),
    };
    let other = Block::Other { kind: "image".to_owned() };
    assert_eq!(
        said.blocks,
        [Block::Text("hi".to_owned()), Block::Thinking("hm".to_owned()), tool_use, other]
    );
}

#[test]
fn tool_results_are_read_as_string_or_blocks() {
    let Line::User(user) = read(&json!({
        "type": "user", "uuid": "u", "isSynthetic": true, "message": { "content": [
            { "type": "tool_result", "tool_use_id": "t1", "is_error": true, "content": "Exit code 3" },
            { "type": "tool_result", "tool_use_id": "t2",
              "content": [{ "type": "text", "text": "a" }, { "type": "image" }, { "type": "text", "text": "b" }] },
            { "type": "text", "text": "note" },
        ] },
    })) else {
        panic!("a user line")
    };
    let results: Vec<_> =
        user.results.iter().map(|r| (r.tool_use_id.as_str(), r.is_error, r.preview.as_str())).collect();
    assert_eq!(results, [("t1", true, "Exit code 3"), ("t2", false, "ab")]);
    assert_eq!((user.text.as_str(), user.uuid.as_str()), ("note", "u"));
    assert!(user.is_synthetic && !user.is_replay);
}

#[test]
fn a_preview_ends_at_its_bound_and_at_a_character() {
    let preview = |text: String| {
        let Line::User(user) = read(&json!({ "type": "user", "message": { "content": text } })) else {
            panic!("a user line")
        };
        user.text
    };
    assert_eq!(preview("x".repeat(PREVIEW_BYTES_MAX)).len(), PREVIEW_BYTES_MAX);
    assert_eq!(preview("x".repeat(PREVIEW_BYTES_MAX + 1)).len(), PREVIEW_BYTES_MAX);
    let cut = preview(format!("{}é", "x".repeat(PREVIEW_BYTES_MAX - 1)));
    assert_eq!(cut, "x".repeat(PREVIEW_BYTES_MAX - 1));
}

#[test]
fn only_text_and_thinking_are_shown_while_they_grow() {
    let delta = |event: Value| {
        let line = read(&json!({ "type": "stream_event", "api_message_id": "m1", "event": &event }));
        assert!(line.is_delta());
        let Line::StreamDelta(delta) = line else { panic!("a stream event") };
        assert_eq!(
            (delta.message_id.as_str(), delta.block),
            ("m1", event["index"].as_u64().map_or(0, |_| 2))
        );
        delta.delta
    };
    let grows = |delta: Value| json!({ "type": "content_block_delta", "index": 2, "delta": delta });
    let other = |event: &str| Delta::Other { event: event.to_owned() };
    assert_eq!(delta(grows(json!({ "type": "text_delta", "text": "a" }))), Delta::Text("a".to_owned()));
    assert_eq!(
        delta(grows(json!({ "type": "thinking_delta", "thinking": "b" }))),
        Delta::Thinking("b".to_owned())
    );
    assert_eq!(
        delta(grows(json!({ "type": "input_json_delta", "partial_json": "{" }))),
        other("content_block_delta")
    );
    assert_eq!(
        delta(json!({ "type": "message_delta", "delta": { "stop_reason": "x" } })),
        other("message_delta")
    );
    assert_eq!(delta(json!(null)), other(""));
    assert!(!read(&json!({ "type": "assistant" })).is_delta());
}

#[test]
fn a_retry_without_an_answer_has_no_status() {
    let retry = |status: Value| {
        let Line::ApiRetry(retry) = read(&json!({
            "type": "system", "subtype": "api_retry", "attempt": 2, "max_retries": 4, "retry_delay_ms": 1100,
            "error_status": status, "error": "unknown",
        })) else {
            panic!("a retry")
        };
        retry
    };
    assert_eq!(retry(json!(null)).status, None);
    let answered = retry(json!(529));
    assert_eq!((answered.attempt, answered.max_retries, answered.retry_delay_ms), (2, 4, 1100));
    assert_eq!((answered.status, answered.error.as_str()), (Some(529), "unknown"));
    assert_eq!(retry(json!(99_999)).status, None);
}

#[test]
fn control_lines_are_read() {
    let Line::ControlRequest(request) = read(&json!({
        "type": "control_request", "request_id": "r1",
        "request": { "subtype": "can_use_tool", "tool_name": "Write", "input": { "a": 1 } },
    })) else {
        panic!("a request")
    };
    assert_eq!((request.request_id.as_str(), request.subtype.as_str()), ("r1", "can_use_tool"));
    assert_eq!(request.tool_name.as_deref(), Some("Write"));
    assert!(request.request.contains("\"input\":{\"a\":1}"));

    let cancel = read(&json!({ "type": "control_cancel_request", "request_id": "r1" }));
    assert_eq!(cancel, Line::ControlCancel { request_id: "r1".to_owned() });

    let response = |response: Value| {
        let line = read(&json!({ "type": "control_response", "response": response }));
        let Line::ControlResponse(response) = line else { panic!("a response") };
        response
    };
    let done =
        response(json!({ "subtype": "success", "request_id": "i1", "response": { "still_queued": [] } }));
    assert_eq!((done.request_id.as_str(), done.error), ("i1", None));
    assert_eq!(done.response.as_deref(), Some("{\"still_queued\":[]}"));
    let failed = response(json!({ "subtype": "error", "request_id": "x1", "error": "Unsupported" }));
    assert_eq!((failed.error.as_deref(), failed.response), (Some("Unsupported"), None));
    assert_eq!(response(json!(null)).error.as_deref(), Some(""));
}

#[test]
fn prompts_and_denials_are_read() {
    for (word, state) in [
        ("queued", CommandState::Queued),
        ("started", CommandState::Started),
        ("completed", CommandState::Completed),
        ("cancelled", CommandState::Cancelled),
        ("parked", CommandState::Other("parked".to_owned())),
    ] {
        let line = read(&json!({ "type": "command_lifecycle", "command_uuid": "u", "state": word }));
        let Line::CommandLifecycle(lifecycle) = line else { panic!("a lifecycle") };
        assert_eq!((lifecycle.command_uuid.as_str(), lifecycle.state), ("u", state));
    }
    let Line::PermissionDenied(denied) = read(&json!({
        "type": "system", "subtype": "permission_denied", "tool_name": "Write", "tool_use_id": "t",
        "message": "no",
    })) else {
        panic!("a denial")
    };
    assert_eq!((denied.tool_name.as_str(), denied.tool_use_id.as_str()), ("Write", "t"));
    assert_eq!(denied.message, "no");
}

#[test]
fn a_result_that_says_nothing_is_a_failure() {
    let Line::Result(result) = read(&json!({ "type": "result", "subtype": "success" })) else {
        panic!("a result")
    };
    assert!(result.is_error);
    assert!(result.prompts.is_empty() && result.origin.is_none() && result.text.is_none());
}

#[test]
fn one_prompt_id_is_as_good_as_a_list() {
    let prompts = |value: Value| {
        let Line::Result(result) = read(&value) else { panic!("a result") };
        result.prompts
    };
    assert_eq!(prompts(json!({ "type": "result", "user_message_uuid": "a" })), ["a"]);
    let both = json!({ "type": "result", "user_message_uuid": "b", "user_message_uuids": ["a", "b"] });
    assert_eq!(prompts(both), ["a", "b"]);
}

#[test]
fn a_deeply_nested_input_does_not_hide_a_result() {
    let nested = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let line = format!(
        "{{\"permission_denials\":[{{\"tool_name\":\"Write\",\"tool_input\":{nested}}}],\"type\":\"result\"}}"
    );
    let Line::Result(result) = parse(line.as_bytes()) else { panic!("a result") };
    assert_eq!(result.permission_denials[0].tool_name, "Write");
}

/// JSON of any shape, its names often those that the parser looks for.
fn value() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        "type|subtype|message|content|event|delta|request|response|state|origin|errors|is_error|usage",
        "[a-z]{0,4}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "text|text_delta|tool_use|success|can_use_tool".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        let map = btree_map(name.clone(), inner.clone(), 0..6);
        prop_oneof![
            vec(inner, 0..6).prop_map(Value::from),
            map.prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

const KINDS: &str = "assistant|user|stream_event|result|control_request|control_cancel_request|control_response\
    |command_lifecycle|system";

/// Where a line of a kind must end up.
fn expected(line: &Line) -> (&'static str, Option<&'static str>) {
    match line {
        Line::Init(_) => ("system", Some("init")),
        Line::ApiRetry(_) => ("system", Some("api_retry")),
        Line::PermissionDenied(_) => ("system", Some("permission_denied")),
        Line::Assistant(_) => ("assistant", None),
        Line::User(_) => ("user", None),
        Line::StreamDelta(_) => ("stream_event", None),
        Line::Result(_) => ("result", None),
        Line::ControlRequest(_) => ("control_request", None),
        Line::ControlCancel { .. } => ("control_cancel_request", None),
        Line::ControlResponse(_) => ("control_response", None),
        Line::CommandLifecycle(_) => ("command_lifecycle", None),
        Line::Other { .. } | Line::NotJson => ("", None),
    }
}

proptest! {
    #[test]
    fn any_object_is_kept_as_its_kind(
        fields in btree_map("[a-z_]{1,12}", value(), 0..8),
        kind in prop_oneof![KINDS, "\\PC{0,8}"],
        subtype in proptest::option::of("init|api_retry|permission_denied|success|\\PC{0,6}"),
    ) {
        let mut object: serde_json::Map<String, Value> = fields.into_iter().collect();
        object.remove("subtype");
        object.extend(subtype.clone().map(|subtype| ("subtype".to_owned(), subtype.into())));
        object.insert("type".to_owned(), kind.clone().into());
        let line = read(&Value::Object(object));
        if let Line::Other { kind: kept, subtype: kept_subtype } = &line {
            prop_assert_eq!(kept, &kind);
            prop_assert_eq!(kept_subtype, &subtype);
        } else {
            let (expected_kind, expected_subtype) = expected(&line);
            prop_assert_eq!(expected_kind, kind);
            prop_assert!(expected_subtype.is_none() || expected_subtype == subtype.as_deref());
        }
    }

    #[test]
    fn any_field_may_have_any_shape(value in value(), name in "message|event|request|response|usage|content",
        kind in KINDS) {
        let line = read(&json!({ "type": kind, "subtype": "init", name: value }));
        prop_assert!(!matches!(line, Line::Other { .. } | Line::NotJson), "{line:?}");
    }

    #[test]
    fn any_json_value_is_read_without_panic(value in value()) {
        let line = read(&value);
        prop_assert_eq!(line == Line::NotJson, !value.is_object());
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in vec(any::<u8>(), 0..200)) {
        drop(parse(&bytes));
    }

    #[test]
    fn a_line_cut_anywhere_is_read_without_panic(at in 0..400usize) {
        let line = json!({ "type": "result", "subtype": "success", "result": "é\n😀", "errors": ["x"],
            "permission_denials": [{ "tool_name": "T", "tool_input": { "a": [1, 2.5e3, null, true] } }] });
        let line = line.to_string().into_bytes();
        let cut = &line[..at.min(line.len())];
        prop_assert_eq!(parse(cut) == Line::NotJson, cut.len() < line.len());
    }
}
