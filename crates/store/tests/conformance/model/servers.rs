//! Servers and shares as the model has them: who was heard of when, whose sessions are where, and who may write off what.

use caisson_domain::event::EventKind;
use caisson_domain::id::{RunId, SessionId};
use caisson_domain::limits::{LOST_RUNS, SERVER_LOST_MS_MIN, SERVER_SILENT_MS};
use caisson_domain::run::RunStatus;
use caisson_domain::server::Role;
use caisson_store::{Actor, Beat, ChangeShare, Presence};

use super::{Expected, Pair};
use crate::fixture::server_id;

/// How long a server is silent that is lost.
pub(super) const LOST_MS: i64 = SERVER_LOST_MS_MIN;
/// Between two signs of life of one that lives.
const TURN_MS: i64 = 20_000;

/// A server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    /// When its worker was heard of.
    pub(super) seen_at_ms: i64,
    /// When its process was heard of, and since when without a pause.
    pub(super) alive: Option<(i64, i64)>,
}

impl Server {
    /// One whose process has said nothing yet.
    pub(super) fn registered(now_ms: i64) -> Self {
        Self { seen_at_ms: now_ms, alive: None }
    }
}

/// An attempt at a run.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) run: RunId,
    pub(super) number: i64,
    session: SessionId,
    pub(super) server: u8,
    pub(super) agent_started_at_ms: Option<i64>,
}

impl Attempt {
    /// The one that a run is in.
    pub(super) fn of(run: &Expected, server: u8) -> Self {
        Self {
            run: run.id.clone(),
            number: run.attempt,
            session: run.session.clone(),
            server,
            agent_started_at_ms: None,
        }
    }

    /// Whether a run is in it.
    pub(super) fn is_of(&self, run: &Expected) -> bool {
        self.run == run.id && self.number == run.attempt
    }
}

impl Pair {
    fn server(&mut self, number: u8) -> &mut Server {
        &mut self.servers[usize::from(number - 1)]
    }

    /// A server says that it lives, and again so many times.
    pub(super) async fn live(&mut self, number: u8, turns: u8) {
        let presence = Presence {
            server: server_id(number),
            roles: vec![Role::Worker],
            version: "1".to_owned(),
            slots: None,
        };
        for turn in 0..=turns {
            if turn > 0 {
                self.advance(TURN_MS);
            }
            assert_eq!(self.fixture.store.beat(&presence).await.unwrap(), Beat::Noted);
            self.fixture.store.register_server(&server_id(number)).await.unwrap();
            let now_ms = self.now_ms;
            let server = self.server(number);
            let kept = server.alive.filter(|(seen_ms, _)| now_ms - seen_ms <= SERVER_SILENT_MS);
            server.alive = Some((now_ms, kept.map_or(now_ms, |(_, since_ms)| since_ms)));
            server.seen_at_ms = now_ms;
        }
    }

    /// Whether a server was heard of for as long as another must have been silent to be lost.
    fn is_witness(&self, number: u8) -> bool {
        let alive = self.servers[usize::from(number - 1)].alive;
        alive.is_some_and(|(seen_ms, since_ms)| {
            seen_ms >= self.now_ms - SERVER_SILENT_MS && since_ms <= self.now_ms - LOST_MS
        })
    }

    fn is_silent(&self, number: u8) -> bool {
        self.servers[usize::from(number - 1)].seen_at_ms <= self.now_ms - LOST_MS
    }

    /// Whether the session's agent worked last on another server, for which its runs wait.
    pub(super) fn holds_elsewhere(&self, session: &SessionId, claimer: u8) -> bool {
        let began = self.attempts.iter().filter(|attempt| attempt.session == *session);
        let began = began.filter(|attempt| attempt.agent_started_at_ms.is_some());
        let home = began.max_by_key(|attempt| attempt.agent_started_at_ms).map(|attempt| attempt.server);
        home.is_some_and(|home| home != claimer && !(self.is_silent(home) && self.is_witness(claimer)))
    }

    /// A server takes the runs of lost ones from them.
    pub(super) async fn write_off(&mut self, number: u8) {
        let taken = self.fixture.store.write_off_lost(&server_id(number)).await.unwrap();
        let mut lost: Vec<usize> = Vec::new();
        if self.is_witness(number) {
            lost.extend((0..self.runs.len()).filter(|at| {
                let run = &self.runs[*at];
                let elsewhere = run.home.filter(|home| *home != number);
                run.status == RunStatus::Running
                    && run.lease_expires_at_ms <= self.now_ms
                    && elsewhere.is_some_and(|home| self.is_silent(home))
            }));
        }
        lost.sort_by(|left, right| self.runs[*left].id.cmp(&self.runs[*right].id));
        assert!(lost.len() <= usize::try_from(LOST_RUNS).unwrap());
        assert_eq!(taken, lost.iter().map(|at| self.runs[*at].id.clone()).collect::<Vec<_>>());
        for at in lost {
            let run = &mut self.runs[at];
            run.epoch += 1;
            run.kinds.push(EventKind::Note);
            if run.agent_started {
                run.end(RunStatus::Failed);
            } else {
                run.give_back(self.now_ms);
            }
        }
    }

    /// A project gets a model credential of its own, in place of the one before.
    pub(super) async fn add_credential(&mut self, project: usize) {
        self.credentials += 1;
        let tenant = &mut self.tenants[project];
        tenant.credential = format!("crd_{:03}", self.credentials);
        let insert = format!(
            "insert into credential (id, project_id, name, kind, version, created_at_ms, key_id, data_key, sealed, settings) \
             values ('{}', '{}', 'own-{}', 'model_api_key', 1, 0, '', '', '', '{{}}')",
            tenant.credential, tenant.id, self.credentials
        );
        let insert: &'static str = Box::leak(insert.into_boxed_str());
        self.fixture.execute(insert).await;
    }

    pub(super) async fn share(
        &mut self,
        project: usize,
        weight: i64,
        running: Option<i64>,
        queued: Option<i64>,
    ) {
        let tenant = &mut self.tenants[project];
        (tenant.weight, tenant.max_running, tenant.max_queued) = (weight, running, queued);
        let change =
            ChangeShare { weight: Some(weight), max_running: Some(running), max_queued: Some(queued) };
        let changed = self.fixture.store.change_share(&tenant.id, &change, Actor::Operator).await.unwrap();
        let share = changed.unwrap().share;
        assert_eq!((share.weight, share.max_running, share.max_queued), (weight, running, queued));
    }

    pub(super) async fn drain(&mut self, server: Option<u8>) {
        match server {
            Some(server) => self.drained.push(server),
            None => self.all_drained = true,
        }
        let id = server.map(server_id);
        assert!(self.fixture.store.drain(id.as_ref(), &Actor::Operator).await.unwrap());
    }

    pub(super) async fn resume(&mut self, server: Option<u8>) {
        if server.is_none() {
            self.all_drained = false;
        }
        self.drained.retain(|drained| server.is_some_and(|server| *drained != server));
        let id = server.map(server_id);
        assert!(self.fixture.store.resume(id.as_ref(), &Actor::Operator).await.unwrap());
    }
}
