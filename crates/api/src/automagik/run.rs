//! What several routes say of a run.

use caisson_domain::id::{RunId, SessionId};
use caisson_domain::limits;
use caisson_domain::principal::Principal;
use caisson_domain::run::{Failure, FailureKind, Run, RunStatus};
use caisson_store::{Asked, NumberedRun, Store, Topic};
use tokio::time::{Duration, Instant};

use super::refusal::Refusal;
use super::time::seconds;
use crate::state::App;

/// The most turns that are shown for a run without a bound of its own: its clients divide by it.
const TURNS_SHOWN: u32 = 200;
/// Longest time until a wait looks again that no hint ended.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A run as its clients see it.
pub(super) struct Shown {
    pub(super) run: Run,
    asked: Option<Asked>,
    now_ms: i64,
}

impl Shown {
    pub(super) fn new(found: NumberedRun, now_ms: i64) -> Self {
        Self { run: found.run, asked: found.asked, now_ms }
    }

    /// The workflow as it was asked for.
    pub(super) fn workflow_name(&self) -> &str {
        self.asked.as_ref().map_or(&self.run.spec.workflow.name, |asked| &asked.workflow_name)
    }

    pub(super) fn session_name(&self) -> Option<String> {
        self.asked.as_ref().and_then(|asked| asked.session_name.clone())
    }

    pub(super) fn user(&self) -> Option<String> {
        self.asked.as_ref().and_then(|asked| asked.user.clone())
    }

    /// From start to end, or to now, in seconds; 0 of a run that has not started.
    pub(super) fn execution_s(&self) -> f64 {
        let end = self.run.finished_at_ms.unwrap_or(self.now_ms);
        seconds(self.run.started_at_ms.map_or(0, |start| (end - start).max(0)))
    }

    /// Model calls, which is what a turn costs.
    pub(super) fn turns(&self) -> i64 {
        self.run.usage.calls
    }

    pub(super) fn max_turns(&self) -> u32 {
        self.run.spec.max_turns.unwrap_or(TURNS_SHOWN).min(limits::MAX_TURNS_MAX)
    }

    #[expect(clippy::cast_precision_loss, reason = "exact up to nine billion dollars")]
    pub(super) fn cost_usd(&self) -> f64 {
        self.run.usage.cost_micro_usd as f64 / 1_000_000.0
    }

    pub(super) fn input_tokens(&self) -> i64 {
        self.run.usage.tokens.input
    }

    pub(super) fn cache_created(&self) -> i64 {
        self.run.usage.tokens.cache_write_5m + self.run.usage.tokens.cache_write_1h
    }

    pub(super) fn total_tokens(&self) -> i64 {
        let tokens = &self.run.usage.tokens;
        tokens.input + tokens.output + tokens.cache_read + self.cache_created()
    }

    /// Tokens read from the cache among those that had to do with it, in percent.
    #[expect(clippy::cast_precision_loss, reason = "a share of tokens")]
    pub(super) fn cache_efficiency(&self) -> f64 {
        let (read, all) =
            (self.run.usage.tokens.cache_read, self.run.usage.tokens.cache_read + self.cache_created());
        if all == 0 { 0.0 } else { (read as f64 / all as f64 * 10_000.0).round() / 100.0 }
    }

    pub(super) fn error(&self) -> Option<String> {
        self.run.failure.as_ref().map(|failure| failure.message.clone())
    }

    /// How it ended, in upstream's words.
    pub(super) fn completion_type(&self, status: &'static str) -> &'static str {
        match (self.run.status, self.run.failure.as_ref().map(|failure| failure.kind)) {
            (RunStatus::Succeeded, _) => "completed_successfully",
            (RunStatus::Failed, Some(FailureKind::MaxTurns)) => "max_turns_reached",
            (RunStatus::Failed, Some(FailureKind::Timeout)) => "timeout",
            _ => status,
        }
    }

    /// One sentence about where it stands.
    pub(super) fn sentence(&self) -> String {
        match (self.run.status, &self.run.failure) {
            (RunStatus::Queued, _) => "Workflow waiting for its start".to_owned(),
            (RunStatus::Running, _) => "Workflow running".to_owned(),
            (RunStatus::Succeeded, _) => "Workflow completed successfully".to_owned(),
            (RunStatus::Failed, Some(Failure { message, .. })) => message.clone(),
            (RunStatus::Failed, None) => "Workflow failed".to_owned(),
            (RunStatus::Cancelled, _) => "Workflow killed".to_owned(),
        }
    }
}

/// A session's id as clients write it: ours, or its digits as a UUID.
pub(super) fn session_id(text: &str) -> Option<SessionId> {
    text.parse().ok().or_else(|| {
        let digits = uuid::Uuid::parse_str(text).ok()?.simple().to_string();
        format!("ses_{digits}").parse().ok()
    })
}

/// The run that a path names: by its own id, or, for the newest run of a session, by that one's.
///
/// # Errors
/// [`Refusal::Told`] if there is none.
pub(super) async fn find(store: &Store, caller: &Principal, id: &str) -> Result<Shown, Refusal> {
    let run = match (id.parse::<RunId>(), session_id(id)) {
        (Ok(run), _) => Some(run),
        (Err(_), Some(session)) => {
            store.session(&caller.project, &session).await?.and_then(|session| session.last_run)
        }
        (Err(_), None) => None,
    };
    let found = match run {
        Some(run) => store.numbered_run(&caller.project, &run).await?,
        None => None,
    };
    let id: String = id.chars().take(64).collect();
    let unknown = || Refusal::not_found("unknown_run", format!("Run {} not found", id.escape_debug()));
    found.map(|found| Shown::new(found, store.now_ms())).ok_or_else(unknown)
}

/// Waits until the run has ended, at most so long; the run as it stands then.
///
/// # Errors
/// As [`find`], and if the caller's key was revoked or has expired meanwhile.
/// # Cancel safety
/// Safe: it only reads.
pub(super) async fn wait(
    app: &App,
    caller: &Principal,
    id: &RunId,
    at_most: Duration,
) -> Result<Shown, Refusal> {
    let deadline = Instant::now() + at_most;
    let store = app.store();
    let mut watch = store.watch(Topic::Run(id.clone()));
    loop {
        app.access().still_opens(store, &caller.key).await?;
        let shown = find(store, caller, id.as_str()).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        if shown.run.status.is_final() || left.is_zero() {
            return Ok(shown);
        }
        watch.changed(left.min(LOOK_AGAIN)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_by_its_id_and_as_a_uuid() {
        let id = SessionId::new(1_790_000_000_000, [7; 10]);
        let digits = id.as_str().trim_start_matches("ses_");
        let uuid = uuid::Uuid::parse_str(digits).unwrap().to_string();
        assert!(uuid.contains('-'));
        for text in [id.as_str(), &uuid] {
            assert_eq!(session_id(text).as_ref(), Some(&id));
        }
        for bad in ["", "session_xyz789", "ses_", &format!("run_{digits}")] {
            assert_eq!(session_id(bad), None, "{bad}");
        }
    }
}
