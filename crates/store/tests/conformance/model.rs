//! The queue against a model of it: whatever happens in whatever order, both agree on every answer and every row.

mod rows;
mod servers;
mod steps;

use std::time::{Duration, Instant};

use caisson_domain::event::EventKind;
use caisson_domain::id::{ProjectId, RunId, SandboxId, ServerId, SessionId};
use caisson_domain::limits::LEASE_MS;
use caisson_domain::queue::{PRIORITY_STEP_MS, QueueLimits, TURN};
use caisson_domain::run::{Run, RunSpec, RunStatus};
use caisson_store::{
    Actor, CancelRun, Claimed, CreateProject, CreateRun, Finish, HomeEpoch, JournalAppend, JournalEffect,
    NewRun,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use self::servers::{Attempt, Server};
use self::steps::{PROJECTS, Step, limits, step};
use crate::fixture::{Fixture, START_MS, entry, new_run, project, server_id, spec, spec_on};

/// Sequences tried, unless the variable says how many.
const CASES: u32 = 48;
/// How long sequences are tried on `PostgreSQL`, unless the variable says how many: each makes its tables anew, which takes
/// longer than the sequence.
const POSTGRES_TIME: Duration = Duration::from_secs(20);
/// The variable: `make queue-model` sets it.
const CASES_VARIABLE: &str = "TEST_QUEUE_CASES";
/// Longest sequence.
const STEPS: usize = 60;

/// A run as the model has it.
#[derive(Debug, Clone)]
struct Expected {
    id: RunId,
    session: SessionId,
    project: usize,
    rank_ms: i64,
    branch: Option<u8>,
    created_at_ms: i64,
    status: RunStatus,
    epoch: i64,
    attempt: i64,
    lease_expires_at_ms: i64,
    not_before_ms: i64,
    home: Option<u8>,
    /// The model credential that it was claimed with; empty: that of the settings, or none yet.
    credential: String,
    sandbox: Option<SandboxId>,
    agent_started: bool,
    cancel_requested: bool,
    kinds: Vec<EventKind>,
}

impl Expected {
    /// Whether the caller who holds the newest epoch, or one older, owns the run.
    fn owned(&self, stale: bool) -> bool {
        self.status == RunStatus::Running && !stale
    }

    fn claimed_epoch(&self, stale: bool) -> HomeEpoch {
        HomeEpoch::new(self.epoch - i64::from(stale), &server_id(self.home.unwrap_or(1)))
    }

    fn end(&mut self, status: RunStatus) {
        self.status = status;
        self.kinds.push(EventKind::RunFinished);
    }

    /// Back to the queue, or to its end if somebody has asked for that.
    fn give_back(&mut self, not_before_ms: i64) {
        if self.cancel_requested {
            self.end(RunStatus::Cancelled);
            return;
        }
        self.status = RunStatus::Queued;
        self.not_before_ms = not_before_ms;
        self.home = None;
        self.sandbox = None;
        self.kinds.push(EventKind::RunRequeued);
    }
}

/// A project as the model has it.
#[derive(Debug, Clone)]
struct Tenant {
    id: ProjectId,
    weight: i64,
    turn: i64,
    max_running: Option<i64>,
    max_queued: Option<i64>,
    /// The newest model credential of its own; empty: it uses that of the settings.
    credential: String,
}

/// Store and model side by side.
struct Pair {
    fixture: Fixture,
    limits: QueueLimits,
    now_ms: i64,
    runs: Vec<Expected>,
    attempts: Vec<Attempt>,
    tenants: Vec<Tenant>,
    servers: [Server; 2],
    drained: Vec<u8>,
    all_drained: bool,
    sandboxes: u8,
    credentials: u8,
}

impl Pair {
    async fn new(fixture: Fixture, limits: QueueLimits) -> Self {
        fixture.store.register_server(&server_id(2)).await.unwrap();
        fixture.store.bound_queue(limits);
        fixture.store.set_server_lost_after_ms(servers::LOST_MS);
        let mut tenants = Vec::new();
        for number in 0..PROJECTS {
            let id = if number == 0 { project() } else { format!("p-{number}").parse().unwrap() };
            if number > 0 {
                let made = fixture.store.create_project(&id, Actor::Operator).await.unwrap();
                assert!(matches!(made, CreateProject::Created(_)));
            }
            let credential = String::new();
            tenants.push(Tenant { id, weight: 1, turn: 0, max_running: None, max_queued: None, credential });
        }
        Self {
            fixture,
            limits,
            now_ms: START_MS,
            runs: Vec::new(),
            attempts: Vec::new(),
            tenants,
            servers: [Server::registered(START_MS); 2],
            drained: Vec::new(),
            all_drained: false,
            sandboxes: 0,
            credentials: 0,
        }
    }

    async fn take(&mut self, step: &Step) {
        let at = |run: usize| run % self.runs.len().max(1);
        match *step {
            Step::Create { project, branch, priority, delay_ms } => {
                let spec =
                    branch.map_or_else(spec, |branch| spec_on("/srv/git/x", &format!("branch-{branch}")));
                // One millisecond a run, so that few have the same rank.
                self.advance(1);
                let start_at_ms = (delay_ms > 0).then_some(self.now_ms + delay_ms);
                self.create(project, branch, RunSpec { priority, start_at_ms, ..spec }, None).await;
            }
            Step::Live { server, turns } => self.live(server, turns).await,
            Step::WriteOff { server } => self.write_off(server).await,
            Step::Credential { project } => self.add_credential(project).await,
            Step::Claim { server } => self.claim(server).await,
            Step::Adopt { server } => self.adopt(server).await,
            Step::Advance { ms } => self.advance(ms),
            Step::Share { project, weight, max_running, max_queued } => {
                self.share(project, weight, max_running, max_queued).await;
            }
            Step::Drain { server } => self.drain(server).await,
            Step::Resume { server } => self.resume(server).await,
            _ if self.runs.is_empty() => {}
            Step::Follow { run, priority } => {
                let Expected { project, branch, session, .. } = self.runs[at(run)].clone();
                let spec =
                    branch.map_or_else(spec, |branch| spec_on("/srv/git/x", &format!("branch-{branch}")));
                self.advance(1);
                self.create(project, branch, RunSpec { priority, ..spec }, Some(session)).await;
            }
            Step::Heartbeat { run, stale } => self.heartbeat(at(run), stale).await,
            Step::Place { run, stale } => self.place(at(run), stale).await,
            Step::StartAgent { run } => self.start_agent(at(run)).await,
            Step::Requeue { run, stale, delay_ms } => self.requeue(at(run), stale, delay_ms).await,
            Step::Finish { run, stale, status } => self.finish(at(run), stale, status).await,
            Step::Cancel { run } => self.cancel(at(run)).await,
        }
    }

    fn advance(&mut self, ms: i64) {
        self.now_ms += ms;
        self.fixture.clock.advance(ms);
    }

    async fn create(
        &mut self,
        project: usize,
        branch: Option<u8>,
        spec: RunSpec,
        session: Option<SessionId>,
    ) {
        let tenant = &self.tenants[project];
        let since_ms = spec.start_at_ms.unwrap_or(self.now_ms);
        let rank_ms = since_ms - spec.priority * PRIORITY_STEP_MS;
        let (store, new) = (&self.fixture.store, NewRun { project: tenant.id.clone(), ..new_run(spec) });
        let created = match session {
            Some(session) => store.create_run_in(session, new).await.unwrap(),
            None => store.create_run(new).await.unwrap(),
        };
        let own = self.count(|run| run.status == RunStatus::Queued && run.project == project);
        if self.count(|run| run.status == RunStatus::Queued) >= self.limits.max_queued {
            assert_eq!(created, CreateRun::QueueFull);
            return;
        }
        // There are others beside it.
        let half = (self.limits.max_queued + 1) / 2;
        if own >= tenant.max_queued.or(self.limits.max_queued_per_project).unwrap_or(half) {
            assert_eq!(created, CreateRun::ProjectQueueFull);
            return;
        }
        let CreateRun::Created(run) = created else { panic!("{created:?}") };
        self.runs.push(Expected {
            id: run.id,
            session: run.session,
            project,
            rank_ms,
            branch,
            created_at_ms: self.now_ms,
            status: RunStatus::Queued,
            epoch: 0,
            attempt: 0,
            lease_expires_at_ms: 0,
            not_before_ms: since_ms,
            home: None,
            credential: String::new(),
            sandbox: None,
            agent_started: false,
            cancel_requested: false,
            kinds: vec![EventKind::RunQueued],
        });
    }

    fn count(&self, which: impl Fn(&Expected) -> bool) -> i64 {
        i64::try_from(self.runs.iter().filter(|run| which(run)).count()).unwrap()
    }

    fn is_due(&self, run: &Expected) -> bool {
        run.status == RunStatus::Queued && run.not_before_ms <= self.now_ms
    }

    /// The run that a server has to get.
    fn next(&self, server: u8) -> Option<usize> {
        let running = |which: &dyn Fn(&Expected) -> bool| {
            self.count(|run| run.status == RunStatus::Running && which(run))
        };
        let full = |cap: Option<i64>, running: i64| cap.is_some_and(|cap| running >= cap);
        if self.all_drained || self.drained.contains(&server) {
            return None;
        }
        if full(self.limits.max_running, running(&|_| true)) {
            return None;
        }
        let ahead = self.tenants.iter().map(|tenant| tenant.turn).max().unwrap();
        let of = |project: usize| running(&|run| run.project == project);
        let mut order: Vec<usize> = (0..PROJECTS).collect();
        order.sort_by(|left, right| {
            let (one, other) = (&self.tenants[*left], &self.tenants[*right]);
            let share = (of(*left) * other.weight).cmp(&(of(*right) * one.weight));
            let turn = one.turn.max(ahead - TURN).cmp(&other.turn.max(ahead - TURN));
            share.then(turn).then(one.id.as_str().cmp(other.id.as_str()))
        });
        let on_repository = running(&|run| run.branch.is_some());
        order.into_iter().find_map(|project| {
            let cap = self.tenants[project].max_running.or(self.limits.max_running_per_project);
            let credential = &self.tenants[project].credential;
            let with_it = running(&|run| run.credential == *credential);
            if full(cap, of(project)) || full(self.limits.max_running_per_credential, with_it) {
                return None;
            }
            let may_start = |run: &Expected| {
                let branch = run.branch;
                let taken = branch.is_some() && running(&|live| live.branch == branch) > 0;
                let crowded = branch.is_some() && full(self.limits.max_running_per_repository, on_repository);
                let lives = running(&|live| live.session == run.session) > 0;
                let held = self.holds_elsewhere(&run.session, server);
                run.project == project && self.is_due(run) && !lives && !taken && !crowded && !held
            };
            let first = self.runs.iter().enumerate().filter(|(_, run)| may_start(run));
            first.min_by_key(|(_, run)| (run.rank_ms, run.id.clone())).map(|(at, _)| at)
        })
    }

    async fn claim(&mut self, server: u8) {
        let claimed = self.fixture.store.claim(&server_id(server)).await.unwrap();
        let Some(at) = self.next(server) else {
            assert_eq!(claimed, None);
            return;
        };
        let ahead = self.tenants.iter().map(|tenant| tenant.turn).max().unwrap();
        let next = &mut self.runs[at];
        next.status = RunStatus::Running;
        next.epoch += 1;
        next.attempt += 1;
        next.home = Some(server);
        next.credential.clone_from(&self.tenants[next.project].credential);
        next.lease_expires_at_ms = self.now_ms + LEASE_MS;
        next.kinds.push(EventKind::RunStarted);
        self.attempts.push(Attempt::of(next, server));
        let tenant = &mut self.tenants[next.project];
        tenant.turn = tenant.turn.max(ahead - TURN) + TURN / tenant.weight;
        assert_claimed(&claimed.expect("the model claims one"), next);
    }

    async fn adopt(&mut self, server: u8) {
        let adopted = self.fixture.store.adopt(&server_id(server)).await.unwrap();
        let own =
            self.runs.iter_mut().filter(|run| run.status == RunStatus::Running && run.home == Some(server));
        let mut expected = Vec::new();
        for run in own {
            run.epoch += 1;
            run.lease_expires_at_ms = self.now_ms + LEASE_MS;
            expected.push(run.clone());
        }
        // Ids begin with the time, which may have been set back.
        expected.sort_by(|left, right| left.id.cmp(&right.id));
        assert_eq!(adopted.len(), expected.len());
        for (adopted, expected) in adopted.iter().zip(&expected) {
            assert_claimed(adopted, expected);
        }
    }

    async fn heartbeat(&mut self, at: usize, stale: bool) {
        let run = &mut self.runs[at];
        let extended = self.fixture.store.heartbeat(&run.id, run.claimed_epoch(stale)).await.unwrap();
        if run.owned(stale) {
            run.lease_expires_at_ms = self.now_ms + LEASE_MS;
            assert_eq!(extended, Some(run.lease_expires_at_ms));
        } else {
            assert_eq!(extended, None);
        }
    }

    async fn place(&mut self, at: usize, stale: bool) {
        self.sandboxes += 1;
        let run = &mut self.runs[at];
        let session = row(&self.fixture, &self.tenants, run).await.session;
        let (sandbox, _, _) = self.fixture.sandbox(&session, self.sandboxes).await;
        let store = &self.fixture.store;
        let placed = store.place(&run.id, run.claimed_epoch(stale), &sandbox).await.unwrap();
        assert_eq!(placed, run.owned(stale));
        if placed {
            run.sandbox = Some(sandbox);
        }
    }

    /// The shim of the run's last sandbox says that the agent starts, whether or not it is still the run's sandbox.
    async fn start_agent(&mut self, at: usize) {
        // Which of two agents of one moment began last, nobody can tell.
        while self.attempts.iter().any(|attempt| attempt.agent_started_at_ms == Some(self.now_ms)) {
            self.advance(1);
        }
        let run = &mut self.runs[at];
        let Some(sandbox) = &run.sandbox else { return };
        let store = &self.fixture.store;
        let offset = store.journal_offset(sandbox).await.unwrap();
        let mut started = entry(&row(&self.fixture, &self.tenants, run).await, JournalEffect::AgentStarted);
        started.attempt = run.attempt;
        let appended = store.append_journal(sandbox, offset, offset + 1, vec![started]).await.unwrap();
        let believed = run.status == RunStatus::Running;
        assert_eq!(
            appended,
            if believed {
                JournalAppend::Stored { acknowledged: offset + 1, skipped: 0 }
            } else {
                JournalAppend::Withdrawn { acknowledged: offset }
            }
        );
        if believed {
            run.agent_started = true;
            run.kinds.push(EventKind::Note);
            let attempt = self.attempts.iter_mut().find(|attempt| attempt.is_of(run));
            attempt.unwrap().agent_started_at_ms.get_or_insert(self.now_ms);
        }
    }

    async fn requeue(&mut self, at: usize, stale: bool, delay_ms: i64) {
        let run = &mut self.runs[at];
        let epoch = run.claimed_epoch(stale);
        let given_back = self.fixture.store.requeue(&run.id, epoch, "model", delay_ms).await.unwrap();
        assert_eq!(given_back, run.owned(stale) && !run.agent_started);
        if given_back {
            run.give_back(self.now_ms + delay_ms);
        }
    }

    async fn finish(&mut self, at: usize, stale: bool, status: RunStatus) {
        let run = &mut self.runs[at];
        let finish = Finish { status, failure: None, result: None };
        let finished = self.fixture.store.finish(&run.id, run.claimed_epoch(stale), &finish).await.unwrap();
        assert_eq!(finished, run.owned(stale));
        if finished {
            run.end(status);
        }
    }

    async fn cancel(&mut self, at: usize) {
        let run = &mut self.runs[at];
        let project = &self.tenants[run.project].id;
        let answer = self.fixture.store.request_cancel(project, &run.id, None).await.unwrap();
        match run.status {
            RunStatus::Queued => {
                assert!(matches!(answer, CancelRun::Cancelled(_)), "{answer:?}");
                run.cancel_requested = true;
                run.end(RunStatus::Cancelled);
            }
            RunStatus::Running => {
                assert!(matches!(answer, CancelRun::Requested(_)), "{answer:?}");
                if !run.cancel_requested {
                    run.kinds.push(EventKind::RunStopRequested);
                }
                run.cancel_requested = true;
            }
            RunStatus::Succeeded | RunStatus::Failed | RunStatus::Cancelled => {
                assert!(matches!(answer, CancelRun::Final(_)), "{answer:?}");
            }
        }
    }
}

async fn row(fixture: &Fixture, tenants: &[Tenant], run: &Expected) -> Run {
    fixture.store.run(&tenants[run.project].id, &run.id).await.unwrap().unwrap()
}

#[track_caller]
fn assert_claimed(claimed: &Claimed, expected: &Expected) {
    assert_eq!(claimed.run.id, expected.id);
    assert_eq!((claimed.epoch.number, claimed.run.attempt), (expected.epoch, expected.attempt));
    assert_eq!(claimed.run.status, RunStatus::Running);
    assert_eq!(claimed.lease_expires_at_ms, expected.lease_expires_at_ms);
    let home: Option<ServerId> = expected.home.map(server_id);
    assert_eq!(claimed.run.home, home);
}

#[expect(clippy::disallowed_methods, reason = "how long to try, only whoever starts the tests knows")]
fn cases() -> Option<u32> {
    let variable = std::env::var(CASES_VARIABLE).ok()?;
    Some(variable.parse().expect("TEST_QUEUE_CASES is a number"))
}

/// Runs every sequence on a database of its own.
fn agree_on<Open: AsyncFn() -> Option<Fixture>>(cases: u32, open: &Open) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let sequences = (limits(), prop::collection::vec(step(), 1..STEPS));
    TestRunner::new(config)
        .run(&sequences, |(limits, steps)| {
            runtime.block_on(async {
                let Some(fixture) = open().await else { return };
                let mut pair = Pair::new(fixture, limits).await;
                for step in &steps {
                    pair.take(step).await;
                    pair.compare_rows(step).await;
                }
                pair.compare().await;
            });
            Ok(())
        })
        .unwrap();
}

mod sqlite {
    #[test]
    fn store_and_model_agree_on_every_sequence() {
        super::agree_on(super::cases().unwrap_or(super::CASES), &async || {
            Some(crate::fixture::Fixture::sqlite().await)
        });
    }
}

mod postgres {
    use super::*;

    #[test]
    fn store_and_model_agree_on_every_sequence() {
        if let Some(cases) = cases() {
            agree_on(cases / 4, &Fixture::postgres);
            return;
        }
        let begun = Instant::now();
        while begun.elapsed() < POSTGRES_TIME {
            agree_on(1, &Fixture::postgres);
        }
    }
}
