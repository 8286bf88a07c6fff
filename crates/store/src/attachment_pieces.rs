//! An attachment, read piece by piece: whoever gives it to a slow reader holds one piece of it, and no place that others wait for.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_domain::attachment::Attachment;
use caisson_domain::id::RunId;
use sha2::{Digest, Sha256};

use crate::attachments::ATTACHMENT_PART_BYTES;
use crate::database::sql;
use crate::rows::Columns;
use crate::{Store, StoreError};

/// Longest piece, in bytes.
pub const ATTACHMENT_PIECE_BYTES: usize = 48 * 1024;

// A row holds whole pieces, and each is whole groups of base64.
const _: () = assert!(ATTACHMENT_PART_BYTES.is_multiple_of(ATTACHMENT_PIECE_BYTES));
const _: () = assert!(ATTACHMENT_PIECE_BYTES.is_multiple_of(3));

/// The placeholders have a type of their own, since that of the function's is narrower.
const PIECE: &str = "select run_id, substr(content, cast(cast($4 as bigint) as integer), cast(cast($5 as bigint) as integer)) as content \
     from attachment_part where run_id = $1 and attachment = $2 and number = $3";

/// An attachment that is being read.
#[derive(Debug)]
pub struct AttachmentPieces {
    store: Store,
    run: RunId,
    known: Attachment,
    read_bytes: usize,
    hash: Sha256,
}

impl Store {
    /// An attachment of the run, to be read piece by piece. Whoever asks has checked that the run is the caller's.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn attachment_pieces(
        &self,
        run: &RunId,
        number: i64,
    ) -> Result<Option<AttachmentPieces>, StoreError> {
        let known = self.attachment(run, number).await?;
        Ok(known.map(|known| AttachmentPieces {
            store: self.clone(),
            run: run.clone(),
            known,
            read_bytes: 0,
            hash: Sha256::new(),
        }))
    }
}

impl AttachmentPieces {
    /// What is known of it.
    #[must_use]
    pub const fn what(&self) -> &Attachment {
        &self.known
    }

    /// The next [`ATTACHMENT_PIECE_BYTES`], fewer at the end; none behind it. The last piece comes only if all of them together are
    /// what was stored.
    ///
    /// # Errors
    /// As every read; [`StoreError::Corrupt`] if it is not what was stored, or is gone.
    /// # Cancel safety
    /// Safe: a piece that was not answered is read again.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let size_bytes = usize::try_from(self.known.size_bytes).unwrap_or(0);
        if self.read_bytes >= size_bytes {
            // One without bytes has no piece that could be looked at.
            return Ok(None);
        }
        let piece = self.read().await?;
        let wanted = (size_bytes - self.read_bytes).min(ATTACHMENT_PIECE_BYTES);
        if piece.len() != wanted {
            return Err(self.corrupt(format!("{} bytes are there where {wanted} were stored", piece.len())));
        }
        let mut hash = self.hash.clone();
        hash.update(&piece);
        let is_last = self.read_bytes + piece.len() == size_bytes;
        if is_last && hex::encode(hash.clone().finalize()) != self.known.sha256 {
            return Err(self.corrupt("it is not what was stored"));
        }
        self.hash = hash;
        self.read_bytes += piece.len();
        Ok(Some(piece))
    }

    async fn read(&self) -> Result<Vec<u8>, StoreError> {
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let row = sql::query(PIECE)
            .bind(self.run.as_str())
            .bind(self.known.number)
            .bind(number(self.read_bytes / ATTACHMENT_PART_BYTES))
            .bind(number(self.read_bytes % ATTACHMENT_PART_BYTES / 3 * 4 + 1))
            .bind(number(ATTACHMENT_PIECE_BYTES / 3 * 4))
            .fetch_optional(self.store.reader())
            .await?;
        let row = row.ok_or_else(|| self.corrupt("a part of it is gone"))?;
        let text: &str = Columns::keyed("attachment_part", &row, "run_id")?.get("content")?;
        STANDARD.decode(text).map_err(|error| self.corrupt(error.to_string()))
    }

    fn corrupt(&self, why: impl Into<crate::BoxError>) -> StoreError {
        StoreError::corrupt(format!("attachment {} of {}", self.known.number, self.run), why)
    }
}
