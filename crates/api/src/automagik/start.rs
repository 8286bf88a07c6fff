//! Starting a run.

use std::ops::RangeInclusive;

use axum::Json;
use axum::extract::State;
use caisson_domain::id::{ProjectId, SessionId};
use caisson_domain::principal::Principal;
use caisson_domain::run::Run;
use caisson_store::{Asked, Idempotency, RepeatWindow, Store};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Sent, number, text};
use super::query::Query;
use super::refusal::{Refusal, RefusedBody};
use super::undone::Undone;
use super::{Call, Dialect, names, run};
use crate::auth::Writer;
use crate::extract::Fields;
use crate::problem::Faults;
use crate::runs::{self, Accepted, CreateRun, Origin, RepositoryChoice};
use crate::state::App;

/// How long the same request of the same key is taken for a repetition, in milliseconds: its clients send again what they
/// got no answer to, without a word that it is the same.
const REPEAT_MS: i64 = 15_000;
/// The same while its run is queued or running: they try four times, and a proxy between may answer each time-out only after a
/// minute. A second run of the same text is wanted when the first is over, or says so by an `Idempotency-Key`.
const REPEAT_LIVE_MS: i64 = 5 * 60 * 1000;
/// Turns that may be asked for.
const MAX_TURNS: RangeInclusive<u32> = 1..=200;
/// Time limits that may be asked for, in seconds.
const TIMEOUT_S: RangeInclusive<u32> = 60..=14_400;
/// Longest name of a session or user, in characters.
pub(super) const NAME_CHARS: usize = 500;

/// A run to be started. Fields that are not known are ignored, which the answer says of those that ask for anything; `null` is as
/// good as absent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct StartRun {
    /// The task.
    #[schema(example = "Fix the session timeout", pattern = r"^[^\x00]*[^\x00\s][^\x00]*$")]
    pub message: String,
    /// The session to go on with; left out, a new one. A text that is no id of a session is ignored. What is left out is as in the
    /// session's last run.
    pub session_id: Option<String>,
    /// A name for the session.
    #[schema(max_length = 500)]
    pub session_name: Option<String>,
    /// On whose behalf; any text.
    #[schema(max_length = 500)]
    pub user_id: Option<String>,
    /// Most turns; left out, the workflow's.
    #[schema(minimum = 1, maximum = 200)]
    pub max_turns: Option<u32>,
    /// Time limit in seconds; left out, the workflow's.
    #[schema(minimum = 60, maximum = 14400)]
    pub timeout: Option<u32>,
    /// The repository; left out, the server's default.
    pub repository_url: Option<String>,
    /// The branch to start from; the work goes to a branch of its own.
    pub git_branch: Option<String>,
    /// `text` or `stream-json`; both take messages.
    #[schema(pattern = "^(text|stream-json)$")]
    pub input_format: Option<String>,
    /// Taken and without effect: workspaces are always kept as the server keeps them. The answer says so to `false`.
    pub persistent: Option<bool>,
    /// Taken and not done, which the answer says: nothing is merged here.
    pub auto_merge: Option<bool>,
    /// Whether to work in an empty workspace.
    pub temp_workspace: Option<bool>,
}

/// A run that was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct StartedRun {
    /// Its id.
    pub run_id: String,
    /// `pending`; of a request that was repeated, where its run stands.
    pub status: String,
    /// What was done and what was not.
    pub message: String,
    /// Its session, which `session_id` goes on with.
    pub session_id: String,
    /// The workflow as it was asked for.
    pub workflow_name: String,
    /// When it was accepted.
    pub started_at: String,
    /// The branch that its work goes to.
    pub git_branch: Option<String>,
    /// Always null: commits come later.
    pub auto_commit_sha: Option<String>,
}

/// Start a workflow
///
/// A request that is sent again with the same key and the same bytes finds the same run: within 15 seconds, and within 5 minutes
/// as long as the run is not over. With an `Idempotency-Key` it is that which counts.
#[utoipa::path(
    post, path = "/api/v1/{surface}/claude-code/run/{id}", tag = "automagik", operation_id = "automagik_start_run",
    request_body = StartRun,
    params(
        ("surface" = String, Path, description = "`workflows`, or `agent` for early clients", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The workflow's name, or an alias"),
        ("persistent" = Option<bool>, Query, description = "As in the body"),
        ("auto_merge" = Option<bool>, Query, description = "As in the body"),
        ("temp_workspace" = Option<bool>, Query, description = "As in the body"),
    ),
    responses(
        (status = 200, description = "Accepted", body = StartedRun),
        (status = 400, description = "A combination that makes no sense", body = RefusedBody),
    ),
)]
pub(crate) async fn start_run(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id: name, query, headers, .. }: Call,
    sent: Sent,
) -> Result<Json<StartedRun>, Refusal> {
    start(&app, caller, dialect, (&name, query, &headers, sent)).await
}

/// Start a workflow, as early clients do
#[utoipa::path(
    post, path = "/api/v1/{surface}/claude-code/{id}/run", tag = "automagik", operation_id = "automagik_start_workflow",
    request_body = StartRun,
    params(
        ("surface" = String, Path, description = "`agent`, or `workflows`", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The workflow's name, or an alias"),
        ("persistent" = Option<bool>, Query, description = "As in the body"),
        ("auto_merge" = Option<bool>, Query, description = "As in the body"),
        ("temp_workspace" = Option<bool>, Query, description = "As in the body"),
    ),
    responses(
        (status = 200, description = "Accepted", body = StartedRun),
        (status = 400, description = "A combination that makes no sense", body = RefusedBody),
    ),
)]
pub(crate) async fn start_workflow(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id: name, query, headers, .. }: Call,
    sent: Sent,
) -> Result<Json<StartedRun>, Refusal> {
    start(&app, caller, dialect, (&name, query, &headers, sent)).await
}

/// Starts what a body and its parameters ask for.
pub(super) async fn start(
    app: &App,
    caller: Principal,
    dialect: Dialect,
    (name, mut query, headers, sent): (&str, Query, &HeaderMap, Sent),
) -> Result<Json<StartedRun>, Refusal> {
    let workflow = names::workflow(app.store(), &caller, name).await?;
    let Sent { fields, mark } = sent;
    let mut wish = Wish::read(fields, &mut query)?;
    query.finish()?;
    wish.check()?;
    wish.asked.workflow_name = name.to_owned();
    wish.request.workflow = workflow;
    let undone = std::mem::take(&mut wish.undone);
    let accepted = accept(app, caller, wish, (headers, &mark)).await?;
    let message = told(name, &accepted, &undone);
    let Run { id, session, status, spec, created_at_ms, .. } = accepted.run;
    Ok(Json(StartedRun {
        run_id: id.into(),
        status: dialect.status(status).to_owned(),
        message,
        session_id: session.into(),
        workflow_name: name.to_owned(),
        started_at: dialect.time(created_at_ms),
        git_branch: spec.branch.map(String::from),
        auto_commit_sha: None,
    }))
}

fn told(name: &str, accepted: &Accepted, undone: &Undone) -> String {
    let message = if accepted.replayed {
        format!("{name} workflow was started by the same request before.")
    } else {
        format!("Started {name} workflow.")
    };
    message + undone.behind() + " Use the status endpoint to track progress."
}

/// What is asked for.
pub(super) struct Wish {
    pub(super) request: CreateRun,
    pub(super) asked: Asked,
    session: Option<SessionId>,
    auto_merge: bool,
    temporary: bool,
    /// What is not done of it.
    pub(super) undone: Undone,
}

impl Wish {
    /// A task on behalf of somebody, with all else left to the workflow.
    pub(super) fn new(request: CreateRun, asked: Asked, session: Option<SessionId>) -> Self {
        Self { request, asked, session, auto_merge: false, temporary: false, undone: Undone::default() }
    }

    fn read(mut fields: Fields, query: &mut Query) -> Result<Self, Refusal> {
        let mut faults = Faults::default();
        let request = CreateRun {
            prompt: fields.require("message", &mut faults).unwrap_or_default(),
            max_turns: number(&mut fields, "max_turns", &MAX_TURNS, &mut faults),
            timeout_s: number(&mut fields, "timeout", &TIMEOUT_S, &mut faults),
            repository: match fields.take("repository_url", &mut faults) {
                Some(url) => RepositoryChoice::Named(url),
                None => RepositoryChoice::Default,
            },
            base: fields.take("git_branch", &mut faults),
            ..CreateRun::default()
        };
        let format: Option<String> = fields.take("input_format", &mut faults);
        if format.is_some_and(|format| !matches!(format.as_str(), "text" | "stream-json")) {
            faults.add("input_format", "enum", "Input should be 'text' or 'stream-json'");
        }
        let mut flag = |name: &'static str| {
            let of_body = fields.take::<bool>(name, &mut faults);
            query.flag(name).or(of_body)
        };
        let (persistent, auto_merge) = (flag("persistent"), flag("auto_merge").unwrap_or(false));
        let temporary = flag("temp_workspace").unwrap_or(false);
        let asked = Asked {
            workflow_name: String::new(),
            session_name: text(&mut fields, "session_name", NAME_CHARS, &mut faults),
            user: text(&mut fields, "user_id", NAME_CHARS, &mut faults),
        };
        let session = fields.take::<String>("session_id", &mut faults);
        if !faults.is_empty() {
            return Err(Refusal::body(faults));
        }
        let session = session.as_deref().and_then(run::session_id);
        let mut undone = Undone::of(fields.left(), session.is_some());
        if auto_merge {
            undone.say("Nothing is merged automatically here: its work is pushed to a branch of its own.");
        }
        if persistent == Some(false) {
            undone.say("Its workspace is kept with the session all the same.");
        }
        Ok(Self { request, asked, session, auto_merge, temporary, undone })
    }

    /// Refuses what cannot go together.
    fn check(&mut self) -> Result<(), Refusal> {
        if !self.temporary {
            return Ok(());
        }
        let named = !self.request.repository.is_default();
        let others = [
            ("repository_url", named),
            ("git_branch", self.request.base.is_some()),
            ("auto_merge", self.auto_merge),
        ];
        let wrong: Vec<&str> = others.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if wrong.is_empty() {
            self.request.repository = RepositoryChoice::Empty;
            return Ok(());
        }
        let wrong = wrong.join(", ");
        let detail = format!(
            "temp_workspace cannot be used with: {wrong}. A temporary workspace is empty; leave it out, or those."
        );
        Err(Refusal::bad_request("temp_workspace", detail))
    }
}

/// Accepts the run as the native API would, once for all repetitions within [`REPEAT_MS`] or [`REPEAT_LIVE_MS`].
pub(super) async fn accept(
    app: &App,
    caller: Principal,
    mut wish: Wish,
    (headers, mark): (&HeaderMap, &str),
) -> Result<Accepted, Refusal> {
    if let Some(session) = &wish.session {
        go_on_with(app.store(), &caller.project, session, &mut wish.request).await?;
    }
    let (key, window) = if let Some(key) = runs::idempotency_key(headers)? {
        (key, RepeatWindow::default())
    } else {
        // No client can send a key with a space in it.
        let window = RepeatWindow { always_ms: REPEAT_MS, live_ms: REPEAT_LIVE_MS };
        (format!("same request of {} {mark}", caller.key), window)
    };
    let idempotency = Idempotency { key, request_sha256: mark.to_owned() };
    let origin = Origin { idempotency: Some(idempotency), asked: Some((wish.asked, wish.session)), window };
    runs::accept(app, caller, (wish.request, Faults::default()), origin).await.map_err(Refusal::of_run)
}

/// Makes the request one that goes on with the session, as a native one would: what it leaves out is as in the session's last run,
/// and what contradicts that is refused.
async fn go_on_with(
    store: &Store,
    project: &ProjectId,
    id: &SessionId,
    request: &mut CreateRun,
) -> Result<(), Refusal> {
    let session = store.session(project, id).await?;
    let unknown = || Refusal::not_found("unknown_session", format!("Session {id} not found"));
    let session = session.ok_or_else(unknown)?;
    if session.workflow != request.workflow {
        let detail = format!(
            "session {id} follows the workflow {}; another one needs another session",
            session.workflow
        );
        return Err(Refusal::bad_request("session_workflow", detail));
    }
    let last = store.go_on(project, id).await?.ok_or_else(unknown)?;
    if last.expired {
        let detail = format!("Session {id} has expired: its workspace and conversation were removed");
        return Err(Refusal::bad_request("session_expired", detail));
    }
    // Clients know one branch, and are told the session's own.
    if request.base.is_some() && request.base == session.branch.map(String::from) {
        request.base = None;
    }
    request.session = Some(id.to_string());
    Ok(())
}
