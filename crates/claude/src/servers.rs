//! The MCP servers of a running CLI: asked by `mcp_status`, which it answers before its first prompt as well.

use crate::event::ControlResponse;
use crate::json::Object;

/// How one MCP server is. The rest of what the CLI tells of it, such as its command and environment, is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: ServerState,
    /// What the CLI says is wrong with it.
    pub error: Option<String>,
}

/// How an MCP server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerState {
    /// Its tools can be used.
    Connected,
    /// The CLI still tries.
    Pending,
    /// The CLI has given up: `failed`, `needs-auth`, or a word of another version.
    Lost(String),
}

/// Reads the answer to [`crate::mcp_status`]; none if the CLI could not answer it.
#[must_use]
pub fn server_statuses(answer: &ControlResponse) -> Option<Vec<ServerStatus>> {
    if answer.error.is_some() {
        return None;
    }
    let response = Object::parse(answer.response.as_deref()?)?;
    let read = |server: Object<'_>| ServerStatus {
        name: server.text_or_empty("name"),
        state: match server.text_or_empty("status").as_str() {
            "connected" => ServerState::Connected,
            "pending" => ServerState::Pending,
            other => ServerState::Lost(other.to_owned()),
        },
        error: server.text("error"),
    };
    Some(response.objects("mcpServers").into_iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::{Line, parse};

    fn of(line: &str) -> Option<Vec<ServerStatus>> {
        let Line::ControlResponse(answer) = parse(line.as_bytes()) else { panic!("{line}") };
        server_statuses(&answer)
    }

    /// As Claude Code 2.1.330 printed them, but for the second one's environment.
    #[test]
    fn the_answer_is_read_without_what_it_shows_of_how_servers_are_started() {
        let servers = of(
            r#"{"type":"control_response","response":{"subtype":"success","request_id":"m2","response":{"mcpServers":[{"name":"notes","status":"failed","error":"Error POSTing to endpoint: x","config":{"type":"http","url":"http://127.0.0.1:9976/mcp/notes"},"transport":"http","scope":"dynamic","source":"dynamic"},{"name":"here","status":"pending","config":{"command":"serve","env":{"A":"b"}}},{"name":"b","status":"connected"},{"name":"c","status":"needs-auth"},"odd"]}}}"#,
        )
        .unwrap();
        let states: Vec<_> = servers.iter().map(|one| (one.name.as_str(), &one.state)).collect();
        let lost = |word: &str| ServerState::Lost(word.to_owned());
        assert_eq!(
            states,
            [
                ("notes", &lost("failed")),
                ("here", &ServerState::Pending),
                ("b", &ServerState::Connected),
                ("c", &lost("needs-auth")),
            ]
        );
        assert_eq!(servers[0].error.as_deref(), Some("Error POSTing to endpoint: x"));
        assert_eq!(servers[1].error, None);
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let refused = r#"{"type":"control_response","response":{"subtype":"error","request_id":"m","error":"unknown"}}"#;
        assert_eq!(of(refused), None);
        assert_eq!(
            of(r#"{"type":"control_response","response":{"subtype":"success","request_id":"m"}}"#),
            None
        );
    }
}
