//! A way to a unix socket on which everything can vanish, as on a network that is cut: nothing is refused, nothing is
//! closed, and nothing arrives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A relay from a local port. Dropping it cuts every connection.
#[derive(Debug)]
pub struct Way {
    port: u16,
    open: Arc<watch::Sender<bool>>,
    relay: JoinHandle<()>,
}

impl Way {
    /// Begins to relay to a socket.
    ///
    /// # Errors
    /// No port is free.
    #[expect(clippy::disallowed_methods, reason = "the test kit holds its relay's task")]
    pub async fn to(socket: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let open = Arc::new(watch::Sender::new(true));
        let relay = tokio::spawn(relay(listener, socket.to_owned(), Arc::clone(&open)));
        Ok(Self { port, open, relay })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on every byte vanishes, and new connections are taken and never answered; or the way is open again. Then
    /// the connections whose bytes vanished are cut, as whoever is between does that has forgotten them.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn relay(listener: TcpListener, socket: PathBuf, open: Arc<watch::Sender<bool>>) {
    while let Ok((client, _)) = listener.accept().await {
        #[expect(clippy::disallowed_methods, reason = "each connection ends with either of its ends")]
        drop(tokio::spawn(carry(client, socket.clone(), open.subscribe())));
    }
}

async fn carry(mut client: TcpStream, socket: PathBuf, mut open: watch::Receiver<bool>) {
    // See the relay of `Postgres`.
    client.set_nodelay(true).ok();
    let is_open = *open.borrow_and_update();
    let mut server = None;
    if is_open {
        let Ok(mut connected) = UnixStream::connect(&socket).await else { return };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut connected) => return,
            closed = open.wait_for(|open| !open) => drop(closed),
        }
        server = Some(connected);
    }
    // Both ends stay as they are, and hear nothing of one another.
    drop(open.wait_for(|open| *open).await);
    drop((client, server));
}
