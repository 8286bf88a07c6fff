//! The docker client, as a person's script would call it.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::parts::Parts;

/// Label of every container that the bench itself makes; its value is the bench's id.
pub(crate) const LABEL: &str = "caisson.bench";
/// Time limit of one call.
pub(crate) const CALL: Duration = Duration::from_mins(1);

/// Runs the docker client and returns what it printed; how it ended is for the caller to judge.
///
/// # Errors
/// It cannot be started, or does not end in time: then it is killed.
pub(crate) async fn call(parts: &Parts, arguments: &[String], limit: Duration) -> anyhow::Result<Output> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the docker client is started here, with an argument vector"
    )]
    let mut command = tokio::process::Command::new("docker");
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("DOCKER_HOST", &parts.docker_host)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let called = tokio::time::timeout(limit, command.output()).await;
    let name = arguments.first().map_or("", String::as_str);
    called
        .with_context(|| format!("docker {name} took longer than {limit:?}"))?
        .context("docker cannot be started")
}

/// Runs the docker client and returns its standard output.
///
/// # Errors
/// As [`call`], or it fails.
pub(crate) async fn ask(parts: &Parts, arguments: &[&str]) -> anyhow::Result<String> {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let output = call(parts, &arguments, CALL).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker {} failed: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Removes every container with the label, whether it runs or not.
///
/// # Errors
/// The engine refuses.
pub(crate) async fn remove_labelled(parts: &Parts, label: &str, value: &str) -> anyhow::Result<()> {
    let names = labelled(parts, label, value).await?;
    for name in names {
        ask(parts, &["rm", "--force", "--volumes", &name]).await?;
    }
    Ok(())
}

async fn labelled(parts: &Parts, label: &str, value: &str) -> anyhow::Result<Vec<String>> {
    let filter = format!("label={label}={value}");
    let names = ask(parts, &["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"]).await?;
    Ok(names.lines().map(str::to_owned).collect())
}
