//! How long things are kept after the last run of their session has ended.

use caisson_domain::retention::{RETENTION_DAYS, Retention as Policy};
use serde::Deserialize;

/// Days that things are kept in projects that say nothing else; 0 is for ever, and that is the default of each.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "they are the settings' names")]
pub(crate) struct Retention {
    /// Events, but for those that tell of runs' beginnings, ends and pushes. `CAISSON_RETENTION__EVENTS_DAYS`.
    pub events_days: i64,
    /// Files kept for runs. `CAISSON_RETENTION__ARTIFACTS_DAYS`.
    pub artifacts_days: i64,
    /// Workspaces and homes of sessions. `CAISSON_RETENTION__VOLUMES_DAYS`.
    pub volumes_days: i64,
    /// Sessions with their runs, and everything of them. `CAISSON_RETENTION__SESSIONS_DAYS`.
    pub sessions_days: i64,
    /// Sandbox images that `caisson image build` made and nothing uses. `CAISSON_RETENTION__IMAGES_DAYS`.
    pub images_days: i64,
}

impl Retention {
    /// As the store and the worker have it.
    pub(crate) const fn policy(&self) -> Policy {
        Policy {
            events_days: self.events_days,
            artifacts_days: self.artifacts_days,
            volumes_days: self.volumes_days,
            sessions_days: self.sessions_days,
        }
    }

    pub(super) fn check(&self, faults: &mut Vec<String>) {
        for (key, days) in [
            ("events_days", self.events_days),
            ("artifacts_days", self.artifacts_days),
            ("volumes_days", self.volumes_days),
            ("sessions_days", self.sessions_days),
            ("images_days", self.images_days),
        ] {
            if !RETENTION_DAYS.contains(&days) {
                faults.push(format!(
                    "retention.{key} is {days}; give {} (for ever) to {}",
                    RETENTION_DAYS.start(),
                    RETENTION_DAYS.end()
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_bounded_and_nothing_said_is_for_ever() {
        let mut faults = Vec::new();
        Retention::default().check(&mut faults);
        assert!(faults.is_empty() && Retention::default().policy() == Policy::default());
        Retention { events_days: -1, sessions_days: 36_501, images_days: -1, ..Retention::default() }
            .check(&mut faults);
        assert!(faults.len() == 3 && faults[0].contains("events_days is -1"), "{faults:?}");
    }
}
