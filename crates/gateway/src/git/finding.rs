//! What was found in a push, in words for people: never the secret itself.

use caisson_domain::checks::Check;
use caisson_domain::globs::GlobError;
use serde_json::{Map, Value, json};

use super::receive::Denial;

/// Most findings of one push that are told of.
pub(super) const FINDINGS: usize = 20;
/// Most of a path that is shown, in bytes.
const PATH_BYTES: usize = 200;

/// One thing that a push must not hold, and where it is as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The rule's stable name.
    pub(super) rule: &'static str,
    /// Which rule for secrets.
    pub(super) secret: Option<String>,
    pub(super) place: Place,
    /// What it is, and behind the place what to do.
    what: String,
    remedy: &'static str,
}

/// Where something was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) path: Option<String>,
    /// From 1.
    pub(super) line: Option<u64>,
    pub(super) commit: Option<String>,
}

/// Who forbids a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forbids {
    /// The server's settings, to every run.
    Server,
    /// The run's own workflow.
    Workflow,
}

impl Finding {
    /// The pack is not what git takes, or more than it may be.
    pub(super) fn pack(why: &str) -> Self {
        let what = if why.contains("unresolved delta") {
            "the pack builds on objects that it does not hold; push with git 1.8.4 or newer".to_owned()
        } else {
            format!("the pack was refused: {why}")
        };
        Self { rule: "pack", secret: None, place: Place::default(), what, remedy: "" }
    }

    pub(super) fn secret(rule: &str, place: Place) -> Self {
        let what = format!("a secret, by rule {rule},");
        let remedy = "take it out of every commit of the push and tell people that it must be changed";
        Self { rule: "secret", secret: Some(rule.to_owned()), place, what, remedy }
    }

    pub(super) fn too_many(most: usize) -> Self {
        let what = format!("more than {most} texts that look like secrets");
        let remedy = "take them out of every commit of the push";
        Self { rule: "secret", secret: None, place: Place::default(), what, remedy }
    }

    pub(super) fn path(whose: Forbids, place: Place) -> Self {
        let remedy = match whose {
            Forbids::Server => {
                "this server lets no run change it: leave it as it was, in every commit of the push"
            }
            Forbids::Workflow => {
                "the run's workflow forbids to change it: leave it as it was, in every commit of the push"
            }
        };
        Self { rule: "forbidden_path", secret: None, place, what: "a change".to_owned(), remedy }
    }

    /// A forbidden path as neither the branch nor the host's branches have it, by a commit that is on the host already.
    pub(super) fn brought(whose: Forbids, place: Place) -> Self {
        let remedy = match whose {
            Forbids::Server => {
                "this server lets no run change it: take it as the branch or its base branch has it, which may have gone \
                 on meanwhile"
            }
            Forbids::Workflow => {
                "the run's workflow forbids to change it: take it as the branch or its base branch has it, which may have \
                 gone on meanwhile"
            }
        };
        let what = "a change that comes from elsewhere".to_owned();
        Self { rule: "forbidden_path", secret: None, place, what, remedy }
    }

    /// What the workflow forbids cannot be read.
    pub(super) fn unknown_path(error: &GlobError) -> Self {
        let what = format!("a pattern of the workflow's caisson.forbidden_paths: {error}");
        Self { rule: "forbidden_path", secret: None, place: Place::default(), what, remedy: "" }
    }

    pub(super) fn file_size(most: u64, place: Place) -> Self {
        let what = format!("a file of more than {most} bytes");
        Self {
            rule: "file_size",
            secret: None,
            place,
            what,
            remedy: "leave it out of every commit of the push",
        }
    }

    pub(super) fn submodule(place: Place) -> Self {
        let what = "a submodule from elsewhere than the allowed repositories".to_owned();
        Self {
            rule: "submodule",
            secret: None,
            place,
            what,
            remedy: "leave it out of every commit of the push",
        }
    }

    /// A file that names submodules and is not looked into.
    pub(super) fn gitmodules(most: u64, place: Place) -> Self {
        let what = format!("a .gitmodules that git does not read to its end, or of more than {most} bytes,");
        let remedy = "mend it in every commit of the push";
        Self { rule: "submodule", secret: None, place, what, remedy }
    }

    /// As it is told where there is nothing to compare with, since the repository's HEAD names no branch that is there.
    pub(super) fn beside_no_branch(self) -> Self {
        let remedy = "nothing is known to compare it with, since the repository's HEAD names no branch that there is: have the \
                      repository's owner set its default branch, or start the run with a base";
        Self { remedy, ..self }
    }

    /// The check whose finding it is; none for what git itself or a bound refuses.
    pub(super) fn check(&self) -> Option<Check> {
        match self.rule {
            "secret" => Some(Check::Secrets),
            "forbidden_path" => Some(Check::ForbiddenPaths),
            "file_size" => Some(Check::FileSize),
            "submodule" => Some(Check::Submodules),
            _ => None,
        }
    }

    /// One sentence: what, where, and what to do.
    pub(super) fn reason(&self) -> String {
        let Place { path, line, commit } = &self.place;
        let path = path.as_ref().map(|path| format!(" in {path}"));
        let line = line.map(|line| format!(" line {line}"));
        let commit = commit.as_ref().map(|commit| format!(" of commit {}", &commit[..commit.len().min(12)]));
        let place: String = [path, line, commit].into_iter().flatten().collect();
        let end = if self.remedy.is_empty() { "" } else { "; " };
        format!("{}{place}{end}{}", self.what, self.remedy)
    }

    /// As a refusal of the ref.
    pub(super) fn denial(&self, ref_name: &str) -> Denial {
        let details = [
            ("secret_rule", json!(self.secret)),
            ("path", json!(self.place.path)),
            ("line", json!(self.place.line)),
            ("commit", json!(self.place.commit)),
        ];
        let details: Map<String, Value> = details
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        Denial { ref_name: ref_name.to_owned(), rule: self.rule, reason: self.reason(), details }
    }
}

/// A path as it may be shown.
pub(super) fn shown(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path)
        .chars()
        .map(|c| if c.is_control() || is_hidden(c) { '?' } else { c })
        .collect();
    let end = text.floor_char_boundary(PATH_BYTES);
    if end < text.len() { format!("{}…", &text[..end]) } else { text }
}

/// Characters that make a text read as something else.
const fn is_hidden(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_where_and_what_to_do() {
        let place = Place {
            path: Some("conf/app.env".to_owned()),
            line: Some(3),
            commit: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
        };
        let found = Finding::secret("github-token", place);
        let reason = found.reason();
        assert!(
            reason.starts_with(
                "a secret, by rule github-token, in conf/app.env line 3 of commit 0123456789ab; take it out"
            ),
            "{reason}"
        );
        let denial = found.denial("refs/heads/x");
        assert_eq!((denial.rule, &denial.details["line"]), ("secret", &json!(3)));
        assert_eq!(denial.details["secret_rule"], "github-token");
        assert!(Finding::pack("fatal: x").denial("r").details.is_empty());
        assert!(Finding::pack("pack has 1 unresolved delta").reason().contains("push with git"));
    }

    #[test]
    fn a_path_is_shown_on_one_line_and_not_as_something_else() {
        assert_eq!(shown("a\n\u{1b}[2J\u{202e}b".as_bytes()), "a??[2J?b");
        assert_eq!(shown(&[0xff, b'x']), "\u{fffd}x");
        assert!(shown(&[b'a'; 500]).len() < PATH_BYTES + 5);
    }
}
