//! What a sandbox tells of approvals and inputs falsifies its transcript and nothing else: answers come from the store alone.

use caisson_domain::approval::{Answer, ApprovalState, ApprovalsBlock};
use caisson_domain::event::EventKind;
use caisson_domain::id::{ApprovalId, ProjectId};
use caisson_domain::input::InputState;
use caisson_domain::principal::Scope;
use caisson_domain::protocol::{InputBody, Inputs, JournalBody};
use caisson_domain::run::Waiting;
use http::Method;
use serde_json::json;

use super::support::{OK, Sandbox, Setup, World, run_spec};

fn asked(request: &str) -> JournalBody {
    JournalBody::ApprovalRequested {
        request: request.to_owned(),
        tool: "Write".to_owned(),
        description: None,
        input: json!({ "file_path": "a.txt" }).to_string(),
        cut_bytes: 0,
    }
}

async fn journal(sandbox: &Sandbox, offset: &mut usize, body: JournalBody) {
    let line = sandbox.line(body);
    let end = *offset + line.len();
    let reply = sandbox.control(Method::POST, &format!("/journal?offset={offset}"), line).await;
    assert_eq!(reply.status, OK, "{}", reply.text());
    *offset = end;
}

async fn inputs(sandbox: &Sandbox) -> Vec<InputBody> {
    let reply = sandbox.control(Method::GET, "/inputs?after=0", "").await;
    let inputs: Inputs = serde_json::from_slice(&reply.body).unwrap();
    inputs.items.into_iter().map(|input| input.body).collect()
}

#[tokio::test]
async fn what_is_asked_is_answered_by_the_store_and_by_no_sandbox() {
    let world = World::new().await;
    let mut spec = run_spec(None);
    spec.workflow.caisson.approvals = Some(ApprovalsBlock::default());
    let sandbox = world.sandbox(spec).await;
    world.start(Setup::new()).await;
    let (run, project, mut offset) = (sandbox.run.id.clone(), ProjectId::default_project(), 0);
    journal(&sandbox, &mut offset, asked("r1")).await;
    assert_eq!(world.run(&run).await.waiting, Some(Waiting::Approval));
    let told = world.events(&run, EventKind::ApprovalRequested).await;
    assert_eq!(told[0]["approval"], ApprovalId::of(&run, "r1").as_str());
    // Nothing that it can send is an answer: not a path, not a record.
    let path = format!("/v1/runs/{run}/approvals/{}", ApprovalId::of(&run, "r1"));
    for path in [path.as_str(), "/inputs", "/approvals"] {
        let reply = sandbox.control(Method::POST, path, r#"{"decision":"allow"}"#).await;
        assert!(matches!(reply.status, 404 | 405), "{path} {}", reply.status);
    }
    journal(&sandbox, &mut offset, JournalBody::Input { seq: 1, state: InputState::Accepted }).await;
    journal(&sandbox, &mut offset, JournalBody::Input { seq: 1, state: InputState::Delivered }).await;
    assert!(world.events(&run, EventKind::ApprovalAnswered).await.is_empty());
    assert!(world.events(&run, EventKind::InputAccepted).await.is_empty());
    let all = world.store.approvals(&project, (&run, None), usize::MAX).await.unwrap().unwrap().items;
    assert_eq!(all[0].state, ApprovalState::Waiting);
    let (by, _) = world.store.create_api_key(&project, "k", &[Scope::Admin]).await.unwrap();
    let (id, yes) = (ApprovalId::of(&run, "r1"), Answer::Allow { input: None });
    world.store.answer_approval(&project, (&run, &id), &yes, &by).await.unwrap();
    assert_eq!(inputs(&sandbox).await, [InputBody::Answer { request: "r1".to_owned(), answer: yes }]);
    // To take back what was answered changes nothing.
    journal(&sandbox, &mut offset, JournalBody::ApprovalWithdrawn { request: "r1".to_owned() }).await;
    let all = world.store.approvals(&project, (&run, None), usize::MAX).await.unwrap().unwrap().items;
    assert_eq!((all[0].state, world.run(&run).await.waiting), (ApprovalState::Allowed, None));
    world.stop().await;
}

#[tokio::test]
async fn a_forged_question_of_a_run_that_does_not_ask_is_a_line_of_its_transcript() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let (run, mut offset) = (sandbox.run.id.clone(), 0);
    journal(&sandbox, &mut offset, asked("r1")).await;
    assert_eq!(world.events(&run, EventKind::ApprovalRequested).await.len(), 1);
    assert_eq!(world.run(&run).await.waiting, None);
    let all = world
        .store
        .approvals(&ProjectId::default_project(), (&run, None), usize::MAX)
        .await
        .unwrap()
        .unwrap()
        .items;
    assert!(all.is_empty());
    world.stop().await;
}
