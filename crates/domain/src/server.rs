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
        /// No gateway serves the sandboxes of this server's state directory.
        GatewayAway = "gateway_away",
        /// The directory of artifacts that servers share is not there.
        ArtifactsAway = "artifacts_away",
    }
}

impl ProblemCode {
    /// What it means and what to do, in one sentence that tells nothing of the server that has it: no path, socket or id.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::EngineUnavailable => {
                "the engine that makes sandboxes does not answer; the operator starts it, and `caisson doctor` says which one is meant"
            }
            Self::ImageMissing => {
                "the engine lacks the default image; the operator builds it with `caisson image build`"
            }
            Self::AgentMissing => {
                "the agent is not installed; the operator installs it with `caisson agent install`"
            }
            Self::DiskLow => {
                "too little disk space is free; the operator makes room, for example with `caisson gc`"
            }
            Self::Drained => "every server is drained; the operator ends that with `caisson resume`",
            Self::GatewayAway => {
                "no gateway serves the sandboxes; the operator starts `caisson serve --only gateway` on that machine"
            }
            Self::ArtifactsAway => {
                "the directory of artifacts that servers share is not there; the operator mounts it again"
            }
        }
    }
}

text_enum! {
    /// What a server does. The parts of one server share its state directory and its id, and may be processes of their own.
    Role, "role" {
        /// It answers the HTTP API.
        Api = "api",
        /// It claims runs and makes sandboxes.
        Worker = "worker",
        /// It serves the doors of the sandboxes.
        Gateway = "gateway",
    }
}

text_enum! {
    /// How a server is, by its last sign of life.
    ServerState, "server state" {
        /// It was heard of a moment ago.
        Live = "live",
        /// It is silent; its runs wait for it.
        Away = "away",
        /// It has been silent for so long that its runs are written off.
        Lost = "lost",
    }
}

/// A part of a server as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerPart {
    /// What it does.
    pub role: Role,
    /// Its last sign of life, Unix ms.
    pub seen_at_ms: i64,
    /// Caisson's version.
    pub version: String,
}

/// A server, what it does and what it has in hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its id.
    pub id: ServerId,
    /// How it is: by its worker's signs of life if it has one, else by the newest of its other parts'.
    pub state: ServerState,
    /// The last sign of life that counts for the state, Unix ms.
    pub seen_at_ms: i64,
    /// Its parts, by name.
    pub parts: Vec<ServerPart>,
    /// Runs that its worker has in hand at most; none without a worker.
    pub slots: Option<i64>,
    /// Runs that it has in hand.
    pub runs: i64,
    /// Its sandboxes that are not destroyed.
    pub sandboxes: i64,
    /// What keeps it from placing runs; empty when nothing does.
    pub problems: Vec<PlacementProblem>,
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
