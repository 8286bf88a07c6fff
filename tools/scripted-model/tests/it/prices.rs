//! The shipped price list against what the real CLI says a reply costs.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{Cli, binary};
use crate::client::start;

/// Tokens of each kind in the reply that is priced: all different, and few enough for the models whose price rises
/// with the length of the request.
const TOKENS: [(&str, u64); 5] = [
    ("input", 1_000),
    ("output", 20_000),
    ("cache_read", 3_000),
    ("cache_write_5m", 4_000),
    ("cache_write_1h", 50_000),
];
/// Prices are for so many tokens.
const TOKENS_PER_PRICE: u64 = 1_000_000;

fn price_list() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/domain/src/prices.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the price list")).expect("JSON")
}

fn expected_micro_usd(entry: &Value) -> u64 {
    let part = |(kind, tokens): (&str, u64)| {
        entry[format!("{kind}_micro_usd_per_mtok")].as_u64().expect("a price") * tokens
    };
    TOKENS.into_iter().map(part).sum::<u64>() / TOKENS_PER_PRICE
}

#[tokio::test]
async fn the_cli_charges_what_the_price_list_says() {
    let Some(binary) = binary("the_cli_charges_what_the_price_list_says") else { return };
    let tokens = |wanted: &str| TOKENS.iter().find(|(kind, _)| *kind == wanted).expect("a kind").1;
    let cache_creation = json!({"ephemeral_5m_input_tokens": tokens("cache_write_5m"),
        "ephemeral_1h_input_tokens": tokens("cache_write_1h")});
    let usage = json!({"input_tokens": tokens("input"), "output_tokens": tokens("output"),
        "cache_read_input_tokens": tokens("cache_read"), "cache_creation": cache_creation});
    let server = start(json!({"priced": {"prompts": [[{"text": "x", "usage": usage}]]}})).await;
    let list = price_list();
    for entry in list["models"].as_array().expect("models") {
        let model = entry["id"].as_str().expect("an id");
        let dir = tempfile::tempdir().expect("a directory");
        let base_url = server.scenario_url("priced", model);
        let cli = Cli { binary: &binary, directory: dir.path(), base_url, model };
        let transcript = cli.converse(&["hello"]).await;
        let cost_usd = transcript.result()["modelUsage"][model]["costUSD"].as_f64().expect("a cost");
        let difference =
            (cost_usd * 1e6 - f64::from(u32::try_from(expected_micro_usd(entry)).expect("small"))).abs();
        assert!(difference < 0.5, "{model} costs {cost_usd} USD, by the list {}", expected_micro_usd(entry));
    }
    server.shutdown().await;
}
