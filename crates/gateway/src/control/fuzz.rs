//! What must hold for any bytes of the shim's.

use std::sync::LazyLock;

use caisson_domain::id::RunId;
use caisson_domain::redact::Redactor;
use caisson_store::{JournalEffect, JournalEntry};
use secrecy::SecretString;
use serde_json::Value;

use super::record;
use crate::bounds::JOURNAL_BATCH_LINES;

/// A secret that a journal might show, and one that looks like a commit.
const SECRETS: [&str; 2] = ["canary-7f3a9b2c", "0123456789abcdef0123456789abcdef01234567"];

/// A batch of the shim's journal, which is within the agent's reach: every line is read or told of, and no live secret comes
/// out, whatever it stands in.
///
/// # Panics
/// A find.
pub fn journal(data: &[u8]) {
    static REDACTOR: LazyLock<Redactor> = LazyLock::new(|| Redactor::new(&SECRETS.map(SecretString::from)));
    let batch = record::read(data, &REDACTOR);
    assert!(batch.bytes <= data.len() as u64);
    let lines = data.split_inclusive(|byte| *byte == b'\n').count();
    assert!(batch.bytes == data.len() as u64 || lines > JOURNAL_BATCH_LINES);
    let understood = batch.is_understood();
    let run = RunId::new(1, [0; 10]);
    let entries = batch.into_entries(Some((&run, 1)));
    let told = entries.iter().filter(|entry| said(entry).iter().any(|text| text.contains("not understood")));
    assert!(understood || told.count() > 0);
    for entry in &entries {
        let texts = said(entry);
        let shown = texts.iter().find(|text| SECRETS.iter().any(|secret| text.contains(secret)));
        assert_eq!(shown, None, "{entry:?}");
    }
}

/// Every text that the entry would have stored, taken out of its JSON: next to an escape something could look like a secret
/// and be none.
fn said(entry: &JournalEntry) -> Vec<String> {
    let mut texts = Vec::new();
    if let Some(event) = &entry.event {
        collect(&serde_json::from_str(event.data.get()).expect("an event is JSON"), &mut texts);
    }
    match &entry.effect {
        JournalEffect::Finished(outcome) => {
            collect(&serde_json::to_value(outcome).expect("an outcome is JSON"), &mut texts);
        }
        JournalEffect::Prepared { base_commit } => texts.extend(base_commit.clone()),
        JournalEffect::Output(output) => collect(output, &mut texts),
        JournalEffect::Checks(results) => {
            collect(&serde_json::to_value(results).expect("results are JSON"), &mut texts);
        }
        JournalEffect::Asked(asked) => {
            texts.extend([asked.request.clone(), asked.tool.clone()]);
            texts.extend(asked.description.clone());
            match serde_json::from_str(&asked.input) {
                Ok(input) => collect(&input, &mut texts),
                Err(_) => texts.push(asked.input.clone()),
            }
        }
        JournalEffect::AskedNoMore { request } => texts.push(request.clone()),
        JournalEffect::None
        | JournalEffect::Phase(_)
        | JournalEffect::AgentStarted
        | JournalEffect::Input { .. } => {}
    }
    texts
}

fn collect(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Value::Object(fields) => {
            texts.extend(fields.keys().cloned());
            fields.values().for_each(|field| collect(field, texts));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_an_outcome() {
        assert!(
            record::read(include_bytes!("../../../../fuzz/seeds/journal/outcome"), &Redactor::default())
                .has_outcome()
        );
    }
}
