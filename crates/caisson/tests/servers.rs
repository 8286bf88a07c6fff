//! Several servers on one database, as processes of their own: one dies, one is cut off, one stays away.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use caisson_domain::sse::Parser;
use serde_json::{Value, json};
use testkit::api::Api;
use testkit::engine::Engine;
use testkit::partition::Way;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::{ServerProcess, ServerSpec};
use testkit::world::{World, WorldSpec};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const END: Duration = Duration::from_mins(5);
/// How long a server is cut off from the database: a lease is over by then.
const CUT_OFF: Duration = Duration::from_secs(35);
/// Runs of all servers together.
const RUNS: usize = 12;
/// Those that the first two have slots for.
const AT_ONCE: usize = 8;
/// The shortest silence after which a server counts as lost, in seconds.
const LOST_AFTER_S: u64 = 40;

/// A world whose server goes its own way to the database, and a second server that goes another one.
struct Pair {
    // The second server goes before the database does.
    other: Option<ServerProcess>,
    other_spec: ServerSpec,
    other_api: Api,
    /// One that lives all the time, where a test has one.
    third: Option<(ServerProcess, ServerSpec)>,
    world: World,
    ways: [Way; 2],
    postgres: Postgres,
}

impl Pair {
    async fn start(wanted: WorldSpec) -> Option<Self> {
        let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
        let postgres = Postgres::make().await.unwrap()?;
        let ways = [postgres.way().await.unwrap(), postgres.way().await.unwrap()];
        let mut spec = wanted;
        spec.variables.push(("DATABASE__URL".to_owned(), postgres.url_by(&ways[0])));
        let world = World::start(&parts, spec).await.unwrap();
        let other_spec = world.beside("other", &postgres.url_by(&ways[1])).unwrap();
        let other = other_spec.start().await.unwrap();
        let other_api = Api::new(&other.base, &world.key).unwrap();
        Some(Self { other: Some(other), other_spec, other_api, third: None, world, ways, postgres })
    }

    /// A third server, that takes a run of its own, sees it through, and is given further ones. Returns all of them.
    async fn third_goes_on(&mut self, at_most: Duration, further: usize) -> Vec<String> {
        let mut spec = self.world.beside("third", &self.postgres.url()).unwrap();
        spec.set("SLOTS", "1");
        let server = spec.start().await.unwrap();
        let api = Api::new(&server.base, &self.world.key).unwrap();
        let home = std::fs::read_to_string(spec.state_dir.join("server_id")).unwrap();
        let mut body = self.world.run_body();
        body["prompt"] = json!("[[scn:cart]] The test suite fails. Fix the bug.");
        let id = api.submit(&body).await.unwrap();
        let ended = api.wait_end(&id, END).await;
        let log = server.log();
        self.third = Some((server, spec));
        let run = ended.unwrap_or_else(|error| panic!("{error:#}\n{log}"));
        assert_eq!(run["status"], "succeeded", "{run:#}\n{log}");
        let took_ms = run["finished_at_ms"].as_u64().unwrap() - run["created_at_ms"].as_u64().unwrap();
        assert!(Duration::from_millis(took_ms) < at_most, "it is held up by others: {took_ms} ms\n{log}");
        assert_eq!(self.one(&format!("select home_server_id from run where id = '{id}'")), home.trim());
        let mut ids = vec![id];
        for _ in 0..further {
            ids.push(api.submit(&self.world.run_body()).await.unwrap());
        }
        ids
    }

    fn third_api(&self) -> Api {
        let (server, _) = self.third.as_ref().unwrap();
        Api::new(&server.base, &self.world.key).unwrap()
    }

    fn one(&self, sql: &str) -> String {
        self.postgres.value(sql).unwrap()
    }

    fn logs(&self) -> String {
        let other = self.other.as_ref().map(ServerProcess::log).unwrap_or_default();
        format!("{}\n--- other\n{other}", self.world.server.log())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.other.take();
        if let Some((server, spec)) = self.third.take() {
            drop(server);
            self.world.engine.remove_all(&spec.parts, &spec.state_dir).ok();
        }
        self.world.engine.remove_all(&self.other_spec.parts, &self.other_spec.state_dir).ok();
    }
}

fn slow(engine: Engine) -> WorldSpec {
    let mut spec = WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 1.0, ..WorldSpec::on(engine) };
    spec.variables.push(("SLOTS".to_owned(), "4".to_owned()));
    spec
}

/// A client that follows a run by server-sent events, over whichever server answers.
struct Follower {
    /// The servers that it knows, by their places.
    apis: watch::Sender<Vec<Api>>,
    /// The one that answers now.
    told_by: watch::Receiver<usize>,
    task: JoinHandle<Vec<(usize, i64)>>,
}

impl Follower {
    #[expect(clippy::disallowed_methods, reason = "its end is waited for")]
    fn start(apis: Vec<Api>, id: String) -> Self {
        let (apis, known) = watch::channel(apis);
        let (tells, told_by) = watch::channel(0);
        Self { apis, told_by, task: tokio::spawn(followed(known, tells, id)) }
    }
}

/// The numbers of the events that came, each with the server that told it.
async fn followed(
    apis: watch::Receiver<Vec<Api>>,
    tells: watch::Sender<usize>,
    id: String,
) -> Vec<(usize, i64)> {
    let mut seen: Vec<(usize, i64)> = Vec::new();
    let begun = Instant::now();
    for turn in 0.. {
        assert!(begun.elapsed() < END, "{seen:?}");
        let (at, api) = {
            let known = apis.borrow();
            (turn % known.len(), known[turn % known.len()].clone())
        };
        let after = seen.last().map_or(0, |(_, number)| *number);
        let Ok(mut stream) = api.open_events_after(&id, after).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tells.send_replace(at);
        let mut parser = Parser::default();
        while let Ok(Ok(Some(piece))) = tokio::time::timeout(Duration::from_secs(20), stream.chunk()).await {
            for message in parser.push(&piece).unwrap() {
                seen.extend(message.id.map(|number| (at, number.parse::<i64>().unwrap())));
                if message.event.as_deref() == Some("run.finished") {
                    return seen;
                }
            }
        }
    }
    seen
}

/// What a server tells of a run, from its first event to the one with this number.
async fn told_up_to(api: &Api, id: &str, last: i64) -> Vec<i64> {
    let mut stream = api.open_events_after(id, 0).await.unwrap();
    let (mut parser, mut numbers) = (Parser::default(), Vec::new());
    while numbers.last().is_none_or(|number| *number < last) {
        let piece = tokio::time::timeout(Duration::from_secs(20), stream.chunk()).await;
        let messages = parser.push(&piece.expect("it tells").unwrap().unwrap()).unwrap();
        numbers.extend(messages.into_iter().filter_map(|message| message.id?.parse::<i64>().ok()));
    }
    numbers
}

async fn assert_done_once(pair: &Pair, id: &str) {
    let run = pair.world.api.wait_end(id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", pair.logs());
    let events = pair.world.api.events(id).await.unwrap();
    let numbers: Vec<_> = events.iter().filter_map(|event| event["seq"].as_i64()).collect();
    assert_eq!(numbers, (1..=i64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
    for kind in ["agent.started", "git.push", "run.finished"] {
        let told = events.iter().filter(|event| event["kind"] == kind).count();
        assert_eq!(told, 1, "{kind} in {events:#?}");
    }
    assert_eq!(events, pair.other_api.events(id).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_dies_and_one_is_cut_off_and_no_run_is_lost_or_done_twice() {
    let Some(mut pair) = Pair::start(slow(Engine::Local)).await else { return };
    let mut ids = Vec::new();
    for turn in 0..AT_ONCE {
        let api = [&pair.world.api, &pair.other_api][turn % 2];
        ids.push(api.submit(&pair.world.run_body()).await.unwrap());
    }
    let mut follower =
        Follower::start(vec![pair.world.api.clone(), pair.other_api.clone()], ids[AT_ONCE - 1].clone());
    let at_work = "select count(distinct home_server_id) filter (where status = 'running' and agent_started = 1) || ' ' || \
         count(*) filter (where status = 'queued' or status = 'running' and agent_started = 0) from run";
    // An agent whose very first call comes while its server is away may give up: docs/operations.md.
    wait(|| pair.one(at_work) == "2 0", Duration::from_mins(2), "both are at work, and all agents are").await;
    let unowned = pair.one("select string_agg(distinct quote_literal(home_server_id), ',') from run");

    pair.world.server.kill().unwrap();
    pair.ways[1].set_open(false);
    let cut_off = Instant::now();
    ids.extend(pair.third_goes_on(CUT_OFF, RUNS - AT_ONCE - 1).await);
    // Whoever comes to the survivor meanwhile has everything that was told before, and what comes after it.
    let survivor = pair.third_api();
    for id in &ids[..AT_ONCE] {
        let last = format!("select max(seq) from event where run_id = '{id}'");
        let last: i64 = pair.one(&last).parse().unwrap();
        assert_eq!(told_up_to(&survivor, id, last).await, (1..=last).collect::<Vec<_>>(), "{id}");
    }
    follower.apis.send_modify(|apis| apis.push(survivor));
    let found = tokio::time::timeout(END, follower.told_by.wait_for(|at| *at == 2)).await;
    assert!(found.is_ok_and(|found| found.is_ok()), "a client finds the survivor");
    tokio::time::sleep(CUT_OFF.saturating_sub(cut_off.elapsed())).await;
    // Everything of the two is unowned now and nothing is written off.
    assert_eq!(pair.one("select count(*) from run where status = 'failed'"), "0");
    let over = format!(
        "select count(*) from run where status = 'running' and home_server_id in ({unowned}) and lease_expires_at_ms > \
         extract(epoch from clock_timestamp()) * 1000"
    );
    assert_eq!(pair.one(&over), "0", "{}", pair.logs());
    let epochs = "select sum(lease_epoch) - sum(attempt) from run where status = 'running'";
    let before: i64 = pair.one(epochs).parse().unwrap();
    pair.ways[1].set_open(true);
    pair.world.server = pair.world.spec.start().await.unwrap();

    for id in &ids {
        assert_done_once(&pair, id).await;
    }
    let after: i64 = pair.one("select sum(lease_epoch) - sum(attempt) from run").parse().unwrap();
    assert!(after > before, "runs were taken up again with new epochs: {before}, {after}");
    assert!(pair.other.as_ref().unwrap().log().contains("up again"), "{}", pair.logs());
    assert_eq!(
        pair.one("select count(distinct branch) || ' ' || count(*) from run"),
        format!("{RUNS} {RUNS}")
    );
    assert_eq!(
        pair.one("select count(*) from attempt where agent_started_at_ms is not null"),
        RUNS.to_string()
    );
    // A call that was under way when its server died counts as estimated, and is made again.
    let counted: usize = pair.one("select sum(calls) from run").parse().unwrap();
    assert!(counted >= pair.world.model_calls().len(), "{counted}");
    let seen = tokio::time::timeout(END, follower.task).await.unwrap().unwrap();
    let numbers: Vec<_> = seen.iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, (1..=i64::try_from(seen.len()).unwrap()).collect::<Vec<_>>());
    assert_eq!(seen.last().unwrap().0, 2, "the survivor told how it ended: {seen:?}");
    let verified = pair.world.spec.command(&["audit", "verify"]).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_away_loses_its_runs_once_and_clears_up_when_it_comes_back() {
    let mut spec = WorldSpec::on(Engine::Local);
    spec.variables.push(("SLOTS".to_owned(), "1".to_owned()));
    spec.variables.push(("SERVER_LOST_AFTER_S".to_owned(), LOST_AFTER_S.to_string()));
    let Some(mut pair) = Pair::start(spec).await else { return };
    // The second server is away, so that the run is the first one's.
    pair.other.take();
    let (id, sandbox) = pair.world.half_done(&pair.world.run_body(), END).await.unwrap();
    pair.other = Some(pair.other_spec.start().await.unwrap());
    assert_eq!(states(&pair), ["live", "live"]);
    pair.world.server.kill().unwrap();
    let killed = Instant::now();
    let run = pair.other_api.wait_end(&id, END).await.unwrap();
    assert!(
        killed.elapsed() > Duration::from_secs(LOST_AFTER_S - 10),
        "before its time: {:?}",
        killed.elapsed()
    );
    assert_eq!(
        (&run["status"], &run["failure"]["kind"]),
        (&json!("failed"), &json!("sandbox_lost")),
        "{run:#}"
    );
    assert_eq!(states(&pair), ["lost", "live"]);
    assert_eq!(pair.world.sandboxes().unwrap(), [sandbox], "nobody else can take it away");

    pair.world.server = pair.world.spec.start().await.unwrap();
    pair.world.wait_tidy().await.unwrap();
    let events = pair.world.api.events(&id).await.unwrap();
    let kinds: Vec<_> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
    assert!(kinds.ends_with(&["note", "run.finished"]), "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "run.finished").count(), 1);
    assert_eq!(pair.one("select count(*) from audit where action = 'run.write_off'"), "1");
    let session = run["session_id"].as_str().unwrap();
    let workspace = pair.world.state_dir().join("sessions").join(session);
    assert!(workspace.exists(), "the session's workspace is kept: {}", workspace.display());
    assert_eq!(states(&pair), ["live", "live"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_while_a_later_version_migrated_ends_and_the_run_is_left_as_it_is() {
    let mut spec = WorldSpec::on(Engine::Local);
    spec.variables.push(("SLOTS".to_owned(), "1".to_owned()));
    let Some(mut pair) = Pair::start(spec).await else { return };
    pair.other.take();
    let (id, sandbox) = pair.world.half_done(&pair.world.run_body(), END).await.unwrap();
    pair.ways[0].set_open(false);
    pair.one(
        "insert into _sqlx_migrations (version, description, installed_on, success, checksum, execution_time) \
         select 9999, description, installed_on, success, checksum, execution_time from _sqlx_migrations where version = 9 returning 1",
    );
    pair.ways[0].set_open(true);
    let ended = pair.world.server.ended(Duration::from_mins(2)).await.unwrap();
    let log = pair.world.server.log();
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains("a later version of Caisson migrated the database"), "{log}");
    assert_eq!(pair.one(&format!("select status from run where id = '{id}'")), "running", "{log}");
    let mut again = pair.world.spec.spawn().unwrap();
    assert_eq!(again.ended(Duration::from_mins(1)).await.unwrap().code(), Some(1), "{}", again.log());
    // The later version is this one once more.
    pair.one("delete from _sqlx_migrations where version = 9999 returning 1");
    assert_eq!(pair.world.sandboxes().unwrap(), [sandbox], "it lives on");
    pair.world.server = pair.world.spec.start().await.unwrap();
    let cancel = pair.world.api.post(&format!("/v1/runs/{id}/cancel"), &Value::Null).await.unwrap();
    assert_eq!(cancel.status, 202, "{}", cancel.body);
    assert_eq!(pair.world.api.wait_end(&id, END).await.unwrap()["status"], "cancelled", "{}", pair.logs());
    let starts = "select count(*) from event where kind = 'agent.started'";
    assert_eq!(pair.one(starts), "1", "it was taken over, and not begun anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_shared_directory_an_artifact_is_had_from_the_server_that_the_run_was_on_alone() {
    let Some(pair) = Pair::start(WorldSpec::on(Engine::Local)).await else { return };
    let id = pair.world.api.submit(&pair.world.run_body()).await.unwrap();
    let run = pair.other_api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", pair.logs());
    let of = async |api: &Api, path: &str| api.get(&format!("/v1/runs/{id}/{path}")).await.unwrap();
    for path in ["diff", "artifacts/diff.patch"] {
        let mut answers = [of(&pair.world.api, path).await, of(&pair.other_api, path).await];
        answers.sort_by_key(|answer| answer.status);
        let [kept, elsewhere] = answers;
        assert_eq!((kept.status, elsewhere.status), (200, 409), "{path}: {}", elsewhere.body);
        assert_eq!(elsewhere.body["code"], "artifact_elsewhere");
        let detail = elsewhere.body["detail"].as_str().unwrap();
        let home = pair.one(&format!("select home_server_id from run where id = '{id}'"));
        assert!(detail.contains(&home) && detail.contains("artifacts_dir"), "{detail}");
    }
    assert_eq!(of(&pair.world.api, "artifacts/other").await.body["code"], "unknown_artifact");
    // A file that is lost is no other server's, and whoever looks is told.
    let (mut lost, specs) = (0, [&pair.world.spec, &pair.other_spec]);
    let checked = |spec: &ServerSpec| {
        let output = spec.command(&["db", "check"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (spec, api) in specs.into_iter().zip([&pair.world.api, &pair.other_api]) {
        assert!(checked(spec).contains("ok    files"), "{}", checked(spec));
        let directory = spec.state_dir.join("artifacts").join(&id);
        if !directory.exists() {
            continue;
        }
        lost += 1;
        std::fs::remove_dir_all(&directory).unwrap();
        let answer = of(api, "diff").await;
        assert_eq!((answer.status, &answer.body["code"]), (500, &json!("internal")), "{}", answer.body);
        assert!(checked(spec).contains("FAIL  files: diff.patch"), "{}", checked(spec));
    }
    assert_eq!(lost, 1, "one of them had the file");
    for spec in specs {
        let told = checked(spec);
        assert_eq!(told.contains("FAIL  files"), !told.contains("ok    files: 0 kept"), "{told}");
    }
}

/// The states of the servers, oldest first, as the command shows them.
fn states(pair: &Pair) -> Vec<String> {
    let key = pair.world.spec.create_key_with("admin").unwrap();
    let base = pair.other.as_ref().unwrap().base.clone();
    let mut command = pair.world.spec.command(&["servers", "--json"]);
    let output = command.env("CAISSON_URL", base).env("CAISSON_API_KEY", key).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let servers = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    servers.map(|server| server["state"].as_str().unwrap().to_owned()).collect()
}

async fn wait(mut come: impl FnMut() -> bool, at_most: Duration, what: &str) {
    let begun = Instant::now();
    while !come() {
        assert!(begun.elapsed() < at_most, "{what}: not in {at_most:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

testkit::on_every_engine! {
    parts_of_a_server_are_processes_and_another_server_shows_live_text_and_cancels
}

async fn parts_of_a_server_are_processes_and_another_server_shows_live_text_and_cancels(engine: Engine) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(postgres) = Postgres::make().await.unwrap() else { return };
    let mut spec = WorldSpec { scenario: "endless".to_owned(), delay_scale: 1.0, ..WorldSpec::on(engine) };
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url()));
    let mut world = World::start(&parts, spec).await.unwrap();
    // The world's server becomes two processes, and a third one elsewhere answers the API alone.
    world.server.terminate().await.unwrap();
    let mut api_only = world.beside("elsewhere", &postgres.url()).unwrap();
    api_only.only = vec!["api"];
    // A machine that answers the API alone has no shim.
    api_only.set("SHIM", "/nonexistent/caisson-shim");
    let part = |only: &'static str| {
        let mut spec = world.beside("state", &postgres.url()).unwrap();
        spec.only = vec![only];
        spec
    };
    let worker = part("worker").spawn().unwrap();
    let front = api_only.spawn().unwrap();
    let api = Api::new(&front.base, &world.key).unwrap();
    let refused = async || api.get("/readyz").await.map(|answer| answer.body.to_string()).unwrap_or_default();
    let begun = Instant::now();
    while !refused().await.contains("gateway_away") {
        assert!(begun.elapsed() < END, "{}\n{}", refused().await, worker.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let gateway = part("gateway").start().await.unwrap();
    worker.wait_ready().await.unwrap();
    assert_eq!(Api::new(&gateway.base, &world.key).unwrap().get("/v1/runs").await.unwrap().status, 404);
    let twice = part("worker").command(&["serve", "--only", "worker"]).output().unwrap();
    assert!(String::from_utf8_lossy(&twice.stderr).contains("is the worker of"), "{twice:?}");

    let id = api.submit(&world.run_body()).await.unwrap();
    let mut stream = api.open_events(&id).await.unwrap();
    let (mut parser, mut text) = (Parser::default(), String::new());
    let begun = Instant::now();
    while text.is_empty() {
        assert!(begun.elapsed() < END, "no live text\n{}\n{}", worker.log(), gateway.log());
        let piece = tokio::time::timeout(END, stream.chunk()).await.unwrap().unwrap().unwrap();
        let messages = parser.push(&piece).unwrap();
        let deltas = messages.into_iter().filter(|message| message.event.as_deref() == Some("delta"));
        text.extend(deltas.map(|message| message.data));
    }
    assert!(text.contains("word"), "{text}");
    assert_eq!(api.post(&format!("/v1/runs/{id}/cancel"), &Value::Null).await.unwrap().status, 202);
    let run = api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "cancelled", "{run:#}");
    let homes = postgres.value("select distinct server_id || ' ' || role from server_role").unwrap();
    let roles: BTreeSet<_> = homes.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(roles, BTreeSet::from(["api", "gateway", "worker"]), "{homes}");
    drop((worker, gateway, front));
}
