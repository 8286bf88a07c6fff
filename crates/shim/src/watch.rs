//! Watchdogs of the agent: independent clocks that say when its silence means that it hangs. Pure; the driver asks when
//! to look again.

use std::collections::BTreeSet;
use std::time::Duration;

use caisson_claude::{Block, Line};
use caisson_domain::run::{Failure, FailureKind};
use tokio::time::Instant;

/// How long the shim is patient with the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From the prompt to the first event: the agent answers a prompt at once, whatever the model does.
    pub begin: Duration,
    /// Between two signs of life while no tool runs: longer than the agent itself waits for the model (10 minutes).
    pub silence: Duration,
    /// Between two signs of life while a tool runs.
    pub tool: Duration,
    /// From an interruption to the end of the turn.
    pub interrupt: Duration,
    /// From a turn's result to its last line, so that what the shim has to tell comes behind it in the journal.
    pub quiet: Duration,
    /// From the end of standard input to the end of the process.
    pub exit: Duration,
    /// What is left of [`Patience::exit`] once the work is published.
    pub exit_after_publishing: Duration,
    /// For the answer to one question about a commit message.
    pub question: Duration,
    /// From the moment that a run was told to stop to the end of saving its work. The conversation's archive and the journal
    /// come behind it within [`caisson_domain::limits::STOP_GRACE_S`].
    pub salvage: Duration,
    /// For the diff to be kept once the work is published: it is on the git host as well. For the conversation to be archived: it
    /// is in the session's home as well.
    pub keep: Duration,
    /// For the journal to be stored before the shim ends because it was told to by a signal.
    pub flush: Duration,
    /// From the moment that workspace and agent are there to the connection of the MCP servers that the workflow requires.
    pub servers: Duration,
    /// For the same, from the agent's first answer on, if it starts slowly.
    pub servers_least: Duration,
    /// For one git command of the shim's on the workspace alone: a pipe among its files would block git for ever.
    pub git: Duration,
}

impl Patience {
    /// The product's values.
    #[must_use]
    pub const fn of_a_sandbox() -> Self {
        Self {
            begin: Duration::from_mins(1),
            silence: Duration::from_mins(12),
            tool: Duration::from_hours(1),
            interrupt: Duration::from_secs(5),
            quiet: Duration::from_secs(2),
            exit: Duration::from_secs(10),
            exit_after_publishing: Duration::from_secs(2),
            question: Duration::from_mins(1),
            salvage: Duration::from_secs(16),
            keep: Duration::from_secs(10),
            flush: Duration::from_secs(5),
            servers: Duration::from_secs(7),
            servers_least: Duration::from_secs(3),
            git: Duration::from_mins(5),
        }
    }
}

/// Which watchdog ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hung {
    /// It did not begin to work on its prompt.
    Begin,
    /// It was silent.
    Silent,
    /// A tool was silent.
    Tool,
    /// It closed its output and did not end.
    Mute,
}

impl Hung {
    /// What it means for the run.
    pub(crate) fn failure(self) -> Failure {
        let message = match self {
            Self::Begin => "the agent did not begin to work on its prompt and was ended",
            Self::Silent => "the agent gave no sign of life for too long and was ended",
            Self::Tool => "a tool of the agent ran for too long without a sign of life; the agent was ended",
            Self::Mute => "the agent closed its output without ending and was ended",
        };
        Failure::new(FailureKind::AgentHung, message)
    }
}

/// The clocks of one turn.
#[derive(Debug)]
pub(crate) struct Watch {
    patience: Patience,
    started: Instant,
    begun: bool,
    tools: BTreeSet<String>,
}

impl Watch {
    /// Begins when the prompt is written.
    pub(crate) fn new(patience: Patience, now: Instant) -> Self {
        Self { patience, started: now, begun: false, tools: BTreeSet::new() }
    }

    /// Takes in a line: which tools run, and that the agent has begun.
    pub(crate) fn heard(&mut self, line: &Line) {
        self.begun |= *line != Line::NotJson;
        match line {
            Line::Assistant(assistant) => {
                for block in &assistant.blocks {
                    if let Block::ToolUse { id, .. } = block {
                        self.tools.insert(id.clone());
                    }
                }
            }
            Line::User(user) => {
                for result in &user.results {
                    self.tools.remove(&result.tool_use_id);
                }
            }
            Line::Result(_) => self.tools.clear(),
            Line::Init(_)
            | Line::StreamDelta(_)
            | Line::ApiRetry(_)
            | Line::ControlRequest(_)
            | Line::ControlCancel { .. }
            | Line::ControlResponse(_)
            | Line::CommandLifecycle(_)
            | Line::PermissionDenied(_)
            | Line::Other { .. }
            | Line::NotJson => {}
        }
    }

    /// Which clock runs, and when it runs out if nothing moves after `moved`.
    pub(crate) fn deadline(&self, moved: Instant) -> (Instant, Hung) {
        if !self.begun {
            (self.started + self.patience.begin, Hung::Begin)
        } else if self.tools.is_empty() {
            (moved.max(self.started) + self.patience.silence, Hung::Silent)
        } else {
            (moved.max(self.started) + self.patience.tool, Hung::Tool)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::DRAIN_MS;
    use crate::reaper::{END_ROUND_MS, END_ROUNDS};
    use crate::transcript::STOPPED_MS;
    use caisson_claude::parse;

    const TOOL: &[u8] = br#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"t1","name":"Bash","input":{}}]}}"#;
    const DONE: &[u8] =
        br#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t1","content":"x"}]}}"#;

    #[test]
    fn each_clock_runs_by_itself() {
        let patience = Patience::of_a_sandbox();
        let start = Instant::now();
        let later = start + Duration::from_secs(30);
        let mut watch = Watch::new(patience, start);
        // Neither model bytes nor noise count as a beginning.
        watch.heard(&parse(b"noise"));
        assert_eq!(watch.deadline(later), (start + patience.begin, Hung::Begin));
        watch.heard(&parse(br#"{"type":"system","subtype":"init"}"#));
        assert_eq!(watch.deadline(later), (later + patience.silence, Hung::Silent));
        watch.heard(&parse(TOOL));
        assert_eq!(watch.deadline(later), (later + patience.tool, Hung::Tool));
        watch.heard(&parse(DONE));
        assert_eq!(watch.deadline(later), (later + patience.silence, Hung::Silent));
        // What moved before the prompt is no sign of life of this turn.
        assert_eq!(watch.deadline(start - Duration::from_secs(9)).0, start + patience.silence);
    }

    #[test]
    fn a_result_ends_every_tool() {
        let mut watch = Watch::new(Patience::of_a_sandbox(), Instant::now());
        watch.heard(&parse(TOOL));
        watch.heard(&parse(br#"{"type":"result"}"#));
        assert_eq!(watch.deadline(Instant::now()).1, Hung::Silent);
    }

    #[test]
    fn stopping_fits_into_the_grace_that_the_worker_gives() {
        let patience = Patience::of_a_sandbox();
        let grace = Duration::from_secs(u64::from(caisson_domain::limits::STOP_GRACE_S));
        let journal = Duration::from_secs(2);
        assert!(patience.salvage + Duration::from_millis(STOPPED_MS) + journal <= grace);
        // The slowest agent and processes leave time for the work.
        let processes = Duration::from_millis(DRAIN_MS + u64::from(END_ROUNDS) * END_ROUND_MS);
        let before = patience.interrupt + processes;
        assert!(patience.salvage >= before + Duration::from_secs(8));
    }

    #[test]
    fn every_watchdog_is_named_in_its_failure() {
        let words: BTreeSet<_> = [Hung::Begin, Hung::Silent, Hung::Tool, Hung::Mute]
            .map(|hung| hung.failure().message)
            .into_iter()
            .collect();
        assert_eq!(words.len(), 4);
    }
}
