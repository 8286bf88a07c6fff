//! The OpenAPI document and the routes are one list.

use std::collections::BTreeSet;
use std::slice;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::Value;

use crate::support::Api;

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

fn document() -> Value {
    serde_json::to_value(caisson_api::openapi()).unwrap()
}

/// Every path with the methods that the document has for it.
fn routes() -> Vec<(String, BTreeSet<String>)> {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let methods = |item: &Value| item.as_object().unwrap().keys().cloned().collect();
    paths.iter().map(|(path, item)| (path.clone(), methods(item))).collect()
}

fn concrete(path: &str) -> String {
    path.replace("{id}", "x")
        .replace("{approval}", "x")
        .replace("{name}", "x")
        .replace("{surface}", "workflows")
}

#[test]
fn the_document_changes_only_on_purpose() {
    insta::assert_json_snapshot!("openapi", document());
}

#[tokio::test]
async fn the_document_is_served_without_a_key() {
    let api = Api::start().await;
    let answer = api.send(Request::builder().uri("/v1/openapi.json").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.json(), document());
    assert_eq!(answer.json()["openapi"], "3.1.0");
}

#[tokio::test]
async fn every_documented_path_is_a_route_with_exactly_those_methods() {
    let api = Api::start().await;
    for (path, documented) in routes() {
        for method in METHODS {
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(concrete(&path));
            let answer = api.send(request.body(Body::empty()).unwrap()).await;
            let code = if answer.status.is_success() { Value::Null } else { answer.json()["code"].clone() };
            assert_ne!(code, "unknown_route", "{method} {path}");
            assert_eq!(code != "method_not_allowed", documented.contains(method), "{method} {path}");
        }
    }
}

#[test]
fn every_route_comes_from_a_documented_handler() {
    // Routes added past the document would be added with one of these; the layers and tests need neither.
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let mut directories = vec![std::path::PathBuf::from(source)];
    let (mut files, mut handlers) = (0, 0);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            files += 1;
            handlers += text.matches("#[utoipa::path(").count();
            // The page about the API is no part of it: its three routes are no operations. Two routes serve the compatible
            // API a second time, which its operations tell of.
            let undocumented = match path.strip_prefix(source).unwrap().to_str().unwrap() {
                "docs.rs" => 3,
                "automagik/mod.rs" => 2,
                _ => 0,
            };
            assert_eq!(text.matches(".route(").count(), undocumented, "{}", path.display());
            for way in [".route_service(", ".nest(", ".nest_service(", ".fallback_service("] {
                assert!(!text.contains(way), "{} has {way}", path.display());
            }
        }
    }
    assert!(files > 10);
    let documented: usize = routes().iter().map(|(_, methods)| methods.len()).sum();
    assert_eq!(handlers, documented, "a handler with documentation is no route");
}

#[tokio::test]
async fn every_documented_route_but_the_open_ones_wants_a_key() {
    let api = Api::start().await;
    let open = ["/healthz", "/readyz", "/v1/openapi.json", "/api/v1/openapi.json", "/", "/health"];
    for (path, methods) in routes() {
        for method in methods {
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(concrete(&path));
            let status = api.send(request.body(Body::empty()).unwrap()).await.status;
            let expected =
                if open.contains(&path.as_str()) { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            assert_eq!(status, expected, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn every_documented_operation_has_its_own_id_and_tells_its_refusals() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} names two operations");
            if operation["security"][0].as_object().is_some_and(|scheme| !scheme.is_empty()) {
                let (statuses, kind) = if operation["tags"][0] == "automagik" {
                    (["401", "403", "404", "500", "503"], "application/json")
                } else {
                    (["401", "403", "406", "500", "503"], "application/problem+json")
                };
                for status in statuses {
                    let content = &operation["responses"][status]["content"];
                    assert!(content[kind].is_object(), "{method} {path} {status}");
                }
            }
        }
    }
}

/// A cursor is opaque: no schema says which texts are one, so the fuzzer is told which operations refuse one that is of the right
/// shape.
#[test]
fn the_fuzzer_knows_every_operation_that_takes_a_cursor() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/api/schemathesis.toml");
    let settings: toml::Value = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let ids = |group: &toml::Value| {
        let named = &group["include-operation-id"];
        let named = named.as_array().map_or(slice::from_ref(named), Vec::as_slice);
        named.iter().map(|id| id.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let refuses = |group: &&toml::Value| {
        let check = group.get("checks").and_then(|checks| checks.get("positive_data_acceptance"));
        let codes = check.and_then(|check| check["expected-statuses"].as_array());
        codes.is_some_and(|codes| codes.contains(&400.into()))
    };
    let known: BTreeSet<String> =
        settings["operations"].as_array().unwrap().iter().filter(refuses).flat_map(ids).collect();
    let document = document();
    let items = document["paths"].as_object().unwrap().values();
    let takes_one = |operation: &&Value| {
        operation["parameters"]
            .as_array()
            .is_some_and(|all| all.iter().any(|parameter| parameter["name"] == "cursor"))
    };
    let taking: BTreeSet<String> = items
        .flat_map(|item| item.as_object().unwrap().values())
        .filter(takes_one)
        .map(|operation| operation["operationId"].as_str().unwrap().to_owned())
        .collect();
    assert!(taking.len() >= 9, "{taking:?}");
    assert!(taking.is_subset(&known), "{:?}", taking.difference(&known));
}

#[tokio::test]
async fn the_schemas_name_every_field_that_is_read_and_written() {
    let api = Api::start().await;
    let run = api.finished(0).await;
    let document = document();
    let properties = |schema: &str| -> BTreeSet<String> {
        let found = document["components"]["schemas"][schema]["properties"].as_object();
        found.unwrap_or_else(|| panic!("no schema {schema}")).keys().cloned().collect()
    };
    let fields = |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let run = api.get(&format!("/v1/runs/{}", run.id)).await.json();
    // Left out where there are none.
    let left_out = ["attachments", "checks_not_run"].map(str::to_owned);
    let shown: BTreeSet<String> = fields(&run).into_iter().chain(left_out).collect();
    assert_eq!(shown, properties("RunView"));
    assert_eq!(fields(&run["usage"]), properties("UsageView"));
    let session = api.get(run["links"]["session"].as_str().unwrap()).await.json();
    assert_eq!(fields(&session), properties("SessionView"));
    let page = api.get(run["links"]["events"].as_str().unwrap()).await.json();
    assert_eq!(fields(&page), properties("EventPage"));
    assert_eq!(fields(&page["items"][0]), properties("EventView"));
    let unknown = api.send(api.json_request("/v1/runs", &serde_json::json!({"x": 1}))).await.json();
    let errors = unknown["errors"].as_array().unwrap();
    let message = errors.iter().find(|error| error["field"] == "x").unwrap()["message"].as_str().unwrap();
    let known = message.split(": ").last().unwrap().split(", ").map(str::to_owned).collect();
    assert_eq!(properties("CreateRun"), known);
    assert_eq!(Method::POST.as_str().to_lowercase(), METHODS[1]);
}
