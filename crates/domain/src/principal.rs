//! Who calls the API and what they may do.

use crate::id::{ApiKeyId, ProjectId};
use crate::run::text_enum;

text_enum! {
    /// What a principal may do.
    Scope, "scope" {
        /// Read runs, sessions, events and artifacts of the project.
        RunsRead = "runs:read",
        /// Create and cancel runs of the project.
        RunsWrite = "runs:write",
        /// Change workflows of the project.
        Workflows = "workflows",
        /// Add, rotate, list and remove credentials of the project; nobody can read one.
        Credentials = "credentials",
        /// Read the project's audit log.
        Audit = "audit",
        /// Everything in the project, its API keys among it.
        Admin = "admin",
    }
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The key presented.
    pub key: ApiKeyId,
    /// The key's name, for people.
    pub name: String,
    /// The tenant whose things the key opens.
    pub project: ProjectId,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When the key stops opening anything, Unix ms; none: never.
    pub expires_at_ms: Option<i64>,
}

impl Principal {
    /// Whether the caller may do what needs `scope`.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_may_do_everything_and_others_only_what_they_hold() {
        let mut principal = Principal {
            key: ApiKeyId::new(1, [0; 10]),
            name: "ci".to_owned(),
            project: ProjectId::default_project(),
            scopes: vec![Scope::RunsRead],
            expires_at_ms: None,
        };
        assert!(principal.may(Scope::RunsRead));
        assert!(!principal.may(Scope::RunsWrite));
        principal.scopes = vec![Scope::Admin];
        assert!(Scope::ALL.iter().all(|scope| principal.may(*scope)));
    }
}
