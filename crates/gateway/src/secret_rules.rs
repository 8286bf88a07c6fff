//! Rules for what looks like somebody's secret: the shipped ones of `git/secrets.json`, and further ones of the operator's, in
//! the same shape. Pure.

use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::config::GatewayError;

/// Longest text of further rules, in bytes.
pub const SECRET_RULES_BYTES: usize = 256 * 1024;
/// Most further rules.
pub const SECRET_RULES: usize = 200;
/// Most keywords of a further rule.
const KEYWORDS: usize = 16;
/// Longest name and longest keyword of a further rule, in bytes.
const WORD_BYTES: usize = 64;
/// Most memory that a further rule's pattern may need, in bytes.
const PATTERN_MEMORY_BYTES: usize = 1024 * 1024;
/// Most bits of entropy that a byte has.
const ENTROPY_BITS: f32 = 8.0;

/// Name of the rule for the gateway's own credentials. It cannot be turned off.
pub(crate) const LIVE: &str = "live-credential";

/// Words that stand in for a secret in documents and tests.
const STAND_INS: [&str; 9] =
    ["example", "changeme", "placeholder", "dummy", "redacted", "xxxxxx", "your_", "your-", "notreal"];
/// How secrets end that the documentation of their makers shows; no other one ends so.
const DOCUMENTED_ENDS: [&[u8]; 2] = [b"EXAMPLE", b"EXAMPLEKEY"];
/// How the example of the authors of JSON web tokens begins: its subject is 1234567890, John Doe.
const DOCUMENTED_START: &[u8] =
    b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIi";

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: String,
    /// One of them, in any case, is in every text that the pattern matches.
    keywords: Vec<String>,
    /// Its first group is the secret. It matches at most as many bytes as a scan sees together.
    pattern: String,
    /// Least entropy of the secret, in bits a byte.
    #[serde(default)]
    entropy: f32,
    /// Whether the secret has small and capital letters and digits.
    #[serde(default)]
    mixed: bool,
    /// Whether a secret with a word that stands in for one is left alone: for patterns that match by what is around the secret,
    /// and not by how it is made.
    #[serde(default)]
    stand_ins: bool,
    /// Whether binary files are left out.
    #[serde(default)]
    text_only: bool,
}

/// A rule that can be applied.
#[derive(Debug, Clone)]
pub struct SecretRule {
    pub(crate) id: String,
    pub(crate) keywords: Vec<String>,
    pub(crate) pattern: Regex,
    pub(crate) text_only: bool,
    entropy: f32,
    mixed: bool,
    stand_ins: bool,
}

/// In what the rules that are applied differ from the shipped ones.
#[derive(Debug, Clone)]
pub enum SecretRuleChange {
    /// The one of this name is not applied, be it shipped or added.
    Off(String),
    /// A further one.
    Added(SecretRule),
}

/// Why further rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretRulesError {
    /// There is too much of it.
    #[error("it is longer than {SECRET_RULES_BYTES} bytes; keep what is needed")]
    TooLong,
    /// There are too many.
    #[error("it has more than {SECRET_RULES} rules; keep those that are needed")]
    TooMany,
    /// It is no list of rules.
    #[error("it is no list of rules as {{\"id\": …, \"keywords\": […], \"pattern\": …}}")]
    Shape(#[source] serde_json::Error),
    /// A rule cannot be used.
    #[error("the rule \"{id}\" cannot be used: {reason}")]
    Rule {
        /// Its name.
        id: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

static SHIPPED: LazyLock<Vec<SecretRule>> = LazyLock::new(|| {
    let written: Vec<Written> =
        serde_json::from_str(include_str!("git/secrets.json")).expect("a test reads the shipped rules");
    let rule = |written: Written| {
        let pattern = RegexBuilder::new(&written.pattern).unicode(false).build();
        ready(written, pattern.expect("a test reads the shipped rules"))
    };
    written.into_iter().map(rule).collect()
});

fn ready(written: Written, pattern: Regex) -> SecretRule {
    let Written { id, keywords, entropy, mixed, stand_ins, text_only, pattern: _ } = written;
    SecretRule { id, keywords, pattern, text_only, entropy, mixed, stand_ins }
}

/// The shipped rules with these changes.
///
/// # Errors
/// [`GatewayError::PushRule`] for a name to be turned off that no rule has.
pub(crate) fn changed(changes: &[SecretRuleChange]) -> Result<Vec<SecretRule>, GatewayError> {
    let added = changes.iter().filter_map(|change| match change {
        SecretRuleChange::Added(rule) => Some(rule),
        SecretRuleChange::Off(_) => None,
    });
    let off: Vec<&String> = changes
        .iter()
        .filter_map(|change| match change {
            SecretRuleChange::Off(name) => Some(name),
            SecretRuleChange::Added(_) => None,
        })
        .collect();
    let all = SHIPPED.iter().chain(added);
    if let Some(name) = off.iter().find(|name| !all.clone().any(|rule| rule.id == ***name)) {
        let reason = "there is no such rule for secrets";
        return Err(GatewayError::PushRule { which: "git.secret_rules", value: (*name).clone(), reason });
    }
    Ok(all.filter(|rule| !off.contains(&&rule.id)).cloned().collect())
}

impl SecretRule {
    /// Reads further rules: JSON, a list of objects as the shipped ones are. `id` has small letters, digits and hyphens and is no
    /// other rule's; one of `keywords`, in small letters, is in every text that `pattern` matches; the first group of `pattern`, a
    /// regular expression over bytes that takes linear time, is the secret. `entropy`, `mixed`, `stand_ins` and `text_only` may be
    /// left out.
    ///
    /// # Errors
    /// [`SecretRulesError`], also beyond [`SECRET_RULES_BYTES`] and [`SECRET_RULES`].
    pub fn read(json: &[u8]) -> Result<Vec<Self>, SecretRulesError> {
        if json.len() > SECRET_RULES_BYTES {
            return Err(SecretRulesError::TooLong);
        }
        let written: Vec<Written> = serde_json::from_slice(json).map_err(SecretRulesError::Shape)?;
        if written.len() > SECRET_RULES {
            return Err(SecretRulesError::TooMany);
        }
        let mut rules: Vec<Self> = Vec::new();
        for written in written {
            let id = written.id.clone();
            let rule = checked(written, &rules).map_err(|reason| SecretRulesError::Rule { id, reason })?;
            rules.push(rule);
        }
        Ok(rules)
    }

    /// Whether what its pattern found may well be a secret, and is not what people write in place of one.
    pub(crate) fn is_likely(&self, secret: &[u8]) -> bool {
        let stands_in = if self.stand_ins {
            let lower = String::from_utf8_lossy(secret).to_ascii_lowercase();
            STAND_INS.iter().any(|word| lower.contains(word))
        } else {
            is_made_up(secret)
        };
        let has = |class: fn(&u8) -> bool| secret.iter().any(class);
        !stands_in
            && entropy(secret) >= self.entropy
            && (!self.mixed
                || (has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit)))
    }
}

/// A further rule, or what is wrong with it.
fn checked(written: Written, before: &[SecretRule]) -> Result<SecretRule, String> {
    let Written { id, keywords, pattern, entropy, .. } = &written;
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if id.is_empty() || id.len() > WORD_BYTES || !id.bytes().all(is_name) {
        return Err(format!("its id is not 1 to {WORD_BYTES} small letters, digits and hyphens"));
    }
    if id == LIVE || SHIPPED.iter().chain(before).any(|rule| rule.id == *id) {
        return Err("another rule has its id; give it one of its own".to_owned());
    }
    let is_keyword = |word: &String| {
        (1..=WORD_BYTES).contains(&word.len()) && word.is_ascii() && *word == word.to_ascii_lowercase()
    };
    if keywords.is_empty() || keywords.len() > KEYWORDS || !keywords.iter().all(is_keyword) {
        return Err(format!(
            "its keywords are not 1 to {KEYWORDS} words of 1 to {WORD_BYTES} bytes, in ASCII and small letters"
        ));
    }
    if !(0.0..=ENTROPY_BITS).contains(entropy) {
        return Err(format!("its entropy is not 0 to {ENTROPY_BITS}"));
    }
    let regex = RegexBuilder::new(pattern).unicode(false).size_limit(PATTERN_MEMORY_BYTES).build();
    let regex =
        regex.map_err(|error| format!("its pattern is no regular expression that can be used: {error}"))?;
    if regex.captures_len() < 2 {
        return Err("its pattern has no group; put the secret in parentheses".to_owned());
    }
    if regex.is_match(b"") {
        return Err("its pattern matches nothing at all; have it begin with what tells the secret".to_owned());
    }
    Ok(ready(written, regex))
}

/// Whether nobody would take it for a secret, although it is made as one: half of it or more is one letter, or it is an example
/// of its maker's documentation.
fn is_made_up(secret: &[u8]) -> bool {
    let characters: Vec<u8> = secret.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
    let runs = characters.chunk_by(|one, next| one == next).filter(|run| run[0].is_ascii_alphabetic());
    runs.map(<[u8]>::len).max().is_some_and(|longest| longest * 2 >= characters.len())
        || DOCUMENTED_ENDS.iter().any(|end| secret.ends_with(end))
        || secret.starts_with(DOCUMENTED_START)
}

/// Shannon's, in bits a byte.
#[expect(clippy::cast_precision_loss, reason = "a pattern matches a few thousand bytes at most")]
fn entropy(text: &[u8]) -> f32 {
    let mut counts = [0_u32; 256];
    for byte in text {
        counts[usize::from(*byte)] += 1;
    }
    let length = text.len() as f32;
    counts.iter().filter(|count| **count > 0).map(|count| *count as f32 / length).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
#[path = "secret_rules_tests.rs"]
mod tests;
