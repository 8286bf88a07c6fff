//! What the attempts aim at, on this machine and outside of every sandbox.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use tempfile::TempDir;
use testkit::parts::Parts;
use testkit::world::MODEL_KEY;

use super::witness::{Witness, token};

/// The user of the controls, and of the process that is aimed at.
pub(super) const UID: u32 = 65_432;
/// The Python files of the attempts.
const FILES: [(&str, &str); 6] = [
    ("attempt.py", include_str!("attempts/attempt.py")),
    ("calls.py", include_str!("attempts/calls.py")),
    ("first.py", include_str!("attempts/first.py")),
    ("host.py", include_str!("attempts/host.py")),
    ("network.py", include_str!("attempts/network.py")),
    ("secrets_of_others.py", include_str!("attempts/secrets_of_others.py")),
];

/// Everything that attempts aim at. Dropping it ends its process and removes its files.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// What gets out arrives here.
    pub(crate) witness: Witness,
    values: HashMap<&'static str, String>,
    /// The attempts' files.
    attempts: PathBuf,
    outside: Outside,
    _engine_socket: UnixListener,
    _other_door: UnixListener,
    _directory: TempDir,
}

/// A process outside with a credential in its environment and its arguments.
#[derive(Debug)]
struct Outside(Child);

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Surroundings {
    /// Makes and starts everything.
    ///
    /// # Errors
    /// The disk or the system refuses.
    pub(crate) fn open(parts: &Parts) -> anyhow::Result<Self> {
        // Not in /tmp, of which each control has its own.
        let directory = tempfile::tempdir_in("/var/tmp")?;
        let root = directory.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        let attempts = root.join("attempts");
        write_attempts(&attempts)?;
        let (secret, config) = (root.join("credentials"), root.join("gitconfig"));
        fs::write(&secret, format!("key={MODEL_KEY}\n"))?;
        fs::write(
            &config,
            format!("[credential]\n\thelper = \"!printf 'username=x\\\\npassword={MODEL_KEY}\\\\n'\"\n"),
        )?;
        let agent = root.join("agent");
        fs::create_dir(&agent)?;
        fs::write(agent.join("shim"), "x")?;
        for path in [&agent, &agent.join("shim")] {
            chown(path, Some(UID), Some(UID))?;
        }
        for name in ["doors/own", "doors/other"] {
            fs::create_dir_all(root.join(name))?;
        }
        let other_door = UnixListener::bind(root.join("doors/other/door.sock"))?;
        let engine_path = root.join("engine.sock");
        let engine_socket = UnixListener::bind(&engine_path)?;
        let witness = Witness::start()?;
        let outside = Outside::start()?;
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a temporary path is not UTF-8");
        let values = HashMap::from([
            ("canary", MODEL_KEY.to_owned()),
            ("secret_file", text(&secret)?),
            ("git_config", text(&config)?),
            ("agent", text(&agent)?),
            ("doors", text(&root.join("doors"))?),
            ("engine_socket", parts.docker_host.trim_start_matches("unix://").to_owned()),
            ("pid", outside.0.id().to_string()),
            ("port", witness.port.to_string()),
            ("port6", witness.port6.to_string()),
            ("udp_port", witness.udp_port.to_string()),
            ("abstract", witness.name.clone()),
            ("host", address_of_this_machine()?),
            ("python", text(&Path::new("/usr/bin/python3").canonicalize()?)?),
        ]);
        Ok(Self {
            witness,
            values,
            attempts,
            outside,
            _engine_socket: engine_socket,
            _other_door: other_door,
            _directory: directory,
        })
    }

    /// What is filled into the arguments of an attempt on one side; the sides have different words.
    pub(crate) fn values(&self, attempt: &str, side: &str) -> HashMap<&'static str, String> {
        let mut values = self.values.clone();
        values.insert("token", token(attempt, side));
        values
    }

    /// The directory of the attempts' files.
    pub(crate) fn attempts(&self) -> &Path {
        &self.attempts
    }

    /// Whether the process that is aimed at still lives, as it must.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let line = fs::read(format!("/proc/{}/cmdline", self.outside.0.id())).unwrap_or_default();
        anyhow::ensure!(!line.is_empty(), "the process outside was ended by an attempt");
        Ok(())
    }
}

impl Outside {
    fn start() -> anyhow::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "a process to aim at, with an argument vector")]
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", "import time; time.sleep(3600)", MODEL_KEY])
            .env_clear()
            .env("HELD", MODEL_KEY)
            .stdin(Stdio::null())
            .uid(UID)
            .gid(UID);
        Ok(Self(command.spawn().context("python3 cannot be started")?))
    }
}

/// Writes the attempts' files.
///
/// # Errors
/// The disk refuses.
pub(crate) fn write_attempts(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    for (name, text) in FILES {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// An address of this machine that is not loopback; where it has none, loopback's second one.
fn address_of_this_machine() -> anyhow::Result<String> {
    let probe = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // Connecting sends nothing: it only asks which address would be used.
    let routed = probe.connect(("192.0.2.1", 9)).and_then(|()| probe.local_addr());
    Ok(routed.map_or_else(|_| "127.0.0.2".to_owned(), |address| address.ip().to_string()))
}
