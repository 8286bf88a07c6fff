//! Doors whose sockets take descriptors: each is read by a thread of its own.
//!
//! The kernel closes what a sandbox sent with its bytes in the thread that reads or closes the socket, for as long as that takes
//! ([`crate::descriptors`]). Here that thread is the door's own, and holds up nobody but that sandbox. It carries bytes, and
//! knows nothing else: requests are read and answered by the same tasks as everywhere.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, copy, duplex, split};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::bounds::CONNECTIONS;
use crate::serve;
use crate::shared::Door;

/// What is on its way in one direction of a connection, in bytes.
const UNDER_WAY_BYTES: usize = 32 * 1024;
/// How long a closed door waits for what was answered last to be taken.
const LAST: Duration = Duration::from_secs(1);

/// Opens a door on a thread of its own, which ends some time after the door has closed.
pub(crate) async fn open(door: &Arc<Door>, listener: StdListener) -> io::Result<()> {
    let (main, of_thread) = (Handle::current(), Arc::clone(door));
    let (told, heard) = oneshot::channel();
    let (lives, ended) = oneshot::channel::<()>();
    thread::Builder::new().name("door".to_owned()).spawn(move || {
        let _lives = lives;
        match prepare(listener) {
            Ok((runtime, listener)) => {
                told.send(Ok(())).ok();
                runtime.block_on(carry(&of_thread, listener, &main));
            }
            Err(error) => drop(told.send(Err(error))),
        }
    })?;
    heard.await.map_err(io::Error::other)??;
    let door = Arc::clone(door);
    door.shared.tracker.clone().spawn(async move {
        door.closed.cancelled().await;
        // Requests under way have the grace to end. A thread that the kernel holds is not waited for.
        timeout(door.shared.bounds.grace + LAST, ended).await.ok();
    });
    Ok(())
}

fn prepare(listener: StdListener) -> io::Result<(Runtime, UnixListener)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        UnixListener::from_std(listener)?
    };
    Ok((runtime, listener))
}

/// Carries all connections of a door until it has closed and they have ended.
async fn carry(door: &Arc<Door>, listener: UnixListener, main: &Handle) {
    let bridges = TaskTracker::new();
    let ending = Arc::new(Semaphore::new(CONNECTIONS));
    let begin = |stream, permit| {
        let (inside, outside) = duplex(UNDER_WAY_BYTES);
        let dropped = CancellationToken::new();
        let carried = Carried { bytes: outside, _dropped: dropped.clone().drop_guard() };
        let (ending, closed) = (Arc::clone(&ending), door.closed.clone());
        bridges.spawn(async move { bridge(stream, inside, &dropped, (&ending, &closed)).await });
        let served = serve::connection(Arc::clone(door), carried);
        let serving = async move {
            served.await;
            drop(permit);
        };
        door.shared.tracker.spawn_on(serving, main);
    };
    serve::accept(door, listener, begin).await;
    bridges.close();
    bridges.wait().await;
}

/// Carries both directions of a connection until both have ended, the sandbox takes no more, or the door has `dropped` its end. What it said
/// last waits to be taken then, as it would in the socket, until the door has closed; beyond the room for those that are `ending`
/// it is lost.
async fn bridge(
    mut socket: UnixStream,
    inside: DuplexStream,
    dropped: &CancellationToken,
    (ending, closed): (&Semaphore, &CancellationToken),
) {
    let (mut from_sandbox, mut to_sandbox) = socket.split();
    let (mut from_door, mut to_door) = split(inside);
    // The door's answer may be on its way while it takes no more: whoever hinders this direction does not end the other.
    let up = async {
        tokio::select! {
            _ended = copy(&mut from_sandbox, &mut to_door) => {}
            () = dropped.cancelled() => {}
        }
        to_door.shutdown().await.ok();
        Ok(())
    };
    let down = async {
        copy(&mut from_door, &mut to_sandbox).await?;
        to_sandbox.shutdown().await
    };
    let over = async {
        dropped.cancelled().await;
        if let Ok(_one) = ending.try_acquire() {
            closed.cancelled().await;
            sleep(LAST).await;
        }
    };
    tokio::select! {
        biased;
        // Whoever it was that went away, both ends are dropped now.
        _ = async { tokio::try_join!(up, down) } => {}
        () = over => {}
    }
}

/// The door's end of a connection that is carried. That it was dropped is heard at the other end.
struct Carried {
    bytes: DuplexStream,
    _dropped: DropGuard,
}

impl AsyncRead for Carried {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(context, into)
    }
}

impl AsyncWrite for Carried {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }
}

#[cfg(test)]
#[path = "aside_tests.rs"]
mod tests;
