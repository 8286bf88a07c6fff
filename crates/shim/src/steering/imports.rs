//! Files that instructions name with `@path`: Claude Code reads them as well, so they come from the anchor too.

use std::collections::BTreeSet;

use caisson_domain::run::Failure;

use super::anchor::{Entry, FILES, Files, is_path};
use crate::git::Git;

/// How far imports are followed: as far as Claude Code 2.1.330 does.
const HOPS: usize = 5;

/// Reads what the files import, and what that imports.
///
/// # Errors
/// [`Failure`] if git fails.
pub(super) async fn follow(
    git: &Git,
    anchor: &str,
    files: &mut Files,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let mut seen: BTreeSet<String> = files.contents.keys().cloned().collect();
    let mut newest = seen.clone();
    for _ in 0..HOPS {
        let named: BTreeSet<String> = newest
            .iter()
            .filter_map(|path| Some((path, files.text(path)?)))
            .flat_map(|(path, text)| imports(path, &text))
            .filter(|path| !seen.contains(path))
            .take(FILES)
            .collect();
        if named.is_empty() {
            break;
        }
        let entries: Vec<Entry> =
            named.iter().map(|path| Entry { path: path.clone(), executable: false }).collect();
        files.read(git, anchor, &entries, notes).await?;
        seen.extend(named.iter().cloned());
        newest = named;
    }
    Ok(())
}

/// Paths in the tree that a text names, rather too many than too few; pure. What leads out of the tree, to the home or to an
/// absolute place is none.
fn imports(path: &str, text: &str) -> Vec<String> {
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let words = text.split(char::is_whitespace).filter_map(|word| word.strip_prefix('@'));
    words.filter_map(|word| inside(directory, word.split('#').next().unwrap_or_default())).collect()
}

fn inside(directory: &str, named: &str) -> Option<String> {
    if named.is_empty() || named.starts_with(['/', '~']) {
        return None;
    }
    let mut parts: Vec<&str> = directory.split('/').filter(|name| !name.is_empty()).collect();
    for name in named.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    let path = parts.join("/");
    is_path(&path).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_text_imports_lies_in_the_tree() {
        let text = "See @docs/a.md and\n- @../b.md#part @./c.md, x@y.z @~/.ssh/id @/etc/passwd @../../out @";
        assert_eq!(imports("sub/CLAUDE.md", text), ["sub/docs/a.md", "b.md", "sub/c.md,"]);
        assert_eq!(imports("CLAUDE.md", "@AGENTS.md @../x"), ["AGENTS.md"]);
    }
}
