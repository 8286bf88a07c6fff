//! Credentials over the API: secrets go in and never come out.

use axum::body::Body;
use caisson_domain::id::{CredentialId, ProjectId};
use caisson_domain::limits::{CREDENTIAL_SECRET_BYTES, CREDENTIALS};
use caisson_domain::principal::Scope;
use caisson_domain::server::Role;
use caisson_store::{MasterKeyFile, Presence};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api};

const CANARY: &str = "canary-77c0d1ab90";

async fn unlocked() -> Api {
    let api = Api::start().await;
    api.store.unlock(MasterKeyFile::in_state_dir(api.dir.path())).await.unwrap();
    api
}

fn git(name: &str) -> Value {
    json!({
        "name": name, "kind": "git_token", "secret": {"value": CANARY},
        "settings": {"url_prefix": "https://git.example.com/team", "username": "robot"},
    })
}

async fn add(api: &Api, body: &Value) -> Answer {
    api.post("/v1/credentials", body).await
}

async fn send(api: &Api, method: Method, path: &str, body: &Value) -> Answer {
    let request = api.request(method, path).header("content-type", "application/json");
    api.send(request.body(Body::from(body.to_string())).unwrap()).await
}

fn rows(answer: &Answer) -> Vec<String> {
    let faults = answer.faults();
    faults.into_iter().map(|(field, code)| format!("{field} {code}")).collect()
}

#[tokio::test]
async fn a_credential_is_added_shown_rotated_and_removed_and_never_read() {
    let api = unlocked().await;
    let added = add(&api, &git("team")).await;
    assert_eq!(added.status, StatusCode::CREATED, "{}", added.text());
    insta::assert_json_snapshot!("credential", added.steady());
    let place = added.header("location").to_owned();
    assert_eq!(place, format!("/v1/credentials/{}", added.json()["id"].as_str().unwrap()));
    api.clock.advance(5);
    let rotated =
        send(&api, Method::PUT, &place, &json!({"secret": {"value": format!("new-{CANARY}")}})).await;
    assert_eq!(rotated.status, StatusCode::OK, "{}", rotated.text());
    assert_eq!(rotated.json()["version"], 2);
    assert_eq!(rotated.json()["rotated_at_ms"], crate::support::NOW_MS + 5);
    let (one, all) = (api.get(&place).await, api.get("/v1/credentials").await);
    assert_eq!(one.json(), rotated.json());
    assert_eq!(all.json()["items"], json!([one.json()]));
    let id = added.json()["id"].as_str().unwrap().parse().unwrap();
    let opened = api.store.open_credential(&ProjectId::default_project(), &id).await.unwrap().unwrap();
    assert!(
        String::from_utf8_lossy(secrecy::ExposeSecret::expose_secret(&opened.secret.to_plain()))
            .contains("new-canary")
    );
    let removed = send(&api, Method::DELETE, &place, &Value::Null).await;
    assert_eq!((removed.status, removed.body.len()), (StatusCode::NO_CONTENT, 0));
    send(&api, Method::DELETE, &place, &Value::Null).await.assert_problem(404, "unknown_credential");
    api.get(&place).await.assert_problem(404, "unknown_credential");
    let late = send(&api, Method::PUT, &place, &json!({"secret": {"value": "x"}})).await;
    late.assert_problem(404, "unknown_credential");
    api.get("/v1/credentials/crd_x").await.assert_problem(404, "unknown_credential");
    for answer in [&added, &rotated, &one, &all, &late] {
        assert!(!answer.text().contains(CANARY), "{}", answer.text());
    }
}

#[tokio::test]
async fn every_kind_is_taken_and_shows_its_scope() {
    let api = unlocked().await;
    let key = include_str!("../../../store/src/credentials/test_keys/pkcs8.pem");
    let pem = "-----BEGIN CERTIFICATE-----\nMAEA\n-----END CERTIFICATE-----\n";
    let cases = [
        (
            "model_api_key",
            json!({"base_url": "https://model.example.com/", "ca_pem": pem}),
            json!({"value": CANARY}),
        ),
        (
            "model_oauth",
            json!({"token_url": "https://id.example.com/token"}),
            json!({"access_token": CANARY, "refresh_token": CANARY, "expires_at_ms": 17}),
        ),
        ("git_github_app", json!({"app_id": "Iv1.x", "installation_id": 42}), json!({"private_key": key})),
        (
            "mcp_header",
            json!({"url": "https://mcp.example.com/", "header": "X-Token"}),
            json!({"value": CANARY}),
        ),
        ("registry_token", json!({"host": "packages.example.com"}), json!({"value": CANARY})),
    ];
    let mut shown = Vec::new();
    for (kind, settings, secret) in cases {
        let body =
            json!({"name": kind.replace('_', "-"), "kind": kind, "settings": settings, "secret": secret});
        let added = add(&api, &body).await;
        assert_eq!(added.status, StatusCode::CREATED, "{}", added.text());
        let (view, text) = (added.json(), added.text());
        assert!(!text.contains(CANARY) && !text.contains(key.lines().nth(3).unwrap()), "{text}");
        shown.push(json!({"kind": view["kind"], "scope": view["scope"], "settings": view["settings"]}));
    }
    insta::assert_json_snapshot!("credential_kinds", shown);
}

#[tokio::test]
async fn faults_are_told_together_and_repeat_no_secret() {
    let api = unlocked().await;
    let longest = "x".repeat(CREDENTIAL_SECRET_BYTES + 1);
    let cases = [
        (json!({}), vec!["name missing_field", "kind missing_field", "secret missing_field"]),
        (
            json!({"name": "A b", "kind": "git_token", "settings": {"host": "h", "more": 1}, "secret": {"value": CANARY, "x": CANARY}, "y": CANARY}),
            vec![
                "name invalid_value",
                "settings.more unknown_field",
                "secret.x unknown_field",
                "y unknown_field",
                "settings.url_prefix missing_field",
                "settings.host unknown_field",
            ],
        ),
        (json!({"name": "a", "kind": CANARY.get(..3), "secret": {}}), vec!["kind invalid_value"]),
        (
            json!({"name": "a", "kind": "git_token", "settings": CANARY, "secret": CANARY}),
            vec!["settings wrong_type", "secret wrong_type", "settings.url_prefix missing_field"],
        ),
        (
            json!({"name": "a", "kind": "registry_token", "settings": {"host": "h"}, "secret": {"value": [CANARY]}}),
            vec!["secret.value wrong_type"],
        ),
        (
            json!({"name": "a", "kind": "registry_token", "settings": {"host": "h"}, "secret": {"value": longest}}),
            vec!["secret.value invalid_value"],
        ),
        (
            json!({"name": "a", "kind": "git_github_app", "settings": {"app_id": 1, "installation_id": 2}, "secret": {"private_key": CANARY}}),
            vec!["secret.private_key invalid_value"],
        ),
    ];
    for (body, expected) in cases {
        let answer = add(&api, &body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text());
        assert_eq!(rows(&answer), expected, "{}", answer.text());
        assert!(!answer.text().contains(CANARY), "{}", answer.text());
    }
    let added = add(&api, &git("team")).await;
    let place = added.header("location").to_owned();
    for (body, expected) in [
        (json!({}), vec!["secret missing_field"]),
        (
            json!({"secret": {"private_key": CANARY}, "settings": {}}),
            vec!["settings unknown_field", "secret.value missing_field", "secret.private_key unknown_field"],
        ),
    ] {
        let answer = send(&api, Method::PUT, &place, &body).await;
        assert_eq!(rows(&answer), expected, "{}", answer.text());
    }
    assert_eq!(api.get(&place).await.json()["version"], 1);
}

#[tokio::test]
async fn a_taken_name_and_a_full_project_are_conflicts() {
    let api = unlocked().await;
    assert_eq!(add(&api, &git("team")).await.status, StatusCode::CREATED);
    add(&api, &git("team")).await.assert_problem(409, "credential_exists");
    for number in 1..CREDENTIALS {
        assert_eq!(add(&api, &git(&format!("n{number}"))).await.status, StatusCode::CREATED);
    }
    add(&api, &git("more")).await.assert_problem(409, "credentials_full");
}

#[tokio::test]
async fn secrets_beyond_what_is_kept_out_of_the_record_are_a_conflict() {
    let api = unlocked().await;
    let place = add(&api, &git("small")).await.header("location").to_owned();
    let long = "x".repeat(CREDENTIAL_SECRET_BYTES);
    let large = |name: &str| {
        let mut body = git(name);
        body["secret"]["value"] = json!(long);
        body
    };
    for name in ["one", "two", "three", "four", "five", "six", "seven"] {
        assert_eq!(add(&api, &large(name)).await.status, StatusCode::CREATED);
    }
    let full = add(&api, &large("eight")).await;
    full.assert_problem(409, "credential_secrets_full");
    assert!(full.text().contains("remove a credential that is not used any more"), "{}", full.text());
    let rotated = send(&api, Method::PUT, &place, &json!({"secret": {"value": long}})).await;
    rotated.assert_problem(409, "credential_secrets_full");
    assert_eq!(api.get(&place).await.json()["version"], 1);
}

#[tokio::test]
async fn only_their_own_scope_and_project_open_credentials() {
    let mut api = unlocked().await;
    let place = add(&api, &git("team")).await.header("location").to_owned();
    let mine = api.key.clone();
    api.key = api.key_with(&[Scope::RunsRead, Scope::RunsWrite]).await;
    let body = json!({"secret": {"value": "x"}});
    for (method, path) in [
        (Method::GET, "/v1/credentials"),
        (Method::POST, "/v1/credentials"),
        (Method::GET, &place),
        (Method::PUT, &place),
        (Method::DELETE, &place),
    ] {
        let refused = send(&api, method, path, &body).await;
        refused.assert_problem(403, "scope_missing");
        assert!(refused.text().contains("credentials"), "{}", refused.text());
    }
    api.key = api.key_with(&[Scope::Credentials]).await;
    assert_eq!(api.get(&place).await.status, StatusCode::OK);
    api.get("/v1/runs").await.assert_problem(403, "scope_missing");
    api.key = api.other_projects_key().await;
    assert_eq!(api.get("/v1/credentials").await.json()["items"], json!([]));
    api.get(&place).await.assert_problem(404, "unknown_credential");
    send(&api, Method::PUT, &place, &body).await.assert_problem(404, "unknown_credential");
    send(&api, Method::DELETE, &place, &Value::Null).await.assert_problem(404, "unknown_credential");
    api.key = mine;
    assert_eq!(api.get(&place).await.json()["version"], 1);
}

#[tokio::test]
async fn without_a_master_key_nothing_is_taken_and_the_reason_stays_inside() {
    let api = Api::start().await;
    let answer = add(&api, &git("team")).await;
    answer.assert_problem(500, "internal");
    assert!(!answer.text().contains("master") && !answer.text().contains(CANARY), "{}", answer.text());
}

#[tokio::test]
async fn a_run_tells_which_credentials_it_used_and_how_often() {
    let api = unlocked().await;
    let id: CredentialId = add(&api, &git("team")).await.json()["id"].as_str().unwrap().parse().unwrap();
    let project = ProjectId::default_project();
    let credential = api.store.credential(&project, &id).await.unwrap().unwrap();
    let run = api.queued().await;
    let place = format!("/v1/runs/{}", run.id);
    assert_eq!(api.get(&place).await.json()["credential_uses"], json!([]));
    for _ in 0..3 {
        api.clock.advance(1_000);
        api.store.use_credential(&credential, &run.id).await.unwrap();
    }
    // What is counted in memory is written when a minute is over.
    api.clock.advance(60_000);
    let presence = Presence {
        server: api.server.clone(),
        roles: vec![Role::Gateway],
        version: "1.2.3".to_owned(),
        slots: None,
    };
    api.store.beat(&presence).await.unwrap();
    let told = api.get(&place).await.json();
    let (first, last) = (crate::support::NOW_MS + 1_000, crate::support::NOW_MS + 3_000);
    let expected = json!([{
        "credential_id": id.as_str(), "uses": 3, "first_used_at_ms": first, "last_used_at_ms": last,
    }]);
    assert_eq!(told["credential_uses"], expected);
    let removed = send(&api, Method::DELETE, &format!("/v1/credentials/{id}"), &Value::Null).await;
    assert!(removed.status.is_success(), "{}", removed.text());
    assert_eq!(api.get(&place).await.json()["credential_uses"], expected, "what was used stays told");
    let listed = api.get("/v1/runs").await.json();
    assert_eq!(listed["items"][0]["credential_uses"], json!(null));
}
