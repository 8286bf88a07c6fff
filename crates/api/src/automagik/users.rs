//! Users: people whom clients name. They open nothing.

use axum::Json;
use axum::extract::State;
use caisson_domain::limits::PROJECT_USERS;
use caisson_domain::principal::Principal;
use caisson_store::{Actor, ChangeUser, User, UserFields};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::body::{Sent, text};
use super::refusal::{Refusal, RefusedBody};
use super::{Call, Dialect};
use crate::auth::{Reader, Writer};
use crate::extract::Fields;
use crate::problem::{ApiError, Faults};
use crate::state::App;

/// Longest address or number, in characters.
const CONTACT_CHARS: usize = 320;
/// Longest `user_data`, in bytes of JSON.
const DATA_BYTES: usize = 64 * 1024;
/// Users of a page when the caller names no number.
const PAGE_USERS: u32 = 20;

/// A user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct UserInfo {
    /// Its id, a UUID.
    pub id: String,
    /// Unique in its project.
    pub email: Option<String>,
    /// Unique in its project.
    pub phone_number: Option<String>,
    /// Anything.
    #[schema(value_type = Option<Object>)]
    pub user_data: Option<Value>,
    /// When it was made.
    pub created_at: String,
    /// When it was changed last.
    pub updated_at: String,
}

/// What a user should be. When one is changed, fields that are left out stay.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct WriteUser {
    /// Unique in its project.
    #[schema(max_length = 320)]
    pub email: Option<String>,
    /// Unique in its project.
    #[schema(max_length = 320)]
    pub phone_number: Option<String>,
    /// Anything, at most 64 KiB.
    #[schema(value_type = Option<Object>)]
    pub user_data: Option<Value>,
}

/// A page of users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct NumberedUsers {
    /// The users.
    pub users: Vec<UserInfo>,
    /// How many there are.
    pub total: i64,
    /// Which page this is.
    pub page: i64,
    /// Items of a page.
    pub page_size: u32,
    /// How many pages there are.
    pub total_pages: i64,
}

/// That a user is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct DeletedUser {
    /// `success`.
    pub status: String,
    /// Always true.
    pub success: bool,
    /// Which.
    pub user_id: String,
}

impl UserInfo {
    fn new(user: User, dialect: Dialect) -> Result<Self, Refusal> {
        let data = user.fields.user_data.as_deref().map(serde_json::from_str).transpose();
        Ok(Self {
            id: user.id,
            email: user.fields.email,
            phone_number: user.fields.phone_number,
            user_data: data.map_err(ApiError::internal)?,
            created_at: dialect.time(user.created_at_ms),
            updated_at: dialect.time(user.updated_at_ms),
        })
    }
}

/// List users by page number
#[utoipa::path(
    get, path = "/api/v1/users", tag = "automagik", operation_id = "automagik_list_users",
    params(
        ("page" = Option<i64>, Query, description = "From 1", minimum = 1, maximum = 10000),
        ("page_size" = Option<i64>, Query, description = "20 if left out", minimum = 1, maximum = 100),
    ),
    responses((status = 200, description = "A page", body = NumberedUsers)),
)]
pub(crate) async fn list_users(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, mut query, .. }: Call,
) -> Result<Json<NumberedUsers>, Refusal> {
    let page = query.page(PAGE_USERS);
    query.finish()?;
    let found = app.store().list_users(&caller.project, page.skip(), page.size).await?;
    let users = found.into_iter().map(|user| UserInfo::new(user, dialect)).collect::<Result<_, _>>()?;
    let total = app.store().count_users(&caller.project).await?;
    Ok(Json(NumberedUsers {
        users,
        total,
        page: page.number,
        page_size: page.size,
        total_pages: page.pages(total),
    }))
}

/// Make a user
#[utoipa::path(
    post, path = "/api/v1/users", tag = "automagik", operation_id = "automagik_create_user",
    request_body = WriteUser,
    responses(
        (status = 200, description = "The user", body = UserInfo),
        (status = 400, description = "Another one has that address or number", body = RefusedBody),
        (status = 409, description = "The project has as many users as it may", body = RefusedBody),
    ),
)]
pub(crate) async fn create_user(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, .. }: Call,
    sent: Sent,
) -> Result<Json<UserInfo>, Refusal> {
    let fields = read(sent.fields, UserFields::default())?;
    changed(app.store().create_user(&caller.project, fields, by(&caller)).await?, dialect)
}

/// Get a user
#[utoipa::path(
    get, path = "/api/v1/users/{id}", tag = "automagik", operation_id = "automagik_get_user",
    params(("id" = String, Path, description = "Its id, address or number, tried in this order")),
    responses((status = 200, description = "The user", body = UserInfo)),
)]
pub(crate) async fn get_user(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, id, .. }: Call,
) -> Result<Json<UserInfo>, Refusal> {
    let found = app.store().find_user(&caller.project, &id).await?.ok_or_else(unknown)?;
    UserInfo::new(found, dialect).map(Json)
}

/// Change a user
#[utoipa::path(
    put, path = "/api/v1/users/{id}", tag = "automagik", operation_id = "automagik_update_user",
    request_body = WriteUser,
    params(("id" = String, Path, description = "Its id, address or number, tried in this order")),
    responses(
        (status = 200, description = "The user", body = UserInfo),
        (status = 400, description = "Another one has that address or number", body = RefusedBody),
    ),
)]
pub(crate) async fn update_user(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, .. }: Call,
    sent: Sent,
) -> Result<Json<UserInfo>, Refusal> {
    let found = app.store().find_user(&caller.project, &id).await?.ok_or_else(unknown)?;
    let fields = read(sent.fields, found.fields)?;
    changed(app.store().update_user(&caller.project, &found.id, fields, by(&caller)).await?, dialect)
}

/// Remove a user
#[utoipa::path(
    delete, path = "/api/v1/users/{id}", tag = "automagik", operation_id = "automagik_delete_user",
    params(("id" = String, Path, description = "Its id, address or number, tried in this order")),
    responses((status = 200, description = "It is gone; runs on its behalf keep its id", body = DeletedUser)),
)]
pub(crate) async fn delete_user(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { id, .. }: Call,
) -> Result<Json<DeletedUser>, Refusal> {
    let found = app.store().find_user(&caller.project, &id).await?.ok_or_else(unknown)?;
    if !app.store().delete_user(&caller.project, &found.id, by(&caller)).await? {
        return Err(unknown());
    }
    Ok(Json(DeletedUser { status: "success".to_owned(), success: true, user_id: found.id }))
}

/// Reads what is given over what is known.
fn read(mut fields: Fields, known: UserFields) -> Result<UserFields, Refusal> {
    let mut faults = Faults::default();
    let email = text(&mut fields, "email", CONTACT_CHARS, &mut faults);
    let phone_number = text(&mut fields, "phone_number", CONTACT_CHARS, &mut faults);
    let data = match fields.take_value("user_data") {
        None | Some(Value::Null) => None,
        Some(data @ Value::Object(_)) => Some(data.to_string()),
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            faults.add("user_data", "wrong_type", "it is not an object");
            None
        }
    };
    if data.as_ref().is_some_and(|data| data.len() > DATA_BYTES) {
        faults.add("user_data", "too_long", format!("it has more than {DATA_BYTES} bytes"));
    }
    if !faults.is_empty() {
        return Err(Refusal::body(faults));
    }
    Ok(UserFields {
        email: email.or(known.email),
        phone_number: phone_number.or(known.phone_number),
        user_data: data.or(known.user_data),
    })
}

fn changed(change: ChangeUser, dialect: Dialect) -> Result<Json<UserInfo>, Refusal> {
    match change {
        ChangeUser::Done(user) => UserInfo::new(user, dialect).map(Json),
        ChangeUser::Unknown => Err(unknown()),
        ChangeUser::Taken => {
            Err(Refusal::bad_request("user_exists", "Another user has that email or phone number"))
        }
        ChangeUser::Full => {
            let detail = format!("The project has {PROJECT_USERS} users; remove those that nobody needs");
            Err(Refusal::conflict("users_full", detail))
        }
    }
}

fn by(caller: &Principal) -> Actor {
    Actor::Key(caller.key.clone())
}

fn unknown() -> Refusal {
    Refusal::not_found("unknown_user", "User not found")
}
