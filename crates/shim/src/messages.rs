//! Texts that the agent is given while the run goes on: within its turn, behind it, or in the place of what it does.

use std::collections::VecDeque;

use caisson_domain::budget::is_wrap_up;
use caisson_domain::input::InputState;
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

/// What has become of a message that came while no turn went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It waits for a turn.
    Waits,
    /// The same, and it ends what goes on in the place of a turn.
    Interrupts,
    /// It only ends that.
    OnlyInterrupts,
}

/// What a turn begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) prompt: Prompt,
    /// The number of the message that it is; none of what the shim says itself.
    pub(crate) seq: Option<i64>,
}

impl From<Prompt> for Told {
    fn from(prompt: Prompt) -> Self {
        Self { prompt, seq: None }
    }
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
    /// Those for within a turn that came while none went on.
    steers: VecDeque<(i64, Prompt)>,
}

impl Messenger {
    pub(crate) fn new() -> (Self, Messages) {
        let (sender, receiver) = mpsc::channel(MESSAGES);
        (Self { sender }, Messages { receiver, held: VecDeque::new(), steers: VecDeque::new() })
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
    /// The next message for the turn that goes on, those first that came while none went on; waits for ever if none comes.
    ///
    /// # Cancel safety
    /// Safe: a message that was not given out stays.
    pub(crate) async fn next(&mut self) -> Message {
        match self.steers.pop_front() {
            Some((seq, text)) => Message { seq, what: What::Steer(text) },
            None => self.next_new().await,
        }
    }

    /// The next message that nobody has looked at; waits for ever if none comes.
    ///
    /// # Cancel safety
    /// Safe: a message that was not given out stays.
    pub(crate) async fn next_new(&mut self) -> Message {
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

    /// Keeps a message that comes while no turn goes on. What is for within a turn waits for the next one, whatever that begins with.
    pub(crate) fn keep(&mut self, Message { seq, what }: Message) -> Kept {
        match what {
            What::Steer(text) => self.steers.push_back((seq, text)),
            What::Queue(text) => self.hold(seq, text),
            What::Interrupt(Some(text)) => {
                self.hold_first(seq, text);
                return Kept::Interrupts;
            }
            What::Interrupt(None) => return Kept::OnlyInterrupts,
        }
        Kept::Waits
    }

    /// Keeps all that has come since somebody looked, now that a turn has ended; how far each of them is by that. One that was to
    /// interrupt what has ended by itself, and says nothing else, is too late.
    pub(crate) fn keep_all(&mut self) -> Vec<(i64, InputState)> {
        let mut told = Vec::new();
        while let Ok(Message { seq, what }) = self.receiver.try_recv() {
            let state = match what {
                What::Interrupt(None) => InputState::Undelivered,
                What::Queue(text) | What::Interrupt(Some(text)) => {
                    self.hold(seq, text);
                    InputState::Held
                }
                What::Steer(text) => {
                    self.steers.push_back((seq, text));
                    InputState::Held
                }
            };
            told.push((seq, state));
        }
        told
    }

    /// The next text for a turn of its own, now that none goes on. The server's word about a budget is none: for that alone no
    /// money is spent.
    pub(crate) fn next_held(&mut self) -> Option<Told> {
        let (seq, prompt) = self.held.pop_front().or_else(|| {
            let first = self.steers.iter().position(|(_, steer)| !is_wrap_up(&steer.text))?;
            self.steers.remove(first)
        })?;
        Some(Told { prompt, seq: Some(seq) })
    }

    /// Ends the taking; the numbers of those that came too late.
    pub(crate) fn close(&mut self) -> Vec<i64> {
        self.receiver.close();
        let mut late: Vec<i64> =
            self.held.drain(..).chain(self.steers.drain(..)).map(|(seq, _)| seq).collect();
        while let Ok(message) = self.receiver.try_recv() {
            late.push(message.seq);
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_domain::budget::BudgetScope;
    use caisson_domain::budget::SoftBudget;

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

    fn all_held(messages: &mut Messages) -> Vec<i64> {
        std::iter::from_fn(|| messages.next_held()).filter_map(|told| told.seq).collect()
    }

    #[tokio::test]
    async fn what_waits_for_the_end_of_a_turn_comes_in_order_and_what_was_for_it_has_one_of_its_own() {
        let (messenger, mut messages) = Messenger::new();
        messages.hold(1, "one".to_owned().into());
        messages.hold_first(0, "none".to_owned().into());
        messenger.give(steer(2));
        messenger.give(Message { seq: 3, what: What::Interrupt(None) });
        messenger.give(Message { seq: 4, what: What::Interrupt(Some("four".to_owned().into())) });
        messenger.give(Message { seq: 5, what: What::Queue("five".to_owned().into()) });
        let held = |seq| (seq, InputState::Held);
        assert_eq!(messages.keep_all(), [held(2), (3, InputState::Undelivered), held(4), held(5)]);
        assert_eq!(all_held(&mut messages), [0, 1, 4, 5, 2]);
    }

    #[tokio::test]
    async fn what_comes_while_no_turn_goes_on_is_told_within_the_next_or_begins_one() {
        let (messenger, mut messages) = Messenger::new();
        assert_eq!(messages.keep(steer(1)), Kept::Waits);
        messenger.give(steer(2));
        // Within the next turn, before what comes then.
        assert_eq!((messages.next().await, messages.next().await), (steer(1), steer(2)));

        assert_eq!(messages.keep(steer(3)), Kept::Waits);
        assert_eq!(
            messages.keep(Message { seq: 4, what: What::Queue("four".to_owned().into()) }),
            Kept::Waits
        );
        let interrupt = |seq, text: Option<&str>| Message {
            seq,
            what: What::Interrupt(text.map(|text| text.to_owned().into())),
        };
        assert_eq!(messages.keep(interrupt(5, Some("five"))), Kept::Interrupts);
        assert_eq!(messages.keep(interrupt(6, None)), Kept::OnlyInterrupts);
        assert_eq!(all_held(&mut messages), [5, 4, 3], "where no turn comes, each has its own");
    }

    #[tokio::test]
    async fn the_servers_word_about_a_budget_begins_no_turn() {
        let (_messenger, mut messages) = Messenger::new();
        let soft = SoftBudget {
            scope: BudgetScope::Run,
            percent: 80,
            budget_micro_usd: 10,
            before_micro_usd: 0,
            spent_micro_usd: 8,
            under_way_micro_usd: 0,
        };
        messages.keep(Message { seq: 1, what: What::Steer(soft.wrap_up().into()) });
        assert_eq!(messages.next_held(), None);
        messages.keep(steer(2));
        assert_eq!(all_held(&mut messages), [2]);
        assert_eq!(messages.close(), [1], "and is not forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_tells_anything_waits_for_ever() {
        let (messenger, mut messages) = Messenger::new();
        drop(messenger);
        let told = tokio::time::timeout(std::time::Duration::from_hours(1), messages.next()).await;
        assert!(told.is_err());
    }
}
