//! The sessions' work: the demo's job at the pace of a model, with as much to read in every turn; pure.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::bench::scenarios;
use crate::bench::stage::EXAMPLES;

/// Turns of the job: the model's answers to one prompt. All but the last call a tool.
const TURNS: usize = 5;
/// Pause before each word, in milliseconds: 50 words a second.
pub(super) const WORD_PACE_MS: u64 = 20;

/// The bench's scenarios, with each turn of the job made `words` long.
///
/// # Errors
/// The examples do not have the job, or it is another one.
pub(super) fn all(words: usize) -> anyhow::Result<String> {
    let mut all: Value = serde_json::from_str(&scenarios::all(EXAMPLES)?)?;
    let examples: Value = serde_json::from_str(EXAMPLES)?;
    // With the pauses that the examples have, which the bench takes away.
    let mut job = examples[scenarios::JOB].clone();
    let steps = job["prompts"][0].as_array_mut().context("the job has no steps")?;
    ensure!(steps.len() == TURNS, "the job has {} turns instead of {TURNS}", steps.len());
    for step in steps {
        lengthen(step, words)?;
    }
    all[scenarios::JOB] = job;
    Ok(all.to_string())
}

/// Adds words to a step until what it thinks and says has as many as are wanted.
fn lengthen(step: &mut Value, words: usize) -> anyhow::Result<()> {
    let text = step["text"].as_str().context("a step says nothing")?.to_owned();
    let has = count(&text) + step["thinking"].as_str().map_or(0, count);
    let more: Vec<_> = (has..words).map(|number| format!(" more-{number}")).collect();
    step["text"] = json!(text + &more.concat());
    step["chunk_delay_ms"] = json!(WORD_PACE_MS);
    Ok(())
}

fn count(text: &str) -> usize {
    text.split_whitespace().count()
}

#[cfg(test)]
mod tests {
    use scripted_model::Catalogue;

    use super::*;

    #[test]
    fn a_session_has_five_turns_four_tools_and_twenty_seconds_of_text() {
        let text = all(200).unwrap();
        Catalogue::built_in().add_text("load", &text).unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        let steps = all[scenarios::JOB]["prompts"][0].as_array().unwrap();
        assert_eq!(steps.iter().filter(|step| step["tool"].is_object()).count(), 4);
        let words: usize = steps
            .iter()
            .flat_map(|step| [&step["thinking"], &step["text"]])
            .map(|text| text.as_str().map_or(0, count))
            .sum();
        assert_eq!(words, 1000);
        let pace_ms: u64 = steps.iter().map(|step| step["chunk_delay_ms"].as_u64().unwrap()).sum();
        assert_eq!(pace_ms * words as u64 / steps.len() as u64, 20_000);
        assert!(steps.iter().all(|step| step["delay_ms"].as_u64() > Some(0)), "the model thinks");
    }

    #[test]
    fn a_step_that_is_long_already_stays_as_it_is() {
        let mut step = json!({"text": "one two three"});
        lengthen(&mut step, 2).unwrap();
        assert_eq!(step["text"], "one two three");
        assert!(lengthen(&mut json!({}), 2).is_err());
    }
}
