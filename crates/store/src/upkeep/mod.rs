//! What an operator does to a whole database: look whether it is sound, copy it, keep a copy of it.

mod backup;
mod check;
mod copy;
mod tables;

pub use backup::{BackupError, backup_file};
pub use check::{CHECK_FAULTS, CheckPart, StoredFile};
pub use copy::{COPY_BATCH_BYTES, COPY_BATCH_ROWS, CopyError, TableCopied, copy_to_postgres};
