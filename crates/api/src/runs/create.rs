//! Creating a run: read, validate, see that somebody could place it, queue it.

use caisson_domain::id::SessionId;
use caisson_domain::limits;
use caisson_domain::principal::Principal;
use caisson_domain::run::Run;
use caisson_domain::server::Server;
use caisson_store::{
    self as store, Asked, AskedRun, Idempotency, NewRun, RepeatWindow, Store, StoredWorkflow,
};
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use super::request::CreateRun;
use super::{follow, queueing, trusted, validate};
use crate::attachments;
use crate::auth;
use crate::extract::{Fields, unknown_session};
use crate::problem::{ApiError, Faults};
use crate::state::App;

/// Header that makes a repetition of a request harmless.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Header that tells a repetition from the first time.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Most workflow names that a problem lists.
const KNOWN_WORKFLOWS: u32 = 20;

/// A run that was accepted now or before.
pub(crate) struct Accepted {
    pub(crate) run: Run,
    pub(crate) replayed: bool,
}

/// What a request is besides the run it asks for.
#[derive(Default)]
pub(crate) struct Origin {
    /// What makes a repetition harmless.
    pub(crate) idempotency: Option<Idempotency>,
    /// The words of a client of the compatible API, and the session that it goes on with.
    pub(crate) asked: Option<(Asked, Option<SessionId>)>,
    /// How long the idempotency key is remembered.
    pub(crate) window: RepeatWindow,
}

/// Accepts a run.
///
/// # Errors
/// [`ApiError::Invalid`] with every fault of the request; [`ApiError::Unplaceable`] when no server could place it;
/// [`ApiError::KeyReused`], [`ApiError::QueueFull`], [`ApiError::ProjectQueueFull`], [`ApiError::Store`].
/// # Cancel safety
/// A dropped call may have queued the run; with an idempotency key, asking again finds it.
pub(crate) async fn create(
    app: &App,
    caller: Principal,
    fields: Fields,
    key: Option<String>,
) -> Result<Accepted, ApiError> {
    let mut faults = Faults::default();
    let request = CreateRun::read(fields, &mut faults);
    let idempotency = key.map(|key| Idempotency { key, request_sha256: digest(&request) });
    let origin = Origin { idempotency, ..Origin::default() };
    accept(app, caller, (request, faults), origin).await
}

/// Accepts a run whose request was read already, with the faults found so far.
///
/// # Errors
/// As [`create`].
/// # Cancel safety
/// As [`create`].
pub(crate) async fn accept(
    app: &App,
    caller: Principal,
    (mut request, mut faults): (CreateRun, Faults),
    origin: Origin,
) -> Result<Accepted, ApiError> {
    let Origin { idempotency, asked, window } = origin;
    if let Some(idempotency) = idempotency.as_ref().filter(|_| faults.is_empty())
        && let Some(answer) = app.store().replayed(&caller.project, idempotency, window).await?
    {
        // The answer to a repeat does not depend on whether the request could be accepted now.
        return accepted(answer);
    }
    let attachments = attachments::check(std::mem::take(&mut request.attachments), &mut faults);
    let followed = follow::go_on(app, &caller, &mut request, &mut faults).await?;
    let workflow = if request.workflow.is_empty() && faults.mention("session") {
        None
    } else {
        find_workflow(app.store(), &caller, &request.workflow, &mut faults).await?
    };
    if let (Some(followed), Some(found)) = (&followed, &workflow) {
        follow::keep_parameters(&mut request.parameters, followed, &found.workflow);
    }
    let mut spec = validate::specification(
        &request,
        workflow.as_ref().map(|of| (&of.workflow, of.version)),
        app.config(),
        &mut faults,
    );
    if let Some(spec) = &mut spec {
        queueing::complete(spec, &request, app.store().now_ms(), &mut faults);
    }
    if let Some(spec) = &spec
        && let Some(branch) = &spec.branch
    {
        let pushed = (&spec.workflow, branch);
        trusted::check_branch(app.store(), &caller.project, pushed, &mut faults).await?;
    }
    let spec = match spec {
        Some(spec) if faults.is_empty() => spec,
        Some(_) | None => return Err(ApiError::Invalid(faults)),
    };
    let placeable = check_placeable(app.store()).await;
    placeable.map_err(|error| if auth::is_operator(&caller) { error } else { error.in_general() })?;
    let new = NewRun { project: caller.project, created_by: Some(caller.key), spec, idempotency };
    accepted(if let Some((asked, session)) = asked {
        app.store().create_asked_run(AskedRun { run: new, asked, session, window }).await?
    } else {
        let session = followed.map(|followed| followed.session);
        app.store().create_run_with(new, session, attachments).await?
    })
}

fn accepted(answer: store::CreateRun) -> Result<Accepted, ApiError> {
    match answer {
        store::CreateRun::Created(run) => {
            tracing::info!(run.id = %run.id, run.workflow = %run.spec.workflow.name, "accepted run {}", run.id);
            Ok(Accepted { run, replayed: false })
        }
        store::CreateRun::Replayed(run) => Ok(Accepted { run, replayed: true }),
        store::CreateRun::KeyReused => Err(ApiError::KeyReused),
        store::CreateRun::Deleted => Err(ApiError::Conflict {
            code: "run_deleted",
            detail: "the same request made a run, which was deleted with its session since; use a new \
                     Idempotency-Key for a new run"
                .to_owned(),
        }),
        store::CreateRun::QueueFull => Err(ApiError::QueueFull),
        store::CreateRun::ProjectQueueFull => Err(ApiError::ProjectQueueFull),
        store::CreateRun::AttachmentsFull => Err(attachments::no_room(store::AttachmentsFull::Project)),
        store::CreateRun::NoSession => Err(unknown_session()),
        store::CreateRun::SessionExpired => {
            let mut faults = Faults::default();
            follow::add_expired(&mut faults);
            Err(ApiError::Invalid(faults))
        }
    }
}

/// The idempotency key that the headers hold.
///
/// # Errors
/// [`ApiError::Header`] if there are several, or it is not 1 to [`limits::IDEMPOTENCY_KEY_BYTES`] visible ASCII
/// characters.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bytes = value.as_bytes();
    let plain =
        (1..=limits::IDEMPOTENCY_KEY_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(text) if plain && values.next().is_none() => Ok(Some(text.to_owned())),
        Ok(_) | Err(_) => Err(ApiError::Header {
            code: "idempotency_key_invalid",
            message: format!(
                "the Idempotency-Key header is not one text of 1 to {} visible ASCII characters",
                limits::IDEMPOTENCY_KEY_BYTES
            ),
        }),
    }
}

/// What tells one request from another: its meaning, not its white space or the order of its fields.
fn digest(request: &CreateRun) -> String {
    let json = serde_json::to_vec(request).expect("a request is texts and numbers under text keys");
    hex::encode(Sha256::digest(json))
}

async fn find_workflow(
    store: &Store,
    caller: &Principal,
    name: &str,
    faults: &mut Faults,
) -> Result<Option<StoredWorkflow>, ApiError> {
    if faults.mention("workflow") {
        return Ok(None);
    }
    if let Some(stored) = store.workflow(&caller.project, name).await? {
        return Ok(Some(stored));
    }
    let names = store.workflow_names(&caller.project, KNOWN_WORKFLOWS).await?;
    let message = if names.is_empty() {
        "there is no such workflow, and none is known at all".to_owned()
    } else {
        format!(
            "there is no such workflow; known ones: {} (files of workflows_dir are read when the server starts)",
            names.join(", ")
        )
    };
    faults.add("workflow", "unknown_workflow", message);
    Ok(None)
}

/// Refuses when no living server is free of problems: the run would wait for nobody.
pub(crate) async fn check_placeable(store: &Store) -> Result<(), ApiError> {
    let servers = store.live_servers().await?;
    if servers.iter().any(|server| server.problems.is_empty()) {
        return Ok(());
    }
    let problems = servers.into_iter().flat_map(|server| server.problems).collect();
    Err(ApiError::Unplaceable(problems))
}

/// The living servers that are free of problems.
pub(crate) async fn sound_servers(store: &Store) -> Result<Vec<Server>, ApiError> {
    let mut servers = store.live_servers().await?;
    servers.retain(|server| server.problems.is_empty());
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_idempotency_key_is_taken_at_its_bound_and_refused_beyond() {
        let key = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_str(text).unwrap());
            idempotency_key(&headers)
        };
        let longest = "k".repeat(limits::IDEMPOTENCY_KEY_BYTES);
        assert_eq!(key(&longest).unwrap(), Some(longest.clone()));
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
        for bad in ["", "a b", "ä", &format!("{longest}k")] {
            assert!(key(bad).is_err(), "{bad}");
        }
        let mut twice = HeaderMap::new();
        twice.append(IDEMPOTENCY_KEY, HeaderValue::from_static("a"));
        twice.append(IDEMPOTENCY_KEY, HeaderValue::from_static("a"));
        assert!(idempotency_key(&twice).is_err());
    }
}
