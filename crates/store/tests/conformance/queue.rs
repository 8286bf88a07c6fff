//! Claiming, keeping, giving back and finishing runs.

use caisson_domain::event::EventKind;
use caisson_domain::limits::{LEASE_MS, RESULT_TEXT_BYTES};
use caisson_domain::protocol::StopReason;
use caisson_domain::run::{Failure, FailureKind, Phase, RunSpec, RunStatus};
use caisson_store::{Actor, Finish, JournalEffect};
use serde_json::json;

use crate::fixture::{Fixture, START_MS, assert_corrupt, completed, project, server_id, spec, spec_on};

conformance! {
    a_claim_starts_the_oldest_run_with_a_lease_and_an_event,
    nothing_to_claim_is_none_and_writes_nothing,
    whether_a_claim_may_find_something_is_known_without_a_lock,
    one_run_a_branch_at_a_time_and_others_pass_it,
    a_branch_is_one_however_its_repository_is_spelled,
    one_run_a_session_at_a_time,
    sixteen_claimers_never_get_the_same_run,
    a_claim_for_an_unknown_server_is_refused,
    a_heartbeat_extends_the_lease_from_now,
    an_expired_lease_is_still_the_owners_until_somebody_adopts,
    adopting_takes_every_run_of_the_server_and_no_other,
    progress_tells_what_the_sandbox_and_the_gateway_reported,
    a_requeued_run_waits_out_its_delay_and_starts_afresh,
    a_started_agent_is_never_requeued,
    requeueing_a_run_that_was_cancelled_ends_it,
    a_finished_run_frees_its_branch_and_keeps_its_facts,
    a_failed_run_keeps_its_failure,
    a_result_is_cut_at_its_bound,
    finishing_with_a_status_that_is_not_final_is_refused,
    the_workers_own_event_is_appended,
}

fn finish(status: RunStatus) -> Finish {
    Finish { status, failure: None, result: None }
}

async fn a_claim_starts_the_oldest_run_with_a_lease_and_an_event(fixture: Fixture) {
    let first = fixture.queued().await;
    fixture.clock.advance(1);
    fixture.queued().await;
    fixture.clock.advance(1);
    let claimed = fixture.claim().await;
    assert_eq!(claimed.run.id, first.id);
    assert_eq!((claimed.run.status, claimed.run.attempt), (RunStatus::Running, 1));
    assert_eq!(claimed.run.phase, Some(Phase::Prepare));
    assert_eq!(claimed.run.home.as_ref(), Some(&fixture.server));
    assert_eq!(claimed.run.started_at_ms, Some(START_MS + 2));
    assert_eq!((claimed.epoch.number, claimed.lease_expires_at_ms), (1, START_MS + 2 + LEASE_MS));
    assert_eq!(claimed.session_uid_offset, 0);
    assert_eq!(fixture.run(&first.id).await, claimed.run);
    assert_eq!(fixture.data(&first.id, EventKind::RunStarted).await, json!({"attempt": 1}));
    assert_eq!(fixture.claim().await.session_uid_offset, 1);
}

async fn nothing_to_claim_is_none_and_writes_nothing(fixture: Fixture) {
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    let run = fixture.queued().await;
    fixture.claim().await;
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    assert_eq!(fixture.kinds(&run.id).await, [EventKind::RunQueued, EventKind::RunStarted]);
}

async fn whether_a_claim_may_find_something_is_known_without_a_lock(fixture: Fixture) {
    let (store, server, by) = (&fixture.store, &fixture.server, Actor::Operator);
    let may = async || store.may_claim(server).await.unwrap();
    assert!(!may().await, "nothing waits");
    let run = fixture.created(RunSpec { start_at_ms: Some(START_MS + 10), ..spec() }).await;
    fixture.clock.set(START_MS + 9);
    assert!(!may().await, "its time has not come");
    assert_eq!(store.claim(server).await.unwrap(), None);
    fixture.clock.set(START_MS + 10);
    assert!(may().await);
    for drained in [Some(server), None] {
        store.drain(drained, &by).await.unwrap();
        assert!(!may().await, "it is drained: {drained:?}");
        assert_eq!(store.claim(server).await.unwrap(), None);
        store.resume(drained, &by).await.unwrap();
        assert!(may().await);
    }
    assert_eq!(fixture.claim().await.run.id, run.id);
    assert!(!may().await, "what runs does not wait");
}

async fn one_run_a_branch_at_a_time_and_others_pass_it(fixture: Fixture) {
    let mut made = Vec::new();
    for (repository, branch) in [("/srv/x", "a"), ("/srv/x", "a"), ("/srv/x", "b"), ("/srv/y", "a")] {
        made.push(fixture.created(spec_on(repository, branch)).await.id);
        fixture.clock.advance(1);
    }
    let first = fixture.claim().await;
    assert_eq!(first.run.id, made[0]);
    assert_eq!(fixture.claim().await.run.id, made[2], "the second waits for the branch and is passed");
    assert_eq!(fixture.claim().await.run.id, made[3]);
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    let done = finish(RunStatus::Succeeded);
    assert!(fixture.store.finish(&first.run.id, first.epoch, &done).await.unwrap());
    assert_eq!(fixture.claim().await.run.id, made[1], "the branch is free");
}

async fn a_branch_is_one_however_its_repository_is_spelled(fixture: Fixture) {
    for repository in ["https://h/x", "https://h/x.git", "https://H:443/x/", "https://h/y"] {
        fixture.created(spec_on(repository, "a")).await;
        fixture.clock.advance(1);
    }
    let spelled = |claimed: caisson_store::Claimed| claimed.run.spec.repository.unwrap().to_string();
    let first = fixture.claim().await;
    assert_eq!(spelled(fixture.claim().await), "https://h/y");
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    let forced =
        "update run set status = 'running', home_server_id = (select id from server) where status = 'queued'";
    assert!(fixture.try_execute(forced).await.is_err(), "the database itself refuses");
    let done = finish(RunStatus::Succeeded);
    assert!(fixture.store.finish(&first.run.id, first.epoch, &done).await.unwrap());
    assert_eq!(spelled(fixture.claim().await), "https://h/x.git", "as it was given");
}

async fn one_run_a_session_at_a_time(fixture: Fixture) {
    let first = fixture.queued().await;
    fixture
        .execute(
            "insert into run (id, project_id, session_id, workflow, status, not_before_ms, created_at_ms, queue_rank_ms, spec) \
             select 'run_ffffffffffffffffffffffffffffffff', project_id, session_id, workflow, status, not_before_ms, \
             created_at_ms, queue_rank_ms, spec from run",
        )
        .await;
    let claimed = fixture.claim().await;
    assert_eq!(claimed.run.id, first.id);
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    fixture.store.finish(&first.id, claimed.epoch, &finish(RunStatus::Failed)).await.unwrap();
    assert_eq!(fixture.claim().await.run.session, first.session);
}

async fn sixteen_claimers_never_get_the_same_run(fixture: Fixture) {
    for _ in 0..20 {
        fixture.queued().await;
    }
    let claimers = (0..16).map(|_| async {
        let mut claimed = Vec::new();
        while let Some(run) = fixture.store.claim(&fixture.server).await.unwrap() {
            claimed.push(run.run.id);
        }
        claimed
    });
    let mut claimed: Vec<_> = futures_util::future::join_all(claimers).await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 20);
    claimed.sort();
    claimed.dedup();
    assert_eq!(claimed.len(), 20);
}

async fn a_claim_for_an_unknown_server_is_refused(fixture: Fixture) {
    let run = fixture.queued().await;
    assert_corrupt(fixture.store.claim(&server_id(9)).await, "a constraint");
    assert_eq!(fixture.run(&run.id).await.status, RunStatus::Queued);
}

async fn a_heartbeat_extends_the_lease_from_now(fixture: Fixture) {
    fixture.queued().await;
    let claimed = fixture.claim().await;
    fixture.clock.advance(10_000);
    let extended = fixture.store.heartbeat(&claimed.run.id, claimed.epoch).await.unwrap();
    assert_eq!(extended, Some(START_MS + 10_000 + LEASE_MS));
    let progress = fixture.store.progress(&claimed.run.id, claimed.epoch).await.unwrap().unwrap();
    assert_eq!(Some(progress.lease_expires_at_ms), extended);
}

async fn an_expired_lease_is_still_the_owners_until_somebody_adopts(fixture: Fixture) {
    fixture.queued().await;
    let claimed = fixture.claim().await;
    fixture.clock.advance(LEASE_MS + 1);
    assert_eq!(fixture.store.claim(&server_id(1)).await.unwrap(), None, "unowned is not queued");
    assert!(fixture.store.heartbeat(&claimed.run.id, claimed.epoch).await.unwrap().is_some());
    fixture.store.adopt(&fixture.server).await.unwrap();
    assert_eq!(fixture.store.heartbeat(&claimed.run.id, claimed.epoch).await.unwrap(), None);
}

async fn adopting_takes_every_run_of_the_server_and_no_other(fixture: Fixture) {
    let other = server_id(2);
    fixture.store.register_server(&other).await.unwrap();
    for _ in 0..4 {
        fixture.queued().await;
        fixture.clock.advance(1);
    }
    let first = fixture.claim().await;
    let foreign = fixture.store.claim(&other).await.unwrap().unwrap();
    let second = fixture.claim().await;
    let before = fixture.kinds(&first.run.id).await;
    fixture.clock.advance(LEASE_MS);
    let adopted = fixture.store.adopt(&fixture.server).await.unwrap();
    assert_eq!(adopted.len(), 2, "neither the other server's run nor the waiting one");
    for (old, new) in [(&first, &adopted[0]), (&second, &adopted[1])] {
        assert_eq!(old.run, new.run, "the run itself is the same, its attempt too");
        assert_eq!(new.epoch.number, old.epoch.number + 1);
        assert_eq!(new.session_uid_offset, old.session_uid_offset);
        assert_eq!(new.lease_expires_at_ms, START_MS + 4 + 2 * LEASE_MS);
    }
    assert_eq!(fixture.kinds(&first.run.id).await, before, "no event tells of it");
    assert!(fixture.store.heartbeat(&foreign.run.id, foreign.epoch).await.unwrap().is_some());
    assert_eq!(fixture.store.adopt(&server_id(3)).await.unwrap(), []);
}

async fn progress_tells_what_the_sandbox_and_the_gateway_reported(fixture: Fixture) {
    let placed = fixture.placed().await;
    let progress = async || fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    let fresh = progress().await;
    assert_eq!(
        (fresh.cancel_requested, fresh.stop_requested_at_ms, fresh.agent_started),
        (false, None, false)
    );
    assert_eq!((fresh.phase, fresh.outcome, fresh.pushed_commit), (Some(Phase::Prepare), None, None));
    assert_eq!((fresh.provider_status, fresh.lease_expires_at_ms), (None, START_MS + LEASE_MS));
    fixture.journal(&placed, JournalEffect::Phase(Phase::Agent)).await;
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    fixture.journal(&placed, JournalEffect::Finished(completed("done"))).await;
    fixture.clock.advance(5);
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    let told = progress().await;
    assert_eq!((told.cancel_requested, told.stop_requested_at_ms), (true, Some(START_MS + 5)));
    assert_eq!((told.agent_started, told.phase), (true, Some(Phase::Agent)));
    assert_eq!(told.outcome, Some(completed("done")));
}

async fn a_requeued_run_waits_out_its_delay_and_starts_afresh(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.journal(&placed, JournalEffect::Prepared { base_commit: Some("c0ffee".to_owned()) }).await;
    fixture.store.request_stop(&placed.run.id, placed.epoch, StopReason::Timeout).await.unwrap();
    assert!(fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 1_000).await.unwrap());
    let waiting = fixture.run(&placed.run.id).await;
    assert_eq!((waiting.status, waiting.attempt), (RunStatus::Queued, 1));
    assert_eq!((waiting.phase, waiting.home, waiting.sandbox, waiting.base_commit), (None, None, None, None));
    assert_eq!(waiting.started_at_ms, Some(START_MS), "the run's time began with its first start");
    let requeued = fixture.data(&placed.run.id, EventKind::RunRequeued).await;
    assert_eq!(requeued, json!({"reason": "engine away"}));
    assert_eq!(fixture.value::<i64>("select count(*) from input").await, 0);
    fixture.clock.advance(999);
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    fixture.clock.advance(1);
    let again = fixture.claim().await;
    assert_eq!((again.run.attempt, again.epoch.number), (2, 2));
    assert_eq!(again.run.started_at_ms, Some(START_MS));
    let progress = fixture.store.progress(&again.run.id, again.epoch).await.unwrap().unwrap();
    assert_eq!((progress.stop_requested_at_ms, progress.outcome), (None, None));
}

async fn a_started_agent_is_never_requeued(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    assert!(!fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 0).await.unwrap());
    let run = fixture.run(&placed.run.id).await;
    assert_eq!((run.status, run.agent_started), (RunStatus::Running, true));
    assert!(!fixture.kinds(&run.id).await.contains(&EventKind::RunRequeued));
}

async fn requeueing_a_run_that_was_cancelled_ends_it(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    assert!(fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 0).await.unwrap());
    let run = fixture.run(&placed.run.id).await;
    assert_eq!((run.status, run.finished_at_ms), (RunStatus::Cancelled, Some(START_MS)));
    assert_eq!(fixture.kinds(&run.id).await.last(), Some(&EventKind::RunFinished));
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
}

async fn a_finished_run_frees_its_branch_and_keeps_its_facts(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.request_stop(&placed.run.id, placed.epoch, StopReason::Timeout).await.unwrap();
    fixture.clock.advance(50);
    let done = Finish { result: Some("Fixed.".to_owned()), ..finish(RunStatus::Succeeded) };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &done).await.unwrap());
    let run = fixture.run(&placed.run.id).await;
    assert_eq!((run.status, run.finished_at_ms), (RunStatus::Succeeded, Some(START_MS + 50)));
    assert_eq!((run.result.as_deref(), run.failure.as_ref(), run.phase), (Some("Fixed."), None, None));
    assert_eq!(run.sandbox.as_ref(), Some(&placed.sandbox), "where it ran is not forgotten");
    assert_eq!(fixture.value::<i64>("select count(*) from input").await, 0, "nothing is left to be told");
    assert_eq!(fixture.value::<Option<i64>>("select ended_at_ms from attempt").await, Some(START_MS + 50));
    let data = fixture.data(&run.id, EventKind::RunFinished).await;
    assert_eq!((&data["status"], &data["result"]), (&json!("succeeded"), &json!("Fixed.")));
    assert_eq!((&data["failure"], &data["pushed_commit"]), (&json!(null), &json!(null)));
    assert_eq!(data["usage"]["calls"], json!(0));
    assert!(!fixture.store.finish(&run.id, placed.epoch, &finish(RunStatus::Failed)).await.unwrap());
    assert_eq!(fixture.run(&run.id).await, run, "the end is final");
}

async fn a_failed_run_keeps_its_failure(fixture: Fixture) {
    let placed = fixture.placed().await;
    let failure = Failure::new(FailureKind::Oom, "out of memory; give it more").with_evidence("\u{0}137");
    let failed = Finish { failure: Some(failure.clone()), ..finish(RunStatus::Failed) };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &failed).await.unwrap());
    assert_eq!(fixture.run(&placed.run.id).await.failure, Some(failure));
    let data = fixture.data(&placed.run.id, EventKind::RunFinished).await;
    assert_eq!(data["failure"]["kind"], json!("oom"));
}

async fn a_result_is_cut_at_its_bound(fixture: Fixture) {
    let placed = fixture.placed().await;
    let long = "ä".repeat(RESULT_TEXT_BYTES / 2) + "x";
    let done = Finish { result: Some(long), ..finish(RunStatus::Succeeded) };
    fixture.store.finish(&placed.run.id, placed.epoch, &done).await.unwrap();
    assert_eq!(fixture.run(&placed.run.id).await.result.unwrap().len(), RESULT_TEXT_BYTES);
}

async fn finishing_with_a_status_that_is_not_final_is_refused(fixture: Fixture) {
    let placed = fixture.placed().await;
    for status in [RunStatus::Queued, RunStatus::Running] {
        let finished = fixture.store.finish(&placed.run.id, placed.epoch, &finish(status)).await;
        assert_corrupt(finished, placed.run.id.as_str());
    }
    assert_eq!(fixture.run(&placed.run.id).await.status, RunStatus::Running);
}

async fn the_workers_own_event_is_appended(fixture: Fixture) {
    let placed = fixture.placed().await;
    let event = caisson_domain::event::NewEvent::new(EventKind::SandboxStarted, &json!({"image": "x"}));
    assert!(fixture.store.append_run_event(&placed.run.id, placed.epoch, event).await.unwrap());
    assert_eq!(fixture.data(&placed.run.id, EventKind::SandboxStarted).await, json!({"image": "x"}));
}
