//! How a repository's checks ended, as clients see it.

use caisson_domain::check_result::{CheckOutcome, CheckResult};
use caisson_domain::repository_file::CheckName;
use caisson_domain::run::{Run, RunStatus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Detail;

/// How a check of the repository ended the last time that it was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    /// Which.
    #[schema(value_type = crate::schema::CheckName)]
    pub name: CheckName,
    /// The command, as one would type it.
    pub command: String,
    /// How it ended.
    #[schema(value_type = crate::schema::CheckOutcome)]
    pub outcome: CheckOutcome,
    /// Its exit code; none if it had none.
    pub exit_code: Option<i32>,
    /// The end of its output unless it passed; none in a list.
    pub output: Option<String>,
    /// Turns that the agent had had to mend what the checks found.
    pub turns: u32,
}

impl CheckView {
    pub(super) fn new(result: CheckResult, detail: Detail) -> Self {
        let CheckResult { name, command, outcome, exit_code, output, turns } = result;
        let output = output.filter(|_| detail == Detail::Full);
        Self { name, command, outcome, exit_code, output, turns }
    }
}

/// The checks that the workflow of a run asks for, and for which its repository had no command.
pub(super) fn not_run(run: &Run) -> Vec<CheckName> {
    if run.status != RunStatus::Succeeded || run.spec.repository.is_none() {
        return Vec::new();
    }
    let was_run = |name: &CheckName| run.checks.iter().any(|result| result.name == *name);
    run.spec.workflow.caisson.checks.iter().copied().filter(|name| !was_run(name)).collect()
}
