//! Signs of life that do not come from the agent's output: bytes of model replies, and requests that are held while
//! the gateway is away. The watchdogs count them.

use std::sync::{Mutex, PoisonError};

use caisson_domain::protocol::DoorProblem;
use tokio::time::Instant;

/// What went through the loopback listener last.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    model: Option<Instant>,
    git_problem: Option<DoorProblem>,
}

impl Activity {
    /// Notes a byte of a model reply, or that a model request waits for the gateway to come back.
    pub(crate) fn model_moved(&self) {
        self.with(|state| state.model = Some(Instant::now()));
    }

    /// When the model's side last moved.
    pub(crate) fn model_moved_at(&self) -> Option<Instant> {
        self.with(|state| state.model)
    }

    /// Notes why the gateway refused a git request: git itself shows no more than the status.
    pub(crate) fn git_refused(&self, problem: DoorProblem) {
        self.with(|state| state.git_problem = Some(problem));
    }

    /// Takes the last refusal of a git request.
    pub(crate) fn take_git_problem(&self) -> Option<DoorProblem> {
        self.with(|state| state.git_problem.take())
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
