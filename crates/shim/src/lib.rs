//! PID 1 of a sandbox: it prepares the workspace, drives the agent, publishes the work, and is the sandbox's only way
//! to the gateway.

mod activity;
mod agent;
mod anchor;
mod artifacts;
mod backoff;
mod checkout;
mod deltas;
mod diagnostics;
mod door;
mod drivers;
mod failure;
mod forward;
mod git;
mod history;
mod inputs;
mod journal;
mod lines;
mod loopback;
mod mcp;
mod message;
mod messages;
mod outside;
mod places;
mod plain_file;
mod process;
mod publish;
mod push;
mod reaper;
mod recorder;
mod run;
mod salvage;
mod servers;
mod shim;
mod steering;
mod stop;
mod survey;
mod turn;
mod watch;
mod work;

pub use door::{GrantError, Grants};
pub use places::Places;
pub use shim::{Setup, ShimError, hide, run};
pub use watch::Patience;
