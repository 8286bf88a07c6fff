//! Repositories that are directories on the server: served by git itself, under the allowed directories
//! alone.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::git::{BranchName, Repository};
use caisson_domain::id::ProjectId;
use caisson_domain::redact::Redactor;
use caisson_store::BoxError;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use super::fault::Fault;
use super::process::{EXIT, Owner, Running, feed, git, last_words, plain_git, unsaid};
use super::{Answer, Exchange, Service, links, pktline};
use crate::body::{self, Chunks};
use crate::shared::Shared;

/// Longest `.git` and `commondir` file that is read, in bytes.
const GIT_FILE_BYTES: u64 = 4096;

pub(super) struct LocalRepository {
    shared: Arc<Shared>,
    project: ProjectId,
    path: PathBuf,
    owner: Option<Owner>,
    /// The process that the sandbox has for itself.
    own: Option<Arc<Semaphore>>,
}

impl LocalRepository {
    /// What takes live secrets out of what git says.
    pub(super) fn redactor(&self) -> Arc<Redactor> {
        self.shared.secrets.of(&self.project).redactor()
    }

    /// Resolves links and asks the allow-list again with what they lead to.
    pub(super) async fn open(
        shared: Arc<Shared>,
        project: ProjectId,
        path: PathBuf,
        own: Option<Arc<Semaphore>>,
    ) -> Result<Self, Fault> {
        let (asked, named) = (Arc::clone(&shared), path.clone());
        let resolved = tokio::task::spawn_blocking(move || {
            let allows = |path: &Path| asked.git.allow.allows(&Repository::Path(path.to_owned()));
            let path = resolve(&path, &allows, &asked.git.forbidden)?;
            let owner = Owner::of(&path).map_err(|error| {
                let detail = format!("its owner could not be learnt: {error}");
                Fault::Local { detail }
            })?;
            Ok((path, owner))
        });
        let (path, owner) = resolved.await.map_err(|_| none(&named))??;
        Ok(Self { shared, project, path, owner, own })
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
        let chunks = self.run(service, protocol, Some(exchange)).await?;
        Ok(Answer { chunks, encoding: None })
    }

    /// Whether git would refuse a push to the branch since a checkout of this repository is on it. A repository that
    /// cannot be asked is not judged here: the push itself will be.
    pub(super) async fn is_checked_out(&self, branch: &BranchName) -> bool {
        let place = self.ask(&["for-each-ref", "--format=%(worktreepath)", &branch.full_ref()]).await;
        if place.is_none_or(|place| place.is_empty()) {
            return false;
        }
        // See git-config(1); what is left out means refuse.
        let allowed = self.ask(&["config", "--get", "receive.denyCurrentBranch"]).await;
        !matches!(allowed.as_deref(), Some("ignore" | "warn" | "updateInstead" | "false"))
    }

    /// The place of one of git's processes: the sandbox's own, or one of those for all.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, Fault> {
        let own = self.own.as_ref().and_then(|own| Arc::clone(own).try_acquire_owned().ok());
        if let Some(slot) = own {
            return Ok(slot);
        }
        let shared = Arc::clone(&self.shared.git.processes).acquire_owned();
        let own = async {
            match &self.own {
                Some(own) => Arc::clone(own).acquire_owned().await,
                None => std::future::pending().await,
            }
        };
        let either = async {
            tokio::select! {
                slot = shared => slot,
                slot = own => slot,
            }
        };
        timeout(self.shared.bounds.first_byte, either).await.ok().and_then(Result::ok).ok_or(Fault::Busy)
    }

    /// One line that git says about the repository; none if it fails or takes too long.
    async fn ask(&self, arguments: &[&str]) -> Option<String> {
        let bounds = &self.shared.bounds;
        let _slot = self.slot().await.ok()?;
        let mut command =
            plain_git(&self.shared.git.programs.git, self.owner, &[("safe.directory", "*".to_owned())]);
        command.arg("--git-dir").arg(&self.path).args(arguments).stdin(Stdio::null());
        let output = timeout(bounds.idle, command.output()).await.ok()?.ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs the service over `input`, or its advertisement without. Answers once git wrote its first bytes.
    async fn run(
        &self,
        service: Service,
        protocol: Option<&str>,
        input: Option<Exchange>,
    ) -> Result<Chunks, Fault> {
        let bounds = &self.shared.bounds;
        let slot = self.slot().await?;
        let rewrites = input.as_ref().is_some_and(|input| input.rewrites);
        let mut command = git(&self.shared.git.programs, (service, rewrites), self.owner, bounds);
        if input.is_none() {
            command.arg("--advertise-refs");
        }
        command.arg(&self.path);
        if let Some(protocol) = protocol.filter(|_| service == Service::UploadPack) {
            command.env("GIT_PROTOCOL", protocol);
        }
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let (running, pipes) = Running::start(command, Some(slot)).map_err(|error| {
            tracing::error!(error = %error, "git could not be started");
            Fault::Local { detail: "the git program could not be started".to_owned() }
        })?;
        let tracker = &self.shared.tracker;
        if let (Some(stdin), Some(input)) = (pipes.stdin, input) {
            tracker.spawn(feed(stdin, input.chunks, (bounds.idle, bounds.drain)));
        }
        let said = pipes.stderr.map(|stderr| tracker.spawn(last_words(stderr, bounds.exchange)));
        let Some(stdout) = pipes.stdout else {
            return Err(Fault::Local { detail: "git has no output".to_owned() });
        };
        let output = ReaderStream::new(stdout).map(|chunk| chunk.map_err(Into::into));
        let mut output = body::timed(output, bounds.idle, bounds.exchange);
        match output.next().await {
            Some(Ok(first)) => {
                let whole = stream::iter([Ok(first)]).chain(output).boxed();
                return Ok(running.attend(whole));
            }
            // Dropping it kills it.
            Some(Err(_)) => return Err(Fault::Local { detail: "git did not answer in time".to_owned() }),
            None => {}
        }
        match running.end().await {
            // Nothing was asked and nothing is answered.
            Some(status) if status.success() => Ok(stream::empty().boxed()),
            Some(status) => {
                if let Some(why) = unsaid(status) {
                    return Err(Fault::Local { detail: why.to_owned() });
                }
                let said = match said {
                    Some(said) => timeout(EXIT, said).await.ok().and_then(Result::ok).unwrap_or_default(),
                    None => String::new(),
                };
                Err(Fault::Local { detail: self.explained(said) })
            }
            None => Err(Fault::Local { detail: "git closed its output and did not end".to_owned() }),
        }
    }

    /// What git said, with what it cannot know where it runs as somebody else.
    fn explained(&self, said: String) -> String {
        let barred = ["does not appear to be a git repository", "ermission denied"];
        match self.owner {
            Some(owner) if barred.iter().any(|words| said.contains(words)) => format!(
                "{said} (git runs as the repository's owner, uid {}: that user must be able to pass every directory \
                 above it)",
                owner.uid
            ),
            Some(_) | None => said,
        }
    }
}

/// The git directory of the repository at `path`, with every link resolved, if `allows` has it and nothing of it
/// overlaps `forbidden`: there agents write, and git runs hooks and reads settings where it is told to work.
fn resolve(path: &Path, allows: &dyn Fn(&Path) -> bool, forbidden: &[PathBuf]) -> Result<PathBuf, Fault> {
    let overlaps =
        |path: &Path| forbidden.iter().any(|held| path.starts_with(held) || held.starts_with(path));
    let named = path;
    let path = named.canonicalize().map_err(|_| none(named))?;
    if overlaps(&path) {
        return Err(Fault::Forbidden);
    }
    if !allows(&path) {
        return Err(Fault::NotAllowed);
    }
    let directory = git_directory(path).ok_or_else(|| none(named))?;
    // A linked worktree has its settings, hooks and objects elsewhere.
    let shared = match named_in(&directory.join("commondir"), "") {
        Some(common) => directory.join(common).canonicalize().map_err(|_| none(named))?,
        None => directory.clone(),
    };
    let parts = ["config", "hooks", "objects", "refs"];
    let parts = parts.iter().filter_map(|part| shared.join(part).canonicalize().ok());
    if [&directory, &shared].into_iter().any(|path| overlaps(path))
        || parts.into_iter().any(|part| overlaps(&part))
    {
        return Err(Fault::Forbidden);
    }
    if !allows(&directory) || !allows(&shared) {
        return Err(Fault::LeadsOut);
    }
    let inside = |path: &Path| allows(path) && !overlaps(path);
    match links::stray(&shared, &inside).or_else(|| links::stray(&directory, &inside)) {
        Some(what) => Err(Fault::StraysOut { what }),
        None => Ok(directory),
    }
}

/// There is no repository at the path that the run names.
fn none(named: &Path) -> Fault {
    Fault::NoRepository { path: named.display().to_string() }
}

/// Where the repository at `path` keeps what git reads and writes: there itself, or where its `.git` is or leads. None if there
/// is no repository.
fn git_directory(path: PathBuf) -> Option<PathBuf> {
    let inner = path.join(".git");
    let Ok(kind) = inner.metadata() else {
        // Git itself would also try the name with ".git" behind it, which nobody has allowed.
        let bare = path.join("HEAD").is_file() && path.join("objects").is_dir();
        return bare.then_some(path);
    };
    let inner =
        if kind.is_file() { named_in(&inner, "gitdir: ").map(|named| path.join(named)) } else { Some(inner) };
    inner.and_then(|inner| inner.canonicalize().ok())
}

/// The directory that a `.git` or `commondir` file names behind `mark`, see gitrepository-layout(5).
fn named_in(file: &Path, mark: &str) -> Option<PathBuf> {
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(GIT_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(PathBuf::from(text.strip_prefix(mark)?.trim_end_matches(['\n', '\r'])))
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
        let of = |name: &str| resolve(&inside.join(name), &|path: &Path| path.starts_with(&inside), &[]);
        assert_eq!(of("bare"), Ok(inside.join("bare")));
        assert_eq!(of("work"), Ok(inside.join("work/.git")));
        assert_eq!(of("tree"), Ok(inside.join("work/.git")));
        assert_eq!(of("link"), Err(Fault::NotAllowed));
        assert_eq!(of("trap"), Err(Fault::LeadsOut));
        assert_eq!(of("far"), Err(Fault::LeadsOut));
        // Read up to its bound it names the root directory.
        assert_eq!(of("long"), Err(Fault::LeadsOut));
        assert_eq!(of("plain"), Err(none(&inside.join("plain"))));
        assert_eq!(of("only"), Err(none(&inside.join("only"))));
        assert_eq!(of("missing"), Err(none(&inside.join("missing"))));
    }

    #[test]
    fn where_agents_write_no_repository_is_found_whatever_is_allowed() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let state = root.join("held/state");
        bare(&state);
        bare(&state.join("inner"));
        bare(&root.join("held"));
        bare(&root.join("fine"));
        bare(&root.join("around/.git"));
        symlink(state.join("inner"), root.join("link")).unwrap();
        for (name, file) in [("file", ".git"), ("tree/.git", "commondir")] {
            fs::create_dir_all(root.join(name)).unwrap();
            let mark = if file == ".git" { "gitdir: " } else { "" };
            let text = format!("{mark}{}\n", state.join("inner").display());
            fs::write(root.join(name).join(file), text).unwrap();
        }
        for part in ["config", "hooks", "objects", "refs"] {
            bare(&root.join(part));
            fs::remove_dir_all(root.join(part).join(part)).ok();
            symlink(state.join("inner"), root.join(part).join(part)).unwrap();
        }
        let of = |name: &str| resolve(&root.join(name), &|_: &Path| true, std::slice::from_ref(&state));
        for held in [
            "held/state",
            "held/state/inner",
            "held",
            "link",
            "file",
            "tree",
            "config",
            "hooks",
            "objects",
            "refs",
        ] {
            assert_eq!(of(held), Err(Fault::Forbidden), "{held}");
        }
        assert_eq!(of("fine"), Ok(root.join("fine")));
        assert_eq!(of("around"), Ok(root.join("around/.git")));
    }

    #[test]
    fn a_worktree_whose_repository_is_elsewhere_is_allowed_with_it_alone() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let inside = root.join("allowed");
        bare(&root.join("main/.git"));
        bare(&inside.join("main/.git"));
        for (name, main) in [("out", root.join("main/.git")), ("in", inside.join("main/.git"))] {
            fs::create_dir_all(inside.join(name).join(".git")).unwrap();
            fs::write(inside.join(name).join(".git/commondir"), format!("{}\n", main.display())).unwrap();
        }
        let of = |name: &str| resolve(&inside.join(name), &|path: &Path| path.starts_with(&inside), &[]);
        assert_eq!(of("in"), Ok(inside.join("in/.git")));
        assert_eq!(of("out"), Err(Fault::LeadsOut));
    }
}
