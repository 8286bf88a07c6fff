//! `/v1/keys`: API keys of the caller's project, for callers with the scope `admin`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_domain::id::{ApiKeyId, ProjectId};
use caisson_domain::limits::{API_KEY_LIFE_S_MAX, API_KEY_LIFE_S_MIN, API_KEY_NAME_CHARS};
use caisson_domain::principal::{Principal, Scope};
use caisson_store::{Actor, ApiKey, NewApiKey};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::Administrator;
use crate::extract::{Fields, JsonObject, KeyPath, NoParams, Params, unknown_key};
use crate::listing::{PageQuery, encode};
use crate::problem::{ApiError, Faults, Problem};
use crate::state::App;

/// How long a key that expires may live, in seconds.
const LIFE_S: RangeInclusive<u32> = API_KEY_LIFE_S_MIN..=API_KEY_LIFE_S_MAX;

/// An API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ApiKeyId,
    /// The project whose things it opens.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// Its name, for people.
    pub name: String,
    /// What it allows.
    #[schema(value_type = Vec<crate::schema::Scope>)]
    pub scopes: Vec<Scope>,
    /// Unix ms.
    pub created_at_ms: i64,
    /// When it stops opening anything by itself, Unix ms; none: never.
    pub expires_at_ms: Option<i64>,
    /// When it was revoked, Unix ms.
    pub revoked_at_ms: Option<i64>,
    /// About when it was last used, Unix ms; exact to a minute.
    pub last_used_at_ms: Option<i64>,
}

/// A key that was just made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewKeyView {
    /// The key.
    #[serde(flatten)]
    pub key: KeyView,
    /// The secret, to be sent with every request. This is the only time it is shown.
    #[schema(example = "csk_0123…")]
    pub secret: String,
}

/// A page of keys, oldest first, revoked and expired ones among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyPage {
    /// The keys.
    pub items: Vec<KeyView>,
    /// Asks for the next page, as `cursor`; none on the last page.
    pub next_cursor: Option<String>,
}

/// A key to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// A name for people: 1 to 100 characters without control characters.
    #[schema(
        example = "ci",
        min_length = 1,
        max_length = 100,
        pattern = r"^(?=.*\S)[^\x00-\x1f\x7f-\x9f]+$"
    )]
    pub name: String,
    /// What it allows; `runs:read` and `runs:write` if left out.
    #[schema(value_type = Option<Vec<crate::schema::Scope>>, min_items = 1)]
    pub scopes: Option<Vec<Scope>>,
    /// Its life in seconds, 60 to 315360000; for ever if left out.
    #[schema(minimum = 60, maximum = 315_360_000)]
    pub expires_in_s: Option<u32>,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id,
            project: key.project,
            name: key.name,
            scopes: key.scopes,
            created_at_ms: key.created_at_ms,
            expires_at_ms: key.expires_at_ms,
            revoked_at_ms: key.revoked_at_ms,
            last_used_at_ms: key.last_used_at_ms,
        }
    }
}

/// Make an API key
///
/// In the caller's project. The secret is in this answer alone. Needs the scope `admin`.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", operation_id = "create_key",
    request_body = CreateKey,
    responses(
        (status = 201, description = "The key with its secret", body = NewKeyView),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The project has as many valid keys as it may", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn create_key(
    State(app): State<App>,
    Administrator(caller): Administrator,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<Response, ApiError> {
    let new = wanted(caller, fields, app.store().now_ms())?;
    let (key, secret) = app.store().make_api_key(&new).await?.ok_or(ApiError::KeysFull)?;
    tracing::info!(key.id = %key.id, "made the API key {}", key.id);
    let view = NewKeyView { key: key.into(), secret: secret.expose().to_owned() };
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

fn wanted(caller: Principal, mut fields: Fields, now_ms: i64) -> Result<NewApiKey, ApiError> {
    let mut faults = Faults::default();
    let name: Option<String> = fields.require("name", &mut faults);
    let name = name.unwrap_or_default();
    let fits = !name.trim().is_empty()
        && name.chars().count() <= API_KEY_NAME_CHARS
        && !name.chars().any(char::is_control);
    if !fits && !faults.mention("name") {
        let message = format!("a name is 1 to {API_KEY_NAME_CHARS} characters without control characters");
        faults.add("name", "invalid_name", message);
    }
    let scopes = fields.take::<Vec<String>>("scopes", &mut faults).map(|texts| scopes(&texts, &mut faults));
    let life_s = fields.take_number("expires_in_s", &LIFE_S, &mut faults);
    if life_s.is_some_and(|life_s| !LIFE_S.contains(&life_s)) {
        let message = format!("it is not from {} to {}", LIFE_S.start(), LIFE_S.end());
        faults.add("expires_in_s", "out_of_range", message);
    }
    fields.finish(&mut faults);
    if !faults.is_empty() {
        return Err(ApiError::InvalidKey(faults));
    }
    Ok(NewApiKey {
        project: caller.project,
        name,
        scopes: scopes.unwrap_or_else(|| vec![Scope::RunsRead, Scope::RunsWrite]),
        expires_at_ms: life_s.map(|life_s| now_ms + i64::from(life_s) * 1000),
        by: Actor::Key(caller.key),
    })
}

fn scopes(texts: &[String], faults: &mut Faults) -> Vec<Scope> {
    let mut scopes = BTreeMap::new();
    for text in texts {
        match text.parse::<Scope>() {
            Ok(scope) => drop(scopes.insert(scope.as_str(), scope)),
            Err(error) => faults.add("scopes", "unknown_scope", error.to_string()),
        }
    }
    if texts.is_empty() {
        faults.add(
            "scopes",
            "no_scope",
            "a key without scopes opens nothing; leave the field out for the usual ones",
        );
    }
    scopes.into_values().collect()
}

/// List API keys
///
/// Those of the caller's project, oldest first. Needs the scope `admin`.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", operation_id = "list_keys",
    params(
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("limit" = Option<i64>, Query, description = "Items of the page, 50 if left out", minimum = 1, maximum = 200),
    ),
    responses(
        (status = 200, description = "A page", body = KeyPage),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_keys(
    State(app): State<App>,
    Administrator(caller): Administrator,
    mut params: Params,
) -> Result<Json<KeyPage>, ApiError> {
    let page = PageQuery::<ApiKeyId>::take(&mut params);
    params.finish()?;
    // One more than wanted tells whether there is a next page.
    let found = app.store().list_api_keys_after(&caller.project, page.after.as_ref(), page.limit + 1).await?;
    let more = found.len() > page.limit as usize;
    let items: Vec<KeyView> = found.into_iter().take(page.limit as usize).map(KeyView::from).collect();
    let next_cursor = items.last().filter(|_| more).map(|key| encode(key.id.as_str()));
    Ok(Json(KeyPage { items, next_cursor }))
}

/// Revoke an API key
///
/// From then on it opens nothing; its event streams end within a second. Needs the scope `admin`.
#[utoipa::path(
    delete, path = "/v1/keys/{id}", tag = "keys", operation_id = "revoke_key",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 204, description = "It is revoked"),
        (status = 404, description = "The project has no such key, or it was revoked before", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn revoke_key(
    State(app): State<App>,
    Administrator(caller): Administrator,
    KeyPath(id): KeyPath,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    let by = Actor::Key(caller.key);
    if !app.store().revoke_api_key_of(Some(&caller.project), &id, by).await? {
        return Err(unknown_key());
    }
    tracing::info!(key.id = %id, "revoked the API key {id}");
    Ok(StatusCode::NO_CONTENT)
}
