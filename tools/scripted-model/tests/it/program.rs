//! The program: its first line, its arguments, its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn program(arguments: &[&str]) -> Child {
    #[expect(clippy::disallowed_methods, reason = "the test starts the program it tests")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_scripted-model"));
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

fn stop(mut child: Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, signal).expect("a signal");
    assert!(child.wait().expect("an end").success(), "{signal} ends it in order");
}

fn first_lines(child: &mut Child, count: usize) -> Vec<String> {
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    lines.take(count).map(|line| line.expect("a line")).collect()
}

#[test]
fn it_prints_where_it_listens_and_serves_until_a_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut child = program(&["--listen", "127.0.0.1:0", "--delay-scale", "0", "--require-key", "k"]);
        let line = first_lines(&mut child, 1).remove(0);
        let address = line.strip_prefix("listening http://").expect("the address first");
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.write_all(b"GET /__health HTTP/1.0\r\n\r\n").expect("a request");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply");
        assert!(reply.ends_with("{\"status\":\"ok\"}"), "{reply}");
        stop(child, signal);
    }
}

#[test]
fn a_unix_socket_alone_opens_no_port() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("api.sock");
    let mut child = program(&["--unix", path.to_str().expect("text")]);
    assert_eq!(first_lines(&mut child, 1), [format!("listening unix:{}", path.display())]);
    stop(child, Signal::SIGTERM);
    assert!(!path.exists());
}

#[test]
fn it_says_in_one_line_why_it_does_not_start() {
    let child = program(&["--scenarios", "/dev/null"]);
    let output = child.wait_with_output().expect("an end");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.starts_with("scripted-model: cannot load scenarios: malformed scenarios in /dev/null: EOF"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1);
    let usage = program(&["--delay-scale", "-1"]).wait_with_output().expect("an end");
    assert_eq!(usage.status.code(), Some(2));
}
