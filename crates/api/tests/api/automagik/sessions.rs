//! Sessions and their messages, here and natively.

use caisson_store::Claimed;
use http::Method;
use serde_json::{Value, json};

use super::{FIRST, SECOND, api, send, started, steady, task_with};
use crate::support::Api;

const CALL: &str = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"I look."},{"type":"tool_use","id":"t1","name":"Read","input":{"file_path":"x"}}]}}"#;
const RESULT: &str = r#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t1","content":"the file"}]}}"#;
const DONE: &str = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"Done."}]}}"#;

/// A session called `epic` in which an agent worked.
async fn talked(api: &Api) -> Claimed {
    started(api, FIRST, &task_with(&json!({ "session_name": "epic", "user_id": "u1" }))).await;
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    for line in [r#"{"type":"system","subtype":"init"}"#, CALL, RESULT, DONE] {
        api.say(&claimed, line).await;
    }
    claimed
}

#[tokio::test]
async fn a_session_is_readable_as_a_conversation_natively() {
    let api = api().await;
    let claimed = talked(&api).await;
    let path = format!("/v1/sessions/{}/messages", claimed.run.session);
    insta::assert_json_snapshot!("conversation", api.get(&path).await.steady());
    let whole = api.get(&path).await.json()["items"].clone();
    for limit in 1..=5 {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("{path}?limit={limit}{cursor}")).await.json();
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit);
            seen.extend(items.clone());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(json!(seen), whole, "limit {limit}");
    }
    api.get(&format!("{path}?limit=201")).await.assert_problem(400, "invalid_query");
    api.get(&format!("{path}?cursor=zz")).await.assert_problem(400, "invalid_query");
    api.get(&format!("/v1/sessions/ses_{}/messages", "0".repeat(32)))
        .await
        .assert_problem(404, "unknown_session");
}

#[tokio::test]
async fn a_name_that_reads_like_another_sessions_id_does_not_stand_before_it() {
    let api = api().await;
    let first = talked(&api).await.run.session.to_string();
    let uuid = uuid::Uuid::parse_str(first.trim_start_matches("ses_")).unwrap().to_string();
    for name in [&first, &uuid] {
        api.clock.advance(1);
        started(&api, FIRST, &task_with(&json!({ "session_name": name }))).await;
        let found = api.get(&format!("/api/v1/sessions/{name}")).await.json();
        assert_eq!((&found["session_name"], &found["session_id"]), (&json!("epic"), &json!(first)));
    }
    // Nobody's id is found by its name, with that for its id.
    let uuid = uuid::Uuid::nil().to_string();
    started(&api, FIRST, &task_with(&json!({ "session_name": uuid }))).await;
    assert_eq!(api.get(&format!("/api/v1/sessions/{uuid}")).await.json()["session_id"], uuid);
}

#[tokio::test]
async fn sessions_are_listed_by_page_number() {
    let api = api().await;
    talked(&api).await;
    insta::assert_json_snapshot!("sessions", steady(&api.get("/api/v1/sessions").await));
    for number in 0..3 {
        api.clock.advance(1);
        started(&api, FIRST, &task_with(&json!({ "session_name": number.to_string() }))).await;
    }
    let names = async |query: &str| -> Vec<Value> {
        let page = api.get(&format!("/api/v1/sessions?{query}")).await.json();
        page["sessions"].as_array().unwrap().iter().map(|session| session["session_name"].clone()).collect()
    };
    assert_eq!(names("page_size=3").await, ["2", "1", "0"]);
    assert_eq!(names("page_size=3&page=2").await, ["epic"]);
    assert_eq!(names("sort_desc=false&page_size=2").await, ["epic", "0"]);
    for bad in ["page=0", "page_size=101", "sort_desc=maybe"] {
        assert_eq!(api.get(&format!("/api/v1/sessions?{bad}")).await.status, 422, "{bad}");
    }
}

#[tokio::test]
async fn a_session_is_read_by_id_and_by_name() {
    let api = api().await;
    let claimed = talked(&api).await;
    let by_id = api.get(&format!("/api/v1/sessions/{}?sort_desc=false", claimed.run.session)).await;
    insta::assert_json_snapshot!("session_history", steady(&by_id));
    let by_name = api.get("/api/v1/sessions/epic?sort_desc=false").await.json();
    assert_eq!((&by_name["session_id"], &by_name["messages"]), (&json!("epic"), &by_id.json()["messages"]));
    let contents = |value: &Value| -> Vec<Value> {
        value["messages"].as_array().unwrap().iter().map(|message| message["content"].clone()).collect()
    };
    let hidden = api.get("/api/v1/sessions/epic?hide_tools=true").await.json();
    assert_eq!(contents(&hidden), ["Done.", "I look.", "Fix the session timeout"]);
    assert!(!hidden.to_string().contains("the file"), "{hidden}");
    let second = api.get("/api/v1/sessions/epic?page=2&page_size=2&sort_desc=false").await.json();
    assert_eq!((contents(&second), &second["current_page"]), (vec![json!(""), json!("Done.")], &json!(2)));
    let prompt = api.get("/api/v1/sessions/epic?show_system_prompt=true").await.json();
    assert_eq!((&prompt["system_prompt"], &hidden["system_prompt"]), (&json!("Fix it."), &Value::Null));
    assert_eq!(api.get("/api/v1/sessions/no-such").await.status, 404);
    let naive = api.get(&SECOND.replace("/workflows/claude-code", "/sessions")).await.json();
    assert!(!naive["sessions"][0]["created_at"].as_str().unwrap().contains('+'));
}

#[tokio::test]
async fn messages_are_listed_and_read_and_nobody_changes_them() {
    let api = api().await;
    let claimed = talked(&api).await;
    let path = format!("/api/v1/messages?session_id={}", claimed.run.session);
    let listed = api.get(&format!("{path}&page_size=3")).await.json();
    assert_eq!(
        (&listed["total"], &listed["has_next"], &listed["has_prev"]),
        (&json!(4), &json!(true), &json!(false))
    );
    assert_eq!(listed["messages"][0]["content"], "Done.");
    for empty in ["/api/v1/messages", "/api/v1/messages?session_id=x"] {
        assert_eq!(api.get(empty).await.json()["messages"], json!([]));
    }
    let one = format!("/api/v1/messages/{}", listed["messages"][1]["id"].as_str().unwrap());
    assert_eq!(api.get(&one).await.json(), listed["messages"][1]);
    let session = format!("/api/v1/sessions/{}", claimed.run.session);
    for (method, path, code) in [
        (Method::POST, "/api/v1/messages", "messages_kept"),
        (Method::PUT, &one, "messages_kept"),
        (Method::DELETE, &one, "messages_kept"),
        (Method::DELETE, &session, "session_kept"),
    ] {
        let answer = send(&api, method.clone(), path, &json!({})).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (409, &json!(code)), "{method} {path}");
    }
    for path in ["/api/v1/messages/x", "/api/v1/messages/msg_1_1"] {
        assert_eq!(send(&api, Method::DELETE, path, &json!({})).await.status, 404);
    }
    assert_eq!(api.get(&one).await.status, 200);
}
