//! MCP servers of a workflow: those that run inside the sandbox, and those that the gateway reaches over HTTP.

use serde_json::{Map, Value};
use url::Url;

/// MCP servers of one workflow.
pub const SERVERS: usize = 32;
/// Longest name of an MCP server, in bytes: it is a part of its tools' names and of a path.
pub const NAME_BYTES: usize = 64;
/// Longest URL of an MCP server, in bytes.
pub const URL_BYTES: usize = 1024;

/// One MCP server, as a workflow names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Whether a run fails when it does not connect.
    pub required: bool,
    /// How it is reached.
    pub reach: Reach,
}

/// How an MCP server is reached.
#[derive(Debug, Clone, PartialEq)]
pub enum Reach {
    /// A program inside the sandbox, in the agent's own format.
    Program(Map<String, Value>),
    /// Streamable HTTP at this URL, through the gateway.
    Http(Url),
}

/// Whether this can be an MCP server's name: 1 to [`NAME_BYTES`] letters, digits, hyphens and underscores.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

impl Server {
    /// Reads a server as it stands in a workflow.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn read(server: &Value) -> Result<Self, String> {
        let Some(fields) = server.as_object() else {
            return Err("it is not a map; give it a command, or a type and a url".to_owned());
        };
        let mut fields = fields.clone();
        let required = match fields.remove("required") {
            None => false,
            Some(Value::Bool(required)) => required,
            Some(_) => return Err("required is neither true nor false".to_owned()),
        };
        let kind = fields.get("type").map(|kind| kind.as_str().unwrap_or_default().to_owned());
        let reach = match kind.as_deref() {
            None if fields.contains_key("url") => {
                return Err("it has a url and no type; write type: http".to_owned());
            }
            None | Some("stdio") => program(fields)?,
            Some("http") => http(&fields)?,
            Some("sse") => {
                let reason = "type sse is MCP's transport of 2024, in which the server names a second URL for what \
                              is sent to it; use type: http, which most such servers have as well";
                return Err(reason.to_owned());
            }
            Some(_) => return Err("its type is neither stdio nor http".to_owned()),
        };
        Ok(Self { required, reach })
    }
}

fn program(fields: Map<String, Value>) -> Result<Reach, String> {
    if fields.get("command").is_some_and(Value::is_string) {
        return Ok(Reach::Program(fields));
    }
    Err("it has no command; a server inside the sandbox needs one, one outside has type: http and a url"
        .to_owned())
}

fn http(fields: &Map<String, Value>) -> Result<Reach, String> {
    if let Some(key) = fields.keys().find(|key| !matches!(key.as_str(), "type" | "url")) {
        return Err(match key.as_str() {
            "headers" | "headersHelper" | "oauth" => format!(
                "{key} cannot be given here, where everybody who reads the workflow reads it; store a credential of the kind \
                 mcp_header for its url, and the gateway adds it"
            ),
            _ => format!(
                "\"{}\" is no key of an http server; it has type, url and required",
                key.escape_debug()
            ),
        });
    }
    let text =
        fields.get("url").and_then(Value::as_str).ok_or("it has no url; write url: https://host/path")?;
    if text.len() > URL_BYTES {
        return Err(format!("its url is longer than {URL_BYTES} bytes"));
    }
    let url = Url::parse(text).map_err(|error| format!("its url cannot be read: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("its url is neither http nor https".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("its url holds a login; store a credential of the kind mcp_header instead".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        let reason = "its url has a query or a fragment; give the plain url, and a key as a credential of the kind mcp_header";
        return Err(reason.to_owned());
    }
    // What resolvers take for an address although it is not written as one was written anew by the parser.
    crate::egress::Host::parse(url.host_str().unwrap_or_default())
        .map_err(|error| format!("its url: {error}"))?;
    if url.port_or_known_default().is_none_or(|port| port == 0) {
        return Err("its url has no port from 1 to 65535".to_owned());
    }
    Ok(Reach::Http(url))
}

/// Checks all servers of a workflow.
///
/// # Errors
/// What is wrong with the first that cannot be used.
pub(crate) fn check(servers: &Map<String, Value>) -> Result<(), String> {
    if servers.len() > SERVERS {
        return Err(format!("it has more than {SERVERS} servers"));
    }
    for (name, server) in servers {
        let shown = crate::run::cut(name, NAME_BYTES).escape_debug();
        if !is_name(name) {
            return Err(format!(
                "\"{shown}\" is not 1 to {NAME_BYTES} letters, digits, hyphens and underscores"
            ));
        }
        Server::read(server).map_err(|reason| format!("\"{shown}\": {reason}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_server_is_a_program_or_a_url() {
        let program = Server::read(&json!({"command": "serve", "args": ["-x"], "required": true})).unwrap();
        assert!(program.required);
        let Reach::Program(fields) = program.reach else { panic!() };
        assert_eq!(
            Value::Object(fields),
            json!({"command": "serve", "args": ["-x"]}),
            "the agent does not see our word"
        );
        assert!(matches!(
            Server::read(&json!({"type": "stdio", "command": "x"})).unwrap().reach,
            Reach::Program(_)
        ));
        let server = Server::read(&json!({"type": "http", "url": "https://mcp.example.com/x/mcp"})).unwrap();
        let url = "https://mcp.example.com/x/mcp".parse().unwrap();
        assert_eq!(server, Server { required: false, reach: Reach::Http(url) });
    }

    #[test]
    fn what_cannot_be_used_is_told_with_what_to_write() {
        let http = |url: &str| json!({"type": "http", "url": url});
        for (server, words) in [
            (json!("x"), "not a map"),
            (json!({"args": []}), "no command"),
            (json!({"command": 1}), "no command"),
            (json!({"command": "x", "required": "yes"}), "neither true nor false"),
            (json!({"url": "https://h/"}), "type: http"),
            (json!({"type": "sse", "url": "https://h/"}), "transport of 2024"),
            (json!({"type": "ws", "url": "https://h/"}), "neither stdio nor http"),
            (json!({"type": 1, "url": "https://h/"}), "neither stdio nor http"),
            (json!({"type": "http"}), "no url"),
            (json!({"type": "http", "url": "https://h/", "headers": {"Authorization": "x"}}), "mcp_header"),
            (json!({"type": "http", "url": "https://h/", "oauth": {}}), "mcp_header"),
            (json!({"type": "http", "url": "https://h/", "timeout": 1}), "\"timeout\" is no key"),
            (http("nothing"), "cannot be read"),
            (http("ftp://h/"), "neither http nor https"),
            (http("https://u@h/"), "login"),
            (http("https://:p@h/"), "login"),
            (http("https://h/?key=x"), "query"),
            (http("https://h/#x"), "fragment"),
            (http("https://h:0/"), "no port"),
            (http("https://a..b/"), "host name"),
        ] {
            let told = Server::read(&server).unwrap_err();
            assert!(told.contains(words), "{server}: {told}");
        }
    }

    #[test]
    fn a_url_is_read_up_to_its_bound() {
        let of = |length: usize| {
            let url = format!("https://h.example/{}", "x".repeat(length - "https://h.example/".len()));
            Server::read(&json!({"type": "http", "url": url}))
        };
        assert!(of(URL_BYTES).is_ok());
        assert!(of(URL_BYTES + 1).unwrap_err().contains("1024 bytes"));
    }

    #[test]
    fn names_and_the_number_of_servers_are_bounded() {
        assert!(is_name("notes") && is_name("A-b_9") && is_name(&"x".repeat(NAME_BYTES)));
        for bad in ["", "a.b", "a b", "a/b", "..", "ä", &"x".repeat(NAME_BYTES + 1)] {
            assert!(!is_name(bad), "{bad}");
        }
        let all = |count: usize| {
            check(&(0..count).map(|number| (format!("s{number}"), json!({"command": "x"}))).collect())
        };
        assert_eq!(all(SERVERS), Ok(()));
        assert!(all(SERVERS + 1).unwrap_err().contains("32 servers"));
        let named = |name: &str| check(&Map::from_iter([(name.to_owned(), json!({"command": "x"}))]));
        assert!(named("a/../b").unwrap_err().contains("\"a/../b\" is not 1 to 64"));
    }
}
