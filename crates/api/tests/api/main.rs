//! The API from outside: requests in, responses out, on a real store; streams over real sockets.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod access;
mod agents;
mod approvals;
mod artifacts;
mod attachments;
mod audit;
mod auth;
mod automagik;
mod budget;
mod connections;
mod create;
mod credentials;
mod docs;
mod examples;
mod faults;
mod going_on;
mod health;
mod idempotency;
mod inputs;
mod keys;
mod mcp;
mod metrics;
mod openapi;
mod pages;
mod projects;
mod queue;
mod retention;
mod runs;
mod servers;
mod sessions;
mod stream;
mod stream_live;
mod support;
mod usage;
mod workflows;
