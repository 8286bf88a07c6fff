//! Sessions, by id or by name.

use axum::Json;
use axum::extract::State;
use caisson_domain::principal::Principal;
use caisson_store::{Asked, Direction, NUMBERED_ROWS, NumberedSession, Session};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::messages::{self, SaidMessage};
use super::refusal::{Refusal, RefusedBody};
use super::{Call, Dialect, names, run};
use crate::auth::{Reader, Writer};
use crate::state::App;

/// Sessions of a page when the caller names no number, and messages of one.
const PAGE_ITEMS: u32 = 50;

/// A page of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct NumberedSessions {
    /// The sessions.
    pub sessions: Vec<SessionInfo>,
    /// How many there are, at most 100,000.
    pub total: i64,
    /// The same.
    pub total_count: i64,
    /// Which page this is.
    pub page: i64,
    /// Items of a page.
    pub page_size: u32,
    /// How many pages there are.
    pub total_pages: i64,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct SessionInfo {
    /// Its id.
    pub session_id: String,
    /// On whose behalf its newest run is.
    pub user_id: Option<String>,
    /// The agent's number.
    pub agent_id: i64,
    /// Its name, as its newest run was asked for.
    pub session_name: Option<String>,
    /// When it began.
    pub created_at: String,
    /// Time of its last event.
    pub last_updated: String,
    /// Null in a list: they are counted when the session is read.
    pub message_count: Option<i64>,
    /// The agent.
    pub agent_name: String,
    /// Where it comes from.
    pub session_origin: String,
}

/// A session with a page of its messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct SessionHistory {
    /// The session; asked for by its name, with that for its id, as clients expect.
    #[serde(flatten)]
    pub session: SessionInfo,
    /// The messages.
    pub messages: Vec<SaidMessage>,
    /// Always true.
    pub exists: bool,
    /// How many messages were read, at most 5,000.
    pub total_messages: i64,
    /// Which page this is.
    pub current_page: i64,
    /// How many pages there are.
    pub total_pages: i64,
    /// Whether there are more messages than were read; `/v1/sessions/{id}/messages` has all of them.
    pub truncated: bool,
    /// The workflow's, if it was asked for.
    pub system_prompt: Option<String>,
}

impl SessionInfo {
    fn new(session: &Session, asked: Option<Asked>, dialect: Dialect) -> Self {
        let asked = asked.unwrap_or_default();
        Self {
            session_id: session.id.to_string(),
            user_id: asked.user,
            agent_id: names::AGENT_NUMBER,
            session_name: asked.session_name,
            created_at: dialect.time(session.created_at_ms),
            last_updated: dialect.time(session.updated_at_ms),
            message_count: None,
            agent_name: names::AGENT.to_owned(),
            session_origin: "claude-code-api".to_owned(),
        }
    }
}

/// List sessions by page number
#[utoipa::path(
    get, path = "/api/v1/sessions", tag = "automagik", operation_id = "automagik_list_sessions",
    params(
        ("page" = Option<i64>, Query, description = "From 1", minimum = 1, maximum = 10000),
        ("page_size" = Option<i64>, Query, description = "50 if left out", minimum = 1, maximum = 100),
        ("sort_desc" = Option<bool>, Query, description = "Whether the newest come first; true if left out"),
    ),
    responses((status = 200, description = "A page", body = NumberedSessions)),
)]
pub(crate) async fn list_sessions(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, mut query, .. }: Call,
) -> Result<Json<NumberedSessions>, Refusal> {
    let page = query.page(PAGE_ITEMS);
    let direction =
        if query.flag("sort_desc").unwrap_or(true) { Direction::Falling } else { Direction::Rising };
    query.finish()?;
    let mut sessions = Vec::new();
    let mut missing = page.size;
    while missing > 0 {
        let limit = missing.min(NUMBERED_ROWS);
        let skip = page.skip() + i64::from(page.size - missing);
        let found = app.store().numbered_sessions(&caller.project, direction, (skip, limit)).await?;
        let last = found.len() < limit as usize;
        let infos = found
            .into_iter()
            .map(|NumberedSession { session, asked }| SessionInfo::new(&session, asked, dialect));
        sessions.extend(infos);
        if last {
            break;
        }
        missing -= limit;
    }
    let total = app.store().count_sessions(&caller.project).await?;
    Ok(Json(NumberedSessions {
        sessions,
        total,
        total_count: total,
        page: page.number,
        page_size: page.size,
        total_pages: page.pages(total),
    }))
}

/// Get a session and its messages
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}", tag = "automagik", operation_id = "automagik_get_session",
    params(
        ("id" = String, Path, description = "Its id or name; the id is tried first"),
        ("page" = Option<i64>, Query, description = "From 1", minimum = 1, maximum = 10000),
        ("page_size" = Option<i64>, Query, description = "50 if left out", minimum = 1, maximum = 100),
        ("sort_desc" = Option<bool>, Query, description = "Whether the newest messages come first; true if left out"),
        ("hide_tools" = Option<bool>, Query, description = "Whether to leave tools out"),
        ("show_system_prompt" = Option<bool>, Query, description = "Whether to show the workflow's prompt"),
    ),
    responses((status = 200, description = "The session", body = SessionHistory)),
)]
pub(crate) async fn get_session(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, id, mut query, .. }: Call,
) -> Result<Json<SessionHistory>, Refusal> {
    let page = query.page(PAGE_ITEMS);
    let falling = query.flag("sort_desc").unwrap_or(true);
    let hide_tools = query.flag("hide_tools").unwrap_or(false);
    let show_prompt = query.flag("show_system_prompt").unwrap_or(false);
    query.finish()?;
    let (session, by_name) = find(&app, &caller, &id).await?;
    let asked = app.store().asked_of(&session.id).await?;
    let said = messages::read(&app, &caller, &session.id, (dialect, hide_tools)).await?;
    let total = i64::try_from(said.items.len()).unwrap_or(i64::MAX);
    let mut info = SessionInfo { message_count: Some(total), ..SessionInfo::new(&session, asked, dialect) };
    if by_name {
        info.session_id = id;
    }
    let workflow =
        if show_prompt { app.store().workflow(&caller.project, &session.workflow).await? } else { None };
    Ok(Json(SessionHistory {
        session: info,
        messages: messages::page(said.items, page, falling),
        exists: true,
        total_messages: total,
        current_page: page.number,
        total_pages: page.pages(total),
        truncated: said.more,
        system_prompt: workflow.map(|stored| stored.workflow.prompt),
    }))
}

/// Whether by name, and which session it is.
async fn find(app: &App, caller: &Principal, id: &str) -> Result<(Session, bool), Refusal> {
    // A name is what somebody chose: it must not stand before another session's id.
    if let Some(known) = run::session_id(id)
        && let Some(session) = app.store().session(&caller.project, &known).await?
    {
        return Ok((session, false));
    }
    if let Some(named) = app.store().session_by_name(&caller.project, id).await?
        && let Some(session) = app.store().session(&caller.project, &named).await?
    {
        return Ok((session, true));
    }
    let id: String = id.chars().take(64).collect();
    Err(Refusal::not_found("unknown_session", format!("Session not found: {}", id.escape_debug())))
}

/// Refuse to delete a session
///
/// A session is the record of what was done, so no caller can take it away.
#[utoipa::path(
    delete, path = "/api/v1/sessions/{id}", tag = "automagik", operation_id = "automagik_delete_session",
    params(("id" = String, Path, description = "Its name or id")),
    responses((status = 409, description = "Always, of a session that there is", body = RefusedBody)),
)]
pub(crate) async fn delete_session(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { id, .. }: Call,
) -> Result<Json<SessionInfo>, Refusal> {
    find(&app, &caller, &id).await?;
    let detail = "a session is the record of what was done and cannot be deleted";
    Err(Refusal::conflict("session_kept", detail))
}
