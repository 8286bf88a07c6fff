//! A connection that is cut when its other end takes no byte for too long.
//!
//! A router cannot do this: while a connection does not take what it is sent, nobody asks the response for more, so
//! nothing in it runs. Only the writer of the socket sees the time pass.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Wraps a connection; reading is not touched, so an idle one lives.
pub(crate) struct StallGuard<T> {
    inner: T,
    at_most: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T> StallGuard<T> {
    pub(crate) const fn new(inner: T, at_most: Duration) -> Self {
        Self { inner, at_most, stalled: None }
    }

    /// Watches one attempt to write: progress clears the clock, waiting starts it.
    fn watch<R>(&mut self, context: &mut Context<'_>, attempt: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if attempt.is_ready() {
            self.stalled = None;
            return attempt;
        }
        let at_most = self.at_most;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(at_most)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the reader took nothing for {} ms", at_most.as_millis()),
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for StallGuard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for StallGuard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(context, attempt)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.watch(context, attempt)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let attempt = Pin::new(&mut self.inner).poll_flush(context);
        if attempt.is_ready() { attempt } else { self.watch(context, attempt) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let attempt = Pin::new(&mut self.inner).poll_shutdown(context);
        self.watch(context, attempt)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const AT_MOST: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_write_that_waits_too_long_fails_and_one_that_moves_does_not() {
        let (near, mut far) = duplex(4);
        let mut guard = StallGuard::new(near, AT_MOST);
        guard.write_all(b"1234").await.unwrap();
        let begun = tokio::time::Instant::now();
        let error = guard.write_all(b"5").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), AT_MOST.as_secs());
        // The reader comes back before the time is over: the clock starts anew with each byte taken.
        let mut guard = StallGuard::new(guard.inner, AT_MOST);
        let mut byte = [0; 1];
        for _ in 0..3 {
            tokio::time::advance(AT_MOST.mul_f32(0.75)).await;
            far.read_exact(&mut byte).await.unwrap();
            guard.write_all(b"x").await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reading_may_take_any_time() {
        let (near, mut far) = duplex(4);
        let mut guard = StallGuard::new(near, AT_MOST);
        let mut byte = [0; 1];
        let (read, ()) = tokio::join!(guard.read_exact(&mut byte), async {
            tokio::time::advance(AT_MOST * 10).await;
            far.write_all(b"y").await.unwrap();
        });
        read.unwrap();
        assert_eq!(&byte, b"y");
    }
}
