//! Repositories that are directories on the server: served by git itself, under the allowed directories
//! alone.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caisson_domain::git::Repository;
use caisson_store::BoxError;
use futures_util::stream::{self, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use super::fault::Fault;
use super::{Answer, Exchange, Service, pktline};
use crate::body::{self, Chunks};
use crate::bounds::STDERR_BYTES;
use crate::shared::Shared;

/// Where git's own helpers and a repository's hooks look for programs.
const PROGRAMS: &str = "/usr/local/bin:/usr/bin:/bin";
/// Longest `.git` file that is read, in bytes.
const GIT_FILE_BYTES: u64 = 4096;
/// How long git may take to end after its output did.
const EXIT: Duration = Duration::from_secs(10);
/// Most of git's message that is shown, in bytes.
const DETAIL_BYTES: usize = 300;

pub(super) struct LocalRepository {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl LocalRepository {
    /// Resolves links and asks the allow-list again with what they lead to.
    pub(super) async fn open(shared: Arc<Shared>, path: PathBuf) -> Result<Self, Fault> {
        let asked = Arc::clone(&shared);
        let resolved = tokio::task::spawn_blocking(move || {
            resolve(&path, &|path: &Path| asked.git.allow.allows(&Repository::Path(path.to_owned())))
        });
        let path = resolved.await.map_err(|_| Fault::NoRepository)??;
        Ok(Self { shared, path })
    }

    pub(super) async fn advertise(&self, service: Service, protocol: Option<&str>) -> Result<Answer, Fault> {
        let chunks = self.run(service, protocol, None).await?;
        // Only protocol version 2 does without the header, and only for fetches.
        if protocol == Some("version=2") && service == Service::UploadPack {
            return Ok(Answer { chunks, encoding: None });
        }
        let mut header = Vec::new();
        pktline::write(&mut header, format!("# service={}\n", service.name()).as_bytes());
        header.extend_from_slice(pktline::FLUSH);
        let first = stream::iter([Ok::<_, BoxError>(Bytes::from(header))]);
        Ok(Answer { chunks: first.chain(chunks).boxed(), encoding: None })
    }

    pub(super) async fn exchange(
        &self,
        service: Service,
        protocol: Option<&str>,
        exchange: Exchange,
    ) -> Result<Answer, Fault> {
        let chunks = self.run(service, protocol, Some(exchange.chunks)).await?;
        Ok(Answer { chunks, encoding: None })
    }

    /// Runs the service over `input`, or its advertisement without. Answers once git wrote its first bytes.
    async fn run(
        &self,
        service: Service,
        protocol: Option<&str>,
        input: Option<Chunks>,
    ) -> Result<Chunks, Fault> {
        let mut command = git(&self.shared.git.program);
        command.arg(service.name().trim_start_matches("git-")).arg("--stateless-rpc");
        if input.is_none() {
            command.arg("--advertise-refs");
        }
        command.arg(&self.path);
        if let Some(protocol) = protocol.filter(|_| service == Service::UploadPack) {
            command.env("GIT_PROTOCOL", protocol);
        }
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().map_err(|error| {
            tracing::error!(error = %error, "git could not be started");
            Fault::Local { detail: "the git program could not be started".to_owned() }
        })?;
        let bounds = &self.shared.bounds;
        let tracker = &self.shared.tracker;
        if let (Some(stdin), Some(input)) = (child.stdin.take(), input) {
            tracker.spawn(feed(stdin, input, bounds.idle));
        }
        let said = child.stderr.take().map(|stderr| tracker.spawn(last_words(stderr, bounds.exchange)));
        let Some(stdout) = child.stdout.take() else {
            return Err(Fault::Local { detail: "git has no output".to_owned() });
        };
        let output = ReaderStream::new(stdout).map(|chunk| chunk.map_err(Into::into));
        let mut output = body::timed(output, bounds.idle, bounds.exchange);
        match output.next().await {
            Some(Ok(first)) => {
                let whole = stream::iter([Ok(first)]).chain(output).boxed();
                return Ok(attended(child, whole));
            }
            // Dropping the child kills it.
            Some(Err(_)) => return Err(Fault::Local { detail: "git did not answer in time".to_owned() }),
            None => {}
        }
        match timeout(EXIT, child.wait()).await {
            // Nothing was asked and nothing is answered.
            Ok(Ok(status)) if status.success() => Ok(stream::empty().boxed()),
            Ok(_) => {
                let said = match said {
                    Some(said) => timeout(EXIT, said).await.ok().and_then(Result::ok).unwrap_or_default(),
                    None => String::new(),
                };
                Err(Fault::Local { detail: said })
            }
            Err(_) => Err(Fault::Local { detail: "git closed its output and did not end".to_owned() }),
        }
    }
}

/// The directory of the repository at `path`, with every link resolved, if `allows` has it.
fn resolve(path: &Path, allows: &dyn Fn(&Path) -> bool) -> Result<PathBuf, Fault> {
    let path = path.canonicalize().map_err(|_| Fault::NoRepository)?;
    if !allows(&path) {
        return Err(Fault::NotAllowed);
    }
    let inner = path.join(".git");
    let Ok(kind) = inner.metadata() else {
        // Git itself would also try the name with ".git" behind it, which nobody has allowed.
        let bare = path.join("HEAD").is_file() && path.join("objects").is_dir();
        return if bare { Ok(path) } else { Err(Fault::NoRepository) };
    };
    let inner = if kind.is_file() { named_in(&inner).map(|named| path.join(named)) } else { Some(inner) };
    let inner = inner.and_then(|inner| inner.canonicalize().ok()).ok_or(Fault::NoRepository)?;
    if allows(&inner) { Ok(inner) } else { Err(Fault::LeadsOut) }
}

/// The directory that a `.git` file names: `gitdir: <path>`, see gitrepository-layout(5).
fn named_in(file: &Path) -> Option<PathBuf> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(GIT_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(PathBuf::from(text.strip_prefix("gitdir: ")?.trim_end_matches(['\n', '\r'])))
}

/// Git with nothing of the server's environment or of its user's configuration. Which directories are served
/// is the allow-list's word, so git's own question who owns them is answered beforehand; what is pushed is
/// checked.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that starts a process")]
fn git(program: &Path) -> Command {
    const SETTINGS: [(&str, &str); 4] = [
        ("safe.directory", "*"),
        ("receive.fsckObjects", "true"),
        ("receive.autogc", "false"),
        ("uploadpack.allowFilter", "true"),
    ];
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PROGRAMS)
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C.UTF-8")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_COUNT", SETTINGS.len().to_string());
    for (number, (key, value)) in SETTINGS.iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{number}"), key).env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    command.current_dir("/").stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Writes the request to git. If it breaks off, git finds its input cut and changes nothing.
async fn feed(mut stdin: ChildStdin, mut input: Chunks, idle: Duration) {
    while let Some(Ok(chunk)) = input.next().await {
        // A git that has ended needs no more of it.
        if !matches!(timeout(idle, stdin.write_all(&chunk)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// The end of what git said, on one line.
async fn last_words<R: AsyncRead + Unpin + Send>(mut stderr: R, total: Duration) -> String {
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
    text[text.ceil_char_boundary(text.len().saturating_sub(DETAIL_BYTES))..].to_owned()
}

/// Git's output, with git beside it: whoever drops it kills git, and at its end git is waited for.
fn attended(child: Child, output: Chunks) -> Chunks {
    stream::unfold((child, output), |(mut child, mut output)| async move {
        if let Some(chunk) = output.next().await {
            return Some((chunk, (child, output)));
        }
        if !matches!(timeout(EXIT, child.wait()).await, Ok(Ok(_))) {
            tracing::warn!("git did not end after its output; killing it");
        }
        None
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn bare(path: &Path) {
        fs::create_dir_all(path.join("objects")).unwrap();
        fs::write(path.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    }

    #[tokio::test]
    async fn the_end_of_what_git_said_is_kept() {
        let said = format!("{}fatal:  no\nrepository\n", "warning\n".repeat(STDERR_BYTES));
        let kept = last_words(said.as_bytes(), Duration::from_secs(1)).await;
        assert!(kept.len() == DETAIL_BYTES && kept.ends_with("warning fatal: no repository"), "{kept}");
        assert_eq!(last_words("ää".repeat(DETAIL_BYTES).as_bytes(), EXIT).await.len(), DETAIL_BYTES);
    }

    #[test]
    fn a_repository_is_found_inside_the_allowed_directory_alone() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let inside = root.join("allowed");
        let outside = root.join("outside");
        bare(&inside.join("bare"));
        bare(&inside.join("work/.git"));
        bare(&inside.join("only.git"));
        bare(&outside);
        fs::create_dir_all(inside.join("plain")).unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        fs::create_dir_all(inside.join("trap")).unwrap();
        symlink(&outside, inside.join("trap/.git")).unwrap();
        let long = PathBuf::from(format!("{}{}", "/".repeat(5000), outside.display()));
        let named = [("tree", inside.join("work/.git")), ("far", outside.clone()), ("long", long)];
        for (name, target) in named {
            fs::create_dir_all(inside.join(name)).unwrap();
            fs::write(inside.join(name).join(".git"), format!("gitdir: {}\n", target.display())).unwrap();
        }
        let of = |name: &str| resolve(&inside.join(name), &|path: &Path| path.starts_with(&inside));
        assert_eq!(of("bare"), Ok(inside.join("bare")));
        assert_eq!(of("work"), Ok(inside.join("work/.git")));
        assert_eq!(of("tree"), Ok(inside.join("work/.git")));
        assert_eq!(of("link"), Err(Fault::NotAllowed));
        assert_eq!(of("trap"), Err(Fault::LeadsOut));
        assert_eq!(of("far"), Err(Fault::LeadsOut));
        // Read up to its bound it names the root directory.
        assert_eq!(of("long"), Err(Fault::LeadsOut));
        assert_eq!(of("plain"), Err(Fault::NoRepository));
        assert_eq!(of("only"), Err(Fault::NoRepository));
        assert_eq!(of("missing"), Err(Fault::NoRepository));
    }
}
