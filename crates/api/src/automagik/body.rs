//! Bodies: JSON objects whatever they are called, in which unknown fields are ignored.

use std::ops::RangeInclusive;

use axum::extract::{FromRequest, Request};
use http::header;
use sha2::{Digest, Sha256};

use super::KEY_PARAMETER;
use super::refusal::Refusal;
use crate::body::read_body;
use crate::extract::Fields;
use crate::problem::Faults;
use crate::state::App;

/// An object that was sent.
pub(super) struct Sent {
    pub(super) fields: Fields,
    /// What tells one request from another: hexadecimal digits of a hash over method, path, parameters and body, the key
    /// left out.
    pub(super) mark: String,
}

impl FromRequest<App> for Sent {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let body = read_body(app, &parts, body).await?;
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        };
        add(parts.method.as_str().as_bytes());
        add(parts.uri.path().as_bytes());
        for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            if !name.eq_ignore_ascii_case(KEY_PARAMETER) {
                add(name.as_bytes());
                add(value.as_bytes());
            }
        }
        add(parts.headers.get(header::CONTENT_TYPE).map_or(&[][..], http::HeaderValue::as_bytes));
        add(&body);
        Ok(Self { fields: parse(&body)?, mark: hex::encode(hash.finalize()) })
    }
}

fn parse(body: &[u8]) -> Result<Fields, Refusal> {
    let mut faults = Faults::default();
    if body.is_empty() {
        faults.add("", "missing", "Field required: the body, a JSON object");
        return Err(Refusal::body(faults));
    }
    Fields::parse(body).map_err(|error| {
        faults.add("", "json_invalid", error.to_string());
        Refusal::body(faults)
    })
}

/// Takes a whole number that may be absent or `null` and must lie in `range`.
pub(super) fn number(
    fields: &mut Fields,
    name: &'static str,
    range: &RangeInclusive<u32>,
    faults: &mut Faults,
) -> Option<u32> {
    let taken = fields.take_number(name, range, faults)?;
    if !range.contains(&taken) {
        faults.add(name, "out_of_range", format!("{taken} is not from {} to {}", range.start(), range.end()));
    }
    Some(taken)
}

/// Takes a text that may be absent or `null` and has at most `most` characters.
pub(super) fn text(
    fields: &mut Fields,
    name: &'static str,
    most: usize,
    faults: &mut Faults,
) -> Option<String> {
    let taken: String = fields.take(name, faults)?;
    if taken.chars().count() > most {
        faults.add(name, "string_too_long", format!("it has more than {most} characters"));
        return None;
    }
    if taken.contains('\0') {
        faults.add(name, "invalid", "it holds a null character");
        return None;
    }
    Some(taken)
}
