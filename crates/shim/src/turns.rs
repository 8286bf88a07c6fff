//! The agent's turns: that of the run's prompt, those of what people send meanwhile, and what the run comes to by them.

use std::time::Duration;

use caisson_claude::{
    Conversation, Ending as AgentEnding, Exit as AgentExit, ResultLine, Verdict, conclude, judge,
};
use caisson_domain::input::InputState;
use caisson_domain::limits::RESULT_TEXT_BYTES;
use caisson_domain::protocol::{JournalBody, NoteLevel};
use caisson_domain::run::{Failure, FailureKind, Phase, cut};
use serde_json::Value;

use crate::attachments::Prompt;
use crate::checkout;
use crate::commands;
use crate::failure::{Halt, verdict};
use crate::messages::Told;
use crate::reaper::Exit;
use crate::run::Live;
use crate::stop::Stop;
use crate::turn::TurnEnd;

impl Live<'_> {
    /// Gives the agent its prompt once everybody may know that it has it, and then what people send, until the checks have ended and
    /// nothing waits for it any more; judges what came of it.
    ///
    /// # Errors
    /// [`Halt`] if the run is not to go on.
    pub(crate) async fn give_prompt(&mut self) -> Result<(), Halt> {
        self.recorder.phase(Phase::Agent).await?;
        let started = self.recorder.write(JournalBody::AgentStarted).await?;
        self.agent_started = true;
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            () = self.recorder.stored(started) => {}
            reason = stop.told() => return Err(Halt::Stopped(reason)),
        }
        tokio::select! {
            biased;
            reason = stop.told() => return Err(Halt::Stopped(reason)),
            revived = self.revive() => revived?,
        }
        if let Some(git) = &self.git {
            checkout::begun(git)?;
        }
        let told = commands::told(&self.work.prompt, &self.repository);
        let prompt = Prompt::from(told).with(std::mem::take(&mut self.brought));
        let mut output = None;
        let done = self.turns_and_checks(Told::from(prompt), &mut stop, &mut output).await;
        // What was given before the run was stopped is kept as well.
        let kept = match output {
            Some(output) => self.keep_output(output).await,
            None => Ok(()),
        };
        done.and(kept)
    }

    /// Turns, and checks behind them, until these find nothing and nothing waits; the latest output of the form that the run asks for.
    async fn turns_and_checks(
        &mut self,
        first: Told,
        stop: &mut Stop,
        output: &mut Option<Value>,
    ) -> Result<(), Halt> {
        let mut next = Some(first);
        while let Some(told) = next {
            let end = self.turns(told, stop).await?;
            match &self.work.output_schema {
                None => self.judge(end)?,
                Some(schema) => {
                    if let Some(given) = self.judge_output(end, schema, stop).await? {
                        *output = Some(given);
                    }
                }
            }
            next = self.run_checks().await?;
        }
        Ok(())
    }

    /// A turn, and one for each text that waits for its end; how the last one ended.
    ///
    /// # Errors
    /// [`Halt`] if the journal cannot be written.
    pub(crate) async fn turns(&mut self, mut told: Told, stop: &mut Stop) -> Result<TurnEnd, Halt> {
        loop {
            let Some(agent) = self.agent.as_mut() else { return Ok(TurnEnd::Interrupted) };
            let end = agent.turn_with(&told, stop, &mut self.messages).await;
            let goes_on = match &end {
                TurnEnd::Result(result) => judge(result) == Verdict::Succeeded,
                TurnEnd::Interrupted => true,
                TurnEnd::Exited(_) => {
                    // Its last words may still be on their way.
                    agent.finish(Duration::ZERO).await;
                    false
                }
                TurnEnd::Hung(_)
                | TurnEnd::Stopped(_)
                | TurnEnd::Untaken(_)
                | TurnEnd::Unsent(_)
                | TurnEnd::Unwritten(_) => false,
            };
            let next = if goes_on { self.next_text().await? } else { None };
            let Some(next) = next else { return Ok(end) };
            told = next;
        }
    }

    /// The next text that waits for a turn of its own, now that none goes on.
    ///
    /// # Errors
    /// [`Halt`] if the journal cannot be written.
    pub(crate) async fn next_text(&mut self) -> Result<Option<Told>, Halt> {
        let mut late = Vec::new();
        for (seq, state) in self.messages.keep_all() {
            match state {
                InputState::Undelivered => late.push(seq),
                InputState::Accepted | InputState::Held | InputState::Delivered => {
                    self.recorder.write(JournalBody::Input { seq, state }).await?;
                }
            }
        }
        self.tell_late(&late).await;
        let next = self.messages.next_held();
        if let (Some(_), Some(agent)) = (&next, self.agent.as_mut()) {
            agent.quiet().await;
        }
        Ok(next)
    }

    /// The agent is given nothing more that people send: the server is told so by the phase, and of what has come too late.
    ///
    /// # Errors
    /// [`Halt`] if the journal cannot be written.
    pub(crate) async fn end_turns(&mut self) -> Result<(), Halt> {
        if let Some(agent) = self.agent.as_mut() {
            agent.quiet().await;
        }
        self.recorder.phase(Phase::Publish).await?;
        self.refuse_messages().await;
        Ok(())
    }

    /// Takes no more messages; of those that came too late the server is told.
    pub(crate) async fn refuse_messages(&mut self) {
        let late = self.messages.close();
        self.tell_late(&late).await;
    }

    async fn tell_late(&self, late: &[i64]) {
        for &seq in late {
            self.write_last(JournalBody::Input { seq, state: InputState::Undelivered }).await;
        }
        if !late.is_empty() {
            let message = "a message came after the agent's turn and was not given".to_owned();
            self.write_last(JournalBody::Note { level: NoteLevel::Info, message }).await;
        }
    }

    /// Judges the turn that the run comes to.
    ///
    /// # Errors
    /// [`Halt`] if the run is not to go on.
    pub(crate) fn judge(&mut self, end: TurnEnd) -> Result<(), Halt> {
        let failure = match end {
            TurnEnd::Result(result) => {
                self.result = last_words(&result);
                verdict(&judge(&result))
            }
            TurnEnd::Exited(exit) => self.agent.as_ref().and_then(|agent| {
                let stderr = agent.stderr();
                verdict(&conclude(&AgentEnding {
                    result: None,
                    exit: cli_exit(exit),
                    spoke: Conversation::spoke(&agent.conversation),
                    stderr: &stderr,
                }))
            }),
            // Whoever interrupted it wants what there is.
            TurnEnd::Interrupted => None,
            TurnEnd::Hung(hung) => Some(hung.failure()),
            TurnEnd::Stopped(reason) => return Err(Halt::Stopped(reason)),
            TurnEnd::Unwritten(error) => return Err(error.into()),
            TurnEnd::Untaken(why) => Some(
                Failure::new(FailureKind::AgentError, "the agent did not take its prompt")
                    .with_evidence(format!("{why:?}")),
            ),
            TurnEnd::Unsent(unsent) => {
                Some(Failure::new(FailureKind::BadWorkflow, format!("the prompt cannot be sent: {unsent}")))
            }
        };
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }
}

fn last_words(result: &ResultLine) -> Option<String> {
    result.text.as_deref().map(|text| cut(text, RESULT_TEXT_BYTES).to_owned())
}

fn cli_exit(exit: Exit) -> AgentExit {
    match (exit.code, exit.signal) {
        (Some(code), _) => AgentExit::Code(code),
        (None, Some(signal)) => AgentExit::Signal(signal),
        // One without a name.
        (None, None) => AgentExit::Signal(0),
    }
}
