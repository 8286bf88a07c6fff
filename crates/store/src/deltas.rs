//! Text deltas on their way to live readers: bounded, lossy, never stored.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_domain::event::Delta;
use caisson_domain::id::SessionId;
use tokio::sync::broadcast;
use tokio::time::Instant;

/// Deltas that wait for a slow reader; older ones are dropped, and the reader is told how many. About ten seconds of a
/// session at its full rate.
pub const DELTA_CHANNEL_ITEMS: usize = 256;

/// Sessions whose text is wanted by other servers, at most; the text of further ones stays here.
pub const DELTA_SESSIONS_ELSEWHERE: usize = 4_096;
/// How long another server's word that it listens is good for. It says so again well before.
const WANTED_FOR: Duration = Duration::from_secs(25);

type Channels = HashMap<SessionId, broadcast::Sender<Delta>>;

/// One channel for each session that somebody listens to.
#[derive(Debug, Default)]
pub(crate) struct Deltas {
    channels: Mutex<Channels>,
    /// Until when other servers listen.
    elsewhere: Mutex<HashMap<SessionId, Instant>>,
}

impl Deltas {
    pub(crate) fn subscribe(&self, session: &SessionId) -> broadcast::Receiver<Delta> {
        let mut channels = self.lock();
        // A receiver says nothing when it goes, so channels without one are swept here: the map holds at most one
        // channel for each that listened since the last subscription.
        channels.retain(|_, channel| channel.receiver_count() > 0);
        channels
            .entry(session.clone())
            .or_insert_with(|| broadcast::Sender::new(DELTA_CHANNEL_ITEMS))
            .subscribe()
    }

    pub(crate) fn publish(&self, session: &SessionId, delta: Delta) {
        let mut channels = self.lock();
        let Some(channel) = channels.get(session) else { return };
        if channel.send(delta).is_err() {
            channels.remove(session);
        }
    }

    /// The sessions that somebody listens to here.
    pub(crate) fn listened(&self) -> Vec<SessionId> {
        let channels = self.lock();
        let heard = channels.iter().filter(|(_, channel)| channel.receiver_count() > 0);
        heard.map(|(session, _)| session.clone()).collect()
    }

    /// Another server listens to the session from now on, for a while.
    pub(crate) fn want_elsewhere(&self, session: &SessionId) {
        let now = Instant::now();
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        if !elsewhere.contains_key(session) && elsewhere.len() >= DELTA_SESSIONS_ELSEWHERE {
            elsewhere.retain(|_, until| *until > now);
            if elsewhere.len() >= DELTA_SESSIONS_ELSEWHERE {
                return;
            }
        }
        elsewhere.insert(session.clone(), now + WANTED_FOR);
    }

    /// Whether another server listens to the session.
    pub(crate) fn is_wanted_elsewhere(&self, session: &SessionId) -> bool {
        let now = Instant::now();
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = elsewhere.get(session).is_some_and(|until| *until > now);
        if !wanted {
            elsewhere.remove(session);
        }
        wanted
    }

    fn lock(&self) -> MutexGuard<'_, Channels> {
        // A panic elsewhere leaves the map whole: each change to it is a single call.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use caisson_domain::event::DeltaKind;
    use caisson_domain::id::RunId;
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn session(number: u8) -> SessionId {
        SessionId::new(i64::from(number), [number; 10])
    }

    fn delta(text: &str) -> Delta {
        Delta {
            run: RunId::new(1, [0; 10]),
            kind: DeltaKind::Text,
            message_id: String::new(),
            block: 0,
            text: text.to_owned(),
        }
    }

    #[test]
    fn every_listener_of_the_session_gets_a_delta_and_no_other() {
        let deltas = Deltas::default();
        let mut one = deltas.subscribe(&session(1));
        let mut two = deltas.subscribe(&session(1));
        let mut other = deltas.subscribe(&session(2));
        deltas.publish(&session(1), delta("a"));
        assert_eq!(one.try_recv().unwrap(), delta("a"));
        assert_eq!(two.try_recv().unwrap(), delta("a"));
        assert_eq!(other.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn publishing_without_listeners_keeps_nothing() {
        let deltas = Deltas::default();
        deltas.publish(&session(1), delta("lost"));
        assert_eq!(deltas.lock().len(), 0);
        drop(deltas.subscribe(&session(1)));
        deltas.publish(&session(1), delta("lost"));
        assert_eq!(deltas.lock().len(), 0, "the channel goes with its last listener");
    }

    #[test]
    fn channels_without_listeners_are_swept_by_the_next_subscription() {
        let deltas = Deltas::default();
        for number in 0..100 {
            drop(deltas.subscribe(&session(number)));
            assert_eq!(deltas.lock().len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn text_is_wanted_elsewhere_for_a_while_and_of_so_many_sessions() {
        let deltas = Deltas::default();
        assert!(!deltas.is_wanted_elsewhere(&session(1)));
        deltas.want_elsewhere(&session(1));
        assert!(deltas.is_wanted_elsewhere(&session(1)));
        tokio::time::advance(WANTED_FOR).await;
        assert!(!deltas.is_wanted_elsewhere(&session(1)), "nobody has said so again");
        let many = |number: usize| SessionId::new(i64::try_from(number).unwrap(), [9; 10]);
        for number in 0..=DELTA_SESSIONS_ELSEWHERE {
            deltas.want_elsewhere(&many(number));
        }
        assert!(deltas.is_wanted_elsewhere(&many(DELTA_SESSIONS_ELSEWHERE - 1)));
        assert!(!deltas.is_wanted_elsewhere(&many(DELTA_SESSIONS_ELSEWHERE)), "one too many");
        tokio::time::advance(WANTED_FOR).await;
        deltas.want_elsewhere(&many(DELTA_SESSIONS_ELSEWHERE));
        assert!(deltas.is_wanted_elsewhere(&many(DELTA_SESSIONS_ELSEWHERE)), "there is room again");
    }

    #[test]
    fn a_reader_that_lags_loses_the_oldest_beyond_the_capacity_and_is_told() {
        let deltas = Deltas::default();
        let mut slow = deltas.subscribe(&session(1));
        for number in 0..=DELTA_CHANNEL_ITEMS {
            deltas.publish(&session(1), delta(&number.to_string()));
        }
        assert_eq!(slow.try_recv(), Err(TryRecvError::Lagged(1)));
        assert_eq!(slow.try_recv().unwrap(), delta("1"));
    }
}
