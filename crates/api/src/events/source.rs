//! What events are read from: a run, or a whole session.

use caisson_domain::event::Event;
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::run::RunStatus;
use caisson_store::{Store, StoreError};

/// Events read from the store at once. One may be a line of a megabyte, so this, and not the length of a page, is what a
/// reader costs.
pub(crate) const READ_EVENTS: u32 = 16;

/// What is read. Whoever makes one has checked that the caller may.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// One run of a project.
    Run { project: ProjectId, run: RunId, session: SessionId },
    /// All runs of a session.
    Session(SessionId),
}

impl Source {
    pub(crate) const fn session(&self) -> &SessionId {
        match self {
            Self::Run { session, .. } | Self::Session(session) => session,
        }
    }

    /// The next events, at most `limit` and at most [`READ_EVENTS`].
    pub(crate) async fn read(&self, store: &Store, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let limit = limit.min(READ_EVENTS);
        match self {
            Self::Run { run, .. } => store.events(run, after, limit).await,
            Self::Session(session) => store.session_events(session, after, limit).await,
        }
    }

    /// Whether a thing of this run belongs here.
    pub(crate) fn covers(&self, other: &RunId) -> bool {
        match self {
            Self::Run { run, .. } => run == other,
            Self::Session(_) => true,
        }
    }

    /// How the run ended; none while it has not, and for a session, which never ends.
    pub(crate) async fn ended(&self, store: &Store) -> Result<Option<(RunId, RunStatus)>, StoreError> {
        match self {
            Self::Run { project, run, .. } => {
                let status = store.run(project, run).await?.map(|found| found.status);
                Ok(status.filter(|status| status.is_final()).map(|status| (run.clone(), status)))
            }
            Self::Session(_) => Ok(None),
        }
    }
}
