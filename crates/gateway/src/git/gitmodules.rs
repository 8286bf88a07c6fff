//! Every version of `.gitmodules` that a push changes, read by one process and within bounds: a push of some hundred kilobytes
//! can have thousands of them, of a megabyte each.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::apart::work;
use super::compare::{Base, CompareError, Comparison};
use super::objects::{Contents, Excess, Id};
use super::submodules::{GITMODULES_BYTES, urls};

/// What is asked about objects: kind and size.
pub(super) const CHECK: &str = "--batch-check";
/// The same, with the objects themselves behind it.
pub(super) const BATCH: &str = "--batch";

/// The URLs in some files; none of one that is too large, or that git does not read.
pub(super) type Urls = HashMap<Id, Option<BTreeSet<String>>>;

impl Comparison<'_> {
    /// What these versions name.
    ///
    /// # Errors
    /// [`Excess::Gitmodules`] among others.
    pub(super) async fn urls(
        &self,
        base: &mut Base,
        contents: &Contents,
        files: &BTreeSet<Id>,
    ) -> Result<Urls, CompareError> {
        let mut found = Urls::new();
        if files.is_empty() {
            return Ok(found);
        }
        self.have_files(base, contents, files).await?;
        let directory = &self.quarantine.directory;
        let sizes = self.ask_of(directory, CHECK, files).await?;
        let sizes = listed(&sizes).ok_or(CompareError::Changes)?;
        if sizes.len() < files.len() {
            return Err(CompareError::Missing);
        }
        let (most_bytes, most_urls) = (self.bounds.push.gitmodules_bytes, self.bounds.push.gitmodules_urls);
        let (small, large): (Vec<_>, Vec<_>) =
            sizes.into_iter().partition(|(_, size)| *size <= GITMODULES_BYTES);
        if small.iter().map(|(_, size)| size).sum::<u64>() > most_bytes {
            return Err(self.too_many_urls());
        }
        found.extend(large.into_iter().map(|(id, _)| (id, None)));
        let small: BTreeSet<Id> = small.into_iter().map(|(id, _)| id).collect();
        let texts = self.ask_of(directory, BATCH, &small).await?;
        let (named, count) = work(move || named(&texts, most_urls)).await?.ok_or(CompareError::Changes)?;
        if count > most_urls {
            return Err(self.too_many_urls());
        }
        found.extend(named);
        Ok(found)
    }

    /// Why no more of them are read, or compared.
    pub(super) fn too_many_urls(&self) -> CompareError {
        let push = &self.bounds.push;
        Excess::Gitmodules { bytes: push.gitmodules_bytes, urls: push.gitmodules_urls }.into()
    }

    /// What `git cat-file` says of these objects.
    pub(super) async fn ask_of(
        &self,
        directory: &Path,
        how: &str,
        objects: &BTreeSet<Id>,
    ) -> Result<Vec<u8>, CompareError> {
        let names = self.lines(objects);
        Ok(self.helper.run(directory, &["cat-file", how], names.as_bytes(), self.bounds).await?)
    }

    /// Their ids, each on a line of its own.
    pub(super) fn lines(&self, objects: &BTreeSet<Id>) -> String {
        let lines: Vec<String> = objects.iter().map(|id| self.hex(*id) + "\n").collect();
        lines.concat()
    }
}

/// What these files name, and how much that is; no more is read of more than `most`.
fn named(texts: &[u8], most: usize) -> Option<(Urls, usize)> {
    let (mut found, mut count) = (Urls::new(), 0);
    for (id, text) in bodies(texts)? {
        let urls = urls(text);
        count += urls.as_ref().map_or(0, BTreeSet::len);
        found.insert(id, urls);
        if count > most {
            break;
        }
    }
    Some((found, count))
}

/// Reads a list of kinds and sizes: those objects that are there.
pub(super) fn listed(out: &[u8]) -> Option<Vec<(Id, u64)>> {
    let lines = std::str::from_utf8(out).ok()?.lines();
    lines.filter(|line| !line.ends_with(" missing")).map(|line| head(line.as_bytes())).collect()
}

/// Reads a list of objects that are all there, with what is in them.
pub(super) fn bodies(mut out: &[u8]) -> Option<Vec<(Id, &[u8])>> {
    let mut found = Vec::new();
    while !out.is_empty() {
        let end = memchr::memchr(b'\n', out)?;
        let (id, size) = head(&out[..end])?;
        let (body, rest) = out[end + 1..].split_at_checked(usize::try_from(size).ok()?)?;
        out = rest.strip_prefix(b"\n")?;
        found.push((id, body));
    }
    Some(found)
}

/// `id kind size`.
fn head(line: &[u8]) -> Option<(Id, u64)> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (id, _kind, size) = (words.next()?, words.next()?, words.next()?);
    Some((Id::parse(id)?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_what_is_none_is_not() {
        let (one, two) = ("1".repeat(40), "2".repeat(40));
        let at = |id: &str| Id::parse(id).unwrap();
        let sizes = format!("{one} blob 5\n{two} missing\n");
        assert_eq!(listed(sizes.as_bytes()), Some(vec![(at(&one), 5)]));
        let all = format!("{one} blob 5\na\nb\nc\n{two} tree 0\n\n");
        let wanted = vec![(at(&one), &b"a\nb\nc"[..]), (at(&two), &b""[..])];
        assert_eq!(bodies(all.as_bytes()), Some(wanted));
        for bad in [&all[..all.len() - 1], &all[..50], sizes.as_str(), "x\n"] {
            assert_eq!(bodies(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(listed(b"x\n"), None);
    }
}
