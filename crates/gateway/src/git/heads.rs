//! Where a repository's default branch is, and what a branch's name leads to, as the git host says.
//!
//! Asked for by protocol version 2, whose list of refs tells of every ref that is another name of one, and of a default branch
//! that does not exist yet; of a host that does not know it, the capabilities of its older list tell of the default branch.
//!
//! Sources: gitprotocol-v2(5), "ls-refs"; gitprotocol-pack(5), "Reference Discovery"; gitprotocol-capabilities(5), "symref".

use bytes::Bytes;
use caisson_store::BoxError;
use futures_util::stream::{self, StreamExt};

use super::base::{DELIMITER, VERSION, words};
use super::fault::Fault;
use super::objects::Id;
use super::pktline::{self, Packet, Reader};
use super::{Answer, Exchange, Service, Upstream};
use crate::bounds::ADVERTISEMENT_BYTES;

/// What the remote's default branch is named by.
const HEAD: &str = "HEAD";
/// What stands in the place of the first ref where there is none.
const NO_REFS: &str = " capabilities^{}";
/// What the names of all branches begin with.
const BRANCHES: &str = "refs/heads/";

/// What a host says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heads {
    /// The default branch, as a full ref; none if `HEAD` names none, or there is no word of it.
    pub(super) default: Option<String>,
    /// Whether that one does not exist.
    pub(super) unborn: bool,
    /// The ref that the branch asked after is another name of.
    pub(super) target: Option<String>,
    /// Whether the repository has no branch at all.
    pub(super) empty: bool,
}

/// What a host offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Offer {
    /// Whether it knows protocol version 2.
    second: bool,
    /// Whether it tells of a default branch that does not exist.
    unborn: bool,
    /// The kind of its ids, if it says so.
    format: Option<String>,
    /// The default branch, by the older protocol.
    default: Option<String>,
    /// Whether the repository has no ref, by the older protocol.
    empty: bool,
}

/// Asks the host after its default branch and after `branch`, a full ref.
///
/// # Errors
/// [`Fault`] if the host does not say.
/// # Cancel safety
/// Safe: it only reads.
pub(super) async fn ask(upstream: &Upstream, branch: &str) -> Result<Heads, Fault> {
    let offer = offer(upstream).await?;
    if !offer.second {
        return Ok(Heads { default: offer.default, empty: offer.empty, ..Heads::default() });
    }
    let mut heads = Heads::default();
    list(upstream, &offer, &[HEAD, branch], |line| heads.take(line, branch)).await?;
    // Where there is a default branch, there is a branch.
    if heads.unborn || heads.default.is_none() {
        heads.empty = !has_branches(upstream, &offer).await?;
    }
    Ok(heads)
}

/// What `branch`, a full ref, is at, and behind it the host's default branch; as far as they exist; none of a host that does
/// not know protocol version 2: from such a one nothing is fetched either.
///
/// # Errors
/// [`Fault`] if the host does not say.
/// # Cancel safety
/// Safe: it only reads.
pub(super) async fn tips(upstream: &Upstream, branch: Option<&str>) -> Result<Option<Vec<Id>>, Fault> {
    let offer = offer(upstream).await?;
    if !offer.second {
        return Ok(None);
    }
    let mut tips = Tips::of(branch);
    let names = tips.names.clone();
    list(upstream, &offer, &names, |line| tips.take(line)).await?;
    Ok(Some(tips.ids()))
}

/// Where refs are, in the order of their names.
#[derive(Debug)]
struct Tips<'a> {
    names: Vec<&'a str>,
    at: Vec<Option<Id>>,
}

impl<'a> Tips<'a> {
    fn of(branch: Option<&'a str>) -> Self {
        let names: Vec<&str> = branch.into_iter().chain([HEAD]).collect();
        Self { at: vec![None; names.len()], names }
    }

    fn take(&mut self, line: &str) -> bool {
        let mut words = line.split(' ');
        let (object, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        for (asked, at) in self.names.iter().zip(&mut self.at) {
            if *asked == name {
                *at = Id::parse(object);
            }
        }
        true
    }

    fn ids(self) -> Vec<Id> {
        let mut ids = Vec::new();
        for id in self.at.into_iter().flatten() {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }
}

async fn has_branches(upstream: &Upstream, offer: &Offer) -> Result<bool, Fault> {
    let mut found = false;
    list(upstream, offer, &[BRANCHES], |line| {
        let name = line.split(' ').nth(1).unwrap_or_default();
        found |= name.starts_with(BRANCHES);
        !found
    })
    .await?;
    Ok(found)
}

async fn offer(upstream: &Upstream) -> Result<Offer, Fault> {
    let answer = upstream.advertise(Service::UploadPack, VERSION).await?;
    let mut offered = Offered::default();
    read(answer, |packet| offered.take(packet)).await?;
    Ok(offered.offer)
}

/// Has the host list the refs that begin with one of these, as far as `take` wants more.
async fn list(
    upstream: &Upstream,
    offer: &Offer,
    prefixes: &[&str],
    mut take: impl FnMut(&str) -> bool + Send,
) -> Result<(), Fault> {
    let request = Bytes::from(request(offer, prefixes));
    let length = Some(request.len() as u64);
    let chunks = stream::iter([Ok::<_, BoxError>(request)]).boxed();
    let exchange = Exchange { chunks, length, rewrites: false };
    let answer = upstream.exchange(Service::UploadPack, VERSION, exchange).await?;
    let redactor = upstream.redactor();
    read(answer, |packet| match packet {
        Packet::Flush => Ok(false),
        Packet::Special => Ok(true),
        Packet::Data(line) if line.starts_with(b"ERR ") => {
            Err(unread(format!("the git host said: {}", words(&line[4..], &redactor))))
        }
        Packet::Data(line) => Ok(take(String::from_utf8_lossy(&line).trim_end())),
    })
    .await
}

/// Hands an answer's packets over until one was the last.
async fn read(
    answer: Answer,
    mut take: impl FnMut(Packet) -> Result<bool, Fault> + Send,
) -> Result<(), Fault> {
    if answer.encoding.is_some() {
        return Err(unread("the git host answered in an encoding that was not asked for"));
    }
    let (mut chunks, mut reader, mut bytes) = (answer.chunks, Reader::default(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| unread("the git host broke off its list of refs"))?;
        bytes += chunk.len();
        if bytes > ADVERTISEMENT_BYTES {
            return Err(unread(format!(
                "the git host's list of refs is longer than {ADVERTISEMENT_BYTES} bytes"
            )));
        }
        reader.push(&chunk);
        while let Some(packet) = reader.next().map_err(|_| unread("the git host's list of refs is none"))? {
            if !take(packet)? {
                return Ok(());
            }
        }
    }
    Err(unread("the git host's list of refs has no end"))
}

fn unread(detail: impl Into<String>) -> Fault {
    let detail = format!("its repository's default branch is not known, since {}", detail.into());
    Fault::Uninspected { detail }
}

fn request(offer: &Offer, prefixes: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    let line = |out: &mut Vec<u8>, text: &str| pktline::write(out, format!("{text}\n").as_bytes());
    line(&mut out, "command=ls-refs");
    if let Some(format) = &offer.format {
        line(&mut out, &format!("object-format={format}"));
    }
    out.extend_from_slice(DELIMITER);
    line(&mut out, "symrefs");
    if offer.unborn {
        line(&mut out, "unborn");
    }
    for prefix in prefixes {
        line(&mut out, &format!("ref-prefix {prefix}"));
    }
    out.extend_from_slice(pktline::FLUSH);
    out
}

/// Reads what a host offers, packet by packet.
#[derive(Debug, Default)]
struct Offered {
    offer: Offer,
}

impl Offered {
    /// Whether more is to come.
    fn take(&mut self, packet: Packet) -> Result<bool, Fault> {
        let line = match packet {
            // The service's name is followed by one as well.
            Packet::Flush => return Ok(!self.offer.second),
            Packet::Special => return Err(unread("the git host's list of refs is none")),
            Packet::Data(line) => line,
        };
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if self.offer.second {
            if let Some(values) = text.strip_prefix("ls-refs=") {
                self.offer.unborn = values.split(' ').any(|value| value == "unborn");
            } else if let Some(format) = text.strip_prefix("object-format=") {
                self.offer.format = Some(format.to_owned());
            }
            return Ok(true);
        }
        if text == "version 2" {
            self.offer.second = true;
        }
        if let Some((first, capabilities)) = text.split_once('\0') {
            self.offer.empty = first.ends_with(NO_REFS);
            let mut words = capabilities.split(' ');
            self.offer.default = words.find_map(|word| word.strip_prefix("symref=HEAD:")).map(str::to_owned);
            return Ok(false);
        }
        Ok(true)
    }
}

impl Heads {
    /// Takes a line of the list; whether more is wanted.
    fn take(&mut self, line: &str, branch: &str) -> bool {
        let mut words = line.split(' ');
        let (object, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let target = words.find_map(|word| word.strip_prefix("symref-target:")).map(str::to_owned);
        if name == HEAD {
            self.unborn = object == "unborn";
            self.default = target;
        } else if name == branch {
            self.target = target;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1111111111111111111111111111111111111111";

    /// What is read of lines, where an empty one is a flush, however they are cut.
    async fn offered(lines: &[&str], size: usize) -> Result<Offer, Fault> {
        let mut offered = Offered::default();
        read(answer(lines, size), |packet| offered.take(packet)).await.map(|()| offered.offer)
    }

    fn answer(lines: &[&str], size: usize) -> Answer {
        let mut out = Vec::new();
        for line in lines {
            if line.is_empty() {
                out.extend_from_slice(pktline::FLUSH);
            } else {
                pktline::write(&mut out, format!("{line}\n").as_bytes());
            }
        }
        let pieces: Vec<_> = out.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Answer { chunks: stream::iter(pieces).boxed(), encoding: None }
    }

    #[tokio::test]
    async fn a_host_of_either_protocol_is_understood_however_its_answer_is_cut() {
        let header = "# service=git-upload-pack";
        for size in [1, 7, 1000] {
            let second = Offer { second: true, unborn: true, ..Offer::default() };
            let lines = ["version 2", "agent=git/2", "ls-refs=unborn", "fetch=shallow", ""];
            assert_eq!(offered(&lines, size).await, Ok(second.clone()));
            let lines = [header, "", "version 2", "ls-refs=unborn", "object-format=sha256", ""];
            let format = Some("sha256".to_owned());
            assert_eq!(offered(&lines, size).await, Ok(Offer { format, ..second }));
            let plain = Offer { second: true, ..Offer::default() };
            assert_eq!(offered(&["version 2", "ls-refs", ""], size).await, Ok(plain));
            let first = format!("{ID} HEAD\0multi_ack symref=HEAD:refs/heads/trunk agent=git/1");
            let default = Some("refs/heads/trunk".to_owned());
            let told = Offer { default, ..Offer::default() };
            assert_eq!(offered(&[header, "", &first, "more"], size).await, Ok(told.clone()));
            assert_eq!(offered(&[header, "", "version 1", &first], size).await, Ok(told));
            let empty = format!("{} capabilities^{{}}\0agent=git/1", "0".repeat(40));
            let nothing = Offer { empty: true, ..Offer::default() };
            assert_eq!(offered(&[header, "", &empty, ""], size).await, Ok(nothing));
        }
    }

    #[tokio::test]
    async fn a_list_without_an_end_or_beyond_its_bound_says_nothing() {
        assert!(offered(&["version 2", "ls-refs=unborn"], 1000).await.is_err());
        assert!(offered(&[], 1000).await.is_err());
        let encoded = Answer { encoding: Some("gzip".parse().unwrap()), ..answer(&["version 2", ""], 9) };
        assert!(read(encoded, |_| Ok(true)).await.is_err());
        let of = |bytes: usize| {
            let piece = Bytes::from(b"0004".repeat(256 * 1024));
            let pieces = std::iter::repeat_n(piece, bytes / (1024 * 1024));
            let more = (!bytes.is_multiple_of(1024 * 1024)).then(|| Bytes::from_static(b"0004"));
            Answer { chunks: stream::iter(pieces.chain(more)).map(Ok).boxed(), encoding: None }
        };
        let said = async |bytes: usize| match read(of(bytes), |_| Ok(true)).await {
            Err(Fault::Uninspected { detail }) => detail,
            other => panic!("{other:?}"),
        };
        assert!(said(ADVERTISEMENT_BYTES).await.contains("no end"));
        assert!(said(ADVERTISEMENT_BYTES + 4).await.contains("longer than"));
    }

    #[test]
    fn the_list_tells_of_the_default_branch_and_of_other_names() {
        let of = |lines: &[&str]| {
            let mut heads = Heads::default();
            for line in lines {
                assert!(heads.take(line, "refs/heads/x"));
            }
            heads
        };
        let told = of(&[
            &format!("{ID} HEAD symref-target:refs/heads/main"),
            &format!("{ID} refs/heads/x symref-target:refs/heads/main peeled:{ID}"),
            &format!("{ID} refs/heads/xy symref-target:refs/heads/other"),
        ]);
        let main = Some("refs/heads/main".to_owned());
        assert_eq!(told, Heads { default: main.clone(), target: main.clone(), ..Heads::default() });
        let unborn = of(&["unborn HEAD symref-target:refs/heads/main"]);
        assert_eq!(unborn, Heads { default: main, unborn: true, ..Heads::default() });
        assert_eq!(of(&[&format!("{ID} HEAD")]), Heads::default(), "no branch is checked out");
    }

    #[test]
    fn the_runs_base_comes_before_the_default_branch_and_what_is_not_there_is_no_tip() {
        let of = |branch, lines: &[&str]| {
            let mut tips = Tips::of(branch);
            for line in lines {
                assert!(tips.take(line));
            }
            tips.ids()
        };
        let other = "2".repeat(40);
        let (one, two) = (Id::parse(ID).unwrap(), Id::parse(&other).unwrap());
        let (head, base) =
            (format!("{ID} HEAD symref-target:refs/heads/main"), format!("{other} refs/heads/base"));
        let more = format!("{other} refs/heads/base/2");
        assert_eq!(of(Some("refs/heads/base"), &[&head, &base, &more]), [two, one]);
        assert_eq!(of(Some("refs/heads/base"), &[&head, &more]), [one]);
        assert_eq!(of(None, &[&head, &base]), [one]);
        assert_eq!(
            of(Some("refs/heads/x"), &[&head, &format!("{ID} refs/heads/x")]),
            [one],
            "both are there"
        );
        assert_eq!(of(None, &["unborn HEAD symref-target:refs/heads/main"]), []);
    }

    #[test]
    fn what_the_host_does_not_know_is_not_asked_for() {
        let format = Some("sha256".to_owned());
        let offer = Offer { second: true, unborn: true, format, ..Offer::default() };
        let text = String::from_utf8(request(&offer, &[HEAD])).unwrap();
        assert_eq!(
            text,
            "0014command=ls-refs\n0019object-format=sha256\n0001000csymrefs\n000bunborn\n0014ref-prefix HEAD\n0000"
        );
        let text = String::from_utf8(request(&Offer::default(), &[HEAD, "refs/heads/x"])).unwrap();
        assert!(!text.contains("unborn") && !text.contains("object-format"), "{text}");
        assert!(text.ends_with("001cref-prefix refs/heads/x\n0000"), "{text}");
    }
}
