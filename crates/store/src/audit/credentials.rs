//! Records of the credentials that the gateway adds to what it forwards.

use caisson_domain::id::{CredentialId, RunId, SessionId};
use caisson_domain::limits::PAGE_ITEMS;

use super::{Actor, NewAudit};
use crate::database::Tx;
use crate::database::sql::{self, Executor};
use crate::door::known_run;
use crate::rows::Columns;
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
    /// that an agent cannot fill the log. How often is told when the run ends, and meanwhile by [`Store::credentials_used`].
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

const TOTALS: &str = "select credential_use.credential_id, credential_use.project_id, credential.name, credential_use.uses, \
     credential_use.first_used_at_ms, credential_use.last_used_at_ms from credential_use \
     left join credential on credential.id = credential_use.credential_id \
     where credential_use.run_id = $1 order by credential_use.credential_id limit $2";

/// Records how often the run that ends has used which of the store's credentials, at most [`PAGE_ITEMS`] of them: the counts
/// beside the log go with their session, and could be changed. A run ends once, so there is one record of each.
///
/// With uses that this process has counted and not written yet; those of another process are in the count when that has
/// written them, a minute later at most.
pub(crate) async fn write_totals(
    tx: &mut Tx<'_>,
    session: &SessionId,
    run: &RunId,
) -> Result<(), StoreError> {
    let rows = sql::query(TOTALS).bind(run.as_str()).bind(PAGE_ITEMS).fetch_all(&mut *tx.db).await?;
    for row in &rows {
        let columns = Columns::keyed("credential_use", row, "credential_id")?;
        let credential: CredentialId = columns.parse("credential_id")?;
        let (more, last_more_ms) = tx.unwritten_uses(&credential, run);
        let (uses, first_ms, last_ms): (i64, i64, i64) =
            (columns.get("uses")?, columns.get("first_used_at_ms")?, columns.get("last_used_at_ms")?);
        let (uses, last_ms) = (uses.saturating_add(more), last_ms.max(last_more_ms));
        let subject = format!("uses {uses}, first_used_at_ms {first_ms}, last_used_at_ms {last_ms}");
        let name: Option<&str> = columns.get("name")?;
        let project = columns.parse("project_id")?;
        let record = NewAudit {
            run: Some(run.clone()),
            session: Some(session.clone()),
            // As the records of its uses call it; one that was removed has no name any more.
            credential: Some(
                name.map_or_else(|| credential.to_string(), |name| format!("{credential} {name}")),
            ),
            ..NewAudit::new(&project, Actor::Server, "credential.total", &subject)
        };
        audit::write(tx, &record).await?;
    }
    Ok(())
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
