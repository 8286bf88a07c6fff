//! Which repository a request is for: the door has one remote.

use caisson_domain::checks::{Check, stands};
use caisson_domain::event::EventKind;
use caisson_domain::git::Repository;
use caisson_domain::protocol::paths;
use caisson_domain::run::Run;
use serde_json::json;

use crate::problem::Refusal;
use crate::shared::Door;

/// Whether the remote that a request names is the run's own repository: there is no other.
pub(super) fn is_own(remote: &str) -> bool {
    remote == paths::GIT_REMOTE || !stands(Check::OwnRepository)
}

/// What was `found` of a request's path. Where it is refused, and names another repository than the run's, that is told of; whoever
/// asks is told that it is not there.
pub(super) async fn told<T>(
    door: &Door,
    run: &Run,
    rest: &str,
    found: Result<T, Refusal>,
) -> Result<T, Refusal> {
    if found.is_err() && !rest.split_once('/').is_some_and(|(name, _)| is_own(name)) {
        let remedy = "the door has the run's own repository and no other";
        let data = json!({"what": "git", "rule": "other_repository", "remedy": remedy});
        door.tell(&run.id, EventKind::GatewayDenied, data).await;
    }
    found
}

/// The repository of a request: the run's, whatever it says. Where that check is left out, it is the one of that name beside
/// the run's.
pub(super) fn named(rest: &str, own: &Repository) -> Repository {
    match (rest.split_once('/'), own) {
        (Some((remote, _)), Repository::Url(url)) if remote != paths::GIT_REMOTE && is_own(remote) => {
            url.join(remote).map_or_else(|_| own.clone(), Repository::Url)
        }
        (_, _) => own.clone(),
    }
}
