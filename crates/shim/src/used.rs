//! The repository before the agent: what is done on the workspace, and what is read of the anchor.
//!
//! In a checkout that an earlier agent has had, git may be brought to start what that agent likes. Landlock, where the kernel has it, keeps
//! that from writing beyond the workspace, but neither from taking rights away from files nor from sending signals. So all that needs that
//! repository comes first; then whatever it started is ended and the home cleared; and only then what steers is fetched and read, and the
//! agent started.

use std::time::Duration;

use caisson_domain::repository_file::RepositoryFile;
use caisson_domain::run::{Failure, FailureKind};

use crate::agent::Agent;
use crate::anchor;
use crate::checkout::{Checkout, prepare};
use crate::commands;
use crate::failure::Halt;
use crate::gate::Gate;
use crate::git::Git;
use crate::images;
use crate::revisions;
use crate::run::{Live, uncleared};
use crate::steering::{Steered, replaced, steer};

/// How often the anchor is fetched into the workspace and apart until both are one commit: somebody may push between the two.
const TRIES: u32 = 3;

/// An agent that loads itself, and the gate at which it waits.
pub(crate) type Early = (Agent, Gate);

/// What was read before the agent has its prompt.
pub(crate) type Read = (Checkout, Steered, RepositoryFile);

/// A checkout as the agent gets it.
struct Worked {
    checkout: Checkout,
    /// Paths in it that would steer and are not the anchor's.
    replaced: Vec<String>,
}

impl Live<'_> {
    /// Makes the checkout, and reads what steers the agent and what the repository says of itself.
    ///
    /// # Errors
    /// [`Halt`] if one of them cannot be had.
    pub(crate) async fn read_repository(&self, git: &Git) -> Result<Read, Halt> {
        let worked = self.work_on(git).await?;
        self.read_anchor(git, worked).await
    }

    /// The same in a checkout that an earlier agent has had, with the agent that `begin` starts before the anchor is fetched.
    ///
    /// # Errors
    /// [`Halt`] if one of them cannot be had, or the anchor is not the same commit in the workspace.
    pub(crate) async fn read_used(
        &self,
        git: &Git,
        begin: impl Fn() -> Result<Option<Early>, Halt>,
    ) -> Result<(Option<Early>, Read), Halt> {
        let mut note = None;
        for _ in 0..TRIES {
            let mut worked = self.work_on(git).await?;
            self.shim.reaper.end_strays().await;
            self.clear().map_err(|error| uncleared(&error))?;
            note = worked.checkout.note.take().or(note);
            let early = begin()?;
            if anchor::fetch_apart(git).await? == worked.checkout.anchor {
                worked.checkout.note = note;
                return Ok((early, self.read_anchor(git, worked).await?));
            }
            if let Some((mut agent, _gate)) = early {
                agent.finish(Duration::ZERO).await;
            }
        }
        Err(another_commit().into())
    }

    /// Does all that needs the workspace's repository.
    async fn work_on(&self, git: &Git) -> Result<Worked, Halt> {
        let checkout = prepare(git, self.work.workspace).await?;
        let anchor = checkout.anchor.as_deref();
        let ((), replaced) = tokio::try_join!(revisions::keep(git, anchor), replaced(git, anchor))?;
        Ok(Worked { checkout, replaced })
    }

    /// Reads what steers the agent and what the repository says of itself.
    async fn read_anchor(&self, git: &Git, worked: Worked) -> Result<Read, Halt> {
        let Worked { checkout, replaced } = worked;
        let (steered, file) = tokio::try_join!(
            steer(git, &checkout, self.work.trust, &replaced),
            commands::read(git, &checkout)
        )?;
        anchor::forget_apart(git)?;
        if let Some(wish) = images::wish(&file, self.work) {
            return Err(Halt::OtherImage(wish));
        }
        // Another image may have what this one lacks.
        self.look_for_programs()?;
        Ok((checkout, steered, file))
    }
}

fn another_commit() -> Failure {
    Failure::new(
        FailureKind::Conflict,
        "the branch that steers the agent is another commit in the workspace than on the git host: it was pushed just now, or an earlier \
         agent has changed the workspace's repository; try again, or begin a new session",
    )
}
