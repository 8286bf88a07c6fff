//! Transcripts: a session's conversation as the agent itself keeps it, archived at the end of each run, so that the session
//! can go on where nothing of its home is left. The store never looks into one.

use caisson_domain::id::{RunId, SessionId};
use sha2::{Digest, Sha256};

use crate::database::{Hold, Row, Tx, sql};
use crate::rows::Columns;
use crate::{Store, StoreError, door};

/// Longest part of a transcript in one row, in bytes.
pub const TRANSCRIPT_PART_BYTES: usize = 1024 * 1024;

/// What is known of an archived transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// The run at whose end it was archived, to which its text belongs; in a fork, perhaps one of the other session, which shares
    /// the text.
    pub run: RunId,
    /// Its size, in bytes.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
    /// When it was archived, Unix ms.
    pub created_at_ms: i64,
}

const ONE: &str =
    "select session_id, run_id, size_bytes, sha256, created_at_ms from transcript where session_id = $1";

const SAME: &str = "select count(*) from run join transcript on transcript.session_id = run.session_id \
     where run.id = $1 and run.status = 'running' and transcript.run_id = run.id and transcript.sha256 = $2";

const PARTS: &str = "select run_id, content from transcript_part where run_id = $1 order by number limit $2";

/// More than any transcript has: what a gateway takes is bounded by
/// [`TRANSCRIPT_BYTES`](caisson_domain::limits::TRANSCRIPT_BYTES).
const PARTS_MOST: i64 = 1_000;

/// Of two sessions that share a text and forget it at once, the one that comes second waits and sees that it is the last.
const LOCK_SHARED: &str = "select 1 from transcript where run_id = \
     (select own.run_id from transcript as own where own.session_id = $1) order by session_id for update";

/// The text goes with the last session that has it.
pub(crate) const FORGET_PARTS: &str = "delete from transcript_part where run_id = \
     (select own.run_id from transcript as own where own.session_id = $1) and not exists \
     (select 1 from transcript as other where other.run_id = transcript_part.run_id and other.session_id <> $1)";
pub(crate) const FORGET: &str = "delete from transcript where session_id = $1";

const INSERT: &str = "insert into transcript (session_id, project_id, run_id, size_bytes, sha256, created_at_ms) \
     values ($1, $2, $3, $4, $5, $6)";

const INSERT_PART: &str =
    "insert into transcript_part (run_id, number, project_id, content) values ($1, $2, $3, $4)";

impl Store {
    /// Keeps the transcript of the run's session, in place of an older one; `false` if the run has ended, whose transcript may
    /// be another's by now. What a running run has archived already is not written again, and waits for no other write.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn put_transcript(&self, run: &RunId, content: &str) -> Result<bool, StoreError> {
        let sha256 = hex::encode(Sha256::digest(content));
        let same: i64 =
            sql::query_scalar(SAME).bind(run.as_str()).bind(sha256.as_str()).fetch_one(self.reader()).await?;
        if same > 0 {
            return Ok(true);
        }
        let mut tx = self.begin_in(Hold::SessionOfRun(run)).await?;
        let run = door::known_run(&mut tx, run).await?;
        if run.status.is_final() {
            tx.rollback().await?;
            return Ok(false);
        }
        let _replaced = forget(&mut tx, &run.session).await?;
        sql::query(INSERT)
            .bind(run.session.as_str())
            .bind(run.project.as_str())
            .bind(run.id.as_str())
            .bind(i64::try_from(content.len()).unwrap_or(i64::MAX))
            .bind(sha256)
            .bind(tx.now_ms)
            .execute(&mut *tx.db)
            .await?;
        for (number, part) in (0_i64..).zip(parts(content)) {
            sql::query(INSERT_PART)
                .bind(run.id.as_str())
                .bind(number)
                .bind(run.project.as_str())
                .bind(part)
                .execute(&mut *tx.db)
                .await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// What is known of the session's transcript. Whoever asks has checked that the session is the caller's.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn transcript(&self, session: &SessionId) -> Result<Option<Transcript>, StoreError> {
        let row = sql::query(ONE).bind(session.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(transcript).transpose()
    }

    /// The session's transcript, whole.
    ///
    /// # Errors
    /// As every read; [`StoreError::Corrupt`] if it is not what was archived.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn read_transcript(&self, session: &SessionId) -> Result<Option<String>, StoreError> {
        let Some(known) = self.transcript(session).await? else { return Ok(None) };
        let rows =
            sql::query(PARTS).bind(known.run.as_str()).bind(PARTS_MOST).fetch_all(self.reader()).await?;
        let mut content = String::with_capacity(usize::try_from(known.size_bytes).unwrap_or(0));
        for row in &rows {
            content.push_str(Columns::keyed("transcript_part", row, "run_id")?.get("content")?);
        }
        if hex::encode(Sha256::digest(&content)) != known.sha256 {
            // Two reads and no transaction: a run of the session may have replaced it between them, and has its own then.
            return Err(StoreError::corrupt(
                format!("the transcript of {session}"),
                "it is not what was archived",
            ));
        }
        Ok(Some(content))
    }
}

/// Forgets the session's transcript; `false` if it has none. Its text stays if a fork, or the session that it was forked from, has
/// it as well.
pub(crate) async fn forget(tx: &mut Tx<'_>, session: &SessionId) -> Result<bool, StoreError> {
    tx.lock_rows(LOCK_SHARED, session.as_str()).await?;
    sql::query(FORGET_PARTS).bind(session.as_str()).execute(&mut *tx.db).await?;
    let forgotten = sql::query(FORGET).bind(session.as_str()).execute(&mut *tx.db).await?;
    Ok(forgotten.rows_affected() > 0)
}

fn transcript(row: &Row) -> Result<Transcript, StoreError> {
    let columns = Columns::keyed("transcript", row, "session_id")?;
    Ok(Transcript {
        run: columns.parse("run_id")?,
        size_bytes: columns.get("size_bytes")?,
        sha256: columns.get("sha256")?,
        created_at_ms: columns.get("created_at_ms")?,
    })
}

/// The content in parts of at most [`TRANSCRIPT_PART_BYTES`], none of which ends within a character.
fn parts(content: &str) -> impl Iterator<Item = &str> {
    let mut rest = content;
    std::iter::from_fn(move || {
        let (part, after) = rest.split_at(rest.floor_char_boundary(TRANSCRIPT_PART_BYTES));
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_the_bound_and_end_between_characters() {
        let sizes = |content: &str| parts(content).map(str::len).collect::<Vec<_>>();
        assert_eq!(sizes(""), Vec::<usize>::new());
        assert_eq!(sizes(&"x".repeat(TRANSCRIPT_PART_BYTES)), [TRANSCRIPT_PART_BYTES]);
        assert_eq!(sizes(&"x".repeat(TRANSCRIPT_PART_BYTES + 1)), [TRANSCRIPT_PART_BYTES, 1]);
        let odd = format!("x{}", "ä".repeat(TRANSCRIPT_PART_BYTES / 2));
        assert_eq!(sizes(&odd), [TRANSCRIPT_PART_BYTES - 1, 2]);
        assert_eq!(parts(&odd).collect::<String>(), odd);
    }
}
