//! The shim put together: what lives as long as the sandbox.

use std::io;
use std::sync::Arc;

use nix::sys::prctl::{set_child_subreaper, set_dumpable};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::activity::Activity;
use crate::confine::can_hold;
use crate::diagnostics::say;
use crate::door::{Door, Grants};
use crate::inputs::Inputs;
use crate::journal::{Journal, sender::send};
use crate::kept::Place;
use crate::loopback::Loopback;
use crate::places::Places;
use crate::reaper::{Orphans, Reaper};
use crate::watch::Patience;
use crate::work::work_for_ever;

/// What the shim is told by whoever starts it.
pub struct Setup {
    /// Where things are.
    pub places: Places,
    /// What opens the door.
    pub grants: Grants,
    /// The image's search path of programs.
    pub path: String,
    /// How patient it is.
    pub patience: Patience,
    /// Whether the kernel is asked to hold git to a workspace that an agent has had, if it can.
    pub holds: bool,
}

/// Why the shim cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The journal's directory cannot be used.
    #[error("cannot open the journal")]
    Journal(#[source] io::Error),
    /// The loopback port cannot be had.
    #[error("cannot listen on the loopback address")]
    Loopback(#[source] io::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
}

/// Keeps the other processes of this uid from reading the memory and the environment of this one.
///
/// # Errors
/// That of the operating system.
pub fn hide() -> io::Result<()> {
    Ok(set_dumpable(false)?)
}

/// What lives as long as the sandbox.
pub(crate) struct Shim {
    pub(crate) places: Places,
    pub(crate) path: String,
    pub(crate) patience: Patience,
    /// Whether git is held to a workspace that an agent has had.
    pub(crate) holds: bool,
    /// The loopback listener, for example `http://127.0.0.1:4180`.
    pub(crate) loopback: String,
    pub(crate) door: Arc<Door>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) inputs: Inputs,
    /// The agent that waits for another run.
    pub(crate) kept: Place,
    pub(crate) tracker: TaskTracker,
}

/// Does the sandbox's work until it is told to end, by the gateway or by a signal.
///
/// # Errors
/// [`ShimError`] if it cannot begin.
///
/// # Cancel safety
/// Not safe: dropping it leaves processes behind.
pub async fn run(setup: Setup) -> Result<(), ShimError> {
    let children = signal(SignalKind::child()).map_err(ShimError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ShimError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ShimError::Signals)?;
    if std::process::id() != 1
        && let Err(error) = set_child_subreaper(true)
    {
        say(format_args!("orphans of the agent go elsewhere: {error}"));
    }
    let tracker = TaskTracker::new();
    let reaper = Reaper::new(Orphans::Adopted);
    tracker.spawn(Arc::clone(&reaper).watch(children));
    let journal = Journal::open(&setup.places.journal).map_err(ShimError::Journal)?;
    let door = Door::new(setup.places.door.clone(), setup.grants, tracker.clone());
    tracker.spawn(send(Arc::clone(&journal), Arc::clone(&door)));
    let activity = Arc::new(Activity::default());
    let (listener, bound) = Loopback::bind(setup.places.loopback).await.map_err(ShimError::Loopback)?;
    tracker.spawn(Loopback::new(&door, &activity).serve(listener, tracker.clone()));
    let shim = Shim {
        places: setup.places,
        path: setup.path,
        patience: setup.patience,
        holds: setup.holds && can_hold(),
        loopback: format!("http://{bound}"),
        door,
        journal,
        reaper,
        activity,
        inputs: Inputs::new(),
        kept: Place::default(),
        tracker,
    };
    let told = tokio::select! {
        () = work_for_ever(&shim) => "the gateway",
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    say(format_args!("ending, told by {told}"));
    shim.reaper.end_all().await;
    if tokio::time::timeout(shim.patience.flush, shim.journal.flushed()).await.is_err() {
        say("ending with records that the gateway has not stored");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_process_is_not_dumpable() {
        hide().unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
    }
}
