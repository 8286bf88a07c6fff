//! `caisson servers`: the servers that share the database, over the API.

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{DONE, client, print, print_json, tell};
use crate::cli::{OutputFlag, Servers, ServersCommand};
use crate::render::{clean, utc};

/// Lists them, oldest first, or forgets one.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn run(flags: Servers) -> anyhow::Result<u8> {
    let flags = match flags.command {
        None => flags.client,
        Some(ServersCommand::Forget { client: flags, id }) => {
            client(&flags)?.forget_server(&id).await?;
            let words = format!("server {id} is forgotten; it is listed again when it is heard of");
            tell(OutputFlag { json: flags.json }, &json!({"id": id, "forgotten": true}), &words)?;
            return Ok(DONE);
        }
    };
    let servers = client(&flags)?.servers().await?;
    if flags.json {
        for server in &servers {
            print_json(server)?;
        }
        return Ok(DONE);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "SERVER",
        "STATE",
        "PARTS",
        "VERSION",
        "LAST SEEN",
        "RUNS",
        "SANDBOXES",
        "PROBLEMS",
    ]);
    for server in &servers {
        table.add_row(row(server));
    }
    print(&table.trim_fmt());
    Ok(DONE)
}

fn row(server: &Value) -> [String; 8] {
    let text = |value: &Value| clean(value.as_str().unwrap_or_default());
    let each = |list: &str, field: &str| -> Vec<String> {
        server[list].as_array().into_iter().flatten().map(|item| text(&item[field])).collect()
    };
    let mut versions = each("parts", "version");
    versions.sort();
    versions.dedup();
    let runs = match (server["runs"].as_i64(), server["slots"].as_i64()) {
        (Some(runs), Some(slots)) => format!("{runs} of {slots}"),
        (runs, _) => runs.unwrap_or(0).to_string(),
    };
    [
        text(&server["id"]),
        text(&server["state"]),
        each("parts", "role").join(","),
        versions.join(","),
        server["seen_at_ms"].as_i64().map(utc).unwrap_or_default(),
        runs,
        server["sandboxes"].as_i64().unwrap_or(0).to_string(),
        each("problems", "code").join(","),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_a_server_does_and_has_in_hand() {
        let part = |role: &str| json!({ "role": role, "seen_at_ms": 1, "version": "1.0.0" });
        let mut server = json!({
            "id": "srv_1", "state": "live", "seen_at_ms": 0, "parts": [part("gateway"), part("worker")], "slots": 8,
            "runs": 3, "sandboxes": 4, "problems": [{ "code": "disk_low", "message": "make room" }],
        });
        let shown = row(&server);
        assert_eq!(shown[..4], ["srv_1", "live", "gateway,worker", "1.0.0"]);
        assert_eq!(shown[5..], ["3 of 8", "4", "disk_low"]);
        server["slots"] = Value::Null;
        assert_eq!(row(&server)[5], "3");
    }
}
