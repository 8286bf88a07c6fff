//! The attempts in a real sandbox, made by the real agent, while another sandbox of the same server lives.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::engine::{Engine, lives};
use testkit::parts::Parts;
use testkit::process::Somebody;
use testkit::repository;
use testkit::world::{World, WorldSpec};

use super::container::Container;
use super::surroundings::{Sibling, Surroundings, write_attempts};
use super::table::Attempt;
use super::verdict::Verdict;
use super::witness::{fill, token};

/// Time limit of a run with all attempts.
const WAIT: Duration = Duration::from_mins(8);
/// How long the sibling may take until it lives.
const SIBLING_WAIT: Duration = Duration::from_mins(2);
/// Name of the scenario.
const SCENARIO: &str = "adversary";
/// Name of the sibling's scenario.
const SIBLING: &str = "sibling";
/// The ordinary user that runs a server.
const ORDINARY: u32 = 65_433;

/// Whose server it is whose sandbox is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Server {
    /// Root's: each sandbox has a user of its own.
    Root,
    /// An ordinary user's: all sandboxes have the server's.
    Ordinary,
}

/// One server whose sandboxes are attacked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side {
    pub(crate) engine: Engine,
    pub(crate) server: Server,
}

impl Side {
    /// In reports, and in the words that witnesses hear.
    pub(crate) fn name(self) -> String {
        let server = if self.server == Server::Root { "root" } else { "ordinary" };
        format!("{}-{server}", self.engine.name())
    }
}

/// Whose a server is, with what it needs for that.
pub(super) struct Owner {
    /// The parts, where their owner can read them.
    pub(super) parts: Parts,
    pub(super) user: Option<Somebody>,
    _staged: Option<tempfile::TempDir>,
}

impl Side {
    /// Gets everything ready for who runs the server.
    ///
    /// # Errors
    /// The disk refuses, or the engine's socket cannot be looked at.
    pub(super) fn owner(self, parts: &Parts) -> anyhow::Result<Owner> {
        match self.server {
            Server::Root => Ok(Owner { parts: parts.clone(), user: None, _staged: None }),
            Server::Ordinary => {
                let (staged, parts) = stage(parts)?;
                let user = Some(ordinary(&parts, self.engine)?);
                Ok(Owner { parts, user, _staged: Some(staged) })
            }
        }
    }
}

/// What came of the attempts in a sandbox.
#[derive(Debug)]
pub(crate) struct Attacked {
    pub(crate) verdicts: HashMap<&'static str, Verdict>,
    /// What the sandbox was made from, where it was a container.
    pub(crate) container: Option<Container>,
}

/// Has the agent make every attempt, one tool call each, and judges them.
///
/// # Errors
/// A run does not come to its end, an attempt told nothing, or the sibling was ended by one.
pub(crate) async fn attack(
    parts: &Parts,
    side: Side,
    attempts: &[&Attempt],
    surroundings: &Surroundings,
) -> anyhow::Result<Attacked> {
    let name = side.name();
    let owner = side.owner(parts)?;
    let parts = &owner.parts;
    let sibling = Sibling::new(&name)?;
    // The attempts' arguments are known once the sibling lives: the agent finds them in a file of its repository.
    let scenarios = vec![scenario(attempts), sibling_scenario(&sibling)];
    let spec = WorldSpec {
        scenario: SCENARIO.to_owned(),
        scenarios,
        user: owner.user.clone(),
        ..WorldSpec::on(side.engine)
    };
    let world = World::start(parts, spec).await?;
    let project = tempfile::tempdir()?;
    write_attempts(project.path())?;
    let repositories = world.bare.parent().context("the repository has a directory")?.to_owned();
    repository::bare_from(&repositories, "sibling.git", project.path())?;
    world.api.submit(&body(&format!("[[scn:{SIBLING}]] Wait."), &world.host.url("sibling.git"))).await?;
    let living = living_sibling(&world).await?;
    check_users(side.server, world.server.id(), living.pid)?;
    let container = match side.engine {
        Engine::Docker => Some(Container::of(parts, &living.sandbox)?),
        Engine::Local => None,
    };
    let mut values = HashMap::from(sibling.values());
    values.extend(living.values(&world)?);

    fs::write(project.path().join("arguments.json"), arguments(attempts, &name, surroundings, &values))?;
    repository::bare_from(&repositories, "adversary.git", project.path())?;
    let id = world.api.submit(&body("Try everything.", &world.host.url("adversary.git"))).await?;
    let run = world.api.wait_end(&id, WAIT).await?;
    ensure!(
        run["status"] == "succeeded",
        "the run of the attempts did not succeed: {run:#}\n{}",
        world.server.log()
    );
    surroundings.check()?;
    ensure!(lives(living.pid), "the sibling was ended by an attempt");
    let told = results(&world.api.events(&id).await?);
    let verdicts =
        attempts.iter().map(|attempt| Ok((attempt.name, judge(attempt, &name, &told, surroundings)?)));
    Ok(Attacked { verdicts: verdicts.collect::<anyhow::Result<_>>()?, container })
}

/// Whether the server and the sibling belong to whom they should, seen from this machine.
fn check_users(server: Server, server_pid: u32, sibling_pid: u32) -> anyhow::Result<()> {
    let (servers, siblings) = (uid_of(server_pid)?, uid_of(sibling_pid)?);
    let right = match server {
        Server::Root => servers == 0 && siblings != 0,
        Server::Ordinary => servers == ORDINARY && siblings == ORDINARY,
    };
    ensure!(right, "the server has uid {servers} and its sandbox {siblings}, which is not {server:?}");
    Ok(())
}

fn uid_of(pid: u32) -> anyhow::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("no uid")?;
    Ok(line.split_whitespace().next().context("no uid")?.parse()?)
}

/// Everything that a server needs, where an ordinary user can read it.
fn stage(parts: &Parts) -> anyhow::Result<(tempfile::TempDir, Parts)> {
    let directory = tempfile::tempdir_in("/var/tmp")?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let place = |name: &str| directory.path().join(name);
    fs::copy(&parts.caisson, place("caisson"))?;
    fs::copy(&parts.shim, place("caisson-shim"))?;
    copy_all(&parts.agents_dir, &place("agents"))?;
    let staged = Parts {
        docker_host: parts.docker_host.clone(),
        agents_dir: place("agents"),
        caisson: place("caisson"),
        shim: place("caisson-shim"),
    };
    Ok((directory, staged))
}

fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// An ordinary user, in the group that may use the engine's socket where that is needed.
fn ordinary(parts: &Parts, engine: Engine) -> anyhow::Result<Somebody> {
    let group = match engine {
        Engine::Local => None,
        Engine::Docker => {
            let socket = parts.docker_host.trim_start_matches("unix://");
            Some(fs::metadata(socket).context("the engine's socket cannot be looked at")?.gid())
        }
    };
    Ok(Somebody { uid: ORDINARY, group })
}

fn body(prompt: &str, repository: &str) -> Value {
    json!({ "workflow": "bug-fixer", "prompt": prompt, "repository": repository, "max_turns": 1000 })
}

/// The sibling, once it lives.
pub(super) struct Living {
    pub(super) sandbox: String,
    pub(super) pid: u32,
    workspace: PathBuf,
}

impl Living {
    /// What is filled in for it and for its server.
    fn values(&self, world: &World) -> anyhow::Result<Vec<(&'static str, String)>> {
        let is_socket = |path: &Path| path.metadata().is_ok_and(|data| data.file_type().is_socket());
        let door = find(&world.state_dir().join("doors"), &is_socket).context("the sibling has no door")?;
        let api = world.server.base.rsplit(':').next().context("the API has a port")?.to_owned();
        let text = |path: &Path| path.display().to_string();
        Ok(vec![
            ("sibling_pid", self.pid.to_string()),
            ("sibling_file", text(&self.workspace.join("sibling-secret"))),
            ("sibling_door", text(&door)),
            ("server_pid", world.server.id().to_string()),
            ("state_dir", text(world.state_dir())),
            ("api_port", api),
        ])
    }
}

/// Waits until the sibling listens.
pub(super) async fn living_sibling(world: &World) -> anyhow::Result<Living> {
    let start = Instant::now();
    loop {
        let is_ready = |path: &Path| path.file_name().is_some_and(|name| name == "sibling-ready");
        if let Some(ready) = find(world.state_dir(), &is_ready) {
            let sandbox = world.sandboxes()?.pop().context("the sibling has no sandbox")?;
            let pid = world.processes(&sandbox)?.into_iter().find(|pid| is_sibling(*pid));
            let workspace = ready.parent().context("a file has a directory")?.to_owned();
            return Ok(Living { sandbox, pid: pid.context("the sibling has no process")?, workspace });
        }
        ensure!(start.elapsed() < SIBLING_WAIT, "the sibling did not come to life:\n{}", world.server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a process is the sibling itself, and not a shell that starts it.
fn is_sibling(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"sibling.py")
}

/// The first file below a directory that is wanted; links are not followed.
pub(super) fn find(directory: &Path, wanted: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.into_iter().find_map(|entry| {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory { find(&path, wanted) } else { wanted(&path).then_some(path) }
    })
}

fn judge(attempt: &Attempt, side: &str, told: &str, surroundings: &Surroundings) -> anyhow::Result<Verdict> {
    let verdict = Verdict::read(attempt.name, told)
        .with_context(|| format!("{} told nothing in the sandbox", attempt.name))?;
    Ok(verdict.witnessed(attempt, &surroundings.witness, &token(attempt.name, side)))
}

/// What the agent's tools answered, as its lines tell it.
pub(super) fn results(events: &[Value]) -> String {
    let lines =
        events.iter().filter(|event| event["kind"] == "agent.line" && event["data"]["type"] == "user");
    let blocks = lines.flat_map(|event| event["data"]["message"]["content"].as_array().into_iter().flatten());
    let texts = blocks.filter(|block| block["type"] == "tool_result").map(|block| {
        let content = &block["content"];
        let parts = content.as_array().into_iter().flatten();
        let parts: String = parts.filter_map(|part| part["text"].as_str()).collect();
        content.as_str().map_or(parts, str::to_owned)
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// The attempts' arguments, by their names.
fn arguments(
    attempts: &[&Attempt],
    side: &str,
    surroundings: &Surroundings,
    here: &HashMap<&'static str, String>,
) -> String {
    let all: serde_json::Map<String, Value> = attempts
        .iter()
        .map(|attempt| {
            let mut values = surroundings.values(attempt.name, side);
            values.extend(here.clone());
            let words: Vec<_> = attempt.arguments.iter().map(|word| fill(word, &values)).collect();
            (attempt.name.to_owned(), json!(words))
        })
        .collect();
    Value::Object(all).to_string()
}

fn scenario(attempts: &[&Attempt]) -> String {
    let mut steps: Vec<Value> = attempts
        .iter()
        .map(|attempt| bash(&format!("python3 attempt.py {} @arguments.json", attempt.name), 120_000))
        .collect();
    steps.push(json!({ "text": "Tried everything." }));
    json!({ SCENARIO: { "prompts": [steps, [{ "text": "chore: try everything" }]] } }).to_string()
}

pub(super) fn sibling_scenario(sibling: &Sibling) -> String {
    let command = format!("python3 sibling.py {}", sibling.arguments("/workspace").join(" "));
    let steps = json!([bash(&command, 600_000), { "text": "Waited." }]);
    json!({ SIBLING: { "prompts": [steps, [{ "text": "chore: wait" }]] } }).to_string()
}

pub(super) fn bash(command: &str, timeout_ms: u32) -> Value {
    let input = json!({ "command": command, "description": "Try", "timeout": timeout_ms });
    json!({ "tool": { "name": "Bash", "input": input } })
}

#[cfg(test)]
mod tests {
    use super::super::{door, resources, table};
    use super::*;

    /// Where the attempts' files are.
    fn files() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/adversary/attempts")
    }

    fn names() -> impl Iterator<Item = &'static str> {
        let at_the_door = door::table::ALL.iter().map(|attempt| attempt.name);
        let of_resources = resources::limited();
        table::all().map(|attempt| attempt.name).chain(at_the_door).chain(of_resources)
    }

    #[test]
    fn every_attempt_is_a_function_and_every_function_an_attempt() {
        let modules = [
            ("secrets", "secrets_of_others.py", 6),
            ("network", "network.py", 1),
            ("host", "host.py", 1),
            ("server", "server.py", 0),
            ("siblings", "siblings.py", 1),
            ("door", "door.py", 2),
            ("egress", "egress.py", 3),
            ("framing", "framing.py", 2),
            ("mcp", "mcp.py", 3),
            ("pushes", "pushes.py", 17),
            ("record", "record.py", 4),
            ("resources", "resources.py", 0),
        ];
        for (module, file, helpers) in modules {
            let text = std::fs::read_to_string(files().join(file)).unwrap();
            let functions: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("def ")?.split_once('(').map(|(name, _)| name))
                .collect();
            let begin = format!("{module}.");
            let tried: Vec<_> = names().filter_map(|name| name.strip_prefix(&begin)).collect();
            for name in &tried {
                assert!(functions.contains(name), "{module}.{name} is no function");
            }
            let spare: Vec<_> = functions.iter().filter(|name| !tried.contains(name)).collect();
            assert!(spare.len() <= helpers, "{module}: nobody tries {spare:?}");
        }
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), names().count());
    }

    #[test]
    fn the_answers_of_tools_are_found_in_both_forms() {
        let line = |content: Value| {
            json!({"kind": "agent.line", "data": {"type": "user", "message": {"content": [
                {"type": "tool_result", "content": content}]}}})
        };
        let events = [
            line(json!("attempt a refused x")),
            line(json!([{"type": "text", "text": "attempt b through"}])),
        ];
        assert_eq!(results(&events), "attempt a refused x\nattempt b through");
    }
}
