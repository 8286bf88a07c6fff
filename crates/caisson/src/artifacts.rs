//! Where what runs leave is kept: in the state directory, or in a directory that several servers share (`artifacts_dir`).
//!
//! A shared directory is known by an id in a file of its own, which the first server makes that uses it. The database tells which
//! one each server uses: so a volume that is not mounted, or another one in its place, is no empty directory that a server
//! would begin to fill, and no proof that files are gone.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use caisson_domain::artifacts::SharedArtifacts;
use caisson_domain::id::ServerId;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_store::{Store, StoreError};
use nix::unistd::{AccessFlags, access};
use tracing::warn;

use crate::settings::Settings;

/// How long a look at a shared directory may take: a network volume whose server is away does not answer at all.
const LOOK: Duration = Duration::from_secs(2);
/// The directory in the state directory.
const OWN: &str = "artifacts";

/// The directory that the server keeps artifacts in, and nobody else.
#[must_use]
pub(crate) fn own_directory(settings: &Settings, server: &ServerId) -> PathBuf {
    match &settings.artifacts_dir {
        Some(shared) => shared.join(server.as_str()),
        None => settings.state_dir.join(OWN),
    }
}

/// The shared directory that the settings name, if they name one. Nothing is made.
///
/// # Errors
/// It is not there, or was never used.
pub(crate) fn look(settings: &Settings) -> anyhow::Result<Option<SharedArtifacts>> {
    let Some(directory) = &settings.artifacts_dir else { return Ok(None) };
    let id = read_id(directory)?.with_context(|| {
        format!(
            "artifacts_dir \"{}\" holds no {}: mount what is to be there; a server that starts with a new directory makes it",
            directory.display(),
            SharedArtifacts::id_file(directory).file_name().unwrap_or_default().display()
        )
    })?;
    Ok(Some(SharedArtifacts { directory: directory.clone(), id }))
}

/// The same when a server starts, which makes a new directory its own. The database is told which one it is.
///
/// # Errors
/// The directory is not there; or the server has kept artifacts elsewhere, and nobody has moved them.
pub(crate) async fn at_start(
    settings: &Settings,
    store: &Store,
    server: &ServerId,
) -> anyhow::Result<Option<SharedArtifacts>> {
    let known = store.artifacts_id(server).await?;
    let shared = match &settings.artifacts_dir {
        None => None,
        Some(directory) => {
            let id = read_id(directory)?;
            check_moved(settings, server, (known.as_deref(), id.as_deref()))?;
            let id = id.map_or_else(|| make_id(directory), Ok)?;
            Some(SharedArtifacts { directory: directory.clone(), id })
        }
    };
    let id = shared.as_ref().map(|shared| shared.id.as_str());
    if shared.is_none() {
        check_moved(settings, server, (known.as_deref(), None))?;
    }
    if known.as_deref() != id {
        store.set_artifacts_id(server, id).await?;
    }
    if let Some(weakness) = difference(store, server, id).await? {
        warn!("{weakness}");
    }
    Ok(shared)
}

/// What to tell where another server that lives and shares the database does not share its artifacts.
///
/// # Errors
/// The database does not answer.
pub(crate) async fn difference(
    store: &Store,
    server: &ServerId,
    id: Option<&str>,
) -> Result<Option<String>, StoreError> {
    let all = store.live_artifacts_ids().await?;
    let other =
        all.into_iter().find(|(other, theirs)| other != server && (id.is_none() || theirs.as_deref() != id));
    Ok(other.map(|(other, _)| {
        format!(
            "server {other} uses this database as well, and keeps what runs leave in another directory: neither server gives out what \
             the other one keeps; set artifacts_dir of all servers to one directory that they share"
        )
    }))
}

/// What `caisson doctor` tells of the directory that the settings name, if they name one: whether a server could start with it.
pub(crate) async fn examine(
    settings: &Settings,
    (store, server): (Option<&Store>, Option<&ServerId>),
) -> Option<Result<String, String>> {
    let directory = settings.artifacts_dir.as_deref()?;
    let examined = async {
        let id = read_id(directory)?;
        ensure!(
            access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
            "artifacts_dir \"{}\" cannot be written; servers that share it run as one user",
            directory.display()
        );
        if let (Some(store), Some(server)) = (store, server) {
            let known = store.artifacts_id(server).await?;
            check_moved(settings, server, (known.as_deref(), id.as_deref()))?;
        }
        let used = if id.is_some() {
            ""
        } else {
            " (never used; the next start makes it a shared directory of artifacts)"
        };
        Ok(format!("in \"{}\"{used}", directory.display()))
    };
    Some(examined.await.map_err(|error: anyhow::Error| format!("{error:#}")))
}

/// What the server has kept before must be where it looks from now on: it would be taken for gone. A directory of the server's
/// in the new place says that somebody has moved it, or that there is nothing to move.
fn check_moved(
    settings: &Settings,
    server: &ServerId,
    (known, found): (Option<&str>, Option<&str>),
) -> anyhow::Result<()> {
    let own = own_directory(settings, server);
    let state = settings.state_dir.join(OWN);
    if settings.artifacts_dir.is_some() && known.is_none() && holds_files(&state) {
        bail!(
            "artifacts_dir is set, and \"{state}\" still holds what runs have left: move it, with no server running, by \
             `mv {state} {own}`",
            state = state.display(),
            own = own.display()
        );
    }
    if known.is_none() || known == found || own.is_dir() {
        return Ok(());
    }
    let wanted = known.unwrap_or_default();
    let what = match &settings.artifacts_dir {
        Some(directory) => {
            format!("artifacts_dir \"{}\" is not that one: mount it there", directory.display())
        }
        None => "artifacts_dir is not set: set it".to_owned(),
    };
    bail!(
        "server {server} has kept what its runs left in the shared directory of artifacts with the id {wanted}, and {what}; or \
         move the server's part of it to \"{}\", and if there is nothing to move, make that directory",
        own.display()
    )
}

/// Whether there is anything but what the gateway keeps for itself.
fn holds_files(directory: &Path) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
}

/// The id of a shared directory; none if it was never used.
fn read_id(directory: &Path) -> anyhow::Result<Option<String>> {
    ensure!(
        directory.is_dir(),
        "artifacts_dir \"{}\" is no directory; make it, or mount what is to be there",
        directory.display()
    );
    let file = SharedArtifacts::id_file(directory);
    match fs::read_to_string(&file) {
        Ok(text) => {
            let id = SharedArtifacts::parse_id(&text)
                .with_context(|| format!("\"{}\" does not hold an id; restore it", file.display()))?;
            Ok(Some(id.to_owned()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| {
            format!("\"{}\" cannot be read; servers that share it run as one user", file.display())
        }),
    }
}

/// Gives a new directory its id. Of two servers that do so at once, one does.
fn make_id(directory: &Path) -> anyhow::Result<String> {
    let unusable = || format!("artifacts_dir \"{}\" cannot be written", directory.display());
    let id = hex::encode(rand::random::<[u8; 16]>());
    let mut staged = tempfile::NamedTempFile::new_in(directory).with_context(unusable)?;
    staged.write_all(format!("{id}\n").as_bytes()).with_context(unusable)?;
    staged.as_file().sync_all().with_context(unusable)?;
    match staged.persist_noclobber(SharedArtifacts::id_file(directory)) {
        Err(fault) if fault.error.kind() == ErrorKind::AlreadyExists => {
            read_id(directory)?.context("the id of the shared directory of artifacts came and went")
        }
        Err(fault) => Err(fault.error).with_context(unusable),
        Ok(_) => {
            fs::File::open(directory).and_then(|made| made.sync_all()).with_context(unusable)?;
            Ok(id)
        }
    }
}

/// Looks again and again whether a shared directory is still there: what a run leaves could not be kept without it.
#[derive(Debug)]
pub(crate) struct Watched {
    shared: SharedArtifacts,
    /// Whether a look is under way that got no answer.
    looking: Arc<AtomicBool>,
}

impl Watched {
    /// Nothing was looked at yet.
    pub(crate) fn new(shared: SharedArtifacts) -> Self {
        Self { shared, looking: Arc::default() }
    }

    /// What keeps runs from being placed.
    pub(crate) async fn problem(&self) -> Option<PlacementProblem> {
        let shown = self.shared.directory.display();
        let Some(is_there) = self.look().await else {
            return Some(away(format!("artifacts_dir \"{shown}\" does not answer; look after its volume")));
        };
        let lacks =
            || away(format!("artifacts_dir \"{shown}\" is not there any more; mount its volume again"));
        (!is_there).then(lacks)
    }

    /// Whether it is there; none without an answer. One look at a time: each that gets no answer keeps a thread.
    async fn look(&self) -> Option<bool> {
        if self.looking.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (shared, looking) = (self.shared.clone(), Arc::clone(&self.looking));
        let look = tokio::task::spawn_blocking(move || {
            let text = fs::read_to_string(SharedArtifacts::id_file(&shared.directory));
            looking.store(false, Ordering::Release);
            text.is_ok_and(|text| shared.is_named(&text))
        });
        tokio::time::timeout(LOOK, look).await.ok().and_then(Result::ok)
    }
}

fn away(message: String) -> PlacementProblem {
    PlacementProblem { code: ProblemCode::ArtifactsAway, message }
}

#[cfg(test)]
#[path = "artifacts_tests.rs"]
mod tests;
