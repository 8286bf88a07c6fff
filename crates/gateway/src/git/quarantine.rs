//! Where a push waits: a bare repository of its own with nothing else in it, until it was looked at.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use caisson_store::BoxError;
use futures_util::stream::{self, StreamExt};
use nix::sys::statvfs::statvfs;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};

use crate::body::Chunks;

/// The pack, as the sandbox sent it, from the quarantine.
pub(super) const PACK: &str = "objects/pack/pushed.pack";
/// What a pack begins with: its name, its version and how many objects it has (gitformat-pack(5)).
const HEADER_BYTES: usize = 12;
/// The server's mask of modes does not count: git may be somebody else than the server.
const FILE_MODE: u32 = 0o644;
/// Written at once, in bytes.
const WRITE_BYTES: usize = 256 * 1024;
/// How often the free disk space is looked at, in bytes written.
const LOOK_BYTES: u64 = 16 * 1024 * 1024;
/// Read at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// The quarantines of a server.
#[derive(Debug)]
pub(super) struct Quarantines {
    root: PathBuf,
    owner: Option<u32>,
    made: AtomicU64,
}

/// One of them. It is to be removed; the next start removes what was left.
#[derive(Debug)]
pub(super) struct Quarantine {
    pub(super) directory: PathBuf,
}

/// Why a pack was not received.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("what follows the commands is no pack")]
    NoPack,
    #[error("the pack has more objects than {0}")]
    TooManyObjects(u32),
    #[error("the push is larger than its bound")]
    TooLarge,
    /// By the sender's fault or by time.
    #[error("the push broke off")]
    Broken(#[source] BoxError),
    #[error("the server has too little disk space to receive the push")]
    DiskFull,
    #[error("the server's disk could not be written")]
    Disk(#[from] io::Error),
}

/// Bounds of receiving.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) bytes: u64,
    pub(super) objects: u32,
    pub(super) free_bytes: u64,
}

impl Quarantines {
    /// Makes the directory and removes what an earlier server left in it.
    pub(super) fn prepare(root: PathBuf, owner: Option<u32>) -> io::Result<Self> {
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        DirBuilder::new().mode(0o700).recursive(true).create(&root)?;
        // Whoever gave root up works in there.
        if let Some(owner) = owner {
            chown(&root, Some(owner), Some(owner))?;
        }
        Ok(Self { root, owner, made: AtomicU64::new(0) })
    }

    /// A new one for objects whose ids have `digits` digits.
    pub(super) async fn make(&self, digits: usize) -> io::Result<Quarantine> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let (directory, owner) = (self.root.join(number.to_string()), self.owner);
        let quarantine = Quarantine { directory: directory.clone() };
        let made = tokio::task::spawn_blocking(move || make_repository(&directory, digits, owner));
        made.await.map_err(io::Error::other)??;
        Ok(quarantine)
    }

    /// A further repository inside a quarantine.
    pub(super) async fn make_within(
        &self,
        quarantine: &Quarantine,
        name: &str,
        digits: usize,
    ) -> io::Result<PathBuf> {
        let (directory, owner) = (quarantine.directory.join(name), self.owner);
        let made = directory.clone();
        tokio::task::spawn_blocking(move || make_repository(&made, digits, owner))
            .await
            .map_err(io::Error::other)??;
        Ok(directory)
    }
}

/// What `git init` would make, as little of it as git needs.
fn make_repository(directory: &Path, digits: usize, owner: Option<u32>) -> io::Result<()> {
    let format = if digits == 64 {
        "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n"
    } else {
        "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"
    };
    for part in ["", "objects", "objects/pack", "refs"] {
        let path = directory.join(part);
        DirBuilder::new().mode(0o700).create(&path)?;
        if let Some(owner) = owner {
            chown(&path, Some(owner), Some(owner))?;
        }
    }
    write(&directory.join("HEAD"), "ref: refs/heads/main\n")?;
    write(&directory.join("config"), format)
}

/// A file that git can read whoever it is; nobody else passes the directory.
fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(FILE_MODE))
}

impl Quarantine {
    /// Removes it with everything in it.
    pub(super) async fn remove(self) {
        let directory = self.directory;
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(directory)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(error = %error, "a quarantine could not be removed; the next start does it");
        }
    }

    /// The pack as it was received.
    pub(super) async fn pack(&self) -> io::Result<Chunks> {
        let file = File::open(self.directory.join(PACK)).await?;
        Ok(stream::unfold(Some(file), |state| async move {
            let mut file = state?;
            let mut piece = Vec::with_capacity(READ_BYTES);
            match (&mut file).take(READ_BYTES as u64).read_to_end(&mut piece).await {
                Ok(0) => None,
                Ok(_) => Some((Ok(Bytes::from(piece)), Some(file))),
                Err(error) => Some((Err(error.into()), None)),
            }
        })
        .boxed())
    }
}

/// Writes a pack to `path`; answers its length in bytes.
///
/// # Errors
/// [`ReceiveError`]; then there may be a part of it, and more to be read.
pub(super) async fn receive(chunks: &mut Chunks, path: &Path, room: Room) -> Result<u64, ReceiveError> {
    has_space(path, room)?;
    let file = File::create(path).await?;
    file.set_permissions(Permissions::from_mode(FILE_MODE)).await?;
    let mut file = BufWriter::with_capacity(WRITE_BYTES, file);
    let (mut bytes, mut looked) = (0, 0);
    let mut header = Vec::with_capacity(HEADER_BYTES);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(ReceiveError::Broken)?;
        if header.len() < HEADER_BYTES {
            header.extend(chunk.iter().take(HEADER_BYTES - header.len()));
            check_header(&header, room)?;
        }
        bytes += chunk.len() as u64;
        if bytes > room.bytes {
            return Err(ReceiveError::TooLarge);
        }
        if bytes - looked > LOOK_BYTES {
            looked = bytes;
            has_space(path, room)?;
        }
        file.write_all(&chunk).await?;
    }
    if header.len() < HEADER_BYTES {
        return Err(ReceiveError::NoPack);
    }
    file.flush().await?;
    Ok(bytes)
}

/// Looks at as much of the header as is there.
fn check_header(header: &[u8], room: Room) -> Result<(), ReceiveError> {
    if !b"PACK\0\0\0".starts_with(&header[..header.len().min(7)]) {
        return Err(ReceiveError::NoPack);
    }
    let Some((_, count)) = header.split_last_chunk::<4>().filter(|_| header.len() == HEADER_BYTES) else {
        return Ok(());
    };
    if u32::from_be_bytes(*count) > room.objects {
        return Err(ReceiveError::TooManyObjects(room.objects));
    }
    Ok(())
}

fn has_space(path: &Path, room: Room) -> Result<(), ReceiveError> {
    let space = statvfs(path.parent().unwrap_or(path)).map_err(io::Error::from)?;
    let free = space.blocks_available().saturating_mul(space.fragment_size());
    if free < room.free_bytes { Err(ReceiveError::DiskFull) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { bytes: 100, objects: 3, free_bytes: 0 };

    fn pack(objects: u8, rest: usize) -> Vec<u8> {
        [b"PACK\0\0\0\x02\0\0\0", &[objects][..], &vec![b'x'; rest]].concat()
    }

    async fn received(bytes: &[u8], size: usize, room: Room) -> Result<u64, ReceiveError> {
        let place = tempfile::tempdir().unwrap();
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let path = place.path().join("p");
        let received = receive(&mut stream::iter(pieces).boxed(), &path, room).await?;
        assert_eq!(fs::read(&path).unwrap(), bytes);
        Ok(received)
    }

    #[tokio::test]
    async fn a_pack_is_received_up_to_its_bounds_however_it_is_cut() {
        for size in [1, 5, 12, 1000] {
            assert_eq!(received(&pack(3, 88), size, ROOM).await.unwrap(), 100);
            let large = received(&pack(3, 89), size, ROOM).await;
            assert!(matches!(large, Err(ReceiveError::TooLarge)), "{size}");
            let many = received(&pack(4, 1), size, ROOM).await;
            assert!(matches!(many, Err(ReceiveError::TooManyObjects(3))), "{size}");
            for bad in [&b""[..], b"PACK", b"PACKAGE of something", b"0000"] {
                assert!(matches!(received(bad, size, ROOM).await, Err(ReceiveError::NoPack)), "{bad:?}");
            }
        }
        let full = received(&pack(1, 1), 5, Room { free_bytes: u64::MAX, ..ROOM }).await;
        assert!(matches!(full, Err(ReceiveError::DiskFull)));
    }

    #[tokio::test]
    async fn what_an_earlier_server_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("quarantine");
        let quarantines = Quarantines::prepare(directory.clone(), None).unwrap();
        let (first, second) = (quarantines.make(40).await.unwrap(), quarantines.make(64).await.unwrap());
        assert!(fs::read_to_string(second.directory.join("config")).unwrap().contains("sha256"));
        first.remove().await;
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        Quarantines::prepare(directory.clone(), None).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }
}
