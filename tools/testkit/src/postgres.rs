//! A database of a test's own on the `PostgreSQL` server for tests, behind a relay that can be cut.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::partition::Way;
use anyhow::{Context, ensure};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where the server is, as `scripts/setup` writes it down.
const URL: &str = "TEST_POSTGRES_URL";

/// A schema of its own and the way to it. Dropping it removes both.
#[derive(Debug)]
pub struct Postgres {
    url: String,
    schema: String,
    socket: PathBuf,
    port: u16,
    reachable: Arc<watch::Sender<bool>>,
    relay: JoinHandle<()>,
}

impl Postgres {
    /// Makes a schema; none, and a word about it, where there is no server.
    ///
    /// # Errors
    /// The server does not answer.
    /// # Panics
    /// There is no server and all parts are required.
    #[expect(clippy::disallowed_methods, reason = "the relay's task is held")]
    pub async fn make() -> anyhow::Result<Option<Self>> {
        let Some(url) = server() else { return Ok(None) };
        let socket =
            url.split_once("?host=").map(|(_, directory)| Path::new(directory).join(".s.PGSQL.5432"));
        let socket = socket.with_context(|| format!("{URL} names no socket"))?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let schema = format!("e2e_{}_{port}", std::process::id());
        psql(&url, &format!("create schema {schema}"))?;
        let reachable = Arc::new(watch::Sender::new(true));
        let relay = tokio::spawn(relay(listener, socket.clone(), Arc::clone(&reachable)));
        Ok(Some(Self { url, schema, socket, port, reachable, relay }))
    }

    /// The URL for a server's settings.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// The URL for the settings of a server that goes its own way.
    #[must_use]
    pub fn url_by(&self, way: &Way) -> String {
        self.url_at(way.port())
    }

    /// Another way to the database, which can be cut by itself.
    ///
    /// # Errors
    /// No port is free.
    pub async fn way(&self) -> anyhow::Result<Way> {
        Way::to(&self.socket).await
    }

    fn url_at(&self, port: u16) -> String {
        let schema = &self.schema;
        format!("postgres://caisson@127.0.0.1:{port}/postgres?sslmode=disable&options[search_path]={schema}")
    }

    /// The URL past the relay, for what is measured.
    #[must_use]
    pub fn direct_url(&self) -> String {
        format!("{}&options[search_path]={}", self.url, self.schema)
    }

    /// Cuts every connection and takes no new one, as a database does that is restarted; or takes them again.
    pub fn set_reachable(&self, reachable: bool) {
        self.reachable.send_replace(reachable);
    }

    /// Reads one value, past the relay.
    ///
    /// # Errors
    /// The query fails.
    pub fn value(&self, sql: &str) -> anyhow::Result<String> {
        psql(&self.url, &format!("set search_path = {}; {sql}", self.schema))
    }

    /// Everything that is in it, as text.
    ///
    /// # Errors
    /// `pg_dump` fails.
    pub fn dump(&self) -> anyhow::Result<String> {
        program("pg_dump", &["--schema", &self.schema, &self.url])
    }

    /// Puts what was dumped of the schema `from` into this one, which is empty.
    ///
    /// # Errors
    /// It is not taken.
    pub fn load(&self, dump: &str, from: &str) -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        let dump = dump.replace(&format!("CREATE SCHEMA {from};"), "");
        file.write_all(dump.replace(&format!("{from}."), &format!("{}.", self.schema)).as_bytes())?;
        let file = file.path().to_str().context("a path that is no text")?;
        program("psql", &["-qAt", "-v", "ON_ERROR_STOP=1", "-f", file, &self.url]).map(drop)
    }

    /// Another one with the same in it.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn copy(&self) -> anyhow::Result<Self> {
        let copy = Self::make().await?.context("there is no PostgreSQL server for tests")?;
        copy.load(&self.dump()?, &self.schema)?;
        Ok(copy)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.relay.abort();
        self.reachable.send_replace(false);
        let cut = "set lock_timeout = '10s'";
        drop(psql(&self.url, &format!("{cut}; drop schema {} cascade", self.schema)));
    }
}

/// Whether there is a server for tests; a word about it where there is none.
///
/// # Panics
/// There is none and all parts are required.
#[must_use]
pub fn is_there() -> bool {
    server().is_some()
}

#[expect(clippy::disallowed_methods, reason = "the test kit asks where parts are")]
fn server() -> Option<String> {
    let url = std::env::var(URL).ok();
    if url.is_none() {
        let missing = format!("{URL} is not set; run scripts/setup, then scripts/postgres start");
        assert!(std::env::var("TEST_REQUIRE").is_err(), "{missing}");
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: {missing}");
        }
    }
    url
}

fn psql(url: &str, sql: &str) -> anyhow::Result<String> {
    program("psql", &["-qAt", "-v", "ON_ERROR_STOP=1", "-c", sql, url])
}

/// What one of the server's programs prints.
fn program(name: &str, arguments: &[&str]) -> anyhow::Result<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the server's programs are started here, with argument vectors"
    )]
    let output = std::process::Command::new(name).args(arguments).output()?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

async fn relay(listener: TcpListener, socket: PathBuf, reachable: Arc<watch::Sender<bool>>) {
    while let Ok((client, _)) = listener.accept().await {
        if *reachable.borrow() {
            #[expect(clippy::disallowed_methods, reason = "each connection ends with either of its ends")]
            drop(tokio::spawn(carry(client, socket.clone(), reachable.subscribe())));
        }
    }
}

async fn carry(mut client: TcpStream, socket: PathBuf, mut reachable: watch::Receiver<bool>) {
    // As the server does it itself: else the end of a long answer waits for the client's word about its beginning.
    client.set_nodelay(true).ok();
    let Ok(mut server) = UnixStream::connect(&socket).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = reachable.wait_for(|reachable| !reachable) => {}
    }
}
