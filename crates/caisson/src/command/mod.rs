//! What each command does.

mod agent;
mod artifacts;
mod attach;
mod attached;
mod audit;
mod budget;
mod completion;
mod credential;
mod db;
mod demo;
mod demo_project;
mod doctor;
mod doctor_report;
mod egress;
mod gc;
mod image;
mod image_scan;
mod inputs;
mod key;
mod machine;
mod mcp;
mod project;
mod queue;
mod runs;
mod servers;
mod session;
mod submit;
mod usage;
mod workflow;

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{ClientFlags, Command, EngineFlag, OutputFlag, Serve, ServerFlags};
use crate::client::Client;
use crate::screen::Terminal;
use crate::serve::Server;
use crate::settings::{Environment, Overrides, Settings};

/// Exit code of a command that did what it was asked to.
pub(crate) const DONE: u8 = 0;
/// Exit code of a command that followed a run which failed.
pub(crate) const RUN_FAILED: u8 = 3;
/// Exit code of a command that followed a run which was cancelled.
pub(crate) const RUN_CANCELLED: u8 = 4;
/// Exit code of a command that followed a run which succeeded, and could not send all that was given to it.
pub(crate) const INPUTS_UNSENT: u8 = 5;
/// Columns of a terminal that does not say how wide it is.
const COLUMNS: usize = 80;
/// Exit code of a command that was left by Ctrl-C, as shells have it.
pub(crate) const DETACHED: u8 = 130;

/// Runs a command and returns its exit code.
///
/// # Errors
/// What went wrong, for people.
pub(crate) async fn run(command: Command, environment: &Environment) -> anyhow::Result<u8> {
    let code = Box::pin(done(command, environment)).await?;
    written()?;
    Ok(code)
}

async fn done(command: Command, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        // The largest of them by far, boxed so that the others need not be as large.
        Command::Serve(flags) => Box::pin(serve(flags, environment)).await,
        Command::Run(flags) => submit::run(*flags).await,
        Command::Logs(flags) => runs::logs(flags).await,
        Command::Attach(flags) => attach::run(flags).await,
        Command::Ps(flags) => runs::ps(flags).await,
        Command::Show(flags) => runs::show(flags).await,
        Command::Diff(flags) => runs::diff(flags).await,
        Command::Artifacts(flags) => artifacts::run(flags).await,
        Command::Cancel(flags) => runs::cancel(flags).await,
        Command::Session(session) => session::run(session).await,
        Command::Input(flags) => inputs::input(flags).await,
        Command::Approvals(flags) => inputs::list(flags).await,
        Command::Approve(flags) => inputs::approve(flags).await,
        Command::Deny(flags) => inputs::deny(flags).await,
        Command::Mcp(flags) => mcp::run(flags).await,
        Command::Queue(flags) => queue::show(flags).await,
        Command::Drain(flags) => queue::drain(flags).await,
        Command::Resume(flags) => queue::resume(flags).await,
        Command::Servers(flags) => servers::run(flags).await,
        Command::Workflow(workflow) => workflow::run(workflow).await,
        Command::Usage(flags) => usage::run(flags).await,
        Command::Budget(budget) => budget::run(budget).await,
        Command::Egress(crate::cli::Egress::Suggest(flags)) => egress::suggest(flags).await,
        Command::Db(db) => Box::pin(db::run(db, environment)).await,
        Command::Gc(flags) => Box::pin(gc::run(flags, environment)).await,
        Command::Project(project) => project::run(project, environment).await,
        Command::Key(key) => key::run(key, environment).await,
        Command::Audit(audit) => audit::run(audit, environment).await,
        Command::Credential(credential) => Box::pin(credential::run(credential, environment)).await,
        Command::Agent(agent) => agent::run(agent, environment),
        Command::Image(image) => image::run(image, environment).await,
        Command::Doctor(flags) => doctor::run(flags, environment).await,
        Command::Demo(flags) => Box::pin(demo::run(flags, environment)).await,
        Command::Supervise { .. } => {
            // Done by `main`, before there is a second thread.
            anyhow::bail!("a supervisor is started by the server")
        }
        Command::Completion(flags) => Ok(completion::run(&flags)),
        Command::Openapi => {
            print(&caisson_api::openapi().to_pretty_json()?);
            Ok(DONE)
        }
    }
}

async fn serve(flags: Serve, environment: &Environment) -> anyhow::Result<u8> {
    let settings = serve_settings(flags, environment)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = Server::start(settings).await?;
    let must_end = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = server.must_end() => Some(reason),
    };
    tracing::info!("stopping; sandboxes stay alive and are taken over at the next start");
    server.stop().await;
    match must_end {
        Some(reason) => anyhow::bail!(reason),
        None => Ok(DONE),
    }
}

/// Settings of `serve`; whether they fit is found by [`crate::inputs::read`], together with what they name.
pub(crate) fn serve_settings(flags: Serve, environment: &Environment) -> anyhow::Result<Settings> {
    let overrides = Overrides {
        state_dir: flags.server.state_dir,
        listen: flags.listen,
        allow_repo: flags.allow_repo,
        engine: flags.engine.engine,
        only: flags.only.only,
    };
    Settings::read(flags.server.config.as_deref(), environment, overrides)
}

/// Settings of a command that works on the server's own machine.
pub(crate) fn settings(flags: &ServerFlags, environment: &Environment) -> anyhow::Result<Settings> {
    let overrides = Overrides { state_dir: flags.state_dir.clone(), ..Overrides::default() };
    Settings::load(flags.config.as_deref(), environment, overrides)
}

/// The same for a command that makes sandboxes.
pub(crate) fn settings_with_engine(
    flags: &ServerFlags,
    engine: &EngineFlag,
    environment: &Environment,
) -> anyhow::Result<Settings> {
    let mut settings = settings(flags, environment)?;
    if let Some(engine) = engine.engine {
        settings.engine = engine;
    }
    Ok(settings)
}

/// The API's client as the flags say.
pub(crate) fn client(flags: &ClientFlags) -> anyhow::Result<Client> {
    Client::new(flags.url.clone(), flags.api_key.clone(), flags.ca_file.as_deref())
}

/// The first fault of standard output, which [`run`] ends with: what prints need not care.
static OUTPUT_FAULT: OnceLock<String> = OnceLock::new();

/// Writes a line to standard output; see [`write_out`].
pub(crate) fn print(text: &str) {
    write_out(&format!("{text}\n"));
}

/// Writes to standard output as it is. A reader that has gone away is no error: that is how `| head` ends. Any other fault, such as a
/// full disk, is what the command fails with in the end.
pub(crate) fn write_out(text: &str) {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            // The first one tells why.
            OUTPUT_FAULT.set(error.to_string()).ok();
        }
        Ok(()) | Err(_) => {}
    }
}

/// Whether all that was written so far got out.
///
/// # Errors
/// Something did not, and not because its reader has gone away.
fn written() -> anyhow::Result<()> {
    match OUTPUT_FAULT.get() {
        Some(fault) => anyhow::bail!("standard output cannot be written: {fault}"),
        None => Ok(()),
    }
}

/// Writes a line to standard error.
pub(crate) fn complain(text: &str) {
    let mut out = std::io::stderr().lock();
    // It may quote what came from elsewhere.
    writeln!(out, "{}", crate::render::clean(text)).ok();
}

/// Writes a document as one line of JSON.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string(value).context("the answer cannot be written as JSON")?;
    print(&crate::render::escaped(&json));
    // Whoever writes one after another stops.
    written()
}

/// Tells what was done: as a document, or in words.
pub(crate) fn tell(output: OutputFlag, document: &Value, words: &str) -> anyhow::Result<()> {
    if output.json {
        return print_json(document);
    }
    print(words);
    Ok(())
}

/// Whether standard output shows colours: a terminal does, unless `NO_COLOR` (<https://no-color.org>) says otherwise.
pub(crate) fn colour() -> bool {
    terminal().colour
}

/// What standard output can do. A file or a pipe takes nothing but text.
#[expect(
    clippy::disallowed_methods,
    reason = "the binary alone reads the environment, and the terminal is its own"
)]
pub(crate) fn terminal() -> Terminal {
    let named = |name: &str| std::env::var_os(name).unwrap_or_default();
    // A dumb one cannot write over a line either.
    let able = std::io::stdout().is_terminal() && named("TERM") != "dumb";
    Terminal { colour: able && named("NO_COLOR").is_empty(), status_line: able }
}

/// How wide the terminal is, in columns.
pub(crate) fn columns() -> usize {
    let size = terminal_size::terminal_size_of(std::io::stdout());
    // One that was never told its size says that it has none.
    size.map(|(terminal_size::Width(columns), _)| usize::from(columns))
        .filter(|columns| *columns > 0)
        .unwrap_or(COLUMNS)
}

/// Exit code of a command that followed a run to its end.
pub(crate) fn exit_code(status: &str) -> u8 {
    match status {
        "succeeded" => DONE,
        "cancelled" => RUN_CANCELLED,
        _ => RUN_FAILED,
    }
}
