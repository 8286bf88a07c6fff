//! The queue: in which order runs start, and how many of them.
//!
//! Projects take turns: next is the one that has the fewest runs running for its weight, and among equals the one whose
//! turn it is. Within a project the run of the least rank is next: the time since which it waits, less the head start that
//! its priority gives it.

use std::ops::RangeInclusive;

use serde::Deserialize;

use crate::limits::QUEUE_RUNS;

/// Priorities of runs; those of the highest start first.
pub const PRIORITY: RangeInclusive<i64> = -10..=10;
/// How long a run has to wait to be worth as much as one that is one step of priority above it, in milliseconds (10 min).
/// So no run waits for ever: after 200 min one of the least priority comes before every new one of its project.
pub const PRIORITY_STEP_MS: i64 = 10 * 60 * 1000;
/// Weights of projects: how many runs of it start for one of a project of weight 1.
pub const WEIGHT: RangeInclusive<i64> = 1..=1000;
/// The weight of a project that nobody chose one for.
pub const WEIGHT_DEFAULT: i64 = 1;
/// What one start adds to a project's turn, divided by its weight. As far as a project may lag behind the one that is
/// ahead of all: whoever was idle does not catch up on what it did not ask for.
pub const TURN: i64 = 1_000_000;
/// How far ahead a run's start may be put off, in seconds (30 days).
pub const DELAY_S_MAX: i64 = 30 * 24 * 60 * 60;
/// The part of the waiting runs that one project may have where others are beside it and nobody says otherwise: one in so
/// many, rounded up. So that whoever has one project's key cannot fill everybody's queue.
pub const QUEUED_PART: i64 = 2;
/// Caps on running runs, and on waiting ones, that can be set. A cap of 0 lets none through.
pub const CAP: RangeInclusive<i64> = 0..=QUEUE_RUNS;
/// How often a run is taken from the queue without its agent having started; with the next return it fails.
pub const CLAIM_ATTEMPTS: i64 = 50;
/// Waiting runs of each project that are counted for a place in the queue; who is further behind is told no more than that.
pub const PLACES_COUNTED: i64 = 2_000;
/// Runs that have ended lately, whose times an estimate is made from.
pub const ESTIMATE_RUNS: i64 = 20;
/// Fewest such runs: from fewer no estimate is made.
pub const ESTIMATE_RUNS_MIN: i64 = 3;

/// What comes first within a project: the least rank. It stays the same for as long as the run waits, since waiting
/// counts the same for all.
#[must_use]
pub const fn rank_ms(waits_since_ms: i64, priority: i64) -> i64 {
    waits_since_ms.saturating_sub(priority.saturating_mul(PRIORITY_STEP_MS))
}

/// How many runs may run and wait, over all servers that use a database: give all of them the same values. None: no bound
/// but the slots of the servers. Each is within [`CAP`]. They are a section of the settings as they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueLimits {
    /// Runs running at once.
    pub max_running: Option<i64>,
    /// Those of one project, where the project itself says nothing.
    pub max_running_per_project: Option<i64>,
    /// Those on one repository, over all projects.
    pub max_running_per_repository: Option<i64>,
    /// Those that use one model credential; the settings' own one is one as well.
    pub max_running_per_credential: Option<i64>,
    /// Runs that may wait; at most [`QUEUE_RUNS`].
    pub max_queued: i64,
    /// Those of one project, where the project itself says nothing; none: see [`QueueLimits::queued_per_project`].
    pub max_queued_per_project: Option<i64>,
}

impl QueueLimits {
    /// How many runs of one project may wait that says nothing itself, when there are so many projects; none: no bound but
    /// that of all. Where nothing is set, one of several has one in [`QUEUED_PART`] of all.
    #[must_use]
    pub const fn queued_per_project(&self, projects: i64) -> Option<i64> {
        match self.max_queued_per_project {
            None if projects > 1 => Some((self.max_queued + QUEUED_PART - 1) / QUEUED_PART),
            set => set,
        }
    }

    /// Whether one of several projects may fill the whole queue.
    #[must_use]
    pub const fn lets_one_fill_all(&self) -> bool {
        matches!(self.max_queued_per_project, Some(most) if most >= self.max_queued)
    }
}

impl Default for QueueLimits {
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

/// A project's part of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectShare {
    /// Its weight, within [`WEIGHT`].
    pub weight: i64,
    /// Most runs of it that run at once, within [`CAP`]; none: as the settings say.
    pub max_running: Option<i64>,
    /// Most runs of it that wait, within [`CAP`]; none: as the settings say.
    pub max_queued: Option<i64>,
}

impl Default for ProjectShare {
    fn default() -> Self {
        Self { weight: WEIGHT_DEFAULT, max_running: None, max_queued: None }
    }
}

/// What decides when a project's next run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its weight, 1 at least.
    pub weight: i64,
    /// Its runs that run.
    pub running: i64,
    /// How far its turns have got, as stored.
    pub turn: i64,
}

impl Standing {
    /// Its turn, when the project that is ahead of all has got to `ahead`.
    #[must_use]
    pub const fn turn_beside(&self, ahead: i64) -> i64 {
        let least = ahead.saturating_sub(TURN);
        if self.turn < least { least } else { self.turn }
    }

    /// Its turn after one more start.
    #[must_use]
    pub const fn turn_after(&self, ahead: i64) -> i64 {
        self.turn_beside(ahead).saturating_add(TURN / self.weight)
    }

    /// Whether it comes before another one; equal ones are for their names to order.
    #[must_use]
    pub fn compare(&self, other: &Self, ahead: i64) -> std::cmp::Ordering {
        // By the fractions running / weight, without dividing.
        let share = self.running.saturating_mul(other.weight).cmp(&other.running.saturating_mul(self.weight));
        share.then(self.turn_beside(ahead).cmp(&other.turn_beside(ahead)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_the_least_priority_comes_before_any_new_one_after_a_named_time() {
        let span = PRIORITY.end() - PRIORITY.start();
        let old = rank_ms(0, *PRIORITY.start());
        assert!(old > rank_ms(span * PRIORITY_STEP_MS - 1, *PRIORITY.end()));
        assert!(old < rank_ms(span * PRIORITY_STEP_MS + 1, *PRIORITY.end()));
        assert_eq!(span * PRIORITY_STEP_MS, 200 * 60 * 1000);
    }

    #[test]
    fn who_has_less_for_its_weight_is_next_and_then_whose_turn_it_is() {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let standing = |weight, running, turn| Standing { weight, running, turn };
        assert_eq!(standing(1, 0, 9).compare(&standing(1, 1, 0), 9), Less);
        assert_eq!(standing(3, 2, 9).compare(&standing(1, 1, 0), 9), Less, "two thirds are less than one");
        assert_eq!(standing(3, 3, 9).compare(&standing(1, 1, 0), 9), Greater);
        assert_eq!(standing(1, 0, 5).compare(&standing(1, 0, 5), 9), Equal);
    }

    #[test]
    fn a_project_beside_others_has_half_of_the_queue_unless_somebody_says_otherwise() {
        let limits = |max_queued, max_queued_per_project| QueueLimits {
            max_queued,
            max_queued_per_project,
            ..QueueLimits::default()
        };
        assert_eq!(QueueLimits::default().queued_per_project(2), Some(5_000));
        assert_eq!(QueueLimits::default().queued_per_project(1), None);
        for (max_queued, most) in [(0, 0), (1, 1), (2, 1), (3, 2)] {
            assert_eq!(limits(max_queued, None).queued_per_project(200), Some(most));
        }
        for projects in [1, 2] {
            assert_eq!(limits(10, Some(7)).queued_per_project(projects), Some(7));
        }
        assert!(!limits(10, None).lets_one_fill_all() && !limits(10, Some(9)).lets_one_fill_all());
        assert!(limits(10, Some(10)).lets_one_fill_all());
    }

    #[test]
    fn an_idle_project_lags_by_one_turn_at_most() {
        let idle = Standing { weight: 1, running: 0, turn: 0 };
        assert_eq!(idle.turn_beside(5 * TURN), 4 * TURN);
        assert_eq!(idle.turn_after(5 * TURN), 5 * TURN);
        assert_eq!(Standing { weight: 1000, ..idle }.turn_after(0), TURN / 1000);
    }
}
