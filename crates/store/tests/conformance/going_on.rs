//! Sessions that go on: transcripts, forks, and deletion.

use caisson_domain::id::{RunId, SessionId};
use caisson_domain::limits::FORKS_WITHOUT_RUN;
use caisson_domain::retention::{Kept, ProjectRetention, Retention};
use caisson_domain::run::{Run, RunStatus};
use caisson_store::{
    Actor, Archive, AuditFilter, CreateRun, DeleteSession, FilesLeft, Finish, ForkSession, JournalEffect,
    NewArtifact, NewFork, NextWork, Push, PushRecord, SandboxState, TRANSCRIPT_PART_BYTES, Topic,
};

use crate::fixture::{Fixture, Placed, made, new_run, project, server_id, spec_on, woken};

conformance! {
    a_transcript_is_kept_whole_and_replaced_by_the_next_runs,
    what_a_run_has_archived_already_is_not_written_again,
    a_follow_up_is_told_of_the_archive_and_whether_it_is_the_latest,
    a_follow_up_is_told_whether_its_branch_was_pushed,
    a_follow_up_is_told_where_unpublished_work_starts,
    what_a_session_goes_on_with_is_its_last_runs,
    a_fork_has_the_conversation_and_a_branch_of_its_own,
    what_cannot_be_forked_is_told_apart,
    so_many_forks_of_a_project_may_be_without_a_run,
    a_deleted_session_leaves_its_files_to_their_server_and_nothing_else,
    files_whose_rows_retention_took_are_left_to_every_server_that_has_them,
    a_session_that_lives_is_not_deleted,
    a_fork_outlives_the_session_that_it_comes_from,
    a_transcript_goes_with_the_events_also_that_of_a_fork_that_never_ran,
    the_home_of_a_session_is_where_its_agent_worked_last,
}

pub(crate) const REPOSITORY: &str = "https://git.example.com/team/x";
pub(crate) const BY: Actor = Actor::Operator;
pub(crate) const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A run on a branch whose agent has started.
pub(crate) async fn begun(fixture: &Fixture, number: u8) -> Placed {
    fixture.created(spec_on(REPOSITORY, "work")).await;
    begin(fixture, number).await
}

pub(crate) async fn begin(fixture: &Fixture, number: u8) -> Placed {
    let placed = fixture.place(fixture.claim().await, number).await;
    fixture.clock.advance(1);
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    placed
}

pub(crate) async fn end(fixture: &Fixture, placed: &Placed) {
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert!(fixture.store.set_sandbox_state(&placed.sandbox, SandboxState::Destroyed).await.unwrap());
}

/// A session whose only run has ended, pushed its branch and archived its conversation.
pub(crate) async fn ended(fixture: &Fixture, number: u8) -> Run {
    let placed = begun(fixture, number).await;
    assert!(fixture.store.put_transcript(&placed.run.id, "said").await.unwrap());
    push(fixture, &placed.run.id).await;
    end(fixture, &placed).await;
    fixture.run(&placed.run.id).await
}

pub(crate) async fn push(fixture: &Fixture, run: &RunId) {
    let push = Push { ref_name: "refs/heads/work".to_owned(), old: "0".repeat(40), new: "c0ffee".to_owned() };
    fixture.store.record_push(run, &PushRecord { push, ok: true, message: None }).await.unwrap();
}

pub(crate) async fn follow(fixture: &Fixture, session: &SessionId) -> Run {
    made(fixture.store.create_run_in(session.clone(), new_run(spec_on(REPOSITORY, "work"))).await)
}

/// The commit at which a fork's checkout begins, and the branch to which it was pushed.
async fn start_of(fixture: &Fixture, placed: &Placed) -> Option<(String, Option<String>)> {
    match fixture.store.next_work(&placed.sandbox).await.unwrap() {
        NextWork::Run { start, start_branch, .. } => {
            start.map(|start| (start, start_branch.map(String::from)))
        }
        NextWork::Nothing | NextWork::Exit => panic!("there is work"),
    }
}

async fn told(fixture: &Fixture, placed: &Placed) -> (bool, Option<Archive>, bool) {
    match fixture.store.next_work(&placed.sandbox).await.unwrap() {
        NextWork::Run { resume, archive, pushed, .. } => (resume, archive, pushed),
        NextWork::Nothing | NextWork::Exit => panic!("there is work"),
    }
}

pub(crate) async fn fork(fixture: &Fixture, session: &SessionId) -> SessionId {
    let forked = fixture.store.fork_session(&project(), session, &NewFork::default(), BY).await.unwrap();
    let ForkSession::Forked { session } = forked else { panic!("not forked: {forked:?}") };
    session
}

async fn a_transcript_is_kept_whole_and_replaced_by_the_next_runs(fixture: Fixture) {
    let placed = begun(&fixture, 1).await;
    let session = &placed.run.session;
    let store = &fixture.store;
    assert_eq!(store.transcript(session).await.unwrap(), None);
    assert_eq!(store.read_transcript(session).await.unwrap(), None);
    let long = format!("x{}\n", "ä".repeat(TRANSCRIPT_PART_BYTES));
    for content in ["{}\n", "", &long, "short\n"] {
        assert!(store.put_transcript(&placed.run.id, content).await.unwrap());
        assert_eq!(store.read_transcript(session).await.unwrap().as_deref(), Some(content));
        let known = store.transcript(session).await.unwrap().unwrap();
        assert_eq!(
            (known.run, known.size_bytes),
            (placed.run.id.clone(), i64::try_from(content.len()).unwrap())
        );
    }
    assert_eq!(
        fixture.value::<i64>("select count(*) from transcript_part").await,
        1,
        "nothing of the others"
    );
    end(&fixture, &placed).await;
    assert!(!store.put_transcript(&placed.run.id, "late").await.unwrap(), "the run has ended");
    assert_eq!(store.read_transcript(session).await.unwrap().as_deref(), Some("short\n"));
    fixture.execute("update transcript_part set content = 'other'").await;
    assert!(store.read_transcript(session).await.is_err(), "it is not what was archived");
    assert!(store.put_transcript(&RunId::new(1, [9; 10]), "x").await.is_err());
}

async fn what_a_run_has_archived_already_is_not_written_again(fixture: Fixture) {
    let first = begun(&fixture, 1).await;
    let session = first.run.session.clone();
    let store = &fixture.store;
    let put = async |run: &RunId, content: &str| {
        fixture.clock.advance(1);
        assert!(store.put_transcript(run, content).await.unwrap());
        let known = store.transcript(&session).await.unwrap().unwrap();
        (known.run, known.created_at_ms)
    };
    let written = put(&first.run.id, "said").await;
    assert_eq!(put(&first.run.id, "said").await, written);
    let again = put(&first.run.id, "more").await;
    assert!(again.1 > written.1);
    end(&fixture, &first).await;
    assert!(!store.put_transcript(&first.run.id, "more").await.unwrap(), "the run has ended");
    follow(&fixture, &session).await;
    let second = begin(&fixture, 2).await;
    let seconds = put(&second.run.id, "more").await;
    assert!(seconds.0 == second.run.id && seconds.1 > again.1, "the same of another run is another one");
}

async fn a_follow_up_is_told_of_the_archive_and_whether_it_is_the_latest(fixture: Fixture) {
    let first = begun(&fixture, 1).await;
    assert_eq!(told(&fixture, &first).await, (false, None, false));
    end(&fixture, &first).await;
    let session = first.run.session.clone();
    follow(&fixture, &session).await;
    let second = fixture.place(fixture.claim().await, 2).await;
    assert_eq!(told(&fixture, &second).await, (true, None, false), "one may be in the home");
    fixture.clock.advance(1);
    fixture.journal(&second, JournalEffect::AgentStarted).await;
    assert!(fixture.store.put_transcript(&second.run.id, "said").await.unwrap());
    end(&fixture, &second).await;
    let archive = |run: &RunId, is_latest| Some(Archive { run: run.clone(), size_bytes: 4, is_latest });
    follow(&fixture, &session).await;
    let third = fixture.place(fixture.claim().await, 3).await;
    assert_eq!(told(&fixture, &third).await, (true, archive(&second.run.id, true), false));
    fixture.clock.advance(1);
    fixture.journal(&third, JournalEffect::AgentStarted).await;
    end(&fixture, &third).await;
    follow(&fixture, &session).await;
    let fourth = fixture.place(fixture.claim().await, 4).await;
    assert_eq!(
        told(&fixture, &fourth).await,
        (true, archive(&second.run.id, false), false),
        "the third is not in it"
    );
}

async fn a_follow_up_is_told_whether_its_branch_was_pushed(fixture: Fixture) {
    let first = ended(&fixture, 1).await;
    follow(&fixture, &first.session).await;
    let placed = fixture.place(fixture.claim().await, 2).await;
    assert!(told(&fixture, &placed).await.2);
    fixture.execute("update run set branch = 'other' where pushed_commit is not null").await;
    assert!(!told(&fixture, &placed).await.2, "that was another branch");
}

async fn a_follow_up_is_told_where_unpublished_work_starts(fixture: Fixture) {
    let since = async |placed: &Placed| match fixture.store.next_work(&placed.sandbox).await.unwrap() {
        NextWork::Run { since, .. } => since,
        NextWork::Nothing | NextWork::Exit => panic!("there is work"),
    };
    let prepared = |commit: &str| JournalEffect::Prepared { base_commit: Some(commit.to_owned()) };
    fixture.created(spec_on(REPOSITORY, "work")).await;
    let first = fixture.place(fixture.claim().await, 1).await;
    assert_eq!(since(&first).await, None, "no agent has worked");
    fixture.journal(&first, JournalEffect::AgentStarted).await;
    fixture.journal(&first, prepared("bad")).await;
    end(&fixture, &first).await;
    follow(&fixture, &first.run.session).await;
    let second = fixture.place(fixture.claim().await, 2).await;
    assert_eq!(
        since(&second).await.as_deref(),
        Some(""),
        "there was no commit, whatever is said behind the agent's start"
    );
    fixture.journal(&second, prepared("ba5e")).await;
    fixture.journal(&second, JournalEffect::AgentStarted).await;
    end(&fixture, &second).await;
    follow(&fixture, &first.run.session).await;
    let third = fixture.place(fixture.claim().await, 3).await;
    assert_eq!(since(&third).await.as_deref(), Some("ba5e"));
    fixture.journal(&third, prepared("ba5e")).await;
    fixture.journal(&third, JournalEffect::AgentStarted).await;
    push(&fixture, &third.run.id).await;
    end(&fixture, &third).await;
    follow(&fixture, &first.run.session).await;
    let fourth = fixture.place(fixture.claim().await, 4).await;
    assert_eq!(since(&fourth).await.as_deref(), Some("c0ffee"));
    let order = "update run set finished_at_ms = case when pushed_commit is null then 2 else 1 end \
                 where finished_at_ms is not null";
    fixture.execute(order).await;
    assert_eq!(
        since(&fourth).await.as_deref(),
        Some("ba5e"),
        "of the run that ended last, whichever was made first"
    );
}

async fn what_a_session_goes_on_with_is_its_last_runs(fixture: Fixture) {
    let first = ended(&fixture, 1).await;
    let going = fixture.store.go_on(&project(), &first.session).await.unwrap().unwrap();
    assert_eq!((going.spec, going.expired), (first.spec.clone(), false));
    let mut spec = spec_on(REPOSITORY, "work");
    "And now?".clone_into(&mut spec.prompt);
    let second = made(fixture.store.create_run_in(first.session.clone(), new_run(spec)).await);
    let going = fixture.store.go_on(&project(), &first.session).await.unwrap().unwrap();
    assert_eq!(going.spec, second.spec);
    let other = "other".parse().unwrap();
    assert_eq!(fixture.store.go_on(&other, &first.session).await.unwrap(), None);
    let unknown = SessionId::new(1, [9; 10]);
    assert_eq!(fixture.store.go_on(&project(), &unknown).await.unwrap(), None);
    let nowhere = fixture.store.create_run_in(unknown, new_run(spec_on(REPOSITORY, "work"))).await.unwrap();
    assert_eq!(nowhere, CreateRun::NoSession);
    let session = fixture.store.session(&project(), &first.session).await.unwrap().unwrap();
    assert_eq!((session.runs, session.forked_from), (2, None));
}

async fn a_fork_has_the_conversation_and_a_branch_of_its_own(fixture: Fixture) {
    let origin = ended(&fixture, 1).await;
    let id = fork(&fixture, &origin.session).await;
    let store = &fixture.store;
    let session = store.session(&project(), &id).await.unwrap().unwrap();
    let branch = format!("caisson/bug-fixer/{}", id.short());
    assert_eq!(session.branch.as_ref().map(caisson_domain::git::BranchName::as_str), Some(branch.as_str()));
    assert_eq!(
        (session.forked_from.as_ref(), session.runs, session.last_run),
        (Some(&origin.session), 0, None)
    );
    assert_eq!(store.read_transcript(&id).await.unwrap().as_deref(), Some("said"));
    let going = store.go_on(&project(), &id).await.unwrap().unwrap();
    assert_eq!(
        (&going.spec.base, &going.spec.anchor),
        (&origin.spec.base, &origin.spec.anchor),
        "what it is measured by, and what steers its agent, stay the same"
    );
    assert_eq!((going.spec.branch.unwrap().as_str(), going.spec.prompt.as_str()), (branch.as_str(), ""));
    // Its first run resumes the conversation, from the archive, and its branch is not pushed yet.
    made(store.create_run_in(id.clone(), new_run(spec_on(REPOSITORY, &branch))).await);
    let placed = fixture.place(fixture.claim().await, 2).await;
    let start = Some(("c0ffee".to_owned(), Some("work".to_owned())));
    assert_eq!(start_of(&fixture, &placed).await, start, "however the branch moves on");
    let (resume, archive, pushed) = told(&fixture, &placed).await;
    assert_eq!(
        (resume, archive.map(|archive| (archive.run, archive.is_latest)), pushed),
        (true, Some((origin.id, true)), false)
    );
    assert!(store.put_transcript(&placed.run.id, "its own").await.unwrap());
    assert_eq!(
        store.read_transcript(&origin.session).await.unwrap().as_deref(),
        Some("said"),
        "neither sees the other"
    );
    let records = audited(&fixture, "session.fork").await;
    assert_eq!(records, [(id.to_string(), Some(origin.session.to_string()))]);
}

pub(crate) async fn audited(fixture: &Fixture, action: &str) -> Vec<(String, Option<String>)> {
    let filter = AuditFilter { action: Some(action.to_owned()), ..AuditFilter::default() };
    let records = fixture.store.list_audit(&project(), &filter, None, 100).await.unwrap();
    records.into_iter().map(|record| (record.subject, record.session)).collect()
}

async fn what_cannot_be_forked_is_told_apart(fixture: Fixture) {
    let store = &fixture.store;
    let placed = begun(&fixture, 1).await;
    let session = &placed.run.session;
    let forked = async |branch: Option<&str>| {
        let new = NewFork { branch: branch.map(|name| name.parse().unwrap()), ..NewFork::default() };
        store.fork_session(&project(), session, &new, BY).await.unwrap()
    };
    assert_eq!(forked(None).await, ForkSession::Busy);
    end(&fixture, &placed).await;
    assert_eq!(forked(None).await, ForkSession::NoConversation);
    follow(&fixture, session).await;
    let placed = begin(&fixture, 2).await;
    assert!(store.put_transcript(&placed.run.id, "said").await.unwrap());
    end(&fixture, &placed).await;
    assert_eq!(forked(Some("work")).await, ForkSession::SameBranch);
    assert!(matches!(forked(Some("mine")).await, ForkSession::Forked { .. }));
    let (unknown, plain) = (SessionId::new(1, [9; 10]), NewFork::default());
    assert_eq!(store.fork_session(&project(), &unknown, &plain, BY).await.unwrap(), ForkSession::Unknown);
    let other = "other".parse().unwrap();
    assert_eq!(store.fork_session(&other, session, &plain, BY).await.unwrap(), ForkSession::Unknown);
    fixture.queued().await;
    let empty = fixture.place(fixture.claim().await, 3).await;
    assert!(store.put_transcript(&empty.run.id, "said").await.unwrap());
    end(&fixture, &empty).await;
    let refused = store.fork_session(&project(), &empty.run.session, &plain, BY).await.unwrap();
    assert_eq!(refused, ForkSession::NoRepository);
}

async fn so_many_forks_of_a_project_may_be_without_a_run(fixture: Fixture) {
    let origin = ended(&fixture, 1).await;
    let store = &fixture.store;
    let mut last = None;
    for _ in 0..FORKS_WITHOUT_RUN {
        last = Some(fork(&fixture, &origin.session).await);
    }
    let last = last.unwrap();
    let more =
        async || store.fork_session(&project(), &origin.session, &NewFork::default(), BY).await.unwrap();
    assert_eq!(more().await, ForkSession::TooMany);
    assert_eq!(store.delete_session_of(&project(), &last, BY).await.unwrap(), DeleteSession::Deleted);
    let ForkSession::Forked { session } = more().await else { panic!("one was deleted") };
    assert_eq!(more().await, ForkSession::TooMany);
    follow(&fixture, &session).await;
    assert!(matches!(more().await, ForkSession::Forked { .. }), "one has a run");
    assert_eq!(more().await, ForkSession::TooMany);
    let forks = "select count(*) from session where forked_from is not null";
    assert_eq!(fixture.value::<i64>(forks).await, FORKS_WITHOUT_RUN + 1);
    // Those of another project do not count.
    fixture.execute("insert into project (id, created_at_ms) values ('other', 0)").await;
    fixture.execute("update session set project_id = 'other' where forked_from is not null").await;
    assert!(matches!(more().await, ForkSession::Forked { .. }));
}

async fn a_deleted_session_leaves_its_files_to_their_server_and_nothing_else(fixture: Fixture) {
    let store = &fixture.store;
    let placed = begun(&fixture, 1).await;
    let artifact = NewArtifact {
        name: "a".to_owned(),
        size_bytes: 1,
        sha256: "ab".repeat(32),
        path: "artifacts/a".to_owned(),
    };
    store.put_artifact(&placed.run.id, &artifact).await.unwrap();
    assert!(store.put_transcript(&placed.run.id, "said").await.unwrap());
    end(&fixture, &placed).await;
    let mut watch = store.watch(Topic::Server(fixture.server.clone()));
    let session = placed.run.session.clone();
    let deleted = async || store.delete_session_of(&project(), &session, BY).await.unwrap();
    assert_eq!(
        store.delete_session_of(&"other".parse().unwrap(), &session, BY).await.unwrap(),
        DeleteSession::Unknown
    );
    assert_eq!(deleted().await, DeleteSession::Deleted);
    assert!(woken(&mut watch), "its server looks at once");
    assert_eq!(deleted().await, DeleteSession::Unknown);
    for table in
        ["session", "run", "event", "artifact", "transcript", "transcript_part", "sandbox", "attempt"]
    {
        let sql: &'static str = format!("select count(*) from {table}").leak();
        assert_eq!(fixture.value::<i64>(sql).await, 0, "{table}");
    }
    let left = store.files_left(&fixture.server).await.unwrap();
    let wanted = [FilesLeft::Volume(session.clone()), FilesLeft::Artifacts(placed.run.id.clone())];
    assert!(left.len() == 2 && wanted.iter().all(|files| left.contains(files)), "{left:?}");
    assert_eq!(store.files_left(&server_id(7)).await.unwrap(), [], "another server has none of them");
    for files in &left {
        store.files_removed(&fixture.server, files).await.unwrap();
    }
    assert_eq!(store.files_left(&fixture.server).await.unwrap(), []);
    assert_eq!(audited(&fixture, "session.delete").await, [(session.to_string(), Some(session.to_string()))]);
    let report = store.verify_audit(&[]).await.unwrap();
    assert!(report.chains.iter().all(|chain| chain.fault.is_none()), "{report:?}");
}

async fn files_whose_rows_retention_took_are_left_to_every_server_that_has_them(fixture: Fixture) {
    let store = &fixture.store;
    let run = ended(&fixture, 1).await;
    let artifact = NewArtifact {
        name: "a".to_owned(),
        size_bytes: 1,
        sha256: "ab".repeat(32),
        path: "artifacts/a".to_owned(),
    };
    store.put_artifact(&run.id, &artifact).await.unwrap();
    store.register_server(&server_id(2)).await.unwrap();
    fixture
        .execute(
            "insert into session_files (session_id, server_id, kind, project_id) \
             select session_id, (select max(id) from server), kind, project_id from session_files",
        )
        .await;
    fixture.clock.advance(DAY_MS);
    let policy = days(Kept::Artifacts, 1);
    let runs = store.delete_artifacts(&run.session, &fixture.server, &policy, &BY).await.unwrap();
    assert_eq!(runs, Some(vec![run.id.clone()]));
    assert!(store.session_files_gone(&run.session, &fixture.server, Kept::Artifacts).await.unwrap());
    assert_eq!(fixture.value::<i64>("select count(*) from artifact").await, 0);
    let deleted = store.delete_session_of(&project(), &run.session, BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    let volume = FilesLeft::Volume(run.session.clone());
    assert_eq!(store.files_left(&fixture.server).await.unwrap(), std::slice::from_ref(&volume), "done there");
    let left = store.files_left(&server_id(2)).await.unwrap();
    assert!(left.len() == 2 && left.contains(&volume), "{left:?}");
    assert!(left.contains(&FilesLeft::Artifacts(run.id)), "{left:?}");
}

async fn a_session_that_lives_is_not_deleted(fixture: Fixture) {
    let store = &fixture.store;
    let run = fixture.created(spec_on(REPOSITORY, "work")).await;
    let deleted = async || store.delete_session_of(&project(), &run.session, BY).await.unwrap();
    assert_eq!(deleted().await, DeleteSession::Busy, "queued");
    let placed = begin(&fixture, 1).await;
    assert_eq!(deleted().await, DeleteSession::Busy, "running");
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert_eq!(deleted().await, DeleteSession::SandboxLeft);
    let left = store.sandbox(&placed.sandbox).await.unwrap().unwrap();
    assert_eq!(left.state, SandboxState::Stopping, "one that waited is told to end");
    assert!(store.set_sandbox_state(&placed.sandbox, SandboxState::Destroyed).await.unwrap());
    assert!(audited(&fixture, "session.delete").await.is_empty(), "nothing was done");
    assert_eq!(deleted().await, DeleteSession::Deleted);
}

async fn a_fork_outlives_the_session_that_it_comes_from(fixture: Fixture) {
    let origin = ended(&fixture, 1).await;
    let id = fork(&fixture, &origin.session).await;
    let deleted = fixture.store.delete_session_of(&project(), &origin.session, BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    assert_eq!(fixture.store.read_transcript(&id).await.unwrap().as_deref(), Some("said"));
    assert!(fixture.store.go_on(&project(), &id).await.unwrap().is_some());
    let session = fixture.store.session(&project(), &id).await.unwrap().unwrap();
    assert_eq!(session.forked_from, Some(origin.session));
    let gone = fixture.store.delete_session_of(&project(), &id, BY).await.unwrap();
    assert_eq!(gone, DeleteSession::Deleted, "one that never had a run");
}

pub(crate) fn days(kept: Kept, days: i64) -> Retention {
    let mut own = ProjectRetention::default();
    *own.part(kept) = Some(days);
    own.or(Retention::default())
}

async fn a_transcript_goes_with_the_events_also_that_of_a_fork_that_never_ran(fixture: Fixture) {
    let origin = ended(&fixture, 1).await;
    let id = fork(&fixture, &origin.session).await;
    let policy = days(Kept::Events, 1);
    assert!(fixture.store.expired(Kept::Events, &fixture.server, &policy).await.unwrap().is_empty());
    fixture.clock.advance(DAY_MS);
    let found = fixture.store.expired(Kept::Events, &fixture.server, &policy).await.unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    for expired in &found {
        let (_, more) = fixture.store.delete_events(&expired.session, &policy, &BY).await.unwrap();
        assert!(!more);
        assert_eq!(fixture.store.transcript(&expired.session).await.unwrap(), None);
    }
    assert!(fixture.store.expired(Kept::Events, &fixture.server, &policy).await.unwrap().is_empty(), "once");
    assert_eq!(
        fixture.value::<i64>("select count(*) from transcript_part").await,
        0,
        "the text that both had"
    );
    assert_eq!(audited(&fixture, "retention.events").await.len(), 2);
    let policy = days(Kept::Sessions, 1);
    let whole = fixture.store.expired(Kept::Sessions, &fixture.server, &policy).await.unwrap();
    assert_eq!(whole.iter().map(|expired| &expired.session).collect::<Vec<_>>(), [&id], "it has no files");
    assert!(fixture.store.delete_session(&id, &policy, &BY).await.unwrap());
}

async fn the_home_of_a_session_is_where_its_agent_worked_last(fixture: Fixture) {
    let first = ended(&fixture, 1).await;
    let store = &fixture.store;
    let next = follow(&fixture, &first.session).await;
    let home = async |but: &RunId| store.session_home(&first.session, but).await.unwrap();
    assert_eq!(home(&next.id).await, Some(fixture.server.clone()));
    assert_eq!(home(&first.id).await, None, "no other run's agent has worked");
    store.register_server(&server_id(2)).await.unwrap();
    let placed = begin(&fixture, 2).await;
    fixture.execute("update attempt set server_id = (select max(id) from server) where agent_started_at_ms = (select max(agent_started_at_ms) from attempt)").await;
    let later = RunId::new(1, [9; 10]);
    assert_eq!(home(&later).await, Some(server_id(2)));
    assert_eq!(home(&placed.run.id).await, Some(fixture.server.clone()));
}
