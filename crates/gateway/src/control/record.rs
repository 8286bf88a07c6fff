//! From journal lines to events and effects: pure, and never failing. Every text is cut to its bound here,
//! since the journal is within the agent's reach.

use caisson_domain::check_result::{CHECK_RESULTS, CheckResult};
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::RunId;
use caisson_domain::image::{IMAGE_BYTES, ImageWish};
use caisson_domain::json::is_read_by_all;
use caisson_domain::limits::{JOURNAL_LINE_BYTES, RESULT_TEXT_BYTES};
use caisson_domain::protocol::{Ending, JournalBody, JournalRecord, NoteLevel, Outcome};
use caisson_domain::redact::Redactor;
use caisson_domain::run::{Failure, cut};
use caisson_domain::schema::OUTPUT_BYTES;
use caisson_domain::trust::Steering;
use caisson_store::{JournalEffect, JournalEntry, NewApproval};
use serde_json::{Value, json};

use super::asking;
use super::redaction::Cleaner;
use crate::bounds::{EXCERPT_BYTES, JOURNAL_BATCH_LINES, JOURNAL_NOTES, NOTE_BYTES};

/// A batch as read.
#[derive(Debug)]
pub(super) struct Batch {
    items: Vec<Item>,
    /// Bytes of the lines that were read: less than the batch has if it has more than
    /// [`JOURNAL_BATCH_LINES`].
    pub(super) bytes: u64,
    /// Whether a secret was in it.
    pub(super) redacted: bool,
}

#[derive(Debug)]
enum Item {
    Entry(Box<JournalEntry>),
    /// A line that is not understood, counted from 1.
    Puzzle {
        line: usize,
        excerpt: String,
    },
}

/// Reads whole lines. Empty ones mean nothing.
pub(super) fn read(batch: &[u8], redactor: &Redactor) -> Batch {
    let mut cleaner = Cleaner::new(redactor);
    let mut items = Vec::new();
    let mut bytes = 0;
    for (index, line) in batch.split_inclusive(|byte| *byte == b'\n').take(JOURNAL_BATCH_LINES).enumerate() {
        bytes += line.len() as u64;
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        items.push(match serde_json::from_slice::<JournalRecord>(text) {
            Ok(record) => {
                let body = cleaner.body(record.body);
                Item::Entry(Box::new(entry(JournalRecord { body, ..record })))
            }
            Err(_) => Item::Puzzle { line: index + 1, excerpt: excerpt(text, &mut cleaner) },
        });
    }
    Batch { items, bytes, redacted: cleaner.found }
}

impl Batch {
    /// Whether every line was understood.
    pub(super) fn is_understood(&self) -> bool {
        !self.items.iter().any(|item| matches!(item, Item::Puzzle { .. }))
    }

    /// Whether it has a run's outcome.
    pub(super) fn has_outcome(&self) -> bool {
        self.outcomes().next().is_some()
    }

    /// Whether it has the outcome of that attempt of the run.
    pub(super) fn has_outcome_of(&self, (run, attempt): &(RunId, i64)) -> bool {
        self.outcomes().any(|entry| entry.run == *run && entry.attempt == *attempt)
    }

    fn outcomes(&self) -> impl Iterator<Item = &JournalEntry> {
        self.items.iter().filter_map(|item| match item {
            Item::Entry(entry) if matches!(entry.effect, JournalEffect::Finished(_)) => Some(&**entry),
            Item::Entry(_) | Item::Puzzle { .. } => None,
        })
    }

    /// The entries in order. Lines not understood become notes of `run`, the first [`JOURNAL_NOTES`] one by
    /// one; without a run there is nobody to tell.
    pub(super) fn into_entries(self, run: Option<(&RunId, i64)>) -> Vec<JournalEntry> {
        let mut entries = Vec::with_capacity(self.items.len());
        let mut puzzles = 0_usize;
        for item in self.items {
            match item {
                Item::Entry(entry) => entries.push(*entry),
                Item::Puzzle { line, excerpt } => {
                    puzzles += 1;
                    if puzzles <= JOURNAL_NOTES {
                        let message = format!("journal line {line} not understood: {excerpt}");
                        entries.extend(run.map(|run| puzzle_note(run, &message)));
                    }
                }
            }
        }
        if let Some(more) = puzzles.checked_sub(JOURNAL_NOTES).filter(|more| *more > 0) {
            let message = format!("{more} more journal lines not understood");
            entries.extend(run.map(|run| puzzle_note(run, &message)));
        }
        entries
    }
}

/// The whole line is cleaned, since a secret may lie over the excerpt's end.
fn excerpt(line: &[u8], cleaner: &mut Cleaner<'_>) -> String {
    let clean = cleaner.text(String::from_utf8_lossy(line).into_owned());
    cut(&clean, EXCERPT_BYTES).to_owned()
}

fn puzzle_note((run, attempt): (&RunId, i64), message: &str) -> JournalEntry {
    let event = Some(note(NoteLevel::Warn, message));
    JournalEntry { run: run.clone(), attempt, event, effect: JournalEffect::None }
}

fn note(level: NoteLevel, message: &str) -> NewEvent {
    let message = cut(message, NOTE_BYTES);
    NewEvent::new(EventKind::Note, &json!({"level": level, "message": message}))
}

fn entry(record: JournalRecord) -> JournalEntry {
    let JournalRecord { run, attempt, body } = record;
    let (event, effect) = translate(&run, attempt, body);
    JournalEntry { run, attempt, event, effect }
}

fn translate(run: &RunId, attempt: i64, body: JournalBody) -> (Option<NewEvent>, JournalEffect) {
    match body {
        JournalBody::Phase { phase } => {
            (Some(NewEvent::new(EventKind::RunPhase, &json!({"phase": phase}))), JournalEffect::Phase(phase))
        }
        JournalBody::Prepared { base_commit, branch } => {
            let base_commit = base_commit.filter(|commit| is_commit(commit));
            let data = json!({"base_commit": base_commit, "branch": branch});
            let event = NewEvent::new(EventKind::WorkspacePrepared, &data);
            (Some(event), JournalEffect::Prepared { base_commit })
        }
        JournalBody::Steered(steering) => (Some(steered(steering)), JournalEffect::None),
        JournalBody::AgentStarted => {
            let event = NewEvent::new(EventKind::AgentStarted, &json!({"attempt": attempt}));
            (Some(event), JournalEffect::AgentStarted)
        }
        JournalBody::Line { line } => (Some(agent_line(line)), JournalEffect::None),
        JournalBody::Text { text, cut_bytes } => (Some(agent_text(&text, cut_bytes)), JournalEffect::None),
        JournalBody::AgentExited { code, signal, stderr } => {
            let data = json!({"code": code, "signal": signal, "stderr": cut(&stderr, RESULT_TEXT_BYTES)});
            (Some(NewEvent::new(EventKind::AgentExited, &data)), JournalEffect::None)
        }
        JournalBody::Commit { commit, message, author } => {
            let commit = Some(commit).filter(|commit| is_commit(commit));
            let data =
                json!({"commit": commit, "message": cut(&message, RESULT_TEXT_BYTES), "author": author});
            (Some(NewEvent::new(EventKind::GitCommit, &data)), JournalEffect::None)
        }
        JournalBody::Input { seq, state } => asking::input(seq, state),
        JournalBody::ApprovalRequested { request, tool, description, input, cut_bytes } => {
            let cut_bytes = i64::try_from(cut_bytes).unwrap_or(i64::MAX);
            asking::requested(run, NewApproval { request, tool, description, input, cut_bytes })
        }
        JournalBody::ApprovalWithdrawn { request } => asking::withdrawn(run, request),
        JournalBody::Output { output } => (None, output_effect(output)),
        JournalBody::Checks(results) => (None, checks(results)),
        JournalBody::Note { level, message } => (Some(note(level, &message)), JournalEffect::None),
        JournalBody::Finished(outcome) => (None, JournalEffect::Finished(bounded(outcome))),
    }
}

/// An output within its bounds; what is beyond them is none, and the worker fails the run by that.
fn output_effect(output: Value) -> JournalEffect {
    if output.to_string().len() > OUTPUT_BYTES { JournalEffect::None } else { JournalEffect::Output(output) }
}

/// What is told of the checks, within its bounds.
fn checks(results: Vec<CheckResult>) -> JournalEffect {
    JournalEffect::Checks(results.into_iter().take(CHECK_RESULTS).map(CheckResult::bounded).collect())
}

fn steered(steering: Steering) -> NewEvent {
    let steering = steering.bounded();
    let commit = Some(steering.commit.as_str()).filter(|commit| is_commit(commit));
    let data = json!({
        "anchor": steering.anchor,
        "commit": commit,
        "settings": steering.settings,
        "files": steering.files,
        "files_count": steering.files_count,
        "replaced": steering.replaced,
        "replaced_count": steering.replaced_count,
    });
    NewEvent::new(EventKind::WorkspaceSteered, &data)
}

/// The agent's line as it came. Anything that is not one line with one JSON object is kept as text, and so is what a
/// strict reader stumbles over (numbers out of range, lone surrogates, deep nesting): one line must not make the whole
/// record unreadable.
fn agent_line(line: String) -> NewEvent {
    let object = line.trim_ascii_start().starts_with('{') && !line.contains(['\n', '\r']);
    if !object || line.len() > JOURNAL_LINE_BYTES || !is_read_by_all(&line) {
        return agent_text(&line, 0);
    }
    let kept = NewEvent::from_raw(EventKind::AgentLine, line);
    kept.expect("the line was read as JSON just now")
}

fn agent_text(text: &str, cut_bytes: u64) -> NewEvent {
    let kept = cut(text, JOURNAL_LINE_BYTES);
    let cut_bytes = cut_bytes.saturating_add((text.len() - kept.len()) as u64);
    NewEvent::new(EventKind::AgentText, &json!({"text": kept, "cut_bytes": cut_bytes}))
}

/// The outcome with every text at its bound and with our own word on whether a retry can help.
fn bounded(outcome: Outcome) -> Outcome {
    let Outcome { ending, result, head, pushed, kept } = outcome;
    let ending = match ending {
        Ending::Failed(failure) => {
            let checked = Failure::new(failure.kind, cut(&failure.message, RESULT_TEXT_BYTES));
            Ending::Failed(match failure.evidence {
                Some(evidence) => checked.with_evidence(evidence),
                None => checked,
            })
        }
        Ending::OtherImage(ImageWish { image, line }) => {
            Ending::OtherImage(ImageWish { image: cut(&image, IMAGE_BYTES).to_owned(), line })
        }
        ending @ (Ending::Completed | Ending::Stopped(_)) => ending,
    };
    let result = result.map(|text| cut(&text, RESULT_TEXT_BYTES).to_owned());
    Outcome { ending, result, head: head.filter(|commit| is_commit(commit)), pushed, kept }
}

/// A commit's id: SHA-1 or SHA-256.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
