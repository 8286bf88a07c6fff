//! Approvals: kept for whoever asks, answered once, by somebody or by the clock.

use caisson_domain::approval::{
    APPROVAL_REFUSALS, APPROVALS_WAITING, Answer, ApprovalState, ApprovalsBlock, DefaultAnswer, RUN_APPROVALS,
};
use caisson_domain::event::EventKind;
use caisson_domain::id::{ApiKeyId, ApprovalId, RunId};
use caisson_domain::json::JSON_DEPTH;
use caisson_domain::principal::Scope;
use caisson_domain::protocol::InputBody;
use caisson_domain::run::{RunSpec, RunStatus, Waiting};
use caisson_store::{AnswerApproval, Answered, Approval, Finish, JournalEffect, NewApproval, Topic};
use serde_json::json;

use crate::fixture::{Fixture, Placed, START_MS, entry, project, spec, woken};

conformance! {
    an_approval_waits_is_answered_once_and_told,
    a_run_whose_workflow_does_not_ask_keeps_nothing_that_its_sandbox_asks,
    nobody_answers_and_the_clock_of_the_store_does,
    a_withdrawn_approval_and_one_of_an_ended_run_take_no_answer,
    so_many_approvals_wait_and_so_many_are_kept,
    what_is_not_kept_is_denied_at_once_for_its_shim_waits,
    so_many_that_are_not_kept_are_denied,
    what_waits_is_not_replaced_by_another_request_of_its_name,
    another_project_answers_nothing,
    a_list_of_long_approvals_ends_at_its_bytes_and_goes_on_behind_them,
    what_is_asked_that_readers_cannot_read_is_a_text,
    what_is_asked_with_a_character_that_no_database_holds_is_kept_without_it,
}

async fn key(fixture: &Fixture) -> ApiKeyId {
    fixture.store.create_api_key(&project(), "k", &[Scope::Admin]).await.unwrap().0
}

/// A placed run whose workflow asks.
async fn asking(fixture: &Fixture, block: ApprovalsBlock, number: u8) -> Placed {
    let mut spec: RunSpec = spec();
    spec.workflow.caisson.approvals = Some(block);
    fixture.created(spec).await;
    let claimed = fixture.claim().await;
    fixture.place(claimed, number).await
}

fn asked(request: &str) -> JournalEffect {
    JournalEffect::Asked(NewApproval {
        request: request.to_owned(),
        tool: "Write".to_owned(),
        description: Some("a.txt".to_owned()),
        input: json!({ "file_path": "a.txt" }).to_string(),
        cut_bytes: 0,
    })
}

async fn all(fixture: &Fixture, run: &RunId) -> Vec<Approval> {
    fixture.store.approvals(&project(), (run, None), usize::MAX).await.unwrap().unwrap().items
}

async fn waiting(fixture: &Fixture, run: &RunId) -> Option<Waiting> {
    fixture.run(run).await.waiting
}

/// The answers that the sandbox is given.
async fn given(fixture: &Fixture, placed: &Placed) -> Vec<(String, Answer)> {
    let inputs = fixture.store.inputs_after(&placed.sandbox, 0).await.unwrap();
    let answers = inputs.into_iter().filter_map(|input| match input.body {
        InputBody::Answer { request, answer } => Some((request, answer)),
        InputBody::Stop { .. }
        | InputBody::Steer { .. }
        | InputBody::Queue { .. }
        | InputBody::Attached { .. }
        | InputBody::Interrupt { .. } => None,
    });
    answers.collect()
}

async fn an_approval_waits_is_answered_once_and_told(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let run = &placed.run.id;
    fixture.journal(&placed, asked("r1")).await;
    fixture.journal(&placed, asked("r1")).await;
    fixture.journal(&placed, asked("r2")).await;
    let approvals = all(&fixture, run).await;
    assert_eq!(approvals.len(), 2, "asked again, it is the same");
    assert_eq!(approvals[0].input().get(), json!({ "file_path": "a.txt" }).to_string());
    assert_eq!(approvals[0].expires_at_ms, START_MS + 15 * 60 * 1000);
    assert_eq!(waiting(&fixture, run).await, Some(Waiting::Approval));
    let progress = fixture.store.progress(run, placed.epoch).await.unwrap().unwrap();
    assert_eq!(progress.approval_expires_at_ms, Some(START_MS + 15 * 60 * 1000));

    let id = |request| ApprovalId::of(run, request);
    let changed = Answer::Allow { input: json!({ "file_path": "b.txt" }).as_object().cloned() };
    let answered = fixture.store.answer_approval(&project(), (run, &id("r1")), &changed, &by).await.unwrap();
    let AnswerApproval::Answered(answered) = answered else { panic!("{answered:?}") };
    let kept = Answered::Allow { input: Some(json!({ "file_path": "b.txt" }).to_string()) };
    assert_eq!((answered.state, answered.answer.clone()), (ApprovalState::Allowed, Some(kept)));
    assert_eq!(answered.decided_by.as_deref(), Some(by.as_str()));
    assert_eq!(waiting(&fixture, run).await, Some(Waiting::Approval), "the other one waits");
    let no = Answer::Deny { message: "no".to_owned() };
    let over = fixture.store.answer_approval(&project(), (run, &id("r1")), &no, &by).await.unwrap();
    assert_eq!(over, AnswerApproval::Over(answered), "the first answer counts");
    fixture.store.answer_approval(&project(), (run, &id("r2")), &no, &by).await.unwrap();
    assert_eq!(waiting(&fixture, run).await, None);
    assert_eq!(given(&fixture, &placed).await, [("r1".to_owned(), changed), ("r2".to_owned(), no)]);
    let told = fixture.kinds(run).await.iter().filter(|kind| **kind == EventKind::ApprovalAnswered).count();
    let audited: i64 = fixture
        .value("select count(*) from audit where action in ('approval.allow', 'approval.deny') and subject like 'apv_%'")
        .await;
    assert_eq!((told, audited), (2, 2));
    assert!(
        fixture.store.inputs(&project(), run).await.unwrap().unwrap().is_empty(),
        "answers are no inputs"
    );
}

async fn a_run_whose_workflow_does_not_ask_keeps_nothing_that_its_sandbox_asks(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.journal(&placed, asked("r1")).await;
    assert!(all(&fixture, &placed.run.id).await.is_empty());
    assert_eq!(waiting(&fixture, &placed.run.id).await, None);
    assert!(given(&fixture, &placed).await.is_empty(), "its shim waits for nothing");
}

async fn nobody_answers_and_the_clock_of_the_store_does(fixture: Fixture) {
    let block = |default| ApprovalsBlock { expires_s: 60, default, ..ApprovalsBlock::default() };
    let placed = asking(&fixture, block(DefaultAnswer::Deny), 1).await;
    let run = &placed.run.id;
    fixture.journal(&placed, asked("r1")).await;
    fixture.clock.advance(59_999);
    assert!(fixture.store.expire_approvals(run, placed.epoch).await.unwrap());
    assert_eq!(all(&fixture, run).await[0].state, ApprovalState::Waiting);
    fixture.clock.advance(1);
    assert!(fixture.store.expire_approvals(run, placed.epoch).await.unwrap());
    assert!(fixture.store.expire_approvals(run, placed.epoch).await.unwrap(), "once more changes nothing");
    let expired = all(&fixture, run).await.remove(0);
    assert_eq!((expired.state, expired.decided_by), (ApprovalState::Expired, None));
    assert_eq!(waiting(&fixture, run).await, None);
    let (request, answer) = given(&fixture, &placed).await.remove(0);
    let Answer::Deny { message } = answer else { panic!("not denied") };
    assert!(request == "r1" && message.contains("within 60 s"), "{message}");
    let told = fixture.data(run, EventKind::ApprovalAnswered).await;
    assert_eq!((&told["state"], &told["decision"]), (&json!("expired"), &json!("deny")));
    let by = key(&fixture).await;
    let late = (run, &ApprovalId::of(run, "r1"));
    let over = fixture.store.answer_approval(&project(), late, &Answer::Allow { input: None }, &by).await;
    assert!(matches!(over.unwrap(), AnswerApproval::Over(_)));
    assert!(!fixture.store.expire_approvals(run, placed.epoch.with_number(99)).await.unwrap(), "fenced");
    let placed = asking(&fixture, block(DefaultAnswer::Allow), 2).await;
    fixture.journal(&placed, asked("r1")).await;
    fixture.clock.advance(60_000);
    fixture.store.expire_approvals(&placed.run.id, placed.epoch).await.unwrap();
    assert_eq!(given(&fixture, &placed).await, [("r1".to_owned(), Answer::Allow { input: None })]);
}

async fn a_withdrawn_approval_and_one_of_an_ended_run_take_no_answer(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let run = &placed.run.id;
    fixture.journal(&placed, asked("r1")).await;
    fixture.journal(&placed, JournalEffect::AskedNoMore { request: "r1".to_owned() }).await;
    assert_eq!(waiting(&fixture, run).await, None);
    fixture.journal(&placed, asked("r2")).await;
    let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
    assert!(fixture.store.finish(run, placed.epoch, &finish).await.unwrap());
    let yes = Answer::Allow { input: None };
    for request in ["r1", "r2"] {
        let id = ApprovalId::of(run, request);
        let over = fixture.store.answer_approval(&project(), (run, &id), &yes, &by).await.unwrap();
        let AnswerApproval::Over(approval) = over else { panic!("{over:?}") };
        assert_eq!(approval.state, ApprovalState::Withdrawn, "{request}");
    }
    assert_eq!(fixture.value::<i64>("select count(*) from input").await, 0);
    let unknown = ApprovalId::of(run, "r3");
    let answer = fixture.store.answer_approval(&project(), (run, &unknown), &yes, &by).await.unwrap();
    assert_eq!(answer, AnswerApproval::Unknown);
}

async fn so_many_approvals_wait_and_so_many_are_kept(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let run = &placed.run.id;
    for number in 0..=APPROVALS_WAITING {
        fixture.journal(&placed, asked(&number.to_string())).await;
    }
    assert_eq!(all(&fixture, run).await.len(), APPROVALS_WAITING);
    for number in 0..APPROVALS_WAITING {
        let id = ApprovalId::of(run, &number.to_string());
        fixture
            .store
            .answer_approval(&project(), (run, &id), &Answer::Allow { input: None }, &by)
            .await
            .unwrap();
    }
    for number in APPROVALS_WAITING + 1..=RUN_APPROVALS + 1 {
        fixture.journal(&placed, asked(&number.to_string())).await;
        fixture.journal(&placed, JournalEffect::AskedNoMore { request: number.to_string() }).await;
    }
    assert_eq!(all(&fixture, run).await.len(), RUN_APPROVALS);
}

async fn what_is_not_kept_is_denied_at_once_for_its_shim_waits(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let run = &placed.run.id;
    fixture.journal(&placed, asked("r1")).await;
    let yes = Answer::Allow { input: None };
    let id = ApprovalId::of(run, "r1");
    fixture.store.answer_approval(&project(), (run, &id), &yes, &by).await.unwrap();
    fixture.journal(&placed, asked("r2")).await;
    fixture.journal(&placed, JournalEffect::AskedNoMore { request: "r2".to_owned() }).await;
    let mut watch = fixture.store.watch(Topic::Sandbox(placed.sandbox.clone()));
    fixture.journal(&placed, asked("r1")).await;
    assert!(woken(&mut watch), "its sandbox is told at once");
    fixture.journal(&placed, asked("r2")).await;
    fixture.journal(&placed, asked("r2")).await;
    for number in 0..=APPROVALS_WAITING {
        fixture.journal(&placed, asked(&number.to_string())).await;
    }
    let denied = |(request, answer): (String, Answer)| match answer {
        Answer::Deny { message } => {
            assert!(message.contains("could not be asked"), "{message}");
            Some(request)
        }
        Answer::Allow { .. } => None,
    };
    let denied: Vec<String> = given(&fixture, &placed).await.into_iter().filter_map(denied).collect();
    let beyond = APPROVALS_WAITING.to_string();
    assert_eq!(denied, ["r1", "r2", beyond.as_str()], "used before, withdrawn before, too many: once each");
    let approvals = all(&fixture, run).await;
    let state = |request: &str| {
        let id = ApprovalId::of(run, request);
        approvals.iter().find(|approval| approval.id == id).map(|approval| approval.state)
    };
    let found = ["r1", "r2", "0", &beyond].map(state);
    let kept = [ApprovalState::Allowed, ApprovalState::Withdrawn, ApprovalState::Waiting].map(Some);
    assert_eq!((&found[..3], found[3]), (&kept[..], None));
    assert!(fixture.store.inputs(&project(), run).await.unwrap().unwrap().is_empty());
}

async fn so_many_that_are_not_kept_are_denied(fixture: Fixture) {
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let forge = async |names: std::ops::Range<usize>| {
        let offset = fixture.store.journal_offset(&placed.sandbox).await.unwrap();
        let entries = names.map(|name| entry(&placed.run, asked(&name.to_string()))).collect();
        fixture.store.append_journal(&placed.sandbox, offset, offset + 1, entries).await.unwrap();
    };
    let bound = APPROVALS_WAITING + RUN_APPROVALS + APPROVAL_REFUSALS;
    forge(0..bound - 1).await;
    let count = async || fixture.value::<i64>("select count(*) from input").await;
    let most = i64::try_from(RUN_APPROVALS + APPROVAL_REFUSALS).unwrap();
    assert_eq!(count().await, most - 1);
    forge(bound - 1..bound).await;
    assert_eq!(count().await, most);
    forge(bound..bound + 1).await;
    assert_eq!(count().await, most, "what a sandbox makes up fills no table");
}

async fn what_waits_is_not_replaced_by_another_request_of_its_name(fixture: Fixture) {
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let run = &placed.run.id;
    fixture.journal(&placed, asked("r1")).await;
    let JournalEffect::Asked(mut other) = asked("r1") else { panic!("not asked") };
    other.input = json!({ "file_path": "b.txt" }).to_string();
    fixture.journal(&placed, JournalEffect::Asked(other)).await;
    let kept = all(&fixture, run).await;
    assert_eq!((kept.len(), kept[0].input().get()), (1, &*json!({ "file_path": "a.txt" }).to_string()));
    let given = given(&fixture, &placed).await;
    assert!(matches!(&given[..], [(name, Answer::Deny { .. })] if name == "r1"), "{given:?}");
}

async fn another_project_answers_nothing(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let run = &placed.run.id;
    fixture.journal(&placed, asked("r1")).await;
    let (other, id) = ("other".parse().unwrap(), ApprovalId::of(run, "r1"));
    let yes = Answer::Allow { input: None };
    let answer = fixture.store.answer_approval(&other, (run, &id), &yes, &by).await.unwrap();
    assert_eq!(answer, AnswerApproval::Unknown);
    assert_eq!(fixture.store.approvals(&other, (run, None), usize::MAX).await.unwrap(), None);
    assert_eq!(all(&fixture, run).await[0].state, ApprovalState::Waiting);
}

async fn a_list_of_long_approvals_ends_at_its_bytes_and_goes_on_behind_them(fixture: Fixture) {
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let run = &placed.run.id;
    for (request, bytes) in [("r1", 600), ("r2", 400), ("r3", 1_000), ("r4", 10)] {
        let input = format!("\"{}\"", "x".repeat(bytes - 2));
        let (request, tool) = (request.to_owned(), "Write".to_owned());
        let new = NewApproval { request, tool, description: None, input, cut_bytes: 0 };
        fixture.journal(&placed, JournalEffect::Asked(new)).await;
        fixture.clock.advance(1);
    }
    let (mut after, mut pages) = (None, Vec::new());
    loop {
        let page = fixture.store.approvals(&project(), (run, after.as_ref()), 1_000).await.unwrap().unwrap();
        after = page.items.last().map(|last| last.id.clone());
        pages.push(page.items.into_iter().map(|one| one.asked.request).collect::<Vec<_>>());
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, [vec!["r1", "r2"], vec!["r3"], vec!["r4"]]);
    let none = fixture.store.approvals(&project(), (run, after.as_ref()), 1_000).await.unwrap().unwrap();
    assert_eq!((none.items.len(), none.more), (0, false));
}

async fn what_is_asked_that_readers_cannot_read_is_a_text(fixture: Fixture) {
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let asked =
        [nested(JSON_DEPTH), nested(JSON_DEPTH + 1), r#"{"a":1e999}"#.to_owned(), r#"["\ud800"]"#.to_owned()];
    for (number, input) in asked.into_iter().enumerate() {
        let (request, tool) = (number.to_string(), "Write".to_owned());
        let new = NewApproval { request, tool, description: None, input, cut_bytes: 0 };
        fixture.journal(&placed, JournalEffect::Asked(new)).await;
        fixture.clock.advance(1);
    }
    let inputs: Vec<_> = all(&fixture, &placed.run.id).await.iter().map(Approval::input).collect();
    assert!(inputs[0].get().starts_with("[[") && inputs[1].get().starts_with("\"[["), "{inputs:?}");
    assert_eq!((inputs[2].get(), inputs[3].get()), (r#""{\"a\":1e999}""#, r#""[\"\\ud800\"]""#));
}

async fn what_is_asked_with_a_character_that_no_database_holds_is_kept_without_it(fixture: Fixture) {
    let placed = asking(&fixture, ApprovalsBlock::default(), 1).await;
    let odd = |request: &str| {
        JournalEffect::Asked(NewApproval {
            request: request.to_owned(),
            tool: "Wr\0ite".to_owned(),
            description: Some("\0".to_owned()),
            input: "{\"file_path\": \"a\0".to_owned(),
            cut_bytes: 7,
        })
    };
    for request in ["r1", "r\0", "r\0"] {
        fixture.journal(&placed, odd(request)).await;
    }
    let mut kept: Vec<NewApproval> =
        all(&fixture, &placed.run.id).await.into_iter().map(|one| one.asked).collect();
    // Asked in one moment, they stand in the order of their ids.
    kept.sort_by(|one, other| one.request.cmp(&other.request));
    let expected = |request: &str| NewApproval {
        request: request.to_owned(),
        tool: "Wr\u{fffd}ite".to_owned(),
        description: Some("\u{fffd}".to_owned()),
        input: "{\"file_path\": \"a\u{fffd}".to_owned(),
        cut_bytes: 7,
    };
    assert_eq!(kept, [expected("r1"), expected("r\u{fffd}")]);
}
