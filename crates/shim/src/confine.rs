//! An agent that only reads: the kernel refuses it every change of the workspace, whatever rights its user has.
//!
//! Landlock (landlock(7)) is what both engines can hold: the shim has to write where the agent must not, both have one user, and in a
//! sandbox nobody may mount. The rules go to a thread of their own and from there to the process that it starts and all that come
//! from it; none of them can take a rule back. What the rules allow is listed, so that the journal is closed to the agent too.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use caisson_domain::run::{Failure, FailureKind};
use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError,
};

use crate::reaper::{Child, Reaper};
use crate::shim::Shim;

/// The first version of Landlock that also refuses to cut a file short (Linux 6.2).
const LEAST: ABI = ABI::V3;
/// Where a program writes whatever it does: its descriptors' devices, shared memory, what it sets of itself.
const SYSTEM: [&str; 2] = ["/dev", "/proc"];

/// Starts a program that can change nothing but the agent's home and temporary files.
///
/// # Errors
/// [`Failure`] if the kernel cannot hold it to that; inside, that of the operating system.
pub(crate) fn spawn_reading(shim: &Shim, command: &mut Command) -> Result<std::io::Result<Child>, Failure> {
    spawn_within(&shim.reaper, command, &[&shim.places.home, &shim.places.tmp])
}

/// Starts a program that can change nothing but what is below these places. Nor can it look into a process that is not its own: who is
/// under other rules has no way to the memory, the environment or the open files of anybody else (`ptrace` of landlock(7)).
///
/// # Errors
/// [`Failure`] if the kernel cannot hold it to that; inside, that of the operating system.
pub(crate) fn spawn_within(
    reaper: &Arc<Reaper>,
    command: &mut Command,
    places: &[&Path],
) -> Result<std::io::Result<Child>, Failure> {
    // Its pipes belong to the runtime.
    let runtime = tokio::runtime::Handle::current();
    let started = std::thread::scope(|scope| {
        let starting = scope.spawn(|| {
            let _in_runtime = runtime.enter();
            restrict(places).map(|()| reaper.spawn(command))
        });
        starting.join()
    });
    match started {
        Ok(Ok(started)) => Ok(started),
        Ok(Err(error)) => Err(unable(&error.to_string())),
        Err(_) => Err(unable("the thread that starts it has ended")),
    }
}

/// Whether the kernel can hold programs to places.
pub(crate) fn can_hold() -> bool {
    ruleset().is_ok()
}

/// Does something that changes nothing but what is below a place, wherever links lead that somebody exchanges meanwhile. Where the
/// kernel has no such wall, no agent is held by it either, and none can reach further by this than by itself.
///
/// # Errors
/// That of what is done, or that its thread has ended.
pub(crate) fn within<T: Send>(
    place: &Path,
    done: impl FnOnce() -> std::io::Result<T> + Send,
) -> std::io::Result<T> {
    let ended = std::thread::scope(|scope| {
        let doing = scope.spawn(|| {
            let _held = restrict(&[place]);
            done()
        });
        doing.join()
    });
    ended.unwrap_or_else(|_| Err(std::io::Error::other("the thread that does it has ended")))
}

/// Takes from this thread, and from what it starts, the right to change files anywhere but below `places` and [`SYSTEM`].
fn restrict(places: &[&Path]) -> Result<(), RulesetError> {
    let writing = AccessFs::from_write(LEAST);
    let mut rules = ruleset()?;
    for place in places.iter().copied().chain(SYSTEM.map(Path::new)) {
        // What is not there needs no rule.
        if let Ok(place) = PathFd::new(place) {
            rules = rules.add_rule(PathBeneath::new(place, writing))?;
        }
    }
    rules.restrict_self().map(drop)
}

fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_write(LEAST))?
        .create()
}

fn unable(why: &str) -> Failure {
    let message = "the kernel of this machine cannot keep the workspace read-only: it needs Landlock, in Linux 6.2 or later, and \
                   an engine whose system call filter lets it through";
    Failure::new(FailureKind::SandboxStart, message).with_evidence(why)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What this thread can still do to `file`, each by itself.
    fn done_to(file: &Path) -> Vec<&'static str> {
        let directory = file.parent().unwrap();
        let tries: [(&str, std::io::Result<()>); 7] = [
            (
                "append",
                std::fs::OpenOptions::new().append(true).open(file).and_then(|mut file| file.write_all(b"x")),
            ),
            ("truncate", std::fs::OpenOptions::new().write(true).truncate(true).open(file).map(drop)),
            ("create", std::fs::write(directory.join("new"), "x")),
            ("link", std::fs::hard_link(file, directory.join("linked"))),
            ("symlink", std::os::unix::fs::symlink("x", directory.join("symlink"))),
            ("mkdir", std::fs::create_dir(directory.join("directory"))),
            ("rename", std::fs::rename(file, directory.join("moved"))),
        ];
        let mut done: Vec<_> =
            tries.into_iter().filter(|(_, tried)| tried.is_ok()).map(|(name, _)| name).collect();
        if std::fs::remove_file(directory.join("other")).is_ok() {
            done.push("remove");
        }
        done
    }

    #[test]
    fn what_is_done_within_a_place_follows_no_link_out_of_it() {
        let (place, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), place.path().join("link")).unwrap();
        within(place.path(), || std::fs::write(place.path().join("inside"), "x")).unwrap();
        let out = within(place.path(), || std::fs::write(place.path().join("link/file"), "x"));
        assert_eq!(out.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        assert!(!outside.path().join("file").exists());
        std::fs::write(place.path().join("link/file"), "x").unwrap();
    }

    #[test]
    fn a_thread_that_only_reads_changes_nothing_even_where_its_user_may() {
        let (closed, open) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for directory in [&closed, &open] {
            std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
            for name in ["file", "other"] {
                std::fs::write(directory.path().join(name), "kept").unwrap();
            }
        }
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                restrict(&[open.path()]).unwrap();
                assert_eq!(done_to(&closed.path().join("file")), Vec::<&str>::new());
                assert_eq!(std::fs::read_to_string(closed.path().join("file")).unwrap(), "kept");
                assert_eq!(done_to(&open.path().join("file")).len(), 8);
                let out = std::fs::rename(open.path().join("moved"), closed.path().join("in"));
                assert!(out.is_err(), "nothing is moved in");
            });
            reading.join().unwrap();
        });
        assert_eq!(std::fs::read_dir(closed.path()).unwrap().count(), 2);
        // Nobody else is held to it.
        std::fs::write(closed.path().join("file"), "changed").unwrap();
    }
}
