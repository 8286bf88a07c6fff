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

    /// Runs git, whose output nobody wants. Where it fails, and says of it what is `fine` and nothing else, it did not.
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
        fine: &Fine,
    ) -> Result<(), HelperError> {
        let (running, Pipes { stdin, stdout, stderr }) = self.start(directory, arguments, bounds)?;
        drop(stdin);
        let reading = OptionFuture::from(
            stdout
                .map(|mut stdout| async move { tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await }),
        );
        let saying = OptionFuture::from(stderr.map(|stderr| lines_but(stderr, fine)));
        let all = async { tokio::join!(reading, saying) };
        let (read, said) = timeout(bounds.push.time, all).await.map_err(|_| HelperError::Exceeded)?;
        read.transpose()?;
        let (others, is_fine) = said.transpose()?.unwrap_or_default();
        let words = last_words(others.as_slice(), bounds.push.time).await;
        match finish(running, Some(words)).await {
            Err(HelperError::Failed(_)) if is_fine => Ok(()),
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

/// What git says when it fails for want of what it does not need: lines, without their ends.
pub(super) struct Fine {
    /// Whether this is one of the reasons.
    pub(super) is_reason: fn(&[u8]) -> bool,
    /// Whether this is nothing that it fails for.
    pub(super) is_remark: fn(&[u8]) -> bool,
    /// What it says last, when it had no other reasons.
    pub(super) last: &'static [u8],
}

/// What git says of a pack that lacks files of attributes which its directories have, and is sound otherwise.
pub(super) const LACKS_ATTRIBUTES: Fine = Fine {
    is_reason: lacks_attributes,
    is_remark: warns_of_an_object,
    last: b"fatal: fsck error in pack objects",
};

fn lacks_attributes(line: &[u8]) -> bool {
    line.strip_prefix(b"error: object ").and_then(behind_id)
        == Some(b": gitattributesMissing: unable to read .gitattributes blob")
}

/// What git finds and fails no pack for, such as an ignore file that is a symbolic link.
fn warns_of_an_object(line: &[u8]) -> bool {
    let said = line.strip_prefix(b"warning: object ").and_then(behind_id);
    said.is_some_and(|said| said.starts_with(b": "))
}

/// What follows the id of an object.
fn behind_id(text: &[u8]) -> Option<&[u8]> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    matches!(digits, 40 | 64).then(|| &text[digits..])
}

/// The end of what else git says, and whether it says what is fine, and nothing else. What is too long for a line is none of it.
async fn lines_but(stderr: impl AsyncRead + Unpin, fine: &Fine) -> io::Result<(Vec<u8>, bool)> {
    let mut stderr = BufReader::new(stderr);
    let (mut others, mut line) = (Vec::new(), Vec::new());
    let (mut begins, mut has_reason, mut is_over) = (true, false, false);
    loop {
        line.clear();
        let read = (&mut stderr).take(LINE_BYTES).read_until(b'\n', &mut line).await?;
        if read == 0 {
            let is_fine = has_reason && is_over && others.is_empty();
            return Ok((others, is_fine));
        }
        let whole = line.strip_suffix(b"\n").filter(|_| begins && !is_over);
        begins = line.ends_with(b"\n");
        if whole.is_some_and(fine.is_reason) {
            has_reason = true;
        } else if whole == Some(fine.last) {
            is_over = true;
        } else if !whole.is_some_and(fine.is_remark) {
            others.extend_from_slice(&line);
            others.drain(..others.len().saturating_sub(STDERR_BYTES));
        }
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
    use crate::git::quarantine::{Quarantine, Quarantines};
    use crate::tests::support::is_root;

    fn bounds(change: fn(&mut PushBounds)) -> Bounds {
        let mut bounds = Bounds::default();
        change(&mut bounds.push);
        bounds
    }

    /// A place like a quarantine's.
    async fn place() -> (Helper, tempfile::TempDir, Quarantine) {
        let helper = Helper::new(&find_program(Path::new("git")).unwrap()).unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let quarantines = Quarantines::prepare(root.path().join("q"), helper.owner()).unwrap();
        let quarantine = quarantines.make(40).await.unwrap();
        (helper, root, quarantine)
    }

    /// Git that does what an alias says there.
    async fn done(alias: &str, bounds: &Bounds) -> Result<String, HelperError> {
        let (helper, _root, quarantine) = place().await;
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
        if !is_root("become somebody else") {
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

    const FINE: Fine = Fine {
        is_reason: |line| line.ends_with(b"fine"),
        is_remark: |line| line == b"by the way",
        last: b"over",
    };

    #[tokio::test]
    async fn what_is_fine_is_passed_over_and_nothing_else_is() {
        let kept = async |said: &[u8]| lines_but(said, &FINE).await.unwrap();
        assert_eq!(kept(b"fine\nfine\nover\n").await, (Vec::new(), true));
        assert_eq!(kept(b"by the way\nfine\nby the way\nover\n").await, (Vec::new(), true));
        for (said, others) in [
            ("", ""),
            ("over\n", ""),
            ("fine\n", ""),
            ("fine\nover", "over"),
            ("fine\nbad\nover\n", "bad\n"),
            ("by the way\nover\n", ""),
            ("fine\nby the way, bad\nover\n", "by the way, bad\n"),
            ("fine\nover\nby the way\n", "by the way\n"),
            ("fine\nover\nfine\n", "fine\n"),
            ("fine\nover\nover\n", "over\n"),
        ] {
            assert_eq!(kept(said.as_bytes()).await, (others.as_bytes().to_vec(), false), "{said:?}");
        }
        let many = [b"bad\n".to_vec(), b"fine\n".repeat(STDERR_BYTES), b"over\n".to_vec()].concat();
        assert_eq!(kept(&many).await, (b"bad\n".to_vec(), false));
        let most = usize::try_from(LINE_BYTES).unwrap();
        for (bytes, is_line) in [(most, true), (most + 1, false)] {
            let long = [b" ".repeat(bytes - 5), b"fine\nover\n".to_vec()].concat();
            assert_eq!(kept(&long).await.1, is_line);
        }
        let (others, _) = kept(&b"bad\n".repeat(STDERR_BYTES)).await;
        assert_eq!(others.len(), STDERR_BYTES);
    }

    #[test]
    fn lacking_attributes_are_a_reason_and_warnings_of_an_object_a_remark_and_nothing_like_them_is() {
        let Fine { is_reason, is_remark, .. } = LACKS_ATTRIBUTES;
        let of = |before: &str, digits: usize, behind: &str| {
            let line = [before, &"a1".repeat(32)[..digits], behind].concat();
            (is_reason(line.as_bytes()), is_remark(line.as_bytes()))
        };
        let lacks = ": gitattributesMissing: unable to read .gitattributes blob";
        let link = ": gitignoreSymlink: .gitignore is a symlink";
        for digits in [40, 64] {
            assert_eq!(of("error: object ", digits, lacks), (true, false));
            assert_eq!(of("warning: object ", digits, link), (false, true));
        }
        for (before, digits, behind) in [
            ("error: object ", 40, link),
            ("error: object ", 41, lacks),
            ("error: object ", 40, ""),
            ("warning: object ", 39, link),
            ("warning: object ", 63, link),
            ("warning: object ", 40, " is bad"),
            ("warning: ", 40, link),
            (" warning: object ", 40, link),
            ("fatal: object ", 40, link),
        ] {
            assert_eq!(of(before, digits, behind), (false, false), "{before}{digits}{behind}");
        }
    }

    #[tokio::test]
    async fn a_git_that_fails_for_what_is_fine_has_not_failed_and_one_that_fails_without_a_word_has() {
        let bounds = bounds(|_| {});
        for (alias, is_done) in [
            ("exit 0", true),
            ("echo fine >&2; echo over >&2; exit 128", true),
            ("exit 128", false),
            ("echo fine >&2; exit 128", false),
            ("echo fine >&2; echo bad >&2; echo over >&2; exit 128", false),
        ] {
            let (helper, _root, quarantine) = place().await;
            let alias_set = format!("alias.x=!{alias}");
            let arguments = ["-c", alias_set.as_str(), "x"];
            let done = helper.run_but_for(&quarantine.directory, &arguments, &bounds, &FINE).await;
            assert_eq!(done.is_ok(), is_done, "{alias}: {done:?}");
        }
    }

    #[tokio::test]
    async fn a_git_that_fails_says_why() {
        let said = done("echo no such luck >&2; exit 3", &bounds(|_| {})).await;
        assert!(matches!(&said, Err(HelperError::Failed(said)) if said.contains("no such luck")), "{said:?}");
    }
}
