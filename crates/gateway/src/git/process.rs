//! Git's processes on the server: what they may take, as whom they run, and how they end.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid, User, geteuid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::Service;
use crate::body::{self, Chunks};
use crate::bounds::{Bounds, DENIED_BYTES, STDERR_BYTES};
use crate::config::{GatewayError, PROGRAMS, find_program};

/// How long git may take to end after its output did.
pub(super) const EXIT: Duration = Duration::from_secs(10);
/// Most of git's message that is shown, in bytes.
const DETAIL_BYTES: usize = 300;

/// Filters of a fetch that leave out what git need not read to know it. To those of others (`sparse:oid`, `combine`) an agent names
/// files by the thousand, each of which git has in memory as a list of patterns.
const FILTERS: [&str; 3] = ["blob:none", "blob:limit", "tree"];
/// Those that are refused, by name as well: what a repository's own settings say of one goes before what is said of all.
const REFUSED_FILTERS: [&str; 3] = ["sparse:oid", "object:type", "combine"];
/// What `prlimit` ends with where there is no program to start, or one that cannot be.
const NOT_STARTED: [i32; 2] = [126, 127];

/// What serves a repository that is a directory.
pub(crate) struct Programs {
    pub(super) git: PathBuf,
    /// It sets the bounds of a fetch before git begins.
    prlimit: PathBuf,
}

impl Programs {
    /// By name, where they are not used.
    pub(super) fn named(git: &Path) -> Self {
        Self { git: git.to_owned(), prlimit: PathBuf::from("prlimit") }
    }

    /// # Errors
    /// [`GatewayError::Program`] if one is missing.
    pub(super) fn find(git: &Path) -> Result<Self, GatewayError> {
        Ok(Self { git: find_program(git)?, prlimit: find_program(Path::new("prlimit"))? })
    }
}

/// Why git ended as it did, where it could say nothing about that itself.
pub(super) fn unsaid(status: ExitStatus) -> Option<&'static str> {
    match status.code() {
        None => Some("git took more time or memory for it than it may"),
        Some(code) if NOT_STARTED.contains(&code) => Some("the git program could not be started"),
        Some(_) => None,
    }
}

/// Somebody else's uid and gid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    gid: u32,
}

impl Owner {
    /// Who owns `directory`, if this is root and that is somebody else. A root server would leave files in it that its
    /// owner cannot remove, and run the owner's hooks as root.
    pub(super) fn of(directory: &Path) -> io::Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let metadata = directory.metadata()?;
        let uid = metadata.uid();
        if geteuid().as_raw() == uid {
            return Ok(None);
        }
        let gid = match metadata.gid() {
            // Root's group opens more than the owner has.
            0 => User::from_uid(Uid::from_raw(uid))?.map_or(uid, |user| user.gid.as_raw()),
            gid => gid,
        };
        Ok(Some(Self { uid, gid }))
    }
}

/// One of git's services; a push that `rewrites` may take commits away from its branch.
///
/// A fetch is bounded by the kernel. A push is not, since its hooks are the repository's own; git bounds itself there.
pub(super) fn git(
    programs: &Programs,
    (service, rewrites): (Service, bool),
    owner: Option<Owner>,
    bounds: &Bounds,
) -> Command {
    let settings = settings(service, rewrites, bounds);
    let mut command = match service {
        Service::UploadPack => {
            let mut command = plain_git(&programs.prlimit, owner, &settings);
            command.arg(format!("--data={}", bounds.fetch_memory_bytes));
            command.arg(format!("--cpu={}", bounds.fetch_cpu_s)).arg("--core=0").arg(&programs.git);
            command
        }
        Service::ReceivePack => {
            let mut command = plain_git(&programs.git, owner, &settings);
            // Git refuses any larger piece of memory. It is in no manual; 2.47 has it (wrapper.c).
            command.env("GIT_ALLOC_LIMIT", bounds.git_alloc_bytes.to_string());
            command
        }
    };
    command.arg(service.name().trim_start_matches("git-")).arg("--stateless-rpc");
    command
}

/// Git with nothing of the server's environment or of its user's configuration. Which directories are served
/// is the allow-list's word, so git's own question who owns them is answered beforehand.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that starts a process")]
pub(super) fn plain_git(
    program: &Path,
    owner: Option<Owner>,
    settings: &[(impl AsRef<OsStr>, String)],
) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PROGRAMS)
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C.UTF-8")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        // What is looked at and carried is what there is, not what a ref of the repository puts in its place.
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_TERMINAL_PROMPT", "0");
    command.env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (number, (key, value)) in settings.iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{number}"), key).env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    if let Some(owner) = owner {
        // The standard library drops root's further groups with it.
        command.uid(owner.uid).gid(owner.gid);
    }
    command.current_dir("/").process_group(0).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Settings that the repository's own cannot change. What is pushed comes from an agent: it is checked, stays a pack
/// (whose large files are never in memory as a whole) and adds to a branch's history without taking from it, unless it
/// was found that it may. What is fetched is the agent's choice too: it takes one processor, and no filter that costs more than
/// what it leaves out.
fn settings(service: Service, rewrites: bool, bounds: &Bounds) -> Vec<(String, String)> {
    let fixed = |settings: &[(&str, &str)]| {
        settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let mut all = fixed(&[("safe.directory", "*"), ("pack.threads", "1")]);
    match service {
        Service::UploadPack => {
            all.extend(fixed(&[
                ("uploadpack.allowFilter", "true"),
                ("uploadpackfilter.allow", "false"),
                ("core.bigFileThreshold", "16m"),
                ("pack.windowMemory", "128m"),
            ]));
            let filters = FILTERS.map(|name| (name, true)).into_iter();
            let filters = filters.chain(REFUSED_FILTERS.map(|name| (name, false)));
            all.extend(
                filters.map(|(name, may)| (format!("uploadpackfilter.{name}.allow"), may.to_string())),
            );
        }
        Service::ReceivePack => {
            all.extend(fixed(&[
                ("receive.fsckObjects", "true"),
                ("receive.autogc", "false"),
                ("receive.unpackLimit", "1"),
                ("core.bigFileThreshold", "1m"),
            ]));
            all.push(("receive.denyNonFastForwards".to_owned(), (!rewrites).to_string()));
            all.push(("receive.maxInputSize".to_owned(), bounds.push_bytes.to_string()));
        }
    }
    all
}

/// Git and whatever it started: dropped before their end, all of them are killed. The end of git alone would leave its
/// children at work on what they have.
pub(super) struct Running {
    group: Group,
    child: Child,
    _slot: Option<OwnedSemaphorePermit>,
}

struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0
            && let Err(error) = killpg(group, Signal::SIGKILL)
        {
            tracing::debug!(error = %error, "git's processes had ended already");
        }
    }
}

/// A process's ends of its pipes.
pub(super) struct Pipes {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

impl Running {
    /// Starts it. The slot, if it takes one, is free again at its end.
    pub(super) fn start(
        mut command: Command,
        slot: Option<OwnedSemaphorePermit>,
    ) -> io::Result<(Self, Pipes)> {
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let pipes =
            Pipes { stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take() };
        Ok((Self { group: Group(pid), child, _slot: slot }, pipes))
    }

    /// Waits for its end, not for long; none if it did not come.
    pub(super) async fn end(mut self) -> Option<ExitStatus> {
        let status = timeout(EXIT, self.child.wait()).await.ok()?.ok()?;
        // Whatever a hook left behind is the hook's affair, and the number may soon be another's.
        self.group.0 = None;
        Some(status)
    }

    /// Git's output, with git beside it: whoever drops it kills git, and at its end git is waited for.
    pub(super) fn attend(self, output: Chunks) -> Chunks {
        stream::unfold(Some((self, output)), |state| async move {
            let (running, mut output) = state?;
            if let Some(chunk) = output.next().await {
                return Some((chunk, Some((running, output))));
            }
            if running.end().await.is_none() {
                tracing::warn!("git did not end after its output; it was killed");
            }
            None
        })
        .boxed()
    }
}

/// Writes the request to git. If it breaks off, git finds its input cut and changes nothing. What a git that has ended
/// leaves is read all the same, so that its sender listens to the answer instead of finding the connection closed.
pub(super) async fn feed(mut stdin: ChildStdin, mut input: Chunks, (idle, drain): (Duration, Duration)) {
    while let Some(Ok(chunk)) = input.next().await {
        if !matches!(timeout(idle, stdin.write_all(&chunk)).await, Ok(Ok(()))) {
            drop(stdin);
            let mut rest = body::bounded(input, DENIED_BYTES);
            let all = async { while let Some(Ok(_)) = rest.next().await {} };
            if timeout(drain, all).await.is_err() {
                tracing::debug!("a request that git did not want was not read to its end");
            }
            return;
        }
    }
}

/// The end of what git said, on one line.
pub(super) async fn last_words<R: AsyncRead + Unpin + Send>(mut stderr: R, total: Duration) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    let read = async {
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            kept.extend_from_slice(&buffer[..count]);
            let surplus = kept.len().saturating_sub(STDERR_BYTES);
            kept.drain(..surplus);
        }
    };
    if timeout(total, read).await.is_err() {
        tracing::debug!("git's standard error stayed open");
    }
    let text = String::from_utf8_lossy(&kept).split_whitespace().collect::<Vec<_>>().join(" ");
    // From the beginning of a word: half a secret would be shown as none.
    let is_cut = kept.len() >= STDERR_BYTES || text.len() > DETAIL_BYTES;
    let end = &text[text.ceil_char_boundary(text.len().saturating_sub(DETAIL_BYTES))..];
    let whole = if is_cut { end.split_once(' ').map_or("", |(_, whole)| whole) } else { end };
    whole.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_what_git_said_is_kept() {
        let said = format!("{}fatal:  no\nrepository\n", "warning\n".repeat(STDERR_BYTES));
        let kept = last_words(said.as_bytes(), Duration::from_secs(1)).await;
        assert!(kept.len() > DETAIL_BYTES - 10 && kept.ends_with("warning fatal: no repository"), "{kept}");
        assert!(kept.starts_with("warning "), "{kept}");
        assert_eq!(last_words(" ää".repeat(DETAIL_BYTES).as_bytes(), EXIT).await.len(), DETAIL_BYTES - 1);
        assert_eq!(
            last_words("ää".repeat(DETAIL_BYTES).as_bytes(), EXIT).await,
            "",
            "the end of a word is none"
        );
    }

    #[test]
    fn a_fetch_is_bounded_by_the_kernel_and_a_push_by_git_itself() {
        let programs = Programs::find(Path::new("/usr/bin/git")).unwrap();
        let bounds = Bounds::default();
        let of = |service| git(&programs, (service, false), None, &bounds);
        let limit = |service| {
            let command = of(service);
            let mut variables = command.as_std().get_envs();
            let found = variables.find(|(name, _)| *name == OsStr::new("GIT_ALLOC_LIMIT"));
            found.and_then(|(_, value)| value).map(OsStr::to_owned)
        };
        assert_eq!(limit(Service::ReceivePack), Some("268435456".into()));
        // A repository's owner may keep whatever they like in it.
        assert_eq!(limit(Service::UploadPack), None);
        let fetch = of(Service::UploadPack);
        let arguments: Vec<_> =
            fetch.as_std().get_args().map(|argument| argument.to_str().unwrap()).collect();
        let wanted =
            ["--data=2147483648", "--cpu=600", "--core=0", "/usr/bin/git", "upload-pack", "--stateless-rpc"];
        assert_eq!(arguments, wanted);
        assert_eq!(fetch.as_std().get_program(), programs.prlimit.as_os_str());
        // Hooks of the repository's own are not Caisson's to bound.
        assert_eq!(of(Service::ReceivePack).as_std().get_program(), "/usr/bin/git");
    }
}
