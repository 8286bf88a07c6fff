//! Budgets and failures of the model API, with the real agent in a real sandbox: it is stopped at once, its work is kept,
//! and the run says what it failed of.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec, until};

testkit::on_every_engine_and_database! {
    a_run_is_stopped_inside_its_turn_by_its_budget_and_its_work_is_kept
    an_agent_that_is_told_to_wrap_up_commits_and_its_run_succeeds_within_its_budget
    an_agent_that_does_not_wrap_up_is_told_once_over_a_restart_and_ended_with_its_work_kept
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

async fn world(
    parts: &Parts,
    ground: impl Into<Ground>,
    scenario: &Value,
    variables: &[(&str, &str)],
) -> World {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let spec = WorldSpec {
        scenario: "tested".to_owned(),
        scenarios: vec![json!({ "tested": scenario }).to_string()],
        delay_scale: 1.0,
        variables,
        ..WorldSpec::on(ground)
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

async fn ended(world: &World, body: &Value) -> Value {
    let id = world.api.submit(body).await.unwrap();
    world.api.wait_end(&id, END).await.unwrap()
}

async fn a_run_is_stopped_inside_its_turn_by_its_budget_and_its_work_is_kept(ground: Ground) {
    let Some(parts) = parts() else { return };
    let world = world(&parts, ground, &talks(), &[]).await;
    let mut body = world.run_body();
    let budget = 170_000;
    body["budget_micro_usd"] = json!(budget);
    let run = ended(&world, &body).await;
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
    testkit::words::assert_counted(cut.bytes_served, usage["output"].as_u64().unwrap());
    let id = run["id"].as_str().unwrap();
    let patch = world.api.get(&format!("/v1/runs/{id}/artifacts")).await.unwrap().body;
    let names: Vec<_> = patch["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
    assert!(names.contains(&json!("uncommitted.patch")), "{names:?}");
    assert!(run["pushed_commit"].is_null());
    world.wait_tidy().await.unwrap();
}

/// Spends 16 cents, of which 14 in one reply, is then inside a tool until [`wait_told`] lets it go on, and does as it is told or not told.
fn spends(told: &Value) -> Value {
    let wait = until(GO);
    json!({"prompts": [
        [
            {"tool": {"name": "Write", "input": {"file_path": "$CWD/half.txt", "content": "half done\n"}},
             "usage": {"output_tokens": 1_000}},
            {"tool": {"name": "Bash", "input": {"command": wait, "description": "Wait"}}, "usage": {"output_tokens": 7_000}},
            {"text": "Nobody has told me anything."},
        ],
        {"when_prompt_contains": "money for this task is running out", "steps": told},
        {"when_prompt_contains": "commit message", "steps": [{"text": "feat: begin"}]},
    ]})
}

/// What lets the agent that [`spends`] go on.
const GO: &str = "go";

/// Waits until the agent of [`spends`] has in its queue what it was told, behind its prompt, and lets it go on.
async fn wait_told(world: &World, id: &str) {
    world.api.wait_event(id, END, |event| event["kind"] == "run.budget_soft").await.unwrap();
    world.queued(id, 2, END).await.unwrap();
    world.let_go(id, GO).await.unwrap();
}

/// The events in which the agent's own lines are of that kind.
fn lines<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    let lines = events.iter().filter(|event| event["kind"] == "agent.line").map(|event| &event["data"]);
    lines.filter(|line| line["type"] == kind).collect()
}

/// How often the agent was told, by the server's events and by what the agent itself echoed.
fn told(events: &[Value]) -> (Vec<&Value>, usize) {
    let soft = events.iter().filter(|event| event["kind"] == "run.budget_soft").map(|event| &event["data"]);
    let echoes = lines(events, "user").into_iter().filter(|line| line["isReplay"] == true);
    (soft.collect(), echoes.filter(|line| line.to_string().contains("is running out")).count())
}

async fn an_agent_that_is_told_to_wrap_up_commits_and_its_run_succeeds_within_its_budget(ground: Ground) {
    let Some(parts) = parts() else { return };
    let commit = "git add -A && git commit -q -m 'feat: keep the half that is done'";
    let scenario = spends(&json!([
        {"tool": {"name": "Bash", "input": {"command": commit, "description": "Commit"}}},
        {"text": "Half of it is done."},
    ]));
    let world = world(&parts, ground, &scenario, &[("BUDGET__SOFT_PERCENT", "40")]).await;
    let mut body = world.run_body();
    body["budget_micro_usd"] = json!(400_000);
    let id = world.api.submit(&body).await.unwrap();
    wait_told(&world, &id).await;
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    assert_eq!((&run["result"], &run["budget_soft_percent"]), (&json!("Half of it is done."), &json!(40)));
    let commit = run["pushed_commit"].as_str().unwrap();
    let branch = run["branch"].as_str().unwrap();
    let git = testkit::repository::run_git(&world.bare, &["log", "-1", "--format=%H %s", branch]).unwrap();
    assert_eq!(git.trim(), format!("{commit} feat: keep the half that is done"));
    let events = world.api.events(run["id"].as_str().unwrap()).await.unwrap();
    let (soft, echoes) = told(&events);
    assert_eq!((soft.len(), echoes), (1, 1), "{soft:?}");
    assert_eq!(
        (&soft[0]["scope"], &soft[0]["percent"], &soft[0]["budget_micro_usd"]),
        (&json!("run"), &json!(40), &json!(400_000))
    );
    let used = ["spent_micro_usd", "under_way_micro_usd"].map(|name| soft[0][name].as_i64().unwrap());
    assert!((160_000..170_000).contains(&used.iter().sum::<i64>()), "{soft:?}");
    assert_eq!(lines(&events, "result").len(), 1, "it was told within its turn");
    // The third request of the turn has the message, and is answered by its words.
    let places: Vec<_> = world.model_calls().iter().map(|call| call.script.clone().unwrap()).collect();
    let places: Vec<_> = places.iter().map(|place| (place.prompt, place.step)).collect();
    assert_eq!(places, [(1, 0), (1, 1), (2, 0), (2, 1)]);
    let usage = &run["usage"];
    assert_eq!(usage["estimated_calls"], 0);
    let cost = usage["cost_micro_usd"].as_i64().unwrap();
    assert!(cost > 160_000 && cost < 170_000, "{cost}");
}

async fn an_agent_that_does_not_wrap_up_is_told_once_over_a_restart_and_ended_with_its_work_kept(
    ground: Ground,
) {
    let Some(parts) = parts() else { return };
    let scenario = spends(&json!([
        {"tool": {"name": "Bash", "input": {"command": until("restarted"), "description": "Wait"}}},
        {"text": "word ", "text_repeat": 11_200, "chunk_delay_ms": 1, "usage": {"output_tokens": 14_000}},
    ]));
    let mut world = world(&parts, ground, &scenario, &[]).await;
    let mut body = world.run_body();
    let budget = 300_000;
    (body["budget_micro_usd"], body["budget_soft_percent"]) = (json!(budget), json!(50));
    let id = world.api.submit(&body).await.unwrap();
    wait_told(&world, &id).await;
    let third =
        |event: &Value| event["kind"] == "agent.line" && event["data"].to_string().contains("/restarted");
    world.api.wait_event(&id, END, third).await.unwrap();
    world.counted(&id, 0, END).await.unwrap();
    // It does what it was told, and is told no second time by the server's next process.
    world.server.kill().unwrap();
    world.server = world.spec.start().await.unwrap();
    world.let_go(&id, "restarted").await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["failure"]["kind"], "budget", "{run:#}\n{}", world.server.log());
    let events = world.api.events(&id).await.unwrap();
    let (soft, echoes) = told(&events);
    assert_eq!((soft.len(), echoes), (1, 1), "{soft:?}");
    let cost = run["usage"]["cost_micro_usd"].as_i64().unwrap();
    assert!(cost > 200_000 && cost < budget + 4_000 * OUTPUT_MICRO_USD, "{cost} of {budget}");
    let kept = world.api.get(&format!("/v1/runs/{id}/artifacts")).await.unwrap().body.to_string();
    assert!(kept.contains("uncommitted.patch"), "{kept}");
    assert!(run["pushed_commit"].is_null());
}

/// Waits for the next day where this one ends too soon.
async fn all_in_one_day(world: &World) {
    let budget = world.api.get("/v1/budget").await.unwrap().body;
    let ends = Duration::from_millis(budget["day_ends_at_ms"].as_u64().unwrap());
    let now = UNIX_EPOCH.elapsed().unwrap();
    let left = ends.checked_sub(now).unwrap();
    if left < 2 * END {
        tokio::time::sleep(left).await;
    }
}

async fn a_days_budget_of_the_project_stops_its_runs(ground: Ground) {
    let Some(parts) = parts() else { return };
    let mut world = world(&parts, ground, &talks(), &[("BUDGET__DAY_MICRO_USD", "170000")]).await;
    all_in_one_day(&world).await;
    let run = ended(&world, &world.run_body()).await;
    assert_eq!(run["failure"]["kind"], "budget", "{run:#}\n{}", world.server.log());
    assert!(run["failure"]["message"].to_string().contains("the project's budget of this day"), "{run:#}");
    let calls = world.model_calls().len();
    // The next run has nothing left, and a server that starts again forgets nothing.
    world.server.kill().unwrap();
    world.server = world.spec.start().await.unwrap();
    let next = ended(&world, &world.run_body()).await;
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
    let again = ended(&world, &world.run_body()).await;
    assert_eq!(again["status"], "succeeded", "{again:#}\n{}", world.server.log());
}

async fn a_model_api_that_stays_away_fails_the_run_at_once_with_its_own_words(ground: Ground) {
    let Some(parts) = parts() else { return };
    for (status, error, header, value, kind) in [
        (429, "rate_limit_error", "retry-after", "3600", "provider_limit"),
        (500, "api_error", "x-should-retry", "false", "provider_down"),
        (403, "permission_error", "x-none", "x", "provider_auth"),
    ] {
        let scenario = json!({"prompts": [[
            {"status": status, "error_type": error, "message": "the words of the API", "headers": {header: value}}
        ]]});
        let world = world(&parts, ground, &scenario, &[]).await;
        let run = ended(&world, &world.run_body()).await;
        assert_eq!(run["failure"]["kind"], kind, "{run:#}\n{}", world.server.log());
        let failure = run["failure"].to_string();
        assert!(failure.contains("the words of the API"), "{failure}");
        assert_eq!(world.model_calls().len(), 1, "{kind}");
    }
}

async fn a_model_api_that_recovers_costs_the_run_nothing_but_time(ground: Ground) {
    let Some(parts) = parts() else { return };
    let scenario = json!({"prompts": [[{"text": "Done.", "overloaded": true, "times": 3}]]});
    let world = world(&parts, ground, &scenario, &[]).await;
    let mut body = world.run_body();
    body["repository"] = Value::Null;
    let run = ended(&world, &body).await;
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
