//! One server whose runs use the secrets, and every place where they could have got to.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use testkit::engine::Engine;
use testkit::hunt::{Hunt, LEAVE_MARKS};
use testkit::mcp_server::{HeardRequest, McpServer};
use testkit::parts::Parts;
use testkit::volumes::SessionFiles;
use testkit::world::{GIT_TOKEN, MODEL_KEY, World, WorldSpec};

use super::crash::{self, Crash};
use super::secrets::{
    FIRST_ACCESS, INSTALLATION, NEXT_ACCESS, PROXY_LOGIN, REFRESH, REGISTRY, STORED_GIT, STORED_KEY,
    STORED_MCP, STORED_REGISTRY, Secret, known,
};
use super::upstreams::Upstreams;

/// How long a run may take to come to where it is hunted, and from there to its end; the hunt itself takes as long as it takes.
const WAIT: Duration = Duration::from_mins(10);
/// The agent asks the registry, leaves marks, has a program crash, changes a file, and then waits until it was looked at.
const WORK: &str = r"exec 2>&1
env | sort; cat /proc/self/cmdline; git config --list --show-origin
curl -sS http://HOST/package
MARKS
python3 -c 'import os; os.abort()'
sed -i 's/quantity > BULK/quantity >= BULK/' shop/pricing.py; date +%N >> found.txt";
/// Says that the hunt may begin, and waits until all was looked at, or until the tool would be ended for its time: then the agent
/// waits once more.
const WAITING: &str = r#"touch .git/canary-ready; python3 -c 'import os, time
end = time.monotonic() + 500
while not os.path.exists(".git/canary-go") and time.monotonic() < end: time.sleep(0.05)'"#;
/// Most times that the agent waits: as long as a run may take.
const WAITINGS: usize = 7;
/// The hunt must be over by then; nothing of it is pushed.
const GO_ON: &str = "rm .git/canary-go .git/canary-ready";
/// The longest that a tool of the agent may take, in milliseconds.
const TOOL_MS: u32 = 600_000;
/// The workflow of the runs.
const WORKFLOW: &str = "canary";
/// The header that the MCP server wants.
const MCP_HEADER: &str = "x-mcp-key";
/// A key for a GitHub App, made for each hunt.
const KEY_BITS: &str = "rsa_keygen_bits:2048";

/// A world, what its secrets are for, and the runs so far.
pub(super) struct Stage {
    world: World,
    upstreams: Upstreams,
    /// It says what it was sent.
    notes: McpServer,
    app_key: String,
    runs: Vec<Value>,
}

impl Stage {
    pub(super) async fn open(parts: &Parts, engine: Engine) -> anyhow::Result<Self> {
        let upstreams = Upstreams::start()?;
        let notes = McpServer::start(MCP_HEADER, STORED_MCP).await?;
        let (config, store) =
            (format!("config.example:{}", upstreams.port), format!("store.example:{}", upstreams.port));
        let scenarios = vec![scenario("config", &config, &[]), scenario("store", &store, &[ask_notes()])];
        let variables = vec![
            ("EGRESS__ALLOW".to_owned(), format!("{config} {store}")),
            (
                "EGRESS__HOSTS".to_owned(),
                "config.example=127.0.0.1 store.example=127.0.0.1 notes.example=127.0.0.1".to_owned(),
            ),
            ("MCP__ALLOW".to_owned(), format!("notes.example:{}", notes.address.port())),
            ("MCP__ALLOW_PRIVATE".to_owned(), "127.0.0.1/32".to_owned()),
            ("EGRESS__ALLOW_PRIVATE".to_owned(), "127.0.0.1/32".to_owned()),
            // Afterwards a workspace is an image, which is read whole.
            ("LIMITS__WORKSPACE_MIB".to_owned(), "128".to_owned()),
            ("LOG".to_owned(), "debug".to_owned()),
        ];
        let spec = WorldSpec {
            scenario: "config".to_owned(),
            scenarios,
            delay_scale: 1.0,
            model_keys: vec![STORED_KEY.to_owned(), NEXT_ACCESS.to_owned()],
            variables,
            ..WorldSpec::on(engine)
        };
        let mut world = World::start(parts, spec).await?;
        // The registry's token is in the file with the git host's, which the server reads when it starts.
        let file = world.directory.path().join("caisson.toml");
        let token = world.directory.path().join("registry-token");
        written(&token, REGISTRY)?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600))
            .context("the registry token's file")?;
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let token = token.display();
        let registry =
            format!("[[egress.credentials]]\nurl_prefix = \"http://{config}/\"\ntoken_file = \"{token}\"\n");
        written(&file, &format!("{text}\n{registry}"))?;
        let workflows = world.directory.path().join("workflows");
        write_workflow(&workflows, &notes.url("notes.example"))?;
        world.spec.set("WORKFLOWS_DIR", &workflows.display().to_string());
        world.server.kill()?;
        world.server = world.spec.start().await?;
        let app_key = app_key(world.directory.path())?;
        Ok(Self { world, upstreams, notes, app_key, runs: Vec::new() })
    }

    /// The secrets, with those that the server or this hunt has made.
    pub(super) fn canaries(&self) -> Vec<Secret> {
        let mut all = known();
        all.push(Secret::new("API key", &self.world.key));
        let lines: Vec<&str> = self.app_key.lines().filter(|line| !line.starts_with("--")).collect();
        all.push(Secret::new("key of a GitHub App", lines[lines.len() / 2]));
        if let Ok(master) = fs::read_to_string(self.world.state_dir().join("master.key")) {
            all.push(Secret::new("master key", master.trim()));
        }
        all
    }

    pub(super) async fn run_with_the_configurations(&mut self, hunt: &mut Hunt) -> anyhow::Result<()> {
        self.run("config", hunt).await?;
        self.upstreams.expect(&format!("Bearer {REGISTRY}"))?;
        self.shown(GIT_TOKEN, &[MODEL_KEY])
    }

    /// An OAuth login and a GitHub App: what is sent is not what is stored.
    pub(super) async fn run_with_what_stands_for_others(&mut self, hunt: &mut Hunt) -> anyhow::Result<()> {
        let host = self.world.host.url("");
        let base = format!("http://127.0.0.1:{}/", self.upstreams.port);
        self.add(
            &[
                "app",
                "--kind",
                "git_github_app",
                "--set",
                "app_id=7",
                "--set",
                "installation_id=8",
                "--set",
                &format!("url_prefix={host}"),
                "--set",
                &format!("api_base_url={base}"),
            ],
            &self.app_key,
        )?;
        let login = json!({ "access_token": FIRST_ACCESS, "refresh_token": REFRESH, "expires_at_ms": 1 });
        let token_url = format!("token_url={base}oauth/token");
        self.add(&["login", "--kind", "model_oauth", "--set", &token_url], &login.to_string())?;
        self.world.host.set_token(INSTALLATION);
        self.run("config", hunt).await?;
        self.upstreams.expect(&encoded(REFRESH))?;
        self.upstreams.expect("/app/installations/8/access_tokens")?;
        self.shown(INSTALLATION, &[NEXT_ACCESS])?;
        self.command(&["credential", "remove", "app"], "")?;
        self.command(&["credential", "remove", "login"], "").map(drop)
    }

    pub(super) async fn run_with_the_stores(&mut self, hunt: &mut Hunt) -> anyhow::Result<()> {
        let host = format!("url_prefix={}", self.world.host.url(""));
        let registry = format!("host=store.example:{}", self.upstreams.port);
        let login = self.world.directory.path().join("proxy-login");
        written(&login, PROXY_LOGIN)?;
        fs::set_permissions(&login, fs::Permissions::from_mode(0o600)).context("the proxy login's file")?;
        let proxy = format!("outbound_proxy=http://127.0.0.1:{}", self.upstreams.proxy_port);
        let login = login.to_str().context("the login's file has a name")?;
        self.add(
            &["model", "--kind", "model_api_key", "--set", &proxy, "--proxy-login-file", login],
            STORED_KEY,
        )?;
        fs::remove_file(login).context("the proxy login's file")?;
        self.add(&["git", "--kind", "git_token", "--set", &host], STORED_GIT)?;
        self.add(
            &["registry", "--kind", "registry_token", "--set", &registry, "--set", "username=u"],
            STORED_REGISTRY,
        )?;
        let url = format!("url={}", self.notes.url("notes.example"));
        let header = format!("header={MCP_HEADER}");
        self.add(&["notes", "--kind", "mcp_header", "--set", &url, "--set", &header], STORED_MCP)?;
        self.world.host.set_token(STORED_GIT);
        self.run("store", hunt).await?;
        let called = |one: &HeardRequest| one.call == "tools/call" && one.status == 200;
        ensure!(self.notes.heard().iter().any(called), "the MCP server was not sent its header");
        for login in [format!("u:{STORED_REGISTRY}"), PROXY_LOGIN.to_owned()] {
            self.upstreams.expect(&base64::engine::general_purpose::STANDARD.encode(login))?;
        }
        self.shown(STORED_GIT, &[STORED_KEY])
    }

    /// That the git host and the model were sent these.
    fn shown(&self, git: &str, model: &[&str]) -> anyhow::Result<()> {
        ensure!(
            self.world.host.shown_tokens().iter().any(|token| token == git),
            "the git host was not sent its token"
        );
        let calls = self.world.model_calls();
        for key in model {
            let digest = sha256(key);
            let sent = calls.iter().any(|call| {
                let keys = [&call.x_api_key, &call.authorization];
                keys.into_iter().flatten().any(|key| key.sha256 == digest && key.matched == Some(true))
            });
            ensure!(sent, "the model was not sent its key");
        }
        Ok(())
    }

    /// One run, looked at while it lives and when it is done.
    async fn run(&mut self, scenario: &str, hunt: &mut Hunt) -> anyhow::Result<()> {
        let mut body = self.world.run_body();
        body["workflow"] = json!(WORKFLOW);
        body["prompt"] = json!(format!("[[scn:{scenario}]] Fix the bug."));
        let id = self.world.api.submit(&body).await?;
        // From the first event on: live text has no number, and nobody can ask for it later.
        let live = self.world.api.open_events(&id).await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "it is read on while the run is hunted, and waited for below"
        )]
        let live = tokio::spawn(live.bytes());
        let workspace = self.ready().await?;
        self.hunt_sandbox(hunt)?;
        hunt.tree(self.world.state_dir(), &["master.key"]);
        hunt.repository(&workspace)?;
        let go = workspace.join(".git/canary-go");
        fs::write(&go, "")
            .with_context(|| format!("the run went on before the hunt was over: {}", go.display()))?;
        let run = self.world.api.wait_end(&id, WAIT).await?;
        ensure!(
            run["status"] == "succeeded",
            "the run did not succeed: {run:#}\n{}",
            self.world.server.log()
        );
        ensure!(run["pushed_commit"].is_string(), "the run pushed nothing: {run:#}");
        let events = self.world.api.events(&id).await?;
        let said = serde_json::to_string(&events)?;
        ensure!(said.contains("a package"), "the registry did not answer the agent: {said}");
        hunt.look("the run", run.to_string().as_bytes());
        hunt.look("events", said.as_bytes());
        let live = tokio::time::timeout(WAIT, live).await.context("the live stream does not end")???;
        let has = |part: &str| String::from_utf8_lossy(&live).contains(part);
        ensure!(has("event: delta") && has("event: end"), "the live stream is not whole");
        hunt.look("the live stream", &live);
        hunt.look("the event stream", &self.world.api.open_events(&id).await?.bytes().await?);
        for arguments in [&["show", &id][..], &["logs", &id], &["diff", &id], &["artifacts", &id]] {
            hunt.look(&format!("caisson {}", arguments[0]), &self.command(arguments, "")?);
        }
        let session = run["session_id"].as_str().context("the run has no session")?;
        let files = SessionFiles::open(self.world.state_dir(), session).context("the session's files")?;
        ensure!(hunt.tree(files.directory(), &[]) > 30, "the session has too few files");
        self.runs.push(run);
        Ok(())
    }

    /// The workspace of the run that waits to be looked at.
    async fn ready(&self) -> anyhow::Result<PathBuf> {
        let start = Instant::now();
        loop {
            for session in
                fs::read_dir(self.world.state_dir().join("sessions")).into_iter().flatten().flatten()
            {
                let workspace = session.path().join("workspace");
                if workspace.join(".git/canary-ready").exists() {
                    return Ok(workspace);
                }
            }
            ensure!(start.elapsed() < WAIT, "the agent did not come so far:\n{}", self.world.server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The living sandbox as the kernel and the engine show it, with the memory of all of its processes.
    fn hunt_sandbox(&self, hunt: &mut Hunt) -> anyhow::Result<()> {
        let world = &self.world;
        let sandbox = world.sandboxes().context("the sandboxes")?.pop().context("the run has no sandbox")?;
        let pids = world.processes(&sandbox).context("the sandbox's processes")?;
        let hunted: Vec<u64> = pids
            .iter()
            .filter_map(|pid| hunt.process(*pid).transpose())
            .collect::<anyhow::Result<_>>()
            .context("the living sandbox is looked at")?;
        ensure!(
            hunted.len() >= 3,
            "shim, agent and tool were expected to live: {} of {pids:?}",
            hunted.len()
        );
        let memory: u64 = hunted.iter().sum();
        ensure!(memory > 50_000_000, "only {memory} bytes of memory could be read");
        hunt.sandbox(world, &sandbox).context("the living sandbox's files")?;
        Hunt::prove_in_memory(world, &sandbox)
    }

    /// What is left when all runs are done: the whole state directory with database, logs and artifacts, the git host's
    /// repository, and what the API and the command line tell.
    pub(super) async fn hunt_afterwards(&self, hunt: &mut Hunt) -> anyhow::Result<()> {
        let world = &self.world;
        world.wait_tidy().await?;
        ensure!(hunt.tree(world.state_dir(), &["master.key"]) > 5, "the state directory has too few files");
        hunt.repository(&world.bare)?;
        for path in ["/v1/runs", "/v1/workflows", "/v1/agents", "/v1/openapi.json", "/readyz"] {
            hunt.look(path, world.api.get(path).await?.body.to_string().as_bytes());
        }
        for run in &self.runs {
            let id = run["id"].as_str().context("the run has no id")?;
            let listed = world.api.get(&format!("/v1/runs/{id}/artifacts")).await?.body;
            for artifact in listed["items"].as_array().into_iter().flatten() {
                let name = artifact["name"].as_str().context("an artifact has no name")?;
                hunt.look(name, &world.api.bytes(&format!("/v1/runs/{id}/artifacts/{name}")).await?);
            }
        }
        let commands = [
            &["credential", "list", "--json"][..],
            &["audit", "export"],
            &["ps"],
            &["key", "list"],
            &["doctor"],
        ];
        for arguments in commands {
            hunt.look(&format!("caisson {}", arguments.join(" ")), &self.command(arguments, "")?);
        }
        Ok(())
    }

    /// What a crash of the server leaves: what it printed, which is among its files, and a core. Where it leaves none, it is only
    /// known why if another process does; then this is `true`.
    pub(super) async fn crash(&mut self, hunt: &mut Hunt) -> anyhow::Result<bool> {
        let server = &mut self.world.server;
        let crash = Crash::of(server.id())?;
        let ended = server.ended(crash::WAIT).await?;
        if crash.left_core(ended)? {
            hunt.found.insert("everything in a core of the server".to_owned());
        }
        let printed = server.log();
        ensure!(!printed.is_empty(), "the server has printed nothing");
        hunt.look("what the server printed until its crash", printed.as_bytes());
        hunt.tree(self.world.state_dir(), &["master.key"]);
        crash::is_seen().await
    }

    fn add(&self, arguments: &[&str], secret: &str) -> anyhow::Result<()> {
        self.command(&[&["credential", "add"], arguments].concat(), secret).map(drop)
    }

    /// What a command of the binary prints, both ways.
    fn command(&self, arguments: &[&str], input: &str) -> anyhow::Result<Vec<u8>> {
        let mut command = self.world.client(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let name = || format!("caisson {}", arguments.join(" "));
        let mut child = child.with_context(name)?;
        // One that wants no input may be gone by now.
        drop(child.stdin.take().context("no input")?.write_all(input.as_bytes()));
        let output = child.wait_with_output().with_context(name)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() || arguments == ["doctor"], "{}: {said}", name());
        Ok([output.stdout, output.stderr].concat())
    }
}

/// The agent asks the MCP server, which says what it was sent.
fn ask_notes() -> Value {
    json!({ "tool": { "name": "mcp__notes__echo", "input": { "text": "hello" } } })
}

/// A workflow as the one that ships, with an MCP server.
fn write_workflow(directory: &Path, url: &str) -> anyhow::Result<()> {
    let servers = json!({ "notes": { "type": "http", "url": url } });
    let text = format!(
        "---\nname: {WORKFLOW}\ndescription: Fixes a bug\npermissionMode: bypassPermissions\nmcpServers: {servers}\n---\nFix.\n"
    );
    fs::create_dir(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    written(&directory.join("canary.md"), &text)
}

fn written(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))
}

/// The agent's last message: how many words, and the pause before each, in milliseconds.
const SLOW_WORDS: u32 = 60;
const SLOW_MS: u32 = 25;

fn scenario(name: &str, host: &str, before: &[Value]) -> String {
    let work = WORK.replace("HOST", host).replace("MARKS", LEAVE_MARKS);
    let waiting = std::iter::repeat_n(WAITING, WAITINGS);
    let commands = std::iter::once(work.as_str()).chain(waiting).chain([GO_ON]);
    let bash = |command: &str| {
        let input = json!({ "command": command, "description": "Fix", "timeout": TOOL_MS });
        json!({ "tool": { "name": "Bash", "input": input } })
    };
    let mut steps = before.to_vec();
    steps.extend(commands.map(bash));
    // So slow that some of it is seen before the whole.
    steps.push(json!({ "text": "word ", "text_repeat": SLOW_WORDS, "chunk_delay_ms": SLOW_MS }));
    json!({ name: { "prompts": [steps, [{ "text": "fix(cart): count the tenth piece" }]] } }).to_string()
}

/// A fresh key, as GitHub gives one for an app.
fn app_key(directory: &Path) -> anyhow::Result<String> {
    let file = directory.join("app.pem");
    #[expect(clippy::disallowed_methods, reason = "openssl is started here, with an argument vector")]
    let output = std::process::Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", KEY_BITS, "-out"])
        .arg(&file)
        .output()
        .context("openssl cannot be started")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&file).context("openssl wrote no key")?;
    fs::remove_file(&file).context("the key that openssl wrote")?;
    Ok(text)
}

/// As a form encodes it.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let each = text
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") });
    each.collect::<Vec<_>>().concat()
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(text))
}
