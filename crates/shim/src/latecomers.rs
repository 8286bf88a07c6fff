//! MCP servers that are not connected when the agent begins, and that its workflow can do without: what becomes of them is told. The
//! agent itself tells no more of it than how they are when it begins, and why not at all.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_claude::{ControlResponse, Line, McpServer, ServerState, mcp_status, server_statuses};
use caisson_domain::protocol::NoteLevel;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use crate::diagnostics::say;
use crate::journal::WriteError;
use crate::recorder::Recorder;
use crate::servers::{Clues, Need};

/// What the ids of the questions begin with.
const QUESTION: &str = "caisson-latecomers-";
/// Time between two questions, in milliseconds.
const ASK_EVERY_MS: u64 = 1_000;
/// Most questions since the agent began: Claude Code 2.1.330 gives a server up after 30 s, unless `MCP_TIMEOUT` says otherwise.
const QUESTIONS: u32 = 90;

/// The servers of one agent.
#[derive(Clone)]
pub(crate) struct Latecomers(Arc<Inner>);

struct Inner {
    clues: Clues,
    /// The names of all of them.
    names: BTreeSet<String>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those of which it is not known what becomes of them.
    open: BTreeSet<String>,
    /// Those that were told to be lost.
    lost: BTreeSet<String>,
    /// Questions that were asked.
    asked: u32,
    /// Those of them that are not answered.
    unanswered: u32,
}

impl Latecomers {
    pub(crate) fn new(names: impl Iterator<Item = String>, clues: Clues) -> Self {
        let (state, changed) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { clues, names: names.collect(), state, changed }))
    }

    /// Takes in a line: how the servers are when the agent begins, and answers to the questions of [`Latecomers::ask`]. Whether it was
    /// such an answer, which is for nobody else and is not journaled: it shows how each server is started.
    ///
    /// # Errors
    /// [`WriteError`] if what became of a server cannot be journaled.
    pub(crate) async fn heard(&self, line: &Line, recorder: &Recorder) -> Result<bool, WriteError> {
        if let Line::Init(init) = line {
            self.begun(&init.mcp_servers);
        }
        let Line::ControlResponse(answer) = line else { return Ok(false) };
        let Some(lost) = self.answered(answer) else { return Ok(false) };
        for (name, error) in lost {
            let failure = self.0.clues.lost(&name, Need::Optional, error.as_deref()).await;
            let evidence = failure.evidence.map(|evidence| format!("\n{evidence}")).unwrap_or_default();
            recorder.note(NoteLevel::Warn, format!("{}{evidence}", failure.message)).await?;
        }
        Ok(true)
    }

    /// Asks how they are while there is one of which it is not known, as long as the agent can be asked.
    ///
    /// # Cancel safety
    /// May be given up at any point; then nobody asks any more.
    pub(crate) async fn ask(self, input: mpsc::WeakSender<String>) {
        loop {
            self.0.changed.notified().await;
            while let Some(question) = self.question() {
                let Some(input) = input.upgrade() else { return };
                if input.try_send(question).is_err() {
                    say("the agent does not read its input, and is not asked how its MCP servers are");
                    return;
                }
                drop(input);
                sleep(Duration::from_millis(ASK_EVERY_MS)).await;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self, servers: &[McpServer]) {
        let mut state = self.state();
        for server in servers.iter().filter(|server| server.status != "connected") {
            if self.0.names.contains(&server.name) && !state.lost.contains(&server.name) {
                state.open.insert(server.name.clone());
            }
        }
        if !state.open.is_empty() {
            self.0.changed.notify_one();
        }
    }

    /// The next question; none if there is nothing to ask, or it was asked often enough.
    fn question(&self) -> Option<String> {
        let mut state = self.state();
        if state.open.is_empty() || state.asked >= QUESTIONS {
            return None;
        }
        state.asked += 1;
        state.unanswered += 1;
        Some(mcp_status(&format!("{QUESTION}{}", state.asked)))
    }

    /// Those that are lost by an answer, with what the agent says of it; none if it answers no question of these.
    fn answered(&self, answer: &ControlResponse) -> Option<Vec<(String, Option<String>)>> {
        let mut state = self.state();
        if !answer.request_id.starts_with(QUESTION) || state.unanswered == 0 {
            return None;
        }
        state.unanswered -= 1;
        let mut lost = Vec::new();
        for server in server_statuses(answer).unwrap_or_default() {
            match server.state {
                ServerState::Pending => {}
                ServerState::Connected => {
                    state.open.remove(&server.name);
                }
                ServerState::Lost(_) => {
                    if state.open.remove(&server.name) {
                        state.lost.insert(server.name.clone());
                        lost.push((server.name, server.error));
                    }
                }
            }
        }
        Some(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_claude::parse;

    fn latecomers() -> Latecomers {
        Latecomers::new(["a", "b"].map(str::to_owned).into_iter(), Clues::default())
    }

    fn server(name: &str, status: &str) -> McpServer {
        McpServer { name: name.to_owned(), status: status.to_owned() }
    }

    fn answer(id: &str, servers: &str) -> ControlResponse {
        let line = format!(
            r#"{{"type":"control_response","response":{{"subtype":"success","request_id":"{id}","response":{{"mcpServers":[{servers}]}}}}}}"#
        );
        let Line::ControlResponse(answer) = parse(line.as_bytes()) else { panic!("{line}") };
        answer
    }

    #[test]
    fn only_those_that_are_not_connected_are_asked_for_until_it_is_known_what_became_of_them() {
        let latecomers = latecomers();
        latecomers.begun(&[server("a", "connected")]);
        assert_eq!(latecomers.question(), None);
        latecomers.begun(&[server("a", "connected"), server("b", "pending"), server("stranger", "failed")]);
        assert!(latecomers.question().unwrap().contains("caisson-latecomers-1"));
        let pending = r#"{"name":"b","status":"pending"}"#;
        assert_eq!(latecomers.answered(&answer("caisson-latecomers-1", pending)), Some(Vec::new()));
        assert!(latecomers.question().is_some());
        let failed = r#"{"name":"a","status":"failed"},{"name":"b","status":"failed","error":"why"}"#;
        let lost = latecomers.answered(&answer("caisson-latecomers-2", failed)).unwrap();
        assert_eq!(
            lost,
            [("b".to_owned(), Some("why".to_owned()))],
            "each is told once, and who was connected not at all"
        );
        assert_eq!(latecomers.question(), None);
        // It fails in every later beginning as well.
        latecomers.begun(&[server("b", "failed")]);
        assert_eq!(latecomers.question(), None);
    }

    #[test]
    fn only_answers_that_were_asked_for_are_taken() {
        let latecomers = latecomers();
        let connected = r#"{"name":"b","status":"connected"}"#;
        assert_eq!(latecomers.answered(&answer("caisson-latecomers-1", connected)), None);
        latecomers.begun(&[server("b", "pending")]);
        latecomers.question().unwrap();
        assert_eq!(latecomers.answered(&answer("another", connected)), None);
        assert_eq!(latecomers.answered(&answer("caisson-latecomers-1", connected)), Some(Vec::new()));
        assert_eq!(latecomers.answered(&answer("caisson-latecomers-1", connected)), None);
    }

    #[test]
    fn questions_are_bounded() {
        let latecomers = latecomers();
        latecomers.begun(&[server("b", "pending")]);
        let asked = std::iter::from_fn(|| latecomers.question()).take(1000).count();
        assert_eq!(asked, QUESTIONS as usize);
    }
}
