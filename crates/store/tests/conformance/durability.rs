//! Opening, closing, dying and migrating.

use std::os::unix::fs::PermissionsExt as _;

use caisson_domain::run::Phase;
use caisson_store::{Clock, JournalAppend, JournalEffect, Random, Store, StoreError};

use crate::fixture::{Fixture, START_MS, assert_corrupt, assert_gapless, completed, entry, project, spec_on};

conformance! {
    what_was_acknowledged_survives_a_kill,
    an_unfinished_transaction_leaves_nothing,
    a_dropped_call_leaves_the_store_usable,
    a_closed_store_is_unavailable,
    a_ping_writes,
    migrations_leave_the_rows_of_an_older_start_alone,
    a_database_of_a_newer_version_is_refused,
    a_database_with_a_changed_migration_is_refused,
}

only_sqlite! {
    only_the_owner_may_read_the_files,
    closing_leaves_one_file_that_opens_again,
    a_file_that_is_no_database_is_corrupt,
    a_directory_that_does_not_exist_is_unavailable,
    seeded_randomness_makes_the_same_ids,
}

async fn what_was_acknowledged_survives_a_kill(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.journal(&placed, JournalEffect::Phase(Phase::Agent)).await;
    fixture.journal(&placed, JournalEffect::Finished(completed("done"))).await;
    let (run, events) = (fixture.run(&placed.run.id).await, fixture.events(&placed.run.id).await.len());
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.run(&run.id).await, run);
    assert_eq!(fixture.events(&run.id).await.len(), events);
    assert_eq!(fixture.store.journal_offset(&placed.sandbox).await.unwrap(), 20);
    let repeated = vec![entry(&run, JournalEffect::None)];
    let answer = fixture.store.append_journal(&placed.sandbox, 10, 20, repeated).await.unwrap();
    assert_eq!(answer, JournalAppend::Behind { acknowledged: 20 });
    let adopted = fixture.store.adopt(&fixture.server).await.unwrap();
    assert_eq!((adopted.len(), adopted[0].epoch.number), (1, placed.epoch.number + 1));
    let progress = fixture.store.progress(&run.id, adopted[0].epoch).await.unwrap().unwrap();
    assert_eq!(progress.outcome, Some(completed("done")));
}

async fn an_unfinished_transaction_leaves_nothing(fixture: Fixture) {
    let placed = fixture.placed().await;
    // The event fails after the effect has been written.
    fixture
        .execute((
            "create trigger break before insert on event begin select raise(abort, 'broken'); end",
            "alter table event add constraint break check (seq < 0) not valid",
        ))
        .await;
    let entries = vec![entry(&placed.run, JournalEffect::AgentStarted)];
    let appended = fixture.store.append_journal(&placed.sandbox, 0, 10, entries.clone()).await;
    assert!(appended.is_err());
    fixture.execute(("drop trigger break", "alter table event drop constraint break")).await;
    let fixture = fixture.reopen().await;
    assert!(!fixture.run(&placed.run.id).await.agent_started);
    assert_eq!(fixture.store.journal_offset(&placed.sandbox).await.unwrap(), 0);
    let appended = fixture.store.append_journal(&placed.sandbox, 0, 10, entries).await.unwrap();
    assert_eq!(appended, JournalAppend::Stored { acknowledged: 10, skipped: 0 });
}

async fn a_dropped_call_leaves_the_store_usable(fixture: Fixture) {
    let placed = fixture.placed().await;
    for polls in 0..40 {
        let mut call = Box::pin(fixture.journal(&placed, JournalEffect::None));
        for _ in 0..polls {
            if futures_util::poll!(&mut call).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
    }
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    let events = fixture.events(&placed.run.id).await;
    assert_gapless(&events);
    let offset = fixture.store.journal_offset(&placed.sandbox).await.unwrap();
    assert_eq!(offset, 10 * (events.len() as u64 - 2), "events and offset go together");
}

async fn only_the_owner_may_read_the_files(fixture: Fixture) {
    fixture.queued().await;
    let mut names = Vec::new();
    for file in std::fs::read_dir(fixture.directory()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.path().display());
        names.push(file.file_name().into_string().unwrap());
    }
    assert!(names.contains(&"caisson.db".to_owned()) && names.contains(&"caisson.db-wal".to_owned()));
}

async fn a_closed_store_is_unavailable(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.store.close().await.unwrap();
    let read = fixture.store.run(&project(), &run.id).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    let written = fixture.store.ping().await;
    assert!(matches!(written, Err(StoreError::Unavailable(_))), "{written:?}");
    fixture.store.close().await.unwrap();
}

async fn closing_leaves_one_file_that_opens_again(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.store.close().await.unwrap();
    let left = std::fs::read_dir(fixture.directory()).unwrap().count();
    assert_eq!(left, 1, "the write-ahead log is folded in");
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.run(&run.id).await, run);
}

async fn a_ping_writes(fixture: Fixture) {
    for expected in 1..=2 {
        fixture.store.ping().await.unwrap();
        assert_eq!(fixture.value::<i64>("select checks from project").await, expected);
    }
}

async fn migrations_leave_the_rows_of_an_older_start_alone(fixture: Fixture) {
    let run = fixture.created(spec_on("/srv/git/x", "main")).await;
    fixture.store.put_workflow(&project(), &run.spec.workflow).await.unwrap();
    let applied: i64 = fixture.value("select count(*) from _sqlx_migrations").await;
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.value::<i64>("select count(*) from _sqlx_migrations").await, applied);
    assert_eq!(fixture.run(&run.id).await, run);
    assert_eq!(fixture.claim().await.run.id, run.id);
}

/// Opens the fixture's database a second time.
async fn open(fixture: &Fixture) -> Result<Store, StoreError> {
    fixture.beside(Clock::system()).await
}

async fn a_database_of_a_newer_version_is_refused(fixture: Fixture) {
    fixture
        .execute((
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
             values (9999, 'from the future', true, x'00', 0)",
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
             values (9999, 'from the future', true, '\\x00', 0)",
        ))
        .await;
    assert!(matches!(open(&fixture).await, Err(StoreError::Migration(_))));
}

async fn a_database_with_a_changed_migration_is_refused(fixture: Fixture) {
    fixture
        .execute((
            "update _sqlx_migrations set checksum = x'00'",
            "update _sqlx_migrations set checksum = '\\x00'",
        ))
        .await;
    assert!(matches!(open(&fixture).await, Err(StoreError::Migration(_))));
}

async fn a_file_that_is_no_database_is_corrupt(fixture: Fixture) {
    let path = fixture.directory().join("other.db");
    std::fs::write(&path, "this is no database ".repeat(500)).unwrap();
    assert_corrupt(Store::open(&path, Clock::system()).await, "the database file");
}

async fn a_directory_that_does_not_exist_is_unavailable(fixture: Fixture) {
    let path = fixture.directory().join("missing").join("caisson.db");
    let opened = Store::open(&path, Clock::system()).await;
    assert!(matches!(opened, Err(StoreError::Unavailable(_))), "{opened:?}");
}

async fn seeded_randomness_makes_the_same_ids(fixture: Fixture) {
    let mut secrets = Vec::new();
    for name in ["one.db", "two.db"] {
        let (clock, _) = Clock::fixed_at(START_MS);
        let path = fixture.directory().join(name);
        let store = Store::open_with(&path, clock, Random::seeded(7)).await.unwrap();
        let (id, secret) = store.create_api_key(&project(), "ci", &[]).await.unwrap();
        secrets.push((id, secret.expose().to_owned()));
    }
    assert_eq!(secrets[0], secrets[1]);
}
