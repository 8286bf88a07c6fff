//! Budgets: how much may be spent on the model API, in micro-USD.

use serde::{Deserialize, Serialize};

use crate::run::text_enum;

/// Budgets that a run may have, in micro-USD: up to 4000 USD.
pub const RUN_BUDGET_MICRO_USD: std::ops::RangeInclusive<u32> = 1..=4_000_000_000;
/// Largest budget of a project, in micro-USD: a billion USD, far from overflowing a sum.
pub const PROJECT_BUDGET_MICRO_USD_MAX: i64 = 1_000_000_000_000_000;
/// A day, in milliseconds.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

text_enum! {
    /// Whose budget it is.
    BudgetScope, "budget" {
        /// One run's.
        Run = "run",
        /// A project's, for as long as it exists.
        Project = "project",
        /// A project's, for one day from midnight to midnight UTC.
        Day = "day",
    }
}

/// A project's budgets; none means that nothing is bounded there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectBudgets {
    /// For all of its runs together, in micro-USD, 0 to [`PROJECT_BUDGET_MICRO_USD_MAX`].
    pub total_micro_usd: Option<i64>,
    /// For each day (UTC), in micro-USD, 0 to [`PROJECT_BUDGET_MICRO_USD_MAX`].
    pub day_micro_usd: Option<i64>,
}

/// A budget that has no room for what a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBudget {
    /// Whose budget.
    pub scope: BudgetScope,
    /// How much it is, in micro-USD.
    pub budget_micro_usd: i64,
    /// What is spent of it, in micro-USD.
    pub spent_micro_usd: i64,
    /// What other calls under way hold of it, in micro-USD.
    pub reserved_micro_usd: i64,
    /// What this call needs, in micro-USD.
    pub needed_micro_usd: i64,
}

impl OverBudget {
    /// Whether there may be room once the other calls under way have told what they really cost.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        self.spent_micro_usd.saturating_add(self.needed_micro_usd) <= self.budget_micro_usd
    }
}

impl std::fmt::Display for OverBudget {
    /// One sentence with the remedy.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whose, remedy) = match self.scope {
            BudgetScope::Run => ("the run's budget", "give the run a larger budget_micro_usd"),
            BudgetScope::Project => ("the project's budget", "raise budget.project_micro_usd"),
            BudgetScope::Day => {
                ("the project's budget of this day", "raise budget.day_micro_usd, or wait until midnight UTC")
            }
        };
        let usd = |micro: i64| Usd(micro);
        write!(
            out,
            "{whose} of {} is used up: {} is spent, other calls hold {}, and this call needs {}; {remedy}",
            usd(self.budget_micro_usd),
            usd(self.spent_micro_usd),
            usd(self.reserved_micro_usd),
            usd(self.needed_micro_usd)
        )
    }
}

/// Micro-USD as people read them.
struct Usd(i64);

impl std::fmt::Display for Usd {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micro = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(out, "{sign}{}.{:06} USD", micro / 1_000_000, micro % 1_000_000)
    }
}

/// The day of a moment: whole days since 1970, UTC.
#[must_use]
pub const fn day_of(at_ms: i64) -> i64 {
    at_ms.div_euclid(DAY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_lasts_from_midnight_to_midnight_utc() {
        assert_eq!((day_of(0), day_of(DAY_MS - 1), day_of(DAY_MS), day_of(-1)), (0, 0, 1, -1));
    }

    #[test]
    fn a_budget_that_is_only_held_by_others_may_have_room_later() {
        let over = OverBudget {
            scope: BudgetScope::Run,
            budget_micro_usd: 1_500_000,
            spent_micro_usd: 500_000,
            reserved_micro_usd: 900_000,
            needed_micro_usd: 1_000_000,
        };
        assert!(over.may_pass());
        assert!(!OverBudget { spent_micro_usd: 500_001, ..over }.may_pass());
        let text = over.to_string();
        assert!(
            text.starts_with("the run's budget of 1.500000 USD is used up: 0.500000 USD is spent"),
            "{text}"
        );
        assert!(text.contains("budget_micro_usd"), "{text}");
    }
}
