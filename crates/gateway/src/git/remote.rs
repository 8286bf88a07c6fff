//! Which repository a request is for: the door has one remote.

use caisson_domain::checks::{Check, stands};
use caisson_domain::git::Repository;
use caisson_domain::protocol::paths;

/// Whether the remote that a request names is the run's own repository: there is no other.
pub(super) fn is_own(remote: &str) -> bool {
    remote == paths::GIT_REMOTE || !stands(Check::OwnRepository)
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
