//! Turns at renewing a credential's access token: of all servers on a database one at a time has it, for a bounded time.
//!
//! An endpoint may take a refresh token once only, and take a second try for a theft. A server that dies in its turn keeps the
//! others waiting until the turn ends by itself; one that comes late may still write what it was given, since what is
//! written is told by the credential's version alone.

use super::Credential;
use crate::database::sql;
use crate::rows::Columns;
use crate::{Store, StoreError, Topic};

/// Longest time that a turn may be asked for, in milliseconds.
pub const RENEWAL_MS_MOST: i64 = 10 * 60 * 1000;

/// What became of asking for the turn at a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenewalTurn {
    /// It is the caller's.
    Own {
        /// Its number, by which it is given back.
        epoch: i64,
    },
    /// Another server has it.
    Others {
        /// For so long at most, in milliseconds; 0 to [`RENEWAL_MS_MOST`].
        left_ms: i64,
    },
    /// The credential was renewed, rotated or removed since it was opened: whoever asks opens it again.
    Passed,
}

/// A turn that ends later than any may is one of before the clock was set back.
const TAKE: &str = "update credential set renewal_epoch = renewal_epoch + 1, renewing_until_ms = $5 \
     where project_id = $1 and id = $2 and version = $3 \
     and (renewing_until_ms is null or renewing_until_ms <= $4 or renewing_until_ms > $6) returning renewal_epoch";

const TURN: &str =
    "select id, renewing_until_ms from credential where project_id = $1 and id = $2 and version = $3";

const END: &str = "update credential set renewing_until_ms = null \
     where project_id = $1 and id = $2 and renewal_epoch = $3 and renewing_until_ms is not null";

impl Store {
    /// Asks for the turn at renewing the access token that `seen` was opened with, for `turn_ms` by the database's clock, at most
    /// [`RENEWAL_MS_MOST`]. It ends with [`Store::renew_credential`], [`Store::end_renewal`], a rotation, or by itself.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have taken the turn, which then ends by itself.
    pub async fn take_renewal(&self, seen: &Credential, turn_ms: i64) -> Result<RenewalTurn, StoreError> {
        let mut tx = self.begin().await?;
        let taken: Option<i64> = sql::query_scalar(TAKE)
            .bind(seen.project.as_str())
            .bind(seen.id.as_str())
            .bind(seen.version)
            .bind(tx.now_ms)
            .bind(tx.now_ms.saturating_add(turn_ms.clamp(0, RENEWAL_MS_MOST)))
            .bind(tx.now_ms.saturating_add(RENEWAL_MS_MOST))
            .fetch_optional(&mut *tx.db)
            .await?;
        if let Some(epoch) = taken {
            tx.commit().await?;
            return Ok(RenewalTurn::Own { epoch });
        }
        let row = sql::query(TURN)
            .bind(seen.project.as_str())
            .bind(seen.id.as_str())
            .bind(seen.version)
            .fetch_optional(&mut *tx.db)
            .await?;
        let until_ms: Option<Option<i64>> =
            row.map(|row| Columns::of("credential", &row)?.get("renewing_until_ms")).transpose()?;
        let now_ms = tx.now_ms;
        tx.rollback().await?;
        Ok(match until_ms {
            None => RenewalTurn::Passed,
            Some(until_ms) => {
                let left_ms = until_ms.unwrap_or(now_ms).saturating_sub(now_ms);
                RenewalTurn::Others { left_ms: left_ms.clamp(0, RENEWAL_MS_MOST) }
            }
        })
    }

    /// Ends the turn `epoch` of which nothing came, so that others need not wait for its end.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable, and it ends by itself otherwise.
    pub async fn end_renewal(&self, credential: &Credential, epoch: i64) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sql::query(END)
            .bind(credential.project.as_str())
            .bind(credential.id.as_str())
            .bind(epoch)
            .execute(&mut *tx.db)
            .await?;
        tx.wake(Topic::Credentials);
        tx.commit().await
    }
}
