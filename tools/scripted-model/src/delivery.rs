//! Sends the acts of a reply at their pace, compressed if need be, and tells the witness.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;

use crate::acts::{Act, Piece};
use crate::record::{Outcome, Serving};
use crate::step::MAX_DELAY_MS;

/// Longest silence of a stall or a hang; the connection is cut then.
pub const MAX_SILENCE: Duration = Duration::from_hours(1);
/// Greatest factor for delays.
pub const MAX_DELAY_SCALE: f64 = 100.0;

/// A factor for every delay of every scenario, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DelayScale(f64);

/// A delay factor is not between 0 and [`MAX_DELAY_SCALE`].
#[derive(Debug, thiserror::Error)]
#[error("the delay scale must be between 0 and {MAX_DELAY_SCALE}")]
pub struct DelayScaleError;

impl DelayScale {
    /// Checks a factor.
    ///
    /// # Errors
    /// [`DelayScaleError`] when it is not a number between 0 and [`MAX_DELAY_SCALE`].
    pub fn new(factor: f64) -> Result<Self, DelayScaleError> {
        if (0.0..=MAX_DELAY_SCALE).contains(&factor) { Ok(Self(factor)) } else { Err(DelayScaleError) }
    }

    /// Waits so many milliseconds times the factor.
    pub(crate) async fn wait(self, delay_ms: u64) {
        let delay = Duration::from_millis(delay_ms.min(MAX_DELAY_MS)).mul_f64(self.0);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }
}

impl Default for DelayScale {
    fn default() -> Self {
        Self(1.0)
    }
}

impl std::str::FromStr for DelayScale {
    type Err = DelayScaleError;

    fn from_str(text: &str) -> Result<Self, DelayScaleError> {
        text.parse().map_err(|_| DelayScaleError).and_then(Self::new)
    }
}

/// How fast and in which form a body is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) chunk_delay_ms: u64,
    pub(crate) scale: DelayScale,
    pub(crate) gzip: bool,
}

/// The body ends here without its end, so that the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("the scenario cuts the connection here")]
pub(crate) struct CutHere;

struct Delivery {
    acts: VecDeque<Act>,
    manner: Manner,
    encoder: Option<GzEncoder<Vec<u8>>>,
    serving: Serving,
}

/// Makes the body that performs `acts` as it is read.
pub(crate) fn body(acts: VecDeque<Act>, manner: Manner, serving: Serving) -> Body {
    let encoder = manner.gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    Body::from_stream(stream::unfold(Delivery { acts, manner, encoder, serving }, Delivery::next))
}

impl Delivery {
    async fn next(mut self) -> Option<(Result<Bytes, CutHere>, Self)> {
        match self.acts.pop_front()? {
            Act::Send(piece) => {
                if piece.paced {
                    self.manner.scale.wait(self.manner.chunk_delay_ms).await;
                }
                Some((Ok(self.send(piece)), self))
            }
            Act::Cut => {
                // One turn for the connection to send what it has: an error makes it drop the rest.
                tokio::task::yield_now().await;
                self.serving.finish(Outcome::Cut);
                Some((Err(CutHere), self))
            }
            Act::Stall => {
                self.serving.expect_drop(Outcome::Stalled);
                tokio::time::sleep(MAX_SILENCE).await;
                self.serving.finish(Outcome::Stalled);
                Some((Err(CutHere), self))
            }
        }
    }

    /// Notes a piece as served at the moment it is handed over, and the end with the last piece: a connection need
    /// not ask again after the last byte it was promised.
    fn send(&mut self, piece: Piece) -> Bytes {
        let last = self.acts.is_empty();
        let bytes = self.encode(piece.bytes, last);
        self.serving.sent(bytes.len(), piece.usage);
        if last {
            self.serving.finish(Outcome::Complete);
        }
        bytes
    }

    /// Compresses a piece so that the client can read it without the next one.
    fn encode(&mut self, plain: Bytes, last: bool) -> Bytes {
        let Some(mut encoder) = self.encoder.take() else { return plain };
        let proof = "writing to memory does not fail";
        encoder.write_all(&plain).expect(proof);
        if last {
            return encoder.finish().expect(proof).into();
        }
        encoder.flush().expect(proof);
        let compressed = std::mem::take(encoder.get_mut());
        self.encoder = Some(encoder);
        compressed.into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;
    use crate::record::{Record, Witness};

    fn piece(text: &'static str, paced: bool) -> Act {
        Act::Send(Piece { bytes: text.into(), paced, usage: None })
    }

    fn serving() -> (std::sync::Arc<Witness>, Serving) {
        let witness = Witness::open(None, tokio_util::sync::CancellationToken::new()).unwrap();
        let record: Record = serde_json::from_value(serde_json::json!({
            "seq": 0, "at_ms": 0, "method": "POST", "path": "/", "body_bytes": 0, "body_sha256": "", "headers": {},
            "usage_final": false, "bytes_served": 0, "outcome": "open",
        }))
        .unwrap();
        let serving = witness.begin(record);
        (witness, serving)
    }

    fn manner(chunk_delay_ms: u64, factor: f64, gzip: bool) -> Manner {
        Manner { chunk_delay_ms, scale: DelayScale::new(factor).unwrap(), gzip }
    }

    #[tokio::test(start_paused = true)]
    async fn only_paced_pieces_wait_and_the_scale_counts() {
        for (factor, expected_ms) in [(1.0, 20), (2.5, 50), (0.0, 0)] {
            let (_witness, serving) = serving();
            let acts = [piece("a", false), piece("b", true), piece("c", true)].into();
            let started = Instant::now();
            let body = body(acts, manner(10, factor, false), serving).collect().await.unwrap();
            assert_eq!(body.to_bytes(), "abc");
            assert_eq!(started.elapsed(), Duration::from_millis(expected_ms));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_cut_after_the_longest_silence() {
        let (witness, serving) = serving();
        let started = Instant::now();
        let result =
            body([piece("a", false), Act::Stall].into(), manner(0, 0.0, false), serving).collect().await;
        assert!(result.is_err());
        assert_eq!(started.elapsed(), MAX_SILENCE);
        assert_eq!(witness.records()[0].outcome, Outcome::Stalled);
    }

    #[tokio::test]
    async fn every_compressed_piece_can_be_read_on_its_own() {
        let (witness, serving) = serving();
        let mut body =
            body([piece("first", false), piece("second", false)].into(), manner(0, 1.0, true), serving);
        let mut compressed = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
        let mut start = [0; 5];
        flate2::read::GzDecoder::new(compressed.as_slice()).read_exact(&mut start).unwrap();
        assert_eq!(&start, b"first");
        compressed.extend(body.collect().await.unwrap().to_bytes());
        let mut whole = String::new();
        flate2::read::GzDecoder::new(compressed.as_slice()).read_to_string(&mut whole).unwrap();
        assert_eq!(whole, "firstsecond");
        let record = &witness.records()[0];
        assert_eq!((record.outcome, record.bytes_served), (Outcome::Complete, compressed.len() as u64));
    }

    #[test]
    fn the_scale_has_bounds() {
        assert!(DelayScale::new(0.0).is_ok());
        assert!(DelayScale::new(MAX_DELAY_SCALE).is_ok());
        for odd in [-0.1, MAX_DELAY_SCALE + 0.1, f64::NAN] {
            assert!(DelayScale::new(odd).is_err());
        }
        assert_eq!("0".parse::<DelayScale>().unwrap(), DelayScale(0.0));
        assert!("fast".parse::<DelayScale>().is_err());
    }
}
