//! The circuit breaker before `PostgreSQL`.
//!
//! A call that gets no connection has waited for one for `acquire_timeout_ms`, and the driver has tried again all the while: an
//! outage that is shorter than that is waited out and fails nobody. When several calls in a row got none because none could be
//! made, those that come next are refused at once instead of waiting as well, and one at a time is let through to look, after
//! waits that grow. The first connection that is had, by whomever, ends it.
//!
//! Connections that are all in use are no failure of the database's, and are not counted.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Database;
use crate::{Random, Store};

/// Calls in a row that got no connection, after which the next ones are refused.
pub const BREAKER_FAILURES: u32 = 3;
/// How long ago the first of them came at least, in milliseconds: what fails in one moment is no outage.
pub const BREAKER_SPAN_MS: u64 = 1_000;
/// The first wait before a call is let through to look, in milliseconds. Chance takes up to half of each wait away, so that
/// servers do not come at the same moment.
pub const BREAKER_WAIT_MS_MIN: u64 = 250;
/// The longest such wait, in milliseconds; each is twice as long as the one before.
pub const BREAKER_WAIT_MS_MAX: u64 = 5_000;

/// How the breaker before the database stands, and what it did since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BreakerState {
    /// Whether calls are refused at once, since the database gave no connection for a while.
    pub is_open: bool,
    /// How often that began.
    pub opened: u64,
    /// Calls that were refused so.
    pub refused: u64,
}

impl Store {
    /// How the breaker before `PostgreSQL` stands. On `SQLite`, which has no connections to lose, it is never open.
    #[must_use]
    pub fn breaker(&self) -> BreakerState {
        match &self.shared.database {
            Database::Sqlite(_) => BreakerState::default(),
            Database::Postgres(database) => database.writer.breaker().state(),
        }
    }
}

/// What all calls to one database pass before they have a connection.
#[derive(Debug)]
pub(crate) struct Breaker {
    inner: Mutex<Inner>,
    random: Random,
}

#[derive(Debug)]
struct Inner {
    standing: Standing,
    /// Looks so far; numbers them.
    looks: u64,
    opened: u64,
    refused: u64,
}

#[derive(Debug)]
enum Standing {
    /// Calls pass.
    Closed(Failed),
    /// None passes until then; the wait was that long, but for what chance took away.
    Open { until: Instant, wait: Duration },
    /// One has passed and is not back yet.
    Looking { look: u64, wait: Duration },
}

/// Calls in a row that got no connection.
#[derive(Debug, Default)]
struct Failed {
    calls: u32,
    /// When the first of them came.
    since: Option<Instant>,
}

impl Breaker {
    pub(crate) fn new(random: Random) -> Self {
        let standing = Standing::Closed(Failed::default());
        Self { inner: Mutex::new(Inner { standing, looks: 0, opened: 0, refused: 0 }), random }
    }

    /// Lets a call through, or refuses it at once.
    pub(super) fn pass(&self) -> Result<Pass<'_>, sqlx::Error> {
        let came = Instant::now();
        let mut inner = self.lock();
        let look = match inner.standing {
            Standing::Closed(_) => None,
            Standing::Open { until, wait } if until <= came => {
                inner.looks += 1;
                let look = inner.looks;
                inner.standing = Standing::Looking { look, wait };
                Some(look)
            }
            Standing::Open { .. } | Standing::Looking { .. } => {
                inner.refused += 1;
                return Err(refused());
            }
        };
        Ok(Pass { breaker: self, came, look })
    }

    /// How it stands.
    pub(super) fn state(&self) -> BreakerState {
        let inner = self.lock();
        let is_open = !matches!(inner.standing, Standing::Closed(_));
        BreakerState { is_open, opened: inner.opened, refused: inner.refused }
    }

    fn closes(&self) {
        let mut inner = self.lock();
        if !matches!(inner.standing, Standing::Closed(_)) {
            tracing::info!("PostgreSQL gives connections again");
        }
        inner.standing = Standing::Closed(Failed::default());
    }

    fn failed(&self, came: Instant, look: Option<u64>) {
        let mut inner = self.lock();
        let wait = match &mut inner.standing {
            Standing::Closed(failed) => {
                failed.calls = failed.calls.saturating_add(1);
                let since = failed.since.map_or(came, |since| since.min(came));
                failed.since = Some(since);
                let span = Duration::from_millis(BREAKER_SPAN_MS);
                if failed.calls < BREAKER_FAILURES || since.elapsed() < span {
                    return;
                }
                inner.opened += 1;
                tracing::warn!(
                    "PostgreSQL gives no connections: calls are refused at once, and one at a time looks for it"
                );
                Duration::from_millis(BREAKER_WAIT_MS_MIN)
            }
            Standing::Looking { look: current, wait } if look == Some(*current) => {
                wait.saturating_mul(2).min(Duration::from_millis(BREAKER_WAIT_MS_MAX))
            }
            // It came before the others gave up.
            Standing::Open { .. } | Standing::Looking { .. } => return,
        };
        self.opens(&mut inner, wait);
    }

    /// Whoever looked has given up before there was an answer, which says nothing: the next look is no later for it.
    fn left(&self, look: u64) {
        let mut inner = self.lock();
        if let Standing::Looking { look: current, wait } = inner.standing
            && current == look
        {
            self.opens(&mut inner, wait);
        }
    }

    fn opens(&self, inner: &mut Inner, wait: Duration) {
        let until = Instant::now() + shortened(wait, self.random.bytes());
        inner.standing = Standing::Open { until, wait };
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves no half of a change behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that was let through, until it is known whether it got a connection. Dropping it says that nobody will know.
#[derive(Debug)]
pub(super) struct Pass<'b> {
    breaker: &'b Breaker,
    came: Instant,
    look: Option<u64>,
}

impl Pass<'_> {
    /// It got a connection that works.
    pub(super) fn got_one(mut self) {
        self.look = None;
        self.breaker.closes();
    }

    /// It got none, since none could be made.
    pub(super) fn got_none(mut self) {
        let look = self.look.take();
        self.breaker.failed(self.came, look);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(look) = self.look {
            self.breaker.left(look);
        }
    }
}

fn refused() -> sqlx::Error {
    let text = "PostgreSQL gave no connection for a while, and is asked again in a moment";
    sqlx::Error::Io(io::Error::new(io::ErrorKind::NotConnected, text))
}

/// Between half of a wait and the whole.
fn shortened(wait: Duration, random: [u8; 2]) -> Duration {
    let half = wait / 2;
    half + half * u32::from(u16::from_be_bytes(random)) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_millis(BREAKER_SPAN_MS);
    const WAIT_MIN: Duration = Duration::from_millis(BREAKER_WAIT_MS_MIN);
    const WAIT_MAX: Duration = Duration::from_millis(BREAKER_WAIT_MS_MAX);

    fn breaker() -> Breaker {
        Breaker::new(Random::seeded(7))
    }

    fn is_open(breaker: &Breaker) -> bool {
        breaker.state().is_open
    }

    /// One that has just opened.
    async fn opened() -> Breaker {
        let breaker = breaker();
        let calls: Vec<_> = (0..BREAKER_FAILURES).map(|_| breaker.pass().unwrap()).collect();
        tokio::time::advance(SPAN).await;
        calls.into_iter().for_each(Pass::got_none);
        assert!(is_open(&breaker));
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_so_many_failures_in_a_row_and_not_before() {
        let breaker = breaker();
        for _ in 1..BREAKER_FAILURES {
            let call = breaker.pass().unwrap();
            tokio::time::advance(SPAN).await;
            call.got_none();
        }
        assert!(!is_open(&breaker));
        breaker.pass().unwrap().got_one();
        for turn in 1..=BREAKER_FAILURES {
            assert!(!is_open(&breaker), "it counts anew after one that worked: {turn}");
            let call = breaker.pass().unwrap();
            tokio::time::advance(SPAN).await;
            call.got_none();
        }
        assert_eq!(breaker.state(), BreakerState { is_open: true, opened: 1, refused: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_one_moment_do_not_open_it() {
        let breaker = breaker();
        for _ in 0..BREAKER_FAILURES * 5 {
            breaker.pass().unwrap().got_none();
        }
        tokio::time::advance(SPAN.saturating_sub(Duration::from_millis(1))).await;
        breaker.pass().unwrap().got_none();
        assert!(!is_open(&breaker));
        tokio::time::advance(Duration::from_millis(1)).await;
        breaker.pass().unwrap().got_none();
        assert!(is_open(&breaker));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_given_up_or_find_everything_in_use_say_nothing() {
        let breaker = breaker();
        for _ in 0..BREAKER_FAILURES * 2 {
            let call = breaker.pass().unwrap();
            tokio::time::advance(SPAN).await;
            drop(call);
        }
        assert!(!is_open(&breaker));
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_is_open_calls_are_refused_and_one_at_a_time_looks_after_waits_that_grow() {
        let breaker = opened().await;
        assert!(breaker.pass().is_err());
        let (mut wait, mut looks) = (WAIT_MIN, 0);
        while looks < 8 {
            tokio::time::advance((wait / 2).saturating_sub(Duration::from_millis(1))).await;
            assert!(breaker.pass().is_err(), "not before half of {wait:?}");
            tokio::time::advance(wait / 2 + Duration::from_millis(1)).await;
            let look = breaker.pass().unwrap();
            assert!(breaker.pass().is_err(), "one at a time");
            look.got_none();
            looks += 1;
            wait = (wait * 2).min(WAIT_MAX);
        }
        assert_eq!(wait, WAIT_MAX);
        tokio::time::advance(WAIT_MAX).await;
        breaker.pass().unwrap().got_one();
        let state = breaker.state();
        assert_eq!((state.is_open, state.opened, state.refused), (false, 1, 17));
        let many: Vec<_> = (0..10).map(|_| breaker.pass().unwrap()).collect();
        drop(many);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_is_given_up_keeps_nobody_from_looking() {
        let breaker = opened().await;
        for _ in 0..3 {
            tokio::time::advance(WAIT_MIN).await;
            drop(breaker.pass().unwrap());
            assert!(breaker.pass().is_err());
        }
        tokio::time::advance(WAIT_MIN).await;
        breaker.pass().unwrap().got_one();
        assert!(!is_open(&breaker));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_of_before_closes_it_and_opens_it_no_wider() {
        let breaker = breaker();
        let (late, lucky) = (breaker.pass().unwrap(), breaker.pass().unwrap());
        for _ in 0..BREAKER_FAILURES {
            let call = breaker.pass().unwrap();
            tokio::time::advance(SPAN).await;
            call.got_none();
        }
        tokio::time::advance(WAIT_MIN).await;
        let look = breaker.pass().unwrap();
        late.got_none();
        assert!(breaker.pass().is_err(), "the look is still under way");
        lucky.got_one();
        assert!(!is_open(&breaker));
        look.got_none();
        assert!(!is_open(&breaker), "one failure");
    }

    #[test]
    fn chance_takes_up_to_half_of_a_wait_away() {
        assert_eq!(shortened(WAIT_MAX, [0, 0]), WAIT_MAX / 2);
        assert_eq!(shortened(WAIT_MAX, [255, 255]), WAIT_MAX);
    }
}
