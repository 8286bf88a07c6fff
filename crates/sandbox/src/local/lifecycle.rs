//! A sandbox's life: made, started, stopped, removed, found again.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use caisson_domain::id::SandboxId;
use nix::unistd::{getegid, geteuid};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;
use tracing::warn;

use super::cgroup::Group;
use super::identity::Held;
use super::order::{Answer, Errand, Order, Shown, Started};
use super::record::{CONTROL, EXIT, Ended, FIRST, First, Label, Record, owned};
use super::{HOST, LocalEngine, shown, tree};
use crate::mounts::resolve;
use crate::spec::{Access, within};
use crate::{
    BoxError, EngineError, Exit, Liveness, OwnedSandbox, STOP_GRACE_S_MAX, SandboxSpec, SandboxUsage,
    SpecError,
};

/// How long a supervisor may take for one answer, in seconds; a loaded machine takes some.
const ANSWER_S: u64 = 60;
/// How long a supervisor that was told to end, or a sandbox that was killed, may take, in seconds.
const END_S: u64 = 30;
/// How often processes of a sandbox that nobody wrote down are looked for.
const LOOKS: u32 = 2;
/// How long one such look may take, in seconds; what it finds is killed within the engine's own limits.
const SCAN_S: u64 = 20;
/// What is done when a supervisor is started, for errors.
const STARTING: &str = "starting a supervisor";
/// What is done when a sandbox is started, for errors.
const STARTING_SANDBOX: &str = "starting a sandbox";
/// What a supervisor is called in a list of processes.
const SUPERVISOR_NAME: &str = "caisson";
/// Longest answer of a supervisor, in bytes.
const ANSWER_BYTES: u64 = 64 * 1024;

impl LocalEngine {
    pub(super) async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<(), EngineError> {
        self.validate(spec)?;
        self.check().await?;
        let (mounts, hidden) = (spec.mounts.clone(), self.config.hidden.clone());
        let extra = [&self.config.read_only[..], &self.config.toolchains[..]].concat();
        let binds = blocking("looking at the mounts", move || {
            let own = resolve(&mounts, None)?.into_iter().map(|bind| Shown {
                is_file: Path::new(&bind.source).is_file(),
                source: bind.source,
                target: bind.target.to_owned(),
                writable: bind.access == Access::Writable,
            });
            Ok::<_, SpecError>(own.chain(shown::binds(&extra, &hidden)?).collect::<Vec<_>>())
        })
        .await??;
        let record = self.record(&spec.id);
        let (group, foreign) = self.make_places(spec, &record).await?;
        let made = match group {
            Ok(group) => self.supervise(spec, group, binds, &record).await,
            Err(error) => Err(refused("making a sandbox's control group", &error)),
        };
        if made.is_err()
            && !foreign
            && let Err(error) = self.destroy_sandbox(&spec.id).await
        {
            // Its record makes it an orphan that the next reconcile pass finds.
            warn!(sandbox.id = %spec.id, %error, "could not remove sandbox {} that was not made", spec.id);
        }
        made
    }

    /// Makes a sandbox's record and its control group. A group that is somebody else's is told with `true`; the record is gone then.
    async fn make_places(
        &self,
        spec: &SandboxSpec,
        record: &Record,
    ) -> Result<(io::Result<Option<Group>>, bool), EngineError> {
        let label = Label {
            server: spec.server.clone(),
            session: spec.session.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (id, limits, record) = (spec.id.clone(), spec.limits, record.clone());
        let controllers = self.controllers().clone();
        blocking("writing a sandbox down", move || {
            if !record.make(&label).map_err(|error| refused("writing a sandbox down", &error))? {
                return Err(EngineError::AlreadyExists { id });
            }
            let group = controllers.make(id.as_str(), &limits);
            // Not this sandbox's, so its end is not the way to be rid of it.
            let foreign = group.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists);
            if foreign {
                record.remove().map_err(|error| refused("removing a sandbox", &error))?;
            }
            Ok((group, foreign))
        })
        .await?
    }

    fn validate(&self, spec: &SandboxSpec) -> Result<(), SpecError> {
        spec.validate()?;
        if let Some(image) = &spec.image {
            return Err(SpecError::ImageUnsupported { image: image.clone() });
        }
        if spec.server != self.server {
            return Err(SpecError::Server { asked: spec.server.clone(), own: self.server.clone() });
        }
        let (uid, gid) = (geteuid(), getegid());
        if !uid.is_root() && (spec.uid, spec.gid) != (uid.as_raw(), gid.as_raw()) {
            return Err(SpecError::ForeignUser { uid: spec.uid, gid: spec.gid });
        }
        Ok(())
    }

    /// Starts the supervisor and hands the order over.
    async fn supervise(
        &self,
        spec: &SandboxSpec,
        group: Option<Group>,
        binds: Vec<Shown>,
        record: &Record,
    ) -> Result<(), EngineError> {
        let search = self
            .config
            .toolchains
            .iter()
            .filter_map(|directory| directory.join("bin").to_str().map(str::to_owned));
        let order = Order {
            bubblewrap: self.bubblewrap.clone(),
            mark: mark(&spec.id),
            group,
            uid: spec.uid,
            gid: spec.gid,
            binds,
            search: search.collect(),
            environment: spec.environment.clone(),
            limits: spec.limits,
        };
        match self.send(&Errand::Make(Box::new(order)), spec.id.as_str(), record.dir()).await? {
            Answer::Ready => Ok(()),
            Answer::Failed(message) => Err(EngineError::Refused { operation: STARTING, message }),
        }
    }

    /// Starts a supervisor in a directory, and returns its answer.
    pub(super) async fn send(
        &self,
        errand: &Errand,
        id: &str,
        directory: &Path,
    ) -> Result<Answer, EngineError> {
        let errand = serde_json::to_vec(errand)
            .map_err(|error| refused("writing an order", &io::Error::from(error)))?;
        let (program, arguments) = &self.config.supervisor;
        #[expect(
            clippy::disallowed_methods,
            reason = "a supervisor is started here, with an argument vector"
        )]
        let mut command = Command::new(program);
        // Named for whoever lists processes: the program may be given as `/proc/self/exe`.
        command.arg0(SUPERVISOR_NAME).args(arguments).arg(id).env_clear().current_dir(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Not waited for here: the runtime reaps it if it ends while this server lives.
        let mut child = command.spawn().map_err(|error| refused(STARTING, &error))?;
        let talk = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A supervisor that does not listen says why.
                stdin.write_all(&errand).await.ok();
            }
            read_line::<Answer>(child.stdout.take()).await
        };
        within_time(STARTING, talk).await
    }

    pub(super) async fn start_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        match self.liveness(id).await? {
            Liveness::Running => return Ok(()),
            Liveness::Exited(_) if self.has_run(id)? => return Err(EngineError::Ended { id: id.clone() }),
            Liveness::Exited(_) => {
                let message = "its supervisor ended before it could be started".to_owned();
                return Err(EngineError::Refused { operation: STARTING_SANDBOX, message });
            }
            Liveness::Created => {}
        }
        let talk = async {
            // Through the directory's descriptor, since a socket's path is bounded and a state directory's is not.
            let dir = fs::File::open(self.record(id).dir())?;
            let socket = format!("/proc/self/fd/{}/{CONTROL}", dir.as_raw_fd());
            let client = UnixStream::connect(socket).await?;
            read_line::<Started>(Some(client)).await
        };
        match within_time(STARTING_SANDBOX, talk).await? {
            Started::Running => Ok(()),
            Started::Failed(message) => Err(EngineError::Refused { operation: STARTING_SANDBOX, message }),
        }
    }

    pub(super) async fn wait_for_exit(&self, id: &SandboxId) -> Result<Exit, EngineError> {
        let record = self.record(id);
        loop {
            if let Liveness::Exited(exit) = self.liveness(id).await? {
                // It clears up what is left, and tells nobody whether it could: what is left then is removed with the sandbox.
                if let Some(supervisor) = hold_supervisor(&record)? {
                    let ended = supervisor.ended_within(Duration::from_secs(END_S)).await;
                    ended.map_err(|error| refused("waiting for a sandbox", &error))?;
                }
                return Ok(exit);
            }
            // Whoever of the two lives last is waited for: the supervisor as long as there is one.
            let watched = match hold_supervisor(&record)? {
                Some(supervisor) => Some(supervisor),
                None => hold_first(&record)?,
            };
            if let Some(watched) = watched {
                watched.ended().await.map_err(|error| refused("waiting for a sandbox", &error))?;
            }
        }
    }

    pub(super) async fn stop_sandbox(&self, id: &SandboxId, grace_s: u32) -> Result<(), EngineError> {
        within("grace_s", grace_s.into(), 0, STOP_GRACE_S_MAX.into())?;
        if self.liveness(id).await? != Liveness::Running {
            return Ok(());
        }
        let record = self.record(id);
        let failed = |error: io::Error| refused("stopping a sandbox", &error);
        if let Some(first) = hold_first(&record)? {
            first.signal(Signal::TERM).map_err(failed)?;
            if !first.ended_within(Duration::from_secs(grace_s.into())).await.map_err(failed)? {
                first.signal(Signal::KILL).map_err(failed)?;
            }
        }
        // Its supervisor writes down how it ended.
        let ended = tokio::time::timeout(Duration::from_secs(ANSWER_S), self.wait_for_exit(id)).await;
        ended.map_err(|elapsed| unavailable("stopping a sandbox", elapsed))?.map(drop)
    }

    pub(super) async fn destroy_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        let record = self.record(id);
        let mut groups: Vec<_> = self.controllers().group(id.as_str()).into_iter().collect();
        if record.exists() {
            // Made by a server that had its groups elsewhere.
            groups.extend(read_first(&record)?.and_then(|first| first.group));
            let failed = |error: io::Error| refused("removing a sandbox", &error);
            if let Some(supervisor) = hold_supervisor(&record)? {
                end(&supervisor).await.map_err(failed)?;
            }
            match read_first(&record)? {
                // Written down, it is the whole sandbox: with it goes everything else.
                Some(first) => {
                    if let Some(first) = first.process.hold().map_err(failed)? {
                        kill(&first).await.map_err(failed)?;
                    }
                }
                // A supervisor that was killed between making the sandbox and writing it down has left it unwritten.
                None => self.kill_marked(id).await?,
            }
        }
        blocking("removing a sandbox", move || {
            for group in groups {
                group.kill().and_then(|()| group.remove())?;
            }
            record.remove()
        })
        .await?
        .map_err(|error| refused("removing a sandbox", &error))
    }

    /// Kills what there is of a sandbox that nobody wrote down, or whose record is damaged.
    async fn kill_marked(&self, id: &SandboxId) -> Result<(), EngineError> {
        // More than once: one that is between two programs while it is looked for has no name of either.
        for _ in 0..LOOKS {
            let (mark, sandbox, record) = (mark(id), id.clone(), self.record(id));
            let look = move || marked(&mark, (&sandbox, record.dir()), Duration::from_secs(SCAN_S));
            let found = blocking("looking for processes", look).await?;
            for process in found.map_err(|error| refused("looking for processes", &error))? {
                if let Ok(Some(held)) = process.hold() {
                    kill(&held).await.map_err(|error| refused("removing a sandbox", &error))?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn list_sandboxes(&self) -> Result<Vec<OwnedSandbox>, EngineError> {
        let (records, server) = (self.config.records_dir.clone(), self.server.clone());
        blocking("listing sandboxes", move || owned(&records, &server))
            .await?
            .map_err(|error: io::Error| refused("listing sandboxes", &error))
    }

    pub(super) async fn read_usage(&self, id: &SandboxId) -> Result<SandboxUsage, EngineError> {
        let not_running = || EngineError::NotRunning { id: id.clone() };
        if self.liveness(id).await? != Liveness::Running {
            return Err(not_running());
        }
        let first = read_first(&self.record(id))?.ok_or_else(not_running)?;
        let used = blocking("reading a sandbox's usage", move || match &first.group {
            Some(group) => group.usage().ok(),
            None => tree::usage(first.process.pid),
        });
        used.await?.ok_or_else(not_running)
    }

    /// Whether a sandbox that has ended ever had a first process.
    fn has_run(&self, id: &SandboxId) -> Result<bool, EngineError> {
        let record = self.record(id);
        let ended: Option<Ended> = record.read(EXIT).map_err(|error| bad_record(error.into()))?;
        Ok(ended.is_some() || read_first(&record)?.is_some())
    }

    fn record(&self, id: &SandboxId) -> Record {
        Record::of(&self.config.records_dir, id)
    }

    /// How far this server's sandbox has come.
    async fn liveness(&self, id: &SandboxId) -> Result<Liveness, EngineError> {
        let record = self.record(id);
        blocking("reading a sandbox's record", move || record.liveness())
            .await?
            .map_err(|error| bad_record(error.into()))?
            .ok_or_else(|| EngineError::NotFound { id: id.clone() })
    }
}

/// Makes the directory of all records.
pub(super) fn make_records(directory: &Path) -> Result<(), EngineError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| refused("making the records' directory", &error))
}

pub(super) fn refused(operation: &'static str, error: &io::Error) -> EngineError {
    EngineError::Refused { operation, message: error.to_string() }
}

fn bad_record(source: BoxError) -> EngineError {
    EngineError::BadReply { operation: "reading a sandbox's record", source }
}

/// What stands in the argument list of every process of bubblewrap that a sandbox has.
fn mark(id: &SandboxId) -> String {
    format!("caisson-{id}")
}

fn hold_supervisor(record: &Record) -> Result<Option<Held>, EngineError> {
    let supervisor = record.supervisor().map_err(|error| bad_record(error.into()))?;
    let Some(supervisor) = supervisor else { return Ok(None) };
    supervisor.hold().map_err(|error| refused("looking for a supervisor", &error))
}

fn read_first(record: &Record) -> Result<Option<First>, EngineError> {
    record.read(FIRST).map_err(|error| bad_record(error.into()))
}

fn hold_first(record: &Record) -> Result<Option<Held>, EngineError> {
    let Some(first) = read_first(record)? else { return Ok(None) };
    first.process.hold().map_err(|error| refused("looking for a sandbox's first process", &error))
}

/// Has a supervisor end its sandbox and itself, and kills it if it does not.
async fn end(supervisor: &Held) -> io::Result<()> {
    supervisor.signal(Signal::TERM)?;
    if supervisor.ended_within(Duration::from_secs(END_S)).await? { Ok(()) } else { kill(supervisor).await }
}

async fn kill(held: &Held) -> io::Result<()> {
    held.signal(Signal::KILL)?;
    if held.ended_within(Duration::from_secs(END_S)).await? {
        return Ok(());
    }
    Err(io::Error::other(format!("a process that was killed has not ended in {END_S} s")))
}

/// Every process of bubblewrap with this mark and every supervisor of this sandbox, and their children. A supervisor is in the record's
/// directory; what it has just forked is not any more, but still has its arguments, of which the sandbox is the last.
fn marked(
    mark: &str,
    (id, record): (&SandboxId, &Path),
    at_most: Duration,
) -> io::Result<Vec<super::identity::Identity>> {
    let (mut found, begun) = (Vec::new(), Instant::now());
    for entry in fs::read_dir("/proc")? {
        if begun.elapsed() > at_most {
            return Err(io::Error::other(format!("looking at every process takes more than {at_most:?}")));
        }
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
        let (name, last) = (words.first().copied().unwrap_or_default(), words.last().copied());
        let supervises = || {
            let of_it = last == Some(id.as_str().as_bytes());
            name == SUPERVISOR_NAME.as_bytes()
                && (of_it
                    || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|directory| directory == record))
        };
        if name == mark.as_bytes() || supervises() {
            found.extend(
                tree::below(pid)
                    .into_iter()
                    .chain([pid])
                    .filter_map(|pid| super::identity::Identity::of(pid).ok()),
            );
        }
    }
    Ok(found)
}

async fn read_line<T: serde::de::DeserializeOwned>(
    from: Option<impl tokio::io::AsyncRead + Unpin>,
) -> io::Result<T> {
    let from = from.ok_or(io::ErrorKind::BrokenPipe)?;
    let mut line = String::new();
    BufReader::new(from.take(ANSWER_BYTES)).read_line(&mut line).await?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the supervisor ended without an answer"));
    }
    Ok(serde_json::from_str(&line)?)
}

/// What a supervisor does, within [`ANSWER_S`].
async fn within_time<T>(
    operation: &'static str,
    talk: impl Future<Output = io::Result<T>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(Duration::from_secs(ANSWER_S), talk).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(unavailable(operation, error)),
        Err(elapsed) => Err(unavailable(operation, elapsed)),
    }
}

fn unavailable(operation: &'static str, source: impl Into<BoxError>) -> EngineError {
    EngineError::Unavailable { operation, host: HOST.to_owned(), source: source.into() }
}

async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    // It neither panics nor is aborted, but its handle cannot know that.
    tokio::task::spawn_blocking(work).await.map_err(|error| unavailable(operation, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_at_every_process_is_bounded() {
        let (id, record) = (SandboxId::new(1, [1; 10]), Path::new("/nowhere"));
        assert_eq!(marked("caisson-none", (&id, record), Duration::from_secs(SCAN_S)).unwrap(), []);
        let error = marked("caisson-none", (&id, record), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("every process"), "{error}");
    }
}
