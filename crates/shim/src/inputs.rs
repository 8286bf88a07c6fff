//! Messages to the run that goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use caisson_domain::id::RunId;
use caisson_domain::limits::LONG_POLL_MS;
use caisson_domain::protocol::{Input, InputBody, paths};
use http::Method;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::diagnostics::{Complaint, say};
use crate::door::{Caller, Door};
use crate::messages::Messenger;
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

    /// Takes in messages for `run`, for ever.
    ///
    /// # Cancel safety
    /// Safe: a message that was not taken in comes again.
    pub(crate) async fn follow(&self, door: &Arc<Door>, run: &RunId, hearers: &Hearers) {
        let mut caller = Caller::new(door);
        let mut backoff = Backoff::new();
        let mut complaint = Complaint::default();
        loop {
            let path = format!("{}?after={}", paths::INPUTS, self.after.load(Ordering::Relaxed));
            let asked = Instant::now();
            let limit = Duration::from_millis(LONG_POLL_MS + POLL_SLACK_MS);
            let news = match caller.call(Method::GET, &path, "", limit).await {
                Ok(reply) if reply.status.is_success() => self.take_in(&reply.body, run, hearers),
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

    /// Takes in an answer; whether there was a message in it.
    fn take_in(&self, body: &[u8], run: &RunId, hearers: &Hearers) -> bool {
        let Ok(received) = serde_json::from_slice::<Received<'_>>(body) else { return false };
        for item in &received.items {
            let seq =
                serde_json::from_str::<Value>(item.get()).ok().and_then(|item| item.get("seq")?.as_i64());
            self.after.fetch_max(seq.unwrap_or(0), Ordering::Relaxed);
            match serde_json::from_str::<Input>(item.get()) {
                Ok(Input { run: meant, body, .. }) if meant == *run => match body {
                    InputBody::Stop { reason } => hearers.stopper.tell(reason),
                    InputBody::Steer { text } => hearers.messenger.give(text),
                },
                Ok(_) => {}
                Err(_) => say("a message of a kind that this shim does not know was skipped"),
            }
        }
        !received.items.is_empty()
    }
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
        (Hearers { stopper, messenger }, stop, messages)
    }

    fn steer(seq: i64, run: &RunId, text: &str) -> Input {
        Input { seq, run: run.clone(), body: InputBody::Steer { text: text.to_owned() } }
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
        ];
        let body = serde_json::to_vec(&Sent { items }).unwrap();
        assert!(inputs.take_in(&body, &run(2), &hearers));
        assert_eq!(told.told().await, StopReason::Cancel);
        assert_eq!(messages.next().await, "for this one");
        assert_eq!(messages.close(), 0);
        assert_eq!(inputs.after.load(Ordering::Relaxed), 9);
    }

    #[tokio::test]
    async fn a_message_of_an_unknown_kind_does_not_hide_the_others() {
        let (inputs, (hearers, mut told, _messages)) = (Inputs::new(), hearers());
        let body = format!(
            r#"{{"items":[{{"seq":1,"run":"{0}","body":{{"kind":"approve","data":{{"text":"x"}}}}}},
                {{"seq":2,"run":"{0}","body":{{"kind":"stop","data":{{"reason":"cancel"}}}}}}]}}"#,
            run(1)
        );
        assert!(inputs.take_in(body.as_bytes(), &run(1), &hearers));
        assert_eq!(told.told().await, StopReason::Cancel);
        assert_eq!(inputs.after.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn an_answer_without_messages_is_no_news() {
        let (inputs, (hearers, _told, _messages)) = (Inputs::new(), hearers());
        for body in ["", "{}", r#"{"items":[]}"#] {
            assert!(!inputs.take_in(body.as_bytes(), &run(1), &hearers), "{body}");
        }
    }
}
