//! The main job with `PostgreSQL` behind the server, also while the database is away.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use testkit::api::Api;
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;
use testkit::repository::{clone_branch, run_python_tests};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(2);
/// How long the database is away: longer than a call waits for a connection.
const AWAY: Duration = Duration::from_secs(20);

testkit::on_every_engine! {
    a_task_becomes_a_tested_commit_and_the_runs_state_is_in_the_database
    a_database_that_goes_away_is_waited_for
    two_servers_share_the_work_and_each_answers_for_both
}

async fn world(engine: Engine, variables: &[(&str, &str)]) -> Option<(World, Postgres)> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let postgres = Postgres::make().await.unwrap()?;
    let mut spec = WorldSpec::on(engine);
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url()));
    spec.variables.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Some((World::start(&parts, spec).await.unwrap(), postgres))
}

async fn assert_fixed(world: &World, id: &str) {
    let run = world.api.wait_end(id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let after = clone_branch(&world.bare, run["branch"].as_str().unwrap()).unwrap();
    assert!(run_python_tests(&after.path().join("checkout")).unwrap().status.success());
    let events = world.api.events(id).await.unwrap();
    let numbers: Vec<_> = events.iter().filter_map(|event| event["seq"].as_i64()).collect();
    assert_eq!(numbers, (1..=i64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
    for kind in ["run.started", "agent.started", "git.push", "run.finished"] {
        let told = events.iter().filter(|event| event["kind"] == kind).count();
        assert_eq!(told, 1, "{kind} in {events:#?}");
    }
    assert_eq!(run["usage"]["calls"].as_u64(), Some(world.model_calls().len() as u64));
}

async fn a_task_becomes_a_tested_commit_and_the_runs_state_is_in_the_database(engine: Engine) {
    let Some((world, postgres)) = world(engine, &[]).await else { return };
    let id = world.api.submit(&world.run_body()).await.unwrap();
    assert_fixed(&world, &id).await;
    assert_eq!(postgres.value("select id || ' ' || status from run").unwrap(), format!("{id} succeeded"));
    assert!(!world.state_dir().join("caisson.db").exists(), "nothing is in a file");
    let verified = world.spec.command(&["audit", "verify"]).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

async fn a_database_that_goes_away_is_waited_for(engine: Engine) {
    let Some((world, postgres)) = world(engine, &[("DATABASE__ACQUIRE_TIMEOUT_MS", "2000")]).await else {
        return;
    };
    let id = world.api.submit(&world.run_body()).await.unwrap();
    // While an agent starts, the shim waits only so long for its first word, whoever is to blame.
    world.api.wait_event(&id, END, |event| event["kind"] == "model.call").await.unwrap();
    postgres.set_reachable(false);
    assert!(world.api.get(&format!("/v1/runs/{id}")).await.unwrap().status >= 500);
    tokio::time::sleep(AWAY).await;
    postgres.set_reachable(true);
    assert_fixed(&world, &id).await;
}

async fn two_servers_share_the_work_and_each_answers_for_both(engine: Engine) {
    let Some((world, postgres)) = world(engine, &[("SLOTS", "1")]).await else { return };
    let mut spec = ServerSpec::new(&world.spec.parts, &world.directory.path().join("other"), "").unwrap();
    for (name, value) in &world.spec.variables {
        spec.set(name.trim_start_matches("CAISSON_"), value);
    }
    spec.set("MASTER_KEY_FILE", &world.state_dir().join("master.key").display().to_string());
    let other = spec.start().await.unwrap();
    let api = Api::new(&other.base, &world.key).unwrap();

    let ids =
        [api.submit(&world.run_body()).await.unwrap(), world.api.submit(&world.run_body()).await.unwrap()];
    for id in &ids {
        let (run, seen) = (api.wait_end(id, END).await.unwrap(), world.api.wait_end(id, END).await.unwrap());
        assert_eq!(run["status"], "succeeded", "{run:#}\n{}\n{}", world.server.log(), other.log());
        assert_eq!(seen["pushed_commit"], run["pushed_commit"]);
        assert_eq!(api.events(id).await.unwrap(), world.api.events(id).await.unwrap());
    }
    // One slot each, and the second run came while the first was running.
    assert_eq!(
        postgres.value("select count(distinct server_id) || ' ' || count(*) from attempt").unwrap(),
        "2 2"
    );
    let verified = world.spec.command(&["audit", "verify"]).output().unwrap();
    let chains = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success() && chains.lines().count() >= 2, "{chains}");
    drop(other);
    engine.remove_all(&spec.parts, &spec.state_dir).unwrap();
}
