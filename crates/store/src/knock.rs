//! Knocking at a sandbox's door with its agent's grant: one small read for each call.

use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::id::{ProjectId, RunId, SandboxId};

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
    Open(DoorRun),
}

const KNOCK: &str = "select sandbox_grant.sandbox_id, sandbox_grant.hash, run.id as run_id, run.project_id \
     from sandbox_grant left join run on run.sandbox_id = sandbox_grant.sandbox_id and run.status = 'running' \
     where sandbox_grant.sandbox_id = $1 and sandbox_grant.kind = $2 and sandbox_grant.revoked_at_ms is null";

impl Store {
    /// Whether `presented` is the sandbox's living agent grant, and for which run it opens the agent's paths. It reads
    /// nothing of the run but who it is: a call need not wait for a long prompt to be read.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn knock(&self, sandbox: &SandboxId, presented: &TokenHash) -> Result<Knock, StoreError> {
        let row = sql::query(KNOCK)
            .bind(sandbox.as_str())
            .bind(GrantKind::Agent.as_str())
            .fetch_optional(self.reader())
            .await?;
        let Some(row) = row else { return Ok(Knock::Refused) };
        let columns = Columns::keyed("sandbox_grant", &row, "sandbox_id")?;
        if !TokenHash::from_stored(columns.get("hash")?).matches(presented) {
            return Ok(Knock::Refused);
        }
        let run: Option<RunId> = columns.parse_optional("run_id")?;
        match run {
            None => Ok(Knock::NoRun),
            Some(id) => Ok(Knock::Open(DoorRun { id, project: columns.parse("project_id")? })),
        }
    }
}
