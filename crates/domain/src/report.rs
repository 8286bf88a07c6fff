//! A structured output for people: Markdown.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Longest report, in bytes; the rest is left out and said so.
pub const REPORT_BYTES: usize = 256 * 1024;
/// Fields that begin an item's title, in this order.
const TITLE: [&str; 3] = ["severity", "file", "line"];
/// What stands for what was left out.
const CUT: &str = "\n\n(The rest was left out.)\n";

/// Renders an output: its texts as paragraphs, lists of objects as sections, the rest as lists. What the output says is shown as
/// text: it makes no headings, links or HTML of its own.
#[must_use]
pub fn markdown(title: &str, output: &Value) -> String {
    let mut page = format!("# {}\n", plain(title));
    match output {
        Value::Object(fields) => {
            let (short, long): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, value)| is_short(value));
            for (name, value) in short {
                let _written = write!(page, "\n**{}:** {}\n", heading(name), scalar(value));
            }
            for (name, value) in long {
                let _written = write!(page, "\n## {}\n", heading(name));
                block(value, &mut page);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            block(output, &mut page);
        }
    }
    if page.len() > REPORT_BYTES {
        page.truncate(page.floor_char_boundary(REPORT_BYTES - CUT.len()));
        page.push_str(CUT);
    }
    page
}

fn is_short(value: &Value) -> bool {
    match value {
        Value::String(text) => text.len() < 60 && !text.contains('\n'),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn block(value: &Value, page: &mut String) {
    match value {
        Value::Array(items) if items.is_empty() => page.push_str("\nNone.\n"),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if let Value::Object(fields) = item {
                    section(index + 1, fields, page);
                } else {
                    let _written = write!(page, "\n- {}", scalar(item));
                }
            }
            page.push('\n');
        }
        Value::Object(fields) => {
            page.push('\n');
            for (name, value) in fields {
                let _written = writeln!(page, "- **{}:** {}", heading(name), scalar(value));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _written = write!(page, "\n{}\n", scalar(value));
        }
    }
}

fn section(number: usize, fields: &Map<String, Value>, page: &mut String) {
    let _written = write!(page, "\n### {number}.");
    for (name, value) in TITLE.iter().filter_map(|name| fields.get(*name).map(|value| (*name, value))) {
        let before = if name == "line" { ":" } else { " " };
        let _written = write!(page, "{before}{}", scalar(value));
    }
    page.push('\n');
    for (name, value) in fields.iter().filter(|(name, _)| !TITLE.contains(&name.as_str())) {
        let _written = write!(page, "\n**{}:** {}\n", heading(name), scalar(value));
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => plain(text),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => plain(&value.to_string()),
    }
}

fn heading(name: &str) -> String {
    let words = plain(&name.replace(['_', '-'], " ").replace('\n', " "));
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The text with nothing in it that Markdown or HTML would act on, but its line ends.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '!' | '~' => out.extend(['\\', c]),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_review_reads_as_one() {
        let output = json!({
            "verdict": "REQUEST_CHANGES",
            "summary": "Two things are wrong with this change, and both of them lose data of users.",
            "findings": [
                {"file": "shop/cart.py", "line": 7, "severity": "high", "title": "Loses <b>items</b>", "suggestion": "Use `>=`."},
            ],
            "praise": [],
        });
        assert_eq!(
            markdown("pr-reviewer", &output),
            "# pr-reviewer\n\n**Verdict:** REQUEST\\_CHANGES\n\n## Findings\n\n### 1. high shop/cart.py:7\n\n\
             **Suggestion:** Use \\`&gt;=\\`.\n\n**Title:** Loses &lt;b&gt;items&lt;/b&gt;\n\n\n## Praise\n\nNone.\n\n\
             ## Summary\n\nTwo things are wrong with this change, and both of them lose data of users.\n"
        );
    }

    #[test]
    fn a_report_has_its_bound() {
        let page = markdown("x", &json!({"long": "ä".repeat(REPORT_BYTES)}));
        assert!(page.len() <= REPORT_BYTES && page.ends_with(CUT), "{}", page.len());
    }
}
