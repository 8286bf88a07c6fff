//! API keys.

use caisson_domain::id::{ApiKeyId, ProjectId};
use caisson_domain::limits::{API_KEYS, PAGE_ITEMS};
use caisson_domain::principal::Scope;
use caisson_domain::server::Role;
use caisson_store::{Actor, NewApiKey, Presence};

use crate::fixture::{Fixture, START_MS, assert_corrupt, project};

conformance! {
    a_key_opens_its_project_with_its_scopes,
    an_unknown_secret_opens_nothing,
    a_revoked_key_opens_nothing_and_is_revoked_once,
    keys_are_listed_oldest_first_and_by_project,
    the_secret_of_a_key_is_nowhere_in_the_database,
    use_of_a_key_is_seen_at_once_and_written_with_the_next_heartbeat,
    use_of_a_key_is_written_at_most_once_a_minute,
    use_of_a_key_is_written_when_the_store_closes,
    use_of_a_key_that_could_not_be_written_is_written_later,
    a_use_of_a_key_is_never_followed_by_an_earlier_one,
    making_and_revoking_a_key_is_audited,
    a_key_of_an_unknown_project_is_refused,
    a_key_opens_until_its_expiry_and_not_at_it,
    a_revoked_key_is_not_valid_in_any_store_and_its_project_alone_may_revoke_it,
    valid_keys_are_bounded_and_ended_ones_make_room,
    every_key_of_a_project_is_listed_however_many_are_dead,
}

async fn a_key_opens_its_project_with_its_scopes(fixture: Fixture) {
    let scopes = [Scope::RunsRead, Scope::RunsWrite];
    let (id, secret) = fixture.store.create_api_key(&project(), "ci", &scopes).await.unwrap();
    let principal = fixture.store.authenticate(secret.expose()).await.unwrap().unwrap();
    assert_eq!(principal.key, id);
    assert_eq!(principal.name, "ci");
    assert_eq!(principal.project, project());
    assert_eq!(principal.scopes, scopes);
}

async fn an_unknown_secret_opens_nothing(fixture: Fixture) {
    let (_, secret) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    for wrong in ["", "csk_", &secret.expose()[..secret.expose().len() - 1], secret.hash().as_str()] {
        assert_eq!(fixture.store.authenticate(wrong).await.unwrap(), None, "{wrong}");
    }
}

async fn a_revoked_key_opens_nothing_and_is_revoked_once(fixture: Fixture) {
    let (id, secret) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    fixture.clock.advance(5);
    assert!(fixture.store.revoke_api_key(&id).await.unwrap());
    assert_eq!(fixture.store.authenticate(secret.expose()).await.unwrap(), None);
    fixture.clock.advance(5);
    assert!(!fixture.store.revoke_api_key(&id).await.unwrap());
    let keys = fixture.store.list_api_keys(&project()).await.unwrap();
    assert_eq!(keys[0].revoked_at_ms, Some(START_MS + 5), "the first revocation stands");
    assert!(!fixture.store.revoke_api_key(&ApiKeyId::new(1, [9; 10])).await.unwrap());
}

async fn keys_are_listed_oldest_first_and_by_project(fixture: Fixture) {
    for name in ["first", "second"] {
        fixture.store.create_api_key(&project(), name, &[Scope::RunsRead]).await.unwrap();
        fixture.clock.advance(1);
    }
    let keys = fixture.store.list_api_keys(&project()).await.unwrap();
    assert_eq!(keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    assert_eq!(keys[1].created_at_ms, START_MS + 1);
    assert_eq!(keys[1].scopes, [Scope::RunsRead]);
    assert_eq!((keys[1].revoked_at_ms, keys[1].last_used_at_ms), (None, None));
    let other: ProjectId = "other".parse().unwrap();
    assert_eq!(fixture.store.list_api_keys(&other).await.unwrap(), []);
}

async fn the_secret_of_a_key_is_nowhere_in_the_database(fixture: Fixture) {
    let (_, secret) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    fixture.store.authenticate(secret.expose()).await.unwrap().unwrap();
    let digits = secret.expose().trim_start_matches("csk_").as_bytes();
    let raw = (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(std::str::from_utf8(&digits[2 * at..2 * at + 2]).unwrap(), 16).unwrap())
        .collect::<Vec<u8>>();
    assert!(!fixture.holds(digits).await && !fixture.holds(&raw).await);
    let hash_found = fixture.holds(secret.hash().as_str().as_bytes()).await;
    assert!(hash_found, "the search must be able to find something");
}

/// When the key was last used, as the database has it.
async fn written(fixture: &Fixture) -> Option<i64> {
    fixture.value("select last_used_at_ms from api_key").await
}

async fn use_of_a_key_is_seen_at_once_and_written_with_the_next_heartbeat(fixture: Fixture) {
    let (_, secret) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    fixture.clock.advance(7);
    fixture.store.authenticate(secret.expose()).await.unwrap();
    let keys = fixture.store.list_api_keys(&project()).await.unwrap();
    assert_eq!(keys[0].last_used_at_ms, Some(START_MS + 7));
    assert_eq!(written(&fixture).await, None, "authentication does not write");
    fixture.beat().await;
    assert_eq!(written(&fixture).await, Some(START_MS + 7), "also by a process that is no worker");
}

async fn use_of_a_key_is_written_at_most_once_a_minute(fixture: Fixture) {
    let (_, secret) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    let used_and_written = async |at_ms: i64| {
        fixture.clock.set(at_ms);
        fixture.store.authenticate(secret.expose()).await.unwrap();
        fixture.beat().await;
        written(&fixture).await.unwrap()
    };
    assert_eq!(used_and_written(START_MS).await, START_MS);
    assert_eq!(used_and_written(START_MS + 59_999).await, START_MS);
    assert_eq!(used_and_written(START_MS + 60_000).await, START_MS + 60_000);
}

async fn use_of_a_key_that_could_not_be_written_is_written_later(fixture: Fixture) {
    let (_, secret) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    fixture.clock.advance(7);
    fixture.store.authenticate(secret.expose()).await.unwrap();
    fixture.execute("alter table api_key rename to elsewhere").await;
    let presence = Presence {
        server: fixture.server.clone(),
        roles: vec![Role::Api],
        version: "1.2.3".to_owned(),
        slots: None,
    };
    assert!(fixture.store.beat(&presence).await.is_err(), "it cannot be written now");
    fixture.execute("alter table elsewhere rename to api_key").await;
    fixture.beat().await;
    assert_eq!(written(&fixture).await, Some(START_MS + 7));
}

async fn a_use_of_a_key_is_never_followed_by_an_earlier_one(fixture: Fixture) {
    let (_, secret) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    fixture.store.authenticate(secret.expose()).await.unwrap();
    // Another process has written a later one meanwhile.
    fixture.execute("update api_key set last_used_at_ms = 1800000000000").await;
    fixture.beat().await;
    assert_eq!(written(&fixture).await, Some(1_800_000_000_000));
}

async fn use_of_a_key_is_written_when_the_store_closes(fixture: Fixture) {
    let (_, secret) = fixture.store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    fixture.store.authenticate(secret.expose()).await.unwrap();
    fixture.store.close().await.unwrap();
    assert_eq!(written(&fixture).await, Some(START_MS));
}

async fn making_and_revoking_a_key_is_audited(fixture: Fixture) {
    let (id, _) =
        fixture.store.create_api_key(&project(), "ci", &[Scope::RunsRead, Scope::Audit]).await.unwrap();
    fixture.store.revoke_api_key(&id).await.unwrap();
    let short = NewApiKey {
        project: project(),
        name: "short".to_owned(),
        scopes: vec![Scope::Admin],
        expires_at_ms: Some(START_MS + 9),
        by: Actor::Server,
    };
    let (short, _) = fixture.store.make_api_key(&short).await.unwrap().unwrap();
    let rows = fixture.rows("select actor, action, subject from audit order by number").await;
    let records: Vec<(&str, &str, &str)> =
        rows.iter().map(|row| (row.get("actor"), row.get("action"), row.get("subject"))).collect();
    let lasting = format!("{id}: scopes runs:read audit, expires_at_ms none");
    let short = format!("{}: scopes admin, expires_at_ms {}", short.id, START_MS + 9);
    let expected = [
        ("operator", "key.create", lasting.as_str()),
        ("operator", "key.revoke", id.as_str()),
        ("server", "key.create", short.as_str()),
    ];
    assert_eq!(records, expected);
}

async fn a_key_of_an_unknown_project_is_refused(fixture: Fixture) {
    let other: ProjectId = "other".parse().unwrap();
    let made = fixture.store.create_api_key(&other, "ci", &[Scope::Admin]).await;
    assert_corrupt(made, "a constraint");
    assert_eq!(fixture.value::<i64>("select count(*) from api_key").await, 0);
}

/// A key to be made by the operator.
fn new_key(expires_at_ms: Option<i64>) -> NewApiKey {
    NewApiKey {
        project: project(),
        name: "ci".to_owned(),
        scopes: vec![Scope::RunsRead],
        expires_at_ms,
        by: Actor::Operator,
    }
}

async fn a_key_opens_until_its_expiry_and_not_at_it(fixture: Fixture) {
    let new = new_key(Some(START_MS + 1_000));
    let (key, secret) = fixture.store.make_api_key(&new).await.unwrap().unwrap();
    assert_eq!(fixture.store.list_api_keys(&project()).await.unwrap(), std::slice::from_ref(&key));
    fixture.clock.advance(999);
    let principal = fixture.store.authenticate(secret.expose()).await.unwrap().unwrap();
    assert_eq!(principal.expires_at_ms, Some(START_MS + 1_000));
    assert!(fixture.store.is_key_valid(&key.id).await.unwrap());
    fixture.clock.advance(1);
    assert_eq!(fixture.store.authenticate(secret.expose()).await.unwrap(), None);
    assert!(!fixture.store.is_key_valid(&key.id).await.unwrap());
}

async fn a_revoked_key_is_not_valid_in_any_store_and_its_project_alone_may_revoke_it(fixture: Fixture) {
    let (key, secret) = fixture.store.make_api_key(&new_key(None)).await.unwrap().unwrap();
    let beside = fixture.beside(caisson_store::Clock::system()).await.unwrap();
    assert!(fixture.store.is_key_valid(&key.id).await.unwrap());
    let other: ProjectId = "other".parse().unwrap();
    let by = Actor::Key(key.id.clone());
    assert!(!beside.revoke_api_key_of(Some(&other), &key.id, by.clone()).await.unwrap());
    assert!(beside.revoke_api_key_of(Some(&project()), &key.id, by).await.unwrap());
    assert!(!fixture.store.is_key_valid(&key.id).await.unwrap());
    assert_eq!(fixture.store.authenticate(secret.expose()).await.unwrap(), None);
    let actor: String = fixture.value("select actor from audit where action = 'key.revoke'").await;
    assert_eq!(actor, key.id.as_str());
    beside.close().await.unwrap();
}

async fn valid_keys_are_bounded_and_ended_ones_make_room(fixture: Fixture) {
    let mut keys = Vec::new();
    for _ in 0..API_KEYS {
        let expires = (keys.len() % 2 == 0).then_some(START_MS + 1_000);
        keys.push(fixture.store.make_api_key(&new_key(expires)).await.unwrap().unwrap().0);
    }
    assert!(fixture.store.make_api_key(&new_key(None)).await.unwrap().is_none());
    assert_corrupt(fixture.store.create_api_key(&project(), "ci", &[]).await, "api_key of default");
    assert!(fixture.store.revoke_api_key(&keys[1].id).await.unwrap());
    assert!(fixture.store.make_api_key(&new_key(None)).await.unwrap().is_some());
    assert!(fixture.store.make_api_key(&new_key(None)).await.unwrap().is_none());
    fixture.clock.advance(1_000);
    assert!(fixture.store.make_api_key(&new_key(None)).await.unwrap().is_some());
    let first = fixture.store.list_api_keys_after(&project(), None, 10).await.unwrap();
    let after = &first.last().unwrap().id;
    let next = fixture.store.list_api_keys_after(&project(), Some(after), 10).await.unwrap();
    assert!(next.len() == 10 && next[0].id > *after);
}

async fn every_key_of_a_project_is_listed_however_many_are_dead(fixture: Fixture) {
    for _ in 0..PAGE_ITEMS {
        let (id, _) = fixture.store.create_api_key(&project(), "old", &[Scope::Audit]).await.unwrap();
        assert!(fixture.store.revoke_api_key(&id).await.unwrap());
    }
    assert_eq!(fixture.store.list_api_keys(&project()).await.unwrap().len(), PAGE_ITEMS as usize);
    fixture.clock.advance(1);
    let (id, _) = fixture.store.create_api_key(&project(), "new", &[Scope::Audit]).await.unwrap();
    let keys = fixture.store.list_api_keys(&project()).await.unwrap();
    assert_eq!(keys.len(), PAGE_ITEMS as usize + 1);
    assert_eq!((&keys.last().unwrap().id, keys.last().unwrap().revoked_at_ms), (&id, None));
}
