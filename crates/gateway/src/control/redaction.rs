//! Live secrets go out of what a sandbox says before anything of it is cut, stored or shown. None should ever be in it:
//! finding one means that a wall has a hole, so it is told loudly.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use caisson_domain::check_result::CheckResult;
use caisson_domain::event::DeltaKind;
use caisson_domain::git::BranchName;
use caisson_domain::id::RunId;
use caisson_domain::image::ImageWish;
use caisson_domain::protocol::{Ending, JournalBody, Outcome};
use caisson_domain::redact::{Redactor, Stream};
use caisson_domain::run::Failure;
use caisson_domain::trust::Steering;

use crate::shared::Door;

/// Beginnings of a secret up to this long pass in live text without waiting for what follows, in bytes.
const DELTA_HOLD_BYTES: usize = 4;

/// Takes secrets out and remembers whether there was one.
pub(super) struct Cleaner<'a> {
    redactor: &'a Redactor,
    pub(super) found: bool,
}

impl<'a> Cleaner<'a> {
    pub(super) fn new(redactor: &'a Redactor) -> Self {
        Self { redactor, found: false }
    }

    pub(super) fn text(&mut self, text: String) -> String {
        match self.redactor.text(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(kept) => self.note(kept),
        }
    }

    fn cut_text(&mut self, text: String) -> String {
        match self.redactor.cut_text(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(kept) => self.note(kept),
        }
    }

    fn json(&mut self, text: String) -> String {
        match self.redactor.json(&text) {
            None => text,
            Some(kept) => self.note(kept),
        }
    }

    /// A value whose texts have no secret in them. If it cannot be read any more, there is none.
    fn value(&mut self, value: serde_json::Value) -> serde_json::Value {
        match self.redactor.json(&value.to_string()) {
            None => value,
            Some(kept) => serde_json::from_str(&self.note(kept)).unwrap_or_default(),
        }
    }

    fn note(&mut self, kept: String) -> String {
        self.found = true;
        kept
    }

    /// A branch without a secret in its name; what is left of another one would be no branch.
    fn branch(&mut self, branch: Option<BranchName>) -> Option<BranchName> {
        branch.filter(|branch| self.text(branch.to_string()) == branch.as_str())
    }

    fn steering(&mut self, steering: Steering) -> Steering {
        let Steering { anchor, commit, files, replaced, .. } = steering;
        let (anchor, commit) = (self.branch(anchor), self.text(commit));
        let files = files.into_iter().map(|path| self.text(path)).collect();
        let replaced = replaced.into_iter().map(|path| self.text(path)).collect();
        Steering { anchor, commit, files, replaced, ..steering }
    }

    fn check(&mut self, result: CheckResult) -> CheckResult {
        let output = result.output.map(|output| self.text(output));
        CheckResult { command: self.text(result.command), output, ..result }
    }

    fn outcome(&mut self, outcome: Outcome) -> Outcome {
        let Outcome { ending, result, head, pushed, kept } = outcome;
        let ending = match ending {
            Ending::Failed(failure) => Ending::Failed(Failure {
                message: self.text(failure.message),
                evidence: failure.evidence.map(|evidence| self.text(evidence)),
                ..failure
            }),
            Ending::OtherImage(wish) => {
                Ending::OtherImage(ImageWish { image: self.text(wish.image), ..wish })
            }
            ending @ (Ending::Completed | Ending::Stopped(_)) => ending,
        };
        let (result, head) = (result.map(|text| self.text(text)), head.map(|commit| self.text(commit)));
        Outcome { ending, result, head, pushed, kept }
    }

    /// A journal record's body. What claims to be a commit or a branch may be a secret that looks like one.
    pub(super) fn body(&mut self, body: JournalBody) -> JournalBody {
        match body {
            JournalBody::Line { line } => JournalBody::Line { line: self.json(line) },
            JournalBody::Text { text, cut_bytes: 0 } => {
                JournalBody::Text { text: self.text(text), cut_bytes: 0 }
            }
            JournalBody::Text { text, cut_bytes } => {
                JournalBody::Text { text: self.cut_text(text), cut_bytes }
            }
            JournalBody::AgentExited { code, signal, stderr } => {
                JournalBody::AgentExited { code, signal, stderr: self.text(stderr) }
            }
            JournalBody::Prepared { base_commit, branch } => {
                let base_commit = base_commit.map(|commit| self.text(commit));
                JournalBody::Prepared { base_commit, branch: self.branch(branch) }
            }
            JournalBody::Commit { commit, message, author } => {
                JournalBody::Commit { commit: self.text(commit), message: self.text(message), author }
            }
            JournalBody::ApprovalRequested { request, tool, description, input, cut_bytes } => {
                JournalBody::ApprovalRequested {
                    request: self.text(request),
                    tool: self.text(tool),
                    description: description.map(|text| self.text(text)),
                    input: if cut_bytes == 0 { self.json(input) } else { self.cut_text(input) },
                    cut_bytes,
                }
            }
            JournalBody::ApprovalWithdrawn { request } => {
                JournalBody::ApprovalWithdrawn { request: self.text(request) }
            }
            JournalBody::Checks(results) => {
                JournalBody::Checks(results.into_iter().map(|result| self.check(result)).collect())
            }
            JournalBody::Output { output } => JournalBody::Output { output: self.value(output) },
            JournalBody::Note { level, message } => JournalBody::Note { level, message: self.text(message) },
            JournalBody::Steered(steering) => JournalBody::Steered(self.steering(steering)),
            JournalBody::Finished(outcome) => JournalBody::Finished(self.outcome(outcome)),
            body @ (JournalBody::Phase { .. } | JournalBody::AgentStarted | JournalBody::Input { .. }) => {
                body
            }
        }
    }
}

/// Says that a secret was in what a sandbox sent, to the operator and, where there is a run, to whoever reads it.
pub(super) async fn alarm(door: &Door, run: Option<&RunId>, place: &str) {
    if let Some(run) = run {
        let message = format!(
            "a live credential of the server was in {place} and was redacted; the operator should replace it"
        );
        if !door.alarm(run, &message).await {
            tracing::debug!(run.id = %run, "a live credential was in what {run} sent once more");
            return;
        }
    }
    tracing::error!(
        sandbox.id = %door.sandbox,
        "a live credential was in {place} of sandbox {} and was redacted: find out how it got there, and replace it",
        door.sandbox
    );
}

/// Live text of one run, which comes in pieces: a secret may lie over their borders.
#[derive(Debug, Default)]
pub(crate) struct LiveText(Mutex<Option<Pieces>>);

#[derive(Debug)]
struct Pieces {
    run: RunId,
    kind: DeltaKind,
    stream: Stream,
}

impl LiveText {
    /// The next piece without secrets; what may be the beginning of one comes with the piece behind it.
    pub(super) fn push(
        &self,
        (run, kind): (&RunId, DeltaKind),
        piece: &str,
        redactor: &Arc<Redactor>,
    ) -> String {
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = pieces.as_ref().is_some_and(|pieces| pieces.run == *run && pieces.kind == kind);
        if !goes_on {
            // What waited of another text has no place here.
            let stream = Stream::holding(Arc::clone(redactor), DELTA_HOLD_BYTES);
            *pieces = Some(Pieces { run: run.clone(), kind, stream });
        }
        let clean = pieces.as_mut().map(|pieces| {
            pieces.stream.follow(redactor);
            pieces.stream.push(piece.as_bytes())
        });
        let clean = clean.unwrap_or_default();
        String::from_utf8_lossy(&clean).into_owned()
    }
}

#[cfg(test)]
#[path = "redaction_tests.rs"]
mod tests;
