//! The gateway as a whole: real sockets, a real store, real git, and small upstreams made here.

mod approvals;
mod artifacts;
mod attachments;
mod control;
mod credentials;
mod credentials_servers;
mod credentials_tokens;
mod descriptors;
mod doors;
mod egress;
mod egress_bounds;
mod egress_learn;
mod egress_tls;
mod git_again;
mod git_begins;
mod git_brought;
mod git_faults;
mod git_forks;
mod git_hidden;
mod git_host;
mod git_http;
mod git_idle;
mod git_limits;
mod git_local;
mod git_modules;
mod git_pending;
mod git_push;
mod git_quarantine;
mod git_rules;
mod git_scene;
mod git_shallow;
mod git_trusted;
mod git_words;
mod grants;
mod log;
mod mcp;
mod mcp_bounds;
mod mcp_faults;
mod model;
mod model_budget;
mod model_faults;
mod model_host;
mod model_retry;
mod model_soft;
mod model_usage;
mod model_words;
mod outcomes;
mod outside;
mod redaction;
mod stop;
pub(crate) mod support;
mod tls;
mod transcript;

/// What the binary does first.
pub(crate) fn install_crypto() {
    // A second call finds it installed.
    drop(rustls::crypto::ring::default_provider().install_default());
}
