//! Whether a Docker Engine finds this server's files at the paths that the server has for them. It mounts parts of the state
//! directory into sandboxes by their paths, which it looks for on its own machine: where the server is in a container, and its
//! state directory is mounted at another path, every sandbox would get something else.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_sandbox::EngineError;
use caisson_sandbox::docker::DockerEngine;
use caisson_store::Random;

use crate::serve::chain;

/// What is written anew for each look; in the state directory.
const PROBE_FILE: &str = "engine-probe";

/// What the engine has where the server's file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The server's file.
    Same,
    /// Nothing, or something else: why, and what to do.
    Other(String),
    /// That cannot be said yet, since the engine is away or lacks the image: why.
    Unknown(String),
}

/// Writes a random file into the state directory and has the engine read it by its path.
///
/// # Errors
/// The file cannot be written.
pub(crate) async fn look(engine: &DockerEngine, image: &str, state_dir: &Path) -> anyhow::Result<Found> {
    let (file, content) = (state_dir.join(PROBE_FILE), hex::encode(Random::system().bytes::<16>()));
    write(&file, &content).with_context(|| format!("\"{}\" cannot be written", file.display()))?;
    let found = compare(engine, image, (&file, content.as_bytes())).await;
    fs::remove_file(&file).ok();
    Ok(found)
}

/// Compares what the engine has at a file's path with what the file holds.
pub(crate) async fn compare(engine: &DockerEngine, image: &str, (file, content): (&Path, &[u8])) -> Found {
    let what = match engine.file_as_mounted(image, file).await {
        Ok(Some(seen)) if seen == content => return Found::Same,
        Ok(Some(_)) => "another file",
        Ok(None) => "nothing",
        Err(
            error @ (EngineError::Unavailable { .. }
            | EngineError::NotPermitted { .. }
            | EngineError::ImageMissing { .. }),
        ) => {
            return Found::Unknown(chain(&error));
        }
        Err(error) => return Found::Other(chain(&error)),
    };
    let directory = file.parent().unwrap_or(file).display();
    Found::Other(format!(
        "the Docker Engine finds {what} where this server has \"{}\": it mounts files into sandboxes by paths of its own machine. \
         If this server is in a container, mount its state directory at the same path inside and outside, as in --volume \
         {directory}:{directory} (deploy/compose.yaml does)",
        file.display()
    ))
}

/// Whether the engine finds the server's files, by one that is there already: nothing is written. For `doctor`.
///
/// # Errors
/// It finds something else: what to do.
pub(crate) async fn told(engine: &DockerEngine, image: &str, file: &Path) -> Result<String, String> {
    let Ok(content) = fs::read(file) else {
        return Ok("looked at by the server's start, since nothing is there yet".to_owned());
    };
    match compare(engine, image, (file, &content)).await {
        Found::Same => Ok("the engine finds the state directory where this program does".to_owned()),
        Found::Other(why) => Err(why),
        Found::Unknown(why) => Ok(format!("not looked at: {why}")),
    }
}

fn write(file: &Path, content: &str) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(file)?.write_all(content.as_bytes())
}

/// A server's own look: at the start, and again each time the engine was away.
#[derive(Debug)]
pub(crate) struct SharedPaths {
    engine: Arc<DockerEngine>,
    image: String,
    state_dir: PathBuf,
    proved: AtomicBool,
}

impl SharedPaths {
    /// Nothing is proved yet.
    pub(crate) fn new(engine: Arc<DockerEngine>, image: String, state_dir: &Path) -> Self {
        Self { engine, image, state_dir: state_dir.to_owned(), proved: AtomicBool::new(false) }
    }

    /// Looks at once.
    ///
    /// # Errors
    /// The engine does not find the server's files. One that is away is looked at when it is back.
    pub(crate) async fn at_start(&self) -> anyhow::Result<()> {
        match look(&self.engine, &self.image, &self.state_dir).await? {
            Found::Same => self.proved.store(true, Ordering::Relaxed),
            Found::Other(why) => anyhow::bail!(why),
            Found::Unknown(_) => {}
        }
        Ok(())
    }

    /// Looks if nothing is proved since the engine was away last, and nothing else keeps it from making sandboxes.
    pub(crate) async fn problem(&self, others: &[PlacementProblem]) -> Option<PlacementProblem> {
        if !others.is_empty() {
            self.proved.store(false, Ordering::Relaxed);
            return None;
        }
        if self.proved.load(Ordering::Relaxed) {
            return None;
        }
        let message = match self.at_start().await {
            Ok(()) => return None,
            Err(error) => format!("{error:#}"),
        };
        Some(PlacementProblem { code: ProblemCode::EngineUnavailable, message })
    }
}
