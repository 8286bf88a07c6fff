//! The unit for systemd says what the documents promise, and systemd understands it.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Directives that systemd knows only since 254; an older one ignores them and says so.
const NEW: [&str; 1] = ["DelegateSubgroup"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn unit() -> String {
    fs::read_to_string(root().join("deploy/caisson.service")).unwrap()
}

/// Every `[Section] Name=value` of the unit.
fn directives(unit: &str) -> BTreeSet<(String, String)> {
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else {
            assert!(line.contains('='), "{line}");
            assert!(found.insert((section.clone(), line.to_owned())), "{line} stands there twice");
        }
    }
    found
}

/// Whether a word in backticks is a directive: `Name=value`.
fn is_directive(word: &str) -> bool {
    let name = word.split_once('=').filter(|(_, value)| !value.is_empty()).map(|(name, _)| name);
    name.is_some_and(|name| {
        name.starts_with(|first: char| first.is_ascii_uppercase())
            && name.chars().all(|char| char.is_ascii_alphabetic())
            && name.contains(|char: char| char.is_ascii_lowercase())
    })
}

#[test]
fn the_unit_has_every_directive_that_the_documents_promise() {
    let found = directives(&unit());
    let mut promised = BTreeSet::new();
    for document in ["docs/engines.md", "docs/adr/0006-the-local-engine-has-a-supervisor-for-each-sandbox.md"]
    {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let words: Vec<_> = text.split('`').skip(1).step_by(2).filter(|word| is_directive(word)).collect();
        promised.extend(words.into_iter().map(str::to_owned));
    }
    let must = ["KillMode=process", "Delegate=yes", "DelegateSubgroup=server", "StateDirectoryMode=0700"];
    assert!(must.iter().all(|directive| promised.contains(*directive)), "{promised:?}");
    let missing: Vec<_> =
        promised.iter().filter(|word| !found.iter().any(|(_, line)| line == *word)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_unit_starts_the_server_with_the_state_directory_that_systemd_makes() {
    let found = directives(&unit());
    let has = |section: &str, line: &str| found.contains(&(section.to_owned(), line.to_owned()));
    assert!(has("Service", "ExecStart=/usr/local/bin/caisson serve --config /etc/caisson/caisson.toml"));
    assert!(has("Service", "StateDirectory=caisson"));
    assert!(has("Service", "Environment=CAISSON_STATE_DIR=/var/lib/caisson"));
    // A limit of starts would leave the server down though sandboxes live; it belongs to the unit and not to the service.
    assert!(has("Unit", "StartLimitIntervalSec=0") && has("Service", "Restart=always"));
    assert!(has("Install", "WantedBy=multi-user.target"));
}

#[test]
fn systemd_understands_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("caisson.service");
    fs::write(&file, unit().replace("/usr/local/bin/caisson ", "/usr/bin/true ")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "systemd's own check is started here")]
    let verified = std::process::Command::new("systemd-analyze").arg("verify").arg(&file).output();
    let output = match verified {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: there is no systemd-analyze");
            return;
        }
        output => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let is_new = |line: &&str| NEW.iter().any(|name| line.contains(&format!("Unknown key '{name}'")));
    let faults: Vec<_> = said.lines().filter(|line| !is_new(line)).collect();
    assert!(faults.is_empty() && output.status.success(), "{}: {faults:#?}", output.status);
}
