//! Waits for the end of a placed run.

use std::pin::pin;
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::id::SandboxId;
use caisson_domain::protocol::{Ending, Outcome, StopReason};
use caisson_sandbox::EngineError;
use caisson_store::{Progress, Topic};
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::attempt::Attempt;
use crate::context::{Backoff, Context, Halt, described};
use crate::dirs::blocking;
use crate::disk::places::Place;
use crate::guard::guard;
use crate::image_choice;
use crate::judge::{Disk, End, Facts, Verdict, by_end, by_outcome};
use crate::steps::Step;

/// Between SIGTERM and SIGKILL for a sandbox that was told to stop and did not, in seconds.
pub const KILL_GRACE_S: u32 = 2;

/// What is told of a sandbox that ended without an outcome while there was work in it, whatever its run ends as.
const UNSAVED: &str = "it had not told that its work was saved; its session's workspace is kept";

/// What a run's owner has to do next.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    /// Nothing for this long, unless something changes.
    Wait(Duration),
    /// Tell it that its time limit has passed.
    StopForTime,
    /// Kill its sandbox: it was told to stop and did not.
    Kill,
}

/// Waits until the run has an outcome or its sandbox has ended, stops it at its time limit, and kills what does not
/// stop. None if the run is lost.
///
/// Beside it a guard goes by the worker's own clock and eyes, for as long as the store is away too: see [`guard`].
pub(crate) async fn attend(attempt: &Attempt, sandbox: &SandboxId) -> Result<Option<Verdict>, Halt> {
    attempt.ctx.step(Step::Attended).await;
    let place = attempt.attend(sandbox);
    let followed = tokio::select! {
        followed = follow(attempt, sandbox, &place) => followed,
        never = guard(attempt, &place) => match never {},
    };
    attempt.leave();
    followed
}

async fn follow(attempt: &Attempt, sandbox: &SandboxId, place: &Place) -> Result<Option<Verdict>, Halt> {
    let ctx = &attempt.ctx;
    let mut watch = ctx.store.watch(Topic::Run(attempt.run.id.clone()));
    let attached_at_ms = ctx.store.now_ms();
    let mut ending = pin!(ended(ctx, sandbox));
    let mut end: Option<(End, Instant)> = None;
    let mut killer = Killer::new(ctx);
    loop {
        let Some(progress) = attempt.progress().await? else { return Ok(None) };
        if let Some(outcome) = progress.outcome.clone() {
            let Some(progress) = attempt.settle_push(progress).await? else { return Ok(None) };
            if let Ending::OtherImage(wish) = &outcome.ending {
                return image_choice::judge(attempt, &progress, wish).await;
            }
            let disk = seen_of_disk(attempt, place, &outcome).await;
            let pids_refused = processes_refused(attempt, sandbox, &outcome).await;
            let facts = Facts { pids_refused, ..attempt.facts(&progress).with(&disk) };
            return Ok(Some(Verdict::Finish(by_outcome(&facts, &outcome))));
        }
        if expire(attempt, &progress).await? {
            continue;
        }
        let wait = match &end {
            Some((end, settled_at)) => {
                let wait = settled_at.saturating_duration_since(Instant::now());
                if wait.is_zero() {
                    return ended_alone(attempt, place, (progress, end, killer.done)).await;
                }
                wait
            }
            None => match next_act(attempt, &progress, attached_at_ms) {
                Act::Wait(wait) => wait.min(until_expiry(attempt, &progress)),
                Act::StopForTime => {
                    stop_for_time(attempt).await?;
                    continue;
                }
                Act::Kill => killer.kill(attempt, sandbox).await,
            },
        };
        if end.is_none() && told_to_stop(&progress, attached_at_ms).is_some() {
            // Whoever asked for it has woken the sandbox's door, but that hint may be lost; and the clock runs.
            ctx.store.wake_sandbox(sandbox);
        }
        tokio::select! {
            found = &mut ending, if end.is_none() => end = Some((found, Instant::now() + ctx.timing().settle)),
            () = watch.changed(wait.min(ctx.timing().run_poll)) => {}
        }
    }
}

/// The engine's word on how the sandbox ended, however long the engine is away meanwhile.
pub(crate) async fn ended(ctx: &Context, sandbox: &SandboxId) -> End {
    let mut backoff = Backoff::new(ctx.timing());
    loop {
        match ctx.engine.wait(sandbox).await {
            Ok(exit) => return End::Exited(exit),
            Err(EngineError::NotFound { .. }) => return End::Gone,
            Err(error) => {
                let wait = backoff.next();
                warn!(sandbox.id = %sandbox, error = described(&error), "could not wait for sandbox {sandbox}, trying again in {wait:?}");
                ctx.health.suspect();
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// The sandbox ended without an outcome, and whatever it had sent before has reached the store.
async fn ended_alone(
    attempt: &Attempt,
    place: &Place,
    (progress, end, killed): (Progress, &End, bool),
) -> Result<Option<Verdict>, Halt> {
    let exit = match end {
        End::Exited(exit) => Some(exit),
        End::Gone | End::NeverRan(_) => None,
    };
    let killed = killed || place.was_killed();
    if exit.is_some() || killed {
        let code = exit.and_then(|exit| exit.code);
        let oom = exit.is_some_and(|exit| exit.oom_killed);
        let mut data = json!({ "exit_code": code, "oom": oom, "killed": killed });
        if progress.agent_started {
            // Saving is the shim's work: without its word, nobody may take missing artifacts for missing work.
            data["message"] = UNSAVED.into();
        }
        if !attempt.tell(&place.sandbox, EventKind::SandboxExited, data).await? {
            return Ok(None);
        }
    }
    let Some(progress) = attempt.settle_push(progress).await? else { return Ok(None) };
    let disk = Disk { cut: place.why(), full: None };
    Ok(Some(by_end(&attempt.facts(&progress).with(&disk), end)))
}

/// What the disk has to do with an outcome: a run that failed with a full room most likely failed for it.
async fn seen_of_disk(attempt: &Attempt, place: &Place, outcome: &Outcome) -> Disk {
    let cut = place.why();
    if !matches!(outcome.ending, Ending::Failed(_)) {
        return Disk { cut, full: None };
    }
    let (dirs, session, cap) = (attempt.ctx.dirs.clone(), attempt.run.session.clone(), attempt.cap());
    let sandbox = place.sandbox.clone();
    let room = blocking(move || dirs.room(&session, &sandbox, cap)).await;
    Disk { cut, full: room.ok().and_then(|room| Some((room.full()?, room))) }
}

/// How often the sandbox of a run that failed was refused a process, as far as the engine tells: its shim still lives.
async fn processes_refused(attempt: &Attempt, sandbox: &SandboxId, outcome: &Outcome) -> u64 {
    if !matches!(outcome.ending, Ending::Failed(_)) {
        return 0;
    }
    attempt.ctx.usage(sandbox).await.and_then(|usage| usage.pids_refused).unwrap_or(0)
}

fn next_act(attempt: &Attempt, progress: &Progress, attached_at_ms: i64) -> Act {
    let grace = attempt.ctx.timing().stop_grace;
    act_at(attempt.ctx.store.now_ms(), attempt.deadline_ms(), told_to_stop(progress, attached_at_ms), grace)
}

/// Since when the sandbox has been told to stop. A sandbox that was told while no server was there begins to hear it
/// when there is one again.
fn told_to_stop(progress: &Progress, attached_at_ms: i64) -> Option<i64> {
    let told = progress.stop_requested_at_ms.or(progress.cancel_requested.then_some(attached_at_ms));
    told.map(|told_at_ms| told_at_ms.max(attached_at_ms))
}

fn act_at(now_ms: i64, deadline_ms: i64, told_to_stop_at_ms: Option<i64>, grace: Duration) -> Act {
    let until = |at_ms: i64| Duration::from_millis(u64::try_from(at_ms.saturating_sub(now_ms)).unwrap_or(0));
    match told_to_stop_at_ms {
        None if now_ms >= deadline_ms => Act::StopForTime,
        None => Act::Wait(until(deadline_ms)),
        Some(told_at_ms) => {
            let grace_ms = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
            let kill_at_ms = told_at_ms.saturating_add(grace_ms);
            if now_ms >= kill_at_ms { Act::Kill } else { Act::Wait(until(kill_at_ms)) }
        }
    }
}

/// Has the store answer what nobody has answered in time, by its own clock; whether there was something.
async fn expire(attempt: &Attempt, progress: &Progress) -> Result<bool, Halt> {
    let now_ms = attempt.ctx.store.now_ms();
    if progress.approval_expires_at_ms.is_none_or(|at_ms| at_ms > now_ms) {
        return Ok(false);
    }
    let (store, run, epoch) = (&attempt.ctx.store, &attempt.run.id, attempt.epoch);
    info!(run.id = %run, "nobody answered an approval of run {run} in time");
    let expire = move || store.expire_approvals(run, epoch);
    attempt.ctx.insist("answer an approval", expire).await
}

/// How long until an approval has its default answer.
fn until_expiry(attempt: &Attempt, progress: &Progress) -> Duration {
    let left = |at_ms: i64| at_ms.saturating_sub(attempt.ctx.store.now_ms()).max(0).unsigned_abs();
    progress.approval_expires_at_ms.map_or(Duration::MAX, |at_ms| Duration::from_millis(left(at_ms)))
}

async fn stop_for_time(attempt: &Attempt) -> Result<(), Halt> {
    let (store, run, epoch) = (&attempt.ctx.store, &attempt.run.id, attempt.epoch);
    info!(run.id = %run, "the time limit of run {run} passed");
    let stop = move || store.request_stop(run, epoch, StopReason::Timeout);
    // A lost run shows in its progress, which is read next.
    attempt.ctx.insist("tell a run to stop", stop).await.map(|_ours| ())
}

/// Kills a sandbox, as often as it takes.
pub(crate) struct Killer {
    pub(crate) done: bool,
    backoff: Backoff,
    rest: Duration,
}

impl Killer {
    pub(crate) fn new(ctx: &Context) -> Self {
        Self { done: false, backoff: Backoff::new(ctx.timing()), rest: ctx.timing().run_poll }
    }

    /// Kills the sandbox unless that is done; returns how long to wait for its end.
    pub(crate) async fn kill(&mut self, attempt: &Attempt, sandbox: &SandboxId) -> Duration {
        if self.done {
            return self.rest;
        }
        let ctx = &attempt.ctx;
        info!(run.id = %attempt.run.id, sandbox.id = %sandbox, "killing sandbox {sandbox}: its run did not stop");
        let killed = match ctx.engine.stop(sandbox, KILL_GRACE_S).await {
            Ok(()) | Err(EngineError::NotFound { .. }) => Ok(()),
            Err(error @ EngineError::Unavailable { .. }) => Err(error),
            // An engine that will not stop it may still be willing to remove it.
            Err(_) => ctx.engine.destroy(sandbox).await,
        };
        match killed {
            Ok(()) => {
                self.done = true;
                self.rest
            }
            Err(error) => {
                warn!(sandbox.id = %sandbox, error = described(&error), "could not kill sandbox {sandbox}");
                ctx.health.suspect();
                self.backoff.next()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(20);

    #[test]
    fn a_run_is_stopped_at_its_time_limit_and_killed_after_the_grace() {
        let wait = |ms| Act::Wait(Duration::from_millis(ms));
        assert_eq!(act_at(999, 1_000, None, GRACE), wait(1));
        assert_eq!(act_at(1_000, 1_000, None, GRACE), Act::StopForTime);
        assert_eq!(act_at(1_000, 1_000, Some(1_000), GRACE), wait(20_000));
        assert_eq!(act_at(20_999, 1_000, Some(1_000), GRACE), wait(1));
        assert_eq!(act_at(21_000, 1_000, Some(1_000), GRACE), Act::Kill);
        assert_eq!(act_at(0, i64::MAX, Some(i64::MAX), Duration::MAX), wait(i64::MAX.unsigned_abs()));
        assert_eq!(act_at(i64::MAX, i64::MIN, None, GRACE), Act::StopForTime, "a clock that jumped");
    }

    #[test]
    fn a_sandbox_that_nobody_could_tell_has_its_whole_grace_after_the_adoption() {
        let progress = |cancel_requested, stop_requested_at_ms| Progress {
            cancel_requested,
            stop_requested_at_ms,
            agent_started: true,
            phase: None,
            outcome: None,
            output: None,
            checks: Vec::new(),
            pushed_commit: None,
            push_pending: false,
            lease_expires_at_ms: 0,
            provider_status: None,
            model_failure: None,
            approval_expires_at_ms: None,
        };
        assert_eq!(told_to_stop(&progress(false, None), 500), None);
        assert_eq!(told_to_stop(&progress(true, Some(100)), 500), Some(500));
        assert_eq!(told_to_stop(&progress(false, Some(900)), 500), Some(900));
        assert_eq!(told_to_stop(&progress(true, None), 500), Some(500));
    }
}
