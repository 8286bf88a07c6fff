//! The figures as tables that read well both on a terminal and as Markdown; pure.

use super::bar;
use super::figures::Figures;
use super::follow_up::FollowUps;
use super::stats::Summary;
use super::table::Table;
use super::timeline::{STEPS, median_steps};

/// The whole report: machine, then every table.
#[must_use]
pub(crate) fn render(figures: &Figures, command: &str) -> String {
    let mut text = format!("{}; {} pairs.\n", figures.machine.line(command), figures.pairs.len());
    for table in [
        bar::table(&figures.bars()),
        engines(figures),
        follow_ups(&figures.follow_ups),
        pairs(figures),
        steps(figures),
        latencies(figures),
        load(figures),
    ] {
        table.write(&mut text);
    }
    text
}

/// A row of a series: its median, least and greatest figure.
fn spread(name: &str, figures: &[f64], digits: usize) -> Vec<String> {
    let mut row = vec![name.to_owned()];
    match Summary::of(figures) {
        Some(Summary { p50, min, max, .. }) => {
            row.extend([p50, min, max].map(|figure| format!("{figure:.digits$}")));
        }
        None => row.extend(["–", "–", "–"].map(str::to_owned)),
    }
    row
}

fn engines(figures: &Figures) -> Table {
    let engines = &figures.engines;
    Table {
        title: "A run of one turn, on each engine and without any".to_owned(),
        head: ["", "p50", "min", "max"].map(str::to_owned).to_vec(),
        rows: vec![
            spread("the bare agent, ms", &engines.bare_ms, 0),
            spread("through the service, local engine, ms", &engines.local.runs_ms, 0),
            spread("through the service, Docker Engine, ms", &engines.docker.runs_ms, 0),
            spread("local − bare, round by round, ms", &engines.local_over_bare_ms(), 0),
            spread("Docker − bare, round by round, ms", &engines.docker_over_bare_ms(), 0),
            spread("sandbox start, local engine, ms", &engines.local.starts_ms, 1),
            spread("sandbox start, Docker Engine, ms", &engines.docker.starts_ms, 1),
        ],
    }
}

/// Follow-ups beside the bare agent.
#[must_use]
pub(crate) fn follow_ups(all: &FollowUps) -> Table {
    Table {
        title: "Until the first model request of a follow-up whose sandbox waits, and of the bare agent"
            .to_owned(),
        head: ["", "p50", "min", "max"].map(str::to_owned).to_vec(),
        rows: vec![
            spread("a follow-up, local engine, from the POST, ms", &all.local_ms, 0),
            spread("a follow-up, Docker Engine, from the POST, ms", &all.docker_ms, 0),
            spread("the bare agent, from its start, ms", &all.bare_ms, 0),
        ],
    }
}

fn pairs(figures: &Figures) -> Table {
    let (service, script) = figures.totals_ms();
    Table {
        title: "The job".to_owned(),
        head: ["", "p50", "min", "max"].map(str::to_owned).to_vec(),
        rows: vec![
            spread("through the service, ms", &service, 0),
            spread("by the script, ms", &script, 0),
            spread("service / script, pair by pair", &figures.ratios(), 3),
            spread("service − script, pair by pair, ms", &figures.differences_ms(), 0),
            spread("sandbox start, as the server says, ms", &figures.starts_ms, 0),
            spread("`docker run --detach` with the same profile, ms", &figures.bare_starts_ms, 0),
        ],
    }
}

fn steps(figures: &Figures) -> Table {
    let of = |side: fn(&super::figures::Pair) -> super::timeline::Timeline| {
        median_steps(&figures.pairs.iter().map(side).collect::<Vec<_>>())
    };
    let (service, script) = (of(|pair| pair.service), of(|pair| pair.script));
    let cell = |figure: Option<f64>| figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.0}"));
    let row = |index: usize| vec![STEPS[index].1.to_owned(), cell(service[index]), cell(script[index])];
    Table {
        title: "Where the time goes: each step since the one before, median, ms".to_owned(),
        head: ["until", "service", "script"].map(str::to_owned).to_vec(),
        rows: (0..STEPS.len()).map(row).collect(),
    }
}

fn latencies(figures: &Figures) -> Table {
    let row = |name: &str, summary: &Summary| {
        vec![
            name.to_owned(),
            summary.count.to_string(),
            format!("{:.1}", summary.p50),
            format!("{:.1}", summary.p99),
            format!("{:.1}", summary.max),
        ]
    };
    let (requests, live) = (&figures.requests, &figures.live);
    Table {
        title: "Latencies, ms".to_owned(),
        head: ["", "count", "p50", "p99", "max"].map(str::to_owned).to_vec(),
        rows: vec![
            row("POST a run → 202", &requests.post),
            row("GET a run", &requests.get),
            row("line on standard output → reader (stand-in, stamped as it writes)", &live.exact),
            row("line of the agent, by its own stamp → reader", &live.agent),
            row("word of the model → live text at the reader", &live.words),
        ],
    }
}

fn load(figures: &Figures) -> Table {
    let load = &figures.load;
    let row =
        |name: &str, figure: f64, unit: &str| vec![name.to_owned(), format!("{figure:.1}"), unit.to_owned()];
    Table {
        title: "What it takes".to_owned(),
        head: ["", "figure", "unit"].map(str::to_owned).to_vec(),
        rows: vec![
            row("server, idle: PSS", load.idle.pss_mib, "MiB"),
            row("server, idle: RSS", load.idle.rss_mib, "MiB"),
            row("server, peak of a run: PSS", load.peaks.server.pss_mib, "MiB"),
            row("server, peak of a run: RSS", load.peaks.server.rss_mib, "MiB"),
            row("server, CPU of a run", load.run.own_ms, "ms"),
            row("git that the server starts for a run, CPU", load.run.children_ms, "ms"),
            row("server, idle: CPU", load.idle_cpu_ms, "ms/s"),
            row("shim, peak of a run: PSS", load.peaks.shim.pss_mib, "MiB"),
            row("shim, peak of a run: RSS", load.peaks.shim.rss_mib, "MiB"),
            row("shim, CPU of a run", load.peaks.shim_cpu_ms, "ms"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn every_table_has_its_title_and_every_line_of_a_table_is_as_long_as_the_others() {
        let text = render(&figures(&[(1100, 1000), (1080, 1000)]), "make bench");
        assert!(
            text.starts_with("`make bench` on 2026-11-22: 2 cores, 24 GiB of memory, Linux 6.1.0"),
            "{text}"
        );
        for block in text.split("\n\n").filter(|block| block.starts_with('|')) {
            let lengths: Vec<_> = block.lines().map(|line| line.chars().count()).collect();
            assert!(lengths.iter().all(|length| *length == lengths[0]), "{block}");
        }
        for said in [
            "**Bars**",
            "| ratio ",
            " 1.090 ",
            "| met |",
            "**The job**",
            "a follow-up, local engine, from the POST, ms",
            "**A run of one turn, on each engine and without any**",
            "service / script",
            "**Latencies, ms**",
        ] {
            assert!(text.contains(said), "{said} in {text}");
        }
    }

    #[test]
    fn a_missed_bar_is_seen_in_the_table() {
        let text = render(&figures(&[(1300, 1000)]), "x");
        assert!(text.contains("| SHORT |"), "{text}");
    }
}
