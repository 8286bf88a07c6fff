//! Following a run over reconnects.

use std::time::Duration;

use caisson_domain::sse;
use futures_util::StreamExt;
use reqwest::Method;
use serde::Deserialize;

use super::{Client, EventInfo, Refused};

/// Pause before the first reconnect of a followed run; it doubles up to [`RECONNECT_MAX`].
const RECONNECT_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between reconnects.
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// Reconnects in a row without a single event before following gives up.
const RECONNECTS: u32 = 60;

/// What following a run brings.
#[derive(Debug, Clone)]
pub(crate) enum Followed {
    /// A numbered event.
    Event(EventInfo),
    /// A piece of live text.
    Delta(LiveText),
}

/// A piece of live text.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct LiveText {
    pub(crate) kind: String,
    /// Of the message that it is a piece of; empty where the server does not know it.
    #[serde(default)]
    pub(crate) message_id: String,
    /// Which of its blocks, from 0.
    #[serde(default)]
    pub(crate) block: u32,
    pub(crate) text: String,
}

impl Client {
    /// Follows a run from its first event until it ends, over reconnects, and calls `show` with each thing once.
    ///
    /// # Errors
    /// The server refuses, or stays away for [`RECONNECTS`] tries.
    /// # Cancel safety
    /// Safe: dropping it only ends the stream.
    pub(crate) async fn follow(
        &self,
        id: &str,
        mut after: i64,
        mut show: impl FnMut(&Followed),
    ) -> anyhow::Result<()> {
        let (mut pause, mut failures) = (RECONNECT_FIRST, 0);
        loop {
            let before = after;
            match self.follow_once(id, &mut after, &mut show).await {
                Ok(true) => return Ok(()),
                Err(error) if error.is::<Refused>() || failures >= RECONNECTS => return Err(error),
                Ok(false) | Err(_) => {}
            }
            if after > before {
                (pause, failures) = (RECONNECT_FIRST, 0);
            }
            failures += 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// One connection; true when the run's end was seen.
    async fn follow_once(
        &self,
        id: &str,
        after: &mut i64,
        show: &mut impl FnMut(&Followed),
    ) -> anyhow::Result<bool> {
        let request = self
            .request(Method::GET, &format!("/v1/runs/{id}/events"))?
            .header("accept", "text/event-stream")
            .header("last-event-id", after.to_string());
        let mut body = self.send(request).await?.bytes_stream();
        let mut parser = sse::Parser::default();
        while let Some(chunk) = body.next().await {
            for message in parser.push(&chunk?)? {
                match message.event.as_deref() {
                    Some("end") => return Ok(true),
                    Some("delta") => {
                        show(&Followed::Delta(serde_json::from_str(&message.data)?));
                    }
                    Some(_) | None => {
                        let event = read_event(&message);
                        *after = event.seq.max(*after);
                        show(&Followed::Event(event));
                    }
                }
            }
        }
        Ok(false)
    }
}

/// An event of the stream. One that cannot be read is shown as such: asking again would bring the same.
fn read_event(message: &sse::Message) -> EventInfo {
    serde_json::from_str(&message.data).unwrap_or_else(|error| EventInfo {
        seq: message.id.as_deref().and_then(|id| id.parse().ok()).unwrap_or(0),
        at_ms: 0,
        kind: "note".to_owned(),
        data: serde_json::json!({"message": format!("an event cannot be read: {error}")}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_cannot_be_read_keeps_its_number() {
        let message =
            sse::Message { id: Some("7".to_owned()), data: "{\"n\":1e999}".to_owned(), event: None };
        let event = read_event(&message);
        assert_eq!((event.seq, event.kind.as_str()), (7, "note"));
    }
}
