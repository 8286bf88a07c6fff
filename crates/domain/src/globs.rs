//! Patterns of paths: pure.

/// Most patterns.
pub const PATTERNS: usize = 200;
/// Longest pattern, in bytes.
pub const PATTERN_BYTES: usize = 500;
/// How much of a pattern an error shows, in characters.
const SHOWN_CHARS: usize = 80;

/// What is no pattern, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{value}\" cannot be used: {reason}")]
pub struct GlobError {
    /// The pattern, cut.
    pub value: String,
    /// What to change.
    pub reason: &'static str,
}

/// Patterns, each of which covers a file, or a directory with everything in it.
#[derive(Debug, Clone, Default)]
pub struct Globs(Vec<Vec<String>>);

impl Globs {
    /// Reads patterns. Small letters and capitals are the same.
    ///
    /// # Errors
    /// [`GlobError`] for the first that is none.
    pub fn new(patterns: &[String]) -> Result<Self, GlobError> {
        let fault =
            |value: &str, reason| GlobError { value: value.chars().take(SHOWN_CHARS).collect(), reason };
        if patterns.len() > PATTERNS {
            return Err(fault("", "there are more than 200 patterns; use ** in fewer"));
        }
        let parse = |pattern: &String| {
            let parts: Vec<String> =
                pattern.trim_matches('/').split('/').map(str::to_ascii_lowercase).collect();
            let reason = if pattern.len() > PATTERN_BYTES {
                "it is longer than 500 bytes"
            } else if parts.iter().any(String::is_empty) {
                "a part of it is empty; use one slash between parts"
            } else if parts.iter().any(|part| part != "**" && part.contains("**")) {
                "** stands alone between slashes"
            } else {
                return Ok(parts);
            };
            Err(fault(pattern, reason))
        };
        patterns.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there is no pattern.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a pattern covers the path of a file.
    #[must_use]
    pub fn cover(&self, path: &[u8]) -> bool {
        let path = path.to_ascii_lowercase();
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        self.0.iter().any(|pattern| covers(pattern, &parts))
    }
}

/// Both in small letters. The table says how much of the pattern the parts so far can have used: linear in each.
fn covers(pattern: &[String], parts: &[&[u8]]) -> bool {
    let mut used = vec![false; pattern.len() + 1];
    used[0] = true;
    skip_over_any(pattern, &mut used);
    for part in parts {
        let mut next = vec![false; pattern.len() + 1];
        for (number, glob) in pattern.iter().enumerate() {
            if used[number] && glob == "**" {
                next[number] = true;
            } else if used[number] && matches(glob.as_bytes(), part) {
                next[number + 1] = true;
            }
        }
        skip_over_any(pattern, &mut next);
        if next[pattern.len()] {
            // The rest lies in a directory that is covered.
            return true;
        }
        used = next;
    }
    false
}

/// `**` may stand for nothing.
fn skip_over_any(pattern: &[String], used: &mut [bool]) {
    for (number, glob) in pattern.iter().enumerate() {
        if used[number] && glob == "**" {
            used[number + 1] = true;
        }
    }
}

/// One part: `*` stands for any bytes, `?` for one.
pub(crate) fn matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut glob_at, mut text_at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while text_at < text.len() {
        match glob.get(glob_at) {
            Some(b'*') => {
                star = Some((glob_at, text_at));
                glob_at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[text_at] => {
                glob_at += 1;
                text_at += 1;
            }
            Some(_) | None => {
                let Some((at, tried)) = star else { return false };
                star = Some((at, tried + 1));
                (glob_at, text_at) = (at + 1, tried + 1);
            }
        }
    }
    glob[glob_at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covered(pattern: &str, path: &str) -> bool {
        Globs::new(&[pattern.to_owned()]).unwrap().cover(path.as_bytes())
    }

    #[test]
    fn a_pattern_covers_files_and_whole_directories() {
        for (pattern, path) in [
            (".github/workflows", ".github/workflows/ci.yml"),
            (".github/workflows/**", ".github/workflows/deep/ci.yml"),
            (".github/workflows/", ".GitHub/Workflows/ci.yml"),
            ("**/*.pem", "a/b/key.pem"),
            ("**/*.pem", "key.pem"),
            ("Makefile", "Makefile"),
            ("a/**/z", "a/z"),
            ("a/**/z", "a/b/c/z"),
            ("src/?.rs", "src/x.rs"),
            ("*", "anything/at/all"),
        ] {
            assert!(covered(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            (".github/workflows", ".github/workflows2/ci.yml"),
            ("*.pem", "a/key.pem"),
            ("a/**/z", "b/a/z"),
            ("src/?.rs", "src/xy.rs"),
            ("Makefile", "sub/Makefile"),
            ("a/b", "a"),
        ] {
            assert!(!covered(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "a//b", "a/x**", &"x".repeat(PATTERN_BYTES + 1)] {
            assert!(Globs::new(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(Globs::new(&vec!["a".to_owned(); PATTERNS]).is_ok());
        assert!(Globs::new(&vec!["a".to_owned(); PATTERNS + 1]).is_err());
    }

    proptest! {
        #[test]
        fn hostile_patterns_take_no_time(path in "[ab/]{0,400}") {
            let pattern = ["**", "*a*a*a*b", "**", "*b*b*a"].join("/");
            covered(&pattern, &path);
        }
    }
}
