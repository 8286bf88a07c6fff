//! Rules for what looks like somebody's secret: the shipped ones of `git/secrets.json`, and further ones of the operator's, in
//! the same shape. Pure.

mod stand_ins;

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use self::stand_ins::Hash;
use crate::config::GatewayError;

/// Longest text of further rules, in bytes.
pub const SECRET_RULES_BYTES: usize = 256 * 1024;
/// Most further rules.
pub const SECRET_RULES: usize = 200;
/// Most texts that the operator says are no secrets.
pub const KNOWN_TEXTS: usize = 1_000;
/// Most keywords of a further rule.
const KEYWORDS: usize = 16;
/// Longest name and longest keyword of a further rule, in bytes.
const WORD_BYTES: usize = 64;
/// Most memory that a further rule's pattern may need, in bytes, and as much again for what it keeps while it is applied.
const PATTERN_MEMORY_BYTES: usize = 1024 * 1024;
/// Most bits of entropy that a byte has.
const ENTROPY_BITS: f32 = 8.0;

/// Name of the rule for the gateway's own credentials. It cannot be turned off.
pub(crate) const LIVE: &str = "live-credential";

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

/// A file of the operator's that has more than rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    #[serde(default)]
    rules: Vec<Written>,
    #[serde(default)]
    known: Vec<String>,
}

/// A rule that can be applied. What is cloned shares the pattern and what that keeps while it is applied, so that what is looked for
/// in one project more costs next to nothing.
#[derive(Debug, Clone)]
pub struct SecretRule(Arc<Ready>);

/// A rule, ready.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) id: String,
    pub(crate) keywords: Vec<String>,
    pub(crate) pattern: Regex,
    pub(crate) text_only: bool,
    entropy: f32,
    mixed: bool,
    stand_ins: bool,
}

/// Texts of which the operator says that they are no secrets, by their SHA-256.
#[derive(Debug, Clone)]
pub struct KnownTexts(Arc<HashSet<Hash>>);

/// In what the rules that are applied differ from the shipped ones.
#[derive(Debug, Clone)]
pub enum SecretRuleChange {
    /// The one of this name is not applied, be it shipped or added.
    Off(String),
    /// A further one.
    Added(SecretRule),
    /// What none of them finds.
    Known(KnownTexts),
}

/// The rules that are applied.
#[derive(Debug)]
pub(crate) struct SecretRules {
    pub(crate) all: Vec<Arc<Ready>>,
    known: Vec<KnownTexts>,
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
    /// There are too many known texts.
    #[error("it has more than {KNOWN_TEXTS} known texts; keep those that are needed")]
    TooManyKnown,
    /// A known text is not named by its hash.
    #[error(
        "number {number} of its known texts is not 64 hexadecimal digits; name a text by its SHA-256, as sha256sum prints it"
    )]
    Known {
        /// Which one, from 1.
        number: usize,
    },
    /// It is no list of rules.
    #[error(
        "it is no list of rules as {{\"id\": …, \"keywords\": […], \"pattern\": …}}, and no {{\"rules\": […], \"known\": […]}}"
    )]
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

static SHIPPED: LazyLock<Vec<Arc<Ready>>> = LazyLock::new(|| {
    let written: Vec<Written> =
        serde_json::from_str(include_str!("git/secrets.json")).expect("a test reads the shipped rules");
    let rule = |written: Written| {
        let pattern = RegexBuilder::new(&written.pattern).unicode(false).build();
        ready(written, pattern.expect("a test reads the shipped rules"))
    };
    written.into_iter().map(rule).collect()
});

fn ready(written: Written, pattern: Regex) -> Arc<Ready> {
    let Written { id, keywords, entropy, mixed, stand_ins, text_only, pattern: _ } = written;
    Arc::new(Ready { id, keywords, pattern, text_only, entropy, mixed, stand_ins })
}

/// The shipped rules with these changes.
///
/// # Errors
/// [`GatewayError::PushRule`] for a name to be turned off that no rule has.
pub(crate) fn changed(changes: &[SecretRuleChange]) -> Result<SecretRules, GatewayError> {
    let mut all = SHIPPED.clone();
    let (mut off, mut known) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            SecretRuleChange::Off(name) => off.push(name),
            SecretRuleChange::Added(SecretRule(rule)) => all.push(Arc::clone(rule)),
            SecretRuleChange::Known(texts) => known.push(texts.clone()),
        }
    }
    if let Some(name) = off.iter().find(|name| !all.iter().any(|rule| rule.id == ***name)) {
        let reason = "there is no such rule for secrets";
        return Err(GatewayError::PushRule { which: "git.secret_rules_off", value: (*name).clone(), reason });
    }
    all.retain(|rule| !off.contains(&&rule.id));
    Ok(SecretRules { all, known })
}

impl SecretRules {
    /// Whether everybody knows the text of this SHA-256, or the operator says that it is no secret.
    pub(crate) fn is_known(&self, hash: &Hash) -> bool {
        stand_ins::is_built_in(hash) || self.known.iter().any(|texts| texts.0.contains(hash))
    }
}

impl SecretRuleChange {
    /// Reads a file of the operator's: JSON, a list of rules as the shipped ones are, or an object that has it as `rules` and, as
    /// `known`, the SHA-256 in hexadecimal digits of texts that are no secrets. Of a rule, `id` has small letters, digits and hyphens
    /// and is no other rule's; one of `keywords`, in small letters, is in every text that `pattern` matches; the first group of
    /// `pattern`, a regular expression over bytes that takes linear time, is the secret. `entropy`, `mixed`, `stand_ins` and
    /// `text_only` may be left out.
    ///
    /// # Errors
    /// [`SecretRulesError`], also beyond [`SECRET_RULES_BYTES`], [`SECRET_RULES`] and [`KNOWN_TEXTS`].
    pub fn read(json: &[u8]) -> Result<Vec<Self>, SecretRulesError> {
        if json.len() > SECRET_RULES_BYTES {
            return Err(SecretRulesError::TooLong);
        }
        // Told apart by hand, since errors of one shape are clearer than those of either.
        let written = if json.trim_ascii_start().starts_with(b"{") {
            serde_json::from_slice(json)
        } else {
            serde_json::from_slice(json).map(|rules| WrittenFile { rules, known: Vec::new() })
        };
        let WrittenFile { rules, known } = written.map_err(SecretRulesError::Shape)?;
        if rules.len() > SECRET_RULES {
            return Err(SecretRulesError::TooMany);
        }
        if known.len() > KNOWN_TEXTS {
            return Err(SecretRulesError::TooManyKnown);
        }
        let mut added: Vec<Arc<Ready>> = Vec::new();
        for written in rules {
            let id = written.id.clone();
            let rule = checked(written, &added).map_err(|reason| SecretRulesError::Rule { id, reason })?;
            added.push(rule);
        }
        let mut hashes = HashSet::new();
        for (text, number) in known.iter().zip(1..) {
            hashes.insert(stand_ins::hash(text).ok_or(SecretRulesError::Known { number })?);
        }
        let known = (!hashes.is_empty()).then(|| Self::Known(KnownTexts(Arc::new(hashes))));
        Ok(added.into_iter().map(|rule| Self::Added(SecretRule(rule))).chain(known).collect())
    }
}

impl Ready {
    /// Whether what its pattern found may well be a secret, and is not what people write in place of one.
    pub(crate) fn is_likely(&self, secret: &[u8]) -> bool {
        let stands_in = if self.stand_ins {
            stand_ins::has_word(secret)
        } else {
            stand_ins::is_made_up(secret) || stand_ins::is_named(self.behind_prefix(secret))
        };
        let has = |class: fn(&u8) -> bool| secret.iter().any(class);
        !stands_in
            && entropy(secret) >= self.entropy
            && (!self.mixed
                || (has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit)))
    }

    /// The secret without the keyword that it begins with, if it does.
    fn behind_prefix<'a>(&self, secret: &'a [u8]) -> &'a [u8] {
        let split =
            self.keywords.iter().filter_map(|word| secret.split_at_checked(word.len()).zip(Some(word)));
        let mut bodies = split.filter(|((start, _), word)| start.eq_ignore_ascii_case(word.as_bytes()));
        bodies.next().map_or(secret, |((_, body), _)| body)
    }
}

/// A further rule, or what is wrong with it.
fn checked(written: Written, before: &[Arc<Ready>]) -> Result<Arc<Ready>, String> {
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
    let mut builder = RegexBuilder::new(pattern);
    builder.unicode(false).size_limit(PATTERN_MEMORY_BYTES).dfa_size_limit(PATTERN_MEMORY_BYTES);
    let regex = builder.build().map_err(|error| {
        if let regex::Error::CompiledTooBig(bytes) = error {
            format!("its pattern needs more than {bytes} bytes of memory; have it repeat less")
        } else {
            format!("its pattern is no regular expression that can be used: {error}")
        }
    })?;
    if regex.captures_len() < 2 {
        return Err("its pattern has no group; put the secret in parentheses".to_owned());
    }
    if regex.is_match(b"") {
        return Err("its pattern matches nothing at all; have it begin with what tells the secret".to_owned());
    }
    Ok(ready(written, regex))
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
