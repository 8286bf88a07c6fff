//! What runs have told and kept, before and behind attempts at it, and the proof that a change of it is noticed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::world::World;

use super::super::verdict::Verdict;
use super::super::world::find;

/// Changes the first event of a run as nobody but who can write to the database may.
const TAMPER: &str = r#"import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=20)
first = "select min(seq) from event where run_id = ?"
changed = database.execute(f"update event set data = '{{}}' where run_id = ? and seq = ({first})", [sys.argv[2]] * 2)
assert changed.rowcount == 1
database.commit()"#;

/// The events of runs as they were.
#[derive(Debug)]
pub(super) struct Record(Vec<(String, Vec<Value>)>);

impl Record {
    /// Reads it.
    ///
    /// # Errors
    /// The server does not answer, or a run has no events.
    pub(super) async fn of(world: &World, runs: Vec<String>) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for run in runs {
            let events = world.api.events(&run).await?;
            ensure!(!events.is_empty(), "run {run} has no events");
            all.push((run, events));
        }
        Ok(Self(all))
    }

    /// Which event from before is another one by now, or gone; none if all are as they were.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) async fn changed(&self, world: &World) -> anyhow::Result<Option<String>> {
        for (run, before) in &self.0 {
            if let Some(event) = rewritten(before, &world.api.events(run).await?) {
                return Ok(Some(format!("run {run} no longer has its event {event}")));
            }
        }
        Ok(None)
    }

    /// What came of an attempt to put a note with its word into a run's record, which the attempt takes for through when it is
    /// answered so.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) async fn told(&self, world: &World, token: &str, said: Verdict) -> anyhow::Result<Verdict> {
        for (run, _) in &self.0 {
            let events = world.api.events(run).await?;
            let has = |event: &Value| event["kind"] == "note" && event.to_string().contains(token);
            if let Some(event) = events.iter().find(|event| has(event)) {
                return Ok(Verdict::Through(format!("run {run} has it as its event {}", event["seq"])));
            }
        }
        Ok(said.unless_seen("UNSEEN"))
    }

    /// What came of an attempt to have an artifact with its word in its name kept for another run, or elsewhere.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) async fn kept(&self, world: &World, token: &str, said: Verdict) -> anyhow::Result<Verdict> {
        for (run, _) in &self.0 {
            let listed = world.api.get(&format!("/v1/runs/{run}/artifacts")).await?.body;
            let listed = listed["items"].as_array().with_context(|| format!("no artifacts: {listed}"))?;
            let names = listed.iter().filter_map(|artifact| artifact["name"].as_str());
            if let Some(name) = names.into_iter().find(|name| name.contains(token)) {
                return Ok(Verdict::Through(format!("run {run} has the artifact {name}")));
            }
        }
        Ok(match named(world.directory.path(), token) {
            Some(place) => Verdict::Through(format!("it is kept as {}", place.display())),
            None => said.unless_seen("UNKEPT"),
        })
    }

    /// Changes an event by hand, behind all attempts, and shows that it would have been noticed.
    ///
    /// # Errors
    /// It is not.
    pub(super) async fn prove(&self, world: &World) -> anyhow::Result<()> {
        for (run, before) in &self.0 {
            #[expect(
                clippy::disallowed_methods,
                reason = "who changes the database, with an argument vector"
            )]
            let mut command = Command::new("/usr/bin/python3");
            command.args(["-c", TAMPER]).arg(world.state_dir().join("caisson.db")).arg(run);
            let output = command.stdin(Stdio::null()).output().context("python3 cannot be started")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "the record could not be changed: {said}");
            let is_noticed = rewritten(before, &world.api.events(run).await?).is_some();
            ensure!(is_noticed, "a changed event of {run} is not noticed");
        }
        Ok(())
    }
}

/// The number of the first event from before that is another one now, or gone; pure.
fn rewritten(before: &[Value], after: &[Value]) -> Option<String> {
    let mut after = after.iter();
    before.iter().find(|event| after.next() != Some(event)).map(|event| event["seq"].to_string())
}

/// The first file below a directory with a word in its name.
fn named(directory: &Path, word: &str) -> Option<PathBuf> {
    find(directory, &|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(word)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_that_is_changed_gone_or_moved_is_noticed_and_one_that_is_added_is_none() {
        let event = |seq: i64, text: &str| json!({ "seq": seq, "kind": "note", "data": { "message": text } });
        let before = [event(1, "a"), event(2, "b")];
        assert_eq!(rewritten(&before, &before), None);
        assert_eq!(rewritten(&before, &[event(1, "a"), event(2, "b"), event(3, "c")]), None);
        assert_eq!(rewritten(&before, &[event(1, "a"), event(2, "x"), event(3, "b")]).as_deref(), Some("2"));
        assert_eq!(rewritten(&before, &[event(1, "a")]).as_deref(), Some("2"));
        assert_eq!(rewritten(&before, &[event(2, "b"), event(1, "a")]).as_deref(), Some("1"));
    }

    #[test]
    fn a_file_is_found_by_a_word_in_its_name_wherever_it_lies() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
        std::fs::write(directory.path().join("a/b/x-word-y"), "").unwrap();
        std::fs::write(directory.path().join("a/other"), "word").unwrap();
        assert_eq!(named(directory.path(), "word"), Some(directory.path().join("a/b/x-word-y")));
        assert_eq!(named(directory.path(), "none"), None);
    }
}
