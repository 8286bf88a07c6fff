//! A server: one state directory and the engine beside it.

use serde::{Deserialize, Serialize};

use crate::id::ServerId;
use crate::run::text_enum;

text_enum! {
    /// What keeps a server from placing runs.
    ProblemCode, "placement problem" {
        /// The engine does not answer.
        EngineUnavailable = "engine_unavailable",
        /// The engine lacks the default image.
        ImageMissing = "image_missing",
        /// The agent is not installed.
        AgentMissing = "agent_missing",
        /// Too little free disk space.
        DiskLow = "disk_low",
        /// An operator has drained it: it takes no new run.
        Drained = "drained",
    }
}

/// Something that keeps a server from placing runs, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementProblem {
    /// The class.
    pub code: ProblemCode,
    /// One sentence: what is wrong and what to do.
    pub message: String,
}

/// A server as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its id.
    pub id: ServerId,
    /// Its last sign of life, Unix ms.
    pub seen_at_ms: i64,
    /// What keeps it from placing runs; empty when nothing does.
    pub problems: Vec<PlacementProblem>,
}
