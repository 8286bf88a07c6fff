//! Events as JSON pages.

use caisson_domain::limits;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Api, events_of, events_of_session};

fn seqs(page: &Value) -> Vec<i64> {
    page["items"].as_array().unwrap().iter().map(|event| event["seq"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn pages_hold_every_event_once_in_order() {
    let api = Api::start().await;
    let run = api.finished(40).await;
    let all: Vec<i64> = (1..=43).collect();
    for path in [events_of(&run.id), events_of_session(&run.session)] {
        for limit in [1, 5, 16, 17, 42, 43, 44, 1000] {
            let (mut seen, mut after) = (Vec::new(), 0);
            loop {
                let page = api.get(&format!("{path}?after={after}&limit={limit}")).await.json();
                assert!(seqs(&page).len() <= limit);
                seen.extend(seqs(&page));
                after = page["next_after"].as_i64().unwrap();
                assert_eq!(Some(&after), seen.last());
                if page["more"] == json!(false) {
                    break;
                }
            }
            assert_eq!(seen, all, "limit {limit}");
        }
    }
    insta::assert_json_snapshot!(
        "event_page",
        api.get(&format!("{}?limit=2", events_of(&run.id))).await.steady()
    );
}

#[tokio::test]
async fn a_page_has_a_hundred_events_when_nobody_says_how_many() {
    let api = Api::start().await;
    let run = api.finished(100).await;
    let page = api.get(&events_of(&run.id)).await.json();
    assert_eq!((seqs(&page).len(), &page["more"]), (100, &json!(true)));
}

#[tokio::test]
async fn a_page_behind_the_last_event_is_empty_and_goes_on_from_there() {
    let api = Api::start().await;
    let run = api.finished(0).await;
    for after in [3, 99] {
        let page = api.get(&format!("{}?after={after}", events_of(&run.id))).await.json();
        assert_eq!(page, json!({"items": [], "next_after": after, "more": false}));
    }
}

#[tokio::test]
async fn a_page_of_long_events_ends_early_and_says_so() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let line = format!("{{\"text\":\"{}\"}}", "x".repeat(limits::JOURNAL_LINE_BYTES - 11));
    assert_eq!(line.len(), limits::JOURNAL_LINE_BYTES);
    for _ in 0..9 {
        api.say(&claimed, &line).await;
    }
    let (mut after, mut sizes) = (2, Vec::new());
    loop {
        let page = api.get(&format!("{}?after={after}&limit=1000", events_of(&claimed.run.id))).await.json();
        sizes.push(seqs(&page).len());
        after = page["next_after"].as_i64().unwrap();
        if page["more"] == json!(false) {
            break;
        }
    }
    assert_eq!(sizes, [4, 4, 1]);
}

#[tokio::test]
async fn the_details_of_an_event_keep_their_bytes() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let raw = "{\"b\" : 1.0,  \"a\":\"\\u0000\"}";
    api.say(&claimed, raw).await;
    let answer = api.get(&format!("{}?after=2", events_of(&claimed.run.id))).await;
    assert!(answer.text().contains(raw), "{}", answer.text());
}

#[tokio::test]
async fn parameters_of_pages_are_bounded() {
    let api = Api::start().await;
    let run = api.finished(0).await;
    let path = events_of(&run.id);
    let most = limits::EVENT_PAGE_ITEMS;
    assert_eq!(api.get(&format!("{path}?limit={most}")).await.status, StatusCode::OK);
    assert_eq!(api.get(&format!("{path}?after={}", i64::MAX)).await.status, StatusCode::OK);
    for (bad, field) in [
        ("limit=0".to_owned(), "limit"),
        (format!("limit={}", most + 1), "limit"),
        ("after=-1".to_owned(), "after"),
        ("after=x".to_owned(), "after"),
        ("after=9223372036854775808".to_owned(), "after"),
    ] {
        let answer = api.get(&format!("{path}?{bad}")).await;
        answer.assert_problem(400, "invalid_query");
        assert_eq!(answer.faults(), [(field.to_owned(), "out_of_range".to_owned())]);
    }
    for (path, code) in [(events_of(&format!("run_{}", "0".repeat(32)).parse().unwrap()), "unknown_run")] {
        api.get(&path).await.assert_problem(404, code);
    }
    let session = format!("ses_{}", "0".repeat(32)).parse().unwrap();
    api.get(&events_of_session(&session)).await.assert_problem(404, "unknown_session");
}

#[tokio::test]
async fn a_page_of_a_conversation_ends_after_so_many_bytes_of_events_of_which_nothing_is_shown() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let system = |bytes: usize| format!("{{\"type\":\"system\",\"text\":\"{}\"}}", "x".repeat(bytes - 27));
    assert_eq!(system(limits::JOURNAL_LINE_BYTES).len(), limits::JOURNAL_LINE_BYTES);
    let before = api.get(&events_of(&claimed.run.id)).await.json();
    let before: usize =
        before["items"].as_array().unwrap().iter().map(|event| event["data"].to_string().len()).sum();
    for _ in 0..15 {
        api.say(&claimed, &system(limits::JOURNAL_LINE_BYTES)).await;
    }
    let path = format!("/v1/sessions/{}/messages", claimed.run.session);
    // A byte less than 16 MiB are read to their end.
    api.say(&claimed, &system(limits::JOURNAL_LINE_BYTES - before - 100)).await;
    api.say(&claimed, &system(99)).await;
    let page = api.get(&path).await.json();
    assert_eq!((page["items"].as_array().unwrap().len(), &page["next_cursor"]), (1, &Value::Null));
    api.say(&claimed, r#"{"type":"assistant","message":{"content":[{"type":"text","text":"Done."}]}}"#).await;
    let other = api.get(&format!("{path}?limit=1")).await.json();
    assert_eq!(other["items"].as_array().unwrap().len(), 1);
    let page = api.get(&path).await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 2, "the event that reaches the bound is in the page");
    let next = api.get(&format!("{path}?cursor={}", page["next_cursor"].as_str().unwrap())).await.json();
    assert_eq!(next, json!({ "items": [], "next_cursor": null }));
}
