//! Checking, backing up and copying a whole database.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::principal::Scope;
use caisson_domain::run::RunStatus;
use caisson_store::{
    BackupError, CHECK_FAULTS, COPY_BATCH_BYTES, COPY_BATCH_ROWS, Clock, CopyError, Finish, Idempotency,
    Look, NewArtifact, Random, Store, TableCopied, backup_file, copy_to_postgres,
};
use serde_json::json;

use crate::credentials::{CANARY, add, opened};
use crate::database::Database;
use crate::fixture::{ALL, Fixture, START_MS, made, new_run, project, spec, workflow};

conformance! {
    a_sound_database_has_no_faults,
    a_missing_event_is_told_by_its_number_and_faults_are_bounded,
    references_that_are_not_kept_are_told,
    a_file_that_a_row_tells_of_is_listed,
}

only_sqlite! {
    a_backup_is_the_whole_database_at_one_instant_and_replaces_nothing,
    a_copy_in_postgresql_is_the_same_row_for_row_and_goes_on_from_there,
    a_table_larger_than_a_batch_is_copied_whole,
    a_copy_goes_into_an_empty_database_alone_and_leaves_it_so_when_it_fails,
    a_source_that_somebody_writes_to_is_not_copied,
}

/// A row in every table.
async fn filled(fixture: Fixture) -> Fixture {
    let fixture = fixture.unlocked().await;
    fixture.store.keep_audit(&fixture.server).await.unwrap();
    let (key, _) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    fixture.store.put_workflow(&project(), &workflow("bug-fixer")).await.unwrap();
    let credential = add(&fixture, "git").await;
    let idempotency = Some(Idempotency { key: "once".to_owned(), request_sha256: "ab".repeat(32) });
    let run = made(
        fixture
            .store
            .create_run(caisson_store::NewRun { created_by: Some(key), idempotency, ..new_run(spec()) })
            .await,
    );
    let placed = fixture.place(fixture.claim().await, 1).await;
    assert_eq!(placed.run.id, run.id);
    fixture.store.use_credential(&credential, &run.id).await.unwrap();
    crate::usage::settled_call(&fixture, &run.id).await;
    let artifact = NewArtifact {
        name: "changes.patch".to_owned(),
        size_bytes: 12,
        sha256: "ab".repeat(32),
        path: "artifacts/changes.patch".to_owned(),
    };
    fixture.store.put_artifact(&run.id, &artifact).await.unwrap();
    let odd = NewEvent::new(EventKind::Note, &json!({ "message": "ünïcode \u{1f980} 'quoted' \\ \u{0}" }));
    fixture.store.append_run_event(&run.id, placed.epoch, odd).await.unwrap();
    fixture.store.choose_image(&run.id, placed.epoch, "team:1").await.unwrap();
    let check = caisson_domain::check_result::CheckResult {
        name: caisson_domain::repository_file::CheckName::Lint,
        command: "make lint".to_owned(),
        outcome: caisson_domain::check_result::CheckOutcome::Failed,
        exit_code: Some(2),
        output: Some("ünïcode \u{1f980}".to_owned()),
        turns: 1,
    };
    fixture.journal(&placed, caisson_store::JournalEffect::Checks(vec![check])).await;
    fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
    let finish = Finish { status: RunStatus::Cancelled, failure: None, result: Some("done".to_owned()) };
    assert!(fixture.store.finish(&run.id, placed.epoch, &finish).await.unwrap());
    fixture.queued().await;
    fixture
}

async fn faults(store: &Store) -> Vec<String> {
    let parts = [
        store.check_integrity().await.unwrap(),
        store.check_references().await.unwrap(),
        store.check_events().await.unwrap(),
    ];
    assert!(parts.iter().all(|part| part.looked_at > 0), "{parts:?}");
    parts.into_iter().flat_map(|part| part.faults).collect()
}

async fn a_sound_database_has_no_faults(fixture: Fixture) {
    let fixture = filled(fixture).await;
    assert_eq!(faults(&fixture.store).await, Vec::<String>::new());
    assert_eq!(fixture.store.check_events().await.unwrap().looked_at, 2, "two sessions");
    assert_eq!(fixture.store.schema_version().await.unwrap(), 34);
}

async fn a_missing_event_is_told_by_its_number_and_faults_are_bounded(fixture: Fixture) {
    let fixture = filled(fixture).await;
    let last: i64 = fixture.value("select max(last_seq) from session").await;
    fixture.execute("delete from event where seq = 3").await;
    let told = faults(&fixture.store).await;
    assert!(told.len() == 1 && told[0].contains(&format!("event 3 of {last} is missing")), "{told:?}");
    fixture.execute("delete from event where seq > 2").await;
    let told = faults(&fixture.store).await;
    assert!(told.len() == 1 && told[0].contains(&format!("event 3 of {last} is missing")), "{told:?}");
    fixture.execute("update session set last_seq = 1").await;
    let told = faults(&fixture.store).await;
    assert!(told.len() == 1 && told[0].contains("its last event is 2, but it should be 1"), "{told:?}");
    fixture.execute("update session set last_seq = 2").await;
    for _ in 0..CHECK_FAULTS + 2 {
        fixture.queued().await;
    }
    fixture.execute("delete from event").await;
    let told = faults(&fixture.store).await;
    assert_eq!((told.len(), told.last().unwrap().as_str()), (CHECK_FAULTS + 1, "and more"));
}

async fn references_that_are_not_kept_are_told(fixture: Fixture) {
    let fixture = filled(fixture).await;
    fixture.execute(("delete from attempt; delete from workflow; delete from sandbox_grant; delete from run where status = 'cancelled'",
        "alter table event disable trigger all")).await;
    let told = fixture.store.check_references().await.unwrap().faults;
    let sqlite = "a row of event (rowid 1) refers to a row of run that is not there";
    let wanted = fixture.database.of(sqlite, "references of event are not kept");
    assert!(told.iter().any(|fault| fault.contains(wanted)), "{told:?}");
}

async fn a_file_that_a_row_tells_of_is_listed(fixture: Fixture) {
    let fixture = filled(fixture).await;
    let files = fixture.store.stored_files("").await.unwrap();
    assert_eq!((files.len(), files[0].name.as_str(), files[0].size_bytes), (1, "changes.patch", 12));
    assert_eq!(files[0].server.as_ref(), Some(&fixture.server));
    assert!(fixture.store.stored_files(&files[0].id).await.unwrap().is_empty());
}

async fn a_backup_is_the_whole_database_at_one_instant_and_replaces_nothing(fixture: Fixture) {
    let fixture = filled(fixture).await;
    let (from, to) = (fixture.directory().join("caisson.db"), fixture.directory().join("backup.db"));
    let writing = async {
        for _ in 0..50 {
            fixture.queued().await;
        }
    };
    let (bytes, ()) = tokio::join!(backup_file(&from, &to), writing);
    assert_eq!(bytes.unwrap(), to.metadata().unwrap().len());
    let mode = std::os::unix::fs::PermissionsExt::mode(&to.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let Look::Ready(copy) = Store::look(&to, Clock::fixed_at(1).0).await.unwrap() else {
        panic!("not ready")
    };
    assert_eq!(faults(&copy).await, Vec::<String>::new());
    assert!(copy.verify_audit(&[]).await.unwrap().chains.iter().all(|chain| chain.fault.is_none()));
    copy.close().await.unwrap();
    let again = backup_file(&from, &to).await.unwrap_err();
    assert!(matches!(again, BackupError::Exists(_)), "{again}");
    let nowhere = backup_file(&from, &fixture.directory().join("none/backup.db")).await.unwrap_err();
    assert!(matches!(nowhere, BackupError::Unwritable(..)), "{nowhere}");
    let names = std::fs::read_dir(fixture.directory()).unwrap();
    assert!(names.flatten().all(|entry| !entry.file_name().to_string_lossy().contains("partial")));
}

/// Copies the fixture's file into a new schema.
async fn copied(fixture: &Fixture) -> Option<(Database, Result<Vec<TableCopied>, CopyError>)> {
    let target = Database::postgres().await?;
    let copied = copy_into(fixture, &target).await;
    Some((target, copied))
}

async fn copy_into(fixture: &Fixture, target: &Database) -> Result<Vec<TableCopied>, CopyError> {
    let Database::Postgres { schema, .. } = target else { panic!("not PostgreSQL") };
    copy_to_postgres(&fixture.directory().join("caisson.db"), &schema.place()).await
}

async fn a_copy_in_postgresql_is_the_same_row_for_row_and_goes_on_from_there(fixture: Fixture) {
    let fixture = filled(fixture).await;
    // As an earlier version left it, and a session that was deleted: its number is never given again.
    fixture.execute("drop trigger audit_before_closed").await;
    fixture
        .execute("insert into audit_before (project_id, at_ms, actor, action, subject) values ('default', 1, 'operator', 'a', 'b')")
        .await;
    fixture
        .execute("insert into input (session_id, seq, project_id, run_id, created_at_ms, body) select session_id, 99, project_id, id, 1, '{}' from run limit 1")
        .await;
    for people in [
        "insert into automagik_user (id, project_id, email, created_at_ms, updated_at_ms) values ('u', 'default', 'a@b.example', 1, 1)",
        "insert into automagik_run (run_id, project_id, session_id, workflow_name) select id, project_id, session_id, 'fix' from run limit 1",
        "insert into transcript (session_id, project_id, run_id, size_bytes, sha256, created_at_ms) select session_id, project_id, id, 2, 'ab', 1 from run limit 1",
        "insert into transcript_part (run_id, number, project_id, content) select run_id, 0, project_id, '{}' from transcript",
        "insert into attachment (run_id, number, session_id, project_id, name, size_bytes, sha256, created_at_ms) select id, 0, session_id, project_id, 'a', 1, 'ab', 1 from run limit 1",
        "insert into attachment_part (run_id, attachment, number, project_id, content) select run_id, number, 0, project_id, 'eA==' from attachment",
        "insert into removal (server_id, kind, name, project_id, created_at_ms) select id, 'volume', 'ses_1', 'default', 1 from server limit 1",
        "insert into approval (id, project_id, session_id, run_id, request, tool, input, cut_bytes, default_answer, state, requested_at_ms, expires_at_ms) select 'apv', project_id, session_id, id, 'r', 't', '{}', 0, 'deny', 'waiting', 1, 2 from run limit 1",
        "insert into server_role select id, 'worker', null, 1, 1, '1', 4, 'here' from server limit 1",
    ] {
        fixture.execute(people).await;
    }
    fixture.execute("update sqlite_sequence set seq = 41 where name = 'session'").await;
    fixture.store.close().await.unwrap();
    let Some((target, tables)) = copied(&fixture).await else { return };
    let tables = tables.unwrap();
    let count = |name: &str| tables.iter().find(|table| table.table == name).unwrap().rows;
    for table in &tables {
        assert!(table.rows > 0, "the test leaves out table {}", table.table);
        assert_eq!(table.sha256.len(), 64);
    }
    assert_eq!((count("session"), count("run"), count("credential")), (2, 2, 1));
    let store = target.open(Clock::fixed_at(START_MS + 1).0, Random::system()).await.unwrap();
    assert_eq!(faults(&store).await, Vec::<String>::new());
    let report = store.verify_audit(&[]).await.unwrap();
    assert!(report.chains.len() == 1 && report.chains[0].fault.is_none(), "{report:?}");
    let runs = store.list_runs(&project(), &caisson_store::RunFilter::default(), None, 10).await.unwrap();
    assert_eq!(runs.len(), 2);
    // Both were queued in the same millisecond: either may be the first of the list.
    let ended = runs.iter().find(|run| run.status == RunStatus::Cancelled).unwrap();
    let events = store.events(&ended.id, 0, ALL).await.unwrap();
    assert!(events.iter().any(|event| event.data.get().contains("\u{1f980}")), "{events:?}");
    // The database goes on: numbers, chain, sealed credentials.
    let copy = Fixture {
        store,
        clock: Clock::fixed_at(START_MS + 1).1,
        server: fixture.server.clone(),
        database: target,
    };
    copy.store.unlock(fixture.key_file()).await.unwrap();
    let credential = copy.store.list_credentials(&project()).await.unwrap().remove(0);
    assert_eq!(opened(&copy, &credential).await, CANARY);
    copy.store.keep_audit(&copy.server).await.unwrap();
    let run = copy.queued().await;
    let session = copy.store.session(&project(), &run.session).await.unwrap().unwrap();
    assert_eq!(session.uid, 41, "behind every number that was ever given");
    let report = copy.store.verify_audit(&[]).await.unwrap();
    assert!(report.chains.iter().all(|chain| chain.fault.is_none()), "{report:?}");
    assert!(copy.try_execute("insert into audit_before (number, project_id, at_ms, actor, action, subject) values (9, 'default', 1, 'a', 'b', 'c')").await.is_ok(), "without triggers");
    let closed: String = copy.value("select cast(tgenabled as text) from pg_trigger where tgname = 'audit_before_kept' and tgrelid = cast('audit_before' as regclass)").await;
    assert_eq!(closed, "O", "the closed table is closed again");
}

async fn a_table_larger_than_a_batch_is_copied_whole(fixture: Fixture) {
    let placed = fixture.placed().await;
    for _ in 0..=COPY_BATCH_ROWS / 100 {
        let events: Vec<_> = (0..100)
            .map(|_| crate::fixture::entry(&placed.run, caisson_store::JournalEffect::None))
            .collect();
        let offset = fixture.store.journal_offset(&placed.sandbox).await.unwrap();
        fixture.store.append_journal(&placed.sandbox, offset, offset + 10, events).await.unwrap();
    }
    let large = NewEvent::new(EventKind::Note, &json!({ "message": "x".repeat(COPY_BATCH_BYTES / 3) }));
    for _ in 0..4 {
        fixture.store.append_run_event(&placed.run.id, placed.epoch, large.clone()).await.unwrap();
    }
    let Some((target, tables)) = copied(&fixture).await else { return };
    let events = tables.unwrap().into_iter().find(|table| table.table == "event").unwrap();
    assert!(events.rows > COPY_BATCH_ROWS as u64, "{events:?}");
    let store = target.open(Clock::fixed_at(START_MS).0, Random::system()).await.unwrap();
    assert_eq!(faults(&store).await, Vec::<String>::new());
}

async fn a_copy_goes_into_an_empty_database_alone_and_leaves_it_so_when_it_fails(fixture: Fixture) {
    let fixture = filled(fixture).await;
    let Some((target, first)) = copied(&fixture).await else { return };
    first.unwrap();
    let again = copy_into(&fixture, &target).await.unwrap_err();
    assert!(matches!(&again, CopyError::NotEmpty { .. }), "{again}");
    let runs = "select count(*) from run";
    assert_eq!(target.rows(runs.into()).await[0].get::<i64>(0), 2, "as it was");
    // A row that PostgreSQL refuses, in a table that comes late.
    fixture.execute("insert into project (id, created_at_ms) values ('other', 1)").await;
    fixture.execute("update idempotency set run_id = 'run_none'").await;
    let target = Database::postgres().await.unwrap();
    let failed = copy_into(&fixture, &target).await.unwrap_err();
    assert!(matches!(&failed, CopyError::Failed { side: "the target", .. }), "{failed}");
    assert_eq!(target.rows(runs.into()).await[0].get::<i64>(0), 0);
    assert_eq!(target.rows("select count(*) from project".into()).await[0].get::<i64>(0), 1);
    fixture.execute("update idempotency set run_id = (select id from run limit 1)").await;
    copy_into(&fixture, &target).await.unwrap();
}

async fn a_source_that_somebody_writes_to_is_not_copied(fixture: Fixture) {
    let fixture = filled(fixture).await;
    let Some(target) = Database::postgres().await else { return };
    let held = fixture.database.hold_file().await;
    let failed = copy_into(&fixture, &target).await.unwrap_err();
    assert!(matches!(&failed, CopyError::Failed { side: "the source", .. }), "{failed}");
    sqlx::Connection::close(held).await.unwrap();
    copy_into(&fixture, &target).await.unwrap();
}
