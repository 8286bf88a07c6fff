//! What the model is told to say: the demo's scenario without its pauses, and a few that only the bench needs; pure.

use anyhow::Context;
use serde_json::{Value, json};

/// The demo's scenario.
pub(crate) const JOB: &str = "cart";
/// A conversation of many small tool calls, each of them two lines of the agent.
pub(crate) const LINES: &str = "bench-lines";
/// One slow reply, word by word.
pub(crate) const WORDS: &str = "bench-words";
/// A call that is never answered, so that a slot stays taken.
pub(crate) const HOLD: &str = "bench-hold";

/// One short reply, and nothing else.
pub(crate) const TURN: &str = "bench-turn";
/// The words of [`TURN`].
pub(crate) const TURN_TEXT: &str = "I am there.";

/// Tool calls of [`LINES`]: with their results, more than 200 lines.
const TOOL_CALLS: usize = 110;
/// Words of [`WORDS`].
pub(crate) const WORD_COUNT: usize = 60;
/// Pause before each of them, in milliseconds: several times what a word takes to its reader, and more than the pause
/// that the server keeps between two pieces of live text.
pub(crate) const WORD_PACE_MS: u64 = 250;

/// All scenarios as one text.
///
/// # Errors
/// The examples' file has no such scenario.
pub(crate) fn all(examples: &str) -> anyhow::Result<String> {
    let examples: Value = serde_json::from_str(examples).context("the examples' scenarios are not JSON")?;
    let job = examples.get(JOB).with_context(|| format!("the examples have no scenario {JOB}"))?;
    let mut calls: Vec<_> = (0..TOOL_CALLS).map(tool_call).collect();
    calls.push(json!({ "text": "Done." }));
    let words: Vec<_> = (0..WORD_COUNT).map(word).collect();
    let scenarios = json!({
        JOB: without_pauses(job),
        LINES: { "prompts": [calls] },
        WORDS: { "prompts": [[{ "text": words.concat(), "chunk_delay_ms": WORD_PACE_MS }]] },
        TURN: { "prompts": [[{ "text": TURN_TEXT }]] },
        HOLD: { "prompts": [[{ "text": "Never said.", "hang": true }]] },
    });
    Ok(scenarios.to_string())
}

/// The word of a number, with the blank behind it.
#[must_use]
pub(crate) fn word(number: usize) -> String {
    format!("word-{number}. ")
}

fn tool_call(number: usize) -> Value {
    let input = json!({ "command": format!("echo {number}"), "description": "Say a number" });
    json!({ "tool": { "name": "Bash", "input": input } })
}

fn without_pauses(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, _)| !matches!(key.as_str(), "delay_ms" | "chunk_delay_ms"));
            kept.map(|(key, item)| (key.clone(), without_pauses(item))).collect()
        }
        Value::Array(items) => items.iter().map(without_pauses).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use scripted_model::Catalogue;

    use super::*;

    const EXAMPLES: &str = include_str!("../../../../examples/cart.scenario.json");

    #[test]
    fn the_model_takes_every_scenario_and_the_job_has_no_pause() {
        let text = all(EXAMPLES).unwrap();
        let mut catalogue = Catalogue::built_in();
        catalogue.add_text("bench", &text).unwrap();
        for name in [JOB, LINES, WORDS, TURN, HOLD] {
            assert!(catalogue.find(name).is_some(), "{name}");
        }
        let scenarios: Value = serde_json::from_str(&text).unwrap();
        assert!(!scenarios[JOB].to_string().contains("delay_ms"));
        assert!(EXAMPLES.contains("delay_ms"));
    }

    #[test]
    fn the_job_is_the_demos_in_everything_else() {
        let examples: Value = serde_json::from_str(EXAMPLES).unwrap();
        let ours: Value = serde_json::from_str(&all(EXAMPLES).unwrap()).unwrap();
        let mut steps = 0;
        for (theirs, ours) in examples[JOB]["prompts"][0]
            .as_array()
            .unwrap()
            .iter()
            .zip(ours[JOB]["prompts"][0].as_array().unwrap())
        {
            assert_eq!((&theirs["tool"], &theirs["text"]), (&ours["tool"], &ours["text"]));
            steps += 1;
        }
        assert_eq!(steps, 5);
        assert!(all("{}").is_err() && all("x").is_err());
    }

    #[test]
    fn there_are_more_than_200_lines_and_no_word_is_part_of_another() {
        const { assert!(TOOL_CALLS * 2 > 200) };
        assert!(!word(11).contains(&word(1)));
    }
}
