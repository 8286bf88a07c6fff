//! What becomes of a run: pure rules over what the store and the engine know, and what the shim says.
//!
//! The shim's word is believed where a lie would harm nobody but its own run. What it could gain by is checked: a push
//! against the commit that the gateway carried, a stop against what the store had asked for, an end by want of memory
//! against the engine.

use std::time::Duration;

use caisson_domain::check_result::CheckResult;
use caisson_domain::checks::{Check, stands};
use caisson_domain::limits::{PLACE_ATTEMPTS, RESULT_TEXT_BYTES};
use caisson_domain::protocol::{Ending, Outcome, StopReason};
use caisson_domain::run::{Failure, FailureKind, RunSpec, RunStatus, cut};
use caisson_domain::schema::Schema;
use caisson_sandbox::Exit;
use caisson_store::{Finish, Progress};

use crate::disk::places::Cut;
use crate::disk::{Bound, DEPTH, JOURNAL_VOLUME_MIB, Room};

/// The shim measures the time limit by another clock: how much earlier it may call it passed, in milliseconds.
pub const TIMEOUT_SLACK_MS: i64 = 2_000;

/// Everything that the rules look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) spec: &'a RunSpec,
    pub(crate) attempt: i64,
    pub(crate) progress: &'a Progress,
    /// The store's clock.
    pub(crate) now_ms: i64,
    /// When the run's time limit passes, by the same clock.
    pub(crate) deadline_ms: i64,
    /// First and longest delay of a run that goes back to the queue.
    pub(crate) requeue: (Duration, Duration),
    /// What the worker saw of the disk.
    pub(crate) disk: Disk,
    /// How often the sandbox was refused a process, as far as anybody tells.
    pub(crate) pids_refused: u64,
}

/// What the worker saw of the disk, and what it did by itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Disk {
    /// Why it had the sandbox end.
    pub(crate) cut: Option<Cut>,
    /// The bound that the session's room had reached at the end.
    pub(crate) full: Option<(Bound, Room)>,
}

impl Facts<'_> {
    /// With what was seen of the disk.
    pub(crate) fn with(self, disk: &Disk) -> Self {
        Self { disk: *disk, ..self }
    }
}

/// How a sandbox ended without telling an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The engine saw it end.
    Exited(Exit),
    /// The engine does not know it (any more).
    Gone,
    /// It never got to run.
    NeverRan(Fault),
}

/// Why a sandbox never got to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) class: FaultClass,
    /// One sentence with the remedy.
    pub(crate) message: String,
}

/// What to do about a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultClass {
    /// The server went down meanwhile: try again at once.
    Interrupted,
    /// The whole server cannot place runs for now: try again for as long as the run's time limit allows.
    Passing,
    /// Try again, [`PLACE_ATTEMPTS`] times in all.
    Retry,
    /// Trying again cannot help before somebody has changed something.
    Final,
}

/// What to do with a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// End it.
    Finish(Finish),
    /// Give it back to the queue.
    Requeue {
        /// One sentence.
        reason: String,
        /// How long it must not be claimed.
        delay_ms: i64,
    },
}

/// Judges a run whose shim has told its outcome.
pub(crate) fn by_outcome(facts: &Facts<'_>, outcome: &Outcome) -> Finish {
    let result = outcome.result.as_deref().map(|text| cut(text, RESULT_TEXT_BYTES).to_owned());
    let (status, failure) = match &outcome.ending {
        Ending::Completed => {
            match push_fault(facts, outcome).or_else(|| output_fault(facts)).or_else(|| checks_fault(facts)) {
                None => (RunStatus::Succeeded, None),
                Some(failure) => (RunStatus::Failed, Some(failure)),
            }
        }
        Ending::Failed(failure) => {
            let failure = told(facts, failure);
            (RunStatus::Failed, Some(given_up(facts, &failure).unwrap_or(failure)))
        }
        Ending::Stopped(StopReason::Cancel) if facts.progress.cancel_requested => {
            (RunStatus::Cancelled, None)
        }
        Ending::Stopped(reason) => (RunStatus::Failed, Some(stopped(facts, *reason))),
        // Judged elsewhere, while another sandbox can still be made.
        Ending::OtherImage(_) => (RunStatus::Failed, Some(late_wish())),
    };
    Finish { status, failure, result }
}

/// Whether the run has the output that it was asked for: the shim has looked, and is not believed.
fn output_fault(facts: &Facts<'_>) -> Option<Failure> {
    let wanted = facts.spec.output_schema.as_ref()?;
    let faults = match (Schema::read(wanted), &facts.progress.output) {
        (Ok(schema), Some(output)) => schema.faults(output),
        (Ok(_), None) => vec!["the sandbox told none".to_owned()],
        (Err(error), _) => vec![error.to_string()],
    };
    let failure = Failure::new(FailureKind::AgentError, "the run has no output that fits its schema");
    (!faults.is_empty()).then(|| failure.with_evidence(faults.join("\n")))
}

/// Whether the work passes the repository's checks, where the workflow says that it must. That it does is the sandbox's word alone.
fn checks_fault(facts: &Facts<'_>) -> Option<Failure> {
    let failing = facts.progress.checks.iter().filter(|result| !result.passed());
    let failing: Vec<&CheckResult> =
        failing.filter(|_| facts.spec.workflow.caisson.checks_must_pass).collect();
    let first = failing.first()?;
    let names: Vec<&str> = failing.iter().map(|result| result.name.as_str()).collect();
    let kept =
        if facts.progress.pushed_commit.is_some() { "; the work is on its branch all the same" } else { "" };
    let message = format!("the repository's {} does not pass on what the agent left{kept}", names.join(", "));
    let failure = Failure::new(FailureKind::AgentError, message);
    Some(match &first.output {
        Some(output) => failure.with_evidence(format!("{}\n{output}", first.command)),
        None => failure.with_evidence(first.command.clone()),
    })
}

/// Judges a run whose sandbox ended, or never ran, without an outcome.
pub(crate) fn by_end(facts: &Facts<'_>, end: &End) -> Verdict {
    if facts.progress.cancel_requested {
        return Verdict::Finish(Finish { status: RunStatus::Cancelled, failure: None, result: None });
    }
    if let Some(failure) = cut_short(facts) {
        return failed(failure);
    }
    if let Some(told_at_ms) = facts.progress.stop_requested_at_ms {
        // Only cancelling, the time limit and a full room stop a run.
        let early = told_at_ms.saturating_add(TIMEOUT_SLACK_MS) < facts.deadline_ms;
        return failed(if early { room_full(facts) } else { timed_out(facts) });
    }
    if let End::Exited(exit) = end
        && exit.ended_by_oom()
    {
        return failed(out_of_memory(facts));
    }
    if facts.progress.agent_started {
        return failed(lost(facts, end));
    }
    not_started(facts, end)
}

/// The agent has not started, so the run may go back to the queue.
fn not_started(facts: &Facts<'_>, end: &End) -> Verdict {
    let (class, message) = match end {
        End::NeverRan(fault) => (fault.class, fault.message.clone()),
        End::Exited(_) | End::Gone => {
            (FaultClass::Retry, format!("the sandbox ended before the agent was started ({})", seen(end)))
        }
    };
    let failure = Failure::new(FailureKind::SandboxStart, message.clone());
    let delay_ms = match class {
        FaultClass::Final => return failed(Failure { retry_can_help: false, ..failure }),
        FaultClass::Retry | FaultClass::Interrupted if facts.attempt >= PLACE_ATTEMPTS => {
            let tried = format!("tried {} times", facts.attempt);
            return failed(failure.with_evidence(tried));
        }
        FaultClass::Interrupted => 0,
        FaultClass::Passing | FaultClass::Retry => delay_ms(facts),
    };
    if facts.now_ms >= facts.deadline_ms {
        return failed(timed_out(facts).with_evidence(message));
    }
    Verdict::Requeue { reason: message, delay_ms }
}

fn delay_ms(facts: &Facts<'_>) -> i64 {
    let (first, most) = facts.requeue;
    // Bounded here only so that the shift is; the longest delay is reached long before.
    let doublings = (facts.attempt - 1).clamp(0, 30);
    let delay = first.saturating_mul(1 << doublings).min(most);
    i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)
}

/// What contradicts the shim's word that the work is published.
fn push_fault(facts: &Facts<'_>, outcome: &Outcome) -> Option<Failure> {
    if !outcome.pushed || !stands(Check::ReportedPush) {
        return None;
    }
    let claimed = outcome.head.as_deref();
    let carried = facts.progress.pushed_commit.as_deref();
    if claimed.is_some() && claimed == carried {
        return None;
    }
    let kind = if carried.is_none() { FailureKind::PushRejected } else { FailureKind::Internal };
    let text = |commit: Option<&str>| cut(commit.unwrap_or("none"), COMMIT_BYTES).to_owned();
    let evidence = format!("reported commit: {}; carried by the gateway: {}", text(claimed), text(carried));
    let message = "the sandbox reported a push that the gateway did not carry; the branch does not hold the reported work";
    Some(Failure::new(kind, message).with_evidence(evidence))
}

/// Longest text taken for a commit's id: SHA-256 in hexadecimal digits.
const COMMIT_BYTES: usize = 64;

/// A run that says that it was told to stop, by whom but a canceller.
fn stopped(facts: &Facts<'_>, reason: StopReason) -> Failure {
    let told = facts.progress.stop_requested_at_ms.is_some() && !facts.progress.cancel_requested;
    match (cut_short(facts), reason) {
        (Some(failure), _) => failure,
        (None, StopReason::Timeout) if timeout_passed(facts) => timed_out(facts),
        (None, StopReason::DiskFull) if told => room_full(facts),
        (None, StopReason::Cancel | StopReason::Timeout | StopReason::DiskFull) => never_told(reason),
    }
}

/// A wish for another image that comes when the agent has begun, which no shim has.
pub(crate) fn late_wish() -> Failure {
    let message =
        "the sandbox asked for another image when its agent had been started; this is a fault of Caisson";
    Failure::new(FailureKind::Internal, message)
}

/// A failure as the shim told it, within our bounds. A claim about the model API is shown beside what the gateway saw.
fn told(facts: &Facts<'_>, failure: &Failure) -> Failure {
    let message = cut(&failure.message, RESULT_TEXT_BYTES).to_owned();
    let failure = disk_word(facts, Failure { message, ..failure.clone() });
    let mut failure = process_word(facts, failure);
    let about_provider = matches!(
        failure.kind,
        FailureKind::ProviderAuth | FailureKind::ProviderLimit | FailureKind::ProviderDown
    );
    let evidence = match (failure.evidence.take(), about_provider) {
        (evidence, false) => evidence,
        (None, true) => Some(last_call(facts)),
        (Some(evidence), true) => Some(format!("{}; {evidence}", last_call(facts))),
    };
    match evidence {
        Some(evidence) => failure.with_evidence(evidence),
        None => failure,
    }
}

/// The gateway's own word for why it gave up the run's model calls, where the agent failed after that: the agent only saw
/// an answer that makes it stop.
fn given_up(facts: &Facts<'_>, told: &Failure) -> Option<Failure> {
    let known = facts.progress.model_failure.as_ref()?;
    let of_the_model = matches!(
        told.kind,
        FailureKind::AgentError
            | FailureKind::Budget
            | FailureKind::ProviderAuth
            | FailureKind::ProviderLimit
            | FailureKind::ProviderDown
    );
    let agent = format!("the agent ended with: {}", told.message);
    let evidence = match &known.evidence {
        Some(evidence) => format!("{evidence}; {agent}"),
        None => agent,
    };
    of_the_model.then(|| known.clone().with_evidence(evidence))
}

fn never_told(reason: StopReason) -> Failure {
    let message = "the sandbox reported that it was told to stop, but nobody had told it to";
    Failure::new(FailureKind::AgentError, message).with_evidence(format!("reported reason: {reason}"))
}

fn timeout_passed(facts: &Facts<'_>) -> bool {
    let by_the_clock = facts.now_ms.saturating_add(TIMEOUT_SLACK_MS) >= facts.deadline_ms;
    let told_to_stop = facts.progress.stop_requested_at_ms.is_some() && !facts.progress.cancel_requested;
    by_the_clock || told_to_stop
}

fn timed_out(facts: &Facts<'_>) -> Failure {
    let seconds = facts.spec.timeout_s;
    let message = format!(
        "the run's time limit of {seconds} s passed; raise caisson.timeout_s in the workflow, or give the agent a smaller task"
    );
    Failure::new(FailureKind::Timeout, message)
}

fn out_of_memory(facts: &Facts<'_>) -> Failure {
    let mib = facts.spec.resources.memory_mib;
    let message = format!(
        "the sandbox used all of its {mib} MiB of memory and was killed; raise caisson.resources.memory_mib in the workflow"
    );
    Failure::new(FailureKind::Oom, message)
}

fn lost(facts: &Facts<'_>, end: &End) -> Failure {
    let message = "the sandbox ended while the agent worked; its session's workspace is kept";
    Failure::new(FailureKind::SandboxLost, message).with_evidence(format!(
        "{}; {}",
        seen(end),
        last_call(facts)
    ))
}

/// What the engine saw of an end.
fn seen(end: &End) -> String {
    match end {
        End::Gone => "the engine does not know the sandbox".to_owned(),
        End::NeverRan(fault) => fault.message.clone(),
        End::Exited(exit) => {
            let code =
                exit.code.map_or_else(|| "unknown exit code".to_owned(), |code| format!("exit code {code}"));
            let memory = if exit.oom_killed { ", a process was killed for want of memory" } else { "" };
            format!("{code}{memory}")
        }
    }
}

fn last_call(facts: &Facts<'_>) -> String {
    match facts.progress.provider_status {
        None => "no model call was settled".to_owned(),
        Some(0) => "the last model call got no reply".to_owned(),
        Some(status) => format!("the last model call was answered with HTTP {status}"),
    }
}

fn failed(failure: Failure) -> Verdict {
    Verdict::Finish(Finish { status: RunStatus::Failed, failure: Some(failure), result: None })
}

/// Why this worker itself had the sandbox end, if it did.
fn cut_short(facts: &Facts<'_>) -> Option<Failure> {
    match facts.disk.cut? {
        Cut::Time => Some(timed_out(facts)),
        Cut::Full(bound, room) => Some(bound_reached(bound, &room)),
        Cut::Floor { free_bytes, used } => {
            let message = "the server's disk ran full, and of the sessions that grew this one was the largest; its workspace \
                           is kept; make room on the server, or lower limits.workspace_mib";
            let evidence = format!(
                "{free_bytes} bytes were free on the server; the session had {} bytes in {} files",
                used.bytes, used.files
            );
            Some(Failure::new(FailureKind::DiskFull, message).with_evidence(evidence))
        }
    }
}

/// A session's room is full, and nobody knows how any more.
fn room_full(facts: &Facts<'_>) -> Failure {
    match facts.disk.full {
        Some((bound, room)) => bound_reached(bound, &room),
        None => Failure::new(
            FailureKind::DiskFull,
            format!("the session used all of its disk space; {MORE_ROOM}"),
        ),
    }
}

const MORE_ROOM: &str = "raise caisson.resources.workspace_mib in the workflow (up to the server's limits.workspace_mib), or have the \
                         agent write less";

fn bound_reached(bound: Bound, room: &Room) -> Failure {
    const MIB: u64 = 1024 * 1024;
    let (used, most) = (room.used, room.most);
    let message = match bound {
        Bound::Space => format!(
            "the session used all of its {} MiB of disk space for workspace and home; {MORE_ROOM}",
            most.bytes / MIB
        ),
        Bound::Files => {
            format!("the session has all of the {} files that its disk space allows; {MORE_ROOM}", most.files)
        }
        Bound::Journal => format!(
            "the sandbox's journal directory holds more than {JOURNAL_VOLUME_MIB} MiB, and none but the shim should write there"
        ),
        Bound::Depth => format!(
            "the session has directories nested deeper than {DEPTH} levels, whose size cannot be measured; have the agent nest less"
        ),
    };
    let evidence = format!("{} bytes in {} files", used.bytes, used.files);
    Failure::new(FailureKind::DiskFull, message).with_evidence(evidence)
}

/// What failed with a full room, failed for it.
fn disk_word(facts: &Facts<'_>, told: Failure) -> Failure {
    let by_a_full_disk = matches!(
        told.kind,
        FailureKind::DiskFull
            | FailureKind::AgentError
            | FailureKind::AgentHung
            | FailureKind::SetupFailed
            | FailureKind::Internal
    );
    match facts.disk.full.filter(|_| by_a_full_disk) {
        None => told,
        Some((bound, room)) => {
            let failure = bound_reached(bound, &room);
            let seen = failure.evidence.clone().unwrap_or_default();
            let said = told.evidence.map(|evidence| format!(": {evidence}")).unwrap_or_default();
            failure.with_evidence(format!("{seen}; reported as {}: {}{said}", told.kind, told.message))
        }
    }
}

/// What failed in a sandbox that was refused processes may have failed for it: an agent that cannot have a thread aborts, and
/// says nothing.
fn process_word(facts: &Facts<'_>, told: Failure) -> Failure {
    let by_refusal = matches!(
        told.kind,
        FailureKind::AgentError | FailureKind::AgentHung | FailureKind::SetupFailed | FailureKind::Internal
    );
    if !by_refusal || facts.pids_refused == 0 {
        return told;
    }
    let message = format!(
        "{}; the sandbox had all of its {} processes and threads, and was refused one more {} times: raise \
         caisson.resources.pids in the workflow, or have the agent start fewer",
        told.message, facts.spec.resources.pids, facts.pids_refused
    );
    Failure { message, ..told }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
pub(crate) mod tests;
