//! Pushes: pending before they are forwarded, recorded once.

use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::run::RunStatus;
use caisson_store::{BeginPush, Finish, Push, PushRecord, SessionPush};
use serde_json::json;

use crate::fixture::{Fixture, Placed, assert_corrupt, server_id, spec_on};

conformance! {
    a_push_to_the_runs_branch_becomes_its_commit,
    other_pushes_are_recorded_and_change_nothing,
    a_push_after_the_end_is_not_recorded,
    a_push_is_pending_until_it_is_recorded_and_survives_a_kill,
    a_new_push_replaces_the_pending_one,
    a_record_of_another_push_leaves_the_pending_one,
    a_pending_push_is_settled_once,
    a_push_that_was_settled_is_not_recorded_again,
    the_owner_is_told_of_a_pending_push_and_of_its_end,
    a_push_that_is_not_pending_is_not_settled,
    a_push_that_never_left_is_forgotten,
    only_pushes_of_a_running_runs_own_branch_are_begun,
    a_repeated_push_is_told_from_a_recorded_one,
    every_way_out_of_running_clears_the_pending_push,
    only_the_servers_own_pushes_are_pending_there,
    a_pending_push_that_is_not_one_is_named,
    a_push_of_an_unknown_run_is_refused,
    a_session_knows_the_pushes_that_were_taken,
    a_run_knows_whether_it_began_its_repository,
}

const BRANCH: &str = "refs/heads/fix/1";

async fn placed_on_branch(fixture: &Fixture) -> Placed {
    fixture.created(spec_on("/srv/git/x", "fix/1")).await;
    let claimed = fixture.claim().await;
    fixture.place(claimed, 1).await
}

fn push(ref_name: &str, new: &str) -> Push {
    Push { ref_name: ref_name.to_owned(), old: "0".repeat(40), new: new.to_owned() }
}

fn taken(ref_name: &str, new: &str) -> PushRecord {
    PushRecord { push: push(ref_name, new), ok: true, message: None }
}

fn refused(ref_name: &str, new: &str) -> PushRecord {
    let message = Some("pre-receive hook declined".to_owned());
    PushRecord { ok: false, message, ..taken(ref_name, new) }
}

fn finish(status: RunStatus) -> Finish {
    Finish { status, failure: None, result: None }
}

async fn pushes(fixture: &Fixture, run: &RunId) -> usize {
    fixture.kinds(run).await.iter().filter(|kind| **kind == EventKind::GitPush).count()
}

/// Whether the run's owner is told of a pending push.
async fn is_told(fixture: &Fixture, placed: &Placed) -> bool {
    fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap().push_pending
}

/// The pending push of that run, in both ways to ask for it.
async fn pending(fixture: &Fixture, run: &RunId) -> Option<Push> {
    let one = fixture.store.pending_push(run).await.unwrap();
    let all = fixture.store.pending_pushes(&fixture.server).await.unwrap();
    let found = all.into_iter().find(|(of, _)| of.id == *run);
    assert_eq!(found.map(|(_, push)| push), one);
    one
}

async fn a_push_to_the_runs_branch_becomes_its_commit(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    fixture.store.record_push(&placed.run.id, &taken(BRANCH, "c0ffee")).await.unwrap();
    assert_eq!(fixture.run(&placed.run.id).await.pushed_commit.as_deref(), Some("c0ffee"));
    let data = fixture.data(&placed.run.id, EventKind::GitPush).await;
    let expected = json!({
        "ref": "refs/heads/fix/1", "old": "0".repeat(40), "new": "c0ffee", "ok": true, "message": null,
    });
    assert_eq!(data, expected);
    fixture.store.record_push(&placed.run.id, &taken(BRANCH, "beef")).await.unwrap();
    let progress = fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    assert_eq!(progress.pushed_commit.as_deref(), Some("beef"), "the last push counts");
}

async fn other_pushes_are_recorded_and_change_nothing(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    let others = [
        taken("refs/heads/main", "bad"),
        taken("fix/1", "bad"),
        taken("refs/tags/fix/1", "bad"),
        refused(BRANCH, "bad"),
    ];
    for other in &others {
        fixture.store.record_push(&placed.run.id, other).await.unwrap();
    }
    assert_eq!(fixture.run(&placed.run.id).await.pushed_commit, None);
    assert_eq!(pushes(&fixture, &placed.run.id).await, others.len());
}

async fn a_push_after_the_end_is_not_recorded(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    fixture.store.finish(&placed.run.id, placed.epoch, &finish(RunStatus::Succeeded)).await.unwrap();
    fixture.store.record_push(&placed.run.id, &taken(BRANCH, "late")).await.unwrap();
    assert_eq!(fixture.run(&placed.run.id).await.pushed_commit, None);
    assert_eq!(fixture.kinds(&placed.run.id).await.last(), Some(&EventKind::RunFinished));
}

async fn a_push_is_pending_until_it_is_recorded_and_survives_a_kill(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    for (before, record) in [refused(BRANCH, "beef"), taken(BRANCH, "c0ffee")].into_iter().enumerate() {
        assert_eq!(pending(&fixture, &placed.run.id).await, None);
        let begun = fixture.store.begin_push(&placed.run.id, &record.push).await.unwrap();
        assert_eq!(begun, BeginPush::Begun);
        assert_eq!(pending(&fixture, &placed.run.id).await.as_ref(), Some(&record.push));
        assert_eq!(pushes(&fixture, &placed.run.id).await, before, "nothing is known of it yet");
        fixture.store.record_push(&placed.run.id, &record).await.unwrap();
        assert_eq!(pushes(&fixture, &placed.run.id).await, before + 1);
    }
    let lost = push(BRANCH, "1057");
    fixture.store.begin_push(&placed.run.id, &lost).await.unwrap();
    let fixture = fixture.reopen().await;
    fixture.store.adopt(&fixture.server).await.unwrap();
    assert_eq!(pending(&fixture, &placed.run.id).await, Some(lost));
}

async fn a_new_push_replaces_the_pending_one(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    fixture.store.begin_push(&placed.run.id, &push(BRANCH, "one")).await.unwrap();
    let begun = fixture.store.begin_push(&placed.run.id, &push(BRANCH, "two")).await.unwrap();
    assert_eq!(begun, BeginPush::Begun);
    assert_eq!(pending(&fixture, &placed.run.id).await, Some(push(BRANCH, "two")));
    assert!(!fixture.store.settle_push(&placed.run.id, &taken(BRANCH, "one")).await.unwrap());
}

async fn a_record_of_another_push_leaves_the_pending_one(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    fixture.store.begin_push(&placed.run.id, &push(BRANCH, "two")).await.unwrap();
    fixture.store.record_push(&placed.run.id, &taken(BRANCH, "one")).await.unwrap();
    fixture.store.forget_push(&placed.run.id, &push(BRANCH, "one")).await.unwrap();
    let other_base = Push { old: "1".repeat(40), ..push(BRANCH, "two") };
    fixture.store.forget_push(&placed.run.id, &other_base).await.unwrap();
    assert_eq!(pending(&fixture, &placed.run.id).await, Some(push(BRANCH, "two")));
}

async fn a_pending_push_is_settled_once(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    let record = taken(BRANCH, "c0ffee");
    fixture.store.begin_push(&placed.run.id, &record.push).await.unwrap();
    let settlements = (0..8).map(|_| fixture.store.settle_push(&placed.run.id, &record));
    let answers = futures_util::future::try_join_all(settlements).await.unwrap();
    assert_eq!(answers.iter().filter(|first| **first).count(), 1);
    assert_eq!(fixture.run(&placed.run.id).await.pushed_commit.as_deref(), Some("c0ffee"));
    assert_eq!(fixture.data(&placed.run.id, EventKind::GitPush).await["ok"], json!(true));
}

async fn the_owner_is_told_of_a_pending_push_and_of_its_end(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    let (store, id, push) = (&fixture.store, &placed.run.id, push(BRANCH, "c0ffee"));
    let refused = PushRecord { push: push.clone(), ok: false, message: None };
    for way in 0..3 {
        assert!(!is_told(&fixture, &placed).await);
        store.begin_push(id, &push).await.unwrap();
        assert!(is_told(&fixture, &placed).await);
        let mut watch = store.watch(caisson_store::Topic::Run(id.clone()));
        match way {
            0 => store.record_push(id, &refused).await.unwrap(),
            1 => assert!(store.settle_push(id, &refused).await.unwrap()),
            _ => store.forget_push(id, &push).await.unwrap(),
        }
        let hint = watch.changed(Duration::from_hours(1));
        tokio::time::timeout(Duration::from_secs(10), hint).await.unwrap();
    }
    assert!(!is_told(&fixture, &placed).await);
}

async fn a_push_that_was_settled_is_not_recorded_again(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    let record = taken(BRANCH, "c0ffee");
    fixture.store.begin_push(&placed.run.id, &record.push).await.unwrap();
    assert!(fixture.store.settle_push(&placed.run.id, &record).await.unwrap());
    fixture.store.record_push(&placed.run.id, &record).await.unwrap();
    assert_eq!(pushes(&fixture, &placed.run.id).await, 1);
    fixture.store.begin_push(&placed.run.id, &record.push).await.unwrap();
    fixture.store.record_push(&placed.run.id, &record).await.unwrap();
    assert_eq!(pushes(&fixture, &placed.run.id).await, 2, "it was begun anew");
}

async fn a_push_that_is_not_pending_is_not_settled(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    assert!(!fixture.store.settle_push(&placed.run.id, &taken(BRANCH, "c0ffee")).await.unwrap());
    assert_eq!(fixture.run(&placed.run.id).await.pushed_commit, None);
    assert_eq!(pushes(&fixture, &placed.run.id).await, 0);
}

async fn a_push_that_never_left_is_forgotten(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    fixture.store.begin_push(&placed.run.id, &push(BRANCH, "c0ffee")).await.unwrap();
    fixture.store.forget_push(&placed.run.id, &push(BRANCH, "c0ffee")).await.unwrap();
    fixture.store.forget_push(&placed.run.id, &push(BRANCH, "c0ffee")).await.unwrap();
    assert_eq!(pending(&fixture, &placed.run.id).await, None);
    assert_eq!(pushes(&fixture, &placed.run.id).await, 0);
}

async fn only_pushes_of_a_running_runs_own_branch_are_begun(fixture: Fixture) {
    let queued = fixture.created(spec_on("/srv/git/x", "fix/1")).await;
    let own = push(BRANCH, "c0ffee");
    assert_eq!(fixture.store.begin_push(&queued.id, &own).await.unwrap(), BeginPush::Refused);
    let claimed = fixture.claim().await;
    for other in ["refs/heads/main", "fix/1", "refs/tags/fix/1"] {
        let begun = fixture.store.begin_push(&queued.id, &push(other, "bad")).await.unwrap();
        assert_eq!(begun, BeginPush::Refused, "{other}");
    }
    assert_eq!(pending(&fixture, &queued.id).await, None);
    fixture.store.finish(&queued.id, claimed.epoch, &finish(RunStatus::Failed)).await.unwrap();
    assert_eq!(fixture.store.begin_push(&queued.id, &own).await.unwrap(), BeginPush::Refused);
    assert!(fixture.try_execute("update run set pending_push = '{}'").await.is_err());
}

async fn a_repeated_push_is_told_from_a_recorded_one(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    let begin = async |push: &Push| fixture.store.begin_push(&placed.run.id, push).await.unwrap();
    let record = taken(BRANCH, "c0ffee");
    assert_eq!(begin(&record.push).await, BeginPush::Begun);
    assert_eq!(begin(&record.push).await, BeginPush::Repeated);
    fixture.store.record_push(&placed.run.id, &record).await.unwrap();
    assert_eq!(begin(&record.push).await, BeginPush::Recorded);
    assert_eq!(begin(&record.push).await, BeginPush::Repeated);
    assert_eq!(begin(&push(BRANCH, "beef")).await, BeginPush::Begun);
    assert_eq!(begin(&record.push).await, BeginPush::Recorded);
}

async fn every_way_out_of_running_clears_the_pending_push(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    let id = &placed.run.id;
    fixture.store.begin_push(id, &push(BRANCH, "c0ffee")).await.unwrap();
    assert!(fixture.store.requeue(id, placed.epoch, "engine away", 0).await.unwrap());
    assert_eq!(pending(&fixture, id).await, None);
    let again = fixture.claim().await;
    assert_eq!(fixture.store.begin_push(id, &push(BRANCH, "c0ffee")).await.unwrap(), BeginPush::Begun);
    assert!(fixture.store.finish(id, again.epoch, &finish(RunStatus::Failed)).await.unwrap());
    assert_eq!(pending(&fixture, id).await, None);
    assert_eq!(fixture.value::<Option<String>>("select pending_push from run").await, None);
    assert!(!fixture.store.settle_push(id, &taken(BRANCH, "c0ffee")).await.unwrap());
}

async fn only_the_servers_own_pushes_are_pending_there(fixture: Fixture) {
    let other = server_id(2);
    fixture.store.register_server(&other).await.unwrap();
    let mut runs = Vec::new();
    for (server, branch) in [(&fixture.server, "fix/1"), (&other, "fix/2"), (&fixture.server, "fix/3")] {
        fixture.clock.advance(1);
        fixture.created(spec_on("/srv/git/x", branch)).await;
        let claimed = fixture.store.claim(server).await.unwrap().unwrap();
        let push = push(&format!("refs/heads/{branch}"), "c0ffee");
        fixture.store.begin_push(&claimed.run.id, &push).await.unwrap();
        runs.push((claimed.run, push));
    }
    let theirs = runs.remove(1);
    assert_eq!(fixture.store.pending_pushes(&fixture.server).await.unwrap(), runs, "the oldest first");
    assert_eq!(fixture.store.pending_pushes(&other).await.unwrap(), [theirs]);
    assert_eq!(fixture.store.pending_pushes(&server_id(3)).await.unwrap(), []);
}

async fn a_pending_push_that_is_not_one_is_named(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    fixture.execute("update run set pending_push = '{}'").await;
    let what = format!("run.pending_push of {}", placed.run.id);
    assert_corrupt(fixture.store.pending_push(&placed.run.id).await, &what);
    assert_eq!(
        fixture.store.pending_pushes(&fixture.server).await.unwrap(),
        [],
        "it keeps no server from starting"
    );
    assert_corrupt(fixture.store.begin_push(&placed.run.id, &push(BRANCH, "c0ffee")).await, &what);
}

async fn a_push_of_an_unknown_run_is_refused(fixture: Fixture) {
    let unknown = RunId::new(1, [9; 10]);
    let record = taken(BRANCH, "c0ffee");
    assert_corrupt(fixture.store.begin_push(&unknown, &record.push).await, unknown.as_str());
    assert_corrupt(fixture.store.record_push(&unknown, &record).await, unknown.as_str());
    assert_corrupt(fixture.store.settle_push(&unknown, &record).await, unknown.as_str());
    assert_eq!(fixture.store.pending_push(&unknown).await.unwrap(), None);
}

async fn a_session_knows_the_pushes_that_were_taken(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    let (run, session) = (&placed.run.id, &placed.run.session);
    for record in
        [taken(BRANCH, "b1"), refused(BRANCH, "b2"), taken("refs/heads/other", "b3"), taken(BRANCH, "b4")]
    {
        fixture.store.record_push(run, &record).await.unwrap();
    }
    let of = |new: &str| SessionPush { run: run.clone(), push: push(BRANCH, new) };
    assert_eq!(fixture.store.session_pushes(session, BRANCH).await.unwrap(), [of("b1"), of("b4")]);
    assert!(fixture.store.session_pushes(session, "refs/heads/none").await.unwrap().is_empty());
    let other = caisson_domain::id::SessionId::new(1, [77; 10]);
    assert!(fixture.store.session_pushes(&other, BRANCH).await.unwrap().is_empty());
}

async fn a_run_knows_whether_it_began_its_repository(fixture: Fixture) {
    let placed = placed_on_branch(&fixture).await;
    let (store, id) = (&fixture.store, &placed.run.id);
    assert!(!store.began_repository(id).await.unwrap());
    for began in [true, false, true] {
        store.set_began_repository(id, began).await.unwrap();
        assert_eq!(store.began_repository(id).await.unwrap(), began);
    }
    assert!(store.finish(id, placed.epoch, &finish(RunStatus::Failed)).await.unwrap());
    store.set_began_repository(id, false).await.unwrap();
    assert!(store.began_repository(id).await.unwrap(), "of a run that has ended nothing changes");
    let unknown = RunId::new(1, [9; 10]);
    assert_corrupt(store.began_repository(&unknown).await, unknown.as_str());
}
