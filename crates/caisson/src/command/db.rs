//! `caisson db`: the database as a whole, on the server's machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use caisson_domain::artifacts::SharedArtifacts;
use caisson_domain::id::ServerId;
use caisson_domain::server::Role;
use caisson_store::{
    CheckPart, Clock, Look, PostgresPlace, Store, StoredFile, backup_file, copy_to_postgres,
};
use secrecy::ExposeSecret;
use serde_json::json;

use super::machine::{ensure_known, look};
use super::{DONE, audit, print, print_json, settings, tell as tell_output};
use crate::artifacts;
use crate::cli::{CopyDb, Db, OutputFlag};
use crate::roles::lock_state;
use crate::serve::make_directory;
use crate::server_id::known_server_id;
use crate::settings::database::Place;
use crate::settings::{Environment, Settings, read_secret};

/// Exit code when the database is not sound.
const UNSOUND: u8 = 1;

/// Migrates, checks, backs up or copies.
///
/// # Errors
/// The database cannot be used, or a server uses it.
pub(crate) async fn run(command: Db, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Db::Migrate { server, timeout, output } => {
            migrate(&settings(&server, environment)?, timeout * 1000, output).await
        }
        Db::Check { server, json } => check(&settings(&server, environment)?, json).await,
        Db::Backup { server, file, output } => backup(&settings(&server, environment)?, &file, output).await,
        Db::Copy(flags) => copy(&settings(&flags.server, environment)?, &flags).await,
    }
}

async fn migrate(settings: &Settings, timeout_ms: u64, output: OutputFlag) -> anyhow::Result<u8> {
    make_directory(&settings.state_dir)?;
    // A server of the version before would write to tables that it does not know; those with other state directories are
    // looked for in the database.
    let _lock = lock_state(&settings.state_dir).context("the database is not migrated")?;
    let server = known_server_id(&settings.state_dir)?;
    let place = settings.database_place()?.used_by(server.as_ref(), Role::ALL).migrated_within(timeout_ms);
    let behind = match place.look(Clock::system()).await {
        Ok(Look::Ready(store)) => {
            store.close().await.ok();
            0
        }
        Ok(Look::Behind { migrations }) => migrations,
        Ok(Look::Missing) => usize::MAX,
        Err(error) => return Err(error).with_context(|| format!("{place} cannot be migrated")),
    };
    let store = place.open(Clock::system()).await.with_context(|| format!("{place} cannot be migrated"))?;
    let version = store.schema_version().await;
    store.close().await.ok();
    let version = version?;
    let words = match behind {
        0 => format!("{place} is at version {version} already; nothing was changed"),
        usize::MAX => format!("{place} was made, at version {version}"),
        1 => format!("{place} was brought to version {version} by 1 migration"),
        _ => format!("{place} was brought to version {version} by {behind} migrations"),
    };
    let made = behind == usize::MAX;
    let document = json!({"version": version, "made": made, "migrations": (!made).then_some(behind)});
    tell_output(output, &document, &words)?;
    Ok(DONE)
}

async fn check(settings: &Settings, json: bool) -> anyhow::Result<u8> {
    let store = look(settings).await?;
    let checked = check_all(settings, &store, json).await;
    store.close().await.ok();
    Ok(if checked? { DONE } else { UNSOUND })
}

async fn check_all(settings: &Settings, store: &Store, json: bool) -> anyhow::Result<bool> {
    let version = store.schema_version().await?;
    tell("version", &CheckPart { looked_at: version, faults: Vec::new() }, json)?;
    let mut sound = true;
    for (name, part) in [
        ("integrity", store.check_integrity().await?),
        ("references", store.check_references().await?),
        ("events", store.check_events().await?),
        ("files", check_files(settings, store).await?),
    ] {
        sound &= part.faults.is_empty();
        tell(name, &part, json)?;
    }
    Ok(audit::verify_with(settings, store, json).await? && sound)
}

fn tell(name: &str, part: &CheckPart, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&json!({ "check": name, "looked_at": part.looked_at, "faults": part.faults }));
    }
    if part.faults.is_empty() {
        let what = match name {
            "version" => format!("{} of the schema, the newest that this program knows", part.looked_at),
            "integrity" => "the database finds nothing wrong with itself".to_owned(),
            "references" => "every row that another refers to is there".to_owned(),
            "events" => format!("{} sessions, no event is missing", part.looked_at),
            _ => format!("{} kept files are there", part.looked_at),
        };
        print(&format!("ok    {name}: {what}"));
    }
    for fault in &part.faults {
        print(&format!("FAIL  {name}: {fault}"));
    }
    Ok(())
}

/// Kept files of this server that are not there, or have another size, and those of every server that shares its directory of
/// artifacts. Those of other servers on a shared database are where those servers are.
async fn check_files(settings: &Settings, store: &Store) -> anyhow::Result<CheckPart> {
    let own = known_server_id(&settings.state_dir)?;
    let shared = match artifacts::look(settings) {
        Ok(shared) => shared,
        Err(error) => return Ok(CheckPart { looked_at: 0, faults: vec![format!("{error:#}")] }),
    };
    let mut sharing = BTreeMap::new();
    let mut part = CheckPart::default();
    let mut after = String::new();
    loop {
        let files = store.stored_files(&after).await?;
        let Some(last) = files.last() else { return Ok(part) };
        after.clone_from(&last.id);
        for file in files {
            let Some(directory) =
                directory(settings, store, (&file, own.as_ref()), (shared.as_ref(), &mut sharing)).await?
            else {
                continue;
            };
            let path = directory.join(&file.path);
            let fault = match std::fs::metadata(&path) {
                Ok(found) if i64::try_from(found.len()) == Ok(file.size_bytes) => {
                    part.looked_at += 1;
                    continue;
                }
                Ok(found) => format!("has {} bytes and not {}", found.len(), file.size_bytes),
                Err(error) => format!("cannot be read: {error}"),
            };
            part.note(format!("{} of run {}: \"{}\" {fault}", file.name, file.run, path.display()));
        }
    }
}

/// The directory in which a file is to be looked for; none if its server does not share this one's.
async fn directory(
    settings: &Settings,
    store: &Store,
    (file, own): (&StoredFile, Option<&ServerId>),
    (shared, known): (Option<&SharedArtifacts>, &mut BTreeMap<ServerId, bool>),
) -> anyhow::Result<Option<PathBuf>> {
    if !store.is_elsewhere(file.server.as_ref(), own) {
        let directory = own.map(|own| artifacts::own_directory(settings, own));
        return Ok(Some(directory.unwrap_or_else(|| settings.state_dir.join("artifacts"))));
    }
    let (Some(keeper), Some(shared)) = (&file.server, shared) else { return Ok(None) };
    if !known.contains_key(keeper) {
        let is_shared = store.artifacts_id(keeper).await?.as_ref() == Some(&shared.id);
        known.insert(keeper.clone(), is_shared);
    }
    Ok(known.get(keeper).is_some_and(|is_shared| *is_shared).then(|| shared.of(keeper)))
}

async fn backup(settings: &Settings, file: &Path, output: OutputFlag) -> anyhow::Result<u8> {
    ensure_known(settings).await?;
    let Place::File(database) = settings.database_place()? else {
        bail!(
            "the database is in PostgreSQL: back it up with `pg_dump --format=custom` (docs/operations.md says how)"
        );
    };
    let bytes = backup_file(&database, &std::path::absolute(file)?).await?;
    if output.json {
        print_json(&json!({"file": file, "size_bytes": bytes}))?;
        return Ok(DONE);
    }
    print(&format!("\"{}\" holds the whole database, {bytes} bytes", file.display()));
    print(
        "note  keep it together with server_id, master.key, audit_key, audit_head and artifacts/ of the state directory \
         (docs/operations.md)",
    );
    Ok(DONE)
}

async fn copy(settings: &Settings, flags: &CopyDb) -> anyhow::Result<u8> {
    let source = settings.database_file();
    ensure!(
        source.exists(),
        "there is no \"{}\" to copy; name the server's state directory with --state-dir",
        source.display()
    );
    let url = read_secret("--to-url-file", &flags.to_url_file)?;
    let target = PostgresPlace::from_url(url.expose_secret(), settings.postgres_limits())
        .map_err(|fault| anyhow::anyhow!("--to-url-file: {fault}"))?;
    // Held until the end, so that no server starts meanwhile.
    let _lock = lock_state(&settings.state_dir)
        .context("nothing was copied: what a server writes meanwhile would be lost")?;
    let tables = copy_to_postgres(&source, &target)
        .await
        .with_context(|| format!("nothing was copied from \"{}\" to {target}", source.display()))?;
    for table in &tables {
        if flags.json {
            print_json(&json!({
                "table": table.table, "rows": table.rows, "sha256": table.sha256, "without_nul": table.without_nul,
            }))?;
        } else {
            print(&format!(
                "ok    {:<16} {:>8} rows, sha256 {}",
                table.table,
                table.rows,
                &table.sha256[..16]
            ));
        }
    }
    if flags.json {
        return Ok(DONE);
    }
    let replaced: u64 = tables.iter().map(|table| table.without_nul).sum();
    if replaced > 0 {
        print(&format!(
            "note  in {replaced} texts of agents NUL characters became U+FFFD: PostgreSQL has no place for them"
        ));
    }
    print(&format!(
        "Everything is in {target}, read back and compared. Set database.url_file to \"{}\" now, keep the state directory \
         as it is, start the server, and put \"{}\" away: it is not written any more.",
        flags.to_url_file.display(),
        source.display()
    ));
    Ok(DONE)
}
