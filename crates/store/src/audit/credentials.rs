//! Records of the credentials that the gateway adds to what it forwards.

use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::limits::PAGE_ITEMS;

use super::{Actor, NewAudit};
use crate::credentials::CONFIGURED;
use crate::database::sql::{self, Executor};
use crate::database::{Row, Tx};
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
    /// What for: `model`, `mcp`, `registry`, `git fetch`, `git push`, or `token` where it is sent for a token alone.
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

/// Uses of a run, with what the audit log needs beside them.
macro_rules! totals {
    ($which:literal) => {
        concat!(
            "select credential_use.credential_id, credential_use.project_id, credential.name, credential_use.uses, \
             credential_use.first_used_at_ms, credential_use.last_used_at_ms, run.session_id from credential_use \
             join run on run.id = credential_use.run_id \
             left join credential on credential.id = credential_use.credential_id \
             where credential_use.run_id = $1",
            $which,
            " order by credential_use.credential_id limit $2"
        )
    };
}

const TOTALS: &str = totals!("");

/// Those of which the log does not tell although the run has ended.
const LATE_TOTALS: &str = totals!(
    " and credential_use.uses > credential_use.told_uses and run.status in ('succeeded', 'failed', 'cancelled')"
);

const TOLD: &str = "update credential_use set told_uses = $3 where credential_id = $1 and run_id = $2";

/// Records how often the run that ends has used which credentials, at most [`PAGE_ITEMS`] of them: the counts
/// beside the log go with their session, and could be changed.
///
/// With uses that this process has counted and not written yet. Those of another process are told when that writes them
/// ([`write_late_totals`]), so the last record of a run and a credential is its whole count.
pub(crate) async fn write_totals(tx: &mut Tx<'_>, run: &RunId) -> Result<(), StoreError> {
    let rows = sql::query(TOTALS).bind(run.as_str()).bind(PAGE_ITEMS).fetch_all(&mut *tx.db).await?;
    for row in &rows {
        let total = Total::of(row)?;
        let (more, last_more_ms) = tx.unwritten_uses(&total.credential, run);
        let uses = total.uses.saturating_add(more);
        let last_ms = total.last_ms.max(last_more_ms);
        tell(tx, run, Total { uses, last_ms, ..total }).await?;
    }
    Ok(())
}

/// Records anew what was counted of a run after it ended and the log has told of it; nothing of a run that goes on.
pub(crate) async fn write_late_totals(tx: &mut Tx<'_>, run: &RunId) -> Result<(), StoreError> {
    let rows = sql::query(LATE_TOTALS).bind(run.as_str()).bind(PAGE_ITEMS).fetch_all(&mut *tx.db).await?;
    for row in &rows {
        let total = Total::of(row)?;
        tell(tx, run, total).await?;
    }
    Ok(())
}

/// How often a run has used a credential.
struct Total {
    credential: String,
    /// One that was removed has no name any more.
    name: Option<String>,
    project: ProjectId,
    session: SessionId,
    uses: i64,
    first_ms: i64,
    last_ms: i64,
}

impl Total {
    fn of(row: &Row) -> Result<Self, StoreError> {
        let columns = Columns::keyed("credential_use", row, "credential_id")?;
        Ok(Self {
            credential: columns.get("credential_id")?,
            name: columns.get("name")?,
            project: columns.parse("project_id")?,
            session: columns.parse("session_id")?,
            uses: columns.get("uses")?,
            first_ms: columns.get("first_used_at_ms")?,
            last_ms: columns.get("last_used_at_ms")?,
        })
    }
}

async fn tell(tx: &mut Tx<'_>, run: &RunId, total: Total) -> Result<(), StoreError> {
    let Total { credential, name, project, session, uses, first_ms, last_ms } = total;
    sql::query(TOLD).bind(credential.as_str()).bind(run.as_str()).bind(uses).execute(&mut *tx.db).await?;
    let subject = format!("uses {uses}, first_used_at_ms {first_ms}, last_used_at_ms {last_ms}");
    let record = NewAudit {
        run: Some(run.clone()),
        session: Some(session),
        credential: Some(recorded_name(&credential, name.as_deref())),
        ..NewAudit::new(&project, Actor::Server, "credential.total", &subject)
    };
    audit::write(tx, &record).await
}

/// As the records of its uses call it.
fn recorded_name(credential: &str, name: Option<&str>) -> String {
    match (credential.strip_prefix(CONFIGURED), name) {
        (Some(configured), _) => configured.to_owned(),
        (None, Some(name)) => format!("{credential} {name}"),
        (None, None) => credential.to_owned(),
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
