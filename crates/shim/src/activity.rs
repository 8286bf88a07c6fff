//! Signs of life that do not come from the agent's output: bytes of model replies, and requests that are held while
//! the gateway is away. The watchdogs count them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use caisson_domain::mcp::SERVERS;
use caisson_domain::protocol::DoorProblem;
use tokio::time::Instant;

/// Code of a problem: the gateway was away, or went away before its answer was whole.
pub(crate) const AWAY: &str = "gateway_away";
/// Codes of problems that pass by themselves: the second is what a gateway says whose store is closed or not yet open.
const PASSING: [&str; 2] = [AWAY, "store_unavailable"];

/// What went through the loopback listener last.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    model: Option<Instant>,
    git_problem: Option<DoorProblem>,
    /// By the server's name, [`SERVERS`] at most.
    mcp_problems: BTreeMap<String, DoorProblem>,
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

    /// Notes why a git request got no whole answer: git itself shows no more than the status. A refusal stays, whatever
    /// comes after it; that the gateway was away does not.
    pub(crate) fn git_refused(&self, problem: DoorProblem) {
        self.with(|state| {
            if state.git_problem.as_ref().is_none_or(passes) {
                state.git_problem = Some(problem);
            }
        });
    }

    /// Whether git requests failed for nothing else than a gateway that was away.
    pub(crate) fn git_missed_the_gateway(&self) -> bool {
        self.with(|state| state.git_problem.as_ref().is_some_and(passes))
    }

    /// Takes the last refusal of a git request.
    pub(crate) fn take_git_problem(&self) -> Option<DoorProblem> {
        self.with(|state| state.git_problem.take())
    }

    /// Notes why the gateway refused a request to an MCP server; the last reason stays until the server is reached.
    pub(crate) fn mcp_refused(&self, server: &str, problem: DoorProblem) {
        self.with(|state| {
            if state.mcp_problems.len() < SERVERS || state.mcp_problems.contains_key(server) {
                state.mcp_problems.insert(server.to_owned(), problem);
            }
        });
    }

    /// Notes that an MCP server answered.
    pub(crate) fn mcp_reached(&self, server: &str) {
        self.with(|state| state.mcp_problems.remove(server));
    }

    /// Takes the last refusal of a request to an MCP server.
    pub(crate) fn take_mcp_problem(&self, server: &str) -> Option<DoorProblem> {
        self.with(|state| state.mcp_problems.remove(server))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a problem passes when the gateway is back.
fn passes(problem: &DoorProblem) -> bool {
    PASSING.contains(&problem.code.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: &str) -> DoorProblem {
        DoorProblem { code: code.to_owned(), message: String::new() }
    }

    #[test]
    fn a_refusal_counts_more_than_a_gateway_that_was_away() {
        for codes in [["repo_auth", AWAY], [AWAY, "repo_auth"]] {
            let activity = Activity::default();
            for code in codes {
                activity.git_refused(problem(code));
            }
            assert!(!activity.git_missed_the_gateway());
            assert_eq!(activity.take_git_problem(), Some(problem("repo_auth")));
            assert!(!activity.git_missed_the_gateway());
        }
        for code in PASSING {
            let activity = Activity::default();
            activity.git_refused(problem(code));
            assert!(activity.git_missed_the_gateway(), "{code}");
        }
    }
}
