//! Every attempt, with the walls that are to stop it and how surroundings without them look.

mod host;
mod network;
mod secrets;
mod siblings;

use std::path::Path;

use testkit::engine::Engine;

use super::walls::{Kind, Wall};

/// One way out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// `module.function` of the Python files beside this one.
    pub(crate) name: &'static str,
    /// Arguments, `KEY=VALUE`; `{…}` is filled in by the stage.
    pub(crate) arguments: &'static [&'static str],
    /// What is to stop it, each by itself.
    pub(crate) walls: &'static [Wall],
    /// Further arguments of bubblewrap in every control.
    pub(crate) more: &'static [&'static str],
    /// Arguments of the attempt in a control, where they are not the sandbox's.
    pub(crate) instead: Option<&'static [&'static str]>,
    /// Errors that are given only to whoever is past every wall, where a machine refuses by itself.
    pub(crate) past: &'static [&'static str],
    /// Errors that say, where no wall is, that this kernel has no such thing.
    pub(crate) absent: &'static [&'static str],
    /// What the machine must have.
    pub(crate) needs: Needs,
    /// The one engine whose sandboxes have the walls, if not all have.
    pub(crate) only: Option<Engine>,
}

/// What a machine must have for an attempt to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// This file.
    File(&'static str),
    /// A disk in `/dev`.
    Disk,
    /// A setting of the kernel with this value; a kernel that does not know the setting is as if it had it.
    Setting(&'static str, &'static str),
}

impl Attempt {
    /// Whether somebody outside hears it when it gets through.
    pub(crate) fn has_witness(&self) -> bool {
        self.arguments.contains(&"token={token}")
    }

    /// Whether sandboxes of an engine have the walls.
    pub(crate) fn fits(&self, engine: Engine) -> bool {
        self.only.is_none_or(|only| only == engine)
    }

    /// Errors by which a sandbox of an engine may refuse it.
    pub(crate) fn refusals(&self, engine: Engine) -> Vec<&'static str> {
        let met = self.walls.iter().filter(|wall| wall.is_met(engine));
        met.flat_map(|wall| wall.refuses.iter().copied()).collect()
    }

    /// The walls, for people; those of one engine.
    pub(crate) fn walls_text(&self, engine: Engine) -> String {
        let met = self.walls.iter().filter(|wall| wall.is_met(engine));
        met.map(|wall| wall.kind.text()).collect::<Vec<_>>().join("; ")
    }

    /// Whether one of its walls is of a kind.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.walls.iter().any(|wall| wall.kind == kind)
    }

    const fn in_control(self, more: &'static [&'static str]) -> Self {
        Self { more, ..self }
    }

    const fn instead(self, arguments: &'static [&'static str]) -> Self {
        Self { instead: Some(arguments), ..self }
    }

    const fn past(self, past: &'static [&'static str]) -> Self {
        Self { past, ..self }
    }

    const fn absent(self, absent: &'static [&'static str]) -> Self {
        Self { absent, ..self }
    }

    const fn needs(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    const fn only(self, engine: Engine) -> Self {
        Self { only: Some(engine), ..self }
    }
}

impl Needs {
    /// Why this machine has not what is needed.
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::File(path) => (!Path::new(path).exists()).then(|| format!("this machine has no {path}")),
            Self::Disk => (!has_disk()).then(|| "this machine has no disk in /dev".to_owned()),
            Self::Setting(path, wanted) => {
                let found = std::fs::read_to_string(path).ok()?;
                (found.trim() != wanted).then(|| format!("{path} is {} and not {wanted}", found.trim()))
            }
        }
    }
}

fn has_disk() -> bool {
    use std::os::unix::fs::FileTypeExt;
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_block_device()))
}

const fn attempt(name: &'static str, arguments: &'static [&'static str], walls: &'static [Wall]) -> Attempt {
    let (more, past, absent) = (&[], &[], &[]);
    Attempt { name, arguments, walls, more, instead: None, past, absent, needs: Needs::Nothing, only: None }
}

/// Every attempt.
pub(crate) fn all() -> impl Iterator<Item = &'static Attempt> {
    [secrets::ALL, network::ALL, host::ALL, siblings::ALL].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_meets_a_wall_in_every_sandbox_that_it_fits() {
        for attempt in all() {
            for engine in [Engine::Docker, Engine::Local] {
                let meets = !attempt.refusals(engine).is_empty();
                assert!(meets || !attempt.fits(engine), "{} on {}", attempt.name, engine.name());
            }
            assert!(attempt.walls.iter().all(|wall| !wall.refuses.is_empty()), "{}", attempt.name);
        }
    }

    #[test]
    fn what_only_those_past_the_walls_are_told_is_no_refusal_of_a_wall() {
        for attempt in all() {
            for wall in attempt.walls {
                let told = attempt.past.iter().chain(attempt.absent);
                let same: Vec<_> = told.filter(|error| wall.refuses.contains(error)).collect();
                // A filter may answer as a kernel without the family does; where no filter is, only the kernel does.
                let kernels_own: Vec<_> =
                    same.into_iter().filter(|error| !["EAFNOSUPPORT", "ENOSYS"].contains(error)).collect();
                assert!(kernels_own.is_empty(), "{}: {kernels_own:?}", attempt.name);
            }
        }
    }

    #[test]
    fn what_a_machine_lacks_is_told() {
        assert_eq!(Needs::Nothing.missing(), None);
        assert_eq!(Needs::File("/proc/self").missing(), None);
        assert!(Needs::File("/nonexistent").missing().unwrap().contains("/nonexistent"));
        assert_eq!(Needs::Setting("/nonexistent", "1").missing(), None);
        assert!(Needs::Setting("/proc/sys/kernel/ostype", "1").missing().unwrap().contains("is Linux"));
    }
}
