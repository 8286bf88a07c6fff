//! `PUT /artifacts/<run>/<name>`: a file to keep.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use super::{own, redaction};
use crate::body::{self, Body, BodyFault};
use crate::hold::hold;
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
    let Ok(Ok(slot)) = slot else {
        let message = "another artifact of this sandbox is on its way; try again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    check_room(door, &run, &name, announced).await?;
    let (pieces, arriving) = mpsc::channel(1);
    let taking = door.shared.tracker.spawn(take(Arc::clone(door), slot, (run, name), arriving));
    hand_over(request.into_body(), door.shared.bounds.body_idle, pieces).await;
    let taken = taking.await.unwrap_or_else(|error| {
        tracing::error!(error = %error, "an artifact was given up");
        Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fault inside the server"))
    });
    taken.map(|()| bare(StatusCode::NO_CONTENT))
}

/// A piece of an artifact; none is its end, so that one whose sender is gone is never taken for a whole one.
type Piece = Result<Option<Bytes>, BodyFault>;

/// Hands the body over piece by piece, until its end or until nobody takes more of it.
async fn hand_over(body: Incoming, idle: Duration, pieces: mpsc::Sender<Piece>) {
    let mut chunks = std::pin::pin!(body::frames(body));
    loop {
        let piece = match timeout(idle, chunks.next()).await {
            Ok(chunk) => chunk.transpose().map_err(BodyFault::Broken),
            Err(_) => Err(BodyFault::TimedOut),
        };
        let is_last = !matches!(piece, Ok(Some(_)));
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// Takes an artifact, as a task of its own with the sandbox's right to one until its end: whoever hangs up leaves no file behind
/// that nobody knows of.
async fn take(
    door: Arc<Door>,
    slot: OwnedSemaphorePermit,
    (run, name): (RunId, String),
    arriving: mpsc::Receiver<Piece>,
) -> Result<(), Refusal> {
    let number = UPLOADS.fetch_add(1, Ordering::Relaxed);
    let path = door.shared.artifacts_dir.join(INCOMING).join(number.to_string());
    let kept = match receive(&door, arriving, path.clone()).await {
        Ok(upload) => {
            if upload.redacted > 0 {
                redaction::alarm(&door, Some(&run), &format!("artifact {name}")).await;
            }
            keep(&door, &run, name, upload).await
        }
        Err(refusal) => Err(refusal),
    };
    if kept.is_err() {
        discard(&path).await;
    }
    drop(slot);
    kept
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

/// Streams what arrives to `path`, without secrets, counting and hashing, and brings it to disk.
async fn receive(door: &Door, mut arriving: mpsc::Receiver<Piece>, path: PathBuf) -> Result<Upload, Refusal> {
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
    loop {
        let piece =
            arriving.recv().await.unwrap_or_else(|| Err(BodyFault::Broken("the sender is gone".into())));
        let chunk = piece.map_err(|fault| refused(&fault))?;
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
    let before = store.artifact(run, &name).await.map_err(|error| Refusal::store(&error))?;
    // Kept relative, so that the directory may be moved.
    let text = format!("{run}/{}-{name}", upload.sha256);
    let path = root.join(&text);
    let is_known = before.as_ref().is_some_and(|artifact| artifact.path == text);
    let placed = place(&upload.path, &path, &root.join(run.as_str())).await;
    let new = NewArtifact { name, size_bytes: upload.size, sha256: upload.sha256, path: text };
    let kept = match placed {
        Ok(()) => make_known(door, run, &new).await,
        Err(error) => Err(Unkept::Refused(disk(&error))),
    };
    match kept {
        Ok(()) => {
            if let Some(old) = before.filter(|_| !is_known) {
                discard(&root.join(old.path)).await;
            }
            Ok(())
        }
        Err(Unkept::Refused(refusal)) => {
            if !is_known {
                discard(&path).await;
            }
            Err(refusal)
        }
        // A row without its file would be worse than a file without its row; the shim tries again.
        Err(Unkept::Unknown(refusal)) => Err(refusal),
    }
}

/// Moves a file to its place below `directory`, for good.
async fn place(from: &Path, to: &Path, directory: &Path) -> io::Result<()> {
    make_directory(directory).await?;
    fs::rename(from, to).await?;
    File::open(directory).await?.sync_all().await
}

/// Why an artifact is not kept.
enum Unkept {
    /// It has no row.
    Refused(Refusal),
    /// It may have one.
    Unknown(Refusal),
}

/// Writes the artifact's row. A write that failed may have been done all the same, so the store is asked what it holds.
async fn make_known(door: &Door, run: &RunId, new: &NewArtifact) -> Result<(), Unkept> {
    let (shared, store) = (&door.shared, &door.shared.store);
    let error = match store.put_artifact(run, new).await {
        Ok(PutArtifact::Stored) => return Ok(()),
        Ok(PutArtifact::TooMany) => {
            let message = format!("the run has {RUN_ARTIFACTS} artifacts already");
            return Err(Unkept::Refused(Refusal::new(StatusCode::CONFLICT, "artifacts_full", message)));
        }
        Err(error) => error,
    };
    let refusal = Refusal::store(&error);
    match hold(&shared.cancel, shared.bounds.store_hold, || store.artifact(run, &new.name)).await {
        Ok(Some(artifact)) if artifact.path == new.path => Err(Unkept::Unknown(refusal)),
        Ok(_) => Err(Unkept::Refused(refusal)),
        Err(error) => {
            tracing::warn!(run.id = %run, error = %error, "nobody could say whether an artifact of {run} is known");
            Err(Unkept::Unknown(refusal))
        }
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
