//! `caisson mcp`: the server's tools for an agent that starts its MCP servers as programs. Each line is a message; what it
//! means, the server's `/mcp` alone knows.

use std::sync::Arc;

use anyhow::Context;
use caisson_domain::limits::API_BODY_BYTES;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::task::JoinSet;

use super::{DONE, client, complain, print};
use crate::cli::Mcp;
use crate::client::Client;

/// Messages that are under way at once; then no further one is read.
const AT_ONCE: usize = 16;
/// The server could not be asked, or refused.
const FAILED: i64 = -32603;
/// The line is not JSON.
const NO_JSON: i64 = -32700;

/// Passes messages on until standard input ends.
///
/// # Errors
/// Standard input cannot be read, or there is no key.
pub(crate) async fn run(flags: Mcp) -> anyhow::Result<u8> {
    let client = Arc::new(client(&flags.client)?);
    let mut lines = BufReader::new(tokio::io::stdin());
    let mut under_way = JoinSet::new();
    while let Some(line) = next_line(&mut lines).await.context("standard input cannot be read")? {
        if under_way.len() >= AT_ONCE {
            under_way.join_next().await;
        }
        let client = Arc::clone(&client);
        under_way.spawn(async move {
            if let Some(answer) = answer(&client, line).await {
                print(&answer);
            }
        });
    }
    while under_way.join_next().await.is_some() {}
    Ok(DONE)
}

/// The next line that says something; none at the end. One that is too long is cut, and no JSON any more.
async fn next_line(lines: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    loop {
        let mut line = Vec::new();
        let most = API_BODY_BYTES as u64 + 1;
        if (&mut *lines).take(most).read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            return Ok(Some(text));
        }
    }
}

/// The answer to a message; none if it has none.
async fn answer(client: &Client, line: String) -> Option<String> {
    let Ok(message) = serde_json::from_str::<Value>(&line) else {
        return Some(error(&Value::Null, NO_JSON, "the line is not JSON"));
    };
    let id = message.get("id").cloned().unwrap_or_default();
    match client.mcp(line).await {
        Ok(answer) => answer,
        Err(failed) => {
            let told = format!("{failed:#}");
            complain(&format!("error: {told}"));
            // Whoever told something and asked nothing gets no answer.
            (!id.is_null()).then(|| error(&id, FAILED, &told))
        }
    }
}

fn error(id: &Value, code: i64, message: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_read_up_to_their_bound_and_empty_ones_say_nothing() {
        let long = "x".repeat(API_BODY_BYTES + 2);
        let text = format!("\n \na\r\n{long}\nb");
        let mut input = BufReader::new(text.as_bytes());
        let mut read = Vec::new();
        while let Some(line) = next_line(&mut input).await.unwrap() {
            read.push(line.len());
        }
        assert_eq!(read, [1, API_BODY_BYTES + 1, 1, 1], "the end of what is too long is a line of its own");
    }
}
