//! Binding and unbinding sockets: one for every sandbox of this server that is not destroyed.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caisson_domain::id::{SandboxId, ServerId};
use caisson_domain::protocol::places::DOOR_FILE;
use caisson_store::{SandboxRow, StoreError, Topic};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use crate::aside;
use crate::bounds::RECONCILE;
use crate::credentials;
use crate::descriptors;
use crate::serve;
use crate::shared::{Door, Shared};

/// Any uid may connect: which socket it is, and the grants, decide what that opens.
const SOCKET_MODE: u32 = 0o666;
/// The socket before it has its mode; then it is renamed over the one of an earlier process.
const FRESH_FILE: &str = ".gateway.sock.new";

/// The doors that are open.
pub(crate) struct Doors {
    shared: Arc<Shared>,
    server: ServerId,
    root: PathBuf,
    open: HashMap<SandboxId, Arc<Door>>,
}

impl Doors {
    pub(crate) fn new(shared: Arc<Shared>, server: ServerId, root: PathBuf) -> Self {
        Self { shared, server, root, open: HashMap::new() }
    }

    /// Follows the store until the server stops, then closes nothing itself: every door hears the same token.
    pub(crate) async fn run(mut self) {
        let mut watch = self.shared.store.watch(Topic::Server(self.server.clone()));
        let cancel = self.shared.cancel.clone();
        loop {
            if let Err(error) = self.reconcile().await {
                tracing::warn!(error = %error, "the sandboxes of this server could not be read; trying again");
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = watch.changed(RECONCILE) => {}
            }
        }
    }

    /// Opens a door for every living sandbox that has none and closes the doors of the others.
    ///
    /// # Cancel safety
    /// Safe: the next pass finds what this one left.
    pub(crate) async fn reconcile(&mut self) -> Result<(), StoreError> {
        let rows = self.shared.store.sandboxes_of(&self.server).await?;
        let gone: Vec<SandboxId> =
            self.open.keys().filter(|id| !rows.iter().any(|row| row.id == **id)).cloned().collect();
        for id in gone {
            if let Some(door) = self.open.remove(&id) {
                door.closed.cancel();
                unbind(self.directory(&id)).await;
                tracing::info!(sandbox.id = %id, "closed the door of {id}");
            }
        }
        for row in rows {
            if !self.open.contains_key(&row.id) {
                self.open_door(row).await;
            }
        }
        Ok(())
    }

    async fn open_door(&mut self, row: SandboxRow) {
        let id = row.id.clone();
        // Some may have been added, rotated or removed since. Nobody says anything before it is known what must not be said.
        if let Err(error) = credentials::keep_out_of_the_record(&self.shared, &row.project).await {
            tracing::warn!(sandbox.id = %id, error = %error, "the credentials of {} could not be read, so the door of {id} stays shut; trying again", row.project);
            return;
        }
        let door = Arc::new(Door::new(Arc::clone(&self.shared), row));
        if let Err(error) = open(&door, self.directory(&id)).await {
            tracing::warn!(sandbox.id = %id, error = %error, "the door of {id} could not be opened; trying again");
            return;
        }
        tracing::info!(sandbox.id = %id, "opened the door of {id}");
        self.open.insert(id, door);
    }

    fn directory(&self, id: &SandboxId) -> PathBuf {
        self.root.join(id.as_str())
    }
}

async fn open(door: &Arc<Door>, directory: PathBuf) -> io::Result<()> {
    let refuse = door.shared.bounds.refuse_descriptors;
    let bound = tokio::task::spawn_blocking(move || bind_in(&directory, refuse));
    match bound.await.map_err(io::Error::other)?? {
        Bound { listener, refuses_descriptors: true } => serve::open(door, listener),
        Bound { listener, refuses_descriptors: false } => aside::open(door, listener).await,
    }
}

/// A door's socket, at which clients may wait already.
struct Bound {
    listener: StdListener,
    refuses_descriptors: bool,
}

/// A socket's address holds at most 107 bytes of path, and a state directory may well be longer: the
/// directory is opened first and named by its descriptor. Renaming at the end means that a sandbox finds
/// either the old socket or a new one that has its mode.
///
/// Descriptors are refused, if `refuse` and the kernel can, before anybody could connect.
fn bind_in(directory: &Path, refuse: bool) -> io::Result<Bound> {
    let handle = File::open(directory)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    let fresh = short.join(FRESH_FILE);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let refuses_descriptors = refuse && descriptors::refuse(&socket);
    bind(socket.as_raw_fd(), &UnixAddr::new(&fresh)?)?;
    listen(&socket, Backlog::MAXALLOWABLE)?;
    fs::set_permissions(&fresh, Permissions::from_mode(SOCKET_MODE))?;
    fs::rename(&fresh, short.join(DOOR_FILE))?;
    Ok(Bound { listener: socket.into(), refuses_descriptors })
}

/// Takes the socket away; whoever removes the sandbox may have removed its directory already.
async fn unbind(directory: PathBuf) {
    let file = directory.join(DOOR_FILE);
    match tokio::fs::remove_file(&file).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(error = %error, "a closed door's socket could not be removed");
        }
        Ok(()) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{IoSlice, Read, Write};
    use std::os::unix::net::UnixStream;

    use nix::errno::Errno;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    /// Who has connected already.
    fn accepted(listener: &StdListener) -> UnixStream {
        listener.accept().unwrap().0
    }

    fn send_descriptor(over: &UnixStream) -> nix::Result<usize> {
        let sent = [over.as_raw_fd()];
        let message = ControlMessage::ScmRights(&sent);
        sendmsg::<()>(over.as_raw_fd(), &[IoSlice::new(b"x")], &[message], MsgFlags::empty(), None)
    }

    #[test]
    fn a_directory_longer_than_an_address_has_its_socket_with_the_right_mode() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("d".repeat(200));
        fs::create_dir(&directory).unwrap();
        let Bound { listener, .. } = bind_in(&directory, true).unwrap();
        let mode = fs::metadata(directory.join(DOOR_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        let handle = File::open(&directory).unwrap();
        let short = format!("/proc/self/fd/{}/{DOOR_FILE}", handle.as_raw_fd());
        UnixStream::connect(short).unwrap();
        accepted(&listener);
    }

    #[test]
    fn stale_sockets_of_an_earlier_process_are_replaced() {
        let root = tempfile::tempdir().unwrap();
        drop(bind_in(root.path(), true).unwrap());
        fs::write(root.path().join(FRESH_FILE), "left behind").unwrap();
        let Bound { listener, .. } = bind_in(root.path(), true).unwrap();
        UnixStream::connect(root.path().join(DOOR_FILE)).unwrap();
        accepted(&listener);
        assert!(!root.path().join(FRESH_FILE).exists());
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_made() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("missing");
        assert_eq!(bind_in(&directory, true).err().unwrap().kind(), io::ErrorKind::NotFound);
        assert!(!directory.exists());
    }

    #[test]
    fn descriptors_are_refused_from_the_first_connection_on_if_the_kernel_can() {
        let root = tempfile::tempdir().unwrap();
        for asked in [true, false] {
            let Bound { listener, refuses_descriptors } = bind_in(root.path(), asked).unwrap();
            let mut client = UnixStream::connect(root.path().join(DOOR_FILE)).unwrap();
            let expected = if refuses_descriptors { Err(Errno::EPERM) } else { Ok(1) };
            assert_eq!(send_descriptor(&client), expected, "before it is accepted");
            let mut server = accepted(&listener);
            assert_eq!(send_descriptor(&client), expected);
            assert!(asked || !refuses_descriptors);
            client.write_all(b"y").unwrap();
            drop(client);
            let mut rest = String::new();
            server.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, if refuses_descriptors { "y" } else { "xxy" });
        }
    }
}
