//! A `PostgreSQL` cluster of a test's own: for tests that stop it, fill its disk or take its connections.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

/// Makes and runs clusters.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/postgres");
/// Tells that the machine has `PostgreSQL`.
const URL: &str = "TEST_POSTGRES_URL";

/// A cluster, which goes when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    options: String,
    mounted: Option<PathBuf>,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Makes a cluster with further options of its server and starts it; on a disk of its own of so many MiB if that is
    /// given, which needs root. None, and a word about it, where the machine has no `PostgreSQL` for tests.
    ///
    /// # Errors
    /// It does not start, or the disk cannot be mounted.
    /// # Panics
    /// There is no `PostgreSQL` and all parts are required.
    #[expect(clippy::disallowed_methods, reason = "the test kit asks where parts are")]
    pub fn make(options: &str, disk_mib: Option<u32>) -> anyhow::Result<Option<Self>> {
        if std::env::var(URL).is_err() {
            let missing = format!("{URL} is not set; run scripts/setup");
            assert!(std::env::var("TEST_REQUIRE").is_err(), "{missing}");
            #[expect(clippy::print_stderr, reason = "a skipped test says so")]
            {
                eprintln!("SKIPPED: {missing}");
            }
            return Ok(None);
        }
        let directory = tempfile::tempdir()?;
        // The server is another user's process.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let mut cluster = Self { options: options.to_owned(), mounted: None, directory };
        if let Some(mib) = disk_mib {
            let place = cluster.directory.path().join("disk");
            std::fs::create_dir(&place)?;
            let size = format!("size={mib}m,mode=755");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&place))?;
            cluster.mounted = Some(place);
        }
        cluster.start()?;
        Ok(Some(cluster))
    }

    /// Where the cluster is.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.mounted.clone().unwrap_or_else(|| self.directory.path().to_owned()).join("pg")
    }

    /// The URL for a server's settings.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://caisson@localhost/postgres?host={}", self.home().join("socket").display())
    }

    /// Starts it, if it does not run.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self) -> anyhow::Result<()> {
        run(&mut self.script("start"))
    }

    /// Stops it as an administrator does who does not wait for anybody.
    ///
    /// # Errors
    /// It does not stop.
    pub fn stop(&self) -> anyhow::Result<()> {
        run(&mut self.script("stop"))
    }

    /// Reads one value.
    ///
    /// # Errors
    /// The query fails.
    pub fn value(&self, sql: &str) -> anyhow::Result<String> {
        let output = self.psql(sql).output()?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Takes a connection for as long as the answer lives.
    ///
    /// # Errors
    /// `psql` cannot be started.
    pub fn occupy(&self) -> anyhow::Result<Occupied> {
        self.background("select pg_sleep(600)")
    }

    /// Takes a connection for as long as the answer lives, and runs something on it.
    ///
    /// # Errors
    /// `psql` cannot be started.
    pub fn background(&self, sql: &str) -> anyhow::Result<Occupied> {
        let mut running = self.psql(sql);
        Ok(Occupied(running.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    /// Takes the cluster's log, as a standby does, for as long as the answer lives, and keeps it in a directory. The cluster's
    /// options must allow that.
    ///
    /// # Errors
    /// `pg_receivewal` cannot be started.
    #[expect(clippy::disallowed_methods, reason = "the program is started here, with an argument vector")]
    pub fn standby(&self, directory: &Path) -> anyhow::Result<Occupied> {
        let mut command = Command::new("pg_receivewal");
        command.args(["--no-loop", "--username=caisson", "--directory"]).arg(directory);
        command.arg("--host").arg(self.home().join("socket"));
        Ok(Occupied(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    #[expect(clippy::disallowed_methods, reason = "psql is started here, with an argument vector")]
    fn psql(&self, sql: &str) -> Command {
        let mut command = Command::new("psql");
        command.args(["-qAt", "-v", "ON_ERROR_STOP=1", "-c", sql]).arg(self.url());
        command
    }

    #[expect(clippy::disallowed_methods, reason = "the script is started here, with an argument vector")]
    fn script(&self, action: &str) -> Command {
        let mut command = Command::new(Path::new(SCRIPT));
        command
            .arg(action)
            .env("TEST_POSTGRES_HOME", self.home())
            .env("TEST_POSTGRES_OPTIONS", &self.options)
            // The server outlives the script, and must not hold what its output is read from.
            .stdout(Stdio::null());
        command
    }
}

/// A connection that is taken.
#[derive(Debug)]
pub struct Occupied(Child);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop().ok();
        if let Some(place) = &self.mounted {
            #[expect(clippy::disallowed_methods, reason = "umount is started here, with an argument vector")]
            let mut unmount = Command::new("umount");
            run(unmount.arg("--lazy").arg(place)).ok();
        }
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status =
        command.stdin(Stdio::null()).status().context("a program of the test kit cannot be started")?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
