//! The agent's home before a run: what an earlier agent may have left there to steer the next one is removed.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use caisson_claude::Uuid;
use caisson_domain::protocol::places::{ATTACHMENTS, STEERING};
use serde_json::{Map, Value};

use crate::checkout::PREPARING;
use crate::plain_file;

/// The agent's own directory.
pub(super) const DIRECTORY: &str = ".claude";
/// The agent's own file, which holds more than it should: with an `env` in it, it sets variables.
pub(super) const FILE: &str = ".claude.json";
/// Longest [`FILE`] that is kept, in bytes.
pub(super) const FILE_BYTES: u64 = 1024 * 1024;
/// What is kept in [`DIRECTORY`]: conversations and what belongs to them. Settings, instructions, subagents, commands,
/// skills, plugins and all that later versions may read are not.
pub(super) const KEPT: [&str; 5] = [CONVERSATIONS, "file-history", "tasks", "todos", "plans"];
/// Which of that has the conversations, in a directory for each working directory.
const CONVERSATIONS: &str = "projects";

/// Removes what would steer an agent. Whatever rights somebody has taken away, its user has them again in the directories that stay: no
/// wall that the kernel builds keeps a program of that user from it.
///
/// # Errors
/// That of the operating system.
pub(crate) fn clear(home: &Path) -> io::Result<()> {
    if home.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        open(home)?;
    }
    discard(&home.join(STEERING))?;
    let directory = home.join(DIRECTORY);
    match directory.symlink_metadata() {
        Ok(found) if found.is_dir() => {
            open(&directory)?;
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let kept = entry.file_name().to_str().is_some_and(|name| KEPT.contains(&name));
                if !kept || !entry.file_type()?.is_dir() {
                    discard(&entry.path())?;
                } else if entry.file_name() == CONVERSATIONS {
                    clear_conversations(&entry.path())?;
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

/// Removes what lies beside the conversations and what belongs to each of them. Claude Code 2.1.330 has its memory there, which it takes
/// for its user's instructions.
fn clear_conversations(projects: &Path) -> io::Result<()> {
    open(projects)?;
    for project in fs::read_dir(projects)? {
        let project = project?;
        if !project.file_type()?.is_dir() {
            remove(&project.path())?;
            continue;
        }
        open(&project.path())?;
        for entry in fs::read_dir(project.path())? {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            let name = name.to_str().unwrap_or_default();
            let conversation = if kind.is_file() { name.strip_suffix(".jsonl") } else { Some(name) };
            let kept = (kind.is_file() || kind.is_dir()) && conversation.is_some_and(is_conversation);
            if !kept {
                discard(&entry.path())?;
            }
        }
    }
    Ok(())
}

fn is_conversation(name: &str) -> bool {
    Uuid::parse(name).is_ok()
}

/// Removes all that an earlier agent can have put into its home, but conversations and the attachments that it was given. Programs of
/// the set-up command look there for settings and modules of theirs, and could change what that agent could not. The agent has ended.
///
/// # Errors
/// That of the operating system.
pub(crate) fn empty(home: &Path) -> io::Result<()> {
    clear(home)?;
    // A link in the place of attachments would lead to whatever the agent likes.
    empty_but(home, |name, is_directory| {
        [DIRECTORY, FILE].iter().any(|kept| name == *kept)
            || (name == ATTACHMENTS && is_directory)
            || (name == PREPARING && !is_directory)
    })
}

/// Removes all that is in a directory, but what `stays`, by its name and whether it is a directory itself.
///
/// # Errors
/// That of the operating system.
pub(crate) fn empty_but(directory: &Path, stays: impl Fn(&OsStr, bool) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_directory = entry.file_type()?.is_dir();
        if stays(&entry.file_name(), is_directory) {
            continue;
        }
        if is_directory {
            open_up(&entry.path())?;
        }
        remove(&entry.path())?;
    }
    Ok(())
}

/// Lets the user do everything in a directory and those below it: tools make directories that nobody may write in, and an agent may
/// take the right away.
///
/// # Errors
/// That of the operating system.
pub(crate) fn open_up(directory: &Path) -> io::Result<()> {
    let mut next = vec![directory.to_owned()];
    while let Some(directory) = next.pop() {
        open(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                next.push(entry.path());
            }
        }
    }
    Ok(())
}

/// The same for one directory alone.
fn open(directory: &Path) -> io::Result<()> {
    let mode = directory.symlink_metadata()?.permissions().mode();
    if mode & 0o700 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(directory, Permissions::from_mode(mode | 0o700))
}

/// What of the agent's file is no list and no object: that it has been started before, and when.
fn scalars(content: &[u8]) -> Option<Vec<u8>> {
    let mut all: Map<String, Value> = serde_json::from_slice(content).ok()?;
    all.retain(|_, value| !value.is_object() && !value.is_array());
    serde_json::to_vec(&all).ok()
}

/// Removes whatever is there, also directories in which their owner may do nothing.
///
/// # Errors
/// That of the operating system.
pub(crate) fn discard(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        open_up(path)?;
    }
    remove(path)
}

/// Removes whatever is there, if anything is.
///
/// # Errors
/// That of the operating system.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
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
        for name in ["settings.json", "CLAUDE.md", "skills/x/SKILL.md", "todos"] {
            fs::write(place(".claude").join(name), "x").unwrap();
        }
        fs::create_dir_all(place(".caisson/anchor")).unwrap();
        fs::write(place(".claude.json"), r#"{"numStartups":3,"env":{"A":"b"},"projects":{},"hooks":[]}"#)
            .unwrap();
        clear(home.path()).unwrap();
        let left: Vec<_> =
            fs::read_dir(place(".claude")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.len() == 2 && place(".claude/projects/-workspace").exists(), "{left:?}");
        assert!(!place(".caisson").exists());
        assert_eq!(fs::read_to_string(place(".claude.json")).unwrap(), r#"{"numStartups":3}"#);
    }

    #[test]
    fn rights_that_were_taken_away_keep_nothing_there_and_are_given_back() {
        let home = tempfile::tempdir().unwrap();
        let place = |name: &str| home.path().join(name);
        let modes = |names: [&str; 3]| {
            names.map(|name| place(name).symlink_metadata().unwrap().permissions().mode() & 0o777)
        };
        for name in [".claude/projects/-workspace", ".claude/rules/below", ".caisson/anchor/below"] {
            fs::create_dir_all(place(name)).unwrap();
        }
        let closed = [".caisson/anchor", ".caisson", ".claude/rules", ".claude/projects", ".claude", ""];
        for name in closed {
            fs::set_permissions(place(name), Permissions::from_mode(0o000)).unwrap();
        }
        clear(home.path()).unwrap();
        assert_eq!(modes(["", ".claude", ".claude/projects"]), [0o700; 3]);
        assert!(place(".claude/projects/-workspace").exists());
        assert!(!place(".caisson").exists() && !place(".claude/rules").exists());
    }

    #[test]
    fn of_a_project_its_conversations_stay_and_no_memory() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let project = home.path().join(".claude/projects/-workspace");
        let id = "0192f0c1-2345-7abc-8def-0123456789ab";
        for name in ["memory/deeper", id, "agent"] {
            fs::create_dir_all(project.join(name)).unwrap();
        }
        for name in [
            "memory/MEMORY.md",
            &format!("{id}/tool.txt"),
            &format!("{id}.jsonl"),
            &format!("{id}.md"),
            "CLAUDE.md",
            "x.jsonl",
        ] {
            fs::write(project.join(name), "x").unwrap();
        }
        symlink(other.path(), project.join("0192f0c1-2345-7abc-8def-0123456789ac")).unwrap();
        fs::write(home.path().join(".claude/projects/stray"), "x").unwrap();
        symlink(other.path(), home.path().join(".claude/projects/-elsewhere")).unwrap();
        fs::set_permissions(project.join("memory"), Permissions::from_mode(0o500)).unwrap();
        fs::set_permissions(&project, Permissions::from_mode(0o000)).unwrap();
        clear(home.path()).unwrap();
        let names = |place: &Path| {
            let mut names: Vec<_> = fs::read_dir(place)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&project), [id.to_owned(), format!("{id}.jsonl")]);
        assert!(project.join(id).join("tool.txt").exists() && other.path().exists());
        assert_eq!(names(&home.path().join(".claude/projects")), ["-workspace"]);
    }

    #[test]
    fn an_emptied_home_has_conversations_and_attachments_alone() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = |name: &str| home.path().join(name);
        let modules = ".local/lib/python3.13/site-packages";
        for name in
            [".claude/projects/-workspace", modules, ".local/bin", "attachments/run_1/0", "go/pkg/mod/x"]
        {
            fs::create_dir_all(place(name)).unwrap();
        }
        for name in [
            ".bashrc",
            ".gitconfig",
            &format!("{modules}/usercustomize.py"),
            "attachments/run_1/0/a",
            "go/pkg/mod/x/y",
        ] {
            fs::write(place(name), "x").unwrap();
        }
        for name in ["go/pkg/mod/x", "go/pkg/mod"] {
            fs::set_permissions(place(name), Permissions::from_mode(0o500)).unwrap();
        }
        symlink(other.path(), place("elsewhere")).unwrap();
        fs::write(other.path().join("kept"), "x").unwrap();
        empty(home.path()).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".claude", "attachments"]);
        assert!(place(".claude/projects/-workspace").exists() && place("attachments/run_1/0/a").exists());
        assert!(other.path().join("kept").exists());
        fs::remove_dir_all(place("attachments")).unwrap();
        symlink(other.path(), place("attachments")).unwrap();
        empty(home.path()).unwrap();
        assert!(!place("attachments").exists());
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
