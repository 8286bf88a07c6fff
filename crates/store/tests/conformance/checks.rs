//! What a repository's file adds to a run: how its checks ended, and the image that it chose.

use caisson_domain::check_result::{CheckOutcome, CheckResult};
use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::repository_file::CheckName;
use caisson_domain::run::{RunSpec, RunStatus};
use caisson_store::{Finish, JournalEffect, NextWork};
use serde_json::json;

use crate::fixture::{Fixture, completed, spec};

conformance! {
    the_last_word_on_the_checks_counts_and_is_told_at_the_end,
    checks_of_an_attempt_that_is_given_back_are_forgotten,
    an_image_is_chosen_by_the_runs_owner_before_its_agent_starts,
    nothing_is_chosen_for_a_run_that_names_its_image,
    a_sandboxs_work_names_its_image,
    a_session_goes_on_in_the_image_that_its_repository_chose,
}

fn result(outcome: CheckOutcome, turns: u32) -> CheckResult {
    let output = (outcome != CheckOutcome::Passed).then(|| "it is wrong\n".to_owned());
    let exit_code = Some(i32::from(outcome != CheckOutcome::Passed));
    CheckResult { name: CheckName::Test, command: "make test".to_owned(), outcome, exit_code, output, turns }
}

fn succeeded() -> Finish {
    Finish { status: RunStatus::Succeeded, failure: None, result: None }
}

async fn the_last_word_on_the_checks_counts_and_is_told_at_the_end(fixture: Fixture) {
    let placed = fixture.placed().await;
    assert!(placed.run.checks.is_empty());
    let first = result(CheckOutcome::Failed, 0);
    fixture.journal(&placed, JournalEffect::Checks(vec![first.clone()])).await;
    assert_eq!(fixture.run(&placed.run.id).await.checks, [first]);
    let last = result(CheckOutcome::Passed, 1);
    fixture.journal(&placed, JournalEffect::Checks(vec![last.clone()])).await;
    let progress = fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    assert_eq!(progress.checks, std::slice::from_ref(&last), "whoever judges the run sees it");
    fixture.journal(&placed, JournalEffect::Finished(completed("done"))).await;
    fixture.journal(&placed, JournalEffect::Checks(Vec::new())).await;
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &succeeded()).await.unwrap());
    assert_eq!(fixture.run(&placed.run.id).await.checks, [last], "nothing behind the outcome counts");
    let told = fixture.data(&placed.run.id, EventKind::RunFinished).await;
    let expected =
        json!([{"name": "test", "command": "make test", "outcome": "passed", "exit_code": 0, "turns": 1}]);
    assert_eq!(told["checks"], expected);
    // A run without checks says nothing of them.
    fixture.queued().await;
    let plain = fixture.place(fixture.claim().await, 2).await;
    assert!(fixture.store.finish(&plain.run.id, plain.epoch, &succeeded()).await.unwrap());
    let told = fixture.data(&plain.run.id, EventKind::RunFinished).await;
    assert!(told.get("checks").is_none(), "{told}");
}

async fn checks_of_an_attempt_that_is_given_back_are_forgotten(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.journal(&placed, JournalEffect::Checks(vec![result(CheckOutcome::Failed, 0)])).await;
    assert!(fixture.store.requeue(&placed.run.id, placed.epoch, "again", 0).await.unwrap());
    assert!(fixture.run(&placed.run.id).await.checks.is_empty());
}

async fn an_image_is_chosen_by_the_runs_owner_before_its_agent_starts(fixture: Fixture) {
    let placed = fixture.placed().await;
    let (run, epoch) = (&placed.run.id, placed.epoch);
    assert!(!fixture.store.choose_image(run, epoch.with_number(epoch.number + 1), "other:1").await.unwrap());
    assert_eq!(fixture.run(run).await.repository_image, None);
    assert!(fixture.store.choose_image(run, epoch, "team:1").await.unwrap());
    assert!(fixture.store.choose_image(run, epoch, "team:1").await.unwrap(), "as often as it takes");
    assert!(!fixture.store.choose_image(run, epoch, "team:2").await.unwrap(), "once and for all");
    assert!(fixture.store.requeue(run, epoch, "its repository chose the image team:1", 0).await.unwrap());
    assert!(!fixture.store.choose_image(run, epoch, "other:1").await.unwrap(), "it is nobody's");
    let again = fixture.place(fixture.claim().await, 2).await;
    assert_eq!(again.run.repository_image.as_deref(), Some("team:1"), "it outlasts the queue");
    assert_eq!(again.run.spec.image, None, "what was asked for stays as it was");
    fixture.journal(&again, JournalEffect::AgentStarted).await;
    assert!(!fixture.store.choose_image(run, again.epoch, "team:1").await.unwrap());
}

async fn nothing_is_chosen_for_a_run_that_names_its_image(fixture: Fixture) {
    fixture.created(RunSpec { image: Some("own:1".to_owned()), ..spec() }).await;
    let placed = fixture.place(fixture.claim().await, 1).await;
    for image in ["team:1", "own:1"] {
        assert!(!fixture.store.choose_image(&placed.run.id, placed.epoch, image).await.unwrap());
    }
    assert_eq!(fixture.run(&placed.run.id).await.repository_image, None);
}

async fn a_sandboxs_work_names_its_image(fixture: Fixture) {
    let placed = fixture.placed().await;
    let image = async || match fixture.store.next_work(&placed.sandbox).await.unwrap() {
        NextWork::Run { image, .. } => image,
        other @ (NextWork::Exit | NextWork::Nothing) => panic!("{other:?}"),
    };
    assert_eq!(image().await.as_deref(), Some("caisson/sandbox:1"));
    fixture.execute("update sandbox set image = ''").await;
    assert_eq!(image().await, None, "an engine without images writes none down");
}

async fn a_session_goes_on_in_the_image_that_its_repository_chose(fixture: Fixture) {
    let placed = fixture.placed().await;
    let (run, session) = (placed.run.id.clone(), placed.run.session.clone());
    let other = RunId::new(1, [9; 10]);
    let image = async || fixture.store.session_image(&session, &other).await.unwrap();
    assert!(fixture.store.choose_image(&run, placed.epoch, "team:1").await.unwrap());
    assert!(
        fixture.store.requeue(&run, placed.epoch, "its repository chose the image team:1", 0).await.unwrap()
    );
    let again = fixture.place(fixture.claim().await, 2).await;
    fixture.execute("update sandbox set image = 'team:1'").await;
    assert_eq!(image().await, None, "no agent has worked in it");
    fixture.journal(&again, JournalEffect::AgentStarted).await;
    assert_eq!(image().await.as_deref(), Some("team:1"));
    assert_eq!(fixture.store.session_image(&session, &run).await.unwrap(), None, "it is the run's own");
    // One that nobody's repository chose is that of a run which asked for it, or the default one.
    fixture.execute("update sandbox set image = 'team:2'").await;
    assert_eq!(image().await, None);
}
