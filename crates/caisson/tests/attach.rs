//! `caisson attach` and the line on a terminal, against a small server that says what a run's server would: what is sent to it
//! is looked at byte for byte.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::engine::signal;

const RUN: &str = "run_0192f3a4b5c6d7e8f9a0b1c2d3e4f506";
const OTHER: &str = "run_0192f3a4b5c6d7e8f9a0b1c2d3e4f507";
const SESSION: &str = "ses_0192f3a4b5c6d7e8f9a0b1c2d3e4f508";
/// It ends what hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the server knows.
struct Shared {
    status: Mutex<String>,
    /// Requests of inputs, with their idempotency keys.
    inputs: Mutex<Vec<(String, Value)>>,
    /// Numbers of inputs that come too late for the agent.
    late: Mutex<Vec<usize>>,
    /// Keys of inputs that there was no room for.
    waiting: Mutex<Vec<String>>,
    /// Whether the first events were sent.
    watched: AtomicBool,
    /// What the stream of events goes on with.
    ends: Mutex<Receiver<()>>,
    end: Sender<()>,
}

/// A server of one run. An input "refuse" is refused, for one "crowd" there is room at the third try, for one "stuck" never;
/// one "late" never reaches the agent, and an input "finish" ends the run.
struct Stub {
    url: String,
    shared: Arc<Shared>,
}

impl Stub {
    fn start(status: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (end, ends) = channel();
        let shared = Arc::new(Shared {
            status: Mutex::new(status.to_owned()),
            inputs: Mutex::default(),
            late: Mutex::default(),
            waiting: Mutex::default(),
            watched: AtomicBool::new(false),
            ends: Mutex::new(ends),
            end,
        });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { url, shared }
    }

    fn finish(&self) {
        finish(&self.shared);
    }

    fn is_watched(&self) -> bool {
        self.shared.watched.load(Ordering::SeqCst)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        #[expect(clippy::disallowed_methods, reason = "the binary under test, with an argument vector")]
        let mut command = Command::new(env!("CARGO_BIN_EXE_caisson"));
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
        command.env("CAISSON_URL", &self.url).env("CAISSON_API_KEY", "csk_x");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn inputs(&self) -> Vec<Value> {
        self.shared.inputs.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

fn finish(shared: &Shared) {
    "succeeded".clone_into(&mut shared.status.lock().unwrap());
    shared.end.send(()).unwrap();
}

fn answer(stream: TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut bytes, mut key) = (String::new(), 0_usize, String::new());
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let lower = line.trim().to_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some(length) = lower.strip_prefix("content-length: ") {
            bytes = length.parse().unwrap();
        }
        if let Some(given) = lower.strip_prefix("idempotency-key: ") {
            given.clone_into(&mut key);
        }
    }
    let mut body = vec![0; bytes];
    reader.read_exact(&mut body).unwrap();
    let path = first.split(' ').nth(1).unwrap_or_default();
    if let Some(query) = path.strip_prefix("/v1/runs?") {
        return send(stream, "200 OK", &listed(query, &shared.status.lock().unwrap()));
    }
    match path.strip_prefix(&format!("/v1/runs/{RUN}")) {
        Some("/inputs") => input(stream, shared, &key, &serde_json::from_slice(&body).unwrap()),
        Some("/events") => events(stream, shared),
        Some("/artifacts") => send(stream, "200 OK", &json!({"items": []})),
        Some("") => {
            let status = shared.status.lock().unwrap().clone();
            send(stream, "200 OK", &json!({"id": RUN, "status": status}));
        }
        Some(_) | None => send(stream, "404 Not Found", &json!({"code": "unknown_route", "detail": first})),
    }
}

/// The runs that a query finds: besides the one there is a newer one, which has ended.
fn listed(query: &str, status: &str) -> Value {
    let newer = json!({"id": OTHER, "status": "failed"});
    let run = json!({"id": RUN, "status": status});
    let asked = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    let of_session = asked("session").is_none_or(|session| session == SESSION);
    let fits =
        |item: &Value| of_session && asked("status").is_none_or(|wanted| item["status"] == wanted.as_str());
    let items: Vec<Value> = [newer, run].into_iter().filter(fits).collect();
    json!({ "items": items })
}

fn send(mut stream: TcpStream, status: &str, body: &Value) {
    let kind = if status.starts_with('2') { "application/json" } else { "application/problem+json" };
    let text = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    // Whoever detached is gone.
    stream.write_all(head.as_bytes()).ok();
}

fn input(stream: TcpStream, shared: &Shared, key: &str, body: &Value) {
    if body["text"] == "refuse" {
        let problem = json!({"code": "run_not_live", "detail": "the run takes no more inputs"});
        return send(stream, "409 Conflict", &problem);
    }
    if body["text"] == "crowd" || body["text"] == "stuck" {
        let mut waiting = shared.waiting.lock().unwrap();
        let tries = waiting.iter().filter(|tried| *tried == key).count();
        if body["text"] == "stuck" || tries < 2 {
            waiting.push(key.to_owned());
            let seconds = if body["text"] == "stuck" { 86_400 } else { 1 };
            let problem =
                json!({"code": "inputs_full", "detail": "as many inputs are on their way as may be"});
            return send(stream, &format!("429 Too Many Requests\r\nretry-after: {seconds}"), &problem);
        }
    }
    let mut inputs = shared.inputs.lock().unwrap();
    inputs.push((key.to_owned(), body.clone()));
    let number = inputs.len();
    drop(inputs);
    if body["text"] == "late" {
        shared.late.lock().unwrap().push(number);
    }
    send(stream, "202 Accepted", &json!({"seq": number}));
    if body["text"] == "finish" {
        finish(shared);
    }
}

fn events(mut stream: TcpStream, shared: &Shared) {
    let tool = json!({"type": "tool_use", "name": "Bash", "input": {"command": "make test"}});
    let first = [
        ("run.queued", json!({"workflow": "fix"})),
        ("run.phase", json!({"phase": "agent"})),
        ("agent.line", json!({"type": "assistant", "message": {"id": "m", "content": [tool]}})),
    ];
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let mut write = |text: &str| stream.write_all(text.as_bytes()).ok();
    let event = |seq: usize, kind: &str, data: &Value| {
        let event = json!({"seq": seq, "at_ms": 1_000 * seq, "kind": kind, "data": data});
        format!("id: {seq}\ndata: {event}\n\n")
    };
    write(head);
    for (number, (kind, data)) in first.iter().enumerate() {
        write(&event(number + 1, kind, data));
    }
    shared.watched.store(true, Ordering::SeqCst);
    if shared.ends.lock().unwrap().recv_timeout(PATIENCE).is_ok() {
        for (place, number) in shared.late.lock().unwrap().iter().enumerate() {
            write(&event(100 + place, "input.undelivered", &json!({"input": number})));
        }
        write(&event(200, "run.finished", &json!({"status": "succeeded"})));
        write("event: end\ndata: {}\n\n");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that is told these lines.
fn told(stub: &Stub, arguments: &[&str], lines: &str) -> Output {
    let mut child = stub.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    // One that ends by itself may have ended before.
    child.stdin.take().unwrap().write_all(lines.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

/// Waits for a line of a command's standard output that has this part.
fn wait_for(child: &mut Child, part: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(part)), "{part} never came");
    // What comes after it has somewhere to go.
    std::thread::spawn(move || lines.for_each(drop));
}

#[test]
fn typed_lines_are_sent_in_order_and_a_refusal_ends_nothing() {
    let stub = Stub::start("running");
    let lines =
        "use Python 3\n\n/queue then the docs\n/quit\nrefuse\n/interrupt\n//etc/hosts is wrong\nfinish\n";
    let output = told(&stub, &["attach", RUN], lines);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "what came from a pipe was not all sent: {said}");
    let input = |kind: &str, text: &str| json!({"kind": kind, "text": text});
    let expected = [
        input("steer", "use Python 3"),
        input("queue", "then the docs"),
        json!({"kind": "interrupt"}),
        input("steer", "/etc/hosts is wrong"),
        input("steer", "finish"),
    ];
    assert_eq!(stub.inputs(), expected);
    let keys = stub.shared.inputs.lock().unwrap();
    let keys: std::collections::BTreeSet<_> = keys.iter().map(|(key, _)| key.clone()).collect();
    assert!(keys.len() == expected.len() && !keys.contains(""), "each has a key of its own: {keys:?}");
    for part in [
        "sent (queue)",
        "there is no /quit",
        "not sent: the run takes no more inputs [run_not_live]",
        "not sent to the agent (2):\n  /quit\n  refuse\n",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let account = text(&output.stdout);
    assert!(account.contains("phase agent") && account.contains("> Bash make test"), "{account}");
    assert!(account.contains("succeeded (") && !account.contains('\u{1b}'), "{account}");
}

#[test]
fn a_run_is_followed_to_its_end_when_nothing_more_is_typed() {
    let stub = Stub::start("running");
    let mut child = stub.command(&["attach", RUN, "--json"]).spawn().unwrap();
    wait_for(&mut child, "agent.line");
    stub.finish();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(stub.inputs(), Vec::<Value>::new());
}

#[test]
fn an_input_that_there_is_no_room_for_is_sent_again_in_its_turn_with_the_same_key() {
    let stub = Stub::start("running");
    let begun = Instant::now();
    let output = told(&stub, &["attach", RUN], "one\ncrowd\n/queue behind it\nfinish\n");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let texts: Vec<_> = stub.inputs().iter().map(|body| body["text"].clone()).collect();
    assert_eq!(texts, ["one", "crowd", "behind it", "finish"], "in the order in which they came");
    let (waiting, sent) = (stub.shared.waiting.lock().unwrap(), stub.shared.inputs.lock().unwrap());
    assert_eq!(*waiting, [sent[1].0.clone(), sent[1].0.clone()], "each try has the same key");
    assert!(begun.elapsed() >= Duration::from_secs(2), "it came again when it was told to");
    assert_eq!(said.matches("not sent yet, and tried again: as many inputs").count(), 1, "{said}");
}

#[test]
fn what_was_not_sent_when_the_run_is_over_is_told_and_is_the_exit_code() {
    let stub = Stub::start("running");
    let mut child = stub.command(&["attach", RUN]).stdin(Stdio::piped()).spawn().unwrap();
    // The pipe stays open: nobody says that there is no more.
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(b"one\nstuck\nafter it\n\n/queue later\n/help\n").unwrap();
    let begun = Instant::now();
    while stub.shared.waiting.lock().unwrap().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the input was not tried");
        std::thread::sleep(Duration::from_millis(10));
    }
    stub.finish();
    let output = child.wait_with_output().unwrap();
    drop(pipe);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert_eq!(stub.inputs(), [json!({"kind": "steer", "text": "one"})]);
    for part in
        ["not sent: the run is over\n", "not sent to the agent (3):\n  stuck\n  after it\n  /queue later\n"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn what_was_sent_and_never_reached_the_agent_is_told_and_is_the_exit_code() {
    let stub = Stub::start("running");
    let output = told(&stub, &["attach", RUN], "one\nlate\nfinish\n");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    let account = "sent, but not delivered to the agent before the run ended (1):\n  late\n";
    assert!(said.contains("sent (steer)") && said.contains(account), "{said}");
    assert!(!said.contains("not sent"), "{said}");
}

#[test]
fn the_live_run_is_found_by_its_session_and_before_a_newer_one_that_has_ended() {
    for arguments in [&["attach"][..], &["attach", SESSION]] {
        for status in ["running", "queued"] {
            let stub = Stub::start(status);
            let output = told(&stub, arguments, "finish\n");
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
            assert_eq!(stub.inputs(), [json!({"kind": "steer", "text": "finish"})]);
        }
        let stub = Stub::start("succeeded");
        let output = told(&stub, arguments, "x\n");
        let said = text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains("is live") && said.contains("caisson run"),
            "{said}"
        );
    }
    let stub = Stub::start("running");
    let nobody = told(&stub, &["attach", &SESSION.replace("508", "509")], "x\n");
    assert_eq!(nobody.status.code(), Some(1), "{}", text(&nobody.stderr));
}

#[test]
fn ctrl_c_and_detach_leave_the_run_alone() {
    let stub = Stub::start("running");
    let mut child = stub.command(&["attach", RUN]).stdin(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, "Bash make test");
    signal(child.id(), "INT").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("the run goes on") && said.contains(&format!("caisson attach {RUN}")), "{said}");

    let stub = Stub::start("running");
    let output = told(&stub, &["attach", RUN], "one thing\n/detach\nnot this\n");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert_eq!(stub.inputs(), [json!({"kind": "steer", "text": "one thing"})]);
}

#[test]
fn nothing_can_be_told_to_a_run_that_has_ended() {
    let stub = Stub::start("failed");
    let output = told(&stub, &["attach", RUN], "x\n");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("has ended as failed") && said.contains(&format!("caisson logs {RUN}")), "{said}");
    assert_eq!(stub.inputs(), Vec::<Value>::new());
}

/// What a command writes to a terminal, which `script` (util-linux) gives it.
fn on_a_terminal(stub: &Stub, variables: &[(&str, &str)]) -> String {
    #[expect(clippy::disallowed_methods, reason = "a terminal for the binary under test")]
    let mut command = Command::new("script");
    let line = format!("{} logs -f {RUN}", env!("CARGO_BIN_EXE_caisson"));
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env_clear();
    command.env("PATH", "/usr/bin:/bin").env("SHELL", "/bin/sh").env("TERM", "xterm");
    command.env("CAISSON_URL", &stub.url).env("CAISSON_API_KEY", "csk_x").envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    while !stub.is_watched() {
        std::thread::sleep(Duration::from_millis(10));
    }
    stub.finish();
    let output = child.wait_with_output().unwrap();
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    shown
}

#[test]
fn a_terminal_has_a_line_that_tells_where_the_run_stands_and_a_pipe_has_not() {
    const WIPE: &str = "\r\u{1b}[2K";
    const LINE: &str = "  agent · Bash make test · 1 turn · $0.0000 · ";
    let shown = on_a_terminal(&Stub::start("running"), &[]);
    assert!(shown.contains(&format!("\u{1b}[2m{LINE}")) && shown.contains(WIPE), "{shown:?}");
    let last = shown.lines().rev().find(|line| line.contains("succeeded (")).unwrap();
    assert!(
        last.starts_with(WIPE.trim_start_matches('\r')) || last.contains(WIPE),
        "the line is gone: {last:?}"
    );

    let plain = on_a_terminal(&Stub::start("running"), &[("NO_COLOR", "1")]);
    assert!(plain.contains(LINE), "{plain:?}");
    assert!(!plain.replace(WIPE, "").contains('\u{1b}'), "no colours: {plain:?}");

    let dumb = on_a_terminal(&Stub::start("running"), &[("TERM", "dumb")]);
    assert!(
        !dumb.contains('\u{1b}') && !dumb.contains(LINE) && dumb.contains("> Bash make test"),
        "{dumb:?}"
    );

    let stub = Stub::start("running");
    let mut child = stub.command(&["logs", "-f", RUN]).spawn().unwrap();
    let mut piped = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    while !piped.contains("Bash make test") {
        assert!(lines.read_line(&mut piped).unwrap() > 0, "{piped}");
    }
    stub.finish();
    lines.read_to_string(&mut piped).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!piped.contains('\u{1b}') && !piped.contains(LINE), "{piped:?}");
}
