//! Environment variables that the engine gives to the shim; the shim hands none of them on.

/// The control grant.
pub const CONTROL_GRANT: &str = "CAISSON_CONTROL_GRANT";
/// The agent grant.
pub const AGENT_GRANT: &str = "CAISSON_AGENT_GRANT";
