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
        self.0.iter().any(|pattern| covers(pattern, parts.iter().copied()))
    }
}

/// Both in small letters. The table says how much of the pattern the parts so far can have used: linear in each. Nearly always
/// the first part says that it is none of the pattern's, and no more is looked at.
fn covers<'a>(pattern: &[String], parts: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut used = vec![false; pattern.len() + 1];
    let mut next = used.clone();
    used[0] = true;
    skip_over_any(pattern, &mut used);
    for part in parts {
        next.fill(false);
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
        if !next.contains(&true) {
            return false;
        }
        std::mem::swap(&mut used, &mut next);
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

    #[test]
    fn no_more_of_a_path_is_looked_at_than_its_answer_needs() {
        let looked_at = |pattern: &str, path: &str| {
            let globs = Globs::new(&[pattern.to_owned()]).unwrap();
            let mut count = 0;
            let parts = path.as_bytes().split(|byte| *byte == b'/').inspect(|_| count += 1);
            (covers(&globs.0[0], parts), count)
        };
        let deep = "/x".repeat(10_000);
        assert_eq!(looked_at(".github/workflows", &format!("src{deep}")), (false, 1));
        assert_eq!(looked_at(".github/workflows", &format!(".github{deep}")), (false, 2));
        assert_eq!(looked_at(".github/workflows", &format!(".github/workflows{deep}")), (true, 2));
        assert_eq!(looked_at("a/**/b", &format!("b{deep}")), (false, 1));
        // What may come at any depth is looked for at each.
        assert_eq!(looked_at("a/**/b", &format!("a{deep}")), (false, 10_001));
        assert_eq!(looked_at("a/**/b", "a/x/b/c/d"), (true, 3));
    }

    /// What patterns mean, as plainly as it can be said: of a path, or of a directory that it lies in.
    fn covered_plainly(pattern: &[&str], parts: &[&str]) -> bool {
        match (pattern.split_first(), parts.split_first()) {
            (None, _) => true,
            (Some((&"**", rest)), None) => covered_plainly(rest, parts),
            (Some(_), None) => false,
            (Some((&"**", rest)), Some((_, below))) => {
                covered_plainly(rest, parts) || covered_plainly(pattern, below)
            }
            (Some((glob, rest)), Some((part, below))) => {
                matches(glob.as_bytes(), part.as_bytes()) && covered_plainly(rest, below)
            }
        }
    }

    proptest! {
        #[test]
        fn a_path_is_covered_as_its_pattern_says(
            pattern in prop::collection::vec(prop::sample::select(vec!["**", "*", "a", "b", "a*", "?"]), 1..5),
            parts in prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "c"]), 1..6),
        ) {
            prop_assert_eq!(covered(&pattern.join("/"), &parts.join("/")), covered_plainly(&pattern, &parts));
        }

        #[test]
        fn hostile_patterns_take_no_time(path in "[ab/]{0,400}") {
            let pattern = ["**", "*a*a*a*b", "**", "*b*b*a"].join("/");
            covered(&pattern, &path);
        }
    }
}
