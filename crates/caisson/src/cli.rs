//! The command line: what can be typed, and nothing of what it does.

mod attach;
mod audit;
mod budget;
mod completion;
mod credential;
mod db;
mod gc;
mod image;
mod inputs;
mod output;
mod project;
mod queue;
mod servers;
mod session;
mod usage;
mod workflow;

use std::net::SocketAddr;
use std::path::PathBuf;

use caisson_domain::budget::RUN_BUDGET_MICRO_USD;
use caisson_domain::limits::{API_KEY_LIFE_S_MAX, API_KEY_LIFE_S_MIN};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use url::Url;

use crate::settings::EngineChoice;

pub(crate) use attach::{Attach, HELP, Typed};
pub(crate) use audit::Audit;
pub(crate) use budget::{Budget, SetBudget};
pub(crate) use completion::Completion;
pub(crate) use credential::{AddCredential, Credential, SecretFlags};
pub(crate) use db::{CopyDb, Db};
pub(crate) use gc::{Gc, Retain};
pub(crate) use image::{Image, ScanFormat, ScanImage};
pub(crate) use inputs::{Approve, AttachFlags, Deny, Input, Mcp};
pub(crate) use output::OutputFlag;
pub(crate) use project::Project;
pub(crate) use queue::{Drain, Queue, Resume, SetProject, StartFlags};
pub(crate) use servers::{OnlyFlag, Servers, ServersCommand};
pub(crate) use session::{InSession, OneSession, Session};
pub(crate) use usage::Usage;
pub(crate) use workflow::{RunOfWorkflow, Workflow};

/// Runs Claude Code, each session sealed in its own container, behind one async HTTP API.
#[derive(Debug, Parser)]
#[command(name = "caisson", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server: API, worker and gateway in one process, or one of them.
    Serve(Serve),
    /// Submit a task and follow it; Ctrl-C detaches and leaves the run alone.
    Run(Box<Run>),
    /// Show a run's events, live with -f.
    Logs(Logs),
    /// Follow a live run, and tell its agent what you type; Ctrl-C detaches and leaves the run alone.
    ///
    /// A line is told to the agent within its turn. /queue TEXT is told when the turn is over, /interrupt breaks off what the agent
    /// does, /detach leaves, /help tells all of it.
    Attach(Attach),
    /// List runs, newest first.
    Ps(Ps),
    /// Show one run.
    Show(One),
    /// Print what a run changed, as a patch.
    Diff(One),
    /// List what was kept for a run, work that was not pushed among it, or fetch one file of it.
    Artifacts(Artifacts),
    /// Ask for a run's end; its work is saved first.
    Cancel(One),
    /// List, show, read, fork and delete sessions.
    #[command(subcommand)]
    Session(Session),
    /// Tell the agent of a run something while it works, or end what it does.
    Input(Input),
    /// List what a run's agent asked before it used a tool.
    Approvals(One),
    /// Allow what a run's agent asks, or answer its question.
    Approve(Approve),
    /// Deny what a run's agent asks.
    Deny(Deny),
    /// Be an MCP server on standard input and output, whose tools submit and follow runs.
    Mcp(Mcp),
    /// Show how many runs wait and run, on which servers. Needs an admin key of the default project.
    Queue(Queue),
    /// Have servers take no more runs; what runs goes on. Needs an admin key of the default project.
    Drain(Drain),
    /// Have drained servers take runs again. Needs an admin key of the default project.
    Resume(Resume),
    /// List the servers that share the database, and forget those that are gone. Needs an admin key of the default project.
    Servers(Servers),
    /// List, show, check, write and change workflows.
    #[command(subcommand)]
    Workflow(Workflow),
    /// Add up tokens and cost of model calls by day, model, workflow, session, run or project.
    Usage(Usage),
    /// Show and set what the project's runs may spend, together.
    #[command(subcommand)]
    Budget(Budget),
    /// Learn where the tools of a run went and wanted to go.
    #[command(subcommand)]
    Egress(Egress),
    /// Migrate, check, back up and copy the database, on the server's machine.
    #[command(subcommand)]
    Db(Db),
    /// Remove what has been kept long enough, or tell what could be removed, on the server's machine.
    Gc(Gc),
    /// Make and list projects, and say how long they keep things, on the server's machine.
    #[command(subcommand)]
    Project(Project),
    /// Make, list and revoke API keys, on the server's machine.
    #[command(subcommand)]
    Key(Key),
    /// Verify and export the audit log, on the server's machine.
    #[command(subcommand)]
    Audit(Audit),
    /// Add, list, rotate and remove credentials, and replace the master key, on the server's machine.
    #[command(subcommand)]
    Credential(Credential),
    /// Install and list agents (Claude Code) by exact version.
    #[command(subcommand)]
    Agent(Agent),
    /// Build the default sandbox image, and look what is in an image.
    #[command(subcommand)]
    Image(Image),
    /// Check everything a server needs, and say how to mend what is missing.
    ///
    /// Takes the flags of `serve`, changes nothing, and looks, in this order, at the state directory, the database, its API keys and
    /// the audit log's head, the master key, the engine and its image, the agent, the shim, git, free disk space, the model API's credential, prices,
    /// repositories, git hosts, where tools may go, the gateway's settings, workflows, TLS, and the address of the API. No credential
    /// is tried. Then it tells of settings that let more people in than most mean to; those fail nothing.
    Doctor(Doctor),
    /// Do the main job once, end to end, and check the result.
    Demo(Demo),
    /// Print the API's OpenAPI document.
    Openapi,
    /// Print what a shell needs to complete commands and flags.
    ///
    /// For bash: `source <(caisson completion bash)`. For zsh: write it as `_caisson` into a directory of `$fpath`. For fish:
    /// `caisson completion fish | source`.
    Completion(Completion),
    /// Look after one sandbox of the local engine; the server starts this, nobody types it.
    #[command(hide = true)]
    Supervise {
        /// The sandbox, for whoever lists processes.
        sandbox: String,
    },
}

/// Flags of every command that works on the server's own machine.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerFlags {
    /// Configuration file (TOML).
    #[arg(long, env = "CAISSON_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory that holds everything that must last.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Flag of every command that makes sandboxes or looks whether they can be made.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineFlag {
    /// What makes sandboxes. Default: the configuration's choice, else Docker where an engine answers, else local.
    #[arg(long, value_enum)]
    pub engine: Option<EngineChoice>,
}

/// Flags of `serve`, and for `doctor`, which looks whether `serve` could start with them.
#[derive(Debug, Clone, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub server: ServerFlags,
    #[command(flatten)]
    pub engine: EngineFlag,
    /// Address of the API.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Let runs name repositories below this directory by path; may be given several times.
    #[arg(long, value_name = "DIR")]
    pub allow_repo: Vec<PathBuf>,
    #[command(flatten)]
    pub only: OnlyFlag,
}

/// Flags of `doctor`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub serve: Serve,
    #[command(flatten)]
    pub output: OutputFlag,
}

/// Flags of every command that calls the API.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientFlags {
    /// The server's address.
    #[arg(long, env = "CAISSON_URL", default_value = "http://127.0.0.1:7070", value_name = "URL", value_parser = server_url)]
    pub url: Url,
    /// API key; a variable keeps it out of the process list.
    #[arg(long, env = "CAISSON_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// PEM file with the authority of the server's certificate, if it is none that the system knows.
    #[arg(long, env = "CAISSON_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Print JSON, one document a line.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The task; "-" reads it from standard input.
    pub prompt: String,
    #[command(flatten)]
    pub in_session: InSession,
    /// The workflow to follow. Default: bug-fixer, or the session's.
    #[arg(long, short)]
    pub workflow: Option<String>,
    /// Repository: a URL, or a directory on the server's machine. Default: the server's default repository; without one the run
    /// is refused.
    #[arg(long, value_name = "URL|DIR", conflicts_with = "no_repo")]
    pub repo: Option<String>,
    /// Work in an empty workspace.
    #[arg(long)]
    pub no_repo: bool,
    /// Branch to start from.
    #[arg(long)]
    pub base: Option<String>,
    /// Branch whose instructions and settings steer the agent, one that the workflow trusts.
    #[arg(long, value_name = "BRANCH")]
    pub anchor: Option<String>,
    /// Branch to make and push.
    #[arg(long)]
    pub branch: Option<String>,
    /// Model id.
    #[arg(long)]
    pub model: Option<String>,
    /// Most turns of the agent.
    #[arg(long, value_name = "N")]
    pub max_turns: Option<u32>,
    /// Sandbox image.
    #[arg(long)]
    pub image: Option<String>,
    /// Time limit in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u32>,
    /// What the run may spend on the model API, in USD, such as 1.50; at its end the run fails as budget.
    #[arg(long, value_name = "USD", value_parser = micro_usd)]
    pub budget: Option<u32>,
    /// Share of each budget at which the agent is told to wrap up, in percent, 1 to 100; 100: never.
    #[arg(long, value_name = "PERCENT")]
    pub budget_soft: Option<u32>,
    /// Environment of the agent, among the names that the workflow allows; may be given several times.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub environment: Vec<(String, String)>,
    #[command(flatten)]
    pub start: StartFlags,
    #[command(flatten)]
    pub of_workflow: RunOfWorkflow,
    #[command(flatten)]
    pub attached: AttachFlags,
    /// Makes a repeated submission harmless.
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Submit and return.
    #[arg(long, short)]
    pub detach: bool,
}

/// Flags of `logs`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The run: its id, the last digits of it, or nothing for the newest.
    pub run: Option<String>,
    /// Stay and show events as they come, until the run ends.
    #[arg(long, short)]
    pub follow: bool,
}

/// Flags of `ps`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Ps {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Only runs with this status.
    #[arg(long)]
    pub status: Option<String>,
    /// How many, 1 to 200.
    #[arg(long, default_value_t = 20)]
    pub limit: u32,
}

/// Flags of commands about one run.
#[derive(Debug, Clone, Args)]
pub(crate) struct One {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The run: its id, the last digits of it, or nothing for the newest.
    pub run: Option<String>,
}

/// Flags of `artifacts`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Artifacts {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The run: its id, the last digits of it, or nothing for the newest.
    pub run: Option<String>,
    /// Fetch this artifact; to standard output, unless -o names a file.
    #[arg(conflicts_with = "json")]
    pub name: Option<String>,
    /// File to write the artifact to.
    #[arg(long, short, value_name = "FILE", requires = "name")]
    pub output: Option<PathBuf>,
}

/// The way outside.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Egress {
    /// Print the smallest list of rules that has what a run used and was denied; look before you allow it.
    Suggest(One),
}

/// API keys.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Key {
    /// Make a key and print it once.
    Create {
        #[command(flatten)]
        server: ServerFlags,
        /// A name for people.
        name: String,
        /// What it may do: runs:read, runs:write, workflows, credentials, audit or admin (everything); may be given several
        /// times. Default: runs:read and runs:write.
        #[arg(long, value_name = "SCOPE")]
        scope: Vec<String>,
        /// Life of the key: a number with s, m, h, d or w behind it, such as 30d. Default: it never expires.
        #[arg(long, value_name = "TIME", value_parser = life_s)]
        expires: Option<u32>,
        /// The tenant.
        #[arg(long, default_value = "default")]
        project: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// List keys; the secrets are not kept.
    List {
        #[command(flatten)]
        server: ServerFlags,
        /// The tenant.
        #[arg(long, default_value = "default")]
        project: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Revoke a key at once.
    Revoke {
        #[command(flatten)]
        server: ServerFlags,
        /// The key's id.
        id: String,
        #[command(flatten)]
        output: OutputFlag,
    },
}

/// Agents.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Agent {
    /// Fetch a version through the npm client, check its integrity and keep it beside the others.
    Install {
        #[command(flatten)]
        server: ServerFlags,
        /// Exact version. Default: the one this release was tested with.
        #[arg(long)]
        version: Option<String>,
        /// Take this package file instead of fetching one.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Expected integrity (sha512-…); needed for a file of a version that this release does not know.
        #[arg(long, value_name = "SRI")]
        integrity: Option<String>,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// List installed versions.
    List {
        #[command(flatten)]
        server: ServerFlags,
        #[command(flatten)]
        output: OutputFlag,
    },
}

/// Which model the demo talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoModel {
    /// A scripted one inside this process: no key, no network, no cost.
    Scripted,
    /// The real one, with the key in `ANTHROPIC_API_KEY`; it costs money.
    Real,
}

/// Flags of `demo`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    pub server: ServerFlags,
    #[command(flatten)]
    pub engine: EngineFlag,
    /// Which model answers.
    #[arg(long, value_enum, default_value_t = DemoModel::Scripted)]
    pub model: DemoModel,
    /// Factor on the scripted model's delays; 0 for none.
    #[arg(long, default_value_t = 1.0)]
    pub delay_scale: f64,
    /// Print JSON, one document a line: the run's events, and at last what came of it.
    #[arg(long)]
    pub json: bool,
}

/// The command line, with usage lines that are the same whatever the environment holds: after an error, clap's own ones
/// show a flag whose value came from a variable as if it had to be typed.
pub(crate) fn command() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    plain_usage(command)
}

fn plain_usage(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|mut inner| {
        let usage = inner.render_usage().to_string();
        plain_usage(inner.override_usage(usage.trim_start_matches("Usage: ").to_owned()))
    })
}

/// `localhost:7070` would be a URL whose scheme is `localhost`.
fn server_url(text: &str) -> Result<Url, String> {
    match text.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        Ok(_) | Err(_) if !text.contains("://") => Err(format!("write it with its scheme: http://{text}")),
        Ok(url) => Err(format!("its scheme is {}; a server has http or https", url.scheme())),
        Err(error) => Err(error.to_string()),
    }
}

/// The life of a key, in seconds.
fn life_s(text: &str) -> Result<u32, String> {
    let units = [('s', 1), ('m', 60), ('h', 60 * 60), ('d', 24 * 60 * 60), ('w', 7 * 24 * 60 * 60)];
    let parsed = units.iter().find_map(|(unit, seconds)| {
        text.strip_suffix(*unit)?.parse::<u32>().ok().and_then(|count| count.checked_mul(*seconds))
    });
    parsed.filter(|seconds| (API_KEY_LIFE_S_MIN..=API_KEY_LIFE_S_MAX).contains(seconds)).ok_or_else(|| {
        format!(
            "write a number with s, m, h, d or w behind it, such as 30d; at least {API_KEY_LIFE_S_MIN}s and at most {}d",
            API_KEY_LIFE_S_MAX / (24 * 60 * 60)
        )
    })
}

fn name_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// An amount in USD as whole micro-USD; nothing is rounded.
fn micro_usd(text: &str) -> Result<u32, String> {
    let micro = budget::micro_usd(text)?.try_into().ok();
    micro.filter(|micro| RUN_BUDGET_MICRO_USD.contains(micro)).ok_or_else(|| {
        let most = RUN_BUDGET_MICRO_USD.end() / 1_000_000;
        format!("a run may have from 0.000001 to {most} USD")
    })
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "cli_document_tests.rs"]
mod document_tests;
