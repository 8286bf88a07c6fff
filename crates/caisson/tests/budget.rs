//! Budgets and failures of the model API, with the real agent in a real sandbox: it is stopped at once, its work is kept,
//! and the run says what it failed of.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

testkit::on_every_engine! {
    a_run_is_stopped_inside_its_turn_by_its_budget_and_its_work_is_kept
    a_days_budget_of_the_project_stops_its_runs
    a_model_api_that_stays_away_fails_the_run_at_once_with_its_own_words
    a_model_api_that_recovers_costs_the_run_nothing_but_time
}

const END: Duration = Duration::from_mins(2);
/// Micro-USD for a token of output of the default model.
const OUTPUT_MICRO_USD: i64 = 20;

fn parts() -> Option<Parts> {
    Parts::find(env!("CARGO_BIN_EXE_caisson"))
}

async fn world(parts: &Parts, engine: Engine, scenario: &Value, variables: &[(&str, &str)]) -> World {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let spec = WorldSpec {
        scenario: "tested".to_owned(),
        scenarios: vec![json!({ "tested": scenario }).to_string()],
        delay_scale: 1.0,
        variables,
        ..WorldSpec::on(engine)
    };
    World::start(parts, spec).await.unwrap()
}

/// Writes a file, then talks for 14,000 tokens and 28 cents.
fn talks() -> Value {
    json!({"prompts": [[
        {"tool": {"name": "Write", "input": {"file_path": "$CWD/half.txt", "content": "half done\n"}}},
        {"text": "word ", "text_repeat": 11_200, "chunk_delay_ms": 1, "usage": {"output_tokens": 14_000}},
    ], {"when_prompt_contains": "commit message", "steps": [{"text": "feat: begin"}]}]})
}

async fn ended(world: &World, body: &Value) -> (Value, Duration) {
    let id = world.api.submit(body).await.unwrap();
    let began = Instant::now();
    let run = world.api.wait_end(&id, END).await.unwrap();
    (run, began.elapsed())
}

async fn a_run_is_stopped_inside_its_turn_by_its_budget_and_its_work_is_kept(engine: Engine) {
    let Some(parts) = parts() else { return };
    let world = world(&parts, engine, &talks(), &[]).await;
    let mut body = world.run_body();
    let budget = 170_000;
    body["budget_micro_usd"] = json!(budget);
    let (run, _) = ended(&world, &body).await;
    assert_eq!(
        (&run["status"], &run["failure"]["kind"]),
        (&json!("failed"), &json!("budget")),
        "{run:#}\n{}",
        world.server.log()
    );
    let message = run["failure"]["message"].as_str().unwrap();
    assert!(message.starts_with("the run's budget of 0.170000 USD is used up"), "{message}");
    assert_eq!(run["failure"]["retry_can_help"], false);
    let usage = &run["usage"];
    let cost = usage["cost_micro_usd"].as_i64().unwrap();
    assert!(cost > budget / 2 && cost < budget + 4_000 * OUTPUT_MICRO_USD, "{cost} of {budget}");
    assert_eq!(
        (&usage["calls"], &usage["estimated_calls"]),
        (&json!(2), &json!(1)),
        "the second one was cut"
    );
    assert_eq!(world.model_calls().len(), 2, "nothing was forwarded after that");
    let cut = &world.model_calls()[1];
    // What was served in vain after the cut is what sockets hold.
    let told = usage["output"].as_u64().unwrap();
    assert!(cut.bytes_served > 4 * (told - 100), "{} bytes served, {told} tokens counted", cut.bytes_served);
    let id = run["id"].as_str().unwrap();
    let patch = world.api.get(&format!("/v1/runs/{id}/artifacts")).await.unwrap().body;
    let names: Vec<_> = patch["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
    assert!(names.contains(&json!("uncommitted.patch")), "{names:?}");
    assert!(run["pushed_commit"].is_null());
    world.wait_tidy().await.unwrap();
}

async fn a_days_budget_of_the_project_stops_its_runs(engine: Engine) {
    let Some(parts) = parts() else { return };
    let mut world = world(&parts, engine, &talks(), &[("BUDGET__DAY_MICRO_USD", "170000")]).await;
    let (run, _) = ended(&world, &world.run_body()).await;
    assert_eq!(run["failure"]["kind"], "budget", "{run:#}\n{}", world.server.log());
    assert!(run["failure"]["message"].to_string().contains("the project's budget of this day"), "{run:#}");
    let calls = world.model_calls().len();
    // The next run has nothing left, and a server that starts again forgets nothing.
    world.server.kill().unwrap();
    world.server = world.spec.start().await.unwrap();
    let (next, _) = ended(&world, &world.run_body()).await;
    assert_eq!(
        (&next["failure"]["kind"], &next["usage"]["calls"]),
        (&json!("budget"), &json!(0)),
        "{next:#}"
    );
    assert_eq!(world.model_calls().len(), calls);
    // A larger budget is only a setting away.
    world.server.terminate().await.unwrap();
    world.spec.set("BUDGET__DAY_MICRO_USD", "3000000");
    world.server = world.spec.start().await.unwrap();
    let (again, _) = ended(&world, &world.run_body()).await;
    assert_eq!(again["status"], "succeeded", "{again:#}\n{}", world.server.log());
}

async fn a_model_api_that_stays_away_fails_the_run_at_once_with_its_own_words(engine: Engine) {
    let Some(parts) = parts() else { return };
    for (status, error, header, value, kind) in [
        (429, "rate_limit_error", "retry-after", "3600", "provider_limit"),
        (500, "api_error", "x-should-retry", "false", "provider_down"),
        (403, "permission_error", "x-none", "x", "provider_auth"),
    ] {
        let scenario = json!({"prompts": [[
            {"status": status, "error_type": error, "message": "the words of the API", "headers": {header: value}}
        ]]});
        let world = world(&parts, engine, &scenario, &[]).await;
        let (run, took) = ended(&world, &world.run_body()).await;
        assert_eq!(run["failure"]["kind"], kind, "{run:#}\n{}", world.server.log());
        let failure = run["failure"].to_string();
        assert!(failure.contains("the words of the API"), "{failure}");
        assert_eq!(world.model_calls().len(), 1, "{kind}");
        assert!(took < Duration::from_secs(20), "{kind}: {took:?}");
    }
}

async fn a_model_api_that_recovers_costs_the_run_nothing_but_time(engine: Engine) {
    let Some(parts) = parts() else { return };
    let scenario = json!({"prompts": [[{"text": "Done.", "overloaded": true, "times": 3}]]});
    let world = world(&parts, engine, &scenario, &[]).await;
    let mut body = world.run_body();
    body["repository"] = Value::Null;
    let (run, _) = ended(&world, &body).await;
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let calls = world.model_calls();
    assert_eq!((calls.len(), &run["usage"]["calls"]), (4, &json!(4)));
    assert!(
        calls.windows(2).all(|pair| pair[0].body_sha256 == pair[1].body_sha256),
        "the same bytes each time"
    );
    let events = world.api.events(run["id"].as_str().unwrap()).await.unwrap();
    assert!(!events.iter().any(|event| event["data"]["subtype"] == "api_retry"), "the agent saw none of it");
}
