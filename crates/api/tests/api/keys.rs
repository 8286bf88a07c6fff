//! API keys over the API.

use std::time::{Duration, Instant};

use axum::body::Body;
use caisson_domain::id::ProjectId;
use caisson_domain::principal::Scope;
use caisson_store::{Actor, NewApiKey};
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api, NOW_MS, events_of, ids};

async fn with_key(api: &Api, method: Method, path: &str, key: &str) -> Answer {
    let request = http::Request::builder().method(method).uri(path).header("x-api-key", key);
    api.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_key_is_made_used_listed_and_revoked_over_the_api() {
    let api = Api::start().await;
    let wanted = json!({"name": "ci", "scopes": ["audit", "runs:read", "audit"], "expires_in_s": 3600});
    let made = api.post("/v1/keys", &wanted).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert_eq!(made.header("cache-control"), "no-store");
    let made = made.json();
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    assert_eq!(made["expires_at_ms"], NOW_MS + 3_600_000);
    assert_eq!(made["scopes"], json!(["audit", "runs:read"]));
    assert_eq!(with_key(&api, Method::GET, "/v1/runs", secret).await.status, StatusCode::OK);
    with_key(&api, Method::GET, "/v1/keys", secret).await.assert_problem(403, "scope_missing");
    let listed = api.get("/v1/keys").await;
    assert!(!listed.text().contains(secret));
    let listed = listed.json();
    let mine = listed["items"].as_array().unwrap().iter().find(|key| key["id"] == id).unwrap();
    assert_eq!((mine["name"].as_str(), &mine["last_used_at_ms"]), (Some("ci"), &json!(NOW_MS)));
    let path = format!("/v1/keys/{id}");
    let revoke = || async { api.send(api.request(Method::DELETE, &path).body(Body::empty()).unwrap()).await };
    assert_eq!(revoke().await.status, StatusCode::NO_CONTENT);
    with_key(&api, Method::GET, "/v1/runs", secret).await.assert_problem(401, "unauthenticated");
    revoke().await.assert_problem(404, "unknown_key");
    let audit = api.get("/v1/audit?action=key.revoke").await.json();
    assert_eq!(
        (audit["items"][0]["subject"].as_str(), audit["items"][0]["actor_name"].as_str()),
        (Some(id), Some("test"))
    );
}

#[tokio::test]
async fn a_request_for_a_key_tells_all_its_faults_and_stays_within_its_bounds() {
    let api = Api::start().await;
    let bad = json!({"name": "", "scopes": ["root", "runs:read"], "expires_in_s": 59, "project": "other"});
    let answer = api.post("/v1/keys", &bad).await;
    answer.assert_problem(422, "invalid_key");
    let pair = |field: &str, code: &str| (field.to_owned(), code.to_owned());
    let expected = [
        pair("name", "invalid_name"),
        pair("scopes", "unknown_scope"),
        pair("expires_in_s", "out_of_range"),
        pair("project", "unknown_field"),
    ];
    assert_eq!(answer.faults(), expected);
    for (field, value, status) in [
        ("expires_in_s", json!(60), 201),
        ("expires_in_s", json!(315_360_000), 201),
        ("expires_in_s", json!(315_360_001), 422),
        ("expires_in_s", json!(-1), 422),
        ("expires_in_s", Value::Null, 201),
        ("name", json!("ä".repeat(100)), 201),
        ("name", json!("ä".repeat(101)), 422),
        ("name", json!("a\u{9b}b"), 422),
        ("scopes", json!([]), 422),
        ("scopes", json!("admin"), 422),
        ("scopes", Value::Null, 201),
    ] {
        let mut wanted = json!({"name": "ci"});
        wanted[field] = value;
        let answer = api.post("/v1/keys", &wanted).await;
        assert_eq!(answer.status.as_u16(), status, "{wanted}: {}", answer.text());
    }
}

#[tokio::test]
async fn keys_are_paged_and_those_of_another_project_neither_seen_nor_revoked() {
    let api = Api::start().await;
    for _ in 0..4 {
        api.clock.advance(1);
        api.key_with(&[Scope::RunsRead]).await;
    }
    let first = api.get("/v1/keys?limit=3").await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = api.get(&format!("/v1/keys?limit=3&cursor={cursor}")).await.json();
    assert_eq!((first["items"].as_array().unwrap().len(), rest["items"].as_array().unwrap().len()), (3, 2));
    assert_eq!(rest["next_cursor"], Value::Null);
    let other = api.other_projects_key().await;
    let theirs = with_key(&api, Method::GET, "/v1/keys", &other).await.json();
    assert_eq!(theirs["items"].as_array().unwrap().len(), 1);
    let mine = format!("/v1/keys/{}", first["items"][0]["id"].as_str().unwrap());
    with_key(&api, Method::DELETE, &mine, &other).await.assert_problem(404, "unknown_key");
    assert_eq!(api.get("/v1/keys").await.status, StatusCode::OK, "it still opens");
    with_key(&api, Method::DELETE, "/v1/keys/key_x", &api.key).await.assert_problem(404, "unknown_key");
}

/// A key that other processes revoke: the store of a command beside the server.
async fn stream_key(api: &Api, expires_at_ms: Option<i64>) -> (caisson_domain::id::ApiKeyId, String) {
    let new = NewApiKey {
        project: ProjectId::default_project(),
        name: "watcher".to_owned(),
        scopes: vec![Scope::RunsRead],
        expires_at_ms,
        by: Actor::Operator,
    };
    let (key, secret) = api.store.make_api_key(&new).await.unwrap().unwrap();
    (key.id, secret.expose().to_owned())
}

#[tokio::test]
async fn a_key_revoked_by_another_process_loses_its_requests_and_streams_within_a_second() {
    let mut api = Api::start().await;
    let claimed = api.running().await;
    let mut kept = api.stream(&events_of(&claimed.run.id), Some("2")).await;
    let path = api.dir.path().join("store.db");
    let beside = caisson_store::Store::open(&path, caisson_store::Clock::system()).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..3 {
        let (id, secret) = stream_key(&api, None).await;
        let admin = std::mem::replace(&mut api.key, secret.clone());
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(api.stream(&events_of(&claimed.run.id), Some("2")).await);
        }
        api.key = admin;
        // Well beyond the time for which a key is taken to be valid.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        assert!(beside.revoke_api_key(&id).await.unwrap());
        let revoked = Instant::now();
        with_key(&api, Method::GET, "/v1/runs", &secret).await.assert_problem(401, "unauthenticated");
        for stream in &mut streams {
            assert!(stream.next().await.is_none(), "nothing but the end");
        }
        took.push(revoked.elapsed());
    }
    // A machine that is busy with something else adds to a time, and never takes from it.
    assert!(took.iter().min() < Some(&Duration::from_secs(1)), "{took:?}");
    // The streams of other keys go on.
    api.finish(&claimed).await;
    assert_eq!(kept.next().await.unwrap().id.as_deref(), Some("3"));
    beside.close().await.unwrap();
}

/// A request for a new key, whose body comes well beyond the time for which a key is taken to be valid, after it was let in and
/// what is to be done then was done.
async fn make_key_late(api: &Api, meanwhile: impl Future<Output = ()> + Send + 'static) -> Answer {
    let mut request = api.json_request("/v1/keys", &json!({"name": "another", "scopes": ["admin"]}));
    let body = std::mem::take(request.body_mut());
    let nothing_yet = stream::once(async move {
        meanwhile.await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        Ok(axum::body::Bytes::new())
    });
    *request.body_mut() = Body::from_stream(nothing_yet.chain(body.into_data_stream()));
    api.send(request).await
}

#[tokio::test]
async fn a_request_begun_before_its_key_was_revoked_and_ended_after_it_does_nothing() {
    let mut api = Api::start().await;
    let slow = make_key_late(&api, std::future::ready(())).await;
    assert_eq!(slow.status, StatusCode::CREATED, "a slow one with a good key");
    let new = NewApiKey {
        project: ProjectId::default_project(),
        name: "leaked".to_owned(),
        scopes: vec![Scope::Admin],
        expires_at_ms: None,
        by: Actor::Operator,
    };
    let (key, secret) = api.store.make_api_key(&new).await.unwrap().unwrap();
    let owner = std::mem::replace(&mut api.key, secret.expose().to_owned());
    let (store, id) = (api.store.clone(), key.id.clone());
    let revoke = async move { assert!(store.revoke_api_key(&id).await.unwrap()) };
    make_key_late(&api, revoke).await.assert_problem(401, "unauthenticated");
    api.key = owner;
    let by_leaked = format!("/v1/audit?action=key.create&actor={}", key.id);
    assert_eq!(api.get(&by_leaked).await.json()["items"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn a_stream_of_a_key_that_expires_ends_and_a_reader_that_never_idles_ends_with_it() {
    let mut api = Api::start().await;
    let claimed = api.running().await;
    let (_, secret) = stream_key(&api, Some(NOW_MS + 60_000)).await;
    api.key = secret.clone();
    let mut idle = api.stream(&events_of(&claimed.run.id), Some("2")).await;
    let mut busy = api.stream(&events_of(&claimed.run.id), Some("2")).await;
    for line in 0..200 {
        api.say(&claimed, &format!("{{\"line\":{line}}}")).await;
    }
    assert_eq!(busy.next().await.unwrap().id.as_deref(), Some("3"));
    api.clock.advance(60_000);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let rest = ids(&busy.rest().await);
    assert!(rest.len() < 150, "{} events after the expiry", rest.len());
    idle.rest().await;
    with_key(&api, Method::GET, "/v1/runs", &secret).await.assert_problem(401, "unauthenticated");
}
