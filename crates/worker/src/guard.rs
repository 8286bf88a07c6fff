//! Ends a run's sandbox by the worker's own clock and eyes.
//!
//! What tells a run to stop goes through the store; a store that cannot be written, for want of disk space for instance,
//! must not keep a run from ending. So nothing here waits for it: the sandbox goes first, and whoever attends to the run
//! writes down why as soon as that can be.

use std::convert::Infallible;
use std::time::Duration;

use caisson_domain::id::SessionId;
use caisson_domain::protocol::StopReason;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::attempt::Attempt;
use crate::attend::Killer;
use crate::context::{Context, described};
use crate::dirs::blocking;
use crate::disk::places::{Cut, Place};
use crate::disk::{Cap, Room};

/// A measurement that took some time is not repeated before that many times as long has passed.
const REST_TIMES: u32 = 20;
/// The same while the server's disk is near its floor.
const REST_TIMES_NEAR: u32 = 4;
/// How fast a sandbox is taken to write at most, in bytes per second: what is left of its room is looked at in time.
const WRITE_BYTES_PER_S: u64 = 1024 * 1024 * 1024;

/// Guards a sandbox for as long as it is waited on.
///
/// # Cancel safety
/// Safe: a sandbox that was to end may live on, and its next owner decides anew.
pub(crate) async fn guard(attempt: &Attempt, place: &Place) -> Infallible {
    let decide = async {
        let room = (&attempt.run.session, attempt.cap());
        tokio::join!(watch_time(attempt, place), watch_room(&attempt.ctx, room, place));
    };
    let end = async {
        let why = place.is_cut().await;
        if let Cut::Full(..) = why {
            // It may save its work first.
            tokio::join!(tell(attempt), tokio::time::sleep(attempt.ctx.timing().stop_grace));
        }
        kill(attempt, place).await;
    };
    tokio::join!(decide, end);
    std::future::pending().await
}

/// Cuts the sandbox off when its time limit and the grace of whoever was told so have passed, also if telling took a while.
async fn watch_time(attempt: &Attempt, place: &Place) {
    let ctx = &attempt.ctx;
    let left_ms = attempt.deadline_ms().saturating_sub(ctx.store.now_ms());
    let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
    let timing = ctx.timing();
    tokio::time::sleep(left.saturating_add(timing.stop_grace).saturating_add(timing.told_late)).await;
    place.cut(Cut::Time);
}

/// Looks at the session's room until it is full, in a measured one at once and in a walled one for too long.
pub(crate) async fn watch_room(ctx: &Context, (session, cap): (&SessionId, Cap), place: &Place) {
    let timing = ctx.timing();
    let mut near = ctx.near_floor.subscribe();
    let mut full_since: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        let looked = look(ctx, (session, cap), place).await;
        let took = begun.elapsed();
        if let Some(room) = looked {
            place.note(room.used);
            match room.full() {
                None => full_since = None,
                Some(bound) => {
                    let since = *full_since.get_or_insert(begun);
                    if !room.walled || since.elapsed() >= timing.full_patience {
                        info!(sandbox.id = %place.sandbox, "sandbox {} has no disk space left", place.sandbox);
                        return place.cut(Cut::Full(bound, room));
                    }
                }
            }
        }
        let is_near = *near.borrow_and_update();
        let rest = took * if is_near { REST_TIMES_NEAR } else { REST_TIMES };
        let wait = if is_near {
            timing.disk_look_near
        } else {
            looked
                .map_or(timing.room_look, |room| until_full(&room))
                .clamp(timing.disk_look_near, timing.room_look)
        };
        tokio::select! {
            () = tokio::time::sleep(wait.max(rest)) => {}
            // Whoever has to choose needs to know.
            changed = near.wait_for(|now| *now && !is_near) => drop(changed),
        }
    }
}

async fn look(ctx: &Context, (session, cap): (&SessionId, Cap), place: &Place) -> Option<Room> {
    let (dirs, session, sandbox) = (ctx.dirs.clone(), session.clone(), place.sandbox.clone());
    let looked = blocking(move || dirs.room(&session, &sandbox, cap)).await;
    let sandbox = &place.sandbox;
    looked
        .inspect_err(|error| {
            warn!(sandbox.id = %sandbox, error = described(error), "could not measure the disk space of {sandbox}");
        })
        .ok()
}

/// How long a room lasts at the least.
fn until_full(room: &Room) -> Duration {
    let left = room.most.bytes.saturating_sub(room.used.bytes);
    Duration::from_millis(left.saturating_mul(1000) / WRITE_BYTES_PER_S)
}

/// Tells the run to stop, once: a store that is away is not waited for.
async fn tell(attempt: &Attempt) {
    let told = attempt.ctx.store.request_stop(&attempt.run.id, attempt.epoch, StopReason::DiskFull);
    match tokio::time::timeout(attempt.ctx.timing().stop_grace, told).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            warn!(run.id = %attempt.run.id, error = described(&error), "could not tell a run to stop");
        }
        Err(_) => {
            warn!(run.id = %attempt.run.id, "could not tell a run to stop: the database does not answer");
        }
    }
}

async fn kill(attempt: &Attempt, place: &Place) {
    let mut killer = Killer::new(&attempt.ctx);
    loop {
        let wait = killer.kill(attempt, &place.sandbox).await;
        if killer.done {
            return place.killed();
        }
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Amount;

    #[test]
    fn a_room_is_looked_at_before_it_can_be_full() {
        let amount = |bytes| Amount { bytes, ..Amount::default() };
        let room =
            |used, most| Room { used: amount(used), most: amount(most), walled: false, journal_full: false };
        assert_eq!(until_full(&room(0, WRITE_BYTES_PER_S)), Duration::from_secs(1));
        assert_eq!(until_full(&room(WRITE_BYTES_PER_S / 2, WRITE_BYTES_PER_S)), Duration::from_millis(500));
        assert_eq!(until_full(&room(2, 1)), Duration::ZERO);
    }
}
