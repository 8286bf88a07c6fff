//! The only SQL of Caisson: runs, sessions, events, usage and everything else that must outlive a process.
//!
//! `api`, `worker` and `gateway` meet here and nowhere else. Every method of [`Store`] is one transaction that also
//! appends the events which tell of its change, so readers only ever read rows; [`Watch`] and the text deltas are
//! hints on top. A run changes status only by compare-and-set on its status and lease epoch: a caller who gets
//! `false` or `None` has lost the run and must stop.
//!
//! Every read may fail with [`StoreError::Unavailable`] or [`StoreError::Corrupt`], every write with
//! [`StoreError::Full`] as well, and with [`StoreError::Migration`] from the moment on when a later version has migrated the
//! database; the methods only name what is particular to them. A write that answered is on the disk.

mod approvals;
mod artifacts;
mod attachment_pieces;
mod attachments;
mod audit;
mod automagik;
mod budgets;
mod claim;
mod clock;
mod credentials;
mod damage;
mod database;
mod deltas;
mod disk;
mod door;
mod drain;
mod error;
mod events;
mod fence;
mod files;
mod forget;
mod forks;
mod going_on;
mod hints;
mod homes;
pub mod hot;
mod idempotency;
mod image_choice;
mod inputs;
mod journal;
mod keys;
mod knock;
mod lost;
mod messages;
pub mod meters;
mod moved;
mod opening;
#[cfg(test)]
mod plans;
mod presence;
mod projects;
mod pushes;
mod queue;
mod random;
mod removal;
mod retention;
mod rows;
mod run_lists;
mod runs;
mod sandboxes;
mod servers;
mod sessions;
mod soft_budgets;
mod standbys;
mod transcripts;
mod upkeep;
mod usage;
mod usage_bounds;
mod usage_reports;
mod users;
mod vault;
mod waiting;
mod workflows;

use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, OnceLock};

use caisson_domain::event::Delta;
use caisson_domain::id::{SandboxId, ServerId, SessionId};
use caisson_domain::limits::SERVER_LOST_MS_DEFAULT;
use caisson_domain::queue::QueueLimits;
use tokio::sync::broadcast;

use credentials::CredentialUses;
use database::Database;
use database::notify::Notifier;
use database::sql::{self, Reader};
use deltas::Deltas;
use hints::Hints;
use keys::KeyUses;
use meters::Meters;
use opening::Turn;
use vault::Keyring;

pub use approvals::{AnswerApproval, Answered, Approval, ApprovalPage, NewApproval};
pub use artifacts::{Artifact, NewArtifact, PutArtifact};
pub use attachment_pieces::{ATTACHMENT_PIECE_BYTES, AttachmentPieces};
pub use attachments::{ATTACHMENT_PART_BYTES, AttachmentsFull, NewAttachment};
pub use audit::{
    AUDIT_HASH_START, AUDIT_TEXT_BYTES, Actor, AuditFault, AuditFilter, AuditHead, AuditRecord, AuditReport,
    ChainReport, CredentialUse, NewAudit,
};
pub use automagik::{
    Asked, AskedRun, COUNTED_ROWS, Direction, NUMBERED_ROWS, NumberedFilter, NumberedRun, NumberedSession,
    RunOrder,
};
pub use budgets::{BudgetChange, ChangeBudgets, ProjectSpending, Spending};
pub use clock::{Clock, ClockHandle};
pub use credentials::{
    CREDENTIAL_USES_KEPT, Credential, CredentialError, CredentialUsage, NewCredential, OpenedCredential,
    RENEWAL_MS_MOST, RenewalTurn, SigningKey, SigningKeyError,
};
pub use database::breaker::{
    BREAKER_FAILURES, BREAKER_SPAN_MS, BREAKER_WAIT_MS_MAX, BREAKER_WAIT_MS_MIN, BreakerState,
};
pub use database::postgres::{
    MIGRATE_MS_DEFAULT, MIGRATE_MS_MAX, POSTGRES_CONNECTIONS_MIN, PostgresLimits, PostgresPlace, UnusableUrl,
};
pub use deltas::{DELTA_CHANNEL_ITEMS, DELTA_SESSIONS_ELSEWHERE};
pub use door::{Archive, NextWork};
pub use drain::{Drained, QueueServer, QueueState};
pub use error::{BoxError, StoreError};
pub use events::EventsOf;
pub use fence::HomeEpoch;
pub use forget::ForgetServer;
pub use forks::{ForkSession, NewFork};
pub use going_on::{DeleteSession, FilesLeft, GoOn, REMOVALS_PAGE};
pub use hints::{Topic, Watch};
pub use homes::SessionHome;
pub use idempotency::RepeatWindow;
pub use inputs::{NewInput, RunInput, SendInput};
pub use journal::{JournalAppend, JournalEffect, JournalEntry};
pub use keys::{ApiKey, NewApiKey};
pub use knock::{CredentialVersion, DoorRun, Knock, RefusedGrant};
pub use lost::Unowned;
pub use messages::{MessageQueue, SendMessage};
pub use moved::MovedOutside;
pub use presence::{Beat, Presence};
pub use projects::{ChangeShare, CreateProject, Project};
pub use pushes::{BeginPush, Push, PushRecord, SessionPush};
pub use queue::{Claimed, Finish, Progress};
pub use random::Random;
pub use removal::{REMOVAL_PARTS, REMOVAL_ROWS, REMOVALS_AT_ONCE};
pub use retention::{EXPIRED_PAGE, Expired, RETENTION_EVENTS};
pub use runs::{CancelRun, CreateRun, Idempotency, NewRun, RunFilter};
pub use sandboxes::{NewSandbox, SandboxRow, SandboxState, UnknownSandboxState};
pub use sessions::{ForkOf, Session};
pub use transcripts::{TRANSCRIPT_PART_BYTES, Transcript};
pub use upkeep::{
    BackupError, CHECK_FAULTS, COPY_BATCH_BYTES, COPY_BATCH_ROWS, CheckPart, CopyError, StoredFile,
    TableCopied, backup_file, copy_to_postgres,
};
pub use usage::{BeginCall, CallExtension, ExtendCall, NewModelCall, SettledCall};
pub use usage_bounds::{CALL_COST_MICRO_USD_MAX, CALL_TOKENS_MAX};
pub use usage_reports::{UsageFilter, UsageGroup};
pub use users::{ChangeUser, User, UserFields};
pub use vault::{MasterKeyError, MasterKeyFile, RekeyStep, Rekeyed};
pub use waiting::{QueueEstimate, QueuePlace};
pub use workflows::{PutWorkflow, RemoveWorkflow, StoredWorkflow, WorkflowSummary};

/// The store. Cheap to clone; all clones share one database, one set of watchers and one set of delta channels.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    database: Database,
    reader: Reader,
    lists: Reader,
    clock: Clock,
    random: Random,
    hints: Arc<Hints>,
    /// Tells other processes of hints, where there can be any.
    notifier: Option<Notifier>,
    deltas: Arc<Deltas>,
    /// How long a server may be silent before its runs may be written off, in milliseconds.
    server_lost_after_ms: AtomicI64,
    key_uses: KeyUses,
    /// The server whose chain of audit records this store writes.
    audit_chain: OnceLock<String>,
    credential_uses: CredentialUses,
    keyring: Keyring,
    queue_limits: OnceLock<QueueLimits>,
    /// Where this process is.
    place: OnceLock<presence::Place>,
    meters: Meters,
}

/// What is told and lost: hints and text deltas, inside this process and between processes.
#[derive(Default)]
struct Live {
    hints: Arc<Hints>,
    deltas: Arc<Deltas>,
    notifier: Option<Notifier>,
}

/// What [`Store::look`] finds.
#[derive(Debug)]
pub enum Look {
    /// No file, or a `PostgreSQL` database that no server has used.
    Missing,
    /// A database of an earlier version, which the next [`Store::open`] migrates.
    Behind {
        /// How many migrations it lacks.
        migrations: usize,
    },
    /// A database of this version, for reading alone.
    Ready(Store),
}

/// Proves that writing works; the row exists in every database. It counts, since a value that stays the same is not
/// written to the disk.
const PING: &str = "update project set checks = checks + 1 where id = 'default'";

impl Store {
    /// Opens the database file at `path`, makes it if it is missing (mode 0600) and migrates it. Processes and tasks that
    /// open it at the same time wait for one another.
    ///
    /// # Errors
    /// [`StoreError::Migration`] if the file belongs to another version, [`StoreError::Unavailable`] if it cannot be
    /// opened, [`StoreError::Corrupt`] if it is no database.
    /// # Cancel safety
    /// Safe: each migration is applied wholly or not at all.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        Self::open_with(path, clock, Random::system()).await
    }

    /// Opens like [`Store::open`], with the caller's randomness, so that tests can repeat themselves.
    ///
    /// # Errors
    /// As [`Store::open`].
    /// # Cancel safety
    /// As [`Store::open`].
    pub async fn open_with(path: &Path, clock: Clock, random: Random) -> Result<Self, StoreError> {
        Ok(Self::around(Database::open_file(path).await?, Live::default(), clock, random))
    }

    /// Connects to a `PostgreSQL` database (15 or later) and migrates it. Servers that do so at the same time wait for one
    /// another. A [`Clock::system`] follows the database's clock from then on.
    ///
    /// # Errors
    /// [`StoreError::Migration`] if the database or its server is of a version that this one cannot use,
    /// [`StoreError::Unavailable`] if it does not answer.
    /// # Cancel safety
    /// Safe: each migration is applied wholly or not at all.
    pub async fn connect(place: &PostgresPlace, clock: Clock) -> Result<Self, StoreError> {
        Self::connect_with(place, clock, Random::system()).await
    }

    /// Connects like [`Store::connect`], with the caller's randomness, so that tests can repeat themselves.
    ///
    /// # Errors
    /// As [`Store::connect`].
    /// # Cancel safety
    /// As [`Store::connect`].
    pub async fn connect_with(
        place: &PostgresPlace,
        clock: Clock,
        random: Random,
    ) -> Result<Self, StoreError> {
        let opened = Database::open_postgres(place).await?;
        opened.0.set_clock(&clock).await?;
        let mut live = Live::default();
        live.notifier = opened.0.notifier(&live.hints, &live.deltas);
        Ok(Self::around(opened, live, clock, random))
    }

    fn around(
        (database, reader): (Database, Reader),
        Live { hints, deltas, notifier }: Live,
        clock: Clock,
        random: Random,
    ) -> Self {
        let shared = Shared {
            lists: database.lists(),
            database,
            reader,
            clock,
            random,
            hints,
            notifier,
            deltas,
            server_lost_after_ms: AtomicI64::new(SERVER_LOST_MS_DEFAULT),
            key_uses: KeyUses::default(),
            audit_chain: OnceLock::new(),
            credential_uses: CredentialUses::default(),
            keyring: Keyring::default(),
            queue_limits: OnceLock::new(),
            place: OnceLock::new(),
            meters: Meters::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Looks at the database file at `path`: makes nothing, migrates nothing, and every write of the store it may answer
    /// with fails. A file that other processes write is looked at all the same.
    ///
    /// # Errors
    /// As [`Store::open`].
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn look(path: &Path, clock: Clock) -> Result<Look, StoreError> {
        if !path.exists() {
            return Ok(Look::Missing);
        }
        Self::looked(Database::look_at_file(path).await?, clock).await
    }

    /// Looks at the database file at `path` as [`Store::look`] does, once nobody opens it: one that another process is just
    /// making or migrating is not seen half done.
    ///
    /// # Errors
    /// As [`Store::open`].
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn look_at_rest(path: &Path, clock: Clock) -> Result<Look, StoreError> {
        if !path.exists() {
            return Ok(Look::Missing);
        }
        let turn = Turn::take(path).await.map_err(|error| StoreError::Unavailable(error.into()))?;
        let looked = Self::look(path, clock).await;
        drop(turn);
        looked
    }

    /// Looks at a `PostgreSQL` database: makes nothing, migrates nothing, and every write of the store it may answer with
    /// fails.
    ///
    /// # Errors
    /// As [`Store::connect`].
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn look_at(place: &PostgresPlace, clock: Clock) -> Result<Look, StoreError> {
        let (database, reader, missing) = Database::look_at_postgres(place).await?;
        if missing == Database::all_of_postgres() {
            database.close().await;
            return Ok(Look::Missing);
        }
        Self::looked((database, reader, missing), clock).await
    }

    async fn looked(
        (database, reader, missing): (Database, Reader, usize),
        clock: Clock,
    ) -> Result<Look, StoreError> {
        if missing > 0 {
            database.close().await;
            return Ok(Look::Behind { migrations: missing });
        }
        let around = Self::around((database, reader), Live::default(), clock, Random::system());
        Ok(Look::Ready(around))
    }

    /// Closes the database after the transactions under way; calls that come later answer
    /// [`StoreError::Unavailable`].
    ///
    /// # Errors
    /// As every write, for what was still to be written.
    /// # Cancel safety
    /// Safe: whatever was acknowledged is on disk already.
    pub async fn close(&self) -> Result<(), StoreError> {
        let keys_written = self.write_key_uses().await;
        let credentials_written = self.write_credential_uses(true).await;
        self.shared.database.close().await;
        keys_written.and(credentials_written)
    }

    /// Proves that the database takes writes, by making one.
    ///
    /// # Errors
    /// [`StoreError::Full`] or [`StoreError::Unavailable`], like any write.
    /// # Cancel safety
    /// Safe: the write means nothing.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sql::query(PING).execute(&mut *tx.db).await?;
        tx.commit().await
    }

    /// Whether servers on other machines can use the same database.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.shared.database, Database::Postgres(_))
    }

    /// Whether what `keeper` keeps on its own machine may be out of the reach of `own`: where servers share the database, what another
    /// one keeps, or nobody knows who. Otherwise there is one server, whatever it was called.
    #[must_use]
    pub fn is_elsewhere(&self, keeper: Option<&ServerId>, own: Option<&ServerId>) -> bool {
        self.is_shared() && (keeper.is_none() || keeper != own)
    }

    /// What this process has counted.
    #[must_use]
    pub fn meters(&self) -> &Meters {
        &self.shared.meters
    }

    /// The time by the store's clock, Unix ms.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.shared.clock.now_ms()
    }

    /// Listens for changes under `topic`. Subscribe before reading, then read, then wait: then no change is missed.
    #[must_use]
    pub fn watch(&self, topic: Topic) -> Watch {
        self.shared.hints.watch(topic)
    }

    /// Has whoever watches a sandbox look again, here and on other servers: for when the hint of its change may have been
    /// lost.
    pub fn wake_sandbox(&self, sandbox: &SandboxId) {
        let topics = vec![Topic::Sandbox(sandbox.clone())];
        self.shared.hints.wake(&topics);
        if let Some(notifier) = &self.shared.notifier {
            notifier.wake(topics);
        }
    }

    /// Listens to the text deltas of a session, on whichever server its sandbox is. Lossy: a receiver that lags behind by more than
    /// [`DELTA_CHANNEL_ITEMS`] is told how many it missed.
    #[must_use]
    pub fn subscribe_deltas(&self, session: &SessionId) -> broadcast::Receiver<Delta> {
        let receiver = self.shared.deltas.subscribe(session);
        if let Some(notifier) = &self.shared.notifier {
            notifier.listen(session.clone());
        }
        receiver
    }

    /// Hands a text delta to whoever listens now, on another server as well; never blocks, and does nothing when nobody
    /// listens.
    pub fn publish_delta(&self, session: &SessionId, delta: Delta) {
        if let Some(notifier) = &self.shared.notifier
            && self.shared.deltas.is_wanted_elsewhere(session)
        {
            notifier.tell(session.clone(), delta.clone());
        }
        self.shared.deltas.publish(session, delta);
    }
}
