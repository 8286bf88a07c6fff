//! A careless proxy, for the controls of `make adversary` alone: it judges the first request's head and passes on everything
//! behind it as it comes, so that what it took for one request may be several to who reads it.

use std::io::Cursor;
use std::sync::Arc;

use ::http::{HeaderMap, Method, Uri};
use caisson_domain::checks::{Check, stands};
use caisson_domain::egress::{Via, Wanted};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Chain, Join, ReadHalf, WriteHalf, copy_bidirectional,
    join, split,
};
use tokio::net::TcpStream;

use super::target;
use crate::bounds::HEADER_BYTES;
use crate::shared::Door;

/// A connection of which something was read already.
pub(crate) type Begun<I> = Join<Chain<Cursor<Vec<u8>>, ReadHalf<I>>, WriteHalf<I>>;

/// Passes a request to the outside on where that check is left out; every other connection comes back.
pub(crate) async fn unframed<I>(door: &Arc<Door>, io: I) -> Option<Begun<I>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut read, write) = split(io);
    let mut begun = Vec::new();
    if !stands(Check::EgressFraming) {
        while head(&begun).is_none() && begun.len() < HEADER_BYTES {
            match read.read_buf(&mut begun).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        if let Some((outside, first)) = reached(door, &begun).await {
            relay(join(read, write), outside, &first).await;
            return None;
        }
    }
    Some(join(Cursor::new(begun).chain(read), write))
}

/// Where the head ends.
fn head(begun: &[u8]) -> Option<usize> {
    begun.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4)
}

/// A connection to who is asked for by an absolute URL, and what it is sent first.
async fn reached(door: &Arc<Door>, begun: &[u8]) -> Option<(TcpStream, Vec<u8>)> {
    let (text, rest) = begun.split_at(head(begun)?);
    let (line, fields) = std::str::from_utf8(text).ok()?.split_once("\r\n")?;
    let mut words = line.split(' ');
    let (method, uri): (Method, Uri) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    if method == Method::CONNECT || uri.authority().is_none() {
        return None;
    }
    let wanted: Wanted = target::wanted(&method, &uri, &HeaderMap::new()).ok()?;
    let side = &door.shared.egress;
    // Nothing is encrypted here.
    let wanted = Some(side.policy.way(None, wanted)).filter(|way| !matches!(way.via, Via::Https { .. }))?;
    let ground = side.policy.judge(None, &wanted).ok()?;
    let outside = side.reach.connect(&wanted.target, ground, &door.shared.bounds).await.ok()?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let fields = fields.split_inclusive("\r\n").filter(|field| !field.starts_with("Proxy-"));
    let mut first = format!("{method} {path} HTTP/1.1\r\n{}", fields.collect::<String>()).into_bytes();
    first.extend_from_slice(rest);
    Some((outside, first))
}

async fn relay(mut inside: impl AsyncRead + AsyncWrite + Unpin, mut outside: TcpStream, first: &[u8]) {
    if outside.write_all(first).await.is_ok() {
        // Whoever breaks off first ends it.
        drop(copy_bidirectional(&mut inside, &mut outside).await);
    }
}
