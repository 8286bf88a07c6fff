//! What the end-to-end tests and the bench stand on: real git over HTTP, the real server as a process that can be
//! killed, a small API client, and the parts that a machine must have.

pub mod api;
pub mod cluster;
pub mod docker;
pub mod engine;
pub mod git_host;
pub mod ground;
pub mod hunt;
pub mod mcp_server;
pub mod partition;
pub mod parts;
pub mod piped_agent;
mod ports;
pub mod postgres;
pub mod process;
pub mod repository;
pub mod volumes;
pub mod words;
pub mod world;
