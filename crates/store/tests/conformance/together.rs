//! Several servers on one database, or several tasks of one: what holds for one holds for all of them together.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use caisson_domain::budget::ProjectBudgets;
use caisson_domain::id::RunId;
use caisson_domain::limits::{LEASE_MS, SERVER_SILENT_MS};
use caisson_domain::usage::TokenCounts;
use caisson_store::{
    Actor, BeginCall, Clock, CreateRun, Idempotency, JournalEffect, NewAudit, NewModelCall, NewRun, Store,
    Topic,
};
use futures_util::future::join_all;

use crate::fixture::{Fixture, START_MS, assert_gapless, entry, new_run, note, project, server_id, spec};

conformance! {
    two_servers_never_claim_the_same_run,
    two_servers_number_the_events_of_a_session_without_a_gap,
    two_servers_cannot_overshoot_a_budget_together,
    whoever_follows_the_audit_log_of_two_servers_misses_no_record,
    of_equal_requests_to_two_servers_one_makes_the_run,
    text_reaches_a_reader_on_the_other_server,
    an_odd_character_in_a_text_breaks_nothing,
}

/// A second server on the fixture's database.
async fn second(fixture: &Fixture) -> Store {
    let store = fixture.beside(Clock::fixed_at(START_MS).0).await.unwrap();
    store.register_server(&server_id(2)).await.unwrap();
    store.keep_audit(&server_id(2)).await.unwrap();
    store
}

async fn two_servers_never_claim_the_same_run(fixture: Fixture) {
    let second = second(&fixture).await;
    for _ in 0..12 {
        fixture.queued().await;
    }
    let claims = (0..16).map(|turn| {
        let (store, server) = [(&fixture.store, server_id(1)), (&second, server_id(2))][turn % 2].clone();
        async move { store.claim(&server).await.unwrap() }
    });
    let claimed: Vec<RunId> =
        join_all(claims).await.into_iter().flatten().map(|claimed| claimed.run.id).collect();
    assert_eq!((claimed.len(), claimed.iter().collect::<BTreeSet<_>>().len()), (12, 12));
    assert_eq!(fixture.value::<i64>("select count(*) from attempt").await, 12);
    second.close().await.unwrap();
}

async fn two_servers_number_the_events_of_a_session_without_a_gap(fixture: Fixture) {
    let second = second(&fixture).await;
    let placed = fixture.placed().await;
    let id = &placed.run.id;
    let before = fixture.events(id).await.len();
    let appends = (0..20).map(|turn| {
        let store = [&fixture.store, &second][turn % 2];
        async move {
            // Some lock the session alone, some everything.
            match turn % 4 {
                0 | 1 => store.append_gateway_event(id, note("said")).await.map(drop),
                _ => store.record_push(id, &pushed(turn)).await,
            }
        }
    });
    for appended in join_all(appends).await {
        appended.unwrap();
    }
    let events = fixture.events(id).await;
    assert_gapless(&events);
    assert_eq!(events.len(), before + 20);
    second.close().await.unwrap();
}

fn pushed(turn: usize) -> caisson_store::PushRecord {
    let push = caisson_store::Push {
        ref_name: "refs/heads/other".to_owned(),
        old: "0".repeat(40),
        new: format!("{turn:040x}"),
    };
    caisson_store::PushRecord { push, ok: false, message: None }
}

fn call(reserve_micro_usd: i64) -> NewModelCall {
    NewModelCall {
        model: "m".to_owned(),
        estimate: TokenCounts::default(),
        estimate_cost_micro_usd: 1,
        reserve_micro_usd,
        only_alone: false,
    }
}

async fn text_reaches_a_reader_on_the_other_server(fixture: Fixture) {
    let second = second(&fixture).await;
    let run = fixture.queued().await;
    let mut reader = second.subscribe_deltas(&run.session);
    let begun = Instant::now();
    let mut read = String::new();
    // The other server has to hear first that somebody listens.
    for turn in 0..400 {
        let text = format!("{turn},");
        let (kind, message_id) = (caisson_domain::event::DeltaKind::Text, "msg_1".to_owned());
        let delta = caisson_domain::event::Delta { run: run.id.clone(), kind, message_id, block: 0, text };
        fixture.store.publish_delta(&run.session, delta);
        if let Ok(Ok(delta)) = tokio::time::timeout(Duration::from_millis(20), reader.recv()).await {
            assert_eq!((delta.run, delta.message_id.as_str()), (run.id.clone(), "msg_1"));
            read.push_str(&delta.text);
            break;
        }
    }
    if fixture.store.is_shared() {
        assert!(read.ends_with(','), "nothing was read in {:?}", begun.elapsed());
    } else {
        assert_eq!(read, "", "a file is one process's");
    }
    second.close().await.unwrap();
}

#[tokio::test]
async fn live_text_is_heard_in_the_database_only_while_another_server_has_a_reader() {
    let Some(fixture) = Fixture::postgres().await else { return };
    let mut listener = fixture.database.hear_text().await;
    let second = second(&fixture).await;
    let run = fixture.queued().await;
    let say = |text: &str| {
        let (kind, message_id) = (caisson_domain::event::DeltaKind::Text, String::new());
        let delta = caisson_domain::event::Delta {
            run: run.id.clone(),
            kind,
            message_id,
            block: 0,
            text: text.to_owned(),
        };
        fixture.store.publish_delta(&run.session, delta);
    };
    let mut own = fixture.store.subscribe_deltas(&run.session);
    for _ in 0..50 {
        say("for this server alone");
    }
    assert_eq!(own.recv().await.unwrap().text, "for this server alone");
    let reader = second.subscribe_deltas(&run.session);
    let first = async {
        loop {
            say("for both");
            if let Ok(told) = tokio::time::timeout(Duration::from_millis(20), listener.recv()).await {
                return told.unwrap().payload().to_owned();
            }
        }
    };
    let first = tokio::time::timeout(Duration::from_mins(1), first).await.unwrap();
    assert!(first.contains("for both") && !first.contains("alone"), "what came before was not sent: {first}");
    drop(reader);
    second.close().await.unwrap();
}

async fn two_servers_cannot_overshoot_a_budget_together(fixture: Fixture) {
    let second = second(&fixture).await;
    let budgets = ProjectBudgets { total_micro_usd: Some(100), day_micro_usd: None };
    assert!(fixture.store.set_budgets(&project(), &budgets).await.unwrap());
    let mut runs = Vec::new();
    for _ in 0..4 {
        fixture.queued().await;
        runs.push(fixture.claim().await.run.id);
    }
    let calls = (0..16).map(|turn| {
        let (store, run) = ([&fixture.store, &second][turn % 2], &runs[turn % 4]);
        async move { store.begin_model_call(run, &call(30)).await.unwrap() }
    });
    let begun = join_all(calls).await;
    let begun = begun.iter().filter(|call| matches!(call, BeginCall::Begun { .. })).count();
    assert_eq!(begun, 3, "three hold 90 of 100, and a fourth does not fit");
    second.close().await.unwrap();
}

async fn whoever_follows_the_audit_log_of_two_servers_misses_no_record(fixture: Fixture) {
    const RECORDS: usize = 30;
    let second = second(&fixture).await;
    let writes = (0..RECORDS).map(|turn| {
        let store = [&fixture.store, &second][turn % 2];
        let record = NewAudit::new(&project(), Actor::Server, "test.note", &turn.to_string());
        async move { store.append_audit(&record).await.unwrap() }
    });
    let writing = join_all(writes);
    let following = async {
        let (mut last, mut seen) = (0, BTreeSet::new());
        while seen.len() < RECORDS {
            for record in second.audit_after(last).await.unwrap() {
                assert!(record.number > last, "in the order of the numbers");
                last = record.number;
                seen.insert(record.subject);
            }
            tokio::task::yield_now().await;
        }
    };
    let followed =
        tokio::time::timeout(Duration::from_mins(1), futures_util::future::join(writing, following));
    followed.await.expect("no record stays behind a number that was read before it");
    let report = second.verify_audit(&[]).await.unwrap();
    assert!(
        report.chains.len() == 2 && report.chains.iter().all(|chain| chain.fault.is_none()),
        "{report:?}"
    );
    second.close().await.unwrap();
}

async fn of_equal_requests_to_two_servers_one_makes_the_run(fixture: Fixture) {
    let second = second(&fixture).await;
    let idempotency = Idempotency { key: "k".to_owned(), request_sha256: "00".to_owned() };
    let requests = (0..8).map(|turn| {
        let store = [&fixture.store, &second][turn % 2];
        let new = NewRun { idempotency: Some(idempotency.clone()), ..new_run(spec()) };
        async move { store.create_run(new).await.unwrap() }
    });
    let answers = join_all(requests).await;
    let created = answers.iter().filter(|answer| matches!(answer, CreateRun::Created(_))).count();
    let replayed = answers.iter().filter(|answer| matches!(answer, CreateRun::Replayed(_))).count();
    assert_eq!((created, replayed), (1, 7));
    assert_eq!(fixture.value::<i64>("select count(*) from run").await, 1);
    second.close().await.unwrap();
}

async fn an_odd_character_in_a_text_breaks_nothing(fixture: Fixture) {
    fixture.queued().await;
    let claimed = fixture.claim().await;
    let finish = caisson_store::Finish {
        status: caisson_domain::run::RunStatus::Succeeded,
        failure: None,
        result: Some("a\0b".to_owned()),
    };
    assert!(fixture.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
    let kept = fixture.database.of("a\0b", "a\u{fffd}b");
    assert_eq!(fixture.run(&claimed.run.id).await.result.as_deref(), Some(kept));
    let record = NewAudit::new(&project(), Actor::Server, "test.note", "a\0b");
    fixture.store.append_audit(&record).await.unwrap();
    assert_eq!(fixture.store.verify_audit(&[]).await.unwrap().chains[0].fault, None);
}

/// What only a database has that is no file.
pub(crate) mod only_postgres {
    use super::*;
    use crate::database::Database;

    #[tokio::test]
    async fn servers_that_start_at_once_migrate_a_new_database_once() {
        let Some(database) = Database::postgres().await else { return };
        let opened =
            join_all((0..6).map(|_| database.open(Clock::system(), caisson_store::Random::system()))).await;
        for store in opened {
            let store = store.unwrap();
            store.ping().await.unwrap();
            store.close().await.unwrap();
        }
    }

    /// A database of this version that says it is of an earlier one, in which a part of a server was heard of `ago_ms` ago.
    pub(crate) async fn earlier(ago_ms: i64) -> Option<Database> {
        let database = Database::postgres().await?;
        let store = database.open(Clock::system(), caisson_store::Random::system()).await.unwrap();
        let other = caisson_store::Presence {
            server: server_id(2),
            roles: vec![caisson_domain::server::Role::Gateway],
            version: "0.9.0".to_owned(),
            slots: None,
        };
        store.beat(&other).await.unwrap();
        store.close().await.unwrap();
        let run = async |sql: String| {
            let sql: &'static str = Box::leak(sql.into_boxed_str());
            database.try_execute(sql.into(), crate::database::Checks::On).await.unwrap();
        };
        // One that makes a column and nothing else.
        run("alter table server drop column forgotten_at_ms".to_owned()).await;
        run("delete from _sqlx_migrations where version = 17".to_owned()).await;
        // However long all this took.
        run(format!(
            "update server_role set seen_at_ms = extract(epoch from clock_timestamp()) * 1000 - {ago_ms}"
        ))
        .await;
        Some(database)
    }

    #[tokio::test]
    async fn a_database_is_not_migrated_while_a_server_of_before_lives() {
        let Some(database) = earlier(0).await else { return };
        let place = database.place(caisson_store::PostgresLimits::default());
        let opening = Store::connect(&place, Clock::system());
        // However long it waits for the migrator's lock, which tests of other schemas take as well.
        let beating = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let beat = "update server_role set seen_at_ms = extract(epoch from clock_timestamp()) * 1000";
                database.try_execute(beat.into(), crate::database::Checks::On).await.unwrap();
            }
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = beating => unreachable!("it beats for ever"),
        };
        let error = opened.map(drop).unwrap_err();
        let source = std::error::Error::source(&error).unwrap();
        let told = format!("{error}: {source}: {:?}", source.source());
        assert!(told.contains(server_id(2).as_str()) && told.contains("stop every server"), "{told}");
        let behind = Store::look_at(&place, Clock::system()).await.unwrap();
        assert!(matches!(behind, caisson_store::Look::Behind { migrations: 1 }), "{behind:?}");
        // Its own process of before is nobody to wait for.
        let own = place.used_by(&server_id(2), &[caisson_domain::server::Role::Gateway]);
        let begun = Instant::now();
        Store::connect(&own, Clock::system()).await.unwrap().close().await.unwrap();
        let silent = Duration::from_millis(SERVER_SILENT_MS.unsigned_abs());
        assert!(begun.elapsed() < silent, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_database_is_migrated_as_soon_as_the_servers_of_before_are_silent_for_long_enough() {
        let Some(database) = earlier(SERVER_SILENT_MS - 3_000).await else { return };
        let begun = Instant::now();
        let place = database.place(caisson_store::PostgresLimits::default());
        let store = Store::connect(&place, Clock::system()).await.unwrap();
        assert!(begun.elapsed() > Duration::from_secs(1), "it was waited for: {:?}", begun.elapsed());
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_table_that_is_held_keeps_a_migration_from_it_for_a_bounded_time() {
        let Some(database) = earlier(2 * SERVER_SILENT_MS).await else { return };
        let held = database.hold_table("server").await;
        let place = database.place(caisson_store::PostgresLimits::default());
        let begun = Instant::now();
        let opened = Store::connect(&place, Clock::system()).await.map(drop);
        assert!(matches!(opened, Err(caisson_store::StoreError::Unavailable(_))), "{opened:?}");
        assert!((9..60).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        held.release().await;
        Store::connect(&place, Clock::system()).await.unwrap().close().await.unwrap();
    }

    #[tokio::test]
    async fn a_change_on_one_server_wakes_another() {
        let Some(fixture) = Fixture::postgres().await else { return };
        let second = second(&fixture).await;
        let mut watch = second.watch(Topic::Queue);
        // Listening begins some time after opening, and wakes everybody.
        watch.changed(Duration::from_secs(3)).await;
        let before = Instant::now();
        fixture.queued().await;
        watch.changed(Duration::from_mins(1)).await;
        assert!(before.elapsed() < Duration::from_secs(30), "the hint did not come");
        second.close().await.unwrap();
    }

    #[tokio::test]
    async fn sessions_do_not_wait_for_one_another_and_what_needs_all_waits_for_each() {
        let Some(fixture) = Fixture::postgres().await else { return };
        let first = fixture.placed().await;
        fixture.queued().await;
        let claimed = fixture.claim().await;
        let other = fixture.place(claimed, 2).await;
        let held = fixture.database.hold_session(first.run.session.as_str()).await;
        let blocked =
            fixture.store.append_journal(&first.sandbox, 0, 10, vec![entry(&first.run, JournalEffect::None)]);
        let mut blocked = std::pin::pin!(blocked);
        assert!(is_pending(&mut blocked).await);
        fixture.journal(&other, JournalEffect::None).await;
        fixture.store.heartbeat(&other.run.id, other.epoch).await.unwrap().unwrap();
        // A claim may look at any session, so it waits until the first is done.
        let claim = fixture.store.claim(&fixture.server);
        let mut claim = std::pin::pin!(claim);
        assert!(is_pending(&mut claim).await);
        held.release().await;
        blocked.await.unwrap();
        assert_eq!(claim.await.unwrap(), None);
    }

    /// Whether a call is still under way after a while.
    async fn is_pending<F: Future + Unpin>(call: &mut F) -> bool {
        tokio::time::timeout(Duration::from_millis(300), call).await.is_err()
    }

    #[tokio::test]
    async fn a_lock_that_is_held_for_too_long_is_unavailable() {
        let Some(fixture) = Fixture::postgres().await else { return };
        let placed = fixture.placed().await;
        let held = fixture.database.hold_session(placed.run.session.as_str()).await;
        let beat = fixture.store.heartbeat(&placed.run.id, placed.epoch).await;
        assert!(matches!(beat, Err(caisson_store::StoreError::Unavailable(_))), "{beat:?}");
        held.release().await;
        fixture.store.heartbeat(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_server_that_cut_every_connection_is_used_again() {
        let Some(fixture) = Fixture::postgres().await else { return };
        let run = fixture.queued().await;
        fixture.database.cut_connections().await;
        assert_eq!(fixture.run(&run.id).await, run);
        fixture.store.ping().await.unwrap();
        assert_eq!(fixture.claim().await.run.id, run.id);
    }

    #[tokio::test]
    async fn a_store_follows_the_databases_clock() {
        const WRONG_BY_MS: i64 = 5 * 60 * 1000;
        let Some(fixture) = Fixture::postgres().await else { return };
        let database_ms = async || {
            let clock = "select cast(extract(epoch from clock_timestamp()) * 1000 as bigint)";
            fixture.database.rows(clock.into()).await[0].get::<i64>(0)
        };
        for (number, wrong_by_ms) in [(2, WRONG_BY_MS), (3, -WRONG_BY_MS)] {
            let before_ms = database_ms().await;
            let store = fixture.beside(Clock::system_wrong_by(wrong_by_ms)).await.unwrap();
            let now_ms = store.now_ms();
            let opened = before_ms..=database_ms().await;
            assert!(
                opened.contains(&now_ms),
                "from the start, also for what is only read: {now_ms}, {opened:?}"
            );
            let server = server_id(number);
            store.register_server(&server).await.unwrap();
            let presence = caisson_store::Presence {
                server: server.clone(),
                roles: vec![caisson_domain::server::Role::Worker],
                version: "1".to_owned(),
                slots: None,
            };
            store.beat(&presence).await.unwrap();
            let CreateRun::Created(run) = store.create_run(new_run(spec())).await.unwrap() else { panic!() };
            let claimed = store.claim(&server).await.unwrap().unwrap();
            assert_eq!(claimed.run.id, run.id);
            let extended_ms = store.heartbeat(&run.id, claimed.epoch).await.unwrap().unwrap();
            let window = before_ms..=database_ms().await;
            let seen: i64 = fixture.value("select max(seen_at_ms) from server").await;
            let part_seen: i64 = fixture.value("select max(seen_at_ms) from server_role").await;
            let event: i64 = fixture.value("select max(at_ms) from event").await;
            let lease = extended_ms - LEASE_MS;
            for (what, at_ms) in [("server", seen), ("part", part_seen), ("lease", lease), ("event", event)] {
                assert!(window.contains(&at_ms), "{what} at {at_ms}, which is not in {window:?}");
            }
            assert!(window.contains(&run.created_at_ms), "{} is not in {window:?}", run.created_at_ms);
            let live = store.live_servers().await.unwrap();
            assert!(live.iter().any(|live| live.id == server), "{live:?}");
            store.close().await.unwrap();
        }
    }
}
