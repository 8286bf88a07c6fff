//! Inputs and approvals on real parts: the real agent in a real sandbox is told, interrupted, asked and answered.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::time::{Duration, Instant};

use caisson_domain::sse::Parser;
use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(1);
/// How long an input may take from its request to the event of its delivery, as its sender sees both.
const DELIVERY: Duration = Duration::from_millis(200);
/// Inputs that are measured.
const INPUTS: usize = 20;

testkit::on_every_engine_and_database! {
    twenty_inputs_each_reach_the_agent_in_time
    an_interruption_ends_what_the_agent_does_from_the_command_line
    an_approval_outlives_its_server_and_is_given_from_the_command_line
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
    write("careful", ", approvals: {ask: [\"Bash(touch *)\"]}");
    write("hasty", ", approvals: {ask: [\"Bash(touch *)\"], expires_s: 2}");
    directory
}

fn scenarios() -> Vec<String> {
    let bash = |command: &str| json!({"tool": {"name": "Bash", "input": {"description": "Run it", "command": command}}});
    let sleep = bash("python3 -c 'import time; time.sleep(600)'");
    vec![
        json!({"sleeping": {"prompts": [[sleep, {"text": "?"}]]}}).to_string(),
        json!({"touching": {"prompts": [[bash("touch /workspace/asked-for"), bash("ls /workspace"), {"text": "Done."}]]}})
            .to_string(),
    ]
}

async fn world(ground: Ground, workflows: &Path, scenario: &str) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let variables = vec![("WORKFLOWS_DIR".to_owned(), workflows.display().to_string())];
    let scenario = scenario.to_owned();
    let spec = WorldSpec { scenario, variables, scenarios: scenarios(), ..WorldSpec::on(ground) };
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

async fn twenty_inputs_each_reach_the_agent_in_time(ground: Ground) {
    let workflows = workflows();
    let Some(world) = world(ground, workflows.path(), "sleeping").await else { return };
    let id = submit(&world, "patient").await;
    world.inside_a_tool(&id, END).await.unwrap();
    let mut live = Live::open(&world, &id).await;
    let path = format!("/v1/runs/{id}/inputs");
    let mut took = Vec::new();
    for number in 0..INPUTS {
        let begun = Instant::now();
        let sent = world
            .api
            .post(&path, &json!({"kind": "steer", "text": format!("Word {number}.")}))
            .await
            .unwrap();
        assert_eq!(sent.status, 202, "{}", sent.body);
        live.next(|event| is_of(event, "input.delivered", &sent.body["seq"])).await;
        took.push(begun.elapsed());
    }
    let mut sorted = took.clone();
    sorted.sort();
    #[expect(clippy::print_stderr, reason = "the figures are what the test is for")]
    {
        eprintln!(
            "{ground:?}: {INPUTS} inputs, from the request to the event of the delivery: median {:?}, longest {:?}",
            sorted[INPUTS / 2],
            sorted[INPUTS - 1]
        );
    }
    assert!(sorted[INPUTS - 1] < DELIVERY, "{took:?}");
    // They are in the agent's own queue, not only written to a pipe.
    let queued =
        |event: &Value| event["data"]["type"] == "command_lifecycle" && event["data"]["state"] == "queued";
    let events = world.api.events(&id).await.unwrap();
    assert!(events.iter().filter(|event| queued(event)).count() >= INPUTS, "the agent has read them");
    let begun = Instant::now();
    let sent = world.api.post(&path, &json!({"kind": "interrupt"})).await.unwrap();
    live.next(|event| is_of(event, "input.delivered", &sent.body["seq"])).await;
    assert!(begun.elapsed() < DELIVERY, "{:?}", begun.elapsed());
    live.next(|event| event["data"]["type"] == "result").await;
    world.api.post(&format!("/v1/runs/{id}/cancel"), &json!({})).await.unwrap();
    world.api.wait_end(&id, END).await.unwrap();
    let listed = world.api.get(&path).await.unwrap().body;
    assert!(
        listed["items"].as_array().unwrap().iter().all(|input| input["state"] == "delivered"),
        "{listed:#}"
    );
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
    assert!((2_000..5_000).contains(&waited_ms), "{waited_ms} ms");
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
