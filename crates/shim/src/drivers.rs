//! Programs that git starts because the repository's own settings name them: filters, drivers for merges and differences,
//! hooks. They are an agent's to write, so none runs in the shim's commands, on whatever files its attributes put them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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

/// Settings that keep such programs from running: names, which need not be text, and values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drivers(Arc<Mutex<Vec<Setting>>>);

type Setting = (OsString, &'static str);

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
    /// Looks at which programs the repository's settings name now, which is to be done again where `HEAD` was moved: some count on one
    /// branch alone. An agent may change them while it runs; what runs then has its rights, and no others.
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
fn read(names: &[u8]) -> Vec<Setting> {
    let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(harmless).collect()
}

fn harmless(name: &[u8]) -> Option<Setting> {
    let of = &name[..name.iter().rposition(|byte| *byte == b'.')?];
    let value = match &name[of.len() + 1..] {
        b"required" => "false",
        b"driver" => MERGE,
        b"command" if of.starts_with(b"hook.") => {
            return Some((OsString::from_vec([of, b".enabled"].concat()), "false"));
        }
        _ => "",
    };
    Some((OsStr::from_bytes(name).to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_is_put_out_of_work_in_its_own_way() {
        let found = read(
            b"filter.a b=c.clean\0filter.x.required\0merge.m.driver\0hook.h.command\0filter.x.required\0",
        );
        let of = |name: &str, value| (OsString::from(name), value);
        let expected = [
            of("filter.a b=c.clean", ""),
            of("filter.x.required", "false"),
            of("hook.h.enabled", "false"),
            of("merge.m.driver", MERGE),
        ];
        assert_eq!(found, expected);
        assert!(read(b"").is_empty());
    }

    #[test]
    fn a_name_that_is_no_text_stays_what_it_is() {
        let found = read(b"diff.\xff.command\0filter.a\xffb.clean\0hook.\xff.command\0merge.\xff.driver\0");
        let of = |name: &[u8], value| (OsStr::from_bytes(name).to_owned(), value);
        let expected = [
            of(b"diff.\xff.command", ""),
            of(b"filter.a\xffb.clean", ""),
            of(b"hook.\xff.enabled", "false"),
            of(b"merge.\xff.driver", MERGE),
        ];
        assert_eq!(found, expected);
    }
}
