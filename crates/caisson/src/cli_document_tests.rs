//! `docs/cli.md` and the command line say the same, and the help of every command changes only on purpose.
//!
//! A new command needs a section in the document, a look at its help (`cargo insta accept`), and `--json`, unless it prints
//! nothing; the tests say which of these is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::Command;

use super::command;

/// Commands that have no `--json`, and why.
const WITHOUT_JSON: [(&str, &str); 4] = [
    ("serve", "it logs"),
    ("audit export", "it prints nothing else"),
    ("openapi", "it prints nothing else"),
    ("completion", "it prints a script"),
];

/// Every command that does something, with the words that it is typed with.
fn leaves() -> BTreeMap<String, Command> {
    let mut found = BTreeMap::new();
    collect(&command(), "", &mut found);
    found
}

fn collect(command: &Command, words: &str, found: &mut BTreeMap<String, Command>) {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        let words = format!("{words} {}", inner.get_name()).trim_start().to_owned();
        // `servers` does something by itself as well.
        if !inner.is_subcommand_required_set() {
            found.insert(words.clone(), inner.clone());
        }
        collect(inner, &words, found);
    }
}

/// The sections of the document, by the command that they tell of.
fn sections() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let text = std::fs::read_to_string(path).unwrap();
    let parts = text.split("\n### `caisson ").skip(1);
    let parts = parts.map(|part| part.split("\n## ").next().unwrap_or_default());
    parts
        .map(|part| part.split_once('`').unwrap())
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect()
}

#[test]
fn every_command_has_its_section_in_the_document_and_no_section_is_of_another() {
    let typed: BTreeSet<String> = leaves().into_keys().collect();
    let told: BTreeSet<String> = sections().into_keys().collect();
    assert!(typed.len() > 40, "{typed:?}");
    assert_eq!(typed, told, "docs/cli.md has a section for each command");
}

#[test]
fn every_section_has_an_example_of_its_command_and_exit_codes_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let document = std::fs::read_to_string(path).unwrap();
    let table = document.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let known: Vec<u8> = table.filter_map(|(code, _)| code.parse().ok()).collect();
    // The second is clap's.
    let ours = [
        crate::command::DONE,
        crate::FAILED,
        2,
        crate::command::RUN_FAILED,
        crate::command::RUN_CANCELLED,
        crate::command::INPUTS_UNSENT,
        crate::command::DETACHED,
    ];
    assert_eq!(known, ours);
    for (name, text) in sections() {
        assert!(text.contains(&format!("caisson {name}")), "{name} has no example");
        let codes = text.split("Exit codes: ").nth(1).unwrap_or_else(|| panic!("{name} tells no exit codes"));
        let codes = codes.split('.').next().unwrap_or_default();
        let numbers = codes.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u8>().ok());
        let numbers: Vec<_> = numbers.collect();
        assert!(
            numbers.starts_with(&[0, 1, 2]) && numbers.iter().all(|code| known.contains(code)),
            "{name}: {codes}"
        );
    }
}

#[test]
fn every_command_prints_json_when_it_is_asked_to() {
    let has = |command: &Command| command.get_arguments().any(|argument| argument.get_id() == "json");
    let without: Vec<_> =
        leaves().iter().filter(|(_, command)| !has(command)).map(|(name, _)| name.clone()).collect();
    let mut excepted = WITHOUT_JSON.map(|(name, _)| name.to_owned()).to_vec();
    excepted.sort();
    assert_eq!(without, excepted);
    for (name, text) in sections() {
        assert_eq!(text.contains(" JSON: "), !["serve", "completion"].contains(&name.as_str()), "{name}");
    }
}

#[test]
fn the_help_of_every_command_changes_only_on_purpose() {
    for group in
        command().get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        let name = group.get_name().to_owned();
        let of_group = leaves().into_iter().filter(|(words, _)| {
            words == &name || words.strip_prefix(&name).is_some_and(|rest| rest.starts_with(' '))
        });
        let text: String = of_group.map(|(words, command)| help(&words, command)).collect();
        insta::assert_snapshot!(format!("help_{name}"), text);
    }
}

/// The help of a command, whatever the environment holds and however wide the terminal of the test is.
fn help(words: &str, command: Command) -> String {
    let mut command = command.mut_args(|argument| argument.hide_env_values(true)).term_width(100);
    format!("$ caisson {words} --help\n{}\n", command.render_long_help())
}
