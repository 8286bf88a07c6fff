//! MCP servers: how the agent is told of them, and waiting for those that a workflow cannot do without.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use caisson_claude::{Action, Line, ServerState, ServerStatus, mcp_status, server_statuses};
use caisson_domain::protocol::{AgentWork, paths};
use caisson_domain::run::{Failure, FailureKind, cut};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep_until};

use crate::activity::Activity;
use crate::agent::{Agent, Heard};
use crate::places::Places;
use crate::process::find_program;
use crate::server_stderr::ServerStderrs;
use crate::watch::Patience;

/// What the ids of the shim's questions for servers begin with. Their answers are not journaled: they show how each server is
/// started.
const QUESTION: &str = "caisson-servers-";
/// Time between two questions, in milliseconds.
const ASK_EVERY_MS: u64 = 200;
/// What of a server's standard error stands in one sentence with its name, in bytes: of the last line.
const LAST_LINE_BYTES: usize = 400;

/// The servers of the agent's configuration: those of the anchor, and in their place those of the workflow that have the same
/// names. Those behind the door have no more than the listener's address; the shim adds the grant.
pub(crate) fn configured(
    acting: &Map<String, Value>,
    work: &AgentWork,
    loopback: &str,
) -> Map<String, Value> {
    let mut servers = acting.clone();
    servers.extend(work.mcp_servers.clone());
    servers.extend(work.mcp_http.iter().map(|name| {
        let url = format!("{loopback}{}/{name}", paths::MCP);
        (name.clone(), json!({"type": "http", "url": url}))
    }));
    servers
}

/// The first required server that the agent is not told of: the gateway could not read how it is reached.
pub(crate) fn unreadable(work: &AgentWork) -> Option<&str> {
    let is_told = |name: &String| work.mcp_servers.contains_key(name) || work.mcp_http.contains(name);
    work.mcp_required.iter().find(|name| !is_told(name)).map(String::as_str)
}

/// The first required server whose program is not on the search path, with that program, unless the set-up command could put it there.
pub(crate) fn missing<'a>(work: &'a AgentWork, path: &str, places: &Places) -> Option<(&'a str, &'a str)> {
    let open = [&places.home, &places.workspace, &places.tmp];
    if std::env::split_paths(path).any(|part| open.iter().any(|open| part.starts_with(open))) {
        return None;
    }
    work.mcp_required.iter().find_map(|name| {
        let server = work.mcp_servers.get(name)?;
        let program = server.get("command")?.as_str()?;
        let is_searched = !program.contains('/') && server.pointer("/env/PATH").is_none();
        (is_searched && find_program(path, program).is_none()).then_some((name.as_str(), program))
    })
}

/// The workflow's rules for calls that need no asking, and the tools of its own servers: whoever wrote it wants them used, and
/// nobody is there to be asked. Where it has rules of its own for a server, those alone count.
pub(crate) fn allowed(work: &AgentWork) -> Vec<String> {
    // A rule with other characters would be read as another one.
    let names =
        work.mcp_servers.keys().chain(&work.mcp_http).filter(|name| caisson_domain::mcp::is_name(name));
    let own = |server: &String| {
        let of_it = |rule: &String| {
            rule.strip_prefix(server.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with("__"))
        };
        work.allowed_tools.iter().any(of_it)
    };
    let whole = names.map(|name| format!("mcp__{name}")).filter(|server| !own(server));
    work.allowed_tools.iter().cloned().chain(whole).collect()
}

/// The questions of [`Agent::wait_for_servers`] that are not answered yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Questions(Arc<AtomicU32>);

impl Questions {
    /// Whether the line answers one of them. What only looks like it is journaled like all else.
    pub(crate) fn are_answered_by(&self, line: &Line) -> bool {
        is_answer(line) && self.0.fetch_update(Relaxed, Relaxed, |open| open.checked_sub(1)).is_ok()
    }
}

fn is_answer(line: &Line) -> bool {
    matches!(line, Line::ControlResponse(answer) if answer.request_id.starts_with(QUESTION))
}

/// Why the agent has no prompt yet.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// All of them are connected.
    Ready,
    /// One is not yet.
    Waiting(String),
    /// One will not be.
    Lost(String, Option<String>),
}

/// How the required servers are; one that is not told of is not yet there.
fn state(required: &[String], told: &[ServerStatus]) -> State {
    let mut waiting = None;
    for name in required {
        match told.iter().find(|server| server.name == *name).map(|server| (&server.state, &server.error)) {
            Some((ServerState::Connected, _)) => {}
            Some((ServerState::Lost(_), error)) => return State::Lost(name.clone(), error.clone()),
            Some((ServerState::Pending, _)) | None => {
                waiting.get_or_insert_with(|| name.clone());
            }
        }
    }
    waiting.map_or(State::Ready, State::Waiting)
}

impl Agent {
    /// Waits until the required servers are connected, before the agent has a prompt.
    ///
    /// # Errors
    /// [`Failure`] when one of them fails, or is not connected within [`Patience::servers`] (and [`Patience::servers_least`] of the
    /// agent's first answer), and when the agent does not tell within [`Patience::begin`] how they are. That the agent itself ends is left to the turn to tell.
    pub(crate) async fn wait_for_servers(&mut self, required: &[String]) -> Result<(), Failure> {
        let Patience { begin, servers, servers_least, .. } = self.patience;
        if required.is_empty() {
            return Ok(());
        }
        // A busy machine starts the agent slowly, which is no fault of the servers.
        let began = Instant::now();
        let mut end = began + begin;
        let mut waits_for = required[0].clone();
        let mut is_told = false;
        for number in 0_u32.. {
            self.questions.0.fetch_add(1, Relaxed);
            self.write(mcp_status(&format!("{QUESTION}{number}")));
            let ask_again = Instant::now() + Duration::from_millis(ASK_EVERY_MS);
            let Some(answer) = self.next_answer(end).await else { break };
            if let Some(told) = answer {
                match state(required, &told) {
                    State::Ready => return Ok(()),
                    State::Lost(name, error) => {
                        return Err(self.clues.lost(&name, Need::Required, error.as_deref()).await);
                    }
                    State::Waiting(name) => waits_for = name,
                }
                if !is_told {
                    (is_told, end) = (true, (began + servers).max(Instant::now() + servers_least));
                }
            }
            if ask_again > end {
                break;
            }
            sleep_until(ask_again).await;
        }
        if self.closed {
            return Ok(());
        }
        let message = late(&waits_for, is_told, if is_told { servers } else { begin });
        Err(self.clues.explain(&waits_for, message, None).await)
    }

    /// The next answer, itself none if the agent could not give one; none when the output ends or `end` has come.
    async fn next_answer(&mut self, end: Instant) -> Option<Option<Vec<ServerStatus>>> {
        loop {
            let heard = tokio::select! {
                heard = self.heard.recv(), if !self.closed => heard,
                () = sleep_until(end) => return None,
            };
            match heard {
                Some(Heard::Line(line)) => {
                    self.note(&line);
                    if let Line::ControlResponse(answer) = &*line
                        && is_answer(&line)
                    {
                        return Some(server_statuses(answer));
                    }
                    if let Some(Action::Write(answer)) = self.observe(&line) {
                        self.write(answer);
                    }
                }
                // The turn meets the same, and fails by it.
                Some(Heard::Unwritten(_)) => {}
                None => {
                    self.closed = true;
                    return None;
                }
            }
        }
    }
}

/// Nobody knows more than that the time is over.
fn late(name: &str, is_told: bool, patience: Duration) -> String {
    let seconds = patience.as_secs_f32();
    if is_told {
        format!("the MCP server \"{name}\", which the workflow requires, did not connect within {seconds} s")
    } else {
        format!(
            "the agent did not tell within {seconds} s whether the MCP server \"{name}\", which the workflow requires, is \
             connected"
        )
    }
}

/// Whether a run can do without a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Required,
    Optional,
}

/// What there is to say why a server cannot be used: the gateway's reason, and what it wrote to standard error itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clues {
    pub(crate) activity: Arc<Activity>,
    pub(crate) stderrs: ServerStderrs,
}

impl Clues {
    /// That a server is lost, with what the agent says of it.
    pub(crate) async fn lost(&self, name: &str, need: Need, error: Option<&str>) -> Failure {
        let which = match need {
            Need::Required => ", which the workflow requires,",
            Need::Optional => "",
        };
        self.explain(name, format!("the MCP server \"{name}\"{which} did not start or connect"), error).await
    }

    /// The gateway's word counts more than the agent's; the last line that the server wrote stands in the sentence, and the end of all
    /// that it wrote is the evidence, behind what the agent says.
    async fn explain(&self, name: &str, message: String, error: Option<&str>) -> Failure {
        if let Some(problem) = self.activity.take_mcp_problem(name) {
            return Failure::new(FailureKind::SetupFailed, problem.message);
        }
        let Some(stderr) = self.stderrs.end_of(name).await else {
            let failure = Failure::new(FailureKind::SetupFailed, message);
            return match error {
                Some(error) => failure.with_evidence(error),
                None => failure,
            };
        };
        let last = stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let message = format!("{message}; its standard error ends with: {}", beginning(last));
        let said = error.map(|error| format!("{error}\n")).unwrap_or_default();
        Failure::new(FailureKind::SetupFailed, message)
            .with_evidence(format!("{said}standard error of the server:\n{stderr}"))
    }
}

/// A line up to its bound, cut between two words: a part of a secret is not known to be one.
fn beginning(line: &str) -> &str {
    let whole = cut(line, LAST_LINE_BYTES);
    if whole.len() == line.len() {
        line
    } else {
        whole.rsplit_once(char::is_whitespace).map_or("", |(words, _)| words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_domain::protocol::DoorProblem;

    fn told(servers: &[(&str, ServerState)]) -> Vec<ServerStatus> {
        let one = |(name, state): &(&str, ServerState)| ServerStatus {
            name: (*name).to_owned(),
            state: state.clone(),
            error: Some("why".to_owned()),
        };
        servers.iter().map(one).collect()
    }

    #[test]
    fn a_servers_tools_need_no_asking_unless_the_workflow_names_some_of_them() {
        let mut work = crate::work::tests::work(&caisson_domain::id::RunId::new(1, [1; 10]), 1).agent;
        let server = |name: &str| (name.to_owned(), json!({"command": "x"}));
        work.mcp_servers = [server("git"), server("git2"), server("a b")].into_iter().collect();
        work.mcp_http = vec!["notes".to_owned()];
        assert_eq!(allowed(&work), ["mcp__git", "mcp__git2", "mcp__notes"]);
        work.allowed_tools = vec!["Bash(make *)".to_owned(), "mcp__git__status".to_owned()];
        assert_eq!(allowed(&work), ["Bash(make *)", "mcp__git__status", "mcp__git2", "mcp__notes"]);
    }

    #[test]
    fn a_program_is_missing_only_if_no_set_up_command_can_put_it_on_the_search_path() {
        let mut work = crate::work::tests::work(&caisson_domain::id::RunId::new(1, [1; 10]), 1).agent;
        let places = Places::of_a_sandbox();
        work.mcp_required = vec!["a".to_owned()];
        let mut missing = |server: Value, path: &str| {
            work.mcp_servers.insert("a".to_owned(), server);
            missing(&work, path, &places).map(|(name, program)| (name.to_owned(), program.to_owned()))
        };
        let none = json!({"command": "no-such-server"});
        let told = Some(("a".to_owned(), "no-such-server".to_owned()));
        assert_eq!(missing(none.clone(), "/usr/bin:/bin"), told);
        let in_home = format!("{}/.local/bin:/usr/bin", places.home.display());
        assert_eq!(missing(none, &in_home), None);
        for other in [
            json!({"command": "sh"}),
            json!({"command": "node_modules/.bin/server"}),
            json!({"command": "no-such-server", "env": {"PATH": "/workspace/bin"}}),
            json!({"type": "http"}),
        ] {
            assert_eq!(missing(other.clone(), "/usr/bin:/bin"), None, "{other}");
        }
    }

    #[test]
    fn one_that_is_lost_counts_more_than_those_that_are_waited_for() {
        let required = ["a".to_owned(), "b".to_owned()];
        let lost = || ServerState::Lost("failed".to_owned());
        let connected = || ServerState::Connected;
        assert_eq!(
            state(&required, &told(&[("a", connected()), ("b", connected()), ("c", lost())])),
            State::Ready
        );
        assert_eq!(state(&required, &told(&[("a", connected())])), State::Waiting("b".to_owned()));
        assert_eq!(
            state(&required, &told(&[("a", ServerState::Pending), ("b", connected())])),
            State::Waiting("a".to_owned())
        );
        let both = told(&[("a", ServerState::Pending), ("b", lost())]);
        assert_eq!(state(&required, &both), State::Lost("b".to_owned(), Some("why".to_owned())));
    }

    #[tokio::test]
    async fn the_gateways_reason_counts_more_than_the_agents() {
        let clues = Clues::default();
        let refuse = |server: &str| {
            let problem = DoorProblem { code: "mcp_x".to_owned(), message: "because".to_owned() };
            clues.activity.mcp_refused(server, problem);
        };
        refuse("a");
        assert_eq!(clues.lost("a", Need::Required, Some("cli")).await.message, "because");
        let own = clues.lost("b", Need::Required, Some("cli")).await;
        assert_eq!((own.kind, own.evidence.as_deref()), (FailureKind::SetupFailed, Some("cli")));
        let optional = clues.lost("b", Need::Optional, None).await.message;
        assert_eq!(optional, "the MCP server \"b\" did not start or connect");
        refuse("a");
        clues.activity.mcp_reached("a");
        assert_eq!(clues.activity.take_mcp_problem("a"), None, "it was reached since");
    }

    #[test]
    fn a_long_line_is_cut_at_its_bound_and_between_words() {
        let fits = "x".repeat(LAST_LINE_BYTES);
        assert_eq!(beginning(&fits), fits);
        assert_eq!(beginning(&format!("{fits}x")), "");
        assert_eq!(beginning(&format!("no index {fits}")), "no index");
    }
}
