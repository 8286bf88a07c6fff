//! Retention: what is kept for how long after a session's last run has ended.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::run::text_enum;

/// Days that something may be kept; 0 is for ever.
pub const RETENTION_DAYS: RangeInclusive<i64> = 0..=36_500;
/// Milliseconds of a day.
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

text_enum! {
    /// What is kept.
    Kept, "kept thing" {
        /// Most events: what the agent wrote, above all. Those that tell of beginnings, ends and pushes stay.
        Events = "events",
        /// Files kept for runs.
        Artifacts = "artifacts",
        /// A session's workspace and home.
        Volumes = "volumes",
        /// The session with its runs, and everything of it.
        Sessions = "sessions",
    }
}

/// How many days each is kept; 0 is for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// For [`Kept::Events`].
    pub events_days: i64,
    /// For [`Kept::Artifacts`].
    pub artifacts_days: i64,
    /// For [`Kept::Volumes`].
    pub volumes_days: i64,
    /// For [`Kept::Sessions`].
    pub sessions_days: i64,
}

/// What a project has of its own; none is what the server's settings say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectRetention {
    /// For [`Kept::Events`].
    pub events_days: Option<i64>,
    /// For [`Kept::Artifacts`].
    pub artifacts_days: Option<i64>,
    /// For [`Kept::Volumes`].
    pub volumes_days: Option<i64>,
    /// For [`Kept::Sessions`].
    pub sessions_days: Option<i64>,
}

impl ProjectRetention {
    /// What counts for the project, where `default` is what the settings say.
    #[must_use]
    pub fn or(self, default: Retention) -> Retention {
        Retention {
            events_days: self.events_days.unwrap_or(default.events_days),
            artifacts_days: self.artifacts_days.unwrap_or(default.artifacts_days),
            volumes_days: self.volumes_days.unwrap_or(default.volumes_days),
            sessions_days: self.sessions_days.unwrap_or(default.sessions_days),
        }
    }

    /// The part for one thing.
    pub const fn part(&mut self, kept: Kept) -> &mut Option<i64> {
        match kept {
            Kept::Events => &mut self.events_days,
            Kept::Artifacts => &mut self.artifacts_days,
            Kept::Volumes => &mut self.volumes_days,
            Kept::Sessions => &mut self.sessions_days,
        }
    }
}

impl Retention {
    /// Days that something is kept; none is for ever. What goes with its session goes with it at the latest.
    #[must_use]
    pub fn days(&self, kept: Kept) -> Option<i64> {
        let own = match kept {
            Kept::Events => self.events_days,
            Kept::Artifacts => self.artifacts_days,
            Kept::Volumes => self.volumes_days,
            Kept::Sessions => 0,
        };
        [own, self.sessions_days].into_iter().filter(|days| *days > 0).min()
    }

    /// The time, Unix ms, at or before which a session's last run must have ended for something of it to have expired at
    /// `now_ms`; none if it is kept for ever.
    #[must_use]
    pub fn cutoff_ms(&self, kept: Kept, now_ms: i64) -> Option<i64> {
        Some(now_ms.saturating_sub(self.days(kept)?.saturating_mul(DAY_MS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_expires_when_its_days_are_over_and_not_a_millisecond_before() {
        let policy = Retention { volumes_days: 2, ..Retention::default() };
        assert_eq!(policy.cutoff_ms(Kept::Volumes, 10 * DAY_MS), Some(8 * DAY_MS));
        assert_eq!(policy.cutoff_ms(Kept::Events, 10 * DAY_MS), None, "for ever");
    }

    #[test]
    fn everything_goes_with_its_session_at_the_latest() {
        let policy =
            Retention { events_days: 90, artifacts_days: 7, sessions_days: 30, ..Retention::default() };
        let days =
            [Kept::Events, Kept::Artifacts, Kept::Volumes, Kept::Sessions].map(|kept| policy.days(kept));
        assert_eq!(days, [Some(30), Some(7), Some(30), Some(30)]);
    }

    #[test]
    fn a_project_has_what_the_settings_say_unless_it_says_so_itself() {
        let settings = Retention { events_days: 30, artifacts_days: 30, volumes_days: 30, sessions_days: 0 };
        let mut own = ProjectRetention::default();
        *own.part(Kept::Events) = Some(0);
        *own.part(Kept::Volumes) = Some(7);
        let policy = own.or(settings);
        assert_eq!((policy.days(Kept::Events), policy.days(Kept::Volumes)), (None, Some(7)));
        assert_eq!(policy.days(Kept::Artifacts), Some(30));
    }
}
