//! `/v1/workflows`.

use axum::body::Body;
use caisson_domain::id::ProjectId;
use caisson_domain::principal::Scope;
use caisson_store::AuditFilter;
use http::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Api};

#[tokio::test]
async fn workflows_are_listed_and_shown_without_what_may_be_secret() {
    let api = Api::start().await;
    insta::assert_json_snapshot!("workflows", api.get("/v1/workflows").await.json());
    let one = api.get("/v1/workflows/fix").await;
    insta::assert_json_snapshot!("workflow", one.json());
    assert!(!one.text().contains("hidden"));
    for name in ["nope", "FIX", "a%2fb"] {
        api.get(&format!("/v1/workflows/{name}")).await.assert_problem(404, "unknown_workflow");
    }
}

const TEXT: &str = "---\nname: greeter\ndescription: Says hello.\ncaisson:\n  workspace: read-only\n  publish: none\n  \
     parameters: {who: {type: string, enum: [you, all]}, loud: {type: boolean, default: false}}\n  \
     output_schema: {type: object, required: [said]}\n---\nSay hello to {{ who }}.\n";

async fn send(api: &Api, method: Method, path: &str, body: &Value) -> Answer {
    let request = api.request(method, path).header("content-type", "application/json");
    api.send(request.body(Body::from(body.to_string())).unwrap()).await
}

#[tokio::test]
async fn a_workflow_is_put_changed_followed_and_removed() {
    let api = Api::start().await;
    let path = "/v1/workflows/greeter";
    let body = json!({ "text": TEXT });
    let tried = api.post("/v1/workflows/validate", &body).await;
    assert_eq!((tried.status.as_u16(), &tried.json()["version"]), (200, &json!(0)));
    api.get(path).await.assert_problem(404, "unknown_workflow");
    let put = send(&api, Method::PUT, path, &body).await;
    assert_eq!(put.status.as_u16(), 201);
    let view = put.json();
    assert_eq!(
        (&view["version"], &view["is_own"], &view["caisson"]["workspace"]),
        (&json!(1), &json!(true), &json!("read-only"))
    );
    assert_eq!(send(&api, Method::PUT, path, &body).await.status.as_u16(), 200);

    let run = |more: Value| {
        let mut body = json!({"workflow": "greeter", "prompt": "Hello.", "repository": null});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let made = api.post("/v1/runs", &run(json!({"parameters": {"who": "all"}}))).await;
    assert_eq!(made.status.as_u16(), 202, "{}", made.text());
    let made = made.json();
    assert_eq!(made["parameters"], json!({"who": "all", "loud": false}));
    assert_eq!(
        (&made["workflow_version"], &made["output_schema"]["required"]),
        (&json!(1), &json!(["said"]))
    );
    for (more, code) in [
        (json!({}), "parameter_invalid"),
        (json!({"parameters": {"who": "me"}}), "parameter_invalid"),
        (json!({"parameters": {"who": "all", "x": 1}}), "parameter_invalid"),
        (json!({"parameters": []}), "wrong_type"),
        (
            json!({"parameters": {"who": "all"}, "output_schema": {"type": "object", "pattern": "x"}}),
            "schema_invalid",
        ),
    ] {
        let refused = api.post("/v1/runs", &run(more)).await;
        assert_eq!(refused.status.as_u16(), 422);
        assert!(refused.text().contains(code), "{}", refused.text());
    }

    assert_eq!(send(&api, Method::DELETE, path, &Value::Null).await.status.as_u16(), 204);
    send(&api, Method::DELETE, path, &Value::Null).await.assert_problem(404, "unknown_workflow");
    send(&api, Method::DELETE, "/v1/workflows/fix", &Value::Null)
        .await
        .assert_problem(409, "workflow_of_server");
    let audit =
        api.store.list_audit(&ProjectId::default_project(), &AuditFilter::default(), None, 50).await.unwrap();
    let told: Vec<_> = audit
        .iter()
        .filter(|record| record.subject == "greeter")
        .map(|record| record.action.as_str())
        .collect();
    assert_eq!(told, ["workflow.remove", "workflow.put", "workflow.put"]);
}

#[tokio::test]
async fn a_workflow_that_cannot_be_used_is_refused_with_what_to_change() {
    let api = Api::start().await;
    for (name, text, told) in [
        ("greeter", "no front matter", "three dashes"),
        ("other", TEXT, "give both the same name"),
        ("greeter", &TEXT.replace("publish: none", "publish: branch"), "nothing to push"),
        ("greeter", &TEXT.replace("{{ who }}", "{{ whom }}"), "{{ whom }}"),
        ("greeter", &TEXT.replace("name: greeter", "name: greeter\nnmae: x"), "nmae"),
    ] {
        let refused =
            send(&api, Method::PUT, &format!("/v1/workflows/{name}"), &json!({ "text": text })).await;
        assert_eq!(refused.status.as_u16(), 422, "{}", refused.text());
        assert!(refused.text().contains(told), "{told} in {}", refused.text());
    }
    send(&api, Method::PUT, "/v1/workflows/x", &json!({})).await.assert_problem(422, "missing_field");
}

#[tokio::test]
async fn workflows_are_changed_only_with_their_scope() {
    let api = Api::start().await;
    let scopes: Vec<Scope> =
        Scope::ALL.iter().copied().filter(|s| !matches!(s, Scope::Workflows | Scope::Admin)).collect();
    let project = ProjectId::default_project();
    for (scopes, allowed) in [(scopes, false), (vec![Scope::Workflows], true)] {
        let (_, key) = api.store.create_api_key(&project, "k", &scopes).await.unwrap();
        for (method, path, ok) in [
            (Method::POST, "/v1/workflows/validate", 200),
            (Method::PUT, "/v1/workflows/greeter", 201),
            (Method::DELETE, "/v1/workflows/greeter", 204),
        ] {
            let request = http::Request::builder().method(method).uri(path);
            let request = request.header("authorization", format!("Bearer {}", key.expose()));
            let request = request.header("content-type", "application/json");
            let answer =
                api.send(request.body(Body::from(json!({ "text": TEXT }).to_string())).unwrap()).await;
            assert_eq!(answer.status.as_u16(), if allowed { ok } else { 403 }, "{path}");
        }
    }
}
