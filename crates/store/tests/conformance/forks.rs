//! What a fork begins with, and that the same request makes one fork.

use caisson_domain::event::EventKind;
use caisson_domain::fork::Older;
use caisson_domain::id::{RunId, SessionId};
use caisson_domain::limits::IDEMPOTENCY_MS;
use caisson_domain::run::Run;
use caisson_store::{
    CreateRun, DeleteSession, ForkOf, ForkSession, Idempotency, JournalEffect, NewFork, NewRun, Push,
    PushRecord, Session,
};
use futures_util::future::{join, join_all};
use serde_json::json;

use crate::fixture::{Fixture, new_run, project, spec_on};
use crate::going_on::{BY, REPOSITORY, begin, end, ended, follow, fork};

conformance! {
    a_fork_tells_what_of_it_is_older,
    the_first_run_of_a_fork_is_told_what_is_older_and_no_other_is,
    a_fork_of_what_was_never_pushed_begins_at_the_commit_that_it_started_from,
    a_fork_of_a_fork_without_a_run_begins_where_that_one_does,
    a_fork_is_steered_by_what_steered_the_other_session,
    a_fork_shares_the_text_of_the_conversation_until_both_have_another,
    two_sessions_that_forget_a_text_at_once_leave_nothing_of_it,
    the_same_request_with_the_same_key_makes_one_fork,
    a_key_of_a_fork_is_no_key_of_a_run,
}

async fn push(fixture: &Fixture, run: &RunId, branch: &str, commit: &str) {
    let push = Push { ref_name: format!("refs/heads/{branch}"), old: "0".repeat(40), new: commit.to_owned() };
    fixture.store.record_push(run, &PushRecord { push, ok: true, message: None }).await.unwrap();
}

async fn session(fixture: &Fixture, id: &SessionId) -> Session {
    fixture.store.session(&project(), id).await.unwrap().unwrap()
}

async fn begins(fixture: &Fixture, fork: &SessionId) -> (Option<String>, Option<Older>) {
    let ForkOf { commit, older } = session(fixture, fork).await.fork.unwrap();
    (commit, older)
}

/// A further run of the session that archives its conversation or not, and pushes a commit or none.
async fn goes_on(fixture: &Fixture, on: &Run, number: u8, (said, commit): (Option<&str>, Option<&str>)) {
    follow(fixture, &on.session).await;
    let placed = begin(fixture, number).await;
    if let Some(said) = said {
        assert!(fixture.store.put_transcript(&placed.run.id, said).await.unwrap());
    }
    if let Some(commit) = commit {
        push(fixture, &placed.run.id, "work", commit).await;
    }
    end(fixture, &placed).await;
}

async fn a_fork_tells_what_of_it_is_older(fixture: Fixture) {
    let first = ended(&fixture, 1).await;
    let begins = async || begins(&fixture, &fork(&fixture, &first.session).await).await;
    let at = |commit: &str, older| (Some(commit.to_owned()), older);
    assert_eq!(begins().await, at("c0ffee", None), "both are the first run's");
    goes_on(&fixture, &first, 2, (None, Some("d00d"))).await;
    assert_eq!(begins().await, at("d00d", Some(Older::Conversation)));
    goes_on(&fixture, &first, 3, (Some("more"), None)).await;
    assert_eq!(begins().await, at("d00d", Some(Older::Files)));
    goes_on(&fixture, &first, 4, (Some("all"), Some("beef"))).await;
    assert_eq!(begins().await, at("beef", None));
    assert_eq!(session(&fixture, &first.session).await.fork, None, "it is none itself");
}

async fn the_first_run_of_a_fork_is_told_what_is_older_and_no_other_is(fixture: Fixture) {
    let first = ended(&fixture, 1).await;
    let same = fork(&fixture, &first.session).await;
    goes_on(&fixture, &first, 2, (Some("more"), None)).await;
    let older = fork(&fixture, &first.session).await;
    let notes = async |session: &SessionId| {
        let run = follow(&fixture, session).await;
        let kinds = fixture.kinds(&run.id).await;
        assert_eq!(kinds[0], EventKind::RunQueued);
        let told = if kinds.len() > 1 { Some(fixture.data(&run.id, EventKind::Note).await) } else { None };
        fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
        told
    };
    assert_eq!(notes(&same).await, None);
    let told = notes(&older).await.unwrap();
    assert_eq!(told, json!({ "level": "warn", "message": Older::Files.meaning() }));
    assert_eq!(notes(&older).await, None, "once");
}

async fn a_fork_of_what_was_never_pushed_begins_at_the_commit_that_it_started_from(fixture: Fixture) {
    fixture.created(spec_on(REPOSITORY, "work")).await;
    let placed = fixture.place(fixture.claim().await, 1).await;
    let prepared = JournalEffect::Prepared { base_commit: Some("ba5e".to_owned()) };
    for effect in [prepared, JournalEffect::AgentStarted] {
        fixture.journal(&placed, effect).await;
    }
    assert!(fixture.store.put_transcript(&placed.run.id, "said").await.unwrap());
    end(&fixture, &placed).await;
    let id = fork(&fixture, &placed.run.session).await;
    assert_eq!(begins(&fixture, &id).await, (Some("ba5e".to_owned()), Some(Older::Files)));
    for session in [&id, &placed.run.session] {
        assert_eq!(fixture.store.pushed_fork_commit(session).await.unwrap(), None, "nobody has pushed it");
    }
}

async fn a_fork_of_a_fork_without_a_run_begins_where_that_one_does(fixture: Fixture) {
    let first = ended(&fixture, 1).await;
    goes_on(&fixture, &first, 2, (None, Some("d00d"))).await;
    let child = fork(&fixture, &first.session).await;
    // The first one moves on, which is nothing to its forks.
    goes_on(&fixture, &first, 3, (Some("all"), Some("beef"))).await;
    let grandchild = fork(&fixture, &child).await;
    let wanted = (Some("d00d".to_owned()), Some(Older::Conversation));
    assert_eq!(begins(&fixture, &grandchild).await, wanted);
    assert_eq!(fixture.store.read_transcript(&grandchild).await.unwrap().as_deref(), Some("said"));
    let sql = "select count(*) from session where fork_branch = 'work' and fork_commit = 'd00d'";
    assert_eq!(fixture.value::<i64>(sql).await, 2, "on the branch to which it was pushed");
    let deleted = fixture.store.delete_session_of(&project(), &first.session, BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    for session in [&child, &grandchild] {
        let pushed = fixture.store.pushed_fork_commit(session).await.unwrap();
        assert_eq!(pushed.as_deref(), Some("d00d"), "whatever became of who pushed it");
    }
}

async fn a_fork_is_steered_by_what_steered_the_other_session(fixture: Fixture) {
    let mut spec = spec_on(REPOSITORY, "work");
    spec.base = Some("release/1".parse().unwrap());
    spec.anchor = Some("release/1".parse().unwrap());
    fixture.created(spec.clone()).await;
    let placed = begin(&fixture, 1).await;
    assert!(fixture.store.put_transcript(&placed.run.id, "said").await.unwrap());
    push(&fixture, &placed.run.id, "work", "c0ffee").await;
    end(&fixture, &placed).await;
    let id = fork(&fixture, &placed.run.session).await;
    let forked = fixture.store.go_on(&project(), &id).await.unwrap().unwrap().spec;
    assert_eq!((forked.base, forked.anchor), (spec.base, spec.anchor), "not what an agent has pushed");
}

const TEXTS: &str = "select count(*) from transcript_part";

async fn a_fork_shares_the_text_of_the_conversation_until_both_have_another(fixture: Fixture) {
    let first = ended(&fixture, 1).await;
    let id = fork(&fixture, &first.session).await;
    let read = async |session: &SessionId| fixture.store.read_transcript(session).await.unwrap();
    assert_eq!(fixture.value::<i64>(TEXTS).await, 1, "it is not copied");
    goes_on(&fixture, &first, 2, (Some("more"), None)).await;
    assert_eq!(read(&first.session).await.as_deref(), Some("more"));
    assert_eq!(read(&id).await.as_deref(), Some("said"));
    assert_eq!(fixture.value::<i64>(TEXTS).await, 2);
    let deleted = fixture.store.delete_session_of(&project(), &id, BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    assert_eq!(fixture.value::<i64>(TEXTS).await, 1, "it goes with the last that has it");
    assert_eq!(read(&first.session).await.as_deref(), Some("more"));
}

async fn two_sessions_that_forget_a_text_at_once_leave_nothing_of_it(fixture: Fixture) {
    let store = &fixture.store;
    for number in 0..6_u8 {
        let first = ended(&fixture, 10 * number + 1).await;
        let id = fork(&fixture, &first.session).await;
        follow(&fixture, &first.session).await;
        let one = begin(&fixture, 10 * number + 2).await;
        let branch = session(&fixture, &id).await.branch.unwrap();
        let spec = spec_on(REPOSITORY, branch.as_str());
        let made = store.create_run_in(id.clone(), new_run(spec)).await.unwrap();
        assert!(matches!(made, CreateRun::Created(_)), "{made:?}");
        let other = begin(&fixture, 10 * number + 3).await;
        let both = join(
            store.put_transcript(&one.run.id, "of the one"),
            store.put_transcript(&other.run.id, "of the other"),
        );
        let (put, too) = both.await;
        assert!(put.unwrap() && too.unwrap());
        assert_eq!(store.read_transcript(&first.session).await.unwrap().as_deref(), Some("of the one"));
        assert_eq!(store.read_transcript(&id).await.unwrap().as_deref(), Some("of the other"));
        end(&fixture, &one).await;
        end(&fixture, &other).await;
    }
    assert_eq!(fixture.value::<i64>(TEXTS).await, 12, "nothing of what they had together");
}

fn asked(key: &str, request: &str) -> NewFork {
    let idempotency = Idempotency { key: key.to_owned(), request_sha256: request.to_owned() };
    NewFork { branch: None, idempotency: Some(idempotency) }
}

async fn the_same_request_with_the_same_key_makes_one_fork(fixture: Fixture) {
    let store = &fixture.store;
    let first = ended(&fixture, 1).await;
    let (one, other) = (asked("k", "a"), asked("k", "b"));
    let project = project();
    let asks = (0..8).map(|_| store.fork_session(&project, &first.session, &one, BY));
    let answers: Vec<ForkSession> = join_all(asks).await.into_iter().map(Result::unwrap).collect();
    let forked = |answer: &ForkSession| {
        if let ForkSession::Forked { session } = answer { Some(session.clone()) } else { None }
    };
    let made: Vec<SessionId> = answers.iter().filter_map(forked).collect();
    assert_eq!(made.len(), 1, "{answers:?}");
    let replayed = ForkSession::Replayed { session: made[0].clone() };
    assert_eq!(answers.iter().filter(|answer| **answer == replayed).count(), 7);
    let again = async |new: &NewFork| store.fork_session(&project, &first.session, new, BY).await.unwrap();
    assert_eq!(again(&other).await, ForkSession::KeyReused);
    let deleted = store.delete_session_of(&project, &made[0], BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    assert_eq!(again(&one).await, ForkSession::Deleted, "it is not made once more");
    fixture.clock.advance(IDEMPOTENCY_MS);
    assert!(forked(&again(&one).await).is_some(), "its time is over");
}

async fn a_key_of_a_fork_is_no_key_of_a_run(fixture: Fixture) {
    let store = &fixture.store;
    let first = ended(&fixture, 1).await;
    let new = asked("k", "a");
    assert!(matches!(
        store.fork_session(&project(), &first.session, &new, BY).await.unwrap(),
        ForkSession::Forked { .. }
    ));
    let run = NewRun { idempotency: new.idempotency, ..new_run(spec_on(REPOSITORY, "work")) };
    assert_eq!(store.create_run(run).await.unwrap(), CreateRun::KeyReused);
    let run = NewRun { idempotency: asked("r", "a").idempotency, ..new_run(spec_on(REPOSITORY, "work")) };
    assert!(matches!(store.create_run(run).await.unwrap(), CreateRun::Created(_)));
    let refused = store.fork_session(&project(), &first.session, &asked("r", "a"), BY).await.unwrap();
    assert_eq!(refused, ForkSession::KeyReused);
}
