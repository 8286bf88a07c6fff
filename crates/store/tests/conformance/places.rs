//! A server that was cut off for so long that another place could become it: what it still wants to write is that one's now.

use caisson_domain::limits::SERVER_SILENT_MS;
use caisson_domain::run::RunStatus;
use caisson_domain::server::Role;
use caisson_store::{Beat, Clock, Finish, Presence, SandboxState, StoreError};

use crate::fixture::{Fixture, START_MS, new_run, note, spec};

conformance! {
    a_server_whose_place_another_one_took_writes_nothing_until_that_one_is_silent,
}

async fn a_server_whose_place_another_one_took_writes_nothing_until_that_one_is_silent(fixture: Fixture) {
    let (store, server) = (&fixture.store, &fixture.server);
    let (clock, handle) = Clock::fixed_at(START_MS);
    let copy = fixture.beside(clock).await.unwrap();
    let presence =
        Presence { server: server.clone(), roles: Role::ALL.to_vec(), version: "1".to_owned(), slots: None };
    store.set_place(server, "here".to_owned());
    copy.set_place(server, "there".to_owned());
    assert_eq!(store.beat(&presence).await.unwrap(), Beat::Noted);
    let placed = fixture.placed().await;
    fixture.queued().await;
    let (run, epoch) = (&placed.run.id, placed.epoch);
    for clock in [&fixture.clock, &handle] {
        clock.advance(SERVER_SILENT_MS + 1);
    }
    store.ping().await.unwrap();
    assert_eq!(copy.beat(&presence).await.unwrap(), Beat::Noted);
    if !store.is_shared() {
        // A file goes with its directory: there is one place.
        assert!(store.ping().await.is_ok());
        return copy.close().await.unwrap();
    }
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    let refused = [
        store.heartbeat_server(server, &[]).await.err(),
        store.claim(server).await.err(),
        store.adopt(server).await.err(),
        store.heartbeat(run, epoch).await.err(),
        store.append_run_event(run, epoch, note("late")).await.err(),
        store.set_sandbox_state(&placed.sandbox, SandboxState::Destroyed).await.err(),
        store.finish(run, epoch, &finish).await.err(),
        store.create_run(new_run(spec())).await.err(),
        store.append_journal(&placed.sandbox, 0, 10, Vec::new()).await.err(),
    ];
    for (number, answer) in refused.iter().enumerate() {
        assert!(matches!(answer, Some(StoreError::Unavailable(_))), "call {number}: {answer:?}");
    }
    let source = std::error::Error::source(refused[0].as_ref().unwrap()).unwrap().to_string();
    assert!(source.contains("taken this server's place"), "{source}");
    assert_eq!(store.beat(&presence).await.unwrap(), Beat::Elsewhere);
    assert_eq!(
        store.sandbox(&placed.sandbox).await.unwrap().unwrap().state,
        SandboxState::Creating,
        "as it was"
    );
    // The other one works on, and the first may only when that is silent.
    copy.ping().await.unwrap();
    for clock in [&fixture.clock, &handle] {
        clock.advance(SERVER_SILENT_MS);
    }
    assert!(store.ping().await.is_err());
    for clock in [&fixture.clock, &handle] {
        clock.advance(1);
    }
    store.ping().await.unwrap();
    copy.close().await.unwrap();
}
