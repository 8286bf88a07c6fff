//! A session whose server is lost for good, with everything that it had: another one goes on with it, on real parts.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::api::Api;
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::{ServerProcess, ServerSpec};
use testkit::repository::run_git;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(4);
/// The shortest silence after which a server counts as lost, in seconds.
const LOST_AFTER_S: u64 = 40;

testkit::on_every_engine! {
    a_session_goes_on_at_another_server_when_its_own_is_lost_for_good
}

/// A turn that commits a file with the name and shows what is there.
fn turn(name: &str) -> Value {
    let command = format!(
        "echo {name} > {name}.txt && echo {name} >> \"$HOME/kept\" && git add -A && git commit -q -m 'feat: add {name}'; \
         ls; cat \"$HOME/kept\""
    );
    json!([
        {"tool": {"name": "Bash", "input": {"description": "Work", "command": command}}},
        {"text": format!("Added {name}.")}
    ])
}

/// A second server, whose sandboxes go before it does.
struct Other {
    spec: ServerSpec,
    server: Option<ServerProcess>,
    engine: Engine,
}

impl Other {
    async fn start(world: &World, postgres: &Postgres) -> Self {
        let mut spec = world.beside("other", &postgres.url()).unwrap();
        // The first server's directory will be gone.
        let key = world.directory.path().join("master.key");
        std::fs::copy(world.state_dir().join("master.key"), &key).unwrap();
        spec.set("MASTER_KEY_FILE", &key.display().to_string());
        let server = Some(spec.start().await.unwrap());
        Self { spec, server, engine: world.engine }
    }

    fn log(&self) -> String {
        self.server.as_ref().map(ServerProcess::log).unwrap_or_default()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.server.take();
        self.engine.remove_all(&self.spec.parts, &self.spec.state_dir).ok();
    }
}

/// What a run's tools said.
async fn said(api: &Api, id: &str) -> String {
    let events = api.events(id).await.unwrap();
    let said = events.iter().filter(|event| event["kind"] == "agent.line" && event["data"]["type"] == "user");
    said.map(|event| event["data"]["message"].to_string()).collect()
}

async fn a_session_goes_on_at_another_server_when_its_own_is_lost_for_good(engine: Engine) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(postgres) = Postgres::make().await.unwrap() else { return };
    let scenario = json!({ "turns": { "prompts": [turn("one"), turn("two")] } });
    let mut spec = WorldSpec {
        scenario: "turns".to_owned(),
        scenarios: vec![scenario.to_string()],
        ..WorldSpec::on(engine)
    };
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url()));
    spec.variables.push(("SERVER_LOST_AFTER_S".to_owned(), LOST_AFTER_S.to_string()));
    let mut world = World::start(&parts, spec).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let first = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(first["status"], "succeeded", "{first:#}\n{}", world.server.log());
    assert!(said(&world.api, &id).await.contains("one.txt"));
    world.wait_tidy().await.unwrap();

    let other = Other::start(&world, &postgres).await;
    world.server.kill().unwrap();
    let lost = Instant::now();
    world.engine.remove_all(&parts, world.state_dir()).unwrap();
    std::fs::remove_dir_all(world.state_dir()).unwrap();
    let api = Api::new(&other.server.as_ref().unwrap().base, &world.key).unwrap();
    let body = json!({"session": first["session_id"], "prompt": "Go on."});
    let next = api.submit(&body).await.unwrap();
    let held = |run: &Value| run["held_by"].to_string().contains("home_away");
    api.wait_run(&next, END, |run| run["status"] == "queued" && held(run)).await.unwrap();
    let second = api.wait_end(&next, END).await.unwrap();
    assert_eq!(second["status"], "succeeded", "{second:#}\n{}", other.log());
    let waited = lost.elapsed();
    assert!(waited > Duration::from_secs(LOST_AFTER_S - 10), "before its time: {waited:?}");

    // Its files are from the branch and the conversation is from the archive; nothing else was brought.
    let told = said(&api, &next).await;
    assert!(told.contains("one.txt") && told.contains("two.txt"), "{told}");
    assert!(!told.contains("one\\ntwo"), "the home of before is gone: {told}");
    let prompt = world.model_calls().last().unwrap().script.as_ref().unwrap().prompt;
    assert_eq!(prompt, 2, "the agent knows the first turn");
    assert_eq!(second["base_commit"], first["pushed_commit"]);
    assert_eq!((&second["branch"], &second["session_id"]), (&first["branch"], &first["session_id"]));
    let subjects = run_git(&world.bare, &["log", "--format=%s", first["branch"].as_str().unwrap()]).unwrap();
    assert!(subjects.starts_with("feat: add two\nfeat: add one\n"), "{subjects}");
    let archive = format!("brought from the archive, as run {id} had left it");
    let events = api.events(&next).await.unwrap();
    assert!(
        events.iter().any(|event| event["data"]["message"].to_string().contains(&archive)),
        "{events:#?}"
    );
    let homes = "select count(distinct server_id) from attempt where agent_started_at_ms is not null";
    assert_eq!(postgres.value(homes).unwrap(), "2", "each turn was on a server of its own");
    drop(other);
}
