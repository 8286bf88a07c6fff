//! Budgets: how much may be spent on the model API, in micro-USD.

use serde::{Deserialize, Serialize};

use crate::run::text_enum;

/// Budgets that a run may have, in micro-USD: up to 4000 USD.
pub const RUN_BUDGET_MICRO_USD: std::ops::RangeInclusive<u32> = 1..=4_000_000_000;
/// Largest budget of a project, in micro-USD: a billion USD, far from overflowing a sum.
pub const PROJECT_BUDGET_MICRO_USD_MAX: i64 = 1_000_000_000_000_000;
/// Soft shares of a budget, in percent; the last one means that nobody is told.
pub const SOFT_PERCENT: std::ops::RangeInclusive<u32> = 1..=100;
/// The soft share of a run that nobody chose one for.
pub const SOFT_PERCENT_DEFAULT: u32 = 80;
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
    /// Whether the settings hold it, so that nobody can change it over the API.
    pub is_setting: bool,
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
        let (whose, remedy) = match (self.scope, self.is_setting) {
            (BudgetScope::Run, _) => ("the run's budget", "give the run a larger budget_micro_usd"),
            (BudgetScope::Project, false) => {
                ("the project's budget", "raise it with `caisson budget set --total`")
            }
            (BudgetScope::Project, true) => (
                "the project's budget",
                "raise the setting budget.project_micro_usd (CAISSON_BUDGET__PROJECT_MICRO_USD) and restart the server",
            ),
            (BudgetScope::Day, false) => (
                "the project's budget of this day",
                "raise it with `caisson budget set --day`, or wait until midnight UTC",
            ),
            (BudgetScope::Day, true) => (
                "the project's budget of this day",
                "raise the setting budget.day_micro_usd (CAISSON_BUDGET__DAY_MICRO_USD) and restart the server, or wait until \
                 midnight UTC",
            ),
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

/// A budget of which a run has used its soft share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftBudget {
    /// Whose budget.
    pub scope: BudgetScope,
    /// The share, in percent.
    pub percent: u32,
    /// How much the budget is, in micro-USD.
    pub budget_micro_usd: i64,
    /// What was spent of it before the run's first call, in micro-USD; the share is one of the rest.
    pub before_micro_usd: i64,
    /// What is spent of it, in micro-USD.
    pub spent_micro_usd: i64,
    /// What the replies under way have come to, in micro-USD.
    pub under_way_micro_usd: i64,
}

impl SoftBudget {
    /// What is left of the budget, in micro-USD; below zero if it was overspent.
    #[must_use]
    pub const fn left_micro_usd(&self) -> i64 {
        let used = self.spent_micro_usd.saturating_add(self.under_way_micro_usd);
        self.budget_micro_usd.saturating_sub(used)
    }

    /// Whether the share is used: of what there was when the run began, so that a run which begins near the end of a
    /// project's budget still has its share of the rest. Of a budget that was used up before, no share is left to use.
    #[must_use]
    pub const fn is_reached(&self) -> bool {
        let whole = self.budget_micro_usd.saturating_sub(self.before_micro_usd);
        let used = whole.saturating_sub(self.left_micro_usd());
        whole > 0 && used.saturating_mul(100) >= whole.saturating_mul(self.percent as i64)
    }

    /// What the agent is told.
    #[must_use]
    pub fn wrap_up(&self) -> String {
        let whose = match self.scope {
            BudgetScope::Run => "this task's budget",
            BudgetScope::Project => "the project's budget",
            BudgetScope::Day => "the project's budget of this day",
        };
        format!(
            "{WRAP_UP}: {} of {whose} are left, and at its end you will be cut off in the middle of a \
             sentence. Wrap up now. Begin nothing new; bring what you are doing to a state that works, or take it back. If you work \
             in a git repository, commit what is worth keeping. Then end your turn with a short summary of what is done and what is \
             not.",
            Usd(self.left_micro_usd())
        )
    }
}

/// What [`SoftBudget::wrap_up`] begins with.
const WRAP_UP: &str = "The money for this task is running out";

/// Whether a text is what [`SoftBudget::wrap_up`] tells an agent: worth nothing to one that has no work under way.
#[must_use]
pub fn is_wrap_up(text: &str) -> bool {
    text.starts_with(WRAP_UP)
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

/// Year, month and day of the month of a day as [`day_of`] counts them, in the Gregorian calendar, by Howard Hinnant's
/// `civil_from_days`: years begin in March there, so that the day that some years have more is the last.
#[must_use]
pub const fn date_of(day: i64) -> (i64, i64, i64) {
    let days = day + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * shifted + 2) / 5 + 1;
    let (month, later) = if shifted < 10 { (shifted + 3, 0) } else { (shifted - 9, 1) };
    (year_of_era + era * 400 + later, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_a_date() {
        for (day, date) in [
            (0, (1970, 1, 1)),
            (-1, (1969, 12, 31)),
            (11_016, (2000, 2, 29)),
            (19_782, (2024, 2, 29)),
            (19_783, (2024, 3, 1)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date_of(day), date);
        }
    }

    #[test]
    fn a_day_lasts_from_midnight_to_midnight_utc() {
        assert_eq!((day_of(0), day_of(DAY_MS - 1), day_of(DAY_MS), day_of(-1)), (0, 0, 1, -1));
    }

    #[test]
    fn a_soft_share_is_reached_to_the_micro_usd_and_is_one_of_what_the_run_found() {
        let soft = SoftBudget {
            scope: BudgetScope::Run,
            percent: 80,
            budget_micro_usd: 1_000,
            before_micro_usd: 0,
            spent_micro_usd: 700,
            under_way_micro_usd: 100,
        };
        assert!(soft.is_reached());
        assert!(!SoftBudget { under_way_micro_usd: 99, ..soft }.is_reached());
        // It found 200, of which 160 are its share.
        let late = SoftBudget { scope: BudgetScope::Day, before_micro_usd: 800, ..soft };
        assert!(!late.is_reached());
        assert!(!SoftBudget { spent_micro_usd: 859, ..late }.is_reached());
        assert!(SoftBudget { spent_micro_usd: 860, ..late }.is_reached());
        assert!(!SoftBudget { before_micro_usd: 1_000, spent_micro_usd: 1_000, ..soft }.is_reached());
        let most = SoftBudget { budget_micro_usd: PROJECT_BUDGET_MICRO_USD_MAX, percent: 99, ..soft };
        assert!(!most.is_reached() && SoftBudget { spent_micro_usd: i64::MAX, ..most }.is_reached());
        let text = soft.wrap_up();
        assert!(is_wrap_up(&text) && !is_wrap_up("Wrap up."));
        assert!(
            text.contains("0.000200 USD of this task's budget are left") && text.contains("commit"),
            "{text}"
        );
    }

    #[test]
    fn a_budget_that_is_only_held_by_others_may_have_room_later() {
        let over = OverBudget {
            scope: BudgetScope::Run,
            is_setting: false,
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

    #[test]
    fn where_a_budget_can_be_raised_is_told() {
        let told = |scope, is_setting| {
            let amount = 1;
            OverBudget {
                scope,
                is_setting,
                budget_micro_usd: amount,
                spent_micro_usd: amount,
                reserved_micro_usd: 0,
                needed_micro_usd: amount,
            }
            .to_string()
        };
        for (scope, flag, setting) in [
            (BudgetScope::Project, "set --total", "CAISSON_BUDGET__PROJECT_MICRO_USD"),
            (BudgetScope::Day, "set --day", "CAISSON_BUDGET__DAY_MICRO_USD"),
        ] {
            let (api, settings) = (told(scope, false), told(scope, true));
            assert!(api.contains(flag) && !api.contains(setting), "{api}");
            assert!(settings.contains(setting) && !settings.contains(flag), "{settings}");
        }
    }
}
