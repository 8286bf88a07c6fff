//! The texts that list runs. Each names one field whose index it reads; the other fields are looked at row by row. One text
//! for all filters would read every run of the project where few fit.

use caisson_domain::run::RunStatus;

use crate::RunFilter;
use crate::rows::run_columns;

/// Newest first: an id begins with the time at which the run was created.
macro_rules! list {
    ($by:literal) => {
        concat!(
            "select ",
            run_columns!(),
            " from run where project_id = $1 and id < $2",
            $by,
            " and ($3 is null or status = $3) and ($4 is null or workflow = $4) \
             and ($5 is null or session_id = $5) and ($6 is null or repository = $6) order by id desc limit $7"
        )
    };
}

pub(crate) const ALL: &str = list!("");
pub(crate) const BY_STATUS: &str = list!(" and status = $3");
pub(crate) const BY_WORKFLOW: &str = list!(" and workflow = $4");
pub(crate) const BY_SESSION: &str = list!(" and session_id = $5");
pub(crate) const BY_REPOSITORY: &str = list!(" and repository = $6");

/// The text for a filter, by the field that most likely leaves the fewest rows.
pub(crate) fn text(filter: &RunFilter) -> &'static str {
    // Nearly all runs succeed, so that this says little.
    let seldom = filter.status.filter(|status| *status != RunStatus::Succeeded);
    if filter.session.is_some() {
        BY_SESSION
    } else if seldom.is_some() {
        BY_STATUS
    } else if filter.repository.is_some() {
        BY_REPOSITORY
    } else if filter.workflow.is_some() {
        BY_WORKFLOW
    } else if filter.status.is_some() {
        BY_STATUS
    } else {
        ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_that_leaves_the_fewest_rows_is_taken() {
        let status = |status| RunFilter { status: Some(status), ..RunFilter::default() };
        let workflow = |filter: RunFilter| RunFilter { workflow: Some("w".to_owned()), ..filter };
        let repository = |filter: RunFilter| RunFilter { repository: Some("r".to_owned()), ..filter };
        assert_eq!(text(&RunFilter::default()), ALL);
        assert_eq!(text(&status(RunStatus::Succeeded)), BY_STATUS);
        assert_eq!(text(&workflow(status(RunStatus::Succeeded))), BY_WORKFLOW);
        assert_eq!(text(&repository(workflow(status(RunStatus::Succeeded)))), BY_REPOSITORY);
        assert_eq!(text(&repository(workflow(status(RunStatus::Running)))), BY_STATUS);
    }
}
