//! What a run's events tell of its progress.

use std::collections::{BTreeMap, VecDeque};

use caisson_domain::event::{Event, EventKind};
use caisson_domain::id::RunId;
use caisson_domain::run::{Phase, Run, RunStatus};
use caisson_store::EventsOf;
use serde_json::Value;

use crate::agent_line::AgentLine;
use crate::events::{READ_BYTES, SCANNED_EVENTS};
use crate::problem::ApiError;
use crate::state::App;

use super::Dialect;

/// Events that are looked through; beyond them the numbers stand still.
const EVENTS: usize = 4_000;
/// Bytes of them that are looked through, beyond which it is the same.
const EVENTS_BYTES: usize = 64 * 1024 * 1024;
/// Tools that are told of by name.
const TOOLS: usize = 64;
/// Lines of the log that is shown.
const LOG_LINES: usize = 1_000;

/// What was seen of a run.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Calls of each tool, in the order in which they were first called.
    pub(super) tools: Vec<String>,
    pub(super) calls_of: BTreeMap<String, i64>,
    pub(super) tool_calls: i64,
    /// Phases as upstream calls them, in order, each once.
    phases: Vec<&'static str>,
    pub(super) exit_code: Option<i64>,
    pub(super) last_at_ms: Option<i64>,
    pub(super) log: VecDeque<String>,
}

impl Progress {
    /// Looks through the run's events, [`EVENTS`] and [`EVENTS_BYTES`] at most.
    ///
    /// # Errors
    /// [`ApiError::LongReadsFull`]; as every read of the store.
    pub(super) async fn read(app: &App, run: &RunId, dialect: Dialect) -> Result<Self, ApiError> {
        let _place = app.long_read().await?;
        let mut progress = Self::default();
        let (mut after, mut looked, mut read_bytes) = (0, 0, 0);
        while looked < EVENTS && read_bytes < EVENTS_BYTES {
            let events =
                app.store().listed_events(EventsOf::Run(run), after, (SCANNED_EVENTS, READ_BYTES)).await?;
            let Some(last) = events.last() else { break };
            after = last.seq;
            for event in &events {
                progress.take(event, dialect);
                read_bytes += event.data.get().len();
            }
            looked += events.len();
        }
        Ok(progress)
    }

    fn take(&mut self, event: &Event, dialect: Dialect) {
        self.last_at_ms = Some(event.at_ms);
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(format!("{} [{}]", dialect.time(event.at_ms), event.kind));
        if event.kind == EventKind::AgentLine {
            self.take_line(event.data.get());
        } else if event.kind == EventKind::AgentExited {
            let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
            self.exit_code = data["code"].as_i64();
        }
    }

    fn take_line(&mut self, line: &str) {
        let Some(line) = AgentLine::of(line).filter(|line| line.kind == "assistant") else { return };
        for block in line.blocks().flatten() {
            if let (Some("tool_use"), Some(name)) = (block["type"].as_str(), block["name"].as_str()) {
                self.take_tool(name);
            }
        }
    }

    fn take_tool(&mut self, name: &str) {
        self.tool_calls += 1;
        let known = self.calls_of.contains_key(name);
        if !known && self.tools.len() == TOOLS {
            return;
        }
        if !known {
            self.tools.push(name.to_owned());
        }
        *self.calls_of.entry(name.to_owned()).or_default() += 1;
        let phase = match name {
            "TodoWrite" => "planning",
            "LS" | "Glob" | "Read" | "Grep" => "analysis",
            "Write" | "Edit" | "MultiEdit" | "NotebookEdit" => "implementation",
            "Bash" => "testing",
            _ => return,
        };
        self.enter(phase);
    }

    fn enter(&mut self, phase: &'static str) {
        self.phases.retain(|known| *known != phase);
        self.phases.push(phase);
    }

    /// The phase that the run is in, and those before it.
    pub(super) fn phases(&self, run: &Run) -> (&'static str, Vec<&'static str>) {
        let mut phases = vec!["initialization"];
        phases.extend(&self.phases);
        match (run.status, run.phase) {
            (RunStatus::Succeeded, _) => phases.push("completion"),
            (RunStatus::Failed, _) => phases.push("failed"),
            (RunStatus::Cancelled, _) => phases.push("killed"),
            (RunStatus::Running, Some(Phase::Publish)) => phases.push("review"),
            (RunStatus::Queued | RunStatus::Running, _) => {}
        }
        let current = phases.pop().unwrap_or("initialization");
        (current, phases)
    }
}
