//! The audit log before and behind an attempt at it, and the proof that a change of it is noticed.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::world::World;

use super::super::verdict::Verdict;

/// Records that the server writes of what a sandbox does, by their actions; in each the sandbox's words are particulars.
const OF_SANDBOXES: [&str; 7] = [
    "run.create",
    "credential.use",
    "egress.allow",
    "egress.deny",
    "mcp.allow",
    "mcp.deny",
    "gateway.denied",
];
/// Longest text of a record, in bytes, as the store bounds it.
const TEXT_BYTES: usize = 1024;
/// Changes a record as whoever can write to the database may, who takes away first what keeps the database from it.
const TAMPER: &str = r#"import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=20)
for trigger in ["audit_kept", "audit_left", "audit_appended"]:
    database.execute(f"drop trigger if exists {trigger}")
changed = database.execute("update audit set host = 'elsewhere' where seq = (select max(seq) from audit where action = 'egress.deny')")
assert changed.rowcount == 1
database.commit()"#;

/// Every record, as the operator exports them.
///
/// # Errors
/// The command fails.
pub(super) fn export(world: &World) -> anyhow::Result<Vec<String>> {
    let output = operator(world, "export")?;
    ensure!(output.status.success(), "caisson audit export: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// What came of an attempt at the log, which was `before`: refused as `KEPT` if it is whole, what was `denied` is there, and nothing is in
/// it that the server has not seen itself. That a change would have been noticed is shown by making one.
///
/// # Errors
/// A command cannot be started.
pub(super) fn seen(
    world: &World,
    before: &[String],
    (token, denied): (&str, [&str; 2]),
    said: &Verdict,
) -> anyhow::Result<Verdict> {
    let through = |how: String| Ok(Verdict::Through(how));
    let verified = operator(world, "verify")?;
    if !verified.status.success() {
        return through(format!("the log is broken: {}", String::from_utf8_lossy(&verified.stdout)));
    }
    let after = export(world)?;
    if !after.starts_with(before) {
        return through("records from before were changed".to_owned());
    }
    let records: Vec<Value> =
        after[before.len()..].iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
    for record in &records {
        let action = record["action"].as_str().unwrap_or_default();
        if record.to_string().contains(token) && !OF_SANDBOXES.contains(&action) {
            return through(format!("a record is of the attempt's making: {record}"));
        }
        let fields = record.as_object().into_iter().flatten();
        if let Some((name, _)) =
            fields.into_iter().find(|(_, text)| text.as_str().is_some_and(|text| text.len() > TEXT_BYTES))
        {
            return through(format!("{name} of a record is longer than {TEXT_BYTES} bytes"));
        }
    }
    for target in denied {
        let host = target.split(':').next().unwrap_or_default();
        let is_there = |record: &Value| record["action"] == "egress.deny" && record["host"] == host;
        if !records.iter().any(is_there) {
            return through(format!("what was denied to {host} is not recorded"));
        }
    }
    tamper(world)?;
    let noticed = !operator(world, "verify")?.status.success();
    let error = if noticed { "KEPT" } else { "UNNOTICED" };
    Ok(Verdict::Refused { error: error.to_owned(), said: format!("{} more records; {said}", records.len()) })
}

fn operator(world: &World, command: &str) -> anyhow::Result<Output> {
    let output = world.spec.command(&["audit", command]).stdin(Stdio::null()).output();
    output.with_context(|| format!("caisson audit {command} cannot be started"))
}

fn tamper(world: &World) -> anyhow::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "who changes the database, with an argument vector")]
    let mut command = Command::new("/usr/bin/python3");
    let output = command.args(["-c", TAMPER]).arg(world.state_dir().join("caisson.db")).output();
    let output = output.context("python3 cannot be started")?;
    ensure!(
        output.status.success(),
        "the log could not be changed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
