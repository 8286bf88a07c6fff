//! Every `caisson` command that documents and examples show is one that can be typed.

use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;

use crate::cli::command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == ending)).collect();
    assert!(!found.is_empty(), "no {ending} in {directory}");
    found
}

/// The commands of a shell text that are `caisson`, as words; also those within a quoted word, as `trap` has them.
fn commands(text: &str) -> Vec<Vec<String>> {
    let (mut all, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut quote = None;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => match characters.next() {
                Some('\n') | None => {}
                Some(next) => word.get_or_insert_default().push(next),
            },
            (None, '#') if word.is_none() => while characters.next_if(|c| *c != '\n').is_some() {},
            (None, '|' | ';' | '&' | '(' | ')' | '<' | '>' | '`' | '\n') => {
                words.extend(word.take());
                all.push(std::mem::take(&mut words));
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (Some(_) | None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    all.push(words);
    let inner = all.iter().flatten().filter(|word| word.contains("caisson ")).flat_map(|word| commands(word));
    let inner: Vec<_> = inner.collect();
    let own = all
        .into_iter()
        .map(|words| words.into_iter().skip_while(|word| word.contains('=')).collect::<Vec<_>>());
    own.filter(|words| words.first().is_some_and(|word| word == "caisson")).chain(inner).collect()
}

/// What stands in shell blocks, and what stands between backticks in the text.
fn of_markdown(text: &str) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let (mut block, mut spans) = (String::new(), Vec::new());
    let mut open = None::<&str>;
    for line in text.lines() {
        match (line.trim().strip_prefix("```"), open) {
            (Some(_), Some(_)) => open = None,
            (Some(language), None) => open = Some(language),
            (None, Some("sh")) => block.extend([line, "\n"]),
            (None, Some(_)) => {}
            (None, None) => spans.extend(line.split('`').skip(1).step_by(2).flat_map(commands)),
        }
    }
    (commands(&block), spans)
}

/// Why the command cannot be typed; a name without its arguments may stand for the command in a text.
fn refused(words: &[String], named: bool) -> Option<String> {
    let error = command().try_get_matches_from(words).err()?;
    let kind = error.kind();
    let asked = matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let unfinished = matches!(
        kind,
        ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    // `--budget USD` stands for a value.
    let stands_in = kind == ErrorKind::ValueValidation
        && words.iter().any(|word| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase()));
    (!asked && !(named && (unfinished || stands_in))).then(|| format!("{}: {error}", words.join(" ")))
}

#[test]
fn shell_texts_are_taken_apart_as_a_shell_does() {
    let text = "A=1 caisson run \\\n  --repo \"$X/y z\" - # caisson nothing\nK=$(caisson key create me) || x\n\
                trap 'caisson cancel \"$run\" || true' INT\necho caisson >caisson.log\n";
    let joined: Vec<_> = commands(text).iter().map(|words| words.join("|")).collect();
    assert_eq!(joined, ["caisson|run|--repo|$X/y z|-", "caisson|key|create|me", "caisson|cancel|$run"]);
    let (block, spans) =
        of_markdown("`caisson ps` and `x`\n```sh\ncaisson show\n```\n```\ncaisson [diff]\n```\n");
    assert_eq!(
        (block, spans),
        (
            vec![vec!["caisson".to_owned(), "show".to_owned()]],
            vec![vec!["caisson".to_owned(), "ps".to_owned()]]
        )
    );
    let words = |text: &str| commands(text).remove(0);
    for wrong in [
        "caisson nonsense",
        "caisson ps --nonsense",
        "caisson key create x --expires 1",
        "caisson image scan --format x",
    ] {
        assert!(refused(&words(wrong), true).is_some(), "{wrong}");
    }
    assert!(
        refused(&words("caisson run"), true).is_none() && refused(&words("caisson run"), false).is_some()
    );
}

#[test]
fn every_command_in_the_examples_of_ci_can_be_typed() {
    for file in files("examples/ci", "yml") {
        // Comments show commands as well.
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(|line| line.trim_start().trim_start_matches("#   "));
        let found = commands(&lines.filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n"));
        assert!(!found.is_empty(), "{} has no command", file.display());
        let wrong: Vec<_> = found.iter().filter_map(|words| refused(words, false)).collect();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", file.display());
    }
}

#[test]
fn every_command_in_the_documents_can_be_typed() {
    let mut documents = files("docs", "md");
    documents.extend(["README.md", "SECURITY.md", "ARCHITECTURE.md"].map(|name| root().join(name)));
    let mut counted = 0;
    for file in documents {
        let (block, spans) = of_markdown(&fs::read_to_string(&file).unwrap());
        counted += block.len() + spans.len();
        let block = block.iter().filter_map(|words| refused(words, false));
        let wrong: Vec<_> = block.chain(spans.iter().filter_map(|words| refused(words, true))).collect();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", file.display());
    }
    assert!(counted > 50, "only {counted} commands were found");
}
