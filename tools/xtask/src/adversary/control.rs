//! An attempt without its wall: a bubblewrap that shows the machine as it is, and has everything else.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::surroundings::{Surroundings, UID};
use super::table::{Attempt, Who};
use super::verdict::Verdict;
use super::witness::fill;

/// The machine as it is; what a control adds comes after it.
const PLAIN: [&str; 9] = ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"];
/// Where the attempts' files are seen.
const ATTEMPTS: &str = "/tmp/attempts";

/// Makes the attempt without its wall.
///
/// # Errors
/// Bubblewrap cannot be started, or the attempt told nothing.
pub(crate) fn run(attempt: &Attempt, surroundings: &Surroundings) -> anyhow::Result<Verdict> {
    let control = &attempt.control;
    let values = surroundings.values(attempt.name, "control");
    #[expect(clippy::disallowed_methods, reason = "the control is started here, with an argument vector")]
    let mut command = Command::new("bwrap");
    command.args(PLAIN).args(control.more.iter().map(|word| fill(word, &values)));
    match control.who {
        Who::Agent => {
            command.uid(UID).gid(UID);
        }
        Who::Root => {
            command.args(["--cap-add", "ALL"]);
        }
    }
    let attempts = surroundings.attempts().to_str().context("a temporary path is not UTF-8")?;
    command.args(["--ro-bind", attempts, ATTEMPTS, "--", "/usr/bin/python3"]);
    if control.first {
        command.arg(format!("{ATTEMPTS}/first.py"));
    }
    command.arg(format!("{ATTEMPTS}/attempt.py")).arg(attempt.name);
    command.args(control.arguments.unwrap_or(attempt.arguments).iter().map(|word| fill(word, &values)));
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin").env("HOME", "/tmp");
    let output = command.stdin(Stdio::null()).output().context("bubblewrap cannot be started")?;
    surroundings.check().with_context(|| format!("after the control of {}", attempt.name))?;
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the control of {} failed: {said}{told}", attempt.name);
    let verdict = Verdict::read(attempt.name, &told)
        .with_context(|| format!("the control of {} told nothing: {told}{said}", attempt.name))?;
    Ok(verdict.witnessed(attempt, &surroundings.witness, &values["token"]))
}
