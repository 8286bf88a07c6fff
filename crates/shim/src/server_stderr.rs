//! What MCP servers in the sandbox write to standard error: the end of it is kept, since it is what says why one does not start. The
//! agent keeps none of it.
//!
//! Each server is started by this crate's own program, which opens a pipe of the server's for its standard error and becomes the server:
//! same process, same descriptors but that one, same rights. The shim reads the pipe as long as the agent lives.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::protocol::RunWork;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Map, Value, json};
use tokio::net::unix::pipe;
use tokio_util::task::AbortOnDropHandle;

use crate::diagnostics::say;
use crate::process::Tail;
use crate::shim::Shim;

/// First argument with which this crate's program becomes an MCP server.
pub const MCP_SERVER: &str = "mcp-server";
/// How long what a server has written before its end may be on its way to whoever reads it, in milliseconds: the pipe has it already.
const SETTLE_MS: u64 = 20;

/// Becomes an MCP server: `arguments` are the pipe for its standard error, its program, and the program's arguments. It returns only
/// when that fails, with what is wrong, which is in the pipe as well. Without the pipe the server's standard error stays the agent's.
#[must_use]
pub fn become_server(mut arguments: impl Iterator<Item = OsString>) -> String {
    let (Some(pipe), Some(program)) = (arguments.next(), arguments.next()) else {
        return format!("{MCP_SERVER} takes a pipe, a program and its arguments");
    };
    let pipe = OpenOptions::new().write(true).open(pipe).ok();
    #[expect(
        clippy::disallowed_methods,
        reason = "an argument vector of the workflow's own, as the agent would start it"
    )]
    let mut command = Command::new(&program);
    command.args(arguments);
    if let Some(pipe) = pipe.as_ref().and_then(|pipe| pipe.try_clone().ok()) {
        command.stderr(Stdio::from(pipe));
    }
    let error = command.exec();
    let why = format!("{} cannot be started: {error}", program.display());
    if let Some(mut pipe) = pipe {
        // Nobody may read it any more.
        let _unread = writeln!(pipe, "{why}");
    }
    why
}

/// The ends of what the agent's MCP servers write to standard error.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerStderrs {
    tails: Arc<BTreeMap<String, Tail>>,
}

impl ServerStderrs {
    /// Has the programs among the agent's servers started so that what they write is kept, and reads it as long as the handles live.
    /// Where that cannot be, they are started as they are written.
    pub(crate) fn of(
        shim: &Shim,
        work: &RunWork,
        servers: &mut Map<String, Value>,
    ) -> (Self, Vec<AbortOnDropHandle<()>>) {
        // The name is new, so that nobody can have put anything in its place.
        let directory = shim.places.tmp.join(format!("caisson-mcp-{}-{}", work.run, work.attempt));
        let mut pipes = Vec::new();
        if servers.values().any(is_program) {
            match make(&directory, servers) {
                Ok(made) => pipes = made,
                Err(error) => {
                    say(format_args!("what MCP servers write to standard error is not kept: {error}"));
                }
            }
        }
        let (mut tails, mut reading) = (BTreeMap::new(), Vec::new());
        for (number, (name, pipe)) in pipes.into_iter().enumerate() {
            if let Some(server) = servers.get_mut(&name) {
                wrap(server, &shim.places.shim, &directory.join(number.to_string()));
            }
            let tail = Tail::default();
            reading.push(AbortOnDropHandle::new(shim.tracker.spawn(tail.clone().read(Some(pipe)))));
            tails.insert(name, tail);
        }
        (Self { tails: Arc::new(tails) }, reading)
    }

    /// The end of what a server has written, without what a terminal would do; none if it has written nothing, or is not in the sandbox.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    pub(crate) async fn end_of(&self, server: &str) -> Option<String> {
        let tail = self.tails.get(server)?;
        tokio::time::sleep(Duration::from_millis(SETTLE_MS)).await;
        let text: String =
            tail.text().chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        Some(text).filter(|text| !text.trim().is_empty())
    }
}

/// Makes a pipe for each program, and opens it at the end that is read. It is opened for writing as well, so that it has no end when
/// a server ends.
fn make(directory: &Path, servers: &Map<String, Value>) -> io::Result<Vec<(String, pipe::Receiver)>> {
    DirBuilder::new().mode(0o700).create(directory)?;
    let programs = servers.iter().filter(|(_, server)| is_program(server)).enumerate();
    programs
        .map(|(number, (name, _))| -> io::Result<_> {
            let path = directory.join(number.to_string());
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            Ok((name.clone(), pipe::OpenOptions::new().read_write(true).open_receiver(&path)?))
        })
        .collect()
}

/// Whether the agent would start it as a program, and its arguments are such.
fn is_program(server: &Value) -> bool {
    let is_stdio = server.get("type").is_none_or(|kind| kind == "stdio");
    let arguments = server.get("args").is_none_or(Value::is_array);
    is_stdio && arguments && server.get("command").is_some_and(Value::is_string)
}

/// Puts this crate's program before the server's own.
fn wrap(server: &mut Value, shim: &Path, pipe: &Path) {
    let Some(fields) = server.as_object_mut() else { return };
    let mut arguments = vec![json!(MCP_SERVER), json!(pipe.to_string_lossy())];
    arguments.extend(fields.insert("command".to_owned(), json!(shim.to_string_lossy())));
    if let Some(Value::Array(own)) = fields.remove("args") {
        arguments.extend(own);
    }
    fields.insert("args".to_owned(), arguments.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_keeps_its_words_behind_those_that_start_it() {
        let mut server = json!({"command": "serve", "args": ["-x", "${TEAM}"], "env": {"A": "b"}});
        assert!(is_program(&server));
        wrap(&mut server, Path::new("/caisson/shim"), Path::new("/tmp/p"));
        let wrapped = json!({
            "command": "/caisson/shim", "args": ["mcp-server", "/tmp/p", "serve", "-x", "${TEAM}"], "env": {"A": "b"},
        });
        assert_eq!(server, wrapped);
        let mut plain = json!({"type": "stdio", "command": "serve"});
        assert!(is_program(&plain));
        wrap(&mut plain, Path::new("/s"), Path::new("/p"));
        assert_eq!(plain["args"], json!(["mcp-server", "/p", "serve"]));
        for other in [
            json!({"type": "http", "url": "http://x"}),
            json!({"command": "x", "args": "y"}),
            json!({"command": 1}),
            json!(1),
        ] {
            assert!(!is_program(&other), "{other}");
        }
    }
}
