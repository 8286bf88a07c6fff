//! What steers the agent, as it was when the agent was started: an agent that changes it does not wait for another run, which would go
//! on with what this one has left there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use caisson_domain::protocol::places::STEERING;

use super::agent_home::DIRECTORY;

/// What Claude Code 2.1.330 is steered by in its own directory, and does not write itself.
const NAMES: [&str; 10] = [
    "settings.json",
    "settings.local.json",
    "CLAUDE.md",
    "agents",
    "commands",
    "hooks",
    "output-styles",
    "rules",
    "skills",
    "workflows",
];
/// Most files and directories that are looked at. Where there are more, nothing is said of them.
const ENTRIES: usize = 10_000;

/// What tells one file from another at the same place: kind and mode, number, size, and when it was changed.
type Stamp = (u32, u64, u64, i64, i64);

/// What there was; none if it could not be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Given(Option<BTreeMap<PathBuf, Stamp>>);

impl Given {
    /// Looks at what is there. Links are not followed.
    pub(crate) fn look(home: &Path) -> Self {
        let own = home.join(DIRECTORY);
        let places = NAMES.iter().map(|name| own.join(name)).chain([home.join(STEERING)]);
        let mut found = BTreeMap::new();
        let mut next: Vec<PathBuf> = places.filter(|place| place.symlink_metadata().is_ok()).collect();
        while let Some(path) = next.pop() {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                let Ok(entries) = fs::read_dir(&path) else { return Self(None) };
                next.extend(entries.flatten().map(|entry| entry.path()));
            }
            let stamp =
                (metadata.mode(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec());
            found.insert(path, stamp);
            if found.len() + next.len() > ENTRIES {
                return Self(None);
            }
        }
        Self(Some(found))
    }

    /// Whether it is known, and all of it is there as it was and nothing else.
    pub(crate) fn is_there_still(&self, home: &Path) -> bool {
        self.0.is_some() && Self::look(home) == *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn whatever_steers_and_is_changed_is_seen_and_conversations_are_not_looked_at() {
        let home = tempfile::tempdir().unwrap();
        let place = |name: &str| home.path().join(name);
        fs::create_dir_all(place(".claude/projects/-workspace")).unwrap();
        fs::create_dir_all(place(".caisson/anchor")).unwrap();
        fs::write(place(".caisson/anchor/CLAUDE.md"), "x").unwrap();
        fs::write(place(".claude/CLAUDE.md"), "x").unwrap();
        let given = Given::look(home.path());
        fs::write(place(".claude/projects/-workspace/s.jsonl"), "x").unwrap();
        fs::write(place(".claude.json"), "{}").unwrap();
        assert!(given.is_there_still(home.path()));
        for (name, content) in [
            (".claude/CLAUDE.md", "y"),
            (".caisson/anchor/CLAUDE.md", "x"),
            (".claude/settings.json", "{}"),
            (".caisson/more", "x"),
        ] {
            let given = Given::look(home.path());
            fs::write(place(name), content).unwrap();
            assert!(!given.is_there_still(home.path()), "{name}");
        }
        let given = Given::look(home.path());
        symlink("/", place(".claude/skills")).unwrap();
        assert!(!given.is_there_still(home.path()));
        let given = Given::look(home.path());
        assert!(given.is_there_still(home.path()), "the link is not followed");
        fs::remove_file(place(".claude/settings.json")).unwrap();
        assert!(!given.is_there_still(home.path()));
    }

    #[test]
    fn of_too_much_nothing_is_said_and_of_nothing_it_is_said_that_it_is_there() {
        let home = tempfile::tempdir().unwrap();
        assert!(Given::look(home.path()).is_there_still(home.path()));
        assert!(!Given::default().is_there_still(home.path()));
        let directory = home.path().join(STEERING);
        fs::create_dir(&directory).unwrap();
        for number in 1..ENTRIES {
            fs::write(directory.join(number.to_string()), "").unwrap();
        }
        assert!(Given::look(home.path()).is_there_still(home.path()), "at the bound");
        fs::write(directory.join("more"), "").unwrap();
        assert!(!Given::look(home.path()).is_there_still(home.path()));
    }
}
