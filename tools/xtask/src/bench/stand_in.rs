//! A stand-in for the agent: it stamps each line right before it writes it, which the agent itself does not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};
use testkit::parts::Parts;

use super::service::{Service, ServiceSpec};
use super::stats::Summary;

/// The program.
const PROGRAM: &str = include_str!("stand_in.py");
/// Lines of a run.
const LINES: usize = 250;
/// Pause before each, in milliseconds.
const PACE_MS: u64 = 20;

/// From a line's writing to its arrival at a reader, in milliseconds, on a server of its own.
///
/// # Errors
/// The server does not start, or the run does not end as it must.
pub(crate) async fn measure(
    parts: &Parts,
    root: &Path,
    spec: &ServiceSpec,
    version: &str,
) -> anyhow::Result<Summary> {
    let agents_dir = root.join("agents");
    install(&agents_dir, version)?;
    let parts = Parts { agents_dir, ..parts.clone() };
    let service = Service::start(&parts, spec).await?;
    let prompt = json!({ "lines": LINES, "pace_ms": PACE_MS }).to_string();
    let body = json!({ "workflow": "bug-fixer", "prompt": prompt, "repository": null });
    let measured = service.job(&body, |_| {}).await;
    let log = service.process.log();
    service.close().await?;
    let job = measured.with_context(|| log.lines().rev().take(10).collect::<Vec<_>>().join("\n"))?;
    anyhow::ensure!(job.lines_ms.len() == LINES, "{} stamped lines came, not {LINES}", job.lines_ms.len());
    Summary::of(&job.lines_ms).context("nothing was measured")
}

/// Puts the program where the server looks for the agent of that version.
///
/// # Errors
/// The disk refuses.
pub(crate) fn install(agents_dir: &Path, version: &str) -> anyhow::Result<()> {
    let directory = agents_dir.join("claude-code").join(version);
    fs::create_dir_all(&directory)?;
    let program = directory.join("claude");
    fs::write(&program, PROGRAM)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let sha256 = hex::encode(Sha256::digest(PROGRAM));
    let manifest = json!({ "version": version, "integrity": "none", "sha256": sha256, "trust": "given" });
    fs::write(directory.join("manifest.json"), manifest.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use caisson_claude::{Line, Uuid, parse, user_prompt};

    use super::*;

    #[test]
    fn the_stand_in_speaks_as_the_agent_does_and_stamps_its_lines() {
        let root = tempfile::tempdir().unwrap();
        install(root.path(), "1.0.0").unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "the stand-in is started here, with an argument vector"
        )]
        let mut child = Command::new(root.path().join("claude-code/1.0.0/claude"))
            .arg("--session-id=s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let uuid = Uuid::parse("0192f0c1-2345-7abc-8def-0123456789ab").unwrap();
        let prompt = user_prompt(&uuid, &json!({ "lines": 3, "pace_ms": 0 }).to_string()).unwrap();
        child.stdin.take().unwrap().write_all(prompt.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().map(|line| parse(line.as_bytes())).collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(matches!(lines[1], Line::Init(_)), "{text}");
        assert!(lines[2..5].iter().all(|line| matches!(line, Line::Assistant(_))), "{text}");
        assert!(
            matches!(&lines[5], Line::Result(result) if !result.is_error && result.prompts == [uuid.to_string()]),
            "{text}"
        );
        let line: serde_json::Value = serde_json::from_str(text.lines().nth(2).unwrap()).unwrap();
        let age_us = super::super::clock::wall_us() - line["stamp_ns"].as_i64().unwrap() / 1000;
        assert!((0..60_000_000).contains(&age_us), "{age_us}");
    }
}
