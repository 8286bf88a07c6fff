//! What a process does for its server: everything, or a part. Parts of one server share its state directory and meet, as
//! always, in the store alone.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use caisson_domain::id::ServerId;
use caisson_domain::limits::HEARTBEAT_MS;
use caisson_domain::server::{PlacementProblem, ProblemCode, Role};
use caisson_store::{Beat, Presence, Store, StoreError};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::serve::chain;
use crate::settings::Settings;

/// Between two tries to become the one process of a server that keeps the head of its audit log.
const KEEPER_RETRY: Duration = Duration::from_secs(5);

/// What a process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roles(Vec<Role>);

impl Default for Roles {
    fn default() -> Self {
        Self(Role::ALL.to_vec())
    }
}

impl Roles {
    /// Only those, or all if none is named.
    pub(crate) fn only(mut roles: Vec<Role>) -> Self {
        roles.sort();
        roles.dedup();
        if roles.is_empty() { Self::default() } else { Self(roles) }
    }

    /// Whether it is among them.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// All of them.
    pub(crate) fn each(&self) -> &[Role] {
        &self.0
    }

    /// Whether the process is a whole server.
    pub(crate) fn are_all(&self) -> bool {
        self.0.len() == Role::ALL.len()
    }
}

impl std::fmt::Display for Roles {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.0.iter().map(|role| role.as_str()).collect();
        out.write_str(&names.join(", "))
    }
}

/// Whether the parts may be processes of their own.
///
/// # Errors
/// The database is one process's alone.
pub(crate) fn check(settings: &Settings) -> anyhow::Result<()> {
    anyhow::ensure!(
        settings.roles.are_all() || settings.database_place()?.is_shared(),
        "--only {} needs a PostgreSQL database (database.url): an SQLite file is for one server in one process; leave --only out",
        settings.roles
    );
    Ok(())
}

/// One server to a state directory, and one process to each part of it: two would give the same sandboxes orders. The locks
/// last as long as the answer.
///
/// # Errors
/// Another process has the directory, or the part.
pub(crate) fn lock(settings: &Settings) -> anyhow::Result<Vec<File>> {
    let (state_dir, roles) = (&settings.state_dir, &settings.roles);
    let shown = state_dir.display();
    let lock = if roles.are_all() { File::try_lock } else { File::try_lock_shared };
    let mut locks = vec![lock_whole(state_dir, lock)?];
    for role in &roles.0 {
        let part = file(state_dir, &format!("lock.{role}"))?;
        held(part.try_lock(), || {
            format!(
                "another process is the {role} of the state directory \"{shown}\"; stop it, or choose another --state-dir"
            )
        })?;
        locks.push(part);
    }
    Ok(locks)
}

/// Keeps every server from the state directory, as long as the answer lasts: for commands that no server may run beside.
///
/// # Errors
/// A server or a part of one has it, or it cannot be written.
pub(crate) fn lock_state(state_dir: &Path) -> anyhow::Result<File> {
    lock_whole(state_dir, File::try_lock)
}

fn lock_whole(state_dir: &Path, lock: impl Fn(&File) -> Result<(), TryLockError>) -> anyhow::Result<File> {
    let whole = file(state_dir, "lock")?;
    held(lock(&whole), || {
        format!(
            "another server uses the state directory \"{}\"; stop it or choose another --state-dir",
            state_dir.display()
        )
    })?;
    Ok(whole)
}

fn file(state_dir: &Path, name: &str) -> anyhow::Result<File> {
    let path = state_dir.join(name);
    File::create(&path)
        .with_context(|| format!("\"{}\" cannot be written; choose another --state-dir", path.display()))
}

fn held(tried: Result<(), TryLockError>, message: impl Fn() -> String) -> anyhow::Result<()> {
    match tried {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => anyhow::bail!(message()),
        Err(TryLockError::Error(error)) => Err(error).context("the state directory cannot be locked"),
    }
}

/// Waits until this process is the one that keeps the head of the server's audit log; none if it stops before. The place
/// lasts as long as the answer.
pub(crate) async fn sole_keeper(state_dir: &Path, stop: &CancellationToken) -> Option<File> {
    loop {
        let place = fs::File::create(state_dir.join("lock.audit_head")).ok()?;
        if place.try_lock().is_ok() {
            return Some(place);
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(KEEPER_RETRY) => {}
        }
    }
}

/// The signs of life of this process.
pub(crate) fn presence(settings: &Settings, server: &ServerId) -> Presence {
    Presence {
        server: server.clone(),
        roles: settings.roles.0.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots: i64::try_from(settings.slots).ok(),
    }
}

/// Between two looks whether another place still says that it is this server.
const LOOK: Duration = Duration::from_millis(500);
/// What every boot of a machine has its own of. A copy of a machine has the same id, so that says nothing.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Makes sure that no other machine and no other state directory is this server, and tells for the first time that this one
/// lives: a copy, or one that was restored from a backup, would take all sandboxes of the other one's runs for lost. From the
/// same place the locks of the directory say so. One that has just gone silent, as before a move, is waited for until it counts
/// as silent; of two that come at the same moment the one that tells first stays.
///
/// # Errors
/// It is heard of again meanwhile.
pub(crate) async fn alone(store: &Store, state_dir: &Path, presence: &Presence) -> anyhow::Result<()> {
    let server = &presence.server;
    store.set_place(server, place(state_dir)?);
    if store.is_shared()
        && let Some(first) = store.heard_elsewhere(server).await?
    {
        warn!(server.id = %server, "server {server} was heard of from another place a moment ago; waiting until it is silent");
        // It ends: whoever is not heard of again counts as silent after a time.
        while let Some(last) = store.heard_elsewhere(server).await? {
            anyhow::ensure!(last == first, twice(server, state_dir));
            tokio::time::sleep(LOOK).await;
        }
    }
    anyhow::ensure!(store.beat(presence).await? == Beat::Noted, twice(server, state_dir));
    Ok(())
}

/// What is told of a server that is in two places.
fn twice(server: &ServerId, state_dir: &Path) -> String {
    format!(
        "another machine or another state directory is the server {server} as well, and each would destroy the other's \
         sandboxes; stop that one; or, if \"{}\" is a copy, remove the file server_id in it, so that it becomes a server \
         of its own",
        state_dir.display()
    )
}

/// What no other machine that runs, and no other directory of this one, has.
fn place(state_dir: &Path) -> anyhow::Result<String> {
    // Where nothing tells, the directory alone has to.
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let found = fs::metadata(state_dir)
        .with_context(|| format!("\"{}\" cannot be looked at", state_dir.display()))?;
    let text = format!("{} {} {}", boot.trim(), found.dev(), found.ino());
    Ok(hex::encode(&Sha256::digest(text)[..16]))
}

/// What is told when a later version has migrated the database while this one was away.
const OUTDATED: &str = "a later version of Caisson migrated the database while this server was away from it: install that \
     version here and start it; it takes over what runs";

/// Tells the store again and again that this process is alive, and writes off the runs of servers that have been silent for
/// too long, until the server stops. Answers why, and what to do, if the server must not go on.
pub(crate) async fn keep(
    store: &Store,
    presence: &Presence,
    state_dir: &Path,
    stop: &CancellationToken,
) -> Option<String> {
    let mut was_heard = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS.unsigned_abs())) => {}
        }
        let told = match store.beat(presence).await {
            Ok(Beat::Elsewhere) => return Some(twice(&presence.server, state_dir)),
            Ok(Beat::Noted) if store.is_shared() => look_after(store, &presence.server).await,
            Ok(Beat::Noted) => Ok(()),
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => was_heard = true,
            Err(error @ StoreError::Migration(_)) => {
                error!(
                    error = chain(&error),
                    "this server is of an earlier version than the database now is"
                );
                return Some(OUTDATED.to_owned());
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Corrupt { .. })) => {
                if was_heard {
                    let error = chain(&error);
                    warn!(error, "the database does not hear that this server is alive, trying on");
                }
                was_heard = false;
            }
        }
    }
}

/// Looks after what other servers leave.
async fn look_after(store: &Store, server: &ServerId) -> Result<(), StoreError> {
    for run in store.write_off_lost(server).await? {
        info!(run.id = %run, "took run {run} from its server, which has been silent for too long");
    }
    Ok(())
}

/// What keeps a worker from placing runs whose gateway is a process of its own.
pub(crate) async fn gateway_problem(store: &Store, server: &ServerId) -> Option<PlacementProblem> {
    match store.is_part_live(server, Role::Gateway).await {
        Ok(true) => None,
        // Who cannot be asked now is asked again soon; the store's own trouble is told elsewhere.
        Err(_) | Ok(false) => Some(PlacementProblem {
            code: ProblemCode::GatewayAway,
            message: "no gateway serves this worker's sandboxes; run `caisson serve --only gateway` on this machine with the same \
                      state directory and database"
                .to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Environment, Overrides};

    fn settings(state_dir: &Path, only: &[Role]) -> Settings {
        let overrides =
            Overrides { state_dir: Some(state_dir.to_owned()), only: only.to_vec(), ..Overrides::default() };
        Settings::read(None, &Environment { variables: Vec::new(), root: false }, overrides).unwrap()
    }

    #[test]
    fn each_state_directory_is_a_place_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (root.path().join("one"), root.path().join("other"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&other).unwrap();
        assert_ne!(place(&one).unwrap(), place(&other).unwrap());
        let before = place(&one).unwrap();
        fs::write(one.join("server_id"), "x").unwrap();
        assert_eq!(place(&one).unwrap(), before, "whatever is in it");
        assert!(place(&root.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn without_a_word_a_process_is_a_whole_server() {
        assert!(Roles::only(Vec::new()).are_all());
        let some = Roles::only(vec![Role::Gateway, Role::Worker, Role::Gateway]);
        assert!(!some.are_all() && some.has(Role::Worker) && !some.has(Role::Api));
        assert_eq!(some.to_string(), "worker, gateway");
    }

    #[test]
    fn parts_share_a_state_directory_and_no_part_is_there_twice() {
        let root = tempfile::tempdir().unwrap();
        let lock = |only: &[Role]| lock(&settings(root.path(), only));
        let worker = lock(&[Role::Worker]).unwrap();
        let gateway = lock(&[Role::Gateway]).unwrap();
        let twice = lock(&[Role::Api, Role::Worker]).unwrap_err().to_string();
        assert!(twice.contains("is the worker of"), "{twice}");
        let whole = lock(&[]).unwrap_err().to_string();
        assert!(whole.contains("another server uses"), "{whole}");
        drop((worker, gateway));
        let _whole = lock(&[]).unwrap();
        assert!(lock(&[Role::Api]).unwrap_err().to_string().contains("another server uses"));
    }

    #[test]
    fn parts_of_a_server_need_a_database_that_they_can_share() {
        let root = tempfile::tempdir().unwrap();
        assert!(check(&settings(root.path(), &[])).is_ok());
        let error = check(&settings(root.path(), &[Role::Api])).unwrap_err().to_string();
        assert!(error.contains("--only api needs a PostgreSQL database"), "{error}");
    }

    #[tokio::test]
    async fn one_process_keeps_the_head_of_the_audit_log() {
        let root = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let first = sole_keeper(root.path(), &stop).await;
        assert!(first.is_some());
        stop.cancel();
        assert!(sole_keeper(root.path(), &stop).await.is_none());
        drop(first);
        assert!(sole_keeper(root.path(), &stop).await.is_some());
    }
}
