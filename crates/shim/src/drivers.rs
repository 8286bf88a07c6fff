//! Programs that git starts because the repository's own settings name them: filters, drivers for merges and differences,
//! hooks. They are an agent's to write, so none runs in the shim's commands, on whatever files its attributes put them.

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use caisson_domain::run::{Failure, FailureKind};

use crate::failure::git_command;
use crate::git::Git;

/// Most settings that name a program; a repository with more is not worked on.
const DRIVERS: usize = 500;
/// Names of such settings, for git's own expressions. Sections and keys come in small letters.
const NAMES: &str = r"^(filter\..*\.(clean|smudge|process|required)|merge\..*\.driver|diff\..*\.(command|textconv)|hook\..*\.command)$";
/// What git itself does to merge a file.
const MERGE: &str = "git merge-file --marker-size=%L %A %O %B";

/// Settings that keep such programs from running: names and values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drivers(Arc<Mutex<Vec<(String, String)>>>);

impl Drivers {
    /// Adds the settings to a command, which begins with none.
    pub(crate) fn put_out_of_work(&self, command: &mut Command) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        command.env("GIT_CONFIG_COUNT", known.len().to_string());
        for (number, (name, value)) in known.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), name);
            command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
    }
}

impl Git {
    /// Looks at which programs the repository's settings name now. An agent may change them while it runs; what runs then
    /// has its rights, and no others.
    ///
    /// # Errors
    /// [`Failure`] if git did not start or end, or there are too many.
    pub(crate) async fn learn_drivers(&self) -> Result<(), Failure> {
        let output =
            self.attempt(&["config", "--includes", "-z", "--name-only", "--get-regexp", NAMES]).await?;
        if !output.exit.success() && !output.stderr.is_empty() {
            return Err(git_command("config", &output.stderr));
        }
        let found = read(&output.stdout);
        if output.cut || found.len() > DRIVERS {
            let message = format!(
                "the settings of the workspace's repository name more than {DRIVERS} programs for git; begin a new session"
            );
            return Err(Failure::new(FailureKind::PolicyDenied, message));
        }
        *self.drivers.0.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }
}

/// From names of settings to those that put them out of work; pure.
fn read(names: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(names);
    let mut names: Vec<&str> = text.split_terminator('\0').collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(harmless).collect()
}

fn harmless(name: &str) -> Option<(String, String)> {
    let (of, key) = name.rsplit_once('.')?;
    let value = match key {
        "required" => "false",
        "driver" => MERGE,
        "command" if of.starts_with("hook.") => return Some((format!("{of}.enabled"), "false".to_owned())),
        _ => "",
    };
    Some((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_is_put_out_of_work_in_its_own_way() {
        let found = read(
            b"filter.a b=c.clean\0filter.x.required\0merge.m.driver\0hook.h.command\0filter.x.required\0",
        );
        let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [
            of("filter.a b=c.clean", ""),
            of("filter.x.required", "false"),
            of("hook.h.enabled", "false"),
            of("merge.m.driver", MERGE),
        ];
        assert_eq!(found, expected);
        assert!(read(b"").is_empty());
    }
}
