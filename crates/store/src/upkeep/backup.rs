//! A copy of a database file, made while servers write to it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::StoreError;
use crate::opening::make_private_file;

/// What the copy is called until it is whole.
const PARTIAL: &str = "partial";

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file is there already, and is not touched.
    #[error("\"{0}\" is there already; name a new file")]
    Exists(PathBuf),
    /// It cannot be made.
    #[error("\"{path}\" cannot be written", path = .0.display())]
    Unwritable(PathBuf, #[source] io::Error),
    /// The database cannot be read, or the disk is full.
    #[error("the database cannot be copied")]
    Failed(#[source] StoreError),
    /// What was written is not sound.
    #[error("the copy is damaged: {0}")]
    Damaged(String),
}

const COPY: &str = "vacuum into $1";
const LOOK: &str = "select integrity_check from pragma_integrity_check limit 1";
const SOUND: &str = "ok";

/// Copies the database file `from` to the new file `to` (mode 0600), as it is at one instant, whoever writes to it meanwhile,
/// looks whether the copy is sound, and answers its size in bytes. The file has its name only once it is whole and on the
/// disk.
///
/// # Errors
/// [`BackupError`]; what was begun is removed.
/// # Cancel safety
/// A dropped call may leave `to` with `.partial` behind its name, which the next one replaces.
pub async fn backup_file(from: &Path, to: &Path) -> Result<u64, BackupError> {
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let mut name = to.as_os_str().to_owned();
    name.push(".");
    name.push(PARTIAL);
    let partial = PathBuf::from(name);
    let made = write(from, &partial).await.and_then(|()| {
        let unwritable = |error| BackupError::Unwritable(to.to_owned(), error);
        let size = publish(&partial, to).map_err(unwritable)?;
        Ok(size)
    });
    if made.is_err() {
        fs::remove_file(&partial).ok();
    }
    made
}

async fn write(from: &Path, partial: &Path) -> Result<(), BackupError> {
    let unwritable = |error| BackupError::Unwritable(partial.to_owned(), error);
    match fs::remove_file(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritable(error)),
        Ok(()) | Err(_) => {}
    }
    // SQLite fills an empty file that is there, and leaves it its mode.
    make_private_file(partial).map_err(unwritable)?;
    let text = partial.to_str().ok_or_else(|| unwritable(io::ErrorKind::InvalidFilename.into()))?;
    let failed = |error: sqlx::Error| BackupError::Failed(error.into());
    let options = SqliteConnectOptions::new().filename(from).create_if_missing(false);
    let mut source = options.connect().await.map_err(failed)?;
    let copied = sqlx::query(COPY).bind(text).execute(&mut source).await;
    source.close().await.map_err(failed)?;
    copied.map_err(failed)?;
    let mut copy =
        SqliteConnectOptions::new().filename(partial).read_only(true).connect().await.map_err(failed)?;
    let found: String = sqlx::query_scalar(LOOK).fetch_one(&mut copy).await.map_err(failed)?;
    copy.close().await.map_err(failed)?;
    if found == SOUND { Ok(()) } else { Err(BackupError::Damaged(found)) }
}

fn publish(partial: &Path, to: &Path) -> io::Result<u64> {
    let file = File::open(partial)?;
    file.sync_all()?;
    // Not a rename: that would replace a file that came meanwhile.
    fs::hard_link(partial, to)?;
    fs::remove_file(partial)?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file.metadata()?.len())
}
