//! What a call would have the provider do outside. The agent would choose where to, past the one door that judges where its own
//! tools go, so it is refused unless the operator allows it.
//!
//! Only what can mean it is read; everything else passes as it came. Names that stand twice count each time, so that no
//! reader finds one that is not seen here.

use std::collections::BTreeSet;

use caisson_domain::provider::ProviderTool;
use serde_json::value::RawValue;

use crate::members::{Name, each_item, each_member};

/// How deep content may lie in content: a document in a tool's result in a message has four.
pub(super) const DEPTH: usize = 16;
/// Types of tools that the agent itself runs, or that stay within the provider: what they begin with.
const HARMLESS: [&str; 5] = ["bash_", "text_editor_", "computer_", "memory_", "tool_search_tool_"];
/// Types of sources that lead nowhere.
const AT_HAND: [&str; 4] = ["base64", "text", "content", "file"];

/// A body that is no JSON object, or whose content lies too deep: what it asks for cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

impl From<serde_json::Error> for Unreadable {
    fn from(_: serde_json::Error) -> Self {
        Self
    }
}

/// What the call would have the provider do outside.
///
/// # Errors
/// [`Unreadable`].
pub(super) fn wanted(body: &[u8]) -> Result<BTreeSet<ProviderTool>, Unreadable> {
    let mut found = BTreeSet::new();
    each_member(body, |name, value| {
        match name {
            "tools" => tools(value, &mut found)?,
            "mcp_servers" if !is_nothing(value) => {
                found.insert(ProviderTool::McpConnector);
            }
            "system" | "messages" => content(value, DEPTH, &mut found)?,
            _ => {}
        }
        Ok::<_, Unreadable>(())
    })?;
    Ok(found)
}

fn is_nothing(value: &RawValue) -> bool {
    let text = value.get();
    text == "null" || text.strip_prefix('[').is_some_and(|rest| rest.trim_start() == "]")
}

fn tools(value: &RawValue, found: &mut BTreeSet<ProviderTool>) -> Result<(), Unreadable> {
    if value.get() == "null" {
        return Ok(());
    }
    each_item(value.get().as_bytes(), |tool| {
        each_member(tool.get().as_bytes(), |name, kind| {
            if name == "type" {
                let kind: Option<Name<'_>> = serde_json::from_str(kind.get())?;
                found.extend(kind.and_then(|Name(kind)| tool_of(&kind)));
            }
            Ok::<_, Unreadable>(())
        })
    })
}

fn tool_of(kind: &str) -> Option<ProviderTool> {
    if kind == "custom" || HARMLESS.iter().any(|begin| kind.starts_with(begin)) {
        return None;
    }
    let known = [
        ("web_search_", ProviderTool::WebSearch),
        ("web_fetch_", ProviderTool::WebFetch),
        ("code_execution_", ProviderTool::CodeExecution),
        ("mcp_toolset", ProviderTool::McpConnector),
    ];
    let tool = known.iter().find(|(begin, _)| kind.starts_with(begin)).map(|(_, tool)| *tool);
    Some(tool.unwrap_or(ProviderTool::Other))
}

/// Looks through messages, blocks of content and what lies in these, however they are nested.
fn content(value: &RawValue, depth: usize, found: &mut BTreeSet<ProviderTool>) -> Result<(), Unreadable> {
    let inner = depth.checked_sub(1).ok_or(Unreadable)?;
    let json = value.get().as_bytes();
    match json.first() {
        Some(b'[') => each_item(json, |part| content(part, inner, found)),
        Some(b'{') => each_member(json, |name, value| match name {
            "content" => content(value, inner, found),
            "source" => source(value, inner, found),
            _ => Ok(()),
        }),
        _ => Ok(()),
    }
}

/// The source of an image or a document. One that is a text is no more than a name.
fn source(value: &RawValue, depth: usize, found: &mut BTreeSet<ProviderTool>) -> Result<(), Unreadable> {
    if !value.get().starts_with('{') {
        return Ok(());
    }
    let (mut named, mut at_hand) = (false, true);
    each_member(value.get().as_bytes(), |name, value| {
        match name {
            "type" => {
                let Name(kind) = serde_json::from_str(value.get())?;
                named = true;
                at_hand &= AT_HAND.contains(&kind.as_ref());
            }
            "content" => content(value, depth, found)?,
            _ => {}
        }
        Ok::<_, Unreadable>(())
    })?;
    if !(named && at_hand) {
        found.insert(ProviderTool::UrlSources);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Vec<&'static str> {
        wanted(body.as_bytes()).unwrap().into_iter().map(ProviderTool::as_str).collect()
    }

    #[test]
    fn tools_that_the_provider_runs_are_found_and_the_agents_own_are_not() {
        let tool = |rest: &str| {
            of(&format!(r#"{{"model":"m","tools":[{{"name":"Bash","input_schema":{{}}}},{rest}]}}"#))
        };
        for own in [
            r#"{"name":"x"}"#,
            r#"{"type":null,"name":"x"}"#,
            r#"{"type":"custom","name":"x","input_schema":{"type":"web_fetch_x"}}"#,
            r#"{"type":"bash_20250124","name":"bash"}"#,
            r#"{"type":"tool_search_tool_regex_20251119"}"#,
        ] {
            assert!(tool(own).is_empty(), "{own}");
        }
        assert_eq!(tool(r#"{"type":"web_search_20250305"}"#), ["web_search"]);
        assert_eq!(tool(r#"{"type":"web_fetch_20250910"}"#), ["web_fetch"]);
        assert_eq!(tool(r#"{"type":"code_execution_20250825"}"#), ["code_execution"]);
        assert_eq!(tool(r#"{"type":"mcp_toolset"}"#), ["mcp_connector"]);
        for unknown in [r#"{"type":"of_tomorrow"}"#, r#"{"type":"custom_fetch"}"#] {
            assert_eq!(tool(unknown), ["other"]);
        }
        assert_eq!(tool(r#"{"ty\u0070e":"web_fetch_1"}"#), ["web_fetch"]);
        assert_eq!(tool(r#"{"type":"web_fetch_1","type":"custom"}"#), ["web_fetch"]);
        assert_eq!(of(r#"{"tools":[{"type":"web_search_1"}],"tools":[]}"#), ["web_search"]);
        assert_eq!(of(r#"{"mcp_servers":[{"url":"https://x.example"}]}"#), ["mcp_connector"]);
        assert!(of(r#"{"tools":null,"mcp_servers":[ ]}"#).is_empty());
    }

    #[test]
    fn sources_that_are_fetched_are_found_wherever_content_lies() {
        let url = r#"{"type":"image","source":{"type":"url","url":"https://x.example/?d=1"}}"#;
        for body in [
            format!(r#"{{"messages":[{{"role":"user","content":[{url}]}}]}}"#),
            format!(r#"{{"system":[{url}]}}"#),
            format!(r#"{{"messages":[{{"content":[{{"type":"tool_result","content":[{url}]}}]}}]}}"#),
            format!(
                r#"{{"messages":[{{"content":[{{"type":"document","source":{{"type":"content","content":[{url}]}}}}]}}]}}"#
            ),
            url.replace("url\",", "base64\",\"type\":\"url\",")
                .replace("{\"type\":\"image\"", "{\"messages\":{\"type\":\"image\"")
                + "}",
            r#"{"messages":[{"content":[{"source":{"url":"https://x.example"}}]}]}"#.to_owned(),
        ] {
            assert_eq!(of(&body), ["url_sources"], "{body}");
        }
    }

    #[test]
    fn what_only_looks_like_it_passes() {
        for body in [
            r#"{"messages":[{"role":"user","content":"{\"source\":{\"type\":\"url\"}} \ud800"}]}"#,
            r#"{"messages":[{"content":[{"type":"tool_use","input":{"source":{"type":"url"}}}]}]}"#,
            r#"{"messages":[{"content":[{"type":"image","source":{"type":"base64","data":"eA=="}}]}]}"#,
            r#"{"messages":[{"content":[{"type":"search_result","source":"https://x.example","content":[]}]}]}"#,
            r#"{"messages":[{"content":[{"type":"x_result","content":{"type":"y"}}]}],"metadata":{"source":{"type":"url"}}}"#,
            "{}",
        ] {
            assert!(of(body).is_empty(), "{body}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let deep = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            wanted(format!(r#"{{"messages":{open}{close}}}"#).as_bytes())
        };
        assert_eq!(deep(DEPTH), Ok(BTreeSet::new()));
        assert_eq!(deep(DEPTH + 1), Err(Unreadable));
        for body in ["", "[]", "{", "{}x", "\u{feff}{}", r#"{"tools":7}"#, r#"{"tools":[{"type":7}]}"#] {
            assert_eq!(wanted(body.as_bytes()), Err(Unreadable), "{body}");
        }
    }
}
