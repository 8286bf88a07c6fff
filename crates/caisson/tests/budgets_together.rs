//! The project's budget with many real runs at once: what it lets through, what is counted, and that a change of it acts on
//! runs that live. The engine makes no difference here, so it is the local one.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::process::Output;
use std::time::Duration;

use caisson_domain::usage::{PriceTable, TokenCounts};
use scripted_model::{Outcome, Record};
use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec, until};

testkit::on_every_database! {
    of_twenty_real_runs_at_once_those_that_fit_the_budget_finish_and_all_three_accounts_agree
    a_budget_that_is_lowered_stops_a_living_run_at_its_next_call_and_the_settings_come_first
}

const END: Duration = Duration::from_mins(4);
const MODEL: &str = "claude-opus-5-5";
/// Output that is reserved before a call and again while its reply comes, in tokens.
const SLICE_TOKENS: i64 = 4_000;
/// The least that a call begins with, in tokens.
const LAST_TOKENS: i64 = 1_000;

/// `short`: 3000 tokens and 6 cents. `long`: 20,000 tokens and 40 cents. `slow`: a tool until it may go on, then a word.
fn scenarios() -> String {
    let wait = until("go");
    json!({
        "short": {"prompts": [[
            {"text": "word ", "text_repeat": 2_400, "usage": {"input_tokens": 90, "output_tokens": 3_000}},
        ]]},
        "long": {"prompts": [[
            {"text": "word ", "text_repeat": 16_000, "chunk_delay_ms": 1, "usage": {"output_tokens": 20_000}},
        ]]},
        "slow": {"prompts": [[
            {"tool": {"name": "Bash", "input": {"command": wait, "description": "Wait"}}}, {"text": "Done."},
        ]]},
    })
    .to_string()
}

async fn world(ground: Ground, variables: &[(&str, &str)]) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let spec = WorldSpec {
        scenario: "short".to_owned(),
        scenarios: vec![scenarios()],
        delay_scale: 1.0,
        variables,
        ..WorldSpec::on(ground)
    };
    Some(World::start(&parts, spec).await.unwrap())
}

/// Without a repository: what counts here are its calls.
fn body(scenario: &str) -> Value {
    let prompt = format!("[[scn:{scenario}]] Say something.");
    json!({"workflow": "bug-fixer", "prompt": prompt, "repository": null, "model": MODEL})
}

fn cost(tokens: TokenCounts) -> i64 {
    PriceTable::shipped().cost_micro_usd(MODEL, &tokens)
}

fn output(tokens: i64) -> i64 {
    cost(TokenCounts { output: tokens, ..TokenCounts::default() })
}

/// What the scripted model says that a reply cost.
fn served(record: &Record) -> i64 {
    let usage = record.usage.unwrap();
    let number = |tokens: u64| i64::try_from(tokens).unwrap();
    cost(TokenCounts {
        input: number(usage.input_tokens),
        output: number(usage.output_tokens),
        cache_read: number(usage.cache_read_input_tokens),
        cache_write_5m: number(usage.cache_creation.ephemeral_5m_input_tokens),
        cache_write_1h: number(usage.cache_creation.ephemeral_1h_input_tokens),
    })
}

/// `caisson budget` as somebody with the scope `admin` gives it.
fn budget(world: &World, admin: &str, arguments: &[&str]) -> Output {
    let mut command = world.client(&[&["budget"], arguments].concat());
    command.env("CAISSON_API_KEY", admin).output().unwrap()
}

fn admin(world: &World) -> String {
    world.spec.create_key_with("admin").unwrap()
}

async fn shown(world: &World) -> Value {
    world.api.get("/v1/budget").await.unwrap().body
}

async fn ends(world: &World, ids: &[String]) -> Vec<Value> {
    let mut runs = Vec::new();
    for id in ids {
        runs.push(world.api.wait_end(id, END).await.unwrap());
    }
    runs
}

fn sum(runs: &[Value]) -> i64 {
    runs.iter().map(|run| run["usage"]["cost_micro_usd"].as_i64().unwrap()).sum()
}

async fn of_twenty_real_runs_at_once_those_that_fit_the_budget_finish_and_all_three_accounts_agree(
    ground: Ground,
) {
    let one = cost(TokenCounts { input: 90, output: 3_000, ..TokenCounts::default() });
    let whole = 10 * one + output(2 * LAST_TOKENS);
    let Some(world) = world(ground, &[("SLOTS", "20")]).await else { return };
    let admin = admin(&world);
    let usd = format!("{}.{:06}", whole / 1_000_000, whole % 1_000_000);
    let set = budget(&world, &admin, &["set", "--total", &usd]);
    assert!(set.status.success(), "{set:?}");
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(world.api.submit(&body("short")).await.unwrap());
    }
    let runs = ends(&world, &ids).await;
    let (fit, refused): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run["status"] == "succeeded");
    assert!(refused.iter().all(|run| run["failure"]["kind"] == "budget"), "{refused:#?}");
    let spent = sum(&runs);
    assert!(spent <= whole, "{spent} of {whole}");
    assert!(fit.iter().all(|run| run["usage"]["cost_micro_usd"] == one), "{fit:#?}");
    assert!(
        refused.iter().all(|run| run["usage"]["calls"] == 0),
        "what was refused was not forwarded: {refused:#?}"
    );
    // Whatever fitted has finished: what is left is less than the least with which a call begins.
    let calls = world.model_calls();
    assert_eq!(calls.len(), fit.len());
    let least = calls.iter().map(|call| i64::try_from(call.body_bytes).unwrap() / 4).min().unwrap();
    let begins = cost(TokenCounts { cache_write_1h: least, output: LAST_TOKENS, ..TokenCounts::default() });
    assert!(
        whole - spent < begins,
        "{} finished, {spent} of {whole}, and a call begins with {begins}",
        fit.len()
    );
    assert!(fit.len() >= 9, "{}", fit.len());
    let all: i64 = calls.iter().map(served).sum();
    let budget_now = shown(&world).await;
    assert_eq!(
        (all, &budget_now["total"]["spent_micro_usd"]),
        (spent, &json!(spent)),
        "by all three accounts"
    );
    assert_eq!(budget_now["total"]["reserved_micro_usd"], 0);
    assert_eq!(budget_now["total"]["left_micro_usd"], whole - spent);
    assert!(calls.iter().all(|call| call.usage_final && call.outcome == Outcome::Complete));
    cut(&world, &admin, (spent, calls.len())).await;
}

/// With more money, one more run begins that needs more than that, and is stopped inside its turn.
async fn cut(world: &World, admin: &str, (before, calls): (i64, usize)) {
    let more = 250_000;
    let set = world
        .spec
        .command(&["budget", "show"])
        .env("CAISSON_URL", &world.server.base)
        .env("CAISSON_API_KEY", admin)
        .output();
    assert!(String::from_utf8(set.unwrap().stdout).unwrap().contains("API"), "who set it is shown");
    let whole = before + more;
    let usd = format!("{}.{:06}", whole / 1_000_000, whole % 1_000_000);
    assert!(budget(world, admin, &["set", "--total", &usd]).status.success());
    let id = world.api.submit(&body("long")).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["failure"]["kind"], "budget", "{run:#}");
    let usage = &run["usage"];
    assert_eq!(
        (&usage["calls"], &usage["estimated_calls"], &usage["input"]),
        (&json!(1), &json!(1), &json!(100))
    );
    let spent = usage["cost_micro_usd"].as_i64().unwrap();
    assert!(
        spent > more - 2 * output(SLICE_TOKENS) && spent <= more + output(SLICE_TOKENS),
        "{spent} of {more}"
    );
    let records = world.model_calls();
    assert_eq!(records.len(), calls + 1, "nothing was forwarded behind the cut");
    let last = records.last().unwrap();
    assert_eq!((last.outcome, last.usage_final), (Outcome::ClientGone, false));
    // What was counted was served, and what was served beyond it is what sockets hold.
    let counted = u64::try_from(usage["output"].as_i64().unwrap()).unwrap();
    testkit::words::assert_counted(last.bytes_served, counted);
    assert_eq!(shown(world).await["total"]["spent_micro_usd"], before + spent);
}

async fn a_budget_that_is_lowered_stops_a_living_run_at_its_next_call_and_the_settings_come_first(
    ground: Ground,
) {
    let Some(mut world) = world(ground, &[]).await else { return };
    let admin = admin(&world);
    let id = world.api.submit(&body("slow")).await.unwrap();
    world.inside_a_tool(&id, END).await.unwrap();
    let set = budget(&world, &admin, &["set", "--day", "0.000001"]);
    assert!(set.status.success(), "{set:?}");
    world.let_go(&id, "go").await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!((&run["failure"]["kind"], &run["usage"]["calls"]), (&json!("budget"), &json!(1)), "{run:#}");
    // It outlives the server; a setting takes its place, and nobody changes that over the API.
    world.server.terminate().await.unwrap();
    world.server = world.spec.start().await.unwrap();
    assert_eq!(shown(&world).await["day"]["budget_micro_usd"], 1);
    world.server.terminate().await.unwrap();
    world.spec.set("BUDGET__DAY_MICRO_USD", "5000000");
    world.server = world.spec.start().await.unwrap();
    let now = shown(&world).await;
    assert_eq!(
        (&now["day"]["budget_micro_usd"], &now["day"]["is_setting"]),
        (&json!(5_000_000), &json!(true))
    );
    // Set by the settings as well, it is in the chain of this server, whose head is signed.
    let audit = world.spec.command(&["audit", "export"]).output().unwrap();
    let records: Vec<Value> = String::from_utf8(audit.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let set: Vec<_> = records.iter().filter(|record| record["action"] == "project.budget").collect();
    assert_eq!(set.len(), 2, "{set:#?}");
    assert!(
        records.iter().all(|record| record["chain"] == records[0]["chain"] && record["chain"] != "local"),
        "{records:#?}"
    );
    let refused = budget(&world, &admin, &["set", "--day", "none"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("CAISSON_BUDGET__DAY_MICRO_USD"), "{said}");
    let run = world.api.submit(&body("short")).await.unwrap();
    assert_eq!(world.api.wait_end(&run, END).await.unwrap()["status"], "succeeded");
}
