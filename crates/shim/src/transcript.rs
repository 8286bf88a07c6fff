//! The agent's own record of the conversation: looked for in its home when a session goes on, fetched from the archive where
//! there is none, and archived when the run is over.
//!
//! The agent can write what it likes into it, and leave out what it likes: that falsifies a transcript and nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_domain::limits::TRANSCRIPT_BYTES;
use caisson_domain::protocol::{NoteLevel, RunWork, TRANSCRIPT_BUSY, TRANSCRIPT_EARLY, paths};
use caisson_domain::run::{Failure, FailureKind};
use http::{Method, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::Backoff;
use crate::diagnostics::say;
use crate::door::{Caller, Reply};
use crate::failure::Halt;
use crate::forward::HOLD_MS;
use crate::plain_file;
use crate::recorder::Recorder;
use crate::shim::Shim;

/// Directory of conversations in the agent's own directory, one below it for each working directory.
const PROJECTS: &str = ".claude/projects";
/// Most directories of conversations that are looked through.
const DIRECTORIES: usize = 1_000;
/// How long one request may take, in milliseconds.
const REQUEST_MS: u64 = 60 * 1000;
/// How long archiving may take in a run that was told to stop, whose work had the time before, in milliseconds.
pub(crate) const STOPPED_MS: u64 = 2 * 1000;

/// Sees to it that the conversation is there if it can be had, and says whether the agent goes on with it. The agent's home was
/// cleared before.
///
/// # Errors
/// [`Halt`] if it is archived and cannot be brought: an agent that knows nothing of what was said must not go on as if it did.
///
/// # Cancel safety
/// May be given up at any point and done again.
pub(crate) async fn bring(shim: &Shim, work: &RunWork, recorder: &Recorder) -> Result<bool, Halt> {
    if !work.agent.resume {
        return Ok(false);
    }
    let home = &shim.places.home;
    if find(home, &work.agent.conversation).is_some() {
        return Ok(true);
    }
    let Some(archive) = &work.agent.archive else {
        let note = "nothing of the session's conversation is kept; the agent begins a new one and knows nothing of earlier runs";
        recorder.note(NoteLevel::Warn, note).await?;
        return Ok(false);
    };
    let content = fetch(shim, work).await?;
    let place = place(home, &shim.places.workspace, &work.agent.conversation);
    write(&place, &content).map_err(|error| unwritten(&error))?;
    let (level, known) = if archive.is_latest {
        (NoteLevel::Info, "")
    } else {
        (NoteLevel::Warn, "; what was said after that is not known any more")
    };
    let note =
        format!("the conversation was brought from the archive, as run {} had left it{known}", archive.run);
    recorder.note(level, note).await?;
    Ok(true)
}

/// Archives the conversation as it is now. One that cannot be archived is told and fails nothing.
///
/// # Errors
/// [`crate::journal::WriteError`] if the note cannot be written.
///
/// # Cancel safety
/// The archive has the new one or the old one.
pub(crate) async fn archive(
    shim: &Shim,
    work: &RunWork,
    recorder: &Recorder,
    stopped: bool,
) -> Result<(), crate::journal::WriteError> {
    let Some(path) = find(&shim.places.home, &work.agent.conversation) else { return Ok(()) };
    let patience = if stopped { Duration::from_millis(STOPPED_MS) } else { shim.patience.keep };
    let kept = match plain_file::read(&path, TRANSCRIPT_BYTES as u64) {
        Ok(content) => timeout(patience, send(shim, work, whole_lines(content)))
            .await
            .unwrap_or_else(|_| Err("the gateway did not take it in time".to_owned())),
        Err(error) => Err(error.to_string()),
    };
    let Err(reason) = kept else { return Ok(()) };
    let note =
        format!("the conversation could not be archived: {reason}; it is kept in the session's home alone");
    recorder.note(NoteLevel::Warn, note).await.map(drop)
}

/// Whether the agent's record has the line with this id. A record that cannot be read has none.
pub(crate) fn has(home: &Path, conversation: &str, id: &str) -> bool {
    let Some(path) = find(home, conversation).filter(|_| !id.is_empty()) else { return false };
    let wanted = format!("\"uuid\":\"{id}\"");
    let content = plain_file::read(&path, TRANSCRIPT_BYTES as u64).unwrap_or_default();
    // It is near the end, if it is there.
    whole_lines(content).windows(wanted.len()).rev().any(|part| part == wanted.as_bytes())
}

/// What tells the agent's record from another one at its place: its number, its size in bytes, and when it was changed; none if there is
/// no record.
pub(crate) fn state(home: &Path, conversation: &str) -> Option<(u64, u64, i64, i64)> {
    let found = find(home, conversation)?.symlink_metadata().ok()?;
    Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// A record that was cut off when the agent was killed is left out; the agent would skip it.
fn whole_lines(mut content: Vec<u8>) -> Vec<u8> {
    let end = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    content.truncate(end);
    content
}

async fn send(shim: &Shim, work: &RunWork, content: Vec<u8>) -> Result<(), String> {
    let content = bytes::Bytes::from(content);
    let reply = insist(shim, work, Method::PUT, &content).await.ok_or("the gateway is away")?;
    match reply.status {
        // A gateway that does not know of transcripts.
        StatusCode::NOT_FOUND => {
            say("the gateway takes no transcripts");
            Ok(())
        }
        status if status.is_success() => Ok(()),
        _ => Err(reply.problem().message),
    }
}

async fn fetch(shim: &Shim, work: &RunWork) -> Result<bytes::Bytes, Failure> {
    let failed = |why: String| {
        let message = "the session's conversation could not be brought from the archive; try again, or begin a new session";
        Failure::new(FailureKind::Internal, message).with_evidence(why)
    };
    let reply = insist(shim, work, Method::GET, &bytes::Bytes::new()).await;
    let reply = reply.ok_or_else(|| failed("the gateway is away".to_owned()))?;
    if reply.status.is_success() { Ok(reply.body) } else { Err(failed(reply.problem().message)) }
}

/// Asks until there is an answer that another try would not change; none after [`HOLD_MS`].
async fn insist(shim: &Shim, work: &RunWork, method: Method, body: &bytes::Bytes) -> Option<Reply> {
    let path = format!("{}/{}", paths::TRANSCRIPT, work.run);
    let (limit, until) = (Duration::from_millis(REQUEST_MS), Instant::now() + Duration::from_millis(HOLD_MS));
    let (mut caller, mut backoff) = (Caller::new(&shim.door), Backoff::new());
    loop {
        match caller.call(method.clone(), &path, body.clone(), limit).await {
            Ok(reply) if !passes(&reply) => return Some(reply),
            Ok(reply) => {
                say(format_args!("the gateway has trouble with a transcript: {}", reply.problem().message));
            }
            Err(error) => say(format_args!("cannot ask for a transcript: {error}")),
        }
        let wait = backoff.next();
        if Instant::now() + wait > until {
            return None;
        }
        sleep(wait).await;
    }
}

/// Whether the gateway may answer the same request otherwise in a moment: it has trouble, it is still busy with a request whose
/// answer was lost, or the journal has not told it yet that the agent has started.
fn passes(reply: &Reply) -> bool {
    let known = || [TRANSCRIPT_BUSY, TRANSCRIPT_EARLY].contains(&reply.problem().code.as_str());
    reply.status.is_server_error() || (reply.status.is_client_error() && known())
}

/// The conversation's file in the agent's home, wherever it was begun. Links are not followed.
fn find(home: &Path, conversation: &str) -> Option<PathBuf> {
    let projects = home.join(PROJECTS);
    if !projects.symlink_metadata().ok()?.is_dir() {
        return None;
    }
    let directories = fs::read_dir(projects).ok()?.flatten().take(DIRECTORIES);
    let real = directories.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let files = real.map(|entry| entry.path().join(file_name(conversation)));
    files.into_iter().find(|file| file.symlink_metadata().is_ok_and(|found| found.is_file()))
}

/// Where Claude Code 2.1.330 keeps a conversation that was begun in the workspace.
fn place(home: &Path, workspace: &Path, conversation: &str) -> PathBuf {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let directory: String = workspace.to_string_lossy().chars().map(plain).collect();
    home.join(PROJECTS).join(directory).join(file_name(conversation))
}

fn file_name(conversation: &str) -> String {
    format!("{conversation}.jsonl")
}

fn write(place: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(directory) = place.parent() {
        fs::create_dir_all(directory)?;
    }
    plain_file::write(place, content)
}

fn unwritten(error: &io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let kind = if full { FailureKind::DiskFull } else { FailureKind::Internal };
    Failure::new(kind, "the session's conversation cannot be written to the agent's home")
        .with_evidence(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const CONVERSATION: &str = "7c5d8e1f-40aa-4b21-9c3d-2f6e1a0b5c4d";

    #[test]
    fn a_conversation_is_found_wherever_it_was_begun_and_no_link_is_followed() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |path: PathBuf| path.join(file_name(CONVERSATION));
        assert_eq!(find(home.path(), CONVERSATION), None);
        let projects = home.path().join(PROJECTS);
        fs::create_dir_all(projects.join("-elsewhere")).unwrap();
        fs::write(of(other.path().to_owned()), "x").unwrap();
        symlink(other.path(), projects.join("-a-link")).unwrap();
        symlink(of(other.path().to_owned()), of(projects.join("-elsewhere"))).unwrap();
        assert_eq!(find(home.path(), CONVERSATION), None);
        let here = place(home.path(), Path::new("/workspace"), CONVERSATION);
        write(&here, b"y").unwrap();
        assert_eq!(find(home.path(), CONVERSATION), Some(here.clone()));
        assert!(here.ends_with(format!("-workspace/{CONVERSATION}.jsonl")));
    }

    #[test]
    fn a_line_of_the_record_is_found_once_it_is_whole() {
        let home = tempfile::tempdir().unwrap();
        let place = place(home.path(), Path::new("/workspace"), CONVERSATION);
        let has = |id: &str| has(home.path(), CONVERSATION, id);
        assert!(!has("a1"));
        write(&place, b"{\"uuid\":\"a1\",\"x\":1}\n{\"uuid\":\"a2\"").unwrap();
        assert!(has("a1") && !has("a2") && !has("a") && !has(""));
        write(&place, b"{\"uuid\":\"a1\",\"x\":1}\n{\"uuid\":\"a2\"}\n").unwrap();
        assert!(has("a2"));
    }

    #[test]
    fn a_record_that_was_cut_off_is_left_out() {
        for (content, kept) in [("{}\n{}\n", 6), ("{}\n{", 3), ("{", 0), ("", 0)] {
            assert_eq!(whole_lines(content.as_bytes().to_vec()).len(), kept, "{content:?}");
        }
    }
}
