//! The figures as tables; pure.

use super::events::{BATCH_EVENTS, EVENT_BYTES, Events};
use super::figures::{Figures, When};
use super::lists::{Lists, PAGE, Pages};
use super::requests::Requests;
use super::sessions::{Agents, Batch};
use crate::measuring::bar;
use crate::measuring::stats::Summary;
use crate::measuring::table::Table;

/// The whole report: machine, then every table.
pub(super) fn render(figures: &Figures, command: &str) -> String {
    let mut text = format!("{}.\n", figures.machine.line(command));
    if let Some(postgres) = &figures.postgres {
        text.push_str(postgres);
        text.push('\n');
    }
    let mut tables = vec![bar::table(&figures.bars())];
    if !figures.batches.is_empty() {
        tables.extend([sessions(figures), latencies(figures), cost(figures)]);
    }
    tables.extend(figures.requests.iter().map(requests));
    tables.extend(figures.events.iter().map(events));
    tables.extend(figures.lists.iter().flat_map(|measured| [lists(measured), pages(&measured.pages)]));
    for table in tables {
        table.write(&mut text);
    }
    let failed = figures.batches.iter().flat_map(|batch| &batch.failed);
    let failed: Vec<_> = failed.map(|failed| format!("\nfailed: {failed}\n")).collect();
    text + &failed.concat()
}

fn head(first: &str, batches: &[Batch]) -> Vec<String> {
    let named = |batch: &Batch| match batch.agents {
        Agents::Real => batch.count.to_string(),
        Agents::Gathered => format!("{}, at one moment", batch.count),
        Agents::StandIns => format!("{}, stand-in", batch.count),
    };
    std::iter::once(first.to_owned()).chain(batches.iter().map(named)).collect()
}

fn row(name: &str, batches: &[Batch], cell: impl Fn(&Batch) -> Option<f64>, digits: usize) -> Vec<String> {
    let cell =
        |batch: &Batch| cell(batch).map_or_else(|| "–".to_owned(), |figure| format!("{figure:.digits$}"));
    std::iter::once(name.to_owned()).chain(batches.iter().map(cell)).collect()
}

fn sessions(figures: &Figures) -> Table {
    let batches = &figures.batches;
    let cores = figures.machine.cores;
    let seconds = |ms: f64| Some(ms / 1000.0);
    let script = |batch: &Batch| {
        figures
            .script
            .filter(|script| script.count == batch.count && batch.agents == Agents::Real)
            .map(|script| script.wall_ms)
    };
    let started = |batch: &Batch| {
        let began_us = batch.sessions.iter().map(|session| session.asked_us).min()?;
        seconds(crate::measuring::clock::ms_between(began_us, batch.started_us))
    };
    Table {
        title: "Sessions at the same time".to_owned(),
        head: head("", batches),
        rows: vec![
            row("succeeded", batches, |batch| Some(f64::from(batch.count) - count(batch.failed.len())), 0),
            row("from the first request to the last end, s", batches, |batch| seconds(batch.wall_ms()), 1),
            row("the same by the script, s", batches, |batch| script(batch).and_then(seconds), 1),
            row("until the last one had started, s", batches, started, 1),
            row(
                "agents that worked at the same moment, at most",
                batches,
                |batch| Some(count(batch.peak())),
                0,
            ),
            row("server, memory at the peak (PSS), MB", batches, |batch| Some(batch.server_mb()), 1),
            row(
                "server and what it starts, share of the machine's CPU, %",
                batches,
                |batch| Some(batch.server_cpu_percent(cores)),
                1,
            ),
            row("server, CPU, s", batches, |batch| seconds(batch.usage.server.own_ms), 1),
            row(
                "programs that the server starts, CPU, s",
                batches,
                |batch| seconds(batch.usage.server.children_ms),
                1,
            ),
            row("engine, CPU, s", batches, |batch| seconds(batch.usage.engine_ms), 1),
            row("shims, CPU, s", batches, |batch| seconds(batch.usage.shims_ms), 1),
            row(
                "the whole machine without model and clients, CPU, s",
                batches,
                |batch| seconds(batch.usage.machine_ms),
                1,
            ),
        ],
    }
}

fn latencies(figures: &Figures) -> Table {
    use When::{Starting, Steady};
    let batches = &figures.batches;
    let p50 = |summary: Option<Summary>| summary.map(|summary| summary.p50);
    let p99 = |summary: Option<Summary>| summary.map(|summary| summary.p99);
    let deltas = |batch: &Batch| {
        let all: usize = batch.sessions.iter().map(|session| session.deltas).sum();
        Some(f64::from(u32::try_from(all).ok()?) / f64::from(batch.count))
    };
    Table {
        title: "Latencies meanwhile, ms".to_owned(),
        head: head("", batches),
        rows: vec![
            row("POST, p99", batches, |batch| p99(batch.posts()), 1),
            row("accepted → taken by a slot, p99", batches, |batch| p99(batch.pick_ups()), 0),
            row("status while sessions start, p99", batches, |batch| p99(batch.status(Starting)), 1),
            row("status in steady state, p99", batches, |batch| p99(batch.status(Steady)), 1),
            row("list, p99", batches, |batch| p99(batch.lists()), 1),
            row("line → client while sessions start, p50", batches, |batch| p50(batch.lines(Starting)), 1),
            row("line → client while sessions start, p99", batches, |batch| p99(batch.lines(Starting)), 1),
            row("line → client in steady state, p50", batches, |batch| p50(batch.lines(Steady)), 1),
            row("line → client in steady state, p99", batches, |batch| p99(batch.lines(Steady)), 1),
            row("pieces of live text at each client", batches, deltas, 0),
        ],
    }
}

/// What one session more takes, by the difference to the first batch of the same kind; the stand-ins have none, and are
/// divided by their number.
fn cost(figures: &Figures) -> Table {
    let batches = &figures.batches;
    let first = batches.first().filter(|batch| batch.agents == Agents::Real && batches.len() > 1);
    let each = |figure: fn(&Batch) -> f64| {
        move |batch: &Batch| {
            let base = first.filter(|_| batch.agents != Agents::StandIns);
            let more = f64::from(batch.count) - base.map_or(0.0, |base| f64::from(base.count));
            let used = figure(batch) - base.map_or(0.0, figure);
            (more > 0.0).then(|| used / more)
        }
    };
    Table {
        title: "Cost of one session more".to_owned(),
        head: head("", batches),
        rows: vec![
            row("server, CPU, s", batches, each(|batch| batch.usage.server.own_ms / 1000.0), 3),
            row(
                "programs that the server starts, CPU, s",
                batches,
                each(|batch| batch.usage.server.children_ms / 1000.0),
                3,
            ),
            row("shim, CPU, s", batches, each(|batch| batch.usage.shims_ms / 1000.0), 3),
            row("engine, CPU, s", batches, each(|batch| batch.usage.engine_ms / 1000.0), 3),
            row(
                "the whole machine without model and clients, CPU, s",
                batches,
                each(|batch| batch.usage.machine_ms / 1000.0),
                2,
            ),
            row(
                "server, memory at the peak (PSS), MiB",
                batches,
                each(|batch| batch.usage.server_peak_mib - batch.usage.server_idle_mib),
                2,
            ),
            row(
                "the whole machine, memory at the peak, MiB",
                batches,
                each(|batch| batch.usage.machine_mib),
                0,
            ),
        ],
    }
}

fn count(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

fn texts<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn latency(name: &str, summary: &Summary) -> Vec<String> {
    let Summary { count, p50, p99, max, .. } = summary;
    let mut row = vec![name.to_owned(), count.to_string()];
    row.extend([p50, p99, max].map(|ms| format!("{ms:.2}")));
    row
}

fn requests(requests: &Requests) -> Table {
    let single = |name: &str, figure: f64, digits: usize| {
        vec![name.to_owned(), "–".to_owned(), format!("{figure:.digits$}"), "–".to_owned(), "–".to_owned()]
    };
    Table {
        title: "A server without runs".to_owned(),
        head: texts(["", "count", "p50", "p99", "max"]),
        rows: vec![
            latency("from the process's start until it is ready, ms", &requests.ready_ms),
            single("memory (PSS), MiB", requests.idle_mib, 1),
            single("status requests on 50 connections, answers a second", requests.flat_out_rate, 0),
            latency("each of them, ms", &requests.flat_out_ms),
            latency("status requests, 1000 a second, from when each was due, ms", &requests.paced_ms),
            latency("POST, 50 at the same time, ms", &requests.burst_ms),
        ],
    }
}

fn events(events: &Events) -> Table {
    let line = |name: &str, figure: String| vec![name.to_owned(), figure];
    Table {
        title: format!(
            "Events of {EVENT_BYTES} bytes, {BATCH_EVENTS} in a batch, of {} sessions, {}",
            events.sessions,
            events.database.name()
        ),
        head: texts(["", "figure"]),
        rows: vec![
            line("acknowledged", events.acknowledged.to_string()),
            line("acknowledged in a second", format!("{:.0}", events.rate)),
            line("a batch, p50, ms", format!("{:.1}", events.batch_ms.p50)),
            line("a batch, p99, ms", format!("{:.1}", events.batch_ms.p99)),
            line("server, CPU for each, µs", format!("{:.0}", events.cpu_us)),
            line("read back in a second", format!("{:.0}", events.read_rate)),
            line("missing, changed or out of order", events.lost.to_string()),
        ],
    }
}

fn lists(lists: &Lists) -> Table {
    let mut rows: Vec<_> = lists.kinds.iter().map(|kind| latency(kind.name, &kind.took_ms)).collect();
    rows.push(latency("the status of one run", &lists.status_ms));
    rows.push(latency("the status of one that waits", &lists.waiting_ms));
    Table {
        title: format!("Lists over {} runs, {}, ms", lists.runs, lists.database.name()),
        head: texts(["", "count", "p50", "p99", "max"]),
        rows,
    }
}

fn pages(pages: &Pages) -> Table {
    let Pages { database, events, long, kinds, ratio } = pages;
    let mut rows: Vec<_> = kinds.iter().map(|kind| latency(kind.name, &kind.took_ms)).collect();
    rows.push(latency("a last page by a first one, a ratio", ratio));
    let name = database.name();
    Table {
        title: format!("Pages of {PAGE} of {events} events, of which one run has {long}, {name}, ms"),
        head: texts(["", "count", "p50", "p99", "max"]),
        rows,
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn every_part_has_its_table() {
        let text = render(&figures(), "make load");
        assert!(text.starts_with("`make load` on 2026-11-22: 2 cores"), "{text}");
        for said in [
            "**Bars**",
            "**Sessions at the same time**",
            "| the same by the script, s ",
            "**Cost of one session more**",
            "**A server without runs**",
            "**Events of 500 bytes, 100 in a batch, of 50 sessions, SQLite**",
            "**Events of 500 bytes, 100 in a batch, of 50 sessions, PostgreSQL**",
            "**Lists over 100000 runs, SQLite, ms**",
            "**Lists over 100000 runs, PostgreSQL, ms**",
            "**Pages of 100 of 5000000 events, of which one run has 1000040, SQLite, ms**",
            "**Pages of 100 of 5000000 events, of which one run has 1000040, PostgreSQL, ms**",
            "\nPostgreSQL 15.1 has fsync on.\n",
        ] {
            assert!(text.contains(said), "{said} in {text}");
        }
    }

    #[test]
    fn one_session_more_is_the_difference_to_the_first_batch() {
        let mut figures = figures();
        figures.batches[0].usage.shims_ms = 100.0;
        figures.batches[1].usage.shims_ms = 5_000.0;
        let table = cost(&figures);
        assert_eq!(table.rows[2][..3], ["shim, CPU, s", "–", "0.100"]);
        figures.batches[1].agents = Agents::StandIns;
        assert_eq!(cost(&figures).rows[2][..3], ["shim, CPU, s", "–", "0.100"]);
    }

    #[test]
    fn a_failed_session_is_told() {
        let mut figures = figures();
        figures.batches[1].failed.push("run 7: failed".to_owned());
        assert!(render(&figures, "x").contains("\nfailed: run 7: failed\n"));
    }
}
