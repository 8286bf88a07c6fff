//! The queue against a model of it: whatever happens in whatever order, both agree on every answer and every row.

use caisson_domain::event::EventKind;
use caisson_domain::id::{Epoch, RunId, SandboxId, ServerId};
use caisson_domain::limits::LEASE_MS;
use caisson_domain::run::RunStatus;
use caisson_store::{CancelRun, Claimed, Finish, JournalAppend, JournalEffect};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::fixture::{Fixture, START_MS, assert_gapless, entry, project, server_id, spec, spec_on};

/// Sequences tried.
const CASES: u32 = 48;
/// Longest sequence.
const STEPS: usize = 60;

/// Something that somebody does. A run is named by its place in the order of creation, modulo how many there are.
#[derive(Debug, Clone)]
enum Step {
    Create { branch: Option<u8> },
    Claim { server: u8 },
    Adopt { server: u8 },
    Heartbeat { run: usize, stale: bool },
    Place { run: usize, stale: bool },
    StartAgent { run: usize },
    Requeue { run: usize, stale: bool, delay_ms: i64 },
    Finish { run: usize, stale: bool, status: RunStatus },
    Cancel { run: usize },
    Advance { ms: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let run = 0..8_usize;
    let stale = prop::bool::weighted(0.25);
    let status = prop::sample::select(&[RunStatus::Succeeded, RunStatus::Failed, RunStatus::Cancelled][..]);
    prop_oneof![
        4 => prop::option::of(0..2_u8).prop_map(|branch| Step::Create { branch }),
        5 => (1..3_u8).prop_map(|server| Step::Claim { server }),
        1 => (1..3_u8).prop_map(|server| Step::Adopt { server }),
        1 => (run.clone(), stale).prop_map(|(run, stale)| Step::Heartbeat { run, stale }),
        3 => (run.clone(), stale).prop_map(|(run, stale)| Step::Place { run, stale }),
        2 => run.clone().prop_map(|run| Step::StartAgent { run }),
        3 => (run.clone(), stale, 0..2_i64)
            .prop_map(|(run, stale, delay)| Step::Requeue { run, stale, delay_ms: delay * 500 }),
        3 => (run.clone(), stale, status)
            .prop_map(|(run, stale, status)| Step::Finish { run, stale, status }),
        2 => run.prop_map(|run| Step::Cancel { run }),
        2 => prop::sample::select(&[1, 499, LEASE_MS + 1][..]).prop_map(|ms| Step::Advance { ms }),
    ]
}

/// A run as the model has it.
#[derive(Debug, Clone)]
struct Expected {
    id: RunId,
    branch: Option<u8>,
    created_at_ms: i64,
    status: RunStatus,
    epoch: i64,
    attempt: i64,
    lease_expires_at_ms: i64,
    not_before_ms: i64,
    home: Option<u8>,
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

    fn claimed_epoch(&self, stale: bool) -> Epoch {
        Epoch(self.epoch - i64::from(stale))
    }

    fn end(&mut self, status: RunStatus) {
        self.status = status;
        self.kinds.push(EventKind::RunFinished);
    }
}

/// Store and model side by side.
struct Pair {
    fixture: Fixture,
    now_ms: i64,
    runs: Vec<Expected>,
    sandboxes: u8,
}

impl Pair {
    async fn new(fixture: Fixture) -> Self {
        fixture.store.register_server(&server_id(2)).await.unwrap();
        Self { fixture, now_ms: START_MS, runs: Vec::new(), sandboxes: 0 }
    }

    async fn take(&mut self, step: &Step) {
        let at = |run: usize| run % self.runs.len().max(1);
        match *step {
            Step::Create { branch } => self.create(branch).await,
            Step::Claim { server } => self.claim(server).await,
            Step::Adopt { server } => self.adopt(server).await,
            Step::Advance { ms } => {
                self.now_ms += ms;
                self.fixture.clock.advance(ms);
            }
            _ if self.runs.is_empty() => {}
            Step::Heartbeat { run, stale } => self.heartbeat(at(run), stale).await,
            Step::Place { run, stale } => self.place(at(run), stale).await,
            Step::StartAgent { run } => self.start_agent(at(run)).await,
            Step::Requeue { run, stale, delay_ms } => self.requeue(at(run), stale, delay_ms).await,
            Step::Finish { run, stale, status } => self.finish(at(run), stale, status).await,
            Step::Cancel { run } => self.cancel(at(run)).await,
        }
    }

    async fn create(&mut self, branch: Option<u8>) {
        // One millisecond a run, so that the order of creation is the order of age.
        self.now_ms += 1;
        self.fixture.clock.advance(1);
        let spec = branch.map_or_else(spec, |branch| spec_on("/srv/git/x", &format!("branch-{branch}")));
        let run = self.fixture.created(spec).await;
        self.runs.push(Expected {
            id: run.id,
            branch,
            created_at_ms: self.now_ms,
            status: RunStatus::Queued,
            epoch: 0,
            attempt: 0,
            lease_expires_at_ms: 0,
            not_before_ms: self.now_ms,
            home: None,
            sandbox: None,
            agent_started: false,
            cancel_requested: false,
            kinds: vec![EventKind::RunQueued],
        });
    }

    async fn claim(&mut self, server: u8) {
        let claimed = self.fixture.store.claim(&server_id(server)).await.unwrap();
        let busy: Vec<u8> = self
            .runs
            .iter()
            .filter(|run| run.status == RunStatus::Running)
            .filter_map(|run| run.branch)
            .collect();
        let now_ms = self.now_ms;
        let next = self.runs.iter_mut().find(|run| {
            run.status == RunStatus::Queued
                && run.not_before_ms <= now_ms
                && run.branch.is_none_or(|branch| !busy.contains(&branch))
        });
        let Some(next) = next else {
            assert_eq!(claimed, None);
            return;
        };
        next.status = RunStatus::Running;
        next.epoch += 1;
        next.attempt += 1;
        next.home = Some(server);
        next.lease_expires_at_ms = now_ms + LEASE_MS;
        next.kinds.push(EventKind::RunStarted);
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
        let session = self.fixture.run(&run.id).await.session;
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
        let run = &mut self.runs[at];
        let Some(sandbox) = &run.sandbox else { return };
        let store = &self.fixture.store;
        let offset = store.journal_offset(sandbox).await.unwrap();
        let mut started = entry(&self.fixture.run(&run.id).await, JournalEffect::AgentStarted);
        started.attempt = run.attempt;
        let appended = store.append_journal(sandbox, offset, offset + 1, vec![started]).await.unwrap();
        let believed = run.status == RunStatus::Running;
        let skipped = u64::from(!believed);
        assert_eq!(appended, JournalAppend::Stored { acknowledged: offset + 1, skipped });
        if believed {
            run.agent_started = true;
            run.kinds.push(EventKind::Note);
        }
    }

    async fn requeue(&mut self, at: usize, stale: bool, delay_ms: i64) {
        let run = &mut self.runs[at];
        let epoch = run.claimed_epoch(stale);
        let given_back = self.fixture.store.requeue(&run.id, epoch, "model", delay_ms).await.unwrap();
        assert_eq!(given_back, run.owned(stale) && !run.agent_started);
        if given_back && run.cancel_requested {
            run.end(RunStatus::Cancelled);
        } else if given_back {
            run.status = RunStatus::Queued;
            run.not_before_ms = self.now_ms + delay_ms;
            run.home = None;
            run.sandbox = None;
            run.kinds.push(EventKind::RunRequeued);
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
        let answer = self.fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
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

    /// Every row is what the model says.
    async fn compare(&self) {
        for expected in &self.runs {
            let run = self.fixture.run(&expected.id).await;
            assert_eq!(run.status, expected.status);
            assert_eq!((run.attempt, run.agent_started), (expected.attempt, expected.agent_started));
            assert_eq!(run.cancel_requested_at_ms.is_some(), expected.cancel_requested);
            assert_eq!(run.created_at_ms, expected.created_at_ms);
            assert_eq!(run.finished_at_ms.is_some(), expected.status.is_final());
            assert_eq!(run.home.as_ref(), expected.home.map(server_id).as_ref());
            assert_eq!(run.sandbox, expected.sandbox);
            assert_gapless(&self.fixture.events(&expected.id).await);
            assert_eq!(self.fixture.kinds(&expected.id).await, expected.kinds);
            let progress = self.fixture.store.progress(&expected.id, Epoch(expected.epoch)).await.unwrap();
            let lease = progress.map(|progress| progress.lease_expires_at_ms);
            let running = expected.status == RunStatus::Running;
            assert_eq!(lease, running.then_some(expected.lease_expires_at_ms));
        }
    }
}

#[track_caller]
fn assert_claimed(claimed: &Claimed, expected: &Expected) {
    assert_eq!(claimed.run.id, expected.id);
    assert_eq!((claimed.epoch.0, claimed.run.attempt), (expected.epoch, expected.attempt));
    assert_eq!(claimed.run.status, RunStatus::Running);
    assert_eq!(claimed.lease_expires_at_ms, expected.lease_expires_at_ms);
    let home: Option<ServerId> = expected.home.map(server_id);
    assert_eq!(claimed.run.home, home);
}

/// Runs every sequence on a database of its own.
fn agree_on<Open: AsyncFn() -> Option<Fixture>>(cases: u32, open: Open) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec(step(), 1..STEPS);
    TestRunner::new(config)
        .run(&steps, |steps| {
            runtime.block_on(async {
                let Some(fixture) = open().await else { return };
                let mut pair = Pair::new(fixture).await;
                for step in &steps {
                    pair.take(step).await;
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
        super::agree_on(super::CASES, async || Some(crate::fixture::Fixture::sqlite().await));
    }
}

mod postgres {
    #[test]
    fn store_and_model_agree_on_every_sequence() {
        // Each case makes its tables anew, which takes longer than the case.
        super::agree_on(super::CASES / 4, crate::fixture::Fixture::postgres);
    }
}
