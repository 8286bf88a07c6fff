//! The project's budgets over the API.

use axum::body::Body;
use caisson_domain::budget::{DAY_MS, ProjectBudgets};
use caisson_domain::id::ProjectId;
use caisson_domain::principal::Scope;
use caisson_domain::usage::TokenCounts;
use caisson_store::{BeginCall, NewModelCall, SettledCall};
use http::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::support::{Answer, Api, NOW_MS};

const PATH: &str = "/v1/budget";

async fn put_with(api: &Api, key: &str, body: &Value) -> Answer {
    let request = http::Request::builder().method(Method::PUT).uri(PATH).header("x-api-key", key);
    let request = request.header(header::CONTENT_TYPE, "application/json");
    api.send(request.body(Body::from(body.to_string())).unwrap()).await
}

async fn put(api: &Api, body: &Value) -> Answer {
    put_with(api, &api.key, body).await
}

async fn get_with(api: &Api, key: &str) -> Answer {
    let request = http::Request::builder().uri(PATH).header("x-api-key", key);
    api.send(request.body(Body::empty()).unwrap()).await
}

fn call(reserve_micro_usd: i64) -> NewModelCall {
    NewModelCall {
        model: "m".to_owned(),
        estimate: TokenCounts::default(),
        estimate_cost_micro_usd: 0,
        reserve_micro_usd,
        only_alone: false,
    }
}

#[tokio::test]
async fn a_budget_is_set_shown_and_taken_away_and_what_is_left_out_stays() {
    let api = Api::start().await;
    let none = json!({
        "budget_micro_usd": null, "is_setting": false, "spent_micro_usd": 0, "reserved_micro_usd": 0,
        "left_micro_usd": null,
    });
    let day_ends_at_ms = NOW_MS - NOW_MS % DAY_MS + DAY_MS;
    let expected =
        json!({"project": "default", "total": none, "day": none, "day_ends_at_ms": day_ends_at_ms});
    assert_eq!(api.get(PATH).await.json(), expected);
    let answer = put(&api, &json!({"total_micro_usd": 5_000.0})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(answer.json()["total"]["left_micro_usd"], 5_000);
    put(&api, &json!({"day_micro_usd": 0})).await;
    let shown = api.get(PATH).await.json();
    assert_eq!(
        (&shown["total"]["budget_micro_usd"], &shown["day"]["budget_micro_usd"]),
        (&json!(5_000), &json!(0))
    );
    let answer = put(&api, &json!({"day_micro_usd": null})).await.json();
    assert_eq!((&answer["total"]["budget_micro_usd"], &answer["day"]), (&json!(5_000), &none));
    put(&api, &json!({"day_micro_usd": null})).await;
    let audit = api.get("/v1/audit?action=project.budget").await.json();
    let told: Vec<_> =
        audit["items"].as_array().unwrap().iter().map(|item| item["subject"].as_str()).collect();
    let expected = [
        "total_micro_usd=5000 day_micro_usd=none",
        "total_micro_usd=5000 day_micro_usd=0",
        "total_micro_usd=5000 day_micro_usd=none",
    ];
    assert_eq!(told, expected.map(Some), "newest first, and what changes nothing is not told");
    assert_eq!(audit["items"][0]["actor_name"], "test");
}

#[tokio::test]
async fn what_is_spent_and_held_is_shown_and_a_living_run_has_the_new_budget_at_its_next_call() {
    let api = Api::start().await;
    let run = api.running().await.run.id;
    let begun = api.store.begin_model_call(&run, &call(40)).await.unwrap().begun().unwrap();
    let settled = SettledCall {
        model: "m".to_owned(),
        status: 200,
        tokens: TokenCounts::default(),
        cost_micro_usd: 30,
        estimated: false,
        first_byte_ms: None,
        duration_ms: 1,
    };
    assert!(api.store.settle_model_call(&begun, &settled).await.unwrap());
    assert!(api.store.begin_model_call(&run, &call(15)).await.unwrap().begun().is_some());
    api.clock.advance(DAY_MS);
    assert!(api.store.begin_model_call(&run, &call(5)).await.unwrap().begun().is_some());
    let part = |budget: i64, spent: i64, reserved: i64, left: i64| {
        json!({
            "budget_micro_usd": budget, "is_setting": false, "spent_micro_usd": spent,
            "reserved_micro_usd": reserved, "left_micro_usd": left,
        })
    };
    let shown = put(&api, &json!({"total_micro_usd": 60, "day_micro_usd": 4})).await.json();
    assert_eq!(shown["total"], part(60, 30, 20, 10));
    assert_eq!(shown["day"], part(4, 0, 5, 0), "what began yesterday is yesterday's");
    let next = async |micro| api.store.begin_model_call(&run, &call(micro)).await.unwrap();
    assert!(matches!(next(10).await, BeginCall::Refused(_)), "the day has no room");
    put(&api, &json!({"day_micro_usd": null})).await;
    assert!(matches!(next(11).await, BeginCall::Refused(_)), "in all there is less");
    assert!(matches!(next(10).await, BeginCall::Begun { bounded: true, .. }));
}

#[tokio::test]
async fn what_the_settings_hold_is_not_changed_here_and_is_free_once_they_say_nothing() {
    let api = Api::start().await;
    let project = ProjectId::default_project();
    let settings = |total, day| ProjectBudgets { total_micro_usd: total, day_micro_usd: day };
    put(&api, &json!({"total_micro_usd": 100, "day_micro_usd": 50})).await;
    assert!(api.store.set_budgets(&project, &settings(None, Some(70))).await.unwrap());
    let shown = api.get(PATH).await.json();
    assert_eq!(
        (&shown["total"]["budget_micro_usd"], &shown["total"]["is_setting"]),
        (&json!(100), &json!(false))
    );
    assert_eq!((&shown["day"]["budget_micro_usd"], &shown["day"]["is_setting"]), (&json!(70), &json!(true)));
    for body in [json!({"total_micro_usd": 200, "day_micro_usd": 71}), json!({"day_micro_usd": null})] {
        let refused = put(&api, &body).await;
        refused.assert_problem(409, "budget_in_settings");
        let text = refused.text();
        assert!(text.contains("budget.day_micro_usd (CAISSON_BUDGET__DAY_MICRO_USD)"), "{text}");
    }
    assert_eq!(api.get(PATH).await.json(), shown, "nothing of a refused request is done");
    let same = put(&api, &json!({"total_micro_usd": 200, "day_micro_usd": 70})).await;
    assert_eq!((same.status, &same.json()["total"]["budget_micro_usd"]), (StatusCode::OK, &json!(200)));
    // Started again without the setting: its bound goes with it, and what the API set stays.
    assert!(api.store.set_budgets(&project, &settings(None, None)).await.unwrap());
    assert!(!api.store.set_budgets(&project, &settings(None, None)).await.unwrap());
    let shown = api.get(PATH).await.json();
    assert_eq!(
        (&shown["total"]["budget_micro_usd"], &shown["day"]["budget_micro_usd"]),
        (&json!(200), &Value::Null)
    );
    assert_eq!(put(&api, &json!({"day_micro_usd": 9})).await.status, StatusCode::OK);
    // The settings may take over what the API set, the same number too.
    assert!(api.store.set_budgets(&project, &settings(Some(200), None)).await.unwrap());
    put(&api, &json!({"total_micro_usd": 1})).await.assert_problem(409, "budget_in_settings");
    assert_eq!(api.get(PATH).await.json()["day"]["budget_micro_usd"], 9);
}

#[tokio::test]
async fn a_budget_stays_within_its_bounds_and_all_faults_are_told() {
    let api = Api::start().await;
    let most = 1_000_000_000_000_000_i64;
    for (value, status) in [
        (json!(0), 200),
        (json!(most), 200),
        (json!(most + 1), 422),
        (json!(-1), 422),
        (json!(1.5), 422),
        (json!("5"), 422),
        (Value::Null, 200),
    ] {
        for field in ["total_micro_usd", "day_micro_usd"] {
            let answer = put(&api, &json!({ field: value })).await;
            assert_eq!(answer.status.as_u16(), status, "{field} {value}: {}", answer.text());
        }
    }
    let bad = put(&api, &json!({"total_micro_usd": -1, "day_micro_usd": true, "soft_percent": 5})).await;
    bad.assert_problem(422, "invalid_budget");
    let fields: Vec<_> = bad.faults().into_iter().map(|(field, code)| format!("{field} {code}")).collect();
    assert_eq!(
        fields,
        ["total_micro_usd out_of_range", "day_micro_usd out_of_range", "soft_percent unknown_field"]
    );
    assert_eq!(put(&api, &json!({})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_budget_is_read_with_runs_read_set_with_admin_and_each_project_has_its_own() {
    let api = Api::start().await;
    let body = json!({"total_micro_usd": 7});
    let reader = api.key_with(&[Scope::RunsRead]).await;
    assert_eq!(get_with(&api, &reader).await.status, StatusCode::OK);
    let writer = api.key_with(&[Scope::RunsRead, Scope::RunsWrite, Scope::Credentials, Scope::Audit]).await;
    put_with(&api, &writer, &body).await.assert_problem(403, "scope_missing");
    let blind = api.key_with(&[Scope::Audit]).await;
    get_with(&api, &blind).await.assert_problem(403, "scope_missing");
    let other = api.other_projects_key().await;
    let answer = put_with(&api, &other, &body).await.json();
    assert_eq!((&answer["project"], &answer["total"]["budget_micro_usd"]), (&json!("other"), &json!(7)));
    assert_eq!(api.get(PATH).await.json()["total"]["budget_micro_usd"], Value::Null);
}
