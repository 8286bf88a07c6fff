//! The shim's own diagnostics: a line on standard error, which the engine keeps as the sandbox's log. Never prompts,
//! bodies or grants.

use std::fmt::Display;
use std::io::Write;

/// Writes one line. A log that cannot be written is no reason to stop.
pub(crate) fn say(message: impl Display) {
    drop(writeln!(std::io::stderr().lock(), "caisson-shim: {message}"));
}
