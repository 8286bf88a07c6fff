//! `/v1/workflows`.

use crate::support::Api;

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
