//! Inputs: what people send to the agent of a live run.

use crate::run::text_enum;

/// Longest text of an input, in bytes of UTF-8: it goes to the agent as a prompt does, and stands in two rows and an event.
pub const INPUT_TEXT_BYTES: usize = 64 * 1024;
/// Inputs of one run; the next one is refused.
pub const RUN_INPUTS: i64 = 100;
/// Of these, inputs that are not yet delivered; the next one is refused ([`InputKind::most_pending`]).
pub const RUN_INPUTS_PENDING: i64 = 8;

text_enum! {
    /// When an input reaches the agent.
    InputKind, "input kind" {
        /// Within the turn, before its next request to the model.
        Steer = "steer",
        /// When the turn has ended, and before the run publishes.
        Queue = "queue",
        /// At once: what the agent does now is ended.
        Interrupt = "interrupt",
    }
}

impl InputKind {
    /// Inputs that may not yet be delivered once it is sent. An interrupt has one place more: what waits for the turn's end must
    /// not keep people from ending it.
    #[must_use]
    pub const fn most_pending(self) -> i64 {
        match self {
            Self::Steer | Self::Queue => RUN_INPUTS_PENDING,
            Self::Interrupt => RUN_INPUTS_PENDING + 1,
        }
    }

    /// Whether it must have a text.
    #[must_use]
    pub const fn needs_text(self) -> bool {
        match self {
            Self::Steer | Self::Queue => true,
            Self::Interrupt => false,
        }
    }
}

text_enum! {
    /// How far an input is. Beyond `accepted` it is the shim's word, which moves nothing.
    InputState, "input state" {
        /// It is on its way.
        Accepted = "accepted",
        /// The shim has it, and keeps it until the agent's turn has ended.
        Held = "held",
        /// It was written to the agent.
        Delivered = "delivered",
        /// It came too late, or the agent took no more.
        Undelivered = "undelivered",
    }
}

impl InputState {
    /// Whether it will not change again.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Accepted | Self::Held => false,
            Self::Delivered | Self::Undelivered => true,
        }
    }
}
