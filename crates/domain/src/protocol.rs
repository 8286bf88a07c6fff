//! What passes a sandbox's door between the shim and the gateway: HTTP/1.1 over one unix socket.
//!
//! Living sandboxes outlive upgrades of the server, so a change here keeps older shims working: fields are only
//! added, with defaults, and kinds that one side does not know are skipped or kept as text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::approval::{Answer, ApprovalWork};
use crate::attachment::Attachment;
use crate::check_result::{self, CheckResult};
use crate::git::BranchName;
use crate::id::{Epoch, RunId};
use crate::image::ImageWish;
use crate::input::{InputKind, InputState};
use crate::repository_file::CheckName;
use crate::run::{Failure, Phase, text_enum};
use crate::trust::{Steering, Trust};
use crate::workflow::{PermissionMode, Publish, WorkspaceAccess};

/// The protocol's version; the shim sends it in [`VERSION_HEADER`] with every control request.
pub const VERSION: u32 = 1;
/// Header with the version.
pub const VERSION_HEADER: &str = "x-caisson-protocol";

/// Places inside a sandbox, the same for every engine.
pub mod places {
    /// The shim's binary.
    pub const SHIM: &str = "/caisson/shim";
    /// Directory that holds the agent's binary.
    pub const AGENT_DIR: &str = "/caisson/agent";
    /// The agent's binary.
    pub const AGENT: &str = "/caisson/agent/claude";
    /// Directory that holds the door's socket, read-only.
    pub const DOOR_DIR: &str = "/caisson/door";
    /// The door.
    pub const DOOR: &str = "/caisson/door/gateway.sock";
    /// File name of the socket in the door's directory.
    pub const DOOR_FILE: &str = "gateway.sock";
    /// The journal's directory.
    pub const JOURNAL_DIR: &str = "/caisson/journal";
    /// The workspace, and the agent's working directory.
    pub const WORKSPACE: &str = "/workspace";
    /// The agent's home.
    pub const HOME: &str = "/home/agent";
    /// Directory in the agent's home in which the shim puts files that were attached.
    pub const ATTACHMENTS: &str = "attachments";
    /// Directory in the agent's home in which the shim puts the files that steer the agent.
    pub const STEERING: &str = ".caisson";
    /// Port of the shim's listener on 127.0.0.1 in the sandbox's own network namespace.
    pub const LOOPBACK_PORT: u16 = 4180;
}

pub mod environment;

mod deltas;
pub mod paths;

pub use deltas::{DeltaBatch, DeltaItem};

/// Code of a refusal: another transcript of the sandbox is on its way; the same request fares better in a moment.
pub const TRANSCRIPT_BUSY: &str = "transcript_busy";
/// Code of a refusal: the gateway does not know yet that the run's agent has started; the same request fares better once the
/// journal has said so.
pub const TRANSCRIPT_EARLY: &str = "transcript_early";

/// Code of a refusal: another attachment of the sandbox is on its way; the same request fares better in a moment.
pub const ATTACHMENT_BUSY: &str = "attachment_busy";

/// The next piece of work of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum Work {
    /// Do this run. Sent again until the run's `finished` record is acknowledged: the shim does each
    /// `(run, attempt)` once.
    Run(Box<RunWork>),
    /// End.
    Exit,
}

/// One run, as the shim needs to know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunWork {
    /// The run.
    pub run: RunId,
    /// The epoch under which it was delivered; for diagnostics, since an adoption raises it while the shim works on.
    pub epoch: Epoch,
    /// Which agent process this is for the run, from 1.
    pub attempt: i64,
    /// The name of the workflow that it follows, for people.
    #[serde(default)]
    pub workflow: String,
    /// The prompt, exactly.
    pub prompt: String,
    /// What comes with it, to be fetched by [`paths::ATTACHMENTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// How to start the agent.
    pub agent: AgentWork,
    /// The repository's branches; none means an empty workspace.
    pub git: Option<GitWork>,
    /// What to do with the work.
    pub publish: Publish,
    /// What of the anchor acts.
    #[serde(default)]
    pub trust: Trust,
    /// Patterns of paths that no push may touch, so that the agent can be told before it tries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forbidden_paths: Vec<String>,
    /// What the agent may do with the workspace. No shim that does not know it gets a run that names it: a run is done by the
    /// sandbox that was made for it.
    #[serde(default = "read_write", skip_serializing_if = "is_read_write")]
    pub workspace: WorkspaceAccess,
    /// The sandbox's image; none for an engine without images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether the repository's file may ask for another image: neither run nor workflow names one, and none was asked for yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_choose_image: bool,
    /// What the output must look like; none means that there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// Commands of the repository that are run when the agent has finished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckName>,
    /// Turns that the agent has to mend what they find.
    #[serde(default = "check_result::default_turns")]
    pub check_turns: u32,
    /// Time left for agent and publishing together, in milliseconds; the worker enforces it from outside as well.
    pub timeout_ms: u64,
    /// Whether the agent's process may wait for another run of the session when this one has gone well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

const fn read_write() -> WorkspaceAccess {
    WorkspaceAccess::ReadWrite
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_read_write(access: &WorkspaceAccess) -> bool {
    *access == WorkspaceAccess::ReadWrite
}

/// How to start the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentWork {
    /// The conversation's id in the agent's own format (a UUID).
    pub conversation: String,
    /// Whether the conversation may exist already: in the home, or archived.
    pub resume: bool,
    /// What is archived of it, for a home in which there is nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveWork>,
    /// Model id.
    pub model: Option<String>,
    /// Permission mode.
    pub permission_mode: PermissionMode,
    /// Tools it has; none means all.
    pub tools: Option<Vec<String>>,
    /// Tools it must not use.
    pub disallowed_tools: Vec<String>,
    /// Rules for calls that need no asking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_tools: Vec<String>,
    /// Most turns.
    pub max_turns: Option<u32>,
    /// The workflow's prompt, added to the agent's own system prompt.
    pub system_prompt: Option<String>,
    /// MCP servers of the workflow that run inside the sandbox, in the agent's format.
    pub mcp_servers: serde_json::Map<String, serde_json::Value>,
    /// Names of the workflow's MCP servers behind [`paths::MCP`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mcp_http: Vec<String>,
    /// Names of those of both that must connect before the agent gets its prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mcp_required: Vec<String>,
    /// Extra environment; never secrets.
    pub environment: BTreeMap<String, String>,
    /// How it asks before it uses a tool; none means that what is not allowed is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<ApprovalWork>,
}

/// A conversation that was archived, which [`paths::TRANSCRIPT`] gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveWork {
    /// The run at whose end it was archived.
    pub run: RunId,
    /// Whether no agent has worked in the session since.
    pub is_latest: bool,
}

/// Branches and identity for the checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitWork {
    /// Branch to start from; none means the remote's default.
    pub base: Option<BranchName>,
    /// Branch whose files steer the agent; none means the remote's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<BranchName>,
    /// Branch to make and push.
    pub branch: BranchName,
    /// Whether an earlier run of the session has pushed the branch: a fresh checkout goes on there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub go_on: bool,
    /// The commit at which a fresh checkout begins, which need not be on the base; none means the base's last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The branch to which that commit was pushed, which may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_branch: Option<BranchName>,
    /// Whether no agent has worked in the session: what its workspace has is nobody's work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_first: bool,
    /// The commit that unpublished work of the session starts from in a workspace that an earlier agent has had, empty where there was no
    /// commit; none if no agent has worked in the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Commits that the run's parameters name, by the parameter; an empty name is the anchor's commit. Each gets a ref.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revisions: BTreeMap<String, String>,
    /// Author and committer name.
    pub author_name: String,
    /// Author and committer address.
    pub author_email: String,
    /// Conventional Commits type of the deterministic message.
    pub commit_type: String,
    /// Subject of the deterministic message, one line.
    pub commit_subject: String,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalRecord {
    /// The run it is about.
    pub run: RunId,
    /// The attempt it is about.
    pub attempt: i64,
    /// What happened.
    #[serde(flatten)]
    pub body: JournalBody,
}

/// What the shim has to tell. Those that move state, and the outside check of each: `AgentStarted` only ever forbids
/// a silent repetition; `Phase` is shown, never acted on; `Finished` makes the worker look at pushes recorded by the
/// gateway and at the engine before it writes a result; `Output` is checked against the run's schema;
/// an image that the repository asks for is one of those that the operator allows; `ApprovalRequested` is only kept for a run whose workflow asks, and what it shows may be a lie: an answer opens nothing that
/// the sandbox has not got. `Input`, `Checks` and `ApprovalWithdrawn` are shown, never acted on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum JournalBody {
    /// The run entered a phase.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// The workspace is checked out.
    Prepared {
        /// The commit the branch starts from; none without a repository.
        base_commit: Option<String>,
        /// The branch; none without a repository.
        branch: Option<BranchName>,
    },
    /// Whose files steer the agent; told where there are any, or where the branch has others.
    Steered(Steering),
    /// The prompt goes to the agent as soon as this is acknowledged.
    AgentStarted,
    /// One line of the agent's standard output that is a JSON object, byte for byte.
    Line {
        /// The line without its end.
        line: String,
    },
    /// One line that is not JSON or was too long.
    Text {
        /// At most [`crate::limits::JOURNAL_LINE_BYTES`], lossily decoded.
        text: String,
        /// Bytes cut off its end.
        cut_bytes: u64,
    },
    /// The agent's process ended.
    AgentExited {
        /// Exit code; none if a signal ended it.
        code: Option<i32>,
        /// The signal.
        signal: Option<i32>,
        /// The last bytes of standard error.
        stderr: String,
    },
    /// A commit of the run.
    Commit {
        /// Its id.
        commit: String,
        /// Its whole message.
        message: String,
        /// Who wrote the message.
        author: MessageAuthor,
    },
    /// The run's structured output. The worker checks it against the run's own schema before the run succeeds by it.
    Output {
        /// The output.
        output: Value,
    },
    /// How the repository's checks ended, in order; told anew each time that they were run.
    Checks(Vec<CheckResult>),
    /// How far an input is.
    Input {
        /// Its number in the session.
        seq: i64,
        /// How far.
        state: InputState,
    },
    /// The agent asks before it uses a tool, and waits.
    ApprovalRequested {
        /// The agent's own name for it.
        request: String,
        /// The tool.
        tool: String,
        /// What the agent says of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<String>,
        /// What it wants to give to the tool: JSON, cut to [`crate::approval::APPROVAL_INPUT_BYTES`].
        input: String,
        /// Bytes cut off its end.
        #[serde(default)]
        cut_bytes: u64,
    },
    /// The agent no longer waits for it.
    ApprovalWithdrawn {
        /// The agent's own name for it.
        request: String,
    },
    /// Something worth telling people.
    Note {
        /// How bad.
        level: NoteLevel,
        /// What.
        message: String,
    },
    /// The shim is done with the run.
    Finished(Outcome),
}

text_enum! {
    /// Who wrote a commit message.
    MessageAuthor, "message author" {
        /// The agent, while it worked or when it was asked.
        Agent = "agent",
        /// The deterministic fallback.
        Fallback = "fallback",
    }
}

text_enum! {
    /// How bad a note is.
    NoteLevel, "note level" {
        /// Good to know.
        Info = "info",
        /// Degraded.
        Warn = "warn",
    }
}

/// How the shim's part of a run ended. The worker checks it before it believes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What came of it.
    pub ending: Ending,
    /// The agent's last words, cut to [`crate::limits::RESULT_TEXT_BYTES`].
    pub result: Option<String>,
    /// The branch's last commit; none without a repository.
    pub head: Option<String>,
    /// Whether `head` is new work that the publish policy wants on the git host.
    pub pushed: bool,
    /// Whether the agent's process waits for another run of the session, and nothing else lives.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

/// What came of the shim's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum Ending {
    /// The agent finished its task, and the work is published as asked.
    Completed,
    /// It failed.
    Failed(Failure),
    /// It was told to stop.
    Stopped(StopReason),
    /// Before the agent had its prompt: the repository's file asks for another image than the sandbox has.
    OtherImage(ImageWish),
}

text_enum! {
    /// Why a live run is told to stop.
    StopReason, "stop reason" {
        /// Somebody asked.
        Cancel = "cancel",
        /// Its time limit passed.
        Timeout = "timeout",
        /// It used all the disk space it may have.
        DiskFull = "disk_full",
    }
}

/// How much of the journal the gateway has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalAck {
    /// Byte offset of the next record; everything before it may be forgotten.
    pub acknowledged: u64,
}

/// A message to a live run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its number in the session, growing.
    pub seq: i64,
    /// The run it is for.
    pub run: RunId,
    /// What to do.
    pub body: InputBody,
}

/// What a message asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum InputBody {
    /// End the agent, save its work, report.
    Stop {
        /// Why.
        reason: StopReason,
    },
    /// Give the agent this text within its turn. The shim of an older server's sandbox skips it.
    Steer {
        /// What to tell it, bounded like a prompt.
        text: String,
    },
    /// Give it this text when its turn has ended, before anything is published.
    Queue {
        /// What to tell it.
        text: String,
    },
    /// End what it does now.
    Interrupt {
        /// What it goes on with; none: nothing more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
    /// A text with attachments, of which [`paths::ATTACHMENTS`] gives the bytes. A kind of its own: a shim that does not know it
    /// skips it, and does not give the agent half of it.
    Attached {
        /// When it reaches the agent.
        kind: InputKind,
        /// What to tell it.
        text: String,
        /// What comes with it.
        attachments: Vec<Attachment>,
    },
    /// The answer to what it asked.
    Answer {
        /// The agent's own name for it.
        request: String,
        /// The answer.
        answer: Answer,
    },
}

/// Messages in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Oldest first.
    pub items: Vec<Input>,
}

/// Body of every refusal at the door, so that the shim can tell a person what happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorProblem {
    /// Stable code, e.g. `grant_refused`, `repo_auth`, `repo_unreachable`, `push_refused`.
    pub code: String,
    /// One sentence with the remedy.
    pub message: String,
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
