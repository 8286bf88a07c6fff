//! A store on a real database of its own, and short ways to the situations that tests begin with.

use std::path::Path;

use caisson_domain::event::{Event, EventKind, NewEvent};
use caisson_domain::grant::{GrantKind, Token};
use caisson_domain::id::{ProjectId, RunId, SandboxId, ServerId, SessionId};
use caisson_domain::protocol::{Ending, Outcome};
use caisson_domain::run::{Resources, Run, RunSpec};
use caisson_domain::server::Role;
use caisson_domain::workflow::{CaissonBlock, PermissionMode, Workflow};
use caisson_store::{
    Claimed, Clock, ClockHandle, CreateRun, HomeEpoch, JournalAppend, JournalEffect, JournalEntry, NewRun,
    NewSandbox, Presence, Random, Store, StoreError, Watch,
};
use futures_util::FutureExt as _;
use serde_json::json;

use crate::database::{Checks, Database, Readable, Sql, TestRow};

/// When every test begins, Unix ms.
pub(crate) const START_MS: i64 = 1_700_000_000_000;

/// Rows of an event page that no test exceeds.
pub(crate) const ALL: u32 = 1_000;

/// A store, its clock, and the database below it.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) clock: ClockHandle,
    pub(crate) server: ServerId,
    /// Goes last: it is taken away when it is dropped.
    pub(crate) database: Database,
}

/// A claimed run in its sandbox.
pub(crate) struct Placed {
    pub(crate) run: Run,
    pub(crate) epoch: HomeEpoch,
    pub(crate) sandbox: SandboxId,
    pub(crate) control: Token,
    pub(crate) agent: Token,
}

impl Fixture {
    /// A new database file with one registered server.
    pub(crate) async fn sqlite() -> Self {
        Self::on(Database::sqlite()).await
    }

    /// A new schema with one registered server; none where there is no `PostgreSQL`.
    pub(crate) async fn postgres() -> Option<Self> {
        Some(Self::on(Database::postgres().await?).await)
    }

    async fn on(database: Database) -> Self {
        let (clock, handle) = Clock::fixed_at(START_MS);
        let store = database.open(clock, Random::system()).await.expect("a new database opens");
        let server = server_id(1);
        store.register_server(&server).await.expect("a server registers");
        Self { store, clock: handle, server, database }
    }

    /// Drops the store as a killed process would, without closing it, and opens the same database again.
    pub(crate) async fn reopen(self) -> Self {
        drop(self.store);
        let (clock, handle) = Clock::fixed_at(START_MS);
        let store = self.database.open(clock, Random::system()).await.expect("the database opens again");
        Self { store, clock: handle, server: self.server, database: self.database }
    }

    /// Opens the same database once more, as another server does.
    pub(crate) async fn beside(&self, clock: Clock) -> Result<Store, StoreError> {
        self.database.open(clock, Random::system()).await
    }

    /// A directory of the test's own; a database file is in it.
    pub(crate) fn directory(&self) -> &Path {
        self.database.directory()
    }

    /// Changes the database behind the store's back.
    pub(crate) async fn execute(&self, sql: impl Into<Sql>) {
        self.try_execute(sql).await.expect("the statement is valid");
    }

    /// Tries to change the database behind the store's back.
    pub(crate) async fn try_execute(&self, sql: impl Into<Sql>) -> Result<(), sqlx::Error> {
        self.database.try_execute(sql.into(), Checks::Off).await.map(drop)
    }

    /// Reads one value behind the store's back.
    pub(crate) async fn value<T: for<'r> Readable<'r>>(&self, sql: impl Into<Sql>) -> T {
        self.rows(sql).await[0].get(0)
    }

    /// Reads rows behind the store's back.
    pub(crate) async fn rows(&self, sql: impl Into<Sql>) -> Vec<TestRow> {
        self.database.rows(sql.into()).await
    }

    /// Whether anything that is stored holds these bytes.
    pub(crate) async fn holds(&self, needle: &[u8]) -> bool {
        let contents = self.database.contents().await;
        contents.iter().any(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    }

    /// Queues a run without a repository.
    pub(crate) async fn queued(&self) -> Run {
        self.created(spec()).await
    }

    /// Queues a run.
    pub(crate) async fn created(&self, spec: RunSpec) -> Run {
        made(self.store.create_run(new_run(spec)).await)
    }

    /// Claims the next run.
    pub(crate) async fn claim(&self) -> Claimed {
        self.store.claim(&self.server).await.expect("claiming works").expect("a run waits")
    }

    /// A sign of life of the server, with which goes what is written now and then.
    pub(crate) async fn beat(&self) {
        let presence = Presence {
            server: self.server.clone(),
            roles: vec![Role::Gateway],
            version: "1.2.3".to_owned(),
            slots: None,
        };
        self.store.beat(&presence).await.expect("a server tells that it lives");
    }

    /// Makes a sandbox for a session.
    pub(crate) async fn sandbox(&self, session: &SessionId, number: u8) -> (SandboxId, Token, Token) {
        let id = SandboxId::new(START_MS, [number; 10]);
        let control = Token::grant(GrantKind::Control, [number; 32]);
        let agent = Token::grant(GrantKind::Agent, [number; 32]);
        let new = NewSandbox {
            id: id.clone(),
            session: session.clone(),
            server: self.server.clone(),
            engine: "docker".to_owned(),
            image: "caisson/sandbox:1".to_owned(),
            uid: 10_001,
            control: control.hash(),
            agent: agent.hash(),
        };
        self.store.create_sandbox(&new).await.expect("the sandbox is written down");
        (id, control, agent)
    }

    /// Queues a run, claims it and places it in a sandbox.
    pub(crate) async fn placed(&self) -> Placed {
        self.queued().await;
        let claimed = self.claim().await;
        self.place(claimed, 1).await
    }

    /// Places a claimed run in a new sandbox.
    pub(crate) async fn place(&self, claimed: Claimed, number: u8) -> Placed {
        let (sandbox, control, agent) = self.sandbox(&claimed.run.session, number).await;
        let placed = self.store.place(&claimed.run.id, claimed.epoch, &sandbox).await;
        assert!(placed.expect("placing works"), "the run is still ours");
        Placed { run: self.run(&claimed.run.id).await, epoch: claimed.epoch, sandbox, control, agent }
    }

    /// The run as it stands.
    pub(crate) async fn run(&self, id: &RunId) -> Run {
        self.store.run(&project(), id).await.expect("reading works").expect("the run exists")
    }

    /// Every event of the run.
    pub(crate) async fn events(&self, run: &RunId) -> Vec<Event> {
        self.store.events(run, 0, ALL).await.expect("reading works")
    }

    /// The kinds of the run's events, in order.
    pub(crate) async fn kinds(&self, run: &RunId) -> Vec<EventKind> {
        self.events(run).await.iter().map(|event| event.kind).collect()
    }

    /// The data of the run's only event of that kind.
    pub(crate) async fn data(&self, run: &RunId, kind: EventKind) -> serde_json::Value {
        let mut found: Vec<_> =
            self.events(run).await.into_iter().filter(|event| event.kind == kind).collect();
        assert_eq!(found.len(), 1, "events of kind {kind}");
        serde_json::from_str(found.remove(0).data.get()).expect("an event's data is JSON")
    }

    /// Journals one entry of the placed run behind whatever its sandbox has journaled.
    pub(crate) async fn journal(&self, placed: &Placed, effect: JournalEffect) -> JournalAppend {
        let offset = self.store.journal_offset(&placed.sandbox).await.expect("the sandbox exists");
        let entries = vec![entry(&placed.run, effect)];
        let appended = self.store.append_journal(&placed.sandbox, offset, offset + 10, entries).await;
        appended.expect("appending works")
    }
}

/// The project of every test that does not say otherwise.
pub(crate) fn project() -> ProjectId {
    ProjectId::default_project()
}

/// A server's id.
pub(crate) fn server_id(number: u8) -> ServerId {
    ServerId::new(START_MS, [number; 10])
}

/// A workflow.
pub(crate) fn workflow(name: &str) -> Workflow {
    Workflow {
        name: name.to_owned(),
        description: "Fixes bugs".to_owned(),
        prompt: "Be careful.".to_owned(),
        tools: None,
        disallowed_tools: Vec::new(),
        allowed_tools: Vec::new(),
        model: None,
        permission_mode: PermissionMode::BypassPermissions,
        max_turns: Some(20),
        mcp_servers: serde_json::Map::new(),
        caisson: CaissonBlock::default(),
    }
}

/// A run's specification without a repository.
pub(crate) fn spec() -> RunSpec {
    RunSpec {
        workflow: workflow("bug-fixer"),
        prompt: "Fix the bug".to_owned(),
        repository: None,
        base: None,
        anchor: None,
        branch: None,
        model: None,
        max_turns: None,
        image: None,
        timeout_s: 600,
        budget_micro_usd: None,
        budget_soft_percent: None,
        resources: Resources::default(),
        environment: std::collections::BTreeMap::new(),
        priority: 0,
        start_at_ms: None,
        parameters: caisson_domain::parameters::Values::new(),
        output_schema: None,
        attachments: Vec::new(),
        workflow_version: None,
    }
}

/// A run's specification on a branch of a repository.
pub(crate) fn spec_on(repository: &str, branch: &str) -> RunSpec {
    RunSpec {
        repository: Some(repository.parse().expect("a repository")),
        branch: Some(branch.parse().expect("a branch")),
        ..spec()
    }
}

/// A run to be made in the default project.
pub(crate) fn new_run(spec: RunSpec) -> NewRun {
    NewRun { project: project(), created_by: None, spec, idempotency: None }
}

/// The run that was made.
#[track_caller]
pub(crate) fn made(created: Result<CreateRun, StoreError>) -> Run {
    let Ok(CreateRun::Created(run)) = created else { panic!("not created: {created:?}") };
    run
}

/// Asserts that events are numbered from 1 without a gap.
#[track_caller]
pub(crate) fn assert_gapless(events: &[Event]) {
    for (expected, event) in (1..).zip(events) {
        assert_eq!(event.seq, expected);
    }
}

/// A journal entry of the run's current attempt with an event.
pub(crate) fn entry(run: &Run, effect: JournalEffect) -> JournalEntry {
    let event = Some(note("journaled"));
    JournalEntry { run: run.id.clone(), attempt: run.attempt, event, effect }
}

/// An event.
pub(crate) fn note(message: &str) -> NewEvent {
    NewEvent::new(EventKind::Note, &json!({ "level": "info", "message": message }))
}

/// How a shim's part ended well.
pub(crate) fn completed(result: &str) -> Outcome {
    Outcome {
        ending: Ending::Completed,
        result: Some(result.to_owned()),
        head: None,
        pushed: false,
        kept: false,
    }
}

/// Asserts that an error says that something is corrupt, and what.
#[track_caller]
pub(crate) fn assert_corrupt<T: std::fmt::Debug>(result: Result<T, StoreError>, expected: &str) {
    match result {
        Err(StoreError::Corrupt { what, .. }) => assert!(what.contains(expected), "{what}"),
        other => panic!("not corrupt: {other:?}"),
    }
}

/// Whether there was a hint since the last call.
pub(crate) fn woken(watch: &mut Watch) -> bool {
    watch.changed(std::time::Duration::from_hours(1)).now_or_never().is_some()
}
