//! What a sandbox tells of inputs and of approvals, with every text at its bound: pure.

use caisson_domain::approval::{APPROVAL_INPUT_BYTES, APPROVAL_TEXT_BYTES};
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ApprovalId, RunId};
use caisson_domain::input::InputState;
use caisson_domain::run::cut;
use caisson_store::{JournalEffect, NewApproval};
use serde_json::{Value, json};

type Told = (Option<NewEvent>, JournalEffect);

/// How far an input is.
pub(super) fn input(seq: i64, state: InputState) -> Told {
    let kind = match state {
        InputState::Held => EventKind::InputHeld,
        InputState::Delivered => EventKind::InputDelivered,
        InputState::Undelivered => EventKind::InputUndelivered,
        // Not the sandbox's to say.
        InputState::Accepted => return (None, JournalEffect::None),
    };
    (Some(NewEvent::new(kind, &json!({ "input": seq }))), JournalEffect::Input { seq, state })
}

/// The agent asks. A request whose name is cut could not be answered, so it is none.
pub(super) fn requested(run: &RunId, asked: NewApproval) -> Told {
    if asked.request.is_empty() || asked.request.len() > APPROVAL_TEXT_BYTES {
        return (None, JournalEffect::None);
    }
    let input = cut(&asked.input, APPROVAL_INPUT_BYTES);
    let more = i64::try_from(asked.input.len() - input.len()).unwrap_or(i64::MAX);
    let asked = NewApproval {
        tool: cut(&asked.tool, APPROVAL_TEXT_BYTES).to_owned(),
        description: asked.description.map(|text| cut(&text, APPROVAL_TEXT_BYTES).to_owned()),
        input: input.to_owned(),
        cut_bytes: asked.cut_bytes.max(0).saturating_add(more),
        request: asked.request,
    };
    let whole = (asked.cut_bytes == 0).then(|| serde_json::from_str::<Value>(&asked.input).ok()).flatten();
    let data = json!({
        "approval": ApprovalId::of(run, &asked.request),
        "tool": asked.tool,
        "description": asked.description,
        "input": whole.unwrap_or_else(|| Value::from(asked.input.as_str())),
        "cut_bytes": asked.cut_bytes,
    });
    (Some(NewEvent::new(EventKind::ApprovalRequested, &data)), JournalEffect::Asked(asked))
}

/// The agent no longer waits.
pub(super) fn withdrawn(run: &RunId, request: String) -> Told {
    let data = json!({ "approval": ApprovalId::of(run, &request) });
    (Some(NewEvent::new(EventKind::ApprovalWithdrawn, &data)), JournalEffect::AskedNoMore { request })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(request: &str, input: String) -> NewApproval {
        let tool = "t".repeat(APPROVAL_TEXT_BYTES + 1);
        let description = Some("d".repeat(APPROVAL_TEXT_BYTES + 1));
        NewApproval { request: request.to_owned(), tool, description, input, cut_bytes: -1 }
    }

    #[test]
    fn what_the_agent_asks_is_cut_to_its_bounds() {
        let run = RunId::new(1, [1; 10]);
        let fits = format!("\"{}\"", "x".repeat(APPROVAL_INPUT_BYTES - 2));
        let (event, effect) = requested(&run, asked("r", fits.clone()));
        let JournalEffect::Asked(kept) = effect else { panic!("{effect:?}") };
        assert_eq!((kept.input.as_str(), kept.cut_bytes), (fits.as_str(), 0));
        assert_eq!((kept.tool.len(), kept.description.unwrap().len()), (512, 512));
        assert!(event.unwrap().data.get().contains(ApprovalId::of(&run, "r").as_str()));
        let (event, effect) = requested(&run, asked("r", format!("{fits} ")));
        let JournalEffect::Asked(kept) = effect else { panic!("{effect:?}") };
        assert_eq!((kept.input.len(), kept.cut_bytes), (APPROVAL_INPUT_BYTES, 1));
        let data: Value = serde_json::from_str(event.unwrap().data.get()).unwrap();
        assert!(data["input"].as_str().unwrap().starts_with("\"xx"), "a part is shown as a text");
    }

    #[test]
    fn a_request_that_could_not_be_answered_is_none() {
        let run = RunId::new(1, [1; 10]);
        for name in [String::new(), "r".repeat(APPROVAL_TEXT_BYTES + 1)] {
            assert_eq!(requested(&run, asked(&name, "{}".to_owned())).1, JournalEffect::None);
        }
        assert_ne!(requested(&run, asked(&"r".repeat(512), "{}".to_owned())).1, JournalEffect::None);
    }

    #[test]
    fn that_an_input_was_accepted_is_not_for_the_sandbox_to_say() {
        assert!(input(1, InputState::Accepted).0.is_none());
        assert_eq!(input(1, InputState::Delivered).0.unwrap().kind, EventKind::InputDelivered);
    }
}
