//! A way to a unix socket on which everything can vanish, as on a network that is cut or behind which a machine loses its
//! power: nothing is refused, nothing is closed, and nothing arrives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A relay from a local port. Dropping it cuts every connection.
#[derive(Debug)]
pub struct Way {
    port: u16,
    state: Arc<watch::Sender<State>>,
    relay: JoinHandle<()>,
}

/// What becomes of bytes.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Whether they arrive on new connections.
    open: bool,
    /// How often the way was shut.
    shuts: u32,
    /// Connections that were made before it was shut so often are cut.
    cut: u32,
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
        let state = Arc::new(watch::Sender::new(State { open: true, shuts: 0, cut: 0 }));
        let relay = tokio::spawn(relay(listener, socket.to_owned(), Arc::clone(&state)));
        Ok(Self { port, state, relay })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on every byte vanishes, and new connections are taken and never answered; or the way is open again. Then
    /// the connections whose bytes vanished are cut, as whoever is between does that has forgotten them.
    pub fn set_open(&self, open: bool) {
        self.state.send_modify(|state| {
            if open {
                state.cut = state.shuts;
            } else if state.open {
                state.shuts += 1;
            }
            state.open = open;
        });
    }

    /// The way is open again, to whoever makes a new connection. Those whose bytes vanished are never cut and stay silent for
    /// ever, as those to a machine that lost its power and came back; what was at their other end is gone.
    pub fn open_anew(&self) {
        self.state.send_modify(|state| state.open = true);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn relay(listener: TcpListener, socket: PathBuf, state: Arc<watch::Sender<State>>) {
    while let Ok((client, _)) = listener.accept().await {
        #[expect(clippy::disallowed_methods, reason = "each connection ends with either of its ends")]
        drop(tokio::spawn(carry(client, socket.clone(), state.subscribe())));
    }
}

async fn carry(mut client: TcpStream, socket: PathBuf, mut state: watch::Receiver<State>) {
    // See the relay of `Postgres`.
    client.set_nodelay(true).ok();
    let State { open, shuts, .. } = *state.borrow();
    // One that is made while the way is shut is of before, too.
    let of = if open { shuts } else { shuts - 1 };
    let mut server = None;
    if open {
        let Ok(mut connected) = UnixStream::connect(&socket).await else { return };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut connected) => return,
            shut = state.wait_for(|state| state.shuts > of) => drop(shut),
        }
        server = Some(connected);
    }
    // Both ends stay as they are, and hear nothing of one another.
    drop(state.wait_for(|state| state.open).await);
    drop(server);
    drop(state.wait_for(|state| state.cut > of).await);
    drop(client);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// An end that says again what it hears.
    #[expect(clippy::disallowed_methods, reason = "the tests' runtime ends it")]
    fn echo(socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            while let Ok((end, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = end.into_split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
    }

    async fn says(connection: &mut TcpStream) -> Option<usize> {
        connection.write_all(b"a").await.unwrap();
        let mut heard = [0; 1];
        let heard = connection.read(&mut heard);
        tokio::time::timeout(Duration::from_millis(300), heard).await.ok().map(|read| read.unwrap_or(0))
    }

    #[tokio::test]
    async fn what_vanished_is_cut_when_the_way_opens_or_silent_for_ever_when_it_opens_anew() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        echo(&socket);
        let way = Way::to(&socket).await.unwrap();
        let connect = async || TcpStream::connect(("127.0.0.1", way.port())).await.unwrap();
        let mut first = connect().await;
        assert_eq!(says(&mut first).await, Some(1));
        way.set_open(false);
        assert_eq!(says(&mut first).await, None, "it vanishes");
        let mut second = connect().await;
        assert_eq!(says(&mut second).await, None, "so does what is new");
        way.open_anew();
        assert_eq!((says(&mut first).await, says(&mut second).await), (None, None), "for ever");
        let mut third = connect().await;
        assert_eq!(says(&mut third).await, Some(1));
        way.set_open(false);
        assert_eq!(says(&mut third).await, None);
        way.set_open(true);
        assert_eq!(third.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is cut");
        assert_eq!(first.read(&mut [0; 1]).await.unwrap_or(0), 0, "so is what was silent");
    }
}
