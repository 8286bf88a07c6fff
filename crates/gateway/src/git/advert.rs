//! The list of refs that a push begins with, with one word more.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use super::pktline::{self, Packet, Reader};
use crate::body::Chunks;

/// Asks the client for packs that hold everything they build on (gitprotocol-capabilities(5)): what is looked at before it
/// is forwarded can then be read by itself.
const WHOLE: &[u8] = b" no-thin";
/// Packets before the one with the capabilities: the service's name and its flush.
const PACKETS_BEFORE: usize = 2;

/// The list with [`WHOLE`] behind its capabilities. What is no such list passes as it is.
pub(super) fn asking_for_whole_packs(chunks: Chunks) -> Chunks {
    let state = Some((Some((Reader::default(), 0)), chunks));
    stream::unfold(state, |state| async move {
        let (mut reading, mut chunks) = state?;
        loop {
            let chunk = match chunks.next().await {
                None => {
                    let rest = reading.map(|(reader, _)| reader.into_rest()).unwrap_or_default();
                    return (!rest.is_empty()).then_some((Ok(rest), None));
                }
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Some((Err(error), None)),
            };
            let Some((mut reader, mut seen)) = reading.take() else {
                return Some((Ok(chunk), Some((None, chunks))));
            };
            reader.push(&chunk);
            let mut out = Vec::new();
            let done = rewrite(&mut reader, &mut seen, &mut out);
            if done {
                out.extend_from_slice(&reader.into_rest());
            } else {
                reading = Some((reader, seen));
            }
            if !out.is_empty() {
                return Some((Ok(Bytes::from(out)), Some((reading, chunks))));
            }
        }
    })
    .boxed()
}

/// Passes packets on up to the one with the capabilities; whether that was it, or will not come.
fn rewrite(reader: &mut Reader, seen: &mut usize, out: &mut Vec<u8>) -> bool {
    while *seen <= PACKETS_BEFORE {
        match reader.next() {
            Ok(Some(Packet::Data(line))) if line.contains(&0) => {
                let text = line.strip_suffix(b"\n").unwrap_or(&line);
                pktline::write(out, &[text, WHOLE, b"\n"].concat());
                return true;
            }
            Ok(Some(Packet::Data(line))) => pktline::write(out, &line),
            Ok(Some(Packet::Flush)) => out.extend_from_slice(pktline::FLUSH),
            Ok(None) => return false,
            Ok(Some(Packet::Special)) | Err(_) => return true,
        }
        *seen += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn passed(bytes: &[u8], size: usize) -> Vec<u8> {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let chunks = asking_for_whole_packs(stream::iter(pieces).boxed());
        let pieces: Vec<_> = chunks.collect().await;
        pieces.into_iter().flat_map(|piece| piece.unwrap().to_vec()).collect()
    }

    #[tokio::test]
    async fn the_capabilities_get_one_word_more_however_the_list_is_cut() {
        let list = |capabilities: &str| {
            let mut out = Vec::new();
            pktline::write(&mut out, b"# service=git-receive-pack\n");
            out.extend_from_slice(pktline::FLUSH);
            pktline::write(&mut out, format!("1111 refs/heads/a\0{capabilities}\n").as_bytes());
            pktline::write(&mut out, b"2222 refs/heads/b\0not again\n");
            out.extend_from_slice(pktline::FLUSH);
            out
        };
        for size in [1, 9, 1000] {
            assert_eq!(passed(&list("report-status"), size).await, list("report-status no-thin"));
            for other in [&b"no list at all"[..], b"0000", b"", b"0001"] {
                assert_eq!(passed(other, size).await, if other == b"0001" { b"" } else { other });
            }
        }
    }
}
