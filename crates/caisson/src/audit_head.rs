//! The signed head of the audit log: the end of the server's chain, kept in a file outside the database, so that whoever
//! cuts the log off or makes it anew is found out.
//!
//! The key is in the state directory and never in the database. The file goes forward only, and only from a head that
//! the log still agrees with: a tampered log keeps the last head that was right.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use caisson_domain::id::ServerId;
use caisson_store::{AuditHead, Store, Topic};
use nix::unistd::{AccessFlags, access};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// The key that signs heads: 32 random bytes as hexadecimal digits, mode 0600.
const KEY_FILE: &str = "audit_key";
/// Begins the bytes that are signed, so that the key signs nothing else.
const DOMAIN: &str = "caisson-audit-head-1";
/// Shortest time between two heads written by a server: many records make one head.
const HEAD_PAUSE: Duration = Duration::from_millis(200);
/// Longest time until a server looks for records that other processes wrote.
const HEAD_LOOK: Duration = Duration::from_secs(5);
/// Longest head file that is read, in bytes.
const HEAD_BYTES: u64 = 4096;

/// A head as it stands in its file: one JSON document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedHead {
    /// The server whose chain it is.
    pub chain: String,
    /// The place of the chain's last record.
    pub seq: i64,
    /// Its hash.
    pub hash: String,
    /// When it was signed, Unix ms.
    pub at_ms: i64,
    /// The public key, hexadecimal. It proves nothing: whoever checks needs to know which key to expect.
    pub public_key: String,
    /// Ed25519 over the fields above the key, hexadecimal.
    pub signature: String,
}

impl SignedHead {
    fn message(chain: &str, seq: i64, hash: &str, at_ms: i64) -> String {
        format!("{DOMAIN}\n{chain}\n{seq}\n{hash}\n{at_ms}\n")
    }

    /// What the head vouches for, if `public_key` signed it.
    ///
    /// # Errors
    /// Another key signed it, or it was changed.
    pub(crate) fn check(&self, public_key: &[u8]) -> anyhow::Result<AuditHead> {
        let message = Self::message(&self.chain, self.seq, &self.hash, self.at_ms);
        let signature = hex::decode(&self.signature).context("the head's signature is not hexadecimal")?;
        UnparsedPublicKey::new(&ED25519, public_key).verify(message.as_bytes(), &signature).map_err(
            |_| {
                anyhow::anyhow!(
                    "the head was not signed by this key: it was changed, or belongs to another server"
                )
            },
        )?;
        Ok(AuditHead { chain: self.chain.clone(), seq: self.seq, hash: self.hash.clone() })
    }

    /// Reads a head file; none if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is no head.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let size = match fs::metadata(path) {
            Ok(file) => file.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("\"{}\" cannot be read", path.display()));
            }
        };
        ensure!(size <= HEAD_BYTES, "\"{}\" is no head of an audit log: it is too long", path.display());
        let text =
            fs::read_to_string(path).with_context(|| format!("\"{}\" cannot be read", path.display()))?;
        let head = serde_json::from_str(&text)
            .with_context(|| format!("\"{}\" is no head of an audit log", path.display()))?;
        Ok(Some(head))
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut staged = tempfile::NamedTempFile::new_in(directory)?;
        writeln!(staged, "{}", serde_json::to_string(self)?)?;
        staged.as_file().sync_all()?;
        staged.persist(path)?;
        File::open(directory)?.sync_all()?;
        Ok(())
    }
}

/// Where the head is, and the key that signs it.
#[derive(Debug)]
pub(crate) struct HeadKeeper {
    server: ServerId,
    path: PathBuf,
    key_file: PathBuf,
    key: Ed25519KeyPair,
}

impl HeadKeeper {
    /// Reads the key, or makes it at the first start.
    ///
    /// # Errors
    /// The key cannot be read or made, or it is missing and a head is there that it signed.
    pub(crate) fn open(state_dir: &Path, path: &Path, server: &ServerId) -> anyhow::Result<Self> {
        let key_file = state_dir.join(KEY_FILE);
        if !key_file.exists() {
            if let Some(signed) = SignedHead::read(path)? {
                ensure_own(&signed.chain, server, path)?;
            }
            ensure!(
                !path.exists(),
                "\"{}\" is missing, but there is a head that it signed; put it back from a backup, or move \"{}\" \
                 away to begin with a new key",
                key_file.display(),
                path.display()
            );
            make_key(state_dir, &key_file)?;
        }
        let key = read_key(&key_file)?;
        Ok(Self { server: server.clone(), path: path.to_owned(), key_file, key })
    }

    /// Signs the end of the chain, if there are new records, and checks before that the log still has what the last head
    /// vouches for. One process at a time.
    ///
    /// # Errors
    /// The log does not agree with the last head, or a file cannot be read or written.
    /// # Cancel safety
    /// Safe: a head is written wholly or not at all.
    pub(crate) async fn keep(&self, store: &Store) -> anyhow::Result<()> {
        let key_file = self.key_file.clone();
        // Held until the head is written, so that a slower process does not put an older one in its place.
        let _turn = tokio::task::spawn_blocking(move || {
            let file = File::open(key_file)?;
            file.lock().map(|()| file)
        })
        .await?
        .context("the audit key cannot be locked")?;
        let last = self.last()?;
        let Some(head) = store.audit_head(&self.server).await? else {
            ensure!(
                last.is_none(),
                "the audit log is empty, but a head of it was signed; {}",
                after_restore(&self.path)
            );
            return Ok(());
        };
        if let Some(last) = last {
            if last == head {
                return Ok(());
            }
            let found = store.audit_hash(&self.server, last.seq).await?;
            if found.as_ref() != Some(&last.hash) {
                bail!(
                    "the audit log does not have record {} as it was signed; `caisson audit verify` tells more; {}",
                    last.seq,
                    after_restore(&self.path)
                );
            }
        }
        self.sign(&head, store.now_ms()).write(&self.path).with_context(|| {
            format!("the head of the audit log cannot be written to \"{}\"", self.path.display())
        })
    }

    /// The head in the file, if this server signed it.
    fn last(&self) -> anyhow::Result<Option<AuditHead>> {
        let Some(signed) = SignedHead::read(&self.path)? else { return Ok(None) };
        // Another server's is signed with another key, and nothing is wrong with it.
        ensure_own(&signed.chain, &self.server, &self.path)?;
        signed.check(self.key.public_key().as_ref()).map(Some)
    }

    fn sign(&self, head: &AuditHead, at_ms: i64) -> SignedHead {
        let message = SignedHead::message(&head.chain, head.seq, &head.hash, at_ms);
        SignedHead {
            chain: head.chain.clone(),
            seq: head.seq,
            hash: head.hash.clone(),
            at_ms,
            public_key: hex::encode(self.key.public_key().as_ref()),
            signature: hex::encode(self.key.sign(message.as_bytes()).as_ref()),
        }
    }

    /// Keeps the head up with the log until `cancel`; then once more, by [`HeadKeeper::keep_or_log`].
    pub(crate) async fn follow(&self, store: &Store, cancel: &CancellationToken) {
        let mut watch = store.watch(Topic::Audit);
        while !cancel.is_cancelled() {
            self.keep_or_log(store).await;
            tokio::select! {
                () = cancel.cancelled() => {}
                () = async {
                    tokio::time::sleep(HEAD_PAUSE).await;
                    watch.changed(HEAD_LOOK).await;
                } => {}
            }
        }
    }

    /// As [`HeadKeeper::keep`]; a failure is for the log, since the work itself was done.
    pub(crate) async fn keep_or_log(&self, store: &Store) {
        if let Err(fault) = self.keep(store).await {
            error!("the head of the audit log is not kept up: {fault:#}");
        }
    }
}

/// Servers that share a file would each find the other's head there, and write none.
fn ensure_own(chain: &str, server: &ServerId, path: &Path) -> anyhow::Result<()> {
    ensure!(
        chain == server.as_str(),
        "\"{}\" is the head of the server {chain}, and this one is {server}: give each server a file of its own (audit_head); \
         the head of an id that this state directory had before is to be kept elsewhere",
        path.display()
    );
    Ok(())
}

/// What to do where the head is ahead of the log, and that is as it should be.
fn after_restore(path: &Path) -> String {
    format!(
        "if an older backup of the database was restored, keep \"{}\" elsewhere, as evidence of what was lost, and move it \
         away from there: the next record makes a new head",
        path.display()
    )
}

/// Whether a head can be written to `path`. The state directory itself is made when it is needed.
///
/// # Errors
/// Its directory is not there, or is not this user's to write to.
pub(crate) fn check_place(state_dir: &Path, path: &Path) -> anyhow::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(
        directory == state_dir || access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
        "audit_head: no head can be written to \"{}\"; make or mount that directory for the server's user, or name another \
         place",
        directory.display()
    );
    Ok(())
}

/// Whether the log still has the record that the head names, for people; nothing is changed and no chain is walked.
///
/// # Errors
/// It does not, or there is no telling.
pub(crate) async fn look(
    (state_dir, path): (&Path, &Path),
    store: &Store,
    server: Option<&ServerId>,
) -> anyhow::Result<String> {
    check_place(state_dir, path)?;
    let Some(signed) = SignedHead::read(path)? else {
        let last = match server {
            Some(server) => store.audit_head(server).await?,
            None => None,
        };
        if let Some(last) = last {
            bail!(
                "the log has {} records and no head signs them; put the head back, from a backup or from where it was before \
                 audit_head named \"{}\"; the next record makes a new one",
                last.seq,
                path.display()
            );
        }
        return Ok("no head was signed yet; the next record makes one".to_owned());
    };
    if let Some(server) = server {
        ensure_own(&signed.chain, server, path)?;
    }
    let key = public_key(state_dir)?;
    let head = signed.check(&key.context("audit_key is missing; put it back from a backup")?)?;
    let server: ServerId = head.chain.parse()?;
    let found = store.audit_hash(&server, head.seq).await?;
    ensure!(
        found.as_ref() == Some(&head.hash),
        "the log does not have record {} as it was signed; `caisson audit verify` tells more; {}",
        head.seq,
        after_restore(path)
    );
    Ok(format!("signed up to record {}; `caisson audit verify` checks every record", head.seq))
}

/// The public key of a state directory: from the private one. None if there is none.
///
/// # Errors
/// The key cannot be read.
pub(crate) fn public_key(state_dir: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let file = state_dir.join(KEY_FILE);
    if !file.exists() {
        return Ok(None);
    }
    Ok(Some(read_key(&file)?.public_key().as_ref().to_vec()))
}

fn read_key(file: &Path) -> anyhow::Result<Ed25519KeyPair> {
    let text = fs::read_to_string(file).with_context(|| format!("\"{}\" cannot be read", file.display()))?;
    let seed = hex::decode(text.trim()).ok();
    seed.and_then(|seed| Ed25519KeyPair::from_seed_unchecked(&seed).ok()).with_context(|| {
        format!("\"{}\" does not hold an audit key; restore it from a backup", file.display())
    })
}

/// Makes the key, unless somebody else has just done so.
fn make_key(state_dir: &Path, file: &Path) -> anyhow::Result<()> {
    let seed: [u8; 32] = rand::random();
    // Temporary files have the mode 0600.
    let mut staged = tempfile::NamedTempFile::new_in(state_dir)?;
    staged.write_all(hex::encode(seed).as_bytes())?;
    staged.as_file().sync_all()?;
    match staged.persist_noclobber(file) {
        Err(fault) if fault.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(fault) => Err(fault.error).with_context(|| format!("\"{}\" cannot be made", file.display())),
        Ok(_) => {
            File::open(state_dir)?.sync_all()?;
            Ok(())
        }
    }
}

/// Makes the keeper; a log whose head cannot be kept is told of and does not keep a server from starting.
pub(crate) fn keeper_or_warn(state_dir: &Path, path: &Path, server: &ServerId) -> Option<HeadKeeper> {
    HeadKeeper::open(state_dir, path, server)
        .inspect_err(|fault| warn!("the audit log has no signed head: {fault:#}"))
        .ok()
}

#[cfg(test)]
#[path = "audit_head_tests.rs"]
mod tests;
