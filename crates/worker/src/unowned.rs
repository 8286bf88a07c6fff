//! A run whose lease was over before the store could be told to extend it.
//!
//! From then on the run is nobody's: nothing is written about it and nothing is done for it, but that its sandbox stays
//! within its limits. It is taken up again as after a start, by compare-and-set; if that fails it was written off, and
//! its sandbox goes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_domain::id::{RunId, SandboxId};
use caisson_sandbox::OwnedSandbox;
use caisson_store::{Claimed, Unowned};
use tracing::{info, warn};

use crate::attempt::Attempt;
use crate::context::{Asked, Context, Halt, asked};
use crate::guard::guard;
use crate::holds::Hold;
use crate::reconcile::owned_by_and_by;
use crate::slots::{Found, Origin, launch};

/// The runs that this process sees to, each with its attempt: as many as it has slots.
#[derive(Debug, Clone, Default)]
pub(crate) struct InHand(Arc<Mutex<HashSet<(RunId, i64)>>>);

/// A run is in hand for as long as this lives.
pub(crate) struct Noted {
    all: InHand,
    key: (RunId, i64),
}

impl InHand {
    /// Takes an attempt in hand; none if it is in hand already. So there is never a second task that sees to it, whether a
    /// claim's answer comes late or a reconcile pass has found what it claimed.
    pub(crate) fn note(&self, run: &RunId, attempt: i64) -> Option<Noted> {
        let key = (run.clone(), attempt);
        self.lock().insert(key.clone()).then(|| Noted { all: self.clone(), key })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(RunId, i64)>> {
        // Every change is a single insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.all.lock().remove(&self.key);
    }
}

/// Takes up the runs of this server that nobody has in hand: a claim whose answer was lost has made them its own, and
/// nobody knows. `owned` are the engine's sandboxes. Fails at a shutdown only.
pub(crate) async fn take_up_unowned(ctx: &Arc<Context>, owned: &[OwnedSandbox]) -> Result<(), Halt> {
    let (store, server) = (&ctx.store, &ctx.config.server);
    let found = match ctx.insist("look for runs without an owner", move || store.unowned_runs(server)).await {
        Ok(found) => found,
        Err(Halt::Shutdown) => return Err(Halt::Shutdown),
        Err(Halt::Corrupt(_)) => return Ok(()),
    };
    for lapsed in &found {
        let Some(in_hand) = ctx.in_hand.note(&lapsed.run, lapsed.attempt) else { continue };
        let readopt = move || asked(Box::pin(store.readopt(lapsed, server)));
        let adopted = match ctx.insist("take a run up", readopt).await {
            Ok(Asked { answer: Some(answer), at }) => Asked { answer, at },
            Err(Halt::Shutdown) => return Err(Halt::Shutdown),
            Ok(Asked { answer: None, .. }) | Err(Halt::Corrupt(_)) => continue,
        };
        let run = &adopted.answer.run;
        let hold = run.sandbox.as_ref().and_then(|sandbox| ctx.holds.take(sandbox, Some(&run.session)));
        let found = hold.map(|hold| {
            let liveness = owned.iter().find(|owned| &owned.id == hold.sandbox()).map(|owned| owned.liveness);
            Found { hold, liveness }
        });
        let slot = Arc::clone(&ctx.slots).try_acquire_owned().ok();
        launch(ctx, adopted, Origin::Adopted(found), in_hand, slot);
    }
    Ok(())
}

/// Takes the run up again with a new epoch, as soon as the store answers, and finds its sandbox; none if the run is lost.
pub(crate) async fn take_up_again(attempt: Attempt) -> Result<Option<(Attempt, Option<Found>)>, Halt> {
    warn!(run.id = %attempt.run.id, "the lease of run {} is over; it is left alone until the database answers", attempt.run.id);
    let Some(again) = readopt(&attempt).await? else { return Ok(None) };
    info!(run.id = %attempt.run.id, "took run {} up again", attempt.run.id);
    let sandbox = again.answer.run.sandbox.clone();
    let attempt = attempt.again(again);
    let Some(sandbox) = sandbox else {
        attempt.leave();
        return Ok(Some((attempt, None)));
    };
    let hold = hold(&attempt, &sandbox).await?;
    let owned = owned_by_and_by(&attempt.ctx).await?;
    let liveness = owned.iter().find(|owned| owned.id == sandbox).map(|owned| owned.liveness);
    Ok(Some((attempt, Some(Found { hold, liveness }))))
}

/// Asks until the store answers. The sandbox is guarded meanwhile, by the worker's own clock and eyes.
async fn readopt(attempt: &Attempt) -> Result<Option<Asked<Claimed>>, Halt> {
    let (ctx, server) = (&attempt.ctx, &attempt.ctx.config.server);
    let lapsed = Unowned { run: attempt.run.id.clone(), epoch: attempt.epoch, attempt: attempt.run.attempt };
    let (store, lapsed) = (&ctx.store, &lapsed);
    let asking = ctx.insist("take a run up again", move || asked(Box::pin(store.readopt(lapsed, server))));
    let Asked { answer, at } = match attempt.attended() {
        None => asking.await?,
        Some(place) => tokio::select! {
            answer = asking => answer?,
            never = guard(attempt, &place) => match never {},
        },
    };
    Ok(answer.map(|answer| Asked { answer, at }))
}

/// Takes the sandbox in hand; a reconcile pass may be looking at it, and lets it go since it is needed.
async fn hold(attempt: &Attempt, sandbox: &SandboxId) -> Result<Hold, Halt> {
    let ctx: &Context = &attempt.ctx;
    let mut changes = ctx.holds.changes();
    loop {
        changes.mark_unchanged();
        if let Some(hold) = ctx.holds.take(sandbox, Some(&attempt.run.session)) {
            return Ok(hold);
        }
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Halt::Shutdown),
            told = changes.changed() => drop(told),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_in_hand_once_until_it_is_let_go() {
        let in_hand = InHand::default();
        let run = RunId::new(1, [1; 10]);
        let first = in_hand.note(&run, 1).unwrap();
        assert!(in_hand.note(&run, 1).is_none(), "a late answer of the same claim");
        assert!(in_hand.note(&run, 2).is_some(), "another attempt is another one");
        drop(first);
        assert!(in_hand.note(&run, 1).is_some());
    }
}
