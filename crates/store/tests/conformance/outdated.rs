//! A server of an earlier version that was away while a later one migrated the database, and comes back.

use caisson_domain::run::RunStatus;
use caisson_domain::server::Role;
use caisson_store::{Finish, Presence, StoreError};

use crate::budgets::{begin, call, running};
use crate::fixture::{Fixture, new_run, note, spec};

conformance! {
    a_server_that_is_behind_its_database_writes_nothing_and_is_told_so,
}

const MIGRATE: &str = "insert into _sqlx_migrations (version, description, installed_on, success, checksum, execution_time) \
     select 9999, description, installed_on, success, checksum, execution_time from _sqlx_migrations where version = 9";

async fn a_server_that_is_behind_its_database_writes_nothing_and_is_told_so(fixture: Fixture) {
    let (store, server) = (&fixture.store, &fixture.server);
    let placed = fixture.placed().await;
    begin(&fixture, &placed.run.id, 1).await;
    let first = running(&fixture, None).await;
    let waiting = fixture.queued().await;
    let (run, epoch) = (&placed.run.id, placed.epoch);
    let presence =
        Presence { server: server.clone(), roles: vec![Role::Worker], version: "1".to_owned(), slots: None };
    store.beat(&presence).await.unwrap();
    fixture.execute(MIGRATE).await;
    fixture.clock.advance(1_000);
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    let answers = [
        store.beat(&presence).await.err(),
        store.heartbeat_server(server, &[]).await.err(),
        store.claim(server).await.err(),
        store.adopt(server).await.err(),
        store.heartbeat(run, epoch).await.err(),
        store.append_run_event(run, epoch, note("late")).await.err(),
        store.finish(run, epoch, &finish).await.err(),
        store.create_run(new_run(spec())).await.err(),
        store.append_journal(&placed.sandbox, 0, 10, Vec::new()).await.err(),
        // The run's first call, and one like those that follow.
        store.begin_model_call(&first.run.id, &call(1)).await.err(),
        store.begin_model_call(run, &call(1)).await.err(),
    ];
    for (number, answer) in answers.iter().enumerate() {
        assert!(matches!(answer, Some(StoreError::Migration(_))), "call {number}: {answer:?}");
    }
    let source = std::error::Error::source(answers[0].as_ref().unwrap()).unwrap().to_string();
    assert!(source.contains("9999"), "{source}");
    assert_eq!(
        fixture.run(&waiting.id).await.status,
        RunStatus::Queued,
        "nothing was claimed, and reading goes on"
    );
    assert_eq!(fixture.run(run).await.status, RunStatus::Running);
    let seen: i64 = fixture.value("select max(seen_at_ms) from server_role").await;
    assert!(seen < store.now_ms(), "it counts as away");
    fixture.execute("delete from _sqlx_migrations where version = 9999").await;
    store.beat(&presence).await.unwrap();
    assert!(store.heartbeat(run, epoch).await.unwrap().is_some());
}
