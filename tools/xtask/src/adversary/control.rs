//! The controls of an attempt: without its walls it gets through, and each wall by itself stops it in its own words.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::filter;
use super::ground::Ground;
use super::surroundings::Surroundings;
use super::table::Attempt;
use super::verdict::Verdict;

/// What the controls of an attempt show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The attempt is a real one, and each of its walls stops it; how many controls say so.
    Real(usize),
    /// This machine has no such thing, so that nobody can try.
    Absent(String),
    /// They prove nothing, and why.
    Nothing(Vec<String>),
}

/// Makes the attempt without its walls, and with each of them alone.
///
/// # Errors
/// Bubblewrap cannot be started, or the attempt told nothing.
pub(crate) fn run(attempt: &Attempt, surroundings: &Surroundings) -> anyhow::Result<Shown> {
    let standing = std::iter::once(None).chain((0..attempt.walls.len()).map(Some));
    let mut told = Vec::new();
    for standing in standing {
        let ground = Ground { attempt, standing };
        told.push((standing, stand_on(&ground, surroundings)?));
    }
    Ok(judge(attempt, &told))
}

/// What the verdicts of an attempt's controls show; pure.
pub(super) fn judge(attempt: &Attempt, told: &[(Option<usize>, Verdict)]) -> Shown {
    let mut idle = Vec::new();
    for (standing, verdict) in told {
        let name = Ground { attempt, standing: *standing }.name();
        let stands_for_it = match (standing, verdict) {
            (None, Verdict::Through(_)) => true,
            (None, Verdict::Refused { error, .. }) => {
                if attempt.absent.contains(&error.as_str()) {
                    return Shown::Absent(format!("this kernel has no such thing ({error})"));
                }
                attempt.past.contains(&error.as_str())
            }
            (Some(wall), Verdict::Refused { error, .. }) => {
                attempt.walls[*wall].refuses.contains(&error.as_str())
            }
            (Some(_), Verdict::Through(_)) => false,
        };
        if !stands_for_it {
            let end = if verdict.is_through() { "through" } else { "refused" };
            idle.push(format!("{} {name}: {end}: {verdict}", attempt.name));
        }
    }
    if idle.is_empty() { Shown::Real(told.len()) } else { Shown::Nothing(idle) }
}

fn stand_on(ground: &Ground<'_>, surroundings: &Surroundings) -> anyhow::Result<Verdict> {
    let attempt = ground.attempt;
    let side = ground.standing.map_or("open".to_owned(), |wall| format!("wall{wall}"));
    let values = surroundings.values(attempt.name, &side);
    let attempts = surroundings.attempts().to_str().context("a temporary path is not UTF-8")?;
    let filters =
        filter::programs()?.iter().map(|program| inherited(program)).collect::<Result<Vec<_>, _>>()?;
    let numbers: Vec<i32> = filters.iter().map(AsRawFd::as_raw_fd).collect();
    #[expect(clippy::disallowed_methods, reason = "the control is started here, with an argument vector")]
    let mut command = Command::new("bwrap");
    command.args(ground.arguments(attempts, &numbers, &values)?);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin").env("HOME", "/tmp");
    let output = command.stdin(Stdio::null()).output().context("bubblewrap cannot be started")?;
    surroundings.check().with_context(|| format!("after a control of {}", attempt.name))?;
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let name = ground.name();
    ensure!(output.status.success(), "the control of {} {name} failed: {said}{told}", attempt.name);
    let verdict = Verdict::read(attempt.name, &told)
        .with_context(|| format!("the control of {} {name} told nothing: {told}{said}", attempt.name))?;
    Ok(verdict.witnessed(attempt, &surroundings.witness, &values["token"]))
}

/// A file in memory that the next program inherits, to be read from its beginning. Controls are started one after another.
fn inherited(bytes: &[u8]) -> anyhow::Result<OwnedFd> {
    let mut file = File::from(memfd_create("filter", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    fn refused(error: &str) -> Verdict {
        Verdict::Refused { error: error.to_owned(), said: String::new() }
    }

    fn named(name: &str) -> &'static Attempt {
        table::all().find(|attempt| attempt.name == name).unwrap()
    }

    #[test]
    fn an_attempt_is_real_if_it_is_through_without_walls_and_refused_in_the_words_of_each() {
        let through = || (None, Verdict::Through(String::new()));
        let mount = named("host.mount");
        let told = [through(), (Some(0), refused("EPERM")), (Some(1), refused("EPERM"))];
        assert_eq!(judge(mount, &told), Shown::Real(3));
        let other_words = [through(), (Some(0), refused("EPERM")), (Some(1), refused("EACCES"))];
        assert!(matches!(judge(mount, &other_words), Shown::Nothing(why) if why[0].contains("filter alone")));
        let open = [through(), (Some(0), Verdict::Through(String::new())), (Some(1), refused("EPERM"))];
        assert!(matches!(judge(mount, &open), Shown::Nothing(why) if why[0].contains("capabilities alone")));
        let stopped = [(None, refused("EPERM")), (Some(0), refused("EPERM")), (Some(1), refused("EPERM"))];
        assert!(matches!(judge(mount, &stopped), Shown::Nothing(why) if why[0].contains("without any")));
    }

    #[test]
    fn what_the_kernel_has_not_is_no_attempt_and_what_it_refuses_behind_the_wall_is_one() {
        let told = [(None, refused("EAFNOSUPPORT")), (Some(0), refused("EPERM"))];
        assert!(matches!(judge(named("network.vsock"), &told), Shown::Absent(_)));
        let told = [(None, refused("ENOTSUP")), (Some(0), refused("EPERM"))];
        assert_eq!(judge(named("network.add_device"), &told), Shown::Real(2));
    }
}
