//! Sandboxes and their grants.

use caisson_domain::grant::GrantKind;
use caisson_domain::id::{SandboxId, SessionId};
use caisson_store::{NewSandbox, SandboxState, Store};

use crate::fixture::{Fixture, START_MS, assert_corrupt, server_id};

conformance! {
    a_sandbox_reads_back_as_it_was_written,
    a_sandbox_only_goes_forward,
    grants_open_until_their_state_ends_them,
    a_grant_opens_its_own_sandbox_and_kind_alone,
    only_hashes_of_grants_are_stored,
    a_servers_sandboxes_are_those_not_destroyed_oldest_first,
    a_sandbox_of_an_unknown_session_or_server_is_refused,
}

async fn state(store: &Store, id: &SandboxId) -> SandboxState {
    store.sandbox(id).await.unwrap().unwrap().state
}

async fn a_sandbox_reads_back_as_it_was_written(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.clock.advance(9);
    let (id, _, _) = fixture.sandbox(&run.session, 1).await;
    let row = fixture.store.sandbox(&id).await.unwrap().unwrap();
    assert_eq!((&row.id, &row.session, &row.server), (&id, &run.session, &fixture.server));
    assert_eq!((row.engine.as_str(), row.image.as_str(), row.uid), ("docker", "caisson/sandbox:1", 10_001));
    assert_eq!((row.state, row.created_at_ms), (SandboxState::Creating, START_MS + 9));
    assert_eq!(fixture.store.sandbox(&SandboxId::new(1, [9; 10])).await.unwrap(), None);
}

async fn a_sandbox_only_goes_forward(fixture: Fixture) {
    let run = fixture.queued().await;
    let (id, _, _) = fixture.sandbox(&run.session, 1).await;
    let store = &fixture.store;
    assert!(!store.set_sandbox_state(&id, SandboxState::Creating).await.unwrap());
    assert!(store.set_sandbox_state(&id, SandboxState::Running).await.unwrap());
    assert!(!store.set_sandbox_state(&id, SandboxState::Running).await.unwrap(), "it is there already");
    assert!(store.set_sandbox_state(&id, SandboxState::Destroyed).await.unwrap(), "steps may be left out");
    for back in [SandboxState::Creating, SandboxState::Running, SandboxState::Stopping] {
        assert!(!store.set_sandbox_state(&id, back).await.unwrap());
        assert_eq!(state(store, &id).await, SandboxState::Destroyed);
    }
    let unknown = SandboxId::new(1, [9; 10]);
    assert!(!store.set_sandbox_state(&unknown, SandboxState::Running).await.unwrap());
}

async fn grants_open_until_their_state_ends_them(fixture: Fixture) {
    let run = fixture.queued().await;
    let (id, control, agent) = fixture.sandbox(&run.session, 1).await;
    let expected = [
        (SandboxState::Creating, true, true),
        (SandboxState::Running, true, true),
        (SandboxState::Stopping, true, false),
        (SandboxState::Destroyed, false, false),
    ];
    for (state, control_opens, agent_opens) in expected {
        fixture.store.set_sandbox_state(&id, state).await.unwrap();
        let opened = fixture.store.check_grant(&id, GrantKind::Control, &control.hash()).await.unwrap();
        assert_eq!(opened, control_opens, "control when {state}");
        let opened = fixture.store.check_grant(&id, GrantKind::Agent, &agent.hash()).await.unwrap();
        assert_eq!(opened, agent_opens, "agent when {state}");
    }
}

async fn a_grant_opens_its_own_sandbox_and_kind_alone(fixture: Fixture) {
    let run = fixture.queued().await;
    let (first, control, agent) = fixture.sandbox(&run.session, 1).await;
    let (second, _, _) = fixture.sandbox(&run.session, 2).await;
    let check = async |id: &SandboxId, kind, token: &caisson_domain::grant::Token| {
        fixture.store.check_grant(id, kind, &token.hash()).await.unwrap()
    };
    assert!(check(&first, GrantKind::Control, &control).await);
    assert!(!check(&first, GrantKind::Agent, &control).await, "the control grant is no agent grant");
    assert!(!check(&first, GrantKind::Control, &agent).await);
    assert!(!check(&second, GrantKind::Control, &control).await);
    assert!(!check(&SandboxId::new(1, [9; 10]), GrantKind::Control, &control).await);
}

async fn only_hashes_of_grants_are_stored(fixture: Fixture) {
    let placed = fixture.placed().await;
    for token in [&placed.control, &placed.agent] {
        assert!(!fixture.holds(&token.expose().as_bytes()["csc_".len()..]).await);
        assert!(fixture.holds(token.hash().as_str().as_bytes()).await, "the search finds what is there");
    }
}

async fn a_servers_sandboxes_are_those_not_destroyed_oldest_first(fixture: Fixture) {
    let run = fixture.queued().await;
    let mut ids = Vec::new();
    for number in 1..=3 {
        ids.push(fixture.sandbox(&run.session, number).await.0);
    }
    fixture.store.set_sandbox_state(&ids[0], SandboxState::Stopping).await.unwrap();
    fixture.store.set_sandbox_state(&ids[1], SandboxState::Destroyed).await.unwrap();
    let alive = fixture.store.sandboxes_of(&fixture.server).await.unwrap();
    assert_eq!(alive.iter().map(|row| &row.id).collect::<Vec<_>>(), [&ids[0], &ids[2]]);
    assert_eq!(fixture.store.sandboxes_of(&server_id(2)).await.unwrap(), []);
}

async fn a_sandbox_of_an_unknown_session_or_server_is_refused(fixture: Fixture) {
    let run = fixture.queued().await;
    let (_, control, agent) = fixture.sandbox(&run.session, 1).await;
    let new = NewSandbox {
        id: SandboxId::new(1, [5; 10]),
        session: run.session.clone(),
        server: fixture.server.clone(),
        engine: "docker".to_owned(),
        image: "x".to_owned(),
        uid: 1,
        control: control.hash(),
        agent: agent.hash(),
    };
    let unknown = NewSandbox { session: SessionId::new(1, [9; 10]), ..new.clone() };
    assert_corrupt(fixture.store.create_sandbox(&unknown).await, "session ses_");
    let unknown = NewSandbox { server: server_id(9), ..new.clone() };
    assert_corrupt(fixture.store.create_sandbox(&unknown).await, "a constraint");
    fixture.store.create_sandbox(&new).await.unwrap();
    assert_corrupt(fixture.store.create_sandbox(&new).await, "a constraint");
}
