//! What the commits of a push change, against what the repository had: for what cannot be told from the push alone.
//!
//! A push holds only what is new. Whether a secret was there before, whether a path was changed or merely lies in the same
//! directory, and which commit brought something, is told by the trees that its commits come after; they are fetched when
//! there is such a question, and only then.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::Upstream;
use super::apart::{Stopped, work};
use super::base::{self, Abilities, BaseError, Wanted};
use super::commit::CommitFacts;
use super::helper::{Helper, HelperError};
use super::objects::{Contents, EMPTY_TREE, EMPTY_TREE_LONG, Excess, FORMAT, Id, Looking, ReadError};
use super::quarantine::{Quarantine, Quarantines, Room};
use crate::bounds::Bounds;

/// Why a push could not be compared.
#[derive(Debug, thiserror::Error)]
pub(super) enum CompareError {
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the server's disk could not be written")]
    Disk(#[from] std::io::Error),
    #[error("git's list of changes cannot be read")]
    Changes,
    #[error("the git host does not give all files of before that it changes; push fewer commits at once")]
    Missing,
    /// More than is compared.
    #[error(transparent)]
    Excess(#[from] Excess),
    #[error("the git host does not say where its branches are: {0}")]
    Branches(String),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Most commits that the host is told of as known.
const HAVES: usize = 100;
/// One path that a commit has otherwise than every one of its parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) commit: Id,
    pub(super) path: Vec<u8>,
    /// None if it is gone, or is no file.
    pub(super) new: Option<Id>,
    /// In the parents.
    pub(super) old: Vec<Id>,
}

/// What a push changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) all: Arc<Vec<Change>>,
    /// Every file that a commit's parents have and it has not, or has otherwise.
    before: HashMap<Id, HashSet<Id>>,
}

/// Compares one push.
pub(super) struct Comparison<'a> {
    pub(super) helper: &'a Helper,
    pub(super) quarantines: &'a Quarantines,
    pub(super) quarantine: &'a Quarantine,
    pub(super) upstream: &'a Upstream,
    pub(super) bounds: &'a Bounds,
    pub(super) looking: Looking,
    /// Digits of an id.
    pub(super) digits: usize,
}

/// What was fetched to compare with.
pub(super) struct Base {
    pub(super) directory: PathBuf,
    /// Of the host, once it was asked.
    abilities: Option<Abilities>,
    /// Commits that were fetched.
    fetched: BTreeSet<Id>,
    packs: u32,
}

impl Base {
    pub(super) fn at(directory: PathBuf, abilities: Option<Abilities>) -> Self {
        Self { directory, abilities, fetched: BTreeSet::new(), packs: 0 }
    }
}

impl Comparison<'_> {
    fn room(&self) -> Room {
        let bounds = &self.bounds.push;
        Room { bytes: bounds.base_bytes, objects: u32::MAX, free_bytes: bounds.free_bytes }
    }

    pub(super) fn hex(&self, id: Id) -> String {
        id.hex(self.digits / 2)
    }

    /// Fetches what the push's commits come after, and `others`, without files where the host can leave them out.
    pub(super) async fn base(&self, contents: &Contents, others: &[Id]) -> Result<Base, CompareError> {
        // Beside the push's own objects, where git finds them.
        let mut base = Base::at(self.quarantine.directory.clone(), None);
        let objects: Vec<Id> = contents.boundary().into_iter().chain(others.iter().copied()).collect();
        self.have_commits(&mut base, contents, &objects).await?;
        Ok(base)
    }

    /// Makes sure that these commits can be compared.
    pub(super) async fn have_commits(
        &self,
        base: &mut Base,
        contents: &Contents,
        commits: &[Id],
    ) -> Result<(), CompareError> {
        let is_here = |id: &Id| contents.commits.contains_key(id) || base.fetched.contains(id);
        let missing: BTreeSet<Id> = commits.iter().copied().filter(|id| !is_here(id)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let filter = self.abilities(base).await?.filter.then_some("blob:none");
        let objects = missing.iter().map(|id| self.hex(*id)).collect();
        self.fetch(base, &Wanted { objects, alone: true, filter, have: &[] }).await?;
        base.fetched.extend(missing);
        Ok(())
    }

    /// What the host can do; it is asked once.
    pub(super) async fn abilities(&self, base: &mut Base) -> Result<Abilities, CompareError> {
        if let Some(abilities) = base.abilities {
            return Ok(abilities);
        }
        let abilities = base::abilities(self.upstream).await?;
        base.abilities = Some(abilities);
        Ok(abilities)
    }

    pub(super) async fn fetch(&self, base: &mut Base, wanted: &Wanted<'_>) -> Result<(), CompareError> {
        let pack = format!("objects/pack/fetched-{}.pack", base.packs);
        base.packs += 1;
        base::fetch(self.upstream, wanted, &base.directory.join(&pack), self.room()).await?;
        self.helper.run(&base.directory, &["index-pack", &pack], b"", self.bounds).await?;
        Ok(())
    }

    /// Whether `old` comes before the push although no commit of the push says so: by what the repository has itself.
    pub(super) async fn comes_after(
        &self,
        contents: &Contents,
        new: Id,
        old: Id,
    ) -> Result<bool, CompareError> {
        let mut ends = contents.boundary();
        if !contents.commits.contains_key(&new) {
            ends.push(new);
        }
        let theirs = self.history(&ends, &[old], "history").await?;
        let parents = |id| {
            let known = contents.commits.get(&id).or_else(|| theirs.commits.get(&id));
            known.map(|facts| facts.parents.as_slice())
        };
        Ok(super::objects::reaches(new, old, parents))
    }

    /// Whether `old` comes before one of `tips`, or is it, by what the repository has itself. `place` is looked at once.
    pub(super) async fn is_before(&self, tips: &[Id], old: Id, place: &str) -> Result<bool, CompareError> {
        if tips.is_empty() {
            return Ok(false);
        }
        let theirs = self.history(tips, &[old], place).await?;
        Ok(tips.iter().any(|tip| theirs.reaches(*tip, old)))
    }

    /// The commits of the push that these have before them, or are. Git sends what the host has already where it does not know
    /// that, as when the branch that the work began from has gone on.
    pub(super) async fn upstream_commits(
        &self,
        contents: &Contents,
        tips: &[Id],
    ) -> Result<HashSet<Id>, CompareError> {
        if tips.is_empty() {
            return Ok(HashSet::new());
        }
        let theirs = self.history(tips, &haves(contents.boundary()), "branches").await?;
        Ok(contents.commits.keys().filter(|id| theirs.commits.contains_key(id)).copied().collect())
    }

    /// The commits that these have before them and `have` have not, as the repository has them.
    async fn history(&self, ends: &[Id], have: &[Id], place: &str) -> Result<Contents, CompareError> {
        let directory = self.quarantines.make_within(self.quarantine, place, self.digits).await?;
        let abilities = base::abilities(self.upstream).await?;
        let mut base = Base::at(directory, Some(abilities));
        let objects = ends.iter().map(|id| self.hex(*id)).collect();
        let have: Vec<String> = have.iter().map(|id| self.hex(*id)).collect();
        let filter = abilities.filter.then_some("tree:0");
        self.fetch(&mut base, &Wanted { objects, have: &have, alone: false, filter }).await?;
        let listing = ["cat-file", "--batch-all-objects", "--unordered", FORMAT];
        let listing = self.helper.run(&base.directory, &listing, b"", self.bounds).await?;
        self.read(listing).await
    }

    /// Reads a listing of git's.
    async fn read(&self, listing: Vec<u8>) -> Result<Contents, CompareError> {
        let looking = self.looking.clone();
        Ok(work(move || Contents::read(&listing[..], &looking)).await??)
    }

    /// What `tip` has otherwise than every one of `references`, whatever is between them, at paths that matter; without any
    /// reference, all that it has there.
    pub(super) async fn otherwise(
        &self,
        tip: Id,
        references: &[Id],
        matters: impl Fn(&[u8]) -> bool + Clone + Send + 'static,
    ) -> Result<Vec<Change>, CompareError> {
        let empty = if self.digits == 64 { EMPTY_TREE_LONG } else { EMPTY_TREE };
        let mut others: Vec<String> = references.iter().map(|id| self.hex(*id)).collect();
        if others.is_empty() {
            others.push(empty.to_owned());
        }
        let tip = self.hex(tip);
        let most = self.bounds.push.difference_bytes;
        let (mut reading, mut bytes) = (Reading::default(), 0);
        for other in &others {
            // Named as arguments: git says of those whether it has them.
            let arguments = ["diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", other, &tip];
            let out = match self.helper.run(&self.quarantine.directory, &arguments, b"", self.bounds).await {
                // More than is read of any list.
                Err(HelperError::Exceeded) => return Err(Excess::Differences(most).into()),
                told => told?,
            };
            bytes += out.len() as u64;
            if bytes > most {
                return Err(Excess::Differences(most).into());
            }
            reading = reading.told((Some(tip.clone()), out), matters.clone()).await?;
        }
        let count = others.len();
        Ok(work(move || reading.end(|_| count)).await?)
    }

    /// What each commit of the push changes.
    pub(super) async fn changes(&self, contents: &Contents) -> Result<Changes, CompareError> {
        let mut pairs = Vec::new();
        for (commit, facts) in &contents.commits {
            let commit = self.hex(*commit);
            pairs.extend(facts.parents.iter().map(|parent| format!("{commit} {}\n", self.hex(*parent))));
            if facts.parents.is_empty() {
                pairs.push(format!("{commit}\n"));
            }
        }
        let pairs = pairs.concat();
        let arguments =
            ["diff-tree", "--stdin", "-r", "--root", "-z", "--raw", "--no-renames", "--no-abbrev"];
        let out =
            self.helper.run(&self.quarantine.directory, &arguments, pairs.as_bytes(), self.bounds).await?;
        let reading = Reading::default().told((None, out), |_| true).await?;
        let parents = |(commit, facts): (&Id, &CommitFacts)| (*commit, facts.parents.len().max(1));
        let parents: HashMap<Id, usize> = contents.commits.iter().map(parents).collect();
        Ok(work(move || reading.changes(|commit| parents.get(commit).copied().unwrap_or(1))).await?)
    }

    /// Makes sure that these files can be read.
    pub(super) async fn have_files(
        &self,
        base: &mut Base,
        contents: &Contents,
        files: &BTreeSet<Id>,
    ) -> Result<(), CompareError> {
        let missing: Vec<String> = files
            .iter()
            .filter(|id| !contents.blobs.contains(id))
            .take(self.bounds.push.old_files)
            .map(|id| self.hex(*id))
            .collect();
        // Without a filter they came with their directories.
        if missing.is_empty() || !self.abilities(base).await?.filter {
            return Ok(());
        }
        self.fetch(base, &Wanted { objects: missing, ..Wanted::default() }).await
    }

    /// The secrets that were there before in the files that `commits` have changed, by commit.
    pub(super) async fn known(
        &self,
        base: &mut Base,
        contents: &Contents,
        (changes, commits): (&Changes, &HashSet<Id>),
    ) -> Result<HashMap<Id, HashSet<[u8; 32]>>, CompareError> {
        let before = commits.iter().filter_map(|commit| changes.before.get(commit)).flatten();
        let files: BTreeSet<Id> = before.copied().collect();
        self.have_files(base, contents, &files).await?;
        let most = self.bounds.push.old_files;
        let theirs: Vec<Id> =
            files.into_iter().filter(|id| !contents.blobs.contains(id)).take(most).collect();
        let list: Vec<String> = theirs.iter().map(|id| format!("{}\n", self.hex(*id))).collect();
        let old = if theirs.is_empty() {
            Contents::default()
        } else {
            let listing = self
                .helper
                .run(&base.directory, &["cat-file", FORMAT], list.concat().as_bytes(), self.bounds)
                .await?;
            self.read(listing).await?
        };
        let mut of_file: HashMap<Id, Vec<[u8; 32]>> = HashMap::new();
        for candidate in contents.candidates.iter().chain(&old.candidates) {
            of_file.entry(candidate.object).or_default().push(candidate.found.hit.hash);
        }
        let hashes = |commit: &Id| {
            let files = changes.before.get(commit).into_iter().flatten();
            files.filter_map(|file| of_file.get(file)).flatten().copied().collect()
        };
        Ok(commits.iter().map(|commit| (*commit, hashes(commit))).collect())
    }
}

/// Those that the host is told of.
fn haves(mut known: Vec<Id>) -> Vec<Id> {
    known.truncate(HAVES);
    known
}

/// Changes as far as they are read, of what `git diff-tree --stdin -z --raw` prints: a commit, then what it changes against one
/// parent, and so on. What is not changed against every parent came by a merge.
#[derive(Debug, Default)]
struct Reading {
    commit: Option<Id>,
    found: HashMap<(Id, Vec<u8>), (usize, Change)>,
    order: Vec<(Id, Vec<u8>)>,
    before: HashMap<Id, HashSet<Id>>,
}

impl Reading {
    /// With what git printed, of this commit if it names none itself: apart from others' work, since it may be a lot.
    async fn told(
        mut self,
        (commit, out): (Option<String>, Vec<u8>),
        matters: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Result<Self, CompareError> {
        let read = move || {
            let begun = commit.is_none_or(|commit| self.begin(&commit).is_some());
            let read = begun && self.take(&out, matters).is_some();
            read.then_some(self)
        };
        work(read).await?.ok_or(CompareError::Changes)
    }

    fn begin(&mut self, commit: &str) -> Option<()> {
        self.commit = Some(Id::parse(commit)?);
        Some(())
    }

    fn take(&mut self, out: &[u8], matters: impl Fn(&[u8]) -> bool) -> Option<()> {
        let mut fields = out.split(|byte| *byte == 0);
        while let Some(field) = fields.next().filter(|field| !field.is_empty()) {
            let text = std::str::from_utf8(field).ok()?;
            let Some(entry) = text.strip_prefix(':') else {
                self.begin(text)?;
                continue;
            };
            let commit = self.commit?;
            let path = fields.next()?;
            let mut parts = entry.split(' ');
            let (old_mode, new_mode) = (parts.next()?, parts.next()?);
            let file = |mode: &str, id: &str| Id::parse(id).filter(|_| !matches!(mode, "160000" | "040000"));
            let (old, new) = (file(old_mode, parts.next()?), file(new_mode, parts.next()?));
            if !matters(path) {
                continue;
            }
            self.before.entry(commit).or_default().extend(old);
            let key = (commit, path.to_vec());
            let (count, change) = self.found.entry(key.clone()).or_insert_with(|| {
                self.order.push(key);
                (0, Change { commit, path: path.to_vec(), new, old: Vec::new() })
            });
            *count += 1;
            change.old.extend(old.filter(|old| !change.old.contains(old)));
        }
        Some(())
    }

    /// What a commit has otherwise than each of so many parents.
    fn end(&mut self, parents: impl Fn(&Id) -> usize) -> Vec<Change> {
        let order = std::mem::take(&mut self.order).into_iter();
        let found = order.filter_map(|key| self.found.remove(&key));
        found.filter(|(count, change)| *count >= parents(&change.commit)).map(|(_, change)| change).collect()
    }

    /// The same, with what was there before.
    fn changes(mut self, parents: impl Fn(&Id) -> usize) -> Changes {
        Changes { all: Arc::new(self.end(parents)), before: self.before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the list says, each commit with so many parents.
    async fn read(out: &str, parents: impl Fn(&Id) -> usize) -> Option<Changes> {
        let reading = Reading::default().told((None, out.as_bytes().to_vec()), |_| true).await;
        Some(reading.ok()?.changes(parents))
    }

    fn id(digit: &str) -> Id {
        Id::parse(&digit.repeat(40)).unwrap()
    }

    fn entry(modes: (&str, &str), ids: (&str, &str), path: &str) -> String {
        format!(":{} {} {} {} M\0{path}\0", modes.0, modes.1, ids.0.repeat(40), ids.1.repeat(40))
    }

    #[tokio::test]
    async fn changes_are_read_and_those_that_a_merge_brings_are_left_out() {
        let merge = "a".repeat(40);
        let file = ("100644", "100644");
        let out = [
            format!("{merge}\0"),
            entry(file, ("1", "2"), "both"),
            entry(file, ("3", "4"), "one side"),
            format!("{merge}\0"),
            entry(file, ("5", "2"), "both"),
            format!("{}\0", "b".repeat(40)),
            entry(("000000", "160000"), ("0", "6"), "submodule"),
            entry(("100644", "000000"), ("7", "0"), "gone"),
        ]
        .concat();
        let changes = read(&out, |commit| if *commit == id("a") { 2 } else { 1 }).await.unwrap();
        let paths: Vec<_> = changes.all.iter().map(|change| change.path.as_slice()).collect();
        assert_eq!(paths, [&b"both"[..], b"submodule", b"gone"]);
        assert_eq!((changes.all[0].new, changes.all[0].old.clone()), (Some(id("2")), vec![id("1"), id("5")]));
        assert_eq!((changes.all[1].new, changes.all[2].new), (None, None));
        assert_eq!(changes.before[&id("a")], HashSet::from([id("1"), id("3"), id("5")]));
        assert_eq!(changes.before[&id("b")], HashSet::from([id("7")]));
    }

    #[test]
    fn the_host_is_told_of_so_many_commits() {
        for (count, told) in [(HAVES - 1, HAVES - 1), (HAVES, HAVES), (HAVES + 1, HAVES)] {
            assert_eq!(haves(vec![id("1"); count]).len(), told);
        }
    }

    #[tokio::test]
    async fn only_what_matters_is_kept_of_a_list_and_it_is_read_apart() {
        let out =
            [entry(("100644", "100644"), ("1", "2"), "a"), entry(("100644", "100644"), ("1", "2"), "b")];
        let out = out.concat().into_bytes();
        let of_none = Reading::default().told((None, out.clone()), |_| true).await;
        assert!(matches!(of_none, Err(CompareError::Changes)), "of no commit");
        // The thread that serves others does none of it.
        let own = std::thread::current().id();
        let matters = move |path: &[u8]| std::thread::current().id() != own && path == b"b";
        let mut reading = Reading::default().told((Some("a".repeat(40)), out), matters).await.unwrap();
        assert_eq!(reading.before.len(), 1);
        let changes = reading.end(|_| 1);
        assert_eq!((changes.len(), changes[0].path.as_slice()), (1, &b"b"[..]));
    }

    #[tokio::test]
    async fn what_is_no_list_of_changes_is_not_read() {
        for bad in ["x\0", ":100644 1\0p\0", &format!("{}\0:1 2\0p\0", "a".repeat(40))] {
            assert!(read(bad, |_| 1).await.is_none(), "{bad}");
        }
        assert!(read("", |_| 1).await.unwrap().all.is_empty());
    }
}
