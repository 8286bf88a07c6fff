//! Events as clients see them.

use caisson_domain::event::{Delta, DeltaKind, Event, EventKind};
use caisson_domain::id::{RunId, SessionId};
use caisson_domain::run::RunStatus;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// A numbered, immutable fact.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Its number in its session: gapless, from 1.
    pub seq: i64,
    /// The session.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// The run it belongs to.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// When it was written, Unix ms.
    pub at_ms: i64,
    /// What it tells of.
    #[schema(value_type = crate::schema::EventKind)]
    pub kind: EventKind,
    /// The details, byte for byte as they were written.
    #[schema(value_type = Object)]
    pub data: Box<RawValue>,
}

/// A page of events, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// The events.
    pub items: Vec<EventView>,
    /// Asks for what follows, as `after`.
    pub next_after: i64,
    /// Whether there were more already when this page was read.
    pub more: bool,
}

/// A piece of live text: on a stream only, without a number, lost when nobody listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeltaView {
    /// The run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// What it is part of.
    #[schema(value_type = crate::schema::DeltaKind)]
    pub kind: DeltaKind,
    /// The model API's id of the message that this is a piece of, as its events have it at `data.message.id`; empty where it
    /// is not known.
    pub message_id: String,
    /// Which of the message's blocks, from 0. Each block has an event of its own, in this order: what comes when more events of
    /// the message than this number have come is out of date.
    pub block: u32,
    /// The text.
    pub text: String,
}

/// The last message of a run's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndView {
    /// The run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// How it ended.
    #[schema(value_type = crate::schema::RunStatus)]
    pub status: RunStatus,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            seq: event.seq,
            session_id: event.session,
            run_id: event.run,
            at_ms: event.at_ms,
            kind: event.kind,
            data: event.data,
        }
    }
}

impl From<Delta> for DeltaView {
    fn from(delta: Delta) -> Self {
        Self {
            run_id: delta.run,
            kind: delta.kind,
            message_id: delta.message_id,
            block: delta.block,
            text: delta.text,
        }
    }
}
