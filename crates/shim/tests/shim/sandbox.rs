//! A sandbox without walls: directories, the shim as a process of its own, and scripted agents in the real one's place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use caisson_domain::id::{Epoch, RunId};
use caisson_domain::protocol::{
    AgentWork, Ending, GitWork, Input, InputBody, JournalBody, Outcome, RunWork, StopReason, Work,
};
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::workflow::{PermissionMode, Publish};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::gateway::{AGENT, CONTROL, Gateway, PATIENCE};

/// Search path of programs for everything that tests start.
pub(crate) const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The branch of every run here.
pub(crate) const BRANCH: &str = "caisson/bug-fixer/0a1b2c3d";

/// What every scripted agent has: it speaks the real one's lines. A test adds `prompt(uuid, text, number)`.
const AGENT_SCRIPT: &str = r#"#!/usr/bin/python3
import json, os, subprocess, sys

def emit(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()

def raw(text):
    sys.stdout.write(text)
    sys.stdout.flush()

def done(uuid, text="Done.", **more):
    line = {"type": "result", "subtype": "success", "is_error": False, "terminal_reason": "completed",
            "num_turns": 1, "queued_turn_count": 0, "result": text, "user_message_uuids": [uuid]}
    emit(line | more)

def sh(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def write(name, text):
    with open(name, "w") as file:
        file.write(text)

def commit(message):
    sh("git", "add", "-A")
    sh("git", "commit", "-q", "-m", message)

def heard():
    line = sys.stdin.readline()
    return json.loads(line) if line else None

def log(text):
    with open(os.environ["HOME"] + "/agent.log", "a") as file:
        file.write(text + "\n")

def wait_for_interrupt():
    while True:
        message = heard()
        if message is None:
            sys.exit(1)
        if message["type"] == "control_request":
            emit({"type": "control_response",
                  "response": {"subtype": "success", "request_id": message["request_id"]}})
            return

# SCRIPT

def main():
    number = 0
    while (message := heard()) is not None:
        if message["type"] != "user":
            continue
        emit({"type": "system", "subtype": "init", "cwd": os.getcwd(), "session_id": "x"})
        text = message["message"]["content"][0]["text"]
        log("prompt " + text.split("\n")[0])
        prompt(message["uuid"], text, number)
        number += 1

main()
"#;

/// A sandbox.
pub(crate) struct Sandbox {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) gateway: Gateway,
    settings: serde_json::Map<String, Value>,
    shim: Option<std::process::Child>,
}

impl Sandbox {
    /// One whose gateway serves.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(directory.path());
        let place = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let mut settings = serde_json::Map::new();
        for name in ["journal", "workspace", "home", "tmp"] {
            std::fs::create_dir(place(name)).unwrap();
            settings.insert(name.to_owned(), place(name).into());
        }
        settings.insert("door".to_owned(), gateway.socket().to_string_lossy().into());
        settings.insert("agent".to_owned(), place("agent").into());
        settings.insert("shim".to_owned(), env!("CARGO_BIN_EXE_caisson-shim").into());
        settings.insert("control_grant".to_owned(), CONTROL.into());
        settings.insert("agent_grant".to_owned(), AGENT.into());
        settings.insert("path".to_owned(), SEARCH_PATH.into());
        Self { directory, gateway, settings, shim: None }
    }

    /// One with an agent that does what `script` says, in Python.
    pub(crate) fn with_agent(script: &str) -> Self {
        let sandbox = Self::new();
        let program = sandbox.place("agent");
        std::fs::write(&program, AGENT_SCRIPT.replace("# SCRIPT", script)).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        sandbox
    }

    /// One with a repository as well, in which `main` has one commit with `a.txt`.
    pub(crate) fn with_repository(script: &str) -> Self {
        let sandbox = Self::with_agent(script);
        let bare = sandbox.place("bare.git");
        git(sandbox.directory.path(), &["init", "-q", "--bare", "-b", "main", "bare.git"]);
        git(sandbox.directory.path(), &["clone", "-q", "bare.git", "seed"]);
        sandbox.seed("a.txt", "one\n", "feat: begin");
        sandbox.gateway.with(|state| state.repository = Some(bare));
        sandbox
    }

    /// A place in the sandbox's directory.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Sets one of the shim's settings.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// Adds a commit to the repository's current branch, as somebody else would.
    pub(crate) fn seed(&self, file: &str, content: &str, message: &str) {
        let seed = self.place("seed");
        std::fs::write(seed.join(file), content).unwrap();
        git(&seed, &["add", "-A"]);
        git(&seed, &["commit", "-q", "-m", message]);
        git(&seed, &["push", "-q", "origin", "HEAD"]);
    }

    /// Starts the shim.
    pub(crate) fn start(&mut self) {
        self.start_under(&[]);
    }

    /// Starts the shim as the last arguments of another program.
    #[expect(clippy::disallowed_methods, reason = "tests start git and the shim")]
    pub(crate) fn start_under(&mut self, other: &[&str]) {
        let settings = self.place("settings.json");
        std::fs::write(&settings, serde_json::to_vec(&self.settings).unwrap()).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.place("shim.log")).unwrap();
        let mut command: Vec<_> = other.iter().map(OsString::from).collect();
        command.extend([OsString::from(env!("CARGO_BIN_EXE_caisson-shim-at")), settings.into()]);
        let shim = Command::new(&command[0])
            .args(&command[1..])
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("CAISSON_CONTROL_GRANT", CONTROL)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.shim = Some(shim);
    }

    /// The shim's process.
    pub(crate) fn shim_pid(&self) -> u32 {
        self.shim.as_ref().unwrap().id()
    }

    /// The states of all processes below the shim, as `/proc` names them.
    pub(crate) fn states(&self) -> Vec<char> {
        let state = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        };
        below(self.shim_pid()).into_iter().filter_map(state).collect()
    }

    /// Kills the shim with everything below it, as the kernel does when a sandbox's PID 1 is killed.
    pub(crate) fn kill(&mut self) {
        if let Some(mut shim) = self.shim.take() {
            // It may have ended already; and what is listed below it may end meanwhile.
            let pid = Pid::from_raw(shim.id().cast_signed());
            let _ended = kill(pid, Signal::SIGSTOP);
            for below in below(shim.id()) {
                let _ended = kill(Pid::from_raw(below.cast_signed()), Signal::SIGKILL);
            }
            let _ended = shim.kill();
            let _reaped = shim.wait();
        }
    }

    /// Waits until the shim has ended by itself.
    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        let mut shim = self.shim.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || shim.wait().unwrap());
        tokio::time::timeout(PATIENCE, ended).await.expect("the shim ends").unwrap()
    }

    /// Tells the shim to end once its work is done, and waits for it.
    pub(crate) async fn exit(&mut self) {
        self.gateway.with(|state| state.work.push_back(Work::Exit));
        let status = self.ended().await;
        assert!(status.success(), "{status}: {}", self.shim_log());
    }

    /// What the shim said.
    pub(crate) fn shim_log(&self) -> String {
        std::fs::read_to_string(self.place("shim.log")).unwrap_or_default()
    }

    /// What the agent noted.
    pub(crate) fn agent_log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.place("home/agent.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Delivers work.
    pub(crate) fn deliver(&self, work: RunWork) {
        self.gateway.with(|state| state.work.push_back(Work::Run(Box::new(work))));
    }

    /// Tells a run to stop.
    pub(crate) fn stop(&self, run: &RunId, reason: StopReason) {
        self.give(run, InputBody::Stop { reason });
    }

    /// Gives a run's agent a message.
    pub(crate) fn steer(&self, run: &RunId, text: &str) {
        self.give(run, InputBody::Steer { text: text.to_owned() });
    }

    pub(crate) fn give(&self, run: &RunId, body: InputBody) {
        self.gateway.with(|state| {
            let seq = i64::try_from(state.inputs.len()).unwrap() + 1;
            state.inputs.push(Input { seq, run: run.clone(), body });
        });
    }

    /// Lets go on what waits for the file `go` in its home.
    pub(crate) fn let_go(&self) {
        std::fs::write(self.place("home/go"), "").unwrap();
    }

    /// Waits for the end of a run.
    pub(crate) async fn outcome(&self, run: &RunId) -> Outcome {
        self.gateway
            .wait_for("the end of the run", |state| {
                state.records().into_iter().find_map(|record| match record.body {
                    JournalBody::Finished(outcome) if record.run == *run => Some(outcome),
                    _ => None,
                })
            })
            .await
    }

    /// Makes another sandbox for the same session: its workspace and home stay, its journal begins.
    pub(crate) fn begin_anew(&self) {
        std::fs::remove_dir_all(self.place("journal")).unwrap();
        self.gateway.with(|state| {
            state.work.clear();
            state.journal.clear();
        });
    }

    /// Does one run from its delivery to its end and the end of the shim.
    pub(crate) async fn run(&mut self, work: RunWork) -> Outcome {
        let run = work.run.clone();
        self.deliver(work);
        self.start();
        let outcome = self.outcome(&run).await;
        self.exit().await;
        outcome
    }

    /// The bodies of all records.
    pub(crate) fn bodies(&self) -> Vec<JournalBody> {
        self.gateway.with(|state| state.bodies())
    }

    /// The notes among them.
    pub(crate) fn notes(&self) -> Vec<String> {
        let note = |body| match body {
            JournalBody::Note { message, .. } => Some(message),
            _ => None,
        };
        self.bodies().into_iter().filter_map(note).collect()
    }

    /// An artifact as text.
    pub(crate) fn artifact(&self, name: &str) -> Option<String> {
        self.gateway
            .with(|state| state.artifacts.get(name).map(|bytes| String::from_utf8_lossy(bytes).into()))
    }

    /// Git in the bare repository.
    pub(crate) fn remote(&self, arguments: &[&str]) -> String {
        git(&self.place("bare.git"), arguments)
    }

    /// Git in the workspace.
    pub(crate) fn workspace(&self, arguments: &[&str]) -> String {
        git(&self.place("workspace"), arguments)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // For a test that failed.
        self.kill();
    }
}

/// All processes below one.
fn below(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = children.split_ascii_whitespace().map(|child| child.parse().unwrap()).collect();
    children.iter().flat_map(|child| [vec![*child], below(*child)].concat()).collect()
}

/// Runs git for a test; its output without the last line end.
#[expect(clippy::disallowed_methods, reason = "tests start git and the shim")]
pub(crate) fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "Somebody")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "somebody@example.com")))
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A run's id.
pub(crate) fn run_id(number: i64) -> RunId {
    RunId::new(1_700_000_000_000 + number, [7; 10])
}

/// A run without a repository.
pub(crate) fn plain_work(prompt: &str) -> RunWork {
    RunWork {
        run: run_id(1),
        epoch: Epoch(1),
        attempt: 1,
        workflow: "w".to_owned(),
        prompt: prompt.to_owned(),
        attachments: Vec::new(),
        agent: AgentWork {
            conversation: "0192f0c1-2345-7abc-8def-0123456789ab".to_owned(),
            resume: false,
            archive: None,
            model: None,
            permission_mode: PermissionMode::BypassPermissions,
            tools: None,
            disallowed_tools: Vec::new(),
            allowed_tools: Vec::new(),
            max_turns: None,
            system_prompt: None,
            mcp_servers: serde_json::Map::new(),
            mcp_http: Vec::new(),
            mcp_required: Vec::new(),
            environment: BTreeMap::new(),
            approvals: None,
        },
        git: None,
        publish: Publish::None,
        trust: caisson_domain::trust::Trust::default(),
        forbidden_paths: Vec::new(),
        workspace: caisson_domain::workflow::WorkspaceAccess::ReadWrite,
        image: None,
        may_choose_image: false,
        output_schema: None,
        checks: Vec::new(),
        check_turns: 1,
        timeout_ms: 600_000,
        keep: false,
    }
}

/// A run on the repository that pushes its branch.
pub(crate) fn git_work(prompt: &str) -> RunWork {
    let git = GitWork {
        base: Some("main".parse().unwrap()),
        anchor: None,
        branch: BRANCH.parse().unwrap(),
        go_on: false,
        start: None,
        start_branch: None,
        is_first: false,
        since: None,
        revisions: BTreeMap::new(),
        author_name: "Caisson \"the\" Agent".to_owned(),
        author_email: "agent@example.com".to_owned(),
        commit_type: "fix".to_owned(),
        commit_subject: "the reported bug".to_owned(),
    };
    RunWork { git: Some(git), publish: Publish::Branch, ..plain_work(prompt) }
}

/// The failure in an outcome.
pub(crate) fn failure(outcome: &Outcome) -> Failure {
    match &outcome.ending {
        Ending::Failed(failure) => failure.clone(),
        other => panic!("not a failure: {other:?}"),
    }
}

/// Asserts the failure's kind and gives its message.
pub(crate) fn failed(outcome: &Outcome, kind: FailureKind) -> String {
    let failure = failure(outcome);
    assert_eq!(failure.kind, kind, "{failure:?}");
    failure.message
}

/// Lines of records, for comparing: kinds alone.
pub(crate) fn kinds(bodies: &[JournalBody]) -> Vec<String> {
    let kind = |body: &JournalBody| {
        let value = json!(body);
        match body {
            JournalBody::Phase { phase } => format!("phase {phase}"),
            _ => value["kind"].as_str().unwrap().to_owned(),
        }
    };
    bodies.iter().map(kind).collect()
}
