//! The anchor's attributes in the place of those of what is checked out: they decide what a file is checked out as, and what of a
//! change is shown.
//!
//! The repository's own attributes (`info/attributes`) count more than any file's, with every git; a setting for it (`attr.tree`)
//! came with git 2.43 alone. So what the files of the branch say is unsaid there, and what those of the anchor say follows.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::workflow::WorkspaceAccess;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::anchor::{Files, list};
use crate::git::Git;

/// Git's setting for a tree whose attributes count. An earlier agent may have set it.
const TREE: &str = "attr.tree";
const FILE: &str = ".gitattributes";
const PATTERN: &str = ":(glob)**/.gitattributes";
const DIRECTORY: &str = "info";
const NAME: &str = "attributes";
/// Git passes over a line of so many bytes or more, its end counted.
const LINE_BYTES: usize = 2048;
/// What begins the definition of a name for several attributes.
const MACRO: &[u8] = b"[attr]";
/// The one that git itself defines.
const BINARY: &[u8] = b"[attr]binary -diff -merge -text\n";
/// Attributes by which git itself goes (gitattributes(5)). A file whose name is no text says nothing else that matters.
const KNOWN: [&str; 15] = [
    "binary",
    "conflict-marker-size",
    "crlf",
    "delta",
    "diff",
    "encoding",
    "eol",
    "export-ignore",
    "export-subst",
    "filter",
    "ident",
    "merge",
    "text",
    "whitespace",
    "working-tree-encoding",
];

/// Lets the anchor's attributes count where `commit` has others, and else those of the files.
///
/// # Errors
/// [`Failure`] if git fails, there are more attributes than are looked at, or the repository's own cannot be written.
pub(crate) async fn give(git: &Git, anchor: Option<&str>, commit: &str) -> Result<(), Failure> {
    unset_tree(git).await?;
    match anchor {
        Some(anchor) if !are_alike(git, anchor, commit).await? => give_all(git, anchor, commit).await,
        Some(_) | None => put(git, None),
    }
}

/// As [`give`], in a checkout that is there already. Where agents only read, an earlier set-up command may have left files of attributes
/// in it, so the anchor's count always. Where there are more of them than can be replaced, none has run: [`overrule`] saw to that.
///
/// # Errors
/// As [`give`].
pub(crate) async fn give_again(
    git: &Git,
    anchor: Option<&str>,
    commit: &str,
    access: WorkspaceAccess,
) -> Result<(), Failure> {
    match (access, anchor) {
        (WorkspaceAccess::ReadOnly, Some(anchor)) if are_alike(git, anchor, commit).await? => {
            unset_tree(git).await?;
            put(git, replacing(git, anchor, None).await?.ok().as_deref())
        }
        (WorkspaceAccess::ReadOnly | WorkspaceAccess::ReadWrite, _) => give(git, anchor, commit).await,
    }
}

/// Lets the anchor's attributes count whatever files of attributes a set-up command writes: git heeds those that no commit has as well,
/// also where it compares two commits. This is surer than to remove them afterwards: while git looks which files were changed, one of the
/// commit's own that was changed counts too, and can have git take another for what it was. And what was built may need those beside it.
///
/// # Errors
/// As [`give`].
pub(crate) async fn overrule(git: &Git, anchor: &str, commit: &str) -> Result<(), Failure> {
    unset_tree(git).await?;
    give_all(git, anchor, commit).await
}

async fn unset_tree(git: &Git) -> Result<(), Failure> {
    // Usually it is not set.
    git.attempt(&["config", "--unset-all", TREE]).await.map(drop)
}

async fn are_alike(git: &Git, anchor: &str, commit: &str) -> Result<bool, Failure> {
    let compared = git.attempt(&["diff-tree", "-r", "--quiet", anchor, commit, "--", PATTERN]).await?;
    Ok(compared.exit.success())
}

async fn give_all(git: &Git, anchor: &str, commit: &str) -> Result<(), Failure> {
    let own = replacing(git, anchor, Some(commit)).await?.map_err(too_many)?;
    put(git, Some(&own))
}

/// The repository's own attributes that have the anchor's count, or why there can be none; `commit` if its files may be others.
async fn replacing(
    git: &Git,
    anchor: &str,
    commit: Option<&str>,
) -> Result<Result<Vec<u8>, String>, Failure> {
    let mut notes = Vec::new();
    let branch = match commit {
        Some(commit) => read(git, commit, &mut notes).await?,
        None => Files::default(),
    };
    let anchor = read(git, anchor, &mut notes).await?;
    if let Some(note) = notes.pop() {
        return Ok(Err(note));
    }
    let too_long = || format!("a line of them and its directory's name are longer than {LINE_BYTES} bytes");
    Ok(in_place_of(&branch, &anchor).ok_or_else(too_long))
}

fn put(git: &Git, own: Option<&[u8]>) -> Result<(), Failure> {
    write(&repository(git), own).map_err(|error| {
        let message = "the attributes of the workspace's repository cannot be written; begin a new session";
        Failure::new(FailureKind::PolicyDenied, message).with_evidence(error.to_string())
    })
}

/// Removes the repository's own attributes, which an earlier agent may have left.
pub(crate) fn forget(git: &Git) {
    if let Err(error) = write(&repository(git), None) {
        crate::diagnostics::say(format_args!("cannot remove the repository's own attributes: {error}"));
    }
}

fn repository(git: &Git) -> PathBuf {
    git.workspace.join(".git")
}

fn too_many(evidence: String) -> Failure {
    let message = "the attributes of the branch that steers the agent are to count, and there are more of them than can be replaced";
    Failure::new(FailureKind::PolicyDenied, message).with_evidence(evidence)
}

async fn read(git: &Git, commit: &str, notes: &mut Vec<String>) -> Result<Files, Failure> {
    let mut files = Files::default();
    let entries = list(git, commit, &[PATTERN]).await?;
    files.read(git, commit, &entries, notes).await?;
    Ok(files)
}

/// The repository's own attributes that have the anchor's count, whatever the branch's files say, or others of attributes by which git goes;
/// none if git would pass over a line of them. Pure.
fn in_place_of(branch: &Files, anchor: &Files) -> Option<Vec<u8>> {
    let (said, mut files) = (lines_of(branch), lines_of(anchor));
    let kept: BTreeSet<&[u8]> = files.iter().flat_map(|(_, line)| line.names()).collect();
    let mut names: BTreeSet<&[u8]> = KNOWN.iter().map(|name| name.as_bytes()).collect();
    names.extend(said.iter().flat_map(|(_, line)| line.names()).chain(kept.iter().copied()));
    // None that the anchor says stands for others, unless it says so itself below: a file may have any of them hide something.
    let mut own = Vec::new();
    for name in kept {
        own.extend([MACRO, name, b"\n"].concat());
    }
    own.extend(BINARY);
    for name in names {
        own.extend([b"* !", name, b"\n"].concat());
    }
    // Those of a directory count more than those above it.
    files.sort_by_key(|(directory, _)| directory.matches('/').count() + usize::from(!directory.is_empty()));
    for (directory, line) in files {
        let line = line.below(directory).unwrap_or_default();
        if line.len() > LINE_BYTES {
            return None;
        }
        own.extend(line);
    }
    Some(own)
}

/// The lines of all files, each with the directory it is for.
fn lines_of(files: &Files) -> Vec<(&str, Line<'_>)> {
    let mut lines = Vec::new();
    for (path, (_, content)) in &files.contents {
        let directory = path.strip_suffix(FILE).unwrap_or_default().trim_end_matches('/');
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        lines.extend(
            content.split(|byte| *byte == b'\n').filter_map(Line::read).map(|line| (directory, line)),
        );
    }
    lines
}

/// A line of a file of attributes: a pattern, or the name that is defined, and states of attributes.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    pattern: &'a [u8],
    states: &'a [u8],
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

impl<'a> Line<'a> {
    fn read(line: &'a [u8]) -> Option<Self> {
        let start = line.iter().position(|byte| !is_blank(*byte))?;
        // Git itself passes over longer ones.
        let line = line.get(start..).filter(|line| !line.starts_with(b"#") && line.len() < LINE_BYTES)?;
        let quoted = line.starts_with(b"\"").then(|| end_of_quoted(line)).flatten();
        let word = || line.iter().position(|byte| is_blank(*byte)).unwrap_or(line.len());
        let (pattern, states) = line.split_at(quoted.unwrap_or_else(word));
        Some(Self { pattern, states })
    }

    /// What is between the pattern's quotes, if it has some.
    fn quoted(&self) -> Option<&'a [u8]> {
        self.pattern.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\""))
    }

    /// The name that it defines for several attributes.
    fn defined(&self) -> Option<&'a [u8]> {
        let name = self.quoted().unwrap_or(self.pattern).strip_prefix(MACRO)?;
        Some(name).filter(|name| !name.is_empty())
    }

    /// The attributes that it says something of.
    fn names(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let states = self.states.split(|byte| is_blank(*byte));
        let names = states.map(|state| {
            let name = state.split(|byte| *byte == b'=').next().unwrap_or_default();
            name.strip_prefix(b"-").or_else(|| name.strip_prefix(b"!")).unwrap_or(name)
        });
        names.chain(self.defined()).filter(|name| is_name(name))
    }

    /// The same, said of the whole repository by a directory's file; none if git would not take it there.
    fn below(&self, directory: &str) -> Option<Vec<u8>> {
        if directory.is_empty() {
            return Some([self.pattern, self.states, b"\n"].concat());
        }
        let inner = self.quoted().map_or_else(|| in_quotes(self.pattern), <[u8]>::to_vec);
        if inner.starts_with(b"!") || self.defined().is_some() {
            return None;
        }
        let above = in_quotes(&literally(directory));
        let is_path = inner.strip_suffix(b"/").unwrap_or(&inner).contains(&b'/');
        let between: &[u8] = if is_path { b"/" } else { b"/**/" };
        let inner = inner.strip_prefix(b"/").unwrap_or(&inner);
        Some([b"\"/", above.as_slice(), between, inner, b"\"", self.states, b"\n"].concat())
    }
}

/// Where a quoted text ends, behind its last quote.
fn end_of_quoted(line: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in line.iter().enumerate().skip(1) {
        if *byte == b'"' && !escaped {
            return Some(at + 1);
        }
        escaped = *byte == b'\\' && !escaped;
    }
    None
}

/// As git quotes a text, without the quotes.
fn in_quotes(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .flat_map(|byte| matches!(byte, b'"' | b'\\').then_some(b'\\').into_iter().chain([*byte]))
        .collect()
}

/// A pattern that is this very path.
fn literally(path: &str) -> Vec<u8> {
    let special = |byte: &u8| matches!(byte, b'*' | b'?' | b'[' | b'\\');
    path.bytes().flat_map(|byte| special(&byte).then_some(b'\\').into_iter().chain([byte])).collect()
}

/// Whether git takes it for the name of an attribute; it passes over a line that has another, and so would of what is unsaid.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && !name.starts_with(b"-")
        && !name.starts_with(b"builtin_")
}

/// Writes the repository's own attributes, or removes them. An earlier agent may have put links on the way, which are not followed.
fn write(repository: &Path, content: Option<&[u8]>) -> io::Result<()> {
    let directory = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let repository = open(repository, directory, Mode::empty())?;
    let place = match openat(&repository, DIRECTORY, directory, Mode::empty()) {
        Err(Errno::ENOENT) if content.is_none() => return Ok(()),
        Err(Errno::ENOENT) => {
            mkdirat(&repository, DIRECTORY, Mode::from_bits_truncate(0o755))?;
            openat(&repository, DIRECTORY, directory, Mode::empty())?
        }
        opened => opened?,
    };
    match unlinkat(&place, NAME, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(content) = content else { return Ok(()) };
    let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(&place, NAME, new, Mode::from_bits_truncate(0o644))?;
    std::fs::File::from(file).write_all(content)
}

#[cfg(test)]
#[path = "attributes_tests.rs"]
mod tests;
