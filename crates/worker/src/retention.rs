//! Removes what has been kept long enough: rows by the store, files here. What has expired is the store's to say, and it
//! looks again in the transaction that notes the removal; files go only after that.
//!
//! A crash between the two leaves files of which no row tells: they are found by their places and asked for again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caisson_domain::id::{ProjectId, RunId, ServerId, SessionId};
use caisson_domain::retention::{Kept, Retention};
use caisson_store::{Actor, Store, StoreError};
use tracing::{info, warn};

use crate::context::{Context, Halt, described};
use crate::dirs::{DirError, Dirs, blocking};
use crate::disk::DiskCaps;
use crate::holds::Holds;

/// Most removals of each kind in one pass.
pub const REMOVALS: usize = 200;
/// Most names in a directory that one pass looks at.
const NAMES: usize = 20_000;
const ARTIFACTS: &str = "artifacts";

/// Something that has expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// What of the session.
    pub kept: Kept,
    /// The session.
    pub session: SessionId,
    /// Its tenant.
    pub project: ProjectId,
    /// When its last run ended, Unix ms.
    pub ended_at_ms: i64,
    /// About how much of the disk it gives back, in bytes; 0 for rows.
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
    artifacts: PathBuf,
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
        (policy, by): (Retention, Actor),
    ) -> Result<Self, DirError> {
        let caps = DiskCaps::Measured { reason: "nothing is placed".to_owned() };
        let files = if files { Some((Dirs::open(state_dir, caps)?, Holds::new())) } else { None };
        Ok(Self { store, server, policy, by, files, artifacts: state_dir.join(ARTIFACTS) })
    }

    pub(crate) fn of(ctx: &Context) -> Self {
        Self {
            store: ctx.store.clone(),
            server: ctx.config.server.clone(),
            policy: ctx.config.retention,
            by: Actor::Server,
            files: Some((ctx.dirs.clone(), ctx.holds.clone())),
            artifacts: ctx.config.state_dir.join(ARTIFACTS),
        }
    }

    /// What of one kind has expired, [`REMOVALS`] at most.
    ///
    /// # Errors
    /// As every read of the store.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn expired(&self, kept: Kept) -> Result<Vec<Removal>, StoreError> {
        let mut found = BTreeMap::new();
        for expired in self.store.expired(kept, &self.server, &self.policy).await? {
            found.insert(expired.session.clone(), expired);
        }
        for session in self.left_behind(kept).await? {
            if found.len() >= REMOVALS {
                break;
            }
            if !found.contains_key(&session)
                && let Some(expired) = self.store.expired_of(kept, &session, &self.policy).await?
            {
                found.insert(session, expired);
            }
        }
        let mut removals = Vec::new();
        for expired in found.into_values().take(REMOVALS) {
            let bytes = self.bytes(kept, &expired.session).await;
            let (session, project, ended_at_ms) = (expired.session, expired.project, expired.ended_at_ms);
            removals.push(Removal { kept, session, project, ended_at_ms, bytes });
        }
        Ok(removals)
    }

    /// Sessions of which files are on the disk.
    async fn left_behind(&self, kept: Kept) -> Result<Vec<SessionId>, StoreError> {
        let Some((dirs, _)) = &self.files else { return Ok(Vec::new()) };
        match kept {
            Kept::Events | Kept::Sessions => Ok(Vec::new()),
            Kept::Volumes => {
                let dirs = dirs.clone();
                let listed = blocking(move || dirs.sessions()).await.unwrap_or_else(|error| {
                    warn!(error = described(&error), "could not list the directories of sessions");
                    std::collections::BTreeSet::new()
                });
                Ok(listed.into_iter().take(NAMES).collect())
            }
            Kept::Artifacts => {
                let mut sessions = Vec::new();
                for run in names(&self.artifacts) {
                    let found = self.store.expired_of_run(kept, &run, &self.policy).await?;
                    sessions.extend(found.map(|expired| expired.session));
                }
                Ok(sessions)
            }
        }
    }

    async fn bytes(&self, kept: Kept, session: &SessionId) -> u64 {
        match (&self.files, kept) {
            (Some((dirs, _)), Kept::Volumes) => {
                let (dirs, session) = (dirs.clone(), session.clone());
                blocking(move || Ok(dirs.session_bytes(&session))).await.unwrap_or(0)
            }
            (Some(_), Kept::Artifacts | Kept::Events | Kept::Sessions) | (None, _) => 0,
        }
    }

    /// Removes it, if it is still expired: `true` if it is gone.
    ///
    /// # Errors
    /// As every write of the store. Files that cannot be removed are told in the log, and found again later.
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
            Kept::Artifacts => {
                match (&self.files, store.expired_of(Kept::Artifacts, session, &self.policy).await?) {
                    (Some(_), Some(_)) => {
                        match store.delete_artifacts(session, &self.policy, &self.by).await? {
                            Some(runs) => self.remove_artifacts(runs).await,
                            None => false,
                        }
                    }
                    (None, _) | (_, None) => false,
                }
            }
            Kept::Volumes => match &self.files {
                Some((dirs, holds)) => {
                    store.delete_volume(session, &self.policy, &self.by).await?
                        && remove_volume(dirs, holds, session).await
                }
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

    /// Removes what was kept for runs; fine if it is gone.
    pub(crate) async fn remove_artifacts(&self, runs: Vec<RunId>) -> bool {
        let artifacts = self.artifacts.clone();
        let removed = tokio::task::spawn_blocking(move || {
            for run in runs {
                // The gateway wrote them, and it alone: nobody else can nest anything there.
                match fs::remove_dir_all(artifacts.join(run.as_str())) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
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

/// Removes workspace and home of a session unless they are used; fine if they are gone.
pub(crate) async fn remove_volume(dirs: &Dirs, holds: &Holds, session: &SessionId) -> bool {
    let (dirs, holds, id) = (dirs.clone(), holds.clone(), session.clone());
    let removed = blocking(move || dirs.remove_session(&id, || holds.has_session(&id)));
    removed.await.unwrap_or_else(|error| {
        warn!(session.id = %session, error = described(&error), "could not remove the workspace of a session");
        false
    })
}

/// The runs of which files are kept.
fn names(artifacts: &Path) -> Vec<RunId> {
    let Ok(entries) = fs::read_dir(artifacts) else { return Vec::new() };
    let names = entries.flatten().take(NAMES).map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).collect()
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

/// Files first, rows last: a session goes only when its files are gone.
async fn pass(ctx: &Context, collector: &Collector) -> Result<(), StoreError> {
    for kept in [Kept::Volumes, Kept::Artifacts, Kept::Events, Kept::Sessions] {
        for removal in collector.expired(kept).await? {
            if ctx.cancel.is_cancelled() {
                return Ok(());
            }
            collector.remove(&removal).await?;
        }
    }
    Ok(())
}
