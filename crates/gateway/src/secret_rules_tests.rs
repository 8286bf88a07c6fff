use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::*;

fn hash_of(text: &[u8]) -> Hash {
    Sha256::digest(text).into()
}

/// The names of the rules by which a secret is found in the text.
fn found(rules: &SecretRules, text: &str) -> Vec<String> {
    let applied = rules.all.iter().filter(|rule| {
        let lower = text.to_ascii_lowercase();
        rule.keywords.iter().any(|word| lower.contains(word.as_str()))
    });
    let finds = applied.filter(|rule| {
        let all = rule.pattern.captures_iter(text.as_bytes());
        all.filter_map(|found| found.get(1))
            .any(|secret| rule.is_likely(secret.as_bytes()) && !rules.is_known(&hash_of(secret.as_bytes())))
    });
    finds.map(|rule| rule.id.clone()).collect()
}

fn shipped(text: &str) -> Vec<String> {
    found(&changed(&[]).unwrap(), text)
}

fn mixed(bytes: usize) -> String {
    "aZ3kQ9xW7mB2nR5tY8uL1pD4".repeat(20)[..bytes].to_owned()
}

fn hex(bytes: usize) -> String {
    "0123456789abcdef".repeat(10)[..bytes].to_owned()
}

fn capitals(bytes: usize) -> String {
    "A3KQ9XW7MB2NR5TY8UL1PD4Z".repeat(3)[..bytes].to_owned()
}

/// The rule's name, what is before a secret, one that is as short as such a one may be, and what is behind it. They are put together
/// here, so that no scanner takes this file for a leak.
type Example = (&'static str, &'static str, String, &'static str);

fn plain(rule: &'static str, secret: String) -> Example {
    (rule, " ", secret, "\n")
}

fn examples() -> Vec<Example> {
    [examples_of_hosts(), examples_of_services(), examples_of_any()].concat()
}

fn examples_of_hosts() -> Vec<Example> {
    vec![
        plain("aws-access-key", format!("{}Q3EGRXD5QTRSBWXZ", "AKIA")),
        ("aws-secret-key", "aws_secret_access_key = ", mixed(40), "\n"),
        plain("github-token", format!("ghp_{}", mixed(36))),
        plain("github-fine-grained-token", format!("github_pat_{}_{}", mixed(22), mixed(59))),
        plain("gitlab-token", format!("glpat-{}", mixed(20))),
        plain("slack-token", format!("xoxb-{}", mixed(20))),
        ("slack-webhook", "https://hooks.slack.com/services/", format!("T0/B0/{}", mixed(34)), "\n"),
        plain("anthropic-key", format!("sk-ant-api03-{}", mixed(60))),
        plain("openai-key", format!("sk-proj-{}T3BlbkFJ{}", mixed(20), mixed(20))),
        plain("google-key", format!("AIza{}", mixed(35))),
        plain("stripe-key", format!("sk_live_{}", mixed(20))),
        plain("npm-token", format!("npm_{}", mixed(36))),
        plain("pypi-token", format!("pypi-AgEIcHlwaS5vcmc{}", mixed(50))),
        plain("sendgrid-key", format!("SG.{}.{}", mixed(22), mixed(43))),
        plain("digitalocean-token", format!("dop_v1_{}", hex(64))),
        plain("hugging-face-token", format!("hf_{}", "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH")),
        plain("bitbucket-token", format!("ATBB{}0A1B2C3D", mixed(24))),
        plain("atlassian-token", format!("ATATT3{}", mixed(186))),
        ("discord-webhook", "https://discord.com/api/webhooks/123456789012345678/", mixed(60), "\n"),
        plain("telegram-bot-token", format!("123456789:AA{}", mixed(33))),
        plain("groq-key", format!("gsk_{}", mixed(52))),
        plain("xai-key", format!("xai-{}", mixed(80))),
        plain("replicate-token", format!("r8_{}", mixed(37))),
        plain("perplexity-key", format!("pplx-{}", mixed(48))),
        plain("google-oauth-secret", format!("GOCSPX-{}", mixed(28))),
        ("azure-storage-key", "AccountName=x;AccountKey=", format!("{}==", mixed(86)), ";"),
        ("azure-shared-access-key", "SharedAccessKey=", format!("{}=", mixed(43)), ";"),
        plain("azure-client-secret", format!("aB38Q~{}", mixed(31))),
    ]
}

fn examples_of_services() -> Vec<Example> {
    vec![
        plain("shopify-token", format!("shpat_{}", hex(32))),
        plain("square-secret", format!("sq0csp-{}", mixed(43))),
        plain("docker-token", format!("dckr_pat_{}", mixed(27))),
        plain("rubygems-key", format!("rubygems_{}", hex(48))),
        plain("crates-io-token", format!("cio{}", mixed(32))),
        plain("nuget-key", format!("oy2{}", capitals(43).to_ascii_lowercase())),
        ("mailgun-key", "MAILGUN_API_KEY=", format!("key-{}", hex(32)), "\n"),
        plain("mailchimp-key", format!("{}-us1", hex(32))),
        plain("brevo-key", format!("xkeysib-{}-{}", hex(64), mixed(16))),
        ("twilio-key", "TWILIO_API_KEY=", format!("SK{}", hex(32)), "\n"),
        plain("fly-token", format!("fo1_{}", mixed(43))),
        plain("heroku-key", format!("HRKU-{}", mixed(60))),
        plain("cloudflare-origin-key", format!("v1.0-{}-{}", hex(24), hex(146))),
        ("cloudflare-token", "CLOUDFLARE_API_TOKEN=", mixed(40), "\n"),
        plain("tailscale-key", format!("tskey-auth-{}-{}", mixed(11), mixed(20))),
        plain("vault-token", format!("hvs.{}", mixed(24))),
        plain("terraform-cloud-token", format!("{}.atlasv1.{}", mixed(14), mixed(60))),
        plain("pulumi-token", format!("pul-{}", hex(40))),
        plain("doppler-token", format!("dp.pt.{}", mixed(40))),
        plain("onepassword-token", format!("ops_eyJ{}", mixed(250))),
        plain("databricks-token", format!("dapi{}", hex(32))),
        plain("planetscale-token", format!("pscale_tkn_{}", mixed(32))),
        plain("supabase-key", format!("sbp_{}", hex(40))),
        plain("airtable-token", format!("pat{}.{}", mixed(14), hex(64))),
        plain("grafana-token", format!("glsa_{}_{}", mixed(32), hex(8))),
        plain("sentry-token", format!("sntryu_{}", hex(64))),
        plain("new-relic-key", format!("NRAK-{}", capitals(27))),
        plain("dynatrace-token", format!("dt0c01.{}.{}", capitals(24), capitals(64))),
        plain("linear-key", format!("lin_api_{}", mixed(40))),
        plain("notion-token", format!("ntn_12345678901{}", mixed(35))),
        plain("figma-token", format!("figd_{}", mixed(40))),
        plain("postman-key", format!("PMAK-{}-{}", hex(24), hex(34))),
        plain("buildkite-token", format!("bkua_{}", hex(40))),
        plain("circleci-token", format!("CCIPAT_{}_{}", mixed(22), hex(40))),
        plain("age-key", format!("AGE-SECRET-KEY-1{}", &"QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L".repeat(2)[..58])),
    ]
}

fn examples_of_any() -> Vec<Example> {
    let body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj".to_owned();
    vec![
        plain("json-web-token", format!("eyJ{0}.eyJ{0}.{1}", mixed(17), mixed(40))),
        plain("caisson-key", format!("csk_{}", hex(64))),
        ("private-key", concat!("-----BEGIN RSA ", "PRIVATE KEY-----"), body, ""),
        ("url-password", "postgres://app:", "q8Zr2LmW5xT0".to_owned(), "@db.example.com/x"),
        ("generic-secret", "password = \"", mixed(24), "\"\n"),
    ]
}

#[test]
fn each_kind_of_secret_is_found_and_what_is_a_byte_too_short_for_one_is_not() {
    let examples = examples();
    let mut shown: Vec<&str> = examples.iter().map(|(rule, ..)| *rule).collect();
    let mut known: Vec<&str> = SHIPPED.iter().map(|rule| rule.id.as_str()).collect();
    shown.sort_unstable();
    known.sort_unstable();
    assert_eq!(shown, known, "each rule has an example, and no name is there twice");
    let rules = changed(&[]).unwrap();
    for (rule, before, secret, after) in examples {
        let text = format!("{before}{secret}{after}");
        assert_eq!(found(&rules, &text), [rule], "{text}");
        let short = format!("{before}{}{after}", &secret[..secret.len() - 1]);
        assert_eq!(found(&rules, &short), Vec::<String>::new(), "{short}");
    }
}

#[test]
fn secrets_of_other_shapes_are_found_as_well() {
    let key = format!("\n{}\n", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj");
    for (rule, text) in [
        ("private-key", format!("-----BEGIN RSA {} KEY-----{key}", "PRIVATE")),
        ("private-key", format!("\"-----BEGIN {} KEY-----{}\"", "PRIVATE", key.replace('\n', "\\n"))),
        ("generic-secret", format!("\"client_secret\": \"{}\"", mixed(24))),
        ("fly-token", format!("FlyV1 fm2_{}", mixed(100))),
        ("supabase-key", format!("sb_secret_{}_{}", mixed(22), mixed(8))),
        ("grafana-token", format!("glc_eyJ{}==", mixed(60))),
        ("sentry-token", format!("sntrys_eyJ{}", mixed(100))),
        ("new-relic-key", format!("NRII-{}", mixed(32))),
        ("doppler-token", format!("dp.st.dev_2.{}", mixed(43))),
        (
            "discord-webhook",
            format!("https://discordapp.com/api/v10/webhooks/12345678901234567/{}", mixed(68)),
        ),
    ] {
        assert_eq!(shipped(&text), [rule], "{text}");
    }
}

#[test]
fn every_shipped_rule_is_whole_and_documented() {
    let documented = include_str!("../../../docs/configuration.md");
    assert!(SHIPPED.len() >= 60);
    for rule in SHIPPED.iter() {
        assert_eq!(rule.pattern.captures_len(), 2, "{}", rule.id);
        assert!(!rule.pattern.is_match(b""), "{}", rule.id);
        assert!(!rule.keywords.is_empty());
        assert!(rule.keywords.iter().all(|word| *word == word.to_ascii_lowercase()));
        assert!(documented.contains(&format!("`{}`", rule.id)), "{} in docs/configuration.md", rule.id);
    }
}

#[test]
fn what_only_looks_like_a_secret_is_left_alone() {
    let digest = hex(64);
    for text in [
        format!("-----BEGIN {} KEY----- is what its first line says", "PRIVATE"),
        "postgres://postgres:postgres@localhost/x".to_owned(),
        "https://user:${PASSWORD}@host/".to_owned(),
        format!("token = \"{digest}\""),
        "secret = \"your-secret-goes-here-0A1b2C3d\"".to_owned(),
        "let token = parse_the_token_of(\"a_long_identifier_with_words\");".to_owned(),
        "password: 'correct horse battery staple and more'".to_owned(),
        // Digests behind words that are like a prefix.
        format!("key-{}", hex(32)),
        format!("SK{}", hex(32)),
        format!("precious{}", hex(32)),
        format!("path{}.{}", mixed(14), hex(64)),
        format!("cio{}", hex(32)),
        format!("sha256-{}", hex(64)),
    ] {
        assert_eq!(shipped(&text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn what_stands_in_for_a_token_is_left_alone_and_a_token_with_such_a_word_in_it_is_not() {
    for text in [
        "AKIAIOSFODNN7EXAMPLE".to_owned(),
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
        format!("AKIA{}", "X".repeat(16)),
        format!("ghp_{}", "x".repeat(36)),
        format!("glpat-{}", "X".repeat(20)),
        format!("xoxb-{0}-{0}-{0}", "x".repeat(12)),
        format!("csk_{}", "a".repeat(64)),
    ] {
        assert_eq!(shipped(&text), Vec::<String>::new(), "{text}");
    }
    for (rule, text) in [
        ("github-token", format!("ghp_{}example{}", mixed(15), mixed(14))),
        ("github-token", format!("ghp_{}xxxxxx{}", mixed(15), mixed(15))),
        ("gitlab-token", format!("glpat-your_{}", mixed(15))),
        ("slack-token", format!("xoxb-dummy-{}", mixed(20))),
        ("github-token", format!("ghp_{}", "7".repeat(36))),
    ] {
        assert_eq!(shipped(&text), [rule], "{text}");
    }
}

/// A line of a file that shows what is to be set, put together here.
fn shown(prefix: &str, body: &str) -> String {
    format!("TOKEN={prefix}{body}\n")
}

#[test]
fn a_token_that_is_only_named_is_left_alone_and_one_made_by_chance_with_such_words_in_it_is_not() {
    for (prefix, body) in [
        ("xoxb-", "your-slack-bot-token"),
        ("xoxb-", "slack-bot-access-token"),
        ("xoxb-", "1234567890-example-token"),
        ("xoxb-", "123456789012-123456789012-YourTokenGoesHere"),
        ("xoxb-", "yourcompany-bot-token-here"),
        ("xoxb-", "acme-production-bot-access-credentials"),
        ("xapp-", "your-app-level-token"),
        ("xapp-", "1-test-token-00000000000-xxxxxxxx"),
        ("glpat-", "your-access-token-here"),
        ("glpat-", "your_gitlab_personal_access_token"),
        ("glpat-", "REPLACE-WITH-YOUR-TOKEN"),
        ("hvs.", "your-vault-token-goes-here"),
        ("hooks.slack.com/services/", "YOUR/SLACK/WEBHOOK/URL/GOES/HERE/PLACEHOLDER"),
        ("hooks.slack.com/services/", "T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"),
        ("sk-ant-", "api03-your-anthropic-api-key-goes-here-and-your-key-is-not-in-the-repo"),
        ("pscale_", "tkn_your_planetscale_service_token_here"),
        // No word is made of this prefix.
        ("fo1_", "your-fly-access-token-goes-here-and-not-in-git"),
    ] {
        let text = shown(prefix, body);
        assert!(SHIPPED.iter().any(|rule| rule.pattern.is_match(text.as_bytes())), "{text}");
        assert_eq!(shipped(&text), Vec::<String>::new(), "{text}");
    }
    for (rule, prefix, body) in [
        ("gitlab-token", "glpat-", "Kd7testQ2xYour9fLbZ0"),
        ("gitlab-token", "glpat-", "your-token-Kd7Q2x9fLbZ0"),
        ("gitlab-token", "glpat-", "test_kdqzxwfl8bmnrtyu"),
        ("gitlab-token", "glpat-", "example-key-58203174"),
        ("gitlab-token", "glpat-", "token-kdqzxwflbmnrtyuvs"),
        ("gitlab-token", "glpat-", "token-kDqZxWfLbMnRtYu"),
        ("slack-token", "xoxb-", "263594206564-2343594206574-FGqdtestt8v08yourOq4i57v"),
        ("slack-token", "xoxb-", "263594206564-your-bot-token"),
        ("vault-token", "hvs.", "CAESIyourtest3kQ9xW7mB2nR5tY"),
        ("github-token", "ghp_", "testtokenaZ3kQ9xW7mB2nR5tY8uL1pD4you"),
        ("slack-webhook", "hooks.slack.com/services/", "T2YOUR5AB/B7TEST8CD/aZ3kQ9xW7mB2nR5tY8uL1pD4"),
        ("aws-access-key", "AKIA", "QTESTRXDKEYRSBWX"),
    ] {
        assert_eq!(shipped(&shown(prefix, body)), [rule], "{prefix}{body}");
    }
}

#[test]
fn what_a_name_for_a_token_may_have_beside_its_words_is_bounded() {
    for (named, other) in [
        ("placeholder-credential-kdqzxwflbmnrtyuv", "placeholder-credential-kdqzxwflbmnrtyuvs"),
        ("token-acmes", "token-acmesx"),
        ("your-token-58", "your-token-582"),
        ("your-token-5678", "your-token-5679"),
        ("your-token-7777", "your-token-7775"),
        ("your-tokenxxx1", "your-tokenxx1"),
        ("your-Token", "your-toKen1Q"),
        ("x-your", "-1234-"),
    ] {
        assert!(stand_ins::is_named(named.as_bytes()), "{named}");
        assert!(!stand_ins::is_named(other.as_bytes()), "{other}");
    }
    assert!(!stand_ins::is_named(b""));
}

#[test]
fn a_rule_of_the_operators_loses_no_token_to_a_word_of_its_prefix() {
    let rule = |alphabet: &str| {
        let text =
            format!(r#"[{{"id": "own", "keywords": ["acme"], "pattern": "\\b(acme_token_{alphabet})\\b"}}]"#);
        changed(&SecretRuleChange::read(text.as_bytes()).unwrap()).unwrap()
    };
    assert_eq!(found(&rule("[a-z]{8}"), "acme_token_kdqzxwfl"), ["own"]);
    assert_eq!(found(&rule("[a-z]{20}"), "acme_token_kdqzxwflbmnrtyuvspaz"), ["own"]);
    assert_eq!(found(&rule("[0-9]{12}"), "acme_token_582031749920"), ["own"]);
    assert_eq!(found(&rule("[a-z]{4}"), "acme_token_here"), Vec::<String>::new());
}

#[test]
fn secrets_that_everybody_has_are_left_alone_and_others_made_as_they_are_found() {
    let storage = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw";
    let documents = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw";
    for key in [storage, documents] {
        for (rule, before, after) in
            [("azure-storage-key", "AccountKey=", ";"), ("generic-secret", "token = \"", "\"")]
        {
            assert_eq!(shipped(&format!("{before}{key}=={after}")), Vec::<String>::new());
            // Only its first letter is another.
            let other = format!("{before}D{}=={after}", &key[1..]);
            assert_eq!(shipped(&other), [rule]);
        }
    }
    let token = |header: &str, payload: &str| {
        let [header, payload] = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
        format!("KEY={header}.{payload}.{}", mixed(43))
    };
    let usual = r#"{"alg":"HS256","typ":"JWT"}"#;
    for (header, payload) in [
        (usual, r#"{"sub":"1234567890","name":"John Doe","iat":1516239022}"#),
        (r#"{"alg":"RS256","typ":"JWT"}"#, r#"{"sub":"1234567890","name":"John Doe","admin":true,"iat":1}"#),
        (usual, r#"{"iss":"supabase-demo","role":"anon","exp":1983812996}"#),
        (usual, r#"{"role": "service_role", "iss": "supabase-demo", "exp": 1983812996}"#),
    ] {
        assert_eq!(shipped(&token(header, payload)), Vec::<String>::new(), "{payload}");
    }
    for payload in [
        r#"{"iss":"supabase","role":"service_role","exp":1983812996}"#,
        r#"{"iss":"x","role":"supabase-demo","exp":1983812996}"#,
        r#"{"sub":"1234567890","name":"Jane Roe","iat":1516239022}"#,
        r#"{"sub":"42","name":"John Doe","iat":1516239022}"#,
        r#"{"sub":1234567890,"name":"John Doe","iat":1516239022}"#,
        r#"{"iss":"supabase-demo","role":"no end of it""#,
    ] {
        assert_eq!(shipped(&token(usual, payload)), ["json-web-token"], "{payload}");
    }
}

#[test]
fn what_is_known_to_be_no_secret_is_found_by_no_rule_and_is_bounded_in_number() {
    let secret = format!("ghp_{}", mixed(36));
    let other = format!("ghp_{}", mixed(37).split_off(1));
    let mut hashes: Vec<String> =
        (1..KNOWN_TEXTS).map(|number| hex::encode(hash_of(&number.to_be_bytes()))).collect();
    hashes.push(hex::encode_upper(hash_of(secret.as_bytes())));
    let file = |hashes: &[String]| format!(r#" {{"known": {hashes:?}, "rules": [{OWN}]}}"#);
    let changes = SecretRuleChange::read(file(&hashes).as_bytes()).unwrap();
    let rules = changed(&changes).unwrap();
    assert_eq!(found(&rules, &secret), Vec::<String>::new());
    assert_eq!(found(&rules, &other), ["github-token"]);
    assert_eq!(found(&rules, "a own_0123abcd b"), ["own-token"]);
    assert_eq!(shipped(&secret), ["github-token"]);
    hashes.push(hex(64));
    let more = SecretRuleChange::read(file(&hashes).as_bytes());
    assert!(matches!(more, Err(SecretRulesError::TooManyKnown)), "{more:?}");
    assert_eq!(SecretRuleChange::read(b"{}").unwrap().len(), 0);
}

#[test]
fn rules_are_shared_by_all_that_look_for_them() {
    let changes = SecretRuleChange::read(format!("[{OWN}]").as_bytes()).unwrap();
    let [one, other] = [changed(&changes).unwrap().all, changed(&changes.clone()).unwrap().all];
    assert_eq!(one.len(), SHIPPED.len() + 1);
    assert!(one.iter().zip(&other).all(|(one, other)| Arc::ptr_eq(one, other)));
}

#[test]
fn a_rule_can_be_turned_off_and_must_be_known() {
    let text = format!("password = \"{}\"", mixed(24));
    let off = |name: &str| SecretRuleChange::Off(name.to_owned());
    let twice = [off("generic-secret"), off("generic-secret")];
    assert!(found(&changed(&twice).unwrap(), &text).is_empty());
    let unknown = changed(&[off("no-such-rule")]);
    // The operator looks for the setting by this name.
    assert!(matches!(unknown.err(), Some(GatewayError::PushRule { which: "git.secret_rules_off", .. })));
}

const OWN: &str = r#"{"id": "own-token", "keywords": ["own_"], "pattern": "\\b(own_[0-9a-f]{8})\\b"}"#;

#[test]
fn further_rules_are_applied_and_can_be_turned_off_as_the_shipped_ones() {
    let mut changes = SecretRuleChange::read(format!("[{OWN}]").as_bytes()).unwrap();
    let text = "a own_0123abcd b";
    assert_eq!(found(&changed(&changes).unwrap(), text), ["own-token"]);
    assert_eq!(found(&changed(&changes).unwrap(), "own_aaaaaaaa"), Vec::<String>::new(), "one letter");
    assert_eq!(found(&changed(&changes).unwrap(), &format!("ghp_{}", mixed(36))), ["github-token"]);
    assert!(shipped(text).is_empty());
    changes.push(SecretRuleChange::Off("own-token".to_owned()));
    assert!(found(&changed(&changes).unwrap(), text).is_empty());
    assert_eq!(SecretRuleChange::read(b"[]").unwrap().len(), 0);
}

#[test]
fn further_rules_that_cannot_be_used_are_told_with_what_to_do() {
    let rule = |id: &str, keyword: &str, pattern: &str, more: &str| {
        format!(r#"{{"id": "{id}", "keywords": ["{keyword}"], "pattern": "{pattern}"{more}}}"#)
    };
    let long = "a".repeat(WORD_BYTES + 1);
    let keywords = vec!["\"k\""; KEYWORDS + 1].join(", ");
    let list = |rule: &str| format!("[{rule}]");
    for (text, part) in [
        (String::new(), "list of rules"),
        ("{\"rule\": []}".to_owned(), "unknown field `rule`"),
        ("{\"known\": [\"abc\"]}".to_owned(), "number 1 of its known texts is not 64 hexadecimal digits"),
        (format!("{{\"known\": [\"{0}\", \"{0}0\"]}}", hex(64)), "number 2 of its known texts"),
        (format!("{{\"known\": [\"{}g\"]}}", hex(63)), "number 1 of its known texts"),
        (list(r#"{"keywords": ["k"], "pattern": "(k)"}"#), "missing field `id`"),
        (list(r#"{"id": "x", "pattern": "(k)"}"#), "missing field `keywords`"),
        (list(&rule("x", "k", "(k)", r#", "entropie": 3"#)), "unknown field `entropie`"),
        (list(&rule("x", "k", "(k", "")), "regular expression"),
        (list(&rule("x", "k", "(?=k)(k)", "")), "regular expression"),
        (
            list(&rule("x", "k", "([a-z]{1000}){1000}", "")),
            "more than 1048576 bytes of memory; have it repeat less",
        ),
        (list(&rule("x", "k", "k", "")), "no group"),
        (list(&rule("x", "k", "(k*)", "")), "matches nothing"),
        (list(&rule("X", "k", "(k)", "")), "small letters"),
        (list(&rule("", "k", "(k)", "")), "small letters"),
        (list(&rule(&long, "k", "(k)", "")), "small letters"),
        (list(&rule("github-token", "k", "(k)", "")), "another rule"),
        (list(&rule(LIVE, "k", "(k)", "")), "another rule"),
        (list(&format!("{OWN}, {OWN}")), "another rule"),
        (list(&rule("x", "K", "(k)", "")), "keywords"),
        (list(&rule("x", "", "(k)", "")), "keywords"),
        (list(&rule("x", &long, "(k)", "")), "keywords"),
        (list(r#"{"id": "x", "keywords": [], "pattern": "(k)"}"#), "keywords"),
        (list(&format!(r#"{{"id": "x", "keywords": [{keywords}], "pattern": "(k)"}}"#)), "keywords"),
        (list(&rule("x", "k", "(k)", r#", "entropy": 8.5"#)), "entropy"),
        (list(&rule("x", "k", "(k)", r#", "entropy": -1"#)), "entropy"),
    ] {
        let error = SecretRuleChange::read(text.as_bytes()).unwrap_err();
        let told = format!(
            "{error}: {}",
            std::error::Error::source(&error).map_or_else(String::new, ToString::to_string)
        );
        assert!(told.contains(part), "{text}: {told}");
    }
    for bound in [
        rule(&long[1..], "k", "(k)", ""),
        rule("x", &long[1..], "(k)", r#", "entropy": 8"#),
        format!(r#"{{"id": "x", "keywords": [{}], "pattern": "(k)"}}"#, &keywords[5..]),
    ] {
        assert!(SecretRuleChange::read(list(&bound).as_bytes()).is_ok(), "{bound}");
    }
}

#[test]
fn further_rules_are_bounded_in_number_and_size() {
    let many = |count: usize| {
        let rules: Vec<String> =
            (0..count).map(|number| OWN.replace("own-token", &format!("own-{number}"))).collect();
        format!("[{}]", rules.join(","))
    };
    assert_eq!(SecretRuleChange::read(many(SECRET_RULES).as_bytes()).unwrap().len(), SECRET_RULES);
    assert!(matches!(
        SecretRuleChange::read(many(SECRET_RULES + 1).as_bytes()),
        Err(SecretRulesError::TooMany)
    ));
    let padded = |bytes: usize| {
        let list = format!("[{OWN}]");
        let room = bytes - list.len();
        list + &" ".repeat(room)
    };
    assert_eq!(SecretRuleChange::read(padded(SECRET_RULES_BYTES).as_bytes()).unwrap().len(), 1);
    assert!(matches!(
        SecretRuleChange::read(padded(SECRET_RULES_BYTES + 1).as_bytes()),
        Err(SecretRulesError::TooLong)
    ));
}
