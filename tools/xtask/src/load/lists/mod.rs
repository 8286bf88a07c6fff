//! Lists over many runs, and pages of many events. The database is filled past the server, with copies of a run that really
//! ran.

mod fill;
mod pages;
mod plans;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use caisson_store::hot::{Example, Plan};
use serde_json::Value;
use testkit::engine::Engine;

use super::databases::{self, Database};
use super::http::Caller;
use crate::bench::scenarios;
use crate::bench::service::{Service, ServiceSpec, scenario_body};
use crate::bench::stage::Stage;
use crate::measuring::clock::wall_us;
use crate::measuring::stats::Summary;
use crate::measuring::{say, tail};
use fill::Copies;

pub(super) use pages::{PAGE, Pages};

/// Time limit of the run that is copied.
const RUN: Duration = Duration::from_mins(1);
/// How long an agent takes to start, and longer.
const AGENT_START: Duration = Duration::from_secs(3);
/// Requests of a kind that come first and do not count.
const WARM_UP: usize = 3;
/// How long one kind is asked for: far longer than its bar would have it.
const KIND: Duration = Duration::from_secs(10);
/// Runs whose status is asked for by turns.
const STATUS_OF: usize = 200;
/// The repository of few copies.
const SELDOM: &str = "https://git.example.com/team/seldom.git";
/// Calls of so many milliseconds are asked for in reports; each copy has one, a second apart.
const CALLS_MS: i64 = 100_000;

/// How much is measured.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    runs: u32,
    /// Events of all copies, and of each but the newest, which has the rest.
    events: u32,
    events_each: u32,
    requests: usize,
    /// Runs that wait while the status of one is asked for.
    waiting: usize,
}

impl Sizes {
    pub(super) fn whole() -> Self {
        Self { runs: 100_000, events: 5_000_000, events_each: 40, requests: 200, waiting: 100 }
    }

    pub(super) fn short() -> Self {
        Self { runs: 2_000, events: 30_000, events_each: 10, requests: 10, waiting: 3 }
    }

    /// Events of the newest copy.
    fn long(&self) -> u32 {
        self.events - (self.runs - 1) * self.events_each
    }
}

/// One kind of request.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    /// What is asked for.
    pub(super) name: &'static str,
    /// How long each answer took, in milliseconds.
    pub(super) took_ms: Summary,
}

/// What was measured.
#[derive(Debug, Clone)]
pub(super) struct Lists {
    /// Where the runs are.
    pub(super) database: databases::Kind,
    /// Runs in the database.
    pub(super) runs: u32,
    /// Lists, filters and pages.
    pub(super) kinds: Vec<Kind>,
    /// The status of one run that has ended.
    pub(super) status_ms: Summary,
    /// The status of one that waits, with its place in the queue.
    pub(super) waiting_ms: Summary,
    /// Pages of events.
    pub(super) pages: Pages,
    /// How the database reads for all of that, and for more, while runs wait.
    pub(super) plans: Vec<Plan>,
}

pub(super) async fn measure(stage: &Stage, database: &Database, sizes: &Sizes) -> anyhow::Result<Lists> {
    say(&format!("{} runs and {} events in {}", sizes.runs, sizes.events, database.kind.name()));
    let spec = ServiceSpec {
        engine: Engine::Local,
        state_dir: stage.root().join(database.kind.of("state-lists", "lists-pg")),
        settings: [vec![("API__RATE_PER_MINUTE", "0".to_owned())], database.settings()].concat(),
        ..stage.service.clone()
    };
    let mut service = Service::start(&stage.parts, &spec).await?;
    let measured = on_server(&mut service, &spec.state_dir, database, sizes).await;
    let log = service.process.log();
    let closed = service.close().await;
    let measured = measured.with_context(|| format!("the server's log ends with:\n{}", tail(&log)))?;
    closed.map(|()| measured)
}

async fn on_server(
    service: &mut Service,
    state_dir: &Path,
    database: &Database,
    sizes: &Sizes,
) -> anyhow::Result<Lists> {
    let run = service.api.submit(&scenario_body(scenarios::TURN, "Say that you are there.")).await?;
    let ended = service.api.wait_end(&run, RUN).await?;
    ensure!(ended["status"] == "succeeded", "the run that is copied did not succeed: {ended:#}");
    service.wait_tidy().await?;
    service.process.terminate().await?;
    let created_ms = ended["created_at_ms"].as_i64().context("a run without a time")?;
    let (count, events, long) = (sizes.runs, sizes.events_each, sizes.long());
    let copies = Copies { run, created_ms, count, events, long };
    let began = Instant::now();
    match database.postgres() {
        None => fill::sqlite(state_dir, &copies).await?,
        Some(postgres) => fill::postgres(postgres, &copies).await?,
    }
    say(&format!("filled in {:.0} s", began.elapsed().as_secs_f64()));
    service.process = service.spec.start().await?;

    say("lists, filters and pages");
    let mut caller = Caller::tcp(&service.process.base, &service.key).await?;
    let Walked { oldest, middle, ids } = walk(&mut caller, sizes).await?;
    let mut kinds = Vec::new();
    for (name, path, items) in paths(&oldest, &middle) {
        let took_ms = repeat(&mut caller, sizes.requests, |_| path.clone(), items).await?;
        kinds.push(Kind { name, took_ms });
    }
    let status = |number: usize| format!("/v1/runs/{}", ids[number % STATUS_OF]);
    let status_ms = repeat(&mut caller, sizes.requests * 5, status, None).await?;
    say("pages of events");
    let pages = pages::measure(&mut caller, database.kind, &ids, sizes).await?;
    say("the status of runs that wait, and plans");
    let runs = hold(service, sizes).await?;
    let status = |number: usize| format!("/v1/runs/{}", runs[1 + number % sizes.waiting]);
    let waiting_ms = repeat(&mut caller, sizes.requests * 5, status, None).await?;
    let example = example(&copies, &runs[sizes.waiting], state_dir)?;
    let plans = plans::explain(database, state_dir, &example).await?;
    cancel(service, &runs).await?;
    Ok(Lists { database: database.kind, runs: sizes.runs, kinds, status_ms, waiting_ms, pages, plans })
}

/// What the database is asked with when it tells how it reads: the newest copy, which has the most events.
fn example(copies: &Copies, waiting: &str, state_dir: &Path) -> anyhow::Result<Example> {
    let run = copies.id(0);
    let calls_ms = copies.at_ms(copies.count / 2);
    let server = std::fs::read_to_string(state_dir.join("server_id")).context("the server has no id")?;
    Ok(Example {
        session: run.replace("run_", "ses_"),
        run,
        after: i64::from(copies.long / 2),
        waiting: waiting.to_owned(),
        workflow: "other".to_owned(),
        repository: SELDOM.to_owned(),
        secret: format!("{:064x}", 7),
        server: server.trim().to_owned(),
        now_ms: wall_us() / 1000,
        calls_ms: [calls_ms, calls_ms + CALLS_MS],
    })
}

/// Has runs wait behind one that holds the only slot, which is the first of those that are told.
async fn hold(service: &Service, sizes: &Sizes) -> anyhow::Result<Vec<String>> {
    let mut runs = vec![service.api.submit(&scenario_body(scenarios::HOLD, "Wait.")).await?];
    let busy = |run: &Value| run["phase"] == "agent";
    service.api.wait_run(&runs[0], RUN, busy).await.context("the slot was not taken")?;
    for _ in 0..sizes.waiting {
        runs.push(service.api.submit(&scenario_body(scenarios::TURN, "Say that you are there.")).await?);
    }
    let last = service.api.get(&format!("/v1/runs/{}", runs[sizes.waiting])).await?.body;
    ensure!(last["queue_position"] == sizes.waiting, "the last run is not the last to start: {last:#}");
    // The agent that holds the slot is still starting, and so takes what CPU there is.
    tokio::time::sleep(AGENT_START).await;
    Ok(runs)
}

/// Cancels them, the last one first.
async fn cancel(service: &Service, runs: &[String]) -> anyhow::Result<()> {
    for run in runs.iter().rev() {
        let answer = service.api.post(&format!("/v1/runs/{run}/cancel"), &Value::Null).await?;
        ensure!(answer.status == 202, "run {run} was not cancelled: {} {}", answer.status, answer.body);
    }
    service.api.wait_end(&runs[0], RUN).await?;
    service.wait_tidy().await
}

/// Each kind of list: its name, its path, and whether it has something to show.
fn paths(oldest: &Value, cursor: &str) -> Vec<(&'static str, String, Option<bool>)> {
    let session = oldest["session_id"].as_str().unwrap_or_default();
    let repository = SELDOM.replace(':', "%3A").replace('/', "%2F");
    vec![
        ("the newest 50", "/v1/runs".to_owned(), Some(true)),
        ("the newest 200", "/v1/runs?limit=200".to_owned(), Some(true)),
        ("a page from the middle", format!("/v1/runs?cursor={cursor}"), Some(true)),
        ("failed, 2 % of them", "/v1/runs?status=failed".to_owned(), Some(true)),
        ("cancelled, 1 ‰ of them", "/v1/runs?status=cancelled".to_owned(), Some(true)),
        ("running, of which there is none", "/v1/runs?status=running".to_owned(), Some(false)),
        ("of a workflow, 10 % of them", "/v1/runs?workflow=other".to_owned(), Some(true)),
        ("of a workflow that has none", "/v1/runs?workflow=nothing".to_owned(), Some(false)),
        ("of a repository, 1 % of them", format!("/v1/runs?repository={repository}"), Some(true)),
        ("failed ones of that repository", format!("/v1/runs?status=failed&repository={repository}"), None),
        (
            "cancelled ones of a workflow",
            "/v1/runs?status=cancelled&workflow=bug-fixer".to_owned(),
            Some(true),
        ),
        ("of one session", format!("/v1/runs?session={session}"), Some(true)),
        ("the newest 50 sessions", "/v1/sessions".to_owned(), Some(true)),
    ]
}

/// Asks again and again, one request after another; the first few do not count.
async fn repeat(
    caller: &mut Caller,
    requests: usize,
    path: impl Fn(usize) -> String,
    shows: Option<bool>,
) -> anyhow::Result<Summary> {
    let (mut took_ms, began) = (Vec::new(), Instant::now());
    for number in 0..WARM_UP + requests {
        if began.elapsed() > KIND && !took_ms.is_empty() {
            break;
        }
        let path = path(number);
        let reply = caller.get(&path).await?;
        ensure!(reply.status == 200, "{path} was answered with {}", reply.status);
        if number == 0
            && let Some(shows) = shows
        {
            let items = reply.json(200)?["items"].as_array().map_or(0, Vec::len);
            ensure!((items > 0) == shows, "{path} shows {items} runs");
        }
        if number >= WARM_UP {
            took_ms.push(reply.took_ms());
        }
    }
    Summary::of(&took_ms).context("nothing was asked")
}

/// What going through all runs shows.
struct Walked {
    /// The oldest run.
    oldest: Value,
    /// A cursor to the middle.
    middle: String,
    /// The ids of all, newest first.
    ids: Vec<String>,
}

/// Goes through all runs page by page, and counts them.
async fn walk(caller: &mut Caller, sizes: &Sizes) -> anyhow::Result<Walked> {
    let began = Instant::now();
    let (mut ids, mut pages, mut oldest) = (Vec::new(), 0_u32, Value::Null);
    let (mut cursor, mut middle) = (None::<String>, None);
    let runs = sizes.runs as usize + 1;
    // One more page than there can be.
    for _ in 0..sizes.runs / 200 + 2 {
        let path = cursor.map_or_else(
            || "/v1/runs?limit=200".to_owned(),
            |cursor| format!("/v1/runs?limit=200&cursor={cursor}"),
        );
        let mut page = caller_page(caller, &path).await?;
        let items = page["items"].as_array_mut().context("a page without items")?;
        ids.extend(items.iter().filter_map(|run| run["id"].as_str().map(str::to_owned)));
        pages += 1;
        oldest = items.pop().unwrap_or(oldest);
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if ids.len() * 2 >= runs {
            middle = middle.or_else(|| cursor.clone());
        }
        if cursor.is_none() {
            break;
        }
    }
    ensure!(ids.len() == runs, "the pages show {} runs instead of {runs}", ids.len());
    say(&format!("{pages} pages of 200 in {:.1} s", began.elapsed().as_secs_f64()));
    Ok(Walked { oldest, middle: middle.context("there is no middle")?, ids })
}

async fn caller_page(caller: &mut Caller, path: &str) -> anyhow::Result<Value> {
    caller.get(path).await?.json(200)
}
