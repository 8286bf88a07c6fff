//! Everything that was measured, and the bars that it must meet.

use super::bar::{Bar, Bound};
use super::engines::Engines;
use super::follow_up::FollowUps;
use super::machine::Machine;
use super::proc::{Cpu, Memory};
use super::requests::Requests;
use super::sampler::Peaks;
use super::stats::{Summary, median};
use super::timeline::Timeline;

/// Most that the service may take, as a multiple of the script (median of the pairs).
const RATIO: f64 = 1.10;
/// Most that the service may take on top of the script, in milliseconds (median of the pairs).
const DIFFERENCE_MS: f64 = 150.0;
/// Most that a line may take from the agent's standard output to a reader, in milliseconds (median).
const LINE_MS: f64 = 20.0;
/// Most that a sandbox may take to start, in milliseconds (the slowest).
const START_MS: f64 = 10_000.0;

/// Most that a local sandbox may take to start, in milliseconds (median).
const LOCAL_START_MS: f64 = 30.0;
/// Most that a run of one turn on the local engine may take on top of the bare agent, in milliseconds (median of the
/// rounds).
const LOCAL_OVER_BARE_MS: f64 = 150.0;
/// One job on either side, done one right after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    /// Through the service.
    pub(crate) service: Timeline,
    /// By the script.
    pub(crate) script: Timeline,
}

impl Pair {
    /// How long each took, in milliseconds: service, script.
    fn totals_ms(&self) -> Option<(f64, f64)> {
        self.service.total_ms().zip(self.script.total_ms())
    }
}

/// What the server uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Memory before the first run.
    pub(crate) idle: Memory,
    /// The most of it, and of the shim, while a run goes on.
    pub(crate) peaks: Peaks,
    /// CPU time of a run, in the mean of the pairs' runs.
    pub(crate) run: Cpu,
    /// CPU time of a second in which nothing happens, in milliseconds.
    pub(crate) idle_cpu_ms: f64,
}

/// From where text appears to a reader of the live stream, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Live {
    /// From the stand-in's write to the reader.
    pub(crate) exact: Summary,
    /// From the agent's own stamp on a line to the reader.
    pub(crate) agent: Summary,
    /// From the model's word to the reader.
    pub(crate) words: Summary,
}

/// Everything that was measured.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// Where and when.
    pub(crate) machine: Machine,
    /// The pairs, in the order in which they were done.
    pub(crate) pairs: Vec<Pair>,
    /// Start of a sandbox, as the server says, in milliseconds.
    pub(crate) starts_ms: Vec<f64>,
    /// Start of a container with the same profile by the docker client, in milliseconds.
    pub(crate) bare_starts_ms: Vec<f64>,
    /// What the server uses.
    pub(crate) load: Load,
    /// The API's answers.
    pub(crate) requests: Requests,
    /// The live stream.
    pub(crate) live: Live,
    /// The engines beside the bare agent.
    pub(crate) engines: Engines,
    /// Follow-ups whose sandboxes wait, beside the bare agent.
    pub(crate) follow_ups: FollowUps,
}

impl Figures {
    /// How long each side took, in milliseconds: service, script.
    #[must_use]
    pub(crate) fn totals_ms(&self) -> (Vec<f64>, Vec<f64>) {
        self.pairs.iter().filter_map(Pair::totals_ms).unzip()
    }

    /// Service through script, pair by pair.
    #[must_use]
    pub(crate) fn ratios(&self) -> Vec<f64> {
        self.pairs.iter().filter_map(Pair::totals_ms).map(|(service, script)| service / script).collect()
    }

    /// Service less script, pair by pair, in milliseconds.
    #[must_use]
    pub(crate) fn differences_ms(&self) -> Vec<f64> {
        self.pairs.iter().filter_map(Pair::totals_ms).map(|(service, script)| service - script).collect()
    }

    /// Every bar. A figure that is missing misses its bar.
    #[must_use]
    pub(crate) fn bars(&self) -> Vec<Bar> {
        let bar = |name, figure, most, digits| Bar::new(name, figure, Bound::AtMost(most), digits);
        let slowest = Summary::of(&self.starts_ms).map(|starts| starts.max);
        [
            bar("ratio", median(&self.ratios()), RATIO, 3),
            bar("difference_ms", median(&self.differences_ms()), DIFFERENCE_MS, 0),
            bar("line_to_reader_p50_ms", Some(self.live.exact.p50), LINE_MS, 1),
            bar("sandbox_start_max_ms", slowest, START_MS, 0),
            bar("local_start_p50_ms", median(&self.engines.local.starts_ms), LOCAL_START_MS, 1),
            bar("local_over_bare_ms", median(&self.engines.local_over_bare_ms()), LOCAL_OVER_BARE_MS, 0),
        ]
        .into_iter()
        .chain(self.follow_ups.bars())
        .collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::engines::OnEngine;
    use super::super::timeline::Moment;
    use super::*;

    /// Figures of pairs with these totals, in milliseconds, and otherwise of a fast service.
    pub(crate) fn figures(totals_ms: &[(i64, i64)]) -> Figures {
        let timeline = |total_ms: i64| {
            let mut timeline = Timeline::default();
            timeline.note(Moment::Asked, 0);
            timeline.note(Moment::SandboxRuns, total_ms * 500);
            timeline.note(Moment::Known, total_ms * 1000);
            timeline
        };
        let pair =
            |&(service, script): &(i64, i64)| Pair { service: timeline(service), script: timeline(script) };
        let summary = Summary::of(&[1.0, 2.0, 3.0]).unwrap();
        let memory = Memory { pss_mib: 10.0, rss_mib: 20.0 };
        Figures {
            machine: super::super::machine::tests::machine(),
            pairs: totals_ms.iter().map(pair).collect(),
            starts_ms: vec![140.0, 150.0],
            bare_starts_ms: vec![300.0, 310.0],
            load: Load {
                idle: memory,
                peaks: Peaks { server: memory, shim: memory, shim_cpu_ms: 15.0, samples: 3 },
                run: Cpu { own_ms: 30.0, children_ms: 12.0 },
                idle_cpu_ms: 0.5,
            },
            requests: Requests { post: summary, get: summary },
            live: Live { exact: summary, agent: summary, words: summary },
            engines: Engines {
                bare_ms: vec![400.0, 410.0, 420.0],
                local: OnEngine { runs_ms: vec![550.0, 560.0, 570.0], starts_ms: vec![29.0, 30.0, 80.0] },
                docker: OnEngine { runs_ms: vec![640.0, 650.0, 660.0], starts_ms: vec![70.0, 75.0, 80.0] },
            },
            follow_ups: FollowUps {
                bare_ms: vec![600.0, 620.0],
                local_ms: vec![110.0, 120.0, 300.0],
                docker_ms: vec![100.0, 101.0, 102.0],
            },
        }
    }

    fn missed(figures: &Figures) -> Vec<String> {
        figures.bars().iter().filter(|bar| !bar.is_met()).map(Bar::short).collect()
    }

    #[test]
    fn bars_are_on_the_medians_of_the_pairs() {
        assert_eq!(missed(&figures(&[(1100, 1000), (5000, 1000), (1000, 1000)])), Vec::<String>::new());
        assert_eq!(missed(&figures(&[(1101, 1000)])), ["ratio 1.101 1.100"]);
        assert_eq!(missed(&figures(&[(2150, 2000)])), Vec::<String>::new());
        assert_eq!(missed(&figures(&[(2151, 2000)])), ["difference_ms 151 150"]);
    }

    #[test]
    fn a_slow_line_a_slow_start_and_missing_figures_miss_their_bars() {
        let mut slow = figures(&[(1000, 1000)]);
        slow.live.exact.p50 = 20.1;
        slow.starts_ms.push(10_001.0);
        assert_eq!(missed(&slow), ["line_to_reader_p50_ms 20.1 20.0", "sandbox_start_max_ms 10001 10000"]);
        assert_eq!(missed(&figures(&[])).len(), 2);
    }

    #[test]
    fn follow_ups_have_bars_on_their_medians() {
        let mut slow = figures(&[(1000, 1000)]);
        slow.follow_ups.local_ms[1] = 120.6;
        slow.follow_ups.docker_ms = Vec::new();
        assert_eq!(missed(&slow), ["follow_up_p50_ms 121 120", "follow_up_docker_p50_ms inf 120"]);
    }

    #[test]
    fn the_local_engine_has_bars_of_its_own() {
        let mut slow = figures(&[(1000, 1000)]);
        slow.engines.local.starts_ms[1] = 30.1;
        slow.engines.local.runs_ms[1] = 560.6;
        slow.engines.local.runs_ms[2] = 571.0;
        assert_eq!(missed(&slow), ["local_start_p50_ms 30.1 30.0", "local_over_bare_ms 151 150"]);
        slow.engines = Engines::default();
        assert_eq!(missed(&slow).len(), 2);
    }
}
