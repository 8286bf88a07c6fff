//! Messages to the run that goes on.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use caisson_domain::id::RunId;
use caisson_domain::input::{InputKind, InputState};
use caisson_domain::limits::LONG_POLL_MS;
use caisson_domain::protocol::{Input, InputBody, JournalBody, NoteLevel, paths};
use caisson_domain::run::Failure;
use http::Method;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::approvals::Approvals;
use crate::attachments::{INPUT_HOLD_MS, Prompt, Source};
use crate::backoff::Backoff;
use crate::diagnostics::{Complaint, say};
use crate::door::Caller;
use crate::messages::{Message, Messenger, What};
use crate::recorder::Recorder;
use crate::stop::Stopper;

/// How much longer than the gateway's own wait an answer may take, in milliseconds.
pub(crate) const POLL_SLACK_MS: u64 = 10_000;
/// An answer without news that comes sooner than this, in milliseconds, was not waited for.
pub(crate) const POLL_LEAST_MS: u64 = 1000;

/// Who in the run hears of its messages.
#[derive(Debug)]
pub(crate) struct Hearers {
    pub(crate) stopper: Stopper,
    pub(crate) messenger: Messenger,
    pub(crate) approvals: Approvals,
}

/// What was taken in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Taken {
    /// Whether there was a message.
    news: bool,
    /// What can be told at once of how far messages are; of the others the turn tells.
    told: Vec<(i64, InputState)>,
    /// What has attachments to be fetched first, and what people sent behind it.
    later: Vec<(i64, InputBody)>,
}

/// How far the session's messages were read.
#[derive(Debug)]
pub(crate) struct Inputs {
    after: AtomicI64,
}

/// Messages as they come: one of a kind that is not known here is only counted.
#[derive(Debug, Deserialize)]
struct Received<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

impl Inputs {
    pub(crate) fn new() -> Self {
        Self { after: AtomicI64::new(0) }
    }

    /// Takes in messages for `run`, for ever, and tells of those that are dealt with at once.
    ///
    /// # Cancel safety
    /// Safe: a message that was not taken in comes again; one whose attachments were on their way is left to the end of the run.
    pub(crate) async fn follow(
        &self,
        source: &Source<'_>,
        run: &RunId,
        (hearers, recorder): (&Hearers, &Recorder),
    ) {
        let mut caller = Caller::new(source.door);
        let mut backoff = Backoff::new();
        let mut complaint = Complaint::default();
        loop {
            let path = format!("{}?after={}", paths::INPUTS, self.after.load(Ordering::Relaxed));
            let asked = Instant::now();
            let limit = Duration::from_millis(LONG_POLL_MS + POLL_SLACK_MS);
            let news = match caller.call(Method::GET, &path, "", limit).await {
                Ok(reply) if reply.status.is_success() => {
                    let taken = self.take_in(&reply.body, run, hearers);
                    for (seq, state) in taken.told {
                        tell(recorder, JournalBody::Input { seq, state }).await;
                    }
                    for (seq, body) in taken.later {
                        if let Some(state) = hear_with(source, (hearers, recorder), seq, body).await {
                            tell(recorder, JournalBody::Input { seq, state }).await;
                        }
                    }
                    taken.news
                }
                Ok(reply) => {
                    complaint.say(format_args!("the gateway gives no messages: {}", reply.problem().message));
                    false
                }
                // The gateway is away; the journal's sender says so.
                Err(_) => false,
            };
            if news || asked.elapsed() >= Duration::from_millis(POLL_LEAST_MS) {
                backoff.reset();
            } else {
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }

    /// Takes in an answer.
    fn take_in(&self, body: &[u8], run: &RunId, hearers: &Hearers) -> Taken {
        let mut taken = Taken::default();
        let Ok(received) = serde_json::from_slice::<Received<'_>>(body) else { return taken };
        for item in &received.items {
            let seq =
                serde_json::from_str::<Value>(item.get()).ok().and_then(|item| item.get("seq")?.as_i64());
            self.after.fetch_max(seq.unwrap_or(0), Ordering::Relaxed);
            match serde_json::from_str::<Input>(item.get()) {
                Ok(Input { run: meant, seq, body }) if meant == *run && comes_later(&taken, &body) => {
                    taken.later.push((seq, body));
                }
                Ok(Input { run: meant, seq, body }) if meant == *run => {
                    taken.told.extend(hear(hearers, seq, body).map(|state| (seq, state)));
                }
                Ok(_) => {}
                Err(_) => say("a message of a kind that this shim does not know was skipped"),
            }
        }
        taken.news = !received.items.is_empty();
        taken
    }
}

async fn tell(recorder: &Recorder, body: JournalBody) {
    if let Err(error) = recorder.write(body).await {
        say(format_args!("cannot note how far a message is: {error}"));
    }
}

/// Whether a message waits for attachments: its own, or those of one before it. A stop and an answer wait for nothing.
fn comes_later(taken: &Taken, body: &InputBody) -> bool {
    match body {
        InputBody::Attached { .. } => true,
        InputBody::Steer { .. } | InputBody::Queue { .. } | InputBody::Interrupt { .. } => {
            !taken.later.is_empty()
        }
        InputBody::Stop { .. } | InputBody::Answer { .. } => false,
    }
}

/// The same as [`hear`], once its attachments are here; without them the agent is told nothing of it.
async fn hear_with(
    source: &Source<'_>,
    (hearers, recorder): (&Hearers, &Recorder),
    seq: i64,
    body: InputBody,
) -> Option<InputState> {
    let (kind, text, attachments) = match body {
        InputBody::Attached { kind, text, attachments } => (kind, text, attachments),
        other @ (InputBody::Steer { .. }
        | InputBody::Queue { .. }
        | InputBody::Interrupt { .. }
        | InputBody::Stop { .. }
        | InputBody::Answer { .. }) => return hear(hearers, seq, other),
    };
    let prompt = match source.bring(&attachments, INPUT_HOLD_MS).await {
        Ok(brought) => Prompt::from(text).with(brought),
        Err(Failure { message, evidence, .. }) => {
            let why = evidence.unwrap_or_default();
            let message = format!("input {seq} was not given to the agent: {message} ({why})");
            tell(recorder, JournalBody::Note { level: NoteLevel::Warn, message }).await;
            return Some(InputState::Undelivered);
        }
    };
    let what = match kind {
        InputKind::Steer => What::Steer(prompt),
        InputKind::Queue => What::Queue(prompt),
        InputKind::Interrupt => What::Interrupt(Some(prompt)),
    };
    give(hearers, Message { seq, what })
}

/// Passes a message on; how far it is, if that can be told at once.
fn hear(hearers: &Hearers, seq: i64, body: InputBody) -> Option<InputState> {
    let what = match body {
        InputBody::Stop { reason } => {
            hearers.stopper.tell(reason);
            return None;
        }
        InputBody::Answer { request, answer } => return Some(hearers.approvals.answer(&request, answer)),
        InputBody::Steer { text } => What::Steer(text.into()),
        InputBody::Queue { text } => What::Queue(text.into()),
        InputBody::Interrupt { text } => What::Interrupt(text.map(Prompt::from)),
        // Its attachments are to be fetched first.
        InputBody::Attached { .. } => return Some(InputState::Undelivered),
    };
    give(hearers, Message { seq, what })
}

fn give(hearers: &Hearers, message: Message) -> Option<InputState> {
    let given = hearers.messenger.give(message);
    (!given).then_some(InputState::Undelivered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Messages;
    use crate::stop::Stop;
    use caisson_domain::protocol::{Inputs as Sent, StopReason};

    fn run(number: i64) -> RunId {
        RunId::new(number, [0; 10])
    }

    fn stop(seq: i64, run: &RunId, reason: StopReason) -> Input {
        Input { seq, run: run.clone(), body: InputBody::Stop { reason } }
    }

    fn hearers() -> (Hearers, Stop, Messages) {
        let (stopper, stop) = Stopper::new();
        let (messenger, messages) = Messenger::new();
        (Hearers { stopper, messenger, approvals: Approvals::new(true) }, stop, messages)
    }

    fn steer(seq: i64, run: &RunId, text: &str) -> Input {
        Input { seq, run: run.clone(), body: InputBody::Steer { text: text.to_owned() } }
    }

    fn unasked() -> InputBody {
        let answer = caisson_domain::approval::Answer::Allow { input: None };
        InputBody::Answer { request: "unasked".to_owned(), answer }
    }

    #[tokio::test]
    async fn only_messages_for_this_run_act_and_all_are_counted() {
        let (inputs, (hearers, mut told, mut messages)) = (Inputs::new(), hearers());
        let items = vec![
            steer(2, &run(1), "for another run"),
            stop(3, &run(1), StopReason::Timeout),
            steer(3, &run(2), "for this one"),
            stop(4, &run(2), StopReason::Cancel),
            stop(9, &run(3), StopReason::Timeout),
            Input { seq: 5, run: run(2), body: InputBody::Queue { text: "behind it".to_owned() } },
            Input { seq: 6, run: run(2), body: InputBody::Interrupt { text: None } },
            Input { seq: 7, run: run(2), body: unasked() },
        ];
        let body = serde_json::to_vec(&Sent { items }).unwrap();
        let taken = inputs.take_in(&body, &run(2), &hearers);
        // What nobody waits for is told at once; of the others the turn tells.
        assert_eq!(taken, Taken { news: true, told: vec![(7, InputState::Undelivered)], later: Vec::new() });
        assert_eq!(told.told().await, StopReason::Cancel);
        let message = |seq, what| Message { seq, what };
        assert_eq!(messages.next().await, message(3, What::Steer("for this one".to_owned().into())));
        assert_eq!(messages.next().await, message(5, What::Queue("behind it".to_owned().into())));
        assert_eq!(messages.next().await, message(6, What::Interrupt(None)));
        assert_eq!(messages.close(), Vec::<i64>::new());
        let late = serde_json::to_vec(&Sent { items: vec![steer(10, &run(2), "late")] }).unwrap();
        assert_eq!(inputs.take_in(&late, &run(2), &hearers).told, [(10, InputState::Undelivered)]);
        assert_eq!(inputs.after.load(Ordering::Relaxed), 10);
    }

    #[tokio::test]
    async fn what_is_sent_behind_attachments_keeps_its_place_and_a_stop_does_not_wait_for_them() {
        let (inputs, (hearers, mut told, mut messages)) = (Inputs::new(), hearers());
        let attached =
            InputBody::Attached { kind: InputKind::Steer, text: "look".to_owned(), attachments: Vec::new() };
        let items = vec![
            steer(1, &run(1), "before"),
            Input { seq: 2, run: run(1), body: attached.clone() },
            steer(3, &run(1), "behind"),
            stop(4, &run(1), StopReason::Cancel),
        ];
        let behind = InputBody::Steer { text: "behind".to_owned() };
        let body = serde_json::to_vec(&Sent { items }).unwrap();
        let taken = inputs.take_in(&body, &run(1), &hearers);
        assert_eq!(taken.later, [(2, attached), (3, behind)]);
        assert_eq!(told.told().await, StopReason::Cancel);
        let before = Message { seq: 1, what: What::Steer("before".to_owned().into()) };
        assert_eq!(messages.next().await, before);
    }

    #[tokio::test]
    async fn a_message_of_an_unknown_kind_does_not_hide_the_others() {
        let (inputs, (hearers, mut told, _messages)) = (Inputs::new(), hearers());
        let body = format!(
            r#"{{"items":[{{"seq":1,"run":"{0}","body":{{"kind":"approve","data":{{"text":"x"}}}}}},
                {{"seq":2,"run":"{0}","body":{{"kind":"stop","data":{{"reason":"cancel"}}}}}}]}}"#,
            run(1)
        );
        assert!(inputs.take_in(body.as_bytes(), &run(1), &hearers).news);
        assert_eq!(told.told().await, StopReason::Cancel);
        assert_eq!(inputs.after.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn an_answer_without_messages_is_no_news() {
        let (inputs, (hearers, _told, _messages)) = (Inputs::new(), hearers());
        for body in ["", "{}", r#"{"items":[]}"#] {
            assert!(!inputs.take_in(body.as_bytes(), &run(1), &hearers).news, "{body}");
        }
    }
}
