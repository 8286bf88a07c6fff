//! The steps of a run's way through the worker, named so that a test can stop the world at each of them.

use async_trait::async_trait;

/// A step that leaves something behind which another process could find after a crash. In the order of an undisturbed
/// run; each is announced when it is done and the next one has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// The run is claimed, or adopted.
    Claimed,
    /// The sandbox's directories are made.
    DirsMade,
    /// The sandbox is written down in the store.
    SandboxWritten,
    /// The run is placed in the sandbox.
    Placed,
    /// The engine has made the sandbox.
    Created,
    /// The engine has started it.
    Started,
    /// The event that tells of the start is written.
    Told,
    /// The worker waits for the run.
    Attended,
    /// The run's end is seen and judged, but not written.
    Judged,
    /// The sandbox of a run that goes back to the queue is taken away, and the run is not there yet. An undisturbed run
    /// never gets here.
    Withdrawn,
    /// The run's end is written.
    Finished,
    /// The sandbox is written down as stopping, or as destroyed if its run goes back to the queue.
    Stopping,
    /// The engine has destroyed the sandbox.
    Removed,
    /// The sandbox is written down as destroyed, now at the latest.
    Destroyed,
    /// Its directories are gone.
    Cleared,
}

impl Step {
    /// Every step, in order.
    pub const ALL: &'static [Self] = &[
        Self::Claimed,
        Self::DirsMade,
        Self::SandboxWritten,
        Self::Placed,
        Self::Created,
        Self::Started,
        Self::Told,
        Self::Attended,
        Self::Judged,
        Self::Withdrawn,
        Self::Finished,
        Self::Stopping,
        Self::Removed,
        Self::Destroyed,
        Self::Cleared,
    ];
}

/// Is told of every [`Step`], and holds the worker there until it returns. The product has none.
#[async_trait]
pub trait StepHook: Send + Sync {
    /// A step was taken.
    ///
    /// # Cancel safety
    /// Must be safe to drop.
    async fn reached(&self, step: Step);
}
