//! The tools: what the native API does, for a caller who calls functions.

use std::time::Duration;

use caisson_domain::attachment::ATTACHMENTS;
use caisson_domain::event::Event;
use caisson_domain::id::RunId;
use caisson_domain::json::{JSON_VALUES, values};
use caisson_domain::limits::IDEMPOTENCY_KEY_BYTES;
use caisson_domain::principal::{Principal, Scope};
use caisson_domain::run::{Run, cut};
use caisson_store::{CancelRun, EventsOf, Topic};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::rpc::RpcError;
use crate::auth::require;
use crate::events::{READ_BYTES, READ_EVENTS};
use crate::extract::{Fields, unknown_run, whole_number};
use crate::problem::{ApiError, Faults};
use crate::runs::{self, Detail, RunView, idempotency_key};
use crate::state::App;

/// The tool that alone has attachments to deal with.
const SUBMIT: &str = "submit";
/// Longest part of an unknown tool's name that an error repeats, in bytes.
const TOOL_NAME_BYTES: usize = 100;
/// Longest wait for a run's end that one call may ask for, in seconds: shorter than most clients wait for an answer.
const WAIT_S: u32 = 50;
/// Events of one answer, and when the caller names no number.
const EVENTS: u32 = 200;
const EVENTS_DEFAULT: u32 = 50;
/// Details of one event that are shown, in bytes: a model reads them.
const EVENT_BYTES: usize = 4 * 1024;
/// Whether a run has ended is looked at this often if nothing tells so, in milliseconds.
const LOOK_MS: u64 = 5_000;

/// What there is, with what each tool takes.
pub(super) fn list() -> Value {
    let run = json!({ "type": "string", "description": "The run's id", "pattern": "^run_[0-9a-f]{32}$" });
    let one = json!({ "type": "object", "properties": { "run": run }, "required": ["run"], "additionalProperties": false });
    json!([
        submit_tool(),
        {
            "name": "status",
            "title": "Look at a run",
            "description": "Tells all about a run: where it stands, what it waits for, what it has cost, how it ended.",
            "inputSchema": one,
            "annotations": { "readOnlyHint": true },
        },
        {
            "name": "events",
            "title": "Read a run's events",
            "description": "What happened in a run, in order, its agent's output among it. Long details are cut.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "run": run,
                    "after": { "type": "integer", "description": "Only events behind this number: next_after of the call before", "minimum": 0 },
                    "limit": number("Most events", 1, EVENTS),
                },
                "required": ["run"], "additionalProperties": false,
            },
            "annotations": { "readOnlyHint": true },
        },
        {
            "name": "result",
            "title": "Wait for a run's result",
            "description": "Waits for the run's end, at most as long as you say, and tells how it stands then. If it is not final, call again.",
            "inputSchema": {
                "type": "object",
                "properties": { "run": run, "wait_s": number("Longest wait, in seconds; 0 if left out", 0, WAIT_S) },
                "required": ["run"], "additionalProperties": false,
            },
            "annotations": { "readOnlyHint": true },
        },
        {
            "name": "cancel",
            "title": "End a run",
            "description": "Asks for a run's end; its work is saved first.",
            "inputSchema": one,
            "annotations": { "destructiveHint": true, "idempotentHint": true },
        },
    ])
}

fn submit_tool() -> Value {
    let attachment = json!({
        "type": "object",
        "properties": {
            "name": text("A plain file name"),
            "kind": { "type": "string", "enum": ["image", "file"], "description": "Left out, its bytes say" },
            "content": text("Its bytes in base64"),
        },
        "required": ["name", "content"], "additionalProperties": false,
    });
    json!({
        "name": "submit",
        "title": "Submit a task",
        "description": "Gives a coding agent in a sandbox of its own a task. Answers at once with the run; ask for its result. \
            Takes every field of POST /v1/runs; those that matter most are described.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "workflow": text("The workflow to follow, by name, such as bug-fixer; needed unless session is given"),
                "session": text("The session to go on with, session_id of an earlier run: its agent knows what was said and done. \
                    What else is left out is as in that session"),
                "prompt": text("The task, in your words"),
                "repository": { "type": ["string", "null"], "description": "A URL or an absolute path on the server; left out, \
                    the server's default; null, an empty workspace" },
                "base": text("The branch to start from"),
                "branch": text("The branch to make and push"),
                "model": text("The model's id or alias"),
                "timeout_s": number("Time limit, in seconds", 5, 86_400),
                "parameters": { "type": "object", "description": "Values of the workflow's parameters" },
                "attachments": { "type": "array", "items": attachment, "maxItems": ATTACHMENTS, "description": "Images that the \
                    agent is shown, and files that it finds in its sandbox: at most 8 MiB each and 12 MiB together" },
                "idempotency_key": text("Makes a repeated call harmless: it finds the same run"),
            },
            "required": ["prompt"],
        },
    })
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn number(description: &str, least: u32, most: u32) -> Value {
    json!({ "type": "integer", "description": description, "minimum": least, "maximum": most })
}

/// Calls a tool. What the tool refuses is its result, so that the model reads why.
///
/// # Errors
/// [`RpcError`] if there is no such tool, or the call has no form.
pub(super) async fn call(
    app: &App,
    caller: &Principal,
    (mut params, place): (Value, Option<OwnedSemaphorePermit>),
) -> Result<Value, RpcError> {
    let arguments = match params.get_mut("arguments").map(Value::take) {
        None | Some(Value::Null) => json!({}),
        Some(arguments @ Value::Object(_)) => arguments,
        Some(_) => return Err(RpcError::params("params.arguments is not an object")),
    };
    let name = params["name"].as_str().map(|name| cut(name, TOOL_NAME_BYTES).to_owned());
    let name = name.ok_or_else(|| RpcError::params("params.name is missing: the tool"))?;
    // A call may wait for a run's end: until then it holds no more than it needs.
    drop(params);
    let _held = place.filter(|_| name == SUBMIT);
    let done = match name.as_str() {
        SUBMIT => submit(app, caller, arguments).await,
        "status" => status(app, caller, arguments).await,
        "events" => events(app, caller, arguments).await,
        "result" => result(app, caller, arguments).await,
        "cancel" => cancel(app, caller, arguments).await,
        _ => {
            let message = format!("there is no tool \"{name}\"; tools/list tells of those that there are");
            return Err(RpcError::params(message));
        }
    };
    Ok(match done {
        Ok(answer) => {
            let text = answer.to_string();
            json!({ "content": [{ "type": "text", "text": text }], "structuredContent": answer, "isError": false })
        }
        Err(error) => {
            let fault = error.into_fault();
            let text = format!("{} ({})", fault.message, fault.code);
            json!({ "content": [{ "type": "text", "text": text }], "isError": true })
        }
    })
}

async fn submit(app: &App, caller: &Principal, mut arguments: Value) -> Result<Value, ApiError> {
    require(app, caller, Scope::RunsWrite).await?;
    let key = match arguments.as_object_mut().and_then(|fields| fields.remove("idempotency_key")) {
        None | Some(Value::Null) => None,
        Some(key) => Some(key_of(&key)?),
    };
    let accepted = runs::create(app, caller.clone(), fields(arguments), key).await?;
    Ok(shown(accepted.run, Detail::Listed))
}

/// The key as the header would have it.
fn key_of(key: &Value) -> Result<String, ApiError> {
    let value = key.as_str().and_then(|key| HeaderValue::from_str(key).ok());
    let headers: HeaderMap =
        value.into_iter().map(|value| (http::HeaderName::from_static("idempotency-key"), value)).collect();
    idempotency_key(&headers)?.ok_or_else(|| {
        let mut faults = Faults::default();
        let message = format!("it is not a text of 1 to {IDEMPOTENCY_KEY_BYTES} visible ASCII characters");
        faults.add("idempotency_key", "idempotency_key_invalid", message);
        ApiError::InvalidInput(faults)
    })
}

async fn status(app: &App, caller: &Principal, arguments: Value) -> Result<Value, ApiError> {
    let ([], id) = numbers(arguments, [])?;
    let run = app.store().run(&caller.project, &id).await?.ok_or_else(unknown_run)?;
    Ok(shown(run, Detail::Full))
}

async fn result(app: &App, caller: &Principal, arguments: Value) -> Result<Value, ApiError> {
    let ([wait_s], id) = numbers(arguments, [("wait_s", 0..=i64::from(WAIT_S))])?;
    let until = Instant::now() + Duration::from_secs(wait_s.unwrap_or(0).unsigned_abs());
    let mut watch = app.store().watch(Topic::Run(id.clone()));
    let cancel = app.cancel();
    loop {
        app.access().still_opens(app.store(), &caller.key).await?;
        let run = app.store().run(&caller.project, &id).await?.ok_or_else(unknown_run)?;
        let left = until.saturating_duration_since(Instant::now());
        if run.status.is_final() || left.is_zero() || cancel.is_cancelled() {
            return Ok(outcome(&run));
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = watch.changed(left.min(Duration::from_millis(LOOK_MS))) => {}
        }
    }
}

fn outcome(run: &Run) -> Value {
    json!({
        "run": run.id, "status": run.status, "final": run.status.is_final(), "phase": run.phase, "waiting": run.waiting,
        "result": run.result, "output": run.output, "failure": run.failure, "branch": run.spec.branch,
        "base_commit": run.base_commit, "pushed_commit": run.pushed_commit,
        "cost_micro_usd": run.usage.cost_micro_usd,
    })
}

async fn events(app: &App, caller: &Principal, arguments: Value) -> Result<Value, ApiError> {
    let ([after, limit], id) =
        numbers(arguments, [("after", 0..=i64::MAX), ("limit", 1..=i64::from(EVENTS))])?;
    app.store().run(&caller.project, &id).await?.ok_or_else(unknown_run)?;
    let limit = limit.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(EVENTS_DEFAULT);
    let mut next_after = after.unwrap_or(0);
    let mut items: Vec<Value> = Vec::new();
    let mut room = JSON_VALUES;
    // One long event is read at a time with few others, and only its beginning is kept.
    while items.len() < limit as usize {
        let missing = limit - u32::try_from(items.len()).unwrap_or(limit);
        let within = (missing.min(READ_EVENTS), READ_BYTES);
        let read = app.store().events_within(EventsOf::Run(&id), next_after, within).await?;
        let Some(last) = read.last() else { break };
        next_after = last.seq;
        items.extend(read.iter().map(|one| event(one, &mut room)));
    }
    Ok(json!({ "items": items, "next_after": next_after }))
}

/// An event; of long details, the beginning as a text, and those for whose values there is no room left all of it as one.
fn event(event: &Event, room: &mut usize) -> Value {
    let text = event.data.get();
    let left = room.checked_sub(values(text.as_bytes()));
    let (data, cut_bytes) = match (text, left) {
        (short, Some(left)) if short.len() <= EVENT_BYTES => {
            *room = left;
            (serde_json::from_str(short).unwrap_or_default(), 0)
        }
        (long, _) => {
            let kept = cut(long, EVENT_BYTES);
            (Value::from(kept), long.len() - kept.len())
        }
    };
    json!({ "seq": event.seq, "at_ms": event.at_ms, "kind": event.kind, "data": data, "cut_bytes": cut_bytes })
}

async fn cancel(app: &App, caller: &Principal, arguments: Value) -> Result<Value, ApiError> {
    require(app, caller, Scope::RunsWrite).await?;
    let ([], id) = numbers(arguments, [])?;
    match app.store().request_cancel(&caller.project, &id, Some(&caller.key)).await? {
        CancelRun::Unknown => Err(unknown_run()),
        CancelRun::Final(run) | CancelRun::Cancelled(run) | CancelRun::Requested(run) => Ok(outcome(&run)),
    }
}

fn shown(run: Run, detail: Detail) -> Value {
    serde_json::to_value(RunView::new(run, detail)).unwrap_or_default()
}

/// The fields of arguments, which [`call`] has seen to be an object. They are not written down again: they may be long.
fn fields(arguments: Value) -> Fields {
    match arguments {
        Value::Object(map) => Fields::of(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Fields::of(serde_json::Map::new())
        }
    }
}

/// The run and the numbers that a tool takes, and nothing else.
fn numbers<const N: usize>(
    arguments: Value,
    wanted: [(&'static str, std::ops::RangeInclusive<i64>); N],
) -> Result<([Option<i64>; N], RunId), ApiError> {
    let mut faults = Faults::default();
    let mut fields = fields(arguments);
    let id: Option<String> = fields.require("run", &mut faults);
    let taken = wanted.map(|(name, range)| {
        let value = fields.take_value(name).filter(|value| !value.is_null())?;
        let number = whole_number(&value).filter(|number| range.contains(number));
        if number.is_none() {
            let message = format!("it is not a whole number from {} to {}", range.start(), range.end());
            faults.add(name, "out_of_range", message);
        }
        number
    });
    fields.finish(&mut faults);
    match id {
        Some(id) if faults.is_empty() => Ok((taken, id.parse().map_err(|_| unknown_run())?)),
        Some(_) | None => Err(ApiError::InvalidInput(faults)),
    }
}

#[cfg(test)]
mod tests {
    use caisson_domain::event::EventKind;
    use caisson_domain::id::SessionId;
    use serde_json::value::to_raw_value;

    use super::*;

    fn of(data: &Value) -> Event {
        Event {
            seq: 1,
            session: SessionId::new(1, [0; 10]),
            run: RunId::new(1, [0; 10]),
            at_ms: 1,
            kind: EventKind::AgentLine,
            data: to_raw_value(data).unwrap(),
        }
    }

    #[test]
    fn details_are_shown_as_they_are_until_their_values_are_too_many_and_then_as_text() {
        let data = json!({ "list": [1, 2, 3] });
        let mut room = 5 + 4;
        let shown = event(&of(&data), &mut room);
        assert_eq!((&shown["data"], &shown["cut_bytes"], room), (&data, &json!(0), 4));
        let shown = event(&of(&data), &mut room);
        assert_eq!((&shown["data"], &shown["cut_bytes"], room), (&json!(data.to_string()), &json!(0), 4));
        assert_eq!(event(&of(&json!([0, 1])), &mut room)["data"], json!([0, 1]));
        assert_eq!(room, 1);
        let long = event(&of(&json!("x".repeat(EVENT_BYTES))), &mut room);
        assert_eq!((long["data"].as_str().unwrap().len(), &long["cut_bytes"]), (EVENT_BYTES, &json!(2)));
    }
}
