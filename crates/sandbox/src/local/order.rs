//! What a supervisor is told to make, over its standard input: grants are in it, so it never touches a disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cgroup::Group;
use crate::ResourceLimits;

/// Longest order, in bytes: the largest environment, escaped, and room for the rest.
pub(crate) const ORDER_BYTES: u64 = 8 * 1024 * 1024;

/// What a supervisor is started for.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Errand {
    /// To prepare itself as for a sandbox, say whether it could, and end.
    Try,
    /// To supervise a sandbox.
    Make(Box<Order>),
}

/// One sandbox, ready to be made: everything in it was checked.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Absolute path of bubblewrap.
    pub(crate) bubblewrap: PathBuf,
    /// What marks every process of bubblewrap as this sandbox's.
    pub(crate) mark: String,
    /// Its control group, made already; none where none can be had.
    pub(crate) group: Option<Group>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// What of the host is seen in it, beside the system's own programs.
    pub(crate) binds: Vec<Shown>,
    /// Programs of these directories are found before the system's.
    pub(crate) search: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) limits: ResourceLimits,
}

/// Something of the host that is seen in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    /// Without symbolic links.
    pub(crate) source: String,
    /// Where it is seen.
    pub(crate) target: String,
    pub(crate) writable: bool,
    /// Whether it is one file.
    pub(crate) is_file: bool,
}

/// What a supervisor answers to its order, as one line on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It waits for the word to start.
    Ready,
    /// It could not do what it was told.
    Failed(String),
}

/// What a supervisor answers to the word to start, as one line on its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Started {
    /// The first process runs.
    Running,
    /// The sandbox could not be made; the supervisor ends.
    Failed(String),
}
