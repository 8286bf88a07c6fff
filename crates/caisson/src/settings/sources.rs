//! Where settings come from: the file's keys and the variables, each told of by the name it was given.
//!
//! Every key is tried by itself over the defaults before all of them are taken together. So a fault names the file or
//! the variable that it stands in, and one fault does not hide the next.

use std::path::Path;

use config::{Config, FileFormat, Map, Source, Value, ValueKind};

use super::{Environment, Settings, defaults};
use crate::logins::without_logins;

/// Prefix of every variable.
const PREFIX: &str = "CAISSON_";
/// Variables with the prefix that belong to the client and to logging, not to the server's settings.
const NOT_SETTINGS: [&str; 6] = [
    "CAISSON_URL",
    "CAISSON_API_KEY",
    "CAISSON_CA_FILE",
    "CAISSON_CONFIG",
    "CAISSON_LOG",
    "CAISSON_ADVISORIES",
];
/// Separator of nested keys in a variable: `CAISSON_MODEL__BASE_URL` is `model.base_url`.
const NESTED: &str = "__";
/// Keys whose variables hold lists, separated by spaces.
const LISTS: [&[&str]; 15] = [
    &["model", "provider_tools"],
    &["repositories"],
    &["repository_images"],
    &["allow_repo"],
    &["local", "read_only"],
    &["local", "toolchains"],
    &["egress", "allow"],
    &["egress", "presets"],
    &["egress", "allow_private"],
    &["mcp", "allow"],
    &["mcp", "allow_private"],
    &["egress", "hosts"],
    &["api", "cors_origins"],
    &["git", "forbidden_paths"],
    &["git", "secret_rules_off"],
];

/// One key with its value, and where it stands.
struct Entry {
    origin: String,
    path: Vec<String>,
    value: Value,
}

/// Reads file and variables over the defaults; later ones win.
///
/// # Errors
/// One error that lists every key that is not known or has a value of the wrong kind.
pub(super) fn read(file: Option<&Path>, environment: &Environment) -> anyhow::Result<Settings> {
    let mut entries = Vec::new();
    let mut faults = Vec::new();
    if let Some(file) = file {
        let origin = format!("the file \"{}\"", file.display());
        match config::File::from(file).format(FileFormat::Toml).collect() {
            Ok(table) => leaves(&origin, &[], table, &mut entries),
            Err(error) => faults.push(format!("{origin}: {}", without_lines(&error.to_string()))),
        }
    }
    entries.extend(variables(environment));
    for entry in &entries {
        let fault = load(environment, std::slice::from_ref(entry)).err();
        // Keys in a table that is not known have one fault together.
        if let Some(text) = fault.map(|error| format!("{}: {error}", entry.origin))
            && !faults.contains(&text)
        {
            faults.push(text);
        }
    }
    anyhow::ensure!(
        faults.is_empty(),
        "the configuration cannot be read; docs/configuration.md lists every key\n  - {}",
        without_logins(&faults.join("\n  - "))
    );
    load(environment, &entries).map_err(|error| anyhow::Error::msg(without_logins(&error.to_string())))
}

/// What a reader of TOML says, without the lines of the file that it shows: a key may stand there.
fn without_lines(said: &str) -> String {
    let shows = |line: &&str| {
        let line = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
        line.trim_start().starts_with('|')
    };
    said.lines().filter(|line| !shows(line)).collect::<Vec<_>>().join(": ")
}

fn load(environment: &Environment, entries: &[Entry]) -> Result<Settings, config::ConfigError> {
    let mut builder = defaults(Config::builder(), environment)?;
    for entry in entries {
        builder = builder.add_source(Single(nested(&entry.path, entry.value.clone())));
    }
    builder.build()?.try_deserialize()
}

/// The keys of a table and of those in it; an empty table is a key of its own.
fn leaves(origin: &str, path: &[String], table: Map<String, Value>, entries: &mut Vec<Entry>) {
    // In an order of its own: the map has none.
    let mut sorted: Vec<_> = table.into_iter().collect();
    sorted.sort_by(|(left, _), (right, _)| left.cmp(right));
    for (key, value) in sorted {
        let path = [path, &[key]].concat();
        if let ValueKind::Table(inner) = &value.kind
            && !inner.is_empty()
        {
            leaves(origin, &path, inner.clone(), entries);
        } else {
            let value = Value::new(None, value.kind);
            entries.push(Entry { origin: origin.to_owned(), path, value });
        }
    }
}

/// A variable's text is taken as it is: what key it belongs to decides whether it is a number, not how it looks.
fn variables(environment: &Environment) -> impl Iterator<Item = Entry> {
    let settings = environment
        .variables
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX) && !NOT_SETTINGS.contains(&name.as_str()));
    settings.map(|(name, text)| {
        let path: Vec<String> =
            name[PREFIX.len()..].to_lowercase().split(NESTED).map(str::to_owned).collect();
        let kind = if LISTS.iter().any(|list| *list == path.as_slice()) {
            ValueKind::Array(text.split_whitespace().map(Value::from).collect())
        } else {
            ValueKind::String(text.clone())
        };
        Entry { origin: format!("the variable {name}"), path, value: Value::new(None, kind) }
    })
}

/// The tables around a value.
fn nested(path: &[String], value: Value) -> Map<String, Value> {
    let Some((key, rest)) = path.split_first() else { return Map::new() };
    let inner = if rest.is_empty() { value } else { Value::new(None, nested(rest, value)) };
    Map::from_iter([(key.clone(), inner)])
}

/// A table as a source.
#[derive(Debug, Clone)]
struct Single(Map<String, Value>);

impl Source for Single {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}
