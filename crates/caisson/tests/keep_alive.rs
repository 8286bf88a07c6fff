//! Sandboxes that wait for the next run of their session, on real parts: what lives and what is open meanwhile, what the next run
//! gains by it, and what ends it.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::engine::{kill_9, lives};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::run_git;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(3);
/// How long anything that is to come at once may take.
const SOON: Duration = Duration::from_secs(20);
/// How often it is looked what lives: one that changes its number is missed by some looks.
const LOOKS: usize = 20;

testkit::on_every_engine_and_database! {
    a_follow_up_is_answered_by_the_agent_that_waited_behind_closed_doors
    a_sandbox_that_waits_ends_when_its_time_is_over
    what_died_while_it_waited_is_made_anew_and_nothing_is_lost
    a_run_that_differs_or_needs_the_place_ends_what_waits
    what_waits_ends_with_its_session_and_with_its_server
    what_waits_is_left_alone_while_nothing_works_in_it_and_ended_when_something_lives_there
}

fn bash(command: &str) -> Value {
    json!({"tool": {"name": "Bash", "input": {"description": "Work", "command": command}}})
}

/// A process that sleeps, and one that is another process each moment, so that nobody who reads `/proc` finds it.
const LEFT_BEHIND: [&str; 2] = [
    "import time; time.sleep(900)",
    "import os, time\nend = time.time() + 60\nwhile time.time() < end:\n  if os.fork(): os._exit(0)",
];

/// Commits a file with the name, leaves processes behind, and shows what is there.
fn turn(name: &str) -> Value {
    let [sleeps, hops] = LEFT_BEHIND;
    let command = format!(
        "echo {name} > {name}.txt && git add -A && git commit -q -m 'feat: add {name}'\n\
         (setsid python3 -c '{sleeps}' > /dev/null 2>&1 &); (setsid python3 -c '{hops}' > /dev/null 2>&1 &); ls"
    );
    json!([bash(&command), {"text": format!("Added {name}.")}])
}

async fn start(ground: Ground, variables: &[(&str, &str)]) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let scenario = json!({ "turns": { "prompts": [turn("one"), turn("two"), turn("three"), turn("four")] } });
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let spec = WorldSpec {
        scenario: "turns".to_owned(),
        scenarios: vec![scenario.to_string()],
        variables: variables.iter().map(own).collect(),
        ..WorldSpec::on(ground)
    };
    Some(World::start(&parts, spec).await.unwrap())
}

/// A run that has ended well, with its events.
struct Done {
    run: Value,
    events: Vec<Value>,
}

impl Done {
    fn kinds(&self) -> Vec<&str> {
        self.events.iter().map(|event| event["kind"].as_str().unwrap()).collect()
    }

    fn has(&self, kind: &str) -> bool {
        self.kinds().contains(&kind)
    }

    fn text(&self, name: &str) -> &str {
        self.run[name].as_str().unwrap()
    }

    /// What its tools said.
    fn said(&self) -> String {
        let said = |event: &&Value| event["kind"] == "agent.line" && event["data"]["type"] == "user";
        self.events.iter().filter(said).map(|event| event["data"]["message"].to_string()).collect()
    }
}

async fn run(world: &World, body: &Value) -> Done {
    let id = world.api.submit(body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    let events = world.api.events(&id).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let denied: Vec<_> = events.iter().filter(|event| event["kind"] == "gateway.denied").collect();
    assert!(denied.is_empty(), "nothing that shim and agent do by themselves is denied: {denied:?}");
    Done { run, events }
}

async fn follow(world: &World, session: &str) -> Done {
    run(world, &json!({"session": session, "prompt": "Go on."})).await
}

/// The number of the prompt that the last model call answers: what people said before is in the request.
fn prompt_of_last_call(world: &World) -> usize {
    world.model_calls().last().unwrap().script.as_ref().unwrap().prompt
}

fn command_line(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// Everything that lives in a sandbox but what the engine itself starts there.
fn living(world: &World, sandbox: &str) -> Vec<(u32, String)> {
    let processes = world.processes(sandbox).unwrap_or_default();
    let all = processes.into_iter().filter(|pid| lives(*pid)).map(|pid| (pid, command_line(pid)));
    all.filter(|(_, line)| !line.contains("bwrap")).collect()
}

/// The process of the agent that waits in the one sandbox there is: beside it there is the shim, and nobody else.
fn agent(world: &World) -> u32 {
    let sandboxes = world.sandboxes().unwrap();
    let [sandbox] = sandboxes.as_slice() else { panic!("not one sandbox: {sandboxes:?}") };
    let all: Vec<_> = (0..LOOKS).map(|_| living(world, sandbox)).collect();
    let [(_, shim), (agent, line)] = all[0].as_slice() else { panic!("not two processes: {all:#?}") };
    assert!(shim.contains("caisson/shim") && line.contains("claude"), "{all:#?}");
    assert!(all.iter().all(|living| *living == all[0]), "{all:#?}");
    *agent
}

/// Waits until there is no sandbox but `left` of them.
async fn wait_left(world: &World, left: usize) {
    let begun = Instant::now();
    while world.sandboxes().unwrap().len() > left {
        assert!(begun.elapsed() < SOON, "{:?}\n{}", world.sandboxes(), world.server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a killed process is dead: on a busy machine that takes a while.
async fn wait_dead(pid: u32) {
    let begun = Instant::now();
    while lives(pid) {
        assert!(begun.elapsed() < SOON, "process {pid} lives");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks the only door there is, as the agent could from within; the head of the answer and its body.
fn knock(world: &World, request: &str) -> String {
    let doors: Vec<_> = std::fs::read_dir(world.state_dir().join("doors")).unwrap().flatten().collect();
    assert_eq!(doors.len(), 1);
    let mut stream = UnixStream::connect(doors[0].path().join("gateway.sock")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// What the agent's grant opens.
fn ways(grant: &str) -> Vec<String> {
    let last = "Connection: close\r\n\r\n";
    let own = format!("Host: door\r\nAuthorization: Bearer {grant}\r\n");
    let proxy = format!("Proxy-Authorization: Bearer {grant}\r\n");
    let body = r#"{"model":"claude-opus-5-5","max_tokens":1,"messages":[{"role":"user","content":"x"}]}"#;
    let length = body.len();
    vec![
        format!(
            "POST /model/v1/messages HTTP/1.1\r\n{own}Content-Type: application/json\r\nContent-Length: {length}\r\n{last}{body}"
        ),
        format!("GET /git/origin/info/refs?service=git-upload-pack HTTP/1.1\r\n{own}{last}"),
        format!("GET /git/origin/info/refs?service=git-receive-pack HTTP/1.1\r\n{own}{last}"),
        format!("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n{proxy}{last}"),
        format!("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n{proxy}{last}"),
        format!("POST /mcp/any HTTP/1.1\r\n{own}Content-Length: 2\r\n{last}{{}}"),
    ]
}

async fn a_follow_up_is_answered_by_the_agent_that_waited_behind_closed_doors(ground: Ground) {
    let Some(mut world) = start(ground, &[("KEEP_ALIVE_S", "600")]).await else { return };
    let first = run(&world, &world.run_body()).await;
    let (session, branch) = (first.text("session_id").to_owned(), first.text("branch").to_owned());
    assert!(first.has("sandbox.kept") && !first.has("agent.exited"), "{:?}", first.kinds());
    assert_eq!(first.kinds().last(), Some(&"run.finished"));
    let (waiting, sandboxes) = (agent(&world), world.sandboxes().unwrap());
    let stat = std::fs::read_to_string(format!("/proc/{waiting}/stat")).unwrap();
    assert!(stat.contains(") T "), "it is held: {stat}");

    let environment = std::fs::read(format!("/proc/{waiting}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let grant = environment.split('\0').find_map(|word| word.strip_prefix("ANTHROPIC_AUTH_TOKEN=")).unwrap();
    let calls = world.model_calls().len();
    for request in ways(grant) {
        let answer = knock(&world, &request);
        let refused = answer.starts_with("HTTP/1.1 403")
            && answer.contains("between runs the agent's grant opens nothing");
        assert!(refused, "{request}: {answer}");
    }
    assert_eq!(world.model_calls().len(), calls, "nothing passed");

    let second = follow(&world, &session).await;
    assert_eq!(agent(&world), waiting, "the same process");
    assert_eq!(world.sandboxes().unwrap(), sandboxes);
    assert!(second.has("sandbox.reused") && !second.has("sandbox.started"), "{:?}", second.kinds());
    assert!(second.has("agent.started") && second.has("workspace.prepared"), "{:?}", second.kinds());
    assert_eq!(prompt_of_last_call(&world), 2);
    assert!(second.said().contains("one.txt") && second.said().contains("two.txt"), "{}", second.said());
    assert_eq!(second.run["base_commit"], first.run["pushed_commit"]);
    let log = run_git(&world.bare, &["log", "--format=%s", &branch]).unwrap();
    assert_eq!(log.lines().take(2).collect::<Vec<_>>(), ["feat: add two", "feat: add one"]);
    // What it took is its own: two calls each, and the first run's have not grown.
    let again = world.api.get(&format!("/v1/runs/{}", first.text("id"))).await.unwrap().body;
    assert_eq!(again["usage"], first.run["usage"]);
    assert_eq!(second.run["usage"]["calls"], first.run["usage"]["calls"], "{:#}", second.run["usage"]);

    // Stopped, the server leaves nothing that waits; and what was archived is whole.
    world.server.terminate().await.unwrap();
    assert_eq!(world.sandboxes().unwrap(), Vec::<String>::new());
    for name in ["sessions", "volumes", "sandboxes", "doors", "trash", "local", "quarantine", "shim"] {
        let path = world.state_dir().join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
    world.server = world.spec.start().await.unwrap();
    let third = follow(&world, &session).await;
    assert!(third.has("sandbox.started") && !third.has("sandbox.reused"), "{:?}", third.kinds());
    assert_eq!(prompt_of_last_call(&world), 3, "it knows the first two");
    let brought = format!("brought from the archive, as run {} had left it", second.text("id"));
    assert!(third.events.iter().any(|event| event["data"]["message"].to_string().contains(&brought)));
    let output = world.client(&["session", "messages", &session]).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let order: Vec<_> =
        ["Added one.", "Added two.", "Added three."].iter().map(|text| told.find(text)).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{told}");
}

async fn a_sandbox_that_waits_ends_when_its_time_is_over(ground: Ground) {
    let Some(world) = start(ground, &[("KEEP_ALIVE_S", "10")]).await else { return };
    let first = run(&world, &world.run_body()).await;
    assert_eq!(world.sandboxes().unwrap().len(), 1, "it waits");
    world.wait_tidy().await.unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "by the machine's clock, as the server tells when the run ended"
    )]
    let gone_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let waited_ms = i64::try_from(gone_ms).unwrap() - first.run["finished_at_ms"].as_i64().unwrap();
    assert!(waited_ms >= 10_000, "{waited_ms} ms");
    let second = follow(&world, first.text("session_id")).await;
    assert!(second.has("sandbox.started") && !second.has("sandbox.reused"), "{:?}", second.kinds());
    assert_eq!(prompt_of_last_call(&world), 2);
}

async fn what_died_while_it_waited_is_made_anew_and_nothing_is_lost(ground: Ground) {
    let Some(world) = start(ground, &[("KEEP_ALIVE_S", "600")]).await else { return };
    let first = run(&world, &world.run_body()).await;
    let session = first.text("session_id");
    // The agent: the sandbox is as good as before.
    let waiting = agent(&world);
    kill_9(waiting).unwrap();
    wait_dead(waiting).await;
    let second = follow(&world, session).await;
    assert!(second.has("sandbox.reused"), "{:?}", second.kinds());
    assert_ne!(agent(&world), waiting);
    assert_eq!(prompt_of_last_call(&world), 2, "it knows the first");
    // The sandbox altogether.
    let sandbox = world.sandboxes().unwrap().remove(0);
    kill_9(living(&world, &sandbox)[0].0).unwrap();
    let third = follow(&world, session).await;
    assert!(third.has("sandbox.started"), "{:?}", third.kinds());
    assert_eq!(prompt_of_last_call(&world), 3, "it knows the first two");
    assert!(["one.txt", "two.txt", "three.txt"].iter().all(|name| third.said().contains(name)));
}

async fn a_run_that_differs_or_needs_the_place_ends_what_waits(ground: Ground) {
    let Some(world) = start(ground, &[("KEEP_ALIVE_S", "600"), ("SLOTS", "2")]).await else { return };
    let first = run(&world, &world.run_body()).await;
    let session = first.text("session_id").to_owned();
    let waiting = agent(&world);
    let body = json!({"session": session, "prompt": "Go on.", "max_turns": 77});
    let second = run(&world, &body).await;
    assert!(second.has("sandbox.started") && !second.has("sandbox.reused"), "{:?}", second.kinds());
    assert_eq!(prompt_of_last_call(&world), 2);
    assert_ne!(agent(&world), waiting);
    assert!(!lives(waiting));

    // Two slots: beside a run one sandbox may wait, and after it two.
    let other = run(&world, &json!({"workflow": "bug-fixer", "prompt": "Begin.", "repository": null})).await;
    assert_eq!(world.sandboxes().unwrap().len(), 2, "{}", world.server.log());
    run(&world, &json!({"workflow": "bug-fixer", "prompt": "Begin.", "repository": null})).await;
    wait_left(&world, 2).await;
    let other = follow(&world, other.text("session_id")).await;
    assert!(other.has("sandbox.reused"), "the oldest had to go: {:?}", other.kinds());
    let back = run(&world, &body).await;
    assert!(back.has("sandbox.started"), "{:?}", back.kinds());
}

async fn what_waits_ends_with_its_session_and_with_its_server(ground: Ground) {
    let Some(mut world) = start(ground, &[("KEEP_ALIVE_S", "600")]).await else { return };
    let empty = json!({"workflow": "bug-fixer", "prompt": "Begin.", "repository": null});
    let deleted = run(&world, &empty).await;
    assert_eq!(world.sandboxes().unwrap().len(), 1);
    let key = world.spec.create_key_with("admin").unwrap();
    let mut delete = world.client(&["session", "delete", deleted.text("session_id")]);
    let output = delete.env("CAISSON_API_KEY", key).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.wait_tidy().await.unwrap();

    let forked = run(&world, &world.run_body()).await;
    let output = world.client(&["session", "fork", forked.text("session_id")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.wait_tidy().await.unwrap();

    let left = run(&world, &empty).await;
    assert_eq!(world.sandboxes().unwrap().len(), 1);
    world.server.kill().unwrap();
    assert_eq!(world.sandboxes().unwrap().len(), 1, "nobody was there to end it");
    world.server = world.spec.start().await.unwrap();
    world.wait_tidy().await.unwrap();
    let on = follow(&world, left.text("session_id")).await;
    assert!(on.has("sandbox.started"), "{:?}", on.kinds());

    // The agent waits, until the server is drained.
    let key = world.spec.create_key_with("admin").unwrap();
    assert_eq!(world.sandboxes().unwrap().len(), 1);
    let mut drain = world.client(&["drain"]);
    let output = drain.env("CAISSON_API_KEY", key).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.wait_tidy().await.unwrap();
}

/// CPU time of a process, in milliseconds.
fn cpu_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    // proc(5): user and system time, in hundredths of a second.
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

/// The file that puts a process into the control group in which those of a sandbox are counted; none if they have no group of their own.
fn members(pid: u32) -> Option<PathBuf> {
    let group = |pid: &str| {
        let all = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let of =
            |kind: &str| all.lines().find_map(|line| line.split_once(kind).map(|(_, path)| path.to_owned()));
        of(":pids:")
            .map(|path| format!("/sys/fs/cgroup/pids{path}"))
            .or_else(|| of("0::").map(|path| format!("/sys/fs/cgroup{path}")))
    };
    let (own, theirs) = (group("self")?, group(&pid.to_string())?);
    (own != theirs).then(|| PathBuf::from(theirs).join("cgroup.procs"))
}

async fn what_waits_is_left_alone_while_nothing_works_in_it_and_ended_when_something_lives_there(
    ground: Ground,
) {
    let Some(world) = start(ground, &[("KEEP_ALIVE_S", "600")]).await else { return };
    let first = run(&world, &world.run_body()).await;
    let waiting = agent(&world);
    let sandbox = world.sandboxes().unwrap().remove(0);
    let all: Vec<u32> = living(&world, &sandbox).into_iter().map(|(pid, _)| pid).collect();
    let used = || all.iter().map(|pid| cpu_ms(*pid)).sum::<u64>();
    let before = used();
    // As long as four looks take.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(agent(&world), waiting, "{}", world.server.log());
    let took = used() - before;
    assert!(took <= 50, "far from the bound of 250 ms: {took} ms");

    let Some(members) = members(waiting) else {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: sandboxes have no control group here, so that nothing can be put into one");
        }
        return;
    };
    #[expect(clippy::disallowed_methods, reason = "a process to be seen")]
    let mut intruder = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(&members, intruder.id().to_string()).unwrap();
    let begun = Instant::now();
    while !world.server.log().contains("something lives in it that did not before") {
        assert!(begun.elapsed() < SOON, "{}", world.server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    intruder.kill().unwrap();
    intruder.wait().unwrap();
    world.wait_tidy().await.unwrap();
    let second = follow(&world, first.text("session_id")).await;
    assert!(second.has("sandbox.started") && !second.has("sandbox.reused"), "{:?}", second.kinds());
}
