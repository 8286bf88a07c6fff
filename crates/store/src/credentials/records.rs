//! What the audit log has of changes to credentials.

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
