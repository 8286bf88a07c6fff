//! Retention on real directories: what has expired goes, what lives stays, and a crash half-way is gone on with.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_domain::artifacts::SharedArtifacts;
use caisson_domain::id::{ProjectId, RunId, ServerId, SessionId};
use caisson_domain::limits::SERVER_LOST_MS_DEFAULT;
use caisson_domain::retention::{Kept, Retention};
use caisson_domain::run::RunStatus;
use caisson_domain::server::ProblemCode;
use caisson_store::{Actor, Clock, ClockHandle, Finish, ForgetServer, NewArtifact, SandboxState};
use caisson_worker::{Collector, DISK_RESUME_PARTS};

use crate::damage::{has_been_there, raw};
use crate::shim::Play;
use crate::world::{World, until};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const MIB: u64 = 1024 * 1024;

fn one_day() -> Retention {
    Retention { events_days: 1, artifacts_days: 1, volumes_days: 1, sessions_days: 0 }
}

async fn workspace(world: &World, run: &RunId) -> PathBuf {
    let session = world.run(run).await.session;
    world.setup.config.state_dir.join("sessions").join(session.as_str()).join("workspace")
}

/// Keeps a file for the run, as the gateway does.
async fn keep_file(world: &World, run: &RunId) -> PathBuf {
    let config = &world.setup.config;
    let artifacts = config
        .shared_artifacts
        .as_ref()
        .map_or_else(|| config.state_dir.join("artifacts"), |shared| shared.of(&config.server));
    let directory = artifacts.join(run.as_str());
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("changes.patch");
    std::fs::write(&path, "x").unwrap();
    let artifact = NewArtifact {
        name: "changes.patch".to_owned(),
        size_bytes: 1,
        sha256: "ab".repeat(32),
        path: path.display().to_string(),
    };
    world.store.put_artifact(run, &artifact).await.unwrap();
    path
}

/// Waits until nothing of the run's sandbox is left.
async fn destroyed(world: &World, run: &RunId) {
    until("the sandbox is gone", || async {
        let Some(sandbox) = world.run(run).await.sandbox else { return true };
        world.store.sandbox(&sandbox).await.unwrap().unwrap().state == SandboxState::Destroyed
    })
    .await;
}

#[tokio::test]
async fn the_worker_removes_what_has_expired_and_leaves_what_lives() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let mut world = World::with_clock(clock).await;
    world.setup.config.retention = one_day();
    let server = world.boot().await;
    let old = world.queue().await;
    world.finished(&old).await;
    destroyed(&world, &old).await;
    let (room, file) = (workspace(&world, &old).await, keep_file(&world, &old).await);
    std::fs::create_dir_all(room.join("a/b/c")).unwrap();
    world.shims.by_default(Play::Work { obeys: true });
    let living = world.queue().await;
    world.attended(&living).await;
    let kept = keep_file(&world, &living).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(room.exists() && file.exists(), "its day is not over");
    handle.advance(DAY_MS);
    until("what has expired is gone", || async { !room.exists() && !file.exists() }).await;
    until("the events are gone", || async { world.events(&old).await.len() <= 4 }).await;
    assert!(!room.parent().unwrap().exists() && !file.parent().unwrap().exists());
    assert!(workspace(&world, &living).await.exists() && kept.exists(), "it lives");
    let run = world.run(&old).await;
    assert!(run.status.is_final() && run.finished_at_ms.is_some());
    server.shut_down();
}

/// What `caisson gc` works with on a server's machine; without files, where a server runs.
fn collector(world: &World, (server, state_dir): (&ServerId, &Path), files: bool) -> Collector {
    let policy = Retention { sessions_days: 1, ..Retention::default() };
    let shared = world.setup.config.shared_artifacts.clone();
    Collector::open(
        world.store.clone(),
        server.clone(),
        (state_dir, files),
        shared,
        (policy, Actor::Operator),
    )
    .unwrap()
}

/// Removes whatever has expired.
async fn collect(collector: &Collector) {
    for kept in [Kept::Volumes, Kept::Artifacts, Kept::Events, Kept::Sessions] {
        for removal in collector.expired(kept).await.unwrap() {
            collector.remove(&removal).await.unwrap();
        }
    }
}

async fn is_known(world: &World, session: &SessionId) -> bool {
    world.store.session(&ProjectId::default_project(), session).await.unwrap().is_some()
}

/// A run that has ended on a server that is gone, and is more than a day old.
async fn left_by_a_server(world: &World, handle: &ClockHandle) -> RunId {
    let server = world.boot().await;
    let run = world.queue().await;
    world.finished(&run).await;
    destroyed(world, &run).await;
    server.shut_down();
    handle.advance(DAY_MS);
    run
}

#[tokio::test]
async fn files_that_a_crash_left_behind_are_removed_by_the_next_pass() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    let run = left_by_a_server(&world, &handle).await;
    let (session, own) = (world.run(&run).await.session, &world.setup.config.server);
    let (room, file) = (workspace(&world, &run).await, keep_file(&world, &run).await);
    // The rows are written, and the process dies before the files go.
    let by = Actor::Server;
    assert!(world.store.delete_volume(&session, own, &one_day(), &by).await.unwrap());
    assert!(world.store.delete_artifacts(&session, own, &one_day(), &by).await.unwrap().is_some());
    let collector = |files| collector(&world, (own, &world.setup.config.state_dir), files);
    for kept in [Kept::Volumes, Kept::Artifacts] {
        assert!(collector(false).expired(kept).await.unwrap().is_empty(), "left to the server that runs");
        let found = collector(true).expired(kept).await.unwrap();
        assert_eq!(found.len(), 1, "{kept}");
        assert!(!collector(false).remove(&found[0]).await.unwrap());
        assert!(room.exists() || kept == Kept::Artifacts);
        assert!(collector(true).remove(&found[0]).await.unwrap());
    }
    assert!(!room.exists() && !file.exists());
    for kept in [Kept::Volumes, Kept::Artifacts] {
        assert!(collector(true).expired(kept).await.unwrap().is_empty(), "{kept}");
    }
}

#[tokio::test]
async fn a_session_stays_known_until_its_files_could_be_removed() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    let run = left_by_a_server(&world, &handle).await;
    let session = world.run(&run).await.session;
    let (room, file) = (workspace(&world, &run).await, keep_file(&world, &run).await);
    let state_dir = &world.setup.config.state_dir;
    let collector = collector(&world, (&world.setup.config.server, state_dir), true);
    // Files in the way of both removals.
    let trash = state_dir.join("trash").join(session.as_str());
    std::fs::write(&trash, "x").unwrap();
    let artifacts = file.parent().unwrap();
    std::fs::rename(artifacts, state_dir.join("aside")).unwrap();
    std::fs::write(artifacts, "x").unwrap();
    for _ in 0..2 {
        collect(&collector).await;
        assert!(room.exists() && artifacts.exists() && is_known(&world, &session).await);
    }
    std::fs::remove_file(&trash).unwrap();
    collect(&collector).await;
    assert!(!room.exists() && is_known(&world, &session).await, "its artifacts are there");
    std::fs::remove_file(artifacts).unwrap();
    std::fs::rename(state_dir.join("aside"), artifacts).unwrap();
    collect(&collector).await;
    assert!(!file.exists() && !artifacts.exists() && !is_known(&world, &session).await);
}

/// What is not mounted is not gone, and what other servers keep in the same directory is theirs.
#[tokio::test]
async fn of_a_shared_directory_a_server_removes_its_own_files_and_only_while_it_is_there() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let mut world = World::with_clock(clock).await;
    let shared = SharedArtifacts { directory: world.root.path().join("shared"), id: "a".repeat(32) };
    std::fs::create_dir(&shared.directory).unwrap();
    std::fs::write(SharedArtifacts::id_file(&shared.directory), &shared.id).unwrap();
    world.setup.config.shared_artifacts = Some(shared.clone());
    let run = left_by_a_server(&world, &handle).await;
    let (session, file) = (world.run(&run).await.session, keep_file(&world, &run).await);
    let server = ServerId::new(1, [8; 10]);
    let other = shared.of(&server).join(run.as_str());
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("half"), "another server is writing").unwrap();
    let config = &world.setup.config;
    let collector = collector(&world, (&config.server, &config.state_dir), true);
    let aside = world.root.path().join("aside");
    std::fs::rename(&shared.directory, &aside).unwrap();
    collect(&collector).await;
    std::fs::create_dir(&shared.directory).unwrap();
    std::fs::write(SharedArtifacts::id_file(&shared.directory), "b".repeat(32)).unwrap();
    collect(&collector).await;
    std::fs::remove_dir_all(&shared.directory).unwrap();
    std::fs::rename(&aside, &shared.directory).unwrap();
    assert!(file.exists() && is_known(&world, &session).await, "nobody would find them again");
    for statement in [
        "insert into server (id, seen_at_ms, problems) values ($1, 0, '[]')",
        "insert into session_files (session_id, server_id, kind, project_id) select session_id, $1, kind, project_id \
         from session_files where kind = 'artifacts'",
    ] {
        sqlx::query(statement).bind(server.as_str()).execute(&mut raw(&world).await).await.unwrap();
    }
    world.store.set_artifacts_id(&server, Some(&shared.id)).await.unwrap();
    collect(&collector).await;
    assert!(!file.parent().unwrap().exists() && is_known(&world, &session).await);
    assert!(other.join("half").exists(), "it is another server's, which lives");
    // Of one that is forgotten, nobody else would remove it.
    assert_eq!(world.store.forget_server(&server, Actor::Operator).await.unwrap(), ForgetServer::Forgotten);
    collect(&collector).await;
    assert!(!other.exists() && shared.of(&server).exists() && !is_known(&world, &session).await);
}

/// The session was on a server that was lost, went on elsewhere, and the first server is back.
#[tokio::test]
async fn a_session_goes_only_when_every_server_has_removed_what_it_has_of_it() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    let run = left_by_a_server(&world, &handle).await;
    let session = world.run(&run).await.session;
    let (room, file) = (workspace(&world, &run).await, keep_file(&world, &run).await);
    let (other, elsewhere) = (ServerId::new(1, [8; 10]), world.root.path().join("elsewhere"));
    world.store.register_server(&other).await.unwrap();
    let further =
        "update run set status = 'queued', finished_at_ms = null, sandbox_id = null, home_server_id = null";
    sqlx::query(further).execute(&mut raw(&world).await).await.unwrap();
    handle.advance(SERVER_LOST_MS_DEFAULT);
    world.store.register_server(&other).await.unwrap();
    has_been_there(&world, &other).await;
    let claimed = world.store.claim(&other).await.unwrap().unwrap();
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(world.store.finish(&run, claimed.epoch, &finish).await.unwrap());
    handle.advance(DAY_MS);
    let second = elsewhere.join("sessions").join(session.as_str()).join("workspace");
    std::fs::create_dir_all(&second).unwrap();
    collect(&collector(&world, (&other, &elsewhere), true)).await;
    assert!(!second.exists() && room.exists() && file.exists());
    assert!(is_known(&world, &session).await, "the first server would never find its files");
    let config = &world.setup.config;
    collect(&collector(&world, (&config.server, &config.state_dir), true)).await;
    assert!(!room.exists() && !file.exists() && !is_known(&world, &session).await);
}

#[tokio::test]
async fn what_is_damaged_keeps_nothing_else_from_being_removed() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let mut world = World::with_clock(clock).await;
    world.setup.config.retention = Retention { sessions_days: 1, ..Retention::default() };
    let server = world.boot().await;
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let run = world.queue().await;
        world.finished(&run).await;
        destroyed(&world, &run).await;
        sessions.push(world.run(&run).await.session);
        handle.advance(1);
    }
    // The first in the list cannot be removed.
    let mut connection = raw(&world).await;
    sqlx::query("create table other (session_id text references session (id))")
        .execute(&mut connection)
        .await
        .unwrap();
    let refer = "insert into other values ($1)";
    sqlx::query(refer).bind(sessions[0].as_str()).execute(&mut connection).await.unwrap();
    handle.advance(DAY_MS);
    let left = async || {
        let ids: Vec<String> = sqlx::query_scalar("select id from session order by id")
            .fetch_all(&mut raw(&world).await)
            .await
            .unwrap();
        ids
    };
    until("the sound one is gone", || async { left().await == [sessions[0].as_str()] }).await;
    sqlx::query("drop table other").execute(&mut connection).await.unwrap();
    until("the other one is gone", || async { left().await.is_empty() }).await;
    server.shut_down();
}

/// A real disk of its own, filled and emptied.
#[tokio::test]
async fn a_disk_that_is_nearly_full_pauses_claims_until_a_quarter_more_is_free() {
    let mut world = World::on_a_small_disk(160).await;
    let least = 64 * MIB;
    world.setup.config.min_free_disk_bytes = least;
    let server = world.boot().await;
    let free = || {
        let stat = nix::sys::statvfs::statvfs(world.root.path()).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    let ballast = world.root.path().join("ballast");
    let fill_to = |left: u64| {
        let held = std::fs::metadata(&ballast).map_or(0, |found| found.len());
        let size = (held + free()).saturating_sub(left);
        let mut file = std::fs::File::options().create(true).append(true).open(&ballast).unwrap();
        // Cut where it shrinks, so that no more is free for a moment; really written where it grows, since a sparse file
        // takes no room.
        match size.checked_sub(held) {
            Some(more) => file.write_all(&vec![7; usize::try_from(more).unwrap()]).unwrap(),
            None => file.set_len(size).unwrap(),
        }
    };
    let low = || async {
        let servers = world.store.live_servers().await.unwrap();
        let mut problems = servers.into_iter().flat_map(|server| server.problems);
        problems.any(|problem| problem.code == ProblemCode::DiskLow && problem.message.contains("caisson gc"))
    };
    fill_to(least - 4 * MIB);
    until("the disk is told of", low).await;
    let run = world.queue().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.run(&run).await.started_at_ms, None, "not claimed");
    // A little more than the bound is not enough again.
    fill_to(least + 4 * MIB);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(low().await && world.run(&run).await.started_at_ms.is_none());
    fill_to(least + least / DISK_RESUME_PARTS + 8 * MIB);
    world.finished(&run).await;
    until("it is told of no more", || async { !low().await }).await;
    server.shut_down();
}
