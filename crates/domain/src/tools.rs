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

/// What the agent calls a tool of an MCP server: what a rule names. Other characters than letters, digits, `_` and `-` become `_`.
fn mcp_tool(server: &str, tool: &str) -> String {
    let is_kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let tool = tool.chars().map(|c| if is_kept(c) { c } else { '_' });
    format!("mcp__{server}__{}", tool.collect::<String>())
}

/// Whether a rule may take tools of an MCP server away. `mcp__server` takes all of them.
#[must_use]
pub fn concerns(rule: &str, server: &str) -> bool {
    let all = format!("mcp__{server}");
    let plain = &rule[..rule.find('*').unwrap_or(rule.len())];
    // What stands before the first `*` is the beginning of both, or the rule is of others.
    if plain.len() < rule.len() {
        let of_one = format!("{all}__");
        plain.starts_with(&of_one) || of_one.starts_with(plain)
    } else {
        rule == all || rule.starts_with(&format!("{all}__"))
    }
}

/// Whether a rule takes a tool of an MCP server away.
#[must_use]
pub fn denies(rule: &str, server: &str, tool: &str) -> bool {
    let name = mcp_tool(server, tool);
    rule == format!("mcp__{server}") || matches(rule.replace('?', "_").as_bytes(), name.as_bytes())
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
