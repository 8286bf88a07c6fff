//! What commands print, for people and as JSON, and the code that they end with: the real binary, on a database with runs that
//! were put there, and against a real server on the same database.
//!
//! What is typed is in `output/lines.rs`; what needs a run that goes on is typed in `output/live.rs`, against a real agent. A new
//! command needs a case in one of them, or a line in [`WITHOUT`] that says why not. The snapshots are read before they are accepted
//! (`cargo insta accept`).

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::json;
use sha2::{Digest, Sha512};
use testkit::api::Api;
use testkit::ground::{Database, Ground};
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;

#[path = "output/filling.rs"]
mod filling;
#[path = "output/lines.rs"]
mod lines;
#[path = "output/live.rs"]
mod live;
mod support;

testkit::on_every_database! {
    what_every_command_prints_changes_only_on_purpose
}

/// Commands without a snapshot of what they print, and why.
const WITHOUT: [(&str, &str); 4] = [
    ("serve", "it prints nothing and logs until it is stopped"),
    ("image build", "it prints what Debian's installer says, and that is another day's every day"),
    ("openapi", "it prints the document that has a snapshot beside the API, with which it is compared below"),
    ("completion", "it prints the shell library's script of every flag; bash takes it below"),
];
/// What `doctor` finds that is the machine's, or where the database is.
const OF_THE_MACHINE: [&str; 5] = ["database", "sessions", "shim", "git", "disk"];
/// The columns of what `doctor` prints before it tells what it has found.
const DOCTOR_HEAD: usize = 20;

/// A machine with a database.
struct Scene {
    directory: tempfile::TempDir,
    spec: ServerSpec,
    /// The database, if it is not a file there.
    postgres: Option<Postgres>,
    key: String,
    /// What cases name: `$RUN`, `$QUEUED`, `$SESSION`, `$KEY`, `$SERVER`, `$DIR`, `$INTEGRITY`, `$LISTEN`.
    names: Vec<(&'static str, String)>,
    /// What was printed, by the first word of the command.
    printed: Vec<(String, String)>,
    /// The commands that were typed.
    typed: BTreeSet<String>,
}

impl Scene {
    async fn start(database: Database) -> Self {
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
        let postgres = database.make(&mut spec).await.unwrap();
        let made =
            spec.command(&["key", "create", "operator", "--scope", "admin", "--json"]).output().unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        let key = made["secret"].as_str().unwrap().to_owned();
        let names = filling::fill(&spec, postgres.as_ref()).await;
        let dir = directory.path().to_str().unwrap().to_owned();
        let listen = spec.listen.clone();
        let integrity = package(&directory.path().join("package.tgz"));
        let names = names
            .into_iter()
            .chain([("$DIR", dir), ("$INTEGRITY", integrity), ("$LISTEN", listen)])
            .collect();
        Self { directory, spec, postgres, key, names, printed: Vec::new(), typed: BTreeSet::new() }
    }

    fn filled(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// Types a command; what is printed goes to its group.
    fn type_in(&mut self, line: &str, code: i32) {
        self.type_with(line, code, "");
    }

    /// The same, with something on standard input.
    fn type_with(&mut self, line: &str, code: i32, input: &str) {
        let (filled, input) = (self.filled(line), self.filled(input));
        let words: Vec<&str> = filled.split(' ').collect();
        let mut command = self.spec.command(&words);
        command.env("CAISSON_URL", format!("http://{}", self.spec.listen)).env("CAISSON_API_KEY", &self.key);
        let output = output_of(command, &input);
        let (out, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(code), "{line}: {out}\n{error}");
        if words.contains(&"--json") {
            for document in out.lines() {
                assert!(serde_json::from_str::<serde_json::Value>(document).is_ok(), "{line}: {document}");
            }
            assert!(!out.is_empty(), "{line} prints nothing");
        }
        let out = match words[0] {
            "doctor" => everywhere(&out),
            "mcp" => sorted(&out),
            _ => out,
        };
        let mut told = format!("$ caisson {line}\n{out}");
        if !error.is_empty() {
            write!(told, "--- standard error\n{error}").unwrap();
        }
        writeln!(told, "--- ends with {code}\n").unwrap();
        // Where there is no PostgreSQL, there is no such group.
        let group = if line.starts_with("db copy") { "db_copy" } else { words[0] }.to_owned();
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
        steady_words(&text.replace(&self.filled("$INTEGRITY"), "$INTEGRITY"))
    }

    /// Types what needs PostgreSQL, if there is one.
    async fn copy(&mut self) {
        self.typed.insert("db copy".to_owned());
        for flags in ["", " --json"] {
            let Some(postgres) = Postgres::make().await.unwrap() else { return };
            std::fs::write(self.directory.path().join("url"), postgres.url()).unwrap();
            self.type_in(&format!("db copy --to-url-file $DIR/url{flags}"), 0);
        }
    }
}

/// What a command comes to that is given this on standard input.
fn output_of(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who reads nothing may have ended before.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

/// A package of the agent, of no version that is known; its integrity.
fn package(file: &Path) -> String {
    let encoder =
        flate2::write::GzEncoder::new(std::fs::File::create(file).unwrap(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(encoder);
    let about = r#"{"name":"@anthropic-ai/claude-code-linux-x64","version":"9.9.9"}"#;
    for (path, text) in [("package/package.json", about), ("package/claude", "#!/bin/sh\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap();
    let digest = Sha512::digest(std::fs::read(file).unwrap());
    format!("sha512-{}", base64::engine::general_purpose::STANDARD.encode(digest))
}

/// Answers come in any order; each begins with its number.
fn sorted(out: &str) -> String {
    let lines: BTreeSet<&str> = out.lines().collect();
    lines.into_iter().map(|line| line.to_owned() + "\n").collect()
}

/// What `doctor` prints, without what it has found of the machine.
fn everywhere(out: &str) -> String {
    let line = |line: &str| {
        let of = |check: &str| OF_THE_MACHINE.contains(&check.trim());
        if let Ok(mut document) = serde_json::from_str::<serde_json::Value>(line) {
            if document["check"].as_str().is_some_and(of) {
                document["message"] = json!("…");
            }
            return format!("{document}\n");
        }
        let head: String = line.chars().take(DOCTOR_HEAD).collect();
        let check: String = head.chars().skip(6).collect();
        if of(&check) { format!("{head}…\n") } else { format!("{line}\n") }
    };
    // Whether its kernel lets processes reach into each other is told of only where it does.
    out.lines().filter(|line| !line.contains("reach into the agent")).map(line).collect()
}

/// Without what differs each time: digits of ids, hashes, times.
fn steady_words(text: &str) -> String {
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
    // A copy is made to a place of the test's own.
    match (out.find("Everything is in "), out.find(", read back")) {
        (Some(from), Some(to)) => format!("{}Everything is in $POSTGRES{}", &out[..from], &out[to..]),
        _ => out,
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

/// The same on both databases, by the same snapshots, but for what `db` tells of the place itself (`tests/database.rs`).
async fn what_every_command_prints_changes_only_on_purpose(ground: Ground) {
    let mut scene = Scene::start(ground.database).await;
    let is_file = scene.postgres.is_none();
    std::fs::write(scene.directory.path().join("token"), "a-token-of-a-git-host\n").unwrap();
    for line in lines::MACHINE {
        if is_file || !line.starts_with("db backup") {
            scene.type_in(line, 0);
        }
    }
    for line in lines::LOOKS {
        scene.type_in(line, 0);
    }
    std::fs::write(scene.directory.path().join("bad.md"), "no front matter").unwrap();
    scene.type_in("workflow validate $DIR/bad.md --json", 1);
    scene.type_in("doctor --listen $LISTEN", 1);
    scene.type_in("doctor --listen $LISTEN --json", 1);
    if is_file {
        scene.copy().await;
    }
    let server = scene.spec.spawn().unwrap();
    wait_listed(&scene, &server).await;
    for line in lines::CLIENT {
        scene.type_in(line, 0);
    }
    scene.type_in("show 00000000", 1);
    scene.type_with("mcp", 0, &spoken());
    scene.type_in("session delete $SESSION", 0);
    if is_file {
        assert_all_commands(&scene.typed);
    }
    let groups: BTreeSet<&String> = scene.printed.iter().map(|(group, _)| group).collect();
    for group in groups.into_iter().filter(|group| *group != "completion" && (is_file || *group != "db")) {
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

/// What a client of the Model Context Protocol says.
fn spoken() -> String {
    let about = json!({"name": "test", "version": "1"});
    let parameters = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": about});
    let call = json!({"name": "result", "arguments": {"run": "$RUN"}});
    let messages = [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": parameters}),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}),
    ];
    let lines: Vec<String> = messages.iter().map(ToString::to_string).collect();
    lines.join("\n") + "\n"
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

/// Every command of `docs/cli.md`, which names all there are, was typed here or is typed on a live run, unless it is told why not.
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
        .filter(|name| !live::TYPED.contains(name) && WITHOUT.iter().all(|(without, _)| without != name))
        .collect();
    assert!(missing.is_empty(), "give each of these a case: {missing:?}");
    for name in live::TYPED {
        let snapshot = format!("tests/output/snapshots/output__live__{}.snap", name.replace(' ', "_"));
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(snapshot)).unwrap();
        assert!(text.contains(&format!("$ caisson {name}")), "{name} is typed on no live run");
    }
}

#[test]
fn the_document_of_the_api_is_printed_as_it_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let parts = Parts {
        docker_host: String::new(),
        agents_dir: directory.path().into(),
        shim: env!("CARGO_BIN_EXE_caisson").into(),
        caisson: env!("CARGO_BIN_EXE_caisson").into(),
    };
    let spec = ServerSpec::new(&parts, directory.path(), "http://127.0.0.1:9").unwrap();
    let printed = spec.command(&["openapi"]).output().unwrap();
    let printed: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    let kept =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/api/snapshots/api__openapi__openapi.snap");
    let kept = std::fs::read_to_string(kept).unwrap();
    let (_, kept) = kept.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    assert!(printed == serde_json::from_str::<serde_json::Value>(kept).unwrap());
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
