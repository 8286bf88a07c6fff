//! Ending a run, and what is left to be cleaned up behind it.

use axum::Json;
use axum::extract::State;
use caisson_domain::id::RunId;
use caisson_domain::principal::Principal;
use caisson_domain::run::RunStatus;
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};
use utoipa::ToSchema;

use super::Call;
use super::refusal::{Refusal, RefusedBody};
use super::run::{Shown, find, wait};
use crate::auth::Writer;
use crate::state::App;

/// How long an answer waits for the run's end. An agent that is told to stop has more time than this to save its work.
const END_WAIT: Duration = Duration::from_secs(15);

/// What became of a run that was to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct KilledRun {
    /// Whether it ended, or ends, because it was asked to.
    pub success: bool,
    /// Its id.
    pub run_id: String,
    /// The workflow as it was asked for.
    pub workflow_name: String,
    /// Where it stands now.
    pub status: String,
    /// When it ended; now, if it has not.
    pub killed_at: String,
    /// `force` if that was asked for; it is the same: work is saved first either way.
    pub kill_method: String,
    /// How long it took, as far as it was waited for.
    pub kill_duration_ms: u64,
    /// What was done.
    pub cleanup_status: KillCleanup,
    /// In a sentence.
    pub message: String,
}

/// What was done to end a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct KillCleanup {
    /// Whether the run's row says so.
    pub session_updated: bool,
    /// Whether the audit log tells who asked: it does of whoever asked first for the end of a run that had not ended.
    pub audit_logged: bool,
    /// Whether its processes are gone.
    pub process_terminated: bool,
}

/// What became of what a run leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct CleanedRun {
    /// Whether nothing of it runs any more.
    pub success: bool,
    /// Its id.
    pub run_id: String,
    /// The workflow as it was asked for.
    pub workflow_name: String,
    /// When it was looked at.
    pub cleanup_time: String,
    /// How long it took.
    pub cleanup_duration_ms: u64,
    /// What was done.
    pub cleanup_details: CleanupDetails,
    /// In a sentence.
    pub message: String,
}

/// What is gone, and what is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are the clients'")]
pub(crate) struct CleanupDetails {
    /// Always false: the session keeps it, for the runs that go on with it.
    pub workspace_removed: bool,
    /// Whether what was temporary went with the sandbox.
    pub temp_files_removed: bool,
    /// Always false: there are none.
    pub git_worktree_removed: bool,
    /// Whether its processes are gone.
    pub process_cleaned: bool,
    /// Always null.
    pub workspace_path: Option<String>,
    /// What went wrong.
    pub errors: Vec<String>,
}

/// End a run
///
/// A waiting run ends at once; a running one is told to stop and saves its work first. Of a run that had ended before
/// nothing changes.
#[utoipa::path(
    post, path = "/api/v1/{surface}/claude-code/run/{id}/kill", tag = "automagik", operation_id = "automagik_kill_run",
    params(
        ("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The run's id, or a session's"),
        ("force" = Option<bool>, Query, description = "Taken, and the same"),
    ),
    responses((status = 200, description = "What became of it", body = KilledRun)),
)]
pub(crate) async fn kill_run(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, mut query, .. }: Call,
) -> Result<Json<KilledRun>, Refusal> {
    let force = query.flag("force").unwrap_or(false);
    query.finish()?;
    let begun = Instant::now();
    let before = find(app.store(), &caller, &id).await?;
    let was_over = before.run.status.is_final();
    let shown = if was_over { before } else { end(&app, &caller, &before.run.id).await? };
    let status = dialect.status(shown.run.status);
    let ended = shown.run.status.is_final();
    Ok(Json(KilledRun {
        success: !was_over && (!ended || shown.run.status == RunStatus::Cancelled),
        run_id: shown.run.id.to_string(),
        workflow_name: shown.workflow_name().to_owned(),
        status: status.to_owned(),
        killed_at: dialect.time(shown.run.finished_at_ms.unwrap_or_else(|| app.store().now_ms())),
        kill_method: if force { "force" } else { "graceful" }.to_owned(),
        kill_duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        cleanup_status: KillCleanup {
            session_updated: ended,
            audit_logged: !was_over,
            process_terminated: ended,
        },
        message: match (was_over, ended) {
            (true, _) => format!("The run had ended before as {status}; nothing was changed"),
            (false, true) => format!("The run has ended as {status}"),
            (false, false) => "The run was told to stop, and saves its work first".to_owned(),
        },
    }))
}

/// Clean up behind a run
///
/// A sandbox goes by itself when its run ends, so there is nothing to do; the session keeps its workspace.
#[utoipa::path(
    post, path = "/api/v1/{surface}/claude-code/run/{id}/cleanup", tag = "automagik", operation_id = "automagik_clean_up",
    params(
        ("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The run's id, or a session's"),
        ("force" = Option<bool>, Query, description = "Whether to end a run that goes on"),
    ),
    responses(
        (status = 200, description = "What became of it", body = CleanedRun),
        (status = 400, description = "The run goes on", body = RefusedBody),
    ),
)]
pub(crate) async fn clean_up(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, mut query, .. }: Call,
) -> Result<Json<CleanedRun>, Refusal> {
    let force = query.flag("force").unwrap_or(false);
    query.finish()?;
    let begun = Instant::now();
    let before = find(app.store(), &caller, &id).await?;
    let live = !before.run.status.is_final();
    if live && !force {
        let status = dialect.status(before.run.status);
        let detail = format!("Cannot cleanup a run that is {status}. Kill it first, or use force=true");
        return Err(Refusal::bad_request("run_goes_on", detail));
    }
    let shown = if live { end(&app, &caller, &before.run.id).await? } else { before };
    let over = shown.run.status.is_final();
    Ok(Json(CleanedRun {
        success: over,
        run_id: shown.run.id.to_string(),
        workflow_name: shown.workflow_name().to_owned(),
        cleanup_time: dialect.time(app.store().now_ms()),
        cleanup_duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        cleanup_details: CleanupDetails {
            workspace_removed: false,
            temp_files_removed: over,
            git_worktree_removed: false,
            process_cleaned: over,
            workspace_path: None,
            errors: Vec::new(),
        },
        message: if over {
            "Nothing of the run is left running; its session keeps the workspace".to_owned()
        } else {
            "The run was told to stop, and saves its work first".to_owned()
        },
    }))
}

/// Asks for the run's end and waits for it, at most [`END_WAIT`].
async fn end(app: &App, caller: &Principal, id: &RunId) -> Result<Shown, Refusal> {
    app.store().request_cancel(&caller.project, id, Some(&caller.key)).await?;
    wait(app, caller, id, END_WAIT).await
}
