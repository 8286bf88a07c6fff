//! What the repository has already, fetched for a look at a push: protocol version 2, by the same way as a sandbox's own
//! fetches, whatever kind of host it is.
//!
//! Source: gitprotocol-v2(5), "fetch".

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::redact::Redactor;
use caisson_store::BoxError;
use futures_util::stream::{self, StreamExt};

use super::pktline::{self, Packet, Reader};
use super::quarantine::{ReceiveError, Room, receive};
use super::{Exchange, Service, Upstream};
use crate::body::Chunks;

/// Most of a host's list of what it can do, in bytes.
const CAPABILITY_BYTES: usize = 64 * 1024;
/// Most of a host's words that is told, in characters.
const WORDS_CHARS: usize = 200;
/// Packet between the parts of a request.
pub(super) const DELIMITER: &[u8] = b"0001";
/// In git's header.
pub(super) const VERSION: Option<&str> = Some("version=2");

/// Why the repository's own objects cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum BaseError {
    #[error("the git host does not answer as git's protocol version 2 wants it")]
    Protocol,
    #[error("the git host said: {0}")]
    Host(String),
    #[error("the git host could not be asked: {0}")]
    Refused(String),
    #[error("it did not arrive as a whole: {0}")]
    Receive(#[from] ReceiveError),
    #[error("it broke off")]
    Broken(#[source] BoxError),
}

/// What a host can do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Abilities {
    /// Leave objects out.
    pub(super) filter: bool,
}

/// What is fetched.
#[derive(Debug, Default)]
pub(super) struct Wanted<'a> {
    pub(super) objects: Vec<String>,
    /// Commits that need not be sent, nor what comes before them.
    pub(super) have: &'a [String],
    /// Whether no commit comes but those that are wanted.
    pub(super) alone: bool,
    /// What is left out, in git's words.
    pub(super) filter: Option<&'static str>,
}

/// Asks what the host can do.
pub(super) async fn abilities(upstream: &Upstream) -> Result<Abilities, BaseError> {
    let answer = upstream.advertise(Service::UploadPack, VERSION).await;
    let mut chunks = answer.map_err(|fault| BaseError::Refused(fault.refusal().message))?.chunks;
    let (mut reader, mut bytes, mut second) = (Reader::default(), 0, false);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(BaseError::Broken)?;
        bytes += chunk.len();
        if bytes > CAPABILITY_BYTES {
            return Err(BaseError::Protocol);
        }
        reader.push(&chunk);
        while let Some(packet) = reader.next().map_err(|_| BaseError::Protocol)? {
            let Packet::Data(line) = packet else { continue };
            let text = String::from_utf8_lossy(&line);
            second |= text.trim_end() == "version 2";
            if let Some(values) = text.strip_prefix("fetch=").or_else(|| text.strip_prefix("fetch\n")) {
                let filter = values.split_whitespace().any(|value| value == "filter");
                return if second { Ok(Abilities { filter }) } else { Err(BaseError::Protocol) };
            }
        }
    }
    Err(BaseError::Protocol)
}

/// Fetches into a pack at `path`.
pub(super) async fn fetch(
    upstream: &Upstream,
    wanted: &Wanted<'_>,
    path: &Path,
    room: Room,
) -> Result<(), BaseError> {
    let request = Bytes::from(request(wanted));
    let length = Some(request.len() as u64);
    let chunks = stream::iter([Ok::<_, BoxError>(request)]).boxed();
    let exchange = Exchange { chunks, length, rewrites: false };
    let answer = upstream.exchange(Service::UploadPack, VERSION, exchange).await;
    let answer = answer.map_err(|fault| BaseError::Refused(fault.refusal().message))?;
    match receive(&mut packfile(answer.chunks, upstream.redactor()), path, room).await {
        Err(ReceiveError::Broken(error)) => {
            Err(error.downcast().map_or_else(BaseError::Broken, |error| *error))
        }
        received => Ok(received.map(drop)?),
    }
}

fn request(wanted: &Wanted<'_>) -> Vec<u8> {
    let digits = wanted.objects.first().map_or(40, String::len);
    let mut out = Vec::new();
    let mut line = |text: String| pktline::write(&mut out, format!("{text}\n").as_bytes());
    line("command=fetch".to_owned());
    if digits == 64 {
        line("object-format=sha256".to_owned());
    }
    out.extend_from_slice(DELIMITER);
    let mut line = |text: String| pktline::write(&mut out, format!("{text}\n").as_bytes());
    line("ofs-delta".to_owned());
    line("no-progress".to_owned());
    for object in &wanted.objects {
        line(format!("want {object}"));
    }
    for have in wanted.have {
        line(format!("have {have}"));
    }
    if wanted.alone {
        line("deepen 1".to_owned());
    }
    if let Some(filter) = wanted.filter {
        line(format!("filter {filter}"));
    }
    line("done".to_owned());
    out.extend_from_slice(pktline::FLUSH);
    out
}

/// The pack in an answer. A host that says an error, or nothing that is an answer, ends it with one.
fn packfile(chunks: Chunks, redactor: Arc<Redactor>) -> Chunks {
    let answer = Answer { reader: Reader::default(), redactor, in_pack: false, ended: false };
    let state = Some((answer, chunks));
    stream::unfold(state, |state| async move {
        let (mut answer, mut chunks) = state?;
        loop {
            match answer.next() {
                Ok(Some(piece)) => return Some((Ok(piece), Some((answer, chunks)))),
                Ok(None) if answer.ended => return None,
                Ok(None) => {}
                Err(error) => return Some((Err(error.into()), None)),
            }
            match chunks.next().await {
                Some(Ok(chunk)) => answer.reader.push(&chunk),
                Some(Err(error)) => return Some((Err(error), None)),
                None => return Some((Err(BaseError::Protocol.into()), None)),
            }
        }
    })
    .boxed()
}

struct Answer {
    reader: Reader,
    redactor: Arc<Redactor>,
    in_pack: bool,
    ended: bool,
}

impl Answer {
    fn next(&mut self) -> Result<Option<Bytes>, BaseError> {
        while let Some(packet) = self.reader.next().map_err(|_| BaseError::Protocol)? {
            match packet {
                Packet::Data(data) if self.in_pack => match data.first() {
                    Some(1) => return Ok(Some(data.slice(1..))),
                    Some(3) => return Err(BaseError::Host(words(&data[1..], &self.redactor))),
                    Some(_) | None => {}
                },
                Packet::Data(data) if data.starts_with(b"ERR ") => {
                    return Err(BaseError::Host(words(&data[4..], &self.redactor)));
                }
                Packet::Data(data) => self.in_pack = data.trim_ascii_end() == b"packfile",
                Packet::Flush if self.in_pack => {
                    self.ended = true;
                    return Ok(None);
                }
                Packet::Flush | Packet::Special => {}
            }
        }
        Ok(None)
    }
}

/// Somebody else's words, on one line, without live secrets. They are taken out before the words are cut: the beginning of
/// one would not be found any more.
pub(super) fn words(text: &[u8], redactor: &Redactor) -> String {
    let text = String::from_utf8_lossy(text);
    let line: String = redactor.text(&text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.trim().chars().take(WORDS_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "ghp_canaryTokenOfTheHost0123";

    fn packets(lines: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            if *line == DELIMITER || *line == pktline::FLUSH {
                out.extend_from_slice(line);
            } else {
                pktline::write(&mut out, line);
            }
        }
        out
    }

    async fn pack_of(bytes: &[u8], size: usize) -> Result<Vec<u8>, String> {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let redactor = Arc::new(Redactor::new([&secrecy::SecretString::from(TOKEN)]));
        let mut chunks = packfile(stream::iter(pieces).boxed(), redactor);
        let mut all = Vec::new();
        while let Some(chunk) = chunks.next().await {
            all.extend_from_slice(&chunk.map_err(|error| error.to_string())?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_pack_is_taken_out_of_its_answer_however_it_is_cut() {
        let answer = packets(&[
            b"shallow-info\n",
            b"shallow 1111\n",
            DELIMITER,
            b"packfile\n",
            b"\x02counting\n",
            b"\x01PACK",
            b"\x01more",
            pktline::FLUSH,
        ]);
        for size in [1, 7, 1000] {
            assert_eq!(pack_of(&answer, size).await.unwrap(), b"PACKmore");
            assert!(pack_of(&answer[..answer.len() - 4], size).await.is_err());
        }
        let refused = packets(&[b"ERR upload-pack: not our ref\x1b[2J\n"]);
        assert_eq!(
            pack_of(&refused, 9).await.unwrap_err(),
            "the git host said: upload-pack: not our ref [2J"
        );
        let failed = packets(&[b"packfile\n", b"\x01PA", b"\x03out of memory"]);
        assert_eq!(pack_of(&failed, 9).await.unwrap_err(), "the git host said: out of memory");
    }

    #[tokio::test]
    async fn a_secret_in_a_hosts_words_goes_before_they_are_cut() {
        for fill in WORDS_CHARS - TOKEN.len()..WORDS_CHARS {
            let said = format!("ERR {}{TOKEN} {TOKEN}", "x".repeat(fill));
            let told = pack_of(&packets(&[said.as_bytes()]), 1000).await.unwrap_err();
            assert!(!told.contains("ghp_") && told.chars().count() <= WORDS_CHARS + 30, "{told}");
        }
    }

    #[test]
    fn a_request_says_what_is_wanted_and_what_is_left_out() {
        let wanted = Wanted {
            objects: vec!["1".repeat(40)],
            have: &["2222".to_owned()],
            alone: true,
            filter: Some("blob:none"),
        };
        let text = String::from_utf8(request(&wanted)).unwrap();
        assert!(text.starts_with("0012command=fetch\n0001000eofs-delta\n0010no-progress\n0032want 1111"));
        assert!(text.ends_with("have 2222\n000ddeepen 1\n0015filter blob:none\n0009done\n0000"), "{text}");
        let wanted = Wanted { objects: vec!["1".repeat(64)], ..Wanted::default() };
        assert!(String::from_utf8(request(&wanted)).unwrap().contains("object-format=sha256\n0001"));
    }
}
