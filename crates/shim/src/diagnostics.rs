//! The shim's own diagnostics: a line on standard error, which the engine keeps as the sandbox's log. Never prompts,
//! bodies or grants.

use std::fmt::Display;
use std::io::Write;

/// A complaint that may come again and again: only its first time is worth a line.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    last: Option<String>,
}

impl Complaint {
    /// Says it, unless it was the last thing said.
    pub(crate) fn say(&mut self, message: impl Display) {
        let message = message.to_string();
        if self.last.as_ref() != Some(&message) {
            say(&message);
            self.last = Some(message);
        }
    }

    /// It is over: the next one is worth a line again.
    pub(crate) fn over(&mut self) {
        self.last = None;
    }
}

/// Writes one line. A log that cannot be written is no reason to stop.
pub(crate) fn say(message: impl Display) {
    drop(writeln!(std::io::stderr().lock(), "caisson-shim: {message}"));
}
