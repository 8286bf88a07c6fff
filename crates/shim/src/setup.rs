//! The repository's set-up command, before the agent is started: it runs what is checked out, whoever has written that, and nothing of what
//! it leaves is to steer the agent.

use std::io;

use caisson_domain::repository_file::RepositoryFile;
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::workflow::WorkspaceAccess;

use crate::checkout::Checkout;
use crate::commands;
use crate::git::Git;
use crate::pristine::Pristine;
use crate::run::Live;
use crate::steering::{self, Given, Steered};
use crate::transcript;

/// Where a set-up command has home and temporary files of its own, below those of the sandbox.
const SET_UP: &str = "set-up";

impl Live<'_> {
    /// Runs the repository's set-up command; what people are told of that. Where agents only read, nothing of it is left but what it
    /// has built.
    ///
    /// # Errors
    /// [`Failure`] if it fails, or what it has left cannot be undone.
    pub(crate) async fn set_up(
        &self,
        git: &Git,
        checkout: &Checkout,
        (file, steered): (&RepositoryFile, &Steered),
    ) -> Result<Option<String>, Failure> {
        match self.work.workspace {
            WorkspaceAccess::ReadWrite => self.set_up_beside(git, file, steered).await,
            WorkspaceAccess::ReadOnly => {
                let told = self.set_up_apart(git, checkout, file).await?;
                // Whatever git could be brought to start, and whatever the command left: no wall keeps either from taking rights away.
                self.shim.reaper.end_orphans().await;
                self.give_again(steered)?;
                Ok(told)
            }
        }
    }

    /// Makes what steers the agent again what it was, from memory.
    fn give_again(&self, steered: &Steered) -> Result<(), Failure> {
        let home = &self.shim.places.home;
        steering::clear(home).map_err(|error| unremoved(&error))?;
        steered.give(home)
    }

    async fn set_up_apart(
        &self,
        git: &Git,
        checkout: &Checkout,
        file: &RepositoryFile,
    ) -> Result<Option<String>, Failure> {
        let pristine = Pristine::look(git, checkout, file).await?;
        let place = self.shim.places.tmp.join(SET_UP);
        let done = commands::set_up((self.shim, self.work), git, file, Some(&place)).await;
        let Some(pristine) = pristine.filter(|_| file.setup.is_some()) else {
            return done.map(|()| None);
        };
        // Also where it failed: the next run would take what it left for what was there.
        self.shim.reaper.end_orphans().await;
        let put_back = match steering::discard(&place) {
            Ok(()) => pristine.put_back().await,
            Err(error) => Err(unremoved(&error)),
        };
        // What the command said of itself tells more than that what it left cannot be put back.
        done.and(put_back)
    }

    /// The same with the agent's own home: who installs there installs for the agent. What steers it lies there as well, and is made again what it
    /// was, whether it looks changed or not: times of change are too coarse on some kernels to tell that a file was written twice. If it is not
    /// what it was, nothing goes on that the command has left running.
    async fn set_up_beside(
        &self,
        git: &Git,
        file: &RepositoryFile,
        steered: &Steered,
    ) -> Result<Option<String>, Failure> {
        let home = &self.shim.places.home;
        let said = || transcript::state(home, &self.work.agent.conversation);
        let before = file.setup.as_ref().map(|_| (Given::look(home), said()));
        commands::set_up((self.shim, self.work), git, file, None).await?;
        let Some((given, said_before)) = before else { return Ok(None) };
        if said() != said_before {
            let message = "the set-up command has changed the session's conversation in the agent's home; mend it, or what it runs of the checkout";
            return Err(Failure::new(FailureKind::SetupFailed, message));
        }
        let is_changed = !given.is_there_still(home);
        if is_changed {
            self.shim.reaper.end_orphans().await;
        }
        self.give_again(steered)?;
        Ok(is_changed.then(|| {
            "the set-up command has changed files in the agent's home that steer it (~/.claude, ~/.claude.json); they were put back, and what it \
             left running was ended"
                .to_owned()
        }))
    }
}

fn unremoved(error: &io::Error) -> Failure {
    let message = "what the set-up command left in its home cannot be removed";
    Failure::new(FailureKind::Internal, message).with_evidence(error.to_string())
}
