//! Live text on its way from the shim.

use serde::{Deserialize, Serialize};

use crate::event::DeltaKind;
use crate::id::RunId;

/// Text deltas on their way to live readers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaBatch {
    /// The run.
    pub run: RunId,
    /// In order.
    pub items: Vec<DeltaItem>,
}

/// One text delta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaItem {
    /// What it is part of.
    pub kind: DeltaKind,
    /// The model API's id of the message that it is a piece of; empty where it is not known.
    #[serde(default)]
    pub message_id: String,
    /// Which of the message's blocks, from 0.
    #[serde(default)]
    pub block: u32,
    /// At most [`crate::limits::DELTA_BYTES`].
    pub text: String,
}
