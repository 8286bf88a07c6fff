//! Servers and their signs of life.

use caisson_domain::grant::GrantKind;
use caisson_domain::limits::{SERVER_LOST_MS_DEFAULT, SERVER_SILENT_MS};
use caisson_domain::retention::{Kept, Retention};
use caisson_domain::run::RunStatus;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_store::{Actor, Finish, ForgetServer, SandboxState};

use crate::fixture::{Fixture, START_MS, server_id, spec};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

conformance! {
    a_server_lives_until_it_is_silent_for_too_long,
    a_heartbeat_tells_of_problems_and_registers_an_unknown_server,
    registering_again_clears_the_problems,
    a_server_is_in_use_while_it_has_running_runs_or_living_sandboxes,
    a_lost_server_without_runs_is_forgotten_until_it_is_heard_of,
    a_database_that_nothing_takes_over_from_has_no_weakness,
    sessions_of_a_server_that_is_forgotten_expire_although_it_has_sandboxes_and_files,
}

async fn a_server_lives_until_it_is_silent_for_too_long(fixture: Fixture) {
    fixture.clock.advance(SERVER_SILENT_MS);
    let live = fixture.store.live_servers().await.unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!((&live[0].id, live[0].seen_at_ms), (&fixture.server, START_MS));
    fixture.clock.advance(1);
    assert_eq!(fixture.store.live_servers().await.unwrap(), []);
    fixture.store.heartbeat_server(&fixture.server, &[]).await.unwrap();
    assert_eq!(fixture.store.live_servers().await.unwrap().len(), 1);
}

async fn a_database_that_nothing_takes_over_from_has_no_weakness(fixture: Fixture) {
    assert_eq!(fixture.store.failover_weakness().await.unwrap(), None);
}

async fn a_heartbeat_tells_of_problems_and_registers_an_unknown_server(fixture: Fixture) {
    let problem = PlacementProblem { code: ProblemCode::DiskLow, message: "make room".to_owned() };
    fixture.store.heartbeat_server(&server_id(2), std::slice::from_ref(&problem)).await.unwrap();
    let live = fixture.store.live_servers().await.unwrap();
    assert_eq!(live.iter().map(|server| &server.id).collect::<Vec<_>>(), [&fixture.server, &server_id(2)]);
    assert_eq!(live[0].problems, []);
    assert_eq!(live[1].problems, [problem]);
}

async fn registering_again_clears_the_problems(fixture: Fixture) {
    let problem = PlacementProblem { code: ProblemCode::ImageMissing, message: "build it".to_owned() };
    fixture.store.heartbeat_server(&fixture.server, &[problem]).await.unwrap();
    fixture.clock.advance(3);
    fixture.store.register_server(&fixture.server).await.unwrap();
    let live = fixture.store.live_servers().await.unwrap();
    assert_eq!((live[0].seen_at_ms, live[0].problems.len()), (START_MS + 3, 0));
}

async fn a_server_is_in_use_while_it_has_running_runs_or_living_sandboxes(fixture: Fixture) {
    let (store, own) = (&fixture.store, [fixture.server.clone()]);
    store.register_server(&server_id(2)).await.unwrap();
    assert_eq!(store.servers_in_use().await.unwrap(), []);
    fixture.created(spec()).await;
    assert_eq!(store.servers_in_use().await.unwrap(), [], "a queued run has no home");
    let claimed = fixture.claim().await;
    assert_eq!(store.servers_in_use().await.unwrap(), own);
    let placed = fixture.place(claimed, 1).await;
    let cancelled = Finish { status: RunStatus::Cancelled, failure: None, result: None };
    assert!(store.finish(&placed.run.id, placed.epoch, &cancelled).await.unwrap());
    assert_eq!(store.servers_in_use().await.unwrap(), own, "its sandbox lives");
    assert!(store.set_sandbox_state(&placed.sandbox, SandboxState::Stopping).await.unwrap());
    assert_eq!(store.servers_in_use().await.unwrap(), own);
    assert!(store.set_sandbox_state(&placed.sandbox, SandboxState::Destroyed).await.unwrap());
    assert_eq!(store.servers_in_use().await.unwrap(), []);
}

async fn a_lost_server_without_runs_is_forgotten_until_it_is_heard_of(fixture: Fixture) {
    let (store, server) = (&fixture.store, &fixture.server);
    let forget = async || store.forget_server(server, Actor::Operator).await.unwrap();
    assert_eq!(forget().await, ForgetServer::NotLost);
    fixture.created(spec()).await;
    let claimed = fixture.claim().await;
    let placed = fixture.place(claimed, 1).await;
    fixture.clock.advance(SERVER_LOST_MS_DEFAULT - 1);
    assert_eq!(forget().await, ForgetServer::NotLost);
    fixture.clock.advance(1);
    assert_eq!(forget().await, ForgetServer::InUse { runs: 1 });
    let cancelled = Finish { status: RunStatus::Cancelled, failure: None, result: None };
    assert!(store.finish(&placed.run.id, placed.epoch, &cancelled).await.unwrap());
    assert_eq!(forget().await, ForgetServer::Forgotten);
    assert_eq!(store.list_servers(None, 10).await.unwrap(), []);
    assert_eq!(forget().await, ForgetServer::Unknown, "it is forgotten");
    assert_eq!(store.forget_server(&server_id(7), Actor::Operator).await.unwrap(), ForgetServer::Unknown);
    let recorded = "select count(*) from audit where action = 'server.forget'";
    assert_eq!(fixture.value::<i64>(recorded).await, 1);
    store.heartbeat_server(server, &[]).await.unwrap();
    assert_eq!(store.list_servers(None, 10).await.unwrap().len(), 1, "it is back");
}

async fn sessions_of_a_server_that_is_forgotten_expire_although_it_has_sandboxes_and_files(fixture: Fixture) {
    let (store, server) = (&fixture.store, &fixture.server);
    let policy = Retention { sessions_days: 1, ..Retention::default() };
    let other = server_id(2);
    // It died with a sandbox, and somebody wrote its run off.
    let placed = fixture.placed().await;
    let failed = Finish { status: RunStatus::Failed, failure: None, result: None };
    assert!(store.finish(&placed.run.id, placed.epoch, &failed).await.unwrap());
    assert!(store.set_sandbox_state(&placed.sandbox, SandboxState::Stopping).await.unwrap());
    fixture.clock.advance(2 * DAY_MS);
    let expired = async || store.expired(Kept::Sessions, &other, &policy).await.unwrap().len();
    let delete = async || store.delete_session(&placed.run.session, &policy, &Actor::Server).await.unwrap();
    let delete_events = async || {
        store.delete_events(&placed.run.session, &policy, &Actor::Server).await.unwrap();
    };
    delete_events().await;
    assert_eq!((expired().await, delete().await), (0, false), "its sandbox lives");
    assert_eq!(store.forget_server(server, Actor::Operator).await.unwrap(), ForgetServer::Forgotten);
    let state = store.sandbox(&placed.sandbox).await.unwrap().unwrap().state;
    assert_eq!(state, SandboxState::Destroyed);
    assert_eq!(store.sandboxes_of(server).await.unwrap(), []);
    for (kind, token) in [(GrantKind::Control, &placed.control), (GrantKind::Agent, &placed.agent)] {
        assert!(!store.check_grant(&placed.sandbox, kind, &token.hash()).await.unwrap(), "{kind:?}");
    }
    delete_events().await;
    assert_eq!(expired().await, 1);
    // It is back: what it has counts again.
    store.heartbeat_server(server, &[]).await.unwrap();
    assert_eq!((expired().await, delete().await), (0, false), "its files are there");
    assert_eq!(store.expired(Kept::Volumes, server, &policy).await.unwrap().len(), 1, "and it removes them");
    fixture.clock.advance(2 * DAY_MS);
    assert_eq!(store.forget_server(server, Actor::Operator).await.unwrap(), ForgetServer::Forgotten);
    assert!(delete().await);
    assert_eq!(fixture.value::<i64>("select count(*) from session_files").await, 0);
}
