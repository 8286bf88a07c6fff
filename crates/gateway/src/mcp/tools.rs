//! Tools of a server that the workflow's `disallowedTools` take away. The agent does not call them; here they are refused to
//! whatever else in the sandbox asks for them.
//!
//! JSON lets a message be read in two ways: with a field twice, or once more in capitals, which some readers do not tell
//! apart. So where a server has such tools, a message has to be one that every reader reads alike.

use std::borrow::Cow;

use caisson_domain::tools::{TOOL_BYTES, concerns, denies};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::members::Members;

/// The method that calls a tool. Source: Model Context Protocol, revision 2025-11-25, "Tools".
const CALL: &str = "tools/call";
/// Most messages of a list.
const MESSAGES: usize = 100;

/// Why a message does not pass to a server of which tools are taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MessageFault {
    /// It calls one of them.
    Tool { rule: String },
    /// It may call one, or not: it can be read in two ways.
    Unclear,
    /// It stopped coming, or broke off.
    Broken,
}

impl MessageFault {
    /// As [`super::fault::Fault`] has it.
    pub(super) const fn kind(&self) -> (&'static str, StatusCode, bool) {
        match self {
            Self::Tool { .. } => ("mcp_tool_denied", StatusCode::FAILED_DEPENDENCY, true),
            Self::Unclear => ("mcp_unclear", StatusCode::BAD_REQUEST, true),
            Self::Broken => ("mcp_request_broken", StatusCode::BAD_REQUEST, false),
        }
    }

    pub(super) fn message(&self, server: &str) -> String {
        match self {
            Self::Tool { rule } => format!(
                "this run's workflow takes the tool of the MCP server \"{server}\" away: it has \"{rule}\" in disallowedTools"
            ),
            Self::Unclear => format!(
                "the workflow takes tools of the MCP server \"{server}\" away, and this message may call one: it has to be JSON-RPC \
                 2.0 without further fields, and each field once"
            ),
            Self::Broken => format!(
                "the request to the MCP server \"{server}\" stopped coming, or broke off; send it again"
            ),
        }
    }
}

/// A message of JSON-RPC 2.0: its fields, and none beside them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'m> {
    #[serde(rename = "jsonrpc")]
    _version: Option<IgnoredAny>,
    #[serde(rename = "id")]
    _id: Option<IgnoredAny>,
    #[serde(rename = "result")]
    _result: Option<IgnoredAny>,
    #[serde(rename = "error")]
    _error: Option<IgnoredAny>,
    #[serde(borrow)]
    method: Option<Cow<'m, str>>,
    #[serde(borrow)]
    params: Option<&'m RawValue>,
}

/// The tool that a call's parameters name, if all readers find the same.
fn tool(params: &str) -> Option<String> {
    let Members(fields) = serde_json::from_str(params).ok()?;
    let mut named = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("name"));
    let (Some((name, value)), None) = (named.next(), named.next()) else { return None };
    serde_json::from_str(value.get()).ok().filter(|_| name == "name")
}

/// The workflow's rules that take tools of one server away.
#[derive(Debug)]
pub(super) struct Denied {
    server: String,
    rules: Vec<String>,
}

/// What the head of a request says of its message: by these a server, or a proxy before it, may choose what is done.
#[derive(Debug, Default)]
pub(super) struct Head {
    method: Option<HeaderValue>,
    name: Option<HeaderValue>,
}

impl Head {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let all = |name| {
            headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b","[..])
        };
        let value = |name| HeaderValue::from_bytes(&all(name)).ok().filter(|_| headers.contains_key(name));
        Self { method: value("mcp-method"), name: value("mcp-name") }
    }
}

impl Denied {
    /// None where the server has all its tools.
    pub(super) fn of(server: &str, rules: &[String]) -> Option<Self> {
        let rules: Vec<_> = rules.iter().filter(|rule| concerns(rule, server)).cloned().collect();
        (!rules.is_empty()).then(|| Self { server: server.to_owned(), rules })
    }

    /// Looks at a request: one message, or at most [`MESSAGES`] in a list, as revisions until 2025-03-26 have it.
    ///
    /// # Errors
    /// [`MessageFault::Unclear`] if it could be read in another way, [`MessageFault::Tool`] if it calls a tool that is taken away.
    pub(super) fn judge(&self, head: &Head, body: &[u8]) -> Result<(), MessageFault> {
        let is_list = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
        let messages: Vec<Message<'_>> = if is_list {
            serde_json::from_slice(body)
        } else {
            serde_json::from_slice(body).map(|one| vec![one])
        }
        .map_err(|_| MessageFault::Unclear)?;
        if messages.len() > MESSAGES {
            return Err(MessageFault::Unclear);
        }
        messages.iter().try_for_each(|message| self.judge_message(head, message))
    }

    fn judge_message(&self, head: &Head, message: &Message<'_>) -> Result<(), MessageFault> {
        let says = |said: &Option<HeaderValue>, text: &str| said.as_ref().is_none_or(|said| said == text);
        let method = message.method.as_deref().unwrap_or_default();
        if !says(&head.method, method) {
            return Err(MessageFault::Unclear);
        }
        if !method.eq_ignore_ascii_case(CALL) {
            return Ok(());
        }
        let tool = message.params.and_then(|params| tool(params.get())).ok_or(MessageFault::Unclear)?;
        if tool.len() > TOOL_BYTES || !says(&head.name, &tool) {
            return Err(MessageFault::Unclear);
        }
        match self.rules.iter().find(|rule| denies(rule, &self.server, &tool)) {
            Some(rule) => Err(MessageFault::Tool { rule: rule.clone() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(body: &str) -> Result<(), MessageFault> {
        let rules = ["Bash", "mcp__notes__delete", "mcp__other"].map(str::to_owned);
        Denied::of("notes", &rules).unwrap().judge(&Head::default(), body.as_bytes())
    }

    fn call(tool: &str) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{"name":1}}}}}}"#
        )
    }

    #[test]
    fn a_call_of_a_tool_that_is_taken_away_is_refused_however_it_is_written() {
        let denied = Err(MessageFault::Tool { rule: "mcp__notes__delete".to_owned() });
        for body in [
            call("delete"),
            call("del\\u0065te"),
            call("delete").replace("method", "m\\u0065thod"),
            call("delete").replace("tools/call", "Tools/Call"),
            format!(" [{},{}]", call("list"), call("delete")),
        ] {
            assert_eq!(judged(&body), denied, "{body}");
        }
        for body in [
            call("list"),
            call("delete2"),
            call("list").replace("tools/call", "tools/list"),
            format!("[{0},{0}]", call("list")),
            r#"{"jsonrpc":"2.0","id":1,"result":{"name":"delete"}}"#.to_owned(),
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.to_owned(),
        ] {
            assert_eq!(judged(&body), Ok(()), "{body}");
        }
    }

    #[test]
    fn what_another_reader_could_read_in_another_way_is_refused() {
        let twice = |field: &str, value: &str| call("list").replacen('{', &format!("{{{field}:{value},"), 1);
        for body in [
            String::new(),
            "x".to_owned(),
            "[]x".to_owned(),
            format!("{0}{0}", call("list")),
            twice("\"method\"", "\"tools/list\""),
            twice("\"Method\"", "\"tools/call\""),
            twice("\"params\"", "{}"),
            twice("\"PARAMS\"", "{\"name\":\"delete\"}"),
            twice("\"param\u{17f}\"", "{\"name\":\"delete\"}"),
            call("list").replace("\"arguments\"", "\"Name\":\"delete\",\"arguments\""),
            call("list").replace("\"arguments\"", "\"name\":\"delete\",\"arguments\""),
            call("list").replace("\"list\"", "[\"delete\"]"),
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#.to_owned(),
            format!("[[{}]]", call("list")),
        ] {
            assert_eq!(judged(&body), Err(MessageFault::Unclear), "{body}");
        }
    }

    #[test]
    fn a_head_that_says_something_else_than_the_message_is_refused() {
        let rules = ["mcp__notes__delete".to_owned()];
        let judged = |head: &[(&'static str, &str)], body: &str| {
            let mut headers = HeaderMap::new();
            for (name, value) in head {
                headers.append(*name, value.parse().unwrap());
            }
            Denied::of("notes", &rules).unwrap().judge(&Head::of(&headers), body.as_bytes())
        };
        let (call, list) = (call("list"), r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
        assert_eq!(judged(&[("mcp-method", "tools/call"), ("mcp-name", "list")], &call), Ok(()));
        assert_eq!(judged(&[("mcp-method", "tools/list")], list), Ok(()));
        for (head, body) in [
            (&[("mcp-name", "delete")][..], call.as_str()),
            (&[("mcp-name", "list"), ("mcp-name", "delete")], &call),
            (&[("mcp-method", "tools/list")], &call),
            (&[("mcp-method", "tools/call"), ("mcp-name", "delete")], list),
        ] {
            assert_eq!(judged(head, body), Err(MessageFault::Unclear), "{head:?}");
        }
    }

    #[test]
    fn names_and_lists_have_bounds() {
        let list = |messages: usize| format!("[{}]", vec![call("list"); messages].join(","));
        assert_eq!(
            (judged(&list(MESSAGES)), judged(&list(MESSAGES + 1))),
            (Ok(()), Err(MessageFault::Unclear))
        );
        let named = |bytes: usize| judged(&call(&"x".repeat(bytes)));
        assert_eq!((named(TOOL_BYTES), named(TOOL_BYTES + 1)), (Ok(()), Err(MessageFault::Unclear)));
    }

    #[test]
    fn a_server_with_all_its_tools_is_not_looked_into() {
        let of = |rules: &[&str]| {
            let rules: Vec<_> = rules.iter().map(|rule| (*rule).to_owned()).collect();
            Denied::of("notes", &rules).is_some()
        };
        assert!(!of(&[]) && !of(&["Bash", "Edit(/etc/**)", "mcp__other__delete", "mcp__note"]));
        assert!(of(&["mcp__notes"]) && of(&["mcp__notes__x"]) && of(&["mcp__*"]) && of(&["*"]));
    }
}
