//! Tunnels: bytes both ways, counted and not looked into.

use std::sync::Arc;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::fault::Fault;
use super::run::Passage;
use crate::bounds::CHUNK_BYTES;
use crate::shared::Door;

/// Carries bytes until both sides are done, one breaks off, nothing moves, a bound is met or the run is over.
pub(super) async fn carry(door: Arc<Door>, upgrade: OnUpgrade, outside: TcpStream, passage: Passage) {
    let bounds = &door.shared.bounds;
    let Ok(Ok(inside)) = timeout(bounds.header_read, upgrade).await else { return };
    let closed = async {
        door.closed.cancelled().await;
        sleep(bounds.grace).await;
    };
    let ended = tokio::select! {
        ended = both_ways(inside, outside, &passage) => ended,
        () = passage.idle(bounds.egress_idle) => Err(Fault::Idle),
        () = passage.egress().over() => Err(Fault::Over),
        () = closed => Err(Fault::Over),
    };
    if let Err(fault) = ended {
        tracing::debug!(sandbox.id = %door.sandbox, fault = ?fault, "a tunnel of {} was cut", door.sandbox);
        if matches!(fault, Fault::TooMuchSent { .. } | Fault::TooMuchReceived { .. }) {
            passage.egress().deny(&door.shared, "an open tunnel", None, &fault).await;
        }
    }
}

async fn both_ways(inside: Upgraded, mut outside: TcpStream, passage: &Passage) -> Result<(), Fault> {
    let (mut from_inside, mut to_inside) = tokio::io::split(TokioIo::new(inside));
    let (mut from_outside, mut to_outside) = outside.split();
    let out = pump(&mut from_inside, &mut to_outside, |bytes| passage.sent(bytes));
    let back = pump(&mut from_outside, &mut to_inside, |bytes| passage.received(bytes));
    tokio::try_join!(out, back).map(|_| ())
}

/// Carries bytes one way, and then the end.
async fn pump<R, W, C>(from: &mut R, to: &mut W, count: C) -> Result<(), Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    C: Fn(usize) -> Result<(), Fault>,
{
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = from.read(&mut buffer).await.map_err(|_| Fault::Broken)?;
        if read == 0 {
            // The other side may have gone already.
            let _gone = to.shutdown().await;
            return Ok(());
        }
        count(read)?;
        to.write_all(&buffer[..read]).await.map_err(|_| Fault::Broken)?;
    }
}
