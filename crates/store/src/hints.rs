//! Wake-ups: hints that something changed, never the change itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_domain::id::{ProjectId, RunId, SandboxId, ServerId, SessionId};
use tokio::sync::watch;

/// What can be watched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A run may be claimable.
    Queue,
    /// A run's status, progress or outcome changed.
    Run(RunId),
    /// A session has a new event.
    Session(SessionId),
    /// A sandbox has new work, a new input or a new state.
    Sandbox(SandboxId),
    /// A sandbox of a server was made or changed.
    Server(ServerId),
    /// There is a new audit record.
    Audit,
    /// Something that a project's calls held of a budget was given back, or a budget was changed.
    Budget(ProjectId),
    /// A credential was added, got another secret, was removed, or a turn at renewing one is over.
    Credentials,
}

type Channels = HashMap<Topic, watch::Sender<()>>;

/// One channel for each topic that somebody watches: as many as there are living [`Watch`]es at most.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    channels: Mutex<Channels>,
}

impl Hints {
    pub(crate) fn watch(self: &Arc<Self>, topic: Topic) -> Watch {
        let receiver = self.lock().entry(topic.clone()).or_insert_with(|| watch::Sender::new(())).subscribe();
        Watch { hints: Arc::clone(self), topic, receiver }
    }

    pub(crate) fn wake(&self, topics: &[Topic]) {
        let channels = self.lock();
        for topic in topics {
            if let Some(channel) = channels.get(topic) {
                channel.send_replace(());
            }
        }
    }

    /// Wakes whoever watches anything: for when hints may have been missed.
    pub(crate) fn wake_all(&self) {
        for channel in self.lock().values() {
            channel.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Channels> {
        // A panic elsewhere leaves the map whole: each change to it is a single insertion or removal.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription to the hints of one [`Topic`].
#[derive(Debug)]
pub struct Watch {
    hints: Arc<Hints>,
    topic: Topic,
    receiver: watch::Receiver<()>,
}

impl Watch {
    /// Returns as soon as there was a hint since the last call (or since the subscription), or after `at_most`.
    ///
    /// It does not say which: whoever is woken reads the rows again either way, so a lost hint costs time only.
    /// # Cancel safety
    /// Safe: a hint that came while nobody waited is kept for the next call.
    pub async fn changed(&mut self, at_most: Duration) {
        self.hinted(at_most).await;
    }

    /// Like [`Watch::changed`], and says whether there was a hint: `false` means nothing, since hints are lost.
    /// # Cancel safety
    /// As [`Watch::changed`].
    pub async fn hinted(&mut self, at_most: Duration) -> bool {
        // The sender lives as long as this receiver, so the inner error cannot happen; the outer one is the time limit.
        tokio::time::timeout(at_most, self.receiver.changed()).await.is_ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut channels = self.hints.lock();
        // This receiver still counts, and the lock keeps new ones away.
        if channels.get(&self.topic).is_some_and(|channel| channel.receiver_count() <= 1) {
            channels.remove(&self.topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    #[tokio::test(start_paused = true)]
    async fn a_hint_between_subscription_and_waiting_is_kept() {
        let hints = Arc::new(Hints::default());
        let mut watch = hints.watch(Topic::Queue);
        hints.wake(&[Topic::Queue]);
        hints.wake(&[Topic::Queue]);
        let before = tokio::time::Instant::now();
        assert!(watch.hinted(LONG).await);
        assert!(before.elapsed() < LONG, "the hint was lost");
        assert!(!watch.hinted(LONG).await);
        assert_eq!(before.elapsed(), LONG, "two hints count once, and the next wait ends by its limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_wakes_only_its_own_topic() {
        let hints = Arc::new(Hints::default());
        let mut watch = hints.watch(Topic::Run(RunId::new(1, [1; 10])));
        hints.wake(&[Topic::Queue, Topic::Run(RunId::new(1, [2; 10]))]);
        let before = tokio::time::Instant::now();
        watch.changed(LONG).await;
        assert_eq!(before.elapsed(), LONG);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_wait_loses_no_hint() {
        let hints = Arc::new(Hints::default());
        let mut watch = hints.watch(Topic::Queue);
        drop(tokio::time::timeout(Duration::from_millis(1), watch.changed(LONG)).await);
        hints.wake(&[Topic::Queue]);
        let before = tokio::time::Instant::now();
        watch.changed(LONG).await;
        assert!(before.elapsed() < LONG);
    }

    #[test]
    fn channels_are_bounded_by_living_watches() {
        let hints = Arc::new(Hints::default());
        for number in 0..1_000_u16 {
            let session = SessionId::new(i64::from(number), [0; 10]);
            let first = hints.watch(Topic::Session(session.clone()));
            let second = hints.watch(Topic::Session(session.clone()));
            assert_eq!(hints.lock().len(), 1);
            drop(first);
            assert_eq!(hints.lock().len(), 1, "somebody still watches");
            drop(second);
            assert_eq!(hints.lock().len(), 0);
            hints.wake(&[Topic::Session(session)]);
        }
        assert_eq!(hints.lock().len(), 0, "waking makes no channel");
    }
}
