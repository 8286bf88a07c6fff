//! What must hold for any bytes of git's.

use std::io::BufReader;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use caisson_domain::git::{AllowList, Repository};
use futures_util::{FutureExt, StreamExt, stream};
use sha2::{Digest, Sha256};
use url::Url;

use super::objects::{Contents, Excess, Id, Looking, ReadError};
use super::pktline::{Section, SectionReader};
use super::report::Report;
use super::secrets::Secrets;
use super::{advert, inflate, submodules};
use crate::body::Chunks;
use crate::bounds::PushBounds;
use crate::fuzz::cut;

fn section(bytes: &[u8], size: usize) -> Option<(Section, Vec<u8>)> {
    let mut reader = SectionReader::default();
    let mut pieces = bytes.chunks(size);
    while let Some(piece) = pieces.next() {
        if let Some((section, rest)) = reader.push(piece).ok()? {
            return Some((section, [rest.as_ref(), &pieces.collect::<Vec<_>>().concat()].concat()));
        }
    }
    None
}

fn asking_for(capability: &str) -> Section {
    Section { commands: Vec::new(), capabilities: vec![capability.to_owned()] }
}

/// The commands of a push and what is behind them, whatever the pieces in which they come; and what is forwarded says the same.
///
/// # Panics
/// A find.
pub fn packets(data: &[u8]) {
    let Some((size, bytes)) = cut(data) else { return };
    let whole = section(bytes, bytes.len().max(1));
    assert_eq!(section(bytes, size), whole);
    passed_on(bytes, size);
    if let Some((read, rest)) = whole {
        assert!(bytes.ends_with(&rest));
        let forwarded = read.encode();
        let again = section(&forwarded, forwarded.len());
        assert_eq!(again.map(|(again, rest)| (again.commands, rest)), Some((read.commands, Vec::new())));
    }
}

/// What does not depend on its pieces: the list of refs that gets one word more, and a body that may be compressed.
fn passed_on(bytes: &[u8], size: usize) {
    let all = |size: usize, through: fn(Chunks) -> Chunks| {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let through = through(stream::iter(pieces).boxed()).collect::<Vec<_>>();
        let pieces = through.now_or_never().expect("nothing is waited for");
        let whole: Result<Vec<Bytes>, _> = pieces.into_iter().collect();
        whole.ok().map(|pieces| pieces.concat())
    };
    let list = all(size, advert::asking_for_whole_packs).expect("nothing of it is refused");
    assert_eq!(Some(&list), all(bytes.len().max(1), advert::asking_for_whole_packs).as_ref());
    assert_eq!(all(size, inflate::gunzip), all(bytes.len().max(1), inflate::gunzip));
}

/// A credential of the server's that a push might hold.
const LIVE: &str = "canary/7f3a+9b2c";
/// Largest file that is looked into.
const FILE_BYTES: u64 = 1024;

/// An object as the input has it: a byte for its kind and more, one for its length, and its bytes.
struct Object {
    kind: &'static str,
    id: String,
    body: Vec<u8>,
    has_secret: bool,
}

fn objects(mut bytes: &[u8]) -> Vec<Object> {
    let mut all = Vec::new();
    while let Some(([first, length], rest)) = bytes.split_first_chunk::<2>() {
        let (body, rest) =
            rest.split_at(rest.len().min(usize::from(*length) * if first & 8 == 0 { 1 } else { 8 }));
        bytes = rest;
        let kind = ["commit", "tree", "blob", "tag"][usize::from(first & 3)];
        let mut body = body.to_vec();
        if first & 4 != 0 {
            body.splice(body.len() / 2..body.len() / 2, LIVE.bytes());
        }
        // As git's own ids do, they keep a tree from holding itself.
        let id = hex::encode(&Sha256::digest([kind.as_bytes(), &body].concat())[..20]);
        all.push(Object { kind, id, body, has_secret: first & 4 != 0 });
    }
    all
}

/// Whether git would have written every entry of the tree, by another reader than the one that is tried.
fn is_plain_tree(mut body: &[u8]) -> bool {
    const MODES: [&[u8]; 6] = [b"40000 ", b"100644 ", b"100755 ", b"120000 ", b"160000 ", b"100664 "];
    while !body.is_empty() {
        let Some(end) = body.iter().position(|byte| *byte == 0) else { return false };
        let Some(id) = body.get(end + 1..end + 21) else { return false };
        if id == [0; 20] || !MODES.iter().any(|mode| body[..end].starts_with(mode)) {
            return false;
        }
        body = &body[end + 21..];
    }
    true
}

/// Whether git would have written the commit's parents: no line comes twice among those right behind the first one.
fn has_plain_parents(body: &[u8]) -> bool {
    let lines = body.split(|byte| *byte == b'\n').skip(1);
    let ids = lines.map_while(|line| hex::decode(line.strip_prefix(b"parent ")?).ok());
    let mut ids: Vec<_> =
        ids.take_while(|id| matches!(id.len(), 20 | 32) && id.iter().any(|byte| *byte > 0)).collect();
    let count = ids.len();
    ids.sort();
    ids.dedup();
    ids.len() == count && count <= 100
}

/// The contents of a push as the quarantine's git lists them: read to the same whatever the pieces, no credential in them is
/// missed, a list that is cut is told from one that ended, trees and parents that are not git's are refused, a commit has the
/// parents that git reads, and a submodule is taken from nowhere else.
///
/// # Panics
/// A find.
pub fn push_contents(data: &[u8]) {
    static SECRETS: LazyLock<Arc<Secrets>> =
        LazyLock::new(|| Arc::new(Secrets::new(&[LIVE], &[]).expect("the shipped rules are read")));
    let Some((size, bytes)) = cut(data) else { return };
    let pushed = objects(bytes);
    let mut listing = Vec::new();
    for Object { kind, id, body, .. } in &pushed {
        listing.extend_from_slice(format!("{id} {kind} {} {}\n", body.len(), "0".repeat(40)).as_bytes());
        listing.extend_from_slice(body);
        listing.push(b'\n');
    }
    let (secrets, bounds) = (Arc::clone(&SECRETS), PushBounds::default());
    let looking = Looking { secrets, bounds, file_bytes: FILE_BYTES };
    let read = |size: usize| Contents::read(BufReader::with_capacity(size, &listing[..]), &looking);
    let plain = pushed.iter().all(|object| match object.kind {
        "tree" => is_plain_tree(&object.body),
        "commit" => has_plain_parents(&object.body),
        _ => true,
    });
    let (whole, pieces) = match (read(listing.len().max(1)), read(size)) {
        (Ok(whole), Ok(pieces)) if plain => (whole, pieces),
        (Err(ReadError::Excess(one)), Err(ReadError::Excess(other)))
            if !plain && one == other && matches!(one, Excess::Entry | Excess::Parents(_)) =>
        {
            return;
        }
        _ => panic!("it is whole, within its bounds, and git's own if it is taken"),
    };
    assert_eq!(seen(&whole), seen(&pieces));
    for object in &pushed {
        kept(&whole, object);
        submodules_of(&object.body);
    }
    let short = Contents::read(&listing[..listing.len().saturating_sub(size)], &looking);
    let ends = short.as_ref().is_ok_and(|short| short.blobs.len() <= whole.blobs.len());
    assert!(ends || matches!(short, Err(ReadError::Cut(_))));
}

fn seen(contents: &Contents) -> impl PartialEq + std::fmt::Debug + use<'_> {
    let found = [&contents.candidates[..], &contents.elsewhere[..]];
    let (commits, blobs) = (contents.commits.len(), contents.blobs.len());
    (contents.boundary(), commits, blobs, &contents.oversize, found, contents.submodules)
}

fn kept(contents: &Contents, object: &Object) {
    let id = Id::parse(&object.id).expect("it is one");
    let place = if object.kind == "blob" { &contents.candidates } else { &contents.elsewhere };
    let oversize = contents.oversize.iter().any(|(other, _)| *other == id);
    assert_eq!(oversize, object.kind == "blob" && object.body.len() as u64 > FILE_BYTES);
    let found = place.iter().any(|candidate| candidate.object == id);
    assert!(found || !object.has_secret || oversize || contents.too_many_candidates, "{}", object.id);
    if object.kind == "commit" {
        let parents = &contents.commits[&id].parents;
        let lines: Vec<_> = object.body.split(|byte| *byte == b'\n').skip(1).collect();
        for (parent, line) in parents.iter().zip(&lines) {
            let told = line.strip_prefix(b"parent ").and_then(|id| std::str::from_utf8(id).ok());
            assert_eq!(told.and_then(Id::parse), Some(*parent), "git reads no parent behind another line");
        }
        assert!(parents.len() <= lines.len());
        assert!(parents.iter().all(|parent| contents.reaches(id, *parent)));
        assert!(contents.boundary().iter().all(|outside| !contents.commits.contains_key(outside)));
    }
}

/// What a `.gitmodules` names is read again by another reader of URLs: what is allowed lies where the list says.
fn submodules_of(text: &[u8]) {
    static ALLOW: LazyLock<AllowList> = LazyLock::new(|| {
        AllowList::new(&["https://h.example/team/*".to_owned()], vec!["/srv/git".into()])
            .expect("it is a list")
    });
    let own: Repository = "https://h.example/team/one.git".parse().expect("it is a repository");
    let base = Url::parse("https://h.example/team/one.git/").expect("it is a URL");
    let urls = submodules::urls(text).unwrap_or_default();
    let allowed = urls.into_iter().filter(|url| submodules::is_allowed(url, &own, &ALLOW));
    for url in allowed {
        let is_path = url.starts_with('/');
        let there = base.join(&url).expect("it is a URL");
        let host = there.host_str() == Some("h.example") && there.path().starts_with("/team/");
        assert!(
            if is_path { url.starts_with("/srv/git") } else { host && there.scheme() == "https" },
            "{url:?}"
        );
    }
}

/// A git host's report on a push, with and without side-band.
///
/// # Panics
/// A find.
pub fn push_report(data: &[u8]) {
    let Some((size, bytes)) = cut(data) else { return };
    for capability in ["report-status", "side-band-64k"] {
        let asked = asking_for(capability);
        let verdict = |size: usize| {
            let mut report = Report::of(&asked);
            bytes.chunks(size).for_each(|piece| report.feed(piece));
            report.verdict("refs/heads/x")
        };
        assert_eq!(verdict(size), verdict(bytes.len().max(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_a_push() {
        let seed = include_bytes!("../../../../fuzz/seeds/packets/update");
        assert_eq!(section(&seed[1..], 7).unwrap().0.commands.len(), 1);
    }

    #[test]
    fn the_seed_holds_a_secret_a_directory_and_a_submodule() {
        let seed = include_bytes!("../../../../fuzz/seeds/push_contents/whole");
        let objects = objects(&seed[1..]);
        let kinds: Vec<_> = objects.iter().map(|object| object.kind).collect();
        assert_eq!(kinds, ["commit", "tree", "blob", "tag", "blob"]);
        assert!(objects[4].has_secret);
        assert_eq!(submodules::urls(&objects[2].body).map(|urls| urls.len()), Some(2));
    }

    #[test]
    fn the_seeds_forge_a_parent_and_the_mode_of_a_directory() {
        let seed = include_bytes!("../../../../fuzz/seeds/push_contents/forged_parent");
        let objects = objects(&seed[1..]);
        let lines: Vec<_> = objects[0].body.split(|byte| *byte == b'\n').collect();
        assert!(lines[1].starts_with(b"parent ") && lines[4].starts_with(b"parent "));
        let seed = include_bytes!("../../../../fuzz/seeds/push_contents/odd_mode");
        let objects = super::objects(&seed[1..]);
        assert!(objects[0].kind == "tree" && objects[0].body.starts_with(b"40755 d\0"));
        assert!(!is_plain_tree(&objects[0].body) && is_plain_tree(&objects[1].body));
    }
}
