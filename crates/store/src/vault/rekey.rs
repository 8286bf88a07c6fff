//! Replacing the master key, so that a death at any instant loses nothing.
//!
//! 1. The new key is written to a file of its own beside the old one, unless one is there from a replacement that was cut off.
//! 2. One transaction wraps every data key anew and writes down the new key's id. Before it everything opens with
//!    the old key, after it with the new one, and both are on the disk.
//! 3. The new key's file takes the old one's name.
//!
//! A running server finds an id that it does not know and reads the files again.

use caisson_domain::id::ProjectId;

use super::file::Replacing;
use super::{Label, MasterKey, MasterKeyError, MasterKeyFile, blocking, read, seal};
use crate::database::{Tx, sql};
use crate::rows::Columns;
use crate::{Actor, NewAudit, Store, audit};

/// Credentials that are wrapped anew by one statement's reading.
const BATCH: i64 = 200;

/// How far a replacement goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RekeyStep {
    /// The new key is on the disk.
    Written,
    /// Everything is wrapped by it.
    Wrapped,
    /// The old key is gone.
    Done,
}

/// What a replacement did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rekeyed {
    /// The id of the key in use, which is no secret.
    pub key_id: String,
    /// How many credentials were wrapped anew.
    pub credentials: u64,
}

const WRAPPED: &str = "select id, project_id, kind, settings, key_id, data_key from credential \
     where id > $1 order by id limit $2";

const REWRAP: &str = "update credential set key_id = $3, data_key = $4 where id = $1 and key_id = $2";

const ACTIVATE: &str = "update master_key set key_id = $2 where slot = 1 and key_id = $1";

impl Store {
    /// Makes a new master key and wraps every credential with it. One that was cut off is ended, however often.
    ///
    /// # Errors
    /// [`MasterKeyError`]; [`MasterKeyError::Damaged`] names a credential that must be removed first.
    /// # Cancel safety
    /// Safe: calling it again, or [`Store::unlock`], goes on where it was cut off.
    pub async fn rekey(&self) -> Result<Rekeyed, MasterKeyError> {
        self.rekey_until(RekeyStep::Done).await
    }

    /// Does a replacement up to a step and leaves it there, as a process that dies would: for tests.
    ///
    /// # Errors
    /// As [`Store::rekey`].
    /// # Cancel safety
    /// As [`Store::rekey`].
    #[doc(hidden)]
    pub async fn rekey_until(&self, last: RekeyStep) -> Result<Rekeyed, MasterKeyError> {
        let file = self.shared.keyring.known()?.file;
        let locking = file.clone();
        let replacing = blocking(&file, move || locking.replace()).await?;
        let keys = read(&file).await?;
        let active = self.active_key().await?.ok_or(MasterKeyError::Absent)?;
        let wrong = || MasterKeyError::Wrong { path: file.path().to_owned(), wanted: active.clone() };
        let old = keys.find(&active).ok_or_else(wrong)?;
        if keys.next.as_ref().is_some_and(|next| next.id() == active) {
            self.place_next(&file, replacing).await?;
            return Ok(Rekeyed { key_id: active, credentials: 0 });
        }
        let (bytes, name) = (self.shared.random.bytes(), self.shared.random.bytes());
        let making = file.clone();
        let (new, replacing) =
            blocking(&file, move || making.make_next(bytes, name, &replacing).map(|key| (key, replacing)))
                .await?;
        let key_id = new.id().to_owned();
        if last == RekeyStep::Written {
            return Ok(Rekeyed { key_id, credentials: 0 });
        }
        let mut tx = self.begin().await?;
        let credentials = wrap_all(&mut tx, &old, &new).await?;
        // Both the lock and the condition keep another replacement out.
        let moved = sql::query(ACTIVATE).bind(old.id()).bind(new.id()).execute(&mut *tx.db).await?;
        if moved.rows_affected() != 1 {
            tx.rollback().await?;
            return Err(MasterKeyError::Busy { path: file.path().to_owned() });
        }
        let project = ProjectId::default_project();
        let record = NewAudit::new(&project, Actor::Operator, "master_key.replace", &key_id);
        audit::write(&mut tx, &record).await?;
        tx.commit().await?;
        if last == RekeyStep::Done {
            self.place_next(&file, replacing).await?;
        }
        Ok(Rekeyed { key_id, credentials })
    }

    async fn place_next(&self, file: &MasterKeyFile, replacing: Replacing) -> Result<(), MasterKeyError> {
        let placing = file.clone();
        blocking(file, move || placing.put_next_in_place(&replacing)).await?;
        self.shared.keyring.set(file.clone(), read(file).await?);
        Ok(())
    }
}

/// Wraps every data key with the new master key.
async fn wrap_all(tx: &mut Tx<'_>, old: &MasterKey, new: &MasterKey) -> Result<u64, MasterKeyError> {
    let (mut after, mut count) = (String::new(), 0);
    loop {
        let rows = sql::query(WRAPPED).bind(after.as_str()).bind(BATCH).fetch_all(&mut *tx.db).await?;
        for row in &rows {
            let columns = Columns::of("credential", row)?;
            let id: &str = row.get("id")?;
            let label = Label {
                id,
                project: columns.get("project_id")?,
                kind: columns.get("kind")?,
                settings: columns.get("settings")?,
            };
            let damaged = |_| MasterKeyError::Damaged { id: id.to_owned() };
            let data_key = seal::rewrap((old, new), label, columns.get("data_key")?, tx.random());
            let changed = sql::query(REWRAP)
                .bind(id)
                .bind(old.id())
                .bind(new.id())
                .bind(data_key.map_err(damaged)?)
                .execute(&mut *tx.db)
                .await?;
            if changed.rows_affected() != 1 {
                return Err(damaged(seal::NotOpened));
            }
            count += 1;
            id.clone_into(&mut after);
        }
        if rows.len() < usize::try_from(BATCH).unwrap_or(usize::MAX) {
            return Ok(count);
        }
    }
}
