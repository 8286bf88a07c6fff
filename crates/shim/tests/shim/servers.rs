//! MCP servers that a workflow requires, by agents that tell of them in their own way.

use std::time::{Duration, Instant};

use caisson_domain::protocol::{Ending, RunWork};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::WorkspaceAccess;
use serde_json::json;

use crate::gateway::json_line;
use crate::sandbox::{Sandbox, failed, failure, git_work, plain_work};

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

/// What the shim keeps of a server's standard error, in bytes.
const KEPT_BYTES: usize = 8 * 1024;

/// A run that cannot do without the server `notes`.
fn work() -> RunWork {
    let mut work = plain_work("x");
    work.agent.mcp_servers.insert("notes".to_owned(), json!({"command": "cat"}));
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

/// An agent that starts the server `notes` as it was told to and says that it has failed, once it has ended.
const STARTING: &str = "
argument = next(one for one in sys.argv if one.startswith('--mcp-config='))
notes = json.loads(argument.split('=', 1)[1])['mcpServers']['notes']
pipe = subprocess.PIPE
server = subprocess.Popen([notes['command'], *notes['args']], stdin=pipe, stdout=pipe, stderr=pipe)
told, left = server.communicate(b'a line')
log('server said ' + told.decode() + ', ended with ' + str(server.returncode) + ' and left ' + str(len(left)) + ' bytes')

plain = heard
def heard():
    while (message := plain()) is not None and message['type'] == 'control_request':
        servers = [{'name': 'notes', 'status': 'failed', 'error': 'Connection closed'}]
        emit({'type': 'control_response', 'response': {'subtype': 'success', 'request_id': message['request_id'],
              'response': {'mcpServers': servers}}})
    return message

def prompt(uuid, text, number):
    done(uuid)
";

#[tokio::test]
async fn a_required_server_that_ends_is_told_with_the_end_of_its_standard_error() {
    // More than a pipe holds, so that it would never end if nobody read it.
    let script = "import sys; sys.stdout.write('heard ' + sys.stdin.read()); sys.stderr.write('x' * 200000 + '\\nno \\x1b[1mindex at /srv/notes\\n\\n'); sys.exit(3)";
    for access in [WorkspaceAccess::ReadWrite, WorkspaceAccess::ReadOnly] {
        let mut sandbox = Sandbox::with_agent(STARTING);
        let mut work = work();
        work.workspace = access;
        work.agent
            .mcp_servers
            .insert("notes".to_owned(), json!({"command": "python3", "args": ["-c", script]}));
        let outcome = sandbox.run(work).await;
        let failure = failure(&outcome);
        assert_eq!(failure.kind, FailureKind::SetupFailed, "{failure:?}");
        assert_eq!(
            failure.message,
            "the MCP server \"notes\", which the workflow requires, did not start or connect; its standard error ends \
             with: no [1mindex at /srv/notes"
        );
        let evidence = failure.evidence.unwrap();
        assert!(evidence.starts_with("Connection closed\nstandard error of the server:\nxxx"), "{evidence}");
        assert!(evidence.ends_with("x\nno [1mindex at /srv/notes"), "{evidence}");
        assert!(evidence.len() < KEPT_BYTES + 100, "{} bytes", evidence.len());
        assert!(evidence.len() > KEPT_BYTES, "{} bytes", evidence.len());
        assert_eq!(sandbox.agent_log(), ["server said heard a line, ended with 3 and left 0 bytes"]);
    }
}

#[tokio::test]
async fn a_server_whose_program_is_not_there_is_told_as_such() {
    let mut sandbox = Sandbox::with_agent(STARTING);
    let mut work = work();
    work.agent.mcp_servers.insert("notes".to_owned(), json!({"command": "/no/such/server"}));
    let message = failed(&sandbox.run(work).await, FailureKind::SetupFailed);
    assert!(message.contains("/no/such/server cannot be started: No such file"), "{message}");
}

#[tokio::test]
async fn a_required_program_that_the_image_lacks_is_told_before_a_long_set_up() {
    let mut sandbox = Sandbox::with_repository(STARTING);
    let seed = sandbox.place("seed");
    std::fs::write(seed.join(".caisson.yaml"), "setup: sleep 600\n").unwrap();
    sandbox.seed("b.txt", "b\n", "build: set up");
    let mut work = RunWork { agent: work().agent, ..git_work("Work") };
    work.agent.mcp_servers.insert("notes".to_owned(), json!({"command": "no-such-server"}));
    let begun = Instant::now();
    let message = failed(&sandbox.run(work).await, FailureKind::SetupFailed);
    assert!(message.contains("the sandbox has no program \"no-such-server\""), "{message}");
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
}

/// An agent whose server `notes` is pending when it begins, and then as the states say, one for each question.
const BEGINNING: &str = "
plain = emit
def emit(line):
    if line.get('subtype') == 'init':
        line = line | {'mcp_servers': [{'name': 'notes', 'status': 'pending'}]}
    plain(line)

def prompt(uuid, text, number):
    for state in STATES:
        question = heard()
        servers = [{'name': 'notes', 'status': state, 'error': 'timed out', 'config': {'env': {'A': 'how it is started'}}}]
        emit({'type': 'control_response', 'response': {'subtype': 'success', 'request_id': question['request_id'],
              'response': {'mcpServers': servers}}})
    done(uuid)
";

#[tokio::test]
async fn a_server_that_is_lost_after_the_agent_began_is_told_once() {
    for (states, told) in [("['pending', 'failed']", true), ("['pending', 'connected']", false)] {
        let mut sandbox = Sandbox::with_agent(&format!("STATES = {states}\n{BEGINNING}"));
        let mut work = work();
        work.agent.mcp_required.clear();
        let outcome = sandbox.run(work).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        let notes = sandbox.notes();
        let lost: Vec<_> = notes.iter().filter(|note| note.contains("MCP server")).collect();
        assert_eq!(lost.len(), usize::from(told), "{notes:?}");
        assert!(
            !told || lost[0] == "the MCP server \"notes\" did not start or connect\ntimed out",
            "{lost:?}"
        );
        let journal = serde_json::to_string(&sandbox.bodies()).unwrap();
        assert!(!journal.contains("how it is started"), "{journal}");
    }
}

fn has_prompt(sandbox: &Sandbox) -> bool {
    let log = std::fs::read_to_string(sandbox.place("home").join("agent.log")).unwrap_or_default();
    log.contains("prompt")
}
