//! The text of a workflow file: where its front matter ends, and in which line something is written.

use super::WorkflowError;

/// Front matter with the dashes before it, so that its lines are those of the file, and body; `None` if there is no front matter.
pub(super) fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut position = ["---\n", "---\r\n"].into_iter().find(|first| text.starts_with(first))?.len();
    for line in text[position..].split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some((&text[..position], &text[position + line.len()..]));
        }
        position += line.len();
    }
    None
}

impl WorkflowError {
    /// What of a workflow it is about, with dots between keys, such as `caisson.egress`; none if it is about the file as a whole.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::At { fault, .. } => fault.field(),
            Self::Value { field, .. } => Some(field),
            Self::Name(_) => Some("name"),
            Self::NoFrontMatter | Self::FrontMatter(_) | Self::TooLong => None,
        }
    }

    /// The same without a line, for a workflow whose file nobody has written.
    #[must_use]
    pub fn without_line(self) -> Self {
        match self {
            Self::At { fault, .. } => fault.without_line(),
            Self::Value { .. }
            | Self::Name(_)
            | Self::NoFrontMatter
            | Self::FrontMatter(_)
            | Self::TooLong => self,
        }
    }

    /// The same with the line in which its field is written.
    pub(super) fn found_in(self, head: &str) -> Self {
        match self.field().and_then(|field| line_of(head, field)) {
            Some(line) => Self::At { line, fault: Box::new(self) },
            None => self,
        }
    }
}

/// The line, from 1, in which a field is written, or else the nearest map that it is in: one that is written on one line has all of its
/// fields there. None if there is neither.
fn line_of(head: &str, field: &str) -> Option<usize> {
    let lines: Vec<&str> = head.lines().collect();
    let (mut found, mut start, mut least) = (None, 0, 0);
    for key in field.split('.') {
        // Keys of one map stand below each other.
        let mut column = None;
        let inside = lines.iter().enumerate().skip(start).filter(|(_, line)| says_something(line));
        let here = inside
            .map(|(number, line)| (number, column_of(line), *line))
            .take_while(|(_, at, _)| *at >= least)
            .find(|(_, at, line)| *column.get_or_insert(*at) == *at && has_key(line, key));
        let Some((number, at, _)) = here else { break };
        (found, start, least) = (Some(number + 1), number + 1, at + 1);
    }
    found
}

fn says_something(line: &str) -> bool {
    let text = line.trim_start();
    !text.is_empty() && !text.starts_with('#')
}

fn column_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn has_key(line: &str, key: &str) -> bool {
    let quoted = [format!("\"{key}\""), format!("'{key}'"), key.to_owned()];
    let rest = quoted.iter().find_map(|key| line.trim_start().strip_prefix(key.as_str()));
    rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::Workflow;

    /// What is wrong with a workflow that has this behind its third line.
    fn told(front: &str) -> String {
        let text = format!("---\nname: x\ndescription: does x\n{front}---\n\nDo it.\n");
        Workflow::parse(&text).unwrap_err().to_string()
    }

    #[test]
    fn what_yaml_cannot_be_is_told_with_the_line_of_the_file() {
        for (front, line) in
            [("maxTurns: many\n", 4), ("model: m\n\ntool: Bash\n", 6), ("caisson:\n  imge: x\n", 5)]
        {
            let told = told(front);
            assert!(told.contains(&format!("line {line}")), "{front}: {told}");
        }
        let marked = "\u{feff}---\r\nname: x\r\ndescription: y\r\nmaxTurns: many\r\n---\r\nDo it.\r\n";
        let told = Workflow::parse(marked).unwrap_err().to_string();
        assert!(told.contains("line 4"), "{told}");
    }

    #[test]
    fn a_value_that_cannot_be_used_is_told_with_the_line_of_its_field() {
        for (front, line) in [
            ("maxTurns: 0\n", 4),
            ("model: m\n# caisson: no\n\ncaisson:\n\n  egress: []\n  timeout_s: 1\n", 10),
            ("caisson:\n    resources:\n        # pids: 0\n        tmp_mib: 64\n        pids: 1\n", 8),
            ("caisson:\n  parameters:\n    timeout_s: {type: string}\n  timeout_s: 1\n", 7),
            ("caisson: {resources: {pids: 1}}\n", 4),
            ("caisson:\n  resources: {pids: 1}\n", 5),
            ("\"mcpServers\" : {x: {args: [a]}}\n", 4),
            ("caisson:\n  trust:\n    settings: true\n    branches: ['a b']\n", 7),
        ] {
            let told = told(front);
            assert!(told.starts_with(&format!("line {line}: the workflow's ")), "{front}: {told}");
        }
        let name = Workflow::parse("---\ndescription: y\nname: A B\n---\n").unwrap_err();
        assert_eq!(name.field(), Some("name"));
        assert!(name.to_string().starts_with("line 3: "), "{name}");
        assert!(!name.without_line().to_string().contains("line"));
    }

    #[test]
    fn a_field_that_is_not_written_has_no_line() {
        for (head, field) in
            [("---\nname: x\n", "caisson.publish"), ("---\nnames: x\n", "name"), ("", "name")]
        {
            assert_eq!(line_of(head, field), None, "{head}");
        }
        // What only looks like the key of a map is text of another one.
        let head = "---\ndescription: |\n  caisson:\n    timeout_s: 1\nname: x\n";
        assert_eq!(line_of(head, "caisson.timeout_s"), None);
        // A map that has ended has no further keys.
        let head = "---\ncaisson:\n  image: x\nother:\n  timeout_s: 1\n";
        assert_eq!(line_of(head, "caisson.timeout_s"), Some(2));
    }
}
