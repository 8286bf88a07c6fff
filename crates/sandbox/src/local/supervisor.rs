//! The supervisor of one sandbox: a small process that starts bubblewrap, waits for its end, and writes down how it was.
//!
//! It is nobody's child after a restart of the server, and holds in memory what must not be on disk: the grants. If it is
//! killed, the sandbox lives on; only how it ends is not seen any more.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{geteuid, setsid};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{self, SignalKind};

use super::identity::Identity;
use super::launch::{Child, End, Launch, bound, launch};
use super::order::{Answer, Errand, ORDER_BYTES, Order, Shown, Started};
use super::record::{CONTROL, EXIT, Ended, FIRST, First, Record, SUPERVISOR};
use super::stage::Stage;
use crate::profile::{CORE_BYTES, OPEN_FILES};

/// The first descriptor behind the standard ones.
const FIRST_INHERITED: i32 = 3;
/// How long a client may take to read a line, in seconds.
const REPLY_S: u64 = 10;

/// Why a supervisor could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Its standard input held no order.
    #[error("no order came on standard input; this command is started by the server, not by hand")]
    NoOrder(#[source] serde_json::Error),
    /// The system refused something that every supervisor needs.
    #[error("cannot supervise a sandbox: {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> SuperviseError {
    move |source| SuperviseError::System { doing, source }
}

/// Supervises the sandbox whose record is the working directory, until it has ended. Must be called by a process with one
/// thread, with the order on its standard input.
///
/// # Errors
/// [`SuperviseError`]; the server was told as well if it still listened.
pub fn supervise() -> Result<(), SuperviseError> {
    let mut text = Vec::new();
    io::stdin().take(ORDER_BYTES).read_to_end(&mut text).map_err(system("reading the order"))?;
    let errand = serde_json::from_slice(&text).map_err(SuperviseError::NoOrder)?;
    let prepare = |binds: &[Shown]| prepare(binds).inspect_err(|error| answer(&Answer::Failed(told(error))));
    let order = match errand {
        Errand::Make(order) => order,
        Errand::Try => return prepare(&[]).map(|_| answer(&Answer::Ready)),
    };
    let stage = prepare(&order.binds)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("starting the runtime"))?;
    runtime.block_on(serve(&order, &stage)).inspect_err(|error| answer(&Answer::Failed(told(error))))
}

/// What concerns the whole process, while it has one thread.
fn prepare(binds: &[Shown]) -> Result<Stage, SuperviseError> {
    // What the server inherited from whoever started it is not the sandbox's.
    close_fds::set_fds_cloexec(FIRST_INHERITED, &[]);
    // The server's terminal is not the sandbox's, and Ctrl-C on it is not meant for it.
    setsid().map_err(io::Error::from).map_err(system("leaving the server's session"))?;
    // Should bubblewrap be killed, the first process comes to this one.
    set_child_subreaper(true).map_err(io::Error::from).map_err(system("becoming a reaper"))?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let stage = Stage::prepare(binds, geteuid().is_root());
    let stage = stage.map_err(system("preparing the mounts"))?;
    limit_processes().map_err(system("limiting what a process may take"))?;
    Ok(stage)
}

/// Limits of this process pass to what it starts. Those for real time and higher priority may be more than nothing for the
/// server's user, and a sandbox that had them could keep the processors from everybody else.
fn limit_processes() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = OPEN_FILES.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    setrlimit(Resource::RLIMIT_CORE, CORE_BYTES, CORE_BYTES)?;
    setrlimit(Resource::RLIMIT_RTPRIO, 0, 0)?;
    setrlimit(Resource::RLIMIT_NICE, 0, 0)?;
    Ok(())
}

/// One line for the server, which may be gone.
fn answer(answer: &Answer) {
    let mut out = io::stdout().lock();
    let line = serde_json::to_string(answer).expect("an answer is plain text");
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

/// The error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

async fn serve(order: &Order, stage: &Stage) -> Result<(), SuperviseError> {
    let mut signals = Signals::listen().map_err(system("listening for signals"))?;
    let record = Record::at(PathBuf::from("."));
    let listener = UnixListener::bind(record.dir().join(CONTROL)).map_err(system("binding the socket"))?;
    let own = Identity::own().map_err(system("looking at this process"))?;
    record.write(SUPERVISOR, &own).map_err(system("writing this process down"))?;
    answer(&Answer::Ready);
    let client = tokio::select! {
        client = listener.accept() => client.map_err(system("waiting for the word to start"))?.0,
        _ = signals.terminate.recv() => {
            clear(order);
            return Ok(());
        }
    };
    let (child, ended) = match start(order, stage, &record, &mut signals).await {
        Ok(started) => {
            reply(client, &Started::Running).await;
            started
        }
        Err(fault) => {
            clear(order);
            reply(client, &Started::Failed(fault)).await;
            return Ok(());
        }
    };
    let end = match ended {
        Some(end) => end,
        None => attend(&listener, child, &mut signals).await,
    };
    close(order, &record, end).map_err(system("writing down how the sandbox ended"))
}

/// Makes the sandbox up to the point at which nothing of it has run yet, writes it down, lets it go, and sees its program start;
/// how it ended if it has already.
async fn start(
    order: &Order,
    stage: &Stage,
    record: &Record,
    signals: &mut Signals,
) -> Result<(Child, Option<End>), String> {
    let Launch { mut child, gate, said } = launch(order, stage, signals).await?;
    let noted = First { process: child.first.clone(), group: order.group.clone() };
    let ready =
        bound(order, child.first.pid).and_then(|()| record.write(FIRST, &noted)).and_then(|()| gate.open());
    let executing = match ready {
        Ok(()) => child.executing(&order.mark, said).await,
        Err(error) => Err(format!("the sandbox's limits could not be set: {error}")),
    };
    match executing {
        Ok(ended) => Ok((child, ended)),
        Err(fault) => {
            child.kill();
            Err(fault)
        }
    }
}

/// Waits for the end, answers whoever asks again to start, and kills the sandbox when told to end.
async fn attend(listener: &UnixListener, mut child: Child, signals: &mut Signals) -> End {
    loop {
        if let Some(end) = child.reap() {
            return end;
        }
        tokio::select! {
            _ = signals.child.recv() => {}
            _ = signals.terminate.recv() => child.kill(),
            client = listener.accept() => {
                if let Ok((client, _)) = client {
                    reply(client, &Started::Running).await;
                }
            }
        }
    }
}

/// Ends what there is in the group of a sandbox that does not run, and removes it.
fn clear(order: &Order) {
    if let Some(group) = &order.group {
        // What cannot be removed now is removed when the sandbox is destroyed.
        group.kill().and_then(|()| group.remove()).ok();
    }
}

/// Writes down how the sandbox ended, then ends whatever is left in its group. With the group goes what it has counted, so it stays
/// where that could not be written down.
fn close(order: &Order, record: &Record, end: End) -> io::Result<()> {
    let oom_killed = order.group.as_ref().is_some_and(|group| group.oom_kills() > 0);
    let written = record.write(EXIT, &Ended { code: end.code, oom_killed, finished_at_ms: now_ms() });
    match (&order.group, &written) {
        (_, Ok(())) => clear(order),
        (Some(group), Err(_)) => drop(group.kill().ok()),
        (None, Err(_)) => {}
    }
    written
}

fn now_ms() -> Option<i64> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this process is the engine, whose clock tells when a sandbox ended"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_millis()).ok())
}

async fn reply(mut client: UnixStream, started: &Started) {
    let mut line = serde_json::to_vec(started).expect("an answer is plain text");
    line.push(b'\n');
    // A client that went away finds the sandbox by its record.
    let written = client.write_all(&line);
    tokio::time::timeout(Duration::from_secs(REPLY_S), written).await.ok();
}

/// The signals that a supervisor listens to.
pub(super) struct Signals {
    /// A child has ended.
    pub(super) child: unix::Signal,
    /// End, and the sandbox with it.
    pub(super) terminate: unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let child = unix::signal(SignalKind::child())?;
        // Ctrl-C and hang-ups of a terminal do not come here, since it is another session's.
        Ok(Self { child, terminate: unix::signal(SignalKind::terminate())? })
    }
}

impl Child {
    /// Kills the first process, and with it everything in the sandbox.
    fn kill(&self) {
        if let Ok(Some(held)) = self.first.hold() {
            held.signal(Signal::KILL).ok();
        }
    }
}
