//! What may stand where a tool is named. Source: Claude Code 2.1.330, measured.

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

#[cfg(test)]
mod tests {
    use super::*;

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
