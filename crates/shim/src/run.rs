//! One run, from its first record to its last: workspace, agent, publishing, and saving the work on every other way out.

use std::sync::Arc;
use std::time::Duration;

use caisson_claude::{
    Conversation, Ending as AgentEnding, Exit as AgentExit, ResultLine, Verdict, conclude, judge,
};
use caisson_domain::input::InputState;
use caisson_domain::limits::RESULT_TEXT_BYTES;
use caisson_domain::protocol::{Ending, JournalBody, NoteLevel, Outcome, RunWork, StopReason};
use caisson_domain::repository_file::RepositoryFile;
use caisson_domain::run::{Failure, FailureKind, Phase, cut};
use caisson_domain::trust::Steering;
use caisson_domain::workflow::{Publish, WorkspaceAccess};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::approvals::Approvals;
use crate::artifacts::Artifacts;
use crate::attachments::{Brought, Prompt, Source};
use crate::checkout::{Checkout, prepare};
use crate::commands;
use crate::diagnostics::say;
use crate::drivers::Drivers;
use crate::failure::{Halt, verdict};
use crate::forward::HOLD_MS;
use crate::git::Git;
use crate::images;
use crate::inputs::Hearers;
use crate::journal::WriteError;
use crate::messages::{Messages, Messenger};
use crate::process::find_program;
use crate::push::{abort_rebase, is_rebasing};
use crate::reaper::Exit;
use crate::recorder::Recorder;
use crate::revisions;
use crate::salvage::salvage;
use crate::servers;
use crate::shim::Shim;
use crate::steering::{self, Acting, Given, Steered, steer};
use crate::stop::{Stop, Stopper};
use crate::transcript;
use crate::turn::TurnEnd;

/// A run that goes on.
#[expect(clippy::struct_excessive_bools, reason = "each says of one thing whether it has happened")]
pub(crate) struct Live<'a> {
    pub(crate) shim: &'a Shim,
    pub(crate) work: &'a RunWork,
    pub(crate) recorder: Recorder,
    pub(crate) stop: Stop,
    pub(crate) messages: Messages,
    pub(crate) approvals: Approvals,
    pub(crate) agent: Option<Agent>,
    /// What the repository says of itself.
    pub(crate) repository: RepositoryFile,
    /// Turns that the agent has had to mend what the checks found.
    pub(crate) mending_turns: u32,
    pub(crate) git: Option<Git>,
    pub(crate) checkout: Option<Checkout>,
    pub(crate) steered: Steered,
    /// What steers the agent, as it was told.
    pub(crate) told: Option<Steering>,
    /// What it was given for that.
    pub(crate) given: Given,
    /// Whether the agent waited for this run.
    pub(crate) taken_up: bool,
    /// What comes with its prompt.
    brought: Brought,
    agent_started: bool,
    publishing: bool,
    pub(crate) result: Option<String>,
    pub(crate) head: Option<String>,
    pub(crate) pushed: bool,
}

/// Does a run and returns when the gateway has stored its last record.
pub(crate) async fn run(shim: &Shim, work: &RunWork) {
    let (stopper, stop) = Stopper::new();
    let (messenger, messages) = Messenger::new();
    let approvals = Approvals::new(work.agent.approvals.is_some());
    let hearers = Hearers { stopper, messenger, approvals: approvals.clone() };
    let recorder = Recorder::new(&shim.journal, &work.run, work.attempt);
    let mut live = Live {
        shim,
        work,
        recorder: recorder.clone(),
        stop,
        messages,
        approvals,
        agent: None,
        repository: RepositoryFile::default(),
        mending_turns: 0,
        git: work.git.as_ref().map(|git| Git {
            reaper: Arc::clone(&shim.reaper),
            activity: Arc::clone(&shim.activity),
            program: find_program(&shim.path, "git"),
            path: shim.path.clone(),
            workspace: shim.places.workspace.clone(),
            home: shim.places.home.clone(),
            tmp: shim.places.tmp.clone(),
            loopback: shim.loopback.clone(),
            work: git.clone(),
            local: shim.patience.git,
            drivers: Drivers::default(),
        }),
        checkout: None,
        steered: Steered::default(),
        told: None,
        given: Given::default(),
        taken_up: false,
        brought: Brought::default(),
        agent_started: false,
        publishing: false,
        result: None,
        head: None,
        pushed: false,
    };
    shim.journal.reserve();
    let until_timeout = async {
        tokio::time::sleep(Duration::from_millis(work.timeout_ms)).await;
        hearers.stopper.tell(StopReason::Timeout);
        std::future::pending::<()>().await;
    };
    let source = source(shim, work);
    let last = tokio::select! {
        last = live.go() => last,
        () = shim.inputs.follow(&source, &work.run, (&hearers, &recorder)) => None,
        () = until_timeout => None,
    };
    if let Some(last) = last {
        shim.journal.acknowledged(last).await;
    }
}

fn source<'a>(shim: &'a Shim, work: &'a RunWork) -> Source<'a> {
    Source { door: &shim.door, home: &shim.places.home, run: &work.run }
}

impl Live<'_> {
    /// Everything up to the last record; the offset behind it, or none if it could not be written.
    async fn go(&mut self) -> Option<u64> {
        let done = self.do_all().await;
        let outcome = self.close(done).await;
        self.write_last(JournalBody::Finished(outcome)).await
    }

    async fn do_all(&mut self) -> Result<(), Halt> {
        self.begin().await?;
        self.give_prompt().await?;
        let pushes = match self.work.publish {
            Publish::Branch | Publish::ChangeRequest => true,
            Publish::None | Publish::Review => false,
        };
        let (Some(git), Some(checkout)) = (self.git.clone(), self.checkout.clone()) else { return Ok(()) };
        if pushes {
            self.publishing = true;
            let mut stop = self.stop.clone();
            tokio::select! {
                biased;
                reason = stop.told() => Err(Halt::Stopped(reason)),
                published = self.publish(&git, checkout.base.as_deref()) => published,
            }
        } else {
            self.head = git.resolve("HEAD").await?;
            Ok(())
        }
    }

    /// Prepares the workspace and starts the agent, both at once: it takes half a second until it looks around.
    async fn begin(&mut self) -> Result<(), Halt> {
        self.recorder.phase(Phase::Prepare).await?;
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            reason = stop.told() => return Err(Halt::Stopped(reason)),
            begun = self.prepare_with_servers() => begun?,
        }
        let base_commit = self.checkout.as_ref().and_then(|checkout| checkout.base.clone());
        let branch = self.checkout.as_ref().map(|checkout| checkout.branch.clone());
        self.head.clone_from(&base_commit);
        self.recorder.write(JournalBody::Prepared { base_commit, branch }).await?;
        if let Some(note) = self.checkout.as_mut().and_then(|checkout| checkout.note.take()) {
            self.recorder.note(NoteLevel::Info, note).await?;
        }
        self.tell_steering().await
    }

    async fn prepare_with_servers(&mut self) -> Result<(), Halt> {
        if let Some(name) = servers::unreadable(&self.work.agent) {
            return Err(unreadable(name).into());
        }
        if self.take_up().await? {
            return self.bring().await;
        }
        self.prepare_anew().await
    }

    /// Prepares workspace and agent as in a sandbox that nobody waited in.
    ///
    /// # Errors
    /// [`Halt`] if one of them cannot be had.
    pub(crate) async fn prepare_anew(&mut self) -> Result<(), Halt> {
        self.prepare().await?;
        self.bring().await?;
        let Some(agent) = self.agent.as_mut() else { return Ok(()) };
        Ok(agent.wait_for_servers(&self.work.agent.mcp_required).await?)
    }

    /// Brings what comes with the prompt.
    async fn bring(&mut self) -> Result<(), Halt> {
        self.brought = source(self.shim, self.work).bring(&self.work.attachments, HOLD_MS).await?;
        Ok(())
    }

    async fn prepare(&mut self) -> Result<(), Halt> {
        steering::clear(&self.shim.places.home).map_err(|error| uncleared(&error))?;
        let resume = transcript::bring(self.shim, self.work, &self.recorder).await?;
        let start = |acting: &Acting| {
            Agent::start(self.shim, self.work, (&self.recorder, &self.approvals), acting, resume)
        };
        let Some(git) = &self.git else {
            let nothing = Acting::default();
            self.agent = Some(start(&nothing)?);
            self.given = Given::look(&self.shim.places.home);
            return Ok(());
        };
        let preparing = async {
            let checkout = prepare(git, self.work.workspace).await?;
            revisions::keep(git, checkout.anchor.as_deref()).await?;
            let (steered, file) =
                tokio::try_join!(steer(git, &checkout, self.work.trust), commands::read(git, &checkout))?;
            if let Some(wish) = images::wish(&file, self.work) {
                return Err(Halt::OtherImage(wish));
            }
            commands::set_up(self, git, &file).await?;
            Ok::<_, Halt>((checkout, steered, file))
        };
        let (agent, (checkout, steered, file)) = if self.work.trust.settings {
            // It reads its settings as soon as it starts.
            let prepared = preparing.await?;
            (start(&prepared.1.acting)?, prepared)
        } else {
            let agent = start(&Acting::default())?;
            tokio::pin!(preparing);
            let prepared = tokio::select! {
                biased;
                prepared = &mut preparing => prepared,
                () = tokio::time::sleep(self.shim.patience.head_start) => {
                    agent.hold();
                    let prepared = preparing.await;
                    agent.go_on();
                    prepared
                }
            };
            (agent, prepared?)
        };
        (self.agent, self.checkout, self.steered) = (Some(agent), Some(checkout), steered);
        self.given = Given::look(&self.shim.places.home);
        self.steered.notes.extend(images::note(&file, self.work));
        self.repository = file;
        Ok(())
    }

    /// Gives the agent its prompt once everybody may know that it has it, and judges what came of it.
    async fn give_prompt(&mut self) -> Result<(), Halt> {
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
        let end = self.turns(&mut stop).await?;
        if let (TurnEnd::Exited(_), Some(agent)) = (&end, self.agent.as_mut()) {
            // Its last words may still be on their way.
            agent.finish(Duration::ZERO).await;
        }
        self.refuse_messages().await;
        match &self.work.output_schema {
            None => self.judge(end)?,
            Some(schema) => self.judge_output(end, schema, &mut stop).await?,
        }
        self.run_checks().await
    }

    /// The turn of the run's prompt, and one for each text that waits for its end; how the last one ended.
    async fn turns(&mut self, stop: &mut Stop) -> Result<TurnEnd, Halt> {
        let told = commands::told(&self.work.prompt, &self.repository);
        let mut prompt = Prompt::from(told).with(std::mem::take(&mut self.brought));
        let mut late = Vec::new();
        loop {
            let Some(agent) = self.agent.as_mut() else { return Ok(TurnEnd::Interrupted) };
            let end = agent.turn_with(&prompt, stop, &mut self.messages).await;
            let goes_on = match &end {
                TurnEnd::Result(result) => judge(result) == Verdict::Succeeded,
                TurnEnd::Interrupted => true,
                TurnEnd::Exited(_)
                | TurnEnd::Hung(_)
                | TurnEnd::Stopped(_)
                | TurnEnd::Untaken(_)
                | TurnEnd::Unsent(_)
                | TurnEnd::Unwritten(_) => false,
            };
            let next = if goes_on { self.messages.next_held(&mut late) } else { None };
            self.tell_late(&std::mem::take(&mut late)).await;
            let Some((seq, text)) = next else { return Ok(end) };
            if let Some(agent) = self.agent.as_mut() {
                agent.quiet().await;
            }
            self.recorder.write(JournalBody::Input { seq, state: InputState::Delivered }).await?;
            prompt = text;
        }
    }

    /// Takes no more messages; of those that came too late the server is told.
    async fn refuse_messages(&mut self) {
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

    /// Ends what runs, saves what is not published, and says how it went.
    async fn close(&mut self, done: Result<(), Halt>) -> Outcome {
        self.refuse_messages().await;
        let kept = done.is_ok() && self.keep().await;
        if let Some(mut agent) = self.agent.take() {
            let patience = if done.is_ok() { agent.patience.exit } else { Duration::ZERO };
            let exit = match agent.exit {
                Some(exit) => exit,
                None => agent.finish(patience).await,
            };
            let stderr = agent.stderr();
            drop(agent);
            if self.agent_started {
                self.write_last(JournalBody::AgentExited { code: exit.code, signal: exit.signal, stderr })
                    .await;
            }
        }
        if !kept {
            self.shim.reaper.end_all().await;
        }
        let may_have_work = self.work.workspace == WorkspaceAccess::ReadWrite;
        if may_have_work && !self.pushed && (done.is_err() || self.work.publish == Publish::None) {
            self.save(&done).await;
        }
        if self.agent_started {
            let stopped = matches!(done, Err(Halt::Stopped(_)));
            if let Err(error) = transcript::archive(self.shim, self.work, &self.recorder, stopped).await {
                say(format_args!("cannot note that the conversation is not archived: {error}"));
            }
        }
        let ending = match done {
            Ok(()) => Ending::Completed,
            Err(Halt::Failed(failure)) => Ending::Failed(failure),
            Err(Halt::Stopped(reason)) => Ending::Stopped(reason),
            Err(Halt::OtherImage(wish)) => Ending::OtherImage(wish),
        };
        Outcome { ending, result: self.result.take(), head: self.head.take(), pushed: self.pushed, kept }
    }

    async fn save(&mut self, done: &Result<(), Halt>) {
        let Some(git) = &self.git else { return };
        // What was not prepared holds no work of this run.
        let Some(Checkout { base, .. }) = &self.checkout else { return };
        let artifacts =
            Artifacts { door: &self.shim.door, git, run: &self.work.run, recorder: &self.recorder };
        // One that the agent left unfinished fails publishing before the shim begins its own, so this is the shim's.
        let own_rebase = self.publishing && matches!(done, Err(Halt::Stopped(_))) && is_rebasing(git);
        let saving = async {
            // What it cannot learn, it goes without: the commands below say what is wrong.
            let _learned = git.learn_drivers().await;
            if own_rebase && let Err(failure) = abort_rebase(git).await {
                say(format_args!("cannot give up a rebase: {}", failure.message));
            }
            let saved = salvage(&artifacts, base.as_deref()).await;
            let head = git.resolve("HEAD").await;
            if let Err(error) = saved {
                say(format_args!("cannot note what became of the work: {error}"));
            }
            head.unwrap_or_default()
        };
        let head = match done {
            Err(Halt::Stopped(_)) => {
                let since = self.stop.since().unwrap_or_else(Instant::now);
                let saved = tokio::time::timeout_at(since + self.shim.patience.salvage, saving).await;
                saved.unwrap_or_else(|_| {
                    say("the work of a stopped run could not be saved in time");
                    None
                })
            }
            Ok(()) | Err(Halt::Failed(_) | Halt::OtherImage(_)) => saving.await,
        };
        self.head = head.or(self.head.take());
    }

    /// Writes one of the last records, on a full disk into the room that was kept for them.
    async fn write_last(&self, body: JournalBody) -> Option<u64> {
        let written = match self.recorder.write(body.clone()).await {
            Err(WriteError::Full) => {
                self.shim.journal.release();
                self.recorder.write(body).await
            }
            written => written,
        };
        written
            .inspect_err(|error| say(format_args!("cannot write one of a run's last records: {error}")))
            .ok()
    }
}

fn uncleared(error: &std::io::Error) -> Failure {
    let message = "what an earlier agent left in its home cannot be removed; begin a new session";
    Failure::new(FailureKind::Internal, message).with_evidence(error.to_string())
}

fn unreadable(server: &str) -> Failure {
    let message = format!(
        "the MCP server \"{server}\", which the workflow requires, cannot be read by this version; write it anew"
    );
    Failure::new(FailureKind::BadWorkflow, message)
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
