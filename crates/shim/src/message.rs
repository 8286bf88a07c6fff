//! Commit messages: what is asked of the agent, what is taken from its answer, and what stands in for it. Pure.

use caisson_domain::protocol::GitWork;
use caisson_domain::run::cut;

/// Longest first line, in characters.
pub(crate) const SUBJECT_CHARS: usize = 100;
/// Longest message below the first line, in bytes.
pub(crate) const BODY_BYTES: usize = 4 * 1024;
/// Longest first line of a message that stands in, in characters.
const FALLBACK_CHARS: usize = 72;
/// Longest description of the changes in a question, in bytes.
const CHANGES_BYTES: usize = 8 * 1024;
/// Type of a message that stands in where the workflow's own cannot be used.
const PLAIN_TYPE: &str = "chore";
/// First line where nothing better is known.
const PLAIN_SUBJECT: &str = "update the files";

/// Why a message is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// The first line is too long.
    #[error("its first line has {0} characters, more than {SUBJECT_CHARS}")]
    LongSubject(usize),
    /// The rest is too long.
    #[error("it has {0} bytes below the first line, more than {BODY_BYTES}")]
    LongBody(usize),
    /// It has characters that a terminal would act on.
    #[error("it contains control characters")]
    Control,
    /// It is not a Conventional Commit.
    #[error("it does not follow Conventional Commits: {0}")]
    Form(String),
}

/// Checks a message as the repository's history will show it.
///
/// # Errors
/// The first [`Fault`] found.
pub(crate) fn check(message: &str) -> Result<(), Fault> {
    let (subject, body) = message.split_once('\n').unwrap_or((message, ""));
    if message.trim().is_empty() {
        return Err(Fault::Empty);
    }
    if message.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
        return Err(Fault::Control);
    }
    let chars = subject.chars().count();
    if chars > SUBJECT_CHARS {
        return Err(Fault::LongSubject(chars));
    }
    if body.len() > BODY_BYTES {
        return Err(Fault::LongBody(body.len()));
    }
    git_conventional::Commit::parse(message).map(drop).map_err(|error| Fault::Form(error.to_string()))
}

/// The question for the message of what is staged.
pub(crate) fn question(changes: &str) -> String {
    format!(
        "Write the commit message for the staged changes:\n\n{}\n\nFollow Conventional Commits 1.0.0: a first line \
         `type(optional scope): description` of at most {SUBJECT_CHARS} characters, in the imperative; then, only if \
         it helps the reader, an empty line and a short body that says why. Do not use any tool. Answer with the \
         commit message alone.",
        cut(changes.trim_end(), CHANGES_BYTES)
    )
}

/// The question for a better message of a commit that is there already.
pub(crate) fn question_for_commit(message: &str, changes: &str, fault: &Fault) -> String {
    format!(
        "The commit message of your last commit cannot be kept: {fault}. It reads:\n\n{}\n\n{}",
        cut(message.trim_end(), CHANGES_BYTES),
        question(changes).replacen("the staged changes", "that commit again; it changes", 1)
    )
}

/// The question after an answer that cannot be used.
pub(crate) fn question_again(fault: &Fault) -> String {
    format!("That commit message cannot be used: {fault}. Answer with a correct commit message alone.")
}

/// The message in an agent's answer: without a code fence around it, without space around it, with plain line ends.
pub(crate) fn from_answer(answer: &str) -> String {
    let answer = answer.replace("\r\n", "\n");
    let fenced = answer.split_once("```").and_then(|(_, rest)| {
        let (_language, rest) = rest.split_once('\n')?;
        rest.split_once("```").map(|(message, _)| message.to_owned())
    });
    let message = fenced.unwrap_or(answer);
    let lines: Vec<_> = message.trim().lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// The message that stands in for the agent's.
pub(crate) fn fallback(git: &GitWork) -> String {
    [&git.commit_type, PLAIN_TYPE]
        .into_iter()
        .map(|kind| with_type(kind, &git.commit_subject, FALLBACK_CHARS))
        .chain([with_type(PLAIN_TYPE, PLAIN_SUBJECT, FALLBACK_CHARS)])
        .find(|message| check(message).is_ok())
        .unwrap_or_else(|| format!("{PLAIN_TYPE}: {PLAIN_SUBJECT}"))
}

/// A message that says what a faulty one said, in a form that can be kept.
pub(crate) fn reworded(message: &str, git: &GitWork) -> String {
    let (subject, body) = message.trim().split_once('\n').unwrap_or((message.trim(), ""));
    let first = match git_conventional::Commit::parse(subject) {
        Ok(_) => one_line(subject, SUBJECT_CHARS),
        Err(_) => with_type(&git.commit_type, subject, SUBJECT_CHARS),
    };
    let body: String = body.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    let body = cut(body.trim(), BODY_BYTES - 1).trim_end();
    let whole = if body.is_empty() { first.clone() } else { format!("{first}\n\n{body}") };
    [whole, first].into_iter().find(|message| check(message).is_ok()).unwrap_or_else(|| fallback(git))
}

fn with_type(kind: &str, subject: &str, chars: usize) -> String {
    one_line(&format!("{kind}: {}", subject.trim()), chars)
}

/// The text on one line, without control characters and repeated spaces, cut between words if it can be.
fn one_line(text: &str, chars: usize) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = printable.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= chars {
        return line;
    }
    let short: String = line.chars().take(chars).collect();
    match short.rsplit_once(' ') {
        Some((words, _)) if words.chars().count() * 2 > chars => words.to_owned(),
        Some(_) | None => short,
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
