//! Records of the credentials that the gateway adds to what it forwards.

use caisson_domain::id::RunId;

use super::{Actor, NewAudit};
use crate::database::sql::{self, Executor};
use crate::door::known_run;
use crate::{Store, StoreError, audit};

/// A credential that is about to be added to a request of a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CredentialUse {
    /// Its name, never the credential.
    pub credential: String,
    /// The host that gets it.
    pub host: String,
    /// What for: `model`, `mcp`, `registry`, `git fetch` or `git push`.
    pub purpose: &'static str,
}

const NOTED: &str = "select exists (select 1 from audit where run_id = $1 and action = 'credential.use' \
     and subject = $2 and credential = $3 and host = $4)";

impl Store {
    /// Records that a credential is used for a run: before it is, once for each run, purpose, credential and host, so
    /// that an agent cannot fill the log. How often is told elsewhere: [`Store::credentials_used`].
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn note_credential_use(&self, run: &RunId, used: &CredentialUse) -> Result<(), StoreError> {
        if is_noted(self.reader(), run, used).await? {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        // Two requests may have come here at once.
        if is_noted(&mut *tx.db, run, used).await? {
            return tx.rollback().await;
        }
        let run = known_run(&mut tx, run).await?;
        let record = NewAudit {
            subject: used.purpose.to_owned(),
            credential: Some(used.credential.clone()),
            host: Some(used.host.clone()),
            decision: Some("allowed"),
            ..NewAudit::of_run(&run, Actor::Server, "credential.use")
        };
        audit::write(&mut tx, &record).await?;
        tx.commit().await
    }
}

async fn is_noted<'c>(
    db: impl Into<Executor<'c>>,
    run: &RunId,
    used: &CredentialUse,
) -> Result<bool, StoreError> {
    let noted: i64 = sql::query_scalar(NOTED)
        .bind(run.as_str())
        .bind(used.purpose)
        .bind(used.credential.as_str())
        .bind(used.host.as_str())
        .fetch_one(db)
        .await?;
    Ok(noted != 0)
}
