//! Texts that the agent is given within its turn.

use tokio::sync::mpsc;

use crate::diagnostics::say;

/// Texts that may wait for the agent's turn; further ones are dropped.
pub(crate) const MESSAGES: usize = 8;

/// The side that gives.
#[derive(Debug)]
pub(crate) struct Messenger {
    sender: mpsc::Sender<String>,
}

/// The side of the turn.
#[derive(Debug)]
pub(crate) struct Messages {
    receiver: mpsc::Receiver<String>,
}

impl Messenger {
    pub(crate) fn new() -> (Self, Messages) {
        let (sender, receiver) = mpsc::channel(MESSAGES);
        (Self { sender }, Messages { receiver })
    }

    /// Gives a text to the turn that goes on, or to the one that comes.
    pub(crate) fn give(&self, text: String) {
        if self.sender.try_send(text).is_err() {
            say("a message for the agent was dropped: too many wait, or its turn is over");
        }
    }
}

impl Messages {
    /// The next text; waits for ever if none comes.
    ///
    /// # Cancel safety
    /// Safe: a text that was not given out stays.
    pub(crate) async fn next(&mut self) -> String {
        match self.receiver.recv().await {
            Some(text) => text,
            None => std::future::pending().await,
        }
    }

    /// Ends the taking; how many texts came too late.
    pub(crate) fn close(&mut self) -> usize {
        self.receiver.close();
        self.receiver.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn texts_wait_up_to_their_bound_and_those_that_come_too_late_are_counted() {
        let (messenger, mut messages) = Messenger::new();
        for number in 0..=MESSAGES {
            messenger.give(number.to_string());
        }
        assert_eq!(messages.next().await, "0");
        assert_eq!(messages.close(), MESSAGES - 1, "one was dropped, one was taken");
        messenger.give("late".to_owned());
        assert_eq!(messages.close(), MESSAGES - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_tells_anything_waits_for_ever() {
        let (messenger, mut messages) = Messenger::new();
        drop(messenger);
        let told = tokio::time::timeout(std::time::Duration::from_hours(1), messages.next()).await;
        assert!(told.is_err());
    }
}
