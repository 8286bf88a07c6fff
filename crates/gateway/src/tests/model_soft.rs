//! Soft limits at the door, and that whatever an agent has seen of a reply is paid for.

use std::sync::Arc;

use caisson_domain::event::EventKind;
use caisson_domain::protocol::{InputBody, Inputs};
use caisson_domain::run::RunSpec;
use http::Method;
use tokio::sync::Notify;

use super::model_budget::{ASK, Ended, MESSAGES, ask, output, reply, spent, start};
use super::model_host::Piece;
use super::support::{Sandbox, eventually, run_spec};
use crate::bounds::BYTES_PER_TOKEN;

async fn steered(sandbox: &Sandbox) -> Vec<String> {
    let answer = sandbox.control(Method::GET, "/inputs?after=0", "").await;
    let inputs: Inputs = serde_json::from_slice(&answer.body).unwrap();
    let texts = inputs.items.into_iter().filter_map(|input| match input.body {
        InputBody::Steer { text } => Some(text),
        InputBody::Stop { .. }
        | InputBody::Queue { .. }
        | InputBody::Attached { .. }
        | InputBody::Interrupt { .. }
        | InputBody::Answer { .. } => None,
    });
    texts.collect()
}

#[tokio::test]
async fn an_agent_is_told_to_wrap_up_while_the_reply_still_comes_that_uses_its_share() {
    let (mut script, cost) = reply(10_000);
    let gate = Arc::new(Notify::new());
    // Behind its third slice.
    script.pieces.insert(86, Piece::Gate(Arc::clone(&gate)));
    let (world, _host) = start(script, |setup| setup.bounds.long_poll = std::time::Duration::ZERO).await;
    let budget = 2 * cost;
    let spec = RunSpec {
        budget_micro_usd: Some(u32::try_from(budget).unwrap()),
        budget_soft_percent: Some(40),
        ..run_spec(None)
    };
    let sandbox = world.sandbox(spec).await;
    eventually(|| async { sandbox.socket.exists().then_some(()) }).await;
    let watching = async {
        let texts =
            eventually(|| async { Some(steered(&sandbox).await).filter(|texts| !texts.is_empty()) }).await;
        let (settled, held) = spent(&world).await;
        assert!(settled == 0 && held > 0, "the call is under way: {settled}, {held}");
        gate.notify_one();
        texts
    };
    let (ended, texts) = tokio::join!(ask(&sandbox, ASK), watching);
    assert_eq!(ended, Ended::Whole);
    assert!(texts[0].contains("of this task's budget are left"), "{texts:?}");
    gate.notify_one();
    assert_eq!(ask(&sandbox, ASK).await, Ended::Whole, "it may use the rest");
    assert_eq!(steered(&sandbox).await.len(), 1, "it is told once");
    let told = world.events(&sandbox.run.id, EventKind::RunBudgetSoft).await;
    assert_eq!(told.len(), 1);
    let come_to = told[0]["under_way_micro_usd"].as_i64().unwrap();
    assert!((output(8_000)..output(9_000)).contains(&come_to), "what is held does not count: {come_to}");
    world.stop().await;
}

#[tokio::test]
async fn what_an_agent_has_seen_of_a_reply_that_was_cut_is_counted() {
    let (script, _) = reply(20_000);
    let (world, host) = start(script, |_| {}).await;
    let budget = u32::try_from(output(7_000)).unwrap();
    let sandbox = world.sandbox(RunSpec { budget_micro_usd: Some(budget), ..run_spec(None) }).await;
    eventually(|| async { sandbox.socket.exists().then_some(()) }).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    let mut response = request.send().await.unwrap();
    let mut seen = Vec::new();
    let cut = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => seen.extend_from_slice(&chunk),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    // The words around the text have such a letter alone.
    let letters = seen.chunk_by(|one, next| one == next).filter(|same| same[0] == b'x' && same.len() > 1);
    let letters: usize = letters.map(<[u8]>::len).sum();
    assert!(cut && letters > 5_000 * BYTES_PER_TOKEN, "{letters} letters");
    eventually(|| async { (spent(&world).await.1 == 0).then_some(()) }).await;
    let usage = world.run(&sandbox.run.id).await.usage;
    let seen = i64::try_from(letters / BYTES_PER_TOKEN).unwrap();
    assert!(usage.tokens.output >= seen, "{} counted, {seen} seen", usage.tokens.output);
    assert_eq!((usage.calls, usage.estimated_calls, usage.tokens.input), (1, 1, 100));
    assert_eq!(host.seen().len(), 1);
    world.stop().await;
}
