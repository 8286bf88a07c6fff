//! `caisson gc` and `caisson project retention`: what is kept for how long, on the server's machine.

use std::collections::BTreeSet;

use anyhow::Context;
use caisson_domain::id::ProjectId;
use caisson_domain::retention::{Kept, ProjectRetention, Retention};
use caisson_sandbox::docker::UnusedImage;
use caisson_store::{Actor, Store, StoreError};
use caisson_worker::{Collector, Removal};
use comfy_table::{Table, presets};
use serde_json::json;

use super::machine::Machine;
use super::{DONE, print, print_json};
use crate::artifacts;
use crate::cli::{Gc, Retain};
use crate::engines::{ActiveEngine, Purpose};
use crate::images;
use crate::render::utc;
use crate::roles::lock_state;
use crate::server_id::server_id;
use crate::settings::{Environment, Settings};

/// Files go first, since a session goes only when it has none any more.
const ORDER: [Kept; 4] = [Kept::Volumes, Kept::Artifacts, Kept::Events, Kept::Sessions];
/// Most passes of one command; each removes a bounded number.
const PASSES: usize = 1_000;
/// Exit code when something that has expired could not be removed.
const LEFT: u8 = 1;

/// Removes what has expired, or tells of it.
///
/// # Errors
/// The database cannot be used.
pub(crate) async fn run(flags: Gc, environment: &Environment) -> anyhow::Result<u8> {
    let machine = Machine::open_known(&flags.server, environment).await?;
    let collected = collect(&machine, &flags).await;
    machine.close().await;
    Ok(if collected? { DONE } else { LEFT })
}

/// Whether everything could be removed.
async fn collect(machine: &Machine, flags: &Gc) -> anyhow::Result<bool> {
    let (settings, store) = (&machine.settings, &machine.store);
    let server = server_id(&settings.state_dir, store).await?;
    // A server that runs knows which workspaces are in use, and this command does not.
    let lock = lock_state(&settings.state_dir).ok();
    let files = flags.dry_run || lock.is_some();
    let policy = (settings.retention.policy(), Actor::Operator);
    let shared = artifacts::look(settings)?;
    let collector = Collector::open(store.clone(), server, (&settings.state_dir, files), shared, policy)
        .context("the state directory cannot be used")?;
    let mut removed = Vec::new();
    let mut failed = BTreeSet::new();
    for kept in ORDER {
        for _ in 0..PASSES {
            let expired = collector.expired(kept).await?;
            let before = removed.len();
            for removal in expired {
                // What is damaged keeps nothing else from going.
                match if flags.dry_run { Ok(true) } else { collector.remove(&removal).await } {
                    Ok(true) => {
                        tell(&removal, flags)?;
                        removed.push(removal);
                    }
                    Ok(false) => {}
                    Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) => Err(error)?,
                    Err(error @ (StoreError::Corrupt { .. } | StoreError::Migration(_))) => {
                        if failed.insert((kept.as_str(), removal.session.clone())) {
                            tell_failed(&removal, error, flags)?;
                        }
                    }
                }
            }
            if flags.dry_run || removed.len() == before {
                break;
            }
        }
    }
    // Of sessions that were deleted, and a server did not come to the end of.
    let rest = if flags.dry_run { Ok(()) } else { remove_the_rest(store).await };
    if let Err(error) = &rest {
        tell_rest(error, flags)?;
    }
    let count = remove_images(&machine.settings, &machine.store, flags).await?;
    if !flags.json {
        sum_up(&removed, count, flags.dry_run);
        if !files {
            print(
                "note  a server runs: workspaces and kept files are left to it, which looks every five minutes",
            );
        }
    }
    Ok(failed.is_empty() && rest.is_ok())
}

async fn remove_the_rest(store: &Store) -> anyhow::Result<()> {
    while store.remove_some().await? {}
    Ok(())
}

fn tell_rest(error: &anyhow::Error, flags: &Gc) -> anyhow::Result<()> {
    if flags.json {
        return print_json(&json!({ "kind": "sessions", "removed": false, "error": format!("{error:#}") }));
    }
    print(&format!("FAIL  sessions that were deleted: {error:#}; see `caisson db check`"));
    Ok(())
}

fn tell_failed(removal: &Removal, error: StoreError, flags: &Gc) -> anyhow::Result<()> {
    let Removal { kept, session, project, .. } = removal;
    let error = anyhow::Error::from(error);
    if flags.json {
        return print_json(&json!({
            "kind": kept, "session": session, "project": project, "removed": false, "error": format!("{error:#}"),
        }));
    }
    print(&format!("FAIL  {kept} {session}  {project}: {error:#}; see `caisson db check`"));
    Ok(())
}

fn tell(removal: &Removal, flags: &Gc) -> anyhow::Result<()> {
    let Removal { kept, session, project, ended_at_ms, bytes, .. } = removal;
    if flags.json {
        return print_json(&json!({
            "kind": kept, "session": session, "project": project, "ended_at_ms": ended_at_ms, "bytes": bytes,
            "removed": !flags.dry_run,
        }));
    }
    let size = if *bytes > 0 { format!(", {} MiB", bytes.div_ceil(1024 * 1024)) } else { String::new() };
    print(&format!("{kept:<9} {session}  {project}, ended {}{size}", utc(*ended_at_ms)));
    Ok(())
}

/// Removes images, or tells of them; how many.
async fn remove_images(settings: &Settings, store: &Store, flags: &Gc) -> anyhow::Result<usize> {
    if settings.retention.images_days == 0 {
        return Ok(0);
    }
    // The engine makes nothing here, and what it would keep in the state directory is thrown away.
    let place = tempfile::tempdir().context("no temporary directory can be made")?;
    let server = server_id(&settings.state_dir, store).await?;
    let engine =
        ActiveEngine::choose(settings, &server, Some(store), Purpose::LookingAt(place.path())).await?;
    let Some(keeper) = engine.image_keeper(settings, store) else { return Ok(0) };
    let mut count = 0;
    for image in keeper.unused().await? {
        if flags.dry_run || keeper.remove(&image).await? {
            tell_image(&image, flags)?;
            count += 1;
        }
    }
    Ok(count)
}

fn tell_image(image: &UnusedImage, flags: &Gc) -> anyhow::Result<()> {
    let UnusedImage { id, tags, made_at_s, bytes } = image;
    if flags.json {
        return print_json(&json!({
            "kind": "image", "image": id, "tags": tags, "made_at_ms": made_at_s * 1000, "bytes": bytes,
            "removed": !flags.dry_run,
        }));
    }
    let size = bytes.div_ceil(1024 * 1024);
    print(&format!("image     {}  made {}, {size} MiB", images::name(image), utc(made_at_s * 1000)));
    Ok(())
}

fn sum_up(removed: &[Removal], images: usize, dry_run: bool) {
    let bytes: u64 = removed.iter().map(|removal| removal.bytes).sum();
    let what = if dry_run { "could be removed" } else { "removed" };
    let count = removed.len() + images;
    print(&format!("{count} things {what}, {} MiB of workspaces", bytes.div_ceil(1024 * 1024)));
}

/// Shows or changes how long a project keeps things.
///
/// # Errors
/// There is no such project, or the database cannot be used.
pub(super) async fn retention(flags: Retain, environment: &Environment) -> anyhow::Result<u8> {
    let project: ProjectId = flags.project.parse()?;
    let machine = Machine::open_known(&flags.server, environment).await?;
    let default = machine.settings.retention.policy();
    let given = [
        (Kept::Events, flags.events),
        (Kept::Artifacts, flags.artifacts),
        (Kept::Volumes, flags.volumes),
        (Kept::Sessions, flags.sessions),
    ];
    let changes: Vec<_> = given.into_iter().filter_map(|(kept, days)| Some((kept, days?.0))).collect();
    let set = async {
        super::project::require(&machine.store, &project).await?;
        anyhow::Ok(machine.store.set_retention(&project, &changes, Actor::Operator).await?)
    };
    let own = set.await;
    machine.close().await;
    let own = own?.context("the project has gone meanwhile")?;
    if flags.json {
        print_json(&json!({ "project": project, "own": own, "effective": own.or(default) }))?;
    } else {
        print(&table(own, default));
    }
    Ok(DONE)
}

fn table(mut own: ProjectRetention, default: Retention) -> String {
    let effective = own.or(default);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["WHAT", "KEPT", "SAID BY"]);
    for kept in Kept::ALL {
        let days = effective.days(*kept).map_or_else(|| "for ever".to_owned(), |days| format!("{days} days"));
        let by = if own.part(*kept).is_some() { "project" } else { "settings" };
        table.add_row([kept.as_str(), &days, by]);
    }
    table.trim_fmt()
}
