//! Whether a plan reads what its statement may; pure.

use super::{Hot, Reads};
use crate::claim;

/// Pages of 8 kB that a statement may read in `PostgreSQL`: more than the longest page of a list lies on, and next to nothing
/// of a large table.
pub const PAGES_READ: u64 = 1_000;
/// A table of fewer rows is read as the database likes.
pub const FEW_ROWS: u32 = 100;

/// How reports find calls in `SQLite`, and how the run of each.
const CALLS: &str =
    "SEARCH usage USING INDEX usage_of_project (project_id=? AND begun_at_ms>? AND begun_at_ms<?)";
const RUN: &str = "SEARCH run USING INDEX sqlite_autoindex_run_1 (id=?)";

/// How the last attempt of a session is found, wherever one is asked for: as one entry of an index.
const LAST_ATTEMPT: [&str; 2] = [
    "SEARCH begun USING INDEX attempt_with_agent (session_id=?",
    "Index Scan Backward using attempt_with_agent on attempt begun",
];

/// What the steps of `SQLite`'s plan do that they may not.
pub(super) fn sqlite(hot: &Hot, steps: &[&str]) -> Option<String> {
    match hot.reads {
        Reads::Index { sqlite, .. } => {
            let searches = |step: &&&str| step.starts_with("SEARCH ") || step.starts_with("CORRELATED ");
            other(steps.first(), sqlite)
                .or_else(|| steps.iter().find(|step| !searches(step)).map(|step| named(step)))
        }
        Reads::Queue => {
            let whole = ["run", "ahead", "waiting", "live"].map(|table| format!("SCAN {table} USING"));
            let whole = |step: &&&str| {
                step.ends_with("SCAN run") || whole.iter().any(|scan| step.starts_with(scan.as_str()))
            };
            let sorts = |step: &&&str| hot.text == claim::CLAIM && step.starts_with("USE TEMP B-TREE");
            let attempts = |step: &&&str| reads_many_attempts(step);
            let wrong = steps.iter().find(|step| whole(step) || sorts(step) || attempts(step));
            wrong.map(|step| named(step))
        }
        Reads::Calls => {
            let reads = |step: &&&str| step.starts_with("SEARCH ") || step.starts_with("SCAN ");
            let mut reads = steps.iter().filter(reads);
            other(reads.next(), CALLS).or_else(|| reads.find(|step| **step != RUN).map(|step| named(step)))
        }
    }
}

/// What `PostgreSQL`'s plan does that it may not, where the tables `few` have [few rows](FEW_ROWS).
pub(super) fn postgres(hot: &Hot, plan: &[String], pages: Option<u64>, few: &[String]) -> Option<String> {
    let says = |text: &str| plan.iter().any(|line| line.contains(text));
    let wanted = match hot.reads {
        Reads::Index { .. } => None,
        Reads::Queue => (hot.text == claim::CLAIM).then_some(LAST_ATTEMPT[1]),
        Reads::Calls => Some("usage_of_project"),
    };
    if let Some(wanted) = wanted
        && !says(wanted)
    {
        return Some(format!("does not say {wanted}"));
    }
    let lines = || plan.iter().map(|line| line.trim_start());
    let sorts = |line: &str| matches!(hot.reads, Reads::Index { .. }) && line.contains("Sort");
    let attempts = |line: &str| hot.reads == Reads::Queue && reads_many_attempts(line);
    let wrong = lines().find(|line| is_whole(line, few) || sorts(line) || attempts(line));
    // A report reads as many as there are calls.
    let pages = pages.filter(|pages| *pages > PAGES_READ && hot.reads != Reads::Calls);
    wrong
        .map(named)
        .or_else(|| reads_every_run(plan).map(named))
        .or_else(|| pages.map(|pages| format!("reads {pages} pages")))
}

/// The index that `PostgreSQL` passes over though it is named. Where nearly all rows are one project's, that of all ids reads
/// the same ones; where they are not, it may not be.
pub(super) fn passed_over(hot: &Hot, plan: &[String]) -> Option<&'static str> {
    let Reads::Index { postgres, .. } = hot.reads else { return None };
    (!plan.iter().any(|line| line.contains(postgres))).then_some(postgres)
}

fn named(step: &str) -> String {
    format!("may not: {step}")
}

fn other(step: Option<&&str>, wanted: &str) -> Option<String> {
    (step != Some(&wanted)).then(|| format!("does not begin with {wanted}"))
}

/// Whether a line reads a table from end to end that is not one of the `few`.
fn is_whole(line: &str, few: &[String]) -> bool {
    let table = line.split_once("Seq Scan on ").map(|(_, table)| table.split(' ').next().unwrap_or(table));
    table.is_some_and(|table| !few.iter().any(|one| one == table))
}

/// Whether a line reads an attempt otherwise than as [`LAST_ATTEMPT`].
fn reads_many_attempts(line: &str) -> bool {
    [" begun", "attempt"].iter().any(|name| line.contains(name))
        && !line.contains("Cond: ")
        && !LAST_ATTEMPT.iter().any(|one| line.contains(one))
}

/// The line that reads an index over every run from end to end.
fn reads_every_run(plan: &[String]) -> Option<&str> {
    let indexed = |at: usize| plan.get(at + 1).is_some_and(|line| line.contains("project_id = "));
    let whole =
        plan.iter().enumerate().find(|(at, line)| line.contains(" using run_of_status") && !indexed(*at));
    whole.map(|(_, line)| line.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hot::{Hot, all};

    fn hot(name: &str) -> Hot {
        all().find(|hot| hot.name == name).unwrap()
    }

    fn postgres_says(name: &str, plan: &str, pages: u64) -> Option<String> {
        let plan: Vec<_> = plan.lines().map(str::to_owned).collect();
        postgres(&hot(name), &plan, Some(pages), &["server".to_owned()])
    }

    const EVENTS: &str = "events of a run, behind one of them";

    #[test]
    fn a_plan_that_reads_its_index_is_as_it_should_be() {
        let steps = ["SEARCH event USING INDEX event_of_run (run_id=? AND seq>?)"];
        assert_eq!(sqlite(&hot(EVENTS), &steps), None);
        let plan = "Limit\n  ->  Index Scan using event_of_run on event\n        Index Cond: (seq > 7)";
        assert_eq!(postgres_says(EVENTS, plan, PAGES_READ), None);
        let plan = format!("{plan}\n  ->  Seq Scan on server (actual rows=1 loops=1)");
        assert_eq!(postgres_says(EVENTS, &plan, 3), None, "one page is not worth an index");
    }

    #[test]
    fn a_scan_a_sort_and_another_index_are_told() {
        let events = hot(EVENTS);
        let first = "SEARCH event USING INDEX event_of_run (run_id=? AND seq>?)";
        assert!(sqlite(&events, &["SCAN event"]).unwrap().starts_with("does not begin with SEARCH event"));
        assert!(sqlite(&events, &[]).is_some());
        let sorts = sqlite(&events, &[first, "USE TEMP B-TREE FOR ORDER BY"]);
        assert_eq!(sorts.unwrap(), "may not: USE TEMP B-TREE FOR ORDER BY");
        let plan = |index: &str| vec!["Limit".to_owned(), format!("  ->  Index Scan using {index} on event")];
        assert_eq!(passed_over(&events, &plan("event_of_run")), None);
        assert_eq!(passed_over(&events, &plan("event_pkey")), Some("Index Scan using event_of_run"));
        let index = "Limit\n  ->  Index Scan using event_of_run on event";
        for (more, said) in [
            (
                "  ->  Seq Scan on run (actual rows=7 loops=1)",
                "may not: ->  Seq Scan on run (actual rows=7 loops=1)",
            ),
            ("  ->  Parallel Seq Scan on event e", "may not: ->  Parallel Seq Scan on event e"),
            ("  Sort Key: seq", "may not: Sort Key: seq"),
        ] {
            assert_eq!(postgres_says(EVENTS, &format!("{index}\n{more}"), 3).unwrap(), said);
        }
        assert_eq!(postgres_says(EVENTS, index, PAGES_READ + 1).unwrap(), "reads 1001 pages");
    }

    #[test]
    fn what_asks_the_queue_may_sort_what_waits_but_read_nothing_that_has_ended() {
        let (claim, state) = (hot("a claim"), hot("the state of the queue"));
        let attempt = "SEARCH begun USING INDEX attempt_with_agent (session_id=?)";
        assert_eq!(sqlite(&claim, &["SEARCH waiting USING INDEX run_queued", attempt]), None);
        assert!(sqlite(&claim, &["SCAN waiting USING INDEX run_of_project"]).is_some());
        assert!(sqlite(&claim, &["SEARCH begun USING PRIMARY KEY (session_id=?)"]).is_some());
        assert!(sqlite(&claim, &["USE TEMP B-TREE FOR ORDER BY"]).is_some());
        assert_eq!(sqlite(&state, &["USE TEMP B-TREE FOR ORDER BY"]), None);
        assert_eq!(postgres_says(state.name, "Sort\n  ->  Index Scan using run_queued on run", 3), None);
        let whole = "Index Only Scan using run_of_status on run\n  Index Cond: (status = 'queued'::text)";
        assert!(postgres_says(state.name, whole, 3).unwrap().starts_with("may not: Index Only Scan"));
        let ours = "Index Only Scan using run_of_status on run\n  Index Cond: (project_id = 'default'::text)";
        assert_eq!(postgres_says(state.name, ours, 3), None);
        assert!(postgres_says(claim.name, "Update on run", 3).unwrap().contains("attempt_with_agent"));
    }

    #[test]
    fn a_report_reads_the_calls_of_the_time_and_the_run_of_each() {
        let report = hot("usage by workflow");
        assert_eq!(sqlite(&report, &["CO-ROUTINE call", CALLS, RUN, "USE TEMP B-TREE FOR GROUP BY"]), None);
        assert!(sqlite(&report, &["SCAN usage"]).is_some());
        assert!(sqlite(&report, &[CALLS, "SCAN run"]).is_some());
        let plan = "Sort\n  ->  Index Scan using usage_of_project on usage";
        assert_eq!(postgres_says(report.name, plan, 3), None);
        assert!(postgres_says(report.name, "Seq Scan on usage", 3).is_some());
        assert!(postgres_says(report.name, &format!("{plan}\n  ->  Seq Scan on run"), 3).is_some());
    }
}
