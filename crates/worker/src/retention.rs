//! Removes what has been kept long enough: rows by the store, files here. What has expired is the store's to say, and it
//! looks again in the transaction that notes the removal; files go only after that.
//!
//! Where files lie is in the store until they are gone: whatever a crash, or a removal that fails, leaves of them is listed
//! again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caisson_domain::artifacts::SharedArtifacts;
use caisson_domain::id::{ProjectId, RunId, ServerId, SessionId};
use caisson_domain::retention::{Kept, Retention};
use caisson_store::{Actor, Store, StoreError};
use tracing::{error, info, warn};

use crate::context::{Context, Halt, described};
use crate::dirs::{DirError, Dirs, blocking};
use crate::disk::DiskCaps;
use crate::holds::Holds;

/// Most removals of each kind in one pass.
pub const REMOVALS: usize = 200;
const ARTIFACTS: &str = "artifacts";

/// Something that has expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// What of the session.
    pub kept: Kept,
    /// The session.
    pub session: SessionId,
    /// Whose files they are; of rows, the server that removes them.
    pub server: ServerId,
    /// Its tenant.
    pub project: ProjectId,
    /// When its last run ended, Unix ms.
    pub ended_at_ms: i64,
    /// About how much of the disk it gives back, in bytes: of a session, what its attachments have in the database; 0 for other rows.
    pub bytes: u64,
}

/// Finds and removes what has expired.
#[derive(Debug, Clone)]
pub struct Collector {
    store: Store,
    server: ServerId,
    policy: Retention,
    by: Actor,
    /// Where files are; none where they are left to the server that runs.
    files: Option<(Dirs, Holds)>,
    state_dir: PathBuf,
    /// The directory that has the artifacts of other servers as well, where they share one.
    shared: Option<SharedArtifacts>,
}

impl Collector {
    /// For whoever is alone with the state directory, or leaves the files in it alone (`files` is false).
    ///
    /// # Errors
    /// The directories cannot be made.
    pub fn open(
        store: Store,
        server: ServerId,
        (state_dir, files): (&Path, bool),
        shared: Option<SharedArtifacts>,
        (policy, by): (Retention, Actor),
    ) -> Result<Self, DirError> {
        let caps = DiskCaps::Measured { reason: "nothing is placed".to_owned() };
        let files = if files { Some((Dirs::open(state_dir, caps)?, Holds::new())) } else { None };
        Ok(Self { store, server, policy, by, files, state_dir: state_dir.to_owned(), shared })
    }

    pub(crate) fn of(ctx: &Context) -> Self {
        let config = &ctx.config;
        Self {
            store: ctx.store.clone(),
            server: config.server.clone(),
            policy: config.retention,
            by: Actor::Server,
            files: Some((ctx.dirs.clone(), ctx.holds.clone())),
            state_dir: config.state_dir.clone(),
            shared: config.shared_artifacts.clone(),
        }
    }

    /// What of one kind has expired, [`REMOVALS`] at most. Files are left to the server that runs, where there is one.
    ///
    /// # Errors
    /// As every read of the store.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn expired(&self, kept: Kept) -> Result<Vec<Removal>, StoreError> {
        if self.files.is_none() && matches!(kept, Kept::Artifacts | Kept::Volumes) {
            return Ok(Vec::new());
        }
        let mut removals = Vec::new();
        for server in self.servers(kept).await? {
            let found = self.store.expired(kept, &server, &self.policy).await?;
            for expired in found.into_iter().take(REMOVALS - removals.len()) {
                let bytes = self.bytes(kept, &expired.session).await;
                let (session, project, ended_at_ms) = (expired.session, expired.project, expired.ended_at_ms);
                removals.push(Removal { kept, session, server: server.clone(), project, ended_at_ms, bytes });
            }
        }
        Ok(removals)
    }

    /// The servers whose files of a kind are this one's to remove: its own, and what forgotten ones keep in the directory that they
    /// share, which nobody else would remove. Of several servers that do so, each finds gone what another one has removed.
    pub(crate) async fn servers(&self, kept: Kept) -> Result<Vec<ServerId>, StoreError> {
        let mut servers = vec![self.server.clone()];
        if let Some(shared) = self.shared.as_ref().filter(|_| kept == Kept::Artifacts) {
            servers.extend(self.store.forgotten_sharing(&shared.id).await?);
        }
        Ok(servers)
    }

    async fn bytes(&self, kept: Kept, session: &SessionId) -> u64 {
        match (&self.files, kept) {
            (Some((dirs, _)), Kept::Volumes) => {
                let (dirs, session) = (dirs.clone(), session.clone());
                blocking(move || Ok(dirs.session_bytes(&session))).await.unwrap_or(0)
            }
            // Whoever cannot know it now removes it all the same.
            (_, Kept::Sessions) => self.store.attachments_bytes(session).await.unwrap_or(0).unsigned_abs(),
            (Some(_), Kept::Artifacts | Kept::Events) | (None, _) => 0,
        }
    }

    /// Removes it, if it is still expired: `true` if it is gone.
    ///
    /// # Errors
    /// As every write of the store. Files that cannot be removed are told in the log, and tried again later.
    /// # Cancel safety
    /// Safe: what was begun is gone on with by the next pass.
    pub async fn remove(&self, removal: &Removal) -> Result<bool, StoreError> {
        let (store, session) = (&self.store, &removal.session);
        let gone = match removal.kept {
            Kept::Events => loop {
                let (_, more) = store.delete_events(session, &self.policy, &self.by).await?;
                if !more {
                    break true;
                }
            },
            Kept::Sessions => store.delete_session(session, &self.policy, &self.by).await?,
            Kept::Artifacts | Kept::Volumes => match &self.files {
                Some(files) => self.remove_files(removal, files).await?,
                // Left to the server that runs.
                None => false,
            },
        };
        if gone {
            info!(
                session.id = %session, retention.kind = %removal.kept, retention.bytes = removal.bytes,
                "removed {} of session {session}: its days are over", removal.kept
            );
        }
        Ok(gone)
    }

    /// Removes the files of one kind that the server has of a session. Only when they are gone the store is told so, and only
    /// then may the session's row go.
    async fn remove_files(
        &self,
        removal: &Removal,
        (dirs, holds): &(Dirs, Holds),
    ) -> Result<bool, StoreError> {
        let (store, session, server) = (&self.store, &removal.session, &removal.server);
        let gone = match removal.kept {
            Kept::Volumes => {
                store.delete_volume(session, server, &self.policy, &self.by).await?
                    && remove_volume(dirs, holds, session).await
            }
            Kept::Artifacts => match store.delete_artifacts(session, server, &self.policy, &self.by).await? {
                Some(runs) => self.remove_artifacts(server, runs).await,
                None => false,
            },
            Kept::Events | Kept::Sessions => false,
        };
        Ok(gone && store.session_files_gone(session, server, removal.kept).await?)
    }

    /// Removes what the server has kept for runs; fine if it is gone. What other servers that live keep in the same directory is
    /// theirs to remove.
    pub(crate) async fn remove_artifacts(&self, server: &ServerId, runs: Vec<RunId>) -> bool {
        let shared = self.shared.clone();
        let artifacts = artifacts_of(server, &self.state_dir, shared.as_ref());
        let removed = tokio::task::spawn_blocking(move || {
            check_is_there(shared.as_ref())?;
            for run in runs {
                // The gateway wrote them, and it alone: nobody else can nest anything there.
                match fs::remove_dir_all(artifacts.join(run.as_str())) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            // Nothing looks for them any more once they are said to be gone.
            match fs::File::open(&artifacts).and_then(|directory| directory.sync_all()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        });
        match removed.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                warn!(error = described(&error), "could not remove kept files");
                false
            }
            Err(error) => {
                warn!(error = described(&error), "could not remove kept files");
                false
            }
        }
    }
}

fn artifacts_of(server: &ServerId, state_dir: &Path, shared: Option<&SharedArtifacts>) -> PathBuf {
    shared.map_or_else(|| state_dir.join(ARTIFACTS), |shared| shared.of(server))
}

/// What is not there because the volume is not mounted is not gone.
fn check_is_there(shared: Option<&SharedArtifacts>) -> io::Result<()> {
    let Some(shared) = shared else { return Ok(()) };
    if shared.is_named(&fs::read_to_string(SharedArtifacts::id_file(&shared.directory))?) {
        return Ok(());
    }
    Err(io::Error::other("another directory is where the shared one of artifacts should be"))
}

/// Removes workspace and home of a session unless they are used; fine if they are gone.
pub(crate) async fn remove_volume(dirs: &Dirs, holds: &Holds, session: &SessionId) -> bool {
    let (dirs, holds, id) = (dirs.clone(), holds.clone(), session.clone());
    let removed = blocking(move || dirs.remove_session(&id, || holds.has_session(&id)));
    removed.await.unwrap_or_else(|error| {
        warn!(session.id = %session, error = described(&error), "could not remove the workspace of a session");
        false
    })
}

/// Passes at intervals until the server goes down.
pub(crate) async fn keep(ctx: &Context) -> Result<(), Halt> {
    let collector = Collector::of(ctx);
    loop {
        ctx.pause(ctx.timing().retention).await?;
        if let Err(error) = pass(ctx, &collector).await {
            warn!(error = described(&error), "could not remove what has expired, trying again later");
        }
    }
}

/// Files first, rows last: a session goes only when no server has files of it any more. What cannot be removed keeps nothing else
/// from it; only a store that takes no writes ends the pass.
async fn pass(ctx: &Context, collector: &Collector) -> Result<(), StoreError> {
    for kept in [Kept::Volumes, Kept::Artifacts, Kept::Events, Kept::Sessions] {
        let Some(removals) = unless_damaged(kept, None, collector.expired(kept).await)? else { continue };
        for removal in removals {
            if ctx.cancel.is_cancelled() {
                return Ok(());
            }
            let removed = collector.remove(&removal).await;
            unless_damaged(kept, Some(&removal.session), removed)?;
        }
    }
    Ok(())
}

/// Tells of a row that cannot be used, and has the pass go on behind it.
fn unless_damaged<T>(
    kept: Kept,
    session: Option<&SessionId>,
    result: Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) => Err(error),
        Err(error @ (StoreError::Corrupt { .. } | StoreError::Migration(_))) => {
            let of = session.map_or_else(String::new, |session| format!(" of session {session}"));
            error!(
                retention.kind = %kept, error = described(&error),
                "could not remove {kept}{of}, whose days are over: see `caisson db check`"
            );
            Ok(None)
        }
    }
}
