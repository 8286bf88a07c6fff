//! The CLI's environment: made from nothing, never inherited.
//!
//! Every variable the CLI has is seen by the tools that the model runs, so the agent grant, which can be revoked, is
//! the only secret in it.

use std::collections::BTreeSet;
use std::fmt;

use crate::event::cut;
use crate::limits::{
    EXTRA_NAME_BYTES_MAX, EXTRA_NAMES_MAX, EXTRA_VALUE_BYTES_MAX, MCP_STARTUP_WAIT_MS, MODEL_RETRIES,
    STREAM_IDLE_MS,
};

/// What differs from sandbox to sandbox.
#[derive(Clone, Copy)]
pub struct EnvironmentSpec<'a> {
    /// Home directory. The CLI keeps its conversations in it.
    pub home: &'a str,
    /// Directory with profiles of the API; none need be there. In it the CLI looks for [`ACTIVE_PROFILE`].
    pub profiles: &'a str,
    /// Search path of programs.
    pub path: &'a str,
    /// Directory for temporary files; must be writable, or the CLI does not start.
    pub tmpdir: &'a str,
    /// Where the model API is, for example `http://127.0.0.1:4180/model`. A path before `/v1/messages` is kept.
    pub base_url: &'a str,
    /// The agent grant, sent as `Authorization: Bearer`.
    pub agent_grant: &'a str,
    /// Where tools find the outside, for example `http://127.0.0.1:4180`; the loopback address itself is left out.
    pub proxy_url: Option<&'a str>,
    /// What the run adds; never secrets.
    pub extra: &'a [(String, String)],
}

impl fmt::Debug for EnvironmentSpec<'_> {
    /// Leaves out the grant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvironmentSpec").field("home", &self.home).finish_non_exhaustive()
    }
}

/// Why the environment cannot be made. Values are never in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// Too many names are added.
    #[error("{count} environment variables, more than {EXTRA_NAMES_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// These cannot be set, each for its reason.
    #[error("environment variables refused: {}", list(.0))]
    Refused(Vec<(String, Refusal)>),
}

/// Why one variable cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It steers the CLI or the loader, or is set here.
    #[error("reserved")]
    Reserved,
    /// Not 1 to [`EXTRA_NAME_BYTES_MAX`] letters, digits and underscores with no digit first.
    #[error("not a name")]
    Malformed,
    /// It is there twice.
    #[error("given twice")]
    Repeated,
    /// Its value is longer than [`EXTRA_VALUE_BYTES_MAX`].
    #[error("value too long")]
    TooLong,
    /// Its value has a NUL character.
    #[error("value with a NUL character")]
    Nul,
}

/// Prefixes of names that a run must not set: they steer the CLI, Caisson or the loader. The CLI is a Bun executable,
/// which takes arguments from `BUN_OPTIONS`.
const RESERVED_PREFIXES: [&str; 5] = ["ANTHROPIC_", "CLAUDE", "CAISSON_", "LD_", "BUN_"];
/// Names that tools read for the way outside, in both spellings.
const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
const NO_PROXIES: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// The CLI's base URL among it: its own traffic is no tool's.
const LOOPBACK: &str = "127.0.0.1,localhost,::1";

/// File in the directory of profiles that names the active one. Claude Code 2.1.330 reads it once, on its main thread, before it looks
/// at its working directory, and takes an empty one for none.
pub const ACTIVE_PROFILE: &str = "active_config";

/// Makes the whole environment of the CLI.
///
/// # Errors
/// [`EnvironmentError`] naming all variables that cannot be set.
pub fn environment(spec: &EnvironmentSpec<'_>) -> Result<Vec<(String, String)>, EnvironmentError> {
    if spec.extra.len() > EXTRA_NAMES_MAX {
        return Err(EnvironmentError::TooMany { count: spec.extra.len() });
    }
    let mut environment = fixed(spec);
    let refused = refused(&environment, spec.extra);
    if !refused.is_empty() {
        return Err(EnvironmentError::Refused(refused));
    }
    environment.extend(spec.extra.iter().cloned());
    Ok(environment)
}

fn fixed(spec: &EnvironmentSpec<'_>) -> Vec<(String, String)> {
    let mut fixed = vec![
        ("PATH", spec.path.to_owned()),
        ("HOME", spec.home.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        // Else it looks in the home, where tools write, for another API and what to show it.
        ("ANTHROPIC_CONFIG_DIR", spec.profiles.to_owned()),
        ("TMPDIR", spec.tmpdir.to_owned()),
        ("CLAUDE_CODE_TMPDIR", spec.tmpdir.to_owned()),
        ("ANTHROPIC_BASE_URL", spec.base_url.to_owned()),
        ("ANTHROPIC_AUTH_TOKEN", spec.agent_grant.to_owned()),
        // Together these two leave no connection but those to the base URL.
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".to_owned()),
        ("DISABLE_AUTOUPDATER", "1".to_owned()),
        ("DISABLE_TELEMETRY", "1".to_owned()),
        ("DISABLE_ERROR_REPORTING", "1".to_owned()),
        ("CLAUDE_CODE_MAX_RETRIES", MODEL_RETRIES.to_string()),
        ("CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS", STREAM_IDLE_MS.to_string()),
        ("CLAUDE_CODE_MCP_STARTUP_WAIT_MS", MCP_STARTUP_WAIT_MS.to_string()),
        // One prompt, one turn, one result: without it a command left behind keeps the CLI waiting.
        ("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "1".to_owned()),
        // Else it takes what an earlier agent, or a tool, has left below its conversations for its user's instructions.
        ("CLAUDE_CODE_DISABLE_AUTO_MEMORY", "1".to_owned()),
    ];
    if let Some(url) = spec.proxy_url {
        fixed.extend(PROXIES.map(|name| (name, url.to_owned())));
        fixed.extend(NO_PROXIES.map(|name| (name, LOOPBACK.to_owned())));
    }
    fixed.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn refused(fixed: &[(String, String)], extra: &[(String, String)]) -> Vec<(String, Refusal)> {
    let nul =
        fixed.iter().filter(|(_, value)| value.contains('\0')).map(|(name, _)| (name.clone(), Refusal::Nul));
    let mut refused: Vec<_> = nul.collect();
    let mut seen = BTreeSet::new();
    for (name, value) in extra {
        let repeated = !seen.insert(name);
        let reserved = fixed.iter().any(|(fixed, _)| fixed == name)
            || PROXIES.contains(&name.as_str())
            || NO_PROXIES.contains(&name.as_str())
            || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let refusal = match () {
            () if !is_name(name) => Refusal::Malformed,
            () if reserved => Refusal::Reserved,
            () if repeated => Refusal::Repeated,
            () if value.len() > EXTRA_VALUE_BYTES_MAX => Refusal::TooLong,
            () if value.contains('\0') => Refusal::Nul,
            () => continue,
        };
        refused.push((cut(name, EXTRA_NAME_BYTES_MAX).to_owned(), refusal));
    }
    refused
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= EXTRA_NAME_BYTES_MAX
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn list(refused: &[(String, Refusal)]) -> String {
    let each = |(name, refusal): &(String, Refusal)| format!("{} ({refusal})", name.escape_debug());
    refused.iter().map(each).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
