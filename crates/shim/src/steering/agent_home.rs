//! The agent's home before a run: what an earlier agent may have left there to steer the next one is removed.

use std::fs;
use std::io;
use std::path::Path;

use caisson_domain::protocol::places::STEERING;
use serde_json::{Map, Value};

use crate::plain_file;

/// The agent's own directory.
pub(super) const DIRECTORY: &str = ".claude";
/// The agent's own file, which holds more than it should: with an `env` in it, it sets variables.
pub(super) const FILE: &str = ".claude.json";
/// Longest [`FILE`] that is kept, in bytes.
pub(super) const FILE_BYTES: u64 = 1024 * 1024;
/// What is kept in [`DIRECTORY`]: conversations and what belongs to them. Settings, instructions, subagents, commands,
/// skills, plugins and all that later versions may read are not.
pub(super) const KEPT: [&str; 5] = ["projects", "file-history", "tasks", "todos", "plans"];

/// Removes what would steer an agent.
///
/// # Errors
/// That of the operating system.
pub(crate) fn clear(home: &Path) -> io::Result<()> {
    remove(&home.join(STEERING))?;
    let directory = home.join(DIRECTORY);
    match directory.symlink_metadata() {
        Ok(found) if found.is_dir() => {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let kept = entry.file_name().to_str().is_some_and(|name| KEPT.contains(&name));
                if !kept || !entry.file_type()?.is_dir() {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(_) => fs::remove_file(&directory)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = home.join(FILE);
    if file.symlink_metadata().is_ok() {
        let scalars = plain_file::read(&file, FILE_BYTES).ok().and_then(|content| scalars(&content));
        remove(&file)?;
        if let Some(scalars) = scalars {
            plain_file::write(&file, &scalars)?;
        }
    }
    Ok(())
}

/// What of the agent's file is no list and no object: that it has been started before, and when.
fn scalars(content: &[u8]) -> Option<Vec<u8>> {
    let mut all: Map<String, Value> = serde_json::from_slice(content).ok()?;
    all.retain(|_, value| !value.is_object() && !value.is_array());
    serde_json::to_vec(&all).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn conversations_stay_and_what_would_steer_goes() {
        let home = tempfile::tempdir().unwrap();
        let place = |name: &str| home.path().join(name);
        for name in ["projects/-workspace", "skills/x", "tasks", "plugins/store"] {
            fs::create_dir_all(place(".claude").join(name)).unwrap();
        }
        for name in
            ["projects/-workspace/s.jsonl", "settings.json", "CLAUDE.md", "skills/x/SKILL.md", "todos"]
        {
            fs::write(place(".claude").join(name), "x").unwrap();
        }
        fs::create_dir_all(place(".caisson/anchor")).unwrap();
        fs::write(place(".claude.json"), r#"{"numStartups":3,"env":{"A":"b"},"projects":{},"hooks":[]}"#)
            .unwrap();
        clear(home.path()).unwrap();
        let left: Vec<_> =
            fs::read_dir(place(".claude")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.len() == 2 && place(".claude/projects/-workspace/s.jsonl").exists(), "{left:?}");
        assert!(!place(".caisson").exists());
        assert_eq!(fs::read_to_string(place(".claude.json")).unwrap(), r#"{"numStartups":3}"#);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("settings.json"), "{}").unwrap();
        fs::create_dir(other.path().join("projects")).unwrap();
        symlink(other.path(), home.path().join(".claude")).unwrap();
        symlink(other.path().join("settings.json"), home.path().join(".claude.json")).unwrap();
        symlink(other.path(), home.path().join(".caisson")).unwrap();
        clear(home.path()).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        assert!(other.path().join("settings.json").exists() && other.path().join("projects").exists());
        fs::create_dir(home.path().join(".claude")).unwrap();
        symlink(other.path().join("projects"), home.path().join(".claude/projects")).unwrap();
        clear(home.path()).unwrap();
        assert!(!home.path().join(".claude/projects").exists() && other.path().join("projects").exists());
    }

    #[test]
    fn a_file_that_is_too_long_or_no_json_goes() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".claude.json");
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(usize::try_from(FILE_BYTES).unwrap()));
        for content in ["no json", "[1]", &long] {
            fs::write(&file, content).unwrap();
            clear(home.path()).unwrap();
            assert!(!file.exists());
        }
        clear(&home.path().join("nothing")).unwrap();
    }
}
