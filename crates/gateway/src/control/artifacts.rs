//! `PUT /artifacts/<run>/<name>`: a file to keep.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use caisson_domain::checks::{Check, stands};
use caisson_domain::id::RunId;
use caisson_domain::limits::{ARTIFACT_BYTES, ARTIFACT_NAME_BYTES, RUN_ARTIFACTS};
use caisson_domain::protocol::paths;
use caisson_domain::redact::Stream;
use caisson_store::{NewArtifact, PutArtifact};
use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::{own, redaction};
use crate::body::{self, Body, BodyFault};
use crate::problem::{Refusal, bare};
use crate::shared::Door;

/// Where uploads lie until they are whole. No run's directory and no artifact begins with a dot.
const INCOMING: &str = ".incoming";
/// Files and directories are for the server's user alone.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// Numbers the uploads of this process.
static UPLOADS: AtomicU64 = AtomicU64::new(0);

/// Makes the directories and forgets uploads that an earlier process did not finish.
pub(crate) async fn prepare(directory: &Path) -> io::Result<()> {
    let incoming = directory.join(INCOMING);
    match fs::remove_dir_all(&incoming).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    make_directory(&incoming).await
}

async fn make_directory(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).await
}

/// A file that is whole and on disk, under its temporary name.
struct Upload {
    path: PathBuf,
    size: i64,
    sha256: String,
    /// Secrets taken out.
    redacted: u64,
}

pub(super) async fn put(door: &Arc<Door>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let (run, name) = parse(request.uri().path())?;
    let (placed, is_own) = own::placed(door, &run).await?;
    if !is_own && stands(Check::ArtifactRun) {
        own::tell_other(door, "artifact", placed.as_ref(), &run).await;
        let message = "artifacts are kept for the run that is running in this sandbox and for no other";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "artifact_refused", message));
    }
    refuse_secret(door, &run, &name).await?;
    let announced = http_body::Body::size_hint(request.body()).lower();
    if announced > ARTIFACT_BYTES as u64 {
        return Err(Refusal::body(&BodyFault::TooLarge, ARTIFACT_BYTES as u64));
    }
    // One at a time, so that what is on its way is bounded too, and none passes the bound beside another.
    let slot = timeout(door.shared.bounds.store_hold, Arc::clone(&door.uploads).acquire_owned()).await;
    let Ok(Ok(_slot)) = slot else {
        let message = "another artifact of this sandbox is on its way; try again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    check_room(door, &run, &name, announced).await?;
    let number = UPLOADS.fetch_add(1, Ordering::Relaxed);
    let path = door.shared.artifacts_dir.join(INCOMING).join(number.to_string());
    let kept = match receive(door, request.into_body(), path.clone()).await {
        Ok(upload) => {
            if upload.redacted > 0 {
                redaction::alarm(door, Some(&run), &format!("artifact {name}")).await;
            }
            keep(door, &run, name, upload).await
        }
        Err(refusal) => Err(refusal),
    };
    if kept.is_err() {
        discard(&path).await;
    }
    kept.map(|()| bare(StatusCode::NO_CONTENT))
}

/// Refuses a name that would bring a live secret to disk and into the record. The shim's names are fixed, so no work is lost.
async fn refuse_secret(door: &Door, run: &RunId, name: &str) -> Result<(), Refusal> {
    if matches!(door.secrets.redactor().text(name), Cow::Borrowed(_)) {
        return Ok(());
    }
    redaction::alarm(door, Some(run), "the name of an artifact").await;
    let message =
        "the artifact's name has a live credential of the server in it, and nothing is kept under it";
    Err(Refusal::new(StatusCode::BAD_REQUEST, "artifact_name", message))
}

/// Refuses an artifact with which the run would have more bytes than its bound.
async fn check_room(door: &Door, run: &RunId, name: &str, bytes: u64) -> Result<(), Refusal> {
    let kept = door.shared.store.artifacts(run).await.map_err(|error| Refusal::store(&error))?;
    let others = kept.iter().filter(|artifact| artifact.name != name);
    let others: u64 = others.map(|artifact| u64::try_from(artifact.size_bytes).unwrap_or(0)).sum();
    let bound = door.shared.bounds.run_artifact_bytes;
    if others.saturating_add(bytes) <= bound {
        return Ok(());
    }
    let message = format!("the artifacts of the run would be larger than {bound} bytes together; keep less");
    Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "artifacts_full", message))
}

/// The run and the name in a path that is not decoded: a name that would need it is refused.
fn parse(path: &str) -> Result<(RunId, String), Refusal> {
    let rest = path.strip_prefix(paths::ARTIFACTS).and_then(|rest| rest.strip_prefix('/'));
    let (run, name) = rest.and_then(|rest| rest.split_once('/')).ok_or_else(Refusal::not_found)?;
    let run = run.parse().map_err(|_| Refusal::bad_request("the path does not name a run"))?;
    let fits = (1..=ARTIFACT_NAME_BYTES).contains(&name.len()) && !name.starts_with('.');
    if !stands(Check::ArtifactName) {
        return Ok((run, name.to_owned()));
    }
    if !fits || !name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'\\' | b'%')) {
        let message = format!(
            "an artifact's name is 1 to {ARTIFACT_NAME_BYTES} printable ASCII characters without space, slash, \
             backslash and percent sign, and does not begin with a dot"
        );
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "artifact_name", message));
    }
    Ok((run, name.to_owned()))
}

/// Streams the body to `path`, without secrets, counting and hashing, and brings it to disk.
async fn receive(door: &Door, body: Incoming, path: PathBuf) -> Result<Upload, Refusal> {
    let idle = door.shared.bounds.body_idle;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&path)
        .await
        .map_err(|error| disk(&error))?;
    let mut stream = Stream::new(door.secrets.redactor());
    let mut hash = Sha256::new();
    let (mut size, mut kept) = (0_usize, 0_usize);
    let mut chunks = std::pin::pin!(body::frames(body));
    loop {
        let chunk = match timeout(idle, chunks.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some(chunk),
            Ok(Some(Err(error))) => return Err(refused(&BodyFault::Broken(error))),
            Err(_) => return Err(refused(&BodyFault::TimedOut)),
        };
        size += chunk.as_ref().map_or(0, Bytes::len);
        if size > ARTIFACT_BYTES {
            return Err(refused(&BodyFault::TooLarge));
        }
        stream.follow(&door.secrets.redactor());
        let clean = match &chunk {
            Some(chunk) => stream.push(chunk),
            None => stream.finish(),
        };
        kept += clean.len();
        hash.update(&clean);
        file.write_all(&clean).await.map_err(|error| disk(&error))?;
        if chunk.is_none() {
            break;
        }
    }
    file.flush().await.map_err(|error| disk(&error))?;
    file.sync_all().await.map_err(|error| disk(&error))?;
    let size = i64::try_from(kept).unwrap_or(i64::MAX);
    Ok(Upload { path, size, sha256: hex::encode(hash.finalize()), redacted: stream.found() })
}

fn refused(fault: &BodyFault) -> Refusal {
    Refusal::body(fault, ARTIFACT_BYTES as u64)
}

/// Gives the file its place and makes it known. The place depends on the bytes, so that at every instant the
/// row and the file it names agree; the file of a replaced artifact goes last.
async fn keep(door: &Door, run: &RunId, name: String, upload: Upload) -> Result<(), Refusal> {
    let store = &door.shared.store;
    let root = &door.shared.artifacts_dir;
    // The body may have been longer than it was said to be.
    check_room(door, run, &name, u64::try_from(upload.size).unwrap_or(u64::MAX)).await?;
    let directory = root.join(run.as_str());
    make_directory(&directory).await.map_err(|error| disk(&error))?;
    // Kept relative, so that the directory may be moved.
    let text = format!("{run}/{}-{name}", upload.sha256);
    let path = root.join(&text);
    fs::rename(&upload.path, &path).await.map_err(|error| disk(&error))?;
    File::open(&directory)
        .await
        .map_err(|error| disk(&error))?
        .sync_all()
        .await
        .map_err(|error| disk(&error))?;
    let before = store.artifact(run, &name).await.map_err(|error| Refusal::store(&error))?;
    let new = NewArtifact { name, size_bytes: upload.size, sha256: upload.sha256, path: text.clone() };
    let stored = store.put_artifact(run, &new).await;
    let old = before.map(|artifact| artifact.path).filter(|old| *old != text);
    match stored {
        Ok(PutArtifact::Stored) => {
            if let Some(old) = old {
                discard(&root.join(old)).await;
            }
            Ok(())
        }
        Ok(PutArtifact::TooMany) => {
            discard(&path).await;
            let message = format!("the run has {RUN_ARTIFACTS} artifacts already");
            Err(Refusal::new(StatusCode::CONFLICT, "artifacts_full", message))
        }
        // The row may have been written all the same, so the file stays; the shim tries again.
        Err(error) => Err(Refusal::store(&error)),
    }
}

async fn discard(path: &Path) {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(error = %error, "an artifact's file that nobody needs could not be removed");
        }
        Ok(()) | Err(_) => {}
    }
}

fn disk(error: &io::Error) -> Refusal {
    tracing::error!(error = %error, "an artifact could not be written");
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let (status, message) = if full {
        (StatusCode::INSUFFICIENT_STORAGE, "the server's disk is full; make room there")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "the server could not write the artifact; its log says why")
    };
    Refusal::new(status, "disk", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_printable_and_stays_in_its_directory() {
        let run = RunId::new(1, [0; 10]);
        let of = |name: &str| parse(&format!("/artifacts/{run}/{name}")).map(|(_, name)| name);
        assert_eq!(of("work.bundle").unwrap(), "work.bundle");
        assert!(of(&"x".repeat(ARTIFACT_NAME_BYTES)).is_ok());
        let long = "x".repeat(ARTIFACT_NAME_BYTES + 1);
        for bad in ["", ".hidden", "..", "a/b", "a\\b", "a%2fb", "a b", "ä", "a\u{7f}", &long] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(parse("/artifacts/run_x/a").is_err());
        assert!(parse(&format!("/artifacts/{run}")).is_err());
    }

    #[tokio::test]
    async fn unfinished_uploads_are_forgotten_at_start() {
        let root = tempfile::tempdir().unwrap();
        prepare(root.path()).await.unwrap();
        std::fs::write(root.path().join(INCOMING).join("3"), "half").unwrap();
        prepare(root.path()).await.unwrap();
        assert_eq!(std::fs::read_dir(root.path().join(INCOMING)).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        assert_eq!(disk(&io::ErrorKind::StorageFull.into()).status.as_u16(), 507);
        assert_eq!(disk(&io::ErrorKind::PermissionDenied.into()).status.as_u16(), 500);
    }
}
