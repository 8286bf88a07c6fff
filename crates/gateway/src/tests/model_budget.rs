//! Budgets at the door: parallel calls, replies that are cut where their budget ends, and what is counted of them.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::budget::ProjectBudgets;
use caisson_domain::event::EventKind;
use caisson_domain::id::ProjectId;
use caisson_domain::run::{FailureKind, RunSpec};
use caisson_domain::usage::{PriceTable, TokenCounts};
use http::Method;
use tokio::task::JoinSet;

use super::model_host::{END, ModelHost, Piece, START, Script, piece};
use super::support::{OK, Sandbox, Setup, World, eventually, run_spec};
use crate::bounds::{BYTES_PER_TOKEN, OUTPUT_LAST_TOKENS, OUTPUT_SLICE_TOKENS};

pub(super) const MESSAGES: &str = "/model/v1/messages";
const MODEL: &str = "claude-opus-5-5";
pub(super) const ASK: &str = r#"{"model":"claude-opus-5-5","stream":true,"max_tokens":64000}"#;

/// One event with so many tokens of text.
fn text(tokens: i64) -> Piece {
    let letters = "x".repeat(usize::try_from(tokens).unwrap() * BYTES_PER_TOKEN);
    piece(&format!(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
         \"delta\":{{\"type\":\"text_delta\",\"text\":\"{letters}\"}}}}\n\n"
    ))
}

/// A reply of so many tokens, an event for each hundred, and what it costs in micro-USD.
pub(super) fn reply(tokens: i64) -> (Script, i64) {
    let mut pieces = vec![piece(START)];
    pieces.extend((0..tokens / 100).map(|_| text(100)));
    pieces.push(piece(&END.replace("50}", &format!("{tokens}}}"))));
    let counts = TokenCounts { input: 100, output: tokens, cache_read: 40, ..TokenCounts::default() };
    (Script::stream(pieces), PriceTable::shipped().cost_micro_usd(MODEL, &counts))
}

/// What so much output costs, in micro-USD.
pub(super) fn output(tokens: i64) -> i64 {
    let counts = TokenCounts { output: tokens, ..TokenCounts::default() };
    PriceTable::shipped().cost_micro_usd(MODEL, &counts)
}

pub(super) async fn start(script: Script, change: impl FnOnce(&mut Setup)) -> (World, ModelHost) {
    let host = ModelHost::start(script).await;
    let world = World::new().await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    setup.bounds.extend_hold = Duration::from_millis(100);
    change(&mut setup);
    world.start(setup).await;
    (world, host)
}

/// A sandbox whose door is open.
async fn sandbox(world: &World, budget_micro_usd: Option<i64>) -> Sandbox {
    let budget_micro_usd = budget_micro_usd.map(|micro| u32::try_from(micro).unwrap());
    let sandbox = world.sandbox(RunSpec { budget_micro_usd, ..run_spec(None) }).await;
    eventually(|| async { sandbox.socket.exists().then_some(()) }).await;
    sandbox
}

async fn project_budget(world: &World, total_micro_usd: i64) {
    let budgets = ProjectBudgets { total_micro_usd: Some(total_micro_usd), day_micro_usd: None };
    assert!(world.store.set_budgets(&ProjectId::default_project(), &budgets).await.unwrap());
}

pub(super) async fn spent(world: &World) -> (i64, i64) {
    let spending = world.store.project_spending(&ProjectId::default_project()).await.unwrap().unwrap();
    (spending.spent_micro_usd, spending.reserved_micro_usd)
}

/// How a call ended for the agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Whole,
    Cut,
    Refused(String),
}

pub(super) async fn ask(sandbox: &Sandbox, body: &'static str) -> Ended {
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(body);
    let response = request.send().await.unwrap();
    match response.status().as_u16() {
        OK => match response.text().await {
            Ok(text) if text.contains("message_stop") => Ended::Whole,
            Ok(text) => panic!("neither whole nor cut: {text}"),
            Err(_) => Ended::Cut,
        },
        429 => {
            assert_eq!(response.headers()["retry-after"], "3600");
            Ended::Refused(response.text().await.unwrap())
        }
        other => panic!("{other}: {}", response.text().await.unwrap()),
    }
}

async fn failure(world: &World, sandbox: &Sandbox) -> Option<FailureKind> {
    let progress = world.store.progress(&sandbox.run.id, sandbox.epoch).await.unwrap().unwrap();
    progress.model_failure.map(|failure| failure.kind)
}

/// Twenty sandboxes that call at once, and how each call ended.
async fn twenty(world: &World) -> Vec<(Sandbox, Ended)> {
    let mut sandboxes = Vec::new();
    for _ in 0..20 {
        sandboxes.push(sandbox(world, None).await);
    }
    let mut calls = JoinSet::new();
    for sandbox in sandboxes {
        calls.spawn(async move {
            let ended = ask(&sandbox, ASK).await;
            (sandbox, ended)
        });
    }
    calls.join_all().await
}

/// What is spent once nothing is held any more.
async fn counted(world: &World) -> i64 {
    eventually(|| async { Some(spent(world).await).filter(|(_, held)| *held == 0) }).await.0
}

/// Each run has what its own call came to, and all of them together what is spent.
async fn check_runs(world: &World, ended: &[(Sandbox, Ended)], counted: i64) {
    let mut sum = 0;
    for (sandbox, ended) in ended {
        let (calls, estimated, kind) = match ended {
            Ended::Whole => (1, 0, None),
            Ended::Cut => (1, 1, Some(FailureKind::Budget)),
            Ended::Refused(text) => {
                assert!(text.contains("budget: the project's budget of "), "{text}");
                (0, 0, Some(FailureKind::Budget))
            }
        };
        eventually(|| async { (failure(world, sandbox).await == kind).then_some(()) }).await;
        let usage = world.run(&sandbox.run.id).await.usage;
        assert_eq!((usage.calls, usage.estimated_calls), (calls, estimated), "{ended:?}");
        sum += usage.cost_micro_usd;
    }
    assert_eq!(sum, counted);
}

#[tokio::test]
async fn of_twenty_parallel_runs_against_a_budget_for_ten_the_ten_that_fit_finish() {
    let (script, cost) = reply(3_000);
    let (world, host) = start(script, |_| {}).await;
    project_budget(&world, 10 * cost + output(OUTPUT_LAST_TOKENS)).await;
    let ended = twenty(&world).await;
    let of = |wanted: fn(&Ended) -> bool| ended.iter().filter(|(_, ended)| wanted(ended)).count();
    assert_eq!(
        of(|ended| *ended == Ended::Whole),
        10,
        "{ended:?}",
        ended = ended.iter().map(|(_, e)| e).collect::<Vec<_>>()
    );
    assert_eq!(of(|ended| matches!(ended, Ended::Refused(_))), 10);
    assert_eq!(counted(&world).await, 10 * cost, "what was served is counted to the last token");
    assert_eq!(host.seen().len(), 10, "what was refused was never forwarded");
    check_runs(&world, &ended, 10 * cost).await;
    world.stop().await;
}

#[tokio::test]
async fn parallel_replies_that_run_into_their_budget_overshoot_it_by_less_than_a_slice_each() {
    let (script, cost) = reply(20_000);
    let (world, _host) = start(script, |setup| setup.bounds.budget_hold = Duration::from_millis(300)).await;
    let budget = 5 * cost;
    project_budget(&world, budget).await;
    let ended = twenty(&world).await;
    let counted = counted(&world).await;
    let cut = ended.iter().filter(|(_, ended)| *ended == Ended::Cut).count();
    assert!(cut > 0, "none was cut, {counted} of {budget}");
    // What was on its way when a reply was cut.
    let over = i64::try_from(cut).unwrap() * output(OUTPUT_SLICE_TOKENS);
    assert!(counted <= budget + over, "spent {counted} of {budget}, {cut} cut");
    assert!(counted > budget - output(2 * OUTPUT_SLICE_TOKENS), "spent {counted} of {budget}");
    check_runs(&world, &ended, counted).await;
    world.stop().await;
}

#[tokio::test]
async fn a_reply_is_cut_where_its_budget_ends_and_the_next_call_is_refused() {
    let (mut script, _) = reply(20_000);
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    // Ten thousand tokens, then a little at a time.
    for number in 0..60 {
        script.pieces.insert(101 + 2 * number, Piece::Gate(std::sync::Arc::clone(&gate)));
    }
    let (world, host) = start(script, |_| {}).await;
    let budget = output(12_050);
    let sandbox = sandbox(&world, Some(budget)).await;
    let opening = async {
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            gate.notify_one();
        }
    };
    tokio::select! {
        ended = ask(&sandbox, ASK) => assert_eq!(ended, Ended::Cut),
        () = opening => {}
    }
    let counted = counted(&world).await;
    // The input is paid for as well, and a piece holds a hundred tokens.
    assert!(counted > budget - output(300) && counted <= budget + output(200), "{counted} of {budget}");
    let usage = world.run(&sandbox.run.id).await.usage;
    assert_eq!((usage.estimated_calls, usage.tokens.input, usage.tokens.cache_read), (1, 100, 40));
    let Ended::Refused(text) = ask(&sandbox, ASK).await else { panic!("it had room for more") };
    assert!(text.contains("budget: the run's budget of 0.241000 USD is used up"), "{text}");
    assert_eq!(host.seen().len(), 1);
    assert_eq!(failure(&world, &sandbox).await, Some(FailureKind::Budget));
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert_eq!((denied.len(), &denied[0]["rule"], &denied[0]["scope"]), (2, &"budget".into(), &"run".into()));
    world.stop().await;
}

#[tokio::test]
async fn a_call_waits_for_its_share_while_another_one_holds_it() {
    let (mut script, cost) = reply(500);
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    script.pieces.insert(1, Piece::Gate(std::sync::Arc::clone(&gate)));
    let (world, host) = start(script, |_| {}).await;
    let (one, other) = (sandbox(&world, None).await, sandbox(&world, None).await);
    // Room for the first call to hold its share and for both to be paid, not for both to hold theirs at once.
    project_budget(&world, output(OUTPUT_SLICE_TOKENS) + cost + 1_000).await;
    let both = async { tokio::join!(ask(&one, ASK), ask(&other, ASK)) };
    let open = async {
        eventually(|| async { (host.seen().len() == 1).then_some(()) }).await;
        gate.notify_one();
        eventually(|| async { (host.seen().len() == 2).then_some(()) }).await;
        gate.notify_one();
    };
    let (ended, ()) = tokio::join!(both, open);
    assert_eq!(ended, (Ended::Whole, Ended::Whole));
    assert_eq!(spent(&world).await, (2 * cost, 0));
    world.stop().await;
}

#[tokio::test]
async fn a_share_that_is_never_given_back_is_waited_for_within_its_bound() {
    let (mut script, _) = reply(500);
    script.pieces.insert(1, Piece::Silence);
    let (world, _host) = start(script, |setup| {
        setup.bounds.budget_hold = Duration::from_millis(100);
        setup.bounds.grace = Duration::from_millis(50);
    })
    .await;
    let (one, other) = (sandbox(&world, None).await, sandbox(&world, None).await);
    project_budget(&world, output(OUTPUT_SLICE_TOKENS) + output(OUTPUT_LAST_TOKENS) / 2).await;
    let held = tokio::select! {
        ended = ask(&one, ASK) => panic!("it never ends: {ended:?}"),
        held = eventually(|| async { Some(spent(&world).await.1).filter(|held| *held > 0) }) => held,
    };
    assert!(held >= output(OUTPUT_SLICE_TOKENS));
    assert!(matches!(ask(&other, ASK).await, Ended::Refused(_)));
    world.stop().await;
}

#[tokio::test]
async fn a_reply_that_cannot_be_cut_is_reserved_whole() {
    let (script, _) = reply(500);
    let (world, host) = start(script, |_| {}).await;
    let sandbox = sandbox(&world, Some(output(63_000))).await;
    let whole = r#"{"model":"claude-opus-5-5","stream":false,"max_tokens":64000}"#;
    assert!(matches!(ask(&sandbox, whole).await, Ended::Refused(_)));
    // To a reader who takes it for a number it is the same request.
    let odd = r#"{"model":"claude-opus-5-5","stream":false,"max_tokens":64000.0}"#;
    assert!(matches!(ask(&sandbox, odd).await, Ended::Refused(_)));
    assert!(host.seen().is_empty());
    let small = r#"{"model":"claude-opus-5-5","stream":false,"max_tokens":60000}"#;
    assert_eq!(ask(&sandbox, small).await, Ended::Whole);
    world.stop().await;
}

#[tokio::test]
async fn counting_tokens_needs_no_budget() {
    let (world, _host) = start(Script::json(200, "{}"), |_| {}).await;
    let sandbox = sandbox(&world, Some(1)).await;
    assert_eq!(sandbox.agent(Method::POST, "/model/v1/messages/count_tokens", ASK).await.status, OK);
    assert!(matches!(ask(&sandbox, ASK).await, Ended::Refused(_)));
    world.stop().await;
}

#[tokio::test]
async fn a_long_reply_without_a_budget_leaves_an_estimate_that_is_not_far_behind() {
    let (mut script, _) = reply(9_000);
    script.pieces.insert(61, Piece::Silence);
    let (world, _host) = start(script, |setup| {
        setup.bounds.grace = Duration::from_millis(50);
        setup.bounds.note_every = Duration::ZERO;
    })
    .await;
    let sandbox = sandbox(&world, None).await;
    let mut response =
        sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK).send().await.unwrap();
    let mut bytes = 0;
    while bytes < 6_000 * BYTES_PER_TOKEN {
        bytes += response.chunk().await.unwrap().unwrap().len();
    }
    // What a server that dies now would leave behind; the same is settled with when the run ends.
    let finish =
        caisson_store::Finish { status: caisson_domain::run::RunStatus::Failed, failure: None, result: None };
    assert!(world.store.finish(&sandbox.run.id, sandbox.epoch, &finish).await.unwrap());
    let usage = world.run(&sandbox.run.id).await.usage;
    assert!((6_000..=10_000).contains(&usage.tokens.output), "{usage:?}");
    assert_eq!((usage.tokens.input, usage.tokens.cache_read, usage.estimated_calls), (100, 40, 1));
    world.stop().await;
}

#[tokio::test]
async fn a_reply_that_still_comes_when_its_run_ends_is_cut() {
    // So long that it needs another share behind the gate.
    let (mut script, _) = reply(20_000);
    let gate = Arc::new(tokio::sync::Notify::new());
    script.pieces.insert(61, Piece::Gate(Arc::clone(&gate)));
    // It does not end by itself.
    let last = script.pieces.len() - 1;
    script.pieces.insert(last, Piece::Silence);
    let (world, _host) = start(script, |setup| setup.bounds.note_every = Duration::ZERO).await;
    let sandbox = sandbox(&world, None).await;
    let mut response =
        sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK).send().await.unwrap();
    let mut bytes = 0;
    while bytes < 6_000 * BYTES_PER_TOKEN {
        bytes += response.chunk().await.unwrap().unwrap().len();
    }
    let finish = caisson_store::Finish {
        status: caisson_domain::run::RunStatus::Succeeded,
        failure: None,
        result: None,
    };
    assert!(world.store.finish(&sandbox.run.id, sandbox.epoch, &finish).await.unwrap());
    let counted = world.run(&sandbox.run.id).await.usage;
    gate.notify_one();
    let rest = async {
        while response.chunk().await?.is_some() {}
        Ok::<_, reqwest::Error>(())
    };
    let end = tokio::time::timeout(Duration::from_secs(20), rest).await.expect("it ends");
    assert!(end.is_err(), "nobody takes it for whole");
    assert_eq!(world.run(&sandbox.run.id).await.usage, counted);
    world.stop().await;
}
