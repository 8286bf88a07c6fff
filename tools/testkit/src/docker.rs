//! What the engine itself says, asked through its own client: a second witness beside the code under test.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::parts::Parts;

/// Runs the docker client and returns its standard output.
///
/// # Errors
/// The client is missing or fails.
pub fn docker(parts: &Parts, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the docker client is started here, with an argument vector"
    )]
    let output = Command::new("docker")
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("DOCKER_HOST", &parts.docker_host)
        .stdin(Stdio::null())
        .output()
        .context("the docker client cannot be started")?;
    ensure!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Names of all containers, living or not, that carry the server's label.
///
/// # Errors
/// The client is missing or fails.
pub fn containers_of(parts: &Parts, server: &str) -> anyhow::Result<Vec<String>> {
    let filter = format!("label=caisson.server={server}");
    let text = docker(parts, &["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"])?;
    Ok(String::from_utf8(text)?.lines().map(str::to_owned).collect())
}

/// A container as the engine describes it.
///
/// # Errors
/// There is none of that name.
pub fn inspect(parts: &Parts, name: &str) -> anyhow::Result<Value> {
    let mut all: Value = serde_json::from_slice(&docker(parts, &["inspect", name])?)?;
    Ok(all[0].take())
}
/// Host process ids of everything in a container.
///
/// # Errors
/// The container does not run.
pub fn processes(parts: &Parts, name: &str) -> anyhow::Result<Vec<u32>> {
    let text = String::from_utf8(docker(parts, &["top", name, "-eo", "pid"])?)?;
    Ok(text.lines().skip(1).filter_map(|line| line.trim().parse().ok()).collect())
}
