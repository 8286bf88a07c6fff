//! `caisson mcp`: the server's tools for an agent that starts its MCP servers as programs. Each line is a message; what it
//! means, the server's `/mcp` alone knows.

use std::io::{BufRead, Read as _};
use std::sync::Arc;

use anyhow::Context;
use caisson_domain::attachment::ATTACHMENT_BODY_BYTES;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{DONE, client, complain, print};
use crate::cli::Mcp;
use crate::client::Client;

/// Messages that are under way at once, and that wait for it; then no further one is read.
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
    let (send, mut lines) = mpsc::channel(AT_ONCE);
    let reading = tokio::task::spawn_blocking(move || read(&mut std::io::stdin().lock(), &send));
    let mut under_way = JoinSet::new();
    while let Some(line) = lines.recv().await {
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
    reading.await?.context("standard input cannot be read")?;
    Ok(DONE)
}

/// Hands on the lines that say something. One that is longer than any that the server takes is cut, and no JSON any more.
fn read(input: &mut impl BufRead, lines: &mpsc::Sender<String>) -> std::io::Result<()> {
    loop {
        let mut line = Vec::new();
        let most = ATTACHMENT_BODY_BYTES as u64 + 1;
        if input.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() && lines.blocking_send(text).is_err() {
            return Ok(());
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

    #[test]
    fn lines_are_read_up_to_their_bound_and_empty_ones_say_nothing() {
        let long = "x".repeat(ATTACHMENT_BODY_BYTES + 2);
        let text = format!("\n \na\r\n{long}\nb");
        let (send, mut lines) = mpsc::channel(8);
        super::read(&mut text.as_bytes(), &send).unwrap();
        drop(send);
        let mut read = Vec::new();
        while let Ok(line) = lines.try_recv() {
            read.push(line.len());
        }
        assert_eq!(
            read,
            [1, ATTACHMENT_BODY_BYTES + 1, 1, 1],
            "the end of what is too long is a line of its own"
        );
    }
}
