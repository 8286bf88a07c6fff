//! Attachments: images and files that come with a run's task or with an input. Their bytes are in the database, so that any server
//! can give them to a sandbox, and go with the session.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_domain::attachment::{
    Attachment, AttachmentKind, PROJECT_ATTACHMENTS_BYTES, RUN_ATTACHMENTS_BYTES,
};
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::run::Run;
use sha2::{Digest, Sha256};

use crate::database::{Row, Tx, sql};
use crate::rows::Columns;
use crate::{Asked, CreateRun, NewRun, RepeatWindow, Store, StoreError};

/// Longest part of an attachment in one row, in bytes before base64, which makes them a third more.
pub const ATTACHMENT_PART_BYTES: usize = 768 * 1024;

/// An attachment with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttachment {
    /// What is known of it. The store gives it its number.
    pub what: Attachment,
    /// Its bytes.
    pub content: Vec<u8>,
}

impl NewAttachment {
    /// An attachment of that name: an image of the media type, or a file.
    #[must_use]
    pub fn new(name: &str, media_type: Option<&str>, content: Vec<u8>) -> Self {
        let kind = if media_type.is_some() { AttachmentKind::Image } else { AttachmentKind::File };
        let what = Attachment {
            number: 0,
            name: name.to_owned(),
            kind,
            media_type: media_type.map(str::to_owned),
            size_bytes: i64::try_from(content.len()).unwrap_or(i64::MAX),
            sha256: hex::encode(Sha256::digest(&content)),
        };
        Self { what, content }
    }
}

/// Which bound on attachments is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentsFull {
    /// [`RUN_ATTACHMENTS_BYTES`].
    Run,
    /// [`PROJECT_ATTACHMENTS_BYTES`].
    Project,
}

/// What a run is made with, besides what it is asked to do.
#[derive(Default)]
pub(crate) struct Making {
    /// The session that it goes on with; none: a new one.
    pub(crate) session: Option<SessionId>,
    /// The words with which it was asked for.
    pub(crate) asked: Option<Asked>,
    /// How long its idempotency key is remembered.
    pub(crate) window: RepeatWindow,
    /// What comes with its task.
    pub(crate) attachments: Vec<NewAttachment>,
}

const ONE: &str = "select run_id, number, name, media_type, size_bytes, sha256 from attachment \
     where run_id = $1 and number = $2";

const PARTS: &str = "select run_id, content from attachment_part where run_id = $1 and attachment = $2 \
     order by number limit $3";

/// More than any attachment has, by [`caisson_domain::attachment::ATTACHMENT_BYTES`].
const PARTS_MOST: i64 = 100;

const NEXT: &str = "select coalesce(max(number) + 1, 0) from attachment where run_id = $1";

const OF_RUN: &str = "select cast(coalesce(sum(size_bytes), 0) as bigint) from attachment where run_id = $1";

const OF_SESSION: &str =
    "select cast(coalesce(sum(size_bytes), 0) as bigint) from attachment where session_id = $1";

const OF_PROJECT: &str =
    "select cast(coalesce(sum(size_bytes), 0) as bigint) from attachment where project_id = $1";

const PENDING: &str = "select cast(coalesce(sum(attachment.size_bytes), 0) as bigint) from attachment \
     join input on input.session_id = attachment.session_id and input.seq = attachment.input_seq \
     where attachment.run_id = $1 and input.state in ('accepted', 'held')";

const INSERT: &str = "insert into attachment \
     (run_id, number, session_id, project_id, input_seq, name, media_type, size_bytes, sha256, created_at_ms) \
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";

const INSERT_PART: &str = "insert into attachment_part (run_id, attachment, number, project_id, content) values ($1, $2, $3, $4, $5)";

/// The bytes of a session's attachments.
pub(crate) const DELETE_PARTS: &str = "delete from attachment_part \
     where run_id in (select attachment.run_id from attachment where attachment.session_id = $1)";

/// The same, some of them.
pub(crate) const DELETE_SOME_PARTS: &str = "delete from attachment_part where (run_id, attachment, number) in \
     (select part.run_id, part.attachment, part.number from attachment_part as part \
      join attachment on attachment.run_id = part.run_id and attachment.number = part.attachment \
      where attachment.session_id = $1 limit $2)";

pub(crate) const DELETE: &str = "delete from attachment where session_id = $1";

impl Store {
    /// Queues a run with attachments, in a new session or behind those of one.
    ///
    /// # Errors
    /// As [`Store::create_run`].
    /// # Cancel safety
    /// As [`Store::create_run`].
    pub async fn create_run_with(
        &self,
        new: NewRun,
        session: Option<SessionId>,
        attachments: Vec<NewAttachment>,
    ) -> Result<CreateRun, StoreError> {
        self.create(new, Making { session, attachments, ..Making::default() }).await
    }

    /// The bytes of all attachments of the session together.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn attachments_bytes(&self, session: &SessionId) -> Result<i64, StoreError> {
        Ok(sql::query_scalar(OF_SESSION).bind(session.as_str()).fetch_one(self.reader()).await?)
    }

    /// What is known of an attachment of the run. Whoever asks has checked that the run is the caller's.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn attachment(&self, run: &RunId, number: i64) -> Result<Option<Attachment>, StoreError> {
        let row = sql::query(ONE).bind(run.as_str()).bind(number).fetch_optional(self.reader()).await?;
        row.as_ref().map(attachment).transpose()
    }

    /// An attachment of the run with its bytes, at most [`caisson_domain::attachment::ATTACHMENT_BYTES`]. Whoever asks has checked
    /// that the run is the caller's.
    ///
    /// # Errors
    /// As every read; [`StoreError::Corrupt`] if it is not what was stored.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn read_attachment(
        &self,
        run: &RunId,
        number: i64,
    ) -> Result<Option<(Attachment, Vec<u8>)>, StoreError> {
        let Some(known) = self.attachment(run, number).await? else { return Ok(None) };
        let rows = sql::query(PARTS)
            .bind(run.as_str())
            .bind(number)
            .bind(PARTS_MOST)
            .fetch_all(self.reader())
            .await?;
        let corrupt = |why: String| StoreError::corrupt(format!("attachment {number} of {run}"), why);
        let mut content = Vec::with_capacity(usize::try_from(known.size_bytes).unwrap_or(0));
        for row in &rows {
            let part: &str = Columns::keyed("attachment_part", row, "run_id")?.get("content")?;
            STANDARD.decode_vec(part, &mut content).map_err(|error| corrupt(error.to_string()))?;
        }
        if hex::encode(Sha256::digest(&content)) != known.sha256 {
            return Err(corrupt("it is not what was stored".to_owned()));
        }
        Ok(Some((known, content)))
    }
}

/// Which bound some more attachments would pass; none if there is room. `run` is the one that has some already.
pub(crate) async fn full(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    run: Option<&RunId>,
    new: &[NewAttachment],
) -> Result<Option<AttachmentsFull>, StoreError> {
    if new.is_empty() {
        return Ok(None);
    }
    let more = bytes(new);
    if let Some(run) = run {
        let kept: i64 = sql::query_scalar(OF_RUN).bind(run.as_str()).fetch_one(&mut *tx.db).await?;
        if kept.saturating_add(more) > RUN_ATTACHMENTS_BYTES {
            return Ok(Some(AttachmentsFull::Run));
        }
    }
    let kept: i64 = sql::query_scalar(OF_PROJECT).bind(project.as_str()).fetch_one(&mut *tx.db).await?;
    Ok((kept.saturating_add(more) > PROJECT_ATTACHMENTS_BYTES).then_some(AttachmentsFull::Project))
}

/// How many bytes there are with those of the run's inputs that are not delivered yet.
pub(crate) async fn pending_with(
    tx: &mut Tx<'_>,
    run: &RunId,
    new: &[NewAttachment],
) -> Result<i64, StoreError> {
    if new.is_empty() {
        return Ok(0);
    }
    let pending: i64 = sql::query_scalar(PENDING).bind(run.as_str()).fetch_one(&mut *tx.db).await?;
    Ok(pending.saturating_add(bytes(new)))
}

fn bytes(new: &[NewAttachment]) -> i64 {
    new.iter().map(|new| new.what.size_bytes).fold(0, i64::saturating_add)
}

/// The next number of an attachment in the run.
pub(crate) async fn next(tx: &mut Tx<'_>, run: &RunId) -> Result<i64, StoreError> {
    Ok(sql::query_scalar(NEXT).bind(run.as_str()).fetch_one(&mut *tx.db).await?)
}

/// Gives attachments their numbers from `first` on; what is known of each.
pub(crate) fn numbered(new: &[NewAttachment], first: i64) -> Vec<Attachment> {
    (first..).zip(new).map(|(number, new)| Attachment { number, ..new.what.clone() }).collect()
}

/// The bytes of an attachment as its rows have them.
pub(crate) struct Encoded(Vec<String>);

/// Makes the rows' texts of attachments, for [`insert`]: before the transaction, since others wait for that one.
pub(crate) fn encoded(new: &[NewAttachment]) -> Vec<Encoded> {
    let parts = |new: &NewAttachment| {
        new.content.chunks(ATTACHMENT_PART_BYTES).map(|part| STANDARD.encode(part)).collect()
    };
    new.iter().map(|new| Encoded(parts(new))).collect()
}

/// Keeps attachments of a run that is there, with the numbers that they were given.
pub(crate) async fn insert(
    tx: &mut Tx<'_>,
    run: &Run,
    input: Option<i64>,
    (numbered, encoded): (&[Attachment], &[Encoded]),
) -> Result<(), StoreError> {
    for (what, Encoded(parts)) in numbered.iter().zip(encoded) {
        sql::query(INSERT)
            .bind(run.id.as_str())
            .bind(what.number)
            .bind(run.session.as_str())
            .bind(run.project.as_str())
            .bind(input)
            .bind(what.name.as_str())
            .bind(what.media_type.as_deref())
            .bind(what.size_bytes)
            .bind(what.sha256.as_str())
            .bind(tx.now_ms)
            .execute(&mut *tx.db)
            .await?;
        for (number, part) in (0_i64..).zip(parts) {
            sql::query(INSERT_PART)
                .bind(run.id.as_str())
                .bind(what.number)
                .bind(number)
                .bind(run.project.as_str())
                .bind(part.as_str())
                .execute(&mut *tx.db)
                .await?;
        }
    }
    Ok(())
}

fn attachment(row: &Row) -> Result<Attachment, StoreError> {
    let columns = Columns::keyed("attachment", row, "run_id")?;
    let media_type: Option<String> = columns.get("media_type")?;
    let kind = if media_type.is_some() { AttachmentKind::Image } else { AttachmentKind::File };
    Ok(Attachment {
        number: columns.get("number")?,
        name: columns.get("name")?,
        kind,
        media_type,
        size_bytes: columns.get("size_bytes")?,
        sha256: columns.get("sha256")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_no_more_than_a_part_of_an_attachment() {
        for (bytes, wanted) in [(0, 0), (1, 1), (ATTACHMENT_PART_BYTES, 1), (ATTACHMENT_PART_BYTES + 1, 2)] {
            let new = NewAttachment::new("a", None, vec![7; bytes]);
            let encoded = encoded(std::slice::from_ref(&new));
            let Encoded(parts) = &encoded[0];
            assert_eq!((encoded.len(), parts.len()), (1, wanted), "{bytes}");
            let content: Vec<u8> = parts.iter().flat_map(|part| STANDARD.decode(part).unwrap()).collect();
            assert_eq!(content, new.content);
        }
    }
}
