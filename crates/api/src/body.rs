//! Bodies of requests, read within bounds of size and time.

use std::time::Duration;

use axum::body::Body;
use caisson_domain::json::{JSON_VALUES, values};
use caisson_domain::limits::API_BODY_BYTES;
use futures_util::StreamExt;
use http::header;
use http::request::Parts;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use crate::access::VALID_FOR;
use crate::auth::Opener;
use crate::config::ApiLimits;
use crate::problem::ApiError;
use crate::state::App;

/// Bytes of a body beyond its bound that are read and thrown away before the answer.
pub(crate) const DISCARDED_BYTES: usize = 16 * 1024 * 1024;

/// Whether so much JSON may be read as a tree.
///
/// # Errors
/// [`ApiError::BodyTooComplex`].
pub(crate) fn check_values(json: &[u8]) -> Result<(), ApiError> {
    if values(json) > JSON_VALUES { Err(ApiError::BodyTooComplex) } else { Ok(()) }
}

/// A body that was read; a large one holds a place among few as long as this is.
pub(crate) struct Large {
    pub(crate) bytes: Vec<u8>,
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

/// Reads the body of the request that `parts` are of, up to [`API_BODY_BYTES`], in [`ApiLimits::body_read`].
///
/// # Errors
/// [`ApiError::BodyTooLarge`], [`ApiError::BodyTimeout`], [`ApiError::BodyBroken`]; [`ApiError::KeyRefused`] if the key was
/// revoked or expired while a slow one came; as every read of the store.
/// # Cancel safety
/// What was read is lost.
pub(crate) async fn read_body(app: &App, parts: &Parts, body: Body) -> Result<Vec<u8>, ApiError> {
    let mut pace = Pace::begin(&app.config().limits);
    let kept = read_some(body, API_BODY_BYTES, &mut pace, Places::None).await?;
    judge_again(app, parts, pace.called).await?;
    Ok(kept.bytes)
}

/// Reads a body up to `most_bytes`. One that is longer than [`API_BODY_BYTES`] needs one of the server's places for such, and has more
/// time the more of it has come: so whoever sends steadily, if slowly, gets through, and whoever trickles does not hold a place.
///
/// # Errors
/// As [`read_body`], and [`ApiError::LargeBodiesFull`].
/// # Cancel safety
/// What was read is lost, and the place given back.
pub(crate) async fn read_large(
    app: &App,
    parts: &Parts,
    body: Body,
    most_bytes: usize,
) -> Result<Large, ApiError> {
    let mut pace = Pace::begin(&app.config().limits);
    let declared =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    pace.grows = declared.is_some_and(|bytes: u64| bytes > API_BODY_BYTES as u64);
    let kept = read_some(body, most_bytes, &mut pace, Places::Of(app)).await?;
    judge_again(app, parts, pace.called).await?;
    Ok(kept)
}

/// Refuses whoever's key was revoked or has expired since the request was let in: else one could be begun before, and its last byte
/// kept back for later.
async fn judge_again(app: &App, parts: &Parts, called: Instant) -> Result<(), ApiError> {
    match parts.extensions.get::<Opener>() {
        Some(Opener(key)) if called.elapsed() >= VALID_FOR => {
            app.access().still_opens(app.store(), key).await
        }
        _ => Ok(()),
    }
}

/// Where a large body finds its place.
#[derive(Clone, Copy)]
enum Places<'a> {
    /// It needs none: none is taken.
    None,
    Of(&'a App),
}

/// How much time a body has.
struct Pace {
    called: Instant,
    /// From when on its time counts.
    begun: Instant,
    first: Duration,
    bytes_per_s: u32,
    /// The longest wait for a place; the wait itself does not count.
    place_wait: Duration,
    /// Whether there is more of it the more has come.
    grows: bool,
}

impl Pace {
    fn begin(limits: &ApiLimits) -> Self {
        let now = Instant::now();
        Self {
            called: now,
            begun: now,
            first: limits.body_read,
            bytes_per_s: limits.body_bytes_per_s,
            place_wait: limits.large_body_wait,
            grows: false,
        }
    }

    /// Until when the next piece must be there, when so much has come.
    fn deadline(&self, total_bytes: usize) -> Instant {
        let more = if self.grows { time_for(total_bytes, self.bytes_per_s) } else { Duration::ZERO };
        self.begun + self.first + more
    }
}

/// How long so many bytes take at so many a second.
fn time_for(bytes: usize, bytes_per_s: u32) -> Duration {
    let ms = (bytes as u64).saturating_mul(1000) / u64::from(bytes_per_s.max(1));
    Duration::from_millis(ms)
}

/// Reads a body. What is too long, or has no place, is read on for a while and thrown away: many a client sends all of it before it
/// reads the answer, and a connection closed before that would break the answer off.
async fn read_some(
    body: Body,
    most_bytes: usize,
    pace: &mut Pace,
    places: Places<'_>,
) -> Result<Large, ApiError> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut total_bytes, mut permit) = (Vec::new(), 0_usize, None);
    let mut refused = None;
    loop {
        let next = timeout_at(pace.deadline(total_bytes), chunks.next()).await;
        let chunk = match next {
            Err(_) => return Err(refused.unwrap_or(ApiError::BodyTimeout)),
            Ok(None) => break,
            Ok(Some(chunk)) => chunk.map_err(|_| ApiError::BodyBroken)?,
        };
        total_bytes += chunk.len();
        if total_bytes > API_BODY_BYTES
            && permit.is_none()
            && refused.is_none()
            && let Places::Of(app) = places
        {
            pace.grows = true;
            let before = Instant::now();
            if let Ok(given) = timeout(pace.place_wait, app.large_body()).await {
                permit = Some(given?);
            } else {
                (refused, bytes) = (Some(ApiError::LargeBodiesFull), Vec::new());
            }
            pace.begun += before.elapsed();
        }
        if total_bytes > most_bytes && refused.is_none() {
            (refused, bytes) = (Some(ApiError::BodyTooLarge(most_bytes)), Vec::new());
        }
        if total_bytes > most_bytes + DISCARDED_BYTES {
            break;
        }
        if refused.is_none() {
            bytes.extend_from_slice(&chunk);
        }
    }
    match refused {
        Some(refused) => Err(refused),
        None => Ok(Large { bytes, place: permit }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use caisson_domain::attachment::ATTACHMENT_BODY_BYTES;
    use futures_util::stream;

    use super::*;

    const PIECE_BYTES: usize = 64 * 1024;

    /// A body of so many pieces, before each of which so long nothing comes.
    fn paced(pieces: usize, pause: Duration) -> Body {
        Body::from_stream(stream::iter(0..pieces).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::io::Error>(vec![b' '; PIECE_BYTES])
        }))
    }

    async fn read(body: Body, grows: bool) -> Result<usize, ApiError> {
        let mut pace = Pace { grows, ..Pace::begin(&ApiLimits::default()) };
        let read = read_some(body, ATTACHMENT_BODY_BYTES, &mut pace, Places::None).await;
        read.map(|read| read.bytes.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_that_comes_steadily_is_taken_however_long_it_takes_and_one_that_trickles_is_not() {
        let limits = ApiLimits::default();
        let pieces = ATTACHMENT_BODY_BYTES / PIECE_BYTES;
        let at_the_rate = time_for(PIECE_BYTES, limits.body_bytes_per_s);
        assert_eq!(at_the_rate, Duration::from_secs(1));
        let begun = Instant::now();
        assert_eq!(read(paced(pieces, at_the_rate), true).await.unwrap(), pieces * PIECE_BYTES);
        assert!(begun.elapsed() > 10 * limits.body_read, "{:?}", begun.elapsed());
        // What it has at first is used up a little with each piece that comes later than that.
        let begun = Instant::now();
        let slower = read(paced(pieces, at_the_rate + Duration::from_millis(200)), true).await;
        assert!(matches!(slower, Err(ApiError::BodyTimeout)), "{slower:?}");
        assert!(begun.elapsed() < 7 * limits.body_read, "{:?}", begun.elapsed());
        let nothing_more = paced(1, Duration::ZERO).into_data_stream().chain(stream::pending());
        let begun = Instant::now();
        let stopped = read(Body::from_stream(nothing_more), true).await;
        assert!(matches!(stopped, Err(ApiError::BodyTimeout)), "{stopped:?}");
        assert_eq!(begun.elapsed().as_secs(), (limits.body_read + at_the_rate).as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_the_usual_size_has_its_time_and_no_more() {
        let first = ApiLimits::default().body_read;
        let pieces = API_BODY_BYTES / PIECE_BYTES;
        let pause = first / u32::try_from(pieces).unwrap();
        assert_eq!(
            read(paced(pieces, pause.checked_sub(Duration::from_millis(2)).unwrap()), false).await.unwrap(),
            API_BODY_BYTES
        );
        let late = read(paced(pieces, pause + Duration::from_millis(2)), false).await;
        assert!(matches!(late, Err(ApiError::BodyTimeout)), "{late:?}");
    }

    #[tokio::test]
    async fn of_a_body_without_end_so_much_is_thrown_away_and_no_more() {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let pieces = stream::repeat_with(move || {
            counted.fetch_add(PIECE_BYTES, Ordering::Relaxed);
            Ok::<_, std::io::Error>(vec![b' '; PIECE_BYTES])
        });
        let mut pace = Pace::begin(&ApiLimits::default());
        let refused = read_some(Body::from_stream(pieces), API_BODY_BYTES, &mut pace, Places::None).await;
        assert!(matches!(refused, Err(ApiError::BodyTooLarge(API_BODY_BYTES))));
        let most = API_BODY_BYTES + DISCARDED_BYTES;
        let read = read.load(Ordering::Relaxed);
        assert!(read > most && read <= most + PIECE_BYTES, "{read}");
    }
}
