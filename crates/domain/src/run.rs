//! A run: its status, phases, failure taxonomy and specification.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::check_result::CheckResult;
use crate::git::{BranchName, Repository};
use crate::id::{ProjectId, RunId, SandboxId, ServerId, SessionId};
use crate::parameters::Values;
use crate::usage::UsageTotals;
use crate::workflow::Workflow;

/// Declares an enum that is one text column: `as_str`, `FromStr`, `Display`, serde, and the list of all values.
macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident, $noun:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every value, in the order of the declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value as it is stored and shown.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::run::UnknownText;

            fn from_str(text: &str) -> Result<Self, $crate::run::UnknownText> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err($crate::run::UnknownText::new($noun, text, &[$($text),+])),
                }
            }
        }
    };
}
pub(crate) use text_enum;

/// A text that is none of an enumeration's values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {noun}; use one of: {allowed}")]
pub struct UnknownText {
    noun: &'static str,
    text: String,
    allowed: String,
}

impl UnknownText {
    pub(crate) fn new(noun: &'static str, text: &str, allowed: &[&str]) -> Self {
        Self { noun, text: text.chars().take(64).collect(), allowed: allowed.join(", ") }
    }
}

text_enum! {
    /// Where a run stands. It moves only `queued → running → succeeded | failed | cancelled` (and back to `queued`
    /// before the agent was started).
    RunStatus, "run status" {
        /// Waits for a slot.
        Queued = "queued",
        /// A worker holds it.
        Running = "running",
        /// Ended as wanted.
        Succeeded = "succeeded",
        /// Ended with a [`Failure`].
        Failed = "failed",
        /// Ended because somebody asked for it.
        Cancelled = "cancelled",
    }
}

impl RunStatus {
    /// Whether the run has ended and will never change again.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}

text_enum! {
    /// What a running run is doing.
    Phase, "phase" {
        /// Sandbox, clone, branch.
        Prepare = "prepare",
        /// The agent works.
        Agent = "agent",
        /// The agent takes no more inputs: commit and push, or what else becomes of its work.
        Publish = "publish",
    }
}

text_enum! {
    /// What a running run waits for.
    Waiting, "wait reason" {
        /// Somebody's message.
        Input = "input",
        /// The model provider's limit to pass.
        Provider = "provider",
        /// Somebody's approval.
        Approval = "approval",
    }
}

text_enum! {
    /// Why a run failed.
    FailureKind, "failure kind" {
        /// The agent ended with an error of its own.
        AgentError = "agent_error",
        /// The agent stopped giving signs of life.
        AgentHung = "agent_hung",
        /// The model refused the task.
        AgentRefused = "agent_refused",
        /// The agent used all its turns.
        MaxTurns = "max_turns",
        /// The budget is spent.
        Budget = "budget",
        /// The time limit passed.
        Timeout = "timeout",
        /// The sandbox ran out of memory.
        Oom = "oom",
        /// A disk bound was reached.
        DiskFull = "disk_full",
        /// The model API refused the credential.
        ProviderAuth = "provider_auth",
        /// The model API's limit was reached.
        ProviderLimit = "provider_limit",
        /// The model API did not answer or failed.
        ProviderDown = "provider_down",
        /// The sandbox could not be made or started.
        SandboxStart = "sandbox_start",
        /// The sandbox ended or vanished while the agent worked.
        SandboxLost = "sandbox_lost",
        /// The repository's set-up hook failed.
        SetupFailed = "setup_failed",
        /// The repository did not answer or does not exist.
        RepoUnreachable = "repo_unreachable",
        /// The git host refused the credential.
        RepoAuth = "repo_auth",
        /// The git host refused the push.
        PushRejected = "push_rejected",
        /// The branch could not be brought up to date.
        Conflict = "conflict",
        /// A rule of Caisson refused something the run needs.
        PolicyDenied = "policy_denied",
        /// The workflow cannot be followed.
        BadWorkflow = "bad_workflow",
        /// A fault of Caisson itself.
        Internal = "internal",
    }
}

impl FailureKind {
    /// Whether the same request, sent again unchanged, may succeed.
    #[must_use]
    pub const fn retry_can_help(self) -> bool {
        match self {
            Self::AgentError
            | Self::AgentHung
            | Self::Oom
            | Self::ProviderLimit
            | Self::ProviderDown
            | Self::SandboxStart
            | Self::SandboxLost
            | Self::RepoUnreachable
            | Self::Conflict
            | Self::DiskFull
            | Self::Internal => true,
            Self::AgentRefused
            | Self::MaxTurns
            | Self::Budget
            | Self::Timeout
            | Self::ProviderAuth
            | Self::SetupFailed
            | Self::RepoAuth
            | Self::PushRejected
            | Self::PolicyDenied
            | Self::BadWorkflow => false,
        }
    }
}

/// Why a run failed, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class, from a closed list.
    pub kind: FailureKind,
    /// One sentence that says what happened and what to do.
    pub message: String,
    /// What was seen, e.g. the last lines of standard error; never a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Whether sending the same request again may succeed.
    pub retry_can_help: bool,
}

impl Failure {
    /// A failure of `kind` with a sentence for people.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), evidence: None, retry_can_help: kind.retry_can_help() }
    }

    /// Adds what was seen, cut to [`crate::limits::RESULT_TEXT_BYTES`].
    #[must_use]
    pub fn with_evidence(mut self, evidence: impl Into<String>) -> Self {
        let evidence: String = evidence.into();
        self.evidence = Some(cut(&evidence, crate::limits::RESULT_TEXT_BYTES).to_owned());
        self
    }
}

/// The longest prefix of `text` that has at most `bytes` bytes and ends between two characters.
#[must_use]
pub fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory of the whole sandbox, in MiB.
    pub memory_mib: u32,
    /// Processes and threads.
    pub pids: u32,
    /// CPU time per second, in thousandths of a core.
    pub cpu_millis: u32,
    /// Size of `/tmp`, in MiB; it counts as memory.
    pub tmp_mib: u32,
    /// Workspace and home of the session together, in MiB; none means what the server gives, which is also the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_mib: Option<u32>,
}

impl Default for Resources {
    fn default() -> Self {
        Self { memory_mib: 2048, pids: 512, cpu_millis: 2000, tmp_mib: 512, workspace_mib: None }
    }
}

/// Everything a run was asked to do, with the workflow as it was at that moment: later edits do not reach it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The workflow followed, pinned.
    pub workflow: Workflow,
    /// The task, in the requester's words.
    pub prompt: String,
    /// The repository worked on; none means an empty workspace.
    pub repository: Option<Repository>,
    /// The branch to start from; none means the repository's default branch.
    pub base: Option<BranchName>,
    /// The branch whose files steer the agent; none means the repository's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<BranchName>,
    /// The branch made and pushed; none without a repository.
    pub branch: Option<BranchName>,
    /// Model id, where the run or its workflow names one.
    pub model: Option<String>,
    /// Most turns of the agent.
    pub max_turns: Option<u32>,
    /// The sandbox image; none means the server's default.
    pub image: Option<String>,
    /// Time limit from start to finish, in seconds.
    pub timeout_s: u32,
    /// What the run may spend on the model API, in micro-USD; none means no bound of its own.
    pub budget_micro_usd: Option<u32>,
    /// Share of each budget, in percent, at which the agent is told to wrap up; 100 tells it nothing. None is that of a run
    /// which was made before there was one, and means 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_soft_percent: Option<u32>,
    /// What the sandbox may use.
    pub resources: Resources,
    /// Extra environment of the agent; never secrets.
    pub environment: BTreeMap<String, String>,
    /// Which of its project's runs start first, within [`crate::queue::PRIORITY`]; 0 unless somebody says otherwise.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
    /// Before when it does not start, Unix ms; none: it may start at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at_ms: Option<i64>,
    /// Values of the workflow's parameters, the defaults among them.
    #[serde(default, skip_serializing_if = "Values::is_empty")]
    pub parameters: Values,
    /// What the output must look like, where run or workflow says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// The version of the workflow that is pinned; none for a run that was made before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_version: Option<i64>,
    /// What the agent is given with the task, in order; the store has the bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// One run as the store knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The tenant.
    pub project: ProjectId,
    /// The conversation it belongs to.
    pub session: SessionId,
    /// What it was asked to do.
    pub spec: RunSpec,
    /// Where it stands.
    pub status: RunStatus,
    /// What it is doing, while running.
    pub phase: Option<Phase>,
    /// What it waits for, while running.
    pub waiting: Option<Waiting>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The agent's last words.
    pub result: Option<String>,
    /// The structured output of a run that succeeded, as its schema wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// How the repository's checks ended the last time, as the sandbox tells it; empty if none were run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
    /// The image that the repository asked for and the operator allows; it is that of the sandbox if the run names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_image: Option<String>,
    /// How often it was given to an agent process, 1 for the first time; 0 while queued.
    pub attempt: i64,
    /// Whether the prompt may have reached the agent: from then on it is never silently repeated.
    pub agent_started: bool,
    /// When somebody asked for its end, Unix ms.
    pub cancel_requested_at_ms: Option<i64>,
    /// The server whose engine holds its sandbox.
    pub home: Option<ServerId>,
    /// The sandbox it was placed in.
    pub sandbox: Option<SandboxId>,
    /// The commit the work started from, as the shim reported it.
    pub base_commit: Option<String>,
    /// The commit pushed to its branch, as the gateway saw it.
    pub pushed_commit: Option<String>,
    /// Tokens and cost, as the gateway counted them.
    pub usage: UsageTotals,
    /// Unix ms.
    pub created_at_ms: i64,
    /// Unix ms.
    pub started_at_ms: Option<i64>,
    /// Unix ms.
    pub finished_at_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_an_enumeration_parses_back() {
        for status in RunStatus::ALL {
            assert_eq!(status.as_str().parse::<RunStatus>().unwrap(), *status);
        }
        for kind in FailureKind::ALL {
            assert_eq!(kind.as_str().parse::<FailureKind>().unwrap(), *kind);
            let json = serde_json::to_string(kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
        }
    }

    #[test]
    fn an_unknown_text_is_answered_with_the_allowed_ones() {
        let error = "done".parse::<RunStatus>().unwrap_err().to_string();
        assert!(error.contains("queued, running, succeeded, failed, cancelled"), "{error}");
    }

    #[test]
    fn evidence_is_cut_at_its_bound_between_characters() {
        let long = "ä".repeat(crate::limits::RESULT_TEXT_BYTES);
        let failure = Failure::new(FailureKind::Internal, "x").with_evidence(long);
        assert_eq!(failure.evidence.unwrap().len(), crate::limits::RESULT_TEXT_BYTES);
        assert_eq!(cut("aä", 2), "a");
    }
}
