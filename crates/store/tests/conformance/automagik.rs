//! The words with which a run was asked for, sessions that go on, and lists by page number.

use caisson_domain::id::{RunId, SessionId};
use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_store::{
    Asked, AskedRun, CancelRun, CreateRun, Direction, Finish, Idempotency, NumberedFilter, NumberedRun,
    RepeatWindow, RunOrder,
};

use crate::fixture::{Fixture, made, new_run, project, spec};

conformance! {
    a_run_keeps_the_words_it_was_asked_for_with,
    an_idempotency_key_is_remembered_as_long_as_was_asked_and_longer_while_its_run_lives,
    a_session_goes_on_with_another_run,
    runs_are_paged_by_every_order_and_filter,
    sessions_are_paged_both_ways,
    another_projects_things_are_not_counted,
}

fn asked(name: &str) -> Asked {
    Asked {
        workflow_name: name.to_owned(),
        session_name: Some(format!("{name}'s")),
        user: Some(name.to_owned()),
    }
}

fn asking(name: &str) -> AskedRun {
    let window = RepeatWindow { always_ms: 1_000, live_ms: 5_000 };
    AskedRun { run: new_run(spec()), asked: asked(name), session: None, window }
}

async fn a_run_keeps_the_words_it_was_asked_for_with(fixture: Fixture) {
    let run = made(fixture.store.create_asked_run(asking("surgeon")).await);
    let found = fixture.store.numbered_run(&project(), &run.id).await.unwrap().unwrap();
    assert_eq!(found, NumberedRun { run: run.clone(), asked: Some(asked("surgeon")) });
    assert_eq!(fixture.store.asked_of(&run.session).await.unwrap(), Some(asked("surgeon")));
    let by_name = fixture.store.session_by_name(&project(), "surgeon's").await.unwrap();
    assert_eq!(by_name, Some(run.session));
    let native = fixture.queued().await;
    let found = fixture.store.numbered_run(&project(), &native.id).await.unwrap().unwrap();
    assert_eq!(found.asked, None);
    assert_eq!(fixture.store.asked_of(&native.session).await.unwrap(), None);
    let unknown = RunId::new(1, [9; 10]);
    assert_eq!(fixture.store.numbered_run(&project(), &unknown).await.unwrap(), None);
}

async fn an_idempotency_key_is_remembered_as_long_as_was_asked_and_longer_while_its_run_lives(
    fixture: Fixture,
) {
    let idempotency = Idempotency { key: "same request x".to_owned(), request_sha256: "x".to_owned() };
    let wish = || {
        let mut wish = asking("one");
        wish.run.idempotency = Some(idempotency.clone());
        wish
    };
    let ask = async || fixture.store.create_asked_run(wish()).await.unwrap();
    let repeated = async || {
        let answer = ask().await;
        let CreateRun::Replayed(run) = answer else { panic!("not the same: {answer:?}") };
        run.id
    };
    let end = async |run: &RunId| {
        let ended = fixture.store.request_cancel(&project(), run, None).await.unwrap();
        assert!(matches!(ended, CancelRun::Cancelled(_)), "{ended:?}");
    };
    // One that is over is found for its second, and no longer.
    let first = made(fixture.store.create_asked_run(wish()).await).id;
    end(&first).await;
    fixture.clock.advance(999);
    assert_eq!(repeated().await, first);
    fixture.clock.advance(1);
    let window = wish().window;
    assert_eq!(fixture.store.replayed(&project(), &idempotency, window).await.unwrap(), None);
    // One that waits is found for five, and one that has ended in between is not.
    let second = made(Ok(ask().await)).id;
    assert_ne!(second, first);
    fixture.clock.advance(4_999);
    assert_eq!(repeated().await, second);
    fixture.clock.advance(1);
    let third = made(Ok(ask().await)).id;
    assert_ne!(third, second);
    fixture.clock.advance(1_000);
    assert_eq!(repeated().await, third);
    end(&third).await;
    let fourth = made(Ok(ask().await)).id;
    assert_ne!(fourth, third);
    assert_eq!(repeated().await, fourth, "the new one is remembered from now on");
}

async fn a_session_goes_on_with_another_run(fixture: Fixture) {
    let first = made(fixture.store.create_asked_run(asking("one")).await);
    fixture.clock.advance(1);
    let next = AskedRun { session: Some(first.session.clone()), ..asking("two") };
    let second = made(fixture.store.create_asked_run(next).await);
    assert_eq!(second.session, first.session);
    let session = fixture.store.session(&project(), &first.session).await.unwrap().unwrap();
    assert_eq!((session.runs, session.last_run), (2, Some(second.id.clone())));
    assert_eq!(fixture.claim().await.run.id, first.id);
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None, "they come one after another");
    let nowhere = AskedRun { session: Some(SessionId::new(1, [9; 10])), ..asking("three") };
    assert_eq!(fixture.store.create_asked_run(nowhere).await.unwrap(), CreateRun::NoSession);
    assert_eq!(fixture.store.count_runs(&project(), &NumberedFilter::default()).await.unwrap(), 2);
}

/// Runs that took 30, 20 and 10 ms, the last of which timed out, and one that waits.
async fn filled(fixture: &Fixture) -> Vec<RunId> {
    let mut ids = Vec::new();
    for (name, took_ms) in [("a", 30), ("b", 20), ("c", 10)] {
        fixture.clock.advance(1);
        ids.push(made(fixture.store.create_asked_run(asking(name)).await).id);
        let claimed = fixture.claim().await;
        fixture.clock.advance(took_ms);
        let failure = (name == "c").then(|| Failure::new(FailureKind::Timeout, "too long"));
        let status = if failure.is_some() { RunStatus::Failed } else { RunStatus::Succeeded };
        let finish = Finish { status, failure, result: None };
        assert!(fixture.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
    }
    fixture.clock.advance(1);
    ids.push(made(fixture.store.create_asked_run(asking("d")).await).id);
    ids
}

async fn runs_are_paged_by_every_order_and_filter(fixture: Fixture) {
    let ids = filled(&fixture).await;
    let names = async |filter: &NumberedFilter, order, page| -> String {
        let found = fixture.store.numbered_runs(&project(), filter, order, page).await.unwrap();
        found.into_iter().map(|found| found.asked.unwrap().workflow_name).collect()
    };
    let all = NumberedFilter::default();
    let (rising, falling) = (Direction::Rising, Direction::Falling);
    for (order, page, expected) in [
        ((RunOrder::Created, falling), (0, 25), "dcba"),
        ((RunOrder::Created, rising), (1, 2), "bc"),
        ((RunOrder::Finished, falling), (0, 25), "cbad"),
        ((RunOrder::Finished, rising), (0, 25), "dabc"),
        ((RunOrder::Duration, falling), (0, 25), "abcd"),
        ((RunOrder::Duration, rising), (0, 2), "dc"),
        ((RunOrder::Cost, falling), (0, 25), "dcba"),
        ((RunOrder::Cost, rising), (3, 25), "d"),
    ] {
        assert_eq!(names(&all, order, page).await, expected, "{order:?}");
    }
    let one = ids[0].clone();
    let of = |change: &dyn Fn(&mut NumberedFilter)| {
        let mut filter = NumberedFilter::default();
        change(&mut filter);
        filter
    };
    for (filter, expected) in [
        (of(&|filter| filter.status = Some(RunStatus::Succeeded)), "ba"),
        (of(&|filter| filter.timed_out = true), "c"),
        (of(&|filter| filter.workflow = Some("b".to_owned())), "b"),
        (of(&|filter| filter.workflow = Some(spec().workflow.name)), "dcba"),
        (of(&|filter| filter.user = Some("d".to_owned())), "d"),
        (of(&|filter| filter.user = Some("nobody".to_owned())), ""),
    ] {
        assert_eq!(names(&filter, (RunOrder::Created, falling), (0, 25)).await, expected, "{filter:?}");
        let counted = fixture.store.count_runs(&project(), &filter).await.unwrap();
        assert_eq!(usize::try_from(counted).unwrap(), expected.len(), "{filter:?}");
    }
    assert_eq!(fixture.run(&one).await.status, RunStatus::Succeeded);
}

async fn sessions_are_paged_both_ways(fixture: Fixture) {
    filled(&fixture).await;
    let names = async |direction, page| -> String {
        let found = fixture.store.numbered_sessions(&project(), direction, page).await.unwrap();
        found.into_iter().map(|found| found.asked.unwrap().workflow_name).collect()
    };
    assert_eq!(names(Direction::Falling, (0, 25)).await, "dcba");
    assert_eq!(names(Direction::Rising, (1, 2)).await, "bc");
    assert_eq!(fixture.store.count_sessions(&project()).await.unwrap(), 4);
}

async fn another_projects_things_are_not_counted(fixture: Fixture) {
    let run = made(fixture.store.create_asked_run(asking("a")).await);
    let other = "other".parse().unwrap();
    let store = &fixture.store;
    assert_eq!(store.numbered_run(&other, &run.id).await.unwrap(), None);
    assert_eq!(store.session_by_name(&other, "a's").await.unwrap(), None);
    assert_eq!(store.count_runs(&other, &NumberedFilter::default()).await.unwrap(), 0);
    assert_eq!(store.count_sessions(&other).await.unwrap(), 0);
    let order = (RunOrder::default(), Direction::default());
    assert_eq!(store.numbered_runs(&other, &NumberedFilter::default(), order, (0, 25)).await.unwrap(), []);
    assert_eq!(store.numbered_sessions(&other, Direction::Falling, (0, 25)).await.unwrap(), []);
}
