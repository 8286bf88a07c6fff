//! Git at work on a quarantine: in nobody's repository, with nothing of the server's, as nobody where the server is root,
//! and within bounds of memory, processor time and file size that the kernel keeps.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use caisson_domain::checks::{Check, stands};
use futures_util::future::OptionFuture;
use nix::unistd::geteuid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::process::{Pipes, Running, last_words, plain_git};
use crate::bounds::{Bounds, PushBounds, STDERR_BYTES};
use crate::config::{GatewayError, find_program};

/// Uid and gid of nobody.
const NOBODY: u32 = 65534;
/// Largest file that git makes in a quarantine: the list of a pack's objects, in bytes.
const FILE_BYTES: u64 = 256 * 1024 * 1024;
/// Longest line of git's that is looked at as a whole, in bytes.
const LINE_BYTES: u64 = 4096;
/// Most output of [`Helper::run`], in bytes.
const OUTPUT_BYTES: u64 = 64 * 1024 * 1024;

/// Why git did not do its work on a quarantine.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("git could not be started on the server")]
    Start(#[source] io::Error),
    /// What it said: it does not like what it was given.
    #[error("{0}")]
    Failed(String),
    /// It took more than it may.
    #[error("git took more time or memory for it than it may")]
    Exceeded,
    #[error("git's pipes broke on the server")]
    Pipes(#[from] io::Error),
}

/// How git is started on a quarantine.
#[derive(Debug, Clone)]
pub(super) struct Helper {
    git: PathBuf,
    /// It sets the bounds before git begins: whoever is not root any more takes none from outside.
    prlimit: PathBuf,
    /// It gives root up; needed where the server is root. The standard library would do that before it changes to the
    /// quarantine, above which are directories that nobody else may pass.
    setpriv: Option<PathBuf>,
}

impl Helper {
    /// # Errors
    /// [`GatewayError::Program`] if `prlimit` is missing, or `setpriv` where the server is root; both are util-linux's.
    pub(super) fn new(git: &Path) -> Result<Self, GatewayError> {
        let root = geteuid().is_root();
        let setpriv = root.then(|| find_program(Path::new("setpriv"))).transpose()?;
        Ok(Self { git: git.to_owned(), prlimit: find_program(Path::new("prlimit"))?, setpriv })
    }

    /// Whose the quarantine must be, if not the server's own.
    pub(super) fn owner(&self) -> Option<u32> {
        self.setpriv.as_ref().map(|_| NOBODY)
    }

    /// Runs git over `input`, and answers what it printed.
    ///
    /// # Errors
    /// [`HelperError`].
    /// # Cancel safety
    /// Dropped, it kills git.
    pub(super) async fn run(
        &self,
        directory: &Path,
        arguments: &[&str],
        input: &[u8],
        bounds: &Bounds,
    ) -> Result<Vec<u8>, HelperError> {
        let (running, pipes) = self.start(directory, arguments, bounds)?;
        let Pipes { stdin, stdout, stderr } = pipes;
        let feeding = async {
            if let Some(mut stdin) = stdin {
                // A git that does not read on says why.
                drop(stdin.write_all(input).await);
            }
        };
        let reading = async {
            let mut out = Vec::new();
            if let Some(stdout) = stdout {
                stdout.take(OUTPUT_BYTES + 1).read_to_end(&mut out).await?;
            }
            Ok::<_, io::Error>(out)
        };
        let saying = OptionFuture::from(stderr.map(|stderr| last_words(stderr, bounds.push.time)));
        let all = async { tokio::join!(feeding, reading, saying) };
        let ((), out, said) = timeout(bounds.push.time, all).await.map_err(|_| HelperError::Exceeded)?;
        let out = out?;
        if out.len() as u64 > OUTPUT_BYTES {
            return Err(HelperError::Exceeded);
        }
        finish(running, said).await.map(|()| out)
    }

    /// Runs git, whose output nobody wants. Where it fails but `is_fine` says of each of its lines, without their ends, that they
    /// are no reason for that, it did not.
    ///
    /// # Errors
    /// [`HelperError`].
    /// # Cancel safety
    /// Dropped, it kills git.
    pub(super) async fn run_but_for(
        &self,
        directory: &Path,
        arguments: &[&str],
        bounds: &Bounds,
        is_fine: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> Result<(), HelperError> {
        let (running, Pipes { stdin, stdout, stderr }) = self.start(directory, arguments, bounds)?;
        drop(stdin);
        let reading = OptionFuture::from(
            stdout
                .map(|mut stdout| async move { tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await }),
        );
        let saying = OptionFuture::from(stderr.map(|stderr| lines_but(stderr, is_fine)));
        let all = async { tokio::join!(reading, saying) };
        let (read, said) = timeout(bounds.push.time, all).await.map_err(|_| HelperError::Exceeded)?;
        read.transpose()?;
        let others = said.transpose()?.unwrap_or_default();
        let words = last_words(others.as_slice(), bounds.push.time).await;
        match finish(running, Some(words)).await {
            Err(HelperError::Failed(_)) if others.is_empty() => Ok(()),
            finished => finished,
        }
    }

    /// Starts git; its standard input is a pipe.
    ///
    /// # Errors
    /// [`HelperError::Start`].
    pub(super) fn start(
        &self,
        directory: &Path,
        arguments: &[&str],
        bounds: &Bounds,
    ) -> Result<(Running, Pipes), HelperError> {
        let mut command = self.command(directory, arguments, bounds);
        command.stdin(Stdio::piped());
        Running::start(command, None).map_err(HelperError::Start)
    }

    fn command(&self, directory: &Path, arguments: &[&str], bounds: &Bounds) -> Command {
        let settings = [
            ("core.bigFileThreshold", "1m"),
            ("core.packedGitWindowSize", "16m"),
            ("core.packedGitLimit", "128m"),
            ("core.deltaBaseCacheLimit", "64m"),
            ("pack.threads", "1"),
            ("gc.auto", "0"),
        ];
        let settings = settings.map(|(key, value)| (key, value.to_owned()));
        let mut command = plain_git(&self.prlimit, None, &settings);
        let PushBounds { cpu_s, memory_bytes, .. } = bounds.push;
        let memory = stands(Check::PushMemory).then(|| format!("--data={memory_bytes}"));
        let others = [format!("--cpu={cpu_s}"), format!("--fsize={FILE_BYTES}"), "--core=0".to_owned()];
        command.args(memory.into_iter().chain(others));
        if let Some(setpriv) = &self.setpriv {
            let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
            command.arg(setpriv).args(ids).args(["--clear-groups", "--no-new-privs"]);
        }
        command.arg(&self.git);
        if stands(Check::PushMemory) {
            command.env("GIT_ALLOC_LIMIT", bounds.git_alloc_bytes.to_string());
        }
        // Relative, so that no directory above it is asked for.
        command.env("GIT_DIR", ".").current_dir(directory);
        command.args(arguments.iter().map(OsStr::new));
        command
    }
}

/// The end of what git says, without the lines that are fine. One that is too long for a line is none of these.
async fn lines_but(
    stderr: impl AsyncRead + Unpin,
    is_fine: &(dyn Fn(&[u8]) -> bool + Sync),
) -> io::Result<Vec<u8>> {
    let mut stderr = BufReader::new(stderr);
    let (mut others, mut line, mut begins) = (Vec::new(), Vec::new(), true);
    loop {
        line.clear();
        let read = (&mut stderr).take(LINE_BYTES).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(others);
        }
        let ended = line.strip_suffix(b"\n");
        if !(begins && ended.is_some_and(is_fine)) {
            others.extend_from_slice(&line);
            others.drain(..others.len().saturating_sub(STDERR_BYTES));
        }
        begins = ended.is_some();
    }
}

/// Waits for git's end.
///
/// # Errors
/// [`HelperError`], with what it said.
pub(super) async fn finish(running: Running, said: Option<String>) -> Result<(), HelperError> {
    match running.end().await {
        Some(status) if status.success() => Ok(()),
        // By a signal: the kernel's, since nobody else sends one.
        Some(status) if status.code().is_none() => Err(HelperError::Exceeded),
        Some(_) => Err(HelperError::Failed(said.unwrap_or_default())),
        None => Err(HelperError::Exceeded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(change: fn(&mut PushBounds)) -> Bounds {
        let mut bounds = Bounds::default();
        change(&mut bounds.push);
        bounds
    }

    /// Git that does what an alias says, in a place like a quarantine's.
    async fn done(alias: &str, bounds: &Bounds) -> Result<String, HelperError> {
        let helper = Helper::new(&find_program(Path::new("git")).unwrap()).unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let quarantines =
            super::super::quarantine::Quarantines::prepare(root.path().join("q"), helper.owner()).unwrap();
        let quarantine = quarantines.make(40).await.unwrap();
        let alias = format!("alias.x=!{alias}");
        let out = helper.run(&quarantine.directory, &["-c", &alias, "x"], b"input", bounds).await?;
        Ok(String::from_utf8(out).unwrap().trim().to_owned())
    }

    #[tokio::test]
    async fn git_is_nobody_with_nothing_of_the_servers_and_within_its_bounds() {
        let bounds = bounds(|_| {});
        assert_eq!(done("cat", &bounds).await.unwrap(), "input");
        let limits = done("cat /proc/self/limits", &bounds).await.unwrap();
        let limit = |name: &str| {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().next().unwrap().to_owned()
        };
        assert_eq!(limit("Max cpu time"), bounds.push.cpu_s.to_string());
        assert_eq!(limit("Max data size"), bounds.push.memory_bytes.to_string());
        assert_eq!(
            (limit("Max file size"), limit("Max core file size")),
            (FILE_BYTES.to_string(), "0".to_owned())
        );
        assert!(!done("env", &bounds).await.unwrap().contains("CARGO"));
        if !geteuid().is_root() {
            println!("SKIPPED: only root can become somebody else");
            return;
        }
        assert_eq!(done("id -u; id -G", &bounds).await.unwrap(), "65534\n65534");
        let status = done("cat /proc/self/status", &bounds).await.unwrap();
        assert!(
            status.contains("NoNewPrivs:\t1") && status.contains("CapEff:\t0000000000000000"),
            "{status}"
        );
    }

    #[tokio::test]
    async fn what_takes_more_than_it_may_is_ended() {
        let late = bounds(|bounds| bounds.time = std::time::Duration::from_millis(100));
        assert!(matches!(done("exec sleep 600", &late).await, Err(HelperError::Exceeded)));
        let busy = bounds(|bounds| bounds.cpu_s = 1);
        // The shell that git starts has the same bounds, and tells of its signal by its exit code.
        let said = done("while :; do :; done", &busy).await;
        assert!(matches!(said, Err(HelperError::Exceeded | HelperError::Failed(_))), "{said:?}");
        let hungry = "head -c 64m /dev/zero | tail -c 64m | wc -c";
        assert_eq!(done(hungry, &bounds(|_| {})).await.unwrap(), (64 << 20).to_string());
        let small = bounds(|bounds| bounds.memory_bytes = 16 << 20);
        assert_ne!(done(hungry, &small).await.unwrap_or_default(), (64 << 20).to_string());
    }

    #[tokio::test]
    async fn lines_that_are_fine_are_passed_over_and_no_other_is() {
        let fine = |line: &[u8]| line == b"fine";
        let kept = async |said: &[u8]| lines_but(said, &fine).await.unwrap();
        assert_eq!(kept(b"fine\nfine\n").await, b"");
        assert_eq!(kept(b"fine\nbad\nfine").await, b"bad\nfine", "without its end it is cut");
        let many = [b"bad\n".to_vec(), b"fine\n".repeat(STDERR_BYTES)].concat();
        assert_eq!(kept(&many).await, b"bad\n");
        let most = usize::try_from(LINE_BYTES).unwrap();
        for (bytes, is_line) in [(most, true), (most + 1, false)] {
            let long = [b" ".repeat(bytes - 5), b"fine\n".to_vec()].concat();
            let any = |line: &[u8]| line.ends_with(b"fine");
            assert_eq!(lines_but(long.as_slice(), &any).await.unwrap().is_empty(), is_line);
        }
        let kept = kept(&b"bad\n".repeat(STDERR_BYTES)).await;
        assert_eq!(kept.len(), STDERR_BYTES);
    }

    #[tokio::test]
    async fn a_git_that_fails_says_why() {
        let said = done("echo no such luck >&2; exit 3", &bounds(|_| {})).await;
        assert!(matches!(&said, Err(HelperError::Failed(said)) if said.contains("no such luck")), "{said:?}");
    }
}
