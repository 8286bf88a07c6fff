//! What a turn came to. The CLI's own words mislead: `success` is printed for failed model calls, SIGINT ends the
//! process with code 0, and SIGTERM without a result.

use std::fmt;

use crate::event::ResultLine;
use crate::limits::STDERR_BYTES_MAX;

/// What a turn came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The agent finished by itself. Whether it did its task is another question.
    Succeeded,
    /// It was interrupted.
    Cancelled,
    /// It used all its turns.
    MaxTurns,
    /// It used all the money it was given.
    Budget,
    /// The model could not be called.
    ApiError {
        /// HTTP status of the answer; none if there was no answer, or the failure was not in the call.
        status: Option<u16>,
        /// The most exact word that there is: `rate_limit_error`, `connection_failed`, `max_output_tokens`, ….
        kind: String,
        /// The CLI's sentence.
        text: String,
    },
    /// A safety classifier stopped the model for good.
    Refused {
        /// The CLI's sentence.
        text: String,
    },
    /// Anything else.
    Failed {
        /// What.
        reason: Reason,
    },
}

/// Why a turn failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The result says so.
    Execution {
        /// Its `terminal_reason`, or its subtype if it has none.
        word: String,
        /// What it says.
        text: String,
    },
    /// The prompt was taken for a command of the CLI and never reached the model.
    LocalCommand {
        /// What the command printed.
        text: String,
    },
    /// The session to be resumed does not exist.
    UnknownSession,
    /// The CLI did not start: bad arguments, a session id in use, nowhere to write.
    Start {
        /// The end of its standard error.
        stderr: String,
    },
    /// The process ended in the middle.
    Exited {
        /// Its exit code.
        code: i32,
        /// The end of its standard error.
        stderr: String,
    },
    /// The process was killed in the middle.
    Killed {
        /// The signal's number.
        signal: i32,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Execution { word, text } if text.is_empty() => write!(f, "the turn ended with {word}"),
            Self::Execution { word, text } => write!(f, "the turn ended with {word}: {text}"),
            Self::LocalCommand { .. } => f.write_str("the prompt was taken for a command of the agent"),
            Self::UnknownSession => f.write_str("the agent does not know the session"),
            Self::Start { stderr } => write!(f, "the agent did not start: {stderr}"),
            Self::Exited { code, stderr } if stderr.is_empty() => {
                write!(f, "the agent ended with code {code} before its result")
            }
            Self::Exited { code, stderr } => {
                write!(f, "the agent ended with code {code} before its result: {stderr}")
            }
            Self::Killed { signal } => write!(f, "the agent was killed by signal {signal}"),
        }
    }
}

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// All that is known when the process has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// The result of the prompt in question; none if it has none, whatever other prompts have.
    pub result: Option<&'a ResultLine>,
    /// How the process ended.
    pub exit: Exit,
    /// Whether it had printed any event: the CLI prints none when it does not like its arguments.
    pub spoke: bool,
    /// The end of its standard error.
    pub stderr: &'a str,
}

/// Judges a result.
///
/// Success is only what says of itself both that it is no error and that it completed; every other combination,
/// known or not, is a failure.
#[must_use]
pub fn judge(result: &ResultLine) -> Verdict {
    let word = result.terminal_reason.as_deref().unwrap_or_default();
    match word {
        "completed" if !result.is_error => Verdict::Succeeded,
        "max_turns" => Verdict::MaxTurns,
        "budget_exhausted" => Verdict::Budget,
        "api_error" | "prompt_too_long" | "image_error" => judge_api_error(result, word),
        _ if word.starts_with("aborted_") => Verdict::Cancelled,
        _ => Verdict::Failed { reason: reason(result, word) },
    }
}

/// Judges a prompt whose process has ended.
///
/// A result counts for more than the exit: the code follows the last result at best, and a process that is killed
/// because it does not end after its result has still done its work.
#[must_use]
pub fn conclude(ending: &Ending<'_>) -> Verdict {
    if let Some(result) = ending.result {
        return judge(result);
    }
    let stderr = tail(ending.stderr.trim(), STDERR_BYTES_MAX).to_owned();
    let reason = match (ending.exit, signal(ending.exit)) {
        (_, Some(signal)) => Reason::Killed { signal },
        (Exit::Code(code), None) if code != 0 && !ending.spoke => Reason::Start { stderr },
        (Exit::Code(code) | Exit::Signal(code), None) => Reason::Exited { code, stderr },
    };
    Verdict::Failed { reason }
}

fn judge_api_error(result: &ResultLine, word: &str) -> Verdict {
    let text = said(result);
    if result.stop_reason.as_deref() == Some("refusal") {
        return Verdict::Refused { text };
    }
    let kind = result.api_error.as_deref().or(result.api_error_type.as_deref()).unwrap_or(word).to_owned();
    Verdict::ApiError { status: result.api_error_status, kind, text }
}

fn reason(result: &ResultLine, word: &str) -> Reason {
    let text = said(result);
    let no_turn = result.num_turns == 0 && word.is_empty();
    if no_turn && !result.is_error {
        return Reason::LocalCommand { text };
    }
    if no_turn && text.starts_with("No conversation found") {
        return Reason::UnknownSession;
    }
    let word = if word.is_empty() { &result.subtype } else { word };
    Reason::Execution { word: word.to_owned(), text }
}

fn said(result: &ResultLine) -> String {
    result.text.clone().unwrap_or_else(|| result.errors.join("; "))
}

/// The signal behind an exit. The CLI catches SIGTERM and SIGHUP and exits with 143 and 129, as a shell would.
fn signal(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Signal(signal) => Some(signal),
        Exit::Code(code @ 129..=192) => Some(code - 128),
        Exit::Code(_) => None,
    }
}

/// The last `bytes` of a text, from the beginning of a character.
fn tail(text: &str, bytes: usize) -> &str {
    let start = text.len().saturating_sub(bytes);
    let start = (start..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
