//! Which of the types and encodings on offer the caller takes (RFC 9110, sections 12.5.1 and 12.5.3).

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};

use crate::problem::ApiError;

pub(crate) const JSON: &str = "application/json";
pub(crate) const EVENT_STREAM: &str = "text/event-stream";
pub(crate) const DIFF: &str = "text/x-diff";
pub(crate) const BYTES: &str = "application/octet-stream";

/// Refuses callers who do not take JSON; for routes that answer with nothing else.
pub(crate) async fn json_only(request: Request, next: Next) -> Response {
    match choose(request.headers(), &[JSON]) {
        Ok(_) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// The type on offer that the caller likes best; of equals the one they named more precisely, then the first.
///
/// # Errors
/// [`ApiError::NotAcceptable`] if they take none.
pub(crate) fn choose(headers: &HeaderMap, offers: &'static [&'static str]) -> Result<&'static str, ApiError> {
    let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
    if accepted.peek().is_none() {
        return Ok(offers[0]);
    }
    let ranges: Vec<Range> = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(Range::parse)
        .collect();
    let mut best: Option<(&'static str, Weight)> = None;
    for offer in offers {
        // The most precise range that covers the type decides its quality.
        let Some(weight) = ranges.iter().filter_map(|range| range.weigh(offer)).max_by_key(|w| w.precision)
        else {
            continue;
        };
        let better = best
            .is_none_or(|(_, known)| (weight.quality, weight.precision) > (known.quality, known.precision));
        if weight.quality > 0 && better {
            best = Some((offer, weight));
        }
    }
    best.map(|(offer, _)| offer).ok_or(ApiError::NotAcceptable(offers))
}

/// Whether the caller takes a body compressed with gzip. One who does not say is given none: not all can inflate.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let accepted: Vec<_> = values.flat_map(|text| text.split(',')).filter_map(coding).collect();
    let quality = |name: &str| accepted.iter().find(|(known, _)| known == name).map(|(_, quality)| *quality);
    quality("gzip").or_else(|| quality("*")).is_some_and(|quality| quality > 0)
}

/// One item of an Accept-Encoding header: the coding and its quality.
fn coding(text: &str) -> Option<(String, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next()?.to_ascii_lowercase();
    Some((name, quality(parts)?))
}

/// How much a type is liked, and how precisely it was named.
#[derive(Clone, Copy)]
struct Weight {
    quality: u16,
    precision: u8,
}

/// One media range of an Accept header.
struct Range {
    kind: String,
    subtype: String,
    quality: u16,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        Some(Self {
            kind: kind.to_ascii_lowercase(),
            subtype: subtype.to_ascii_lowercase(),
            quality: quality(parts)?,
        })
    }

    fn weigh(&self, offer: &str) -> Option<Weight> {
        let (kind, subtype) = offer.split_once('/')?;
        let precision = match (self.kind.as_str(), self.subtype.as_str()) {
            ("*", "*") => 0,
            (range, "*") if range == kind => 1,
            (range, rest) if range == kind && rest == subtype => 2,
            _ => return None,
        };
        Some(Weight { quality: self.quality, precision })
    }
}

/// The quality among an item's parameters, in thousandths; all of it where none is given.
fn quality<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Option<u16> {
    let given = parameters.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    given.map_or(Some(1000), thousandths)
}

/// A quality from 0 to 1 with at most three digits behind the dot, in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    if rest.len() > 3 || !rest.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let rest: u16 = format!("{rest:0<3}").parse().ok()?;
    match whole {
        "0" => Some(rest),
        "1" if rest == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const OFFERS: &[&str] = &[JSON, EVENT_STREAM];

    fn chosen(accept: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        choose(&headers, OFFERS).ok()
    }

    #[test]
    fn the_best_liked_type_is_chosen() {
        assert_eq!(choose(&HeaderMap::new(), OFFERS).unwrap(), JSON);
        for (accept, expected) in [
            ("*/*", Some(JSON)),
            ("application/json", Some(JSON)),
            ("application/*", Some(JSON)),
            ("text/event-stream", Some(EVENT_STREAM)),
            ("TEXT/Event-Stream", Some(EVENT_STREAM)),
            ("text/*", Some(EVENT_STREAM)),
            ("text/event-stream, */*", Some(EVENT_STREAM)),
            ("text/event-stream;q=0.5, application/json", Some(JSON)),
            ("text/event-stream;q=0.5, application/json;q=0.25", Some(EVENT_STREAM)),
            ("application/json;q=0, */*", Some(EVENT_STREAM)),
            ("text/html, */*;q=0.8", Some(JSON)),
            ("text/event-stream;q=0", None),
            ("text/html", None),
            ("*/*;q=0", None),
            ("nonsense", None),
            ("application/json;q=2", None),
            ("application/json;q=0.1234", None),
        ] {
            assert_eq!(chosen(accept), expected, "{accept}");
        }
    }

    #[test]
    fn gzip_is_for_those_who_ask_for_it() {
        assert!(!takes_gzip(&HeaderMap::new()));
        for (accept, expected) in [
            ("gzip", true),
            ("gzip, deflate, br, zstd", true),
            ("br;q=1.0, GZIP;q=0.2", true),
            ("*", true),
            ("*;q=0, gzip", true),
            ("gzip;q=0, *", false),
            ("gzip;q=0", false),
            ("gzip;q=2", false),
            ("identity", false),
            ("br", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_str(accept).unwrap());
            assert_eq!(takes_gzip(&headers), expected, "{accept}");
        }
    }
}
