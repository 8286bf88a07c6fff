//! What `docs/hardening.md` tells operators to set exists: every variable, setting, event, file and target of `make` in it.
//! That its `caisson` commands can be typed is a test of the program (`documents_tests.rs`).

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The texts between backticks outside of fenced blocks.
fn spans(document: &str) -> BTreeSet<String> {
    let blocks = document.split("```").step_by(2);
    blocks.flat_map(|part| part.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

fn blocks(document: &str, language: &str) -> Vec<String> {
    let fenced = document.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).map(str::to_owned).collect()
}

/// The cells of a table's first columns.
fn first_cells(document: &str, column: usize) -> BTreeSet<String> {
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.split('|').nth(column + 1)).flat_map(spans).collect()
}

/// Words of that form anywhere in the text.
fn words(text: &str, is_part: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !is_part(c)).filter(|word| !word.is_empty())
}

fn is_setting(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    text.split('.').all(part)
}

/// Dotted names that are files, and not settings.
const FILES: [&str; 2] = ["caisson.db", "master.key"];

/// What the document names and nothing else knows.
fn unknown(document: &str) -> Vec<String> {
    let configuration = text("docs/configuration.md");
    let settings = first_cells(&configuration, 0);
    let actions = first_cells(&text("docs/audit.md"), 0);
    let events = text("crates/domain/src/event.rs");
    let others: Vec<String> = [
        "docs/configuration.md",
        "docs/credentials.md",
        "docs/engines.md",
        "docs/audit.md",
        "docs/trust.md",
        "README.md",
        // Fields of a head, and kinds of failure.
        "crates/caisson/src/audit_head.rs",
        "crates/domain/src/run.rs",
    ]
    .map(text)
    .to_vec();
    let mut found = Vec::new();
    for name in spans(document).iter().filter(|name| is_setting(name)) {
        let known = if name.contains('.') {
            settings.contains(name)
                || actions.contains(name)
                || events.contains(&format!("\"{name}\""))
                || FILES.contains(&name.as_str())
        } else {
            !name.contains('_') || others.iter().any(|other| other.contains(name.as_str()))
        };
        found.extend((!known).then(|| name.clone()));
    }
    let variable = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    for name in words(document, variable).filter(|word| word.starts_with("CAISSON_")) {
        found.extend((!configuration.contains(&format!("`{name}`"))).then(|| name.to_owned()));
    }
    for block in blocks(document, "toml") {
        let table: toml::Table = block.parse().unwrap();
        let mut keys = Vec::new();
        leaves("", &table, &mut keys);
        found.extend(keys.into_iter().filter(|key| !settings.contains(key)));
    }
    found
}

fn leaves(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
    for (name, value) in table {
        match value.as_table() {
            Some(inner) => leaves(&format!("{prefix}{name}."), inner, keys),
            None => keys.push(format!("{prefix}{name}")),
        }
    }
}

#[test]
fn every_setting_and_variable_that_hardening_names_exists() {
    let document = text("docs/hardening.md");
    assert_eq!(unknown(&document), Vec::<String>::new());
    let variables = document.matches("CAISSON_").count();
    let settings = spans(&document).iter().filter(|name| is_setting(name) && name.contains('.')).count();
    assert!(variables >= 8 && settings >= 20, "{variables} variables and {settings} settings were found");
}

#[test]
fn what_does_not_exist_is_found() {
    let wrong = "Set `api.nothing`, `no_such_setting` and CAISSON_NO_SUCH.\n```toml\nnothing = 1\n[git]\nnone = 2\n```\n\
                 Known: `api.cors_origins`, `uid_base`, `egress.denied`, `key.create`, `CAISSON_UID_BASE`, `doctor`.";
    let names = ["api.nothing", "no_such_setting", "CAISSON_NO_SUCH", "git.none", "nothing"];
    let found: BTreeSet<_> = unknown(wrong).into_iter().collect();
    assert_eq!(found, names.map(str::to_owned).into_iter().collect());
}

#[test]
fn every_target_of_make_that_hardening_names_exists() {
    let (document, makefile) = (text("docs/hardening.md"), text("Makefile"));
    let mut lines: BTreeSet<String> = spans(&document);
    lines.extend(blocks(&document, "sh").iter().flat_map(|block| block.lines()).map(str::to_owned));
    let named: BTreeSet<_> =
        lines.iter().filter_map(|line| line.strip_prefix("make ")?.split_whitespace().next()).collect();
    assert!(named.contains("sbom") && named.contains("adversary"), "{named:?}");
    for target in named {
        assert!(makefile.contains(&format!("\n{target}:")), "there is no make {target}");
    }
}

#[test]
fn readme_and_security_lead_to_it() {
    for name in ["README.md", "SECURITY.md"] {
        assert!(text(name).contains("](docs/hardening.md)"), "{name}");
    }
}
