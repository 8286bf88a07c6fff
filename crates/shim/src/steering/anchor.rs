//! The anchor's files, read from its commit: git looks them up, follows links within the tree alone, and no work tree is
//! involved.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use caisson_domain::run::{Failure, cut};

use super::Contents;
use crate::failure::git_command;
use crate::git::{Git, is_object_name};
use crate::plain_file;

/// Most files of an anchor that are used.
pub(super) const FILES: usize = 1000;
/// Longest of them, in bytes.
pub(super) const FILE_BYTES: u64 = 512 * 1024;
/// All of them together, in bytes; less than what is kept of a command's output.
pub(super) const ALL_BYTES: u64 = 2 * 1024 * 1024;

/// Where Claude Code 2.1.330 looks for instructions.
pub(super) const INSTRUCTIONS: [&str; 4] =
    [":(glob)**/CLAUDE.md", ":(glob)**/CLAUDE.local.md", ":(glob)**/AGENTS.md", ":(glob).claude/rules/**"];
/// Where it looks for settings, and what they name.
pub(super) const SETTINGS: [&str; 2] = [":(glob).claude/**", ":(literal).mcp.json"];
/// Everything that would steer an agent or its git, in any spelling, if it were the anchor's.
const WATCHED: [&str; 9] = [
    ":(glob,icase)**/CLAUDE.md",
    ":(glob,icase)**/CLAUDE.local.md",
    ":(glob,icase)**/AGENTS.md",
    ":(glob,icase)**/.claude",
    ":(glob,icase)**/.claude/**",
    ":(icase).mcp.json",
    ":(glob,icase)**/.gitattributes",
    ":(icase).gitmodules",
    ":(icase).lfsconfig",
];

/// A file in the anchor's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its path, of whole names.
    pub(super) path: String,
    /// Whether it may be run.
    pub(super) executable: bool,
}

/// Lists the anchor's files that match.
///
/// # Errors
/// [`Failure`] if git fails.
pub(super) async fn list(git: &Git, anchor: &str, patterns: &[&str]) -> Result<Vec<Entry>, Failure> {
    let nothing = git.run(&["hash-object", "-t", "tree", "--stdin"]).await?;
    let changes = [&["diff-tree", "-r", "-z", "--raw", &nothing, anchor, "--"], patterns].concat();
    let output = git.attempt(&changes).await?;
    if !output.exit.success() {
        return Err(git_command("diff-tree", &output.stderr));
    }
    Ok(read_raw(&output.stdout))
}

/// Paths of what would steer and is another one at `HEAD`.
///
/// # Errors
/// [`Failure`] if git fails.
pub(super) async fn differing(git: &Git, anchor: &str) -> Result<Vec<String>, Failure> {
    let patterns = WATCHED.as_slice();
    let compare = [&["diff-tree", "-r", "-z", "--name-only", anchor, "HEAD", "--"], patterns].concat();
    let output = git.attempt(&compare).await?;
    if !output.exit.success() {
        return Err(git_command("diff-tree", &output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

/// Reads `git diff-tree -r -z --raw` against nothing; pure. Submodules and names that are no text are left out.
fn read_raw(output: &[u8]) -> Vec<Entry> {
    let mut records = output.split(|byte| *byte == 0).map(std::str::from_utf8);
    let mut entries = Vec::new();
    while let (Some(about), Some(path)) = (records.next(), records.next()) {
        let (Ok(about), Ok(path)) = (about, path) else { continue };
        let executable = match about.split(' ').nth(1) {
            Some("100644") => false,
            // What a link leads to has a mode of its own, which git does not tell.
            Some("100755" | "120000") => true,
            Some(_) | None => continue,
        };
        if is_path(path) {
            entries.push(Entry { path: path.to_owned(), executable });
        }
    }
    entries
}

/// Whether a path stays below where it is put; pure. A forged tree may hold any names.
pub(super) fn is_path(path: &str) -> bool {
    path.split('/').all(|name| !matches!(name, "" | "." | ".."))
        && !path.chars().any(char::is_control)
        && path.len() < 1024
}

/// Files of the anchor with what is in them.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) contents: Contents,
    bytes: u64,
}

impl Files {
    /// Reads files of the anchor, links among them followed within its tree. What is no file there, or more than the
    /// bounds allow, is left out; the latter is noted.
    ///
    /// # Errors
    /// [`Failure`] if git fails.
    pub(super) async fn read(
        &mut self,
        git: &Git,
        anchor: &str,
        entries: &[Entry],
        notes: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let new: Vec<&Entry> =
            entries.iter().filter(|entry| !self.contents.contains_key(&entry.path)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let checked = ask(git, anchor, "--batch-check", &new).await?;
        let mut wanted = Vec::new();
        for (entry, answer) in new.into_iter().zip(checked.answers(false)) {
            let Answer::Blob { bytes, .. } = answer else { continue };
            if bytes > FILE_BYTES
                || self.bytes + bytes > ALL_BYTES
                || self.contents.len() + wanted.len() >= FILES
            {
                let path = cut(&entry.path, 200);
                notes.push(format!(
                    "{path} is left out: at most {FILES} files of {FILE_BYTES} bytes, {ALL_BYTES} bytes in all, steer the agent"
                ));
                continue;
            }
            self.bytes += bytes;
            wanted.push(entry);
        }
        let read = ask(git, anchor, "--batch", &wanted).await?;
        for (entry, answer) in wanted.into_iter().zip(read.answers(true)) {
            if let Answer::Blob { content, .. } = answer {
                self.contents.insert(entry.path.clone(), (entry.clone(), content.to_vec()));
            }
        }
        Ok(())
    }

    /// Writes them below a directory that the shim has made.
    ///
    /// # Errors
    /// That of the operating system.
    pub(super) fn write(&self, place: &Path) -> io::Result<()> {
        for (path, (entry, content)) in &self.contents {
            let file = place.join(path);
            if let Some(parent) = file.parent() {
                fs::create_dir_all(parent)?;
            }
            plain_file::write(&file, content)?;
            if entry.executable {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(())
    }

    /// A file as text.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let (_, content) = self.contents.get(path)?;
        Some(String::from_utf8_lossy(content).into_owned())
    }
}

/// What `git cat-file` prints for a list of names.
struct Said(Vec<u8>);

/// What it prints for one.
#[derive(Debug, PartialEq, Eq)]
enum Answer<'a> {
    /// A file.
    Blob { bytes: u64, content: &'a [u8] },
    /// A directory, nothing, or a link that leads out of the tree.
    Other,
}

async fn ask(git: &Git, anchor: &str, how: &str, entries: &[&Entry]) -> Result<Said, Failure> {
    if entries.is_empty() {
        return Ok(Said(Vec::new()));
    }
    let names: Vec<String> = entries.iter().map(|entry| format!("{anchor}:{}\n", entry.path)).collect();
    let mut command = git.command(&["cat-file", how, "--follow-symlinks"])?;
    let output = git.answer(&mut command, names.concat().as_bytes()).await?;
    if !output.exit.success() || output.cut {
        return Err(git_command("cat-file", &output.stderr));
    }
    Ok(Said(output.stdout))
}

impl Said {
    fn answers(&self, with_content: bool) -> Answers<'_> {
        Answers { rest: &self.0, with_content }
    }
}

struct Answers<'a> {
    rest: &'a [u8],
    with_content: bool,
}

impl<'a> Answers<'a> {
    fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(bytes.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn line(&mut self) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |end| end + 1);
        self.take(end)
    }
}

impl<'a> Iterator for Answers<'a> {
    type Item = Answer<'a>;

    fn next(&mut self) -> Option<Answer<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let line = String::from_utf8_lossy(self.line()).into_owned();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let size = words.last().and_then(|size| size.parse::<u64>().ok()).unwrap_or_default();
        let long = usize::try_from(size).unwrap_or(usize::MAX);
        match words.as_slice() {
            ["symlink" | "dangling" | "loop" | "notdir", _] => {
                self.take(long);
                self.line();
                Some(Answer::Other)
            }
            [id, kind @ ("blob" | "tree" | "commit" | "tag"), _] if is_object_name(id) => {
                let content = if self.with_content { self.take(long) } else { &[] };
                if self.with_content {
                    self.line();
                }
                Some(if *kind == "blob" { Answer::Blob { bytes: size, content } } else { Answer::Other })
            }
            _ => Some(Answer::Other),
        }
    }
}

/// The anchor's directories in which files are, each with the names there; pure.
pub(super) fn by_directory(entries: Vec<Entry>) -> BTreeMap<String, Vec<Entry>> {
    let mut directories: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        let directory = entry.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let directory = match directory.strip_suffix(".claude") {
            Some(above) if above.is_empty() || above.ends_with('/') => above.trim_end_matches('/'),
            Some(_) | None => directory,
        };
        directories.entry(directory.to_owned()).or_default().push(entry);
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_links_of_a_tree_are_listed_and_nothing_else() {
        let record = |mode: &str, path: &str| format!(":000000 {mode} 0 1 A\0{path}\0");
        let listing = [
            record("100644", "CLAUDE.md"),
            record("100755", ".claude/hooks/a b.sh"),
            record("120000", "sub/CLAUDE.md"),
            record("160000", ".claude/module"),
            record("100644", "../CLAUDE.md"),
            record("100644", "a//CLAUDE.md"),
            record("100644", "a\nb/CLAUDE.md"),
        ]
        .concat();
        let entries = read_raw(listing.as_bytes());
        let listed: Vec<_> = entries.iter().map(|entry| (entry.path.as_str(), entry.executable)).collect();
        assert_eq!(listed, [("CLAUDE.md", false), (".claude/hooks/a b.sh", true), ("sub/CLAUDE.md", true)]);
        assert_eq!(read_raw(b""), []);
    }

    #[test]
    fn every_answer_of_cat_file_is_told_apart() {
        let id = "a".repeat(40);
        let said = format!(
            "{id} blob 4\none\n\nsymlink 8\n../../xx\nc:x blob missing\ndangling 3\na:b\n{id} tree 2\n\n\n\n{id} blob 0\n\nloop 1\nx\n"
        );
        let said = Said(said.into_bytes());
        let blob = |bytes, content| Answer::Blob { bytes, content };
        let answers: Vec<_> = said.answers(true).collect();
        let other = || Answer::Other;
        assert_eq!(
            answers,
            [blob(4, b"one\n".as_slice()), other(), other(), other(), other(), blob(0, b""), other()]
        );
        let checked = Said(format!("{id} blob 4\nx missing\n{id} blob 7\n").into_bytes());
        assert_eq!(checked.answers(false).collect::<Vec<_>>(), [blob(4, b""), other(), blob(7, b"")]);
        // Cut off, it ends.
        assert_eq!(Said(format!("{id} blob 4\non").into_bytes()).answers(true).count(), 1);
    }

    #[test]
    fn what_lies_in_a_claude_directory_belongs_to_the_one_above() {
        let entry = |path: &str| Entry { path: path.to_owned(), executable: false };
        let paths = [
            "CLAUDE.md",
            ".claude/CLAUDE.md",
            "a/b/.claude/CLAUDE.md",
            "a/b/AGENTS.md",
            "x.claude/CLAUDE.md",
        ];
        let directories = by_directory(paths.map(entry).to_vec());
        let counts: Vec<_> = directories.iter().map(|(name, files)| (name.as_str(), files.len())).collect();
        assert_eq!(counts, [("", 2), ("a/b", 2), ("x.claude", 1)]);
    }
}
