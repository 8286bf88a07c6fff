//! Events: numbered, immutable facts of a session.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::id::{RunId, SessionId};
use crate::run::text_enum;

text_enum! {
    /// What an event tells of. Each kind says who vouches for it: the trusted side (T), or the sandbox (S), whose word
    /// describes the transcript and moves nothing without an outside check.
    EventKind, "event kind" {
        /// T: the run was accepted. Data: workflow, repository, branch.
        RunQueued = "run.queued",
        /// T: a worker claimed the run. Data: attempt.
        RunStarted = "run.started",
        /// T: the run went back to the queue before its agent had started. Data: reason.
        RunRequeued = "run.requeued",
        /// S: the run entered a phase. Data: phase.
        RunPhase = "run.phase",
        /// T: somebody gave the run's agent a message. Data: text.
        RunMessage = "run.message",
        /// T: somebody gave the run's agent an input. Data: input (its number), kind, text.
        InputAccepted = "input.accepted",
        /// S: the shim keeps an input until the agent's turn has ended. Data: input.
        InputHeld = "input.held",
        /// S: an input was written to the agent. Data: input.
        InputDelivered = "input.delivered",
        /// S: an input came too late for the agent; T: it was on its way when the run ended. Data: input.
        InputUndelivered = "input.undelivered",
        /// S: the agent asks before it uses a tool. Data: approval, tool, description, input, cut bytes.
        ApprovalRequested = "approval.requested",
        /// T: an approval was answered, or nobody did in time. Data: approval, tool, state, decision, message, changed.
        ApprovalAnswered = "approval.answered",
        /// S: the agent no longer waits for an approval. Data: approval.
        ApprovalWithdrawn = "approval.withdrawn",
        /// T: somebody asked for the run's end, or its time limit passed. Data: reason.
        RunStopRequested = "run.stop_requested",
        /// T: the run has used its soft share of a budget, and its agent is told once to wrap up. Data: scope, percent,
        /// budget, spent, under way, and what was spent before the run.
        RunBudgetSoft = "run.budget_soft",
        /// T: the run ended. Data: status, failure, result, pushed commit, usage, and, as the sandbox told them, checks.
        RunFinished = "run.finished",
        /// T: the sandbox runs. Data: sandbox, image.
        SandboxStarted = "sandbox.started",
        /// T: the sandbox and its agent wait for the session's next run from the end of this one on. Data: sandbox, seconds.
        SandboxKept = "sandbox.kept",
        /// T: the run has the sandbox of the session's run before, which waited. Data: sandbox, waited ms.
        SandboxReused = "sandbox.reused",
        /// T: the sandbox ended by itself. Data: exit code, oom.
        SandboxExited = "sandbox.exited",
        /// S: the workspace is checked out. Data: base commit, branch.
        WorkspacePrepared = "workspace.prepared",
        /// S: whose files steer the agent. Data: anchor, commit, settings, files, replaced, and how many there are of each.
        WorkspaceSteered = "workspace.steered",
        /// S: the prompt goes to the agent now; committed before it does.
        AgentStarted = "agent.started",
        /// S: one line of the agent's standard output, as it came.
        AgentLine = "agent.line",
        /// S: one line of the agent's standard output that is not JSON, or was longer than the bound. Data: text, cut bytes.
        AgentText = "agent.text",
        /// S: the agent's process ended. Data: exit code or signal, tail of standard error.
        AgentExited = "agent.exited",
        /// S: a commit was made. Data: commit, message, who wrote it.
        GitCommit = "git.commit",
        /// T: the gateway carried a push and the git host answered. Data: ref, old, new, status.
        GitPush = "git.push",
        /// T: the gateway refused something. Data: what, rule, remedy.
        GatewayDenied = "gateway.denied",
        /// T: the gateway refused a tool the way outside. Data: host, port, via, method, path, reason, rule that would
        /// allow it, message, count.
        EgressDenied = "egress.denied",
        /// T: what tools moved since the event before. Data: items of host, port, via, methods, path, connections, sent
        /// and received bytes.
        EgressUsed = "egress.used",
        /// T: the gateway refused a request to an MCP server of the workflow. Data: server, host, port, reason, rule that would
        /// allow it, message.
        McpDenied = "mcp.denied",
        /// T: what the run moved to and from its MCP servers. Data: items of server, host, port, requests, sent and received
        /// bytes.
        McpUsed = "mcp.used",
        /// T: an upstream behind the gateway failed. Data: which, kind, status.
        GatewayUpstreamFailed = "gateway.upstream_failed",
        /// T: a model call was settled. Data: model, tokens, cost, status, estimated.
        ModelCall = "model.call",
        /// T: a file was kept for the run. Data: name, size, sha256.
        ArtifactStored = "artifact.stored",
        /// S: something worth telling people. Data: level, message.
        Note = "note",
    }
}

/// An event as read from the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Its number in its session: gapless, from 1.
    pub seq: i64,
    /// The session.
    pub session: SessionId,
    /// The run it belongs to.
    pub run: RunId,
    /// When it was written, Unix ms by the store's clock.
    pub at_ms: i64,
    /// What it tells of.
    pub kind: EventKind,
    /// The details, kept byte for byte as they were written.
    pub data: Box<RawValue>,
}

/// An event to be appended; the store numbers and stamps it.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// What it tells of.
    pub kind: EventKind,
    /// The details: a JSON text.
    pub data: Box<RawValue>,
}

impl NewEvent {
    /// An event whose details are a JSON value.
    ///
    /// # Panics
    /// Never: a [`serde_json::Value`] always serialises.
    #[must_use]
    pub fn new(kind: EventKind, data: &serde_json::Value) -> Self {
        let data = serde_json::value::to_raw_value(data).expect("a JSON value always serialises");
        Self { kind, data }
    }

    /// An event whose details are kept exactly as given; `None` if the text is not JSON.
    #[must_use]
    pub fn from_raw(kind: EventKind, json: String) -> Option<Self> {
        RawValue::from_string(json).ok().map(|data| Self { kind, data })
    }
}

text_enum! {
    /// What a text delta is part of.
    DeltaKind, "delta kind" {
        /// The agent's answer.
        Text = "text",
        /// The agent's thinking.
        Thinking = "thinking",
    }
}

/// A piece of text on its way to live readers: not an event, not stored, not numbered, lost when nobody listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The run.
    pub run: RunId,
    /// What it is part of.
    pub kind: DeltaKind,
    /// The model API's id of the message that it is a piece of, as its event has it; empty where it is not known.
    #[serde(default)]
    pub message_id: String,
    /// Which of the message's blocks, from 0.
    #[serde(default)]
    pub block: u32,
    /// At most [`crate::limits::DELTA_BYTES`].
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_details_keep_their_bytes() {
        let text = "{\"b\" : 1,  \"a\":\"\\u0000\"}";
        let event = NewEvent::from_raw(EventKind::AgentLine, text.to_owned()).unwrap();
        assert_eq!(event.data.get(), text);
        assert!(NewEvent::from_raw(EventKind::AgentLine, "not json".to_owned()).is_none());
    }
}
