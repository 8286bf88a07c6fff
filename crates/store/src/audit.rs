//! The audit log: who did what to what, in chains of hashes, one for each server.
//!
//! A record is appended by the transaction that does what it tells of, so there is none of the one without the other.
//! Each has the hash of the one before it: whoever changes, removes or exchanges records breaks the chain, and
//! [`Store::verify_audit`] names the first broken link. Cutting the end off breaks nothing; that is seen by a head that
//! somebody signed and kept elsewhere.

mod credentials;
mod record;
mod verify;

use caisson_domain::git::Repository;
use caisson_domain::id::{ApiKeyId, ProjectId, RunId, ServerId, SessionId};
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::run::Run;

use crate::database::{Tx, sql};
use crate::{Store, StoreError, Topic};

pub use credentials::CredentialUse;
pub(crate) use credentials::{write_late_totals, write_totals};
pub use record::{AUDIT_HASH_START, AuditRecord};
pub use verify::{AuditFault, AuditHead, AuditReport, ChainReport};

/// Whoever works on the machine itself, without a key.
pub(crate) const OPERATOR: &str = "operator";
/// The server by itself: its gateway above all.
pub(crate) const SERVER: &str = "server";
/// The chain of a store that was not told which server it belongs to.
pub(crate) const LOCAL_CHAIN: &str = "local";
/// Longest text of a record, in bytes; the rest is cut off.
pub const AUDIT_TEXT_BYTES: usize = 1024;
/// Records of an earlier version copied in one transaction.
const ADOPT_ITEMS: i64 = 500;

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// Whoever works on the server's machine.
    Operator,
    /// The server by itself.
    Server,
    /// A caller of the API. Its name is read when the record is written.
    Key(ApiKeyId),
}

impl Actor {
    fn as_str(&self) -> &str {
        match self {
            Self::Operator => OPERATOR,
            Self::Server => SERVER,
            Self::Key(id) => id.as_str(),
        }
    }

    /// A caller of the API, else the operator of the machine.
    #[must_use]
    pub fn key_or_operator(key: Option<&ApiKeyId>) -> Self {
        key.map_or(Self::Operator, |key| Self::Key(key.clone()))
    }
}

/// A record to be written. Texts beyond [`AUDIT_TEXT_BYTES`] are cut; none may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAudit {
    /// The tenant.
    pub project: ProjectId,
    /// Who.
    pub actor: Actor,
    /// What was done, as `thing.verb`.
    pub action: String,
    /// To what: an id or a name.
    pub subject: String,
    /// In which run.
    pub run: Option<RunId>,
    /// In which session.
    pub session: Option<SessionId>,
    /// The name of the credential that was used, never the credential.
    pub credential: Option<String>,
    /// The host that was spoken to, or was not.
    pub host: Option<String>,
    /// The full name of a git ref.
    pub ref_name: Option<String>,
    /// What was decided: `allowed`, `denied` or `failed`.
    pub decision: Option<&'static str>,
}

impl NewAudit {
    /// A record without particulars.
    #[must_use]
    pub fn new(project: &ProjectId, actor: Actor, action: &str, subject: &str) -> Self {
        Self {
            project: project.clone(),
            actor,
            action: action.to_owned(),
            subject: subject.to_owned(),
            run: None,
            session: None,
            credential: None,
            host: None,
            ref_name: None,
            decision: None,
        }
    }

    /// A record about a run.
    #[must_use]
    pub fn of_run(run: &Run, actor: Actor, action: &str) -> Self {
        Self {
            run: Some(run.id.clone()),
            session: Some(run.session.clone()),
            ..Self::new(&run.project, actor, action, run.id.as_str())
        }
    }
}

/// Which records to list. Each field that is set narrows the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Records of that action.
    pub action: Option<String>,
    /// Records of that run.
    pub run: Option<RunId>,
    /// What that actor did: `operator`, `server` or the id of a key.
    pub actor: Option<String>,
}

const KEY_NAME: &str = "select name from api_key where id = $1";

const TAIL: &str = "select seq, hash from audit where chain = $1 order by seq desc limit 1";

const BEFORE: &str = "select number, project_id, at_ms, actor, action, subject from audit_before \
     where number > (select coalesce(max(before_number), 0) from audit) order by number limit $1";

/// Each names one field whose index it reads, as the lists of runs do: one text for all filters would walk the whole log, which
/// is never shortened, where few records fit.
macro_rules! list {
    ($by:literal) => {
        concat!(
            "select ",
            record::audit_columns!(),
            " from audit where project_id = $1 and number < $2",
            $by,
            " and ($3 is null or action = $3) and ($4 is null or run_id = $4) and ($5 is null or actor = $5) \
             order by number desc limit $6"
        )
    };
}

pub(crate) const ALL: &str = list!("");
pub(crate) const BY_ACTION: &str = list!(" and action = $3");
pub(crate) const BY_RUN: &str = list!(" and run_id = $4");
pub(crate) const BY_ACTOR: &str = list!(" and actor = $5");

/// The text for a filter, by the field that most likely leaves the fewest records.
fn text(filter: &AuditFilter) -> &'static str {
    let is_of_all = |actor: &String| actor == OPERATOR || actor == SERVER;
    if filter.run.is_some() {
        BY_RUN
    } else if filter.actor.as_ref().is_some_and(|actor| !is_of_all(actor)) {
        BY_ACTOR
    } else if filter.action.is_some() {
        BY_ACTION
    } else if filter.actor.is_some() {
        BY_ACTOR
    } else {
        ALL
    }
}

const PAGE: &str =
    concat!("select ", record::audit_columns!(), " from audit where number > $1 order by number limit $2");

impl Store {
    /// Says which server's chain this store writes, and copies the records of earlier versions to its beginning. Said
    /// once; a store that was not told writes a chain called `local`.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: what was not copied is copied the next time.
    pub async fn keep_audit(&self, server: &ServerId) -> Result<(), StoreError> {
        self.shared.audit_chain.get_or_init(|| server.as_str().to_owned());
        // Bounded: each turn copies some, and nobody adds any.
        while self.adopt_before().await? {}
        Ok(())
    }

    /// Copies some records of an earlier version; `false` if there are none left.
    async fn adopt_before(&self) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let rows: Vec<(i64, String, i64, String, String, String)> =
            sql::query_as(BEFORE).bind(ADOPT_ITEMS).fetch_all(&mut *tx.db).await?;
        if rows.is_empty() {
            tx.rollback().await?;
            return Ok(false);
        }
        for (number, project, at_ms, actor, action, subject) in rows {
            let actor_name = key_name(&mut tx, &actor).await?;
            let record = AuditRecord {
                before: Some(number),
                at_ms,
                actor_name,
                ..AuditRecord::bare(&project, &actor, (&action, &subject))
            };
            append(&mut tx, record).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Writes a record of its own transaction: for what changes nothing else in the store.
    ///
    /// Creating a run, asking for its end, making and revoking keys, pushes, model calls and what the gateway denies
    /// write theirs by themselves.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// A dropped call may have written it; repeating it may write it twice.
    pub async fn append_audit(&self, new: &NewAudit) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        write(&mut tx, new).await?;
        tx.commit().await
    }

    /// The project's records, newest first, beginning behind the record numbered `after`. At most one more than
    /// [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_audit(
        &self,
        project: &ProjectId,
        filter: &AuditFilter,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        let rows = sql::query(text(filter))
            .planned_for_its_values()
            .bind(project.as_str())
            .bind(after.unwrap_or(i64::MAX))
            .bind(filter.action.as_deref())
            .bind(filter.run.as_ref().map(RunId::as_str))
            .bind(filter.actor.as_deref())
            .bind(limit.min(PAGE_ITEMS + 1))
            .fetch_all(self.lists())
            .await?;
        rows.iter().map(record::read).collect()
    }

    /// Every record of all projects and chains behind the one numbered `after`, in the order of writing; at most
    /// [`PAGE_ITEMS`]. For whoever exports the log.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn audit_after(&self, after: i64) -> Result<Vec<AuditRecord>, StoreError> {
        let rows = sql::query(PAGE).bind(after).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        rows.iter().map(record::read).collect()
    }

    /// The end of a server's chain; none while it is empty.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn audit_head(&self, server: &ServerId) -> Result<Option<AuditHead>, StoreError> {
        let tail: Option<(i64, String)> =
            sql::query_as(TAIL).bind(server.as_str()).fetch_optional(self.reader()).await?;
        Ok(tail.map(|(seq, hash)| AuditHead { chain: server.as_str().to_owned(), seq, hash }))
    }
}

const HASH: &str = "select hash from audit where chain = $1 and seq = $2";

impl Store {
    /// The hash of a record of a server's chain; none if it is not there.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn audit_hash(&self, server: &ServerId, seq: i64) -> Result<Option<String>, StoreError> {
        Ok(sql::query_scalar(HASH).bind(server.as_str()).bind(seq).fetch_optional(self.reader()).await?)
    }
}

/// The host of a repository; `local` for a directory on the server.
pub(crate) fn host_of(repository: &Repository) -> String {
    match repository {
        Repository::Url(url) => url.host_str().unwrap_or_default().to_owned(),
        Repository::Path(_) => "local".to_owned(),
    }
}

/// Writes a record in the transaction that does what it tells of.
pub(crate) async fn write(tx: &mut Tx<'_>, new: &NewAudit) -> Result<(), StoreError> {
    let text = |text: &Option<String>| text.as_deref().map(record::text);
    let actor = new.actor.as_str();
    let record = AuditRecord {
        at_ms: tx.now_ms,
        actor_name: key_name(tx, actor).await?,
        run: new.run.as_ref().map(|run| run.as_str().to_owned()),
        session: new.session.as_ref().map(|session| session.as_str().to_owned()),
        credential: text(&new.credential),
        host: text(&new.host),
        ref_name: text(&new.ref_name),
        decision: new.decision.map(str::to_owned),
        ..AuditRecord::bare(new.project.as_str(), actor, (&new.action, &new.subject))
    };
    append(tx, record).await
}

/// The name of a key, as it is now; none for whoever has no key.
async fn key_name(tx: &mut Tx<'_>, actor: &str) -> Result<Option<String>, StoreError> {
    if actor.parse::<ApiKeyId>().is_err() {
        return Ok(None);
    }
    Ok(sql::query_scalar(KEY_NAME).bind(actor).fetch_optional(&mut *tx.db).await?)
}

/// Puts a record at the end of the store's chain. The transaction holds the write lock, so the end stays the end.
async fn append(tx: &mut Tx<'_>, mut record: AuditRecord) -> Result<(), StoreError> {
    tx.audit_chain().clone_into(&mut record.chain);
    let tail: Option<(i64, String)> =
        sql::query_as(TAIL).bind(record.chain.as_str()).fetch_optional(&mut *tx.db).await?;
    let (last, prev_hash) = tail.unwrap_or_else(|| (0, AUDIT_HASH_START.to_owned()));
    record.seq = last + 1;
    record.prev_hash = prev_hash;
    record.hash = record.computed_hash();
    record::insert(tx, &record).await?;
    tx.wake(Topic::Audit);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_that_leaves_the_fewest_records_is_taken() {
        let action = || AuditFilter { action: Some("run.create".to_owned()), ..AuditFilter::default() };
        let by = |actor: &str, filter: AuditFilter| AuditFilter { actor: Some(actor.to_owned()), ..filter };
        let run = || Some(RunId::new(1, [1; 10]));
        assert_eq!(text(&AuditFilter::default()), ALL);
        assert_eq!(text(&action()), BY_ACTION);
        assert_eq!(text(&by(SERVER, AuditFilter::default())), BY_ACTOR);
        assert_eq!(text(&by(SERVER, action())), BY_ACTION);
        assert_eq!(text(&by("key_1", action())), BY_ACTOR);
        assert_eq!(text(&AuditFilter { run: run(), ..by("key_1", action()) }), BY_RUN);
    }
}
