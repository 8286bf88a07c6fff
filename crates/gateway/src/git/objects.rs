//! Git's objects as `git cat-file --batch` prints them, and what a push is made of: pure.
//!
//! Sources: git-cat-file(1) "BATCH OUTPUT", gitformat-commit and the tree format in Git's own documentation.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use caisson_domain::checks::{Check, stands};

use super::commit::{CommitFacts, PARENTS};
use super::scan::{Found, scan};
use super::secrets::Secrets;
use super::submodules::is_gitmodules;
use crate::bounds::PushBounds;

/// What `cat-file` is asked to print before each object.
pub(super) const FORMAT: &str = "--batch=%(objectname) %(objecttype) %(objectsize) %(deltabase)";
/// Longest line before an object, in bytes.
const HEAD_BYTES: u64 = 256;
/// Modes that git writes into trees: of directories, files, programs, links and submodules; and the one of files that only
/// histories from git's beginnings have, and that git's own check lets pass for their sake.
const MODES: [&[u8]; 6] = [b"40000", b"100644", b"100755", b"120000", b"160000", b"100664"];
/// The bits of a mode that tell its kind, and those of a directory.
const KIND_BITS: u32 = 0o170_000;
const DIRECTORY_BITS: u32 = 0o040_000;

/// Git's own tree with nothing in it, by the digits of an id.
pub(super) const EMPTY_TREE: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
pub(super) const EMPTY_TREE_LONG: &str = "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321";

/// An object's id: SHA-1, filled up with zeros, or SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id([u8; 32]);

impl Id {
    /// From hexadecimal digits; none if it is no id, or is all zeros.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = hex::decode(text).ok().filter(|bytes| matches!(bytes.len(), 20 | 32))?;
        Self::of(&bytes)
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let mut id = [0; 32];
        id.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (id != [0; 32]).then_some(Self(id))
    }

    /// Its digits in a repository whose ids have `bytes` bytes.
    pub(super) fn hex(&self, bytes: usize) -> String {
        hex::encode(&self.0[..bytes.min(32)])
    }
}

/// What there is to say against a push as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Excess {
    #[error("it has more than {0} commits; push fewer at once")]
    Commits(usize),
    #[error("its directories take more than {0} bytes; push fewer commits at once")]
    Trees(u64),
    #[error("its chains of deltas are longer than {0}; repack with git's own settings")]
    DeltaDepth(usize),
    #[error("its directories lie more than {0} deep")]
    PathDepth(usize),
    #[error("a checkout of it would have more than {0} files")]
    Paths(u64),
    #[error(
        "its versions of .gitmodules take more than {bytes} bytes or name more than {urls} URLs; push fewer commits at once"
    )]
    Gitmodules { bytes: u64, urls: usize },
    #[error(
        "what it brings differs in more than {0} bytes of paths from the branches that it is compared with; put the work on top \
         of the run's base branch"
    )]
    Differences(u64),
    #[error("a commit in it has more than {0} parents, or one of them twice; make the commits with git")]
    Parents(usize),
    #[error("more than {0} of its directories are the repository's; push fewer commits at once")]
    Directories(usize),
    #[error(
        "a directory in it has an entry that git does not write, by its mode or its object; make the commits with git"
    )]
    Entry,
}

/// Why a listing could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Excess(#[from] Excess),
    #[error("git's listing of the objects was cut or cannot be read")]
    Cut(#[from] io::Error),
}

/// What is read of a tree.
#[derive(Debug, Default)]
struct TreeFacts {
    /// Entries that are no trees.
    files: u64,
    trees: Vec<Id>,
    /// Whether it has submodules written down.
    submodules: bool,
}

/// A secret in an object, which may have been there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) object: Id,
    pub(super) found: Found,
}

/// Everything in a push.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) commits: HashMap<Id, CommitFacts>,
    trees: HashMap<Id, TreeFacts>,
    pub(super) blobs: HashSet<Id>,
    /// Files larger than they may be, with their size.
    pub(super) oversize: Vec<(Id, u64)>,
    /// In files.
    pub(super) candidates: Vec<Candidate>,
    /// In commits, tags and names of files: these are new, whatever the files are.
    pub(super) elsewhere: Vec<Candidate>,
    /// More than were kept.
    pub(super) too_many_candidates: bool,
    /// Whether a directory has submodules written down.
    pub(super) submodules: bool,
    /// What in it git would not have written, so that git and others may read it as something else: an entry of a directory, or
    /// the parents of a commit.
    odd: Option<Excess>,
    bases: HashMap<Id, Id>,
    tree_bytes: u64,
}

/// What to look for.
#[derive(Clone)]
pub(super) struct Looking {
    pub(super) secrets: Arc<Secrets>,
    pub(super) bounds: PushBounds,
    pub(super) file_bytes: u64,
}

/// One line before an object.
struct Head {
    id: Id,
    kind: Kind,
    size: u64,
    base: Option<Id>,
    id_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Commit,
    Tree,
    Blob,
    Tag,
}

impl Contents {
    /// Reads a listing to its end.
    ///
    /// # Errors
    /// [`ReadError`] if the push holds too much, or the listing breaks off.
    pub(super) fn read(mut listing: impl BufRead, looking: &Looking) -> Result<Self, ReadError> {
        let mut contents = Self::default();
        let mut buffer = Vec::new();
        while let Some(head) = head(&mut listing)? {
            contents.take(&head, &mut listing, looking, &mut buffer)?;
            let mut end = [0];
            listing.read_exact(&mut end)?;
            if end != *b"\n" {
                return Err(malformed().into());
            }
        }
        contents.check(&looking.bounds)?;
        Ok(contents)
    }

    fn take(
        &mut self,
        head: &Head,
        listing: &mut impl BufRead,
        looking: &Looking,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        if let Some(base) = head.base {
            self.bases.insert(head.id, base);
        }
        let mut body = listing.take(head.size);
        if head.kind == Kind::Blob {
            self.blobs.insert(head.id);
            if head.size > looking.file_bytes {
                self.oversize.push((head.id, head.size));
                io::copy(&mut body, &mut io::sink())?;
            } else {
                let found = scan(&looking.secrets, &mut body, buffer)?;
                self.keep(head.id, found, &looking.bounds, |contents| &mut contents.candidates);
            }
        } else {
            self.tree_bytes = self.tree_bytes.saturating_add(head.size);
            if self.tree_bytes > looking.bounds.tree_bytes {
                return Err(Excess::Trees(looking.bounds.tree_bytes).into());
            }
            let mut bytes = Vec::new();
            body.read_to_end(&mut bytes)?;
            let found = scan(&looking.secrets, &bytes[..], buffer)?;
            self.keep(head.id, found, &looking.bounds, |contents| &mut contents.elsewhere);
            self.parse(head, &bytes, &looking.bounds)?;
        }
        if body.limit() > 0 {
            return Err(malformed().into());
        }
        Ok(())
    }

    fn parse(&mut self, head: &Head, bytes: &[u8], bounds: &PushBounds) -> Result<(), ReadError> {
        match head.kind {
            Kind::Commit => {
                let facts = CommitFacts::read(bytes);
                if facts.has_odd_parents() {
                    self.odd = Some(Excess::Parents(PARENTS));
                }
                self.commits.insert(head.id, facts);
                if self.commits.len() > bounds.commits {
                    return Err(Excess::Commits(bounds.commits).into());
                }
            }
            Kind::Tree => {
                let (mut facts, mut is_odd) = (TreeFacts::default(), false);
                let mut entries = Entries { rest: bytes, id_bytes: head.id_bytes };
                for entry in &mut entries {
                    is_odd |= !MODES.contains(&entry.mode);
                    if is_directory(entry.mode) {
                        facts.trees.push(entry.id);
                    } else {
                        facts.files += 1;
                        facts.submodules |= is_gitmodules(entry.name);
                    }
                }
                self.submodules |= facts.submodules;
                if is_odd || !entries.rest.is_empty() {
                    self.odd = Some(Excess::Entry);
                }
                self.trees.insert(head.id, facts);
            }
            Kind::Blob | Kind::Tag => {}
        }
        Ok(())
    }

    fn keep(
        &mut self,
        object: Id,
        found: Vec<Found>,
        bounds: &PushBounds,
        place: impl Fn(&mut Self) -> &mut Vec<Candidate>,
    ) {
        for found in found {
            if self.candidates.len() + self.elsewhere.len() == bounds.candidates {
                self.too_many_candidates = true;
                return;
            }
            place(self).push(Candidate { object, found });
        }
    }

    fn check(&self, bounds: &PushBounds) -> Result<(), Excess> {
        if !stands(Check::PushBounds) {
            return Ok(());
        }
        if let Some(odd) = &self.odd {
            return Err(odd.clone());
        }
        if self.has_deep_delta(bounds.delta_depth) {
            return Err(Excess::DeltaDepth(bounds.delta_depth));
        }
        let mut known: HashMap<Id, Size> = HashMap::new();
        for root in self.trees.keys() {
            let size = self.measure(*root, &mut known);
            if size.depth > bounds.path_depth {
                return Err(Excess::PathDepth(bounds.path_depth));
            }
            if size.paths > bounds.paths {
                return Err(Excess::Paths(bounds.paths));
            }
        }
        Ok(())
    }

    fn has_deep_delta(&self, most: usize) -> bool {
        let mut depths: HashMap<Id, usize> = HashMap::new();
        for start in self.bases.keys() {
            let mut chain = Vec::new();
            let mut at = *start;
            let mut depth = loop {
                if let Some(depth) = depths.get(&at) {
                    break *depth;
                }
                let Some(base) = self.bases.get(&at) else { break 0 };
                chain.push(at);
                at = *base;
                if chain.len() > most {
                    return true;
                }
            };
            for object in chain.into_iter().rev() {
                depth += 1;
                depths.insert(object, depth);
            }
            if depth > most {
                return true;
            }
        }
        false
    }

    /// How deep and how large a tree is, as far as it is in the push. Trees hold one another by their hashes, so that
    /// none holds itself; each is measured once.
    fn measure(&self, root: Id, known: &mut HashMap<Id, Size>) -> Size {
        let mut open = vec![root];
        while let Some(at) = open.last().copied() {
            let Some(facts) = self.trees.get(&at).filter(|_| !known.contains_key(&at)) else {
                open.pop();
                continue;
            };
            let inner = facts.trees.iter().filter(|tree| self.trees.contains_key(tree));
            let unknown: Vec<Id> = inner.filter(|tree| !known.contains_key(tree)).copied().collect();
            if unknown.is_empty() {
                let mut size = Size { depth: 1, paths: facts.files };
                for tree in &facts.trees {
                    let inner = known.get(tree).copied().unwrap_or(Size { depth: 1, paths: 1 });
                    size.depth = size.depth.max(inner.depth + 1);
                    size.paths = size.paths.saturating_add(inner.paths);
                }
                known.insert(at, size);
                open.pop();
            } else {
                open.extend(unknown);
            }
        }
        known.get(&root).copied().unwrap_or_default()
    }

    /// The parents of the push's commits that are not in it.
    pub(super) fn boundary(&self) -> Vec<Id> {
        let parents = self.commits.values().flat_map(|facts| &facts.parents);
        let outside: HashSet<Id> = parents.filter(|id| !self.commits.contains_key(id)).copied().collect();
        let mut outside: Vec<Id> = outside.into_iter().collect();
        outside.sort_unstable();
        outside
    }

    /// Whole directories of the push's commits that are not in it: the host has them.
    pub(super) fn outer_roots(&self) -> BTreeSet<Id> {
        let roots = self.commits.values().filter_map(|facts| facts.tree);
        roots.filter(|tree| !self.trees.contains_key(tree) && !is_empty_tree(*tree)).collect()
    }

    /// The same, with those that directories of the push have in them.
    ///
    /// # Errors
    /// [`Excess::Directories`].
    pub(super) fn outer_directories(&self, most: usize) -> Result<BTreeSet<Id>, Excess> {
        let mut outer = BTreeSet::new();
        let inner = self.trees.values().flat_map(|facts| &facts.trees).copied();
        for tree in self.outer_roots().into_iter().chain(inner) {
            if !self.trees.contains_key(&tree) && !is_empty_tree(tree) {
                outer.insert(tree);
            }
            if outer.len() > most {
                return Err(Excess::Directories(most));
            }
        }
        Ok(outer)
    }

    /// Whether the directory has submodules written down; none if it is not in the push.
    pub(super) fn names_submodules(&self, tree: Id) -> Option<bool> {
        self.trees.get(&tree).map(|facts| facts.submodules)
    }

    /// Whether `to` comes before `from`, as far as the commits of the push say, or is it.
    pub(super) fn reaches(&self, from: Id, to: Id) -> bool {
        reaches(from, to, |id| self.commits.get(&id).map(|facts| facts.parents.as_slice()))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    depth: usize,
    paths: u64,
}

/// Whether `to` is `from` or comes before it.
pub(super) fn reaches<'a>(from: Id, to: Id, parents: impl Fn(Id) -> Option<&'a [Id]>) -> bool {
    let mut seen = HashSet::from([from]);
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        if at == to {
            return true;
        }
        let before = parents(at).unwrap_or_default().iter().copied();
        open.extend(before.filter(|id| seen.insert(*id)));
    }
    false
}

/// Whether it is the directory with nothing in it, which every git has.
fn is_empty_tree(tree: Id) -> bool {
    [EMPTY_TREE, EMPTY_TREE_LONG].into_iter().any(|empty| Id::parse(empty) == Some(tree))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a listing that is not git's")
}

/// The line before an object; none at the end.
fn head(listing: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut line = Vec::new();
    let count = listing.take(HEAD_BYTES).read_until(b'\n', &mut line)?;
    if count == 0 {
        return Ok(None);
    }
    let parse = || {
        let text = std::str::from_utf8(&line).ok()?.strip_suffix('\n')?;
        let mut parts = text.split(' ');
        let name = parts.next()?;
        let id = Id::parse(name)?;
        let kind = match parts.next()? {
            "commit" => Kind::Commit,
            "tree" => Kind::Tree,
            "blob" => Kind::Blob,
            "tag" => Kind::Tag,
            _ => return None,
        };
        let size = parts.next()?.parse().ok()?;
        Some(Head { id, kind, size, base: Id::parse(parts.next()?), id_bytes: name.len() / 2 })
    };
    parse().map(Some).ok_or_else(malformed)
}

/// Whether a directory has submodules written down, whose ids have `id_bytes` bytes. One that cannot be read to its end may.
pub(super) fn tree_names_submodules(tree: &[u8], id_bytes: usize) -> bool {
    let mut entries = Entries { rest: tree, id_bytes };
    let names = entries.any(|entry| !is_directory(entry.mode) && is_gitmodules(entry.name));
    names || !entries.rest.is_empty()
}

/// Whether git takes the mode for a directory's: by its kind alone, in the 16 bits that it keeps of it.
fn is_directory(mode: &[u8]) -> bool {
    let digits = mode.iter().map(|digit| u32::from(digit.wrapping_sub(b'0')));
    let mode = digits.fold(0_u32, |mode, digit| mode.wrapping_shl(3).wrapping_add(digit));
    mode & KIND_BITS == DIRECTORY_BITS
}

/// One entry of a tree.
struct Entry<'a> {
    mode: &'a [u8],
    name: &'a [u8],
    id: Id,
}

/// `mode SP name NUL id`, again and again. What is malformed ends it, with a rest.
struct Entries<'a> {
    rest: &'a [u8],
    id_bytes: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let space = memchr::memchr(b' ', self.rest)?;
        let (mode, rest) = (&self.rest[..space], &self.rest[space + 1..]);
        let end = memchr::memchr(0, rest)?;
        let (name, rest) = (&rest[..end], &rest[end + 1..]);
        let (id, rest) = rest.split_at_checked(self.id_bytes)?;
        let entry = Entry { mode, name, id: Id::of(id)? };
        self.rest = rest;
        Some(entry)
    }
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
