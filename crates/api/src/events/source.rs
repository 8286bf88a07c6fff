//! What events are read from: a run, or a whole session.

use caisson_domain::event::Event;
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::run::RunStatus;
use caisson_store::{EventsOf, Store, StoreError};

/// Events read from the store at once.
pub(crate) const READ_EVENTS: u32 = 16;
/// The same for who keeps nothing of what it has read: [`READ_BYTES`] bound it alike.
pub(crate) const SCANNED_EVENTS: u32 = 64;
/// Bytes of details after which such a read ends; the event that reaches them is still in it. One may be a line of a megabyte,
/// so this, and not the length of a page, is what a reader costs, also one that takes its time.
pub(crate) const READ_BYTES: usize = 256 * 1024;

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

    /// The next events, at most `limit`, [`READ_EVENTS`] and [`READ_BYTES`]; none at the end alone.
    pub(crate) async fn read(&self, store: &Store, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let of = match self {
            Self::Run { run, .. } => EventsOf::Run(run),
            Self::Session(session) => EventsOf::Session(session),
        };
        store.events_within(of, after, (limit.min(READ_EVENTS), READ_BYTES)).await
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

#[cfg(test)]
mod tests {
    use caisson_domain::event::{EventKind, NewEvent};
    use caisson_domain::id::ServerId;
    use caisson_domain::run::{Resources, RunSpec};
    use caisson_domain::workflow::Workflow;
    use caisson_store::{Clock, CreateRun, NewRun};

    use super::*;

    #[tokio::test]
    async fn a_reader_holds_few_long_events_however_many_there_are() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store.db"), Clock::system()).await.unwrap();
        let server = ServerId::new(1, [1; 10]);
        store.register_server(&server).await.unwrap();
        let workflow = Workflow::parse("---\nname: fix\ndescription: fixes\n---\nDo it.\n").unwrap();
        let spec = serde_json::json!({
            "workflow": workflow, "prompt": "Fix it.", "timeout_s": 600, "environment": {},
            "resources": Resources::default(),
        });
        let spec: RunSpec = serde_json::from_value(spec).unwrap();
        let project = ProjectId::default_project();
        let new = NewRun { project: project.clone(), created_by: None, spec, idempotency: None };
        let CreateRun::Created(run) = store.create_run(new).await.unwrap() else { panic!("a run") };
        let claimed = store.claim(&server).await.unwrap().unwrap();
        for _ in 0..3 {
            let line = format!("\"{}\"", "x".repeat(READ_BYTES - 2));
            let event = NewEvent::from_raw(EventKind::AgentLine, line).unwrap();
            assert!(store.append_run_event(&run.id, claimed.epoch, event).await.unwrap());
        }
        let of_session = Source::Session(run.session.clone());
        let of_run = Source::Run { project, run: run.id, session: run.session };
        for source in [of_run, of_session] {
            let read = source.read(&store, 2, READ_EVENTS).await.unwrap();
            assert_eq!(read.iter().map(|event| event.seq).collect::<Vec<_>>(), [3]);
        }
    }
}
