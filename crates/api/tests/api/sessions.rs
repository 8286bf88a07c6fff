//! `/v1/sessions`.

use http::StatusCode;

use crate::support::Api;

#[tokio::test]
async fn a_session_shows_its_last_run() {
    let api = Api::start().await;
    let run = api.finished(1).await;
    let answer = api.get(&format!("/v1/sessions/{}", run.session)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["last_run"], run.id.as_str());
    insta::assert_json_snapshot!("session", answer.steady());
    api.get(&format!("/v1/sessions/ses_{}", "0".repeat(32))).await.assert_problem(404, "unknown_session");
}

#[tokio::test]
async fn pages_hold_every_session_once_newest_first() {
    let api = Api::start().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        api.clock.advance(1);
        made.push(api.queued().await.session.to_string());
    }
    made.reverse();
    for limit in 1..=6 {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("/v1/sessions?limit={limit}{cursor}")).await.json();
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit);
            seen.extend(items.iter().map(|session| session["id"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen, made, "limit {limit}");
    }
}
