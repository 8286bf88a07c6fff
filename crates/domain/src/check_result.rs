//! What became of a repository's checks in a run.

use serde::{Deserialize, Serialize};

use crate::repository_file::CheckName;
use crate::run::{cut, text_enum};

/// Turns that an agent may have to mend what the checks find, and how many it has if nobody says otherwise.
pub const CHECK_TURNS: std::ops::RangeInclusive<u32> = 0..=5;
/// Turns to mend what the checks find of a workflow that says nothing of them.
pub const CHECK_TURNS_DEFAULT: u32 = 1;
/// [`CHECK_TURNS_DEFAULT`], for what was written before there was such a number.
pub(crate) const fn default_turns() -> u32 {
    CHECK_TURNS_DEFAULT
}

/// Longest command that a result names, in bytes.
pub const CHECK_COMMAND_BYTES: usize = 512;
/// Longest end of a check's output that a result has, in bytes.
pub const CHECK_OUTPUT_BYTES: usize = 4 * 1024;
/// Most results of a run: one of each check.
pub const CHECK_RESULTS: usize = CheckName::ALL.len();

text_enum! {
    /// How a check ended.
    CheckOutcome, "outcome of a check" {
        /// With code 0.
        Passed = "passed",
        /// With another code, or by a signal.
        Failed = "failed",
        /// Not in its time; it was killed.
        TimedOut = "timed_out",
        /// It could not be started.
        NotStarted = "not_started",
    }
}

/// How a check of the repository ended the last time that it was run, as the sandbox tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Which.
    pub name: CheckName,
    /// The command, cut to [`CHECK_COMMAND_BYTES`].
    pub command: String,
    /// How it ended.
    pub outcome: CheckOutcome,
    /// Its exit code; none if it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The end of its output unless it passed, cut to [`CHECK_OUTPUT_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Turns that the agent had had to mend what the checks found.
    #[serde(default)]
    pub turns: u32,
}

impl CheckResult {
    /// The same within its bounds; what is within them stays as it is.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            command: cut(&self.command, CHECK_COMMAND_BYTES).to_owned(),
            output: self.output.map(|output| tail(&output, CHECK_OUTPUT_BYTES).to_owned()),
            ..self
        }
    }

    /// Whether it passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcome == CheckOutcome::Passed
    }
}

/// The longest end of `text` that has at most `bytes` bytes and begins between two characters.
#[must_use]
pub fn tail(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_cut_at_its_bounds_and_keeps_the_end_of_its_output() {
        let result = |command: usize, output: usize| CheckResult {
            name: CheckName::Test,
            command: "c".repeat(command),
            outcome: CheckOutcome::Failed,
            exit_code: Some(1),
            output: Some(format!("{}end", "ä".repeat(output))),
            turns: 1,
        };
        let whole = result(CHECK_COMMAND_BYTES, 10);
        assert_eq!(whole.clone().bounded(), whole);
        let cut = result(CHECK_COMMAND_BYTES + 1, CHECK_OUTPUT_BYTES).bounded();
        assert_eq!(cut.command.len(), CHECK_COMMAND_BYTES);
        let output = cut.output.unwrap();
        assert!(output.len() <= CHECK_OUTPUT_BYTES && output.ends_with("end"), "{}", output.len());
        assert_eq!(tail("aä", 1), "");
        assert_eq!(tail("aä", 2), "ä");
    }
}
