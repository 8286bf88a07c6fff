//! Keeping files of a run outside the sandbox: what git prints goes straight to the door, never whole in memory.

use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use caisson_domain::id::RunId;
use caisson_domain::limits::ARTIFACT_BYTES;
use caisson_domain::protocol::{NoteLevel, paths};
use caisson_domain::run::Failure;
use futures_util::{Stream, stream};
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::diagnostics::say;
use crate::door::{Body, BoxError, Caller, Door};
use crate::forward::HOLD_MS;
use crate::git::Git;
use crate::journal::WriteError;
use crate::reaper::Child;
use crate::recorder::Recorder;

/// How long one upload may take, in milliseconds.
const UPLOAD_MS: u64 = 5 * 60 * 1000;
/// One piece of an upload, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// What becomes of a file that is longer than an artifact may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Longer {
    /// Its beginning is kept: a patch can be read up to where it ends.
    Cut,
    /// It is not kept: a part of it is worth nothing.
    Dropped,
}

/// Where artifacts of a run go.
pub(crate) struct Artifacts<'a> {
    pub(crate) door: &'a Arc<Door>,
    pub(crate) git: &'a Git,
    pub(crate) run: &'a RunId,
    pub(crate) recorder: &'a Recorder,
}

impl Artifacts<'_> {
    /// Keeps what a git command prints. A file that cannot be kept is noted and fails nothing.
    ///
    /// # Errors
    /// [`WriteError`] if the note cannot be written.
    ///
    /// # Cancel safety
    /// The artifact was either stored whole or not at all.
    pub(crate) async fn keep(
        &self,
        name: &str,
        longer: Longer,
        command: impl Fn() -> Result<Command, Failure>,
    ) -> Result<(), WriteError> {
        let note = match self.put(name, longer, command).await {
            Ok(false) => return Ok(()),
            Ok(true) if longer == Longer::Cut => {
                format!("{name} is longer than {ARTIFACT_BYTES} bytes; the rest was cut off")
            }
            Ok(true) => format!("{name} is longer than {ARTIFACT_BYTES} bytes and was not kept"),
            Err(reason) => format!("{name} could not be kept: {reason}"),
        };
        self.recorder.note(NoteLevel::Warn, note).await.map(drop)
    }

    /// Notes that a file was given up because its time was over.
    ///
    /// # Errors
    /// [`WriteError`] if the note cannot be written.
    ///
    /// # Cancel safety
    /// The note may be written or not.
    pub(crate) async fn late(&self, name: &str) -> Result<(), WriteError> {
        let note = format!("{name} could not be kept: the gateway did not take it in time");
        self.recorder.note(NoteLevel::Warn, note).await.map(drop)
    }

    /// Whether it was longer than an artifact may be.
    async fn put(
        &self,
        name: &str,
        longer: Longer,
        command: impl Fn() -> Result<Command, Failure>,
    ) -> Result<bool, String> {
        let path = format!("{}/{}/{name}", paths::ARTIFACTS, self.run);
        let until = Instant::now() + Duration::from_millis(HOLD_MS);
        let mut backoff = Backoff::new();
        loop {
            let mut command = command().map_err(|failure| failure.message)?;
            command.stdin(Stdio::null()).stderr(Stdio::null());
            let child = self.git.reaper.spawn(&mut command).map_err(|error| error.to_string())?;
            let end = Arc::new(OnceLock::new());
            let body = printed(child, longer, Arc::clone(&end));
            let sent = Caller::new(self.door)
                .upload(Method::PUT, &path, body, Duration::from_millis(UPLOAD_MS))
                .await;
            let too_long = end.get() == Some(&Broken::TooLong);
            match sent {
                Ok(reply) if reply.status.is_success() => return Ok(too_long),
                Ok(reply) if reply.status.is_client_error() => return Err(reply.problem().message),
                Err(_) if too_long && longer == Longer::Dropped => return Ok(true),
                // Git would fail again.
                Err(_) if end.get() == Some(&Broken::Failed) => return Err("git failed".to_owned()),
                Ok(reply) => {
                    say(format_args!("the gateway does not take {name}: {}", reply.problem().message));
                }
                Err(error) => say(format_args!("cannot send {name}: {error}")),
            }
            let wait = backoff.next();
            if Instant::now() + wait > until {
                return Err("the gateway did not take it".to_owned());
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// A body of what a command prints, up to [`ARTIFACT_BYTES`]. A command that fails breaks the body off, so that nothing
/// is stored.
fn printed(child: Child, longer: Longer, end: Arc<OnceLock<Broken>>) -> Body {
    let state = Printing { child, stdout: None, left: ARTIFACT_BYTES, longer, end };
    StreamBody::new(pieces(state)).boxed_unsync()
}

/// Why a body ended before the command did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// It is longer than an artifact may be.
    TooLong,
    /// The command failed.
    Failed,
}

struct Printing {
    child: Child,
    stdout: Option<pipe::Receiver>,
    left: usize,
    longer: Longer,
    end: Arc<OnceLock<Broken>>,
}

fn pieces(mut state: Printing) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> {
    state.stdout = state.child.stdout.take();
    stream::try_unfold(Some(state), |state| async {
        let Some(mut state) = state else { return Ok(None) };
        let mut piece = vec![0; PIECE_BYTES];
        let read = match &mut state.stdout {
            Some(stdout) => stdout.read(&mut piece).await?,
            None => 0,
        };
        if read == 0 {
            let exit = state.child.wait().await;
            if exit.success() {
                return Ok(None);
            }
            state.end.get_or_init(|| Broken::Failed);
            return Err(BoxError::from("git failed"));
        }
        piece.truncate(read);
        if read <= state.left {
            state.left -= read;
            return Ok(Some((Frame::data(piece.into()), Some(state))));
        }
        state.end.get_or_init(|| Broken::TooLong);
        if state.longer == Longer::Dropped {
            return Err(BoxError::from("longer than an artifact may be"));
        }
        piece.truncate(state.left);
        // Dropping the state ends the command.
        Ok(Some((Frame::data(piece.into()), None)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::command;
    use crate::reaper::{Orphans, Reaper};
    use tokio::signal::unix;

    /// How much of a command's output a body has, and how it ended.
    async fn body_of(script: &str, longer: Longer) -> (usize, Result<(), String>, Option<Broken>) {
        let reaper = Reaper::new(Orphans::Ignored);
        let ends = unix::signal(unix::SignalKind::child()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test has no tracker")]
        drop(tokio::spawn(Arc::clone(&reaper).watch(ends)));
        let mut shell = command("/bin/sh".as_ref(), "/".as_ref());
        shell.args(["-c", script]).stdin(Stdio::null());
        let end = Arc::new(OnceLock::new());
        let mut body = printed(reaper.spawn(&mut shell).unwrap(), longer, Arc::clone(&end));
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes += frame.into_data().unwrap().len(),
                Err(error) => return (bytes, Err(error.to_string()), end.get().copied()),
            }
        }
        (bytes, Ok(()), end.get().copied())
    }

    #[tokio::test]
    async fn an_artifact_of_the_bound_is_whole_and_a_longer_one_is_cut_or_dropped() {
        let output = |bytes: usize| format!("head -c {bytes} /dev/zero");
        let whole = body_of(&output(ARTIFACT_BYTES), Longer::Dropped).await;
        assert_eq!(whole, (ARTIFACT_BYTES, Ok(()), None));
        let cut = body_of(&output(ARTIFACT_BYTES + 1), Longer::Cut).await;
        assert_eq!(cut, (ARTIFACT_BYTES, Ok(()), Some(Broken::TooLong)));
        let (_, dropped, why) = body_of(&output(ARTIFACT_BYTES + 1), Longer::Dropped).await;
        assert_eq!((dropped.is_err(), why), (true, Some(Broken::TooLong)));
    }

    #[tokio::test]
    async fn a_command_that_fails_breaks_its_artifact_off() {
        let (bytes, ended, why) = body_of("echo half; exit 1", Longer::Cut).await;
        assert_eq!((bytes, ended.is_err(), why), (5, true, Some(Broken::Failed)));
    }
}
