//! Finding secrets in what is pushed: the credentials that this gateway holds, however they are written, and texts that
//! look like somebody's secret. Pure; the rules are in `secrets.json`.
//!
//! A finding never holds the secret, only its hash, so that the same one can be told again elsewhere.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::config::GatewayError;

/// Shortest credential that is looked for, in bytes: a shorter one would be found by chance.
const LIVE_BYTES: usize = 8;
/// Name of the rule for the gateway's own credentials. It cannot be turned off.
pub(super) const LIVE: &str = "live-credential";
/// Words that stand in for a secret in documents and tests.
const STAND_INS: [&str; 9] =
    ["example", "changeme", "placeholder", "dummy", "redacted", "xxxxxx", "your_", "your-", "notreal"];

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: String,
    /// One of them, in any case, is in every text that the pattern matches.
    keywords: Vec<String>,
    /// Its first group is the secret. It matches at most [`super::scan::MATCH_BYTES`].
    pattern: String,
    /// Least entropy of the secret, in bits a byte.
    #[serde(default)]
    entropy: f32,
    /// Whether the secret has small and capital letters and digits.
    #[serde(default)]
    mixed: bool,
    /// Whether binary files are left out.
    #[serde(default)]
    text_only: bool,
}

/// A rule that can be applied.
#[derive(Debug, Clone)]
struct Rule {
    id: String,
    keywords: Vec<String>,
    pattern: Regex,
    entropy: f32,
    mixed: bool,
    text_only: bool,
}

static SHIPPED: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let written: Vec<Written> =
        serde_json::from_str(include_str!("secrets.json")).expect("a test reads the shipped rules");
    let rule = |written: Written| Rule {
        pattern: RegexBuilder::new(&written.pattern)
            .unicode(false)
            .build()
            .expect("a test reads the shipped rules"),
        id: written.id,
        keywords: written.keywords,
        entropy: written.entropy,
        mixed: written.mixed,
        text_only: written.text_only,
    };
    written.into_iter().map(rule).collect()
});

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
    rules: Vec<Rule>,
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
    /// The shipped rules but those in `off`, and `live` credentials.
    pub(super) fn new(live: &[&str], off: &[String]) -> Result<Self, GatewayError> {
        let known = |name: &String| SHIPPED.iter().any(|rule| rule.id == *name);
        if let Some(name) = off.iter().find(|name| !known(name)) {
            let reason = "there is no such rule for secrets";
            return Err(GatewayError::PushRule {
                which: "git.secret_rules_off",
                value: name.clone(),
                reason,
            });
        }
        let rules: Vec<Rule> = SHIPPED.iter().filter(|rule| !off.contains(&rule.id)).cloned().collect();
        let live: Vec<Vec<u8>> = live.iter().flat_map(|secret| spellings(secret.as_bytes())).collect();
        let mut words = Vec::new();
        let mut texts: Vec<&[u8]> = Vec::new();
        for (number, rule) in rules.iter().enumerate() {
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
        let mut worth = vec![false; self.rules.len()];
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
            self.rules.iter().zip(worth).filter(|(rule, worth)| *worth && !(rule.text_only && binary));
        for (rule, _) in applied {
            for found in rule.pattern.captures_iter(text) {
                let Some(secret) = found.get(1) else { continue };
                if rule.is_likely(secret.as_bytes()) {
                    hits.push(hit(&rule.id, secret.start(), secret.as_bytes()));
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

impl Rule {
    fn is_likely(&self, secret: &[u8]) -> bool {
        let lower = String::from_utf8_lossy(secret).to_ascii_lowercase();
        if STAND_INS.iter().any(|word| lower.contains(word)) || entropy(secret) < self.entropy {
            return false;
        }
        let has = |class: fn(&u8) -> bool| secret.iter().any(class);
        !self.mixed || (has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit))
    }
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
    fn every_shipped_rule_is_read_and_its_keywords_are_in_small_letters() {
        assert!(SHIPPED.len() >= 20);
        for rule in SHIPPED.iter() {
            assert!(rule.pattern.captures_len() == 2, "{}", rule.id);
            assert!(!rule.keywords.is_empty());
            assert!(rule.keywords.iter().all(|word| *word == word.to_ascii_lowercase()));
        }
    }

    /// The examples are put together here, so that no scanner takes this file for a leak.
    #[test]
    fn each_kind_of_secret_is_found() {
        let (digits, mixed) = ("0123456789abcdef".repeat(4), "aZ3kQ9xW7mB2nR5tY8uL1pD4".repeat(9));
        let body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
        for (rule, text) in [
            ("aws-access-key", format!("id = {}Q3EGRXD5QTRSBWXZ", "AKIA")),
            ("aws-secret-key", format!("aws_secret_access_key = {}", &mixed[..40])),
            ("github-token", format!("token: ghp_{}", &mixed[..36])),
            ("github-fine-grained-token", format!("github_pat_{}_{}", &mixed[..22], &mixed[..59])),
            ("gitlab-token", format!("glpat-{}", &mixed[..20])),
            ("slack-token", format!("xoxb-{}", &mixed[..48])),
            ("slack-webhook", format!("https://hooks.slack.com/services/T0/B0/{}", &mixed[..40])),
            ("anthropic-key", format!("sk-ant-api03-{}", &mixed[..93])),
            ("openai-key", format!("sk-proj-{}T3BlbkFJ{}", &mixed[..40], &mixed[..40])),
            ("google-key", format!("AIza{}", &mixed[..35])),
            ("stripe-key", format!("sk_live_{}", &mixed[..24])),
            ("npm-token", format!("npm_{}", &mixed[..36])),
            ("pypi-token", format!("pypi-AgEIcHlwaS5vcmc{}", &mixed[..60])),
            ("sendgrid-key", format!("SG.{}.{}", &mixed[..22], &mixed[..43])),
            ("digitalocean-token", format!("dop_v1_{digits}")),
            ("hugging-face-token", format!("hf_{}", "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH")),
            ("caisson-key", format!("csk_{digits}")),
            ("private-key", format!("-----BEGIN RSA {} KEY-----\n{body}\n", "PRIVATE")),
            ("private-key", format!("\"-----BEGIN {} KEY-----\\n{body}\\n\"", "PRIVATE")),
            ("url-password", "postgres://app:q8Zr2LmW5xT0@db.example.com/x".to_owned()),
            ("generic-secret", format!("password = \"{}\"", &mixed[..24])),
            ("generic-secret", format!("\"client_secret\": \"{}\"", &mixed[..24])),
        ] {
            assert_eq!(rules_in(&text), [rule], "{text}");
        }
    }

    #[test]
    fn what_only_looks_like_a_secret_is_left_alone() {
        let digest = "0123456789abcdef".repeat(4);
        for text in [
            "AKIAIOSFODNN7EXAMPLE".to_owned(),
            format!("-----BEGIN {} KEY----- is what its first line says", "PRIVATE"),
            "postgres://postgres:postgres@localhost/x".to_owned(),
            "https://user:${PASSWORD}@host/".to_owned(),
            format!("token = \"{digest}\""),
            "secret = \"your-secret-goes-here-0A1b2C3d\"".to_owned(),
            "let token = parse_the_token_of(\"a_long_identifier_with_words\");".to_owned(),
            "password: 'correct horse battery staple and more'".to_owned(),
        ] {
            assert_eq!(rules_in(&text), Vec::<String>::new(), "{text}");
        }
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
    fn a_rule_can_be_turned_off_and_must_be_known() {
        let text = format!("password = \"{}\"", &"aZ3kQ9xW7mB2nR5tY8uL1pD4");
        let off = ["generic-secret".to_owned()];
        assert!(Secrets::new(&[], &off).unwrap().find(text.as_bytes(), false).is_empty());
        let unknown = Secrets::new(&[], &["no-such-rule".to_owned()]);
        assert!(matches!(unknown.err(), Some(GatewayError::PushRule { .. })));
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
