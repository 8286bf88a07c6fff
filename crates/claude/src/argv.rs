//! The CLI's command line.

use caisson_domain::tools::{is_name, is_rule};
use serde_json::Value;

use crate::limits::{ARGUMENT_BYTES_MAX, MODEL_BYTES_MAX, TOOL_BYTES_MAX, TOOLS_MAX};
use crate::uuid::Uuid;

/// Which conversation the process carries on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionMode {
    /// A new one with this id. The CLI refuses an id that it has used.
    New(Uuid),
    /// The one with this id. The CLI keeps no lock: the caller must be the only one to resume it.
    Resume(Uuid),
}

/// What the agent may do without asking. The sandbox is the wall; this is the agent's own restraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PermissionMode {
    /// Reads; asks for the rest. `default` in settings and events, `manual` on the command line.
    Default,
    /// Reads and edits files; asks for the rest.
    AcceptEdits,
    /// Never asks: what is not allowed is denied.
    DontAsk,
    /// Does everything that no rule denies. Refused to root unless `IS_SANDBOX` is set.
    BypassPermissions,
    /// Reads and makes a plan.
    Plan,
}

impl PermissionMode {
    /// Reads the name that settings and workflows use.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "default" | "manual" => Some(Self::Default),
            "acceptEdits" => Some(Self::AcceptEdits),
            "dontAsk" => Some(Self::DontAsk),
            "bypassPermissions" => Some(Self::BypassPermissions),
            "plan" => Some(Self::Plan),
            _ => None,
        }
    }

    /// Gives the name that the command line uses.
    #[must_use]
    pub fn as_argument(self) -> &'static str {
        match self {
            Self::Default => "manual",
            Self::AcceptEdits => "acceptEdits",
            Self::DontAsk => "dontAsk",
            Self::BypassPermissions => "bypassPermissions",
            Self::Plan => "plan",
        }
    }
}

/// Who answers when the agent asks for permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PermissionPrompts {
    /// Nobody: it is denied at once, and the model is told so.
    Denied,
    /// The driver, by `can_use_tool` requests. It also gives the agent tools that ask people questions.
    Driver,
}

/// Settings files that the CLI reads. Those of a repository can run commands (hooks) without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingSource {
    /// In the home directory.
    User,
    /// In the repository: `.claude/settings.json`, `CLAUDE.md` and what they name.
    Project,
    /// In the working copy alone: `.claude/settings.local.json`.
    Local,
}

/// How to start the CLI: one process that takes prompts and requests on standard input and prints events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Which conversation.
    pub session: SessionMode,
    /// Model id or alias; none means the CLI's default.
    pub model: Option<String>,
    /// What the agent may do without asking.
    pub permission_mode: PermissionMode,
    /// Who answers when it asks.
    pub permission_prompts: PermissionPrompts,
    /// Built-in tools it has; none means the CLI's default set, an empty list no tools.
    pub tools: Option<Vec<String>>,
    /// Rules for calls that need no asking: `Edit`, `Bash(git log:*)`.
    pub allowed_tools: Vec<String>,
    /// Rules for calls that are denied in every mode; a bare name takes the tool away.
    pub disallowed_tools: Vec<String>,
    /// Most model answers for one prompt, at least 1; the process takes the next prompt after it.
    pub max_turns: Option<u32>,
    /// Added to the system prompt. The CLI records it with the first request and ignores another text on resume.
    pub append_system_prompt: Option<String>,
    /// MCP servers: JSON with `mcpServers`. No others are started, whatever the repository says.
    pub mcp_config: Option<String>,
    /// What the structured output must look like: a JSON Schema. The CLI gives the agent a tool for it, and the result of a turn has
    /// what the agent gave to that tool.
    pub json_schema: Option<Value>,
    /// Whether to print answers while they are being made.
    pub partial_messages: bool,
    /// Settings of the caller's own: a JSON object, which counts more than every file.
    pub settings: Option<Value>,
    /// Settings that are read; none by default.
    pub setting_sources: Vec<SettingSource>,
}

/// Why a [`Launch`] cannot be made a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// The model is empty, too long, or not of printable ASCII without spaces.
    #[error("the model must be 1 to {MODEL_BYTES_MAX} printable characters without spaces")]
    Model,
    /// A tool or rule that the CLI would read as another one, as several, or not at all.
    #[error("{flag}: {value:?} is not one tool or rule, such as Edit or Bash(git log:*)")]
    Tool {
        /// The flag.
        flag: &'static str,
        /// The entry, cut to [`TOOL_BYTES_MAX`].
        value: String,
    },
    /// Too many entries.
    #[error("{flag}: {count} entries, more than {TOOLS_MAX}")]
    TooManyTools {
        /// The flag.
        flag: &'static str,
        /// How many.
        count: usize,
    },
    /// The CLI takes 0 for "no limit".
    #[error("the number of turns must be at least 1")]
    ZeroTurns,
    /// Linux would not start the process.
    #[error("{flag}: {bytes} bytes, more than {ARGUMENT_BYTES_MAX}")]
    TooLong {
        /// The flag.
        flag: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// An argument ends at its first NUL.
    #[error("{flag}: a NUL character")]
    Nul {
        /// The flag.
        flag: &'static str,
    },
    /// The CLI would take it for a file's name, or not start.
    #[error("the MCP configuration is not a JSON object with an object \"mcpServers\"")]
    McpConfig,
}

const TOOLS: &str = "--tools";
const ALLOWED_TOOLS: &str = "--allowedTools";
const DISALLOWED_TOOLS: &str = "--disallowedTools";
const APPEND_SYSTEM_PROMPT: &str = "--append-system-prompt";
const JSON_SCHEMA: &str = "--json-schema";
const SETTINGS: &str = "--settings";
const MCP_CONFIG: &str = "--mcp-config";

impl Launch {
    /// Starts from the narrowest settings: nothing is allowed that needs asking, and no settings file is read.
    #[must_use]
    pub fn new(session: SessionMode) -> Self {
        Self {
            session,
            model: None,
            permission_mode: PermissionMode::DontAsk,
            permission_prompts: PermissionPrompts::Denied,
            tools: None,
            allowed_tools: Vec::new(),
            disallowed_tools: Vec::new(),
            max_turns: None,
            append_system_prompt: None,
            mcp_config: None,
            json_schema: None,
            partial_messages: true,
            settings: None,
            setting_sources: Vec::new(),
        }
    }

    /// Gives the arguments, without the program. The prompt is never among them.
    ///
    /// Every value is joined to its flag by `=`: none can be taken for a flag, whatever it begins with.
    ///
    /// # Errors
    /// [`LaunchError`] for the first value that the CLI would misread.
    pub fn argv(&self) -> Result<Vec<String>, LaunchError> {
        let mut argv: Vec<String> = [
            "-p",
            "--input-format=stream-json",
            "--output-format=stream-json",
            "--verbose",
            "--replay-user-messages",
            "--strict-mcp-config",
        ]
        .map(str::to_owned)
        .to_vec();
        if self.partial_messages {
            argv.push("--include-partial-messages".to_owned());
        }
        argv.push(match &self.session {
            SessionMode::New(id) => format!("--session-id={id}"),
            SessionMode::Resume(id) => format!("--resume={id}"),
        });
        argv.push(format!("--setting-sources={}", self.sources()));
        self.push_model(&mut argv)?;
        self.push_permissions(&mut argv)?;
        self.push_limits(&mut argv)?;
        if let Some(text) = &self.append_system_prompt {
            argv.push(long(APPEND_SYSTEM_PROMPT, text)?);
        }
        if let Some(settings) = &self.settings {
            argv.push(long(SETTINGS, &settings.to_string())?);
        }
        if let Some(schema) = &self.json_schema {
            argv.push(long(JSON_SCHEMA, &schema.to_string())?);
        }
        if let Some(config) = &self.mcp_config {
            argv.push(mcp_config(config)?);
        }
        Ok(argv)
    }

    fn sources(&self) -> String {
        let name = |source: &SettingSource| match source {
            SettingSource::User => "user",
            SettingSource::Project => "project",
            SettingSource::Local => "local",
        };
        self.setting_sources.iter().map(name).collect::<Vec<_>>().join(",")
    }

    fn push_model(&self, argv: &mut Vec<String>) -> Result<(), LaunchError> {
        let Some(model) = &self.model else { return Ok(()) };
        let printable = model.bytes().all(|byte| byte.is_ascii_graphic());
        if model.is_empty() || model.len() > MODEL_BYTES_MAX || !printable {
            return Err(LaunchError::Model);
        }
        argv.push(format!("--model={model}"));
        Ok(())
    }

    fn push_permissions(&self, argv: &mut Vec<String>) -> Result<(), LaunchError> {
        argv.push(format!("--permission-mode={}", self.permission_mode.as_argument()));
        if self.permission_prompts == PermissionPrompts::Driver {
            argv.push("--permission-prompt-tool=stdio".to_owned());
        }
        if let Some(tools) = &self.tools {
            check(TOOLS, tools, is_name)?;
            argv.push(format!("{TOOLS}={}", tools.join(",")));
        }
        // One flag for each rule: a rule may hold commas of its own.
        for (flag, rules) in
            [(ALLOWED_TOOLS, &self.allowed_tools), (DISALLOWED_TOOLS, &self.disallowed_tools)]
        {
            check(flag, rules, is_rule)?;
            argv.extend(rules.iter().map(|rule| format!("{flag}={rule}")));
        }
        Ok(())
    }

    fn push_limits(&self, argv: &mut Vec<String>) -> Result<(), LaunchError> {
        match self.max_turns {
            Some(0) => return Err(LaunchError::ZeroTurns),
            Some(turns) => argv.push(format!("--max-turns={turns}")),
            None => {}
        }
        Ok(())
    }
}

fn check(flag: &'static str, entries: &[String], fits: fn(&str) -> bool) -> Result<(), LaunchError> {
    if entries.len() > TOOLS_MAX {
        return Err(LaunchError::TooManyTools { flag, count: entries.len() });
    }
    match entries.iter().find(|entry| entry.len() > TOOL_BYTES_MAX || !fits(entry)) {
        Some(entry) => {
            Err(LaunchError::Tool { flag, value: crate::event::cut(entry, TOOL_BYTES_MAX).to_owned() })
        }
        None => Ok(()),
    }
}

fn long(flag: &'static str, value: &str) -> Result<String, LaunchError> {
    if value.len() > ARGUMENT_BYTES_MAX {
        return Err(LaunchError::TooLong { flag, bytes: value.len() });
    }
    if value.contains('\0') {
        return Err(LaunchError::Nul { flag });
    }
    Ok(format!("{flag}={value}"))
}

fn mcp_config(config: &str) -> Result<String, LaunchError> {
    let argument = long(MCP_CONFIG, config)?;
    match serde_json::from_str::<Value>(config) {
        Ok(value) if value.get("mcpServers").is_some_and(Value::is_object) => Ok(argument),
        Ok(_) | Err(_) => Err(LaunchError::McpConfig),
    }
}

#[cfg(test)]
#[path = "argv_tests.rs"]
mod tests;
