//! When and by which run a credential was used.
//!
//! A run's first use is written before the credential is sent; for what and to which host is in the audit log. Further ones are counted in memory
//! and written by the next heartbeat that comes a minute later, or before the run's outcome is acknowledged, so that a busy run
//! costs a write a minute and a kill loses a minute of the count, never the fact.
//!
//! Credentials of the server's configuration have no row; they are counted under a name, and the log's record of the first use
//! is all that is written before they are sent.
//!
//! What is written after the run's end, by a gateway that is another process than the one that ended the run or for a call that
//! was under way, is told in the audit log by the same transaction.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use caisson_domain::id::{CredentialId, ProjectId, RunId};
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::run::Run;

use super::Credential;
use crate::database::{Tx, sql};
use crate::rows::{Columns, run_columns};
use crate::{Store, StoreError, audit, rows};

/// How exactly it is known when a credential was last used, and how often uses are written, in milliseconds.
const USE_STEP_MS: i64 = 60_000;
/// What the names of the configuration's credentials begin with, where they stand beside ids.
pub(crate) const CONFIGURED: &str = "config:";
/// Pairs of credential and run whose uses are counted in memory; further ones are written one by one.
pub const CREDENTIAL_USES_KEPT: usize = 1_000;

/// How often a run used a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialUsage {
    /// The credential's id, which may have been removed since; `config:` and its name for one of the server's configuration.
    pub credential: String,
    /// How often; exact to a minute.
    pub uses: i64,
    /// Unix ms.
    pub first_used_at_ms: i64,
    /// Unix ms; exact to a minute.
    pub last_used_at_ms: i64,
}

/// Uses that are not written yet.
#[derive(Debug, Default)]
pub(crate) struct CredentialUses(Mutex<HashMap<Pair, Counted>>);

/// What stands for a credential, and the run that used it.
type Pair = (String, RunId);

#[derive(Debug, Clone)]
struct Counted {
    uses: i64,
    first_at_ms: i64,
    last_at_ms: i64,
    written_at_ms: i64,
}

/// What a pair was used beyond what is written.
type Uses = (Pair, Counted);

/// Which counts are to be written.
enum Due<'r> {
    /// Those that were not written for a while, by this time (Unix ms).
    Old(i64),
    /// Those of a run.
    OfRun(&'r RunId),
    All,
}

impl Due<'_> {
    fn has(&self, (_, run): &Pair, counted: &Counted) -> bool {
        match self {
            // A clock that jumped back must not keep them for ever.
            Self::Old(now_ms) => !(0..USE_STEP_MS).contains(&now_ms.saturating_sub(counted.written_at_ms)),
            Self::OfRun(of) => *of == run,
            Self::All => true,
        }
    }
}

impl CredentialUses {
    fn lock(&self) -> MutexGuard<'_, HashMap<Pair, Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a use of a pair that was written not long ago; `false` if it must be written.
    fn count(&self, pair: &Pair, now_ms: i64) -> bool {
        let mut kept = self.lock();
        let Some(counted) = kept.get_mut(pair) else { return false };
        counted.uses += 1;
        counted.last_at_ms = now_ms;
        true
    }

    /// Counts uses from this one on, of a pair of which nothing is written; `false` if there is no room for it.
    fn count_from(&self, pair: &Pair, now_ms: i64) -> bool {
        if self.count(pair, now_ms) {
            return true;
        }
        self.keep(pair.clone(), now_ms);
        self.count(pair, now_ms)
    }

    fn keep(&self, pair: Pair, now_ms: i64) {
        let mut kept = self.lock();
        if kept.len() < CREDENTIAL_USES_KEPT {
            let counted = Counted { uses: 0, first_at_ms: now_ms, last_at_ms: now_ms, written_at_ms: now_ms };
            // Another use of the pair may have been counted meanwhile.
            kept.entry(pair).or_insert(counted);
        }
    }

    /// Whether [`CredentialUses::take`] would have something to write or to forget.
    fn has(&self, due: &Due<'_>) -> bool {
        self.lock().iter().any(|(pair, counted)| due.has(pair, counted))
    }

    /// Takes what is due, in the order of the pairs; those that were not used since are forgotten.
    fn take(&self, due: &Due<'_>) -> Vec<Uses> {
        let mut taken = Vec::new();
        self.lock().retain(|pair, counted| {
            let is_due = due.has(pair, counted);
            if is_due && counted.uses > 0 {
                taken.push((pair.clone(), counted.clone()));
            }
            !is_due
        });
        taken.sort_unstable_by(|(one, _), (two, _)| one.cmp(two));
        taken
    }

    /// Gives back what could not be written.
    fn give_back(&self, due: Vec<Uses>) {
        let mut kept = self.lock();
        for (pair, counted) in due {
            if let Some(newer) = kept.get_mut(&pair) {
                newer.uses += counted.uses;
                newer.first_at_ms = newer.first_at_ms.min(counted.first_at_ms);
            } else if kept.len() < CREDENTIAL_USES_KEPT {
                kept.insert(pair, counted);
            }
        }
    }

    /// How often the pair was used beyond what is written, and when last.
    pub(crate) fn of(&self, credential: &str, run: &RunId) -> (i64, i64) {
        let counted =
            self.lock().get(&(credential.to_owned(), run.clone())).map(|one| (one.uses, one.last_at_ms));
        counted.unwrap_or_default()
    }

    fn last_at_ms(&self, credential: &CredentialId) -> Option<i64> {
        let kept = self.lock();
        kept.iter()
            .filter(|((id, _), _)| id == credential.as_str())
            .map(|(_, counted)| counted.last_at_ms)
            .max()
    }
}

const USED: &str = "insert into credential_use \
     (credential_id, run_id, project_id, uses, first_used_at_ms, last_used_at_ms) \
     select $1, $2, run.project_id, $3, $5, $4 from run where run.id = $2 \
     on conflict (credential_id, run_id) do update set uses = credential_use.uses + excluded.uses, \
     last_used_at_ms = case when credential_use.last_used_at_ms > excluded.last_used_at_ms \
     then credential_use.last_used_at_ms else excluded.last_used_at_ms end returning uses";

const LAST: &str = "update credential set last_used_at_ms = $2 where id = $1 \
     and (last_used_at_ms is null or last_used_at_ms < $2)";

pub(crate) const RUN: &str = concat!(
    "select ",
    run_columns!(),
    ", exists (select 1 from credential_use where credential_use.run_id = run.id) as used \
     from run where project_id = $1 and id = $2"
);

const OF_RUN: &str = "select credential_id, uses, first_used_at_ms, last_used_at_ms from credential_use \
     where run_id = $1 order by credential_id limit $2";

impl Store {
    /// Counts a use of a credential by a run, before it is sent.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// A dropped call may have counted it; repeating it may count it twice.
    pub async fn use_credential(&self, credential: &Credential, run: &RunId) -> Result<(), StoreError> {
        let pair = (credential.id.to_string(), run.clone());
        let now_ms = self.now_ms();
        if self.shared.credential_uses.count(&pair, now_ms) {
            return Ok(());
        }
        self.write_use(&pair, now_ms).await?;
        self.shared.credential_uses.keep(pair, now_ms);
        Ok(())
    }

    /// Counts a use by a run of the credential of the server's configuration that has this name, which is shown as `config:` and the
    /// name. The record of its first use is written before ([`Store::note_credential_use`]).
    ///
    /// # Errors
    /// As [`Store::use_credential`], where there is no room to count it in memory.
    /// # Cancel safety
    /// As [`Store::use_credential`].
    pub async fn use_configured_credential(&self, name: &str, run: &RunId) -> Result<(), StoreError> {
        let (pair, now_ms) = ((format!("{CONFIGURED}{name}"), run.clone()), self.now_ms());
        if self.shared.credential_uses.count_from(&pair, now_ms) {
            return Ok(());
        }
        self.write_use(&pair, now_ms).await
    }

    async fn write_use(&self, pair: &Pair, now_ms: i64) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let first = Counted { uses: 1, first_at_ms: now_ms, last_at_ms: now_ms, written_at_ms: now_ms };
        let uses = write(&mut tx, pair, &first).await?;
        uses.ok_or_else(|| StoreError::missing("run", pair.1.as_str()))?;
        audit::write_late_totals(&mut tx, &pair.1).await?;
        tx.commit().await
    }

    /// The credentials that a run used, and how often; at most [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn credentials_used(&self, run: &RunId) -> Result<Vec<CredentialUsage>, StoreError> {
        let rows = sql::query(OF_RUN).bind(run.as_str()).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        let read = rows.iter().map(|row| {
            let columns = Columns::keyed("credential_use", row, "credential_id")?;
            Ok(CredentialUsage {
                credential: columns.get("credential_id")?,
                uses: columns.get("uses")?,
                first_used_at_ms: columns.get("first_used_at_ms")?,
                last_used_at_ms: columns.get("last_used_at_ms")?,
            })
        });
        read.collect()
    }

    /// The run, if it belongs to the project, and the credentials that it used, as [`Store::credentials_used`]. Nearly no
    /// run has used one, and then this asks the database once.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn run_and_credentials_used(
        &self,
        project: &ProjectId,
        id: &RunId,
    ) -> Result<Option<(Run, Vec<CredentialUsage>)>, StoreError> {
        let query = sql::query(RUN).bind(project.as_str()).bind(id.as_str());
        let Some(row) = query.fetch_optional(self.reader()).await? else { return Ok(None) };
        let has_used: i64 = Columns::of("run", &row)?.get("used")?;
        let uses = if has_used == 0 { Vec::new() } else { self.credentials_used(id).await? };
        Ok(Some((rows::run(&row)?, uses)))
    }

    /// Writes the uses that are due; at the end all of them.
    pub(crate) async fn write_credential_uses(&self, all: bool) -> Result<(), StoreError> {
        self.write_due(if all { Due::All } else { Due::Old(self.now_ms()) }).await
    }

    /// Writes what this process has counted of a run and not written yet: before the run ends, so that whichever process ends it
    /// finds the whole count.
    ///
    /// # Errors
    /// As every write; what was not written is kept.
    /// # Cancel safety
    /// A dropped call may lose up to a minute of the count.
    pub async fn write_credential_uses_of(&self, run: &RunId) -> Result<(), StoreError> {
        self.write_due(Due::OfRun(run)).await
    }

    async fn write_due(&self, due: Due<'_>) -> Result<(), StoreError> {
        if !self.shared.credential_uses.has(&due) {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        // Within the transaction: whoever ends a run in this process finds each count here or in the database.
        let taken = self.shared.credential_uses.take(&due);
        let written = match write_all(&mut tx, &taken).await {
            Ok(()) => tx.commit().await,
            Err(error) => Err(error),
        };
        if written.is_err() {
            self.shared.credential_uses.give_back(taken);
        }
        written
    }

    /// With uses that are not written yet.
    pub(super) fn seen_used(&self, mut credential: Credential) -> Credential {
        let last = self.shared.credential_uses.last_at_ms(&credential.id);
        credential.last_used_at_ms = credential.last_used_at_ms.max(last);
        credential
    }
}

/// Adds to the counts; those of a run that has ended are told of.
async fn write_all(tx: &mut Tx<'_>, uses: &[Uses]) -> Result<(), StoreError> {
    for (pair, counted) in uses {
        // A run that is gone by now has no count any more.
        write(tx, pair, counted).await?;
    }
    let mut runs: Vec<&RunId> = uses.iter().map(|((_, run), _)| run).collect();
    runs.sort_unstable();
    runs.dedup();
    for run in runs {
        let told = audit::write_late_totals(tx, run).await;
        if let Err(error @ StoreError::Corrupt { .. }) = &told {
            // It must not keep the counts of others from being written.
            tracing::error!(run.id = %run, error = %error, "the late uses of {run} are not told of");
            continue;
        }
        told?;
    }
    Ok(())
}

/// Adds to the count and answers what it is then; none if there is no such run.
async fn write(
    tx: &mut Tx<'_>,
    (credential, run): &Pair,
    counted: &Counted,
) -> Result<Option<i64>, StoreError> {
    let count: Option<i64> = sql::query_scalar(USED)
        .bind(credential.as_str())
        .bind(run.as_str())
        .bind(counted.uses)
        .bind(counted.last_at_ms)
        .bind(counted.first_at_ms)
        .fetch_optional(&mut *tx.db)
        .await?;
    sql::query(LAST).bind(credential.as_str()).bind(counted.last_at_ms).execute(&mut *tx.db).await?;
    Ok(count)
}
