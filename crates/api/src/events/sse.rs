//! The live stream: server-sent events (WHATWG HTML, section 9.2).
//!
//! Nothing is pushed at a reader. The stream is pulled: when the connection has room, the next event is taken from one
//! short read of the store; when there is none, the stream waits for a hint, which it subscribed to before its first
//! read. So a slow reader holds that one read and nothing else, and no writer ever waits for it.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use caisson_domain::event::{Delta, Event, EventKind};
use caisson_domain::id::ApiKeyId;
use caisson_store::{Store, StoreError, Topic, Watch};
use futures_util::stream;
use http::HeaderName;
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::source::{READ_EVENTS, Source};
use super::view::{DeltaView, EndView, EventView};
use crate::access::VALID_FOR;
use crate::config::ApiLimits;
use crate::problem::ApiError;
use crate::state::{App, StreamPlace};

/// Text of the comment that keeps an idle stream open.
const HEARTBEAT_TEXT: &str = "heartbeat";

/// Header that tells a reverse proxy not to collect the response before it passes it on.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Opens a stream of what follows `after`, for as long as `key` is valid.
///
/// # Errors
/// [`ApiError::StreamsFull`] if there are too many, [`ApiError::StreamsOfKeyFull`] if the key has too many of them.
pub(super) fn stream(app: &App, key: ApiKeyId, source: Source, after: i64) -> Result<Response, ApiError> {
    let limits = app.config().limits;
    let place = app.stream_place(&key)?;
    let feed = Feed {
        // Subscribed before the first read: what is written in between is not missed.
        watch: app.store().watch(Topic::Session(source.session().clone())),
        app: app.clone(),
        key,
        // It has just been looked at.
        look_at_key_at: Instant::now() + VALID_FOR,
        store: app.store().clone(),
        cancel: app.cancel(),
        deadline: Instant::now() + limits.stream_life,
        source,
        limits,
        after,
        read: VecDeque::new(),
        deltas: None,
        older_deltas: 0,
        look_at: Instant::now(),
        has_looked: false,
        looked_for_end_at: None,
        stage: Stage::Live,
        _place: place,
    };
    let messages = stream::unfold(feed, |mut feed| async move {
        let message = feed.next().await?;
        Some((Ok::<_, Infallible>(message), feed))
    });
    let heartbeat = KeepAlive::new().interval(limits.heartbeat).text(HEARTBEAT_TEXT);
    // A buffering reverse proxy would keep live things back; nginx heeds this header.
    Ok(([(UNBUFFERED, "no")], Sse::new(messages).keep_alive(heartbeat)).into_response())
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// More events may come.
    Live,
    /// The run's last event was sent; the end message is due.
    Ending,
    /// Everything was sent.
    Ended,
}

/// Why waiting ended.
enum Woken {
    /// There may be new events.
    Look,
    /// A piece of live text.
    Delta(Delta),
    /// It is time to look at the key.
    Key,
    /// The stream's time is over, or the server shuts down.
    Stop,
}

/// One reader's stream.
struct Feed {
    app: App,
    /// What the stream was opened with.
    key: ApiKeyId,
    look_at_key_at: Instant,
    store: Store,
    source: Source,
    limits: ApiLimits,
    /// The last event handed out.
    after: i64,
    /// Events of the last read that were not handed out yet; of [`READ_EVENTS`] and [`super::READ_BYTES`] at most.
    read: VecDeque<Event>,
    watch: Watch,
    /// Subscribed to when the reader has caught up: old live text has its event by then.
    deltas: Option<Receiver<Delta>>,
    /// Pieces of live text to hand out before the next read.
    older_deltas: usize,
    /// When to read the store again, unless a hint comes first.
    look_at: Instant,
    /// Whether it was read at all: every stream hands out something of what there is, so that a reader who comes again and
    /// again comes to the end.
    has_looked: bool,
    /// When the run's status was last looked at.
    looked_for_end_at: Option<Instant>,
    stage: Stage,
    cancel: CancellationToken,
    deadline: Instant,
    _place: StreamPlace,
}

impl Feed {
    /// The next message; none when the stream is over. A fault of the store ends it too: the reader comes again.
    ///
    /// # Cancel safety
    /// Not safe in the middle of a read, and it need not be: a dropped stream is resumed by its reader.
    async fn next(&mut self) -> Option<Message> {
        match self.advance().await {
            Ok(message) => message,
            Err(error) => {
                let session = self.source.session();
                tracing::warn!(
                    session.id = %session,
                    error = &error as &dyn std::error::Error,
                    "cut an event stream of session {session}: its events cannot be read"
                );
                None
            }
        }
    }

    async fn advance(&mut self) -> Result<Option<Message>, StoreError> {
        loop {
            if self.stage == Stage::Ended || self.cancel.is_cancelled() || !self.may_go_on().await? {
                return Ok(None);
            }
            if let Some(event) = self.read.pop_front() {
                return Ok(Some(self.hand_out(event)));
            }
            if self.stage == Stage::Ending {
                self.stage = Stage::Ended;
                return self.end_message().await;
            }
            // What was read already is not read again by whoever comes next.
            if self.has_looked && Instant::now() >= self.deadline {
                return Ok(None);
            }
            if let Some(delta) = self.older_delta() {
                return Ok(Some(delta_message(delta)));
            }
            // Not after every piece of live text: those may be many, and a hint that came meanwhile is kept.
            if Instant::now() >= self.look_at {
                self.read = self.source.read(&self.store, self.after, READ_EVENTS).await?.into();
                self.has_looked = true;
                if !self.read.is_empty() || self.find_end().await? {
                    continue;
                }
                self.look_at = Instant::now() + self.limits.poll;
            }
            match self.wait().await {
                Woken::Look => {
                    self.look_at = Instant::now();
                    self.older_deltas = self.deltas.as_ref().map_or(0, Receiver::len);
                }
                Woken::Key => {}
                Woken::Delta(delta) => return Ok(Some(delta_message(delta))),
                Woken::Stop => return Ok(None),
            }
        }
    }

    /// Whether the key is still valid; looked at rarely.
    async fn may_go_on(&mut self) -> Result<bool, StoreError> {
        if Instant::now() < self.look_at_key_at {
            return Ok(true);
        }
        let valid = self.app.access().is_valid(&self.store, &self.key).await?;
        self.look_at_key_at = Instant::now() + VALID_FOR;
        Ok(valid)
    }

    fn hand_out(&mut self, event: Event) -> Message {
        self.after = event.seq;
        if event.kind == EventKind::RunFinished && matches!(self.source, Source::Run { .. }) {
            self.stage = Stage::Ending;
        }
        let (id, kind) = (event.seq.to_string(), event.kind.as_str());
        Message::default().id(id).event(kind).data(one_line(&EventView::from(event)))
    }

    async fn end_message(&self) -> Result<Option<Message>, StoreError> {
        let ended = self.source.ended(&self.store).await?;
        Ok(ended.map(|(run_id, status)| {
            Message::default().event("end").data(one_line(&EndView { run_id, status }))
        }))
    }

    /// For a reader who begins behind the run's last event and so will not see it: looks whether the run has ended,
    /// at once and then rarely, since the row may hold a long prompt. True if there is more to hand out.
    async fn find_end(&mut self) -> Result<bool, StoreError> {
        let now = Instant::now();
        if self.looked_for_end_at.is_some_and(|at| now < at + self.limits.heartbeat) {
            return Ok(false);
        }
        self.looked_for_end_at = Some(now);
        if self.source.ended(&self.store).await?.is_none() {
            return Ok(false);
        }
        // It may have ended between the two reads: then its last event is there now, and has its turn first.
        self.read = self.source.read(&self.store, self.after, READ_EVENTS).await?.into();
        if self.read.is_empty() {
            self.stage = Stage::Ending;
        }
        Ok(true)
    }

    /// Live text that came before the hint and is most likely older than the events it tells of. Only as much as there
    /// was then: text that keeps coming must not keep events back.
    fn older_delta(&mut self) -> Option<Delta> {
        let receiver = self.deltas.as_mut()?;
        while self.older_deltas > 0 {
            self.older_deltas -= 1;
            match receiver.try_recv() {
                Ok(delta) if self.source.covers(&delta.run) => return Some(delta),
                Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => self.older_deltas = 0,
            }
        }
        None
    }

    async fn wait(&mut self) -> Woken {
        let Self { store, source, deltas, watch, cancel, deadline, look_at, look_at_key_at, .. } = self;
        let at_most = look_at.saturating_duration_since(Instant::now());
        let receiver = deltas.get_or_insert_with(|| store.subscribe_deltas(source.session()));
        tokio::select! {
            () = cancel.cancelled() => Woken::Stop,
            () = tokio::time::sleep_until(*deadline) => Woken::Stop,
            () = tokio::time::sleep_until(*look_at_key_at) => Woken::Key,
            () = watch.changed(at_most) => Woken::Look,
            delta = next_delta(receiver, source) => Woken::Delta(delta),
        }
    }
}

/// The next piece of live text of `source`; for ever pending when no more can come.
async fn next_delta(receiver: &mut Receiver<Delta>, source: &Source) -> Delta {
    loop {
        match receiver.recv().await {
            Ok(delta) if source.covers(&delta.run) => return delta,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn delta_message(delta: Delta) -> Message {
    Message::default().event("delta").data(one_line(&DeltaView::from(delta)))
}

/// The value as JSON in one line. Raw details keep their white space, and a line end in them would end the message's
/// line; within JSON's texts line ends are escaped, so each raw one may become a space.
fn one_line(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("a view is texts and numbers under text keys");
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ") } else { json }
}

#[cfg(test)]
mod tests {
    use caisson_domain::event::NewEvent;
    use caisson_domain::id::{RunId, SessionId};

    use super::*;

    #[test]
    fn details_over_several_lines_become_one_line_that_means_the_same() {
        let raw = "{\r\n  \"a\": \"x\\n\"\n}";
        let event = NewEvent::from_raw(EventKind::AgentLine, raw.to_owned()).unwrap();
        let view = EventView {
            seq: 1,
            session_id: SessionId::new(1, [0; 10]),
            run_id: RunId::new(1, [0; 10]),
            at_ms: 1,
            kind: event.kind,
            data: event.data,
        };
        let line = one_line(&view);
        assert!(!line.contains(['\n', '\r']));
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["data"], serde_json::json!({"a": "x\n"}));
    }
}
