//! Sessions that go on: follow-up runs, forks, deletion.

use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::limits::{FORKS_WITHOUT_RUN, IDEMPOTENCY_MS, SERVER_LOST_MS_DEFAULT, SERVER_SILENT_MS};
use caisson_domain::principal::Scope;
use caisson_domain::run::Run;
use caisson_domain::server::{PlacementProblem, ProblemCode, Role};
use caisson_store::{Actor, Claimed, ForkSession, JournalEffect, NewFork, Presence, SandboxState};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api, REPOSITORY, body};

/// A session whose only run has ended and archived its conversation.
async fn ended(api: &Api) -> Run {
    let claimed = api.running().await;
    archived(api, &claimed).await;
    api.finish(&claimed).await;
    api.store.run(&ProjectId::default_project(), &claimed.run.id).await.unwrap().unwrap()
}

async fn archived(api: &Api, claimed: &Claimed) {
    assert!(api.store.put_transcript(&claimed.run.id, "said").await.unwrap());
}

async fn follow(api: &Api, run: &Run, more: &Value) -> Answer {
    let mut body = json!({"session": run.session, "prompt": "And now the rest."});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    api.post("/v1/runs", &body).await
}

async fn delete(api: &Api, path: &str) -> Answer {
    api.send(api.request(Method::DELETE, path).body(axum::body::Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_follow_up_has_what_its_session_has() {
    let api = Api::start().await;
    let first = ended(&api).await;
    let answer = follow(&api, &first, &json!({})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    let run = answer.json();
    assert_eq!(run["session_id"], first.session.as_str());
    let shown = api.get(&format!("/v1/runs/{}", first.id)).await.json();
    for name in ["workflow", "repository", "base", "branch", "image", "parameters"] {
        assert_eq!(run[name], shown[name], "{name}");
    }
    assert_eq!((&run["repository"], &run["prompt"]), (&json!(REPOSITORY), &json!("And now the rest.")));
    // What is the same is no contradiction.
    let same = json!({"workflow": "fix", "repository": format!("{REPOSITORY}/"), "branch": shown["branch"]});
    api.clock.advance(1);
    let again = follow(&api, &first, &same).await;
    assert_eq!(again.status, StatusCode::ACCEPTED, "{}", again.text());
    let session = api.get(&format!("/v1/sessions/{}", first.session)).await.json();
    assert_eq!((&session["runs"], &session["last_status"]), (&json!(3), &json!("queued")));
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    assert_eq!(claimed.run.id.as_str(), run["id"]);
    assert_eq!(api.store.claim(&api.server).await.unwrap(), None, "one run at a time");
}

#[tokio::test]
async fn what_contradicts_the_session_is_refused_by_name() {
    let api = Api::start().await;
    let first = ended(&api).await;
    for (more, field) in [
        (json!({"repository": "/srv/git/other"}), "repository"),
        (json!({"repository": null}), "repository"),
        (json!({"branch": "other"}), "branch"),
        (json!({"base": "other"}), "base"),
    ] {
        let answer = follow(&api, &first, &more).await;
        answer.assert_problem(422, "session_contradicted");
        assert_eq!(answer.faults(), [(field.to_owned(), "session_contradicted".to_owned())]);
    }
    let other = follow(&api, &first, &json!({"workflow": "other"})).await;
    assert!(
        other.faults().contains(&("workflow".to_owned(), "session_contradicted".to_owned())),
        "{}",
        other.text()
    );
    let all = follow(&api, &first, &json!({"branch": "other", "base": "other", "timeout_s": 1})).await;
    assert_eq!(all.faults().len(), 3, "told together: {}", all.text());
    assert_eq!(api.get("/v1/runs").await.json()["items"].as_array().unwrap().len(), 1, "nothing was made");
}

#[tokio::test]
async fn a_session_of_another_project_or_of_nobody_is_not_found() {
    let api = Api::start().await;
    let first = ended(&api).await;
    for session in [json!("ses_00000000000000000000000000000000"), json!("nonsense"), json!("")] {
        let answer = api.post("/v1/runs", &json!({"session": session, "prompt": "x"})).await;
        answer.assert_problem(422, "unknown_session");
    }
    let theirs = api.other_projects_key().await;
    let as_them = |method: Method, path: &str, body: &Value| {
        let request = http::Request::builder().method(method).uri(path).header("x-api-key", theirs.clone());
        let request = request.header("content-type", "application/json");
        request.body(axum::body::Body::from(body.to_string())).unwrap()
    };
    let body = json!({"session": first.session, "prompt": "x"});
    api.send(as_them(Method::POST, "/v1/runs", &body)).await.assert_problem(422, "unknown_session");
    let path = format!("/v1/sessions/{}", first.session);
    let fork = api.send(as_them(Method::POST, &format!("{path}/fork"), &json!({}))).await;
    fork.assert_problem(404, "unknown_session");
    api.send(as_them(Method::DELETE, &path, &json!({}))).await.assert_problem(404, "unknown_session");
    assert_eq!(api.get(&path).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_follow_up_sent_again_with_its_key_makes_no_second_run_also_when_its_session_is_gone() {
    let api = Api::start().await;
    let first = ended(&api).await;
    let sent = json!({"session": first.session, "prompt": "x"});
    let made = api.post_with_key("k", &sent).await.json();
    let again = api.post_with_key("k", &sent).await;
    assert_eq!(
        (again.json()["id"].clone(), again.header("idempotent-replayed")),
        (made["id"].clone(), "true")
    );
    let cancel = format!("/v1/runs/{}/cancel", made["id"].as_str().unwrap());
    assert_eq!(api.post(&cancel, &json!({})).await.status, StatusCode::ACCEPTED);
    assert_eq!(delete(&api, &format!("/v1/sessions/{}", first.session)).await.status, StatusCode::NO_CONTENT);
    let gone = api.post_with_key("k", &sent).await;
    gone.assert_problem(409, "run_deleted");
    assert!(gone.text().contains("use a new Idempotency-Key"), "{}", gone.text());
    api.post_with_key("k", &body()).await.assert_problem(422, "idempotency_key_reused");
    assert_eq!(api.get("/v1/runs").await.json()["items"], json!([]));
    api.clock.advance(IDEMPOTENCY_MS);
    api.store.register_server(&api.server).await.unwrap();
    let new = api.post_with_key("k", &body()).await;
    assert_eq!(new.status, StatusCode::ACCEPTED, "its day is over: {}", new.text());
}

#[tokio::test]
async fn a_request_whose_session_was_deleted_is_not_served_twice() {
    let api = Api::start().await;
    let made = api.post_with_key("k", &body()).await.json();
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    api.finish(&claimed).await;
    let session = made["session_id"].as_str().unwrap();
    assert_eq!(delete(&api, &format!("/v1/sessions/{session}")).await.status, StatusCode::NO_CONTENT);
    api.post_with_key("k", &body()).await.assert_problem(409, "run_deleted");
    assert_eq!(api.store.claim(&api.server).await.unwrap(), None, "no second run");
}

#[tokio::test]
async fn a_session_of_which_nothing_is_kept_is_told_so() {
    let api = Api::start().await;
    let first = ended(&api).await;
    started(&api, &first).await;
    let path = format!("/v1/sessions/{}", first.session);
    assert_eq!(api.get(&path).await.json()["expired"], false);
    let database = api.database().await;
    for sql in [
        "delete from transcript_part",
        "delete from transcript",
        "update session_files set removal_begun_at_ms = 1",
    ] {
        sqlx::query(sql).execute(&database).await.unwrap();
    }
    assert_eq!(api.get(&path).await.json()["expired"], true);
    assert_eq!(api.get("/v1/sessions").await.json()["items"][0]["expired"], true);
    follow(&api, &first, &json!({})).await.assert_problem(422, "session_expired");
}

/// As if the agent had started in the run.
async fn started(api: &Api, run: &Run) {
    let sql = "update attempt set agent_started_at_ms = started_at_ms where run_id = $1";
    sqlx::query(sql).bind(run.id.as_str()).execute(&api.database().await).await.unwrap();
}

#[tokio::test]
async fn a_follow_up_that_waits_for_its_sessions_home_says_so() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let sandbox = api.placed(&claimed).await;
    api.journal(&claimed, &sandbox, vec![JournalEffect::AgentStarted]).await;
    archived(&api, &claimed).await;
    api.finish(&claimed).await;
    let other = ServerId::new(1, [2; 10]);
    api.store.register_server(&other).await.unwrap();
    let run = follow(&api, &claimed.run, &json!({})).await.json();
    let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    let held = async || api.get(&path).await.json()["held_by"].clone();
    assert_eq!(held().await, json!([]), "its home can start it");
    api.store.drain(Some(&other), &Actor::Operator).await.unwrap();
    assert_eq!(held().await, json!([]), "another server is nothing to it");
    api.store.resume(None, &Actor::Operator).await.unwrap();
    api.store.drain(Some(&api.server), &Actor::Operator).await.unwrap();
    assert_eq!(api.store.claim(&other).await.unwrap(), None, "although the other one is free");
    let drained = held().await;
    assert_eq!((drained.as_array().unwrap().len(), &drained[0]["code"]), (1, &json!("drained")));
    let told = drained[0]["message"].as_str().unwrap();
    assert!(
        told.contains(api.server.as_str()) && told.contains("which has the session's workspace"),
        "{told}"
    );
    api.store.resume(None, &Actor::Operator).await.unwrap();
    let problem = PlacementProblem { code: ProblemCode::DiskLow, message: "make room".to_owned() };
    api.store.heartbeat_server(&api.server, &[problem]).await.unwrap();
    assert_eq!(held().await, json!([{ "code": "disk_low", "message": "make room" }]));
    api.clock.advance(SERVER_SILENT_MS + 1);
    api.store.heartbeat_server(&other, &[]).await.unwrap();
    let away = held().await;
    assert_eq!(away[0]["code"], "home_away");
    assert!(away[0]["message"].as_str().unwrap().contains("silent for 600 s"), "{away}");
    api.clock.advance(SERVER_LOST_MS_DEFAULT);
    api.store.heartbeat_server(&other, &[]).await.unwrap();
    let lost = held().await;
    assert_eq!(lost[0]["code"], "home_away", "the other one was not there all the time: {lost}");
    assert!(lost[0]["message"].as_str().unwrap().contains("heard of for 600 s without a pause"), "{lost}");
    assert_eq!(api.store.claim(&other).await.unwrap(), None);
    let presence = Presence {
        server: other.clone(),
        roles: vec![Role::Worker],
        version: "1.2.3".to_owned(),
        slots: Some(1),
    };
    let turns = SERVER_LOST_MS_DEFAULT / SERVER_SILENT_MS;
    for turn in 0..=turns {
        api.store.beat(&presence).await.unwrap();
        api.store.heartbeat_server(&other, &[]).await.unwrap();
        if turn < turns {
            assert_eq!(held().await[0]["code"], "home_away", "{turn}");
            api.clock.advance(SERVER_SILENT_MS);
        }
    }
    assert_eq!(held().await, json!([]), "another server may start it");
    assert!(api.store.claim(&other).await.unwrap().is_some());
}

#[tokio::test]
async fn a_fork_is_a_session_and_its_first_run_begins_where_the_other_is() {
    let api = Api::start().await;
    let first = ended(&api).await;
    let path = format!("/v1/sessions/{}/fork", first.session);
    let answer = api.post(&path, &json!({})).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let fork = answer.json();
    let id = fork["id"].as_str().unwrap();
    assert_eq!(answer.header("location"), format!("/v1/sessions/{id}"));
    assert_eq!((&fork["forked_from"], &fork["runs"]), (&json!(first.session), &json!(0)));
    assert!(fork["branch"].as_str().unwrap().starts_with("caisson/fix/"), "{fork}");
    assert_eq!(api.get(&format!("/v1/sessions/{id}")).await.json(), fork);
    let run = api.post("/v1/runs", &json!({"session": id, "prompt": "x"})).await.json();
    assert_eq!(
        (&run["branch"], &run["session_id"], &run["prompt"]),
        (&fork["branch"], &json!(id), &json!("x"))
    );
    let named = api.post(&path, &json!({"branch": "mine"})).await.json();
    assert_eq!(named["branch"], "mine");
    for (body, code) in [
        (json!({"branch": "a..b"}), "branch_invalid"),
        (json!({"branch": 7}), "wrong_type"),
        (json!({"brunch": "x"}), "unknown_field"),
        (json!({"branch": first.spec.branch}), "branch_taken"),
    ] {
        api.post(&path, &body).await.assert_problem(422, code);
    }
    api.post(&format!("/v1/sessions/ses_{}/fork", "0".repeat(32)), &json!({}))
        .await
        .assert_problem(404, "unknown_session");
}

#[tokio::test]
async fn a_fork_says_what_of_it_is_older() {
    let api = Api::start().await;
    let first = ended(&api).await;
    let path = format!("/v1/sessions/{}/fork", first.session);
    let fork = api.post(&path, &json!({})).await.json();
    assert_eq!(fork["fork"], json!({"commit": null, "older": "files"}), "nothing was pushed");
    let run = api.post("/v1/runs", &json!({"session": fork["id"], "prompt": "x"})).await.json();
    let events = api.get(&format!("/v1/runs/{}/events", run["id"].as_str().unwrap())).await.json();
    let note = &events["items"][1];
    assert_eq!((&note["kind"], &note["data"]["level"]), (&json!("note"), &json!("warn")));
    assert!(note["data"]["message"].as_str().unwrap().contains("files are older"), "{note}");
    sqlx::query("update run set pushed_commit = 'c0ffee' where id = $1")
        .bind(first.id.as_str())
        .execute(&api.database().await)
        .await
        .unwrap();
    let fork = api.post(&path, &json!({})).await.json();
    assert_eq!(fork["fork"], json!({"commit": "c0ffee", "older": null}));
    assert_eq!(api.get(&format!("/v1/sessions/{}", first.session)).await.json()["fork"], Value::Null);
}

#[tokio::test]
async fn a_fork_asked_for_twice_with_one_key_is_one_fork() {
    let api = Api::start().await;
    let first = ended(&api).await;
    let path = format!("/v1/sessions/{}/fork", first.session);
    let post = async |key: &str, body: &Value| {
        let mut request = api.json_request(&path, body);
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        api.send(request).await
    };
    let made = post("k", &json!({})).await;
    assert_eq!((made.status, made.header("idempotent-replayed")), (StatusCode::CREATED, ""));
    let again = post("k", &json!({})).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::CREATED, "true"));
    assert_eq!((again.json(), again.header("location")), (made.json(), made.header("location")));
    assert_ne!(post("other", &json!({})).await.json()["id"], made.json()["id"]);
    post("k", &json!({"branch": "mine"})).await.assert_problem(422, "idempotency_key_reused");
    api.post_with_key("k", &body()).await.assert_problem(422, "idempotency_key_reused");
    post("a b", &json!({})).await.assert_problem(400, "idempotency_key_invalid");
    let fork = format!("/v1/sessions/{}", made.json()["id"].as_str().unwrap());
    assert_eq!(delete(&api, &fork).await.status, StatusCode::NO_CONTENT);
    post("k", &json!({})).await.assert_problem(409, "session_deleted");
}

#[tokio::test]
async fn a_session_is_deleted_by_administrators_alone() {
    let api = Api::start().await;
    let first = ended(&api).await;
    let path = format!("/v1/sessions/{}", first.session);
    let all_but_admin: Vec<Scope> =
        Scope::ALL.iter().copied().filter(|scope| *scope != Scope::Admin).collect();
    let key = api.key_with(&all_but_admin).await;
    let request = http::Request::builder().method(Method::DELETE).uri(&path).header("x-api-key", key);
    let refused = api.send(request.body(axum::body::Body::empty()).unwrap()).await;
    refused.assert_problem(403, "scope_missing");
    assert!(refused.text().contains("admin"), "{}", refused.text());
    assert_eq!(api.get(&path).await.status, StatusCode::OK, "it is there");
    assert_eq!(delete(&api, &path).await.status, StatusCode::NO_CONTENT);
    let records = api.get("/v1/audit?action=session.delete").await.json();
    assert_eq!(records["items"].as_array().unwrap().len(), 1, "told of once");
}

#[tokio::test]
async fn what_cannot_be_forked_says_why() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let path = format!("/v1/sessions/{}/fork", claimed.run.session);
    api.post(&path, &json!({})).await.assert_problem(409, "session_busy");
    api.finish(&claimed).await;
    api.post(&path, &json!({})).await.assert_problem(409, "no_conversation");
    let empty =
        api.post("/v1/runs", &json!({"workflow": "fix", "prompt": "x", "repository": null})).await.json();
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    archived(&api, &claimed).await;
    api.finish(&claimed).await;
    let path = format!("/v1/sessions/{}/fork", empty["session_id"].as_str().unwrap());
    api.post(&path, &json!({})).await.assert_problem(409, "fork_without_repository");
}

#[tokio::test]
async fn one_fork_more_than_may_be_without_a_run_is_refused() {
    let api = Api::start().await;
    let first = ended(&api).await;
    let path = format!("/v1/sessions/{}/fork", first.session);
    for _ in 1..FORKS_WITHOUT_RUN {
        let project = ProjectId::default_project();
        let forked = api
            .store
            .fork_session(&project, &first.session, &NewFork::default(), Actor::Operator)
            .await
            .unwrap();
        assert!(matches!(forked, ForkSession::Forked { .. }), "{forked:?}");
    }
    let last = api.post(&path, &json!({})).await;
    assert_eq!(last.status, StatusCode::CREATED, "{}", last.text());
    let refused = api.post(&path, &json!({})).await;
    refused.assert_problem(429, "forks_full");
    assert!(!refused.header("retry-after").is_empty());
    assert!(
        refused.text().contains("has 100 forks without a run; give one of them a run, or have one deleted")
    );
    let run = json!({"session": last.json()["id"], "prompt": "x"});
    assert_eq!(api.post("/v1/runs", &run).await.status, StatusCode::ACCEPTED);
    let more = api.post(&path, &json!({})).await;
    assert_eq!(more.status, StatusCode::CREATED, "{}", more.text());
    assert_eq!(
        delete(&api, &format!("/v1/sessions/{}", more.json()["id"].as_str().unwrap())).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(api.post(&path, &json!({})).await.status, StatusCode::CREATED);
    api.post(&path, &json!({})).await.assert_problem(429, "forks_full");
}

#[tokio::test]
async fn a_deleted_session_is_gone_with_its_runs() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let (session, run) = (claimed.run.session.clone(), claimed.run.id.clone());
    let path = format!("/v1/sessions/{session}");
    delete(&api, &path).await.assert_problem(409, "session_busy");
    let id = api.placed(&claimed).await;
    api.finish(&claimed).await;
    let left = delete(&api, &path).await;
    left.assert_problem(409, "session_busy");
    assert!(left.text().contains("in a moment"), "{}", left.text());
    api.store.set_sandbox_state(&id, SandboxState::Destroyed).await.unwrap();
    assert_eq!(delete(&api, &path).await.status, StatusCode::NO_CONTENT);
    delete(&api, &path).await.assert_problem(404, "unknown_session");
    api.get(&path).await.assert_problem(404, "unknown_session");
    api.get(&format!("/v1/runs/{run}")).await.assert_problem(404, "unknown_run");
    let records = api.get("/v1/audit?action=session.delete").await.json();
    assert_eq!(records["items"][0]["subject"], session.as_str());
    assert_eq!(api.post("/v1/runs", &body()).await.status, StatusCode::ACCEPTED, "its branch is free");
}
