//! Running a program to its end: argument vectors, an explicit environment, bounded output, a bounded time.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::reaper::{Child, Exit, Reaper};

/// Bytes kept of a program's standard error: the end, which says why.
pub(crate) const STDERR_BYTES: usize = 8 * 1024;
/// One read from a pipe, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// Begins a command with an empty environment, a process group of its own, and pipes for its standard descriptors.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that names a program to start")]
pub(crate) fn command(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir(directory).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// This side of the standard input and output of a program that has sockets for them.
pub(crate) struct Sockets {
    /// What the program reads.
    pub(crate) input: UnixStream,
    /// What it writes.
    pub(crate) output: UnixStream,
}

/// Gives a program sockets for its standard input and output. Whoever finds a pipe of his user's among the files of a process
/// (`/proc/PID/fd`) can open it, and speak for that process or to it; a socket cannot be opened (`ENXIO` of open(2)).
///
/// # Errors
/// The operating system has no sockets left, or this is no thread of a runtime.
pub(crate) fn connect(command: &mut Command) -> io::Result<Sockets> {
    let (input, stdin) = ends()?;
    let (output, stdout) = ends()?;
    command.stdin(OwnedFd::from(stdin)).stdout(OwnedFd::from(stdout));
    Ok(Sockets { input, output })
}

/// Our end, and the end of a program, which blocks as a pipe does.
fn ends() -> io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

/// Finds a program in a search path, so that starting it needs no search.
pub(crate) fn find_program(path: &str, name: &str) -> Option<PathBuf> {
    let runnable = |file: &PathBuf| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(path).map(|directory| directory.join(name)).find(runnable)
}

/// Why a program has no output.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// It could not be started.
    #[error("cannot start {program}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {} s", limit.as_secs())]
    TimedOut {
        /// Which.
        program: String,
        /// Its time.
        limit: Duration,
    },
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Output {
    /// How it ended.
    pub(crate) exit: Exit,
    /// Its standard output, up to the bound.
    pub(crate) stdout: Vec<u8>,
    /// Whether there was more than the bound.
    pub(crate) cut: bool,
    /// The end of its standard error.
    pub(crate) stderr: String,
}

/// Bounds of one program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of standard output that are kept.
    pub(crate) stdout_bytes: usize,
    /// Time until it is killed.
    pub(crate) time: Duration,
}

/// Runs a program to its end.
///
/// # Errors
/// [`ProcessError`] if it did not start or not end; a failure of its own is in [`Output::exit`].
///
/// # Cancel safety
/// Dropping the future kills the program with its group.
pub(crate) async fn run(
    reaper: &Arc<Reaper>,
    command: &mut Command,
    input: &[u8],
    bounds: Bounds,
) -> Result<Output, ProcessError> {
    finish(reaper.spawn(command), command, input, bounds).await
}

/// As [`run`], for one that was started already, or was not.
pub(crate) async fn finish(
    started: io::Result<Child>,
    command: &Command,
    input: &[u8],
    bounds: Bounds,
) -> Result<Output, ProcessError> {
    let name = command_name(command.get_program().as_ref());
    let mut child = started.map_err(|source| ProcessError::Start { program: name.clone(), source })?;
    tokio::time::timeout(bounds.time, collect(&mut child, input, bounds.stdout_bytes))
        .await
        .map_err(|_| ProcessError::TimedOut { program: name, limit: bounds.time })
}

async fn collect(child: &mut Child, input: &[u8], stdout_bytes: usize) -> Output {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read all of it says by its exit what it thinks.
            let _unread = stdin.write_all(input).await;
        }
    };
    let tail = Tail::default();
    let ((), (stdout, cut), (), exit) =
        tokio::join!(write, read_head(stdout, stdout_bytes), tail.clone().read(stderr), child.wait());
    Output { exit, stdout, cut, stderr: tail.text() }
}

/// Reads to the end and keeps the first `bytes`; whether there was more.
async fn read_head(pipe: Option<impl AsyncRead + Unpin>, bytes: usize) -> (Vec<u8>, bool) {
    let (mut kept, mut cut) = (Vec::new(), false);
    let Some(mut pipe) = pipe else { return (kept, cut) };
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        let room = bytes.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(&buffer[..room]);
        cut |= room < read;
    }
    (kept, cut)
}

/// The last [`STDERR_BYTES`] of a pipe, readable while it is being read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    kept: Arc<Mutex<Vec<u8>>>,
}

impl Tail {
    /// Reads to the end.
    pub(crate) async fn read(self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = vec![0; STDERR_BYTES];
        while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..read]);
            let surplus = kept.len().saturating_sub(STDERR_BYTES);
            kept.drain(..surplus);
        }
    }

    /// What is kept, decoded lossily.
    pub(crate) fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim_end().to_owned()
    }
}

fn command_name(program: &Path) -> String {
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reaper::Orphans;
    use tokio::signal::unix;

    fn reaper() -> Arc<Reaper> {
        let reaper = Reaper::new(Orphans::Ignored);
        let ends = unix::signal(unix::SignalKind::child()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test has no tracker")]
        drop(tokio::spawn(Arc::clone(&reaper).watch(ends)));
        reaper
    }

    fn bounds(stdout_bytes: usize, time_ms: u64) -> Bounds {
        Bounds { stdout_bytes, time: Duration::from_millis(time_ms) }
    }

    #[tokio::test]
    async fn output_is_cut_at_its_bound_and_the_program_still_ends() {
        let mut echo = command("/bin/cat".as_ref(), "/".as_ref());
        let output = run(&reaper(), &mut echo, &vec![b'x'; 300_000], bounds(299_999, 60_000)).await.unwrap();
        assert_eq!((output.stdout.len(), output.cut, output.exit.success()), (299_999, true, true));
        let mut echo = command("/bin/cat".as_ref(), "/".as_ref());
        let output = run(&reaper(), &mut echo, &vec![b'x'; 300_000], bounds(300_000, 60_000)).await.unwrap();
        assert_eq!((output.stdout.len(), output.cut), (300_000, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_end_is_killed_at_its_time() {
        let mut endless = command("/bin/sh".as_ref(), "/".as_ref());
        endless.args(["-c", "while :; do :; done"]);
        let error = run(&reaper(), &mut endless, b"", bounds(1, 50)).await.unwrap_err();
        assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = run(&reaper(), &mut command("/no/such".as_ref(), "/".as_ref()), b"", bounds(1, 50)).await;
        assert_eq!(error.unwrap_err().to_string(), "cannot start such");
    }

    #[tokio::test]
    async fn the_end_of_standard_error_is_kept_and_the_environment_is_empty() {
        let mut noisy = command("/bin/sh".as_ref(), "/".as_ref());
        noisy.args(["-c", "head -c 20000 /dev/zero | tr '\\0' a >&2; echo end >&2; env"]);
        noisy.env("PATH", "/usr/bin:/bin");
        let output = run(&reaper(), &mut noisy, b"", bounds(4096, 60_000)).await.unwrap();
        assert!(output.stderr.len() < STDERR_BYTES && output.stderr.ends_with("aend"));
        let names: Vec<_> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
        assert!(
            names.iter().all(|name| ["PATH=", "PWD=", "SHLVL=", "_="].iter().any(|n| name.starts_with(n)))
        );
    }

    #[tokio::test]
    async fn sockets_of_a_program_can_be_opened_by_nobody_and_its_pipes_by_all_of_its_user() {
        let shell = || {
            let mut shell = command("/bin/sh".as_ref(), "/".as_ref());
            let open =
                "for n in 0 1; do (: > /proc/$$/fd/$n) 2>/dev/null && echo opened $n; done; cat; exit 3";
            shell.args(["-c", open]).env("PATH", "/usr/bin:/bin");
            shell
        };
        let output = run(&reaper(), &mut shell(), b"heard\n", bounds(4096, 60_000)).await.unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "opened 0\nopened 1\nheard\n");

        let mut closed = shell();
        let Sockets { mut input, mut output } = connect(&mut closed).unwrap();
        let mut child = reaper().spawn(&mut closed).unwrap();
        drop(closed);
        input.write_all(b"heard\n").await.unwrap();
        drop(input);
        let mut said = String::new();
        output.read_to_string(&mut said).await.unwrap();
        assert_eq!((said.as_str(), child.wait().await.code), ("heard\n", Some(3)));
    }

    #[test]
    fn a_program_is_looked_for_in_the_order_of_the_path() {
        assert!(find_program("/nowhere:/usr/bin:/bin", "sh").is_some());
        assert_eq!(find_program("/nowhere", "sh"), None);
        assert_eq!(find_program("/", "proc"), None);
    }
}
