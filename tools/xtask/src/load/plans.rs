//! The plans as a page; pure.

use std::fmt::Write as _;

use caisson_store::hot::{FEW_ROWS, PAGES_READ, Plan};

use super::figures::Figures;
use super::lists::Lists;

/// Every statement with the plan of each database, under one heading.
pub(super) fn render(figures: &Figures, command: &str) -> String {
    let Some(first) = figures.lists.first() else { return String::new() };
    let mut text = format!("`{command}` on {}", figures.machine.date);
    let Lists { runs, pages, .. } = first;
    writeln!(text, ", over {runs} runs and {} events.", pages.events).ok();
    if let Some(said) = &figures.postgres {
        writeln!(text, "{said}").ok();
    }
    let pages = format!("most pages of PostgreSQL: {PAGES_READ}; a table of few rows: fewer than {FEW_ROWS}");
    writeln!(text, "\n{}; {pages}.", verdict(figures)).ok();
    let mut names: Vec<&str> = Vec::new();
    for plan in figures.lists.iter().flat_map(|lists| &lists.plans) {
        if !names.contains(&plan.name) {
            names.push(plan.name);
        }
    }
    for name in names {
        writeln!(text, "\n### {}{}", name[..1].to_uppercase(), &name[1..]).ok();
        for lists in &figures.lists {
            let plans: Vec<_> = lists.plans.iter().filter(|plan| plan.name == name).collect();
            section(&mut text, lists.database.name(), &plans);
        }
    }
    text
}

fn verdict(figures: &Figures) -> String {
    let plans = || figures.lists.iter().flat_map(|lists| &lists.plans);
    let faults = plans().filter(|plan| plan.fault.is_some()).count();
    format!("{} plans, of which {faults} read more than they may", plans().count())
}

/// The plans of one database. What it plans for all values is told where it differs.
fn section(text: &mut String, database: &str, plans: &[&Plan]) {
    let mut before: Option<&Plan> = None;
    for plan in plans {
        if before.is_some_and(|before| steps(before) == steps(plan) && plan.fault.is_none()) {
            continue;
        }
        let Plan { planned, lines, pages, fault, passed_over, .. } = plan;
        let planned = planned.map(|planned| format!(", planned for {planned}")).unwrap_or_default();
        let pages = pages.map(|pages| format!(", {pages} pages")).unwrap_or_default();
        let fault = fault.as_ref().map(|fault| format!(" **It {fault}.**")).unwrap_or_default();
        let other = passed_over.map(|_| ", by another index than where there are many projects");
        let other = other.unwrap_or_default();
        writeln!(text, "\n{database}{planned}{pages}{other}:{fault}\n\n```text\n{}\n```", lines.join("\n"))
            .ok();
        before = Some(plan);
    }
}

/// A plan without its conditions, which show the values or their marks.
fn steps(plan: &Plan) -> Vec<&str> {
    let shows = |line: &&str| ["Cond: ", "Filter: "].iter().any(|mark| line.contains(mark));
    plan.lines.iter().map(String::as_str).filter(|line| !shows(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn a_statement_has_the_plans_of_both_databases_under_one_heading() {
        let text = render(&figures(), "make load");
        assert!(
            text.starts_with("`make load` on 2026-11-22, over 100000 runs and 5000000 events.\n"),
            "{text}"
        );
        assert!(text.contains("\nPostgreSQL 15.1 has fsync on.\n\n2 plans, of which 0 read more"), "{text}");
        let section = "### Runs, newest first\n\nSQLite:\n\n```text\nLimit\n  ->  Index Scan using run_of_project on run\n\
            ```\n\nPostgreSQL, planned for these values, 12 pages:\n\n```text\nLimit\n";
        assert!(text.contains(section), "{text}");
    }

    #[test]
    fn a_plan_for_all_values_is_told_where_it_differs_and_a_fault_always() {
        let mut figures = figures();
        let plans = &mut figures.lists[1].plans;
        plans[0].lines.push("        Index Cond: (project_id = 'default'::text)".to_owned());
        plans.push(Plan { planned: Some("all values"), ..plans[0].clone() });
        plans[1].lines[2] = "        Index Cond: (project_id = $1)".to_owned();
        assert!(!render(&figures, "x").contains("all values"));
        figures.lists[1].plans[0].passed_over = Some("Index Scan using run_of_project");
        assert!(
            render(&figures, "x")
                .contains(", 12 pages, by another index than where there are many projects:")
        );
        let mut fault = figures.clone();
        fault.lists[1].plans[1].fault = Some("may not: Seq Scan on run".to_owned());
        let told = "planned for all values, 12 pages: **It may not: Seq Scan on run.**";
        assert!(render(&fault, "x").contains(told));
        figures.lists[1].plans[1].lines[1] = "  ->  Seq Scan on run".to_owned();
        assert!(render(&figures, "x").contains("planned for all values"));
    }

    #[test]
    fn nothing_is_told_where_nothing_was_explained() {
        let figures = Figures { lists: Vec::new(), ..figures() };
        assert_eq!(render(&figures, "x"), "");
    }
}
