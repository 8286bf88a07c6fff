//! Idempotency keys.

use caisson_domain::limits::IDEMPOTENCY_MS;
use caisson_domain::run::{Run, RunStatus};
use caisson_store::{CreateRun, Idempotency, NewRun};

use crate::fixture::{Fixture, made, new_run, project, spec};

conformance! {
    the_same_request_is_answered_with_its_run_as_it_stands_now,
    the_same_key_with_another_request_is_refused,
    keys_of_two_projects_do_not_meet,
    a_key_is_forgotten_at_its_expiry_and_can_be_used_again,
    expired_keys_do_not_pile_up,
    a_full_queue_still_answers_a_repeated_request,
    of_many_equal_requests_at_once_one_makes_the_run,
}

fn request(key: &str, body: &str) -> NewRun {
    let idempotency = Idempotency { key: key.to_owned(), request_sha256: body.to_owned() };
    NewRun { idempotency: Some(idempotency), ..new_run(spec()) }
}

async fn created(fixture: &Fixture, new: NewRun) -> Run {
    made(fixture.store.create_run(new).await)
}

async fn the_same_request_is_answered_with_its_run_as_it_stands_now(fixture: Fixture) {
    let run = created(&fixture, request("k", "a")).await;
    assert_eq!(fixture.store.create_run(request("k", "a")).await.unwrap(), CreateRun::Replayed(run.clone()));
    fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
    let CreateRun::Replayed(again) = fixture.store.create_run(request("k", "a")).await.unwrap() else {
        panic!("not replayed")
    };
    assert_eq!((again.id, again.status), (run.id, RunStatus::Cancelled));
    assert_eq!(fixture.value::<i64>("select count(*) from run").await, 1);
    assert_eq!(fixture.value::<i64>("select count(*) from audit where action = 'run.create'").await, 1);
}

async fn the_same_key_with_another_request_is_refused(fixture: Fixture) {
    created(&fixture, request("k", "a")).await;
    assert_eq!(fixture.store.create_run(request("k", "b")).await.unwrap(), CreateRun::KeyReused);
    assert_eq!(fixture.value::<i64>("select count(*) from run").await, 1);
    created(&fixture, request("other", "b")).await;
}

async fn keys_of_two_projects_do_not_meet(fixture: Fixture) {
    fixture.execute("insert into project (id, created_at_ms) values ('other', 0)").await;
    let first = created(&fixture, request("k", "a")).await;
    let new = NewRun { project: "other".parse().unwrap(), ..request("k", "b") };
    assert_ne!(created(&fixture, new).await.id, first.id);
}

async fn a_key_is_forgotten_at_its_expiry_and_can_be_used_again(fixture: Fixture) {
    let first = created(&fixture, request("k", "a")).await;
    fixture.clock.advance(IDEMPOTENCY_MS - 1);
    let replayed = fixture.store.create_run(request("k", "a")).await.unwrap();
    assert!(matches!(replayed, CreateRun::Replayed(_)), "{replayed:?}");
    fixture.clock.advance(1);
    let second = created(&fixture, request("k", "b")).await;
    assert_ne!(first.id, second.id);
    let replayed = fixture.store.create_run(request("k", "b")).await.unwrap();
    assert_eq!(replayed, CreateRun::Replayed(second), "the new use is remembered from now on");
}

async fn expired_keys_do_not_pile_up(fixture: Fixture) {
    for number in 0..5 {
        created(&fixture, request(&format!("old {number}"), "a")).await;
    }
    fixture.clock.advance(IDEMPOTENCY_MS);
    created(&fixture, request("new", "a")).await;
    assert_eq!(fixture.value::<i64>("select count(*) from idempotency").await, 1);
    assert_eq!(fixture.value::<i64>("select count(*) from run").await, 6, "runs stay");
}

async fn a_full_queue_still_answers_a_repeated_request(fixture: Fixture) {
    let run = created(&fixture, request("k", "a")).await;
    fixture
        .execute(
            "with recursive number (n) as (select 2 union all select n + 1 from number where n < 10000) \
             insert into run (id, project_id, session_id, workflow, status, not_before_ms, created_at_ms, spec) \
             select 'run_00000000000000000000000' || cast(100000000 + n as text), project_id, session_id, workflow, status, not_before_ms, created_at_ms, \
             spec from run, number",
        )
        .await;
    assert_eq!(fixture.store.create_run(request("new", "a")).await.unwrap(), CreateRun::QueueFull);
    assert_eq!(fixture.store.create_run(request("k", "a")).await.unwrap(), CreateRun::Replayed(run));
    assert_eq!(fixture.store.create_run(request("k", "b")).await.unwrap(), CreateRun::KeyReused);
}

async fn of_many_equal_requests_at_once_one_makes_the_run(fixture: Fixture) {
    let requests = (0..16).map(|_| fixture.store.create_run(request("k", "a")));
    let answers = futures_util::future::try_join_all(requests).await.unwrap();
    let made = answers.iter().filter(|answer| matches!(answer, CreateRun::Created(_))).count();
    let replayed = answers.iter().filter(|answer| matches!(answer, CreateRun::Replayed(_))).count();
    assert_eq!((made, replayed), (1, 15));
}
