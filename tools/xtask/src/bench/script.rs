//! The other half of each pair: the same job by a shell script, in a container with the service's own profile.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use caisson_claude::{
    EnvironmentSpec, Launch, PermissionMode, SessionMode, SettingSource, Uuid, environment,
    settings_of_no_repository, user_prompt,
};
use caisson_domain::protocol::places;
use caisson_domain::run::Resources;
use caisson_domain::workflow::Workflow;
use caisson_sandbox::docker::seccomp_profile;
use testkit::parts::Parts;
use testkit::repository;

use super::clock::wall_us;
use super::timeline::{Moment, Timeline};
use super::{docker, stage};

/// The script.
const SCRIPT: &str = include_str!("baseline.sh");
/// Where the script, its prompts and the model's socket are seen in the container.
const GROUND: &str = "/bench";
/// Where the repository is seen in the container.
const REPOSITORY: &str = "/repository";
/// What the script's agent, and the bare one, show the model.
pub(super) const TOKEN: &str = "bench-key-of-the-script";
/// File name of the model's socket.
pub(super) const SOCKET: &str = "model.sock";
/// File name of the containers' filter of system calls.
const CALLS: &str = "calls.json";
/// The name in the model's URL; the socket leads there, whatever it is.
const MODEL_URL: &str = "http://model.local";
/// User and group of the script's container where the bench runs as root; it may not be root's.
const UID: u32 = 65_433;
/// The question for the commit message, as a script's author would put it.
const QUESTION: &str = "Write the commit message for the staged changes. Follow Conventional Commits 1.0.0: a first line \
    `type(optional scope): description` of at most 100 characters, then, only if it helps, an empty line and a short \
    body. Do not use any tool. Answer with the commit message alone.";

/// Where the script works: directories, a repository and a container profile of its own.
#[derive(Debug)]
pub(crate) struct Script {
    parts: Parts,
    /// The bench's id, on every container.
    id: String,
    image: String,
    agent_dir: PathBuf,
    root: PathBuf,
    /// The directory that the containers see at [`GROUND`]; the model's socket belongs into it.
    ground: PathBuf,
    repository: PathBuf,
    /// Those of the first jobs, where each has its own.
    apart: Vec<PathBuf>,
    workflow: Workflow,
    token: String,
    limit: Duration,
    /// Who owns what the containers may write to, and who the bench is.
    owner: u32,
    own: u32,
}

/// What the script needs to be told.
#[derive(Debug, Clone)]
pub(crate) struct ScriptSpec {
    /// The bench's id.
    pub(crate) id: String,
    /// The sandbox image.
    pub(crate) image: String,
    /// Version of the agent.
    pub(crate) agent_version: String,
    /// The workflow that the service follows.
    pub(crate) workflow: Workflow,
    /// What the agent shows the model.
    pub(crate) token: String,
    /// The task.
    pub(crate) prompt: String,
    /// Time limit of one job.
    pub(crate) limit: Duration,
    /// How many of the first jobs have a repository of their own.
    pub(crate) apart: u32,
}

/// One job of the script.
#[derive(Debug, Clone)]
pub(crate) struct ScriptJob {
    /// When each step was done; the first model request is added by whoever has the model's record.
    pub(crate) timeline: Timeline,
    /// The branch that it pushed.
    pub(crate) branch: String,
}

impl Script {
    /// Makes the directories below `root` and a bare repository from `project`.
    ///
    /// # Errors
    /// The disk or git refuses, or the workflow cannot be made a command line.
    pub(crate) fn make(parts: &Parts, root: &Path, project: &Path, spec: ScriptSpec) -> anyhow::Result<Self> {
        let ground = root.join("ground");
        fs::create_dir_all(&ground)?;
        let own = fs::metadata(&ground)?.uid();
        let repository = repository::bare_from(root, "cart.git", project)?;
        let script = Self {
            parts: parts.clone(),
            id: spec.id,
            image: spec.image,
            agent_dir: parts.agents_dir.join("claude-code").join(&spec.agent_version),
            root: root.to_owned(),
            ground,
            repository,
            apart: stage::repositories(root, project, spec.apart)?,
            workflow: spec.workflow,
            token: spec.token,
            limit: spec.limit,
            owner: if own == 0 { UID } else { own },
            own,
        };
        fs::write(script.ground.join("baseline.sh"), SCRIPT)?;
        fs::write(script.ground.join(CALLS), seccomp_profile())?;
        fs::write(script.ground.join("task.jsonl"), user_prompt(&random_uuid()?, &spec.prompt)?)?;
        fs::write(script.ground.join("question.jsonl"), user_prompt(&random_uuid()?, QUESTION)?)?;
        for repository in script.apart.iter().chain([&script.repository]) {
            give(repository, script.owner)?;
        }
        Ok(script)
    }

    /// Where the model's socket belongs.
    #[must_use]
    pub(crate) fn socket(&self) -> PathBuf {
        self.ground.join(SOCKET)
    }

    /// Name of a job's container.
    #[must_use]
    pub(crate) fn container(&self, number: u32) -> String {
        format!("{}-{number}", self.id)
    }

    /// Does the job once: from the docker client's start to its end. The container is left for [`Script::remove`].
    ///
    /// # Errors
    /// The script fails, or takes too long.
    pub(crate) async fn job(&self, number: u32) -> anyhow::Result<ScriptJob> {
        let branch = format!("script/{number}");
        let arguments = self.job_arguments(number, &branch)?;
        let mut timeline = Timeline::default();
        timeline.note(Moment::Asked, wall_us());
        let output = docker::call(&self.parts, &arguments, self.limit).await?;
        timeline.note(Moment::Known, wall_us());
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the script failed ({}): {}", output.status, said.trim());
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            timeline.note_mark(line);
        }
        Ok(ScriptJob { timeline, branch })
    }

    /// Removes a job's container; not part of its time.
    ///
    /// # Errors
    /// The engine refuses.
    pub(crate) async fn remove(&self, number: u32) -> anyhow::Result<()> {
        docker::ask(&self.parts, &["rm", "--force", "--volumes", &self.container(number)]).await.map(drop)
    }

    /// How long the docker client takes from its start until a container with the same profile runs, in milliseconds.
    ///
    /// # Errors
    /// The engine refuses.
    pub(crate) async fn bare_start_ms(&self, number: u32) -> anyhow::Result<f64> {
        let directory = self.directories(number)?;
        let name = format!("{}-start-{number}", self.id);
        let mut arguments = vec!["run".to_owned(), "--detach".to_owned()];
        arguments.extend(self.profile(&name));
        arguments.extend(mounts(&self.places(number, &directory)));
        arguments.extend([self.image.clone(), "/bin/true".to_owned()]);
        let asked_us = wall_us();
        let output = docker::call(&self.parts, &arguments, docker::CALL).await?;
        let start_ms = super::clock::ms_between(asked_us, wall_us());
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "a bare container did not start: {}", said.trim());
        docker::ask(&self.parts, &["rm", "--force", "--volumes", &name]).await?;
        Ok(start_ms)
    }

    /// Looks at what a job pushed, trusting nothing that it said.
    ///
    /// # Errors
    /// It is not one commit with the expected message on which the project's tests pass.
    pub(crate) fn check(&self, number: u32, branch: &str) -> anyhow::Result<()> {
        let repository = self.repository(number);
        // Git reads no repository that belongs to somebody else.
        give(repository, self.own)?;
        let checked = check_branch(repository, branch);
        give(repository, self.owner)?;
        checked
    }

    fn repository(&self, number: u32) -> &Path {
        let own = number.checked_sub(1).and_then(|index| self.apart.get(index as usize));
        own.unwrap_or(&self.repository)
    }

    /// The agent's command line, which is the service's but for the conversation's id.
    ///
    /// # Errors
    /// The workflow holds what the agent would misread.
    pub(crate) fn agent_arguments(&self) -> anyhow::Result<Vec<String>> {
        agent_arguments(&self.workflow, random_uuid()?)
    }

    fn profile(&self, name: &str) -> Vec<String> {
        let calls = format!("--security-opt=seccomp={}", self.ground.join(CALLS).display());
        let resources = self.workflow.caisson.resources.resolve();
        profile(name, &self.id, self.owner, resources).into_iter().chain([calls]).collect()
    }

    fn job_arguments(&self, number: u32, branch: &str) -> anyhow::Result<Vec<String>> {
        let directory = self.directories(number)?;
        let mut arguments = vec!["run".to_owned()];
        arguments.extend(self.profile(&self.container(number)));
        arguments.extend(mounts(&self.places(number, &directory)));
        for (name, value) in self.environment()? {
            arguments.extend(["--env".to_owned(), format!("{name}={value}")]);
        }
        arguments.extend(["--entrypoint", "/bin/bash", &self.image].map(str::to_owned));
        arguments.push(format!("{GROUND}/baseline.sh"));
        arguments.extend([REPOSITORY, branch, places::AGENT].map(str::to_owned));
        arguments.extend(self.agent_arguments()?);
        Ok(arguments)
    }

    /// The agent's environment, which is the service's but for the way to the model, and what git needs to commit.
    pub(super) fn environment(&self) -> anyhow::Result<Vec<(String, String)>> {
        let spec = EnvironmentSpec {
            home: places::HOME,
            profiles: &format!("{}/profiles", places::HOME),
            path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            tmpdir: "/tmp",
            base_url: MODEL_URL,
            agent_grant: &self.token,
            proxy_url: None,
            extra: &[],
        };
        let mut all = environment(&spec)?;
        let mut add = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));
        add("ANTHROPIC_UNIX_SOCKET", &format!("{GROUND}/{SOCKET}"));
        for role in ["AUTHOR", "COMMITTER"] {
            add(&format!("GIT_{role}_NAME"), "Caisson");
            add(&format!("GIT_{role}_EMAIL"), "caisson@localhost");
        }
        Ok(all)
    }

    /// A fresh workspace and home.
    fn directories(&self, number: u32) -> anyhow::Result<PathBuf> {
        let directory = self.root.join("jobs").join(number.to_string());
        for name in ["workspace", "home"] {
            let path = directory.join(name);
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            give(&path, self.owner)?;
        }
        Ok(directory)
    }

    fn places(&self, number: u32, directory: &Path) -> [(PathBuf, &'static str, bool); 5] {
        [
            (self.agent_dir.clone(), places::AGENT_DIR, false),
            (self.ground.clone(), GROUND, false),
            (self.repository(number).to_owned(), REPOSITORY, true),
            (directory.join("workspace"), places::WORKSPACE, true),
            (directory.join("home"), places::HOME, true),
        ]
    }
}

/// One commit on the branch, with the message that the agent gave, on which the tests pass.
///
/// # Errors
/// It is not so.
pub(crate) fn check_branch(bare: &Path, branch: &str) -> anyhow::Result<()> {
    let commits = repository::run_git(bare, &["rev-list", &format!("main..{branch}"), "--"])?;
    ensure!(
        commits.lines().count() == 1,
        "{branch} has other commits than the one that was expected: {commits:?}"
    );
    let message = repository::run_git(bare, &["log", "-1", "--format=%B", branch, "--"])?;
    ensure!(message.starts_with("fix(cart): "), "{branch} has another message than the agent's: {message:?}");
    let clone = repository::clone_branch(bare, branch)?;
    let tests = repository::run_python_tests(&clone.path().join("checkout"))?;
    let said = String::from_utf8_lossy(&tests.stderr);
    ensure!(tests.status.success(), "the tests fail on {branch}: {said}");
    Ok(())
}

/// The flags of the docker client that ask for the profile of a sandbox. The client cannot ask for one thing that the
/// service does ask for, a container without any of the engine's networking, which is quicker to start.
fn profile(name: &str, id: &str, uid: u32, resources: Resources) -> Vec<String> {
    let Resources { memory_mib, pids, cpu_millis, tmp_mib, workspace_mib: _ } = resources;
    let cores = u32::try_from(super::cores()).unwrap_or(u32::MAX);
    let cpus = f64::from(cpu_millis.min(cores.saturating_mul(1000))) / 1000.0;
    let flags = [
        ("name", name.to_owned()),
        ("label", format!("{}={id}", docker::LABEL)),
        ("user", format!("{uid}:{uid}")),
        ("workdir", places::WORKSPACE.to_owned()),
        ("stop-signal", "SIGTERM".to_owned()),
        ("hostname", "sandbox".to_owned()),
        ("network", "none".to_owned()),
        ("dns", "127.0.0.1".to_owned()),
        ("dns-search", ".".to_owned()),
        ("add-host", "sandbox:127.0.0.1".to_owned()),
        ("tmpfs", format!("/tmp:rw,exec,nosuid,nodev,size={},mode=1777", u64::from(tmp_mib) << 20)),
        ("memory", format!("{memory_mib}m")),
        ("memory-swap", format!("{memory_mib}m")),
        ("cpus", cpus.to_string()),
        ("pids-limit", pids.to_string()),
        ("shm-size", "64m".to_owned()),
        ("oom-score-adj", "500".to_owned()),
        ("ulimit", "core=1".to_owned()),
        ("ulimit", "nofile=16384".to_owned()),
        ("cap-drop", "ALL".to_owned()),
        ("security-opt", "no-new-privileges:true".to_owned()),
        ("ipc", "private".to_owned()),
        ("cgroupns", "private".to_owned()),
        ("restart", "no".to_owned()),
        ("log-driver", "json-file".to_owned()),
        ("log-opt", "max-size=1m".to_owned()),
        ("log-opt", "max-file=1".to_owned()),
    ];
    let values = flags.into_iter().map(|(flag, value)| format!("--{flag}={value}"));
    values.chain(["--read-only", "--no-healthcheck"].map(str::to_owned)).collect()
}

fn mounts(places: &[(PathBuf, &'static str, bool)]) -> Vec<String> {
    let mount = |(source, target, writable): &(PathBuf, &'static str, bool)| {
        // The client reads the value as one line of CSV.
        let source = format!("source={}", source.display()).replace('"', "\"\"");
        let access = if *writable { "" } else { ",readonly" };
        format!("--mount=type=bind,\"{source}\",target={target},bind-propagation=rprivate{access}")
    };
    places.iter().map(mount).collect()
}

fn agent_arguments(workflow: &Workflow, conversation: Uuid) -> anyhow::Result<Vec<String>> {
    let mut launch = Launch::new(SessionMode::New(conversation));
    let mode = workflow.permission_mode.as_str();
    launch.permission_mode =
        PermissionMode::parse(mode).with_context(|| format!("no permission mode {mode}"))?;
    launch.model.clone_from(&workflow.model);
    launch.tools.clone_from(&workflow.tools);
    launch.disallowed_tools.clone_from(&workflow.disallowed_tools);
    launch.max_turns = workflow.max_turns;
    launch.append_system_prompt = Some(workflow.prompt.clone());
    // As for a run whose repository has nothing that steers.
    launch.setting_sources = vec![SettingSource::User];
    launch.settings = Some(settings_of_no_repository(places::STEERING));
    Ok(launch.argv()?)
}

/// A new id of a conversation or message.
///
/// # Errors
/// None in practice: the text is a UUID.
pub(crate) fn random_uuid() -> anyhow::Result<Uuid> {
    Ok(Uuid::parse(&uuid::Uuid::new_v4().to_string())?)
}

/// Gives a file or a whole directory to a user and the group of the same number.
fn give(path: &Path, owner: u32) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if found.uid() != owner {
        chown(path, Some(owner), Some(owner))
            .with_context(|| format!("\"{}\" cannot be given away", path.display()))?;
    }
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_one_line_of_csv_whatever_the_path_holds() {
        let places = [(PathBuf::from("/a, \"b\""), "/x", true), (PathBuf::from("/c"), "/y", false)];
        assert_eq!(
            mounts(&places),
            [
                "--mount=type=bind,\"source=/a, \"\"b\"\"\",target=/x,bind-propagation=rprivate",
                "--mount=type=bind,\"source=/c\",target=/y,bind-propagation=rprivate,readonly",
            ]
        );
    }

    #[test]
    fn the_profile_has_every_wall_of_a_sandbox() {
        let flags = profile("n", "b", 7, Resources::default());
        for wall in [
            "--network=none",
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges:true",
            "--user=7:7",
        ] {
            assert!(flags.iter().any(|flag| flag == wall), "{wall}");
        }
        assert!(flags.contains(&"--label=caisson.bench=b".to_owned()));
    }

    #[test]
    fn the_agent_is_started_as_the_workflow_says() {
        let workflow = Workflow::parse(include_str!("../../../../workflows/bug-fixer.md")).unwrap();
        let arguments = agent_arguments(&workflow, random_uuid().unwrap()).unwrap();
        for flag in ["--permission-mode=bypassPermissions", "--disallowedTools=WebFetch", "--max-turns=100"] {
            assert!(arguments.iter().any(|argument| argument == flag), "{flag} in {arguments:?}");
        }
        assert!(arguments.iter().any(|argument| argument.starts_with("--append-system-prompt=You fix bugs")));
    }

    #[test]
    fn what_was_pushed_is_judged_by_commits_message_and_tests() {
        let root = tempfile::tempdir().unwrap();
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/cart");
        let bare = repository::bare_from(root.path(), "cart.git", &project).unwrap();
        let error = |branch: &str| check_branch(&bare, branch).unwrap_err().to_string();
        assert!(error("main").contains("other commits"));
        let clone = repository::clone_branch(&bare, "main").unwrap();
        let checkout = clone.path().join("checkout");
        let commit = |message: &str| {
            repository::run_git(&checkout, &["commit", "--quiet", "--allow-empty", "-m", message]).unwrap();
            repository::run_git(&checkout, &["push", "--quiet", "--force", "origin", "HEAD:refs/heads/x"])
                .unwrap();
            repository::run_git(&checkout, &["reset", "--quiet", "--hard", "origin/main"]).unwrap();
        };
        commit("chore: nothing");
        assert!(error("x").contains("another message"));
        commit("fix(cart): nothing");
        assert!(error("x").contains("tests fail"));
        let source = checkout.join("shop/pricing.py");
        let fixed = fs::read_to_string(&source).unwrap().replace("> BULK_QUANTITY:", ">= BULK_QUANTITY:");
        fs::write(&source, fixed).unwrap();
        repository::run_git(&checkout, &["add", "-A"]).unwrap();
        commit("fix(cart): mend");
        check_branch(&bare, "x").unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_script_does_the_whole_job_in_a_sealed_container() {
        let Some(parts) = Parts::find("target/debug/caisson") else { return };
        let root = tempfile::tempdir().unwrap();
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/cart");
        let spec = ScriptSpec {
            id: format!("caisson-bench-test-{}", std::process::id()),
            image: caisson_sandbox::docker::DEFAULT_IMAGE.to_owned(),
            agent_version: super::super::stage::installed_version(&parts.agents_dir).unwrap(),
            workflow: Workflow::parse(include_str!("../../../../workflows/bug-fixer.md")).unwrap(),
            token: "a-key".to_owned(),
            prompt: "The tests fail. Find the bug.".to_owned(),
            limit: Duration::from_mins(1),
            apart: 0,
        };
        let id = spec.id.clone();
        let script = Script::make(&parts, root.path(), &project, spec).unwrap();
        let scenarios =
            super::super::scenarios::all(include_str!("../../../../examples/cart.scenario.json")).unwrap();
        let model = scripted_model::ScriptedModel::start(scripted_model::Options {
            listen: None,
            unix: Some(script.socket()),
            inline_scenarios: vec![scenarios],
            default_scenario: super::super::scenarios::JOB.to_owned(),
            required_keys: vec![scripted_model::KeyDigest::of("a-key")],
            ..Default::default()
        })
        .await
        .unwrap();
        let job = script.job(1).await;
        docker::remove_labelled(&parts, docker::LABEL, &id).await.unwrap();
        let job = job.unwrap();
        script.check(1, &job.branch).unwrap();
        let steps = job.timeline.steps_ms();
        assert!(job.timeline.total_ms().unwrap() > 0.0);
        assert_eq!(steps.iter().filter(|step| step.is_some()).count(), 7, "{steps:?}");
        assert_eq!(
            model.records().iter().filter(|record| super::super::stage::is_message(record)).count(),
            6
        );
        model.shutdown().await;
    }
}
