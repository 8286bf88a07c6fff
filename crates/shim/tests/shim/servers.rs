//! MCP servers that a workflow requires, by agents that tell of them in their own way.

use std::time::{Duration, Instant};

use caisson_domain::protocol::{Ending, RunWork};
use caisson_domain::run::FailureKind;
use serde_json::json;

use crate::gateway::json_line;
use crate::sandbox::{Sandbox, failed, plain_work};

/// An agent that answers the shim's questions by `answer(id)`.
const ANSWERING: &str = "
plain = heard
def heard():
    while (message := plain()) is not None and message['type'] == 'control_request':
        answer(message['request_id'])
    return message

def told(id, state):
    servers = [{'name': 'notes', 'status': state, 'config': {'env': {'A': 'how it is started'}}}]
    emit({'type': 'control_response',
          'response': {'subtype': 'success', 'request_id': id, 'response': {'mcpServers': servers}}})

def prompt(uuid, text, number):
    told('caisson-servers-0', 'connected')
    done(uuid)
";

/// A run that cannot do without the server `notes`.
fn work() -> RunWork {
    let mut work = plain_work("x");
    work.agent.mcp_servers.insert("notes".to_owned(), json!({"command": "serve"}));
    work.agent.mcp_required = vec!["notes".to_owned()];
    work
}

fn sandbox(answer: &str) -> Sandbox {
    let mut sandbox = Sandbox::with_agent(&format!("{ANSWERING}{answer}"));
    sandbox.set("servers_ms", 700);
    sandbox.set("servers_least_ms", 100);
    sandbox
}

#[tokio::test]
async fn an_agent_that_does_not_tell_how_required_servers_are_gets_no_prompt() {
    let unable = "
def answer(id):
    emit({'type': 'control_response', 'response': {'subtype': 'error', 'request_id': id, 'error': 'what?'}})
";
    for answer in ["def answer(id): pass\n", unable] {
        let mut sandbox = sandbox(answer);
        sandbox.set("servers_ms", 600_000);
        sandbox.set("begin_ms", 700);
        let outcome = sandbox.run(work()).await;
        assert_eq!(
            failed(&outcome, FailureKind::SetupFailed),
            "the agent did not tell within 0.7 s whether the MCP server \"notes\", which the workflow requires, is connected"
        );
        assert!(!has_prompt(&sandbox));
    }
}

#[tokio::test]
async fn a_required_server_that_does_not_connect_in_time_fails_the_run() {
    let mut sandbox = sandbox("def answer(id): told(id, 'pending')\n");
    let outcome = sandbox.run(work()).await;
    let message = failed(&outcome, FailureKind::SetupFailed);
    assert!(message.ends_with("did not connect within 0.7 s"), "{message}");
    assert!(!has_prompt(&sandbox));
}

#[tokio::test]
async fn an_agent_that_starts_slowly_does_not_use_up_the_time_of_its_servers() {
    // They are pending in the first answer, when their time is over, and connected in the next.
    let mut sandbox = sandbox(
        "
import time
time.sleep(1.5)
states = ['pending', 'connected']
def answer(id): told(id, states.pop(0))
",
    );
    sandbox.set("servers_least_ms", 60_000);
    let outcome = sandbox.run(work()).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
}

#[tokio::test]
async fn a_required_server_that_the_agent_is_not_told_of_fails_the_run_at_once() {
    let mut sandbox = sandbox("def answer(id): told(id, 'connected')\n");
    sandbox.set("servers_ms", 600_000);
    let mut work = work();
    work.agent.mcp_required.push("later".to_owned());
    let began = Instant::now();
    let message = failed(&sandbox.run(work).await, FailureKind::BadWorkflow);
    assert!(message.contains("\"later\"") && message.contains("cannot be read"), "{message}");
    assert!(began.elapsed() < Duration::from_mins(1), "it was not waited for");
}

#[tokio::test]
async fn only_answers_that_were_asked_for_are_left_out_of_the_journal() {
    let mut sandbox = sandbox("def answer(id): told(id, 'connected')\n");
    let outcome = sandbox.run(work()).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    let lines: Vec<_> = sandbox.bodies().iter().filter_map(json_line).collect();
    let answers = lines.iter().filter(|line| line["type"] == "control_response").count();
    assert_eq!(answers, 1, "the one that nobody asked for: {lines:#?}");
}

fn has_prompt(sandbox: &Sandbox) -> bool {
    let log = std::fs::read_to_string(sandbox.place("home").join("agent.log")).unwrap_or_default();
    log.contains("prompt")
}
