//! All measurements, one after another.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use testkit::docker::inspect;

use super::clock::wall_us;
use super::figures::{Figures, Live, Load, Pair};
use super::machine::Machine;
use super::reader::Arrival;
use super::sampler::{Peaks, container};
use super::script::check_branch;
use super::service::{Service, ServiceSpec, job_body, scenario_body};
use super::stage::{Stage, TASK, is_message};
use super::stats::Summary;
use super::words::Growth;
use super::{engines, fair, follow_up, proc, requests, sampler, say, scenarios, stand_in, tail, words};

/// Runs that are sampled.
const SAMPLED: usize = 3;
/// How long an idle server is looked at.
const IDLE: Duration = Duration::from_secs(5);

/// Measures everything.
///
/// # Errors
/// Anything does not come out as it must.
pub(crate) async fn all(stage: &Stage, pairs: u32) -> anyhow::Result<Figures> {
    let machine = Machine::look(&stage.parts, &stage.agent_version).await?;
    let service = stage.serve().await?;
    let measured = on_server(stage, &service, pairs).await;
    let log = service.process.log();
    let closed = service.close().await;
    let measured = measured.with_context(|| format!("the server's log ends with:\n{}", tail(&log)))?;
    closed?;

    say("a stand-in for the agent, for the time from a line's writing to its reader");
    let spec = ServiceSpec { state_dir: stage.root().join("stand-in"), ..stage.service.clone() };
    let exact = stand_in::measure(&stage.parts, stage.root(), &spec, &stage.agent_version).await?;
    say("a run of one turn on each engine, and the bare agent");
    let engines = engines::measure(stage, pairs).await?;
    say("follow-ups of a session whose sandbox waits, and the bare agent");
    let follow_ups = follow_up::measure(stage).await?;
    let live = Live { exact, agent: measured.agent_lines, words: measured.words };
    let Measured { jobs, load, requests, .. } = measured;
    let Jobs { pairs, starts_ms, bare_starts_ms, .. } = jobs;
    Ok(Figures { machine, pairs, starts_ms, bare_starts_ms, load, requests, live, engines, follow_ups })
}

/// What is measured on the one long-lived server.
struct Measured {
    jobs: Jobs,
    load: Load,
    requests: requests::Requests,
    agent_lines: Summary,
    words: Summary,
}

/// What comes of the pairs.
struct Jobs {
    pairs: Vec<Pair>,
    starts_ms: Vec<f64>,
    bare_starts_ms: Vec<f64>,
    cpu: proc::Cpu,
}

async fn on_server(stage: &Stage, service: &Service, pairs: u32) -> anyhow::Result<Measured> {
    let body = job_body(TASK, &stage.repository);
    say("an idle server");
    let before = service.cpu()?;
    tokio::time::sleep(IDLE).await;
    let idle_cpu_ms = service.cpu()?.since(before).own_ms / IDLE.as_secs_f64();
    let idle = service.memory()?;

    say("one pair that does not count, and whether both sides are alike");
    warm_up(stage, service, &body).await?;
    let jobs = do_pairs(stage, service, &body, pairs).await?;
    say("memory and CPU while a run goes on");
    let mut peaks = Peaks::default();
    for _ in 0..SAMPLED {
        peaks = peaks.peak(sampler::measure(service, &body).await?);
        service.wait_tidy().await?;
    }
    let load = Load { idle, peaks, run: jobs.cpu, idle_cpu_ms };
    say("requests, one after another");
    let requests = requests::measure(service, &body).await?;
    say("many lines of the agent");
    let lines = service.job(&scenario_body(scenarios::LINES, "Say some numbers."), |_| {}).await?;
    service.wait_tidy().await?;
    let agent_lines = Summary::of(&lines.lines_ms).filter(|lines| lines.count >= 200);
    say("a slow reply, word by word");
    let words = slow_reply(stage, service).await?;
    Ok(Measured {
        jobs,
        load,
        requests,
        agent_lines: agent_lines.context("fewer than 200 lines of the agent were stamped")?,
        words,
    })
}

/// The first pair: everything is warm afterwards, and both sides are known to be alike.
async fn warm_up(stage: &Stage, service: &Service, body: &Value) -> anyhow::Result<()> {
    let expected = stage.script.agent_arguments()?;
    let (mut sandbox, mut alike) = (None, None);
    let look = |arrival: &Arrival| {
        let looked = match arrival.kind.as_str() {
            "sandbox.started" => container(&arrival.data).map(|name| sandbox = Some(name)),
            // The agent's first line: it lives, and its sandbox has everything.
            "agent.line" if alike.is_none() => sandbox.as_deref().map_or(Ok(()), |name| {
                fair::compare_agents(&stage.parts, name, &expected)?;
                inspect(&stage.parts, name).map(|found| alike = Some(Ok(found)))
            }),
            _ => Ok(()),
        };
        if let Err(error) = looked {
            alike.get_or_insert(Err(error));
        }
    };
    let job = service.job(body, look).await?;
    check_branch(&stage.repository, job.branch.as_deref().context("the run has no branch")?)?;
    let found = alike.context("the agent said nothing")??;
    service.wait_tidy().await?;
    let script = stage.script.job(0).await?;
    stage.script.check(0, &script.branch)?;
    fair::compare_containers(&stage.parts, &found, &stage.script.container(0))?;
    stage.script.remove(0).await?;
    stage.script.bare_start_ms(0).await.map(drop)
}

async fn do_pairs(stage: &Stage, service: &Service, body: &Value, pairs: u32) -> anyhow::Result<Jobs> {
    let mut jobs = Jobs {
        pairs: Vec::new(),
        starts_ms: Vec::new(),
        bare_starts_ms: Vec::new(),
        cpu: proc::Cpu::default(),
    };
    for number in 1..=pairs {
        let mut script = None;
        // Every other pair begins with the script, so that neither side is always the one that comes second.
        if number % 2 == 0 {
            script = Some(script_job(stage, number).await?);
        }
        let before = (stage.calls(), service.cpu()?);
        let mut job = service.job(body, |_| {}).await?;
        service.wait_tidy().await?;
        let used = service.cpu()?.since(before.1);
        stage.note_first_request(&mut job.timeline, before.0);
        check_branch(&stage.repository, job.branch.as_deref().context("the run has no branch")?)?;
        let script = match script {
            Some(script) => script,
            None => script_job(stage, number).await?,
        };
        say(&format!(
            "pair {number} of {pairs}: service {:.0} ms, script {:.0} ms",
            job.timeline.total_ms().unwrap_or(f64::NAN),
            script.total_ms().unwrap_or(f64::NAN)
        ));
        jobs.pairs.push(Pair { service: job.timeline, script });
        jobs.starts_ms.push(job.start_ms);
        jobs.bare_starts_ms.push(stage.script.bare_start_ms(number).await?);
        jobs.cpu.own_ms += used.own_ms / f64::from(pairs);
        jobs.cpu.children_ms += used.children_ms / f64::from(pairs);
    }
    Ok(jobs)
}

async fn script_job(stage: &Stage, number: u32) -> anyhow::Result<super::timeline::Timeline> {
    let before = stage.calls();
    let mut job = stage.script.job(number).await?;
    stage.note_first_request(&mut job.timeline, before);
    stage.script.remove(number).await?;
    stage.script.check(number, &job.branch)?;
    Ok(job.timeline)
}

/// One reply whose words come slowly, watched at the model and at the reader.
async fn slow_reply(stage: &Stage, service: &Service) -> anyhow::Result<Summary> {
    let before = stage.calls();
    let mut growth = Growth::default();
    let watched = stage.model.wait_for(|records| {
        let call = records.iter().find(|record| record.seq > before && is_message(record));
        call.is_some_and(|record| {
            growth.note(record, wall_us());
            record.ended_at_ms.is_some()
        })
    });
    let body = scenario_body(scenarios::WORDS, "Tell me something, slowly.");
    let (_records, job) = tokio::try_join!(async { anyhow::Ok(watched.await) }, service.job(&body, |_| {}))?;
    service.wait_tidy().await?;
    Summary::of(&words::latencies(&growth, &job.arrivals)?).context("nothing was measured")
}
