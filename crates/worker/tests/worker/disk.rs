//! A disk that runs full, really: the right sandbox ends, in time, and the server goes on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::run::{FailureKind, Resources, RunStatus};
use caisson_worker::{FLOOR_PARTS, GROWTH_WINDOW};

use crate::shim::Play;
use crate::world::{World, until};

pub(crate) const MIB: u64 = 1024 * 1024;
/// The small disk, and what of it must be free for a new run.
const DISK_MIB: u32 = 160;
const MIN_FREE: u64 = 64 * MIB;

/// The workspace of a run, as its sandbox sees it.
pub(crate) async fn workspace(world: &World, run: &RunId) -> PathBuf {
    let session = world.run(run).await.session;
    world.setup.config.state_dir.join("sessions").join(session.as_str()).join("workspace")
}

/// Writes so many bytes to the end of a file, or as many as there is room for.
pub(crate) fn grow(file: &Path, bytes: u64) {
    let mut file = std::fs::File::options().create(true).append(true).open(file).unwrap();
    let piece = vec![7; 64 * 1024];
    for _ in 0..bytes.div_ceil(64 * 1024) {
        if file.write_all(&piece).is_err() {
            return;
        }
    }
}

fn free(world: &World) -> u64 {
    let stat = nix::sys::statvfs::statvfs(world.root.path()).unwrap();
    stat.blocks_available() * stat.fragment_size()
}

/// Whether the run's sandbox lives.
async fn lives(world: &World, run: &RunId) -> bool {
    let sandbox = world.run(run).await.sandbox.unwrap();
    world.engine.is_running(&sandbox)
}

#[tokio::test]
async fn a_disk_that_runs_full_ends_the_largest_growing_sandbox_and_the_database_is_written() {
    let mut world = World::on_a_small_disk(DISK_MIB).await;
    world.setup.config.min_free_disk_bytes = MIN_FREE;
    world.setup.config.slots = 3;
    world.shims.by_default(Play::Work { obeys: true });
    let [large, growing, small] = [world.queue().await, world.queue().await, world.queue().await];
    let server = world.boot().await;
    for run in [&large, &growing, &small] {
        world.attended(run).await;
    }
    // The largest one does not grow any more, and ending it would give nothing back.
    grow(&workspace(&world, &large).await.join("file"), 70 * MIB);
    tokio::time::sleep(GROWTH_WINDOW + Duration::from_secs(1)).await;
    let file = workspace(&world, &growing).await.join("file");
    let floor = MIN_FREE / FLOOR_PARTS;
    until("the growing one is ended", || async {
        if free(&world) >= floor && lives(&world, &growing).await {
            grow(&file, MIB);
        }
        world.run(&growing).await.status.is_final()
    })
    .await;
    let size = std::fs::metadata(&file).unwrap().len();
    assert!(size < 70 * MIB, "it is not the largest: {size}");
    let failure = world.failed(&growing).await;
    assert_eq!(failure.kind, FailureKind::DiskFull);
    assert!(failure.message.contains("the server's disk ran full"), "{failure:?}");
    assert!(free(&world) > floor / 2, "it ended with {} bytes left", free(&world));
    assert!(file.exists(), "its workspace is kept");
    assert!(lives(&world, &large).await && lives(&world, &small).await);
    world.shims.release();
    for run in [&large, &small] {
        assert_eq!(world.finished(run).await.status, RunStatus::Succeeded);
    }
    server.kill();
}

#[tokio::test]
async fn a_time_limit_ends_a_sandbox_although_the_database_cannot_be_written() {
    let world = World::on_a_small_disk(DISK_MIB).await;
    world.shims.by_default(Play::Work { obeys: true });
    let run = world.queue_with(|spec| spec.timeout_s = 10).await;
    let server = world.boot().await;
    world.attended(&run).await;
    let ballast = world.root.path().join("ballast");
    grow(&ballast, u64::from(DISK_MIB) * MIB);
    // What the database had in reserve is used up as well: nothing can be written any more.
    let session = world.run(&run).await;
    until("the database is full", || async {
        let event = caisson_domain::event::NewEvent::new(
            EventKind::Note,
            &serde_json::json!({"m": "x".repeat(4096)}),
        );
        world.store.append_gateway_event(&session.id, event).await.is_err()
    })
    .await;
    until("the sandbox is ended by the worker's own clock", || async { !lives(&world, &run).await }).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Running, "nobody could write it down");
    std::fs::remove_file(&ballast).unwrap();
    let failure = world.failed(&run).await;
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(failure.message.contains("time limit of 10 s"), "{failure:?}");
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_measured_session_over_its_bound_is_told_to_stop_and_killed_if_it_does_not() {
    let mut world = World::new().await;
    world.setup.config.workspace_mib = 64;
    world.shims.by_default(Play::Work { obeys: true });
    let (obeying, deaf) = (world.queue().await, world.queue().await);
    world.shims.of(&deaf, vec![Play::Work { obeys: false }]);
    let server = world.boot().await;
    for run in [&obeying, &deaf] {
        world.attended(run).await;
        grow(&workspace(&world, run).await.join("file"), 65 * MIB);
        let failure = world.failed(run).await;
        assert_eq!(failure.kind, FailureKind::DiskFull);
        assert!(failure.message.contains("all of its 64 MiB"), "{failure:?}");
        let told = world.told(run, EventKind::RunStopRequested).await;
        assert_eq!(told[0]["reason"], "disk_full", "{told:?}");
    }
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_session_at_its_bound_goes_on_and_a_smaller_one_can_be_asked_for() {
    let mut world = World::new().await;
    world.setup.config.workspace_mib = 128;
    world.shims.by_default(Play::Work { obeys: true });
    let small = world
        .queue_with(|spec| spec.resources = Resources { workspace_mib: Some(64), ..Resources::default() })
        .await;
    let large = world.queue().await;
    let server = world.boot().await;
    for run in [&small, &large] {
        world.attended(run).await;
        grow(&workspace(&world, run).await.join("file"), 100 * MIB);
    }
    assert_eq!(world.failed(&small).await.kind, FailureKind::DiskFull);
    assert!(lives(&world, &large).await);
    assert_eq!(world.told(&large, EventKind::SandboxStarted).await[0]["workspace_mib"], 128);
    world.shims.release();
    assert_eq!(world.finished(&large).await.status, RunStatus::Succeeded);
    server.kill();
}

#[tokio::test]
async fn too_many_files_end_a_run_and_links_out_of_it_count_for_nothing() {
    let mut world = World::new().await;
    world.setup.config.workspace_mib = 64;
    world.shims.by_default(Play::Work { obeys: true });
    let run = world.queue().await;
    let server = world.boot().await;
    world.attended(&run).await;
    let workspace = workspace(&world, &run).await;
    std::os::unix::fs::symlink("/usr", workspace.join("out")).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(lives(&world, &run).await, "what a link leads to is not the session's");
    let most = 64 * MIB / caisson_worker::BYTES_PER_FILE;
    for number in 0..most {
        std::fs::File::create(workspace.join(number.to_string())).unwrap();
    }
    let failure = world.failed(&run).await;
    assert_eq!(failure.kind, FailureKind::DiskFull);
    assert!(failure.message.contains(&format!("all of the {most} files")), "{failure:?}");
    server.kill();
}

#[tokio::test]
async fn a_journal_directory_that_the_agent_fills_ends_its_run() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let run = world.queue().await;
    let server = world.boot().await;
    world.attended(&run).await;
    let sandbox = world.run(&run).await.sandbox.unwrap();
    let journal = world.setup.config.state_dir.join("sandboxes").join(sandbox.as_str()).join("journal");
    grow(&journal.join("file"), u64::from(caisson_worker::JOURNAL_VOLUME_MIB) * MIB + MIB);
    let failure = world.failed(&run).await;
    assert_eq!(failure.kind, FailureKind::DiskFull);
    assert!(failure.message.contains("journal directory"), "{failure:?}");
    world.clean().await;
    server.kill();
}
