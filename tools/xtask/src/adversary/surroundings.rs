//! What the attempts aim at, on this machine and outside of every sandbox.

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;
use testkit::parts::Parts;
use testkit::world::MODEL_KEY;

use super::framing;
use super::names::Names;
use super::witness::{Witness, token};

/// The user of the controls, and of the process that is aimed at.
pub(super) const UID: u32 = 65_432;
/// The Python files of the attempts.
const FILES: [(&str, &str); 17] = [
    ("attempt.py", include_str!("attempts/attempt.py")),
    ("calls.py", include_str!("attempts/calls.py")),
    ("door.py", include_str!("attempts/door.py")),
    ("door_calls.py", include_str!("attempts/door_calls.py")),
    ("egress.py", include_str!("attempts/egress.py")),
    ("first.py", include_str!("attempts/first.py")),
    ("framing.py", include_str!("attempts/framing.py")),
    ("host.py", include_str!("attempts/host.py")),
    ("mcp.py", include_str!("attempts/mcp.py")),
    ("network.py", include_str!("attempts/network.py")),
    ("pushes.py", include_str!("attempts/pushes.py")),
    ("record.py", include_str!("attempts/record.py")),
    ("resources.py", include_str!("attempts/resources.py")),
    ("secrets_of_others.py", include_str!("attempts/secrets_of_others.py")),
    ("server.py", include_str!("attempts/server.py")),
    ("sibling.py", include_str!("attempts/sibling.py")),
    ("siblings.py", include_str!("attempts/siblings.py")),
];
/// How long a sibling lives if nobody ends it, in seconds; longer than all attempts on both engines take on a busy machine.
const SIBLING_S: &str = "7200";
/// How long a sibling may take until it listens.
const READY: Duration = Duration::from_secs(20);

/// Everything that attempts aim at. Dropping it ends its process and removes its files.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// What gets out arrives here.
    pub(crate) witness: Witness,
    /// Names that lead elsewhere from one look-up to the next.
    pub(crate) names: Names,
    /// Where a careless reader of HTTP listens.
    pub(crate) framed: u16,
    values: HashMap<&'static str, String>,
    /// The attempts' files.
    attempts: PathBuf,
    outside: Outside,
    _engine_socket: UnixListener,
    _other_door: UnixListener,
    _directory: TempDir,
}

/// A process outside with a credential in its environment, its memory and its arguments; what a sibling and a server are in a
/// sandbox's surroundings, it is in a control's.
#[derive(Debug)]
struct Outside(Child);

impl Drop for Outside {
    fn drop(&mut self) {
        // It takes away what it has in the kernel.
        testkit::engine::signal(self.0.id(), "TERM").ok();
        self.0.wait().ok();
    }
}

/// How to reach a sibling, besides its process.
#[derive(Debug, Clone)]
pub(crate) struct Sibling {
    pub(crate) port: u16,
    pub(crate) name: String,
    pub(crate) key: u32,
}

impl Sibling {
    /// One that no other has been.
    ///
    /// # Errors
    /// No port is free.
    pub(crate) fn new(side: &str) -> anyhow::Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let name = format!("caisson-sibling-{side}-{}", std::process::id());
        Ok(Self { port, name, key: 0x00ca_0000 + u32::from(port) })
    }

    /// Its command line, without the program; `place` is where it keeps its files.
    pub(crate) fn arguments(&self, place: &str) -> Vec<String> {
        let (port, key) = (self.port.to_string(), self.key.to_string());
        vec![port, self.name.clone(), key, place.to_owned(), SIBLING_S.to_owned()]
    }

    /// What is filled in for it.
    pub(crate) fn values(&self) -> [(&'static str, String); 3] {
        [
            ("sibling_port", self.port.to_string()),
            ("sibling_name", self.name.clone()),
            ("sibling_key", self.key.to_string()),
        ]
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
        for name in ["doors/door", "doors/other", "sibling", "state"] {
            fs::create_dir_all(root.join(name))?;
        }
        chown(root.join("sibling"), Some(UID), Some(UID))?;
        let other_door = UnixListener::bind(root.join("doors/other/door.sock"))?;
        let engine_path = root.join("engine.sock");
        let engine_socket = open_to_all(&engine_path)?;
        let engine = docker_socket(parts)?;
        let witness = Witness::start()?;
        let (names, framed) = (Names::start(root, &witness.heard)?, framing::listen(&witness.heard)?);
        let sibling = Sibling::new("outside")?;
        let outside = Outside::start(&sibling, &attempts, &root.join("sibling"))?;
        let pid = outside.0.id().to_string();
        let mut values = HashMap::from([
            ("canary", MODEL_KEY.to_owned()),
            ("secret_file", text(&secret)?),
            ("git_config", text(&config)?),
            ("agent", text(&agent)?),
            ("doors", text(&root.join("doors"))?),
            ("engine_socket", text(&engine_path)?),
            ("root", text(root)?),
            ("docker_place", text(engine.parent().context("the engine's socket has a directory")?)?),
            ("docker_socket", text(&engine)?),
            ("home_of_root", identity("/root")?),
            ("password_hashes", identity("/etc/shadow")?),
            ("pid", pid.clone()),
            ("server_pid", pid.clone()),
            ("sibling_pid", pid),
            ("sibling_file", text(&root.join("sibling/sibling-secret"))?),
            ("sibling_socket", text(&root.join("sibling/sibling.sock"))?),
            ("sibling_door", text(&root.join("doors/other/door.sock"))?),
            ("state_dir", text(&root.join("state"))?),
            ("api_port", witness.port.to_string()),
            ("port", witness.port.to_string()),
            ("port6", witness.port6.to_string()),
            ("udp_port", witness.udp_port.to_string()),
            ("abstract", witness.name.clone()),
            ("host", address_of_this_machine()?),
            ("python", text(&Path::new("/usr/bin/python3").canonicalize()?)?),
            ("setpriv", text(&Path::new("/usr/bin/setpriv").canonicalize()?)?),
        ]);
        values.extend(sibling.values());
        Ok(Self {
            witness,
            names,
            framed,
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
    fn start(sibling: &Sibling, attempts: &Path, place: &Path) -> anyhow::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "a process to aim at, with an argument vector")]
        let mut command = Command::new("/usr/bin/python3");
        command
            .arg(attempts.join("sibling.py"))
            .args(sibling.arguments(&text(place)?))
            .arg(MODEL_KEY)
            .env_clear()
            .env("HELD", MODEL_KEY)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .uid(UID)
            .gid(UID);
        let started = Self(command.spawn().context("python3 cannot be started")?);
        let start = Instant::now();
        while !place.join("sibling-ready").exists() {
            anyhow::ensure!(start.elapsed() < READY, "the process to aim at did not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(started)
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).context("a path is not UTF-8")
}

/// A socket that anybody may connect to.
fn open_to_all(path: &Path) -> anyhow::Result<UnixListener> {
    let socket = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}

/// Where the engine listens, links resolved.
fn docker_socket(parts: &Parts) -> anyhow::Result<PathBuf> {
    let path = parts.docker_host.trim_start_matches("unix://");
    Path::new(path).canonicalize().with_context(|| format!("no engine listens on {path}"))
}

/// What tells a file of this machine from one of the same name.
fn identity(path: &str) -> anyhow::Result<String> {
    let found = fs::symlink_metadata(path).with_context(|| format!("this machine has no {path}"))?;
    Ok(format!("{}:{}", found.dev(), found.ino()))
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
