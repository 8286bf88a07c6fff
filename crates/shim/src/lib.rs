//! PID 1 of a sandbox: it prepares the workspace, drives the agent, publishes the work, and is the sandbox's only way
//! to the gateway.

mod activity;
mod backoff;
mod deltas;
mod diagnostics;
mod door;
mod forward;
mod journal;
mod lines;
mod message;
mod loopback;
mod places;
mod process;
mod reaper;

pub use door::{GrantError, Grants};
pub use places::Places;
