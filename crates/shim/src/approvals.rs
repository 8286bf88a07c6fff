//! What the agent asks before it uses a tool: told to the server, and answered by it alone, however long that takes. Only
//! who runs the server says that nobody has answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_claude::{ControlRequest, Line, allow_tool, deny_tool};
use caisson_domain::approval::{
    APPROVAL_INPUT_BYTES, APPROVAL_TEXT_BYTES, APPROVALS_WAITING, Answer, RUN_APPROVALS,
};
use caisson_domain::input::InputState;
use caisson_domain::protocol::{JournalBody, NoteLevel};
use caisson_domain::run::cut;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::diagnostics::say;
use crate::journal::WriteError;
use crate::recorder::Recorder;

/// How Claude Code 2.1.330 asks.
const ASKS: &str = "can_use_tool";

/// What the agent of one run asks.
#[derive(Debug, Clone)]
pub(crate) struct Approvals(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Whether the workflow has it ask.
    enabled: bool,
    /// Its names for all that it has asked, at most [`RUN_APPROVALS`] of at most [`APPROVAL_TEXT_BYTES`].
    seen: BTreeSet<String>,
    /// What it wants to give to the tools, by its own names for what it asks.
    waiting: BTreeMap<String, Value>,
    agent: Option<Way>,
}

/// The way to the agent. It does not keep its input open.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) input: mpsc::WeakSender<String>,
    pub(crate) moved: Arc<Mutex<Instant>>,
}

/// What comes of a line.
#[derive(Debug, PartialEq)]
enum Noted {
    Nothing,
    Tell(JournalBody),
    /// What cannot be asked; the line refuses it.
    Refuse(String, &'static str),
}

impl Approvals {
    pub(crate) fn new(enabled: bool) -> Self {
        let state = State { enabled, seen: BTreeSet::new(), waiting: BTreeMap::new(), agent: None };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how the agent is reached.
    pub(crate) fn connect(&self, agent: Way) {
        self.state().agent = Some(agent);
    }

    /// Whether a line is about what is asked here, so that nobody else answers it.
    pub(crate) fn take(&self, line: &Line) -> bool {
        let asks = match line {
            Line::ControlRequest(request) => request.subtype == ASKS,
            Line::ControlCancel { .. } => true,
            Line::Init(_)
            | Line::Assistant(_)
            | Line::User(_)
            | Line::StreamDelta(_)
            | Line::ApiRetry(_)
            | Line::Result(_)
            | Line::ControlResponse(_)
            | Line::CommandLifecycle(_)
            | Line::PermissionDenied(_)
            | Line::Other { .. }
            | Line::NotJson => false,
        };
        asks && self.state().enabled
    }

    /// Takes in a line that was journaled: tells the server what the agent asks, or no longer asks.
    ///
    /// # Errors
    /// [`WriteError`] if it cannot be journaled.
    pub(crate) async fn heard(&self, line: &Line, recorder: &Recorder) -> Result<(), WriteError> {
        match self.note(line) {
            Noted::Nothing => {}
            Noted::Tell(body) => {
                recorder.write(body).await?;
            }
            Noted::Refuse(answer, why) => {
                self.write(answer);
                recorder.note(NoteLevel::Warn, why).await?;
            }
        }
        Ok(())
    }

    fn note(&self, line: &Line) -> Noted {
        if !self.take(line) {
            return Noted::Nothing;
        }
        if let Line::ControlRequest(request) = line {
            return self.asked(request);
        }
        if let Line::ControlCancel { request_id } = line
            && self.state().waiting.remove(request_id).is_some()
        {
            return Noted::Tell(JournalBody::ApprovalWithdrawn { request: request_id.clone() });
        }
        Noted::Nothing
    }

    fn asked(&self, request: &ControlRequest) -> Noted {
        let refuse = |why| Noted::Refuse(deny_tool(&request.request_id, why), why);
        let name = request.request_id.clone();
        if name.is_empty() || name.len() > APPROVAL_TEXT_BYTES {
            return refuse("the agent asked under a name that is too long; it was refused");
        }
        let mut state = self.state();
        // The server knows the name already: it would show the input of then, and answer it once.
        if state.seen.contains(&name) {
            return refuse("the agent asked again under a name that it had used before; it was refused");
        }
        if state.waiting.len() >= APPROVALS_WAITING {
            return refuse("too many approvals wait already; this one was refused");
        }
        if state.seen.len() >= RUN_APPROVALS {
            return refuse("the run has asked for as many approvals as one may; this one was refused");
        }
        let mut asked: Value = serde_json::from_str(&request.request).unwrap_or_default();
        let input = asked["input"].take();
        let text = input.to_string();
        let short = |text: &str| cut(text, APPROVAL_TEXT_BYTES).to_owned();
        let kept = cut(&text, APPROVAL_INPUT_BYTES);
        let body = JournalBody::ApprovalRequested {
            request: name.clone(),
            tool: short(request.tool_name.as_deref().unwrap_or_default()),
            description: asked["description"].as_str().map(short),
            input: kept.to_owned(),
            cut_bytes: (text.len() - kept.len()) as u64,
        };
        state.seen.insert(name.clone());
        state.waiting.insert(name, input);
        Noted::Tell(body)
    }

    /// Gives the agent the server's answer; what it does not wait for is undelivered.
    pub(crate) fn answer(&self, request: &str, answer: Answer) -> InputState {
        let Some(input) = self.state().waiting.remove(request) else { return InputState::Undelivered };
        let line = match answer {
            Answer::Allow { input: None } => allow_tool(request, &input),
            Answer::Allow { input: Some(changed) } => allow_tool(request, &changed.into()),
            Answer::Deny { message } => deny_tool(request, &message),
        };
        if self.write(line) { InputState::Delivered } else { InputState::Undelivered }
    }

    /// Whether the agent waits for an answer: its silence is then not its own.
    pub(crate) fn are_waiting(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    fn write(&self, line: String) -> bool {
        let Some(Way { input, moved }) = self.state().agent.clone() else { return false };
        // Whatever it does next has its whole time.
        *moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let written = input.upgrade().is_some_and(|input| input.try_send(line).is_ok());
        if !written {
            say("an answer for the agent was dropped: it does not read its input, or has ended");
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_claude::parse;
    use serde_json::json;

    fn request(id: &str, input: &Value) -> Line {
        let request = json!({"subtype": ASKS, "tool_name": "Write", "description": "a.txt", "input": input});
        let line = json!({"type": "control_request", "request_id": id, "request": request});
        parse(line.to_string().as_bytes())
    }

    fn connected() -> (Approvals, mpsc::Sender<String>, mpsc::Receiver<String>) {
        let approvals = Approvals::new(true);
        let (input, lines) = mpsc::channel(4);
        let moved = Arc::new(Mutex::new(Instant::now()));
        approvals.connect(Way { input: input.downgrade(), moved });
        (approvals, input, lines)
    }

    fn written(lines: &mut mpsc::Receiver<String>) -> Value {
        let line: Value = serde_json::from_str(&lines.try_recv().unwrap()).unwrap();
        line["response"]["response"].clone()
    }

    #[tokio::test]
    async fn an_answer_goes_to_what_was_asked_and_to_nothing_else() {
        let (approvals, _open, mut lines) = connected();
        let input = json!({"file_path": "a.txt", "content": "x"});
        let Noted::Tell(JournalBody::ApprovalRequested {
            request: name, tool, description, input: told, ..
        }) = approvals.note(&request("r1", &input))
        else {
            panic!("not told")
        };
        assert_eq!((name.as_str(), tool.as_str(), description.as_deref()), ("r1", "Write", Some("a.txt")));
        assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), input);
        assert!(approvals.are_waiting());
        let yes = || Answer::Allow { input: None };
        assert_eq!(approvals.answer("r2", yes()), InputState::Undelivered);
        assert_eq!(approvals.answer("r1", yes()), InputState::Delivered);
        assert_eq!(written(&mut lines), json!({"behavior": "allow", "updatedInput": input}));
        assert_eq!(approvals.answer("r1", yes()), InputState::Undelivered, "once");
        assert!(!approvals.are_waiting());
        approvals.note(&request("r3", &input));
        let changed = json!({"content": "y"});
        let answer = Answer::Allow { input: changed.as_object().cloned() };
        assert_eq!(approvals.answer("r3", answer), InputState::Delivered);
        assert_eq!(written(&mut lines), json!({"behavior": "allow", "updatedInput": changed}));
        approvals.note(&request("r4", &input));
        approvals.answer("r4", Answer::Deny { message: "no".to_owned() });
        assert_eq!(written(&mut lines), json!({"behavior": "deny", "message": "no"}));
    }

    #[tokio::test]
    async fn a_request_that_the_agent_takes_back_waits_no_more() {
        let (approvals, _open, _lines) = connected();
        approvals.note(&request("r1", &json!({})));
        let cancel = parse(br#"{"type":"control_cancel_request","request_id":"r1"}"#);
        let told = JournalBody::ApprovalWithdrawn { request: "r1".to_owned() };
        assert_eq!(approvals.note(&cancel), Noted::Tell(told));
        assert_eq!(approvals.note(&cancel), Noted::Nothing);
        assert!(!approvals.are_waiting());
    }

    #[tokio::test]
    async fn a_name_that_was_used_before_is_refused_and_takes_no_other_ones_place() {
        let (approvals, _open, mut lines) = connected();
        let (shown, other) = (json!({"command": "ls"}), json!({"command": "curl x | sh"}));
        approvals.note(&request("r1", &shown));
        let refused = approvals.note(&request("r1", &other));
        let Noted::Refuse(line, _) = refused else { panic!("{refused:?}") };
        assert!(line.contains("\"deny\"") && line.contains("r1"), "{line}");
        assert_eq!(approvals.answer("r1", Answer::Allow { input: None }), InputState::Delivered);
        assert_eq!(written(&mut lines)["updatedInput"], shown, "what was shown is given");
        // Nobody would ever answer these: none of them may wait, or no watchdog would look after the agent any more.
        assert!(matches!(approvals.note(&request("r1", &shown)), Noted::Refuse(..)), "answered before");
        approvals.note(&request("r2", &shown));
        approvals.note(&parse(br#"{"type":"control_cancel_request","request_id":"r2"}"#));
        assert!(matches!(approvals.note(&request("r2", &shown)), Noted::Refuse(..)), "withdrawn before");
        assert!(!approvals.are_waiting());
    }

    #[tokio::test]
    async fn more_than_may_wait_or_be_asked_is_refused_at_once() {
        let (approvals, _open, _lines) = connected();
        for number in 0..APPROVALS_WAITING {
            assert!(matches!(approvals.note(&request(&number.to_string(), &json!({}))), Noted::Tell(_)));
        }
        let refused = approvals.note(&request("more", &json!({})));
        assert!(matches!(&refused, Noted::Refuse(line, _) if line.contains("\"deny\"")), "{refused:?}");
        let (approvals, _open, _lines) = connected();
        for number in 0..RUN_APPROVALS {
            let name = number.to_string();
            assert!(matches!(approvals.note(&request(&name, &json!({}))), Noted::Tell(_)));
            approvals.state().waiting.clear();
        }
        assert!(matches!(approvals.note(&request("more", &json!({}))), Noted::Refuse(..)));
        let long = "r".repeat(APPROVAL_TEXT_BYTES + 1);
        assert!(matches!(connected().0.note(&request(&long, &json!({}))), Noted::Refuse(..)));
    }

    #[tokio::test]
    async fn an_agent_that_does_not_ask_is_left_to_others_and_one_that_has_ended_gets_no_answer() {
        let line = request("r1", &json!({}));
        assert!(!Approvals::new(false).take(&line));
        let (approvals, open, _lines) = connected();
        assert!(approvals.take(&line));
        approvals.note(&line);
        drop(open);
        assert_eq!(approvals.answer("r1", Answer::Allow { input: None }), InputState::Undelivered);
    }

    #[tokio::test]
    async fn a_long_input_is_told_in_part_and_given_whole() {
        let (approvals, _open, mut lines) = connected();
        let input = json!({"content": "x".repeat(APPROVAL_INPUT_BYTES)});
        let Noted::Tell(JournalBody::ApprovalRequested { input: told, cut_bytes, .. }) =
            approvals.note(&request("r1", &input))
        else {
            panic!("not told")
        };
        assert_eq!((told.len(), cut_bytes), (APPROVAL_INPUT_BYTES, 14));
        approvals.answer("r1", Answer::Allow { input: None });
        assert_eq!(written(&mut lines)["updatedInput"], input);
    }
}
