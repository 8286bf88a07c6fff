//! What all doors of a server share, and one door's own state.

use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{RunId, SandboxId, SessionId};
use caisson_domain::redact::{LiveSecrets, ProjectSecrets};
use caisson_domain::usage::PriceTable;
use caisson_store::meters::DENIALS;
use caisson_store::{CredentialUse, SandboxRow, Store, StoreError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bounds::{
    ARTIFACT_UPLOADS, ATTACHMENT_EXCHANGES, BODY_POOL_BYTES, Bounds, CONNECTIONS, GIT_EXCHANGES, MODEL_CALLS,
    PUSHES, TOLD_ALARMS, TRANSCRIPT_EXCHANGES, TRANSCRIPT_PUTS,
};
use crate::config::GitIdentity;
use crate::control::{DeltaWindow, LiveText};
use crate::credentials::{CredentialSide, LastModelCredential};
use crate::egress::{EgressSide, RunEgress};
use crate::git::{GitSide, Pushes};
use crate::hold::hold;
use crate::mcp::{McpSide, RunMcp};
use crate::model::ModelSide;
use crate::noted::Noted;
use crate::problem::Refusal;
use crate::told::Told;

/// What all doors of this server share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) secrets: LiveSecrets,
    pub(crate) artifacts_dir: PathBuf,
    pub(crate) model: ModelSide,
    pub(crate) prices: PriceTable,
    pub(crate) git: GitSide,
    pub(crate) egress: EgressSide,
    pub(crate) mcp: McpSide,
    pub(crate) credentials: CredentialSide,
    pub(crate) noted: Noted,
    pub(crate) pushes: Arc<Pushes>,
    pub(crate) identity: GitIdentity,
    /// Whether agents may wait for another run.
    pub(crate) keeps: bool,
    pub(crate) bounds: Bounds,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl Shared {
    /// Records that a credential is about to be used for a run; without the record it is not.
    pub(crate) async fn note_use(&self, run: &RunId, used: &CredentialUse) -> Result<(), Refusal> {
        self.try_note_use(run, used).await.map_err(|error| Refusal::store(&error))
    }

    /// The same, with the store's own error.
    pub(crate) async fn try_note_use(&self, run: &RunId, used: &CredentialUse) -> Result<(), StoreError> {
        if self.noted.has(run, used) {
            return Ok(());
        }
        hold(&self.cancel, self.bounds.store_hold, || self.store.note_credential_use(run, used)).await?;
        self.noted.add(run, used);
        Ok(())
    }

    /// Counts something that was denied to a sandbox, whether it is told of by itself or not.
    pub(crate) fn count_denied(&self) {
        self.store.meters().add(&DENIALS, Vec::new(), 1);
    }

    /// Whether the request that was refused so is left to the next server. What is the request's own fault stays so.
    pub(crate) fn leaves(&self, refusal: &Refusal) -> bool {
        self.cancel.is_cancelled() && refusal.status.is_server_error()
    }

    /// Ends when work for a client that may leave must be given up: `after` its leaving, or the grace after
    /// the server was told to stop.
    pub(crate) async fn patience<F: Future<Output = ()> + Send>(&self, gone: F, after: Duration) {
        let left = async {
            gone.await;
            tokio::time::sleep(after).await;
        };
        let stopped = async {
            self.cancel.cancelled().await;
            tokio::time::sleep(self.bounds.grace).await;
        };
        tokio::select! {
            () = left => {}
            () = stopped => {}
        }
    }
}

/// An event without live secrets: what it tells of may be words of the agent or of a host outside.
pub(crate) fn event(secrets: &ProjectSecrets, kind: EventKind, data: &serde_json::Value) -> NewEvent {
    let event = NewEvent::new(kind, data);
    let clean = secrets.redactor().json(event.data.get());
    clean.and_then(|clean| NewEvent::from_raw(kind, clean)).unwrap_or(event)
}

/// The door of one sandbox.
pub(crate) struct Door {
    pub(crate) sandbox: SandboxId,
    pub(crate) session: SessionId,
    pub(crate) shared: Arc<Shared>,
    /// What must not be in anything that the sandbox says.
    pub(crate) secrets: ProjectSecrets,
    /// Cancelled when the sandbox is gone or the server stops.
    pub(crate) closed: CancellationToken,
    /// [`CONNECTIONS`].
    pub(crate) connections: Arc<Semaphore>,
    /// [`BODY_POOL_BYTES`].
    pub(crate) bodies: Arc<Semaphore>,
    /// [`MODEL_CALLS`].
    pub(crate) calls: Arc<Semaphore>,
    /// [`GIT_EXCHANGES`].
    pub(crate) exchanges: Arc<Semaphore>,
    /// [`PUSHES`].
    pub(crate) pushes: Arc<Semaphore>,
    /// One of git's processes on the server that no other sandbox takes; see [`crate::bounds::LOCAL_GIT`].
    pub(crate) git_process: Arc<Semaphore>,
    /// [`ARTIFACT_UPLOADS`].
    pub(crate) uploads: Arc<Semaphore>,
    /// The right to have a batch of the journal stored.
    pub(crate) journal: Arc<Semaphore>,
    /// [`TRANSCRIPT_EXCHANGES`].
    pub(crate) transcripts: Arc<Semaphore>,
    /// [`ATTACHMENT_EXCHANGES`].
    pub(crate) attachments: Arc<Semaphore>,
    /// Text deltas of this second.
    pub(crate) deltas: Mutex<DeltaWindow>,
    /// The credential that its model calls were sent with last.
    pub(crate) last_model: LastModelCredential,
    /// The way outside of the run that used it last.
    pub(crate) egress: Mutex<Option<Arc<RunEgress>>>,
    /// The way to MCP servers of the run that used it last.
    pub(crate) mcp: Mutex<Option<Arc<RunMcp>>>,
    /// Their text, for secrets that lie over the border of two.
    pub(crate) live_text: LiveText,
    /// Bytes that a run was given in answer to fetches; [`crate::bounds::FETCHED_BYTES`].
    pub(crate) fetched: RunCount,
    /// Outcomes of a run that were about to be stored; [`crate::bounds::OUTCOME_TRIES`].
    pub(crate) outcomes: RunCount,
    /// Batches of its journal with entries of other runs so far.
    pub(crate) foreign: AtomicU32,
    /// Refusals and faults of a run so far.
    told: Told,
    /// Live credentials found in what a run's sandbox sent.
    alarms: RunCount,
    /// Transcripts taken of a run so far.
    transcripts_taken: RunCount,
}

/// How often something was done for the run that is in the sandbox now; another run begins anew.
#[derive(Default)]
pub(crate) struct RunCount(Mutex<Option<(RunId, u64)>>);

impl RunCount {
    /// How often it was done before, and counts `more`.
    pub(crate) fn add(&self, run: &RunId, more: i64) -> u64 {
        // What cannot be counted counts as done too often.
        let Ok(mut kept) = self.0.lock() else { return u64::MAX };
        let count = match kept.take() {
            Some((of, count)) if of == *run => count,
            Some(_) | None => 0,
        };
        *kept = Some((run.clone(), count.saturating_add_signed(more)));
        count
    }
}

impl Door {
    pub(crate) fn new(shared: Arc<Shared>, sandbox: SandboxRow) -> Self {
        Self {
            sandbox: sandbox.id,
            session: sandbox.session,
            closed: shared.cancel.child_token(),
            secrets: shared.secrets.of(&sandbox.project),
            shared,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            bodies: Arc::new(Semaphore::new(BODY_POOL_BYTES)),
            calls: Arc::new(Semaphore::new(MODEL_CALLS)),
            exchanges: Arc::new(Semaphore::new(GIT_EXCHANGES)),
            pushes: Arc::new(Semaphore::new(PUSHES)),
            git_process: Arc::new(Semaphore::new(1)),
            uploads: Arc::new(Semaphore::new(ARTIFACT_UPLOADS)),
            journal: Arc::new(Semaphore::new(1)),
            transcripts: Arc::new(Semaphore::new(TRANSCRIPT_EXCHANGES)),
            attachments: Arc::new(Semaphore::new(ATTACHMENT_EXCHANGES)),
            deltas: Mutex::new(DeltaWindow::default()),
            last_model: LastModelCredential::default(),
            egress: Mutex::new(None),
            mcp: Mutex::new(None),
            live_text: LiveText::default(),
            fetched: RunCount::default(),
            outcomes: RunCount::default(),
            foreign: AtomicU32::new(0),
            told: Told::default(),
            alarms: RunCount::default(),
            transcripts_taken: RunCount::default(),
        }
    }

    /// Tells of a refusal or a fault; beyond [`crate::bounds::TOLD_EVENTS`] as [`Told`] says. An event that cannot be written is
    /// logged: it must not fail the request.
    pub(crate) async fn tell(&self, run: &RunId, kind: EventKind, data: serde_json::Value) {
        if matches!(kind, EventKind::GatewayDenied | EventKind::McpDenied) {
            self.shared.count_denied();
        }
        match self.told.note(run, kind, data) {
            Some(data) => self.append(run, kind, &data).await,
            None => {
                tracing::debug!(run.id = %run, event.kind = %kind, "counted one more like those of {run} before");
            }
        }
    }

    /// Before a run's outcome is stored: tells how often came again what was told of once.
    pub(crate) async fn tell_rest(&self) {
        let Some((run, rest)) = self.told.rest() else { return };
        for (kind, data) in rest {
            self.append(&run, kind, &data).await;
        }
    }

    /// Tells that a live credential was found; what else is told of the run takes it no room. False beyond [`TOLD_ALARMS`].
    pub(crate) async fn alarm(&self, run: &RunId, message: &str) -> bool {
        let tells = self.alarms.add(run, 1) < u64::from(TOLD_ALARMS);
        if tells {
            let data = serde_json::json!({"level": "warn", "message": message});
            self.append(run, EventKind::Note, &data).await;
        }
        tells
    }

    async fn append(&self, run: &RunId, kind: EventKind, data: &serde_json::Value) {
        let event = event(&self.secrets, kind, data);
        if let Err(error) = self.shared.store.append_gateway_event(run, event).await {
            tracing::warn!(run.id = %run, event.kind = %kind, error = %error, "an event of {run} was not written");
        }
    }

    /// Whether another transcript of the run is taken; see [`TRANSCRIPT_PUTS`].
    pub(crate) fn takes_transcript(&self, run: &RunId) -> bool {
        self.transcripts_taken.add(run, 0) < u64::from(TRANSCRIPT_PUTS)
    }

    /// Counts a transcript of the run, or one less that was not taken after all.
    pub(crate) fn count_transcript(&self, run: &RunId, more: i64) {
        self.transcripts_taken.add(run, more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_of_a_run_begins_anew_with_another() {
        let (count, one, two) = (RunCount::default(), RunId::new(1, [1; 10]), RunId::new(1, [2; 10]));
        assert_eq!([count.add(&one, 1), count.add(&one, 1), count.add(&one, -1)], [0, 1, 2]);
        assert_eq!([count.add(&one, 0), count.add(&two, 1), count.add(&two, 0)], [1, 0, 1]);
    }
}
