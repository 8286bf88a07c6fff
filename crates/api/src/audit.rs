//! `/v1/audit`: who did what, for callers with the scope `audit`.

use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use caisson_domain::id::RunId;
use caisson_store::{AuditFilter, AuditRecord};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::Auditor;
use crate::extract::Params;
use crate::listing::{PageQuery, encode};
use crate::problem::{ApiError, Problem};
use crate::state::App;

/// A record of the audit log. What its hash covers is told in the server's documentation of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// Its place in the order of writing, over all servers.
    pub number: i64,
    /// The server in whose chain it is.
    pub chain: String,
    /// Its place in the chain, from 1 without a gap.
    pub seq: i64,
    /// Unix ms.
    pub at_ms: i64,
    /// `operator` (somebody on the server's machine), `server`, or the id of an API key.
    #[schema(example = "operator")]
    pub actor: String,
    /// The key's name at that time.
    pub actor_name: Option<String>,
    /// What was done.
    #[schema(example = "run.cancel")]
    pub action: String,
    /// To what.
    pub subject: String,
    /// In which run.
    pub run_id: Option<String>,
    /// In which session.
    pub session_id: Option<String>,
    /// The name of the credential that was used.
    pub credential: Option<String>,
    /// The host that was spoken to, or was not.
    pub host: Option<String>,
    /// The full name of the git ref.
    #[serde(rename = "ref")]
    pub ref_name: Option<String>,
    /// `allowed`, `denied` or `failed`.
    pub decision: Option<String>,
    /// Hash of the record before it in its chain.
    pub prev_hash: String,
    /// Its own hash, SHA-256 in hexadecimal digits.
    pub hash: String,
}

/// A page of the audit log, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The records.
    pub items: Vec<AuditView>,
    /// Asks for the next page, as `cursor`; none on the last page.
    pub next_cursor: Option<String>,
}

impl From<AuditRecord> for AuditView {
    fn from(record: AuditRecord) -> Self {
        Self {
            number: record.number,
            chain: record.chain,
            seq: record.seq,
            at_ms: record.at_ms,
            actor: record.actor,
            actor_name: record.actor_name,
            action: record.action,
            subject: record.subject,
            run_id: record.run,
            session_id: record.session,
            credential: record.credential,
            host: record.host,
            ref_name: record.ref_name,
            decision: record.decision,
            prev_hash: record.prev_hash,
            hash: record.hash,
        }
    }
}

/// The number of a record, as a cursor has it.
struct Number(i64);

impl FromStr for Number {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A cursor of another list is no number, so that the two cannot be taken for one another.
        text.strip_prefix(CURSOR).unwrap_or_default().parse().map(Self)
    }
}

/// Begins every cursor of this list.
const CURSOR: &str = "aud_";

/// Read the audit log
///
/// The project's records, newest first. Needs the scope `audit`.
#[utoipa::path(
    get, path = "/v1/audit", tag = "audit", operation_id = "list_audit",
    params(
        ("action" = Option<String>, Query, description = "Only records of that action, such as `run.cancel`"),
        ("run" = Option<String>, Query, description = "Only records of that run", pattern = "^run_[0-9a-f]{32}$"),
        ("actor" = Option<String>, Query, description = "Only what that one did: `operator`, `server` or the id of a key"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("limit" = Option<i64>, Query, description = "Items of the page, 50 if left out", minimum = 1, maximum = 200),
    ),
    responses(
        (status = 200, description = "A page", body = AuditPage),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_audit(
    State(app): State<App>,
    Auditor(caller): Auditor,
    mut params: Params,
) -> Result<Json<AuditPage>, ApiError> {
    let filter = AuditFilter {
        action: params.take("action"),
        run: params.take::<RunId>("run"),
        actor: params.take("actor"),
    };
    let page = PageQuery::<Number>::take(&mut params);
    params.finish()?;
    let after = page.after.map(|Number(number)| number);
    // One more than wanted tells whether there is a next page.
    let found = app.store().list_audit(&caller.project, &filter, after, page.limit + 1).await?;
    let more = found.len() > page.limit as usize;
    let items: Vec<AuditView> = found.into_iter().take(page.limit as usize).map(AuditView::from).collect();
    let next_cursor =
        items.last().filter(|_| more).map(|record| encode(&format!("{CURSOR}{}", record.number)));
    Ok(Json(AuditPage { items, next_cursor }))
}
