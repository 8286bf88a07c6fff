//! The section `queue`: the domain's [`QueueLimits`] as they stand. Each of its fields is a key, 0 to 10000, and
//! `CAISSON_QUEUE__` with the field's name in capitals in the environment; what is left out is as the domain has it.

use caisson_domain::queue::{CAP, QueueLimits};

/// Tells of every value that cannot be used.
pub(super) fn check(limits: &QueueLimits, faults: &mut Vec<String>) {
    for (key, value) in [
        ("max_running", limits.max_running),
        ("max_running_per_project", limits.max_running_per_project),
        ("max_running_per_repository", limits.max_running_per_repository),
        ("max_running_per_credential", limits.max_running_per_credential),
        ("max_queued", Some(limits.max_queued)),
        ("max_queued_per_project", limits.max_queued_per_project),
    ] {
        if let Some(value) = value.filter(|value| !CAP.contains(value)) {
            faults.push(format!("queue.{key} is {value}; give {} to {}", CAP.start(), CAP.end()));
        }
    }
}
