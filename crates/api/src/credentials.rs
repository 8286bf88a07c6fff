//! `/v1/credentials`: add, list, get, rotate, remove. A secret goes in and never comes out.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::response::IntoResponse;
use caisson_domain::credential::{
    CredentialFault, CredentialFields, CredentialKind, CredentialSecret, CredentialSettings, SECRET_FIELDS,
    SETTING_FIELDS,
};
use caisson_domain::id::{CredentialId, ProjectId};
use caisson_store::{Actor, Credential, CredentialError, NewCredential};
use http::request::Parts;
use http::{StatusCode, header};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::auth::Keeper;
use crate::extract::{Fields, JsonObject, NoParams, path_param};
use crate::problem::{ApiError, Faults, Problem};
use crate::state::App;

/// A credential to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    /// A name, unique in the project: 1 to 63 lower-case letters, digits and hyphens.
    #[schema(example = "github-team", pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    pub name: String,
    /// What it opens.
    #[schema(value_type = crate::schema::CredentialKind, example = "git_token")]
    pub kind: String,
    /// What is public, and stays as it is; which fields there are depends on the kind.
    #[serde(default)]
    #[schema(value_type = Object, example = json!({"url_prefix": "https://github.com/acme/"}))]
    pub settings: Value,
    /// What is secret; which fields there are depends on the kind.
    #[schema(value_type = Object, example = json!({"value": "the-token-itself"}))]
    pub secret: Value,
}

/// A credential's new secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateCredential {
    /// What is secret, whole; which fields there are depends on the kind.
    #[schema(value_type = Object, example = json!({"value": "the-new-token"}))]
    pub secret: Value,
}

/// A credential, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CredentialView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: CredentialId,
    /// The project whose runs use it.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// Its name.
    pub name: String,
    /// What it opens.
    #[schema(value_type = crate::schema::CredentialKind)]
    pub kind: CredentialKind,
    /// The host or URL prefix for which it is used; none for the model API of the server's configuration.
    pub scope: Option<String>,
    /// What else is public; of certificates, only that there are some.
    #[schema(value_type = Object)]
    pub settings: Value,
    /// Raised by every change of the secret, 1 for the first one.
    pub version: i64,
    /// Unix ms.
    pub created_at_ms: i64,
    /// When somebody last replaced its secret, Unix ms.
    pub rotated_at_ms: Option<i64>,
    /// About when it was last used, Unix ms; exact to a minute.
    pub last_used_at_ms: Option<i64>,
}

/// The project's credentials, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CredentialList {
    /// All of them.
    pub items: Vec<CredentialView>,
}

impl From<Credential> for CredentialView {
    fn from(credential: Credential) -> Self {
        Self {
            kind: credential.settings.kind(),
            scope: credential.settings.scope().map(str::to_owned),
            settings: shown(&credential.settings),
            id: credential.id,
            project: credential.project,
            name: credential.name,
            version: credential.version,
            created_at_ms: credential.created_at_ms,
            rotated_at_ms: credential.rotated_at_ms,
            last_used_at_ms: credential.last_used_at_ms,
        }
    }
}

/// The settings without the kind, which stands beside them, and with a mark in place of long certificates.
fn shown(settings: &CredentialSettings) -> Value {
    let mut shown = serde_json::to_value(settings).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("kind");
        if let Some(certificates) = fields.get_mut("ca_pem") {
            *certificates = Value::Bool(true);
        }
    }
    shown
}

/// The credential that the path names.
pub(crate) struct CredentialPath(CredentialId);

impl FromRequestParts<App> for CredentialPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "id").await;
        id.and_then(|id| id.parse().ok()).map(Self).ok_or_else(unknown)
    }
}

fn unknown() -> ApiError {
    ApiError::Unknown { code: "unknown_credential", detail: "there is no such credential".to_owned() }
}

/// Add a credential
///
/// It is used from the next request on that needs one. The secret cannot be read again.
#[utoipa::path(
    post, path = "/v1/credentials", tag = "credentials", operation_id = "add_credential",
    request_body = CreateCredential,
    responses(
        (status = 201, description = "The credential", body = CredentialView),
        (status = 400, description = "A body that is not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The name is taken, or the project has as many as it may, or as much in them", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A credential that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn add_credential(
    State(app): State<App>,
    Keeper(caller): Keeper,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<impl IntoResponse, ApiError> {
    let (name, settings, secret) = read_new(fields)?;
    let new = NewCredential { project: caller.project, name, settings, secret };
    let credential =
        app.store().add_credential(new, &Actor::Key(caller.key.clone())).await.map_err(refusal)?;
    tracing::info!(credential.id = %credential.id, key.id = %caller.key, "added credential {}", credential.id);
    let place = format!("/v1/credentials/{}", credential.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, place)], Json(CredentialView::from(credential))))
}

/// List credentials
#[utoipa::path(
    get, path = "/v1/credentials", tag = "credentials", operation_id = "list_credentials",
    responses((status = 200, description = "The credentials, oldest first, without their secrets", body = CredentialList)),
)]
pub(crate) async fn list_credentials(
    State(app): State<App>,
    Keeper(caller): Keeper,
    _: NoParams,
) -> Result<Json<CredentialList>, ApiError> {
    let found = app.store().list_credentials(&caller.project).await?;
    Ok(Json(CredentialList { items: found.into_iter().map(CredentialView::from).collect() }))
}

/// Get a credential
#[utoipa::path(
    get, path = "/v1/credentials/{id}", tag = "credentials", operation_id = "get_credential",
    params(("id" = String, Path, description = "The credential's id")),
    responses(
        (status = 200, description = "The credential, without its secret", body = CredentialView),
        (status = 404, description = "The project has no such credential", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_credential(
    State(app): State<App>,
    Keeper(caller): Keeper,
    CredentialPath(id): CredentialPath,
    _: NoParams,
) -> Result<Json<CredentialView>, ApiError> {
    let credential = app.store().credential(&caller.project, &id).await?.ok_or_else(unknown)?;
    Ok(Json(credential.into()))
}

/// Rotate a credential
///
/// Replaces the secret. The next request that needs the credential has the new one, also of runs that are running.
#[utoipa::path(
    put, path = "/v1/credentials/{id}", tag = "credentials", operation_id = "rotate_credential",
    params(("id" = String, Path, description = "The credential's id")),
    request_body = RotateCredential,
    responses(
        (status = 200, description = "The credential, without its secret", body = CredentialView),
        (status = 400, description = "A body that is not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such credential", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The project's secrets would be longer together than they may", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A secret that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn rotate_credential(
    State(app): State<App>,
    Keeper(caller): Keeper,
    CredentialPath(id): CredentialPath,
    _: NoParams,
    JsonObject(mut fields): JsonObject,
) -> Result<Json<CredentialView>, ApiError> {
    let credential = app.store().credential(&caller.project, &id).await?.ok_or_else(unknown)?;
    let mut faults = Faults::default();
    let mut given = CredentialFields::default();
    take_secret(&mut fields, &mut given, &mut faults);
    fields.finish(&mut faults);
    let secret = read_secret(given, credential.settings.kind(), &mut faults);
    let secret = secret.filter(|_| faults.is_empty()).ok_or(ApiError::InvalidCredential(faults))?;
    let at = (&caller.project, &id);
    let rotated =
        app.store().rotate_credential(at, &secret, &Actor::Key(caller.key.clone())).await.map_err(refusal)?;
    tracing::info!(credential.id = %id, key.id = %caller.key, "rotated credential {id}");
    Ok(Json(rotated.ok_or_else(unknown)?.into()))
}

/// Remove a credential
///
/// The next request that would need it goes without, also of runs that are running.
#[utoipa::path(
    delete, path = "/v1/credentials/{id}", tag = "credentials", operation_id = "remove_credential",
    params(("id" = String, Path, description = "The credential's id")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "The project has no such credential", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn remove_credential(
    State(app): State<App>,
    Keeper(caller): Keeper,
    CredentialPath(id): CredentialPath,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    if !app.store().remove_credential(&caller.project, &id, &Actor::Key(caller.key.clone())).await? {
        return Err(unknown());
    }
    tracing::info!(credential.id = %id, key.id = %caller.key, "removed credential {id}");
    Ok(StatusCode::NO_CONTENT)
}

/// Reads a credential to be added, with every fault.
fn read_new(mut fields: Fields) -> Result<(String, CredentialSettings, CredentialSecret), ApiError> {
    let mut faults = Faults::default();
    let name: Option<String> = fields.require("name", &mut faults);
    if let Some(Err(error)) = name.as_ref().map(|name| caisson_domain::id::check_name("credential", name)) {
        faults.add("name", "invalid_value", error.to_string());
    }
    let kind = fields.require::<String>("kind", &mut faults).and_then(|text| {
        let kind: Result<CredentialKind, _> = text.parse();
        kind.map_err(|error| faults.add("kind", "invalid_value", error.to_string())).ok()
    });
    let mut given = CredentialFields::default();
    if let Some(mut settings) = fields.take_object("settings", &mut faults) {
        for field in SETTING_FIELDS {
            if let Some(text) = plain(&mut settings, field, &mut faults) {
                given.settings.insert(field, text);
            }
        }
        settings.finish(&mut faults);
    }
    take_secret(&mut fields, &mut given, &mut faults);
    fields.finish(&mut faults);
    let Some(kind) = kind else { return Err(ApiError::InvalidCredential(faults)) };
    let of_secret =
        CredentialFields { secret: std::mem::take(&mut given.secret), ..CredentialFields::default() };
    let settings = given.settings(kind).map_err(|found| tell("settings", found, &mut faults)).ok();
    let secret = read_secret(of_secret, kind, &mut faults);
    match (name, settings, secret) {
        (Some(name), Some(settings), Some(secret)) if faults.is_empty() => Ok((name, settings, secret)),
        _ => Err(ApiError::InvalidCredential(faults)),
    }
}

fn take_secret(fields: &mut Fields, given: &mut CredentialFields, faults: &mut Faults) {
    let Some(mut secret) = fields.take_object("secret", faults) else {
        if !faults.mention("secret") {
            faults.add("secret", "missing_field", "it is required");
        }
        return;
    };
    for field in SECRET_FIELDS {
        if let Some(text) = plain(&mut secret, field, faults) {
            given.secret.insert(field, SecretString::from(text));
        }
    }
    secret.finish(faults);
}

fn read_secret(
    mut given: CredentialFields,
    kind: CredentialKind,
    faults: &mut Faults,
) -> Option<CredentialSecret> {
    if faults.mention("secret") {
        return None;
    }
    given.secret(kind).map_err(|found| tell("secret", found, faults)).ok()
}

/// A text, or a whole number, as text. Its fault does not repeat it.
fn plain(fields: &mut Fields, name: &'static str, faults: &mut Faults) -> Option<String> {
    match fields.take_value(name)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            faults.add(&fields.path(name), "wrong_type", "it is not a text");
            None
        }
    }
}

fn tell(part: &str, found: Vec<CredentialFault>, faults: &mut Faults) {
    for fault in found {
        let field = format!("{part}.{}", fault.field);
        if !faults.mention(&field) {
            faults.add(&field, fault.code, fault.message);
        }
    }
}

/// What the store refuses, as a problem.
fn refusal(error: CredentialError) -> ApiError {
    match error {
        CredentialError::NameTaken(_) => {
            ApiError::Conflict { code: "credential_exists", detail: error.to_string() }
        }
        CredentialError::Full => ApiError::Conflict { code: "credentials_full", detail: error.to_string() },
        CredentialError::NoRoom { .. } => {
            ApiError::Conflict { code: "credential_secrets_full", detail: error.to_string() }
        }
        CredentialError::Unusable { field, reason } => {
            let mut faults = Faults::default();
            let field = match field {
                "name" | "secret" => field.to_owned(),
                "ca_pem" => format!("settings.{field}"),
                _ => format!("secret.{field}"),
            };
            faults.add(&field, "invalid_value", reason);
            ApiError::InvalidCredential(faults)
        }
        CredentialError::Store(error) => ApiError::Store(error),
        CredentialError::Key(error) => ApiError::internal(error),
    }
}
