//! Caps hold at their bounds however many ask at once, over several stores on one database.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};

use caisson_domain::id::{ProjectId, RunId};
use caisson_domain::queue::QueueLimits;
use caisson_domain::run::{RunSpec, RunStatus};
use caisson_store::{Actor, ChangeShare, Clock, CreateRun, DeleteSession, Finish, NewRun, Store, StoreError};
use futures_util::future::join_all;

use crate::fixture::{Fixture, START_MS, new_run, project, server_id, spec, spec_on};
use crate::turns::{queued, tenant};

conformance! {
    two_hundred_claimers_get_as_many_runs_as_there_may_run,
    two_hundred_claimers_get_as_many_of_a_project_as_it_may_have,
    two_hundred_claimers_get_as_many_on_a_repository_as_there_may_be,
    two_hundred_claimers_get_as_many_as_a_credential_may_have,
    two_hundred_submitters_fill_the_queue_to_its_bound,
    two_hundred_submitters_fill_a_projects_part_to_its_bound,
    a_project_beside_others_fills_half_of_the_queue_with_runs_of_whatever_time,
    a_project_alone_fills_the_whole_queue_after_sessions_were_removed_as_well,
    a_branch_never_has_two_holders,
    a_cap_of_nothing_lets_nothing_through,
}

/// Claimers and submitters at once.
const AT_ONCE: usize = 200;
/// What every cap is set to.
const CAP: i64 = 7;

/// Several stores on the fixture's database, each with connections of its own and a server.
async fn stores(fixture: &Fixture, limits: QueueLimits) -> Vec<Store> {
    let mut stores = vec![fixture.store.clone()];
    for number in 2..5 {
        let store = fixture.beside(Clock::fixed_at(START_MS).0).await.unwrap();
        store.register_server(&server_id(number)).await.unwrap();
        stores.push(store);
    }
    for store in &stores {
        store.bound_queue(limits);
    }
    stores
}

/// Most times that one of them asks.
const TRIES: usize = 50;

/// Asks until there is an answer. A server claims one run at a time, and whoever submits one is told to try again: so a call
/// waits a bounded time for a connection, and of this many at once on a slow machine some do not get one in time.
async fn answer<T>(ask: impl AsyncFn() -> Result<T, StoreError>) -> T {
    for _ in 1..TRIES {
        match ask().await {
            Err(StoreError::Unavailable(_)) => tokio::task::yield_now().await,
            answer => return answer.unwrap(),
        }
    }
    ask().await.unwrap()
}

async fn claim_at_once(stores: &[Store]) -> Vec<caisson_store::Claimed> {
    let claims = (0..AT_ONCE).map(|turn| {
        let at = turn % stores.len();
        let server = server_id(u8::try_from(at).unwrap() + 1);
        async move { answer(async || stores[at].claim(&server).await).await }
    });
    let claimed: Vec<_> = join_all(claims).await.into_iter().flatten().collect();
    let ids: BTreeSet<&RunId> = claimed.iter().map(|claimed| &claimed.run.id).collect();
    assert_eq!(ids.len(), claimed.len(), "none twice");
    claimed
}

async fn submit_at_once(stores: &[Store], project: &ProjectId) -> Vec<CreateRun> {
    let submissions = (0..AT_ONCE).map(|turn| {
        let new = NewRun { project: project.clone(), ..new_run(spec()) };
        async move { answer(async || stores[turn % stores.len()].create_run(new.clone()).await).await }
    });
    join_all(submissions).await
}

async fn close(stores: Vec<Store>) {
    for store in &stores[1..] {
        store.close().await.unwrap();
    }
}

fn bound(claimed: &[caisson_store::Claimed]) -> i64 {
    i64::try_from(claimed.len()).unwrap()
}

async fn two_hundred_claimers_get_as_many_runs_as_there_may_run(fixture: Fixture) {
    let other = tenant(&fixture, "other").await;
    let stores = stores(&fixture, QueueLimits { max_running: Some(CAP), ..QueueLimits::default() }).await;
    for _ in 0..8 {
        fixture.queued().await;
        queued(&fixture, &other, spec()).await;
    }
    let claimed = claim_at_once(&stores).await;
    assert_eq!(bound(&claimed), CAP);
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&claimed[0].run.id, claimed[0].epoch, &finish).await.unwrap());
    assert_eq!(claim_at_once(&stores).await.len(), 1, "one ended, one starts");
    close(stores).await;
}

async fn two_hundred_claimers_get_as_many_of_a_project_as_it_may_have(fixture: Fixture) {
    let other = tenant(&fixture, "other").await;
    let change = ChangeShare { max_running: Some(Some(3)), ..ChangeShare::default() };
    fixture.store.change_share(&other, &change, Actor::Operator).await.unwrap();
    let limits = QueueLimits { max_running_per_project: Some(CAP), ..QueueLimits::default() };
    let stores = stores(&fixture, limits).await;
    for _ in 0..9 {
        fixture.queued().await;
        queued(&fixture, &other, spec()).await;
    }
    let claimed = claim_at_once(&stores).await;
    let own = claimed.iter().filter(|claimed| claimed.run.project == project()).count();
    assert_eq!((own, claimed.len() - own), (7, 3), "the settings' cap, and the project's own");
    close(stores).await;
}

async fn two_hundred_claimers_get_as_many_on_a_repository_as_there_may_be(fixture: Fixture) {
    let other = tenant(&fixture, "other").await;
    let limits = QueueLimits { max_running_per_repository: Some(CAP), ..QueueLimits::default() };
    let stores = stores(&fixture, limits).await;
    for number in 0..6 {
        // One repository, however it is spelled and whoever's run it is.
        queued(&fixture, &project(), spec_on("https://h/x", &format!("a{number}"))).await;
        queued(&fixture, &other, spec_on("https://h/x.git", &format!("b{number}"))).await;
    }
    queued(&fixture, &other, spec_on("https://h/y", "a")).await;
    queued(&fixture, &other, spec()).await;
    let claimed = claim_at_once(&stores).await;
    let on_x = |claimed: &&caisson_store::Claimed| {
        claimed.run.spec.repository.as_ref().is_some_and(|repository| repository.to_string().contains("/x"))
    };
    assert_eq!((claimed.iter().filter(on_x).count(), claimed.len()), (7, 9));
    close(stores).await;
}

async fn two_hundred_claimers_get_as_many_as_a_credential_may_have(fixture: Fixture) {
    let (with, without) = (tenant(&fixture, "with").await, tenant(&fixture, "without").await);
    fixture
        .execute(
            "insert into credential (id, project_id, name, kind, version, created_at_ms, key_id, data_key, sealed, settings) \
             values ('crd_1', 'with', 'own', 'model_api_key', 1, 0, '', '', '', '{}'), \
             ('crd_2', 'without', 'git', 'git_token', 1, 0, '', '', '', '{}')",
        )
        .await;
    let limits = QueueLimits { max_running_per_credential: Some(CAP), ..QueueLimits::default() };
    let stores = stores(&fixture, limits).await;
    for _ in 0..9 {
        for project in [&project(), &with, &without] {
            queued(&fixture, project, spec()).await;
        }
    }
    let claimed = claim_at_once(&stores).await;
    let own = claimed.iter().filter(|claimed| claimed.run.project == with).count();
    assert_eq!((own, claimed.len() - own), (7, 7), "its own, and the settings' one that two projects share");
    close(stores).await;
}

async fn two_hundred_submitters_fill_the_queue_to_its_bound(fixture: Fixture) {
    let limits = QueueLimits { max_queued: 20, ..QueueLimits::default() };
    let stores = stores(&fixture, limits).await;
    let answers = submit_at_once(&stores, &project()).await;
    assert_eq!(answers.iter().filter(|answer| matches!(answer, CreateRun::Created(_))).count(), 20);
    assert_eq!(answers.iter().filter(|answer| matches!(answer, CreateRun::QueueFull)).count(), AT_ONCE - 20);
    fixture.claim().await;
    assert!(matches!(stores[1].create_run(new_run(spec())).await.unwrap(), CreateRun::Created(_)));
    assert_eq!(stores[1].create_run(new_run(spec())).await.unwrap(), CreateRun::QueueFull);
    close(stores).await;
}

async fn two_hundred_submitters_fill_a_projects_part_to_its_bound(fixture: Fixture) {
    let other = tenant(&fixture, "other").await;
    let change = ChangeShare { max_queued: Some(Some(5)), ..ChangeShare::default() };
    fixture.store.change_share(&other, &change, Actor::Operator).await.unwrap();
    let limits = QueueLimits { max_queued_per_project: Some(CAP), ..QueueLimits::default() };
    let stores = stores(&fixture, limits).await;
    for (project, bound) in [(&project(), 7), (&other, 5)] {
        let answers = submit_at_once(&stores, project).await;
        assert_eq!(answers.iter().filter(|answer| matches!(answer, CreateRun::Created(_))).count(), bound);
        let refused = answers.iter().filter(|answer| matches!(answer, CreateRun::ProjectQueueFull)).count();
        assert_eq!(refused, AT_ONCE - bound);
    }
    close(stores).await;
}

async fn a_project_beside_others_fills_half_of_the_queue_with_runs_of_whatever_time(fixture: Fixture) {
    let limits = QueueLimits { max_queued: 5, ..QueueLimits::default() };
    fixture.store.bound_queue(limits);
    let create = async |project: &ProjectId| {
        let later = RunSpec { start_at_ms: Some(START_MS + 1_000_000), ..spec() };
        fixture.store.create_run(NewRun { project: project.clone(), ..new_run(later) }).await.unwrap()
    };
    for _ in 0..4 {
        assert!(matches!(create(&project()).await, CreateRun::Created(_)), "as long as it is alone");
    }
    let other = tenant(&fixture, "other").await;
    assert_eq!(create(&project()).await, CreateRun::ProjectQueueFull);
    assert!(matches!(create(&other).await, CreateRun::Created(_)));
    assert_eq!(create(&other).await, CreateRun::QueueFull, "what was there before stays");
    let all = ChangeShare { max_queued: Some(Some(5)), ..ChangeShare::default() };
    fixture.store.change_share(&project(), &all, Actor::Operator).await.unwrap();
    assert_eq!(create(&project()).await, CreateRun::QueueFull, "it was told that it may");
}

async fn a_project_alone_fills_the_whole_queue_after_sessions_were_removed_as_well(fixture: Fixture) {
    let removed = fixture.created(spec()).await;
    fixture.store.request_cancel(&project(), &removed.id, None).await.unwrap();
    let deleted = fixture.store.delete_session_of(&project(), &removed.session, Actor::Operator).await;
    assert_eq!(deleted.unwrap(), DeleteSession::Deleted);
    fixture.store.bound_queue(QueueLimits { max_queued: 5, ..QueueLimits::default() });
    for _ in 0..5 {
        let made = fixture.store.create_run(new_run(spec())).await.unwrap();
        assert!(matches!(made, CreateRun::Created(_)), "{made:?}");
    }
    assert_eq!(fixture.store.create_run(new_run(spec())).await.unwrap(), CreateRun::QueueFull);
}

async fn a_branch_never_has_two_holders(fixture: Fixture) {
    const RUNS: usize = 24;
    let other = tenant(&fixture, "other").await;
    let stores = stores(&fixture, QueueLimits::default()).await;
    for number in 0..RUNS {
        let project = if number % 2 == 0 { project() } else { other.clone() };
        queued(
            &fixture,
            &project,
            RunSpec { priority: (number % 3).try_into().unwrap(), ..spec_on("/srv/x", "a") },
        )
        .await;
    }
    let (holders, most, done) = (AtomicI64::new(0), AtomicI64::new(0), AtomicI64::new(0));
    let workers = (0..16).map(|worker| {
        let at = worker % stores.len();
        let (store, server) = (&stores[at], server_id(u8::try_from(at).unwrap() + 1));
        let (holders, most, done) = (&holders, &most, &done);
        async move {
            // Bounded: each turn but the last ones finds a run, or finds the branch taken.
            for _ in 0..RUNS * 40 {
                if done.load(Ordering::SeqCst) == i64::try_from(RUNS).unwrap() {
                    return;
                }
                let Some(claimed) = store.claim(&server).await.unwrap() else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let held = holders.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(held, Ordering::SeqCst);
                tokio::task::yield_now().await;
                holders.fetch_sub(1, Ordering::SeqCst);
                let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
                assert!(store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
                done.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    join_all(workers).await;
    assert_eq!((done.into_inner(), most.into_inner()), (i64::try_from(RUNS).unwrap(), 1));
    close(stores).await;
}

async fn a_cap_of_nothing_lets_nothing_through(fixture: Fixture) {
    fixture.queued().await;
    let nothing = ChangeShare { max_running: Some(Some(0)), max_queued: Some(Some(0)), weight: None };
    fixture.store.change_share(&project(), &nothing, Actor::Operator).await.unwrap();
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    assert_eq!(fixture.store.create_run(new_run(spec())).await.unwrap(), CreateRun::ProjectQueueFull);
}
