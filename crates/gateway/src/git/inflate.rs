//! Decoding a request that git sent compressed.

use std::io::Write;

use bytes::Bytes;
use caisson_store::BoxError;
use flate2::write::MultiGzDecoder;
use futures_util::stream::{self, StreamExt};

use crate::body::Chunks;

/// Input decoded at once, in bytes: its output is at most about a thousand times as large.
const INPUT_BYTES: usize = 1024;

struct State {
    chunks: Chunks,
    input: Bytes,
    decoder: MultiGzDecoder<Vec<u8>>,
}

/// The decoded bytes, as they come. The caller bounds them.
pub(super) fn gunzip(chunks: Chunks) -> Chunks {
    let state = State { chunks, input: Bytes::new(), decoder: MultiGzDecoder::new(Vec::new()) };
    stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(state))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl State {
    async fn next(&mut self) -> Result<Option<Bytes>, BoxError> {
        loop {
            if self.input.is_empty() {
                match self.chunks.next().await {
                    None => {
                        self.decoder.try_finish()?;
                        let rest = std::mem::take(self.decoder.get_mut());
                        return Ok((!rest.is_empty()).then(|| rest.into()));
                    }
                    Some(chunk) => self.input = chunk?,
                }
                continue;
            }
            let piece = self.input.split_to(self.input.len().min(INPUT_BYTES));
            self.decoder.write_all(&piece)?;
            self.decoder.flush()?;
            let output = std::mem::take(self.decoder.get_mut());
            if !output.is_empty() {
                return Ok(Some(output.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    async fn read(packed: Vec<u8>, size: usize) -> Result<Vec<u8>, BoxError> {
        let pieces: Vec<Result<Bytes, BoxError>> =
            packed.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let mut chunks = gunzip(stream::iter(pieces).boxed());
        let mut all = Vec::new();
        while let Some(chunk) = chunks.next().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn bytes_come_back_whole_however_they_are_cut() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for size in [1, 1000, 1 << 20] {
            assert_eq!(read(gzip(&text), size).await.unwrap(), text);
        }
        assert!(read(gzip(b""), 5).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_cut_or_broken_stream_is_an_error() {
        let mut packed = gzip(&[7; 5000]);
        assert!(read(b"no gzip at all".to_vec(), 3).await.is_err());
        packed.truncate(packed.len() - 9);
        assert!(read(packed, 4).await.is_err());
    }
}
