//! Inputs and approvals on real parts: the real agent in a real sandbox is told, interrupted, asked and answered.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use caisson_domain::sse::Parser;
use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec, until};

const END: Duration = Duration::from_mins(1);
/// How long an input may take from its request to the event that acknowledges it, as its sender sees both. It is the quickest of
/// each kind that shows this: the others have in them whatever else the machine does, and a disk that is busy for a moment.
const DELIVERY: Duration = Duration::from_millis(200);
/// Inputs of each kind that are measured.
const INPUTS: usize = 20;

testkit::on_every_engine_and_database! {
    twenty_inputs_of_each_kind_reach_the_agent_in_time
    an_interruption_ends_what_the_agent_does_from_the_command_line
    each_kind_of_input_is_sent_from_the_command_line
    what_is_typed_into_attach_reaches_the_agent
    what_is_sent_while_checks_run_and_the_agent_mends_reaches_it
    more_than_may_be_on_their_way_come_out_of_a_pipe_one_after_another
    an_approval_outlives_its_server_and_is_given_from_the_command_line
    a_tool_is_given_what_somebody_changed
    a_question_of_the_agent_is_answered_from_the_command_line
    an_approval_that_nobody_answers_has_its_default_answer
    a_run_that_waits_for_an_approval_is_cancelled
}

fn workflows() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, caisson: &str| {
        let text = format!(
            "---\nname: {name}\ndescription: Waits.\npermissionMode: bypassPermissions\ncaisson: {{publish: none{caisson}}}\n---\nWork.\n"
        );
        std::fs::write(directory.path().join(format!("{name}.md")), text).unwrap();
    };
    write("patient", "");
    write("checked", ", checks: [lint, test]");
    write("careful", ", approvals: {ask: [\"Bash(touch *)\"]}");
    write("hasty", ", approvals: {ask: [\"Bash(touch *)\"], expires_s: 2}");
    directory
}

fn scenarios() -> Vec<String> {
    let bash = |command: &str| json!({"tool": {"name": "Bash", "input": {"description": "Run it", "command": command}}});
    let sleep = |seconds| bash(&format!("python3 -c 'import time; time.sleep({seconds})'"));
    let by_words =
        |words: &str, text: &str| json!({"when_prompt_contains": words, "steps": [{"text": text}]});
    let options = json!([{"label": "Red", "description": "r"}, {"label": "Blue", "description": "b"}]);
    let questions =
        json!([{"question": "Which colour?", "header": "Colour", "options": options, "multiSelect": false}]);
    let ask = json!({"tool": {"name": "AskUserQuestion", "input": {"questions": questions}}});
    vec![
        json!({"listening": {"prompts": [
            [sleep(600), {"text": "?"}], by_words("python 3", "Python 3 it is."), by_words("the docs", "The docs are written."),
        ]}})
        .to_string(),
        json!({"mending": {"prompts": [
            [{"text": "First."}],
            {"when_prompt_contains": "fail on your work", "steps": [bash(&format!("touch mended; {}", until("go"))), {"text": "Mended."}]},
            by_words("the lexer", "With the lexer."), by_words("the docs", "The docs are written."),
        ]}})
        .to_string(),
        json!({"napping": {"prompts": [[bash(&until("go")), {"text": "First."}], [sleep(1), {"text": "Next."}]]}}).to_string(),
        json!({"asking": {"prompts": [[ask, {"text": "Blue it is."}]]}}).to_string(),
        json!({"sleeping": {"prompts": [[sleep(600), {"text": "?"}]]}}).to_string(),
        json!({"touching": {"prompts": [[bash("touch /workspace/asked-for"), bash("ls /workspace"), {"text": "Done."}]]}})
            .to_string(),
    ]
}

async fn world(ground: Ground, workflows: &Path, scenario: &str) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let variables = vec![("WORKFLOWS_DIR".to_owned(), workflows.display().to_string())];
    let (scenario, scenarios) = (scenario.to_owned(), scenarios());
    let spec = WorldSpec { scenario, variables, scenarios, ..WorldSpec::on(ground) };
    Some(World::start(&parts, spec).await.unwrap())
}

async fn submit(world: &World, workflow: &str) -> String {
    let body = json!({"workflow": workflow, "prompt": "Work.", "repository": null});
    world.api.submit(&body).await.unwrap()
}

/// Runs a command of somebody who has a key; what it printed.
fn run(world: &World, arguments: &[&str]) -> String {
    let output = world.client(arguments).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {error}");
    out.into_owned()
}

/// The live events of a run.
struct Live {
    response: reqwest::Response,
    parser: Parser,
    read: std::collections::VecDeque<Value>,
}

impl Live {
    async fn open(world: &World, id: &str) -> Self {
        let response = world.api.open_events(id).await.unwrap();
        Self { response, parser: Parser::default(), read: std::collections::VecDeque::new() }
    }

    /// The next event that `wanted` says yes to.
    async fn next(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            while let Some(event) = self.read.pop_front() {
                if wanted(&event) {
                    return event;
                }
            }
            let chunk = tokio::time::timeout(END, self.response.chunk()).await.expect("an event comes");
            for message in self.parser.push(&chunk.unwrap().expect("the stream goes on")).unwrap() {
                self.read.extend(serde_json::from_str::<Value>(&message.data).ok());
            }
        }
    }
}

fn is_of(event: &Value, kind: &str, input: &Value) -> bool {
    event["kind"] == kind && event["data"]["input"] == *input
}

/// Sends an input, and waits for the event that acknowledges it; its number, and how long that took.
async fn told(world: &World, live: &mut Live, (id, kind): (&str, &str), number: usize) -> (Value, Duration) {
    let (mut body, acknowledged) =
        (json!({ "kind": kind }), if kind == "queue" { "held" } else { "delivered" });
    if kind != "interrupt" {
        body["text"] = json!(format!("Word {number}."));
    }
    let begun = Instant::now();
    let sent = world.api.post(&format!("/v1/runs/{id}/inputs"), &body).await.unwrap();
    assert_eq!(sent.status, 202, "{}", sent.body);
    let seq = sent.body["seq"].clone();
    live.next(|event| is_of(event, &format!("input.{acknowledged}"), &seq)).await;
    (seq, begun.elapsed())
}

/// Tells how long inputs of a kind took, and asserts that the quickest took no longer than one may.
fn assert_soon(ground: Ground, kind: &str, took: &[Duration]) {
    let mut sorted = took.to_vec();
    sorted.sort();
    assert_eq!(sorted.len(), INPUTS);
    let (quickest, median, longest) = (sorted[0], sorted[INPUTS / 2], sorted[INPUTS - 1]);
    #[expect(clippy::print_stderr, reason = "the figures are what the test is for")]
    {
        eprintln!(
            "{ground:?}: {INPUTS} of {kind}, from the request to the event: quickest {quickest:?}, median {median:?}, longest {longest:?}"
        );
    }
    assert!(quickest < DELIVERY, "{kind}: {took:?}");
}

async fn twenty_inputs_of_each_kind_reach_the_agent_in_time(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "sleeping").await else { return };
    let id = submit(&world, "patient").await;
    world.inside_a_tool(&id, END).await.unwrap();
    let mut live = Live::open(&world, &id).await;
    let calls = |event: &Value| {
        event["data"]["type"] == "assistant" && event["data"]["message"].to_string().contains("time.sleep")
    };
    live.next(calls).await;
    // What is queued has a turn of its own when the one before it is interrupted, in which the agent sleeps again.
    let (mut queued, mut interrupted) = (Vec::new(), Vec::new());
    for number in 0..INPUTS {
        let (seq, took) = told(&world, &mut live, (&id, "queue"), number).await;
        queued.push(took);
        interrupted.push(told(&world, &mut live, (&id, "interrupt"), number).await.1);
        live.next(|event| is_of(event, "input.delivered", &seq)).await;
        live.next(calls).await;
    }
    let mut steered = Vec::new();
    for number in 0..INPUTS {
        steered.push(told(&world, &mut live, (&id, "steer"), number).await.1);
    }
    assert_soon(ground, "queue", &queued);
    assert_soon(ground, "interrupt", &interrupted);
    assert_soon(ground, "steer", &steered);
    // They are in the agent's own queue, not only written to a pipe.
    let taken =
        |event: &Value| event["data"]["type"] == "command_lifecycle" && event["data"]["state"] == "queued";
    let events = world.api.events(&id).await.unwrap();
    assert!(events.iter().filter(|event| taken(event)).count() >= INPUTS, "the agent has read them");
    // Each kind reaches it in the order in which it was sent, each one accepted before.
    let of = |kind: &str| -> Vec<i64> {
        let told = events.iter().filter(|event| event["kind"] == kind);
        told.map(|event| event["data"]["input"].as_i64().unwrap()).collect()
    };
    let (accepted, held) = (of("input.accepted"), of("input.held"));
    assert!(accepted.is_sorted() && held.is_sorted() && held.len() == INPUTS, "{accepted:?}, {held:?}");
    let at = |kind: &str, seq: &i64| {
        events.iter().position(|event| is_of(event, &format!("input.{kind}"), &json!(seq))).unwrap()
    };
    assert!(accepted.iter().all(|seq| at("accepted", seq) < at("delivered", seq)), "{accepted:?}");
    assert!(held.iter().all(|seq| at("held", seq) < at("delivered", seq)), "{held:?}");
    world.api.post(&format!("/v1/runs/{id}/cancel"), &json!({})).await.unwrap();
    world.api.wait_end(&id, END).await.unwrap();
    let listed = world.api.get(&format!("/v1/runs/{id}/inputs")).await.unwrap().body;
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.len(), 3 * INPUTS);
    assert!(items.iter().all(|input| input["state"] == "delivered"), "{listed:#}");
}

async fn an_interruption_ends_what_the_agent_does_from_the_command_line(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "sleeping").await else { return };
    let id = submit(&world, "patient").await;
    world.inside_a_tool(&id, END).await.unwrap();
    let told = run(&world, &["input", &id, "--interrupt"]);
    assert!(told.contains("is on its way (interrupt)"), "{told}");
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(ended["status"], "succeeded", "what there is, is what was wanted: {ended:#}");
    let late = world.client(&["input", &id, "Too late."]).output().unwrap();
    assert_eq!(late.status.code(), Some(1));
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(said.contains("takes no inputs: it has ended"), "{said}");
}

/// The kinds and states of what a run was sent, in order.
async fn sent(world: &World, id: &str) -> Vec<(String, String)> {
    let listed = world.api.get(&format!("/v1/runs/{id}/inputs")).await.unwrap().body;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let items = listed["items"].as_array().unwrap();
    items.iter().map(|input| (text(&input["kind"]), text(&input["state"]))).collect()
}

/// What is sent when somebody tells a sleeping agent something, queues something, and interrupts it.
fn all_three() -> Vec<(String, String)> {
    ["queue", "steer", "interrupt"].map(|kind| (kind.to_owned(), "delivered".to_owned())).to_vec()
}

async fn each_kind_of_input_is_sent_from_the_command_line(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "listening").await else { return };
    let id = submit(&world, "patient").await;
    world.inside_a_tool(&id, END).await.unwrap();
    for (arguments, kind) in [
        (vec!["input", &id, "Then write the docs.", "--queue"], "queue"),
        (vec!["input", &id, "Use Python 3.", "--steer"], "steer"),
        (vec!["input", &id, "--interrupt"], "interrupt"),
    ] {
        let told = run(&world, &arguments);
        assert!(told.contains(&format!("is on its way ({kind})")), "{told}");
        if kind == "steer" {
            delivered(&world, &id).await;
        }
    }
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(
        (&ended["status"], &ended["result"]),
        (&json!("succeeded"), &json!("The docs are written.")),
        "{ended:#}"
    );
    assert_eq!(sent(&world, &id).await, all_three());
    let told = run(&world, &["session", "messages", ended["session_id"].as_str().unwrap()]);
    let order =
        ["user: Use Python 3.", "Python 3 it is.", "The docs are written."].map(|text| told.find(text));
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{told}");
}

/// Waits until something has reached the agent.
async fn delivered(world: &World, id: &str) {
    world.api.wait_event(id, END, |event| event["kind"] == "input.delivered").await.unwrap();
}

/// `caisson attach`, with a pipe to type into.
fn attach(world: &World, id: &str) -> (std::process::Child, std::process::ChildStdin) {
    use std::process::Stdio;
    let mut command = world.client(&["attach", id]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pipe = child.stdin.take().unwrap();
    (child, pipe)
}

async fn what_is_typed_into_attach_reaches_the_agent(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "listening").await else { return };
    let id = submit(&world, "patient").await;
    world.inside_a_tool(&id, END).await.unwrap();
    let (child, mut pipe) = attach(&world, &id);
    pipe.write_all(b"/queue Then write the docs.\n/steer Use Python 3.\n").unwrap();
    delivered(&world, &id).await;
    pipe.write_all(b"/interrupt\n").unwrap();
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(error.starts_with("sent (queue)\nsent (steer)\nsent (interrupt)\n"), "{error}");
    assert!(!error.contains("not sent"), "{error}");
    assert!(out.contains("Python 3 it is.") && out.contains("The docs are written."), "{out}");
    assert_eq!(sent(&world, &id).await, all_three());
}

/// Waits until the test lets it go on, and fails until the agent has mended it.
const CHECK: &str = "import os, sys, time\nwhile not os.path.exists(os.environ['HOME'] + '/checked'): time.sleep(0.05)\nsys.exit(not os.path.exists('mended'))\n";

async fn what_is_sent_while_checks_run_and_the_agent_mends_reaches_it(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "mending").await else { return };
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("check.py"), CHECK).unwrap();
    let file = "lint: python3 check.py\ntest: [python3, -c, pass]\n";
    std::fs::write(source.path().join(".caisson.yaml"), file).unwrap();
    testkit::repository::bare_from(
        &world.directory.path().join("repositories"),
        "checked.git",
        source.path(),
    )
    .unwrap();
    let body = json!({"workflow": "checked", "prompt": "Work.", "repository": world.host.url("checked.git")});
    let id = world.api.submit(&body).await.unwrap();
    world.api.wait_event(&id, END, |event| event["data"]["type"] == "result").await.unwrap();
    run(&world, &["input", &id, "Then write the docs.", "--queue"]);
    world.api.wait_event(&id, END, |event| event["kind"] == "input.held").await.unwrap();
    let told = world.api.events(&id).await.unwrap();
    assert!(told.iter().all(|event| event["kind"] != "note"), "the check still runs: {told:#?}");
    world.let_go(&id, "checked").await.unwrap();
    let mends = |event: &Value| {
        event["data"]["type"] == "assistant" && event["data"]["message"].to_string().contains("touch mended")
    };
    world.api.wait_event(&id, END, mends).await.unwrap();
    run(&world, &["input", &id, "Mind the lexer.", "--steer"]);
    world.queued(&id, 3, END).await.unwrap();
    world.let_go(&id, "go").await.unwrap();
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(
        (&ended["status"], &ended["result"]),
        (&json!("succeeded"), &json!("The docs are written.")),
        "{ended:#}"
    );
    let delivered = |kind: &str| (kind.to_owned(), "delivered".to_owned());
    assert_eq!(sent(&world, &id).await, [delivered("queue"), delivered("steer")]);
    let passed = |check: &Value| check["outcome"] == "passed" && check["turns"] == 1;
    assert!(ended["checks"].as_array().unwrap().iter().all(passed), "{ended:#}");
    let told = run(&world, &["session", "messages", ended["session_id"].as_str().unwrap()]);
    let order = ["First.", "user: Mind the lexer.", "With the lexer.", "The docs are written."]
        .map(|text| told.find(text));
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{told}");
}

async fn more_than_may_be_on_their_way_come_out_of_a_pipe_one_after_another(ground: Ground) {
    const LINES: usize = 10;
    assert!(i64::try_from(LINES).unwrap() > caisson_domain::input::RUN_INPUTS_PENDING);
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "napping").await else { return };
    let id = submit(&world, "patient").await;
    world.inside_a_tool(&id, END).await.unwrap();
    let (mut child, mut pipe) = attach(&world, &id);
    for number in 0..LINES {
        writeln!(pipe, "/queue Thing {number}.").unwrap();
    }
    drop(pipe);
    // The agent takes none of them before one was refused.
    let (mut said, mut error) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    while !error.contains("inputs_full") && said.read_line(&mut error).unwrap() > 0 {}
    world.let_go(&id, "go").await.unwrap();
    let output = child.wait_with_output().unwrap();
    said.read_to_string(&mut error).unwrap();
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(error.contains("not sent yet, and tried again") && error.contains("inputs_full"), "{error}");
    assert_eq!(error.matches("sent (queue)").count(), LINES, "{error}");
    let listed = world.api.get(&format!("/v1/runs/{id}/inputs")).await.unwrap().body;
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.len(), LINES, "each once");
    for (number, input) in items.iter().enumerate() {
        assert_eq!(
            (&input["text"], &input["state"]),
            (&json!(format!("Thing {number}.")), &json!("delivered"))
        );
    }
}

async fn an_approval_outlives_its_server_and_is_given_from_the_command_line(ground: Ground) {
    let workflows = workflows();
    let Some(mut world) = world(ground, workflows.path(), "touching").await else { return };
    let id = submit(&world, "careful").await;
    let waits = world.api.wait_run(&id, END, |run| run["waiting"] == "approval").await.unwrap();
    assert_eq!(waits["status"], "running");
    world.server.kill().unwrap();
    world.server = world.spec.start().await.unwrap();
    let listed = run(&world, &["approvals", &id]);
    assert!(listed.contains("waiting") && listed.contains("touch /workspace/asked-for"), "{listed}");
    assert!(listed.contains("waits: Bash is to be given"), "{listed}");
    let allowed = run(&world, &["approve", &id]);
    assert!(allowed.contains("is allowed (Bash)"), "{allowed}");
    assert!(allowed.contains("Bash is given\n  | {\"command\":\"touch /workspace/asked-for"), "{allowed}");
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!((&ended["status"], &ended["result"]), (&json!("succeeded"), &json!("Done.")), "{ended:#}");
    let events = world.api.events(&id).await.unwrap();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
    let asked = kinds.iter().position(|kind| *kind == "approval.requested").unwrap();
    let answered = kinds.iter().position(|kind| *kind == "approval.answered").unwrap();
    assert!(asked < answered);
    let done = |event: &Value| event["data"]["message"]["content"][0]["content"] == "asked-for";
    assert!(events.iter().any(done), "the file is there: {events:#?}");
    let again = world.client(&["deny", &id]).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("waits for no such approval"));
}

/// What the agent's tools gave back.
async fn results(world: &World, id: &str) -> String {
    let events = world.api.events(id).await.unwrap();
    let lines = events.iter().filter(|event| event["data"]["type"] == "user");
    lines.map(|event| event["data"]["message"]["content"].to_string()).collect()
}

async fn a_tool_is_given_what_somebody_changed(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "touching").await else { return };
    let id = submit(&world, "careful").await;
    world.api.wait_run(&id, END, |run| run["waiting"] == "approval").await.unwrap();
    let changed = r#"{"description": "Another one", "command": "touch /workspace/changed"}"#;
    let told = run(&world, &["approve", &id, "--input", changed]);
    assert!(told.contains("is allowed (Bash)"), "{told}");
    assert!(
        told.contains("touch /workspace/changed") && !told.contains("asked-for"),
        "what is given: {told}"
    );
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    let listed = results(&world, &id).await;
    assert!(listed.contains("changed") && !listed.contains("asked-for"), "what is there: {listed}");
    let approvals = world.api.get(&format!("/v1/runs/{id}/approvals")).await.unwrap().body;
    let one = &approvals["items"][0];
    assert_eq!((&one["state"], &one["decision"]), (&json!("allowed"), &json!("allow")), "{approvals:#}");
}

async fn a_question_of_the_agent_is_answered_from_the_command_line(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "asking").await else { return };
    let id = submit(&world, "careful").await;
    world.api.wait_run(&id, END, |run| run["waiting"] == "approval").await.unwrap();
    let listed = run(&world, &["approvals", &id, "--json"]);
    assert!(listed.contains("AskUserQuestion") && listed.contains("Which colour?"), "{listed}");
    let unasked = world.client(&["approve", &id, "--answer", "Which size?=Large"]).output().unwrap();
    let said = String::from_utf8_lossy(&unasked.stderr).into_owned();
    assert!(!unasked.status.success() && said.contains("it asks: Which colour?"), "{said}");
    let told = run(&world, &["approve", &id, "--answer", "Which colour?=Blue"]);
    assert!(told.contains("is allowed (AskUserQuestion)"), "{told}");
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(
        (&ended["status"], &ended["result"]),
        (&json!("succeeded"), &json!("Blue it is.")),
        "{ended:#}"
    );
    let answered = results(&world, &id).await;
    assert!(answered.contains("Which colour?") && answered.contains("Blue"), "the agent is told: {answered}");
    assert!(!answered.contains("Red"), "and nothing else: {answered}");
}

async fn an_approval_that_nobody_answers_has_its_default_answer(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "touching").await else { return };
    let id = submit(&world, "hasty").await;
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(ended["status"], "succeeded", "the agent went on without it: {ended:#}");
    let approvals = world.api.get(&format!("/v1/runs/{id}/approvals")).await.unwrap().body;
    let one = &approvals["items"][0];
    assert_eq!(
        (&one["state"], &one["decision"], &one["decided_by"]),
        (&json!("expired"), &json!("deny"), &Value::Null)
    );
    let waited_ms = one["decided_at_ms"].as_i64().unwrap() - one["requested_at_ms"].as_i64().unwrap();
    assert!(waited_ms >= 2_000, "{waited_ms} ms");
    let text = serde_json::to_string(&world.api.events(&id).await.unwrap()).unwrap();
    assert!(text.contains("Nobody answered within 2 s"), "the agent is told");
}

async fn a_run_that_waits_for_an_approval_is_cancelled(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "touching").await else { return };
    let id = submit(&world, "careful").await;
    world.api.wait_run(&id, END, |run| run["waiting"] == "approval").await.unwrap();
    world.api.post(&format!("/v1/runs/{id}/cancel"), &json!({})).await.unwrap();
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!((&ended["status"], &ended["waiting"]), (&json!("cancelled"), &Value::Null));
    let approvals = world.api.get(&format!("/v1/runs/{id}/approvals")).await.unwrap().body;
    assert_eq!(approvals["items"][0]["state"], "withdrawn");
    let answer = world
        .api
        .post(
            &format!("/v1/runs/{id}/approvals/{}", approvals["items"][0]["id"].as_str().unwrap()),
            &json!({"decision": "allow"}),
        )
        .await
        .unwrap();
    assert_eq!((answer.status, &answer.body["code"]), (409, &json!("approval_over")));
    world.wait_tidy().await.unwrap();
}
