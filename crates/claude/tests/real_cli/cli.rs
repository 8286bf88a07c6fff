//! A driver as small as can be: it shows how this crate is used.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use caisson_claude::{
    Action, Conversation, Delta, Ending, EnvironmentSpec, Exit, Finished, Launch, Line, Uuid, Verdict,
    conclude, environment, parse, user_prompt,
};
use tempfile::TempDir;

use crate::model::Model;

/// Far more than the CLI ever needs, far less than its own patience.
const LINE_TIMEOUT: Duration = Duration::from_mins(1);
const LINES_MAX: usize = 10_000;

/// Makes the id number `n`, of version 7 as the service makes them.
pub(crate) fn uuid(n: u8) -> Uuid {
    Uuid::parse(&format!("0192f0c1-2345-7abc-8def-0123456789{n:02x}")).expect("it has the form")
}

/// A fresh home and workspace.
pub(crate) struct Place {
    program: PathBuf,
    directory: TempDir,
}

impl Place {
    /// `None` if the machine has no CLI.
    pub(crate) fn new() -> Option<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "only the environment of the test can say where the CLI is"
        )]
        let program = PathBuf::from(std::env::var_os("TEST_CLAUDE_BIN")?);
        let directory = TempDir::new().expect("there is room for temporary files");
        for name in ["home", "workspace", "tmp"] {
            std::fs::create_dir(directory.path().join(name)).expect("the directory is fresh");
        }
        Some(Self { program, directory })
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.path("workspace")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().expect("it was made").join(name)
    }
}

/// A running CLI.
pub(crate) struct Cli {
    pub(crate) lines: Vec<Line>,
    conversation: Conversation,
    child: Child,
    stdin: Option<ChildStdin>,
    received: Receiver<Vec<u8>>,
    stderr: Option<JoinHandle<String>>,
}

impl Cli {
    pub(crate) fn start(place: &Place, model: &Model, launch: &Launch) -> Self {
        let text = |path: &Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
        let (home, tmpdir) = (text(&place.path("home")), text(&place.path("tmp")));
        let spec = EnvironmentSpec {
            home: &home,
            profiles: &text(&place.path("profiles")),
            path: "/usr/bin:/bin",
            tmpdir: &tmpdir,
            base_url: &format!("http://127.0.0.1:{}/model", model.port),
            agent_grant: "grant-1",
            // Nobody listens there: calls to the loopback address must not take that way.
            proxy_url: Some("http://127.0.0.1:9"),
            extra: &[("CI".to_owned(), "true".to_owned())],
        };
        let mut child = command(&place.program)
            .args(launch.argv().expect("the launch is good"))
            .env_clear()
            .envs(environment(&spec).expect("the environment is good"))
            .current_dir(place.workspace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the CLI starts");
        let (sender, received) = sync_channel(LINES_MAX);
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut errors = child.stderr.take().expect("it is piped");
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            drop(errors.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        Self {
            lines: Vec::new(),
            conversation: Conversation::new(&[]),
            stdin: child.stdin.take(),
            child,
            received,
            stderr: Some(stderr),
        }
    }

    pub(crate) fn prompt(&mut self, uuid: &Uuid, text: &str) {
        self.conversation.prompt_sent(uuid).expect("it is new to the process");
        self.write(&user_prompt(uuid, text).expect("it is a prompt"));
    }

    pub(crate) fn write(&mut self, line: &str) {
        // A CLI that has given up already does not read; what it printed says why.
        drop(self.stdin.as_mut().expect("it is open").write_all(line.as_bytes()));
    }

    /// The next thing to do; `None` at the end of the output.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        for _ in 0..LINES_MAX {
            let line = self.next_line()?;
            if let Some(action) = self.conversation.observe(&line) {
                return Some(action);
            }
        }
        panic!("the CLI talks without end")
    }

    /// Waits for the end of a turn, in which nothing else is to be done.
    pub(crate) fn finished(&mut self) -> Finished {
        match self.next_action() {
            Some(Action::Finished(finished)) => finished,
            action => panic!("{action:?} after {:#?}", self.lines),
        }
    }

    pub(crate) fn until(&mut self, wanted: fn(&Line) -> bool) {
        for _ in 0..LINES_MAX {
            let line = self.next_line().expect("the line comes");
            assert_eq!(self.conversation.observe(&line), None);
            if wanted(&line) {
                return;
            }
        }
        panic!("the CLI talks without end")
    }

    /// Closes standard input and waits for the end: the exit, and whether nothing runs any more.
    pub(crate) fn end(&mut self) -> (Exit, bool) {
        drop(self.stdin.take());
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> (Exit, bool) {
        while self.next_action().is_some() {}
        let status = self.child.wait().expect("it was started");
        let exit = status.code().map(Exit::Code).or(status.signal().map(Exit::Signal));
        (exit.expect("it ended one way or the other"), !self.conversation.is_running())
    }

    pub(crate) fn verdict_without_prompt(&mut self) -> Verdict {
        let (exit, _) = self.end();
        let stderr = self.stderr.take().expect("asked once").join().expect("reading does not panic");
        conclude(&Ending { result: None, exit, spoke: self.conversation.spoke(), stderr: &stderr })
    }

    pub(crate) fn texts_as_they_grew(&self) -> String {
        let mut grown = String::new();
        for line in &self.lines {
            if let Line::StreamDelta(piece) = line
                && let Delta::Text(text) = &piece.delta
            {
                grown.push_str(text);
            }
        }
        grown
    }

    fn next_line(&mut self) -> Option<Line> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.received.recv_timeout(LINE_TIMEOUT) {
            Ok(line) => {
                self.lines.push(parse(&line));
                self.lines.last().cloned()
            }
            Err(Disconnected) => None,
            Err(Timeout) => panic!("no line in {LINE_TIMEOUT:?} after {:#?}", self.lines),
        }
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        // Only of use when a test failed half-way.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place of this test that starts a process")]
fn command(program: &Path) -> Command {
    Command::new(program)
}
