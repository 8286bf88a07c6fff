//! Whose files steer the agent: the anchor's, whatever is checked out.
//!
//! Claude Code reads nothing of the workspace by itself. What of the anchor acts is copied into the agent's home, from the
//! anchor's commit and never from the work tree: its instructions as the user's own, and, where the workflow says so, its
//! hooks, MCP servers, subagents, commands and skills. So nothing in the work tree, in the index or in a commit changes.

mod agent_home;
mod anchor;
pub(crate) mod attributes;
mod given;
mod imports;
mod instructions;
mod settings;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use caisson_domain::protocol::RunWork;
use caisson_domain::protocol::places::STEERING;
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::trust::{STEERING_PATHS, Steering, Trust};
use serde_json::{Map, Value};

use crate::anchor::source;
use crate::checkout::Checkout;
use crate::git::Git;

pub(crate) use agent_home::{clear, discard, empty, empty_but, open_up, remove};
pub(crate) use given::Given;

use anchor::{Entry, Files, INSTRUCTIONS, SETTINGS};
use instructions::Chosen;

/// What the agent's process is started with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acting {
    /// Settings of the anchor, as far as they are let act; none means that none do.
    pub(crate) settings: Option<Value>,
    /// Its MCP servers.
    pub(crate) mcp_servers: Map<String, Value>,
}

/// What became of the anchor's files.
#[derive(Debug, Default)]
pub(crate) struct Steered {
    /// What the agent is started with.
    pub(crate) acting: Acting,
    /// What is told of it; none if there is nothing to tell.
    pub(crate) told: Option<Steering>,
    /// What did not go as its author may have meant, for people.
    pub(crate) notes: Vec<String>,
    /// The files that act.
    files: Files,
    /// Which of them are instructions, and where these come from; none if there are none.
    chosen: Option<(Chosen, Origin)>,
}

impl Steered {
    /// Puts the files where the agent finds them. The agent's home was cleared before.
    ///
    /// # Errors
    /// [`Failure`] if they cannot be written.
    pub(crate) fn give(&self, home: &Path) -> Result<(), Failure> {
        self.written(home).map_err(|error| unwritten(&error))
    }

    fn written(&self, home: &Path) -> io::Result<()> {
        let place = place(home);
        self.files.write(&place)?;
        if let Some((chosen, origin)) = &self.chosen {
            instructions::give(home, &place, chosen, &self.files, origin)?;
        }
        if self.acting.settings.is_some() {
            settings::give(home, &place)?;
        }
        Ok(())
    }

    /// Whether the anchor has MCP servers that act.
    pub(crate) fn has_servers(&self) -> bool {
        !self.acting.mcp_servers.is_empty()
    }
}

/// Whether anything of the anchor may act in a run.
pub(crate) fn acts(work: &RunWork) -> bool {
    work.git.is_some() && (work.trust.instructions || work.trust.settings)
}

/// Paths of what would steer, or its git, and is another one at `HEAD` than the anchor has; none without an anchor.
///
/// # Errors
/// [`Failure`] if git fails.
pub(crate) async fn replaced(git: &Git, anchor: Option<&str>) -> Result<Vec<String>, Failure> {
    let Some(anchor) = anchor else { return Ok(Vec::new()) };
    anchor::differing(git, anchor).await
}

/// Reads the anchor's files and puts them where the agent finds them; what they replace is told. The agent's home was cleared before.
///
/// # Errors
/// [`Failure`] for people.
///
/// # Cancel safety
/// May be given up at any point and done again after another [`clear`].
pub(crate) async fn steer(
    git: &Git,
    checkout: &Checkout,
    trust: Trust,
    replaced: &[String],
) -> Result<Steered, Failure> {
    let Some(anchor) = &checkout.anchor else { return Ok(Steered::default()) };
    let source = &source(git, checkout);
    let mut steered = Steered::default();
    if trust.instructions {
        let entries = anchor::list(source, anchor, &INSTRUCTIONS).await?;
        let mut chosen = instructions::choose(entries);
        let notes = &mut steered.notes;
        steered.files.read(source, anchor, chosen.entries(), notes).await?;
        imports::follow(source, anchor, &mut steered.files, notes).await?;
        notes.append(&mut chosen.notes);
        let branch = git.work.anchor.as_ref().map(|branch| branch.as_str().to_owned());
        let origin = Origin { branch, commit: anchor.clone() };
        steered.chosen = (!steered.files.contents.is_empty()).then_some((chosen, origin));
    }
    if trust.settings {
        let entries = anchor::list(source, anchor, &SETTINGS).await?;
        let before = steered.notes.len();
        steered.files.read(source, anchor, &entries, &mut steered.notes).await?;
        if let Some(left_out) = steered.notes.get(before) {
            // A hook that is left out may be the one that forbids something.
            let message = format!("the settings of the anchor cannot be used: {left_out}");
            return Err(Failure::new(FailureKind::BadWorkflow, message));
        }
        steered.acting = settings::acting(&steered.files, &place(&git.home), &mut steered.notes)?;
    }
    steered.give(&git.home)?;
    if !steered.files.contents.is_empty() || !replaced.is_empty() {
        steered.told = Some(tell(git, anchor, trust, &steered.files, replaced));
    }
    Ok(steered)
}

fn tell(git: &Git, anchor: &str, trust: Trust, files: &Files, replaced: &[String]) -> Steering {
    let few = |paths: &mut dyn Iterator<Item = String>| paths.take(STEERING_PATHS).collect();
    Steering {
        anchor: git.work.anchor.clone(),
        commit: anchor.to_owned(),
        settings: trust.settings,
        files: few(&mut files.contents.keys().cloned()),
        files_count: files.contents.len() as u64,
        replaced: few(&mut replaced.iter().cloned()),
        replaced_count: replaced.len() as u64,
    }
    .bounded()
}

/// Where files come from, for people and the agent.
#[derive(Debug)]
struct Origin {
    /// None is the default branch.
    branch: Option<String>,
    commit: String,
}

/// Where the anchor's files are copied to.
fn place(home: &Path) -> PathBuf {
    home.join(STEERING).join("anchor")
}

fn unwritten(error: &io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let kind = if full { FailureKind::DiskFull } else { FailureKind::Internal };
    Failure::new(kind, "the files that steer the agent cannot be written to its home")
        .with_evidence(error.to_string())
}

/// Paths with what is in them.
type Contents = BTreeMap<String, (Entry, Vec<u8>)>;
