//! What `caisson doctor` prints: a line for each thing that it looked at.

use serde_json::{Value, json};

use super::{DONE, complain, print, print_json};
use crate::logins::without_logins;

/// Exit code when something is missing.
const UNWELL: u8 = 1;

/// Prints what is looked at, and counts what is missing.
#[derive(Debug, Default)]
pub(super) struct Report {
    json: bool,
    looked_at: usize,
    missing: usize,
}

impl Report {
    /// An empty one, told as JSON or in words.
    pub(super) fn new(json: bool) -> Self {
        Self { json, ..Self::default() }
    }

    /// Tells of one thing that was looked at.
    pub(super) fn tell(&mut self, what: &str, result: Result<String, String>) {
        self.looked_at += 1;
        match result {
            Ok(text) => self.line("ok", what, &text),
            Err(text) => {
                self.missing += 1;
                self.line("FAIL", what, &text);
            }
        }
    }

    /// Tells of what works and is weaker than it need be.
    pub(super) fn warn(&self, what: &str, text: &str) {
        self.line("warn", what, text);
    }

    /// Tells of what may well be meant so.
    pub(super) fn note(&self, what: &str, text: &str) {
        self.line("note", what, text);
    }

    fn line(&self, sign: &str, what: &str, text: &str) {
        let text = without_logins(text);
        if self.json {
            Self::document(&json!({"check": what, "state": sign.to_lowercase(), "message": text}));
        } else {
            print(&format!("{sign:<4}  {what:<13} {text}"));
        }
    }

    /// Sums up, and answers with the exit code.
    pub(super) fn end(&self) -> u8 {
        let well = self.missing == 0;
        if self.json {
            Self::document(&json!({"looked_at": self.looked_at, "failed": self.missing}));
        } else if well {
            print("everything a server needs is there");
        } else {
            print(&format!("{} of {} checks failed", self.missing, self.looked_at));
        }
        if well { DONE } else { UNWELL }
    }

    fn document(document: &Value) {
        // Texts alone, which are always JSON.
        if let Err(error) = print_json(document) {
            complain(&format!("{error:#}"));
        }
    }
}
