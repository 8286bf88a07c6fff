//! The agent's process: started with sockets, its output journaled line by line as it comes.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caisson_claude::{Action, CommandState, Conversation, Line, Uuid};
use caisson_domain::id::RunId;
use caisson_domain::protocol::RunWork;
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::workflow::WorkspaceAccess;
use nix::sys::signal::Signal;
use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::activity::Activity;
use crate::approvals::{Approvals, Way};
use crate::confine;
use crate::deltas::Deltas;
use crate::diagnostics::say;
use crate::gate::Gate;
use crate::journal::WriteError;
use crate::latecomers::Latecomers;
use crate::launch::{bad_workflow, launch, variables};
use crate::listener::{Listener, Purpose, Purposes};
use crate::process::{Tail, command, connect};
use crate::reaper::{Child, Exit};
use crate::recorder::Recorder;
use crate::server_stderr::ServerStderrs;
use crate::servers::{self, Clues, Questions};
use crate::shim::Shim;
use crate::steering::Acting;
use crate::watch::Patience;

/// Lines that may wait for the driver; then the agent's output is not read on.
const HEARD: usize = 32;
/// Lines that may wait to be written to the agent.
const TO_WRITE: usize = 256;
/// How long the output of an agent that has ended is read on, in milliseconds: its orphans may hold it open.
pub(crate) const DRAIN_MS: u64 = 1000;

/// What the driver hears of the agent.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A line, journaled.
    Line(Box<Line>),
    /// A line that could not be journaled.
    Unwritten(WriteError),
}

/// The agent, running.
pub(crate) struct Agent {
    pub(crate) child: Child,
    pub(crate) exit: Option<Exit>,
    input: Option<mpsc::Sender<String>>,
    pub(crate) heard: mpsc::Receiver<Heard>,
    /// Whether its output has ended.
    pub(crate) closed: bool,
    /// Prompts whose turn has begun and is not told to be done.
    undone: Vec<String>,
    pub(crate) conversation: Conversation,
    pub(crate) recorder: Recorder,
    pub(crate) patience: Patience,
    moved: Arc<Mutex<Instant>>,
    pub(crate) questions: Questions,
    pub(crate) approvals: Approvals,
    activity: Arc<Activity>,
    run: RunId,
    attempt: i64,
    prompts: u32,
    /// The id of the last line of its own that its record of the conversation has as well.
    pub(crate) last_answer: String,
    purposes: Purposes,
    stderr: Tail,
    reading_stderr: AbortOnDropHandle<()>,
    sending_deltas: AbortOnDropHandle<()>,
    /// Why an MCP server cannot be used.
    pub(crate) clues: Clues,
    working: Vec<AbortOnDropHandle<()>>,
}

/// The agent's MCP servers, before it is started.
struct Servers {
    configured: Map<String, Value>,
    clues: Clues,
    latecomers: Latecomers,
    reading: Vec<AbortOnDropHandle<()>>,
}

impl Servers {
    fn of(shim: &Shim, work: &RunWork, acting: &Acting) -> Self {
        let mut configured = servers::configured(&acting.mcp_servers, &work.agent, &shim.loopback);
        let (stderrs, reading) = ServerStderrs::of(shim, work, &mut configured);
        let clues = Clues { activity: Arc::clone(&shim.activity), stderrs };
        let latecomers = Latecomers::new(configured.keys().cloned(), clues.clone());
        Self { configured, clues, latecomers, reading }
    }
}

fn spawn_on(shim: &Shim, task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(shim.tracker.spawn(task))
}

impl Agent {
    /// Starts the agent in the workspace, in a conversation that is there if it is to `resume` one. It waits for its prompt.
    ///
    /// # Errors
    /// [`Failure`] if the work cannot be made a command line, or the program cannot be started.
    pub(crate) fn start(
        shim: &Shim,
        work: &RunWork,
        (recorder, approvals): (&Recorder, &Approvals),
        acting: &Acting,
        resume: bool,
    ) -> Result<Self, Failure> {
        let mut program = command(&shim.places.agent, &shim.places.workspace);
        let servers = Servers::of(shim, work, acting);
        let launch = launch(work, acting, &servers.configured, resume)?;
        program.args(launch.argv().map_err(|error| bad_workflow(&error))?);
        program.envs(variables(shim, &work.agent)?);
        let sockets = connect(&mut program).map_err(|error| not_started(&error))?;
        let started = match work.workspace {
            WorkspaceAccess::ReadWrite => shim.reaper.spawn(&mut program),
            WorkspaceAccess::ReadOnly => confine::spawn_reading(shim, &mut program)?,
        };
        let mut child = started.map_err(|error| not_started(&error))?;
        let (input, lines) = mpsc::channel(TO_WRITE);
        let (hear, heard) = mpsc::channel(HEARD);
        let moved = Arc::new(Mutex::new(Instant::now()));
        let deltas = Deltas::new(work.run.clone());
        let questions = Questions::default();
        let stderr = Tail::default();
        let purposes = Purposes::new(Purpose {
            recorder: recorder.clone(),
            approvals: approvals.clone(),
            deltas: Arc::clone(&deltas),
        });
        let listener = Listener {
            purposes: purposes.clone(),
            moved: Arc::clone(&moved),
            questions: questions.clone(),
            latecomers: servers.latecomers.clone(),
            hear,
        };
        approvals.connect(Way { input: input.downgrade(), moved: Arc::clone(&moved) });
        let mut working = servers.reading;
        working.push(spawn_on(shim, write(sockets.input, lines)));
        working.push(spawn_on(shim, listener.listen(sockets.output)));
        working.push(spawn_on(shim, servers.latecomers.ask(input.downgrade())));
        Ok(Self {
            reading_stderr: spawn_on(shim, stderr.clone().read(child.stderr.take())),
            child,
            exit: None,
            input: Some(input),
            heard,
            closed: false,
            undone: Vec::new(),
            conversation: Conversation::new(&[]),
            recorder: recorder.clone(),
            patience: shim.patience,
            moved,
            questions,
            approvals: approvals.clone(),
            activity: Arc::clone(&shim.activity),
            run: work.run.clone(),
            attempt: work.attempt,
            prompts: 0,
            last_answer: String::new(),
            purposes,
            stderr,
            sending_deltas: spawn_on(shim, deltas.send(Arc::clone(&shim.door))),
            clues: servers.clues,
            working,
        })
    }

    /// Belongs to no run from here on: what it prints is for nobody.
    pub(crate) fn rest(&mut self) {
        self.purposes.change(None);
        self.sending_deltas.abort();
    }

    /// Belongs to another run from here on, as if it had just been started for it.
    pub(crate) fn serve(
        &mut self,
        shim: &Shim,
        work: &RunWork,
        (recorder, approvals): (&Recorder, &Approvals),
    ) {
        let deltas = Deltas::new(work.run.clone());
        self.purposes.change(Some(Purpose {
            recorder: recorder.clone(),
            approvals: approvals.clone(),
            deltas: Arc::clone(&deltas),
        }));
        if let Some(input) = &self.input {
            approvals.connect(Way { input: input.downgrade(), moved: Arc::clone(&self.moved) });
        }
        self.sending_deltas = spawn_on(shim, deltas.send(Arc::clone(&shim.door)));
        (self.recorder, self.approvals) = (recorder.clone(), approvals.clone());
        (self.run, self.attempt, self.prompts) = (work.run.clone(), work.attempt, 0);
        (self.undone, self.conversation) = (Vec::new(), Conversation::new(&[]));
        self.last_answer.clear();
        self.touch();
    }

    /// Whether its process lives and could be given another prompt. What it has printed and nobody has heard is for nobody.
    pub(crate) async fn is_ready(&mut self) -> bool {
        self.closed |= loop {
            match self.heard.try_recv() {
                Ok(_) => {}
                Err(TryRecvError::Empty) => break false,
                Err(TryRecvError::Disconnected) => break true,
            }
        };
        if self.exit.is_none() {
            self.exit = tokio::time::timeout(Duration::ZERO, self.child.wait()).await.ok();
        }
        self.exit.is_none() && self.child.runs() && !self.closed && self.input.is_some()
    }

    /// Lets the agent go on that waits at the gate, or comes to it.
    ///
    /// # Errors
    /// That of the operating system.
    pub(crate) fn let_through(&mut self, shim: &Shim, gate: Gate) -> io::Result<()> {
        let gate = gate.open()?;
        let letting = async {
            if let Err(error) = gate.let_through().await {
                say(format!("the agent may wait for its workspace although it is there: {error}"));
            }
        };
        self.working.push(spawn_on(shim, letting));
        Ok(())
    }

    /// Holds the process where it is.
    pub(crate) fn hold(&self) {
        self.child.signal(Signal::SIGSTOP);
    }

    /// Whether the process stays where it was held.
    pub(crate) fn is_held(&self) -> bool {
        self.child.is_held()
    }

    /// Lets a held process go on.
    pub(crate) fn go_on(&self) {
        self.child.signal(Signal::SIGCONT);
    }

    /// The id of the next prompt. The agent answers an id once in a conversation, so none is used twice in a session.
    pub(crate) fn next_prompt(&mut self) -> Uuid {
        let id = prompt_id(&self.run, self.attempt, self.prompts);
        self.prompts += 1;
        id
    }

    /// Room for one more line to its standard input, after the lines before it; none if too many wait, or nothing is written to it
    /// any more.
    pub(crate) fn room(&self) -> Option<mpsc::OwnedPermit<String>> {
        self.input.as_ref()?.clone().try_reserve_owned().ok()
    }

    /// Writes a line to its standard input, after the lines before it; whether there was room for it.
    pub(crate) fn write(&self, line: String) -> bool {
        let Some(room) = self.room() else {
            say("the agent does not read its input");
            return false;
        };
        drop(room.send(line));
        true
    }

    /// When it last gave a sign of life: a line, a byte of a model reply, or a model request that waits for the gateway
    /// to come back.
    pub(crate) fn moved(&self) -> Instant {
        let line = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        self.activity.model_moved_at().map_or(line, |model| model.max(line))
    }

    /// Counts as a sign of life that the agent cannot give, because its output is not read.
    pub(crate) fn touch(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The end of its standard error.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Takes in how far prompts are, and what it said last.
    pub(crate) fn note(&mut self, line: &Line) {
        if let Line::Assistant(answer) = line
            && answer.parent_tool_use_id.is_none()
        {
            self.last_answer.clone_from(&answer.uuid);
        }
        let Line::CommandLifecycle(lifecycle) = line else { return };
        match lifecycle.state {
            CommandState::Started => self.undone.push(lifecycle.command_uuid.clone()),
            CommandState::Completed | CommandState::Cancelled => {
                self.undone.retain(|prompt| *prompt != lifecycle.command_uuid);
            }
            CommandState::Queued | CommandState::Other(_) => {}
        }
    }

    /// What is to be done about a line; what is asked of people is theirs to answer.
    pub(crate) fn observe(&mut self, line: &Line) -> Option<Action> {
        if self.approvals.take(line) { None } else { self.conversation.observe(line) }
    }

    /// Waits for the last line of a turn, which Claude Code 2.1.330 prints 4 to 20 ms after the result, so that what the
    /// shim has to tell comes behind it in the journal, the same in every run.
    pub(crate) async fn quiet(&mut self) {
        let patience = self.patience.quiet;
        let last_line = async {
            while !self.undone.is_empty() && !self.closed {
                match self.heard.recv().await {
                    Some(Heard::Line(line)) => {
                        self.note(&line);
                        if let Some(Action::Write(answer)) = self.observe(&line) {
                            self.write(answer);
                        }
                    }
                    Some(Heard::Unwritten(_)) => {}
                    None => self.closed = true,
                }
            }
        };
        if tokio::time::timeout(patience, last_line).await.is_err() {
            self.undone.clear();
        }
    }

    /// Closes its standard input: it ends by itself once it has nothing to do.
    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Closes its standard input, waits for its end, and kills it when `limit` has passed. Lines that still come are
    /// journaled.
    pub(crate) async fn finish(&mut self, limit: Duration) -> Exit {
        self.close_input();
        if tokio::time::timeout(limit, self.ended()).await.is_err() {
            self.child.signal(Signal::SIGKILL);
        }
        // An orphan may hold the output open. But while the journal has no room, it is the journal that is waited for.
        while tokio::time::timeout(Duration::from_millis(DRAIN_MS), self.drained()).await.is_err() {
            if !self.recorder.is_full() {
                break;
            }
        }
        self.exit.unwrap_or(Exit { code: None, signal: Some(Signal::SIGKILL as i32) })
    }

    async fn drained(&mut self) {
        self.ended().await;
        while !self.closed {
            self.closed = self.heard.recv().await.is_none();
        }
        if !self.reading_stderr.is_finished() {
            // It ends with its descriptor; how does not matter.
            let _joined = (&mut self.reading_stderr).await;
        }
    }

    async fn ended(&mut self) {
        while self.exit.is_none() {
            tokio::select! {
                exit = self.child.wait() => self.exit = Some(exit),
                heard = self.heard.recv(), if !self.closed => self.closed = heard.is_none(),
            }
        }
    }
}

fn not_started(error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::Internal, "the agent's program cannot be started in the sandbox")
        .with_evidence(error.to_string())
}

async fn write(mut stdin: UnixStream, mut lines: mpsc::Receiver<String>) {
    while let Some(line) = lines.recv().await {
        if stdin.write_all(line.as_bytes()).await.is_err() {
            // It has ended, or soon will; its exit says why.
            return;
        }
    }
}

/// A UUID made of the run's id, the attempt and the prompt's number in it.
fn prompt_id(run: &RunId, attempt: i64, number: u32) -> Uuid {
    let digits = run.as_str().rsplit('_').next().unwrap_or_default();
    let attempt = attempt & 0x00ff_ffff;
    let number = number & 0x00ff_ffff;
    let all = format!("{}{attempt:06x}{number:06x}", &digits[..20]);
    let text = format!("{}-{}-{}-{}-{}", &all[..8], &all[8..12], &all[12..16], &all[16..20], &all[20..32]);
    Uuid::parse(&text).expect("a run id has 32 hexadecimal digits behind its prefix")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_of_a_session_has_another_id() {
        let (one, two) = (RunId::new(1_700_000_000_000, [1; 10]), RunId::new(1_700_000_000_001, [1; 10]));
        let ids =
            [prompt_id(&one, 1, 0), prompt_id(&one, 1, 1), prompt_id(&one, 2, 0), prompt_id(&two, 1, 0)];
        let different: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(different.len(), ids.len());
        assert_eq!(prompt_id(&one, 1, 0), ids[0]);
    }
}
