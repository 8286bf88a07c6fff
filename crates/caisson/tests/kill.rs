//! `kill -9` of the server at the worst moments: the same run goes on and ends as if nothing had happened.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use scripted_model::Record;
use serde_json::Value;
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::run_git;
use testkit::world::{World, WorldSpec};

/// How long the server stays away.
const AWAY: Duration = Duration::from_secs(20);
/// How long a moment or an end may be waited for.
const WAIT: Duration = Duration::from_mins(2);
/// The step of the scenario, from 0, that waits six seconds for its first byte.
const LATE_STEP: usize = 2;
/// The step, from 0, that takes a tenth of a second for each word.
const SLOW_STEP: usize = 4;
/// A reply of which so many bytes were served has begun to tell its text.
const BEGUN_BYTES: u64 = 600;

testkit::on_every_engine_and_database! {
    a_server_killed_at_the_worst_moments_finishes_the_run_as_if_undisturbed
}

testkit::on_docker_with_sqlite! {
    a_server_killed_at_the_worst_moments_finishes_the_run_as_if_undisturbed
}

/// How the entry of a piece of the model's reply begins.
const ASSISTANT: &str = "agent.line \"assistant\"";

/// When the server is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Never,
    InsideATool,
    BeforeTheFirstByte,
    InMidStream,
    /// Told to stop by SIGTERM instead, as at every upgrade.
    Politely,
}

impl Moment {
    /// Waits for the moment, as the processes or the scripted model witness it.
    async fn wait(self, world: &World, id: &str) -> anyhow::Result<()> {
        if self == Self::InsideATool {
            world.inside_a_tool(id, WAIT).await?;
            return world.counted(id, 0, WAIT).await;
        }
        let come = |calls: &[Record]| calls.iter().any(|call| self.is_now(call));
        if tokio::time::timeout(WAIT, world.model.wait_for(come)).await.is_ok() {
            return Ok(());
        }
        let run = world.api.get(&format!("/v1/runs/{id}")).await?.body;
        anyhow::bail!("the moment {self:?} did not come: {run:#}\n{:#?}", world.model_calls())
    }

    /// Whether a call is at this moment: the scenario lets one step wait long for its first byte, and tells another slowly.
    fn is_now(self, call: &Record) -> bool {
        let at = |step| {
            call.ended_at_ms.is_none()
                && call.script.as_ref().is_some_and(|at| (at.prompt, at.step) == (1, step))
        };
        match self {
            Self::BeforeTheFirstByte | Self::Politely => at(LATE_STEP) && call.bytes_served == 0,
            Self::InMidStream => at(SLOW_STEP) && call.bytes_served > BEGUN_BYTES,
            Self::Never | Self::InsideATool => false,
        }
    }
}

/// What a run's story comes to: its events without ids, times and numbers, and without what an API retry repeats.
///
/// Several witnesses tell it at once, and where their words meet is chance. What the sandbox journals has an order of its
/// own; of what worker and gateway see, only beginning and end have a place.
#[derive(Debug, PartialEq, Eq)]
struct Story {
    journaled: Vec<String>,
    witnessed: Vec<String>,
    first: String,
    last: String,
}

fn story(events: &[Value]) -> Story {
    let (mut journaled, mut witnessed) = (Vec::<String>::new(), Vec::new());
    let (mut first, mut last) = (None, String::new());
    for event in events {
        let data = &event["data"];
        let kind = event["kind"].as_str().unwrap();
        first.get_or_insert_with(|| kind.to_owned());
        kind.clone_into(&mut last);
        let entry = match kind {
            // Every call is counted elsewhere; a retry makes one more.
            "model.call" => continue,
            "agent.line" if data["subtype"] == "api_retry" || data["subtype"] == "thinking_tokens" => {
                continue;
            }
            "agent.line" => {
                let blocks: Vec<String> = data["message"]["content"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|block| format!("{} {} {}", block["type"], block["name"], block["input"]))
                    .collect();
                format!("agent.line {} {} {blocks:?}", data["type"], data["subtype"])
            }
            "run.phase" => format!("run.phase {}", data["phase"]),
            "run.finished" => format!("run.finished {}", data["status"]),
            other => other.to_owned(),
        };
        let by_sandbox = ["agent.", "run.phase", "workspace.", "git.commit", "note"]
            .iter()
            .any(|begin| kind.starts_with(begin));
        if !by_sandbox {
            witnessed.push(entry);
        } else if !(entry.starts_with(ASSISTANT) && journaled.last() == Some(&entry)) {
            // A retried reply begins again with the blocks that were complete before the cut; a line that was stored
            // twice would have the same uuid, and that is looked at apart.
            journaled.push(entry);
        }
    }
    witnessed.sort();
    Story { journaled, witnessed, first: first.unwrap_or_default(), last }
}

struct Ended {
    run: Value,
    events: Vec<Value>,
}

async fn run(parts: &Parts, ground: Ground, moment: Moment) -> anyhow::Result<Ended> {
    let spec = WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 1.0, ..WorldSpec::on(ground) };
    let mut world = World::start(parts, spec).await?;
    let id = world.api.submit(&world.run_body()).await?;
    if moment != Moment::Never {
        moment.wait(&world, &id).await?;
        if moment == Moment::Politely {
            world.server.terminate().await?;
        } else {
            world.server.kill()?;
        }
        tokio::time::sleep(AWAY).await;
        world.server = world.spec.start().await?;
    }
    let run = world.api.wait_end(&id, WAIT).await?;
    anyhow::ensure!(run["status"] == "succeeded", "{moment:?}: {run:#}\n{}", world.server.log());
    let events = world.api.events(&id).await?;
    let numbers: Vec<_> = events.iter().filter_map(|event| event["seq"].as_i64()).collect();
    let expected: Vec<_> = (1..=i64::try_from(numbers.len())?).collect();
    anyhow::ensure!(numbers == expected, "{moment:?}: numbers {numbers:?}");
    let mut uuids: Vec<_> = events.iter().filter_map(|event| event["data"]["uuid"].as_str()).collect();
    let lines = uuids.len();
    uuids.sort_unstable();
    uuids.dedup();
    anyhow::ensure!(
        lines > 20 && uuids.len() == lines,
        "{moment:?}: {lines} lines, {} of them different",
        uuids.len()
    );
    let commits = run_git(&world.bare, &["rev-list", &format!("main..{}", run["branch"].as_str().unwrap())])?;
    anyhow::ensure!(commits.lines().count() == 1, "{moment:?}: commits {commits}");
    let served = world.model_calls().len();
    anyhow::ensure!(
        run["usage"]["calls"].as_u64() == Some(served as u64),
        "{moment:?}: {served} calls served, {}",
        run["usage"]
    );
    let cut = world.model_calls().iter().filter(|call| !call.usage_final).count();
    anyhow::ensure!(
        run["usage"]["estimated_calls"].as_u64() == Some(cut as u64),
        "{moment:?}: {cut} calls cut, {}",
        run["usage"]
    );
    world.wait_tidy().await?;
    Ok(Ended { run, events })
}

/// A task and a thread each, because what one waits for without yielding must not make another miss its moment.
async fn a_server_killed_at_the_worst_moments_finishes_the_run_as_if_undisturbed(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let start = |moment| {
        let parts = parts.clone();
        #[expect(clippy::disallowed_methods, reason = "a test has no tracker, and awaits the task itself")]
        tokio::spawn(async move { run(&parts, ground, moment).await })
    };
    let undisturbed = start(Moment::Never);
    let disturbed = [Moment::InsideATool, Moment::BeforeTheFirstByte, Moment::InMidStream, Moment::Politely]
        .map(|moment| (moment, start(moment)));
    let undisturbed = undisturbed.await.unwrap().unwrap();
    let expected = story(&undisturbed.events);
    assert!(expected.journaled.len() > 30 && expected.witnessed.len() > 5, "{expected:#?}");
    for (moment, ended) in disturbed {
        let ended = ended.await.unwrap().unwrap();
        assert_eq!(story(&ended.events), expected, "killed at {moment:?}");
        assert_eq!(ended.run["attempt"], undisturbed.run["attempt"], "killed at {moment:?}");
    }
}
