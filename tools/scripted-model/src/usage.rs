//! The token counts of a reply.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Input tokens of a step that names no usage.
pub const DEFAULT_INPUT_TOKENS: u64 = 100;
/// Output tokens of a step that names no usage.
pub const DEFAULT_OUTPUT_TOKENS: u64 = 25;

/// Token counts as the Messages API reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UsageFile")]
pub struct Usage {
    /// Uncached input tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Input tokens read from the prompt cache.
    pub cache_read_input_tokens: u64,
    /// Input tokens written to the prompt cache: the sum of `cache_creation`.
    pub cache_creation_input_tokens: u64,
    /// The written tokens by lifetime of the cache entry.
    pub cache_creation: CacheCreation,
    /// What summing the conversation up first came to. The other counts leave it out, as the Messages API does: it stands in
    /// `iterations` alone, before the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compaction: Option<Compaction>,
}

/// Tokens of a conversation that was summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compaction {
    /// Tokens that were read for it.
    pub input_tokens: u64,
    /// Tokens of the summary.
    pub output_tokens: u64,
}

/// Tokens written to the prompt cache, by lifetime of the entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheCreation {
    /// Tokens of entries that live five minutes.
    pub ephemeral_5m_input_tokens: u64,
    /// Tokens of entries that live an hour.
    pub ephemeral_1h_input_tokens: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            input_tokens: DEFAULT_INPUT_TOKENS,
            output_tokens: DEFAULT_OUTPUT_TOKENS,
            cache_read_input_tokens: 0,
            cache_creation_input_tokens: 0,
            cache_creation: CacheCreation::default(),
            compaction: None,
        }
    }
}

impl Usage {
    /// Returns the counts as a stream shows them at its start: the input is known, of the output one token is there, and what
    /// went before is not told.
    #[must_use]
    pub fn at_start(self) -> Self {
        Self { output_tokens: 1, compaction: None, ..self }
    }

    /// Returns the counts as a message carries them.
    #[must_use]
    pub fn in_message(self) -> Value {
        let mut value = self.in_delta();
        value["cache_creation"] = json!(self.cache_creation);
        value["service_tier"] = json!("standard");
        value
    }

    /// Returns the counts as a `message_delta` carries them: without the split of the cache writes.
    #[must_use]
    pub fn in_delta(self) -> Value {
        let mut value = json!({
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": self.cache_creation_input_tokens,
            "cache_read_input_tokens": self.cache_read_input_tokens,
            "output_tokens": self.output_tokens,
        });
        if let Some(compaction) = self.compaction {
            let [mut summary, mut message] = [json!(compaction), value.clone()];
            summary["type"] = json!("compaction");
            message["type"] = json!("message");
            value["iterations"] = json!([summary, message]);
        }
        value
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageFile {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_creation: Option<CacheCreation>,
    compaction: Option<Compaction>,
}

/// Why token counts are not usable.
#[derive(Debug, thiserror::Error)]
#[error("cache_creation_input_tokens is {stated}, the parts of cache_creation add up to {parts}")]
pub struct UsageError {
    stated: u64,
    parts: u64,
}

impl TryFrom<UsageFile> for Usage {
    type Error = UsageError;

    fn try_from(file: UsageFile) -> Result<Self, UsageError> {
        let stated = file.cache_creation_input_tokens;
        let all_short =
            CacheCreation { ephemeral_5m_input_tokens: stated.unwrap_or(0), ephemeral_1h_input_tokens: 0 };
        let cache_creation = file.cache_creation.unwrap_or(all_short);
        let parts =
            cache_creation.ephemeral_5m_input_tokens.saturating_add(cache_creation.ephemeral_1h_input_tokens);
        if let Some(stated) = stated.filter(|stated| *stated != parts) {
            return Err(UsageError { stated, parts });
        }
        Ok(Self {
            input_tokens: file.input_tokens.unwrap_or(DEFAULT_INPUT_TOKENS),
            output_tokens: file.output_tokens.unwrap_or(DEFAULT_OUTPUT_TOKENS),
            cache_read_input_tokens: file.cache_read_input_tokens.unwrap_or(0),
            cache_creation_input_tokens: parts,
            cache_creation,
            compaction: file.compaction,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_writes_without_a_split_are_short_lived() {
        let usage: Usage = serde_json::from_value(json!({"cache_creation_input_tokens": 7})).unwrap();
        assert_eq!(usage.cache_creation.ephemeral_5m_input_tokens, 7);
        assert_eq!(usage.in_message()["cache_creation"]["ephemeral_1h_input_tokens"], 0);
        assert_eq!((usage.input_tokens, usage.output_tokens), (DEFAULT_INPUT_TOKENS, DEFAULT_OUTPUT_TOKENS));
    }

    #[test]
    fn a_split_gives_the_sum_and_must_agree_with_it() {
        let split = json!({"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3});
        let usage: Usage = serde_json::from_value(json!({"cache_creation": split})).unwrap();
        assert_eq!(usage.cache_creation_input_tokens, 5);
        let error = serde_json::from_value::<Usage>(
            json!({"cache_creation": split, "cache_creation_input_tokens": 4}),
        )
        .expect_err("the parts disagree");
        assert_eq!(
            error.to_string(),
            "cache_creation_input_tokens is 4, the parts of cache_creation add up to 5"
        );
    }

    #[test]
    fn what_was_summed_up_stands_beside_the_other_counts_and_not_among_them() {
        let compaction = json!({"input_tokens": 180_000, "output_tokens": 3_500});
        let usage: Usage =
            serde_json::from_value(json!({"input_tokens": 5, "compaction": compaction})).unwrap();
        for told in [usage.in_message(), usage.in_delta()] {
            assert_eq!(told["input_tokens"], 5);
            let [summary, message] = [0, 1].map(|pass| &told["iterations"][pass]);
            assert_eq!((&summary["type"], &summary["input_tokens"]), (&json!("compaction"), &json!(180_000)));
            assert_eq!((&message["type"], &message["input_tokens"]), (&json!("message"), &json!(5)));
        }
        for untold in [usage.at_start().in_message(), Usage::default().in_delta()] {
            assert!(untold.get("iterations").is_none(), "{untold}");
        }
    }

    #[test]
    fn counts_survive_a_round_trip() {
        let usage: Usage = serde_json::from_value(json!({
            "input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3,
            "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 5},
            "compaction": {"input_tokens": 6, "output_tokens": 7},
        }))
        .unwrap();
        assert_eq!(serde_json::from_value::<Usage>(json!(usage)).unwrap(), usage);
        assert_eq!(usage.at_start().output_tokens, 1);
    }
}
