//! One call of the model API, direct or through a door.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// How a call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the model itself.
    Direct,
    /// Through a sandbox's door.
    Door,
}

impl Way {
    /// Both, in an order that changes.
    pub(super) const fn in_turn(number: usize) -> [Self; 2] {
        if number.is_multiple_of(2) { [Self::Direct, Self::Door] } else { [Self::Door, Self::Direct] }
    }

    /// Its place in a pair of figures.
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Direct => 0,
            Self::Door => 1,
        }
    }
}

/// Which reply is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// A few words.
    Short,
    /// A megabyte of events.
    Long,
}

impl Call {
    /// Name of its scenario.
    pub(super) const fn scenario(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
        }
    }
}

/// What came of a call.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) status: u16,
    pub(super) headers: reqwest::header::HeaderMap,
    pub(super) body: Vec<u8>,
    /// From before the request is sent until the first piece of the body is there.
    pub(super) first_byte: Duration,
}

/// Sends a request and reads its whole reply.
pub(super) async fn call(request: reqwest::RequestBuilder, keep: bool) -> anyhow::Result<Done> {
    let began = Instant::now();
    let mut response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let first = response.chunk().await?.context("a reply without a body")?;
    let first_byte = began.elapsed();
    let mut bytes = first.len();
    let mut body = if keep { first.to_vec() } else { Vec::new() };
    while let Some(chunk) = response.chunk().await? {
        bytes += chunk.len();
        if keep {
            body.extend_from_slice(&chunk);
        }
    }
    ensure!(status == 200, "a call was answered with {status}: {}", String::from_utf8_lossy(&body));
    if !keep {
        body.resize(bytes, 0);
    }
    Ok(Done { status, headers, body, first_byte })
}
