//! Reports of usage over the API.

use caisson_domain::budget::DAY_MS;
use caisson_domain::id::RunId;
use caisson_domain::principal::Scope;
use caisson_domain::usage::TokenCounts;
use caisson_store::{NewModelCall, SettledCall};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api, NOW_MS};

/// Settles a call of so many tokens of each kind, which costs ten micro-USD a token of input.
pub(crate) async fn call(api: &Api, run: &RunId, model: &str, tokens: [i64; 5]) {
    let new = NewModelCall {
        model: model.to_owned(),
        estimate: TokenCounts::default(),
        estimate_cost_micro_usd: 0,
        reserve_micro_usd: 0,
        only_alone: false,
    };
    let id = api.store.begin_model_call(run, &new).await.unwrap().begun().expect("the run is running");
    let [input, output, cache_read, ..] = tokens;
    let settled = SettledCall {
        model: model.to_owned(),
        status: 200,
        tokens: TokenCounts {
            input,
            output,
            cache_read,
            cache_write_5m: tokens[3],
            cache_write_1h: tokens[4],
        },
        cost_micro_usd: 10 * input,
        estimated: model == "cut",
        first_byte_ms: Some(1),
        duration_ms: 2,
    };
    assert!(api.store.settle_model_call(&id, &settled).await.unwrap());
}

async fn get_with(api: &Api, key: &str, path: &str) -> Answer {
    let request = Request::builder().method(Method::GET).uri(path).header("x-api-key", key);
    api.send(request.body(axum::body::Body::empty()).unwrap()).await
}

/// Two runs with calls of two models on two days.
async fn scene(api: &Api) -> [RunId; 2] {
    let first = api.running().await.run.id;
    api.clock.advance(1);
    let second = api.running().await.run.id;
    call(api, &first, "big", [1, 2, 3, 4, 5]).await;
    call(api, &second, "small", [10, 20, 30, 40, 50]).await;
    api.clock.advance(DAY_MS);
    call(api, &second, "cut", [100, 200, 300, 400, 500]).await;
    [first, second]
}

fn sum(calls: i64, estimated: i64, factor: i64) -> Value {
    json!({
        "calls": calls, "estimated_calls": estimated, "input": factor, "output": 2 * factor, "cache_read": 3 * factor,
        "cache_write_5m": 4 * factor, "cache_write_1h": 5 * factor, "cost_micro_usd": 10 * factor,
    })
}

#[tokio::test]
async fn a_report_has_the_sums_that_were_made_by_hand() {
    let api = Api::start().await;
    let [first, second] = scene(&api).await;
    let days = api.get("/v1/usage").await;
    assert_eq!(days.status, StatusCode::OK, "{}", days.text());
    let expected = json!({
        "by": "day", "project": "default", "from_ms": NOW_MS + 2 - 29 * DAY_MS, "to_ms": NOW_MS + 2 + DAY_MS,
        "total": sum(3, 1, 111),
        "items": [
            {"key": "2026-09-22", "usage": sum(1, 1, 100)},
            {"key": "2026-09-21", "usage": sum(2, 0, 11)},
        ],
        "next_cursor": null,
    });
    assert_eq!(days.json(), expected);
    let items = async |query: &str| api.get(&format!("/v1/usage?{query}")).await.json()["items"].clone();
    let runs = json!([
        {"key": second, "usage": sum(2, 1, 110)},
        {"key": first, "usage": sum(1, 0, 1)},
    ]);
    assert_eq!(items("by=run").await, runs);
    let one = format!("by=model&run={second}");
    let models = json!([{"key": "cut", "usage": sum(1, 1, 100)}, {"key": "small", "usage": sum(1, 0, 10)}]);
    assert_eq!(items(&one).await, models);
    assert_eq!(items("by=workflow&workflow=fix").await, json!([{"key": "fix", "usage": sum(3, 1, 111)}]));
    assert_eq!(items("by=session&model=big").await[0]["usage"], sum(1, 0, 1));
    assert_eq!(items("workflow=other").await, json!([]));
    let yesterday = format!("by=project&from_ms={NOW_MS}&to_ms={}", NOW_MS + 2);
    assert_eq!(items(&yesterday).await, json!([{"key": "default", "usage": sum(2, 0, 11)}]));
}

#[tokio::test]
async fn pages_of_a_report_join_and_each_tells_the_whole_total() {
    let api = Api::start().await;
    scene(&api).await;
    for by in ["day", "model", "workflow", "session", "run", "project"] {
        let whole = api.get(&format!("/v1/usage?by={by}")).await.json();
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("/v1/usage?by={by}&limit=1{cursor}")).await.json();
            assert_eq!(page["total"], whole["total"], "{by}");
            assert_eq!(page["items"].as_array().unwrap().len(), 1, "{by}");
            seen.push(page["items"][0].clone());
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(Value::from(seen), whole["items"], "{by}");
    }
}

#[tokio::test]
async fn a_key_sees_the_usage_of_its_project_alone_and_the_default_ones_admin_that_of_all() {
    let api = Api::start().await;
    scene(&api).await;
    let other = api.other_projects_key().await;
    let empty = get_with(&api, &other, "/v1/usage?project=other").await.json();
    assert_eq!((&empty["project"], &empty["total"]), (&json!("other"), &sum(0, 0, 0)));
    let reader = api.key_with(&[Scope::RunsRead]).await;
    assert_eq!(get_with(&api, &reader, "/v1/usage?project=default").await.json()["total"], sum(3, 1, 111));
    for (key, path) in [
        (&other, "/v1/usage?project=default"),
        (&other, "/v1/usage?project=*"),
        (&other, "/v1/usage?project=nowhere"),
    ] {
        get_with(&api, key, path).await.assert_problem(403, "default_project_only");
    }
    for path in ["/v1/usage?project=other", "/v1/usage?project=*"] {
        get_with(&api, &reader, path).await.assert_problem(403, "scope_missing");
    }
    assert_eq!(api.get("/v1/usage?project=other&by=run").await.json()["items"], json!([]));
    let all = api.get("/v1/usage?project=*&by=project").await.json();
    assert_eq!(all["project"], Value::Null);
    assert_eq!(all["items"], json!([{"key": "default", "usage": sum(3, 1, 111)}]));
    api.get("/v1/usage?project=nowhere").await.assert_problem(404, "unknown_project");
    api.get("/v1/usage?project=A%20B").await.assert_problem(404, "unknown_project");
    let keyless = api.key_with(&[Scope::Audit]).await;
    get_with(&api, &keyless, "/v1/usage").await.assert_problem(403, "scope_missing");
}

#[tokio::test]
async fn a_report_of_a_time_that_is_too_long_or_turned_round_is_refused() {
    let api = Api::start().await;
    let most = 366 * DAY_MS;
    let at_the_bound = format!("/v1/usage?from_ms={}&to_ms={NOW_MS}", NOW_MS - most);
    assert_eq!(api.get(&at_the_bound).await.status, StatusCode::OK);
    let beyond = api.get(&format!("/v1/usage?from_ms={}&to_ms={NOW_MS}", NOW_MS - most - 1)).await;
    beyond.assert_problem(400, "invalid_query");
    assert!(beyond.text().contains("366 days"), "{}", beyond.text());
    let day_cursor = {
        scene(&api).await;
        api.get("/v1/usage?limit=1").await.json()["next_cursor"].as_str().unwrap().to_owned()
    };
    for bad in [
        "by=hour",
        "from_ms=-1",
        "to_ms=x",
        "from_ms=2&to_ms=1",
        "run=x",
        "session=run_00000000000000000000000000000001",
        "cursor=31",
        "limit=201",
        "since=1",
        &format!("by=model&cursor={day_cursor}"),
    ] {
        api.get(&format!("/v1/usage?{bad}")).await.assert_problem(400, "invalid_query");
    }
}
