//! What may stand where a tool is named. Source: Claude Code 2.1.330, measured.

use crate::globs::matches;

/// Longest name or rule, in bytes.
pub const TOOL_BYTES: usize = 1024;
/// Most names or rules in one list.
pub const TOOLS: usize = 256;

/// A bare name: what `--tools` takes between its commas. `default` would mean all tools.
#[must_use]
pub fn is_name(entry: &str) -> bool {
    let mut bytes = entry.bytes();
    entry != "default"
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// One rule: a name, perhaps with wildcards, or `Name(content)`.
///
/// The CLI takes the first `)` for the end of the content and splits at commas and spaces after it, so
/// `Bash(a)b, Edit` would allow `Edit` as well. Such a text is refused; `Edit((group)/**)` is one rule.
#[must_use]
pub fn is_rule(entry: &str) -> bool {
    let (name, rest) = entry.split_at(entry.find('(').unwrap_or(entry.len()));
    let named = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'*')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'*' | b'.' | b':'));
    let content = rest.is_empty() || (rest.len() > 2 && rest.ends_with(')'));
    let closed = rest.split_once(')').map_or("", |(_, after)| after);
    named
        && content
        && !closed.contains(|c: char| c == ',' || c.is_whitespace())
        && !entry.contains(char::is_control)
}

/// Whether a rule may take tools of an MCP server away, as Claude Code 2.1.330 reads rules: `mcp__server` takes all of them, also
/// of a server whose name goes on with `__`, and `(*)` behind a name changes nothing.
#[must_use]
pub fn concerns(rule: &str, server: &str) -> bool {
    let (rule, of_one) = (whole_tool(rule), format!("mcp__{server}__"));
    match rule.find('*') {
        // What stands before the first `*` is the beginning of both, or the rule is of others.
        Some(star) => rule[..star].starts_with(&of_one) || of_one.starts_with(&rule[..star]),
        None => rule.starts_with(&of_one) || takes_all(rule, &of_one),
    }
}

/// Whether a rule takes a tool of an MCP server away. A tool's name is at most [`TOOL_BYTES`] long.
#[must_use]
pub fn denies(rule: &str, server: &str, tool: &str) -> bool {
    let (rule, name) = (whole_tool(rule), mcp_tool(server, tool));
    takes_all(rule, &name) || matches(rule.as_bytes(), name.as_bytes())
}

fn whole_tool(rule: &str) -> &str {
    rule.strip_suffix("(*)").unwrap_or(rule)
}

/// Whether a rule names a server and no tool, and `name` is of that server.
fn takes_all(rule: &str, name: &str) -> bool {
    let names_server = rule.strip_prefix("mcp__").is_some_and(|server| !server.contains("__"));
    names_server && name.strip_prefix(rule).is_some_and(|rest| rest.starts_with("__"))
}

/// What the agent calls a tool of an MCP server: for whatever is neither letter, digit, `_` nor `-`, it has `_`, once for each unit of
/// UTF-16.
fn mcp_tool(server: &str, tool: &str) -> String {
    let mut name = format!("mcp__{server}__");
    for c in tool.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') {
            name.push(c);
        } else {
            name.push_str(&"_".repeat(c.len_utf16()));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_takes_a_tool_a_server_or_all_servers_away() {
        for (rule, tool) in [
            ("mcp__notes__delete", "delete"),
            ("mcp__notes__a_b", "a.b"),
            ("mcp__notes__del*", "delete"),
            ("mcp__notes__*", "x"),
            ("mcp__notes", "x"),
            ("mcp__*", "x"),
            ("*", "x"),
            ("mcp__notes(*)", "x"),
            ("mcp__notes__delete(*)", "delete"),
            ("mcp__notes__a__", "a😀"),
        ] {
            assert!(concerns(rule, "notes") && denies(rule, "notes", tool), "{rule}");
        }
        for (rule, tool) in [
            ("mcp__notes__delete", "deletes"),
            ("mcp__notes__Delete", "delete"),
            ("mcp__notes__del*", "undelete"),
            ("mcp__other", "x"),
            ("mcp__note", "s__x"),
            ("Bash", "Bash"),
            ("Bash(*)", "x"),
        ] {
            assert!(!denies(rule, "notes", tool), "{rule}");
        }
        // The name of a server may have what stands between a server and its tool.
        assert!(concerns("mcp__a", "a__b") && denies("mcp__a", "a__b", "x"));
        assert!(!concerns("mcp__a__c", "a__b") && !denies("mcp__a__c", "a__b", "x"));
        assert!(!denies("mcp__notes__delete", "notes", "delete__all"));
        for rule in ["mcp__other__x", "mcp__other", "mcp__notes2__*", "mcp__note", "Bash", "Bash(mcp__notes)"]
        {
            assert!(!concerns(rule, "notes"), "{rule}");
        }
    }

    #[test]
    fn a_name_is_one_word_and_not_the_word_for_all() {
        assert!(is_name("Bash") && is_name("mcp__srv__add-1"));
        for bad in ["", "default", "-x", "Bash(ls)", "a,b", "a b", "*"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_rule_cannot_smuggle_a_second_one() {
        for good in
            ["Bash", "Bash(git log *)", "Edit((group)/**)", "mcp__srv__*", "WebFetch(domain:a.example)"]
        {
            assert!(is_rule(good), "{good}");
        }
        for bad in ["", "Bash(a)b, Edit(x)", "Bash(a) Edit(x)", "Bash(", "Bash()", "--x", "Bash(a\nb)"] {
            assert!(!is_rule(bad), "{bad}");
        }
    }
}
