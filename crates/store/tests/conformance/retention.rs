//! Retention: what expires, what stays, and that nothing which lives is touched.

use caisson_domain::event::EventKind;
use caisson_domain::id::{ProjectId, ServerId, SessionId};
use caisson_domain::retention::{Kept, ProjectRetention, Retention};
use caisson_domain::run::{Run, RunStatus};
use caisson_store::{
    Actor, AuditFilter, EXPIRED_PAGE, Finish, JournalEffect, NewArtifact, NewRun, RETENTION_EVENTS,
    RunFilter, SandboxState,
};

use crate::fixture::{Fixture, Placed, entry, made, new_run, project, server_id, spec};

conformance! {
    events_expire_after_the_last_runs_end_and_what_tells_of_the_run_stays,
    a_live_session_loses_nothing_however_old_it_is,
    many_events_go_in_bounded_batches,
    artifacts_are_forgotten_once_their_days_are_over,
    a_session_goes_with_everything_of_it_and_what_it_cost_stays_counted,
    a_projects_own_days_come_before_the_settings_and_are_audited,
    every_removal_is_audited_and_the_chain_holds,
    a_session_stays_until_no_server_has_files_of_it,
    files_are_looked_for_wherever_a_run_was_claimed,
    a_removal_that_fails_is_tried_again_behind_the_others_and_audited_once,
    a_session_that_runs_again_keeps_its_files_and_their_next_removal_is_audited,
    every_project_gets_its_share_of_a_page,
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const BY: Actor = Actor::Server;

fn days(kept: Kept, days: i64) -> Retention {
    let mut own = ProjectRetention::default();
    *own.part(kept) = Some(days);
    own.or(Retention::default())
}

/// A run that has ended, with its sandbox gone.
async fn ended(fixture: &Fixture) -> Run {
    let placed = fixture.placed().await;
    end(fixture, &placed).await;
    fixture.run(&placed.run.id).await
}

async fn end(fixture: &Fixture, placed: &Placed) {
    fixture.journal(placed, JournalEffect::None).await;
    crate::usage::settled_call(fixture, &placed.run.id).await;
    let artifact = NewArtifact {
        name: "a".to_owned(),
        size_bytes: 1,
        sha256: "ab".repeat(32),
        path: "artifacts/a".to_owned(),
    };
    fixture.store.put_artifact(&placed.run.id, &artifact).await.unwrap();
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: Some("fixed".to_owned()) };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert!(fixture.store.set_sandbox_state(&placed.sandbox, SandboxState::Destroyed).await.unwrap());
}

/// As a server does that has removed all that it had of a session.
async fn files_gone(fixture: &Fixture, run: &Run, server: &ServerId) {
    for kept in [Kept::Artifacts, Kept::Volumes] {
        assert!(fixture.store.session_files_gone(&run.session, server, kept).await.unwrap(), "{kept}");
    }
}

/// Has a run that has ended wait again, as a further run of its session.
async fn run_again(fixture: &Fixture) {
    fixture
        .execute("update run set status = 'queued', finished_at_ms = null, sandbox_id = null, home_server_id = null")
        .await;
}

async fn delete_events(fixture: &Fixture, run: &Run, policy: &Retention) -> u64 {
    let (mut all, mut more) = (0, true);
    while more {
        let deleted;
        (deleted, more) = fixture.store.delete_events(&run.session, policy, &BY).await.unwrap();
        all += deleted;
    }
    all
}

async fn events_expire_after_the_last_runs_end_and_what_tells_of_the_run_stays(fixture: Fixture) {
    let run = ended(&fixture).await;
    let policy = days(Kept::Events, 2);
    let before = fixture.events(&run.id).await.len();
    fixture.clock.advance(2 * DAY_MS - 1);
    assert!(fixture.store.expired(Kept::Events, &fixture.server, &policy).await.unwrap().is_empty());
    assert_eq!(delete_events(&fixture, &run, &policy).await, 0, "looked at again");
    assert!(
        fixture.store.expired(Kept::Events, &fixture.server, &Retention::default()).await.unwrap().is_empty()
    );
    fixture.clock.advance(1);
    let found = fixture.store.expired(Kept::Events, &fixture.server, &policy).await.unwrap();
    assert_eq!((found.len(), &found[0].session), (1, &run.session));
    assert_eq!(Some(found[0].ended_at_ms), run.finished_at_ms);
    let deleted = delete_events(&fixture, &run, &policy).await;
    let kinds = fixture.kinds(&run.id).await;
    assert_eq!(usize::try_from(deleted).unwrap() + kinds.len(), before);
    assert_eq!(kinds, [EventKind::RunQueued, EventKind::RunStarted, EventKind::RunFinished]);
    assert!(fixture.store.expired(Kept::Events, &fixture.server, &policy).await.unwrap().is_empty());
    assert_eq!(fixture.run(&run.id).await, run, "status, result and usage");
    let listed = fixture.store.list_runs(&project(), &RunFilter::default(), None, 10).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(fixture.store.check_events().await.unwrap().faults.is_empty(), "what is gone is no gap");
}

async fn a_live_session_loses_nothing_however_old_it_is(fixture: Fixture) {
    let policy = Retention { events_days: 1, artifacts_days: 1, volumes_days: 1, sessions_days: 1 };
    let placed = fixture.placed().await;
    let waiting = fixture.queued().await;
    fixture.clock.advance(400 * DAY_MS);
    for run in [&placed.run, &waiting] {
        assert_eq!(fixture.store.delete_events(&run.session, &policy, &BY).await.unwrap(), (0, false));
        assert_eq!(
            fixture.store.delete_artifacts(&run.session, &fixture.server, &policy, &BY).await.unwrap(),
            None
        );
        assert!(!fixture.store.delete_volume(&run.session, &fixture.server, &policy, &BY).await.unwrap());
        assert!(!fixture.store.delete_session(&run.session, &policy, &BY).await.unwrap());
    }
    for kept in Kept::ALL {
        assert!(fixture.store.expired(*kept, &fixture.server, &policy).await.unwrap().is_empty(), "{kept}");
    }
    // The run ends, and its sandbox is left for a while: for a follow-up, or for a supervisor that is slow.
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    fixture.clock.advance(400 * DAY_MS);
    assert!(!fixture.store.delete_volume(&placed.run.session, &fixture.server, &policy, &BY).await.unwrap());
    fixture.store.set_sandbox_state(&placed.sandbox, SandboxState::Destroyed).await.unwrap();
    assert!(fixture.store.delete_volume(&placed.run.session, &fixture.server, &policy, &BY).await.unwrap());
}

async fn many_events_go_in_bounded_batches(fixture: Fixture) {
    let placed = fixture.placed().await;
    for _ in 0..11 {
        let entries: Vec<_> = (0..100).map(|_| entry(&placed.run, JournalEffect::None)).collect();
        let offset = fixture.store.journal_offset(&placed.sandbox).await.unwrap();
        fixture.store.append_journal(&placed.sandbox, offset, offset + 10, entries).await.unwrap();
    }
    end(&fixture, &placed).await;
    fixture.clock.advance(DAY_MS);
    let policy = days(Kept::Events, 1);
    let (first, more) = fixture.store.delete_events(&placed.run.session, &policy, &BY).await.unwrap();
    assert!(more && first <= RETENTION_EVENTS.unsigned_abs() && first > 900, "{first}");
    assert!(fixture.store.check_events().await.unwrap().faults.is_empty(), "half-way as well");
    assert_eq!(
        fixture.store.expired(Kept::Events, &fixture.server, &policy).await.unwrap().len(),
        1,
        "it is gone on with"
    );
    let (_, more) = fixture.store.delete_events(&placed.run.session, &policy, &BY).await.unwrap();
    assert!(!more);
    assert_eq!(audited(&fixture, "retention.events").await, 1, "one record for all of them");
}

async fn audited(fixture: &Fixture, action: &str) -> usize {
    let filter = AuditFilter { action: Some(action.to_owned()), ..AuditFilter::default() };
    fixture.store.list_audit(&project(), &filter, None, 100).await.unwrap().len()
}

async fn artifacts_are_forgotten_once_their_days_are_over(fixture: Fixture) {
    let run = ended(&fixture).await;
    let policy = days(Kept::Artifacts, 1);
    assert_eq!(
        fixture.store.delete_artifacts(&run.session, &fixture.server, &policy, &BY).await.unwrap(),
        None
    );
    fixture.clock.advance(DAY_MS);
    assert_eq!(
        fixture.store.delete_artifacts(&run.session, &fixture.server, &policy, &BY).await.unwrap(),
        Some(vec![run.id.clone()])
    );
    assert!(fixture.store.artifacts(&run.id).await.unwrap().is_empty());
    assert_eq!(
        fixture.store.delete_artifacts(&run.session, &fixture.server, &policy, &BY).await.unwrap(),
        Some(vec![run.id.clone()]),
        "again"
    );
    assert_eq!(audited(&fixture, "retention.artifacts").await, 1);
    let unknown = SessionId::new(1, [9; 10]);
    assert_eq!(fixture.store.delete_artifacts(&unknown, &fixture.server, &policy, &BY).await.unwrap(), None);
}

async fn a_session_goes_with_everything_of_it_and_what_it_cost_stays_counted(fixture: Fixture) {
    let run = ended(&fixture).await;
    let spent = fixture.store.project_spending(&project()).await.unwrap().unwrap().total().spent_micro_usd;
    assert!(spent > 0);
    let policy = days(Kept::Sessions, 1);
    fixture.clock.advance(DAY_MS);
    assert!(
        fixture.store.expired(Kept::Sessions, &fixture.server, &policy).await.unwrap().is_empty(),
        "its files first"
    );
    delete_events(&fixture, &run, &policy).await;
    let other = ServerId::new(1, [99; 10]);
    for kept in [Kept::Artifacts, Kept::Volumes] {
        assert_eq!(fixture.store.expired(kept, &fixture.server, &policy).await.unwrap().len(), 1, "{kept}");
        assert!(
            fixture.store.expired(kept, &other, &policy).await.unwrap().is_empty(),
            "not its files: {kept}"
        );
    }
    fixture.store.delete_artifacts(&run.session, &fixture.server, &policy, &BY).await.unwrap();
    assert!(fixture.store.delete_volume(&run.session, &fixture.server, &policy, &BY).await.unwrap());
    assert!(!fixture.store.delete_session(&run.session, &policy, &BY).await.unwrap(), "its files are there");
    files_gone(&fixture, &run, &fixture.server).await;
    assert_eq!(fixture.store.expired(Kept::Sessions, &fixture.server, &policy).await.unwrap().len(), 1);
    assert!(fixture.store.delete_session(&run.session, &policy, &BY).await.unwrap());
    assert!(fixture.store.session(&project(), &run.session).await.unwrap().is_none());
    assert!(fixture.store.run(&project(), &run.id).await.unwrap().is_none());
    for table in
        ["event", "usage", "attempt", "sandbox", "sandbox_grant", "artifact", "input", "run", "session_files"]
    {
        let sql: &'static str = format!("select count(*) from {table}").leak();
        assert_eq!(fixture.value::<i64>(sql).await, 0, "{table}");
    }
    let after = fixture.store.project_spending(&project()).await.unwrap().unwrap().total().spent_micro_usd;
    assert_eq!(after, spent);
    assert!(!fixture.store.delete_session(&run.session, &policy, &BY).await.unwrap(), "once");
    let next = fixture.queued().await;
    let next = fixture.store.session(&project(), &next.session).await.unwrap().unwrap();
    assert_eq!(next.uid, 1, "its uid is not given again");
}

async fn a_projects_own_days_come_before_the_settings_and_are_audited(fixture: Fixture) {
    let run = ended(&fixture).await;
    let settings = days(Kept::Volumes, 1);
    fixture.clock.advance(DAY_MS);
    let expired = async || {
        let found = fixture.store.expired(Kept::Volumes, &fixture.server, &settings).await.unwrap();
        found.first().map(|expired| expired.session.clone())
    };
    assert_eq!(expired().await, Some(run.session.clone()));
    let set = |days| {
        let changes = [(Kept::Volumes, days)];
        let store = fixture.store.clone();
        async move { store.set_retention(&project(), &changes, Actor::Operator).await.unwrap().unwrap() }
    };
    assert_eq!(set(Some(0)).await.volumes_days, Some(0));
    assert_eq!(expired().await, None, "for ever");
    assert_eq!(set(Some(2)).await.volumes_days, Some(2));
    assert_eq!(expired().await, None);
    set(Some(2)).await;
    assert_eq!(set(None).await, ProjectRetention::default());
    assert!(expired().await.is_some());
    assert_eq!(audited(&fixture, "retention.set").await, 3, "what changes nothing is not recorded");
    let nobody = "nobody".parse().unwrap();
    assert_eq!(fixture.store.set_retention(&nobody, &[], Actor::Operator).await.unwrap(), None);
}

async fn every_removal_is_audited_and_the_chain_holds(fixture: Fixture) {
    let run = ended(&fixture).await;
    let policy = Retention { events_days: 1, artifacts_days: 1, volumes_days: 1, sessions_days: 1 };
    fixture.clock.advance(DAY_MS);
    delete_events(&fixture, &run, &policy).await;
    fixture.store.delete_artifacts(&run.session, &fixture.server, &policy, &BY).await.unwrap();
    for _ in 0..2 {
        assert!(
            fixture.store.delete_volume(&run.session, &fixture.server, &policy, &BY).await.unwrap(),
            "repeatable"
        );
    }
    files_gone(&fixture, &run, &fixture.server).await;
    fixture.store.delete_session(&run.session, &policy, &BY).await.unwrap();
    for action in ["retention.events", "retention.artifacts", "retention.volume", "retention.session"] {
        assert_eq!(audited(&fixture, action).await, 1, "{action}");
    }
    let report = fixture.store.verify_audit(&[]).await.unwrap();
    assert!(report.chains.iter().all(|chain| chain.fault.is_none()), "{report:?}");
}

/// Session on A, which is lost; B goes on with it, and A comes back.
async fn a_session_stays_until_no_server_has_files_of_it(fixture: Fixture) {
    let policy = days(Kept::Sessions, 1);
    let (store, first, second) = (&fixture.store, &fixture.server, server_id(2));
    store.register_server(&second).await.unwrap();
    let run = ended(&fixture).await;
    run_again(&fixture).await;
    let again = store.claim(&second).await.unwrap().unwrap();
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(store.finish(&run.id, again.epoch, &finish).await.unwrap());
    fixture.clock.advance(DAY_MS);
    delete_events(&fixture, &run, &policy).await;
    let listed = async |kept, server: &ServerId| store.expired(kept, server, &policy).await.unwrap().len();
    for (server, left) in [(&second, 0), (first, 1)] {
        for kept in [Kept::Artifacts, Kept::Volumes] {
            assert_eq!(listed(kept, server).await, 1, "{kept} on {server}");
        }
        assert!(store.delete_artifacts(&run.session, server, &policy, &BY).await.unwrap().is_some());
        assert!(store.delete_volume(&run.session, server, &policy, &BY).await.unwrap());
        assert_eq!(listed(Kept::Sessions, server).await, 0, "what {server} has is still there");
        files_gone(&fixture, &run, server).await;
        for kept in [Kept::Artifacts, Kept::Volumes] {
            assert_eq!(listed(kept, server).await, 0, "{kept} on {server}");
        }
        assert_eq!(listed(Kept::Sessions, server).await, left, "the other server has files");
        assert_eq!(store.delete_session(&run.session, &policy, &BY).await.unwrap(), left == 1);
    }
    assert_eq!(audited(&fixture, "retention.volume").await, 2, "each server's own");
    assert_eq!(audited(&fixture, "retention.session").await, 1);
}

/// A server makes directories before it writes a sandbox down, and may die in between.
async fn files_are_looked_for_wherever_a_run_was_claimed(fixture: Fixture) {
    let (store, second) = (&fixture.store, server_id(2));
    store.register_server(&second).await.unwrap();
    let run = fixture.queued().await;
    let claimed = fixture.claim().await;
    assert!(store.requeue(&run.id, claimed.epoch, "its server died", 0).await.unwrap());
    let again = store.claim(&second).await.unwrap().unwrap();
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(store.finish(&run.id, again.epoch, &finish).await.unwrap());
    fixture.clock.advance(DAY_MS);
    for server in [&fixture.server, &second] {
        let found = store.expired(Kept::Volumes, server, &days(Kept::Volumes, 1)).await.unwrap();
        assert_eq!(found.iter().map(|expired| &expired.session).collect::<Vec<_>>(), [&run.session]);
    }
}

async fn a_removal_that_fails_is_tried_again_behind_the_others_and_audited_once(fixture: Fixture) {
    let policy = days(Kept::Volumes, 1);
    let first = ended(&fixture).await;
    fixture.clock.advance(1);
    fixture.queued().await;
    let placed = fixture.place(fixture.claim().await, 2).await;
    end(&fixture, &placed).await;
    let second = placed.run;
    fixture.clock.advance(DAY_MS);
    let listed = async || {
        let found = fixture.store.expired(Kept::Volumes, &fixture.server, &policy).await.unwrap();
        found.into_iter().map(|expired| expired.session).collect::<Vec<_>>()
    };
    let begin = async |run: &Run| {
        fixture.clock.advance(1);
        fixture.store.delete_volume(&run.session, &fixture.server, &policy, &BY).await.unwrap()
    };
    assert_eq!(listed().await, [first.session.clone(), second.session.clone()]);
    // The rows are written, and the files do not go.
    assert!(begin(&first).await);
    assert_eq!(listed().await, [second.session.clone(), first.session.clone()], "the others come first");
    assert!(begin(&second).await && begin(&first).await);
    assert_eq!(listed().await, [second.session.clone(), first.session.clone()], "tried longest ago");
    assert_eq!(audited(&fixture, "retention.volume").await, 2, "one record for each");
    let gone = async || {
        fixture.store.session_files_gone(&first.session, &fixture.server, Kept::Volumes).await.unwrap()
    };
    assert!(gone().await);
    assert!(!gone().await, "once");
    assert_eq!(listed().await, std::slice::from_ref(&second.session));
    assert!(!begin(&first).await, "there is nothing to remove");
}

async fn a_session_that_runs_again_keeps_its_files_and_their_next_removal_is_audited(fixture: Fixture) {
    let policy = days(Kept::Volumes, 1);
    let (store, server) = (&fixture.store, &fixture.server);
    let run = ended(&fixture).await;
    let gone = async || store.session_files_gone(&run.session, server, Kept::Volumes).await.unwrap();
    assert!(!gone().await, "nobody has begun to remove them");
    let deleted = "select count(*) from session where volume_deleted_at_ms is not null";
    for time in 1..=2 {
        fixture.clock.advance(DAY_MS);
        assert!(store.delete_volume(&run.session, server, &policy, &BY).await.unwrap());
        assert_eq!(audited(&fixture, "retention.volume").await, time);
        assert_eq!(fixture.value::<i64>(deleted).await, 1);
        if time == 2 {
            assert!(gone().await);
        }
        run_again(&fixture).await;
        let again = fixture.claim().await;
        assert!(!gone().await, "it has files again");
        assert_eq!(fixture.value::<i64>(deleted).await, 0);
        let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
        assert!(store.finish(&run.id, again.epoch, &finish).await.unwrap());
    }
    fixture.clock.advance(DAY_MS);
    assert_eq!(store.expired(Kept::Volumes, server, &policy).await.unwrap().len(), 1);
}

async fn every_project_gets_its_share_of_a_page(fixture: Fixture) {
    let (store, policy) = (&fixture.store, days(Kept::Events, 1));
    fixture.execute("insert into project (id, created_at_ms) values ('other', 0)").await;
    let other: ProjectId = "other".parse().unwrap();
    let cancelled = async |project: &ProjectId| {
        let run = made(store.create_run(NewRun { project: project.clone(), ..new_run(spec()) }).await);
        store.request_cancel(project, &run.id, None).await.unwrap();
    };
    for _ in 0..=EXPIRED_PAGE {
        cancelled(&project()).await;
    }
    cancelled(&other).await;
    fixture.clock.advance(DAY_MS);
    let found = store.expired(Kept::Events, &fixture.server, &policy).await.unwrap();
    assert_eq!(found.len(), EXPIRED_PAGE as usize);
    assert_eq!(found.iter().filter(|expired| expired.project == other).count(), 1);
}
