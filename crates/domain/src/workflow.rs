//! Workflows: Markdown with YAML front matter, in the format Claude Code uses for its agents, plus a `caisson` block.
//!
//! Source of the front matter's names: Claude Code's documentation of subagents (name, description, tools,
//! disallowedTools, model, permissionMode, maxTurns, mcpServers).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_saphyr::{budget, options};

use crate::approval::ApprovalsBlock;
use crate::budget::{RUN_BUDGET_MICRO_USD, SOFT_PERCENT};
use crate::check_result::CHECK_TURNS;
use crate::egress;
pub use crate::environment_name::check_environment_name;
use crate::globs::Globs;
use crate::id::{NameError, check_name};
use crate::image::check_image_name;
use crate::limits;
use crate::mcp;
use crate::parameters::{self, Parameters};
use crate::repository_file::CheckName;
use crate::run::{Resources, cut, text_enum};
use crate::schema::Schema;
use crate::tools;
use crate::trust::TrustBlock;

mod front;
mod source;

use front::CaissonFront;

text_enum! {
    /// What happens to the agent's work.
    Publish, "publish policy" {
        /// It stays an artifact.
        None = "none",
        /// It is committed and pushed to the run's branch.
        Branch = "branch",
        /// Pushed, and a change request is opened.
        ChangeRequest = "change_request",
        /// A review is posted.
        Review = "review",
    }
}

impl Publish {
    /// Whether the run's branch is pushed.
    #[must_use]
    pub const fn pushes(self) -> bool {
        match self {
            Self::Branch | Self::ChangeRequest => true,
            Self::None | Self::Review => false,
        }
    }
}

text_enum! {
    /// What the agent may do with the workspace.
    WorkspaceAccess, "workspace access" {
        /// Everything.
        ReadWrite = "read-write",
        /// Read it; the kernel refuses the rest.
        ReadOnly = "read-only",
    }
}

text_enum! {
    /// How the agent asks for permission, in Claude Code's words.
    PermissionMode, "permission mode" {
        /// Reads only, unless a tool is allowed.
        Default = "default",
        /// Edits too.
        AcceptEdits = "acceptEdits",
        /// Whatever is not allowed is denied.
        DontAsk = "dontAsk",
        /// Everything: the sandbox is the wall.
        BypassPermissions = "bypassPermissions",
        /// Plans only.
        Plan = "plan",
    }
}

/// A named definition that runs follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workflow {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Added to the agent's system prompt.
    pub prompt: String,
    /// Tools the agent has; none means all.
    pub tools: Option<Vec<String>>,
    /// Tools it must not use.
    pub disallowed_tools: Vec<String>,
    /// Rules for calls that need no asking, in the modes that would deny them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_tools: Vec<String>,
    /// Model id or alias.
    pub model: Option<String>,
    /// Permission mode.
    pub permission_mode: PermissionMode,
    /// Most turns.
    pub max_turns: Option<u32>,
    /// MCP servers as written; [`mcp::Server::read`] reads one.
    pub mcp_servers: serde_json::Map<String, serde_json::Value>,
    /// What Caisson itself reads.
    pub caisson: CaissonBlock,
}

/// The `caisson` block of a workflow. Read back from the store, unknown fields mean nothing: another version may have
/// written it. A workflow file is read strictly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaissonBlock {
    /// Sandbox image; none means the server's default.
    pub image: Option<String>,
    /// Time limit of a run, in seconds.
    pub timeout_s: u32,
    /// What a run may spend on the model API, in micro-USD; none means no bound of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_micro_usd: Option<u32>,
    /// Share of each budget, in percent, at which the agent is told to wrap up; none means the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_soft_percent: Option<u32>,
    /// What the sandbox may use.
    pub resources: ResourcesBlock,
    /// Names that a run's `environment` may set; never secrets.
    pub environment: Vec<String>,
    /// What happens to the work.
    pub publish: Publish,
    /// Conventional Commits type of the deterministic commit message.
    pub commit_type: String,
    /// Where tools may go: presets and rules, among what the operator allows. None means all of that, an empty list nothing.
    pub egress: Option<Vec<String>>,
    /// Whose files steer the agent.
    pub trust: TrustBlock,
    /// Patterns of paths that no push may add, change or remove, beside those that the server forbids.
    pub forbidden_paths: Vec<String>,
    /// What the agent may do with the workspace.
    pub workspace: WorkspaceAccess,
    /// What the output of a run must look like, see [`Schema`]; none means that there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// What a run may give beside its prompt.
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
    /// Commands of the repository that the shim runs when the agent has finished.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckName>,
    /// Turns that the agent has to mend what they find, within [`CHECK_TURNS`]; none means the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_turns: Option<u32>,
    /// Whether a run fails when one of them does not pass in the end; its work is published all the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub checks_must_pass: bool,
    /// How the agent asks before it uses a tool; none means that it never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals: Option<ApprovalsBlock>,
}

impl Default for CaissonBlock {
    fn default() -> Self {
        Self {
            image: None,
            timeout_s: limits::RUN_TIMEOUT_S_DEFAULT,
            budget_micro_usd: None,
            budget_soft_percent: None,
            resources: ResourcesBlock::default(),
            environment: Vec::new(),
            publish: Publish::Branch,
            commit_type: "chore".to_owned(),
            egress: None,
            trust: TrustBlock::default(),
            forbidden_paths: Vec::new(),
            workspace: WorkspaceAccess::ReadWrite,
            output_schema: None,
            parameters: Parameters::new(),
            checks: Vec::new(),
            check_turns: None,
            checks_must_pass: false,
            approvals: None,
        }
    }
}

/// Resources as a workflow writes them: what is left out has the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourcesBlock {
    /// Memory in MiB, 128 to 262144.
    pub memory_mib: Option<u32>,
    /// Processes and threads, 32 to 32768.
    pub pids: Option<u32>,
    /// Thousandths of a core, 100 to 256000.
    pub cpu_millis: Option<u32>,
    /// Size of `/tmp` in MiB, 16 to 65536.
    pub tmp_mib: Option<u32>,
    /// Workspace and home together in MiB, 64 to 1048576; at most what the server gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_mib: Option<u32>,
}

/// Least and most memory of a sandbox, in MiB. The agent alone needs about 110; it was killed at 96 and ran at 128.
pub const MEMORY_MIB: std::ops::RangeInclusive<u32> = 128..=262_144;
/// Least and most processes of a sandbox.
pub const PIDS: std::ops::RangeInclusive<u32> = 32..=32_768;
/// Least and most CPU of a sandbox, in thousandths of a core.
pub const CPU_MILLIS: std::ops::RangeInclusive<u32> = 100..=256_000;
/// Least and most size of `/tmp`, in MiB.
pub const TMP_MIB: std::ops::RangeInclusive<u32> = 16..=65_536;
/// Least and most size of a session's workspace and home together, in MiB.
pub const WORKSPACE_MIB: std::ops::RangeInclusive<u32> = 64..=1_048_576;

impl ResourcesBlock {
    /// Fills in the defaults.
    #[must_use]
    pub fn resolve(self) -> Resources {
        let default = Resources::default();
        Resources {
            memory_mib: self.memory_mib.unwrap_or(default.memory_mib),
            pids: self.pids.unwrap_or(default.pids),
            cpu_millis: self.cpu_millis.unwrap_or(default.cpu_millis),
            tmp_mib: self.tmp_mib.unwrap_or(default.tmp_mib),
            workspace_mib: self.workspace_mib.or(default.workspace_mib),
        }
    }
}

/// Why a workflow cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowError {
    /// No front matter.
    #[error(
        "the workflow does not begin with front matter; put the block between two lines of three dashes first"
    )]
    NoFrontMatter,
    /// The front matter is not what is expected.
    #[error("the workflow's front matter is not valid: {0}")]
    FrontMatter(String),
    /// The name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A value is out of its range or cannot be used.
    #[error("the workflow's {field} cannot be used: {reason}")]
    Value {
        /// Which.
        field: &'static str,
        /// Why, with what is allowed.
        reason: String,
    },
    /// Longer than the bound.
    #[error("the workflow is longer than {} bytes", limits::WORKFLOW_BYTES)]
    TooLong,
    /// One of the others, where it is known in which line of the file.
    #[error("line {line}: {fault}")]
    At {
        /// The line, from 1.
        line: usize,
        /// The other one.
        fault: Box<Self>,
    },
}

/// Front matter as written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FrontMatter {
    name: String,
    description: String,
    #[serde(default)]
    tools: Option<Names>,
    #[serde(default)]
    disallowed_tools: Option<Names>,
    #[serde(default)]
    allowed_tools: Option<Names>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    permission_mode: Option<PermissionMode>,
    #[serde(default)]
    max_turns: Option<u32>,
    #[serde(default)]
    mcp_servers: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    caisson: CaissonFront,
}

/// Deepest front matter, in levels: that of the deepest schema.
const YAML_DEPTH: usize = 2 * crate::schema::SCHEMA_DEPTH + 4;
/// Most nodes of a front matter: texts, lists and maps.
const YAML_NODES: usize = 20_000;

/// Names as a list, or in one text with commas: both are in use.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Names {
    List(Vec<String>),
    Text(String),
}

impl Names {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::List(names) => names,
            Self::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        }
        .into_iter()
        .filter(|name| !name.is_empty())
        .collect()
    }
}

impl Workflow {
    /// Reads a workflow file.
    ///
    /// # Errors
    /// [`WorkflowError`] that says what to change.
    pub fn parse(text: &str) -> Result<Self, WorkflowError> {
        if text.len() > limits::WORKFLOW_BYTES {
            return Err(WorkflowError::TooLong);
        }
        let (head, body) = source::split(text).ok_or(WorkflowError::NoFrontMatter)?;
        let options = options! {
            budget: budget! { max_aliases: 100, max_anchors: 100, max_depth: YAML_DEPTH, max_nodes: YAML_NODES, max_documents: 1 },
        };
        let front: FrontMatter = serde_saphyr::from_str_with_options(head, options)
            .map_err(|error| WorkflowError::FrontMatter(error.without_snippet().to_string()))?;
        let workflow = Self {
            name: front.name,
            description: front.description,
            prompt: body.trim().to_owned(),
            tools: front.tools.map(Names::into_vec),
            disallowed_tools: front.disallowed_tools.map(Names::into_vec).unwrap_or_default(),
            allowed_tools: front.allowed_tools.map(Names::into_vec).unwrap_or_default(),
            model: front.model.filter(|model| model != "inherit"),
            permission_mode: front.permission_mode.unwrap_or(PermissionMode::Default),
            max_turns: front.max_turns,
            mcp_servers: front.mcp_servers,
            caisson: front.caisson.into(),
        };
        workflow.validate().map_err(|fault| fault.found_in(head))?;
        Ok(workflow)
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`WorkflowError`] with the first value that cannot be used.
    pub fn validate(&self) -> Result<(), WorkflowError> {
        check_name("workflow", &self.name)?;
        let resources = self.caisson.resources.resolve();
        in_range("caisson.timeout_s", self.caisson.timeout_s, &TIMEOUT_S)?;
        in_range("caisson.resources.memory_mib", resources.memory_mib, &MEMORY_MIB)?;
        in_range("caisson.resources.pids", resources.pids, &PIDS)?;
        in_range("caisson.resources.cpu_millis", resources.cpu_millis, &CPU_MILLIS)?;
        in_range("caisson.resources.tmp_mib", resources.tmp_mib, &TMP_MIB)?;
        if let Some(budget) = self.caisson.budget_micro_usd {
            in_range("caisson.budget_micro_usd", budget, &RUN_BUDGET_MICRO_USD)?;
        }
        if let Some(percent) = self.caisson.budget_soft_percent {
            in_range("caisson.budget_soft_percent", percent, &SOFT_PERCENT)?;
        }
        if let Some(turns) = self.caisson.check_turns {
            in_range("caisson.check_turns", turns, &CHECK_TURNS)?;
        }
        if let Some(mib) = resources.workspace_mib {
            in_range("caisson.resources.workspace_mib", mib, &WORKSPACE_MIB)?;
        }
        if let Some(turns) = self.max_turns {
            in_range("maxTurns", turns, &(1..=limits::MAX_TURNS_MAX))?;
        }
        for name in &self.caisson.environment {
            check_environment_name(name)
                .map_err(|reason| WorkflowError::Value { field: "caisson.environment", reason })?;
        }
        if let Some(image) = &self.caisson.image {
            check_image_name(image).map_err(|error| WorkflowError::Value {
                field: "caisson.image",
                reason: error.to_string(),
            })?;
        }
        self.validate_tools()?;
        self.validate_publish()?;
        self.validate_commit_type()?;
        self.validate_egress()?;
        self.validate_trust()?;
        self.validate_run()?;
        self.validate_mcp_servers()
    }

    fn validate_publish(&self) -> Result<(), WorkflowError> {
        match self.caisson.publish {
            Publish::None | Publish::Branch => Ok(()),
            Publish::ChangeRequest | Publish::Review => Err(WorkflowError::Value {
                field: "caisson.publish",
                reason: format!(
                    "this version cannot publish as \"{}\"; use \"branch\" or \"none\"",
                    self.caisson.publish
                ),
            }),
        }
    }

    fn validate_commit_type(&self) -> Result<(), WorkflowError> {
        let kind = &self.caisson.commit_type;
        if !kind.is_empty() && kind.len() <= 20 && kind.bytes().all(|b| b.is_ascii_lowercase()) {
            return Ok(());
        }
        Err(WorkflowError::Value {
            field: "caisson.commit_type",
            reason: format!("\"{kind}\" is not 1 to 20 lower-case letters, such as fix or feat"),
        })
    }

    fn validate_egress(&self) -> Result<(), WorkflowError> {
        let entries = self.caisson.egress.as_deref().unwrap_or_default();
        let reason = match entries.iter().find_map(|entry| entry.parse::<egress::Choice>().err()) {
            Some(error) => error.to_string(),
            None if entries.len() > egress::RULES => format!("it has more than {} entries", egress::RULES),
            None => return Ok(()),
        };
        Err(WorkflowError::Value { field: "caisson.egress", reason })
    }

    fn validate_trust(&self) -> Result<(), WorkflowError> {
        let fault = |field, reason| WorkflowError::Value { field, reason };
        let trust = self.caisson.trust.check_of(&self.name, self.caisson.publish.pushes());
        trust.map_err(|reason| fault("caisson.trust.branches", reason))?;
        let globs = Globs::new(&self.caisson.forbidden_paths).map(drop);
        globs.map_err(|error| fault("caisson.forbidden_paths", error.to_string()))
    }

    fn validate_run(&self) -> Result<(), WorkflowError> {
        let block = &self.caisson;
        let fault = |field, reason| Err(WorkflowError::Value { field, reason });
        if let Err(reason) = parameters::check(&block.parameters, &self.prompt) {
            return fault("caisson.parameters", reason);
        }
        if let Some(Err(error)) = block.output_schema.as_ref().map(Schema::read) {
            return fault("caisson.output_schema", error.to_string());
        }
        let read_only = block.workspace == WorkspaceAccess::ReadOnly;
        if read_only && block.publish.pushes() {
            let reason = "an agent that only reads has nothing to push; add \"publish: none\" beside \"workspace: read-only\"";
            return fault("caisson.publish", reason.to_owned());
        }
        if read_only && !block.checks.is_empty() {
            let reason = "they come after changes, and an agent that only reads makes none; leave them out";
            return fault("caisson.checks", reason.to_owned());
        }
        Ok(())
    }

    fn validate_tools(&self) -> Result<(), WorkflowError> {
        let check = |field, entries: &[String], valid: fn(&str) -> bool| {
            let bad = entries.iter().find(|entry| entry.len() > tools::TOOL_BYTES || !valid(entry));
            let reason = match bad {
                Some(entry) => format!("\"{}\" is not a tool", cut(entry, 64).escape_debug()),
                None if entries.len() > tools::TOOLS => format!("it has more than {} entries", tools::TOOLS),
                None => return Ok(()),
            };
            Err(WorkflowError::Value { field, reason })
        };
        check("tools", self.tools.as_deref().unwrap_or_default(), tools::is_name)?;
        check("disallowedTools", &self.disallowed_tools, tools::is_rule)?;
        check("allowedTools", &self.allowed_tools, tools::is_rule)?;
        self.validate_allowed()?;
        let approvals = self.caisson.approvals.as_ref().map_or(Ok(()), ApprovalsBlock::check);
        approvals.map_err(|(field, reason)| WorkflowError::Value { field, reason })
    }

    fn validate_mcp_servers(&self) -> Result<(), WorkflowError> {
        let bytes = serde_json::to_string(&self.mcp_servers).map_or(usize::MAX, |json| json.len());
        if bytes > limits::MCP_BYTES {
            let reason = format!("it is longer than {} bytes as JSON", limits::MCP_BYTES);
            return Err(WorkflowError::Value { field: "mcpServers", reason });
        }
        mcp::check(&self.mcp_servers).map_err(|reason| WorkflowError::Value { field: "mcpServers", reason })
    }
}

const TIMEOUT_S: std::ops::RangeInclusive<u32> = limits::RUN_TIMEOUT_S_MIN..=limits::RUN_TIMEOUT_S_MAX;

fn in_range(
    field: &'static str,
    value: u32,
    range: &std::ops::RangeInclusive<u32>,
) -> Result<(), WorkflowError> {
    if range.contains(&value) {
        return Ok(());
    }
    let reason = format!("{value} is not from {} to {}", range.start(), range.end());
    Err(WorkflowError::Value { field, reason })
}

#[cfg(test)]
#[path = "workflow_tests.rs"]
mod tests;
