//! Names of environment variables that a run may set.

/// Prefixes of names that only Caisson may set, since they steer the agent or the loader.
const RESERVED_PREFIXES: [&str; 7] = ["ANTHROPIC_", "CLAUDE", "CAISSON_", "LD_", "GIT_", "DISABLE_", "BUN_"];
/// Names that only Caisson may set.
const RESERVED_NAMES: [&str; 15] = [
    "PATH",
    "HOME",
    "SHELL",
    "TMPDIR",
    "IS_SANDBOX",
    "BASH_ENV",
    "LANG",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];
/// Longest environment name, in bytes.
pub(crate) const ENVIRONMENT_NAME_BYTES: usize = 128;

/// Checks the name of an environment variable that a run wants to set.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_environment_name(name: &str) -> Result<(), String> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !first || !rest || name.len() > ENVIRONMENT_NAME_BYTES {
        return Err(format!("\"{}\" is not an environment variable's name", name.escape_debug()));
    }
    if RESERVED_NAMES.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(format!("\"{name}\" is reserved for Caisson"));
    }
    Ok(())
}
