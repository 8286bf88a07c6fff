//! A world for tests: a store, sandboxes with runs in them, a gateway before them, and a client.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use caisson_domain::credential::{CredentialFields, CredentialKind, CredentialSecret};
use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use caisson_domain::grant::{GrantKind, Token};
use caisson_domain::id::{ProjectId, RunId, SandboxId, ServerId, SessionId};
use caisson_domain::protocol::{JournalBody, JournalRecord};
use caisson_domain::redact::LiveSecrets;
use caisson_domain::run::{Resources, Run, RunSpec, RunStatus};
use caisson_domain::usage::{PriceTable, UsageTotals};
use caisson_domain::workflow::{CaissonBlock, PermissionMode, Workflow};
use caisson_store::{
    Actor, Clock, CreateRun, Credential, HomeEpoch, MasterKeyFile, NewCredential, NewRun, NewSandbox,
    SandboxState, Store,
};
use futures_util::FutureExt;
use http::{Method, StatusCode};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, SqliteConnection};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bounds::Bounds;
use crate::egress::{Dial, Resolve};
use crate::{
    EgressUpstreams, Gateway, GatewayConfig, GatewayError, GitIdentity, GitUpstreams, McpUpstreams,
    ModelCredential, ModelUpstream, PushRules,
};

/// Whatever takes longer is a fault.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The real credentials: no answer, event or database byte may have them.
pub(crate) const MODEL_KEY: &str = "sk-canary-4f8c1b70aa";
pub(crate) const GIT_TOKEN: &str = "git-canary-93ab77e1d2";

pub(crate) fn run_spec(repository: Option<&str>) -> RunSpec {
    let workflow = Workflow {
        name: "fixer".to_owned(),
        description: "Fixes".to_owned(),
        prompt: "Be careful.".to_owned(),
        tools: None,
        disallowed_tools: Vec::new(),
        allowed_tools: Vec::new(),
        model: None,
        permission_mode: PermissionMode::BypassPermissions,
        max_turns: Some(9),
        mcp_servers: serde_json::Map::new(),
        caisson: CaissonBlock::default(),
    };
    RunSpec {
        workflow,
        prompt: "Fix the add function".to_owned(),
        repository: repository.map(|text| text.parse().unwrap()),
        base: None,
        anchor: None,
        branch: repository.map(|_| "caisson/fixer/1".parse().unwrap()),
        model: None,
        max_turns: Some(7),
        image: None,
        timeout_s: 600,
        budget_micro_usd: None,
        budget_soft_percent: None,
        resources: Resources::default(),
        environment: BTreeMap::new(),
        priority: 0,
        start_at_ms: None,
        parameters: caisson_domain::parameters::Values::new(),
        output_schema: None,
        attachments: Vec::new(),
        workflow_version: None,
    }
}

fn new_run(spec: RunSpec) -> NewRun {
    NewRun { project: ProjectId::default_project(), created_by: None, spec, idempotency: None }
}

/// A run that no store knows.
pub(crate) fn a_run(spec: RunSpec) -> Run {
    Run {
        id: RunId::new(1, [1; 10]),
        project: ProjectId::default_project(),
        session: SessionId::new(1, [2; 10]),
        spec,
        status: RunStatus::Running,
        phase: None,
        waiting: None,
        failure: None,
        result: None,
        output: None,
        checks: Vec::new(),
        repository_image: None,
        attempt: 1,
        agent_started: false,
        cancel_requested_at_ms: None,
        home: None,
        sandbox: None,
        base_commit: None,
        pushed_commit: None,
        usage: UsageTotals::default(),
        created_at_ms: 0,
        started_at_ms: None,
        finished_at_ms: None,
    }
}

/// What a test wants otherwise than usual.
pub(crate) struct Setup {
    pub(crate) bounds: Bounds,
    pub(crate) model: ModelUpstream,
    pub(crate) git: GitUpstreams,
    pub(crate) egress: EgressUpstreams,
    pub(crate) mcp: McpUpstreams,
    pub(crate) resolve: Resolve,
    pub(crate) dial: Dial,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let bounds = Bounds {
            long_poll: Duration::from_millis(50),
            retry_first: Duration::from_millis(1),
            ..Bounds::default()
        };
        let model = ModelUpstream {
            // A port that nobody listens at.
            base_url: "http://127.0.0.1:1/".parse().unwrap(),
            credential: Some(ModelCredential::ApiKey(MODEL_KEY.to_owned().into())),
            outbound_proxy: None,
            extra_ca_pem: None,
            provider_tools: Vec::new(),
        };
        let git = GitUpstreams {
            credentials: Vec::new(),
            allow: AllowList::default(),
            outbound_proxy: None,
            extra_ca_pem: None,
            forbidden: Vec::new(),
            git_program: PathBuf::from("git"),
            pushes: PushRules::default(),
        };
        let resolve: Resolve = Arc::new(|_| async { Err(std::io::Error::other("no name is known")) }.boxed());
        let (egress, mcp) = (EgressUpstreams::default(), McpUpstreams::default());
        Self { bounds, model, git, egress, mcp, resolve, dial: crate::egress::tcp() }
    }
}

pub(crate) struct World {
    pub(crate) root: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) server: ServerId,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) count: AtomicU8,
    /// Whether a gateway runs, which opens the doors of sandboxes at its own time.
    pub(crate) serves: AtomicBool,
}

/// One sandbox with its grants and the run that was placed in it.
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) run: Run,
    pub(crate) epoch: HomeEpoch,
    pub(crate) control: String,
    pub(crate) agent: String,
    pub(crate) socket: PathBuf,
}

impl World {
    /// Action, subject, credential and host of each record of the audit log.
    pub(crate) async fn audit(&self) -> Vec<(String, String, Option<String>, Option<String>)> {
        let (mut records, mut after) = (Vec::new(), 0);
        loop {
            let page = self.store.audit_after(after).await.unwrap();
            let Some(last) = page.last() else { break };
            after = last.number;
            records.extend(page);
        }
        let records = records.into_iter();
        records.map(|record| (record.action, record.subject, record.credential, record.host)).collect()
    }

    pub(crate) async fn new() -> Self {
        super::install_crypto();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("doors")).unwrap();
        // As the server's state directory: only the server passes it.
        std::fs::DirBuilder::new().mode(0o700).create(root.path().join("held")).unwrap();
        let store = Store::open(&root.path().join("caisson.db"), Clock::system()).await.unwrap();
        let server = ServerId::new(1, [9; 10]);
        store.register_server(&server).await.unwrap();
        Self {
            root,
            store,
            server,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
            count: AtomicU8::new(1),
            serves: AtomicBool::new(false),
        }
    }

    pub(crate) fn config(&self, setup: &Setup) -> GatewayConfig {
        GatewayConfig {
            server: self.server.clone(),
            doors_dir: self.root.path().join("doors"),
            artifacts_dir: self.root.path().join("artifacts"),
            quarantine_dir: self.root.path().join("held/quarantine"),
            model: setup.model.clone(),
            prices: PriceTable::shipped(),
            git: setup.git.clone(),
            egress: setup.egress.clone(),
            mcp: setup.mcp.clone(),
            identity: GitIdentity { name: "Caisson".to_owned(), email: "caisson@example.com".to_owned() },
            keep_alive: false,
            secrets: LiveSecrets::new(&crate::secrets(&setup.model, &setup.git, &setup.egress)),
        }
    }

    pub(crate) async fn try_start(&self, setup: Setup) -> Result<Gateway, GatewayError> {
        let config = self.config(&setup);
        let tasks = (self.tracker.clone(), self.cancel.clone());
        Gateway::start_bounded(config, self.store.clone(), tasks, setup.bounds, (setup.resolve, setup.dial))
            .await
    }

    pub(crate) async fn start(&self, setup: Setup) {
        Box::pin(self.try_start(setup)).await.unwrap();
        self.serves.store(true, Ordering::Relaxed);
    }

    /// Stops the gateway as the binary does and waits for its last task.
    pub(crate) async fn stop(&self) {
        self.cancel.cancel();
        self.serves.store(false, Ordering::Relaxed);
        self.tracker.close();
        tokio::time::timeout(PATIENCE, self.tracker.wait()).await.unwrap();
    }

    /// A running sandbox with a running run in it; beside a running gateway, with its door.
    pub(crate) async fn sandbox(&self, spec: RunSpec) -> Sandbox {
        self.store.create_run(new_run(spec)).await.unwrap();
        self.placed().await
    }

    /// The same of a further run of a session.
    pub(crate) async fn sandbox_in(&self, session: &SessionId, spec: RunSpec) -> Sandbox {
        let made = self.store.create_run_in(session.clone(), new_run(spec)).await.unwrap();
        assert!(matches!(made, CreateRun::Created(_)), "{made:?}");
        self.placed().await
    }

    async fn placed(&self) -> Sandbox {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let claimed = self.store.claim(&self.server).await.unwrap().unwrap();
        let id = SandboxId::new(1, [number; 10]);
        let directory = self.root.path().join("doors").join(id.as_str());
        std::fs::create_dir(&directory).unwrap();
        let control = Token::grant(GrantKind::Control, [number; 32]);
        let agent = Token::grant(GrantKind::Agent, [number; 32]);
        let sandbox = NewSandbox {
            id: id.clone(),
            session: claimed.run.session.clone(),
            server: self.server.clone(),
            engine: "test".to_owned(),
            image: "test".to_owned(),
            uid: 1000,
            control: control.hash(),
            agent: agent.hash(),
        };
        self.store.create_sandbox(&sandbox).await.unwrap();
        assert!(self.store.place(&claimed.run.id, claimed.epoch, &id).await.unwrap());
        assert!(self.store.set_sandbox_state(&id, SandboxState::Running).await.unwrap());
        let socket = directory.join("gateway.sock");
        if self.serves.load(Ordering::Relaxed) {
            eventually(|| async { socket.exists().then_some(()) }).await;
        }
        Sandbox {
            run: self.run(&claimed.run.id).await,
            id,
            epoch: claimed.epoch,
            control: control.expose().to_owned(),
            agent: agent.expose().to_owned(),
            socket,
        }
    }

    /// As long as this lives nobody can write to the database.
    pub(crate) async fn locked(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.root.path().join("caisson.db"));
        let mut database = options.connect().await.unwrap();
        sqlx::query("begin immediate").execute(&mut database).await.unwrap();
        database
    }

    /// Lets the store keep credentials.
    pub(crate) async fn unlock(&self) {
        self.store.unlock(MasterKeyFile::in_state_dir(self.root.path())).await.unwrap();
    }

    /// Adds a credential to the store.
    pub(crate) async fn add_credential(
        &self,
        name: &str,
        kind: CredentialKind,
        settings: &[(&'static str, &str)],
        secret: CredentialSecret,
    ) -> Credential {
        let settings = settings.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        let fields = CredentialFields { settings, ..CredentialFields::default() };
        let new = NewCredential {
            project: ProjectId::default_project(),
            name: name.to_owned(),
            settings: fields.settings(kind).unwrap(),
            secret,
        };
        self.store.add_credential(new, &Actor::Operator).await.unwrap()
    }

    /// Replaces a credential's secret.
    pub(crate) async fn rotate(&self, credential: &Credential, secret: &CredentialSecret) {
        let at = (&credential.project, &credential.id);
        self.store.rotate_credential(at, secret, &Actor::Operator).await.unwrap().unwrap();
    }

    pub(crate) async fn run(&self, id: &RunId) -> Run {
        self.store.run(&ProjectId::default_project(), id).await.unwrap().unwrap()
    }

    /// The run's events of one kind.
    pub(crate) async fn events(&self, run: &RunId, kind: EventKind) -> Vec<serde_json::Value> {
        let events = self.store.events(run, 0, 1000).await.unwrap();
        let wanted = events.iter().filter(|event| event.kind == kind);
        wanted.map(|event| serde_json::from_str(event.data.get()).unwrap()).collect()
    }

    /// Whether any byte under the world's directory (database, artifacts) has `needle`.
    pub(crate) fn disk_has(&self, needle: &str) -> bool {
        has(self.root.path(), needle.as_bytes())
    }
}

fn has(path: &Path, needle: &[u8]) -> bool {
    if path.is_dir() {
        return std::fs::read_dir(path).unwrap().any(|entry| has(&entry.unwrap().path(), needle));
    }
    path.is_file() && std::fs::read(path).unwrap().windows(needle.len()).any(|window| window == needle)
}

/// Whether the server of a test is root, without which the test that is `only` root's is skipped. Nothing may be skipped
/// where `TEST_REQUIRE` is set.
pub(crate) fn is_root(only: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        #[expect(clippy::disallowed_methods, reason = "a test is told that nothing may be skipped")]
        let required = std::env::var_os("TEST_REQUIRE").is_some();
        assert!(!required, "only root can {only}");
        println!("SKIPPED: only root can {only}");
    }
    is_root
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Sandbox {
    /// A client that speaks to this sandbox's socket alone.
    pub(crate) fn client(&self) -> reqwest::Client {
        let builder = reqwest::Client::builder().no_proxy().unix_socket(self.socket.clone());
        builder.timeout(PATIENCE).build().unwrap()
    }

    pub(crate) fn request(&self, method: Method, path: &str, grant: &str) -> reqwest::RequestBuilder {
        self.client().request(method, format!("http://gateway{path}")).bearer_auth(grant)
    }

    pub(crate) async fn control(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        fetch(self.request(method, path, &self.control).body(body)).await
    }

    pub(crate) async fn agent(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        fetch(self.request(method, path, &self.agent).body(body)).await
    }

    /// One line of this sandbox's journal.
    pub(crate) fn line(&self, body: JournalBody) -> Vec<u8> {
        let record = JournalRecord { run: self.run.id.clone(), attempt: self.run.attempt, body };
        let mut line = serde_json::to_vec(&record).unwrap();
        line.push(b'\n');
        line
    }
}

pub(crate) async fn fetch(request: reqwest::RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Reply { status, headers, body: response.bytes().await.unwrap() }
}

/// Looks again until `check` has something, for a bounded time: for what another task does at its own time.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(mut check: impl FnMut() -> F) -> T {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let look = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tick.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("it did not happen in time")
}

pub(crate) const OK: u16 = StatusCode::OK.as_u16();

/// A key or token as the secret of a credential.
pub(crate) fn value(text: &str) -> CredentialSecret {
    CredentialSecret::Value { value: text.to_owned().into(), proxy_login: None }
}
