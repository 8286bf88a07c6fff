//! The audit log: who did what to what.

use caisson_domain::id::ProjectId;

use crate::database::Tx;
use crate::{Store, StoreError};

/// Whoever works on the machine itself, without a key.
pub(crate) const OPERATOR: &str = "operator";
/// Whoever came over the API; which key it was is in the caller's own record.
pub(crate) const API: &str = "api";

const INSERT: &str =
    "insert into audit (project_id, at_ms, actor, action, subject) values ($1, $2, $3, $4, $5)";

impl Store {
    /// Writes an audit record.
    ///
    /// Creating a run, asking for its end, and making and revoking an API key write theirs by themselves.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// A dropped call may have written it; repeating it may write it twice.
    pub async fn audit(
        &self,
        project: &ProjectId,
        actor: &str,
        action: &str,
        subject: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        record(&mut tx, project, actor, (action, subject)).await?;
        tx.commit().await
    }
}

/// Writes an audit record of `(action, subject)` in the transaction that does it.
pub(crate) async fn record(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    actor: &str,
    (action, subject): (&str, &str),
) -> Result<(), StoreError> {
    sqlx::query(INSERT)
        .bind(project.as_str())
        .bind(tx.now_ms)
        .bind(actor)
        .bind(action)
        .bind(subject)
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}
