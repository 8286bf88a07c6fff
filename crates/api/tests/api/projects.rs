//! Projects over the API, and what keys of one see of another.

use axum::body::Body;
use caisson_domain::id::ProjectId;
use caisson_domain::limits::PROJECTS;
use caisson_domain::principal::Scope;
use caisson_store::{Actor, MasterKeyFile};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api, NOW_MS};

async fn ask(api: &Api, (method, path): (Method, &str), key: &str, body: Option<&Value>) -> Answer {
    let mut request = http::Request::builder().method(method).uri(path).header("x-api-key", key);
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    api.send(request.body(body).unwrap()).await
}

async fn get(api: &Api, path: &str, key: &str) -> Answer {
    ask(api, (Method::GET, path), key, None).await
}

/// Makes a project over the API, and returns the secret of its first key.
async fn made(api: &Api, name: &str) -> String {
    let made = api.post("/v1/projects", &json!({ "id": name })).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    made.json()["key"]["secret"].as_str().unwrap().to_owned()
}

fn names(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_project_is_made_with_a_first_key_listed_and_audited() {
    let api = Api::start().await;
    let answer = api.post("/v1/projects", &json!({ "id": "team-a" })).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), "no-store");
    let project = answer.json();
    assert_eq!((project["id"].as_str(), &project["created_at_ms"]), (Some("team-a"), &json!(NOW_MS)));
    assert_eq!(
        (&project["key"]["scopes"], project["key"]["project"].as_str()),
        (&json!(["admin"]), Some("team-a"))
    );
    made(&api, "ant").await;
    assert_eq!(names(&api.get("/v1/projects").await.json()), ["ant", "default", "team-a"]);
    let first = api.get("/v1/projects?limit=2").await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = api.get(&format!("/v1/projects?limit=2&cursor={cursor}")).await.json();
    assert_eq!((names(&first), names(&rest)), (vec!["ant", "default"], vec!["team-a"]));
    assert_eq!(rest["next_cursor"], Value::Null);
    let audit = api.get("/v1/audit?action=project.create").await.json();
    let subjects: Vec<_> =
        audit["items"].as_array().unwrap().iter().map(|one| one["subject"].as_str()).collect();
    assert_eq!(subjects, [Some("ant"), Some("team-a")]);
    assert_eq!(audit["items"][0]["actor_name"].as_str(), Some("test"));
}

#[tokio::test]
async fn a_request_for_a_project_is_refused_by_name_number_scope_and_project() {
    let api = Api::start().await;
    for bad in ["", "-a", "A", "a b", "a/b", "ä", "a\u{0}", "a\nb", &"a".repeat(64)] {
        api.post("/v1/projects", &json!({ "id": bad })).await.assert_problem(422, "invalid_name");
    }
    let answer = api.post("/v1/projects", &json!({ "name": "a" })).await;
    answer.assert_problem(422, "invalid_project");
    assert_eq!(answer.faults().len(), 2, "{:?}", answer.faults());
    made(&api, &"a".repeat(63)).await;
    for name in ["default", &"a".repeat(63)] {
        api.post("/v1/projects", &json!({ "id": name })).await.assert_problem(409, "project_exists");
    }
    let wanted = json!({ "id": "b" });
    let few = api.key_with(&[Scope::RunsRead, Scope::RunsWrite, Scope::Credentials, Scope::Audit]).await;
    ask(&api, (Method::POST, "/v1/projects"), &few, Some(&wanted)).await.assert_problem(403, "scope_missing");
    get(&api, "/v1/projects", &few).await.assert_problem(403, "scope_missing");
    let theirs = made(&api, "team-a").await;
    let answer = ask(&api, (Method::POST, "/v1/projects"), &theirs, Some(&wanted)).await;
    answer.assert_problem(403, "default_project_only");
    assert_eq!(names(&get(&api, "/v1/projects", &theirs).await.json()), ["team-a"]);
    for number in 3..PROJECTS {
        let name: ProjectId = format!("p{number}").parse().unwrap();
        api.store.create_project(&name, Actor::Operator).await.unwrap();
    }
    api.post("/v1/projects", &wanted).await.assert_problem(409, "projects_full");
}

#[tokio::test]
async fn nothing_of_one_project_is_seen_or_changed_by_keys_of_another() {
    let api = Api::start().await;
    api.store.unlock(MasterKeyFile::in_state_dir(api.dir.path())).await.unwrap();
    let (one, other) = (made(&api, "one").await, made(&api, "other").await);
    let workflow =
        get(&api, "/v1/workflows", &one).await.json()["items"][0]["name"].as_str().unwrap().to_owned();
    let run = json!({ "workflow": workflow, "prompt": "A secret of one." });
    let run = ask(&api, (Method::POST, "/v1/runs"), &one, Some(&run)).await;
    assert_eq!(run.status, StatusCode::ACCEPTED, "{}", run.text());
    let run = run.json();
    let (id, session) = (run["id"].as_str().unwrap(), run["session_id"].as_str().unwrap());
    let credential =
        json!({ "name": "model", "kind": "model_api_key", "secret": { "value": "sk-ant-a-secret-of-one" } });
    let credential = ask(&api, (Method::POST, "/v1/credentials"), &one, Some(&credential)).await;
    assert_eq!(credential.status, StatusCode::CREATED, "{}", credential.text());
    let credential = credential.json()["id"].as_str().unwrap().to_owned();
    let budget = json!({ "total_micro_usd": 5 });
    assert_eq!(ask(&api, (Method::PUT, "/v1/budget"), &one, Some(&budget)).await.status, StatusCode::OK);
    let key = get(&api, "/v1/keys", &one).await.json()["items"][0]["id"].as_str().unwrap().to_owned();

    // The default project's keys made them and see no more of them than of each other.
    for stranger in [other.as_str(), api.key.as_str()] {
        for path in [
            format!("/v1/runs/{id}"),
            format!("/v1/runs/{id}/events"),
            format!("/v1/runs/{id}/diff"),
            format!("/v1/runs/{id}/artifacts"),
            format!("/v1/sessions/{session}"),
            format!("/v1/sessions/{session}/events"),
            format!("/v1/credentials/{credential}"),
        ] {
            let answer = get(&api, &path, stranger).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {}", answer.text());
            assert!(!get(&api, &path, &one).await.status.is_server_error(), "{path}");
        }
        let rotated = json!({ "secret": { "value": "sk-ant-another-secret" } });
        for (method, path, body) in [
            (Method::POST, format!("/v1/runs/{id}/cancel"), Some(json!({}))),
            (Method::PUT, format!("/v1/credentials/{credential}"), Some(rotated)),
            (Method::DELETE, format!("/v1/credentials/{credential}"), None),
            (Method::DELETE, format!("/v1/keys/{key}"), None),
        ] {
            let answer = ask(&api, (method.clone(), &path), stranger, body.as_ref()).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}: {}", answer.text());
        }
        for path in ["/v1/runs", "/v1/sessions", "/v1/credentials", "/v1/keys", "/v1/audit", "/v1/budget"] {
            let answer = get(&api, path, stranger).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}");
            let text = answer.text();
            // In the default project's log stands who made the project, and nothing that happened in it.
            for theirs in [id, session, &credential, &key, "A secret of one."] {
                assert!(!text.contains(theirs), "{path} shows {theirs}: {text}");
            }
        }
        let budget = get(&api, "/v1/budget", stranger).await.json();
        assert_eq!(budget["total"]["budget_micro_usd"], Value::Null);
    }
    for (path, count) in [("/v1/runs", 1), ("/v1/sessions", 1), ("/v1/credentials", 1), ("/v1/keys", 1)] {
        let own = get(&api, path, &one).await.json();
        assert_eq!(own["items"].as_array().unwrap().len(), count, "{path}: {own}");
    }
    assert_eq!(get(&api, "/v1/budget", &one).await.json()["total"]["budget_micro_usd"], 5);
    let audit = get(&api, "/v1/audit", &one).await.json();
    let actions: Vec<_> =
        audit["items"].as_array().unwrap().iter().map(|one| one["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["project.budget", "credential.add", "run.create", "key.create"]);
}

#[tokio::test]
async fn a_project_whose_key_cannot_be_made_is_not_made_either() {
    let api = Api::start().await;
    let database = api.database().await;
    let broken = "create trigger no_key before insert on api_key begin select raise(abort, 'no key'); end";
    sqlx::raw_sql(broken).execute(&database).await.unwrap();
    let wanted = json!({ "id": "team-a" });
    let failed = api.post("/v1/projects", &wanted).await;
    assert!(failed.status.is_server_error(), "{}", failed.text());
    sqlx::raw_sql("drop trigger no_key").execute(&database).await.unwrap();
    let made = api.post("/v1/projects", &wanted).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    let audit = api.get("/v1/audit?action=project.create").await.json();
    assert_eq!(audit["items"].as_array().unwrap().len(), 1);
}
