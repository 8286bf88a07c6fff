//! Text deltas for live readers: coalesced, paced and lossy. They never wait for anything and nothing waits for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_domain::id::RunId;
use caisson_domain::limits::{DELTA_BYTES, DELTAS_PER_SECOND};
use caisson_domain::protocol::{DeltaBatch, DeltaItem, paths};
use http::Method;
use tokio::sync::Notify;

use crate::door::{Caller, Door};

/// Text that may wait to be sent, in bytes: what goes out in a second. More is dropped.
const WAITING_BYTES: usize = DELTAS_PER_SECOND as usize * DELTA_BYTES;
/// How long one delta may take, in milliseconds, before it is given up.
const SEND_MS: u64 = 2_000;

/// Text that waits to be sent, in order; pure.
#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<DeltaItem>,
    bytes: usize,
}

impl Waiting {
    /// Adds text to the last item if that is of the same kind, message and block, or drops it if too much waits.
    fn push(&mut self, piece: DeltaItem) {
        if piece.text.is_empty() || self.bytes + piece.text.len() > WAITING_BYTES {
            return;
        }
        self.bytes += piece.text.len();
        let of = |item: &DeltaItem| (item.kind, item.message_id.clone(), item.block);
        match self.items.back_mut() {
            Some(last) if of(last) == of(&piece) => last.text.push_str(&piece.text),
            Some(_) | None => self.items.push_back(piece),
        }
    }

    /// Takes at most [`DELTA_BYTES`] of one kind from the front.
    fn take(&mut self) -> Option<DeltaItem> {
        let mut item = self.items.pop_front()?;
        let rest = item.text.split_off(item.text.floor_char_boundary(DELTA_BYTES));
        if !rest.is_empty() {
            self.items.push_front(DeltaItem { text: rest, ..item.clone() });
        }
        self.bytes -= item.text.len();
        Some(item)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The deltas of one run.
#[derive(Debug)]
pub(crate) struct Deltas {
    run: RunId,
    waiting: Mutex<Waiting>,
    pushed: Notify,
}

impl Deltas {
    pub(crate) fn new(run: RunId) -> Arc<Self> {
        Arc::new(Self { run, waiting: Mutex::default(), pushed: Notify::new() })
    }

    /// Adds text.
    pub(crate) fn push(&self, piece: DeltaItem) {
        self.lock().push(piece);
        self.pushed.notify_one();
    }

    /// Drops what has not been sent: the whole of it is recorded now.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Sends what comes, at most [`DELTAS_PER_SECOND`], for ever. What cannot be sent is lost.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn send(self: Arc<Self>, door: Arc<Door>) {
        let mut caller = Caller::new(&door);
        loop {
            let pushed = self.pushed.notified();
            let Some(item) = self.take() else {
                pushed.await;
                continue;
            };
            let batch = DeltaBatch { run: self.run.clone(), items: vec![item] };
            if let Ok(body) = serde_json::to_vec(&batch) {
                let limit = Duration::from_millis(SEND_MS);
                drop(caller.call(Method::POST, paths::DELTAS, body, limit).await);
            }
            tokio::time::sleep(Duration::from_secs(1) / DELTAS_PER_SECOND).await;
        }
    }

    fn take(&self) -> Option<DeltaItem> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use caisson_domain::event::DeltaKind;

    use super::*;

    fn piece(kind: DeltaKind, text: &str) -> DeltaItem {
        DeltaItem { kind, message_id: "m".to_owned(), block: 0, text: text.to_owned() }
    }

    fn take(waiting: &mut Waiting) -> Option<(DeltaKind, String)> {
        waiting.take().map(|item| (item.kind, item.text))
    }

    #[test]
    fn text_of_one_kind_and_block_is_put_together_and_the_order_of_kinds_is_kept() {
        let mut waiting = Waiting::default();
        for (kind, text) in [
            (DeltaKind::Thinking, "hm"),
            (DeltaKind::Text, "a"),
            (DeltaKind::Text, "b"),
            (DeltaKind::Text, ""),
        ] {
            waiting.push(piece(kind, text));
        }
        waiting.push(DeltaItem { block: 1, ..piece(DeltaKind::Text, "c") });
        waiting.push(DeltaItem { message_id: "m2".to_owned(), ..piece(DeltaKind::Text, "d") });
        assert_eq!(take(&mut waiting), Some((DeltaKind::Thinking, "hm".to_owned())));
        assert_eq!(take(&mut waiting), Some((DeltaKind::Text, "ab".to_owned())));
        for next in [("m", 1, "c"), ("m2", 0, "d")] {
            let item = waiting.take().unwrap();
            assert_eq!((item.message_id.as_str(), item.block, item.text.as_str()), next);
        }
        assert_eq!(take(&mut waiting), None);
    }

    #[test]
    fn a_delta_has_at_most_its_bound_and_ends_between_characters() {
        let mut waiting = Waiting::default();
        waiting.push(piece(DeltaKind::Text, &format!("a{}", "ä".repeat(DELTA_BYTES / 2))));
        assert_eq!(take(&mut waiting).unwrap().1.len(), DELTA_BYTES - 1);
        let rest = waiting.take().unwrap();
        assert_eq!((rest.message_id.as_str(), rest.text.as_str()), ("m", "ä"));
        waiting.push(piece(DeltaKind::Text, &"b".repeat(DELTA_BYTES)));
        assert_eq!(take(&mut waiting).unwrap().1.len(), DELTA_BYTES);
        assert_eq!(take(&mut waiting), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_sent_than_a_second_may_have() {
        let directory = tempfile::tempdir().unwrap();
        let tracker = tokio_util::task::TaskTracker::new();
        let grants = crate::door::Grants::new("csc_1", "csa_1").unwrap();
        // Nobody listens: what counts is how often it is tried, and that nothing waits for it.
        let door = Door::new(directory.path().join("door"), grants, tracker.clone());
        let deltas = Deltas::new(RunId::new(1, [0; 10]));
        deltas.push(piece(DeltaKind::Text, &"x".repeat(WAITING_BYTES)));
        let sending = tracker.spawn(Arc::clone(&deltas).send(door));
        let sent = || DELTAS_PER_SECOND as usize - deltas.lock().bytes / DELTA_BYTES;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(sent(), 1, "the first goes at once");
        tokio::time::sleep(Duration::from_millis(497)).await;
        assert_eq!(sent(), DELTAS_PER_SECOND as usize / 2);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(sent(), DELTAS_PER_SECOND as usize);
        sending.abort();
    }

    #[test]
    fn what_is_more_than_may_wait_is_dropped() {
        let mut waiting = Waiting::default();
        waiting.push(piece(DeltaKind::Text, &"x".repeat(WAITING_BYTES)));
        waiting.push(piece(DeltaKind::Text, "y"));
        let mut sent = 0;
        while let Some((_, text)) = take(&mut waiting) {
            assert!(!text.contains('y'));
            sent += text.len();
        }
        assert_eq!((sent, waiting.bytes), (WAITING_BYTES, 0));
        waiting.push(piece(DeltaKind::Text, "z"));
        waiting.clear();
        assert_eq!(take(&mut waiting), None);
    }
}
