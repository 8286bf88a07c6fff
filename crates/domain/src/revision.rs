//! Revisions: commits of a repository as people name them.

/// Longest name of a commit, in bytes: that of a branch.
pub const REVISION_BYTES: usize = crate::limits::BRANCH_BYTES;
/// Most parameters of a workflow that name commits: each may cost a fetch before the agent starts.
pub const REVISIONS: usize = 4;

/// Whether a text can name a commit: 1 to [`REVISION_BYTES`] bytes without spaces and what git gives a meaning of its own, so that it is
/// neither an option nor more than one ref. Whether there is such a commit is another question.
#[must_use]
pub fn is_revision(text: &str) -> bool {
    (1..=REVISION_BYTES).contains(&text.len())
        && !text.starts_with(['-', '+'])
        && !text.contains(|c: char| c.is_control() || c.is_whitespace() || ":?*[\\".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_neither_an_option_nor_more_than_one_name() {
        let long = "x".repeat(REVISION_BYTES);
        for good in ["main", "release/1", "v1.2-rc.1", "3f0c9a1", "HEAD~2", "größe", long.as_str()] {
            assert!(is_revision(good), "{good}");
        }
        let longer = format!("{long}x");
        for bad in ["", "-x", "+main", "a b", "a:b", ":/fix", "a\n", "a*", "\u{a0}", longer.as_str()] {
            assert!(!is_revision(bad), "{bad}");
        }
    }
}
