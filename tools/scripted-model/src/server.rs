//! Starting, asking and stopping a scripted model.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::catalogue::{Catalogue, CatalogueError};
use crate::delivery::DelayScale;
use crate::gathering::Gathering;
use crate::key::KeyDigest;
use crate::listen::{Doorkeeper, MAX_CONNECTIONS};
use crate::record::{Record, Witness};
use crate::respond::{Responder, router};

/// Anybody on the machine may connect: in a container the agent has another uid than the server.
const SOCKET_MODE: u32 = 0o666;
/// The base URL of a server without TCP; the name is never looked up.
const UNIX_BASE_URL: &str = "http://scripted.model";

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// TCP address; port 0 takes a free one. `None` listens on the unix socket only.
    pub listen: Option<SocketAddr>,
    /// Path of a unix socket to listen on too. A socket left there by another process is replaced.
    pub unix: Option<PathBuf>,
    /// Scenario files, or directories with `*.scenario.json` files.
    pub scenarios: Vec<PathBuf>,
    /// Scenarios as JSON text.
    pub inline_scenarios: Vec<String>,
    /// The scenario of requests that name none.
    pub default_scenario: String,
    /// Keys of which every request must carry one; none are required when it is empty.
    pub required_keys: Vec<KeyDigest>,
    /// File to which two lines for each request are appended.
    pub log: Option<PathBuf>,
    /// Factor for every delay of every scenario.
    pub delay_scale: DelayScale,
    /// Whether every reply is compressed, whatever the client accepts.
    pub gzip: bool,
    /// Connections served at once.
    pub max_connections: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            unix: None,
            scenarios: Vec::new(),
            inline_scenarios: Vec::new(),
            default_scenario: "text".to_owned(),
            required_keys: Vec::new(),
            log: None,
            delay_scale: DelayScale::default(),
            gzip: false,
            max_connections: MAX_CONNECTIONS,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The scenarios could not be loaded.
    #[error("cannot load scenarios")]
    Scenarios(#[from] CatalogueError),
    /// The default scenario does not exist.
    #[error("no scenario named {name} for requests that name none")]
    NoDefault {
        /// Its name.
        name: String,
    },
    /// The log file cannot be opened.
    #[error("cannot open log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address or path.
        address: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Neither an address nor a socket to listen on.
    #[error("nothing to listen on")]
    NoListener,
}

/// A running server. It serves until [`Self::shutdown`], or until its runtime ends.
#[derive(Debug)]
pub struct ScriptedModel {
    keeper: Doorkeeper,
    gathering: Arc<Gathering>,
    witness: Arc<Witness>,
    address: Option<SocketAddr>,
    unix: Option<PathBuf>,
    base_url: String,
}

impl ScriptedModel {
    /// Starts a server; when it returns, connections are accepted.
    ///
    /// # Errors
    /// [`StartError`] when scenarios, log or addresses are not usable; nothing is left behind then.
    ///
    /// # Cancel safety
    /// Not safe: a dropped start may leave a socket file behind.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let catalogue = load(&options)?;
        let stopping = CancellationToken::new();
        let log_error = |source| StartError::Log { path: options.log.clone().unwrap_or_default(), source };
        let witness = Witness::open(options.log.as_deref(), stopping.clone()).map_err(log_error)?;
        let tcp = match options.listen {
            Some(address) => Some(bind_tcp(address).await?),
            None if options.unix.is_none() => return Err(StartError::NoListener),
            None => None,
        };
        let unix = options.unix.as_deref().map(bind_unix).transpose()?;
        let address = tcp.as_ref().map(|(_, address)| *address);
        let base_url =
            address.map_or_else(|| UNIX_BASE_URL.to_owned(), |address| format!("http://{address}"));
        let gathering = Arc::default();
        let responder = Responder::new(catalogue, &options, Arc::clone(&witness), Arc::clone(&gathering));
        let keeper = Doorkeeper::new(router(responder), options.max_connections, stopping);
        if let Some((listener, _)) = tcp {
            keeper.watch_tcp(listener);
        }
        if let Some(listener) = unix {
            keeper.watch_unix(listener);
        }
        Ok(Self { keeper, gathering, witness, address, unix: options.unix, base_url })
    }

    /// Returns the base URL for clients, without a slash at its end.
    ///
    /// A server that listens on a unix socket only has a name there that leads nowhere without the socket.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Returns a base URL that picks a scenario and labels its requests with `run`.
    #[must_use]
    pub fn scenario_url(&self, scenario: &str, run: &str) -> String {
        format!("{}/s/{scenario}/{run}", self.base_url)
    }

    /// Returns the TCP address, if it listens on one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Returns the records in memory, oldest first; [`crate::MAX_RECORDS`] at most.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.witness.records()
    }

    /// Holds the first reply of each conversation back from now on, until `conversations` of them have asked, for
    /// [`crate::MAX_GATHERING`] at most. Conversations are told apart by the CLI's session header. 0 holds none.
    pub fn gather(&self, conversations: usize) {
        self.gathering.begin(conversations);
    }

    /// Waits until the records satisfy `done` and returns them. It waits for ever if they never do: put a time limit
    /// around it.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn wait_for(&self, mut done: impl FnMut(&[Record]) -> bool + Send) -> Vec<Record> {
        let mut changes = self.witness.changes();
        loop {
            let records = self.witness.records();
            // The sender lives as long as `self`, so an error cannot come while this waits.
            if done(&records) || changes.changed().await.is_err() {
                return records;
            }
        }
    }

    /// Stops: closes every connection at once, ends every record and removes the socket file.
    ///
    /// # Cancel safety
    /// Safe to drop: the server is stopping then, but the socket file may stay.
    pub async fn shutdown(self) {
        self.keeper.stop().await;
        if let Some(path) = &self.unix {
            // A socket that somebody removed already is as good as removed.
            std::fs::remove_file(path).unwrap_or(());
        }
    }
}

fn load(options: &Options) -> Result<Catalogue, StartError> {
    let mut catalogue = Catalogue::built_in();
    for path in &options.scenarios {
        catalogue.add_path(path)?;
    }
    for (index, text) in options.inline_scenarios.iter().enumerate() {
        catalogue.add_text(&format!("inline scenarios {}", index + 1), text)?;
    }
    let name = &options.default_scenario;
    if catalogue.find(name).is_none() {
        return Err(StartError::NoDefault { name: name.clone() });
    }
    Ok(catalogue)
}

async fn bind_tcp(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let error = |source| StartError::Listen { address: address.to_string(), source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    Ok((listener, bound))
}

fn bind_unix(path: &Path) -> Result<UnixListener, StartError> {
    let error = |source| StartError::Listen { address: path.display().to_string(), source };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket {
        std::fs::remove_file(path).map_err(error)?;
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(error)?;
    Ok(listener)
}
