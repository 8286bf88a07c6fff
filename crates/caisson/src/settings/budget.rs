//! The section `budget`.

use caisson_domain::budget::{PROJECT_BUDGET_MICRO_USD_MAX, SOFT_PERCENT, SOFT_PERCENT_DEFAULT};
use serde::Deserialize;

/// What the runs of the default project may spend on the model API, together, and when their agents are told. A budget that
/// is set here cannot be changed over the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Budget {
    /// In all, in micro-USD, 0 to 10^15. Default: no bound. `CAISSON_BUDGET__PROJECT_MICRO_USD`.
    pub project_micro_usd: Option<i64>,
    /// Each day from midnight to midnight UTC, in micro-USD, 0 to 10^15. Default: no bound. `CAISSON_BUDGET__DAY_MICRO_USD`.
    pub day_micro_usd: Option<i64>,
    /// Share of each budget at which the agent of a run is told to wrap up, in percent, 1 to 100; 100: never. Default 80.
    /// `CAISSON_BUDGET__SOFT_PERCENT`.
    pub soft_percent: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { project_micro_usd: None, day_micro_usd: None, soft_percent: SOFT_PERCENT_DEFAULT }
    }
}

impl Budget {
    pub(super) fn check(&self, faults: &mut Vec<String>) {
        for (key, value) in [
            ("budget.project_micro_usd", self.project_micro_usd),
            ("budget.day_micro_usd", self.day_micro_usd),
        ] {
            if value.is_some_and(|value| !(0..=PROJECT_BUDGET_MICRO_USD_MAX).contains(&value)) {
                faults.push(format!(
                    "{key} is {}; give 0 to {PROJECT_BUDGET_MICRO_USD_MAX}, in micro-USD",
                    value.unwrap_or_default()
                ));
            }
        }
        if !SOFT_PERCENT.contains(&self.soft_percent) {
            let (least, most) = (SOFT_PERCENT.start(), SOFT_PERCENT.end());
            faults.push(format!("budget.soft_percent is {}; give {least} to {most}", self.soft_percent));
        }
    }
}
