//! When a model call is tried again, and how long after: pure but for the copy of the request.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::bounds::RETRY_MOST;
use crate::shared::Shared;

/// Header by which the model API says itself whether trying again makes sense. Source: Anthropic's client libraries.
const SHOULD_RETRY: &str = "x-should-retry";

/// What a refusal of the model API says about trying again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Advice {
    /// Not before this long.
    pub(super) after: Option<Duration>,
    /// It is of no use.
    pub(super) never: bool,
}

impl Advice {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let millis = text("retry-after-ms").and_then(|text| text.parse().ok()).map(Duration::from_millis);
        // The form with a date is not used by the model API.
        let seconds = text(header::RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
        Self {
            after: millis.or(seconds.map(Duration::from_secs)),
            never: text(SHOULD_RETRY) == Some("false"),
        }
    }
}

/// Whether the same request may succeed a little later.
pub(super) fn may_pass(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) || status.is_server_error()
}

/// The tries of one call. The request is kept while another try may be needed, within a bound for all calls together.
pub(super) struct Tries {
    request: Option<reqwest::Request>,
    /// Whether the request may be kept; its share of the bound.
    copy: Option<OwnedSemaphorePermit>,
    most: u32,
    /// Whether one try more is to be had with another credential.
    spare: bool,
    done: u32,
    began: Instant,
    first: Duration,
    total: Duration,
}

impl Tries {
    /// `renewable`: its credential may be had anew, and then it is tried once more, also after the last try.
    pub(super) fn new(shared: &Shared, request: reqwest::Request, renewable: bool) -> Self {
        let bytes = request.body().and_then(reqwest::Body::as_bytes).map_or(0, <[u8]>::len);
        let copy = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| Arc::clone(&shared.model.copies).try_acquire_many_owned(bytes).ok());
        Self {
            request: Some(request),
            most: if copy.is_some() { shared.bounds.model_tries } else { 1 },
            spare: renewable && copy.is_some(),
            copy,
            done: 0,
            began: Instant::now(),
            first: shared.bounds.retry_first,
            total: shared.bounds.retry_total,
        }
    }

    /// The request of the next try; the last one takes it away.
    pub(super) fn next(&mut self) -> Option<reqwest::Request> {
        self.done += 1;
        let again = self.done < self.most || self.spare;
        match &self.request {
            Some(request) if again => request.try_clone(),
            Some(_) | None => {
                self.copy = None;
                self.request.take()
            }
        }
    }

    /// Has what is tried next carry another credential; false if no copy of the request is kept.
    pub(super) fn renew(&mut self, (name, value): &(HeaderName, HeaderValue)) -> bool {
        let Some(request) = &mut self.request else { return false };
        request.headers_mut().insert(name, value.clone());
        self.spare = false;
        self.most = self.most.max(self.done + 1);
        true
    }

    /// Has what is tried next carry another credential than that of the field `before`.
    pub(super) fn replace(&mut self, before: &HeaderName, (name, value): &(HeaderName, HeaderValue)) {
        if let Some(request) = &mut self.request {
            request.headers_mut().remove(before);
            request.headers_mut().insert(name, value.clone());
        }
    }

    /// How long to wait for the next try; none if there is none. `spread` keeps calls that failed together apart.
    pub(super) fn wait(&self, advice: Advice, spread: u8) -> Option<Duration> {
        if advice.never || self.done >= self.most || self.request.is_none() {
            return None;
        }
        // Bounded here only so that the shift is.
        let doublings = (self.done.max(1) - 1).min(16);
        let step = self.first.saturating_mul(1 << doublings).min(RETRY_MOST);
        // From three quarters to five quarters of a step.
        let step = step.mul_f64(0.75 + 0.5 * f64::from(spread) / 255.0);
        let wait = advice.after.map_or(step, |after| after.max(step));
        (self.began.elapsed().saturating_add(wait) <= self.total).then_some(wait)
    }

    /// Tries and time so far, for people.
    pub(super) fn told(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64();
        let plural = if self.done == 1 { "try" } else { "tries" };
        format!("after {} {plural} in {seconds:.1} s", self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(most: u32) -> Tries {
        let url = "http://h/".parse().unwrap();
        Tries {
            request: Some(reqwest::Request::new(http::Method::POST, url)),
            copy: None,
            most,
            spare: false,
            done: 0,
            began: Instant::now(),
            first: Duration::from_millis(400),
            total: Duration::from_mins(1),
        }
    }

    fn advice(after_s: u64) -> Advice {
        Advice { after: Some(Duration::from_secs(after_s)), never: false }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_their_bound_and_tries_end() {
        let mut tries = tries(9);
        let mut waits = Vec::new();
        while tries.next().is_some() {
            waits.extend(tries.wait(Advice::default(), 0).map(|wait| wait.as_millis()));
        }
        let expected = [300, 600, 1200, 2400, 4800, 9600, 15_000, 15_000];
        assert_eq!(waits, expected);
        assert_eq!((tries.wait(Advice::default(), 0), RETRY_MOST.as_secs()), (None, 20));
    }

    #[test]
    fn another_credential_has_one_try_of_its_own() {
        let header = (header::AUTHORIZATION, HeaderValue::from_static("new"));
        let mut tries = Tries { spare: true, ..tries(1) };
        assert!(tries.next().is_some());
        assert_eq!(tries.wait(Advice::default(), 0), None, "it is for no other fault");
        assert!(tries.renew(&header));
        assert_eq!(tries.next().unwrap().headers()[header::AUTHORIZATION], "new");
        assert!(!tries.renew(&header) && tries.next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_model_apis_own_word_counts_within_the_whole_time() {
        let mut tries = tries(3);
        assert!(tries.next().is_some());
        assert_eq!(tries.wait(advice(7), 255), Some(Duration::from_secs(7)));
        assert_eq!(tries.wait(advice(60), 0), Some(Duration::from_mins(1)));
        assert_eq!(tries.wait(advice(61), 0), None, "it would be too late");
        assert_eq!(tries.wait(Advice { never: true, after: None }, 0), None);
        assert_eq!(tries.wait(Advice::default(), 255), Some(Duration::from_millis(500)), "the spread");
        tokio::time::advance(Duration::from_secs(55)).await;
        assert_eq!(tries.wait(advice(6), 0), None);
        assert_eq!(tries.told(), "after 1 try in 55.0 s");
    }

    #[test]
    fn advice_is_read_from_the_headers() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            Advice::of(&pairs.collect())
        };
        assert_eq!(of(&[("retry-after", " 7 ")]), advice(7));
        assert_eq!(of(&[("retry-after", "7"), ("retry-after-ms", "9000")]), advice(9));
        assert_eq!(of(&[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")]), Advice::default());
        assert!(of(&[("x-should-retry", "false")]).never);
        assert!(!of(&[("x-should-retry", "true")]).never);
    }

    #[test]
    fn limits_and_faults_may_pass_and_refusals_do_not() {
        for status in [408, 429, 500, 502, 503, 504, 529] {
            assert!(may_pass(StatusCode::from_u16(status).unwrap()), "{status}");
        }
        for status in [200, 307, 400, 401, 403, 404, 413, 422] {
            assert!(!may_pass(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }
}
