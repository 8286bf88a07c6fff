//! Refusals that have nothing to do with a run: routes, methods, types, bodies, queries, faults of the server.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use caisson_domain::json::JSON_VALUES;
use caisson_domain::principal::Scope;
use http::{Method, StatusCode};
use serde_json::json;

use crate::support::{Answer, Api, body, events_of};

async fn post_raw(api: &Api, content_type: Option<&str>, text: &'static str) -> Answer {
    let mut request = api.request(Method::POST, "/v1/runs");
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    api.send(request.body(Body::from(text)).unwrap()).await
}

#[tokio::test]
async fn a_path_that_is_no_route_is_a_problem() {
    let api = Api::start().await;
    for path in ["/v1", "/v1/", "/v1/run", "/v1/runs/", "/v2/runs", "/v1/runs/x/y"] {
        api.get(path).await.assert_problem(404, "unknown_route");
    }
    insta::assert_json_snapshot!("unknown_route", {
        let mut request = api.request(Method::GET, "/nowhere").body(Body::empty()).unwrap();
        request.headers_mut().insert("x-request-id", "call-7".parse().unwrap());
        api.send(request).await.json()
    });
}

#[tokio::test]
async fn a_method_that_a_route_lacks_is_a_problem_with_the_ones_it_has() {
    let api = Api::start().await;
    let answer = api.send(api.request(Method::PUT, "/v1/runs").body(Body::empty()).unwrap()).await;
    answer.assert_problem(405, "method_not_allowed");
    let mut allowed: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
}

#[tokio::test]
async fn an_id_that_is_none_is_like_one_of_nothing() {
    let api = Api::start().await;
    for id in ["x", "run_", "ses_00000000000000000000000000000000", "%ff", "run_%00"] {
        api.get(&format!("/v1/runs/{id}")).await.assert_problem(404, "unknown_run");
        api.get(&format!("/v1/runs/{id}/events")).await.assert_problem(404, "unknown_run");
        api.get(&format!("/v1/sessions/{}", id.replace("ses_", "run_")))
            .await
            .assert_problem(404, "unknown_session");
    }
    api.get("/v1/workflows/%ff").await.assert_problem(404, "unknown_name");
}

#[tokio::test]
async fn a_body_that_is_not_json_is_told_where() {
    let api = Api::start().await;
    for (text, place) in [
        ("{\"workflow\": \"fix\",\n \"prompt\" \"x\"}", "line 2 column 11"),
        ("{\"workflow\": \"fix\"", "line 1 column 18"),
        ("", "line 1 column 0"),
        ("nonsense", "line 1 column 2"),
        ("{} {}", "line 1 column 4"),
    ] {
        let answer = post_raw(&api, Some("application/json"), text).await;
        answer.assert_problem(400, "malformed_json");
        assert!(answer.json()["detail"].as_str().unwrap().contains(place), "{}", answer.text());
    }
    let request = api.request(Method::POST, "/v1/runs").header("content-type", "application/json");
    let answer = api.send(request.body(Body::from(&b"{\"prompt\": \"\xff\"}"[..])).unwrap()).await;
    answer.assert_problem(400, "malformed_json");
}

#[tokio::test]
async fn a_body_that_is_no_object_or_says_a_thing_twice_is_refused() {
    let api = Api::start().await;
    for (text, told) in [
        ("[]", "expected a JSON object"),
        ("null", "expected a JSON object"),
        ("\"x\"", "expected a JSON object"),
        ("{\"prompt\": \"a\", \"prompt\": \"b\"}", "the field \"prompt\" comes twice"),
    ] {
        let answer = post_raw(&api, Some("application/json"), text).await;
        answer.assert_problem(422, "invalid_body");
        assert!(answer.json()["detail"].as_str().unwrap().contains(told), "{}", answer.text());
    }
}

#[tokio::test]
async fn what_a_problem_repeats_of_a_body_is_cut() {
    let api = Api::start().await;
    let text = format!("{{\"{0}\": 1, \"{0}\": 2}}", "n".repeat(100_000));
    let request = api.request(Method::POST, "/v1/runs").header("content-type", "application/json");
    let answer = api.send(request.body(Body::from(text)).unwrap()).await;
    answer.assert_problem(422, "invalid_body");
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert_eq!(detail.len(), "the body cannot be used: ".len() + 300);
}

#[tokio::test]
async fn a_body_must_be_called_json() {
    let api = Api::start().await;
    for content_type in
        [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonx")]
    {
        post_raw(&api, content_type, "{}").await.assert_problem(415, "unsupported_media_type");
    }
    post_raw(&api, Some("Application/JSON; charset=utf-8"), "{}").await.assert_problem(422, "invalid_run");
}

#[tokio::test]
async fn a_body_that_does_not_come_or_breaks_off_is_a_problem() {
    let api = Api::with(|config| config.limits.body_read = Duration::from_millis(20)).await;
    let request = || api.request(Method::POST, "/v1/runs").header("content-type", "application/json");
    let endless = futures_util::stream::pending::<Result<Bytes, Infallible>>();
    api.send(request().body(Body::from_stream(endless)).unwrap()).await.assert_problem(408, "body_timeout");
    let half =
        futures_util::stream::iter([Ok(Bytes::from_static(b"{\"")), Err(std::io::Error::other("gone"))]);
    api.send(request().body(Body::from_stream(half)).unwrap()).await.assert_problem(400, "body_broken");
}

#[tokio::test]
async fn a_body_without_end_is_given_up() {
    let api = Api::start().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let piece = Bytes::from(vec![b' '; 64 * 1024]);
    let endless = futures_util::stream::repeat_with(move || {
        counter.fetch_add(piece.len(), Ordering::SeqCst);
        Ok::<_, Infallible>(piece.clone())
    });
    let request = api.request(Method::POST, "/v1/keys").header("content-type", "application/json");
    api.send(request.body(Body::from_stream(endless)).unwrap()).await.assert_problem(413, "body_too_large");
    assert!(taken.load(Ordering::SeqCst) <= 21 * 1024 * 1024);
}

#[tokio::test]
async fn a_caller_who_takes_none_of_the_types_on_offer_is_refused() {
    let api = Api::start().await;
    let run = api.finished(0).await;
    for (path, told) in [
        ("/v1/runs".to_owned(), "application/json"),
        ("/readyz".to_owned(), "application/json"),
        (events_of(&run.id), "application/json or text/event-stream"),
        (format!("/v1/runs/{}/diff", run.id), "text/x-diff"),
        (format!("/v1/runs/{}/artifacts/x", run.id), "application/octet-stream"),
    ] {
        let request = api.request(Method::GET, &path).header("accept", "image/png");
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        answer.assert_problem(406, "not_acceptable");
        assert_eq!(answer.json()["detail"], format!("this path answers with {told}"));
    }
}

#[tokio::test]
async fn every_fault_of_a_query_is_told() {
    let api = Api::start().await;
    let answer =
        api.get("/v1/runs?status=done&session=x&limit=0&cursor=x&color=red&workflow=a&workflow=b").await;
    answer.assert_problem(400, "invalid_query");
    insta::assert_json_snapshot!("invalid_query", answer.steady());
    api.get("/v1/agents?x=1").await.assert_problem(400, "invalid_query");
}

#[tokio::test]
async fn every_response_has_the_headers_that_keep_it_private() {
    let api = Api::start().await;
    let run = api.finished(1).await;
    for path in ["/v1/runs", "/healthz", "/nowhere", "/v1/openapi.json", &events_of(&run.id), "/v1/runs/x"] {
        let answer = api.get(path).await;
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
        assert!(answer.header("x-request-id").starts_with("req_"), "{path}");
    }
    let stream = api.request(Method::GET, &events_of(&run.id)).header("accept", "text/event-stream");
    let answer = api.send(stream.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let options = api.send(api.request(Method::OPTIONS, "/v1/runs").body(Body::empty()).unwrap()).await;
    options.assert_problem(405, "method_not_allowed");
}

#[tokio::test]
async fn a_request_id_is_taken_over_when_it_is_plain() {
    let api = Api::start().await;
    for (sent, kept) in [("build-7.2", true), ("a b", false), ("{\"x\"}", false)] {
        let request = api.request(Method::GET, "/v1/runs/x").header("x-request-id", sent);
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        answer.assert_problem(404, "unknown_run");
        assert_eq!(answer.header("x-request-id") == sent, kept, "{sent}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_a_problem_without_details() {
    let api = Api::start().await;
    api.store.close().await.unwrap();
    for answer in [api.get("/v1/runs").await, api.get("/readyz").await, api.post("/v1/runs", &body()).await] {
        answer.assert_problem(503, "store_unavailable");
        assert_eq!(answer.header("retry-after"), "10");
        insta::assert_json_snapshot!("store_unavailable", answer.steady());
    }
    assert_eq!(api.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_broken_row_is_a_problem_without_details() {
    let api = Api::start().await;
    let run = api.queued().await;
    let database = api.database().await;
    sqlx::query("update run set spec = '{\"secret\": 1}'").execute(&database).await.unwrap();
    let answer = api.get(&format!("/v1/runs/{}", run.id)).await;
    answer.assert_problem(500, "internal");
    let problem = answer.json();
    assert_eq!(
        problem,
        json!({
            "type": "about:blank", "title": "Internal Server Error", "status": 500, "code": "internal",
            "request_id": problem["request_id"],
        })
    );
}

#[tokio::test]
async fn a_head_request_has_the_status_and_no_body() {
    let api = Api::start().await;
    let answer = api.send(api.request(Method::HEAD, "/v1/runs").body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn a_body_of_so_many_values_is_taken_and_one_with_more_is_refused_whatever_its_length() {
    let mut api = Api::start().await;
    // The object, its list, and what is in it.
    let body = |values: usize| json!({ "name": vec![0; values - 2] });
    let taken = api.post("/v1/keys", &body(JSON_VALUES)).await;
    assert_eq!(taken.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", taken.text());
    let refused = api.post("/v1/keys", &body(JSON_VALUES + 1)).await;
    refused.assert_problem(413, "body_too_complex");
    assert!(refused.text().contains("20000"), "{}", refused.text());
    api.post("/v1/runs", &body(JSON_VALUES + 1)).await.assert_problem(413, "body_too_complex");
    api.key = api.key_with(&[Scope::RunsRead]).await;
    let message = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": body(JSON_VALUES) });
    api.post("/mcp", &message).await.assert_problem(413, "body_too_complex");
}
