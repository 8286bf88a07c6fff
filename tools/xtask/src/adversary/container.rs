//! The controls of Docker's own walls: the same container as a sandbox's, but for its filter, its namespaces of the network or of
//! processes, or for its filter and its rights. A container's user that is not root has no rights whatever is added, so that whoever
//! is to have them is root there.

use std::io::Write;

use anyhow::{Context, ensure};
use serde_json::Value;
use tempfile::NamedTempFile;
use testkit::docker::{docker, inspect};
use testkit::engine::Engine;
use testkit::parts::Parts;

use super::control::{Shown, judge};
use super::surroundings::{Surroundings, UID};
use super::table::Attempt;
use super::verdict::Verdict;
use super::walls::{Kind, Wall};
use super::witness::fill;

/// The rights that attempts on the filter ask for.
const RIGHTS: [&str; 4] = ["SYS_ADMIN", "SYSLOG", "DAC_READ_SEARCH", "NET_RAW"];
/// Where the attempts' files are seen.
const ATTEMPTS: &str = "/attempts";

/// What a sandbox's container is made from.
#[derive(Debug)]
pub(crate) struct Container {
    image: String,
    /// Caisson's own filter; none is the engine's, which its administrator chose.
    filter: Option<NamedTempFile>,
}

impl Container {
    /// Looks at a living sandbox's.
    ///
    /// # Errors
    /// The engine does not know it.
    pub(crate) fn of(parts: &Parts, sandbox: &str) -> anyhow::Result<Self> {
        let found = inspect(parts, sandbox)?;
        let image = found["Image"].as_str().context("the container has no image")?.to_owned();
        let options = found["HostConfig"]["SecurityOpt"].as_array().cloned().unwrap_or_default();
        let mut own =
            options.iter().filter_map(Value::as_str).filter_map(|word| word.strip_prefix("seccomp="));
        let filter = own.find(|text| text.starts_with('{')).map(|text| -> anyhow::Result<_> {
            let mut file = NamedTempFile::new()?;
            file.write_all(text.as_bytes())?;
            Ok(file)
        });
        Ok(Self { image, filter: filter.transpose()? })
    }

    /// Makes an attempt without the walls that are Docker's, and with each of them alone.
    ///
    /// # Errors
    /// The engine refuses, or the attempt told nothing.
    pub(crate) fn control(
        &self,
        attempt: &Attempt,
        parts: &Parts,
        surroundings: &Surroundings,
    ) -> anyhow::Result<Shown> {
        let mut told = vec![(None, self.stand_in(attempt, None, parts, surroundings)?)];
        for (place, wall) in attempt.walls.iter().enumerate() {
            // The engine's own filter lets through what a right is for, so that it cannot be shown to stand alone.
            if self.filter.is_some() || wall.kind != Kind::Filter || attempt.walls.len() == 1 {
                told.push((Some(place), self.stand_in(attempt, Some(wall), parts, surroundings)?));
            }
        }
        Ok(judge(attempt, &told))
    }

    fn stand_in(
        &self,
        attempt: &Attempt,
        standing: Option<&Wall>,
        parts: &Parts,
        surroundings: &Surroundings,
    ) -> anyhow::Result<Verdict> {
        let stands = |kind| standing.is_some_and(|wall| wall.kind == kind);
        let falls = |kind| attempt.has(kind) && !stands(kind);
        let with_rights = falls(Kind::Rights);
        let attempts = surroundings.attempts().to_str().context("a temporary path is not UTF-8")?;
        let mount = format!("{attempts}:{ATTEMPTS}:ro");
        let filter = match &self.filter {
            _ if !stands(Kind::Filter) => Some("seccomp=unconfined".to_owned()),
            Some(file) => Some(format!("seccomp={}", file.path().display())),
            None => None,
        };
        let user = if with_rights { "0:0".to_owned() } else { format!("{UID}:{UID}") };
        let network = if falls(Kind::Network) { "host" } else { "none" };
        let mut words = vec!["run", "--rm", "--network", network, "--read-only", "--tmpfs", "/tmp"];
        if falls(Kind::Processes) {
            words.extend(["--pid", "host"]);
        }
        words.extend(["--security-opt", "no-new-privileges", "--user", &user, "--volume", &mount]);
        words.extend(filter.iter().flat_map(|filter| ["--security-opt", filter]));
        words.extend(["--cap-drop", "ALL"]);
        if with_rights {
            words.extend(RIGHTS.iter().flat_map(|right| ["--cap-add", right]));
            // Where the machine has it, it refuses mounts even to those who have the right.
            words.extend(["--security-opt", "apparmor=unconfined"]);
        }
        let program = format!("{ATTEMPTS}/attempt.py");
        words.extend(["--entrypoint", "/usr/bin/python3", &self.image, &program, attempt.name]);
        let side = format!("container{}", standing.map_or("open", |wall| wall.kind.text())).replace(' ', "");
        let values = surroundings.values(attempt.name, &side);
        let arguments: Vec<_> = attempt.arguments.iter().map(|word| fill(word, &values)).collect();
        words.extend(arguments.iter().map(String::as_str));
        let output = docker(parts, &words)?;
        surroundings.check().with_context(|| format!("after a control of {}", attempt.name))?;
        let told = String::from_utf8_lossy(&output);
        let verdict = Verdict::read(attempt.name, &told).with_context(|| {
            format!("the control of {} in a container told nothing: {told}", attempt.name)
        })?;
        Ok(verdict.witnessed(attempt, &surroundings.witness, &values["token"]))
    }
}

/// Whether an attempt comes to a wall that is Docker's own and can be left out of a container.
pub(crate) fn meets_its_walls(attempt: &Attempt) -> bool {
    let own = |kind| matches!(kind, Kind::Filter | Kind::Network | Kind::Processes);
    attempt.fits(Engine::Docker)
        && attempt.walls.iter().any(|wall| own(wall.kind) && wall.is_met(Engine::Docker))
}

/// Whether the attempts that come to Docker's own walls need no more than a container to be made.
///
/// # Errors
/// One has another wall.
pub(crate) fn check(attempts: &[&Attempt]) -> anyhow::Result<()> {
    for attempt in attempts.iter().filter(|attempt| meets_its_walls(attempt)) {
        let has =
            |wall: &Wall| matches!(wall.kind, Kind::Filter | Kind::Rights | Kind::Network | Kind::Processes);
        ensure!(attempt.walls.iter().all(has), "{} has no control in a container", attempt.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn every_attempt_on_dockers_own_walls_has_a_control_in_a_container() {
        let all: Vec<_> = table::all().collect();
        check(&all).unwrap();
        let names: Vec<_> = all.iter().filter(|one| meets_its_walls(one)).map(|one| one.name).collect();
        for name in ["network.vsock", "host.mount", "network.tcp", "siblings.memory"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(!names.contains(&"network.raw_ip") && !names.contains(&"host.terminal_input"));
    }
}
