//! The server that holds a session's next run.

use caisson_domain::limits::{SERVER_LOST_MS_DEFAULT, SERVER_SILENT_MS};
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_store::SessionHome;

use crate::fixture::{Fixture, spec_on};
use crate::going_on::{BY, REPOSITORY, ended, follow};
use crate::lost::witness;

conformance! {
    a_follow_up_is_held_by_its_home_until_that_is_lost,
}

async fn a_follow_up_is_held_by_its_home_until_that_is_lost(fixture: Fixture) {
    let store = &fixture.store;
    let fresh = fixture.created(spec_on(REPOSITORY, "fresh")).await;
    assert_eq!(store.home_that_holds(&fresh.session).await.unwrap(), None, "no agent has worked in it");
    store.request_cancel(&crate::fixture::project(), &fresh.id, None).await.unwrap();
    let first = ended(&fixture, 1).await;
    follow(&fixture, &first.session).await;
    let home = async || store.home_that_holds(&first.session).await.unwrap();
    let told = async || home().await.map(|SessionHome { drained, is_away, .. }| (drained, is_away));
    assert_eq!(home().await.unwrap().server.id, fixture.server);
    let problem = PlacementProblem { code: ProblemCode::DiskLow, message: "make room".to_owned() };
    store.heartbeat_server(&fixture.server, std::slice::from_ref(&problem)).await.unwrap();
    assert_eq!(home().await.unwrap().server.problems, [problem]);
    store.heartbeat_server(&fixture.server, &[]).await.unwrap();
    assert_eq!(told().await, Some((false, false)));
    for server in [Some(&fixture.server), None] {
        store.drain(server, &BY).await.unwrap();
        assert_eq!(told().await, Some((true, false)), "{server:?}");
        assert_eq!(store.claim(&fixture.server).await.unwrap(), None);
        store.resume(None, &BY).await.unwrap();
    }
    fixture.clock.advance(SERVER_SILENT_MS);
    assert_eq!(told().await, Some((false, false)));
    fixture.clock.advance(1);
    assert_eq!(told().await, Some((false, true)));
    fixture.clock.advance(SERVER_LOST_MS_DEFAULT - SERVER_SILENT_MS - 2);
    assert_eq!(told().await, Some((false, true)), "until it is lost");
    fixture.clock.advance(1);
    assert!(home().await.unwrap().is_lost, "nobody has witnessed it");
    // As after an outage of the database: whoever is back first may not claim, and so the home holds the run.
    let other = witness(&fixture, SERVER_LOST_MS_DEFAULT - 1).await;
    assert_eq!(store.claim(&other).await.unwrap(), None);
    assert!(home().await.unwrap().is_lost);
    fixture.clock.advance(1);
    assert_eq!(home().await, None, "then any other server may");
    assert!(store.claim(&other).await.unwrap().is_some());
}
