//! One record: its columns, and the bytes that its hash covers.

use serde::Serialize;
use sha2::{Digest, Sha256};

use caisson_domain::run::cut;

use super::AUDIT_TEXT_BYTES;
use crate::StoreError;
use crate::database::{Row, Tx, sql};

/// What a chain's first record has in place of the hash of the one before.
pub const AUDIT_HASH_START: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Begins the bytes that are hashed, so that no other use of SHA-256 makes the same.
const DOMAIN: &str = "caisson-audit-1";

/// The columns that make an [`AuditRecord`].
macro_rules! audit_columns {
    () => {
        "number, chain, seq, project_id, at_ms, actor, actor_name, action, subject, run_id, session_id, credential, \
         host, ref_name, decision, before_number, prev_hash, hash"
    };
}
pub(super) use audit_columns;

/// A record as it was written. All texts: a record tells of things that may be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRecord {
    /// Its place in the order of writing over all chains; not covered by the hash.
    pub number: i64,
    /// The server whose chain it is in.
    pub chain: String,
    /// Its place in the chain, from 1 without a gap.
    pub seq: i64,
    /// The tenant.
    pub project: String,
    /// Unix ms.
    pub at_ms: i64,
    /// `operator`, `server` or the id of an API key.
    pub actor: String,
    /// The key's name when it was written.
    pub actor_name: Option<String>,
    /// What was done.
    pub action: String,
    /// To what.
    pub subject: String,
    /// In which run.
    pub run: Option<String>,
    /// In which session.
    pub session: Option<String>,
    /// The name of the credential used.
    pub credential: Option<String>,
    /// The host spoken to.
    pub host: Option<String>,
    /// The git ref.
    pub ref_name: Option<String>,
    /// What was decided.
    pub decision: Option<String>,
    /// Its number in the log of a version without chains.
    pub before: Option<i64>,
    /// Hash of the record before it in its chain, or [`AUDIT_HASH_START`].
    pub prev_hash: String,
    /// SHA-256 of all of the above, as 64 hexadecimal digits.
    pub hash: String,
}

/// A text as every database keeps it, so that it still has the hash it was written with: cut at its bound, and without the
/// character NUL.
pub(super) fn text(text: &str) -> String {
    cut(&text.replace('\0', "\u{fffd}"), AUDIT_TEXT_BYTES).to_owned()
}

impl AuditRecord {
    /// A record without particulars and without a place.
    pub(super) fn bare(project: &str, actor: &str, (action, subject): (&str, &str)) -> Self {
        Self {
            number: 0,
            chain: String::new(),
            seq: 0,
            project: project.to_owned(),
            at_ms: 0,
            actor: text(actor),
            actor_name: None,
            action: text(action),
            subject: text(subject),
            run: None,
            session: None,
            credential: None,
            host: None,
            ref_name: None,
            decision: None,
            before: None,
            prev_hash: String::new(),
            hash: String::new(),
        }
    }

    /// The hash that a record with this content has. Its form is told in `docs/audit.md` and never changes: every field
    /// as `length:bytes,` in a fixed order, an absent one as `-`, so that no two contents make the same bytes.
    #[must_use]
    pub fn computed_hash(&self) -> String {
        let mut bytes = Vec::new();
        let mut field = |text: Option<&str>| match text {
            Some(text) => bytes.extend_from_slice(format!("{}:{text},", text.len()).as_bytes()),
            None => bytes.push(b'-'),
        };
        let before = self.before.map(|number| number.to_string());
        for text in [DOMAIN, &self.chain, &self.seq.to_string(), &self.prev_hash, &self.at_ms.to_string()] {
            field(Some(text));
        }
        for text in [&self.project, &self.actor] {
            field(Some(text));
        }
        field(self.actor_name.as_deref());
        for text in [&self.action, &self.subject] {
            field(Some(text));
        }
        for text in
            [&self.run, &self.session, &self.credential, &self.host, &self.ref_name, &self.decision, &before]
        {
            field(text.as_deref());
        }
        hex::encode(Sha256::digest(&bytes))
    }
}

const INSERT: &str = "insert into audit (chain, seq, project_id, at_ms, actor, actor_name, action, subject, run_id, \
     session_id, credential, host, ref_name, decision, before_number, prev_hash, hash) \
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";

pub(super) async fn insert(tx: &mut Tx<'_>, record: &AuditRecord) -> Result<(), StoreError> {
    sql::query(INSERT)
        .bind(record.chain.as_str())
        .bind(record.seq)
        .bind(record.project.as_str())
        .bind(record.at_ms)
        .bind(record.actor.as_str())
        .bind(record.actor_name.as_deref())
        .bind(record.action.as_str())
        .bind(record.subject.as_str())
        .bind(record.run.as_deref())
        .bind(record.session.as_deref())
        .bind(record.credential.as_deref())
        .bind(record.host.as_deref())
        .bind(record.ref_name.as_deref())
        .bind(record.decision.as_deref())
        .bind(record.before)
        .bind(record.prev_hash.as_str())
        .bind(record.hash.as_str())
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}

/// The record of a row that has the columns.
pub(super) fn read(row: &Row) -> Result<AuditRecord, StoreError> {
    let read = || -> Result<AuditRecord, sqlx::Error> {
        Ok(AuditRecord {
            number: row.get("number")?,
            chain: row.get("chain")?,
            seq: row.get("seq")?,
            project: row.get("project_id")?,
            at_ms: row.get("at_ms")?,
            actor: row.get("actor")?,
            actor_name: row.get("actor_name")?,
            action: row.get("action")?,
            subject: row.get("subject")?,
            run: row.get("run_id")?,
            session: row.get("session_id")?,
            credential: row.get("credential")?,
            host: row.get("host")?,
            ref_name: row.get("ref_name")?,
            decision: row.get("decision")?,
            before: row.get("before_number")?,
            prev_hash: row.get("prev_hash")?,
            hash: row.get("hash")?,
        })
    };
    read().map_err(|error| StoreError::corrupt("a row of audit", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AuditRecord {
        AuditRecord {
            chain: "srv_1".to_owned(),
            seq: 1,
            at_ms: 1_700_000_000_000,
            prev_hash: AUDIT_HASH_START.to_owned(),
            run: Some("run_1".to_owned()),
            ..AuditRecord::bare("default", "operator", ("key.create", "key_1"))
        }
    }

    #[test]
    fn the_hash_is_over_the_form_that_the_documentation_tells() {
        let text = format!(
            "15:caisson-audit-1,5:srv_1,1:1,64:{AUDIT_HASH_START},13:1700000000000,7:default,8:operator,-\
             10:key.create,5:key_1,5:run_1,------"
        );
        assert_eq!(record().computed_hash(), hex::encode(Sha256::digest(text.as_bytes())));
    }

    #[test]
    fn every_field_but_the_number_is_covered_and_no_two_fields_can_be_exchanged() {
        let first = record().computed_hash();
        let text = || Some("x".to_owned());
        let changed = [
            AuditRecord { chain: "srv_2".to_owned(), ..record() },
            AuditRecord { seq: 2, ..record() },
            AuditRecord { project: "other".to_owned(), ..record() },
            AuditRecord { at_ms: 1, ..record() },
            AuditRecord { actor: "server".to_owned(), ..record() },
            AuditRecord { actor_name: text(), ..record() },
            AuditRecord { action: "key.revoke".to_owned(), ..record() },
            AuditRecord { subject: "key_2".to_owned(), ..record() },
            AuditRecord { run: None, session: record().run, ..record() },
            AuditRecord { session: text(), ..record() },
            AuditRecord { credential: text(), ..record() },
            AuditRecord { host: text(), ..record() },
            AuditRecord { ref_name: text(), ..record() },
            AuditRecord { decision: text(), ..record() },
            AuditRecord { before: Some(1), ..record() },
            AuditRecord { prev_hash: first.clone(), ..record() },
        ];
        let mut hashes: Vec<_> = changed.iter().map(AuditRecord::computed_hash).collect();
        hashes.push(first.clone());
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), changed.len() + 1);
        assert_eq!(AuditRecord { number: 7, ..record() }.computed_hash(), first);
    }

    #[test]
    fn texts_are_cut_at_their_bound() {
        let long = "s".repeat(AUDIT_TEXT_BYTES + 1);
        let cut = AuditRecord::bare("default", "operator", (&long, &long[1..]));
        assert_eq!((cut.action.len(), cut.subject.len()), (AUDIT_TEXT_BYTES, AUDIT_TEXT_BYTES));
        assert_eq!(text("a\0b"), "a\u{fffd}b");
    }
}
