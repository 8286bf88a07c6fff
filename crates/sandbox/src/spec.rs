//! What a sandbox is made from, and the bounds it must keep.

use std::path::{Path, PathBuf};

use caisson_domain::id::{SandboxId, ServerId, SessionId};
use caisson_domain::protocol::places;

use crate::{ImageNameError, check_image_name};

/// Least memory of a sandbox, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 32 * MIB;
/// Most memory of a sandbox, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 1024 * 1024 * MIB;
/// Fewest processes and threads that a sandbox may be limited to.
pub const PIDS_MIN: u32 = 16;
/// Most processes and threads that a sandbox may have.
pub const PIDS_MAX: u32 = 65_536;
/// Least CPU time per second, in thousandths of a core (the Docker Engine's own least).
pub const CPU_MILLIS_MIN: u32 = 10;
/// Most CPU time per second, in thousandths of a core.
pub const CPU_MILLIS_MAX: u32 = 1_024_000;
/// Smallest `/tmp`, in bytes.
pub const TMP_BYTES_MIN: u64 = MIB;
/// Largest `/tmp`, in bytes.
pub const TMP_BYTES_MAX: u64 = 64 * 1024 * MIB;
/// Largest user and group id (the Docker Engine's own largest); the least is 1, because 0 is root.
pub const ID_MAX: u32 = 0x7fff_ffff;
/// Most entries in a sandbox's environment.
pub const ENVIRONMENT_ENTRIES: usize = 256;
/// Largest environment of a sandbox, names and values together, in bytes.
pub const ENVIRONMENT_BYTES: usize = 1024 * 1024;
/// Longest time between being asked to end and being killed, in seconds.
pub const STOP_GRACE_S_MAX: u32 = 300;

const MIB: u64 = 1024 * 1024;
/// Longest single entry that Linux takes (`MAX_ARG_STRLEN`, 32 pages), with the `=` and the final NUL.
const ENTRY_BYTES: usize = 128 * 1024;
/// Longest part of a refused name that an error repeats, in characters.
const ECHO_CHARS: usize = 80;

/// Everything that a sandbox is made from. What is not here is fixed, the same for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// The new sandbox's id.
    pub id: SandboxId,
    /// The session that it is for.
    pub session: SessionId,
    /// The server that owns it.
    pub server: ServerId,
    /// The image; see [`check_image_name`]. An engine that has images needs one, and one that has none takes none.
    pub image: Option<String>,
    /// The user id of every process in it, never 0.
    pub uid: u32,
    /// The group id of every process in it, never 0.
    pub gid: u32,
    /// What of the host is seen in it.
    pub mounts: Mounts,
    /// The shim's environment, beside what the image sets. Grants at most, no real secret: an engine shows it to whoever may
    /// use its socket.
    pub environment: Vec<(String, String)>,
    /// What it may use.
    pub limits: ResourceLimits,
}

/// What of the host is seen in a sandbox. Every path is absolute and exists; none that the sandbox may write to is or
/// contains another one, and none is or contains an engine's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts {
    /// The shim, a static program: read-only at [`places::SHIM`].
    pub shim: PathBuf,
    /// The directory that holds `claude`: read-only at [`places::AGENT_DIR`].
    pub agent_dir: PathBuf,
    /// The directory that holds the gateway's socket: read-only at [`places::DOOR_DIR`].
    pub door_dir: PathBuf,
    /// The journal's volume: writable at [`places::JOURNAL_DIR`].
    pub journal_dir: PathBuf,
    /// The session's checkout: writable at [`places::WORKSPACE`].
    pub workspace_dir: PathBuf,
    /// The agent's home: writable at [`places::HOME`].
    pub home_dir: PathBuf,
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResourceLimits {
    /// Memory in bytes, swap included, so that none is swapped: [`MEMORY_BYTES_MIN`] to [`MEMORY_BYTES_MAX`].
    pub memory_bytes: u64,
    /// Processes and threads: [`PIDS_MIN`] to [`PIDS_MAX`].
    pub pids: u32,
    /// CPU time per second in thousandths of a core, [`CPU_MILLIS_MIN`] to [`CPU_MILLIS_MAX`]; more than the machine
    /// has means all it has.
    pub cpu_millis: u32,
    /// Size of `/tmp` in bytes, which counts as memory: [`TMP_BYTES_MIN`] to [`TMP_BYTES_MAX`].
    pub tmp_bytes: u64,
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self { memory_bytes: 2048 * MIB, pids: 512, cpu_millis: 2000, tmp_bytes: 512 * MIB }
    }
}

/// What is wrong with a specification.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The image's name.
    #[error(transparent)]
    Image(#[from] ImageNameError),
    /// An engine that makes sandboxes from images was given none.
    #[error("the engine makes sandboxes from images, and no image is named")]
    ImageMissing,
    /// An engine without images was given one.
    #[error(
        "image \"{image}\" cannot be used: the local engine has no images, its sandboxes see the host's own programs; leave the image out, or use the Docker engine"
    )]
    ImageUnsupported {
        /// The image that was asked for.
        image: String,
    },
    /// Only a server that is root can give a sandbox another user than its own.
    #[error("the sandbox is to run as {uid}:{gid}, but this server is not root and has another user")]
    ForeignUser {
        /// The user id asked for.
        uid: u32,
        /// The group id asked for.
        gid: u32,
    },
    /// A number outside its bounds.
    #[error("{limit} is {value}, but must be from {min} to {max}")]
    Limit {
        /// What it bounds.
        limit: &'static str,
        /// What was asked for.
        value: u64,
        /// The least allowed.
        min: u64,
        /// The most allowed.
        max: u64,
    },
    /// An entry of the environment.
    #[error("environment entry \"{name}\" {reason}")]
    Environment {
        /// The entry's name, cut if it is long.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path that is to be seen in the sandbox.
    #[error("mount {mount}: {path} {fault}", path = path.display())]
    Mount {
        /// Which of the [`Mounts`].
        mount: &'static str,
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong with it.
        fault: MountFault,
    },
    /// Another server's sandbox: this engine would make it, and never find it again.
    #[error("the sandbox is to belong to server {asked}, but the engine is used by server {own}")]
    Server {
        /// The server in the specification.
        asked: ServerId,
        /// The server that uses the engine.
        own: ServerId,
    },
    /// More than one of these.
    #[error("{}", told(.0))]
    Several(Vec<SpecError>),
}

/// What is wrong with a path that is to be seen in a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum MountFault {
    /// It is relative.
    #[error("is not an absolute path")]
    Relative,
    /// It is not UTF-8, and an engine's API is JSON.
    #[error("is not UTF-8")]
    NotText,
    /// It cannot be looked at, most often because it does not exist.
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// A file was expected.
    #[error("is not a regular file")]
    NotAFile,
    /// A directory was expected.
    #[error("is not a directory")]
    NotADirectory,
    /// What it means depends on where it is looked at from, and it is seen in a sandbox under the same name.
    #[error("has a part \"..\"; give it without")]
    Parent,
    /// It would show or cover what every sandbox has of its own.
    #[error("is, contains or lies in {0}, which every sandbox has of its own")]
    Own(&'static str),
    /// The server's own state and secrets are nothing for sandboxes.
    #[error("is, contains or lies in {hidden}, which no sandbox may see", hidden = .0.display())]
    Hidden(PathBuf),
    /// It is to be in a search path, whose parts colons separate.
    #[error("has a colon in its name, which no search path can hold")]
    Colon,
    /// Whoever can write to an engine's socket is root on the host.
    #[error("is or contains an engine's socket, {socket}", socket = .0.display())]
    EngineSocket(PathBuf),
    /// What is read-only at one place could be written at another.
    #[error("is writable and is or contains the source of mount {0}")]
    Overlaps(&'static str),
}

impl SpecError {
    /// All of them as one.
    ///
    /// # Errors
    /// The only one, or [`SpecError::Several`].
    pub(crate) fn all(mut faults: Vec<Self>) -> Result<(), Self> {
        match faults.pop() {
            None => Ok(()),
            Some(only) if faults.is_empty() => Err(only),
            Some(last) => {
                faults.push(last);
                Err(Self::Several(faults))
            }
        }
    }
}

fn told(faults: &[SpecError]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl SandboxSpec {
    /// Checks everything that can be checked without looking at the host.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        if let Some(image) = &self.image {
            check_image_name(image)?;
        }
        within("uid", self.uid.into(), 1, ID_MAX.into())?;
        within("gid", self.gid.into(), 1, ID_MAX.into())?;
        self.limits.validate()?;
        validate_environment(&self.environment)
    }
}

impl ResourceLimits {
    /// Checks every limit against its bounds.
    ///
    /// # Errors
    /// [`SpecError::Limit`] that names the first limit out of bounds.
    pub fn validate(&self) -> Result<(), SpecError> {
        within("memory_bytes", self.memory_bytes, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX)?;
        within("pids", self.pids.into(), PIDS_MIN.into(), PIDS_MAX.into())?;
        within("cpu_millis", self.cpu_millis.into(), CPU_MILLIS_MIN.into(), CPU_MILLIS_MAX.into())?;
        within("tmp_bytes", self.tmp_bytes, TMP_BYTES_MIN, TMP_BYTES_MAX)
    }
}

impl Mounts {
    /// Every mount: its name, its source, where it is seen, and whether the sandbox may write to it.
    pub(crate) fn entries(&self) -> [MountEntry<'_>; 6] {
        let entry = |name, source, target, access| MountEntry { name, source, target, access };
        [
            entry("shim", &self.shim, places::SHIM, Access::ReadOnly),
            entry("agent_dir", &self.agent_dir, places::AGENT_DIR, Access::ReadOnly),
            entry("door_dir", &self.door_dir, places::DOOR_DIR, Access::ReadOnly),
            entry("journal_dir", &self.journal_dir, places::JOURNAL_DIR, Access::Writable),
            entry("workspace_dir", &self.workspace_dir, places::WORKSPACE, Access::Writable),
            entry("home_dir", &self.home_dir, places::HOME, Access::Writable),
        ]
    }
}

/// One of the [`Mounts`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct MountEntry<'a> {
    pub(crate) name: &'static str,
    pub(crate) source: &'a Path,
    pub(crate) target: &'static str,
    pub(crate) access: Access,
}

impl MountEntry<'_> {
    /// Whether a file is expected, instead of a directory.
    pub(crate) fn is_file(&self) -> bool {
        self.target == places::SHIM
    }
}

/// What a sandbox may do with a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    Writable,
}

/// Checks a number against its bounds, both of which are allowed.
pub(crate) fn within(limit: &'static str, value: u64, min: u64, max: u64) -> Result<(), SpecError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(SpecError::Limit { limit, value, min, max }) }
}

fn validate_environment(environment: &[(String, String)]) -> Result<(), SpecError> {
    within("environment entries", environment.len() as u64, 0, ENVIRONMENT_ENTRIES as u64)?;
    let bytes: usize = environment.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    within("environment bytes", bytes as u64, 0, ENVIRONMENT_BYTES as u64)?;
    let mut seen = std::collections::HashSet::new();
    for (name, value) in environment {
        let fault = |reason| SpecError::Environment { name: name.chars().take(ECHO_CHARS).collect(), reason };
        let first_fits = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !first_fits || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(fault("has a name that is not letters, digits and underscores"));
        }
        if value.contains('\0') {
            return Err(fault("has a value with a NUL character"));
        }
        if name.len() + value.len() + 2 > ENTRY_BYTES {
            return Err(fault("is longer than Linux allows"));
        }
        if !seen.insert(name) {
            return Err(fault("is there twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        let path = PathBuf::from("/nowhere");
        SandboxSpec {
            id: SandboxId::new(1, [1; 10]),
            session: SessionId::new(1, [2; 10]),
            server: ServerId::new(1, [3; 10]),
            image: Some("debian:bookworm-slim".into()),
            uid: 1000,
            gid: 1000,
            mounts: Mounts {
                shim: path.clone(),
                agent_dir: path.clone(),
                door_dir: path.clone(),
                journal_dir: path.clone(),
                workspace_dir: path.clone(),
                home_dir: path,
            },
            environment: vec![("HOME".into(), places::HOME.into())],
            limits: ResourceLimits::default(),
        }
    }

    /// The name of the limit that `change` breaks, none if it is within bounds.
    fn broken_limit(change: impl FnOnce(&mut SandboxSpec)) -> Option<&'static str> {
        let mut spec = spec();
        change(&mut spec);
        match spec.validate() {
            Ok(()) => None,
            Err(SpecError::Limit { limit, .. }) => Some(limit),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn default_limits_are_two_gib_and_two_cores() {
        let limits = ResourceLimits::default();
        assert_eq!((limits.memory_bytes, limits.tmp_bytes), (2 << 30, 512 << 20));
        assert_eq!((limits.pids, limits.cpu_millis), (512, 2000));
        assert!(spec().validate().is_ok());
    }

    #[test]
    fn every_limit_holds_at_both_bounds() {
        type Set = fn(&mut SandboxSpec, u64);
        let cases: [(&str, u64, u64, Set); 6] = [
            ("memory_bytes", MEMORY_BYTES_MIN, MEMORY_BYTES_MAX, |s, v| s.limits.memory_bytes = v),
            ("pids", PIDS_MIN.into(), PIDS_MAX.into(), |s, v| s.limits.pids = v.try_into().unwrap()),
            ("cpu_millis", CPU_MILLIS_MIN.into(), CPU_MILLIS_MAX.into(), |s, v| {
                s.limits.cpu_millis = v.try_into().unwrap();
            }),
            ("tmp_bytes", TMP_BYTES_MIN, TMP_BYTES_MAX, |s, v| s.limits.tmp_bytes = v),
            ("uid", 1, ID_MAX.into(), |s, v| s.uid = v.try_into().unwrap()),
            ("gid", 1, ID_MAX.into(), |s, v| s.gid = v.try_into().unwrap()),
        ];
        for (name, min, max, set) in cases {
            assert_eq!(broken_limit(|s| set(s, min)), None, "{name} at its least");
            assert_eq!(broken_limit(|s| set(s, max)), None, "{name} at its most");
            assert_eq!(broken_limit(|s| set(s, min - 1)), Some(name), "{name} below its least");
            assert_eq!(broken_limit(|s| set(s, max + 1)), Some(name), "{name} above its most");
        }
    }

    #[test]
    fn the_environment_is_bounded_in_entries_and_bytes() {
        let entries = |n: usize| (0..n).map(|i| (format!("N{i}"), String::new())).collect();
        assert_eq!(broken_limit(|s| s.environment = entries(ENVIRONMENT_ENTRIES)), None);
        assert_eq!(
            broken_limit(|s| s.environment = entries(ENVIRONMENT_ENTRIES + 1)),
            Some("environment entries")
        );
        // Nine entries, "N0=…\0": eight of the longest and one that fills up the rest.
        let total = |bytes: usize| -> Vec<(String, String)> {
            let each = bytes / 9;
            let mut all: Vec<_> = (0..9).map(|i| (format!("N{i}"), "v".repeat(each - 4))).collect();
            all[8].1.push_str(&"v".repeat(bytes - 9 * each));
            all
        };
        assert_eq!(broken_limit(|s| s.environment = total(ENVIRONMENT_BYTES)), None);
        assert_eq!(broken_limit(|s| s.environment = total(ENVIRONMENT_BYTES + 1)), Some("environment bytes"));
    }

    #[test]
    fn environment_entries_that_no_process_could_get_are_refused() {
        let refused = |name: &str, value: &str| {
            let mut spec = spec();
            spec.environment.push((name.into(), value.into()));
            match spec.validate() {
                Err(SpecError::Environment { reason, .. }) => Some(reason),
                Err(other) => panic!("{other}"),
                Ok(()) => None,
            }
        };
        for name in ["", "A=B", "1A", "A B", "Ä", "A\0"] {
            assert_eq!(
                refused(name, "x"),
                Some("has a name that is not letters, digits and underscores"),
                "{name:?}"
            );
        }
        assert_eq!(refused("A", "x\0y"), Some("has a value with a NUL character"));
        assert_eq!(refused("HOME", "/"), Some("is there twice"));
        assert_eq!(refused("A", &"v".repeat(ENTRY_BYTES - 3)), None);
        assert_eq!(refused("A", &"v".repeat(ENTRY_BYTES - 2)), Some("is longer than Linux allows"));
        assert_eq!(refused("_a1", "line\nline = \"quoted\""), None);
    }

    #[test]
    fn an_image_name_is_checked_first() {
        let mut spec = spec();
        spec.image = Some("../x".into());
        assert!(matches!(spec.validate(), Err(SpecError::Image(_))));
    }
}
