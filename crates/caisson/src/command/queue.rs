//! `caisson queue`, `drain` and `resume`: who waits, and which servers take none of it.

use std::time::{Duration, Instant};

use anyhow::bail;
use caisson_domain::id::ServerId;
use caisson_store::Store;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{DONE, client, complain, print, print_json};
use crate::cli::{Drain, Queue, Resume};
use crate::client::Client;
use crate::render::utc;

/// Between two looks at what still runs.
const LOOK: Duration = Duration::from_secs(1);

/// Shows the queue.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn show(flags: Queue) -> anyhow::Result<u8> {
    let queue = client(&flags.client)?.queue(None).await?;
    tell(&queue, flags.client.json)
}

/// Drains one server or all, and waits if it was told to.
///
/// # Errors
/// The server refuses, or is not there, or what runs does not end in time.
pub(crate) async fn drain(flags: Drain) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let mut queue = client.queue(Some(("drain", &choice(flags.server.as_deref())))).await?;
    if flags.wait {
        queue = wait(&client, queue, &flags).await?;
    }
    tell(&queue, flags.client.json)
}

/// Lets one server or all claim again.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn resume(flags: Resume) -> anyhow::Result<u8> {
    let queue = client(&flags.client)?.queue(Some(("resume", &choice(flags.server.as_deref())))).await?;
    tell(&queue, flags.client.json)
}

/// What `doctor` says of a server that takes no runs, if it is so.
pub(crate) async fn drained(store: &Store, server: &ServerId) -> Option<String> {
    let drained = store.drained().await.ok()?;
    drained.has(server).then(|| {
        let whom = if drained.all() { "all servers are" } else { "this server is" };
        format!("{whom} drained and takes no run; `caisson resume` ends that")
    })
}

fn choice(server: Option<&str>) -> Value {
    server.map_or_else(|| json!({}), |server| json!({ "server": server }))
}

/// Bounded by `--timeout`.
async fn wait(client: &Client, mut queue: Value, flags: &Drain) -> anyhow::Result<Value> {
    let end = Instant::now() + Duration::from_secs(flags.timeout);
    loop {
        let left = running(&queue, flags.server.as_deref());
        if left == 0 {
            return Ok(queue);
        }
        if Instant::now() >= end {
            bail!(
                "{left} runs still run; they go on, and nothing new is taken. Wait again with: caisson drain --wait"
            );
        }
        if !flags.client.json {
            complain(&format!("{left} runs still run"));
        }
        tokio::time::sleep(LOOK).await;
        queue = client.queue(None).await?;
    }
}

fn running(queue: &Value, server: Option<&str>) -> i64 {
    let Some(server) = server else { return queue["running"].as_i64().unwrap_or(0) };
    let servers = queue["servers"].as_array().map_or(&[][..], Vec::as_slice);
    let of_it = servers.iter().filter(|known| known["id"] == server);
    of_it.filter_map(|known| known["running"].as_i64()).sum()
}

fn tell(queue: &Value, as_json: bool) -> anyhow::Result<u8> {
    if as_json {
        print_json(queue)?;
    } else {
        print(&account(queue));
    }
    Ok(DONE)
}

fn account(queue: &Value) -> String {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let (queued, delayed, running) =
        (number(&queue["queued"]), number(&queue["delayed"]), number(&queue["running"]));
    let mut text = format!("{running} running, {queued} waiting, {delayed} of them for their time");
    if let Some(since_ms) = queue["drained_at_ms"].as_i64() {
        text = format!("{text}\nall servers are drained since {}", utc(since_ms));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["SERVER", "RUNNING", "STATE"]);
    for server in queue["servers"].as_array().into_iter().flatten() {
        let state = match (server["alive"].as_bool(), server["drained"].as_bool()) {
            (Some(true), Some(true)) => "drained",
            (Some(true), _) => "claims",
            (_, Some(true)) => "silent, drained",
            (_, _) => "silent",
        };
        let id = crate::render::clean(server["id"].as_str().unwrap_or("?"));
        table.add_row([id, number(&server["running"]).to_string(), state.to_owned()]);
    }
    format!("{text}\n{}", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_reads_as_an_account() {
        let queue = json!({
            "queued": 3, "delayed": 1, "running": 2, "drained": false, "drained_at_ms": null,
            "servers": [
                {"id": "srv_1", "alive": true, "drained": true, "running": 2},
                {"id": "srv_2", "alive": true, "drained": false, "running": 0},
            ],
        });
        let text = account(&queue);
        assert!(text.starts_with("2 running, 3 waiting, 1 of them for their time\n"), "{text}");
        let lines: Vec<Vec<_>> = text.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["srv_1", "2", "drained"], ["srv_2", "0", "claims"]]);
        assert_eq!((running(&queue, None), running(&queue, Some("srv_2"))), (2, 0));
        let all = json!({"running": 0, "queued": 0, "delayed": 0, "drained_at_ms": 0, "servers": []});
        assert!(account(&all).contains("all servers are drained since 1970-01-01T00:00:00Z"));
    }
}
