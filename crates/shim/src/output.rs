//! The structured output of a run: taken from the agent's result, checked, asked for once more if it does not fit, and kept.

use std::time::Duration;

use bytes::Bytes;
use caisson_claude::{ResultLine, Verdict, judge};
use caisson_domain::protocol::{JournalBody, NoteLevel, paths};
use caisson_domain::report::markdown;
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::schema::Schema;
use http::Method;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::time::Instant;

use crate::attachments::Prompt;
use crate::backoff::Backoff;
use crate::door::Caller;
use crate::failure::Halt;
use crate::forward::HOLD_MS;
use crate::run::Live;
use crate::stop::Stop;
use crate::turn::TurnEnd;

/// Turns that the agent has for an output that fits, the first one included.
const OUTPUT_TURNS: usize = 2;
/// Names of the artifacts: the output as it is, and for people.
const ARTIFACTS: [&str; 2] = ["output.json", "output.md"];
/// How long one upload may take, in milliseconds.
const UPLOAD_MS: u64 = 60 * 1000;
/// What the CLI says when its own tool has refused the agent's output too often. Source: Claude Code 2.1.330, measured.
const EXHAUSTED: &str = "structured_output_retry_exhausted";

/// What there is of an output in the end of a turn.
enum Found {
    /// One that fits.
    Fits(Value),
    /// None, or one with faults.
    Faulty(Vec<String>),
    /// The turn ended otherwise.
    Nothing,
}

impl Live<'_> {
    /// Judges a turn that was to end with an output, and gives that. One that does not fit is asked for once more, with what is
    /// wrong; people may send something within that turn, and behind it, as within any other.
    pub(crate) async fn judge_output(
        &mut self,
        first: TurnEnd,
        schema: &Value,
        stop: &mut Stop,
    ) -> Result<Option<Value>, Halt> {
        let schema = Schema::read(schema).map_err(|error| {
            Failure::new(FailureKind::BadWorkflow, format!("the output's schema cannot be used: {error}"))
        })?;
        let mut end = first;
        for turns_left in (0..OUTPUT_TURNS).rev() {
            let faults = match found(&end, &schema) {
                Found::Nothing => break,
                Found::Fits(output) => {
                    self.judge(end)?;
                    return Ok(Some(output));
                }
                Found::Faulty(faults) => faults,
            };
            if turns_left == 0 || self.agent.is_none() {
                let message = "the agent gave no output that fits the schema, asked twice";
                return Err(Failure::new(FailureKind::AgentError, message)
                    .with_evidence(faults.join("\n"))
                    .into());
            }
            end = self.turns(Prompt::from(question(&faults)).into(), stop).await?;
            let note = format!(
                "the agent's output did not fit its schema, so it was asked again: {}",
                faults.join("; ")
            );
            self.recorder.note(NoteLevel::Info, note).await?;
        }
        self.judge(end)?;
        Ok(None)
    }

    /// Tells of the output, and keeps it as artifacts.
    pub(crate) async fn keep_output(&self, output: Value) -> Result<(), Halt> {
        let title = if self.work.workflow.is_empty() { "Output" } else { &self.work.workflow };
        let page = markdown(title, &output);
        let json = serde_json::to_string_pretty(&output).unwrap_or_default();
        self.recorder.write(JournalBody::Output { output }).await?;
        for (name, text) in ARTIFACTS.into_iter().zip([json, page]) {
            if let Err(reason) = self.upload(name, &Bytes::from(text)).await {
                self.recorder.note(NoteLevel::Warn, format!("{name} could not be kept: {reason}")).await?;
            }
        }
        Ok(())
    }

    async fn upload(&self, name: &str, content: &Bytes) -> Result<(), String> {
        let path = format!("{}/{}/{name}", paths::ARTIFACTS, self.work.run);
        let until = Instant::now() + Duration::from_millis(HOLD_MS);
        let mut backoff = Backoff::new();
        loop {
            let body = Full::new(content.clone()).map_err(|never| match never {}).boxed_unsync();
            let sent = Caller::new(&self.shim.door)
                .upload(Method::PUT, &path, body, Duration::from_millis(UPLOAD_MS))
                .await;
            match sent {
                Ok(reply) if reply.status.is_success() => return Ok(()),
                Ok(reply) if reply.status.is_client_error() => return Err(reply.problem().message),
                Ok(_) | Err(_) => {}
            }
            let wait = backoff.next();
            if Instant::now() + wait > until {
                return Err("the gateway did not take it".to_owned());
            }
            tokio::time::sleep(wait).await;
        }
    }
}

fn found(end: &TurnEnd, schema: &Schema) -> Found {
    match end {
        TurnEnd::Result(result) => found_in(result, schema),
        TurnEnd::Interrupted
        | TurnEnd::Exited(_)
        | TurnEnd::Hung(_)
        | TurnEnd::Stopped(_)
        | TurnEnd::Untaken(_)
        | TurnEnd::Unsent(_)
        | TurnEnd::Unwritten(_) => Found::Nothing,
    }
}

fn found_in(result: &ResultLine, schema: &Schema) -> Found {
    if result.terminal_reason.as_deref() == Some(EXHAUSTED) {
        let mut faults = result.errors.clone();
        faults.push("the tool StructuredOutput refused every try".to_owned());
        return Found::Faulty(faults);
    }
    if judge(result) != Verdict::Succeeded {
        return Found::Nothing;
    }
    let output = result.structured_output.as_deref().map(serde_json::from_str::<Value>);
    match output {
        Some(Ok(output)) => match schema.faults(&output) {
            faults if faults.is_empty() => Found::Fits(output),
            faults => Found::Faulty(faults),
        },
        Some(Err(error)) => Found::Faulty(vec![format!("it cannot be read: {error}")]),
        None => Found::Faulty(vec!["there is none: the tool StructuredOutput was not called".to_owned()]),
    }
}

fn question(faults: &[String]) -> String {
    format!(
        "Your structured output cannot be used:\n- {}\nCall the tool StructuredOutput once more, with all of it, mended.",
        faults.join("\n- ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_claude::{Line, parse};
    use serde_json::json;

    fn of(fields: &Value) -> Found {
        let mut line = json!({"type": "result", "subtype": "success", "is_error": false, "terminal_reason": "completed"});
        line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let Line::Result(result) = parse(line.to_string().as_bytes()) else { panic!() };
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
        found_in(&result, &Schema::read(&schema).unwrap())
    }

    #[test]
    fn an_output_is_taken_only_if_it_fits_and_the_turn_succeeded() {
        assert!(
            matches!(of(&json!({"structured_output": {"a": 1}})), Found::Fits(output) if output == json!({"a": 1}))
        );
        for (fields, told) in [
            (json!({"structured_output": {"a": "1"}}), "output.a is not of type integer"),
            (json!({"structured_output": null}), "not of type object"),
            (json!({}), "was not called"),
            (json!({"is_error": true, "terminal_reason": EXHAUSTED, "errors": ["bad"]}), "bad"),
        ] {
            let Found::Faulty(faults) = of(&fields) else { panic!("{fields}") };
            assert!(faults[0].contains(told) && question(&faults).contains(told), "{faults:?}");
        }
        let failed = json!({"structured_output": {"a": 1}, "is_error": true, "terminal_reason": "api_error"});
        assert!(matches!(of(&failed), Found::Nothing));
    }
}
