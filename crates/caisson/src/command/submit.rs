//! `caisson run`: submit a task and follow it.

use std::io::Read;
use std::path::Path;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use super::{
    DETACHED, DONE, artifacts, attached, client, columns, complain, exit_code, print, print_json, terminal,
    write_out,
};
use crate::checks;
use crate::cli::Run;
use crate::client::{Client, Followed, RunInfo};
use crate::screen::{Screen, Terminal};

/// Longest task read from standard input, in bytes; one more than the server takes, so that it can say so.
const STDIN_BYTES: u64 = caisson_domain::limits::PROMPT_BYTES as u64 + 1;

/// How often the line on a terminal tells the time.
const TICK: Duration = Duration::from_secs(1);

/// What the API calls the server's default repository; it refuses a run when there is none.
const SERVER_DEFAULT: &str = "default";

/// The workflow of a run that names neither one nor a session.
const WORKFLOW: &str = "bug-fixer";

/// Submits and follows.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn run(flags: Run) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let mut body = body(&flags)?;
    let (attachments, notes) = attached::read(&flags.attached.files)?;
    if !attachments.is_empty() {
        body["attachments"] = attachments.into();
    }
    for note in notes.iter().filter(|_| !flags.client.json) {
        complain(note);
    }
    if let Some(session) = &flags.in_session.session {
        body["session"] = client.find_session(Some(session)).await?.into();
    }
    // A key of our own makes the request safe to repeat; the server remembers it for a day.
    let key = flags.idempotency_key.clone().unwrap_or_else(|| hex::encode(rand::random::<[u8; 16]>()));
    let run = client.create_run(&body, &key).await?;
    if flags.detach {
        if flags.client.json {
            print_json(&run)?;
        } else {
            print(&run.id);
        }
        return Ok(DONE);
    }
    if !flags.client.json {
        complain(&format!("run {} (Ctrl-C detaches)", run.id));
    }
    follow(&client, &run.id, flags.client.json).await
}

/// Follows a run to its end, or until Ctrl-C, and says what can be done with it.
///
/// # Errors
/// The server refuses or stays away.
pub(crate) async fn follow(client: &Client, id: &str, json: bool) -> anyhow::Result<u8> {
    let Some(run) = watch(client, id, json).await? else {
        complain(&format!(
            "\ndetached; the run goes on. Come back with: caisson logs -f {id}\nEnd it with:    caisson cancel {id}"
        ));
        return Ok(DETACHED);
    };
    if !json {
        summarise(client, &run).await;
    }
    Ok(exit_code(&run.status))
}

/// Shows a run to its end; none if Ctrl-C came before, of which nothing is said here.
///
/// # Errors
/// The server refuses or stays away.
pub(crate) async fn watch(client: &Client, id: &str, json: bool) -> anyhow::Result<Option<RunInfo>> {
    let shown = Shown::new(json, terminal());
    let mut followed = pin!(client.follow(id, 0, |followed| shown.show(followed)));
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            ended = &mut followed => {
                shown.end();
                ended?;
                return client.run(id).await.map(Some);
            }
            interrupted = &mut interrupted => {
                shown.end();
                interrupted?;
                return Ok(None);
            }
            _ = ticks.tick() => shown.tick(),
        }
    }
}

/// A run that is followed, as it goes to standard output.
pub(super) struct Shown {
    /// None: as JSON, one event a line.
    screen: Option<Mutex<Screen>>,
}

impl Shown {
    pub(super) fn new(json: bool, terminal: Terminal) -> Self {
        Self { screen: (!json).then(|| Mutex::new(Screen::new(terminal))) }
    }

    pub(super) fn show(&self, followed: &Followed) {
        match (&self.screen, followed) {
            (Some(_), _) => self.write(|screen, now, columns| screen.show(followed, now, columns)),
            (None, Followed::Event(event)) => {
                print_json(event).ok();
            }
            (None, Followed::Delta(_)) => {}
        }
    }

    fn tick(&self) {
        self.write(Screen::tick);
    }

    pub(super) fn end(&self) {
        self.write(|screen, _, _| screen.end());
    }

    fn write(&self, draw: impl FnOnce(&mut Screen, Instant, usize) -> String) {
        if let Some(screen) = &self.screen {
            let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
            write_out(&draw(&mut screen, Instant::now(), columns()));
        }
    }
}

pub(super) async fn summarise(client: &Client, run: &RunInfo) {
    if let (Some(branch), Some(commit)) = (run.text("branch"), run.text("pushed_commit")) {
        complain(&format!("branch {branch} is at {commit}; see the change with: caisson diff {}", run.id));
    }
    if let Some(told) = checks::not_run(run) {
        complain(&format!("check {told}"));
    }
    // The run has been told of: an answer that does not come changes nothing about it.
    let kept = client.artifacts(&run.id).await.unwrap_or_default();
    if let Some(told) = artifacts::told(run, &kept) {
        complain(&told);
    }
}

fn body(flags: &Run) -> anyhow::Result<Value> {
    let mut body = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    let goes_on = flags.in_session.session.is_some();
    let workflow = flags.workflow.as_deref().or((!goes_on).then_some(WORKFLOW));
    set("workflow", workflow.map(|name| json!(name)));
    set("prompt", Some(json!(prompt(&flags.prompt)?)));
    if !goes_on {
        // Who names none means the server's default: an agent at work on nothing would only cost money.
        let repository = flags.repo.as_deref().map_or(Ok(SERVER_DEFAULT.to_owned()), repository)?;
        set("repository", Some(if flags.no_repo { Value::Null } else { Value::String(repository) }));
    }
    set("base", flags.base.as_ref().map(|text| json!(text)));
    set("anchor", flags.anchor.as_ref().map(|text| json!(text)));
    set("branch", flags.branch.as_ref().map(|text| json!(text)));
    set("model", flags.model.as_ref().map(|text| json!(text)));
    set("image", flags.image.as_ref().map(|text| json!(text)));
    set("max_turns", flags.max_turns.map(|number| json!(number)));
    set("timeout_s", flags.timeout.map(|number| json!(number)));
    set("budget_micro_usd", flags.budget.map(|micro| json!(micro)));
    set("budget_soft_percent", flags.budget_soft.map(|percent| json!(percent)));
    set("priority", flags.start.priority.map(|priority| json!(priority)));
    set("start_at_ms", flags.start.start_at.map(|start_ms| json!(start_ms)));
    set("delay_s", flags.start.delay.map(|delay_s| json!(delay_s)));
    if !flags.environment.is_empty() {
        set("environment", Some(flags.environment.iter().cloned().collect()));
    }
    if !flags.of_workflow.parameters.is_empty() {
        let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        let named = flags.of_workflow.parameters.iter().map(|(name, text)| (name.clone(), value(text)));
        set("parameters", Some(named.collect()));
    }
    if let Some(file) = &flags.of_workflow.output_schema {
        let text = std::fs::read(file).with_context(|| format!("\"{}\" cannot be read", file.display()))?;
        let schema = serde_json::from_slice(&text);
        set("output_schema", Some(schema.with_context(|| format!("\"{}\" is not JSON", file.display()))?));
    }
    Ok(Value::Object(body))
}

fn prompt(text: &str) -> anyhow::Result<String> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut read = String::new();
    std::io::stdin()
        .lock()
        .take(STDIN_BYTES)
        .read_to_string(&mut read)
        .context("the task on standard input cannot be read as UTF-8")?;
    Ok(read)
}

/// A URL as it is; a directory as the absolute path that the server wants.
fn repository(text: &str) -> anyhow::Result<String> {
    if text.contains("://") || text.contains('@') {
        return Ok(text.to_owned());
    }
    let path = Path::new(text).canonicalize().with_context(|| format!("there is no directory \"{text}\""))?;
    ensure!(path.is_dir(), "\"{text}\" is not a directory");
    path.into_os_string().into_string().ok().with_context(|| format!("the path of \"{text}\" is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(arguments: &[&str]) -> Value {
        let cli = Cli::try_parse_from(["caisson", "run"].iter().chain(arguments)).unwrap();
        let Command::Run(flags) = cli.command else { panic!("not run") };
        body(&flags).unwrap()
    }

    #[test]
    fn only_what_was_typed_is_sent() {
        assert_eq!(
            parsed(&["fix it"]),
            json!({"workflow": "bug-fixer", "prompt": "fix it", "repository": "default"})
        );
        let body = parsed(&["x", "--no-repo", "--env", "A=b=c", "--timeout", "60"]);
        assert_eq!(body["repository"], Value::Null);
        assert!(body.as_object().unwrap().contains_key("repository"));
        assert_eq!(body["environment"], json!({"A": "b=c"}));
        assert_eq!(body["timeout_s"], 60);
        assert_eq!(parsed(&["x", "--session", "ab12"]), json!({"prompt": "x"}), "the rest is the session's");
        let body = parsed(&["x", "--priority", "-3", "--delay", "2h"]);
        assert_eq!((&body["priority"], &body["delay_s"]), (&json!(-3), &json!(7_200)));
        assert_eq!(
            parsed(&["x", "--start-at", "2030-01-31T22:00:00Z"])["start_at_ms"],
            1_896_127_200_000_i64
        );
    }

    #[test]
    fn a_directory_becomes_an_absolute_path_and_a_url_stays() {
        let directory = tempfile::tempdir().unwrap();
        let resolved = repository(directory.path().to_str().unwrap()).unwrap();
        assert!(Path::new(&resolved).is_absolute());
        assert_eq!(repository("https://git.example.com/x").unwrap(), "https://git.example.com/x");
        assert!(repository("/no/such/place").unwrap_err().to_string().contains("no directory"));
    }
}
