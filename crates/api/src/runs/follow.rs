//! A run that goes on with a session: what it leaves out is as the session has it, and what contradicts the session is refused.

use std::collections::BTreeMap;

use caisson_domain::git::{BranchName, Repository};
use caisson_domain::id::SessionId;
use caisson_domain::parameters::Values;
use caisson_domain::principal::Principal;
use caisson_domain::run::RunSpec;
use caisson_domain::workflow::Workflow;
use caisson_store::GoOn;
use serde_json::Value;

use super::request::{CreateRun, RepositoryChoice};
use crate::problem::{ApiError, Faults};
use crate::state::App;

/// Code of what contradicts the session.
const CONTRADICTED: &str = "session_contradicted";

/// The session that a run goes on with.
pub(super) struct Followed {
    pub(super) session: SessionId,
    parameters: Values,
}

/// Reads the session that the request names and completes the request by it; none if it names none, or one with a fault.
///
/// # Errors
/// As every read of the store.
pub(super) async fn go_on(
    app: &App,
    caller: &Principal,
    request: &mut CreateRun,
    faults: &mut Faults,
) -> Result<Option<Followed>, ApiError> {
    let Some(named) = &request.session else { return Ok(None) };
    let found = match named.parse::<SessionId>() {
        Ok(session) => app.store().go_on(&caller.project, &session).await?.map(|found| (session, found)),
        Err(_) => None,
    };
    let Some((session, GoOn { spec, expired })) = found else {
        faults.add("session", "unknown_session", "the project has no such session");
        return Ok(None);
    };
    if expired {
        add_expired(faults);
    }
    complete(request, &spec, app.config().default_repository.as_ref(), faults);
    Ok(Some(Followed { session, parameters: spec.parameters }))
}

/// Says that nothing of the session is kept.
pub(super) fn add_expired(faults: &mut Faults) {
    let message = "neither its workspace nor its conversation is kept any more: their days are over, or the server that had \
                   them was forgotten; begin a new session";
    faults.add("session", "session_expired", message);
}

fn complete(request: &mut CreateRun, spec: &RunSpec, default: Option<&Repository>, faults: &mut Faults) {
    let workflow = spec.workflow.name.as_str();
    if request.workflow.is_empty() {
        workflow.clone_into(&mut request.workflow);
    } else if request.workflow != workflow {
        let message =
            format!("the session follows the workflow {workflow}; leave it out, or begin a new session");
        faults.add("workflow", CONTRADICTED, message);
    }
    complete_repository(request, spec, default, faults);
    let branch = |name: &Option<BranchName>| name.as_ref().map(|name| name.as_str().to_owned());
    complete_branch("base", &mut request.base, branch(&spec.base), faults);
    complete_branch("branch", &mut request.branch, branch(&spec.branch), faults);
    request.anchor = request.anchor.take().or_else(|| branch(&spec.anchor));
    request.image = request.image.take().or_else(|| spec.image.clone());
}

fn complete_repository(
    request: &mut CreateRun,
    spec: &RunSpec,
    default: Option<&Repository>,
    faults: &mut Faults,
) {
    let key = spec.repository.as_ref().map(Repository::key);
    let fits = match &request.repository {
        RepositoryChoice::Default => true,
        RepositoryChoice::ServerDefault => default.map(Repository::key) == key,
        RepositoryChoice::Empty => key.is_none(),
        // One that is none is told of where all are read.
        RepositoryChoice::Named(text) => match text.parse::<Repository>() {
            Ok(named) => Some(named.key()) == key,
            Err(_) => return,
        },
    };
    if !fits {
        let has = spec.repository.as_ref().map_or("has none".to_owned(), |has| format!("is on \"{has}\""));
        let message = format!("the session {has}; leave it out, or begin a new session");
        faults.add("repository", CONTRADICTED, message);
    }
    request.repository = match &spec.repository {
        Some(repository) => RepositoryChoice::Named(repository.to_string()),
        None => RepositoryChoice::Empty,
    };
}

fn complete_branch(
    field: &'static str,
    named: &mut Option<String>,
    has: Option<String>,
    faults: &mut Faults,
) {
    if named.is_some() && *named != has {
        let told = has.as_ref().map_or("has none".to_owned(), |has| format!("has \"{has}\""));
        let message =
            format!("the session {told}; leave it out, or fork the session to work on another branch");
        faults.add(field, CONTRADICTED, message);
    }
    *named = has;
}

/// Gives the parameters that the request leaves out, and that the workflow still has, the values of the session's last run.
pub(super) fn keep_parameters(given: &mut BTreeMap<String, Value>, followed: &Followed, workflow: &Workflow) {
    for (name, value) in &followed.parameters {
        if workflow.caisson.parameters.contains_key(name) && !given.contains_key(name) {
            given.insert(name.clone(), value.clone());
        }
    }
}
