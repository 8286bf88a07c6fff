//! Everything that was measured, and the bars that it must meet.

use super::databases::Database;
use super::events::Events;
use super::lists::{Kind, Lists};
use super::requests::Requests;
use super::sessions::script::Scripted;
use super::sessions::{Agents, Batch};
use crate::measuring::bar::{Bar, Bound};
use crate::measuring::machine::Machine;
use crate::measuring::stats::Summary;

/// The batch that the bars are on.
const BATCH: u32 = 50;
/// Megabytes of a mebibyte.
const MB: f64 = 1.048_576;

/// What was measured; a part that was not asked for is missing.
#[derive(Debug, Clone)]
pub(super) struct Figures {
    pub(super) machine: Machine,
    /// Whether the numbers are too small for bars on times and sizes.
    pub(super) short: bool,
    pub(super) batches: Vec<Batch>,
    pub(super) script: Option<Scripted>,
    pub(super) requests: Option<Requests>,
    /// What the `PostgreSQL` server says of itself.
    pub(super) postgres: Option<String>,
    pub(super) events: Vec<Events>,
    pub(super) lists: Vec<Lists>,
}

/// While sessions start, and when all of them have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Starting,
    Steady,
}

/// Of figures with their moments, those from before the moment at which everything had started, or from then on.
pub(super) fn within(figures: &[(i64, f64)], started_us: i64, when: When) -> Option<Summary> {
    let wanted = |at_us: i64| (at_us >= started_us) == (when == When::Steady);
    let kept: Vec<f64> =
        figures.iter().filter(|(at_us, _)| wanted(*at_us)).map(|(_, figure)| *figure).collect();
    Summary::of(&kept)
}

impl Batch {
    /// What the server and the programs that it starts take of the machine, from the first request to the last end, in per cent.
    pub(super) fn server_cpu_percent(&self, cores: usize) -> f64 {
        let cores = f64::from(u32::try_from(cores).unwrap_or(u32::MAX));
        let used_ms = self.usage.server.own_ms + self.usage.server.children_ms;
        100.0 * used_ms / (self.usage.busy_ms * cores)
    }

    /// The server's peak share of memory, in MB.
    pub(super) fn server_mb(&self) -> f64 {
        self.usage.server_peak_mib * MB
    }

    /// Status requests.
    pub(super) fn status(&self, when: When) -> Option<Summary> {
        within(&self.polled.status, self.started_us, when)
    }

    /// Lines of the agent.
    pub(super) fn lines(&self, when: When) -> Option<Summary> {
        let all: Vec<_> = self.sessions.iter().flat_map(|session| session.lines.iter().copied()).collect();
        within(&all, self.started_us, when)
    }

    /// POSTs, and waits for a slot.
    pub(super) fn posts(&self) -> Option<Summary> {
        Summary::of(&self.sessions.iter().map(|session| session.post_ms).collect::<Vec<_>>())
    }

    pub(super) fn pick_ups(&self) -> Option<Summary> {
        Summary::of(&self.sessions.iter().map(|session| session.picked_up_ms).collect::<Vec<_>>())
    }

    pub(super) fn lists(&self) -> Option<Summary> {
        Summary::of(&self.polled.list.iter().map(|(_, ms)| *ms).collect::<Vec<_>>())
    }
}

impl Figures {
    /// Takes down what a database says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) fn tell(&mut self, database: &Database) -> anyhow::Result<()> {
        self.postgres = database.told()?.or(self.postgres.take());
        Ok(())
    }

    /// Every bar on what was measured.
    pub(super) fn bars(&self) -> Vec<Bar> {
        let mut bars = self.correct();
        if !self.short {
            self.batches
                .iter()
                .filter(|batch| batch.count == BATCH && batch.agents == Agents::Real)
                .for_each(|batch| bars.extend(self.of_batch(batch)));
            bars.extend(
                self.script
                    .map(|script| Bar::new("wall_ratio", Some(script.ratio()), Bound::AtMost(1.10), 3)),
            );
            bars.extend(self.requests.iter().flat_map(of_requests));
            bars.extend(self.events.iter().map(of_events));
            bars.extend(self.lists.iter().flat_map(of_lists));
        }
        bars
    }

    /// What must be right whatever the numbers.
    fn correct(&self) -> Vec<Bar> {
        let count = |count: usize| u32::try_from(count).ok().map(f64::from);
        let none = Bound::AtMost(0.0);
        let mut bars = Vec::new();
        if !self.batches.is_empty() {
            let failed = self.batches.iter().map(|batch| batch.failed.len()).sum();
            let gaps = self.batches.iter().map(Batch::gaps).sum();
            bars.push(Bar::new("sessions_failed", count(failed), none, 0));
            bars.push(Bar::new("sessions_with_gaps", count(gaps), none, 0));
        }
        for batch in self.batches.iter().filter(|batch| batch.agents == Agents::Gathered) {
            let all = Bound::AtLeast(f64::from(batch.count));
            bars.push(Bar::new("agents_at_one_moment", count(batch.peak()), all, 0));
        }
        if !self.events.is_empty() {
            let lost = self.events.iter().map(|events| events.lost).sum();
            bars.push(Bar::new("events_lost", count(lost), none, 0));
        }
        bars
    }

    fn of_batch(&self, batch: &Batch) -> [Bar; 6] {
        use When::{Starting, Steady};
        let p99 = |summary: Option<Summary>| summary.map(|summary| summary.p99);
        let cpu = batch.server_cpu_percent(self.machine.cores);
        [
            Bar::new("server_memory_mb", Some(batch.server_mb()), Bound::Below(100.0), 1),
            Bar::new("server_cpu_percent", Some(cpu), Bound::Below(15.0), 1),
            Bar::new("steady_status_p99_ms", p99(batch.status(Steady)), Bound::Below(10.0), 1),
            Bar::new("steady_line_p99_ms", p99(batch.lines(Steady)), Bound::Below(50.0), 1),
            Bar::new("starting_status_p99_ms", p99(batch.status(Starting)), Bound::Below(50.0), 1),
            Bar::new("starting_line_p99_ms", p99(batch.lines(Starting)), Bound::Below(150.0), 1),
        ]
    }
}

fn of_requests(requests: &Requests) -> [Bar; 6] {
    let below = |name, figure, most, digits| Bar::new(name, Some(figure), Bound::Below(most), digits);
    [
        Bar::new("status_per_second", Some(requests.flat_out_rate), Bound::AtLeast(5_000.0), 0),
        below("flat_out_status_p99_ms", requests.flat_out_ms.p99, 25.0, 1),
        below("paced_status_p99_ms", requests.paced_ms.p99, 5.0, 1),
        below("burst_post_p99_ms", requests.burst_ms.p99, 100.0, 1),
        below("ready_ms", requests.ready_ms.p50, 200.0, 0),
        below("idle_memory_mb", requests.idle_mib * MB, 30.0, 1),
    ]
}

fn of_events(events: &Events) -> Bar {
    let (name, least) =
        events.database.of(("events_per_second", 10_000.0), ("postgres_events_per_second", 5_000.0));
    Bar::new(name, Some(events.rate), Bound::AtLeast(least), 0)
}

fn of_lists(lists: &Lists) -> [Bar; 6] {
    let slowest = |kinds: &[Kind]| kinds.iter().map(|kind| kind.took_ms.p99).reduce(f64::max);
    let [list, status, waiting, page, ratio, plans] = lists.database.of(
        [
            "list_p99_ms",
            "status_of_many_p99_ms",
            "status_of_waiting_p99_ms",
            "event_page_p99_ms",
            "last_event_page_ratio",
            "plans_that_read_more",
        ],
        [
            "postgres_list_p99_ms",
            "postgres_status_of_many_p99_ms",
            "postgres_status_of_waiting_p99_ms",
            "postgres_event_page_p99_ms",
            "postgres_last_event_page_ratio",
            "postgres_plans_that_read_more",
        ],
    );
    let faults = lists.plans.iter().filter(|plan| plan.fault.is_some()).count();
    // What was not explained reads nobody knows what.
    let faults = (!lists.plans.is_empty()).then(|| u32::try_from(faults).ok().map(f64::from)).flatten();
    [
        Bar::new(list, slowest(&lists.kinds), Bound::Below(20.0), 1),
        Bar::new(status, Some(lists.status_ms.p99), Bound::Below(2.0), 2),
        Bar::new(waiting, Some(lists.waiting_ms.p99), Bound::Below(2.0), 2),
        Bar::new(page, slowest(&lists.pages.kinds), Bound::Below(20.0), 1),
        Bar::new(ratio, Some(lists.pages.ratio.p50), Bound::AtMost(1.25), 2),
        Bar::new(plans, faults, Bound::AtMost(0.0), 0),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use caisson_store::hot::Plan;

    use super::super::databases;
    use super::super::lists::Pages;
    use super::super::sessions::Batch;
    use super::*;
    use crate::measuring::machine::tests::machine;
    use crate::measuring::proc::Cpu;

    /// Figures of a service that meets every bar.
    pub(crate) fn figures() -> Figures {
        let summary = |ms: f64| Summary::of(&[ms]).unwrap();
        Figures {
            machine: machine(),
            short: false,
            batches: vec![batch(1), batch(50), gathered(50)],
            script: Some(Scripted { count: 50, wall_ms: 50_000.0, service_ms: 51_000.0 }),
            requests: Some(Requests {
                ready_ms: summary(100.0),
                idle_mib: 20.0,
                flat_out_rate: 6_000.0,
                flat_out_ms: summary(9.0),
                paced_ms: summary(2.0),
                burst_ms: summary(50.0),
            }),
            postgres: Some("PostgreSQL 15.1 has fsync on.".to_owned()),
            events: vec![
                events(databases::Kind::Sqlite, 10_000.0),
                events(databases::Kind::Postgres, 5_000.0),
            ],
            lists: [databases::Kind::Sqlite, databases::Kind::Postgres].map(lists).to_vec(),
        }
    }

    fn events(database: databases::Kind, rate: f64) -> Events {
        Events {
            database,
            sessions: 50,
            acknowledged: 600_000,
            rate,
            batch_ms: Summary::of(&[400.0]).unwrap(),
            cpu_us: 60.0,
            read_rate: 50_000.0,
            lost: 0,
        }
    }

    fn lists(database: databases::Kind) -> Lists {
        let kind = |name, ms: f64| Kind { name, took_ms: Summary::of(&[ms]).unwrap() };
        Lists {
            database,
            runs: 100_000,
            kinds: vec![kind("all", 3.0), kind("some", 19.0)],
            status_ms: Summary::of(&[0.5]).unwrap(),
            waiting_ms: Summary::of(&[0.5]).unwrap(),
            pages: Pages {
                database,
                events: 5_000_000,
                long: 1_000_040,
                kinds: vec![kind("the first", 4.0), kind("the last", 19.9)],
                ratio: Summary::of(&[1.25]).unwrap(),
            },
            plans: vec![plan(database.of(None, Some("these values")))],
        }
    }

    fn plan(planned: Option<&'static str>) -> Plan {
        let lines = vec!["Limit".to_owned(), "  ->  Index Scan using run_of_project on run".to_owned()];
        Plan {
            name: "runs, newest first",
            planned,
            lines,
            pages: planned.map(|_| 12),
            fault: None,
            passed_over: None,
        }
    }

    fn batch(count: u32) -> Batch {
        let mut batch = Batch::of_nothing(count);
        batch.started_us = 100;
        batch.polled.status = vec![(50, 40.0), (100, 9.0)];
        batch.polled.list = vec![(50, 4.0)];
        batch.usage.server = Cpu { own_ms: 10_000.0, children_ms: 2_000.0 };
        batch.usage.busy_ms = 60_000.0;
        batch.usage.server_peak_mib = 40.0 + f64::from(count);
        batch.sessions[0].lines = vec![(50, 140.0), (150, 45.0)];
        batch
    }

    fn gathered(count: u32) -> Batch {
        Batch { agents: Agents::Gathered, ..batch(count) }
    }

    fn missed(figures: &Figures) -> Vec<String> {
        figures.bars().iter().filter(|bar| !bar.is_met()).map(Bar::short).collect()
    }

    #[test]
    fn a_good_service_meets_every_bar() {
        assert_eq!(missed(&figures()), Vec::<String>::new());
        assert_eq!(figures().bars().len(), 3 + 1 + 6 + 1 + 6 + 2 + 2 * 6);
    }

    #[test]
    fn memory_is_megabytes_and_what_the_server_starts_is_its_cpu() {
        let mut figures = figures();
        figures.batches[1].usage.server_peak_mib = 95.4;
        figures.batches[1].usage.server.children_ms = 8_000.0;
        assert_eq!(missed(&figures), ["server_memory_mb 100.0 100.0", "server_cpu_percent 15.0 15.0"]);
    }

    #[test]
    fn what_comes_while_sessions_start_has_bars_of_its_own() {
        let mut figures = figures();
        figures.batches[1].started_us = 0;
        assert_eq!(
            missed(&figures),
            [
                "steady_status_p99_ms 40.0 10.0",
                "steady_line_p99_ms 140.0 50.0",
                "starting_status_p99_ms inf 50.0",
                "starting_line_p99_ms inf 150.0",
            ]
        );
    }

    #[test]
    fn failed_sessions_gaps_and_lost_events_are_told_in_the_short_form_too() {
        let mut figures = figures();
        figures.short = true;
        figures.batches[1].usage.server_peak_mib = 1e9;
        figures.batches[0].failed.push("run 1: failed".to_owned());
        figures.batches[1].sessions[0].gapless = false;
        figures.events[1].lost = 3;
        assert_eq!(missed(&figures), ["sessions_failed 1 0", "sessions_with_gaps 1 0", "events_lost 3 0"]);
    }

    #[test]
    fn agents_that_were_to_work_at_one_moment_and_did_not_are_told() {
        let mut figures = figures();
        figures.batches[2].sessions[7].agent_us = 50_000_000;
        assert_eq!(missed(&figures), ["agents_at_one_moment 49 50"]);
    }

    #[test]
    fn a_part_that_was_not_measured_has_no_bar() {
        let figures = Figures {
            batches: Vec::new(),
            script: None,
            requests: None,
            events: Vec::new(),
            lists: Vec::new(),
            ..figures()
        };
        assert_eq!(figures.bars(), Vec::new());
    }

    #[test]
    fn the_slowest_kind_of_list_and_page_counts_and_each_database_has_its_bars() {
        let mut figures = figures();
        figures.lists[0].kinds[0].took_ms.p99 = 20.0;
        figures.lists[1].status_ms.p99 = 2.0;
        figures.lists[1].waiting_ms.p99 = 2.0;
        figures.lists[0].pages.kinds[0].took_ms.p99 = 20.0;
        figures.lists[1].pages.ratio.p50 = 1.26;
        figures.lists[0].plans[0].fault = Some("may not: SCAN run".to_owned());
        figures.lists[1].plans.clear();
        for events in &mut figures.events {
            events.rate -= 1.0;
        }
        assert_eq!(
            missed(&figures),
            [
                "events_per_second 9999 10000",
                "postgres_events_per_second 4999 5000",
                "list_p99_ms 20.0 20.0",
                "event_page_p99_ms 20.0 20.0",
                "plans_that_read_more 1 0",
                "postgres_status_of_many_p99_ms 2.00 2.00",
                "postgres_status_of_waiting_p99_ms 2.00 2.00",
                "postgres_last_event_page_ratio 1.26 1.25",
                "postgres_plans_that_read_more inf 0",
            ]
        );
    }
}
