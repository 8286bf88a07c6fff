//! `caisson input`, `approvals`, `approve` and `deny`.

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

use super::{DONE, client, print, print_json};
use crate::cli::{Approve, Deny, Input, One};
use crate::client::{ApprovalInfo, Client};
use crate::render::clean;

/// Longest part of what an agent wants to give to a tool that the list shows, in characters.
const SHOWN_CHARS: usize = 80;

/// `caisson input`.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn input(flags: Input) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_run(Some(&flags.run)).await?;
    let kind = if flags.interrupt {
        "interrupt"
    } else if flags.queue {
        "queue"
    } else {
        "steer"
    };
    let text = match flags.text.as_deref() {
        Some("-") => {
            Some(std::io::read_to_string(std::io::stdin()).context("standard input cannot be read")?)
        }
        Some(text) => Some(text.to_owned()),
        None => None,
    };
    let mut body = json!({ "kind": kind });
    if let Some(text) = text {
        body["text"] = text.into();
    }
    let sent = client.send_input(&id, &body, flags.idempotency_key.as_deref()).await?;
    if flags.client.json {
        print_json(&sent)?;
    } else {
        print(&format!("input {} is on its way ({kind}); follow it with: caisson logs -f {id}", sent["seq"]));
    }
    Ok(DONE)
}

/// `caisson approvals`.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn list(flags: One) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let approvals = client.approvals(&client.find_run(flags.run.as_deref()).await?).await?;
    if flags.client.json {
        for approval in &approvals {
            print_json(approval)?;
        }
        return Ok(DONE);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["APPROVAL", "STATE", "TOOL", "INPUT"]);
    for approval in &approvals {
        let input: String = approval.input.to_string().chars().take(SHOWN_CHARS).collect();
        table.add_row([&approval.id, &approval.state, &approval.tool, &input].map(|text| clean(text)));
    }
    print(&table.trim_fmt());
    Ok(DONE)
}

/// `caisson approve`.
///
/// # Errors
/// The server refuses, or is not there; nothing waits, or several things and none is named.
pub(crate) async fn approve(flags: Approve) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let (run, approval) = waiting(&client, &flags.run, flags.approval.as_deref()).await?;
    let mut body = json!({ "decision": "allow" });
    if let Some(input) = flags.input {
        body["input"] = input.into();
    } else if !flags.answer.is_empty() {
        body["input"] = answered(&approval, &flags.answer)?;
    }
    answer(&client, (&run, &approval.id), &body, flags.client.json).await
}

/// What the agent's questions are answered with: its own input with the answers beside it.
fn answered(approval: &ApprovalInfo, answers: &[(String, String)]) -> anyhow::Result<Value> {
    let mut input = approval.input.as_object().cloned().unwrap_or_default();
    let questions: Vec<String> = input
        .get("questions")
        .and_then(Value::as_array)
        .map(|all| all.iter().filter_map(|one| one["question"].as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    if let Some((unknown, _)) = answers.iter().find(|(question, _)| !questions.contains(question)) {
        bail!("the agent does not ask \"{unknown}\"; it asks: {}", questions.join(" | "));
    }
    let answers: Map<String, Value> =
        answers.iter().map(|(question, answer)| (question.clone(), Value::from(answer.as_str()))).collect();
    input.insert("answers".to_owned(), answers.into());
    Ok(input.into())
}

/// `caisson deny`.
///
/// # Errors
/// The server refuses, or is not there; nothing waits, or several things and none is named.
pub(crate) async fn deny(flags: Deny) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let (run, approval) = waiting(&client, &flags.run, flags.approval.as_deref()).await?;
    let mut body = json!({ "decision": "deny" });
    if let Some(message) = flags.message {
        body["message"] = message.into();
    }
    answer(&client, (&run, &approval.id), &body, flags.client.json).await
}

async fn answer(
    client: &Client,
    (run, approval): (&str, &str),
    body: &Value,
    as_json: bool,
) -> anyhow::Result<u8> {
    let answered = client.answer(run, approval, body).await?;
    if as_json {
        print_json(&answered)?;
    } else {
        print(&clean(&format!("{} is {} ({})", answered.id, answered.state, answered.tool)));
    }
    Ok(DONE)
}

/// The run and the approval that are meant.
async fn waiting(
    client: &Client,
    run: &str,
    approval: Option<&str>,
) -> anyhow::Result<(String, ApprovalInfo)> {
    let run = client.find_run(Some(run)).await?;
    let all = client.approvals(&run).await?;
    let meant = |one: &ApprovalInfo| match approval {
        Some(id) => one.id.ends_with(id),
        None => one.state == "waiting",
    };
    let mut matching: Vec<_> = all.into_iter().filter(meant).collect();
    match (matching.pop(), matching.is_empty()) {
        (Some(found), true) => Ok((run, found)),
        (Some(_), false) => {
            bail!("several approvals are meant; `caisson approvals {run}` lists them, name one")
        }
        (None, _) => {
            bail!("the run's agent waits for no such approval; `caisson approvals {run}` lists them")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_to_a_question_that_was_asked() {
        let questions = json!([{"question": "Which one?", "options": [{"label": "A"}]}]);
        let input = json!({"questions": questions});
        let (id, tool, state) = ("apv_1".to_owned(), "AskUserQuestion".to_owned(), "waiting".to_owned());
        let asked = ApprovalInfo { id, tool, state, input, rest: Map::new() };
        let pair = |question: &str| vec![(question.to_owned(), "A".to_owned())];
        let given = answered(&asked, &pair("Which one?")).unwrap();
        assert_eq!(given, json!({"questions": questions, "answers": {"Which one?": "A"}}));
        let error = answered(&asked, &pair("Which?")).unwrap_err().to_string();
        assert!(error.contains("it asks: Which one?"), "{error}");
    }
}
