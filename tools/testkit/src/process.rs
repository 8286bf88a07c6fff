//! The real server as a process: started with a clean environment, killed with SIGKILL, started again on the same
//! state directory.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::api::Api;
use crate::engine::signal;
use crate::parts::Parts;
use crate::ports;

/// How long a server may take until it is ready.
const READY: Duration = Duration::from_secs(30);

/// How to start a server.
#[derive(Debug, Clone)]
pub struct ServerSpec {
    /// Outside parts.
    pub parts: Parts,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// `host:port` of the API.
    pub listen: String,
    /// Further `CAISSON_*` variables.
    pub variables: Vec<(String, String)>,
    /// Who runs it, if not whoever runs the test.
    pub user: Option<Somebody>,
    /// What it reads for `/etc/resolv.conf`, if not that; it has mounts of its own then, but for those below its state
    /// directory.
    pub resolver: Option<PathBuf>,
    /// Which parts of a server it is; all of them if none is named.
    pub only: Vec<&'static str>,
}

/// Mounts a file over another and becomes a program; `/` is nobody else's there, so that nobody else sees it.
const WITH_RESOLVER: &str =
    r#"mount --make-private / && mount --bind "$1" /etc/resolv.conf && shift && exec "$@""#;

/// An ordinary user. Only root can run a server as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Somebody {
    /// Its uid, and its gid.
    pub uid: u32,
    /// A further group, such as the one that may use the engine's socket.
    pub group: Option<u32>,
}

impl ServerSpec {
    /// A server on a free port with the given model API and no repository allowed.
    ///
    /// # Errors
    /// No port is free.
    pub fn new(parts: &Parts, state_dir: &Path, model_url: &str) -> anyhow::Result<Self> {
        let port = ports::free()?;
        let mut spec = Self {
            parts: parts.clone(),
            state_dir: state_dir.to_owned(),
            listen: format!("127.0.0.1:{port}"),
            variables: Vec::new(),
            user: None,
            resolver: None,
            only: Vec::new(),
        };
        spec.set("MODEL__BASE_URL", model_url);
        spec.set("MODEL__API_KEY", "sk-test-key");
        // A test machine may be short of space without the test meaning to show it.
        spec.set("MIN_FREE_DISK_MIB", "64");
        Ok(spec)
    }

    /// Sets `CAISSON_<name>`.
    pub fn set(&mut self, name: &str, value: &str) {
        let name = format!("CAISSON_{name}");
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.to_owned()));
    }

    /// A `caisson` command with the server's environment and nothing else.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        // Each becomes the next, so that the server's process id is that of the first.
        let mut words: Vec<OsString> = Vec::new();
        if let Some(resolver) = &self.resolver {
            let own_mounts =
                ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", WITH_RESOLVER, "sh"];
            words.extend(own_mounts.map(OsString::from));
            words.push(resolver.into());
        }
        if let Some(user) = &self.user {
            let groups = user.group.map_or("--clear-groups".to_owned(), |group| format!("--groups={group}"));
            let (uid, gid) = (format!("--reuid={}", user.uid), format!("--regid={}", user.uid));
            words.extend(["setpriv".to_owned(), uid, gid, groups, "--".to_owned()].map(OsString::from));
        }
        words.push(self.parts.caisson.clone().into());
        #[expect(clippy::disallowed_methods, reason = "the server is started here, with an argument vector")]
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", "/nonexistent")
            .env("DOCKER_HOST", &self.parts.docker_host)
            .env("CAISSON_AGENTS_DIR", &self.parts.agents_dir)
            .env("CAISSON_SHIM", &self.parts.shim)
            .env("CAISSON_STATE_DIR", &self.state_dir)
            .env("CAISSON_LISTEN", &self.listen)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Makes an API key with the binary.
    ///
    /// # Errors
    /// The command fails.
    pub fn create_key(&self) -> anyhow::Result<String> {
        self.key_of(&["key", "create", "test"])
    }

    /// Makes an API key with one scope, that has its name.
    ///
    /// # Errors
    /// The command fails.
    pub fn create_key_with(&self, scope: &str) -> anyhow::Result<String> {
        self.key_of(&["key", "create", scope, "--scope", scope])
    }

    fn key_of(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(arguments).output()?;
        ensure!(output.status.success(), "key create failed: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        text.split_whitespace()
            .find(|word| word.starts_with("csk_"))
            .map(str::to_owned)
            .context("key create printed no key")
    }

    /// Starts the server and waits until it says that it is ready.
    ///
    /// # Errors
    /// It ends or does not become ready; the error holds its log.
    pub async fn start(&self) -> anyhow::Result<ServerProcess> {
        let server = self.spawn()?;
        server.wait_ready().await?;
        Ok(server)
    }

    /// Starts the server without waiting.
    ///
    /// # Errors
    /// The binary cannot be started.
    pub fn spawn(&self) -> anyhow::Result<ServerProcess> {
        std::fs::create_dir_all(&self.state_dir)?;
        let log_file = self.state_dir.join(format!("server{}.log", self.only.concat()));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_file)?;
        let mut words = vec!["serve"];
        for part in &self.only {
            words.extend(["--only", part]);
        }
        let child = self.command(&words).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(ServerProcess { child: Some(child), base: format!("http://{}", self.listen), log_file })
    }
}

/// A living server process. Dropping it kills it.
#[derive(Debug)]
pub struct ServerProcess {
    child: Option<Child>,
    /// The API's base URL.
    pub base: String,
    /// Where its output goes.
    pub log_file: PathBuf,
}

impl ServerProcess {
    /// The process's id; 0 after it was ended.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Everything it printed, over restarts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// It does not in 30 s; the error holds the log's end.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        let api = Api::new(&self.base, "none")?;
        let start = Instant::now();
        let mut last = String::new();
        while start.elapsed() < READY {
            match api.get("/readyz").await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = answer.body.to_string(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = self.log();
        let tail: Vec<_> = log.lines().rev().take(20).collect();
        bail!("the server is not ready: {last}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Kills it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Waits until it ends by itself and returns its exit status.
    ///
    /// # Errors
    /// It does not, for so long.
    pub async fn ended(&mut self, at_most: Duration) -> anyhow::Result<std::process::ExitStatus> {
        let child = self.child.as_mut().context("the server is not running")?;
        let start = Instant::now();
        while start.elapsed() < at_most {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the server did not end in {at_most:?}")
    }

    /// Asks it to end by SIGTERM and returns its exit status.
    ///
    /// # Errors
    /// It does not end in 20 s.
    pub async fn terminate(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("the server is not running")?;
        signal(child.id(), "TERM")?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        child.kill()?;
        bail!("the server did not end in 20 s after SIGTERM")
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill().ok();
    }
}
