//! The OpenAPI document and the API's routes, which are one list: a route without documentation cannot be added.

use axum::extract::State;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use http::header;
use utoipa::openapi::path::{Operation, Parameter};
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder, Schema,
    ServerBuilder,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::negotiate::{JSON, json_only};
use crate::problem::PROBLEM_JSON;
use crate::state::App;
use crate::{
    agents, approvals, attachments, audit, automagik, budget, conversation, credentials, events, health,
    inputs, keys, mcp, metrics, projects, queue, retention, runs, servers, sessions, usage, workflows,
};

/// Name of the scheme in which a key is a bearer token.
const BEARER: &str = "bearer";
/// Name of the scheme in which a key is a header of its own.
const HEADER: &str = "api_key";
/// Name of the scheme in which a key is a parameter; of the compatible API alone.
const QUERY: &str = "api_key_in_query";
/// Refusals that every route with a key may answer with.
const COMMON: [(&str, &str); 6] = [
    ("401", "No key, or one that opens nothing"),
    ("403", "The key lacks the scope"),
    ("406", "The caller does not take what this path answers with"),
    (
        "429",
        "The key has used up its requests of this minute, has too many connections open (`connections_of_key_full`), or a bound is reached; see Retry-After",
    ),
    ("500", "A fault of the server"),
    ("503", "The store does not answer, or no server can place runs; come again later"),
];

/// Refusals that every route of the compatible API may answer with.
const COMPATIBLE: [(&str, &str); 7] = [
    ("401", "No key, or one that opens nothing"),
    ("403", "The key lacks the scope"),
    ("404", "There is no such thing"),
    ("422", "A body, field or parameter that cannot be used"),
    (
        "429",
        "The key has used up its requests of this minute, has too many connections open (`connections_of_key_full`), or a bound is reached; see Retry-After",
    ),
    ("500", "A fault of the server"),
    ("503", "The store does not answer, or no server can place runs; come again later"),
];
/// Refusals of those that take a body.
const BODIES: [(&str, &str); 3] = [
    ("400", "The body broke off, or what it asks for cannot be done"),
    ("408", "The body did not arrive in time"),
    ("413", "The body is longer than 4 MiB, or has more than 20000 values"),
];

/// Makes the API's description, in OpenAPI 3.1.
#[must_use]
pub fn openapi() -> OpenApi {
    complete(routes(true).into_openapi())
}

/// All routes with their documentation; those of the Automagik-compatible API if it is wanted.
pub(crate) fn routes(compatible: bool) -> OpenApiRouter<App> {
    let native = native();
    if compatible { native.merge(automagik::routes()) } else { native }
}

fn native() -> OpenApiRouter<App> {
    let json = OpenApiRouter::new()
        .routes(routes!(runs::create_run, runs::list_runs))
        .routes(routes!(runs::get_run))
        .routes(routes!(runs::cancel_run))
        .routes(routes!(runs::list_artifacts))
        .routes(routes!(inputs::send_input, inputs::list_inputs))
        .routes(routes!(approvals::list_approvals))
        .routes(routes!(approvals::answer_approval))
        .routes(routes!(mcp::message))
        .routes(routes!(sessions::list_sessions))
        .routes(routes!(sessions::get_session, sessions::change::delete_session))
        .routes(routes!(sessions::change::fork_session))
        .routes(routes!(conversation::read_messages))
        .routes(routes!(agents::list_agents))
        .routes(routes!(workflows::list_workflows))
        .routes(routes!(
            workflows::get_workflow,
            workflows::edit::put_workflow,
            workflows::edit::remove_workflow
        ))
        .routes(routes!(workflows::edit::validate_workflow))
        .routes(routes!(audit::list_audit))
        .routes(routes!(keys::create_key, keys::list_keys))
        .routes(routes!(keys::revoke_key))
        .routes(routes!(projects::create_project, projects::list_projects))
        .routes(routes!(queue::get_queue))
        .routes(routes!(queue::drain))
        .routes(routes!(queue::resume))
        .routes(routes!(queue::set_project_queue))
        .routes(routes!(servers::list_servers))
        .routes(routes!(servers::forget_server))
        .routes(routes!(budget::get_budget, budget::set_budget))
        .routes(routes!(usage::report_usage))
        .routes(routes!(retention::get_retention, retention::set_retention))
        .routes(routes!(credentials::add_credential, credentials::list_credentials))
        .routes(routes!(
            credentials::get_credential,
            credentials::rotate_credential,
            credentials::remove_credential
        ))
        .merge(health_routes())
        .routes(routes!(openapi_json))
        .route_layer(from_fn(json_only));
    let info = InfoBuilder::new()
        .title("Caisson")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Runs Claude Code, each session sealed in its own container."))
        .build();
    OpenApiRouter::with_openapi(OpenApiBuilder::new().info(info).build())
        .merge(json)
        .routes(routes!(metrics::metrics))
        .routes(routes!(runs::get_diff))
        .routes(routes!(runs::get_artifact))
        .routes(routes!(attachments::get_attachment))
        .routes(routes!(events::read_run_events))
        .routes(routes!(events::read_session_events))
}

/// Whether the server lives, and can take runs.
pub(crate) fn health_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health::healthz)).routes(routes!(health::readyz))
}

/// What a process answers that does not answer the API.
pub(crate) fn watched_routes() -> OpenApiRouter<App> {
    health_routes().routes(routes!(metrics::metrics))
}

/// Adds what holds for many routes: the keys, and the refusals that any of them may answer with.
pub(crate) fn complete(mut document: OpenApi) -> OpenApi {
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(
        BEARER,
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
    );
    let header = ApiKeyValue::new(crate::auth::API_KEY.as_str());
    components.add_security_scheme(HEADER, SecurityScheme::ApiKey(ApiKey::Header(header)));
    if document.paths.paths.contains_key("/api/v1/openapi.json") {
        let query = ApiKeyValue::new(crate::auth::API_KEY.as_str());
        components.add_security_scheme(QUERY, SecurityScheme::ApiKey(ApiKey::Query(query)));
    }
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.parameters.iter_mut().flatten().for_each(without_null);
            if operation.tags.iter().flatten().any(|tag| tag == automagik::TAG) {
                add_compatible(operation);
            } else {
                add_common(operation);
            }
        }
    }
    document
}

/// A parameter may be left out; a null it cannot be, since there is none outside of bodies.
fn without_null(parameter: &mut RefOr<Parameter>) {
    let RefOr::T(parameter) = parameter else { return };
    let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema else { return };
    if let SchemaType::Array(types) = &mut schema.schema_type {
        types.retain(|kind| *kind != Type::Null);
        if let [only] = types.as_slice() {
            schema.schema_type = SchemaType::Type(only.clone());
        }
    }
}

fn add_common(operation: &mut Operation) {
    if operation.security.is_some() {
        return;
    }
    let scheme = |name| SecurityRequirement::new(name, Vec::<String>::new());
    operation.security = Some(vec![scheme(BEARER), scheme(HEADER)]);
    for (status, description) in COMMON {
        let responses = &mut operation.responses.responses;
        responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(refusal(description)));
    }
}

/// The same for the compatible API, whose refusals have another form and which is there a second time.
fn add_compatible(operation: &mut Operation) {
    let server = |url, description| ServerBuilder::new().url(url).description(Some(description)).build();
    operation.servers = Some(vec![
        server("/", "With `killed`, and times with their zone"),
        server(automagik::SECOND_PATH, "With `cancelled`, and times without a zone, in UTC"),
    ]);
    if operation.security.is_some() {
        return;
    }
    let scheme = |name| SecurityRequirement::new(name, Vec::<String>::new());
    operation.security = Some(vec![scheme(BEARER), scheme(HEADER), scheme(QUERY)]);
    let content = || ContentBuilder::new().schema(Some(Ref::from_schema_name("RefusedBody"))).build();
    let of_body = operation.request_body.is_some();
    let bodies = BODIES.iter().filter(|_| of_body);
    for (status, description) in COMPATIBLE.iter().chain(bodies) {
        let response = ResponseBuilder::new().description(*description).content(JSON, content()).build();
        let responses = &mut operation.responses.responses;
        responses.entry((*status).to_owned()).or_insert_with(|| RefOr::T(response));
    }
}

fn refusal(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(description).content(PROBLEM_JSON, content).build()
}

/// This document
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "health", operation_id = "openapi", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = Object)),
)]
async fn openapi_json(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, JSON)], app.document())
}
