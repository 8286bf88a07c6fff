//! What can happen to the queue.

use caisson_domain::limits::LEASE_MS;
use caisson_domain::queue::{PRIORITY_STEP_MS, QueueLimits};
use caisson_domain::run::RunStatus;
use proptest::prelude::*;

/// Something that somebody does. A run is named by its place in the order of creation, modulo how many there are.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Create {
        project: usize,
        branch: Option<u8>,
        priority: i64,
        delay_ms: i64,
    },
    /// Another run in the session of a run.
    Follow {
        run: usize,
        priority: i64,
    },
    /// A server says that it lives, and again so many times.
    Live {
        server: u8,
        turns: u8,
    },
    WriteOff {
        server: u8,
    },
    Credential {
        project: usize,
    },
    Claim {
        server: u8,
    },
    Adopt {
        server: u8,
    },
    Heartbeat {
        run: usize,
        stale: bool,
    },
    Place {
        run: usize,
        stale: bool,
    },
    StartAgent {
        run: usize,
    },
    Requeue {
        run: usize,
        stale: bool,
        delay_ms: i64,
    },
    Finish {
        run: usize,
        stale: bool,
        status: RunStatus,
    },
    Cancel {
        run: usize,
    },
    Share {
        project: usize,
        weight: i64,
        max_running: Option<i64>,
        max_queued: Option<i64>,
    },
    Drain {
        server: Option<u8>,
    },
    Resume {
        server: Option<u8>,
    },
    Advance {
        ms: i64,
    },
}

/// Bounds that some sequences meet.
pub(super) fn limits() -> impl Strategy<Value = QueueLimits> {
    let cap = || prop::option::weighted(0.3, 0..4_i64);
    (cap(), cap(), cap(), cap(), prop::sample::select(&[3, 6, 100][..]), cap()).prop_map(
        |(running, project, repository, credential, max_queued, queued)| QueueLimits {
            max_running: running,
            max_running_per_project: project,
            max_running_per_repository: repository,
            max_running_per_credential: credential,
            max_queued,
            max_queued_per_project: queued,
        },
    )
}

/// Projects of the model.
pub(super) const PROJECTS: usize = 3;

pub(super) fn step() -> impl Strategy<Value = Step> {
    let run = 0..8_usize;
    let server = prop::option::of(1..3_u8);
    let cap = prop::option::weighted(0.4, 0..3_i64);
    let stale = prop::bool::weighted(0.25);
    let status = prop::sample::select(&[RunStatus::Succeeded, RunStatus::Failed, RunStatus::Cancelled][..]);
    prop_oneof![
        5 => (0..PROJECTS, prop::option::of(0..2_u8), -1..2_i64, prop::sample::select(&[0, 0, 0, 500, 5_000][..]))
            .prop_map(|(project, branch, priority, delay_ms)| Step::Create { project, branch, priority, delay_ms }),
        3 => (run.clone(), -1..2_i64).prop_map(|(run, priority)| Step::Follow { run, priority }),
        3 => (1..3_u8, prop::sample::select(&[0, 1, 3][..])).prop_map(|(server, turns)| Step::Live { server, turns }),
        2 => (1..3_u8).prop_map(|server| Step::WriteOff { server }),
        1 => (0..PROJECTS).prop_map(|project| Step::Credential { project }),
        6 => (1..3_u8).prop_map(|server| Step::Claim { server }),
        1 => (1..3_u8).prop_map(|server| Step::Adopt { server }),
        1 => (run.clone(), stale).prop_map(|(run, stale)| Step::Heartbeat { run, stale }),
        3 => (run.clone(), stale).prop_map(|(run, stale)| Step::Place { run, stale }),
        3 => run.clone().prop_map(|run| Step::StartAgent { run }),
        3 => (run.clone(), stale, 0..2_i64)
            .prop_map(|(run, stale, delay)| Step::Requeue { run, stale, delay_ms: delay * 500 }),
        3 => (run.clone(), stale, status)
            .prop_map(|(run, stale, status)| Step::Finish { run, stale, status }),
        2 => run.prop_map(|run| Step::Cancel { run }),
        1 => (0..PROJECTS, 1..4_i64, cap.clone(), cap)
            .prop_map(|(project, weight, max_running, max_queued)| Step::Share { project, weight, max_running, max_queued }),
        1 => server.clone().prop_map(|server| Step::Drain { server }),
        2 => server.prop_map(|server| Step::Resume { server }),
        // The database's clock may be set back, too.
        3 => prop::sample::select(&[1, 499, LEASE_MS + 1, PRIORITY_STEP_MS, -1, -700, -PRIORITY_STEP_MS][..])
            .prop_map(|ms| Step::Advance { ms }),
    ]
}
