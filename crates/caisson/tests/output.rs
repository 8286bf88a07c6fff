//! What commands print, for people and as JSON, and the code that they end with: the real binary, on a database with runs that
//! were put there, and against a real server on the same database.
//!
//! A new command needs a case here, or a line in [`ELSEWHERE`] that says which test looks at what it prints. The snapshots are
//! read before they are accepted (`cargo insta accept`).

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ProjectId, RunId, ServerId};
use caisson_domain::run::{Resources, RunSpec, RunStatus};
use caisson_domain::usage::TokenCounts;
use caisson_domain::workflow::Workflow;
use caisson_store::{
    Clock, ClockHandle, CreateRun, Finish, NewArtifact, NewModelCall, NewRun, SettledCall, Store,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use testkit::api::Api;
use testkit::parts::Parts;
use testkit::process::ServerSpec;

/// Commands whose output other tests look at.
const ELSEWHERE: [(&str, &str); 15] = [
    ("run", "tests/follow.rs"),
    ("attach", "tests/attach.rs"),
    ("serve", "it logs"),
    ("doctor", "tests/cli.rs; what it finds is the machine's"),
    ("demo", "tests/main_job.rs"),
    ("db copy", "tests/database.rs"),
    ("agent install", "src/agents_tests.rs"),
    ("image build", "the engine's contract"),
    ("image scan", "tests/image_scan.rs"),
    ("openapi", "the snapshot of the API"),
    ("input", "tests/inputs.rs"),
    ("approve", "tests/inputs.rs"),
    ("deny", "tests/inputs.rs"),
    ("session fork", "tests/sessions.rs"),
    ("mcp", "tests/mcp_server.rs"),
];
/// When everything happened that was put there, Unix ms: 2023-11-14T22:13:20Z.
const THEN_MS: i64 = 1_700_000_000_000;
const PATCH: &str = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";
const WORKFLOW: &str = "---\nname: fix\ndescription: Fixes bugs.\ncaisson: {timeout_s: 600}\n---\nFix it.\n";

/// A machine with a database.
struct Scene {
    directory: tempfile::TempDir,
    spec: ServerSpec,
    key: String,
    /// What cases name: `$RUN`, `$QUEUED`, `$KEY`, `$SERVER`, `$DIR`.
    names: Vec<(&'static str, String)>,
    /// What was printed, by the first word of the command.
    printed: Vec<(String, String)>,
    /// The commands that were typed.
    typed: BTreeSet<String>,
}

impl Scene {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let parts = Parts {
            docker_host: "unix:///nonexistent/docker.sock".to_owned(),
            agents_dir: directory.path().join("agents"),
            shim: env!("CARGO_BIN_EXE_caisson").into(),
            caisson: env!("CARGO_BIN_EXE_caisson").into(),
        };
        let mut spec =
            ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
        spec.set("ENGINE", "docker");
        let made =
            spec.command(&["key", "create", "operator", "--scope", "admin", "--json"]).output().unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        let key = made["secret"].as_str().unwrap().to_owned();
        let names = fill(&spec.state_dir).await;
        let dir = directory.path().to_str().unwrap().to_owned();
        let names = names.into_iter().chain([("$DIR", dir)]).collect();
        Self { directory, spec, key, names, printed: Vec::new(), typed: BTreeSet::new() }
    }

    /// Types a command; what is printed goes to its group.
    fn type_in(&mut self, line: &str, code: i32) {
        let filled = self.names.iter().fold(line.to_owned(), |text, (name, value)| text.replace(name, value));
        let words: Vec<&str> = filled.split(' ').collect();
        let mut command = self.spec.command(&words);
        command.env("CAISSON_URL", format!("http://{}", self.spec.listen)).env("CAISSON_API_KEY", &self.key);
        let output = command.output().unwrap();
        let (out, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(code), "{line}: {out}\n{error}");
        if words.contains(&"--json") {
            for document in out.lines() {
                assert!(serde_json::from_str::<serde_json::Value>(document).is_ok(), "{line}: {document}");
            }
            assert!(!out.is_empty(), "{line} prints nothing");
        }
        let mut told = format!("$ caisson {line}\n{out}");
        if !error.is_empty() {
            write!(told, "--- standard error\n{error}").unwrap();
        }
        writeln!(told, "--- ends with {code}\n").unwrap();
        let group = words[0].to_owned();
        self.typed.insert(line.to_owned());
        let size = self.directory.path().join("backup.db").metadata().map_or(0, |file| file.len());
        let told =
            if line.starts_with("db backup") { told.replace(&size.to_string(), "1000000") } else { told };
        self.printed.push((group, self.steady(&told)));
    }

    /// Without what differs each time: digits of ids, hashes, times, places.
    fn steady(&self, text: &str) -> String {
        let dir = self.directory.path().to_str().unwrap();
        let text = text.replace(dir, "$DIR").replace(&self.spec.listen, "HOST:PORT");
        let (mut out, mut word) = (String::new(), String::new());
        for character in text.chars().chain(['\n']) {
            if character.is_ascii_alphanumeric() || matches!(character, '-' | ':') {
                word.push(character);
                continue;
            }
            out.push_str(&steady_word(&word));
            word.clear();
            out.push(character);
        }
        out.truncate(out.len() - 1);
        out
    }
}

fn steady_word(word: &str) -> String {
    /// Of ids, hashes and the names of keys.
    const DIGITS: usize = 16;
    let bare = word.trim_matches(':');
    if bare.is_empty() {
        return word.to_owned();
    }
    let hexadecimal = bare.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let is_time = bare.len() == 20 && bare.ends_with('Z') && bare.as_bytes()[10] == b'T';
    let steady = if bare.len() >= DIGITS && hexadecimal {
        "0".repeat(bare.len())
    } else if is_time && !bare.starts_with("2023-") {
        "2030-01-01T00:00:00Z".to_owned()
    } else if bare.len() == 13 && bare.bytes().all(|byte| byte.is_ascii_digit()) && !bare.starts_with("1700")
    {
        // Unix ms of now.
        "1900000000000".to_owned()
    } else {
        bare.to_owned()
    };
    word.replace(bare, &steady)
}

/// A run that has ended, one that waits, and a server that is gone, all of them made a while ago.
async fn fill(state: &Path) -> Vec<(&'static str, String)> {
    let (clock, handle) = Clock::fixed_at(THEN_MS);
    let store = Store::open(&state.join("caisson.db"), clock).await.unwrap();
    let server: ServerId = std::fs::read_to_string(state.join("server_id")).unwrap().trim().parse().unwrap();
    let gone = ServerId::new(THEN_MS, [7; 10]);
    store.register_server(&gone).await.unwrap();
    store.register_server(&server).await.unwrap();
    let project = ProjectId::default_project();
    store.put_workflow(&project, &Workflow::parse(WORKFLOW).unwrap()).await.unwrap();
    let (key, _) = store.create_api_key(&project, "laptop", &[]).await.unwrap();
    let run = ended(&store, &handle, &server, state).await;
    handle.advance(1_000);
    let queued = create(&store, "Review the calendar.").await;
    let session = store.run(&project, &run).await.unwrap().unwrap().session;
    store.close().await.unwrap();
    vec![
        ("$SESSION", session.to_string()),
        ("$RUN", run.to_string()),
        ("$QUEUED", queued.to_string()),
        ("$KEY", key.to_string()),
        ("$SERVER", gone.to_string()),
    ]
}

async fn create(store: &Store, prompt: &str) -> RunId {
    let spec = RunSpec {
        workflow: Workflow::parse(WORKFLOW).unwrap(),
        prompt: prompt.to_owned(),
        repository: None,
        base: None,
        anchor: None,
        branch: None,
        model: None,
        max_turns: None,
        image: None,
        timeout_s: 600,
        budget_micro_usd: None,
        budget_soft_percent: None,
        resources: Resources::default(),
        environment: std::collections::BTreeMap::new(),
        priority: 0,
        // It waits for as long as the test runs.
        start_at_ms: None,
        parameters: caisson_domain::parameters::Values::new(),
        output_schema: None,
        attachments: Vec::new(),
        workflow_version: None,
    };
    let new = NewRun { project: ProjectId::default_project(), created_by: None, spec, idempotency: None };
    let CreateRun::Created(run) = store.create_run(new).await.unwrap() else { panic!("not created") };
    run.id
}

async fn ended(store: &Store, clock: &ClockHandle, server: &ServerId, state: &Path) -> RunId {
    let run = create(store, "Fix the leap day bug.").await;
    let claimed = store.claim(server).await.unwrap().unwrap();
    clock.advance(500);
    let said = json!({"type": "assistant", "message": {"id": "m", "content": [
        {"type": "text", "text": "The rule for centuries is missing."},
    ]}});
    let line = NewEvent::new(EventKind::AgentLine, &said);
    assert!(store.append_run_event(&run, claimed.epoch, line).await.unwrap());
    let used = json!({"items": [{"host": "pypi.example", "port": 443, "via": "tunnel", "method": null}]});
    let event = NewEvent::new(EventKind::EgressUsed, &used);
    assert!(store.append_run_event(&run, claimed.epoch, event).await.unwrap());
    for (model, input, estimated) in [("claude-sonnet-5", 1_200, false), ("claude-haiku-5-5", 90, true)] {
        let new = NewModelCall {
            model: model.to_owned(),
            estimate: TokenCounts::default(),
            estimate_cost_micro_usd: 0,
            reserve_micro_usd: 0,
            only_alone: false,
        };
        let id = store.begin_model_call(&run, &new).await.unwrap().begun().unwrap();
        let settled = SettledCall {
            model: model.to_owned(),
            status: 200,
            tokens: TokenCounts {
                input,
                output: 340,
                cache_read: 18_000,
                cache_write_5m: 2_500,
                cache_write_1h: 0,
            },
            cost_micro_usd: 10 * input,
            estimated,
            first_byte_ms: Some(40),
            duration_ms: 900,
        };
        assert!(store.settle_model_call(&id, &settled).await.unwrap());
    }
    let place = state.join("artifacts").join(run.as_str());
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("diff.patch"), PATCH).unwrap();
    let artifact = NewArtifact {
        name: "diff.patch".to_owned(),
        size_bytes: i64::try_from(PATCH.len()).unwrap(),
        sha256: hex::encode(Sha256::digest(PATCH)),
        path: place.join("diff.patch").to_str().unwrap().to_owned(),
    };
    store.put_artifact(&run, &artifact).await.unwrap();
    clock.advance(1_500);
    let finish = Finish {
        status: RunStatus::Succeeded,
        failure: None,
        result: Some("The calendar knows centuries.".to_owned()),
    };
    assert!(store.finish(&run, claimed.epoch, &finish).await.unwrap());
    run
}

/// Commands on the server's machine.
const MACHINE: [&str; 33] = [
    "key create ci --scope runs:read --expires 30d",
    "key create robot --json",
    "key list",
    "key list --json",
    "key revoke $KEY",
    "project create team-a",
    "project create team-b --json",
    "project list",
    "project list --json",
    "project set team-a --weight 3 --max-running 4",
    "project set team-a --max-queued 9 --json",
    "project retention team-a --events 30",
    "project retention team-a --json",
    "credential add team --kind git_token --set url_prefix=https://git.example.com/team --from $DIR/token",
    "credential add other --kind git_token --set url_prefix=https://git.example.com/other --from $DIR/token --json",
    "credential list",
    "credential list --json",
    "credential rotate team --from $DIR/token",
    "credential rotate team --from $DIR/token --json",
    "credential remove other",
    "credential remove team --json",
    "credential rekey",
    "credential rekey --json",
    "db migrate",
    "db migrate --json",
    "db backup $DIR/backup.db",
    "db backup $DIR/again.db --json",
    "gc --dry-run",
    "agent list",
    "image tag",
    "image tag --json",
    "workflow new greeter --dir $DIR",
    "workflow new other --dir $DIR --json",
];

/// Commands that look at what others did.
const LOOKS: [&str; 7] = [
    "db check",
    "db check --json",
    "audit verify",
    "audit verify --json",
    "audit export --after 8",
    "workflow validate $DIR/greeter.md",
    "workflow validate $DIR/greeter.md --json",
];

/// Commands that call the API.
const CLIENT: [&str; 49] = [
    "ps",
    "ps --status succeeded --json",
    "show $RUN",
    "show $RUN --json",
    "logs $RUN",
    "logs $RUN --json",
    "diff $RUN",
    "diff $RUN --json",
    "artifacts $RUN",
    "artifacts $RUN --json",
    "artifacts $RUN diff.patch -o $DIR/out.patch",
    "egress suggest $RUN",
    "egress suggest $RUN --json",
    "usage --since 2023-11-01T00:00:00Z --until 2023-12-01T00:00:00Z",
    "usage --by model --since 2023-11-01T00:00:00Z --until 2023-12-01T00:00:00Z",
    "usage --by run --run $RUN --since 2023-11-01T00:00:00Z --until 2023-12-01T00:00:00Z",
    "usage --by project --all-projects --since 2023-11-01T00:00:00Z --until 2023-12-01T00:00:00Z",
    "usage --by model --limit 1 --since 2023-11-01T00:00:00Z --until 2023-12-01T00:00:00Z",
    "usage --by workflow --since 2023-11-01T00:00:00Z --until 2023-12-01T00:00:00Z --json",
    "budget set --total 250 --day none",
    "budget set --day 20 --json",
    "budget show",
    "budget show --json",
    "workflow list",
    "workflow list --json",
    "workflow put $DIR/greeter.md",
    "workflow put $DIR/greeter.md --json",
    "workflow show greeter",
    "workflow show greeter --json",
    "workflow remove greeter",
    "drain",
    "queue",
    "resume",
    "resume --json",
    "queue --json",
    "servers",
    "servers --json",
    "servers forget $SERVER",
    "cancel $QUEUED",
    "cancel $QUEUED --json",
    "approvals $RUN",
    "session list",
    "session list --json",
    "session show $SESSION",
    "session show $SESSION --json",
    "session messages $SESSION",
    "session messages $SESSION --json",
    "session delete $SESSION",
    "completion fish",
];

#[tokio::test(flavor = "multi_thread")]
async fn what_every_command_prints_changes_only_on_purpose() {
    let mut scene = Scene::start().await;
    std::fs::write(scene.directory.path().join("token"), "a-token-of-a-git-host\n").unwrap();
    for line in MACHINE {
        scene.type_in(line, 0);
    }
    for line in LOOKS {
        scene.type_in(line, 0);
    }
    std::fs::write(scene.directory.path().join("bad.md"), "no front matter").unwrap();
    scene.type_in("workflow validate $DIR/bad.md --json", 1);
    let server = scene.spec.spawn().unwrap();
    wait_listed(&scene, &server).await;
    for line in CLIENT {
        scene.type_in(line, 0);
    }
    scene.type_in("show 00000000", 1);
    assert_all_commands(&scene.typed);
    let groups: BTreeSet<&String> = scene.printed.iter().map(|(group, _)| group).collect();
    for group in groups.into_iter().filter(|group| *group != "completion") {
        let of_group = scene.printed.iter().filter(|(of, _)| of == group);
        let text: String = of_group.map(|(_, text)| text.as_str()).collect();
        insta::assert_snapshot!(group.as_str(), text);
    }
    let completion = scene.printed.iter().find(|(group, _)| group == "completion").unwrap();
    for part in ["__fish_caisson", "all-projects", "attach"] {
        assert!(completion.1.contains(part), "{part}");
    }
    assert!(!completion.1.contains("supervise"), "what nobody types is not completed");
}

/// Waits until the server is one of those it lists itself.
async fn wait_listed(scene: &Scene, server: &testkit::process::ServerProcess) {
    let api = Api::new(&server.base, &scene.key).unwrap();
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", server.log());
        if let Ok(answer) = api.get("/v1/servers").await
            && answer.body["items"].as_array().into_iter().flatten().any(|one| {
                one["parts"].as_array().is_some_and(|parts| parts.len() == 3)
                    && one["problems"][0].is_object()
            })
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every command of `docs/cli.md`, which names all there are, was typed or is looked at elsewhere.
fn assert_all_commands(typed: &BTreeSet<String>) {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let document = std::fs::read_to_string(document).unwrap();
    let named = document.lines().filter_map(|line| line.strip_prefix("### `caisson ")?.strip_suffix('`'));
    let named: Vec<&str> = named.collect();
    assert!(named.len() > 40, "{named:?}");
    let is_of = |line: &str, name: &str| line == name || line.starts_with(&format!("{name} "));
    let missing: Vec<_> = named
        .into_iter()
        .filter(|name| !typed.iter().any(|line| is_of(line, name)))
        .filter(|name| ELSEWHERE.iter().all(|(elsewhere, _)| elsewhere != name))
        .collect();
    assert!(missing.is_empty(), "give each of these a case: {missing:?}");
}

#[test]
fn completions_are_what_the_shell_takes() {
    let directory = tempfile::tempdir().unwrap();
    let parts = Parts {
        docker_host: String::new(),
        agents_dir: directory.path().into(),
        shim: env!("CARGO_BIN_EXE_caisson").into(),
        caisson: env!("CARGO_BIN_EXE_caisson").into(),
    };
    let spec = ServerSpec::new(&parts, directory.path(), "http://127.0.0.1:9").unwrap();
    let script = spec.command(&["completion", "bash"]).output().unwrap();
    assert!(script.status.success());
    let file = directory.path().join("caisson.bash");
    std::fs::write(&file, &script.stdout).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the shell that is to take it")]
    let mut bash = std::process::Command::new("bash");
    // What the shell would offer behind `caisson cre`, and behind `caisson usage --b`.
    let asked = "source \"$0\"; COMP_WORDS=(caisson cre); COMP_CWORD=1; _caisson caisson cre caisson; echo \"${COMPREPLY[@]}\"; \
                 COMP_WORDS=(caisson usage --b); COMP_CWORD=2; _caisson caisson --b usage; echo \"${COMPREPLY[@]}\"";
    let output = bash.args(["--norc", "-c", asked]).arg(&file).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "credential\n--by\n", "{}", String::from_utf8_lossy(&output.stderr));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = spec.command(&["completion", shell]).output().unwrap();
        let text = String::from_utf8(script.stdout).unwrap();
        assert!(script.status.success() && text.contains("egress") && !text.contains("supervise"), "{shell}");
    }
    assert_eq!(spec.command(&["completion", "csh"]).output().unwrap().status.code(), Some(2));
}
