//! Users: labels that open nothing.

use caisson_domain::limits::PROJECT_USERS;
use http::Method;
use serde_json::{Value, json};

use super::{api, send, steady_value};

#[tokio::test]
async fn a_user_is_made_found_changed_and_removed() {
    let api = api().await;
    let fields = json!({ "email": "a@example.com", "phone_number": "+1 23", "user_data": { "name": "A" } });
    let made = send(&api, Method::POST, "/api/v1/users", &fields).await;
    assert_eq!(made.status, 200);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert!(uuid::Uuid::parse_str(&id).is_ok());
    let mut shown = made.json();
    shown["id"] = json!("[id]");
    steady_value(&mut shown);
    insta::assert_json_snapshot!("user", shown);
    for name in [id.as_str(), "a@example.com", "+1%2023"] {
        assert_eq!(api.get(&format!("/api/v1/users/{name}")).await.json(), made.json(), "{name}");
    }
    let path = format!("/api/v1/users/{id}");
    let changed =
        send(&api, Method::PUT, &path, &json!({ "user_data": { "name": "B" }, "email": null })).await.json();
    assert_eq!((&changed["email"], &changed["user_data"]["name"]), (&json!("a@example.com"), &json!("B")));
    let gone = send(&api, Method::DELETE, &path, &Value::Null).await;
    assert_eq!((gone.status.as_u16(), &gone.json()["success"]), (200, &json!(true)));
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        assert_eq!(send(&api, method.clone(), &path, &json!({})).await.status, 404, "{method}");
    }
}

#[tokio::test]
async fn users_are_listed_by_page_number() {
    let api = api().await;
    for number in 0..5 {
        api.clock.advance(1);
        send(&api, Method::POST, "/api/v1/users", &json!({ "email": format!("{number}@x") })).await;
    }
    let page = api.get("/api/v1/users?page=2&page_size=2").await.json();
    let emails: Vec<&Value> = page["users"].as_array().unwrap().iter().map(|user| &user["email"]).collect();
    assert_eq!(emails, ["2@x", "3@x"]);
    assert_eq!((&page["total"], &page["total_pages"], &page["page_size"]), (&json!(5), &json!(3), &json!(2)));
    assert_eq!(api.get("/api/v1/users").await.json()["page_size"], 20);
    assert_eq!(api.get("/api/v1/users?page_size=101").await.status, 422);
}

#[tokio::test]
async fn addresses_are_unique_and_fields_are_bounded() {
    let api = api().await;
    send(&api, Method::POST, "/api/v1/users", &json!({ "email": "a@x", "phone_number": "1" })).await;
    let other = send(&api, Method::POST, "/api/v1/users", &json!({ "email": "b@x" })).await.json();
    let path = format!("/api/v1/users/{}", other["id"].as_str().unwrap());
    for (method, path, body) in [
        (Method::POST, "/api/v1/users", json!({ "email": "a@x" })),
        (Method::POST, "/api/v1/users", json!({ "phone_number": "1" })),
        (Method::PUT, path.as_str(), json!({ "email": "a@x" })),
    ] {
        let answer = send(&api, method, path, &body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (400, &json!("user_exists")));
    }
    for body in [
        json!({ "email": 1 }),
        json!({ "email": "x".repeat(321) }),
        json!({ "phone_number": "a\u{0}" }),
        json!({ "user_data": [1] }),
        json!({ "user_data": { "x": "x".repeat(64 * 1024) } }),
    ] {
        assert_eq!(send(&api, Method::POST, "/api/v1/users", &body).await.status, 422);
    }
}

#[tokio::test]
async fn a_project_has_so_many_users_and_no_more() {
    let api = api().await;
    let users = "with recursive n (i) as (select 1 union all select i + 1 from n where i < $1) \
        insert into automagik_user (id, project_id, created_at_ms, updated_at_ms) select 'u' || i, 'default', 0, 0 from n";
    sqlx::query(users).bind(PROJECT_USERS - 1).execute(&api.database().await).await.unwrap();
    assert_eq!(send(&api, Method::POST, "/api/v1/users", &json!({})).await.status, 200, "the last one");
    let full = send(&api, Method::POST, "/api/v1/users", &json!({})).await;
    assert_eq!((full.status.as_u16(), &full.json()["code"]), (409, &json!("users_full")));
}
