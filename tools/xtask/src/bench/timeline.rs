//! When each step of one job was done, on either side; pure.

use serde_json::Value;

use super::clock::ms_between;
use super::stats::median;

/// The moments of a job, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The request is sent, or the docker client started.
    Asked,
    /// The run is in the queue.
    Accepted,
    /// A worker has it.
    Claimed,
    /// The sandbox runs, or the script's first line does.
    SandboxRuns,
    /// The checkout is there.
    Prepared,
    /// The prompt goes to the agent.
    Prompted,
    /// The model has the first request.
    FirstRequest,
    /// The agent has done its task.
    Answered,
    /// The commit is made, with the message that the agent was asked for.
    Committed,
    /// The repository has the commit.
    Pushed,
    /// Whoever asked knows the end.
    Known,
}

/// Every moment but the first, with what has been done by then.
pub(crate) const STEPS: [(Moment, &str); 10] = [
    (Moment::Accepted, "accepted and queued"),
    (Moment::Claimed, "claimed"),
    (Moment::SandboxRuns, "sandbox runs"),
    (Moment::Prepared, "checkout ready"),
    (Moment::Prompted, "prompt handed to the agent"),
    (Moment::FirstRequest, "first model request"),
    (Moment::Answered, "task done (5 model calls, 4 tools)"),
    (Moment::Committed, "commit message asked for, commit made"),
    (Moment::Pushed, "pushed"),
    (Moment::Known, "end known to whoever asked"),
];

/// When each moment was, in Unix microseconds; what a side does not have is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timeline([Option<i64>; STEPS.len() + 1]);

impl Timeline {
    /// Notes a moment; the first note of it stands.
    pub(crate) fn note(&mut self, moment: Moment, at_us: i64) {
        self.0[moment as usize].get_or_insert(at_us);
    }

    /// From the first moment to the last, in milliseconds; none if one of them is missing.
    #[must_use]
    pub(crate) fn total_ms(&self) -> Option<f64> {
        Some(ms_between(self.0[Moment::Asked as usize]?, self.0[Moment::Known as usize]?))
    }

    /// How long each step took since the latest step before it that this side has, in milliseconds.
    #[must_use]
    pub(crate) fn steps_ms(&self) -> [Option<f64>; STEPS.len()] {
        let mut steps = [None; STEPS.len()];
        let mut before = self.0[0];
        for (step, at) in steps.iter_mut().zip(&self.0[1..]) {
            *step = before.zip(*at).map(|(before, at)| ms_between(before, at));
            before = at.or(before);
        }
        steps
    }

    /// Notes what an event tells, with the event's own time.
    pub(crate) fn note_event(&mut self, event: &Value) {
        let moment = match event["kind"].as_str().unwrap_or_default() {
            "run.queued" => Moment::Accepted,
            "run.started" => Moment::Claimed,
            "sandbox.started" => Moment::SandboxRuns,
            "workspace.prepared" => Moment::Prepared,
            "agent.started" => Moment::Prompted,
            "agent.line" if event["data"]["type"] == "result" => Moment::Answered,
            "git.commit" => Moment::Committed,
            "git.push" => Moment::Pushed,
            _ => return,
        };
        if let Some(at_ms) = event["at_ms"].as_i64() {
            self.note(moment, at_ms.saturating_mul(1000));
        }
    }

    /// Notes what a line of the script's output tells: `mark NAME SECONDS`.
    pub(crate) fn note_mark(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (Some("mark"), Some(name), Some(stamp)) = (words.next(), words.next(), words.next()) else {
            return;
        };
        let moment = match name {
            "began" => Moment::SandboxRuns,
            "prepared" => Moment::Prepared,
            "prompted" => Moment::Prompted,
            "answered" => Moment::Answered,
            "committed" => Moment::Committed,
            "pushed" => Moment::Pushed,
            _ => return,
        };
        if let Some(at_us) = super::clock::parse_epoch(stamp) {
            self.note(moment, at_us);
        }
    }
}

/// The median of each step over several jobs; none where no job has the step.
#[must_use]
pub(crate) fn median_steps(timelines: &[Timeline]) -> [Option<f64>; STEPS.len()] {
    let all: Vec<_> = timelines.iter().map(Timeline::steps_ms).collect();
    std::array::from_fn(|index| median(&all.iter().filter_map(|steps| steps[index]).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn close(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-9)
    }

    #[test]
    fn the_steps_are_in_the_order_of_the_moments() {
        for (index, (moment, _)) in STEPS.iter().enumerate() {
            assert_eq!(*moment as usize, index + 1);
        }
    }

    #[test]
    fn a_step_that_a_side_does_not_have_is_skipped() {
        let mut script = Timeline::default();
        script.note(Moment::Asked, 1_000);
        for line in [
            "mark began 0.301000",
            "other",
            "mark prepared 0.311500",
            "mark nothing 0.5",
            "mark began 9.000000",
        ] {
            script.note_mark(line);
        }
        let steps = script.steps_ms();
        assert_eq!((steps[0], steps[1]), (None, None));
        assert!(close(steps[2], 300.0), "{steps:?}");
        assert!(close(steps[3], 10.5), "{steps:?}");
        assert_eq!(script.total_ms(), None);
        script.note(Moment::Known, 2_001_000);
        assert!(close(script.total_ms(), 2_000.0));
        assert!(close(script.steps_ms()[9], 1_689.5));
    }

    #[test]
    fn events_tell_moments_and_only_the_first_result_ends_the_task() {
        let mut service = Timeline::default();
        service.note(Moment::Asked, 0);
        for event in [
            json!({"kind": "run.queued", "at_ms": 2, "data": {}}),
            json!({"kind": "run.started", "at_ms": 4, "data": {}}),
            json!({"kind": "agent.line", "at_ms": 100, "data": {"type": "assistant"}}),
            json!({"kind": "agent.line", "at_ms": 200, "data": {"type": "result"}}),
            json!({"kind": "agent.line", "at_ms": 300, "data": {"type": "result"}}),
            json!({"kind": "git.commit", "at_ms": 310, "data": {}}),
        ] {
            service.note_event(&event);
        }
        let steps = service.steps_ms();
        assert!(close(steps[0], 2.0) && close(steps[1], 2.0));
        assert!(close(steps[6], 196.0), "{steps:?}");
        assert!(close(steps[7], 110.0), "{steps:?}");
    }

    #[test]
    fn medians_are_taken_step_by_step() {
        let timeline = |accepted| {
            let mut timeline = Timeline::default();
            timeline.note(Moment::Asked, 0);
            timeline.note(Moment::Accepted, accepted);
            timeline
        };
        let steps = median_steps(&[timeline(1_000), timeline(9_000), timeline(2_000)]);
        assert!(close(steps[0], 2.0));
        assert_eq!(steps[1], None);
    }
}
