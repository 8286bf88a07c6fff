//! What is compared after each step: every row that the queue decides by.

use caisson_domain::run::RunStatus;

use super::steps::{PROJECTS, Step};
use super::{Expected, Pair, row};
use crate::fixture::{assert_gapless, server_id};

const ROWS: &str = "select 'run ' || id || ' ' || session_id || ' ' || status || ' ' || attempt || ' ' || lease_epoch \
       || ' ' || coalesce(cast(lease_expires_at_ms as text), '-') || ' ' || not_before_ms || ' ' || queue_rank_ms \
       || ' ' || coalesce(home_server_id, '-') || ' ' || coalesce(sandbox_id, '-') || ' ' || agent_started \
       || ' ' || case when cancel_requested_at_ms is null then 0 else 1 end || ' ' || model_credential_id \
     from run \
     union all select 'attempt ' || run_id || ' ' || number || ' ' || server_id || ' ' \
       || coalesce(cast(agent_started_at_ms as text), '-') from attempt \
     union all select 'project ' || id || ' ' || turn || ' ' || weight from project \
     union all select 'server ' || id || ' ' || seen_at_ms from server \
     union all select 'alive ' || server_id || ' ' || seen_at_ms || ' ' || alive_since_ms from server_role";

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

impl Pair {
    /// Every row is what the model says.
    pub(super) async fn compare_rows(&self, step: &Step) {
        let mut rows: Vec<String> =
            self.fixture.rows(ROWS).await.iter().map(|row| row.get::<String>(0)).collect();
        let mut expected: Vec<String> = self.runs.iter().map(run_row).collect();
        expected.extend(self.attempts.iter().map(|attempt| {
            let server = server_id(attempt.server);
            format!(
                "attempt {} {} {server} {}",
                attempt.run,
                attempt.number,
                text(attempt.agent_started_at_ms)
            )
        }));
        expected.extend(
            self.tenants
                .iter()
                .map(|tenant| format!("project {} {} {}", tenant.id, tenant.turn, tenant.weight)),
        );
        for (number, server) in (1..).zip(&self.servers) {
            let id = server_id(number);
            expected.push(format!("server {id} {}", server.seen_at_ms));
            let alive = server.alive.map(|(seen_ms, since_ms)| format!("alive {id} {seen_ms} {since_ms}"));
            expected.extend(alive);
        }
        rows.sort();
        expected.sort();
        assert_eq!(rows, expected, "after {step:?}");
    }

    /// At which place a waiting run stands.
    fn position(&self, of: &Expected) -> Option<i64> {
        let weight = |project: usize| self.tenants[project].weight;
        self.is_due(of).then(|| {
            let before = |run: &Expected| (run.rank_ms, &run.id) < (of.rank_ms, &of.id);
            let own = 1 + self.count(|run| self.is_due(run) && run.project == of.project && before(run));
            let others = (0..PROJECTS).filter(|project| *project != of.project).map(|project| {
                let waits = self.count(|run| self.is_due(run) && run.project == project);
                waits.min(own * weight(project) / weight(of.project))
            });
            own + others.sum::<i64>()
        })
    }

    /// Everything that the store tells of the runs is what the model says.
    pub(super) async fn compare(&self) {
        let state = self.fixture.store.queue_state().await.unwrap();
        assert_eq!(state.queued, self.count(|run| run.status == RunStatus::Queued));
        assert_eq!(state.running, self.count(|run| run.status == RunStatus::Running));
        assert_eq!(state.drained_at_ms.is_some(), self.all_drained);
        for expected in &self.runs {
            let run = row(&self.fixture, &self.tenants, expected).await;
            let place = self.fixture.store.queue_place(&run.project, &run.id).await.unwrap();
            assert_eq!(place.map(|place| place.position), self.position(expected));
            assert_eq!(run.status, expected.status);
            assert_eq!((run.attempt, run.agent_started), (expected.attempt, expected.agent_started));
            assert_eq!(run.cancel_requested_at_ms.is_some(), expected.cancel_requested);
            assert_eq!(run.created_at_ms, expected.created_at_ms);
            assert_eq!(run.finished_at_ms.is_some(), expected.status.is_final());
            assert_eq!(run.home.as_ref(), expected.home.map(server_id).as_ref());
            assert_eq!(run.sandbox, expected.sandbox);
            let mut told = Vec::new();
            for run in self.runs.iter().filter(|run| run.session == expected.session) {
                told.extend(self.fixture.events(&run.id).await);
            }
            told.sort_by_key(|event| event.seq);
            assert_gapless(&told);
            assert_eq!(self.fixture.kinds(&expected.id).await, expected.kinds);
            let progress =
                self.fixture.store.progress(&expected.id, expected.claimed_epoch(false)).await.unwrap();
            let lease = progress.map(|progress| progress.lease_expires_at_ms);
            let running = expected.status == RunStatus::Running;
            assert_eq!(lease, running.then_some(expected.lease_expires_at_ms));
        }
    }
}

/// A run as its row is written here.
fn run_row(run: &Expected) -> String {
    let running = run.status == RunStatus::Running;
    let lease = running.then_some(run.lease_expires_at_ms);
    format!(
        "run {} {} {} {} {} {} {} {} {} {} {} {} {}",
        run.id,
        run.session,
        run.status,
        run.attempt,
        run.epoch,
        text(lease),
        run.not_before_ms,
        run.rank_ms,
        text(run.home.map(server_id)),
        text(run.sandbox.as_ref()),
        u8::from(run.agent_started),
        u8::from(run.cancel_requested),
        run.credential,
    )
}
