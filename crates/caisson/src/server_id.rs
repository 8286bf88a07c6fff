//! The id of a server: everything that it makes outside of its process carries it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use caisson_domain::id::ServerId;
use caisson_store::Store;

/// The id of the server that uses a state directory, if one ever did.
///
/// # Errors
/// The file that holds it cannot be read, or holds none.
pub(crate) fn known_server_id(state_dir: &Path) -> anyhow::Result<Option<ServerId>> {
    let path = file(state_dir);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).with_context(|| {
            format!("\"{}\" does not hold a server id; restore it from a backup", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("\"{}\" cannot be read", path.display())),
    }
}

/// The id that stays with the state directory. A new one is made only where it orphans nothing.
///
/// # Errors
/// The file cannot be read or written or holds no id, or it is missing and something carries the id that it held.
pub(crate) async fn server_id(state_dir: &Path, store: &Store) -> anyhow::Result<ServerId> {
    if let Some(known) = known_server_id(state_dir)? {
        return Ok(known);
    }
    check_not_lost(state_dir, store).await?;
    let id = ServerId::new(store.now_ms(), rand::random());
    let mut staged = tempfile::NamedTempFile::new_in(state_dir)?;
    staged.write_all(id.as_str().as_bytes())?;
    staged.as_file().sync_all()?;
    match staged.persist_noclobber(file(state_dir)) {
        // Somebody else has just made one: a command, while the server starts.
        Err(fault) if fault.error.kind() == std::io::ErrorKind::AlreadyExists => {
            known_server_id(state_dir)?.context("the server's id came and went")
        }
        Err(fault) => Err(fault.error.into()),
        Ok(_) => {
            // The name must last as well: a new id would orphan everything that carries this one.
            fs::File::open(state_dir)?.sync_all()?;
            Ok(id)
        }
    }
}

/// Looks, where a state directory holds no id, whether a new one would orphan something.
///
/// # Errors
/// Something carries the id that the directory held, or the database cannot be read.
pub(crate) async fn check_not_lost(state_dir: &Path, store: &Store) -> anyhow::Result<()> {
    let orphans = store.servers_in_use().await?;
    if store.is_shared() {
        // They may be other machines', which are only away.
        let live = store.live_servers().await?;
        let silent: Vec<_> = orphans.iter().filter(|id| live.iter().all(|live| live.id != **id)).collect();
        if !silent.is_empty() {
            tracing::warn!(
                "the database has running runs or living sandboxes of servers that are silent: {silent:?}; if one of them \
                 was this one, stop it and write that id into \"{}\"",
                file(state_dir).display()
            );
        }
        return Ok(());
    }
    anyhow::ensure!(orphans.is_empty(), lost_id(&file(state_dir), &orphans));
    Ok(())
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("server_id")
}

/// What to do about a lost id.
fn lost_id(path: &Path, orphans: &[ServerId]) -> String {
    let ids: Vec<_> = orphans.iter().map(ServerId::as_str).collect();
    format!(
        "\"{}\" is missing, but the database has running runs or living sandboxes of {}; write that id into the file to take them over, as a new one would leave them running for ever",
        path.display(),
        ids.join(" and of ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_domain::id::ProjectId;
    use caisson_domain::run::{Resources, RunSpec};
    use caisson_domain::workflow::Workflow;
    use caisson_store::NewRun;

    async fn store(state_dir: &Path) -> Store {
        Store::open(&state_dir.join("caisson.db"), caisson_store::Clock::system()).await.unwrap()
    }

    #[tokio::test]
    async fn a_server_keeps_its_id_and_refuses_a_damaged_one() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path()).await;
        let id = server_id(root.path(), &store).await.unwrap();
        assert_eq!(server_id(root.path(), &store).await.unwrap(), id);
        fs::write(root.path().join("server_id"), "srv_x").unwrap();
        assert!(server_id(root.path(), &store).await.unwrap_err().to_string().contains("backup"));
    }

    #[tokio::test]
    async fn a_lost_id_is_not_replaced_while_something_carries_it() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path()).await;
        let id = server_id(root.path(), &store).await.unwrap();
        store.register_server(&id).await.unwrap();
        fs::remove_file(root.path().join("server_id")).unwrap();
        let next = server_id(root.path(), &store).await.unwrap();
        assert_ne!(next, id, "it orphans nothing");
        store.register_server(&next).await.unwrap();
        let workflow = Workflow::parse(include_str!("../../../workflows/bug-fixer.md")).unwrap();
        store.create_run(a_run(workflow)).await.unwrap();
        store.claim(&next).await.unwrap().unwrap();
        assert_eq!(server_id(root.path(), &store).await.unwrap(), next);
        let file = root.path().join("server_id");
        fs::remove_file(&file).unwrap();
        let error = server_id(root.path(), &store).await.unwrap_err().to_string();
        assert!(error.contains(next.as_str()) && !error.contains(id.as_str()), "{error}");
        assert!(error.contains(file.to_str().unwrap()) && !file.exists(), "{error}");
        fs::write(&file, format!("{next}\n")).unwrap();
        assert_eq!(server_id(root.path(), &store).await.unwrap(), next, "as the message says");
    }

    fn a_run(workflow: Workflow) -> NewRun {
        let spec = RunSpec {
            workflow,
            prompt: "x".to_owned(),
            repository: None,
            base: None,
            anchor: None,
            branch: None,
            model: None,
            max_turns: None,
            image: None,
            timeout_s: 600,
            budget_micro_usd: None,
            budget_soft_percent: None,
            resources: Resources::default(),
            environment: std::collections::BTreeMap::new(),
            priority: 0,
            start_at_ms: None,
            parameters: caisson_domain::parameters::Values::new(),
            output_schema: None,
            attachments: Vec::new(),
            workflow_version: None,
        };
        let project = ProjectId::default_project();
        NewRun { project, created_by: None, spec, idempotency: None }
    }
}
