//! The scenarios a server knows: the built-in ones and those of the user's files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::scenario::Scenario;

/// How the name of a scenario file in a directory ends; other files there are left alone.
pub const FILE_SUFFIX: &str = ".scenario.json";

const BUILT_IN: [(&str, &str); 2] = [
    ("built-in replies", include_str!("../scenarios/replies.scenario.json")),
    ("built-in faults", include_str!("../scenarios/faults.scenario.json")),
];

/// Scenarios by name.
#[derive(Debug, Clone)]
pub struct Catalogue {
    scenarios: BTreeMap<String, Scenario>,
    added: BTreeMap<String, String>,
}

/// Why scenarios could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// A file or directory cannot be read.
    #[error("cannot read scenarios from {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a map from names to scenarios.
    #[error("malformed scenarios in {origin}")]
    Malformed {
        /// The file, or where else the text came from.
        origin: String,
        /// What was wrong, and where.
        #[source]
        source: serde_json::Error,
    },
    /// Two files define one name, so that it depends on their order which is used.
    #[error("scenario {name} is defined in {first} and again in {second}")]
    Twice {
        /// The scenario.
        name: String,
        /// Where it was found first.
        first: String,
        /// Where it was found again.
        second: String,
    },
    /// A directory holds no scenario file, which is most likely a wrong path.
    #[error("no file in {path} ends in {FILE_SUFFIX}")]
    NoFiles {
        /// The directory.
        path: PathBuf,
    },
}

impl Catalogue {
    /// Loads the scenarios that are part of the program.
    ///
    /// # Panics
    /// Never: they are constants, and a test parses them.
    #[must_use]
    pub fn built_in() -> Self {
        let mut catalogue = Self { scenarios: BTreeMap::new(), added: BTreeMap::new() };
        for (origin, text) in BUILT_IN {
            let scenarios = parse(origin, text).expect("a test parses every built-in scenario");
            catalogue.scenarios.extend(scenarios);
        }
        catalogue
    }

    /// Adds the scenarios of a file, or of every `*.scenario.json` in a directory.
    ///
    /// A name may replace a built-in scenario but no other added one.
    ///
    /// # Errors
    /// [`CatalogueError`] when something cannot be read, is malformed or comes twice.
    pub fn add_path(&mut self, path: &Path) -> Result<(), CatalogueError> {
        let read_error = |source| CatalogueError::Read { path: path.to_owned(), source };
        if !path.is_dir() {
            let text = std::fs::read_to_string(path).map_err(read_error)?;
            return self.add_text(&path.display().to_string(), &text);
        }
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut files: Vec<PathBuf> = entries
            .map_err(read_error)?
            .into_iter()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(FILE_SUFFIX))
            .map(|entry| entry.path())
            .collect();
        if files.is_empty() {
            return Err(CatalogueError::NoFiles { path: path.to_owned() });
        }
        files.sort();
        files.iter().try_for_each(|file| {
            let text = std::fs::read_to_string(file)
                .map_err(|source| CatalogueError::Read { path: file.clone(), source })?;
            self.add_text(&file.display().to_string(), &text)
        })
    }

    /// Adds the scenarios of a JSON text; `origin` names it in errors.
    ///
    /// # Errors
    /// [`CatalogueError`] when the text is malformed or a name comes twice.
    pub fn add_text(&mut self, origin: &str, text: &str) -> Result<(), CatalogueError> {
        for (name, scenario) in parse(origin, text)? {
            if let Some(first) = self.added.insert(name.clone(), origin.to_owned()) {
                return Err(CatalogueError::Twice { name, first, second: origin.to_owned() });
            }
            self.scenarios.insert(name, scenario);
        }
        Ok(())
    }

    /// Finds a scenario by name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Scenario> {
        self.scenarios.get(name)
    }

    /// Lists the names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.scenarios.keys().map(String::as_str)
    }
}

fn parse(origin: &str, text: &str) -> Result<BTreeMap<String, Scenario>, CatalogueError> {
    serde_json::from_str(text)
        .map_err(|source| CatalogueError::Malformed { origin: origin.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"mine": {"prompts": [[{"text": "one"}]]}}"#;

    #[test]
    fn every_built_in_scenario_parses() {
        let names: Vec<String> = Catalogue::built_in().names().map(ToOwned::to_owned).collect();
        for name in ["text", "tools", "e403", "cut_once", "gzip", "hang", "stall"] {
            assert!(names.iter().any(|known| known == name), "{name} is missing in {names:?}");
        }
    }

    #[test]
    fn a_directory_gives_its_scenario_files_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.scenario.json"), ONE).unwrap();
        std::fs::write(dir.path().join("package.json"), "not a scenario").unwrap();
        let mut catalogue = Catalogue::built_in();
        catalogue.add_path(dir.path()).unwrap();
        assert!(catalogue.find("mine").is_some());
        assert!(catalogue.find("other").is_none());
    }

    #[test]
    fn a_file_may_replace_a_built_in_scenario_but_not_another_file() {
        let mut catalogue = Catalogue::built_in();
        catalogue.add_text("first", r#"{"text": {"prompts": [[{"text": "replaced"}]]}}"#).unwrap();
        let step = catalogue.find("text").unwrap().choose(&[], 0).step;
        assert_eq!(step.reply.text.as_deref(), Some("replaced"));
        catalogue.add_text("second", ONE).unwrap();
        let error = catalogue.add_text("third", ONE).expect_err("defined twice");
        assert_eq!(error.to_string(), "scenario mine is defined in second and again in third");
    }

    #[test]
    fn what_cannot_be_loaded_is_named() {
        let mut catalogue = Catalogue::built_in();
        let dir = tempfile::tempdir().unwrap();
        let missing = catalogue.add_path(&dir.path().join("none.json")).expect_err("missing");
        assert!(matches!(missing, CatalogueError::Read { .. }), "{missing}");
        let empty = catalogue.add_path(dir.path()).expect_err("no file");
        assert!(matches!(empty, CatalogueError::NoFiles { .. }), "{empty}");
        let malformed = catalogue.add_text("t", r#"{"a": {"prompts": []}}"#).expect_err("malformed");
        assert_eq!(malformed.to_string(), "malformed scenarios in t");
        assert!(matches!(malformed, CatalogueError::Malformed { .. }));
    }
}
