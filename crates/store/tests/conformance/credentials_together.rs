//! Credentials where several processes are on one database: turns at renewing a token, and counts that come after a run's end.

use std::time::Duration;

use caisson_domain::credential::{CredentialKind, CredentialSecret};
use caisson_domain::run::{Run, RunStatus};
use caisson_store::{
    Actor, AuditFilter, AuditRecord, CREDENTIAL_USES_KEPT, Clock, Credential, Finish, NewCredential,
    RENEWAL_MS_MOST, RenewalTurn, Store, Topic,
};

use crate::credentials::{add, settings, totals};
use crate::fixture::{Fixture, START_MS, project};

conformance! {
    of_two_servers_one_has_the_turn_at_renewing_a_token,
    a_turn_ends_by_itself_and_the_late_one_may_still_write,
    a_turn_that_is_given_back_or_overtaken_keeps_nobody_waiting,
    a_turn_is_bounded_and_survives_no_clock_that_was_set_back,
    a_renewal_is_audited_once_and_one_that_came_too_late_is_not,
    changes_of_credentials_are_told,
    what_another_process_counted_is_told_after_the_runs_end,
    what_is_written_before_the_end_is_in_the_one_total,
    a_first_use_after_the_end_is_told,
    uses_that_could_not_be_written_are_kept,
    credentials_of_the_configuration_are_counted_by_their_names,
}

/// Longest turn that a test takes, in milliseconds.
const TURN_MS: i64 = 1_000;

fn oauth(access: &str) -> CredentialSecret {
    CredentialSecret::Oauth {
        access_token: access.to_owned().into(),
        refresh_token: "r".to_owned().into(),
        expires_at_ms: 5,
        proxy_login: None,
    }
}

async fn token(fixture: &Fixture) -> Credential {
    let new = NewCredential {
        project: project(),
        name: "oauth".to_owned(),
        settings: settings(CredentialKind::ModelOauth, &[("token_url", "https://id.example.com/token")]),
        secret: oauth("a1"),
    };
    fixture.store.add_credential(new, &Actor::Server).await.unwrap()
}

/// Another process on the fixture's database, with the same clock.
async fn second(fixture: &Fixture) -> Store {
    let (clock, handle) = Clock::fixed_at(START_MS);
    handle.advance(fixture.store.now_ms() - START_MS);
    let store = fixture.beside(clock).await.unwrap();
    store.unlock(fixture.key_file()).await.unwrap();
    store
}

async fn own(store: &Store, credential: &Credential) -> i64 {
    match store.take_renewal(credential, TURN_MS).await.unwrap() {
        RenewalTurn::Own { epoch } => epoch,
        other @ (RenewalTurn::Others { .. } | RenewalTurn::Passed) => panic!("{other:?}"),
    }
}

async fn of_two_servers_one_has_the_turn_at_renewing_a_token(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let (seen, second) = (token(&fixture).await, second(&fixture).await);
    assert_eq!(own(&fixture.store, &seen).await, 1);
    for store in [&second, &fixture.store] {
        let asked = store.take_renewal(&seen, TURN_MS).await.unwrap();
        assert_eq!(asked, RenewalTurn::Others { left_ms: TURN_MS });
    }
    // Another credential has turns of its own.
    assert_eq!(own(&second, &add(&fixture, "other").await).await, 1);
    let renewed = fixture.store.renew_credential(&seen, &oauth("a2")).await.unwrap().unwrap();
    assert_eq!(second.take_renewal(&seen, TURN_MS).await.unwrap(), RenewalTurn::Passed);
    assert_eq!(own(&second, &renewed).await, 2, "the turn ended with what came of it");
    let at = (&seen.project, &seen.id);
    let rotated = fixture.store.rotate_credential(at, &oauth("a3"), &Actor::Operator).await;
    let rotated = rotated.unwrap().unwrap();
    assert_eq!(second.take_renewal(&renewed, TURN_MS).await.unwrap(), RenewalTurn::Passed);
    assert_eq!(own(&fixture.store, &rotated).await, 3);
    assert!(fixture.store.remove_credential(&seen.project, &seen.id, &Actor::Operator).await.unwrap());
    assert_eq!(second.take_renewal(&rotated, TURN_MS).await.unwrap(), RenewalTurn::Passed);
    second.close().await.unwrap();
}

async fn a_renewal_is_audited_once_and_one_that_came_too_late_is_not(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let first = token(&fixture).await;
    fixture.store.renew_credential(&first, &oauth("a2")).await.unwrap().unwrap();
    assert!(fixture.store.renew_credential(&first, &oauth("late")).await.unwrap().is_none());
    let found = fixture.store.list_audit(&project(), &AuditFilter::default(), None, 100).await.unwrap();
    let told = |one: &AuditRecord| {
        (one.actor.clone(), one.action.clone(), one.subject.clone(), one.credential.clone(), one.host.clone())
    };
    let expected = |action: &str, subject: String, host: Option<&str>| {
        let name = Some("oauth".to_owned());
        ("server".to_owned(), action.to_owned(), subject, name, host.map(str::to_owned))
    };
    let id = first.id.to_string();
    let expected = [
        expected("credential.renew", id.clone(), None),
        // Where the refresh token goes; the access token goes to the model API of the configuration.
        expected("credential.add", format!("{id}: kind model_oauth"), Some("id.example.com")),
    ];
    assert_eq!(found.iter().map(told).collect::<Vec<_>>(), expected);
}

async fn a_turn_ends_by_itself_and_the_late_one_may_still_write(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let seen = token(&fixture).await;
    assert_eq!(own(&fixture.store, &seen).await, 1);
    fixture.clock.advance(TURN_MS - 1);
    let asked = fixture.store.take_renewal(&seen, TURN_MS).await.unwrap();
    assert_eq!(asked, RenewalTurn::Others { left_ms: 1 });
    fixture.clock.advance(1);
    assert_eq!(own(&fixture.store, &seen).await, 2);
    // The first was given a token after all, and whoever asked the endpoint after it was refused.
    fixture.store.renew_credential(&seen, &oauth("late")).await.unwrap().unwrap();
    assert_eq!(fixture.store.take_renewal(&seen, TURN_MS).await.unwrap(), RenewalTurn::Passed);
}

async fn a_turn_that_is_given_back_or_overtaken_keeps_nobody_waiting(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let seen = token(&fixture).await;
    let first = own(&fixture.store, &seen).await;
    fixture.store.end_renewal(&seen, first).await.unwrap();
    let next = own(&fixture.store, &seen).await;
    fixture.store.end_renewal(&seen, first).await.unwrap();
    let asked = fixture.store.take_renewal(&seen, TURN_MS).await.unwrap();
    assert_eq!(asked, RenewalTurn::Others { left_ms: TURN_MS }, "an earlier one ends nobody else's");
    fixture.store.end_renewal(&seen, next).await.unwrap();
    fixture.store.end_renewal(&seen, next).await.unwrap();
    assert_eq!(own(&fixture.store, &seen).await, next + 1);
}

async fn a_turn_is_bounded_and_survives_no_clock_that_was_set_back(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let seen = token(&fixture).await;
    let taken = fixture.store.take_renewal(&seen, i64::MAX).await.unwrap();
    assert_eq!(taken, RenewalTurn::Own { epoch: 1 });
    let asked = fixture.store.take_renewal(&seen, TURN_MS).await.unwrap();
    assert_eq!(asked, RenewalTurn::Others { left_ms: RENEWAL_MS_MOST });
    fixture.clock.advance(-1);
    assert_eq!(own(&fixture.store, &seen).await, 2, "it would end later than any turn may");
}

async fn changes_of_credentials_are_told(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let mut watch = fixture.store.watch(Topic::Credentials);
    let mut told = async || watch.hinted(Duration::ZERO).await;
    let versions = async || {
        let listed = fixture.store.credential_versions().await.unwrap();
        listed.into_iter().map(|(_, id, version)| (id, version)).collect::<Vec<_>>()
    };
    assert_eq!((told().await, versions().await), (false, Vec::new()));
    let seen = token(&fixture).await;
    assert_eq!((told().await, versions().await), (true, vec![(seen.id.clone(), 1)]));
    let epoch = own(&fixture.store, &seen).await;
    assert!(!told().await, "nobody needs to look");
    fixture.store.end_renewal(&seen, epoch).await.unwrap();
    assert!(told().await);
    fixture.store.renew_credential(&seen, &oauth("a2")).await.unwrap().unwrap();
    assert_eq!((told().await, versions().await), (true, vec![(seen.id.clone(), 2)]));
    let at = (&seen.project, &seen.id);
    fixture.store.rotate_credential(at, &oauth("a3"), &Actor::Operator).await.unwrap().unwrap();
    assert_eq!((told().await, versions().await), (true, vec![(seen.id.clone(), 3)]));
    assert!(fixture.store.remove_credential(at.0, at.1, &Actor::Operator).await.unwrap());
    assert_eq!((told().await, versions().await), (true, Vec::new()));
}

/// Ends the run as its worker does.
async fn ended(fixture: &Fixture, placed: &crate::fixture::Placed) {
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
}

/// How often the log says that the run has used its one credential, each time that it says so.
async fn told(fixture: &Fixture, run: &Run) -> Vec<String> {
    let totals = totals(fixture, run).await.into_iter();
    totals.map(|(subject, _)| subject.split(',').next().unwrap().to_owned()).collect()
}

async fn what_another_process_counted_is_told_after_the_runs_end(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let (credential, gateway) = (add(&fixture, "one").await, second(&fixture).await);
    let placed = fixture.placed().await;
    let run = &placed.run;
    for _ in 0..5 {
        gateway.use_credential(&credential, &run.id).await.unwrap();
    }
    ended(&fixture, &placed).await;
    assert_eq!(told(&fixture, run).await, ["uses 1"], "the worker's process knows of no more");
    gateway.close().await.unwrap();
    assert_eq!(told(&fixture, run).await, ["uses 1", "uses 5"]);
    assert_eq!(fixture.store.credentials_used(&run.id).await.unwrap()[0].uses, 5);
}

async fn what_is_written_before_the_end_is_in_the_one_total(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let (credential, gateway) = (add(&fixture, "one").await, second(&fixture).await);
    let placed = fixture.placed().await;
    let other = fixture.queued().await;
    for run in [&placed.run.id, &placed.run.id, &placed.run.id, &other.id, &other.id] {
        gateway.use_credential(&credential, run).await.unwrap();
    }
    gateway.write_credential_uses_of(&placed.run.id).await.unwrap();
    let uses = async |run: &Run| fixture.store.credentials_used(&run.id).await.unwrap()[0].uses;
    assert_eq!((uses(&placed.run).await, uses(&other).await), (3, 1), "those of that run alone");
    assert_eq!(told(&fixture, &placed.run).await, Vec::<String>::new(), "it goes on");
    ended(&fixture, &placed).await;
    gateway.write_credential_uses_of(&placed.run.id).await.unwrap();
    gateway.close().await.unwrap();
    assert_eq!(told(&fixture, &placed.run).await, ["uses 3"]);
    assert_eq!((uses(&other).await, told(&fixture, &other).await), (2, Vec::new()));
}

async fn a_first_use_after_the_end_is_told(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let placed = fixture.placed().await;
    ended(&fixture, &placed).await;
    assert_eq!(told(&fixture, &placed.run).await, Vec::<String>::new());
    // A call that had passed the door when the run ended.
    fixture.store.use_credential(&credential, &placed.run.id).await.unwrap();
    assert_eq!(told(&fixture, &placed.run).await, ["uses 1"]);
    fixture.store.use_credential(&credential, &placed.run.id).await.unwrap();
    fixture.clock.advance(60_000);
    fixture.beat().await;
    assert_eq!(told(&fixture, &placed.run).await, ["uses 1", "uses 2"]);
}

async fn uses_that_could_not_be_written_are_kept(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let placed = fixture.placed().await;
    for _ in 0..3 {
        fixture.store.use_credential(&credential, &placed.run.id).await.unwrap();
    }
    fixture.execute("alter table credential_use rename to away").await;
    assert!(fixture.store.write_credential_uses_of(&placed.run.id).await.is_err());
    fixture.execute("alter table away rename to credential_use").await;
    ended(&fixture, &placed).await;
    assert_eq!(told(&fixture, &placed.run).await, ["uses 3"]);
    fixture.store.write_credential_uses_of(&placed.run.id).await.unwrap();
    assert_eq!(told(&fixture, &placed.run).await, ["uses 3"], "told already");
}

async fn credentials_of_the_configuration_are_counted_by_their_names(fixture: Fixture) {
    let placed = fixture.placed().await;
    let (store, run) = (&fixture.store, &placed.run);
    for name in ["model", "https://git.example.com/", "model"] {
        fixture.clock.advance(10);
        store.use_configured_credential(name, &run.id).await.unwrap();
    }
    assert!(store.credentials_used(&run.id).await.unwrap().is_empty(), "nothing waits for the database");
    store.write_credential_uses_of(&run.id).await.unwrap();
    let used = store.credentials_used(&run.id).await.unwrap();
    let told: Vec<_> = used.iter().map(|one| (one.credential.as_str(), one.uses)).collect();
    assert_eq!(told, [("config:https://git.example.com/", 1), ("config:model", 2)]);
    assert_eq!((used[1].first_used_at_ms, used[1].last_used_at_ms), (START_MS + 10, START_MS + 30));
    store.use_configured_credential("model", &run.id).await.unwrap();
    ended(&fixture, &placed).await;
    let told: Vec<_> = totals(&fixture, run).await;
    assert_eq!(told.len(), 2);
    assert_eq!(told[1].1, "model", "as the records of its uses call it");
    assert!(told[0].0.starts_with("uses 1,") && told[1].0.starts_with("uses 3,"), "{told:?}");
    store.write_credential_uses_of(&run.id).await.unwrap();
    assert_eq!(totals(&fixture, run).await.len(), 2, "told already");
    // Where there is no room in memory they are written one by one.
    let next = fixture.queued().await;
    for number in 0..CREDENTIAL_USES_KEPT {
        store.use_configured_credential(&number.to_string(), &next.id).await.unwrap();
    }
    store.use_configured_credential("more", &next.id).await.unwrap();
    let written = store.credentials_used(&next.id).await.unwrap();
    assert_eq!((written.len(), written[0].credential.as_str()), (1, "config:more"));
}
