//! `.caisson.yaml`: what a repository says about itself, read from the anchor and from no other branch.
//!
//! Every command is a list of arguments: no shell sees it, unless the list itself names one.

use std::fmt;

use serde::Deserialize;
use serde_saphyr::{budget, options};

use crate::image::check_image_name;
use crate::run::{cut, text_enum};

/// The file's name, at the top of the repository.
pub const REPOSITORY_FILE: &str = ".caisson.yaml";
/// Longest file, in bytes.
pub const REPOSITORY_FILE_BYTES: usize = 16 * 1024;
/// Deepest file, in levels.
pub const REPOSITORY_FILE_DEPTH: usize = 4;
/// Most nodes of the file: texts, lists and maps.
pub const REPOSITORY_FILE_NODES: usize = 500;
/// Arguments of a command, its program among them.
pub const COMMAND_ARGUMENTS: usize = 64;
/// Longest command, in bytes.
pub const COMMAND_BYTES: usize = 4 * 1024;
/// Cache directories.
pub const CACHES: usize = 20;
/// Longest name of a cache directory, in bytes.
pub const CACHE_BYTES: usize = 200;

text_enum! {
    /// A command of a repository that says whether its files are as they should be.
    CheckName, "check" {
        /// Puts files into the form that the project wants.
        Format = "format",
        /// Looks for what is wrong without running anything.
        Lint = "lint",
        /// Runs the tests.
        Test = "test",
    }
}

/// What a repository says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepositoryFile {
    /// The sandbox's image.
    pub image: Option<String>,
    /// The line that names it, from 1.
    pub image_line: Option<u64>,
    /// Run before the agent.
    pub setup: Option<Command>,
    /// Runs the tests.
    pub test: Option<Command>,
    /// Looks for what is wrong.
    pub lint: Option<Command>,
    /// Puts files into form.
    pub format: Option<Command>,
    /// Directories below the checkout that hold what can be made again; never committed.
    pub caches: Vec<String>,
}

/// A program and its arguments; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command(Vec<String>);

impl Command {
    /// The program and its arguments.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.0
    }
}

/// As one would type it: arguments that need it between quotation marks.
impl fmt::Display for Command {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, argument) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
            if !argument.is_empty() && argument.bytes().all(plain) {
                write!(out, "{space}{argument}")?;
            } else {
                write!(out, "{space}'{}'", argument.replace('\'', "'\\''"))?;
            }
        }
        Ok(())
    }
}

/// Why the file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", place(*line))]
pub struct RepositoryFileError {
    /// The line, from 1, where it is known.
    pub line: Option<u64>,
    /// What is wrong, with the remedy.
    pub reason: String,
}

/// The file with a line of it, for people.
#[must_use]
pub fn place(line: Option<u64>) -> String {
    line.map_or_else(|| REPOSITORY_FILE.to_owned(), |line| format!("{REPOSITORY_FILE}, line {line}"))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    List(Vec<String>),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Front {
    image: Option<String>,
    setup: Option<Written>,
    test: Option<Written>,
    lint: Option<Written>,
    format: Option<Written>,
    caches: Vec<String>,
}

impl RepositoryFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`RepositoryFileError`] for what is not such a file, is longer or deeper than its bounds, or has aliases.
    pub fn parse(text: &str) -> Result<Self, RepositoryFileError> {
        let fault = |line, reason: String| RepositoryFileError { line, reason };
        if text.len() > REPOSITORY_FILE_BYTES {
            let reason = format!(
                "it has {} bytes, and at most {REPOSITORY_FILE_BYTES} are read; shorten it",
                text.len()
            );
            return Err(fault(None, reason));
        }
        let options = options! {
            budget: budget! {
                max_aliases: 0,
                max_anchors: 0,
                max_depth: REPOSITORY_FILE_DEPTH,
                max_nodes: REPOSITORY_FILE_NODES,
                max_documents: 1,
            },
        };
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let front: Front = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
            let told = error.without_snippet().to_string();
            let known = "it takes image, setup, test, lint, format and caches, in at most 4 levels and without aliases";
            fault(line, format!("{}; {known}", cut(told.trim(), 500)))
        })?;
        let line_of = |key: &str| {
            let found = text.lines().position(|line| {
                line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'))
            });
            found.map(|index| index as u64 + 1)
        };
        let command = |key: &str, written: Option<Written>| {
            written
                .map(|written| {
                    read_command(written).map_err(|reason| fault(line_of(key), format!("{key} {reason}")))
                })
                .transpose()
        };
        if let Some(Err(error)) = front.image.as_deref().map(check_image_name) {
            return Err(fault(line_of("image"), error.to_string()));
        }
        if let Some(reason) = bad_caches(&front.caches) {
            return Err(fault(line_of("caches"), reason));
        }
        Ok(Self {
            image_line: line_of("image").filter(|_| front.image.is_some()),
            image: front.image,
            setup: command("setup", front.setup)?,
            test: command("test", front.test)?,
            lint: command("lint", front.lint)?,
            format: command("format", front.format)?,
            caches: front.caches,
        })
    }

    /// The command of that name.
    #[must_use]
    pub const fn check(&self, name: CheckName) -> Option<&Command> {
        match name {
            CheckName::Format => self.format.as_ref(),
            CheckName::Lint => self.lint.as_ref(),
            CheckName::Test => self.test.as_ref(),
        }
    }
}

/// A text is taken apart at its spaces, which is right only where no shell would do anything else with it.
fn read_command(written: Written) -> Result<Command, String> {
    let arguments = match written {
        Written::List(arguments) => arguments,
        Written::Text(text) => {
            if let Some(odd) = text.chars().find(|c| "|&;<>()$`\\\"'*?[]#~{}!\n".contains(*c)) {
                return Err(format!(
                    "has {odd:?}, which no shell is there to read; write it as a list, such as [make, test], or name a script of the repository"
                ));
            }
            text.split_whitespace().map(str::to_owned).collect()
        }
    };
    let bytes: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
    if arguments.first().is_none_or(String::is_empty) {
        return Err("is empty; name a program, or leave it out".to_owned());
    }
    if arguments.len() > COMMAND_ARGUMENTS || bytes > COMMAND_BYTES {
        return Err(format!(
            "has more than {COMMAND_ARGUMENTS} arguments or {COMMAND_BYTES} bytes; put it into a script of the repository"
        ));
    }
    if arguments.iter().any(|argument| argument.contains(char::is_control)) {
        return Err("has a control character; leave it out".to_owned());
    }
    Ok(Command(arguments))
}

fn bad_caches(caches: &[String]) -> Option<String> {
    if caches.len() > CACHES {
        return Some(format!("caches has more than {CACHES} entries; name directories that hold the others"));
    }
    let plain = |path: &str| {
        (1..=CACHE_BYTES).contains(&path.len())
            && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
            && path.split('/').all(|part| !matches!(part, "" | "." | ".." | ".git"))
    };
    let bad = caches.iter().find(|path| !plain(path.strip_suffix('/').unwrap_or(path)))?;
    Some(format!(
        "caches has \"{}\", which is not a directory below the checkout, such as node_modules or .cache/pip",
        cut(bad, 64).escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        RepositoryFile::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_file_gives_commands_as_lists_of_arguments() {
        let file = RepositoryFile::parse(
            "# ours\nimage: debian:bookworm-slim\nsetup: ./scripts/setup --fast\ntest: [sh, -c, 'a && b']\ncaches: [node_modules, .cache/pip/]\n",
        )
        .unwrap();
        assert_eq!(file.setup.as_ref().unwrap().arguments(), ["./scripts/setup", "--fast"]);
        assert_eq!(file.check(CheckName::Test).unwrap().to_string(), "sh -c 'a && b'");
        assert_eq!(file.check(CheckName::Lint), None);
        assert_eq!(file.caches.len(), 2);
        assert_eq!(file.image_line, Some(2));
        for empty in ["", "\n# nothing\n"] {
            assert_eq!(RepositoryFile::parse(empty), Ok(RepositoryFile::default()));
        }
    }

    #[test]
    fn an_error_names_file_line_and_remedy() {
        let fault = told("test: a\nlint: make lint && make more\n");
        assert!(
            fault.starts_with(".caisson.yaml, line 2: lint has '&'") && fault.contains("as a list"),
            "{fault}"
        );
        let fault = told("test: a\ntests: b\n");
        assert!(
            fault.starts_with(".caisson.yaml, line 2: ") && fault.contains("it takes image, setup"),
            "{fault}"
        );
        let fault = told("test: a\n\nlint: [\n");
        assert!(fault.starts_with(".caisson.yaml, line "), "{fault}");
        assert!(told("caches: [../x]\n").contains("line 1: caches has \"../x\""));
        assert!(told("test: []\n").contains("is empty"));
        assert!(told("image: 'A B'\n").starts_with(".caisson.yaml, line 1: "));
        for bad in ["/abs", "a//b", ".git", "a/.git/b", "*", "!x", ""] {
            assert!(RepositoryFile::parse(&format!("caches: ['{bad}']\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        assert!(told("a: &a [x]\ntest: *a\n").contains("without aliases"));
        let deep = format!("test: {}x{}\n", "[".repeat(200), "]".repeat(200));
        assert!(RepositoryFile::parse(&deep).is_err());
        let many = |count: usize| format!("test: [{}]\n", vec!["a"; count].join(","));
        assert!(RepositoryFile::parse(&many(COMMAND_ARGUMENTS)).is_ok());
        assert!(told(&many(COMMAND_ARGUMENTS + 1)).contains("64 arguments"));
        assert!(told(&many(REPOSITORY_FILE_NODES)).contains(".caisson.yaml"));
        assert!(RepositoryFile::parse("test: a\n---\ntest: b\n").is_err());
        let long = |bytes: usize| format!("#{}", "x".repeat(bytes - 1));
        assert!(RepositoryFile::parse(&long(REPOSITORY_FILE_BYTES)).is_ok());
        assert!(told(&long(REPOSITORY_FILE_BYTES + 1)).contains("16384"));
        let argument = |bytes: usize| format!("test: [{}]\n", "x".repeat(bytes));
        assert!(RepositoryFile::parse(&argument(COMMAND_BYTES - 1)).is_ok());
        assert!(RepositoryFile::parse(&argument(COMMAND_BYTES)).is_err());
        let caches = |count: usize| format!("caches: [{}]\n", vec!["a"; count].join(","));
        assert!(RepositoryFile::parse(&caches(CACHES)).is_ok());
        assert!(RepositoryFile::parse(&caches(CACHES + 1)).is_err());
        let cache = |bytes: usize| format!("caches: [{}]\n", "a".repeat(bytes));
        assert!(RepositoryFile::parse(&cache(CACHE_BYTES)).is_ok());
        assert!(RepositoryFile::parse(&cache(CACHE_BYTES + 1)).is_err());
    }
}
