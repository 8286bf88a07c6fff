//! One turn of the agent: a prompt in, its end out, whatever the agent does or does not do.

use std::time::Duration;

use caisson_claude::{
    Action, ConversationError, Finished, InputError, Line, PromptImage, ResultLine, Unanswered, Uuid,
    Verdict, interrupt, judge, user_prompt_with,
};
use caisson_domain::input::InputState;
use caisson_domain::protocol::{JournalBody, StopReason};
use tokio::time::Instant;

use crate::agent::{Agent, DRAIN_MS, Heard};
use crate::attachments::Prompt;
use crate::diagnostics::say;
use crate::journal::WriteError;
use crate::messages::{Message, Messages, Messenger, Told, What};
use crate::reaper::Exit;
use crate::stop::Stop;
use crate::watch::{Hung, Watch};

/// What the ids of interruptions begin with that somebody asked for.
const INTERRUPTION: &str = "caisson-interrupt-";

/// How a turn ended.
#[derive(Debug)]
pub(crate) enum TurnEnd {
    /// With a result.
    Result(Box<ResultLine>),
    /// Somebody ended what the agent did, and gave it nothing to go on with.
    Interrupted,
    /// The process ended before.
    Exited(Exit),
    /// It hung.
    Hung(Hung),
    /// It was told to stop, and has ended or must be killed.
    Stopped(StopReason),
    /// The agent did not take the prompt.
    Untaken(Unanswered),
    /// The prompt was not written.
    Unsent(Unsent),
    /// A line could not be journaled.
    Unwritten(WriteError),
}

/// Why a prompt was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsent {
    /// The text cannot be a prompt.
    #[error(transparent)]
    Text(#[from] InputError),
    /// The conversation takes no more.
    #[error(transparent)]
    Conversation(#[from] ConversationError),
    /// The process reads no more: its end, or its silence, says why.
    #[error("the agent does not read its input")]
    Unread,
}

/// What a wait is for.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// A watchdog.
    Hangs(Hung),
    /// The last lines of a process that has ended.
    Drained(Exit),
    /// The end of an interrupted turn.
    Interrupted(StopReason),
}

/// A turn that goes on.
struct Turn {
    prompt: Uuid,
    /// Messages that were given to it and are not answered yet.
    messages: Vec<Uuid>,
    /// Its result, while a message that the agent did not take up within the turn has a turn of its own.
    result: Option<Box<ResultLine>>,
    /// Interruptions whose end was not seen yet.
    interruptions: usize,
    /// Whether what the agent did last was interrupted: then the turn comes to what it goes on with.
    interrupted: bool,
    watch: Watch,
    /// When the process was seen to have ended, or its output to be closed.
    ended: Option<Instant>,
    stopping: Option<(StopReason, Instant)>,
}

impl Agent {
    /// Gives the agent a prompt and waits for the end of its turn. Told to stop, it interrupts the agent first.
    pub(crate) async fn turn(&mut self, text: &str, stop: &mut Stop) -> TurnEnd {
        let (_messenger, mut none) = Messenger::new();
        self.turn_with(&Prompt::from(text.to_owned()).into(), stop, &mut none).await
    }

    /// The same, and passes messages on as they come. The agent takes them up before its next request to the model; one
    /// that comes too late for that has a turn of its own, which belongs to this one.
    pub(crate) async fn turn_with(
        &mut self,
        told: &Told,
        stop: &mut Stop,
        messages: &mut Messages,
    ) -> TurnEnd {
        let prompt = match self.begin(told).await {
            Ok(prompt) => prompt,
            Err(end) => return end,
        };
        let watch = Watch::new(self.patience, Instant::now());
        let mut turn = Turn::new(prompt, watch);
        loop {
            if self.exit.is_some() || self.closed {
                turn.ended.get_or_insert_with(Instant::now);
            }
            if let (Some(exit), true) = (self.exit, self.closed) {
                return turn.end(TurnEnd::Exited(exit));
            }
            let (deadline, until) = turn.deadline(self);
            tokio::select! {
                heard = self.heard.recv(), if !self.closed => match heard {
                    Some(Heard::Line(line)) => {
                        if let Some(end) = turn.take_in(self, &line) {
                            return turn.end(end);
                        }
                    }
                    Some(Heard::Unwritten(error)) => return TurnEnd::Unwritten(error),
                    None => self.closed = true,
                },
                exit = self.child.wait(), if self.exit.is_none() => self.exit = Some(exit),
                reason = stop.told(), if turn.stopping.is_none() => {
                    self.write(interrupt(turn.prompt.as_str()));
                    turn.stopping = Some((reason, Instant::now()));
                }
                message = messages.next(), if turn.takes_messages() => {
                    if let Err(error) = turn.take_message(self, message, messages).await {
                        return TurnEnd::Unwritten(error);
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    if let Some(end) = turn.ran_out(self, until) {
                        return turn.end(end);
                    }
                }
            }
        }
    }

    /// Gives the agent what its turn begins with, and tells how far a message is by that; the prompt's id.
    async fn begin(&mut self, told: &Told) -> Result<Uuid, TurnEnd> {
        let prompt = self.next_prompt();
        let sent = self.send_prompt(&prompt, &told.prompt);
        if let Some(seq) = told.seq {
            let state = if sent.is_ok() { InputState::Delivered } else { InputState::Undelivered };
            let written = self.recorder.write(JournalBody::Input { seq, state }).await;
            written.map_err(TurnEnd::Unwritten)?;
        }
        match sent {
            Ok(()) | Err(Unsent::Unread) => Ok(prompt),
            Err(unsent @ (Unsent::Text(_) | Unsent::Conversation(_))) => Err(TurnEnd::Unsent(unsent)),
        }
    }

    fn send_prompt(&mut self, prompt: &Uuid, told: &Prompt) -> Result<(), Unsent> {
        let images = told.images.iter();
        let images = images.map(|image| PromptImage { media_type: &image.media_type, base64: &image.base64 });
        let images: Vec<_> = images.collect();
        let line = user_prompt_with(prompt, &told.text, &images)?;
        let room = self.room().ok_or(Unsent::Unread)?;
        self.conversation.prompt_sent(prompt)?;
        drop(room.send(line));
        Ok(())
    }
}

impl Turn {
    fn new(prompt: Uuid, watch: Watch) -> Self {
        let (messages, result, ended, stopping) = (Vec::new(), None, None, None);
        Self { prompt, messages, result, interruptions: 0, interrupted: false, watch, ended, stopping }
    }

    /// Gives the agent a message, or keeps it for the turn's end, and tells the server so.
    async fn take_message(
        &mut self,
        agent: &mut Agent,
        Message { seq, what }: Message,
        messages: &mut Messages,
    ) -> Result<(), WriteError> {
        let state = match what {
            What::Queue(text) => {
                messages.hold(seq, text);
                InputState::Held
            }
            What::Steer(text) => self.pass_on(agent, &text),
            What::Interrupt(text) => {
                let written = agent.write(interrupt(&format!("{INTERRUPTION}{seq}")));
                self.interruptions += usize::from(written);
                // Written now, it may be taken for a part of what is being ended, and end with it.
                match text {
                    Some(text) => {
                        messages.hold_first(seq, text);
                        InputState::Held
                    }
                    None if written => InputState::Delivered,
                    None => InputState::Undelivered,
                }
            }
        };
        agent.recorder.write(JournalBody::Input { seq, state }).await.map(drop)
    }

    fn pass_on(&mut self, agent: &mut Agent, told: &Prompt) -> InputState {
        let message = agent.next_prompt();
        match agent.send_prompt(&message, told) {
            Ok(()) => {
                self.messages.push(message);
                InputState::Delivered
            }
            Err(unsent) => {
                say(format_args!("a message was not given to the agent: {unsent}"));
                InputState::Undelivered
            }
        }
    }

    /// What is waited for next, and how long. A stop counts more than everything else.
    fn deadline(&self, agent: &Agent) -> (Instant, Until) {
        if let Some((reason, since)) = self.stopping {
            return (since + agent.patience.interrupt, Until::Interrupted(reason));
        }
        match (self.ended, agent.exit) {
            (Some(since), Some(exit)) => (since + Duration::from_millis(DRAIN_MS), Until::Drained(exit)),
            (Some(since), None) => (since + agent.patience.exit, Until::Hangs(Hung::Mute)),
            (None, _) => {
                let (deadline, hung) = self.watch.deadline(agent.moved());
                (deadline, Until::Hangs(hung))
            }
        }
    }

    /// Takes in a line; the end, if it is one.
    fn take_in(&mut self, agent: &mut Agent, line: &Line) -> Option<TurnEnd> {
        self.watch.heard(line);
        agent.note(line);
        match agent.observe(line)? {
            Action::Write(answer) => {
                agent.write(answer);
                None
            }
            Action::Finished(finished) => self.finished(finished),
            Action::Unanswered { prompt, why } if prompt == self.prompt.as_str() => {
                Some(TurnEnd::Untaken(why))
            }
            Action::Unanswered { prompt, .. } => {
                self.messages.retain(|message| message.as_str() != prompt);
                self.complete()
            }
            // No kind of request is answered here, so neither of them comes.
            Action::Answer(_) | Action::Withdrawn { .. } => None,
        }
    }

    /// Whether the agent can still be given a message: it works on its prompt, or on what it goes on with.
    fn takes_messages(&self) -> bool {
        let works = self.result.is_none() || (self.interrupted && !self.messages.is_empty());
        self.stopping.is_none() && self.ended.is_none() && works
    }

    /// Takes in a result; the end, if nothing of the turn is open any more. What came of the task is told by the result
    /// that names its prompt: what comes of a message behind it undoes no work. But where somebody has interrupted that, it is
    /// what the agent goes on with that counts.
    fn finished(&mut self, finished: Finished) -> Option<TurnEnd> {
        let named = |prompt: &Uuid| finished.prompts.iter().any(|name| name == prompt.as_str());
        let (ours, before) = (named(&self.prompt), self.messages.len());
        self.messages.retain(|message| !named(message));
        if !ours && self.messages.len() == before {
            return None;
        }
        if ours || self.interrupted {
            let verdict = judge(&finished.result);
            let cut_off = self.interruptions > 0 && verdict == Verdict::Cancelled;
            if self.stopping.is_some() || (verdict != Verdict::Succeeded && !cut_off) {
                return Some(TurnEnd::Result(finished.result));
            }
            self.interruptions = if cut_off { self.interruptions - 1 } else { 0 };
            self.interrupted = cut_off;
            self.result = Some(finished.result);
        }
        self.complete()
    }

    /// The end, if there is a result and every message is answered.
    fn complete(&mut self) -> Option<TurnEnd> {
        if !self.messages.is_empty() {
            return None;
        }
        let result = self.result.take()?;
        Some(if self.interrupted { TurnEnd::Interrupted } else { TurnEnd::Result(result) })
    }

    /// Whether the agent is silent because it has asked and has no answer yet.
    fn waits_for_people(&self, agent: &Agent, hung: Hung) -> bool {
        self.ended.is_none() && hung != Hung::Begin && agent.approvals.are_waiting()
    }

    /// A wait has passed; the end, if it means one.
    fn ran_out(&self, agent: &Agent, until: Until) -> Option<TurnEnd> {
        match until {
            Until::Interrupted(reason) => Some(TurnEnd::Stopped(reason)),
            Until::Drained(exit) => Some(TurnEnd::Exited(exit)),
            Until::Hangs(hung) if agent.recorder.is_full() || self.waits_for_people(agent, hung) => {
                agent.touch();
                None
            }
            Until::Hangs(hung) => {
                // Something may have moved since the wait began.
                let (deadline, _) = self.deadline(agent);
                (deadline <= Instant::now()).then_some(TurnEnd::Hung(hung))
            }
        }
    }

    /// The end of a turn that was told to stop is that stop, however it came; and of one whose result was there already, that
    /// result.
    fn end(&mut self, end: TurnEnd) -> TurnEnd {
        match self.stopping {
            Some((reason, _)) => TurnEnd::Stopped(reason),
            // The task was done before.
            None => match (end, self.result.take()) {
                (TurnEnd::Exited(_) | TurnEnd::Hung(_), Some(result)) => TurnEnd::Result(result),
                (end, _) => end,
            },
        }
    }
}
