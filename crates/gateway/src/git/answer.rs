//! Carrying a long answer to a sandbox, however slowly it reads: a git host's, or an archived transcript.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::body::{BodyFault, Chunks};
use crate::bounds::{Bounds, CHUNKS, SLOW_READER_BYTES};

/// The chunks, with a slot that is free again when they were read or dropped. A reader who takes them slowly is waited
/// for a bounded time in all, so that git on the server and the slot come free again; what it then finds is cut.
pub(crate) fn carried(
    tracker: &TaskTracker,
    bounds: &Bounds,
    slot: OwnedSemaphorePermit,
    mut chunks: Chunks,
) -> Chunks {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let whole = Arc::new(AtomicBool::new(false));
    let state = Some((receiver, Arc::clone(&whole)));
    let (idle, patience) = (bounds.body_idle, bounds.slow_reader);
    tracker.spawn(async move {
        let (mut bytes, mut waited) = (0, Duration::ZERO);
        loop {
            let chunk = tokio::select! {
                chunk = chunks.next() => chunk,
                () = sender.closed() => break,
            };
            let Some(chunk) = chunk else {
                whole.store(true, Ordering::Release);
                break;
            };
            bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            let earned = Duration::from_secs(bytes / SLOW_READER_BYTES);
            let left = (patience + earned).saturating_sub(waited);
            let began = Instant::now();
            match timeout(idle.min(left), sender.send(chunk)).await {
                Ok(Ok(())) => waited += began.elapsed(),
                Ok(Err(_)) => break,
                Err(_) => {
                    tracing::debug!("a sandbox that does not read an answer was left");
                    break;
                }
            }
        }
        drop((chunks, slot));
    });
    stream::unfold(state, |state| async move {
        let (mut receiver, whole) = state?;
        match receiver.recv().await {
            Some(chunk) => Some((chunk, Some((receiver, whole)))),
            None if whole.load(Ordering::Acquire) => None,
            None => Some((Err(BodyFault::TimedOut.into()), None)),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::sync::Semaphore;

    fn answer(pieces: usize) -> Chunks {
        stream::iter(
            vec![Ok(Bytes::from_static(b"x")); pieces]
                .into_iter()
                .map(|piece: Result<_, ()>| piece.map_err(|()| BodyFault::TimedOut.into())),
        )
        .boxed()
    }

    fn carry(slots: &Arc<Semaphore>, chunks: Chunks) -> Chunks {
        let slot = Arc::clone(slots).try_acquire_owned().unwrap();
        carried(&TaskTracker::new(), &Bounds::default(), slot, chunks)
    }

    async fn free(slots: &Semaphore, count: u32) {
        drop(slots.acquire_many(count).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_held_until_the_answer_is_read_or_dropped() {
        let slots = Arc::new(Semaphore::new(2));
        let endless = || answer(1).chain(stream::pending()).boxed();
        let (mut read, dropped) = (carry(&slots, answer(9)), carry(&slots, endless()));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(slots.available_permits(), 0);
        drop(dropped);
        free(&slots, 1).await;
        for _ in 0..9 {
            assert!(read.next().await.unwrap().is_ok());
        }
        assert!(read.next().await.is_none());
        free(&slots, 2).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_does_not_read_is_left_and_finds_its_answer_cut() {
        let slots = Arc::new(Semaphore::new(1));
        let mut unread = carry(&slots, answer(100));
        let began = Instant::now();
        free(&slots, 1).await;
        assert_eq!(began.elapsed().as_secs(), Bounds::default().body_idle.as_secs());
        let mut pieces = 0;
        let last = loop {
            match unread.next().await {
                Some(Ok(_)) => pieces += 1,
                last => break last,
            }
        };
        assert!(pieces == CHUNKS && matches!(last, Some(Err(_))), "{pieces}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_a_little_now_and_then_is_left_as_well() {
        let slots = Arc::new(Semaphore::new(1));
        let mut slow = carry(&slots, answer(100));
        let began = Instant::now();
        while slots.available_permits() == 0 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            assert!(slow.next().await.unwrap().is_ok());
        }
        assert!(began.elapsed() < Bounds::default().slow_reader * 3, "{:?}", began.elapsed());
    }
}
