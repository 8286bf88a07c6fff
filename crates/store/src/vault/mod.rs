//! The master key, what it wraps, and how it is replaced.
//!
//! A credential's secret is sealed under a random data key of its own; data keys are wrapped by one master key, which
//! lies in a file outside the database. The database knows that key's id, so that a lost or wrong file is told as such.

mod file;
mod key;
mod rekey;
mod seal;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::database::{Tx, sql};
use crate::{Store, StoreError};

pub use file::MasterKeyFile;
pub use rekey::{RekeyStep, Rekeyed};

pub(crate) use key::MasterKey;
pub(crate) use seal::{Fresh, Label, Sealed, open, seal};

use file::Keys;

/// Why the master key cannot be had, by what an operator can do.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The store was given no master key file.
    #[error("this store was opened without a master key")]
    Absent,
    /// There is no file, and none may be made in its place.
    #[error("the master key file \"{}\" is missing; make one with `openssl rand -hex 32` and mode 0600", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// There is no file, but credentials that were sealed with it.
    #[error(
        "the master key file \"{}\" is missing, and {credentials} credentials were sealed with the key that it held; \
         restore it from a backup, give the configuration that names another file (CAISSON_CONFIG), or remove the credentials \
         (`caisson credential list`, `caisson credential remove`)",
        path.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// How many credentials are lost with it.
        credentials: i64,
    },
    /// The file holds another key than the one the credentials were sealed with.
    #[error(
        "the master key file \"{}\" holds another key than the one that the credentials were sealed with (key {wanted}); \
         restore the right file from a backup, give the configuration that names another file (CAISSON_CONFIG), or remove the \
         credentials (`caisson credential list`, `caisson credential remove`)",
        path.display()
    )]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The id of the key that is needed.
        wanted: String,
    },
    /// Others than its owner may read or write the file.
    #[error(
        "the master key file \"{}\" has mode {mode:04o}, so that others can reach it; run `chmod 600` on it, and `caisson credential rekey` if they might have read it",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold a key.
    #[error(
        "the master key file \"{}\" does not hold 64 hexadecimal digits; restore it from a backup",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("the master key file \"{}\" cannot be {what}", path.display())]
    Io {
        /// `read` or `written`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process replaces the master key now.
    #[error("another process replaces the master key \"{}\"; wait until it has ended", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// A data key cannot be unwrapped, so it was changed, or moved from another credential.
    #[error("the credential {id} was damaged in the database; remove it and add it again")]
    Damaged {
        /// The credential.
        id: String,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for MasterKeyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The master key as this process knows it. A copy is kept in memory, and read again from the file when the database
/// names a key that is not among them: so a running server follows a key that another process replaced.
#[derive(Debug, Default)]
pub(crate) struct Keyring(Mutex<Option<Known>>);

#[derive(Debug, Clone)]
struct Known {
    file: MasterKeyFile,
    keys: Keys,
}

impl Keyring {
    fn known(&self) -> Result<Known, MasterKeyError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone().ok_or(MasterKeyError::Absent)
    }

    fn set(&self, file: MasterKeyFile, keys: Keys) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Known { file, keys });
    }
}

const ACTIVE: &str = "select key_id from master_key where slot = 1";

const FIRST: &str = "insert into master_key (slot, key_id) values (1, $1) \
     on conflict (slot) do update set key_id = excluded.key_id \
     where not exists (select 1 from credential)";

const COUNT: &str = "select count(*) from credential";

impl Store {
    /// Gives the store its master key: reads the file, or makes one if it may and nothing was sealed yet. A replacement
    /// that was cut off after it took effect is ended.
    ///
    /// Without it, credentials can be listed and removed and nothing else.
    ///
    /// # Errors
    /// [`MasterKeyError`], which says what to do.
    /// # Cancel safety
    /// Safe: a file that was made is used by the next call.
    pub async fn unlock(&self, file: MasterKeyFile) -> Result<(), MasterKeyError> {
        let mut keys = read(&file).await?;
        let mut active = self.usable_key(&file, &keys).await?;
        if active.is_none() {
            if keys.current.is_none() {
                keys = make(&file, self.shared.random.bytes(), self.shared.random.bytes()).await?;
            }
            active = Some(self.adopt_key(&file, &keys).await?);
        }
        if let Some(next) = keys.next.as_ref().filter(|next| Some(next.id()) == active.as_deref()) {
            let id = next.id().to_owned();
            let ending = file.clone();
            // Whoever holds the lock ends it by itself.
            if blocking(&file, move || ending.end_replacement(&id)).await? {
                tracing::info!("ended a replacement of the master key that had been cut off");
                keys = read(&file).await?;
            }
        }
        self.shared.keyring.set(file, keys);
        Ok(())
    }

    /// Looks whether [`Store::unlock`] would find its key, and makes nothing: `false` if one would be made.
    ///
    /// # Errors
    /// As [`Store::unlock`].
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn check_master_key(&self, file: &MasterKeyFile) -> Result<bool, MasterKeyError> {
        let keys = read(file).await?;
        if self.usable_key(file, &keys).await?.is_some() || keys.current.is_some() {
            return Ok(true);
        }
        if file.is_made() { Ok(false) } else { Err(MasterKeyError::Missing { path: file.path().to_owned() }) }
    }

    /// The id of the key in use, if the files have it; none if nothing was sealed, so that any key will do.
    async fn usable_key(&self, file: &MasterKeyFile, keys: &Keys) -> Result<Option<String>, MasterKeyError> {
        let Some(wanted) = self.active_key().await? else { return Ok(None) };
        if keys.find(&wanted).is_some() {
            return Ok(Some(wanted));
        }
        let credentials: i64 = sql::query_scalar(COUNT).fetch_one(self.reader()).await?;
        let path = file.path().to_owned();
        match (credentials, &keys.current) {
            (0, _) => Ok(None),
            (_, None) => Err(MasterKeyError::Lost { path, credentials }),
            (_, Some(_)) => Err(MasterKeyError::Wrong { path, wanted }),
        }
    }

    /// Writes down whose key the first credential will be sealed with.
    async fn adopt_key(&self, file: &MasterKeyFile, keys: &Keys) -> Result<String, MasterKeyError> {
        let missing = || MasterKeyError::Missing { path: file.path().to_owned() };
        let key = keys.current.as_ref().ok_or_else(missing)?;
        let mut tx = self.begin().await?;
        sql::query(FIRST).bind(key.id()).execute(&mut *tx.db).await?;
        let active: String = sql::query_scalar(ACTIVE).fetch_one(&mut *tx.db).await?;
        tx.commit().await?;
        if keys.find(&active).is_none() {
            return Err(MasterKeyError::Wrong { path: file.path().to_owned(), wanted: active });
        }
        Ok(active)
    }

    pub(crate) async fn active_key(&self) -> Result<Option<String>, StoreError> {
        Ok(sql::query_scalar(ACTIVE).fetch_optional(self.reader()).await?)
    }

    /// The master key with this id.
    pub(crate) async fn master_key(&self, id: &str) -> Result<Arc<MasterKey>, MasterKeyError> {
        let known = self.shared.keyring.known()?;
        if let Some(key) = known.keys.find(id) {
            return Ok(key);
        }
        let keys = read(&known.file).await?;
        let found = keys.find(id);
        let path = known.file.path().to_owned();
        self.shared.keyring.set(known.file, keys);
        found.ok_or_else(|| MasterKeyError::Wrong { path, wanted: id.to_owned() })
    }

    /// The master key that writes seal with. The transaction keeps a replacement away until it is committed.
    pub(crate) async fn sealing_key(&self, tx: &mut Tx<'_>) -> Result<Arc<MasterKey>, MasterKeyError> {
        let active: Option<String> = sql::query_scalar(ACTIVE).fetch_optional(&mut *tx.db).await?;
        self.master_key(&active.ok_or(MasterKeyError::Absent)?).await
    }
}

async fn read(file: &MasterKeyFile) -> Result<Keys, MasterKeyError> {
    let reading = file.clone();
    blocking(file, move || reading.read()).await
}

async fn make(file: &MasterKeyFile, key: [u8; 32], name: [u8; 8]) -> Result<Keys, MasterKeyError> {
    let making = file.clone();
    blocking(file, move || making.make(key, name)).await
}

/// Files are read and written where waiting for the disk holds nobody up.
async fn blocking<T: Send + 'static>(
    file: &MasterKeyFile,
    work: impl FnOnce() -> Result<T, MasterKeyError> + Send + 'static,
) -> Result<T, MasterKeyError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(MasterKeyError::Io { what: "read", path: file.path().to_owned(), source: error.into() })
    })
}
