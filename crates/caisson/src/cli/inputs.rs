//! Speaking to a run that goes on, and being its agent's tool.

use std::path::PathBuf;

use clap::Args;

use super::ClientFlags;

/// What comes with a text.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AttachFlags {
    /// A file for the agent; may be given several times, 8 MiB each and 12 MiB together at most. A PNG, JPEG, GIF or WebP image is
    /// shown to it; anything else is put into the sandbox, outside the workspace.
    #[arg(long = "attach", value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Flags of `input`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Input {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The run: its id, or the last digits of it.
    pub run: String,
    /// What the agent is told; "-" reads it from standard input. Only --interrupt goes without.
    pub text: Option<String>,
    /// Within the agent's turn; this is the default.
    #[arg(long, conflicts_with_all = ["queue", "interrupt"])]
    pub steer: bool,
    /// When the agent's turn has ended, before the run publishes.
    #[arg(long, conflicts_with = "interrupt")]
    pub queue: bool,
    /// At once: what the agent does is ended. Without a text the run goes on to publish what there is.
    #[arg(long)]
    pub interrupt: bool,
    #[command(flatten)]
    pub attached: AttachFlags,
    /// Makes a repeated call harmless.
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

/// Flags of `approve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Approve {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The run: its id, or the last digits of it.
    pub run: String,
    /// The approval, by its id; it can be left out if only one waits and all of what it asks is shown.
    pub approval: Option<String>,
    /// What the tool is given in place of what the agent wanted: a JSON object.
    #[arg(long, value_name = "JSON", value_parser = object, conflicts_with = "answer")]
    pub input: Option<serde_json::Map<String, serde_json::Value>>,
    /// The answer to a question of the agent, as it wrote the question; may be given several times.
    #[arg(long, value_name = "QUESTION=ANSWER", value_parser = super::name_and_value)]
    pub answer: Vec<(String, String)>,
}

/// Flags of `deny`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Deny {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The run: its id, or the last digits of it.
    pub run: String,
    /// The approval, by its id; it can be left out if only one waits.
    pub approval: Option<String>,
    /// What the agent is told.
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
}

/// Flags of `mcp`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Mcp {
    #[command(flatten)]
    pub client: ClientFlags,
}

fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("write a JSON object: {error}"))
}
