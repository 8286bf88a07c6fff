//! Holds the first replies of conversations back until enough of them have asked, so that all go on at the same moment.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::watch;

/// Longest time for which a first reply is held back; then it is given, however many have asked.
pub const MAX_GATHERING: Duration = Duration::from_mins(8);

/// Who is waited for.
#[derive(Debug, Default)]
struct Awaited {
    /// How many.
    wanted: usize,
    /// Those that have asked.
    come: HashSet<String>,
}

impl Awaited {
    fn is_complete(&self) -> bool {
        self.come.len() >= self.wanted
    }
}

/// Where first requests wait for each other.
#[derive(Debug, Default)]
pub(crate) struct Gathering(watch::Sender<Awaited>);

impl Gathering {
    /// Waits from now on for so many conversations; those that wait for fewer go on.
    pub(crate) fn begin(&self, wanted: usize) {
        self.0.send_replace(Awaited { wanted, come: HashSet::new() });
    }

    /// Waits until everybody has come. Who asks again is counted once, and who comes when all have is not held.
    ///
    /// # Cancel safety
    /// Safe; who goes away has come all the same.
    pub(crate) async fn join(&self, conversation: &str) {
        let mut awaited = self.0.subscribe();
        self.0.send_if_modified(|awaited| {
            !awaited.is_complete() && awaited.come.insert(conversation.to_owned())
        });
        // The sender lives as long as `self`; without it nobody is waited for.
        let complete = awaited.wait_for(Awaited::is_complete);
        drop(tokio::time::timeout(MAX_GATHERING, complete).await);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    const A_MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn without_a_number_nobody_is_held() {
        Gathering::default().join("a").await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_one_to_come_frees_all_and_who_asks_twice_is_one() {
        let gathering = Gathering::default();
        gathering.begin(2);
        let mut first = Box::pin(gathering.join("a"));
        assert!(timeout(A_MOMENT, &mut first).await.is_err());
        assert!(timeout(A_MOMENT, gathering.join("a")).await.is_err());
        gathering.join("b").await;
        first.await;
        gathering.join("c").await;
        gathering.begin(2);
        assert!(timeout(A_MOMENT, gathering.join("c")).await.is_err(), "each gathering is one of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_held_for_ever() {
        let gathering = Gathering::default();
        gathering.begin(2);
        let began = Instant::now();
        gathering.join("a").await;
        assert_eq!(began.elapsed(), MAX_GATHERING);
    }
}
