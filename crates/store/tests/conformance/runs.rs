//! Making runs and sessions.

use caisson_domain::event::EventKind;
use caisson_domain::id::{ApiKeyId, ProjectId};
use caisson_domain::limits::{PROMPT_BYTES, QUEUE_RUNS};
use caisson_domain::principal::Scope;
use caisson_domain::run::RunStatus;
use caisson_domain::usage::UsageTotals;
use caisson_store::{CreateRun, NewRun, RunFilter};
use serde_json::json;

use crate::fixture::{Fixture, START_MS, assert_corrupt, new_run, project, spec, spec_on};

conformance! {
    a_new_run_is_queued_in_a_new_session_with_its_first_event,
    a_branch_is_made_from_workflow_and_run_when_a_repository_has_none,
    every_session_has_its_own_conversation_and_uid,
    a_run_is_seen_by_its_own_project_alone,
    the_queue_takes_its_bound_and_not_one_more,
    the_longest_prompt_comes_back_whole,
    a_run_of_an_unknown_project_is_refused_and_leaves_nothing,
    making_a_run_is_audited_with_its_key,
}

async fn a_new_run_is_queued_in_a_new_session_with_its_first_event(fixture: Fixture) {
    let wanted = spec_on("https://git.example.com/team/x.git", "fix/1");
    let run = fixture.created(wanted.clone()).await;
    assert_eq!(fixture.run(&run.id).await, run, "what is answered is what is stored");
    assert_eq!(run.spec, wanted);
    assert_eq!((run.status, run.attempt, run.created_at_ms), (RunStatus::Queued, 0, START_MS));
    let session = fixture.store.session(&project(), &run.session).await.unwrap().unwrap();
    assert_eq!(session.repository, wanted.repository);
    assert_eq!(session.branch, wanted.branch);
    assert_eq!(session.workflow, "bug-fixer");
    assert_eq!(
        (session.runs, session.last_run, session.last_status),
        (1, Some(run.id.clone()), Some(run.status))
    );
    assert_eq!((session.usage, session.created_at_ms), (UsageTotals::default(), START_MS));
    let events = fixture.events(&run.id).await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].seq, events[0].at_ms), (1, START_MS));
    assert_eq!(events[0].session, run.session);
    let data = fixture.data(&run.id, EventKind::RunQueued).await;
    let expected = json!({"workflow": "bug-fixer", "repository": "https://git.example.com/team/x.git", "branch": "fix/1"});
    assert_eq!(data, expected);
}

async fn a_branch_is_made_from_workflow_and_run_when_a_repository_has_none(fixture: Fixture) {
    let mut wanted = spec_on("/srv/git/x", "unused");
    wanted.branch = None;
    let run = fixture.created(wanted).await;
    let branch = format!("caisson/bug-fixer/{}", run.id.short());
    assert_eq!(run.spec.branch.as_ref().unwrap().as_str(), branch);
    assert_eq!(fixture.run(&run.id).await.spec.branch, run.spec.branch);
    assert_eq!(fixture.queued().await.spec.branch, None, "no repository, no branch");
}

async fn every_session_has_its_own_conversation_and_uid(fixture: Fixture) {
    for expected in 0..3 {
        let run = fixture.queued().await;
        let session = fixture.store.session(&project(), &run.session).await.unwrap().unwrap();
        assert_eq!(session.uid, expected, "uids are counted from 0");
    }
    let rows = fixture.rows("select distinct conversation from session").await;
    assert_eq!(rows.len(), 3);
    for row in rows {
        let conversation: &str = row.get(0);
        assert_eq!((conversation.len(), &conversation[14..15]), (36, "4"), "{conversation}");
    }
}

async fn a_run_is_seen_by_its_own_project_alone(fixture: Fixture) {
    let run = fixture.queued().await;
    let other: ProjectId = "other".parse().unwrap();
    assert_eq!(fixture.store.run(&other, &run.id).await.unwrap(), None);
    assert_eq!(fixture.store.session(&other, &run.session).await.unwrap(), None);
    assert_eq!(fixture.store.list_runs(&other, &RunFilter::default(), None, 10).await.unwrap(), []);
    assert_eq!(fixture.store.list_sessions(&other, None, 10).await.unwrap(), []);
}

const WAITING: &str = "select count(*) from run where status = 'queued'";

async fn the_queue_takes_its_bound_and_not_one_more(fixture: Fixture) {
    fixture.queued().await;
    fixture
        .execute(
            "with recursive number (n) as (select 3 union all select n + 1 from number where n < 10000) \
             insert into run (id, project_id, session_id, workflow, status, not_before_ms, created_at_ms, spec) \
             select 'run_00000000000000000000000' || cast(100000000 + n as text), project_id, session_id, workflow, status, not_before_ms, created_at_ms, \
             spec from run, number",
        )
        .await;
    assert_eq!(fixture.value::<i64>(WAITING).await, QUEUE_RUNS - 1);
    let last = fixture.queued().await;
    let refused = fixture.store.create_run(new_run(spec())).await.unwrap();
    assert_eq!(refused, CreateRun::QueueFull);
    assert_eq!(fixture.value::<i64>(WAITING).await, QUEUE_RUNS, "nothing was left behind");
    assert_eq!(fixture.value::<i64>("select count(*) from session").await, 2);
    fixture.store.request_cancel(&project(), &last.id, None).await.unwrap();
    fixture.queued().await;
}

async fn the_longest_prompt_comes_back_whole(fixture: Fixture) {
    let mut wanted = spec();
    wanted.prompt = "\u{1}\u{0}\"".repeat(PROMPT_BYTES / 3);
    let run = fixture.created(wanted.clone()).await;
    assert_eq!(fixture.run(&run.id).await.spec.prompt, wanted.prompt);
}

async fn a_run_of_an_unknown_project_is_refused_and_leaves_nothing(fixture: Fixture) {
    let new = NewRun { project: "other".parse().unwrap(), ..new_run(spec()) };
    assert_corrupt(fixture.store.create_run(new).await, "a constraint");
    for table in ["select count(*) from run", "select count(*) from session", "select count(*) from event"] {
        assert_eq!(fixture.value::<i64>(table).await, 0, "{table}");
    }
}

async fn making_a_run_is_audited_with_its_key(fixture: Fixture) {
    let (key, _): (ApiKeyId, _) =
        fixture.store.create_api_key(&project(), "ci", &[Scope::RunsWrite]).await.unwrap();
    let new = NewRun { created_by: Some(key.clone()), ..new_run(spec()) };
    let CreateRun::Created(run) = fixture.store.create_run(new).await.unwrap() else { panic!("not created") };
    let rows = fixture.rows("select actor, subject from audit where action = 'run.create'").await;
    assert_eq!((rows[0].get("actor"), rows[0].get("subject")), (key.as_str(), run.id.as_str()));
    let by: String = fixture.value("select created_by from run").await;
    assert_eq!(by, key.as_str());
}
