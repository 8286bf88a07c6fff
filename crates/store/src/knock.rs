//! Knocking at a sandbox's door with its agent's grant: one small read for each call.

use caisson_domain::credential::CredentialKind;
use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::id::{CredentialId, ProjectId, RunId, SandboxId};

use crate::database::sql;
use crate::rows::Columns;
use crate::{Store, StoreError};

/// The run on whose behalf a sandbox's agent calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoorRun {
    /// The run.
    pub id: RunId,
    /// The tenant.
    pub project: ProjectId,
}

/// What an agent's grant opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knock {
    /// Nothing: it is not this sandbox's living agent grant.
    Refused,
    /// Nothing now: no run is running in the sandbox.
    NoRun,
    /// The paths of the agent, for this run.
    Open {
        /// Whose calls they are.
        run: DoorRun,
        /// The project's newest credential for the model API, if it has one.
        model_credential: Option<CredentialVersion>,
    },
}

/// One of a credential's secrets: the same pair is always the same secret, with the same settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialVersion {
    /// Its handle.
    pub id: CredentialId,
    /// As [`crate::Credential::version`].
    pub version: i64,
}

/// A grant that opened nothing at the door of a sandbox which has its own, and in which a run is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedGrant {
    /// The run.
    pub run: RunId,
    /// Whether it is one of the sandbox's own, of another kind than was asked for.
    pub is_own: bool,
}

/// All of them, if none is revoked: the agent's is first, when the sandbox begins to end.
const OWN_GRANTS: &str = "select sandbox_grant.sandbox_id, sandbox_grant.hash, run.id as run_id \
     from sandbox_grant join run on run.sandbox_id = sandbox_grant.sandbox_id and run.status = 'running' \
     where sandbox_grant.sandbox_id = $1 and not exists (select 1 from sandbox_grant as gone \
       where gone.sandbox_id = sandbox_grant.sandbox_id and gone.revoked_at_ms is not null)";

const KNOCK: &str = "select sandbox_grant.sandbox_id, sandbox_grant.hash, run.id as run_id, run.project_id, \
     credential.id as credential_id, credential.version as credential_version \
     from sandbox_grant left join run on run.sandbox_id = sandbox_grant.sandbox_id and run.status = 'running' \
     left join credential on credential.id = (select newest.id from credential as newest \
       where newest.project_id = run.project_id and (newest.kind = $3 or newest.kind = $4) order by newest.id desc limit 1) \
     where sandbox_grant.sandbox_id = $1 and sandbox_grant.kind = $2 and sandbox_grant.revoked_at_ms is null";

impl Store {
    /// Whether `presented` is the sandbox's living agent grant, and for which run it opens the agent's paths. It reads
    /// nothing of the run but who it is, and with which credential its model calls go: a call need not wait for a long prompt
    /// to be read.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn knock(&self, sandbox: &SandboxId, presented: &TokenHash) -> Result<Knock, StoreError> {
        let row = sql::query(KNOCK)
            .bind(sandbox.as_str())
            .bind(GrantKind::Agent.as_str())
            .bind(CredentialKind::MODEL[0].as_str())
            .bind(CredentialKind::MODEL[1].as_str())
            .fetch_optional(self.reader())
            .await?;
        let Some(row) = row else { return Ok(Knock::Refused) };
        let columns = Columns::keyed("sandbox_grant", &row, "sandbox_id")?;
        if !TokenHash::from_stored(columns.get("hash")?).matches(presented) {
            return Ok(Knock::Refused);
        }
        let run: Option<RunId> = columns.parse_optional("run_id")?;
        let Some(id) = run else { return Ok(Knock::NoRun) };
        let credential: Option<CredentialId> = columns.parse_optional("credential_id")?;
        let version =
            |id| Ok::<_, StoreError>(CredentialVersion { id, version: columns.get("credential_version")? });
        Ok(Knock::Open {
            run: DoorRun { id, project: columns.parse("project_id")? },
            model_credential: credential.map(version).transpose()?,
        })
    }

    /// For which run a refused grant, or none, was `presented` at the sandbox's door. None where no run is running or one of the sandbox's
    /// own grants is revoked: whoever comes late has done nothing wrong.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn refused_grant(
        &self,
        sandbox: &SandboxId,
        presented: Option<&TokenHash>,
    ) -> Result<Option<RefusedGrant>, StoreError> {
        let rows = sql::query(OWN_GRANTS).bind(sandbox.as_str()).fetch_all(self.reader()).await?;
        let mut refused: Option<RefusedGrant> = None;
        for row in &rows {
            let columns = Columns::keyed("sandbox_grant", row, "sandbox_id")?;
            let own = TokenHash::from_stored(columns.get("hash")?);
            let matches = presented.is_some_and(|presented| own.matches(presented));
            let before = refused.is_some_and(|before| before.is_own);
            refused = Some(RefusedGrant { run: columns.parse("run_id")?, is_own: before || matches });
        }
        Ok(refused)
    }
}
