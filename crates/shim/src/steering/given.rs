//! What steers the agent, as it was when the agent was started: an agent that changes it does not wait for another run, which would go
//! on with what this one has left there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use caisson_domain::protocol::places::STEERING;
use serde_json::{Map, Value};

use super::agent_home::{DIRECTORY, FILE, FILE_BYTES, KEPT};
use crate::plain_file;

/// What Claude Code 2.1.330 writes itself in its own directory while it works, beside what is kept of it: not looked at. Whatever has
/// another name may steer it, or a later version.
const ITS_OWN: [&str; 5] = [".last-cleanup", "backups", "session-env", "sessions", "shell-snapshots"];
/// Where its plugins are, of which it writes [`ITS_OWN_STORE`] itself.
const PLUGINS: &str = "plugins";
const ITS_OWN_STORE: &str = "store";
/// What it writes itself in its own file that is a list or an object.
const ITS_OWN_KEYS: [&str; 2] = ["pluginUsage", "seenNotifications"];
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
        let mut found = BTreeMap::new();
        let Some(mut next) = places(home) else { return Self(None) };
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
        self.0.is_some() && Self::look(home) == *self && steers_nothing(&home.join(FILE))
    }
}

/// Where to begin to look; none if it cannot be told.
fn places(home: &Path) -> Option<Vec<PathBuf>> {
    let own = home.join(DIRECTORY);
    let mut places = vec![home.join(STEERING)];
    if own.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
        return None;
    }
    for path in entries_but(&own, &[&KEPT[..], &ITS_OWN].concat())? {
        let is_plugins = path.ends_with(PLUGINS) && path.symlink_metadata().is_ok_and(|found| found.is_dir());
        if is_plugins {
            places.extend(entries_but(&path, &[ITS_OWN_STORE])?);
        } else {
            places.push(path);
        }
    }
    places.retain(|place| place.symlink_metadata().is_ok());
    Some(places)
}

/// What is in a directory, which need not be there, under other names than these; none if it cannot be read.
fn entries_but(directory: &Path, names: &[&str]) -> Option<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Vec::new()),
        Err(_) => return None,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.ok()?;
        if !entry.file_name().to_str().is_some_and(|name| names.contains(&name)) {
            found.push(entry.path());
        }
        if found.len() > ENTRIES {
            return None;
        }
    }
    Some(found)
}

/// Whether the agent's own file, which it writes again and again, has no settings in it: those are lists and objects. It need not be
/// there.
fn steers_nothing(file: &Path) -> bool {
    if file.symlink_metadata().is_err() {
        return true;
    }
    let Ok(content) = plain_file::read(file, FILE_BYTES) else { return false };
    let Ok(all) = serde_json::from_slice::<Map<String, Value>>(&content) else { return false };
    let own = |name: &String| ITS_OWN_KEYS.contains(&name.as_str());
    all.iter().all(|(name, value)| own(name) || !(value.is_object() || value.is_array()))
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
        fs::write(place(".claude.json"), r#"{"numStartups":1,"pluginUsage":{"x":{}}}"#).unwrap();
        for directory in ["sessions", "shell-snapshots", "plugins/store"] {
            fs::create_dir_all(place(".claude").join(directory)).unwrap();
            fs::write(place(".claude").join(directory).join("x"), "x").unwrap();
        }
        assert!(given.is_there_still(home.path()));
        for (name, content) in [
            (".claude/plugins/installed_plugins.json", "{}"),
            (".claude/of-a-later-version", "x"),
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
    fn settings_in_the_agents_own_file_are_seen() {
        let home = tempfile::tempdir().unwrap();
        let given = Given::look(home.path());
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(usize::try_from(FILE_BYTES).unwrap()));
        for (content, as_it_was) in [
            (r#"{"theme":"dark","seenNotifications":{}}"#, true),
            (r#"{"env":{"A":"b"}}"#, false),
            (r#"{"mcpServers":{}}"#, false),
            (r#"{"projects":{"/workspace":{"allowedTools":["Bash"]}}}"#, false),
            (r#"{"hooks":[]}"#, false),
            ("no json", false),
            (&long, false),
        ] {
            fs::write(home.path().join(".claude.json"), content).unwrap();
            assert_eq!(given.is_there_still(home.path()), as_it_was, "{content:.60}");
        }
        fs::remove_file(home.path().join(".claude.json")).unwrap();
        symlink("/etc/hostname", home.path().join(".claude.json")).unwrap();
        assert!(!given.is_there_still(home.path()), "a link is not followed");
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
