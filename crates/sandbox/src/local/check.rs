//! Whether this machine can make sandboxes that are safe, and what is weaker here than it could be.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::process::Command;

use super::bubblewrap::{Host, probe_arguments};
use super::cgroup::Controllers;
use super::order::{Answer, Errand};
use super::{HOST, LocalEngine};
use crate::{EngineError, SHARED_UID};

/// Oldest bubblewrap that will do: the first with `--disable-userns`.
const BUBBLEWRAP_MIN: (u32, u32) = (0, 8);
/// How long a probe may take, in seconds.
const PROBE_S: u64 = 20;
/// Where bubblewrap is looked for; no variable of the environment is asked.
const SEARCH: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];
/// Most of what bubblewrap says that an error repeats, in bytes.
const SAID_BYTES: usize = 500;
/// Whom the probe runs as where the server is root; it touches nothing.
const NOBODY: u32 = 65_534;

/// What this machine can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCapabilities {
    /// Bubblewrap's version.
    pub bubblewrap_version: String,
    /// What keeps a sandbox within its limits.
    pub limits: LimitsBy,
    /// Whether each session has a user of its own. If not, sandboxes have the server's uid, and only the namespaces keep them
    /// apart from it and from one another.
    pub own_uids: bool,
}

/// What keeps a sandbox within its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitsBy {
    /// Control groups: memory, processes and CPU of the whole sandbox.
    ControlGroups {
        /// Version 1 or 2.
        version: u8,
        /// What of them is weaker than it could be, for people.
        weakness: Option<String>,
    },
    /// Limits of single processes, which is weaker: memory is bounded for each process by itself and not for the sandbox, CPU is not
    /// bounded, and want of memory is not told from other ends.
    ProcessLimits {
        /// Why no control group can be had.
        reason: String,
    },
}

impl LocalCapabilities {
    /// What is weaker here than it could be, one sentence each, for people.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<String> {
        weaknesses(&self.limits, self.own_uids)
    }
}

/// Whether each session has a user of its own: only root can give it one.
pub(super) fn own_uids() -> bool {
    geteuid().is_root()
}

pub(super) fn weaknesses(limits: &LimitsBy, own_uids: bool) -> Vec<String> {
    let mut found = Vec::new();
    if !own_uids {
        found.push(SHARED_UID.to_owned());
    }
    match limits {
        LimitsBy::ControlGroups { weakness, .. } => found.extend(weakness.clone()),
        LimitsBy::ProcessLimits { reason } => found.push(format!(
            "no control groups ({reason}): memory is limited for each process, but for shared memory, and not for the sandbox, and CPU is not limited"
        )),
    }
    found
}

impl LocalEngine {
    /// Looks at what this machine can do; the answer is kept once it is good. What has changed since is seen by
    /// [`LocalEngine::look`] alone.
    ///
    /// # Errors
    /// As [`LocalEngine::look`].
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn check(&self) -> Result<LocalCapabilities, EngineError> {
        self.fitness.get_or_try_init(|| self.look()).await.cloned()
    }

    /// Looks at what this machine can do now, which takes milliseconds: bubblewrap may be removed, and the kernel be told
    /// otherwise, while a server runs.
    ///
    /// # Errors
    /// [`EngineError::Unfit`] if it cannot make sandboxes that are safe.
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn look(&self) -> Result<LocalCapabilities, EngineError> {
        let bubblewrap_version = version(&self.bubblewrap).await?;
        probe(&self.bubblewrap).await?;
        self.probe_mounts().await?;
        Ok(LocalCapabilities { bubblewrap_version, limits: self.limits(), own_uids: own_uids() })
    }

    /// Has a supervisor make its namespaces, since other programs than bubblewrap may be kept from it.
    async fn probe_mounts(&self) -> Result<(), EngineError> {
        match self.send(&Errand::Try, "a-try", &self.config.records_dir).await? {
            Answer::Ready => Ok(()),
            Answer::Failed(found) => Err(EngineError::Unfit {
                need: "a kernel on which this program may make namespaces and mount in them",
                found,
                remedy: if own_uids() {
                    "give this root CAP_SYS_ADMIN in its own namespaces, or run the server as an ordinary user, or use the Docker engine"
                } else {
                    "allow user namespaces to caisson as to bubblewrap (an AppArmor profile for it on Ubuntu 24.04), or use the Docker engine"
                },
            }),
        }
    }

    pub(super) fn limits(&self) -> LimitsBy {
        match self.controllers() {
            Controllers::V1(_) => LimitsBy::ControlGroups { version: 1, weakness: None },
            Controllers::V2 { weakness, .. } => {
                LimitsBy::ControlGroups { version: 2, weakness: weakness.clone() }
            }
            Controllers::None { reason } => LimitsBy::ProcessLimits { reason: reason.clone() },
        }
    }
}

/// The first bubblewrap of the system, or the name that an error is to tell.
pub(super) fn find_bubblewrap() -> PathBuf {
    let places = SEARCH.iter().map(|directory| Path::new(directory).join("bwrap"));
    places.clone().find(|place| place.is_file()).unwrap_or_else(|| Path::new(SEARCH[0]).join("bwrap"))
}

async fn version(bubblewrap: &Path) -> Result<String, EngineError> {
    let unfit = |found: String| EngineError::Unfit {
        need: "bubblewrap 0.8 or a later one",
        found,
        remedy: "install the package bubblewrap, or name it by local.bubblewrap",
    };
    let output = run(bubblewrap, &["--version"], None).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            return unfit(format!("none at {}", bubblewrap.display()));
        }
        unfit(error.to_string())
    })?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let number = text.rsplit(' ').next().unwrap_or_default().to_owned();
    if parse_version(&number).is_some_and(|version| version >= BUBBLEWRAP_MIN) {
        Ok(number)
    } else {
        Err(unfit(text))
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Makes the emptiest sandbox there is, as the kind of user that a real one has.
async fn probe(bubblewrap: &Path) -> Result<(), EngineError> {
    let arguments = probe_arguments(&Host::look());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let user = geteuid().is_root().then_some(NOBODY);
    let found = match run(bubblewrap, &arguments, user).await {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            said.chars().take(SAID_BYTES).collect()
        }
        Err(error) => error.to_string(),
    };
    Err(EngineError::Unfit {
        need: "a kernel on which the sandboxes' user may make user namespaces",
        found,
        remedy: "allow them (user.max_user_namespaces above 0; kernel.unprivileged_userns_clone=1 on older Debian; an AppArmor profile for bwrap on Ubuntu 24.04), or use the Docker engine",
    })
}

async fn run(program: &Path, arguments: &[&str], user: Option<u32>) -> std::io::Result<std::process::Output> {
    #[expect(clippy::disallowed_methods, reason = "bubblewrap is asked here, with an argument vector")]
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    tokio::time::timeout(Duration::from_secs(PROBE_S), command.output()).await.map_err(|_| {
        std::io::Error::other(format!("{} on {HOST} did not end in {PROBE_S} s", program.display()))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bubblewrap_0_8_is_the_oldest() {
        for (text, fit) in
            [("0.8.0", true), ("0.11.0", true), ("1.0", true), ("0.7.9", false), ("", false), ("x.y", false)]
        {
            assert_eq!(parse_version(text).is_some_and(|version| version >= BUBBLEWRAP_MIN), fit, "{text}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_missing_or_another_one_is_told_with_the_remedy() {
        for (program, found) in [("/does/not/exist", "none at /does/not/exist"), ("/bin/true", "")] {
            let error = version(Path::new(program)).await.unwrap_err();
            let EngineError::Unfit { found: told, remedy, .. } = &error else { panic!("{error}") };
            assert!(told.contains(found) && remedy.contains("install"), "{error}");
        }
        let error = probe(Path::new("/bin/false")).await.unwrap_err();
        assert!(error.to_string().contains("user namespaces"), "{error}");
    }

    #[test]
    fn what_is_weaker_is_said_in_full() {
        let strong = LocalCapabilities {
            bubblewrap_version: "0.8.0".to_owned(),
            limits: LimitsBy::ControlGroups { version: 2, weakness: None },
            own_uids: true,
        };
        assert!(strong.weaknesses().is_empty());
        let limits = LimitsBy::ControlGroups { version: 2, weakness: Some("not its own".to_owned()) };
        assert_eq!(LocalCapabilities { limits, ..strong.clone() }.weaknesses(), ["not its own"]);
        let limits = LimitsBy::ProcessLimits { reason: "not delegated".to_owned() };
        let weak = LocalCapabilities { limits, own_uids: false, ..strong };
        assert_eq!(weak.weaknesses().len(), 2);
        assert!(weak.weaknesses()[1].contains("not delegated"));
    }
}
