//! A server, a git host and listeners for attempts at the door, and who looks at what came of them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use caisson_domain::checks::Check;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::engine::variable;
use testkit::parts::Parts;
use testkit::repository::{self, run_git};
use testkit::world::{World, WorldSpec};

use super::super::surroundings::{Sibling, Surroundings, write_attempts};
use super::super::traces::{CLAIMED_USD, TOO_MUCH_MICRO_USD};
use super::super::verdict::Verdict;
use super::super::witness::{fill, token};
use super::super::world::{Owner, Side, bash, find, living_sibling, sibling_scenario};
use super::held::Held;
use super::ledger;
use super::record::Record;
use super::table::{Attempt, BRANCH, Becomes, SPARE, Sees};

/// How long a run may take until its agent waits for the attempts' arguments.
const READY: Duration = Duration::from_mins(2);
/// How long all attempts of a run may take, and its end behind them.
const WAIT: Duration = Duration::from_mins(6);
/// How long a word may take into another run's record.
const SEEN: Duration = Duration::from_secs(2);
/// The workflow of the run.
const OWN_WORKFLOW: &str = "door";
/// Name of the scenario.
const SCENARIO: &str = "door";
/// A model call beside the conversation.
pub(super) const STRAY: &str = r#"{"stray": {"prompts": [[{"text": "Hello."}]]}}"#;

/// Where attempts at the door are made.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) parts: &'a Parts,
    pub(super) side: Side,
    /// The checks that the server leaves out; its build must be one that can.
    pub(super) off: Vec<Check>,
    pub(super) surroundings: &'a Surroundings,
}

/// A world with its run.
struct Scene {
    world: World,
    run: String,
    /// What it and its sibling had told before the attempts.
    record: Record,
    /// What is filled in for this scene.
    values: HashMap<&'static str, String>,
    /// Where the agent's verdicts are.
    workspace: PathBuf,
    /// The refs that nobody may have changed.
    refs: Vec<String>,
    /// The audit log as it was before the attempts.
    audit: Vec<String>,
    /// Kept as long as its server may read it.
    _workflows: TempDir,
}

impl Stage<'_> {
    /// Has an agent make the attempts, one tool call each, in one run.
    ///
    /// # Errors
    /// The run does not come so far, an attempt told nothing, or something was changed by what was refused.
    pub(super) async fn make<'a>(
        &self,
        attempts: &[&'a Attempt],
    ) -> anyhow::Result<Vec<(&'a Attempt, Verdict)>> {
        let owner = self.side.owner(self.parts)?;
        let _held = attempts.iter().any(|attempt| attempt.needs_held()).then(Held::take).transpose()?;
        let scene = self.open(&owner, attempts).await?;
        for becomes in attempts.iter().filter_map(|attempt| attempt.branch_becomes()) {
            scene.branch_becomes(becomes).await?;
        }
        let label = self.label();
        let arguments = arguments(attempts, &label, &scene.values);
        let place = scene.workspace.join(".git/arguments.json");
        fs::write(&place, arguments)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o644))?;
        let told = scene.told(attempts).await?;
        let mut verdicts = Vec::new();
        for attempt in attempts {
            let said = Verdict::read(attempt.name, &told)
                .with_context(|| format!("{} told nothing at the door: {told}", attempt.name))?;
            let token = token(attempt.name, &label);
            verdicts.push((*attempt, self.seen(attempt, said, &token, &scene).await?));
        }
        let in_order = attempts.iter().all(|attempt| !attempt.sees.is_alone());
        if self.off.is_empty() && in_order {
            scene.is_unchanged().await?;
        }
        if self.off.is_empty() && attempts.iter().any(|attempt| attempt.sees == Sees::Records) {
            scene.record.prove(&scene.world).await?;
        }
        Ok(verdicts)
    }

    /// What witnesses say, and where there is none, the attempt.
    async fn seen(
        &self,
        attempt: &Attempt,
        said: Verdict,
        token: &str,
        scene: &Scene,
    ) -> anyhow::Result<Verdict> {
        let (world, record) = (&scene.world, &scene.record);
        let verdict = match attempt.sees {
            Sees::Told => said,
            Sees::Heard => said.heard(&self.surroundings.witness, token),
            Sees::Removes(branch) => scene.removed(branch, said)?,
            Sees::Records => {
                tokio::time::sleep(SEEN).await;
                record.told(world, token, said).await?
            }
            Sees::Artifacts => record.kept(world, token, said).await?,
            Sees::Usage => {
                tokio::time::sleep(SEEN).await;
                let run = world.api.get(&format!("/v1/runs/{}", scene.run)).await?.body;
                let cost = run["usage"]["cost_micro_usd"].as_i64().context("the run has no cost")?;
                if cost >= TOO_MUCH_MICRO_USD {
                    Verdict::Through(format!("{cost} micro-USD are in the run's usage"))
                } else {
                    Verdict::Refused { error: "UNCOUNTED".to_owned(), said: said.to_string() }
                }
            }
            Sees::Audit => {
                tokio::time::sleep(SEEN).await;
                let denied = ["denied", "behind"];
                ledger::seen(
                    world,
                    &scene.audit,
                    (token, denied.map(|name| scene.values[name].as_str())),
                    &said,
                )?
            }
            Sees::Outcome => {
                let run = world.api.wait_end(&scene.run, WAIT).await?;
                if run["status"] == "succeeded" {
                    Verdict::Through("the run is said to have succeeded".to_owned())
                } else {
                    let error = run["failure"]["kind"].as_str().unwrap_or("none").to_owned();
                    Verdict::Refused { error, said: run["failure"]["message"].to_string() }
                }
            }
        };
        if !attempt.is_of_record() {
            return Ok(verdict);
        }
        Ok(record.changed(world).await?.map_or(verdict, Verdict::Through))
    }

    fn label(&self) -> String {
        let off: Vec<_> = self.off.iter().map(|check| check.name()).collect();
        format!("{}-{}", self.side.name(), off.join("-")).replace('_', "")
    }

    async fn open(&self, owner: &Owner, attempts: &[&Attempt]) -> anyhow::Result<Scene> {
        let sibling = Sibling::new(&self.label())?;
        let workflows = workflows(self.surroundings.witness.port)?;
        let mut variables = self.variables();
        variables.push(("WORKFLOWS_DIR".to_owned(), workflows.path().display().to_string()));
        let spec = WorldSpec {
            scenario: SCENARIO.to_owned(),
            scenarios: vec![scenario(attempts), sibling_scenario(&sibling), STRAY.to_owned()],
            variables,
            user: owner.user.clone(),
            resolver: attempts
                .iter()
                .any(|attempt| attempt.needs_names())
                .then(|| self.surroundings.names.resolver.clone()),
            ..WorldSpec::on(self.side.engine)
        };
        let world = World::start(&owner.parts, spec).await?;
        let bare = repositories(&world)?;
        if attempts.iter().any(|attempt| attempt.makes_branch()) {
            run_git(&bare, &["update-ref", "-d", &format!("refs/heads/{BRANCH}")])?;
        }
        let mut values = self.values(&world);
        let mut other = None;
        if attempts.iter().any(|attempt| attempt.needs_sibling()) {
            let body = json!({ "workflow": "bug-fixer", "prompt": "[[scn:sibling]] Wait.", "max_turns": 1000,
                "repository": world.host.url("sibling.git") });
            let run = world.api.submit(&body).await?;
            let living = living_sibling(&world).await?;
            let pid = living.pid;
            values.insert("sibling_run", run.clone());
            values.insert("sibling_grant", variable(pid, "ANTHROPIC_AUTH_TOKEN")?);
            other = Some((run, living.sandbox));
        }
        let body = json!({ "workflow": OWN_WORKFLOW, "prompt": "Try everything.", "max_turns": 1000,
            "repository": world.host.url("door.git"), "branch": BRANCH });
        let run = world.api.submit(&body).await?;
        let workspace = ready(&world).await?;
        let refs = refs(&bare)?;
        let sandboxes = world.sandboxes()?;
        let own = sandboxes.iter().find(|name| other.as_ref().is_none_or(|(_, sandbox)| sandbox != *name));
        let first = world.processes(own.context("the run has no sandbox")?)?;
        let first = first.first().context("the sandbox has no process")?;
        values.insert("own_control_grant", variable(*first, "CAISSON_CONTROL_GRANT")?);
        values.insert("own_run", run.clone());
        let audit = ledger::export(&world)?;
        let runs = other.into_iter().map(|(run, _)| run).chain([run.clone()]).collect();
        let record = Record::of(&world, runs).await?;
        Ok(Scene { world, run, record, audit, values, workspace, refs, _workflows: workflows })
    }

    /// A name that this stage alone looks up, with its port.
    fn name(&self, first: &str, port: u16) -> String {
        format!("{first}.{}.example:{port}", self.label().trim_end_matches('-'))
    }

    /// Settings of the server: what is allowed, and which names lead where.
    fn variables(&self) -> Vec<(String, String)> {
        let (port, port6) = (self.surroundings.witness.port, self.surroundings.witness.port6);
        let allow = [
            format!("http://web.example:{port}/ok#GET"),
            format!("tunnel.example:{port}"),
            format!("inside.example:{port}"),
            format!("http://inside.example:{port}/"),
            format!("six.example:{port6}"),
            format!("mapped.example:{port}"),
            format!("http://metadata.example:{port}/"),
            format!("metadata6.example:{port6}"),
            format!("http://framed.example:{}/ok#POST", self.surroundings.framed),
            self.name("moves.one", self.surroundings.names.port),
            self.name("moves.two", self.surroundings.names.port),
            self.name("both", self.surroundings.names.private_port),
        ];
        let hosts = [
            "web.example=127.0.0.1",
            "tunnel.example=127.0.0.1",
            "other.example=127.0.0.1",
            "inside.example=127.0.0.2",
            "framed.example=127.0.0.1",
            "six.example=::1",
            "mapped.example=::ffff:127.0.0.2",
            "metadata.example=169.254.169.254",
            "metadata6.example=fd00:ec2::254",
        ];
        let mut variables = vec![
            ("EGRESS__ALLOW", allow.join(" ")),
            ("EGRESS__HOSTS", hosts.join(" ")),
            ("EGRESS__ALLOW_PRIVATE", "127.0.0.1/32".to_owned()),
            ("MCP__ALLOW", format!("tunnel.example:{port} inside.example:{port}")),
            ("MCP__ALLOW_PRIVATE", "127.0.0.1/32".to_owned()),
            ("GIT__MAX_FILE_MIB", "1".to_owned()),
        ];
        if !self.off.contains(&Check::PushBounds) {
            // Comparing paths opens every directory, which is a bound of its own.
            variables.push(("GIT__FORBIDDEN_PATHS", ".github/**".to_owned()));
        }
        if !self.off.is_empty() {
            let off: Vec<_> = self.off.iter().map(|check| check.name()).collect();
            variables.push(("CHECKS_OFF", off.join(",")));
        }
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn values(&self, world: &World) -> HashMap<&'static str, String> {
        let (port, port6) = (self.surroundings.witness.port, self.surroundings.witness.port6);
        HashMap::from([
            ("web", format!("web.example:{port}")),
            ("tunnel", format!("tunnel.example:{port}")),
            ("denied", format!("other.example:{port}")),
            // Of a kind that no other attempt asks for, so that its denial is told by name behind however many others.
            ("behind", format!("192.88.99.7:{port}")),
            ("private", format!("inside.example:{port}")),
            ("private6", format!("six.example:{port6}")),
            ("framed", format!("framed.example:{}", self.surroundings.framed)),
            ("moving", self.name("moves.one", self.surroundings.names.port)),
            ("moved", self.name("moves.two", self.surroundings.names.port)),
            ("both", self.name("both", self.surroundings.names.private_port)),
            ("zone", self.name("zone", self.surroundings.names.port)),
            ("mapped", format!("mapped.example:{port}")),
            ("metadata", format!("169.254.169.254:{port}")),
            ("metadata6", format!("[fd00:ec2::254]:{port6}")),
            ("metadata_name", format!("metadata.example:{port}")),
            ("metadata6_name", format!("metadata6.example:{port6}")),
            ("own_branch", BRANCH.to_owned()),
            ("spare", SPARE.to_owned()),
            ("claimed_usd", CLAIMED_USD.to_string()),
            ("host_service", format!("127.0.0.2:{port}")),
            ("other_repository", world.host.url("sibling.git")),
        ])
    }
}

impl Scene {
    /// Makes the run's branch one whose files steer agents: when the run was made it was none.
    async fn branch_becomes(&self, becomes: Becomes) -> anyhow::Result<()> {
        match becomes {
            Becomes::Default | Becomes::MadeDefault => {
                run_git(&self.bare()?, &["symbolic-ref", "HEAD", &format!("refs/heads/{BRANCH}")]).map(drop)
            }
            Becomes::Trusted => {
                let block = format!("{{trust: {{branches: [{BRANCH}]}}}}");
                let text =
                    format!("---\nname: trusting\ndescription: Trusts it\ncaisson: {block}\n---\nLook.\n");
                let put = self
                    .world
                    .api_with("workflows")?
                    .put("/v1/workflows/trusting", &json!({ "text": text }))
                    .await?;
                ensure!(put.status == 201, "the workflow was not put: {}", put.body);
                Ok(())
            }
        }
    }

    /// The run's repository.
    fn bare(&self) -> anyhow::Result<PathBuf> {
        Ok(self.world.bare.parent().context("the repository has a directory")?.join("door.git"))
    }

    /// What came of an attempt to remove a branch, which the attempt takes for through when it is answered so.
    fn removed(&self, branch: &str, said: Verdict) -> anyhow::Result<Verdict> {
        Ok(without(&refs(&self.bare()?)?, branch, said))
    }

    /// Waits until every attempt has told.
    async fn told(&self, attempts: &[&Attempt]) -> anyhow::Result<String> {
        let (start, file) = (Instant::now(), self.workspace.join(".git/verdicts"));
        loop {
            let told = fs::read_to_string(&file).unwrap_or_default();
            if attempts.iter().all(|attempt| Verdict::read(attempt.name, &told).is_some()) {
                return Ok(told);
            }
            ensure!(
                start.elapsed() < WAIT,
                "not every attempt at the door told: {told}\n{}",
                self.world.server.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The run succeeds, nothing else has happened to the repository, and what was told before still is.
    async fn is_unchanged(&self) -> anyhow::Result<()> {
        let run = self.world.api.wait_end(&self.run, WAIT).await?;
        ensure!(
            run["status"] == "succeeded",
            "the run did not succeed: {run:#}\n{}",
            self.world.server.log()
        );
        let (before, after) = (&self.refs, refs(&self.bare()?)?);
        ensure!(*before == after, "refs were changed: {before:?} to {after:?}");
        let changed = self.record.changed(&self.world).await?;
        ensure!(changed.is_none(), "the record was changed: {}", changed.unwrap_or_default());
        Ok(())
    }
}

/// Workflows with MCP servers: the run's own, and one that has a server of its own.
fn workflows(port: u16) -> anyhow::Result<TempDir> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let server =
        |host: &str, path: &str| json!({ "type": "http", "url": format!("http://{host}:{port}/{path}") });
    let own = json!({ "notes": server("tunnel.example", "notes"), "denied": server("other.example", "denied"),
        "private": server("inside.example", "private") });
    for (name, servers) in
        [(OWN_WORKFLOW, own), ("elsewhere", json!({ "secret": server("tunnel.example", "secret") }))]
    {
        let text = format!(
            "---\nname: {name}\ndescription: Tries everything\npermissionMode: bypassPermissions\ndisallowedTools: [mcp__notes__delete]\nmcpServers: {servers}\n---\nTry.\n"
        );
        let file = directory.path().join(format!("{name}.md"));
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    }
    Ok(directory)
}

/// The repositories of the run and of its sibling, with branches that others have made.
fn repositories(world: &World) -> anyhow::Result<PathBuf> {
    let project = tempfile::tempdir()?;
    write_attempts(project.path())?;
    let repositories = world.bare.parent().context("the repository has a directory")?;
    repository::bare_from(repositories, "sibling.git", project.path())?;
    let bare = repository::bare_from(repositories, "door.git", project.path())?;
    run_git(&bare, &["branch", SPARE, "main"])?;
    let commit = run_git(&bare, &["commit-tree", "main^{tree}", "-p", "main", "-m", "feat: work of others"])?;
    run_git(&bare, &["update-ref", &format!("refs/heads/{BRANCH}"), &commit])?;
    let file = project.path().join("stranger");
    let workflow = (".github/workflows/stranger.yml", "on: push\n");
    ask_for_change(&bare, (&file, &commit), workflow, "refs/pull/1/head")?;
    let submodule = "[submodule \"x\"]\n\tpath = x\n\turl = https://elsewhere.example/x.git\n";
    ask_for_change(&bare, (&file, &commit), (".gitmodules", submodule), "refs/pull/2/head")?;
    Ok(bare)
}

/// A stranger's change request on top of the branch, which adds a file: what git hosts run with their secrets, or a submodule.
fn ask_for_change(
    bare: &Path,
    (file, branch): (&Path, &str),
    (path, text): (&str, &str),
    name: &str,
) -> anyhow::Result<()> {
    fs::write(file, text)?;
    let file = file.to_str().context("the file has a name")?;
    let blob = run_git(bare, &["hash-object", "-w", file])?;
    run_git(bare, &["read-tree", branch])?;
    let entry = format!("100644,{blob},{path}");
    run_git(bare, &["update-index", "--add", "--cacheinfo", &entry])?;
    let tree = run_git(bare, &["write-tree"])?;
    fs::remove_file(bare.join("index"))?;
    let commit = run_git(bare, &["commit-tree", &tree, "-p", branch, "-m", "feat: work of a stranger"])?;
    run_git(bare, &["update-ref", name, &commit]).map(drop)
}

fn refs(bare: &Path) -> anyhow::Result<Vec<String>> {
    let text = run_git(bare, &["for-each-ref", "--format=%(refname) %(objectname)"])?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What came of an attempt to remove a branch of a repository with these refs; pure.
fn without(refs: &[String], branch: &str, said: Verdict) -> Verdict {
    let begin = format!("refs/heads/{branch} ");
    if refs.iter().any(|line| line.starts_with(&begin)) {
        return said.unless_seen("STANDS");
    }
    Verdict::Through(format!("{branch} is gone from the git host"))
}

/// The workspace of the run whose agent waits for its arguments.
async fn ready(world: &World) -> anyhow::Result<PathBuf> {
    let start = Instant::now();
    loop {
        let is_ready = |path: &Path| path.file_name().is_some_and(|name| name == "door-ready");
        if let Some(found) = find(&world.state_dir().join("sessions"), &is_ready) {
            let git = found.parent().context("a file has a directory")?;
            return Ok(git.parent().context("a repository has a directory")?.to_owned());
        }
        ensure!(start.elapsed() < READY, "the agent did not come to its attempts:\n{}", world.server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The agent waits for the arguments, which are known once it lives, and then tries one after another.
fn scenario(attempts: &[&Attempt]) -> String {
    let wait = "touch .git/door-ready; until test -s .git/arguments.json; do sleep 0.05; done";
    let mut steps = Vec::new();
    if attempts.iter().any(|attempt| attempt.makes_branch()) {
        let commit =
            "git -c user.name=A -c user.email=a@example.com commit -q --allow-empty -m 'feat: begin'";
        steps.push(bash(&format!("{commit} && git push -q origin HEAD:refs/heads/{BRANCH}"), 120_000));
    }
    steps.push(bash(wait, 120_000));
    steps.extend(attempts.iter().map(|attempt| {
        bash(
            &format!("python3 -B attempt.py {} @.git/arguments.json | tee -a .git/verdicts", attempt.name),
            180_000,
        )
    }));
    steps.push(json!({ "text": "Tried everything." }));
    json!({ SCENARIO: { "prompts": [steps, [{ "text": "chore: try everything" }]] } }).to_string()
}

/// The attempts' arguments, by their names.
fn arguments(attempts: &[&Attempt], label: &str, here: &HashMap<&'static str, String>) -> String {
    let all = attempts.iter().map(|attempt| {
        let mut values = here.clone();
        values.insert("token", token(attempt.name, label));
        let words: Vec<_> = attempt.arguments.iter().map(|word| fill(word, &values)).collect();
        (attempt.name.to_owned(), json!(words))
    });
    Value::Object(all.collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_removed_when_the_git_host_no_longer_has_it_whatever_the_attempt_says() {
        let refused = Verdict::Refused { error: "no_delete".to_owned(), said: String::new() };
        let through = Verdict::Through("the push was taken".to_owned());
        let refs = ["refs/heads/spare2 1".to_owned(), "refs/heads/team/work 2".to_owned()];
        for said in [&refused, &through] {
            assert!(without(&refs, SPARE, said.clone()).is_through());
        }
        assert_eq!(without(&refs, BRANCH, refused.clone()), refused);
        let stands = without(&refs, BRANCH, through);
        assert!(matches!(&stands, Verdict::Refused { error, .. } if error == "STANDS"), "{stands:?}");
    }
}
