//! Nouns, states, limits and the sandbox protocol of Caisson.
//!
//! This crate is floor 0: no I/O, no async, no clock, no randomness. Whatever needs time or random bytes takes
//! them as arguments, so that every rule written here can be tested as a plain function.

pub mod approval;
pub mod artifacts;
pub mod attachment;
pub mod budget;
pub mod check_result;
pub mod checks;
pub mod credential;
pub mod egress;
mod environment_name;
pub mod event;
pub mod fork;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod git;
pub mod globs;
pub mod grant;
pub mod id;
pub mod image;
pub mod input;
pub mod json;
pub mod limits;
pub mod mcp;
pub mod parameters;
pub mod principal;
pub mod protocol;
pub mod provider;
pub mod queue;
pub mod redact;
pub mod report;
pub mod repository_file;
pub mod retention;
pub mod revision;
pub mod run;
pub mod schema;
pub mod server;
pub mod sse;
pub mod tools;
pub mod trust;
pub mod usage;
pub mod workflow;
