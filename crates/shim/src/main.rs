//! The shim's binary: reads the grants and the search path, and remembers nothing else of its environment. Started by the agent, it
//! becomes one of its MCP servers.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use caisson_domain::protocol::environment::{AGENT_GRANT, CONTROL_GRANT};
use caisson_shim::{Grants, MCP_SERVER, Patience, Places, Setup, become_server, hide, run};

/// Search path where the image sets none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == MCP_SERVER) {
        // The agent starts it so, and gives it nothing that would have to be hidden.
        drop(writeln!(std::io::stderr(), "caisson-shim: {}", become_server(arguments)));
        return ExitCode::FAILURE;
    }
    // First of all: from here on no other process of this uid can read the memory or the environment of this one.
    let hidden = hide().map_err(|error| format!("cannot hide from the sandbox's processes: {error}"));
    match hidden.and_then(|()| start()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            drop(writeln!(std::io::stderr(), "caisson-shim: {reason}"));
            ExitCode::FAILURE
        }
    }
}

/// How long a thread for what blocks waits for more of it.
const IDLE_THREAD: Duration = Duration::from_millis(20);

fn start() -> Result<(), String> {
    let grants =
        Grants::new(&variable(CONTROL_GRANT)?, &variable(AGENT_GRANT)?).map_err(|error| error.to_string())?;
    let path = variable("PATH").unwrap_or_else(|_| PATH.to_owned());
    let (places, patience) = (Places::of_a_sandbox(), Patience::of_a_sandbox());
    let setup = Setup { places, grants, path, patience, holds: true };
    // A thread for what blocks is gone before anybody counts what lives in a sandbox that waits.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(IDLE_THREAD)
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(run(setup)).map_err(|error| told(&error))
}

#[expect(clippy::disallowed_methods, reason = "a binary reads its environment")]
fn variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|error| format!("{name}: {error}"))
}

/// The error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
