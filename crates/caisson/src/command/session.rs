//! `caisson session`: list, show, read, fork and delete sessions.

use caisson_domain::fork::Older;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{DONE, attached, client, complain, print, print_json};
use crate::cli::{ClientFlags, OneSession, Session};
use crate::client::RunInfo;
use crate::render::{clean, dollars, utc};

/// Longest input of a tool that is shown, in characters.
const INPUT_CHARS: usize = 200;

/// Does what was asked of sessions.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn run(command: Session) -> anyhow::Result<u8> {
    match command {
        Session::List { client, limit } => list(&client, limit).await,
        Session::Show(flags) => show(flags).await,
        Session::Messages(flags) => messages(flags).await,
        Session::Fork { client, session, branch } => fork(&client, &session, branch.as_deref()).await,
        Session::Delete { client, session } => delete(&client, &session).await,
    }
}

async fn list(flags: &ClientFlags, limit: u32) -> anyhow::Result<u8> {
    let sessions = client(flags)?.sessions(limit).await?;
    if flags.json {
        for session in &sessions {
            print_json(session)?;
        }
        return Ok(DONE);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["SESSION", "RUNS", "LAST", "WORKFLOW", "BRANCH", "COST", "CHANGED"]);
    for session in &sessions {
        table.add_row(row(session));
    }
    print(&table.trim_fmt());
    Ok(DONE)
}

fn text(value: &Value) -> String {
    clean(value.as_str().unwrap_or("-"))
}

fn row(session: &Value) -> [String; 7] {
    [
        text(&session["id"]),
        session["runs"].as_i64().unwrap_or(0).to_string(),
        text(&session["last_status"]),
        text(&session["workflow"]),
        text(&session["branch"]),
        dollars(session["usage"]["cost_micro_usd"].as_i64().unwrap_or(0)),
        utc(session["updated_at_ms"].as_i64().unwrap_or(0)),
    ]
}

async fn show(flags: OneSession) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_session(flags.session.as_deref()).await?;
    let session = client.session(&id).await?;
    if flags.client.json {
        print_json(&session)?;
        return Ok(DONE);
    }
    print(&account(&session, &client.runs_of(&id).await?));
    Ok(DONE)
}

fn account(session: &Value, runs: &[RunInfo]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for name in ["id", "forked_from", "workflow", "repository", "branch"] {
        if session[name].is_string() {
            table.add_row([name, &text(&session[name])]);
        }
    }
    if let Some(older) = older(session) {
        table.add_row(["fork", older.meaning()]);
    }
    if session["expired"] == true {
        table.add_row(["expired", "neither workspace nor conversation is kept: no run can go on with it"]);
    }
    table.add_row(["cost", &dollars(session["usage"]["cost_micro_usd"].as_i64().unwrap_or(0))]);
    for run in runs {
        let task = run.text("prompt").unwrap_or_default().lines().next().unwrap_or_default();
        let task: String = task.chars().take(60).collect();
        table.add_row(["run", &format!("{} {}: {}", clean(&run.id), clean(&run.status), clean(&task))]);
    }
    table.trim_fmt()
}

async fn messages(flags: OneSession) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_session(flags.session.as_deref()).await?;
    let mut cursor: Option<String> = None;
    loop {
        let page = client.messages(&id, cursor.as_deref()).await?;
        for message in page["items"].as_array().into_iter().flatten() {
            if flags.client.json {
                print_json(message)?;
            } else {
                print(&said(message));
            }
        }
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return Ok(DONE);
        }
    }
}

/// One message, a line for each thing that it has.
fn said(message: &Value) -> String {
    let role = text(&message["role"]);
    let mut lines = Vec::new();
    if message["text"].is_string() {
        // What reached the agent was said, as all else was.
        let state = message["state"].as_str().filter(|state| *state != "delivered");
        let state = state.map(|state| format!(" ({})", clean(state))).unwrap_or_default();
        lines.push(format!("{role}{state}: {}", text(&message["text"])));
    }
    for attachment in message["attachments"].as_array().into_iter().flatten() {
        lines.push(format!("{role} attaches {}", attached::line(attachment)));
    }
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let input: String = call["input"].to_string().chars().take(INPUT_CHARS).collect();
        lines.push(format!("{role} calls {}: {}", text(&call["name"]), clean(&input)));
    }
    for result in message["tool_results"].as_array().into_iter().flatten() {
        let failed = if result["is_error"] == true { " (failed)" } else { "" };
        lines.push(format!("{role}{failed}: {}", text(&result["text"])));
    }
    lines.join("\n")
}

async fn fork(flags: &ClientFlags, session: &str, branch: Option<&str>) -> anyhow::Result<u8> {
    let client = client(flags)?;
    let made = client.fork_session(&client.find_session(Some(session)).await?, branch).await?;
    if flags.json {
        print_json(&made)?;
    } else {
        print(&text(&made["id"]));
        if let Some(older) = older(&made) {
            complain(older.meaning());
        }
    }
    Ok(DONE)
}

/// What of a fork is older than the other.
fn older(session: &Value) -> Option<Older> {
    session["fork"]["older"].as_str().and_then(|older| older.parse().ok())
}

async fn delete(flags: &ClientFlags, session: &str) -> anyhow::Result<u8> {
    let client = client(flags)?;
    let id = client.find_session(Some(session)).await?;
    client.delete_session(&id).await?;
    if flags.json {
        print_json(&json!({ "deleted": id }))?;
    } else {
        print(&format!("session {} is deleted", clean(&id)));
    }
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_says_moves_no_terminal() {
        let bad = "x\u{1b}[2J\u{9b}1m\u{202e}y";
        let session =
            json!({"id": bad, "workflow": bad, "branch": bad, "last_status": bad, "forked_from": bad});
        let info: RunInfo = serde_json::from_value(json!({"id": bad, "status": bad, "prompt": bad})).unwrap();
        let message = json!({"role": "assistant", "text": bad, "tool_calls": [{"name": bad, "input": {"a": bad}}],
            "tool_results": [{"text": bad, "is_error": true}]});
        let shown = [row(&session).join(" "), account(&session, &[info]), said(&message)];
        for text in shown {
            assert!(text.contains('y') && !text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text:?}");
        }
    }

    #[test]
    fn a_session_tells_what_of_a_fork_is_older_and_that_nothing_is_kept() {
        let shown = |session: &Value| account(session, &[]);
        assert!(!shown(&json!({"id": "x", "fork": null, "expired": false})).contains("fork"));
        assert!(!shown(&json!({"id": "x", "fork": {"older": null}, "expired": false})).contains("fork"));
        let older = shown(&json!({"id": "x", "fork": {"older": "files"}, "expired": true}));
        assert!(older.contains("files are older") && older.contains("no run can go on"), "{older}");
    }

    #[test]
    fn a_message_is_a_line_for_each_thing_that_it_has() {
        let message = json!({"role": "assistant", "text": "I look.", "tool_calls": [{"name": "Bash", "input": {"command": "ls"}}],
            "tool_results": []});
        assert_eq!(said(&message), "assistant: I look.\nassistant calls Bash: {\"command\":\"ls\"}");
        let result = json!({"role": "tool", "text": null, "tool_calls": [], "tool_results": [{"text": "no", "is_error": true}]});
        assert_eq!(said(&result), "tool (failed): no");
        for (state, head) in [
            (json!(null), "user"),
            (json!("delivered"), "user"),
            (json!("undelivered"), "user (undelivered)"),
        ] {
            let message = json!({"role": "user", "state": state, "text": "Stop."});
            assert_eq!(said(&message), format!("{head}: Stop."));
        }
    }
}
