//! Where things are in a sandbox.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use caisson_domain::protocol::places;

/// Directory for temporary files of the agent.
const TMP: &str = "/tmp";

/// Where things are: the product's values are [`Places::of_a_sandbox`], tests use others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The door's unix socket.
    pub door: PathBuf,
    /// The journal's directory.
    pub journal: PathBuf,
    /// The workspace, and the agent's working directory.
    pub workspace: PathBuf,
    /// The agent's home.
    pub home: PathBuf,
    /// The agent's program.
    pub agent: PathBuf,
    /// The shim's own program, by which MCP servers are started.
    pub shim: PathBuf,
    /// Directory for temporary files.
    pub tmp: PathBuf,
    /// Where the loopback listener listens; port 0 lets the kernel choose.
    pub loopback: SocketAddr,
}

impl Places {
    /// The places of every sandbox, whatever engine made it.
    #[must_use]
    pub fn of_a_sandbox() -> Self {
        Self {
            door: places::DOOR.into(),
            journal: places::JOURNAL_DIR.into(),
            workspace: places::WORKSPACE.into(),
            home: places::HOME.into(),
            agent: places::AGENT.into(),
            shim: places::SHIM.into(),
            tmp: TMP.into(),
            loopback: SocketAddr::from((Ipv4Addr::LOCALHOST, places::LOOPBACK_PORT)),
        }
    }
}
