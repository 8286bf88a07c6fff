//! One run, from its first record to its last: workspace, agent, publishing, and saving the work on every other way out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::protocol::{Ending, JournalBody, NoteLevel, Outcome, RunWork, StopReason};
use caisson_domain::repository_file::RepositoryFile;
use caisson_domain::run::{Failure, FailureKind, Phase, cut};
use caisson_domain::trust::Steering;
use caisson_domain::workflow::{Publish, WorkspaceAccess};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::approvals::Approvals;
use crate::artifacts::Artifacts;
use crate::attachments::{Brought, Source};
use crate::checkout::{self, Checkout};
use crate::diagnostics::say;
use crate::drivers::Drivers;
use crate::failure::Halt;
use crate::forward::HOLD_MS;
use crate::gate::Gate;
use crate::git::Git;
use crate::images;
use crate::inputs::Hearers;
use crate::journal::WriteError;
use crate::messages::{Messages, Messenger};
use crate::process::find_program;
use crate::push::{abort_rebase, is_rebasing};
use crate::recorder::Recorder;
use crate::salvage::salvage;
use crate::servers;
use crate::shim::Shim;
use crate::steering::{self, Acting, Given, Steered};
use crate::stop::{Stop, Stopper};
use crate::transcript;

/// What of a program's name stands in a failure, in bytes.
const PROGRAM_BYTES: usize = 64;

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
    pub(crate) brought: Brought,
    pub(crate) agent_started: bool,
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
            is_held: false,
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
        let (Some(git), Some(checkout)) = (self.git.clone(), self.checkout.clone()) else {
            return self.end_turns().await;
        };
        if pushes {
            self.publishing = true;
            let mut stop = self.stop.clone();
            tokio::select! {
                biased;
                reason = stop.told() => Err(Halt::Stopped(reason)),
                published = self.publish(&git, checkout.base.as_deref()) => published,
            }
        } else {
            self.end_turns().await?;
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

    /// Removes what an earlier agent may have left to steer this one, or what is run before it.
    ///
    /// # Errors
    /// That of the operating system.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let places = &self.shim.places;
        match self.work.workspace {
            WorkspaceAccess::ReadWrite => steering::clear(&places.home),
            WorkspaceAccess::ReadOnly => {
                steering::open_up(&places.workspace)?;
                steering::empty(&places.home)?;
                steering::empty_but(&places.tmp, |_, _| false)
            }
        }
    }

    /// Tells of a required MCP server whose program the image lacks before the time of a set-up command is spent.
    ///
    /// # Errors
    /// [`Halt`] that names the first of them.
    pub(crate) fn look_for_programs(&self) -> Result<(), Halt> {
        let missing = servers::missing(&self.work.agent, &self.shim.path, &self.shim.places);
        missing.map_or(Ok(()), |missing| Err(without_program(missing).into()))
    }

    async fn prepare(&mut self) -> Result<(), Halt> {
        self.clear().map_err(|error| uncleared(&error))?;
        let resume = transcript::bring(self.shim, self.work, &self.recorder).await?;
        let start = |acting: &Acting| {
            Agent::start(self.shim, self.work, (&self.recorder, &self.approvals), acting, resume)
        };
        let Some(git) = &self.git else {
            self.look_for_programs()?;
            let nothing = Acting::default();
            self.agent = Some(start(&nothing)?);
            self.given = Given::look(&self.shim.places.home);
            return Ok(());
        };
        if !self.work.may_choose_image {
            self.look_for_programs()?;
        }
        // One reads its settings before the gate; of one that only reads, nobody is to find a socket.
        let starts_last = self.work.trust.settings || self.work.workspace == WorkspaceAccess::ReadOnly;
        let begin = || {
            if starts_last {
                return Ok(None);
            }
            let gate = Gate::shut(&self.shim.places.home).map_err(|error| unshut(&error))?;
            Ok::<_, Halt>(Some((start(&Acting::default())?, gate)))
        };
        let (early, (checkout, mut steered, file)) = if checkout::is_used(git) {
            Box::pin(self.read_used(&git.for_used(self.shim), begin)).await?
        } else {
            (begin()?, Box::pin(self.read_repository(git)).await?)
        };
        let early = match early {
            Some((agent, _)) if file.setup.is_some() => {
                Box::pin(self.take_back(agent, &steered)).await?;
                None
            }
            Some((mut agent, gate)) => {
                agent.let_through(self.shim, gate).map_err(|error| unshut(&error))?;
                Some(agent)
            }
            None => None,
        };
        let notes = Box::pin(self.set_up(git, &checkout, (&file, &steered))).await?;
        steered.notes.extend(notes);
        // What the command has left running may change it from here on.
        let given = Given::look(&self.shim.places.home);
        let agent = match early {
            Some(agent) => agent,
            None => start(&steered.acting)?,
        };
        (self.agent, self.checkout, self.steered, self.given) = (Some(agent), Some(checkout), steered, given);
        self.steered.notes.extend(images::note(&file, self.work));
        self.repository = file;
        Ok(())
    }

    /// Ends an agent that is started again behind the set-up command, which is to find no socket of it, and what it left half written.
    async fn take_back(&self, mut agent: Agent, steered: &Steered) -> Result<(), Failure> {
        agent.finish(Duration::ZERO).await;
        drop(agent);
        self.clear().map_err(|error| uncleared(&error))?;
        steered.give(&self.shim.places.home)
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
    pub(crate) async fn write_last(&self, body: JournalBody) -> Option<u64> {
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

/// What an earlier agent left could not be removed.
pub(crate) fn uncleared(error: &std::io::Error) -> Failure {
    let message = "what an earlier agent left in its home cannot be removed; begin a new session";
    Failure::new(FailureKind::Internal, message).with_evidence(error.to_string())
}

fn unshut(error: &std::io::Error) -> Failure {
    let message = "the agent's home cannot be prepared for it; begin a new session if this goes on";
    Failure::new(FailureKind::Internal, message).with_evidence(error.to_string())
}

fn without_program((server, program): (&str, &str)) -> Failure {
    let message = format!(
        "the MCP server \"{server}\", which the workflow requires, cannot be started: the sandbox has no program \"{}\" on its search path; \
         use an image that has it, or name it by its path",
        cut(program, PROGRAM_BYTES)
    );
    Failure::new(FailureKind::SetupFailed, message)
}

fn unreadable(server: &str) -> Failure {
    let message = format!(
        "the MCP server \"{server}\", which the workflow requires, cannot be read by this version; write it anew"
    );
    Failure::new(FailureKind::BadWorkflow, message)
}
