use serde_json::{Value, json};

use super::*;
use crate::line::parse;

const ONE: &str = "11111111-1111-4111-8111-111111111111";
const TWO: &str = "22222222-2222-4222-8222-222222222222";

fn line(value: &Value) -> Line {
    parse(value.to_string().as_bytes())
}

fn result(fields: &Value) -> Line {
    let mut result = json!({ "type": "result", "subtype": "success", "is_error": false });
    if let (Value::Object(result), Value::Object(fields)) = (&mut result, fields) {
        result.extend(fields.clone());
    }
    line(&result)
}

fn lifecycle(prompt: &str, state: &str) -> Line {
    line(&json!({ "type": "command_lifecycle", "command_uuid": prompt, "state": state }))
}

fn request(id: &str, subtype: &str) -> Line {
    line(&json!({ "type": "control_request", "request_id": id, "request": { "subtype": subtype } }))
}

fn with_prompts(prompts: &[&str]) -> Conversation {
    let mut conversation = Conversation::new(&["can_use_tool"]);
    for prompt in prompts {
        conversation.prompt_sent(&Uuid::parse(prompt).unwrap()).unwrap();
    }
    conversation
}

fn settled(action: Option<Action>) -> Vec<String> {
    match action {
        Some(Action::Finished(finished)) => finished.prompts,
        action => panic!("{action:?}"),
    }
}

#[test]
fn a_prompt_runs_from_sending_to_result() {
    let mut conversation = Conversation::new(&[]);
    assert!(!conversation.is_running() && !conversation.spoke());
    conversation.prompt_sent(&Uuid::parse(ONE).unwrap()).unwrap();
    assert!(conversation.is_running());
    for state in ["queued", "started"] {
        assert_eq!(conversation.observe(&lifecycle(ONE, state)), None);
    }
    assert_eq!(settled(conversation.observe(&result(&json!({ "user_message_uuids": [ONE] })))), [ONE]);
    assert_eq!(conversation.observe(&lifecycle(ONE, "completed")), None);
    assert!(!conversation.is_running() && conversation.spoke());
    assert_eq!(conversation.results(), 1);
}

#[test]
fn a_result_settles_all_prompts_it_names_and_no_other() {
    let mut conversation = with_prompts(&[ONE, TWO]);
    let first = result(&json!({ "user_message_uuids": [ONE, "somebody-else"] }));
    assert_eq!(settled(conversation.observe(&first)), [ONE]);
    assert!(conversation.is_running());
    assert_eq!(settled(conversation.observe(&result(&json!({ "user_message_uuid": TWO })))), [TWO]);
    assert!(!conversation.is_running());

    let mut folded = with_prompts(&[ONE, TWO]);
    let both = result(&json!({ "user_message_uuids": [TWO, ONE] }));
    assert_eq!(settled(folded.observe(&both)), [ONE, TWO]);
}

#[test]
fn a_prompt_is_settled_once() {
    let mut conversation = with_prompts(&[ONE]);
    let again = result(&json!({ "user_message_uuids": [ONE] }));
    assert_eq!(settled(conversation.observe(&again)), [ONE]);
    assert!(settled(conversation.observe(&again)).is_empty());
}

#[test]
fn a_result_without_names_is_for_what_has_started() {
    let mut conversation = with_prompts(&[ONE, TWO]);
    conversation.observe(&lifecycle(ONE, "started"));
    assert_eq!(settled(conversation.observe(&result(&json!({})))), [ONE]);
    assert_eq!(settled(conversation.observe(&result(&json!({})))), [TWO]);
}

#[test]
fn a_result_that_something_else_began_settles_nothing() {
    let mut conversation = with_prompts(&[ONE]);
    conversation.observe(&lifecycle(ONE, "started"));
    let woken = result(&json!({ "origin": { "kind": "task-notification" } }));
    assert!(settled(conversation.observe(&woken)).is_empty());
    assert!(conversation.is_running());
}

#[test]
fn a_prompt_that_completes_without_starting_was_seen_before() {
    let mut conversation = with_prompts(&[ONE]);
    let action = Action::Unanswered { prompt: ONE.to_owned(), why: Unanswered::SeenBefore };
    assert_eq!(conversation.observe(&lifecycle(ONE, "completed")), Some(action));
    assert!(!conversation.is_running());
}

#[test]
fn a_prompt_taken_back_has_no_result() {
    let mut conversation = with_prompts(&[ONE]);
    conversation.observe(&lifecycle(ONE, "queued"));
    let action = Action::Unanswered { prompt: ONE.to_owned(), why: Unanswered::Dropped };
    assert_eq!(conversation.observe(&lifecycle(ONE, "cancelled")), Some(action));
    assert_eq!(conversation.observe(&lifecycle(ONE, "cancelled")), None);
}

#[test]
fn a_started_prompt_waits_for_its_result_while_the_turn_lasts() {
    for state in ["completed", "cancelled"] {
        let mut conversation = with_prompts(&[ONE, TWO]);
        conversation.observe(&lifecycle(ONE, "started"));
        conversation.observe(&lifecycle(TWO, "started"));
        assert_eq!(conversation.observe(&lifecycle(TWO, state)), None);
        conversation.observe(&result(&json!({ "user_message_uuids": [ONE] })));
        let action = Action::Unanswered { prompt: TWO.to_owned(), why: Unanswered::Dropped };
        assert_eq!(conversation.observe(&lifecycle(TWO, state)), Some(action));
    }
}

#[test]
fn a_turn_that_nobody_asked_for_counts_as_running() {
    let mut conversation = Conversation::new(&[]);
    conversation.observe(&line(&json!({ "type": "system", "subtype": "init" })));
    assert!(conversation.is_running());
    conversation.observe(&result(&json!({ "queued_turn_count": 1 })));
    assert!(conversation.is_running());
    conversation.observe(&result(&json!({ "queued_turn_count": 0 })));
    assert!(!conversation.is_running());
    assert_eq!(conversation.results(), 2);
}

#[test]
fn a_prompt_is_sent_once() {
    let mut conversation = with_prompts(&[ONE]);
    conversation.observe(&result(&json!({ "user_message_uuids": [ONE] })));
    let prompt = Uuid::parse(ONE).unwrap();
    let error = ConversationError::Repeated { prompt: prompt.clone() };
    assert_eq!(error.to_string(), format!("prompt {ONE} was sent before"));
    assert_eq!(conversation.prompt_sent(&prompt), Err(error));
}

#[test]
fn prompts_end() {
    let prompt = |n: usize| Uuid::parse(&format!("{n:08}-0000-4000-8000-000000000000")).unwrap();
    let mut conversation = Conversation::new(&[]);
    for n in 0..PROMPTS_MAX {
        conversation.prompt_sent(&prompt(n)).unwrap();
    }
    let error = conversation.prompt_sent(&prompt(PROMPTS_MAX)).unwrap_err();
    assert_eq!(error, ConversationError::TooMany);
    assert_eq!(error.to_string(), "1024 prompts were sent to one process");
}

#[test]
fn what_the_driver_does_not_answer_is_refused_at_once() {
    let mut conversation = Conversation::new(&["can_use_tool"]);
    let refusal = Action::Write(answer_unsupported("r1", "hook_callback"));
    assert_eq!(conversation.observe(&request("r1", "hook_callback")), Some(refusal));
    let odd = line(&json!({ "type": "control_request", "request_id": "r2" }));
    assert_eq!(conversation.observe(&odd), Some(Action::Write(answer_unsupported("r2", ""))));
    assert!(conversation.awaiting().is_empty());
}

#[test]
fn a_request_waits_until_it_is_answered_withdrawn_or_refused() {
    let mut conversation = Conversation::new(&["can_use_tool"]);
    for id in ["a", "b", "c", "a"] {
        assert!(matches!(conversation.observe(&request(id, "can_use_tool")), Some(Action::Answer(_))));
    }
    let ids: Vec<_> = conversation.awaiting().iter().map(|request| request.request_id.clone()).collect();
    assert_eq!(ids, ["b", "c", "a"]);

    assert!(conversation.answered("a"));
    assert!(!conversation.answered("a"));
    let cancel = line(&json!({ "type": "control_cancel_request", "request_id": "b" }));
    let withdrawn = Action::Withdrawn { request_id: "b".to_owned() };
    assert_eq!(conversation.observe(&cancel), Some(withdrawn));
    assert_eq!(conversation.observe(&cancel), None);
    assert_eq!(conversation.refuse_awaiting(), [answer_unsupported("c", "can_use_tool")]);
    assert!(conversation.awaiting().is_empty());
}

#[test]
fn requests_that_wait_end() {
    let mut conversation = Conversation::new(&["can_use_tool"]);
    for n in 0..AWAITING_MAX {
        let action = conversation.observe(&request(&n.to_string(), "can_use_tool"));
        assert!(matches!(action, Some(Action::Answer(_))));
    }
    let refusal = Action::Write(answer_unsupported("more", "can_use_tool"));
    assert_eq!(conversation.observe(&request("more", "can_use_tool")), Some(refusal));
    assert_eq!(conversation.awaiting().len(), AWAITING_MAX);
}

#[test]
fn noise_is_no_event() {
    let mut conversation = with_prompts(&[ONE]);
    assert_eq!(conversation.observe(&parse(b"Segmentation fault")), None);
    assert!(!conversation.spoke());
    assert_eq!(conversation.observe(&lifecycle(TWO, "completed")), None);
    assert_eq!(conversation.observe(&lifecycle(ONE, "parked")), None);
    assert!(conversation.spoke() && conversation.is_running());
}
