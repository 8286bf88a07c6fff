//! What is going on in one CLI process, told from its lines.
//!
//! One result may answer several prompts, a prompt may never get a result, and a question of the CLI that nobody
//! answers stops its turn for ever. The driver reports each prompt before it writes it and each line as it reads it,
//! and does what [`Conversation::observe`] says.

use crate::event::{CommandLifecycle, CommandState, ControlRequest, ResultLine};
use crate::input::answer_unsupported;
use crate::limits::{AWAITING_MAX, PROMPTS_MAX};
use crate::line::Line;
use crate::uuid::Uuid;

/// What the driver should do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this to standard input: the CLI asked for what the driver does not do, and waits.
    Write(String),
    /// Find an answer to this request, write it, and say so with [`Conversation::answered`].
    Answer(ControlRequest),
    /// Drop the search for an answer to this request: the CLI no longer waits.
    Withdrawn {
        /// The request.
        request_id: String,
    },
    /// A turn ended.
    Finished(Finished),
    /// This prompt will have no result.
    Unanswered {
        /// The prompt.
        prompt: String,
        /// Why.
        why: Unanswered,
    },
}

/// The end of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The prompts that it settles, in the order they were sent; none if something else began the turn.
    pub prompts: Vec<String>,
    /// How it ended.
    pub result: Box<ResultLine>,
}

/// Why a prompt has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// The session had this prompt before, perhaps in a process that died over it: the CLI does not begin it again.
    SeenBefore,
    /// It was taken back before it began, or no result named it.
    Dropped,
}

/// Why a prompt must not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConversationError {
    /// The CLI would echo it and do nothing.
    #[error("prompt {prompt} was sent before")]
    Repeated {
        /// The prompt.
        prompt: Uuid,
    },
    /// The process has had [`PROMPTS_MAX`] prompts; another one can resume the session.
    #[error("{PROMPTS_MAX} prompts were sent to one process")]
    TooMany,
}

/// What is going on in one CLI process.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    answers: Vec<String>,
    prompts: Vec<(String, State)>,
    awaiting: Vec<ControlRequest>,
    in_turn: bool,
    spoke: bool,
    results: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Sent,
    Started,
    Settled,
}

impl Conversation {
    /// Begins with a new process. `answers` names the requests that the driver answers, such as `can_use_tool`; all
    /// others are refused at once.
    #[must_use]
    pub fn new(answers: &[&str]) -> Self {
        Self { answers: answers.iter().map(|&name| name.to_owned()).collect(), ..Self::default() }
    }

    /// Notes that a prompt is about to be written.
    ///
    /// # Errors
    /// [`ConversationError`] if it must not be.
    pub fn prompt_sent(&mut self, prompt: &Uuid) -> Result<(), ConversationError> {
        if self.prompts.iter().any(|(known, _)| known == prompt.as_str()) {
            return Err(ConversationError::Repeated { prompt: prompt.clone() });
        }
        if self.prompts.len() >= PROMPTS_MAX {
            return Err(ConversationError::TooMany);
        }
        self.prompts.push((prompt.to_string(), State::Sent));
        Ok(())
    }

    /// Takes in a line and says what to do about it; usually nothing.
    pub fn observe(&mut self, line: &Line) -> Option<Action> {
        self.spoke |= *line != Line::NotJson;
        match line {
            Line::Init(_) => {
                self.in_turn = true;
                None
            }
            Line::CommandLifecycle(lifecycle) => self.moved(lifecycle),
            Line::Result(result) => Some(self.finished(result)),
            Line::ControlRequest(request) => Some(self.asked(request)),
            Line::ControlCancel { request_id } => {
                self.answered(request_id).then(|| Action::Withdrawn { request_id: request_id.clone() })
            }
            Line::Assistant(_)
            | Line::User(_)
            | Line::StreamDelta(_)
            | Line::ApiRetry(_)
            | Line::ControlResponse(_)
            | Line::PermissionDenied(_)
            | Line::Other { .. }
            | Line::NotJson => None,
        }
    }

    /// Notes that a request was answered; `false` if none with this id waits.
    pub fn answered(&mut self, request_id: &str) -> bool {
        let before = self.awaiting.len();
        self.awaiting.retain(|request| request.request_id != request_id);
        self.awaiting.len() < before
    }

    /// Refuses everything that waits, for a driver that cannot find answers any more, and gives the lines to write.
    pub fn refuse_awaiting(&mut self) -> Vec<String> {
        let refuse = |request: ControlRequest| answer_unsupported(&request.request_id, &request.subtype);
        std::mem::take(&mut self.awaiting).into_iter().map(refuse).collect()
    }

    /// Gives the requests that wait for an answer, oldest first.
    #[must_use]
    pub fn awaiting(&self) -> &[ControlRequest] {
        &self.awaiting
    }

    /// Tells whether the CLI has something to do: a turn goes on, or a prompt has neither result nor excuse.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.in_turn || self.prompts.iter().any(|(_, state)| *state != State::Settled)
    }

    /// Tells whether the CLI has printed any event. One that does not like its arguments prints none.
    #[must_use]
    pub fn spoke(&self) -> bool {
        self.spoke
    }

    /// Gives the number of results so far.
    #[must_use]
    pub fn results(&self) -> u32 {
        self.results
    }

    fn moved(&mut self, lifecycle: &CommandLifecycle) -> Option<Action> {
        let in_turn = self.in_turn;
        let (prompt, state) =
            self.prompts.iter_mut().find(|(prompt, _)| *prompt == lifecycle.command_uuid)?;
        let why = match (&lifecycle.state, *state) {
            (CommandState::Started, State::Sent) => {
                *state = State::Started;
                self.in_turn = true;
                return None;
            }
            // Done without having started. A prompt that joined a running turn does start, and its result follows.
            (CommandState::Completed, State::Sent) => Unanswered::SeenBefore,
            (CommandState::Cancelled, State::Sent) => Unanswered::Dropped,
            // The turn's result is behind us and did not name it.
            (CommandState::Completed | CommandState::Cancelled, State::Started) if !in_turn => {
                Unanswered::Dropped
            }
            _ => return None,
        };
        *state = State::Settled;
        Some(Action::Unanswered { prompt: prompt.clone(), why })
    }

    fn finished(&mut self, result: &ResultLine) -> Action {
        self.results = self.results.saturating_add(1);
        self.in_turn = result.queued_turn_count > 0;
        let started = self.prompts.iter().any(|(_, state)| *state == State::Started);
        // A result without ids is one of a failed start, or of a version that does not name them: it is for what has
        // started, or for everything if nothing could start.
        let unnamed = result.prompts.is_empty() && result.origin.is_none();
        let mut prompts = Vec::new();
        for (prompt, state) in &mut self.prompts {
            let meant = match *state {
                State::Settled => false,
                State::Started => unnamed || result.prompts.contains(prompt),
                State::Sent => (unnamed && !started) || result.prompts.contains(prompt),
            };
            if meant {
                *state = State::Settled;
                prompts.push(prompt.clone());
            }
        }
        Action::Finished(Finished { prompts, result: Box::new(result.clone()) })
    }

    fn asked(&mut self, request: &ControlRequest) -> Action {
        self.answered(&request.request_id);
        let answers = self.answers.contains(&request.subtype) && self.awaiting.len() < AWAITING_MAX;
        if !answers {
            return Action::Write(answer_unsupported(&request.request_id, &request.subtype));
        }
        self.awaiting.push(request.clone());
        Action::Answer(request.clone())
    }
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
