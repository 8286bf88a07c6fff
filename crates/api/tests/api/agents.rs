//! `/v1/agents`.

use caisson_api::AgentInfo;
use serde_json::Value;

use crate::support::Api;

#[tokio::test]
async fn the_agent_is_listed_with_its_version() {
    let api = Api::start().await;
    insta::assert_json_snapshot!("agents", api.get("/v1/agents").await.json());
    let api = Api::with(|config| config.agent = AgentInfo { version: None }).await;
    assert_eq!(api.get("/v1/agents").await.json()["items"][0]["version"], Value::Null);
}
