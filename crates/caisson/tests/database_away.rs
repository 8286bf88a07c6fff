//! What docs/operations.md says of a database that is away, each on a cluster that is the test's own.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::{Duration, Instant};

use testkit::cluster::{Cluster, Occupied};
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::process::ServerSpec;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(3);
/// How long the database is stopped: longer than a lease.
const STOPPED: Duration = Duration::from_mins(1);
/// How long a call waits for a connection, in milliseconds.
const ACQUIRE_MS: u64 = 2_000;
/// Connections that the database takes, from everybody together.
const CONNECTIONS: usize = 16;
/// The disk of the database, in MiB.
const DISK_MIB: u32 = 160;

async fn world(cluster: &Cluster) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let mut spec =
        WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 1.0, ..WorldSpec::on(Engine::Local) };
    spec.variables.push(("DATABASE__URL".to_owned(), cluster.url()));
    spec.variables.push(("DATABASE__CONNECTIONS".to_owned(), "6".to_owned()));
    spec.variables.push(("DATABASE__ACQUIRE_TIMEOUT_MS".to_owned(), ACQUIRE_MS.to_string()));
    spec.variables.push(("METRICS__PUBLIC".to_owned(), "true".to_owned()));
    Some(World::start(&parts, spec).await.unwrap())
}

/// A run whose agent has begun: while it starts, the shim waits only so long for its first word, whoever is to blame.
async fn at_work(world: &World) -> String {
    let id = world.api.submit(&world.run_body()).await.unwrap();
    world.api.wait_event(&id, END, |event| event["kind"] == "model.call").await.unwrap();
    id
}

async fn assert_done_once(world: &World, id: &str) {
    let run =
        world.api.wait_end(id, END).await.unwrap_or_else(|error| panic!("{error}\n{}", world.server.log()));
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let events = world.api.events(id).await.unwrap();
    for kind in ["agent.started", "git.push", "run.finished"] {
        assert_eq!(events.iter().filter(|event| event["kind"] == kind).count(), 1, "{kind} in {events:#?}");
    }
    let numbers: Vec<_> = events.iter().filter_map(|event| event["seq"].as_i64()).collect();
    assert_eq!(numbers, (1..=i64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
}

/// Waits until a path answers with a status; the process that answers lives all the while.
async fn answers(world: &World, path: &str, wanted: u16) {
    let begun = Instant::now();
    loop {
        let answer = world.api.get(path).await.unwrap();
        if answer.status == wanted {
            return;
        }
        assert!(begun.elapsed() < END, "{path}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until the breaker before the database is open, or closed.
async fn breaker_is(world: &World, open: u8) {
    let wanted = format!("\ncaisson_database_breaker_open {open}\n");
    let begun = Instant::now();
    loop {
        let page = String::from_utf8(world.api.bytes("/metrics").await.unwrap()).unwrap();
        if page.contains(&wanted) {
            return;
        }
        assert!(begun.elapsed() < STOPPED, "{page}\n{}", world.server.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_restarted_and_then_stopped_for_a_minute_is_waited_for() {
    let Some(cluster) = Cluster::make("", None).unwrap() else { return };
    let Some(world) = world(&cluster).await else { return };
    let id = at_work(&world).await;
    cluster.stop().unwrap();
    cluster.start().unwrap();
    answers(&world, "/readyz", 200).await;
    cluster.stop().unwrap();
    let stopped = Instant::now();
    answers(&world, &format!("/v1/runs/{id}"), 503).await;
    answers(&world, "/readyz", 503).await;
    answers(&world, "/healthz", 200).await;
    // After a while nobody waits for what does not come, but for one call at a time that looks.
    breaker_is(&world, 1).await;
    let (begun, calls) = (Instant::now(), 10);
    for _ in 0..calls {
        let answer = world.api.get(&format!("/v1/runs/{id}")).await.unwrap();
        assert_eq!((answer.status, &answer.body["code"]), (503, &"store_unavailable".into()), "{answer:?}");
    }
    let waited = Duration::from_millis(calls * ACQUIRE_MS) / 2;
    assert!(begun.elapsed() < waited, "{:?}", begun.elapsed());
    let ready = world.api.get("/readyz").await.unwrap();
    let told = ready.body["detail"].as_str().unwrap_or_default();
    assert!(ready.status == 503 && told.contains("it is looked for again by itself"), "{ready:?}");
    tokio::time::sleep(STOPPED.saturating_sub(stopped.elapsed())).await;
    cluster.start().unwrap();
    breaker_is(&world, 0).await;
    assert_done_once(&world, &id).await;
    assert!(world.server.log().contains("up again"), "its lease was over: {}", world.server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_a_free_connection_is_waited_for() {
    // Those who have taken the connections sleep in the database, which looks only if told whether their clients are still there.
    let options = format!(
        "-c max_connections={CONNECTIONS} -c superuser_reserved_connections=0 -c client_connection_check_interval=500"
    );
    let Some(cluster) = Cluster::make(&options, None).unwrap() else { return };
    let Some(world) = world(&cluster).await else { return };
    let id = at_work(&world).await;
    // Somebody cuts the server off again and again, and others are quicker than it is.
    let cut = "do $$ begin for turn in 1..600 loop perform pg_stat_clear_snapshot(); \
         perform pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' \
         and query not like '%pg_sleep%' and pid <> pg_backend_pid(); perform pg_sleep(0.1); end loop; end $$";
    let mut taken: Vec<Occupied> = vec![cluster.background(cut).unwrap()];
    let begun = Instant::now();
    loop {
        taken.extend((0..4).map(|_| cluster.occupy().unwrap()));
        tokio::time::sleep(Duration::from_millis(300)).await;
        if world.api.get(&format!("/v1/runs/{id}")).await.unwrap().status == 503 {
            break;
        }
        assert!(begun.elapsed() < END, "the server still has connections");
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    answers(&world, "/healthz", 200).await;
    drop(taken);
    assert_done_once(&world, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_disk_is_full_is_waited_for() {
    let options = "-c wal_level=minimal -c max_wal_size=32MB -c min_wal_size=32MB -c shared_buffers=8MB";
    let Some(cluster) = Cluster::make(options, Some(DISK_MIB)).unwrap() else { return };
    let Some(world) = world(&cluster).await else { return };
    let id = at_work(&world).await;
    let filler = cluster.home().join("filler");
    fill(&filler);
    // The tables have a little room left.
    let mut large = world.run_body();
    large["prompt"] = noise(900_000).into();
    let mut made = Vec::new();
    loop {
        let answer = world.api.post("/v1/runs", &large).await.unwrap();
        if answer.status == 503 {
            break;
        }
        assert!(answer.status == 202 && made.len() < 50, "the disk is not full: {answer:?}");
        made.push(answer.body["id"].as_str().unwrap().to_owned());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    answers(&world, "/healthz", 200).await;
    std::fs::remove_file(&filler).unwrap();
    // It may have ended for want of space, as its administrator would see.
    cluster.start().unwrap();
    for other in made {
        answers(&world, "/readyz", 200).await;
        world.api.post(&format!("/v1/runs/{other}/cancel"), &serde_json::Value::Null).await.unwrap();
    }
    assert_done_once(&world, &id).await;
}

/// A text that no database makes smaller.
fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    let digits = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", state ^ (state >> 33))
    });
    digits.take(bytes / 16).collect()
}

/// Writes a file until the disk is full.
fn fill(path: &std::path::Path) {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_warns_of_a_standby_that_no_commit_waits_for() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(cluster) = Cluster::make("-c wal_level=replica -c max_wal_senders=4", None).unwrap() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    // An ordinary role sees nothing of standbys but that they are there.
    cluster.value("create role plain login").unwrap();
    cluster.value("create database plain owner plain").unwrap();
    let url = cluster.url().replace("//caisson@", "//plain@").replace("/postgres?", "/plain?");
    let mut spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    spec.set("DATABASE__URL", &url);
    let migrated = spec.command(&["db", "migrate"]).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let doctor = || {
        let output = spec.command(&["doctor"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let told = "a standby is connected and no commit waits for one";
    let alone = doctor();
    assert!(alone.contains("database") && !alone.contains(told), "{alone}");
    let _standby = cluster.standby(directory.path()).unwrap();
    let begun = Instant::now();
    while cluster.value("select count(*) from pg_stat_replication").unwrap() != "1" {
        assert!(begun.elapsed() < Duration::from_secs(20), "the standby does not come");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let warned = doctor();
    assert!(warned.contains(told) && warned.contains("synchronous_standby_names is empty"), "{warned}");
    cluster.value("alter system set synchronous_standby_names = '*'").unwrap();
    cluster.value("select pg_reload_conf()").unwrap();
    let begun = Instant::now();
    while doctor().contains(told) {
        assert!(begun.elapsed() < Duration::from_secs(20), "commits wait now");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
