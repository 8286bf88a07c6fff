//! `/metrics`, and what is written about it.

use std::collections::BTreeSet;

use axum::body::Body;
use caisson_api::MetricsFor;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::support::Api;

const DOCUMENT: &str = include_str!("../../../../docs/monitoring.md");
const ALERTS: &str = include_str!("../../../../deploy/alerts.yaml");
const DASHBOARD: &str = include_str!("../../../../deploy/dashboard.json");

async fn public() -> Api {
    Api::with(|config| config.metrics_for = MetricsFor::Everyone).await
}

/// What the page tells of: name and kind.
fn served(page: &str) -> BTreeSet<(String, String)> {
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    families
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, kind)| (name.into(), kind.into()))
        .collect()
}

/// The names of metrics in a text, without what a histogram's parts add.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("caisson_") || word.starts_with("process_"));
    ours.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

#[tokio::test]
async fn every_documented_metric_is_served_and_every_served_one_is_documented() {
    let page = public().await.get("/metrics").await.text();
    let documented: BTreeSet<_> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| {
            let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            (cells.next().unwrap(), cells.next().unwrap())
        })
        // Other tables tell of other things.
        .filter(|(_, kind)| ["counter", "gauge", "histogram"].contains(&kind.as_str()))
        .collect();
    assert!(documented.len() > 20, "{documented:?}");
    assert_eq!(served(&page), documented);
}

#[tokio::test]
async fn rules_and_dashboard_ask_for_nothing_that_is_not_served() {
    let page = public().await.get("/metrics").await.text();
    let served: BTreeSet<_> = served(&page).into_iter().map(|(name, _)| name).collect();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let exprs: Vec<_> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    let shown = named(&exprs.join(" "));
    let unknown: Vec<_> = shown.difference(&served).collect();
    assert!(unknown.is_empty(), "the dashboard asks for {unknown:?}");
    let missing: Vec<_> = served.difference(&shown).collect();
    assert!(missing.is_empty(), "the dashboard does not show {missing:?}");
    let rules: Vec<_> = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert!(rules.len() >= 8, "{rules:?}");
    let unknown: Vec<_> = named(&rules.join(" ")).into_iter().filter(|name| !served.contains(name)).collect();
    assert!(unknown.is_empty(), "the rules ask for {unknown:?}");
}

#[tokio::test]
async fn metrics_tell_what_the_database_holds_and_what_was_counted() {
    let api = public().await;
    let problem = PlacementProblem { code: ProblemCode::DiskLow, message: "make room".to_owned() };
    let claimed = api.running().await;
    api.say(&claimed, "{}").await;
    api.finish(&claimed).await;
    api.queued().await;
    api.clock.advance(5_000);
    api.store.heartbeat_server(&api.server, &[problem]).await.unwrap();
    let answer = api.get("/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let page = answer.text();
    let server = format!("{{server=\"{}\"}}", api.server);
    for line in [
        "caisson_database_up 1".to_owned(),
        "caisson_runs{status=\"queued\"} 1".to_owned(),
        "caisson_runs{status=\"running\"} 0".to_owned(),
        "caisson_queue_oldest_seconds 5".to_owned(),
        "caisson_servers{state=\"live\"} 1".to_owned(),
        "caisson_servers{state=\"lost\"} 0".to_owned(),
        format!("caisson_server_drained{server} 0"),
        format!("caisson_server_problem{{server=\"{}\",code=\"disk_low\"}} 1", api.server),
        "caisson_runs_ended_total{status=\"succeeded\",failure=\"\"} 1".to_owned(),
        // Two of being queued, and of one run its start, a line and its end.
        "caisson_events_total 5".to_owned(),
    ] {
        assert!(page.lines().any(|told| told == line), "{line} in {page}");
    }
    let value = |name: &str| {
        page.lines().find_map(|line| line.strip_prefix(&format!("{name} "))?.parse::<f64>().ok())
    };
    for name in ["caisson_disk_free_bytes", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(value(name).is_some_and(|value| value > 0.0), "{name} in {page}");
    }
}

#[tokio::test]
async fn a_page_is_made_once_a_second() {
    let api = public().await;
    let first = api.get("/metrics").await.text();
    api.queued().await;
    assert_eq!(api.get("/metrics").await.text(), first);
}

#[tokio::test]
async fn metrics_are_for_administrators_of_the_default_project_unless_the_operator_says_otherwise() {
    let api = Api::start().await;
    let bare = || Request::builder().uri("/metrics");
    let refused = api.send(bare().body(Body::empty()).unwrap()).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(api.get("/metrics").await.status, StatusCode::OK);
    let made = api.post("/v1/projects", &json!({ "id": "team-a" })).await.json();
    let key = made["key"]["secret"].as_str().unwrap();
    let other = api.send(bare().header("x-api-key", key).body(Body::empty()).unwrap()).await;
    assert_eq!(
        (other.status, other.json()["code"].clone()),
        (StatusCode::FORBIDDEN, json!("operators_only"))
    );
    let public = public().await;
    assert_eq!(public.send(bare().body(Body::empty()).unwrap()).await.status, StatusCode::OK);
}
