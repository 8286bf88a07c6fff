//! Finding secrets in what is pushed: the credentials that this gateway holds, however they are written, and texts that
//! look like somebody's secret. Pure; the rules for these are in `secrets.json`, and the operator's own file.
//!
//! A finding never holds the secret, only its hash, so that the same one can be told again elsewhere.

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use crate::config::GatewayError;
use crate::secret_rules::{self, LIVE, SecretRuleChange, SecretRules};

/// Shortest credential that is looked for, in bytes: a shorter one would be found by chance.
const LIVE_BYTES: usize = 8;

/// What a word that is searched for belongs to.
#[derive(Debug, Clone, Copy)]
enum Word {
    /// It makes a rule worth applying.
    Keyword(usize),
    /// It is a credential, as a whole.
    Live(usize),
}

/// What is looked for.
pub(super) struct Secrets {
    rules: SecretRules,
    live: Vec<Vec<u8>>,
    words: Vec<Word>,
    search: AhoCorasick,
}

/// A secret in a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Hit {
    /// The rule's name.
    pub(super) rule: String,
    /// Where it begins, in bytes.
    pub(super) at: usize,
    /// SHA-256 of the secret.
    pub(super) hash: [u8; 32],
}

impl Secrets {
    /// The shipped rules with the operator's changes, and `live` credentials.
    pub(super) fn new(live: &[&str], changes: &[SecretRuleChange]) -> Result<Self, GatewayError> {
        let rules = secret_rules::changed(changes)?;
        let live: Vec<Vec<u8>> = live.iter().flat_map(|secret| spellings(secret.as_bytes())).collect();
        let mut words = Vec::new();
        let mut texts: Vec<&[u8]> = Vec::new();
        for (number, rule) in rules.all.iter().enumerate() {
            for keyword in &rule.keywords {
                words.push(Word::Keyword(number));
                texts.push(keyword.as_bytes());
            }
        }
        for (number, text) in live.iter().enumerate() {
            words.push(Word::Live(number));
            texts.push(text);
        }
        let search = AhoCorasick::builder().ascii_case_insensitive(true).build(&texts);
        let search = search.map_err(|_| GatewayError::Credential { which: "a credential" })?;
        Ok(Self { rules, live, words, search })
    }

    /// The text, unless there is a secret in it: what git says of a push may have some of it, such as a name.
    pub(super) fn none_in(&self, text: String) -> String {
        if self.find(text.as_bytes(), false).is_empty() {
            text
        } else {
            "what git says of it has a secret in it, and is not shown".to_owned()
        }
    }

    /// Every secret in `text`; `binary` says that it is no text.
    pub(super) fn find(&self, text: &[u8], binary: bool) -> Vec<Hit> {
        let mut hits = Vec::new();
        let mut worth = vec![false; self.rules.all.len()];
        for found in self.search.find_overlapping_iter(text) {
            match self.words[found.pattern().as_usize()] {
                Word::Keyword(rule) => worth[rule] = true,
                Word::Live(number) if text[found.range()] == self.live[number] => {
                    hits.push(hit(LIVE, found.start(), &self.live[number]));
                }
                Word::Live(_) => {}
            }
        }
        let applied =
            self.rules.all.iter().zip(worth).filter(|(rule, worth)| *worth && !(rule.text_only && binary));
        for (rule, _) in applied {
            for found in rule.pattern.captures_iter(text) {
                let Some(secret) = found.get(1) else { continue };
                if !rule.is_likely(secret.as_bytes()) {
                    continue;
                }
                let hit = hit(&rule.id, secret.start(), secret.as_bytes());
                if !self.rules.is_known(&hit.hash) {
                    hits.push(hit);
                }
            }
        }
        hits.sort_by_key(|hit| hit.at);
        hits.dedup();
        hits
    }
}

fn hit(rule: &str, at: usize, secret: &[u8]) -> Hit {
    Hit { rule: rule.to_owned(), at, hash: Sha256::digest(secret).into() }
}

/// How a credential may be written: as it is, in a URL, in hexadecimal digits, and in base64 at any place of a longer
/// text. Nothing for one that is too short to be told from chance.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    if secret.len() < LIVE_BYTES {
        return Vec::new();
    }
    let url: String = url::form_urlencoded::byte_serialize(secret).collect();
    let mut all = vec![secret.to_vec(), url.into_bytes(), hex::encode(secret).into_bytes()];
    all.push(hex::encode_upper(secret).into_bytes());
    for offset in 0..3 {
        let shifted = [&[0; 3][..offset], secret].concat();
        // Only digits that depend on nothing else than the secret.
        let (first, end) = ((offset * 8).div_ceil(6), shifted.len() * 8 / 6);
        for text in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
            all.push(text.as_bytes()[first..end].to_vec());
        }
    }
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "k3y/with+signs=and-more";

    fn rules_in(text: &str) -> Vec<String> {
        let secrets = Secrets::new(&[KEY], &[]).unwrap();
        secrets.find(text.as_bytes(), false).into_iter().map(|hit| hit.rule).collect()
    }

    #[test]
    fn a_credential_of_the_gateways_is_found_however_it_is_written() {
        let url: String = url::form_urlencoded::byte_serialize(KEY.as_bytes()).collect();
        let mut texts = vec![KEY.to_owned(), url, hex::encode(KEY), hex::encode_upper(KEY)];
        for before in ["", "x", "xy", "user:"] {
            for after in ["", "z", "zz"] {
                let text = format!("{before}{KEY}{after}");
                texts.push(STANDARD_NO_PAD.encode(&text));
                texts.push(URL_SAFE_NO_PAD.encode(&text));
            }
        }
        for text in texts {
            assert_eq!(rules_in(&format!("a {text} b")), [LIVE], "{text}");
        }
        assert!(rules_in(&KEY.to_uppercase()).is_empty());
        assert!(Secrets::new(&["short"], &[]).unwrap().find(b"short", false).is_empty());
    }

    #[test]
    fn what_is_known_to_be_no_secret_is_not_told_of_unless_it_is_a_credential_of_the_gateways() {
        let token = format!("ghp_{}", "7".repeat(36));
        let known = format!(r#"{{"known": ["{}"]}}"#, hex::encode(Sha256::digest(&token)));
        let known = SecretRuleChange::read(known.as_bytes()).unwrap();
        let found = |live: &[&str]| -> Vec<String> {
            let hits = Secrets::new(live, &known).unwrap().find(token.as_bytes(), false);
            hits.into_iter().map(|hit| hit.rule).collect()
        };
        assert!(found(&[]).is_empty());
        assert_eq!(found(&[&token]), [LIVE]);
    }

    #[test]
    fn the_same_secret_has_the_same_hash_and_another_one_has_not() {
        let secrets = Secrets::new(&[], &[]).unwrap();
        let of = |text: &str| secrets.find(text.as_bytes(), false)[0].hash;
        let token = |digit: &str| format!("ghp_{}", digit.repeat(36));
        assert_eq!(of(&token("1")), of(&format!("moved\n {}", token("1"))));
        assert_ne!(of(&token("1")), of(&token("2")));
        assert!(secrets.find(b"\0", true).is_empty());
    }
}
