//! What a reply costs beside its tokens at the top: passes that it lists, models and speeds without a price.

use std::sync::Arc;

use caisson_domain::event::EventKind;
use caisson_domain::provider::ProviderTool;
use caisson_domain::run::RunSpec;
use caisson_domain::usage::{PriceTable, TokenCounts};
use http::Method;
use tokio::sync::Notify;

use super::model_budget::{MESSAGES, spent, start};
use super::model_host::{END, Piece, START, Script, TEXT, piece};
use super::support::{OK, Sandbox, World, eventually, run_spec};
use crate::bounds::{BYTES_PER_TOKEN, OUTPUT_ESTIMATE_TOKENS, OUTPUT_SLICE_TOKENS};

const OPUS: &str = "claude-opus-5-5";
const COMPACTING: &str = r#"{"model":"claude-opus-5-5","stream":true,"max_tokens":64000,
    "context_management":{"edits":[{"type":"compact_20260112"}]}}"#;
/// A message of 100, 40 cached and 50 tokens, as its top level has it too, after the conversation was summed up.
const PASSES: &str = concat!(
    r#""iterations":[{"type":"compaction","input_tokens":180000,"output_tokens":3500},"#,
    r#"{"type":"message","input_tokens":100,"output_tokens":50,"cache_read_input_tokens":40}]"#
);

fn passes() -> TokenCounts {
    TokenCounts { input: 180_100, output: 3_550, cache_read: 40, ..TokenCounts::default() }
}

fn cost(model: &str, tokens: TokenCounts) -> i64 {
    PriceTable::shipped().cost_micro_usd(model, &tokens)
}

fn streamed() -> Script {
    let end = END.replace("{\"output_tokens\":50}", &format!("{{\"output_tokens\":50,{PASSES}}}"));
    Script::stream(vec![piece(START), piece(TEXT), piece(&end)])
}

fn whole() -> Script {
    let usage = format!(r#"{{"input_tokens":100,"output_tokens":50,"cache_read_input_tokens":40,{PASSES}}}"#);
    Script::json(200, &format!(r#"{{"type":"message","model":"claude-opus-5-5","usage":{usage}}}"#))
}

async fn sandbox(world: &World, budget_micro_usd: Option<u32>) -> Sandbox {
    let sandbox = world.sandbox(RunSpec { budget_micro_usd, ..run_spec(None) }).await;
    eventually(|| async { sandbox.socket.exists().then_some(()) }).await;
    sandbox
}

#[tokio::test]
async fn what_a_reply_bills_pass_by_pass_is_counted_streamed_or_not() {
    for script in [streamed(), whole()] {
        let (world, _host) = start(script, |_| {}).await;
        let sandbox = sandbox(&world, None).await;
        assert_eq!(sandbox.agent(Method::POST, MESSAGES, COMPACTING).await.status, OK);
        let usage = world.run(&sandbox.run.id).await.usage;
        assert_eq!((usage.calls, usage.estimated_calls, usage.tokens), (1, 0, passes()));
        assert_eq!(usage.cost_micro_usd, cost(OPUS, passes()));
        world.stop().await;
    }
}

#[tokio::test]
async fn a_run_cannot_have_its_conversation_summed_up_for_nothing() {
    let (world, host) = start(streamed(), |_| {}).await;
    let sandbox = sandbox(&world, Some(1_000_000)).await;
    let mut calls = 0;
    while sandbox.agent(Method::POST, MESSAGES, COMPACTING).await.status == OK {
        calls += 1;
        assert!(calls < 10, "it goes on and on");
    }
    assert_eq!((calls, host.seen().len()), (2, 2));
    assert_eq!(spent(&world).await, (2 * cost(OPUS, passes()), 0));
    world.stop().await;
}

/// What such a call holds before its reply, once it has begun, and what it counts as when the reply is cut then.
async fn held_and_counted(body: &str) -> ([i64; 2], TokenCounts) {
    let gate = Arc::new(Notify::new());
    let mut pieces = Vec::new();
    for piece in [piece(START), piece(TEXT), Piece::Cut] {
        pieces.extend([Piece::Gate(Arc::clone(&gate)), piece]);
    }
    let script = Script::stream(pieces);
    let (world, host) = start(script, |setup| {
        setup.model.provider_tools = vec![ProviderTool::WebSearch];
    })
    .await;
    let sandbox = sandbox(&world, Some(4_000_000)).await;
    let asked = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(body.to_owned()).send();
    let look = async {
        eventually(|| async { (host.seen().len() == 1).then_some(()) }).await;
        let before = spent(&world).await.1;
        gate.notify_one();
        before
    };
    let (reply, before) = tokio::join!(asked, look);
    let mut reply = reply.unwrap();
    // A piece is read once what is held was put right by the one before.
    let (mut bytes, mut after) = (0, 0);
    for until in [START.len(), START.len() + TEXT.len()] {
        while bytes < until {
            bytes += reply.chunk().await.unwrap().unwrap().len();
        }
        after = spent(&world).await.1;
        gate.notify_one();
    }
    while let Ok(Some(_)) = reply.chunk().await {}
    eventually(|| async { (spent(&world).await.1 == 0).then_some(()) }).await;
    let usage = world.run(&sandbox.run.id).await.usage;
    assert_eq!((usage.calls, usage.estimated_calls), (1, 1));
    world.stop().await;
    ([before, after], usage.tokens)
}

#[tokio::test]
async fn a_call_whose_end_alone_tells_all_holds_its_input_twice_until_then_and_counts_so_where_it_is_cut() {
    let told =
        TokenCounts { input: 100, output: OUTPUT_ESTIMATE_TOKENS, cache_read: 40, ..TokenCounts::default() };
    let input = |body: &str| i64::try_from(body.len().div_ceil(BYTES_PER_TOKEN)).unwrap();
    let held =
        |input: i64| cost(OPUS, TokenCounts { input, output: OUTPUT_SLICE_TOKENS, ..TokenCounts::default() });
    let search = r#"{"model":"claude-opus-5-5","stream":true,"tools":[{"type":"web_search_20250305"}]}"#;
    // So long that it costs more than the reply tells of.
    let long = |body: &str| format!(r#"{{"system":"{}",{}"#, "x".repeat(4_000), &body[1..]);
    for body in [COMPACTING, search].map(long) {
        let (holds, counted) = held_and_counted(&body).await;
        assert_eq!(holds, [held(2 * input(&body)); 2], "{body}");
        assert_eq!(counted, TokenCounts { input: told.input + input(&body), ..told }, "{body}");
    }
    let plain =
        r#"{"model":"claude-opus-5-5","stream":true,"context_management":{"edits":[{"type":"clear_x"}]}}"#;
    let plain = &long(plain);
    let (holds, counted) = held_and_counted(plain).await;
    let put_right = cost(OPUS, TokenCounts { output: OUTPUT_SLICE_TOKENS, ..told });
    assert_eq!((holds, counted), ([held(input(plain)), put_right], told));
}

#[tokio::test]
async fn what_the_price_list_has_no_price_for_is_told_as_an_estimate_and_never_as_cheaper() {
    let reply = |model: &str, more: &str| {
        let usage = format!(r#"{{"input_tokens":1000,"output_tokens":1000{more}}}"#);
        Script::json(200, &format!(r#"{{"model":"{model}","usage":{usage}}}"#))
    };
    let ask = |more: &str| format!(r#"{{"model":"claude-opus-5-5","max_tokens":2000{more}}}"#);
    let tokens = TokenCounts { input: 1000, output: 1000, ..TokenCounts::default() };
    for (body, script, model, estimated) in [
        (ask(""), reply(OPUS, r#","speed":"standard","inference_geo":"global""#), OPUS, 0),
        (ask(r#","speed":"fast""#), reply(OPUS, ""), OPUS, 1),
        (ask(r#","inference_geo":"us""#), reply(OPUS, ""), OPUS, 1),
        (ask(""), reply(OPUS, r#","speed":"fast""#), OPUS, 1),
        (ask(""), reply(OPUS, r#","inference_geo":"us""#), OPUS, 1),
        (ask(""), reply("claude-of-tomorrow", ""), "claude-fable-5-2", 1),
    ] {
        let (world, _host) = start(script, |_| {}).await;
        let sandbox = sandbox(&world, None).await;
        assert_eq!(sandbox.agent(Method::POST, MESSAGES, body.clone()).await.status, OK);
        let usage = world.run(&sandbox.run.id).await.usage;
        assert_eq!((usage.estimated_calls, usage.tokens), (estimated, tokens), "{body}");
        assert_eq!(usage.cost_micro_usd, cost(model, tokens), "{body}");
        let calls = world.events(&sandbox.run.id, EventKind::ModelCall).await;
        assert_eq!(calls[0]["estimated"], estimated == 1, "{body}");
        world.stop().await;
    }
}
