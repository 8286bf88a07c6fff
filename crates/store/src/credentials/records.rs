//! What the audit log has of changes to credentials.

use caisson_domain::credential::CredentialSettings;
use caisson_domain::id::{CredentialId, ProjectId};

use crate::{Actor, NewAudit};

/// The record of a change to a credential.
pub(super) fn changed(
    project: &ProjectId,
    actor: &Actor,
    action: &str,
    (id, name): (&CredentialId, &str),
) -> NewAudit {
    let record = NewAudit::new(project, actor.clone(), action, id.as_str());
    NewAudit { credential: Some(name.to_owned()), ..record }
}

/// The record of one that is added: also of which kind it is, and the hosts that its secrets go to.
pub(super) fn added(
    (project, actor): (&ProjectId, &Actor),
    (id, name): (&CredentialId, &str),
    settings: &CredentialSettings,
) -> NewAudit {
    let mut hosts: Vec<String> = Vec::new();
    for host in settings.destinations().iter().filter_map(|url| url.host_str()) {
        if !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    }
    let record = changed(project, actor, "credential.add", (id, name));
    NewAudit {
        subject: format!("{id}: kind {}", settings.kind()),
        host: (!hosts.is_empty()).then(|| hosts.join(", ")),
        ..record
    }
}
