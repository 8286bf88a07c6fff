//! Claims runs while there are free slots, and sees each to its end.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use caisson_domain::id::RunId;
use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_sandbox::{Exit, Liveness};
use caisson_store::{Claimed, Finish, HomeEpoch, SandboxState, StoreError, Topic};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument, error, info, info_span, warn};

use crate::attempt::{Attempt, LeaseEnd, Taken};
use crate::attend::attend;
use crate::context::{Asked, Backoff, Context, Halt, asked, described};
use crate::health;
use crate::holds::Hold;
use crate::judge::{End, Fault, FaultClass, Verdict, by_end};
use crate::kept;
use crate::looks::Looks;
use crate::place::{Placing, announce, place};
use crate::steps::Step;
use crate::teardown;
use crate::unowned::{Noted, take_up_again};

/// Where a run comes from.
pub(crate) enum Origin {
    /// It was claimed just now.
    Queue,
    /// A process before this one had it, or this one before its lease was over.
    Adopted(Option<Found>),
}

/// The sandbox of an adopted run.
pub(crate) struct Found {
    pub(crate) hold: Hold,
    /// What the engine says; none if it does not know the sandbox.
    pub(crate) liveness: Option<Liveness>,
}

/// What came of the work on a run.
enum Work {
    Judged(Verdict, Option<Hold>),
    /// Its lease is over: it is nobody's, or somebody else's.
    Unowned,
    Lost,
}

/// Claims runs until the server goes down.
pub(crate) async fn claim_runs(ctx: &Arc<Context>) -> Result<(), Halt> {
    let mut queue = ctx.store.watch(Topic::Queue);
    let mut backoff = Backoff::new(ctx.timing());
    // Whether something may be new: nobody has looked yet.
    let mut hinted = true;
    let mut looks = Looks::default();
    loop {
        let slot = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Halt::Shutdown),
            slot = Arc::clone(&ctx.slots).acquire_owned() => slot,
        };
        health::sound(ctx).await?;
        // Not in a `select!`: a claim that is dropped half-way may have been made.
        match claim(ctx, &mut looks, hinted).await {
            Ok(Some(claimed)) => {
                (backoff, hinted) = (Backoff::new(ctx.timing()), true);
                let run = &claimed.answer.run;
                if let Some(in_hand) = ctx.in_hand.note(&run.id, run.attempt) {
                    launch(ctx, claimed, Origin::Queue, in_hand, slot.ok());
                }
            }
            Ok(None) => {
                drop(slot);
                hinted = tokio::select! {
                    () = ctx.cancel.cancelled() => return Err(Halt::Shutdown),
                    hinted = queue.hinted(ctx.timing().queue_poll) => hinted,
                };
            }
            Err(error) => {
                let wait = backoff.next();
                warn!(error = described(&error), "could not claim a run, trying again in {wait:?}");
                ctx.pause(wait).await?;
            }
        }
    }
}

/// Claims the next run. Without a hint that something is new it asks first whether anything waits, which keeps nobody waiting,
/// and rests for a while when what waits is held back.
async fn claim(ctx: &Context, looks: &mut Looks, hinted: bool) -> Result<Option<Asked<Claimed>>, StoreError> {
    let (store, server) = (&ctx.store, &ctx.config.server);
    if !looks.is_time(hinted) || (!hinted && !store.may_claim(server).await?) {
        return Ok(None);
    }
    let Asked { answer, at } = asked(Box::pin(store.claim(server))).await?;
    if answer.is_none() {
        looks.found_nothing(hinted, ctx.timing().queue_rest);
    }
    Ok(answer.map(|answer| Asked { answer, at }))
}

/// Sees to a run in the background. The slot is free again when the run has ended, also by a panic.
pub(crate) fn launch(
    ctx: &Arc<Context>,
    claimed: Asked<Claimed>,
    origin: Origin,
    in_hand: Noted,
    slot: Option<OwnedSemaphorePermit>,
) {
    let (run, first) = (claimed.answer.run.id.clone(), claimed.answer.epoch);
    info!(run.id = %run, run.attempt = claimed.answer.run.attempt, "took run {run}");
    let span = info_span!("run", run.id = %run);
    let adopted = matches!(origin, Origin::Adopted(_));
    let slot = Arc::new(Mutex::new(slot.map(|slot| Taken::new(slot, &ctx.slots_taken))));
    let attempt = Attempt::new(Arc::clone(ctx), claimed, adopted, Arc::clone(&slot));
    // It changes whenever the run is taken up again.
    let epoch = Arc::new(AtomicI64::new(first.number));
    let work = ctx.tracker.spawn(drive(attempt, origin, Arc::clone(&epoch)).instrument(span));
    let ctx = Arc::clone(ctx);
    let tracker = ctx.tracker.clone();
    tracker.spawn(async move {
        let _in_hand = in_hand;
        let fault = match work.await {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(described(&fault)),
            // Its message may hold anything; the log has it, without live secrets.
            Err(error) => error.is_panic().then(|| "it panicked".to_owned()),
        };
        if let Some(fault) = fault {
            let epoch = first.with_number(epoch.load(Ordering::Relaxed));
            end_after_fault(&ctx, (&run, epoch), &fault).await;
        }
        drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
    });
}

/// Nothing is left "running" for ever, not even by a fault of ours or a damaged row: nothing of the run is read here.
async fn end_after_fault(ctx: &Context, (run, epoch): (&RunId, HomeEpoch), fault: &str) {
    error!(run.id = %run, "cannot see to run {run}, ending it: {fault}");
    let failure = internal("a fault in Caisson ended the run; report it with the server's log", fault);
    let store = &ctx.store;
    if ctx.insist("end a run", || store.end_unread(run, epoch, &failure)).await.is_ok() {
        ctx.reconcile.notify_one();
    }
}

fn internal(message: &str, evidence: &str) -> Failure {
    Failure::new(FailureKind::Internal, message).with_evidence(evidence)
}

/// Sees a run through. The error is of the kind that trying again cannot help.
async fn drive(mut attempt: Attempt, mut origin: Origin, epoch: Arc<AtomicI64>) -> Result<(), StoreError> {
    // Bounded by the run's time limit: each turn is one outage of the store that was longer than a lease.
    loop {
        let worked = tokio::select! {
            biased;
            () = attempt.ctx.cancel.cancelled() => Err(Halt::Shutdown),
            end = attempt.keep_lease() => Ok(match end {
                LeaseEnd::Over => Work::Unowned,
                LeaseEnd::Taken => Work::Lost,
            }),
            worked = work(&attempt, origin) => worked,
        };
        let (run, ctx) = (attempt.run.id.clone(), Arc::clone(&attempt.ctx));
        let concluded = match worked {
            Ok(Work::Judged(verdict, hold)) => conclude(&attempt, verdict, hold).await,
            Ok(Work::Lost) => {
                lost(&ctx, &run);
                Ok(())
            }
            Ok(Work::Unowned) => match Box::pin(take_up_again(attempt)).await {
                Ok(Some((again, found))) => {
                    epoch.store(again.epoch.number, Ordering::Relaxed);
                    (attempt, origin) = (again, Origin::Adopted(found));
                    continue;
                }
                Ok(None) => {
                    lost(&ctx, &run);
                    Ok(())
                }
                Err(halt) => Err(halt),
            },
            Err(halt) => Err(halt),
        };
        return match concluded {
            Ok(()) => Ok(()),
            Err(Halt::Shutdown) => {
                info!(run.id = %run, "left run {run} for the next start");
                Ok(())
            }
            Err(Halt::Corrupt(error)) => Err(error),
        };
    }
}

/// The sandbox is left to whoever has the run now; it goes if nobody has, since the run was written off.
fn lost(ctx: &Context, run: &RunId) {
    warn!(run.id = %run, "lost run {run}: it has ended, or another worker has it");
    ctx.reconcile.notify_one();
}

async fn work(attempt: &Attempt, origin: Origin) -> Result<Work, Halt> {
    let ctx = &attempt.ctx;
    ctx.step(Step::Claimed).await;
    let (end, hold) = match origin {
        Origin::Queue if attempt.run.cancel_requested_at_ms.is_some() => (never_ran(), None),
        Origin::Queue => match place(attempt).await? {
            Placing::Placed(hold) => return see_through(attempt, hold).await,
            Placing::Lost => return Ok(Work::Lost),
            Placing::Failed(hold, fault) => (End::NeverRan(fault), hold),
        },
        Origin::Adopted(None) => (never_ran(), None),
        Origin::Adopted(Some(found)) => match resume(attempt, found).await? {
            Resumed::Attached(hold) => return see_through(attempt, hold).await,
            Resumed::NeverRan(hold) => (never_ran(), Some(hold)),
            Resumed::Lost => return Ok(Work::Lost),
        },
    };
    let Some(progress) = attempt.settled_progress().await? else { return Ok(Work::Lost) };
    settle(attempt, by_end(&attempt.facts(&progress), &end), hold).await
}

fn never_ran() -> End {
    let message = "the server stopped while the sandbox was being started".to_owned();
    End::NeverRan(Fault { class: FaultClass::Interrupted, message })
}

/// What can be made of an adopted run's sandbox.
enum Resumed {
    Attached(Hold),
    NeverRan(Hold),
    Lost,
}

async fn resume(attempt: &Attempt, found: Found) -> Result<Resumed, Halt> {
    let ctx = &attempt.ctx;
    let Found { hold, liveness } = found;
    let (store, sandbox) = (&ctx.store, hold.sandbox());
    let row = ctx.insist("read a sandbox", move || store.sandbox(sandbox)).await?;
    let state = row.as_ref().map_or(SandboxState::Destroyed, |row| row.state);
    match (liveness, state) {
        // It was being taken away because its agent had not started, or it never began.
        (_, SandboxState::Stopping | SandboxState::Destroyed)
        | (Some(Liveness::Created), _)
        // A sandbox that was only half made has an end of which nobody knows anything. If it did run, the agent's start tells.
        | (None | Some(Liveness::Exited(Exit { code: None, .. })), SandboxState::Creating) => {
            Ok(Resumed::NeverRan(hold))
        }
        (Some(Liveness::Running | Liveness::Exited(_)), SandboxState::Creating) => {
            let image = row.map(|row| row.image).unwrap_or_default();
            let ours = announce(attempt, sandbox, &image, None).await?;
            Ok(if ours { Resumed::Attached(hold) } else { Resumed::Lost })
        }
        (Some(Liveness::Running | Liveness::Exited(_)) | None, SandboxState::Running) => {
            Ok(Resumed::Attached(hold))
        }
    }
}

async fn see_through(attempt: &Attempt, hold: Hold) -> Result<Work, Halt> {
    match attend(attempt, hold.sandbox()).await? {
        Some(verdict) => settle(attempt, verdict, Some(hold)).await,
        None => Ok(Work::Lost),
    }
}

/// Nothing of a sandbox may live when its run goes back to the queue.
async fn settle(attempt: &Attempt, verdict: Verdict, hold: Option<Hold>) -> Result<Work, Halt> {
    attempt.ctx.step(Step::Judged).await;
    match (&verdict, hold) {
        (Verdict::Requeue { .. }, Some(hold)) => {
            teardown::withdraw(&attempt.ctx, hold).await?;
            attempt.ctx.step(Step::Withdrawn).await;
            Ok(Work::Judged(verdict, None))
        }
        (Verdict::Requeue { .. } | Verdict::Finish(_), hold) => Ok(Work::Judged(verdict, hold)),
    }
}

/// Writes the verdict down, and has the sandbox taken away.
async fn conclude(attempt: &Attempt, verdict: Verdict, hold: Option<Hold>) -> Result<(), Halt> {
    let (ctx, run, epoch) = (&attempt.ctx, &attempt.run.id, attempt.epoch);
    let store = &ctx.store;
    let finish = match verdict {
        Verdict::Finish(finish) => finish,
        Verdict::Requeue { reason, delay_ms } => {
            let requeue = || store.requeue(run, epoch, &reason, delay_ms);
            if ctx.insist("give a run back to the queue", requeue).await? {
                info!(run.id = %run, delay_ms, "gave run {run} back to the queue: {reason}");
                return Ok(());
            }
            // Either the run is lost, or its agent was started after all, just before the grants were revoked.
            let Some(progress) = attempt.settled_progress().await? else {
                lost(ctx, run);
                return Ok(());
            };
            match by_end(&attempt.facts(&progress), &End::Gone) {
                Verdict::Finish(finish) => finish,
                Verdict::Requeue { .. } => {
                    let failure = internal("the run could not be given back to the queue", &reason);
                    Finish { status: RunStatus::Failed, failure: Some(failure), result: None }
                }
            }
        }
    };
    attempt.settle_calls().await?;
    let hold = match hold {
        Some(hold) if kept::is_to_wait(attempt, &finish, &hold).await? => {
            kept::put_by(attempt, hold);
            None
        }
        hold => hold,
    };
    let finished = ctx.insist("finish a run", || store.finish(run, epoch, &finish)).await;
    if !matches!(finished, Ok(true)) {
        kept::leave(attempt);
    }
    if !finished? {
        lost(ctx, run);
        return Ok(());
    }
    info!(run.id = %run, run.status = %finish.status, "finished run {run} as {}", finish.status);
    kept::begin(attempt);
    ctx.step(Step::Finished).await;
    if let Some(hold) = hold {
        teardown::retire_later(ctx, hold).await;
    }
    Ok(())
}
