//! The section `queue`.

use caisson_domain::limits::QUEUE_RUNS;
use caisson_domain::queue::{CAP, QueueLimits};
use serde::Deserialize;

/// How many runs may run and wait, over all servers that use the database: give all of them the same values.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "they are the settings' names")]
pub(crate) struct Queue {
    /// Runs that run at once, on all servers together, 0 to 10000. Default: no bound but the servers' slots.
    /// `CAISSON_QUEUE__MAX_RUNNING`.
    pub max_running: Option<i64>,
    /// Those of one project that has no bound of its own, 0 to 10000. Default: no bound. `CAISSON_QUEUE__MAX_RUNNING_PER_PROJECT`.
    pub max_running_per_project: Option<i64>,
    /// Those on one repository, 0 to 10000. Default: no bound. `CAISSON_QUEUE__MAX_RUNNING_PER_REPOSITORY`.
    pub max_running_per_repository: Option<i64>,
    /// Those that use one model credential, 0 to 10000. Default: no bound. `CAISSON_QUEUE__MAX_RUNNING_PER_CREDENTIAL`.
    pub max_running_per_credential: Option<i64>,
    /// Runs that wait, 0 to 10000; one more is refused. Default 10000. `CAISSON_QUEUE__MAX_QUEUED`.
    pub max_queued: i64,
    /// Those of one project that has no bound of its own, 0 to 10000. Default: no bound. `CAISSON_QUEUE__MAX_QUEUED_PER_PROJECT`.
    pub max_queued_per_project: Option<i64>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_running: None,
            max_running_per_project: None,
            max_running_per_repository: None,
            max_running_per_credential: None,
            max_queued: QUEUE_RUNS,
            max_queued_per_project: None,
        }
    }
}

impl Queue {
    pub(super) fn check(&self, faults: &mut Vec<String>) {
        for (key, value) in [
            ("max_running", self.max_running),
            ("max_running_per_project", self.max_running_per_project),
            ("max_running_per_repository", self.max_running_per_repository),
            ("max_running_per_credential", self.max_running_per_credential),
            ("max_queued", Some(self.max_queued)),
            ("max_queued_per_project", self.max_queued_per_project),
        ] {
            if let Some(value) = value.filter(|value| !CAP.contains(value)) {
                faults.push(format!("queue.{key} is {value}; give {} to {}", CAP.start(), CAP.end()));
            }
        }
    }

    /// As the store takes them.
    pub(crate) const fn limits(&self) -> QueueLimits {
        QueueLimits {
            max_running: self.max_running,
            max_running_per_project: self.max_running_per_project,
            max_running_per_repository: self.max_running_per_repository,
            max_running_per_credential: self.max_running_per_credential,
            max_queued: self.max_queued,
            max_queued_per_project: self.max_queued_per_project,
        }
    }
}
