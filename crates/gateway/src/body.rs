//! Bodies of requests and replies: bounded in size and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use caisson_store::BoxError;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;
/// Bytes on their way; an error ends them.
pub(crate) type Chunks = BoxStream<'static, Result<Bytes, BoxError>>;
/// The sending side of [`channel`].
pub(crate) type ChunkSender = mpsc::Sender<Result<Bytes, BoxError>>;

/// Why a body could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyFault {
    #[error("the body is larger than its bound")]
    TooLarge,
    #[error("the body stopped coming")]
    TimedOut,
    #[error("the body broke off")]
    Broken(#[source] BoxError),
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body fed by a task. The sender waits while `chunks` pieces are not taken yet, and learns that the reader
/// is gone.
pub(crate) fn channel(chunks: usize) -> (ChunkSender, Body) {
    let (sender, mut receiver) = mpsc::channel(chunks);
    (sender, from_stream(stream::poll_fn(move |context| receiver.poll_recv(context))))
}

pub(crate) fn from_stream<S>(chunks: S) -> Body
where
    S: Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// Reads a whole body.
pub(crate) async fn collect<B>(body: B, bound: usize, idle: Duration) -> Result<Bytes, BodyFault>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let hint = body.size_hint().lower();
    let announced = usize::try_from(hint).map_err(|_| BodyFault::TooLarge)?;
    if announced > bound {
        return Err(BodyFault::TooLarge);
    }
    let mut all = BytesMut::with_capacity(announced);
    let mut chunks = std::pin::pin!(frames(body));
    loop {
        match timeout(idle, chunks.next()).await {
            Err(_) => return Err(BodyFault::TimedOut),
            Ok(None) => return Ok(all.freeze()),
            Ok(Some(Err(error))) => return Err(BodyFault::Broken(error)),
            Ok(Some(Ok(chunk))) if all.len() + chunk.len() > bound => {
                drop(chunk);
                return Err(BodyFault::TooLarge);
            }
            Ok(Some(Ok(chunk))) => all.extend_from_slice(&chunk),
        }
    }
}

/// The data of a body, without trailers.
pub(crate) fn frames<B>(body: B) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.into_data_stream().map(|chunk| chunk.map_err(Into::into))
}

/// Ends `chunks` with an error after a silence of `idle`, or `total` after now.
pub(crate) fn timed<S>(chunks: S, idle: Duration, total: Duration) -> Chunks
where
    S: Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    let end = Instant::now() + total;
    let state = Some(Box::pin(chunks));
    stream::unfold(state, move |state| async move {
        let mut chunks = state?;
        let until = end.min(Instant::now() + idle);
        match timeout_at(until, chunks.next()).await {
            Err(_) => Some((Err(BodyFault::TimedOut.into()), None)),
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(chunks))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// Ends `chunks` with [`BodyFault::TooLarge`] as soon as they are more than `bound` bytes.
pub(crate) fn bounded(chunks: Chunks, bound: u64) -> Chunks {
    stream::unfold(Some((chunks, bound)), |state| async move {
        let (mut chunks, left) = state?;
        match chunks.next().await? {
            Err(error) => Some((Err(error), None)),
            Ok(chunk) => match left.checked_sub(chunk.len() as u64) {
                Some(left) => Some((Ok(chunk), Some((chunks, left)))),
                None => Some((Err(BodyFault::TooLarge.into()), None)),
            },
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(pieces: &[usize]) -> Body {
        let pieces: Vec<_> = pieces.iter().map(|size| Ok(Bytes::from(vec![b'x'; *size]))).collect();
        from_stream(stream::iter(pieces))
    }

    fn silent() -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
        stream::iter([Ok(Bytes::from_static(b"x"))]).chain(stream::pending())
    }

    const SHORT: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_body_is_taken_up_to_its_bound() {
        assert_eq!(collect(body_of(&[3, 4]), 7, SHORT).await.unwrap().len(), 7);
        assert!(matches!(collect(body_of(&[3, 5]), 7, SHORT).await, Err(BodyFault::TooLarge)));
        assert!(matches!(collect(full(vec![0; 8]), 7, SHORT).await, Err(BodyFault::TooLarge)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_falls_silent_or_breaks_is_an_error() {
        assert!(matches!(collect(from_stream(silent()), 7, SHORT).await, Err(BodyFault::TimedOut)));
        let broken = from_stream(stream::iter([Err("gone".into())]));
        assert!(matches!(collect(broken, 7, SHORT).await, Err(BodyFault::Broken(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn chunks_end_at_their_bounds_of_time_and_size() {
        let idle: Vec<_> = timed(silent(), SHORT, Duration::from_mins(1)).collect().await;
        assert!(idle.len() == 2 && idle[1].is_err());
        let total: Vec<_> = timed(silent(), Duration::from_mins(1), SHORT).collect().await;
        assert!(total.len() == 2 && total[1].is_err());
        let pieces = || frames(body_of(&[3, 4])).boxed();
        let fits: Vec<_> = bounded(pieces(), 7).collect().await;
        assert!(fits.iter().all(Result::is_ok));
        let over: Vec<_> = bounded(pieces(), 6).collect().await;
        let error = over[1].as_ref().unwrap_err().downcast_ref::<BodyFault>();
        assert!(matches!(error, Some(BodyFault::TooLarge)));
    }
}
