//! Texts that the agent is given while the run goes on: within its turn, behind it, or in the place of what it does.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::attachments::Prompt;
use crate::diagnostics::say;

/// Messages that may wait for the agent's turn: more than a server has on their way. Further ones are dropped.
pub(crate) const MESSAGES: usize = 32;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its number, by which the server is told how far it is.
    pub(crate) seq: i64,
    /// What it is.
    pub(crate) what: What,
}

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A text within the turn.
    Steer(Prompt),
    /// A text behind the turn.
    Queue(Prompt),
    /// The end of what the agent does now, and perhaps what it goes on with.
    Interrupt(Option<Prompt>),
}

/// The side that gives.
#[derive(Debug)]
pub(crate) struct Messenger {
    sender: mpsc::Sender<Message>,
}

/// The side of the turn.
#[derive(Debug)]
pub(crate) struct Messages {
    receiver: mpsc::Receiver<Message>,
    /// Those that wait for the turn's end.
    held: VecDeque<(i64, Prompt)>,
}

impl Messenger {
    pub(crate) fn new() -> (Self, Messages) {
        let (sender, receiver) = mpsc::channel(MESSAGES);
        (Self { sender }, Messages { receiver, held: VecDeque::new() })
    }

    /// Gives a message to the turn that goes on, or to the one that comes; `false` if it comes too late for any.
    pub(crate) fn give(&self, message: Message) -> bool {
        let given = self.sender.try_send(message).is_ok();
        if !given {
            say("a message for the agent was dropped: too many wait, or its turn is over");
        }
        given
    }
}

impl Messages {
    /// The next message; waits for ever if none comes.
    ///
    /// # Cancel safety
    /// Safe: a message that was not given out stays.
    pub(crate) async fn next(&mut self) -> Message {
        match self.receiver.recv().await {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }

    /// Keeps a text for the turn's end. The server has bounded how many there are, and the channel how many come at once.
    pub(crate) fn hold(&mut self, seq: i64, text: Prompt) {
        self.held.push_back((seq, text));
    }

    /// The same, before all others.
    pub(crate) fn hold_first(&mut self, seq: i64, text: Prompt) {
        self.held.push_front((seq, text));
    }

    /// The next text for a turn of its own, now that a turn has ended; what came for the turn that has ended is among those
    /// that are too late, unless it has a text to go on with.
    pub(crate) fn next_held(&mut self, late: &mut Vec<i64>) -> Option<(i64, Prompt)> {
        while let Ok(Message { seq, what }) = self.receiver.try_recv() {
            match what {
                What::Queue(text) | What::Interrupt(Some(text)) => self.held.push_back((seq, text)),
                What::Steer(_) | What::Interrupt(None) => late.push(seq),
            }
        }
        self.held.pop_front()
    }

    /// Ends the taking; the numbers of those that came too late.
    pub(crate) fn close(&mut self) -> Vec<i64> {
        self.receiver.close();
        let mut late: Vec<i64> = self.held.drain(..).map(|(seq, _)| seq).collect();
        while let Ok(message) = self.receiver.try_recv() {
            late.push(message.seq);
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steer(seq: i64) -> Message {
        Message { seq, what: What::Steer(seq.to_string().into()) }
    }

    #[tokio::test]
    async fn messages_wait_up_to_their_bound_and_those_that_come_too_late_are_told() {
        let (messenger, mut messages) = Messenger::new();
        let most = i64::try_from(MESSAGES).unwrap();
        for seq in 0..most {
            assert!(messenger.give(steer(seq)));
        }
        assert!(!messenger.give(steer(most)), "one more is dropped");
        assert_eq!(messages.next().await, steer(0));
        messages.hold(99, "x".to_owned().into());
        let late: Vec<i64> = [99].into_iter().chain(1..most).collect();
        assert_eq!(messages.close(), late);
        assert!(!messenger.give(steer(100)));
        assert_eq!(messages.close(), Vec::<i64>::new());
    }

    #[tokio::test]
    async fn what_waits_for_the_end_of_a_turn_comes_in_order_and_what_was_for_it_is_late() {
        let (messenger, mut messages) = Messenger::new();
        messages.hold(1, "one".to_owned().into());
        messages.hold_first(0, "none".to_owned().into());
        messenger.give(steer(2));
        messenger.give(Message { seq: 3, what: What::Interrupt(None) });
        messenger.give(Message { seq: 4, what: What::Interrupt(Some("four".to_owned().into())) });
        messenger.give(Message { seq: 5, what: What::Queue("five".to_owned().into()) });
        let mut late = Vec::new();
        let mut held = Vec::new();
        while let Some((seq, _)) = messages.next_held(&mut late) {
            held.push(seq);
        }
        assert_eq!((held, late), (vec![0, 1, 4, 5], vec![2, 3]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_tells_anything_waits_for_ever() {
        let (messenger, mut messages) = Messenger::new();
        drop(messenger);
        let told = tokio::time::timeout(std::time::Duration::from_hours(1), messages.next()).await;
        assert!(told.is_err());
    }
}
