//! Hosts on loopback for tests of the way outside, a resolver that does what a test wants, and a tool.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use caisson_domain::event::EventKind;
use caisson_domain::protocol::{Ending, JournalBody, Outcome};
use caisson_domain::run::RunSpec;
use futures_util::FutureExt;
use http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use super::support::{OK, PATIENCE, Sandbox, Setup, World, run_spec};
use crate::egress::Resolve;

/// A host that answers plain HTTP with `reply` and everything else with what it was sent; it remembers what came.
pub(crate) struct Outside {
    pub(crate) address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Outside {
    pub(crate) async fn start(world: &World, place: &str, reply: &'static str) -> Self {
        let listener = TcpListener::bind(place).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (kept, tracker, cancel) = (Arc::clone(&heard), world.tracker.clone(), world.cancel.clone());
        world.tracker.spawn(async move {
            let serve = async {
                while let Ok((stream, _)) = listener.accept().await {
                    tracker.spawn(cancel.clone().run_until_cancelled_owned(serve(
                        stream,
                        Arc::clone(&kept),
                        reply,
                    )));
                }
            };
            cancel.run_until_cancelled(serve).await;
        });
        Self { address, heard }
    }

    /// What each connection brought first.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, heard: Arc<Mutex<Vec<String>>>, reply: &'static str) {
    let mut buffer = vec![0; 64 * 1024];
    let mut first = true;
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
        let is_http = text.contains(" HTTP/1.1\r\n");
        if std::mem::take(&mut first) {
            heard.lock().unwrap().push(text);
        }
        let answer = if is_http { reply.as_bytes() } else { &buffer[..read] };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// Answers each lookup with the next of `answers`, the last one for ever; counts them.
pub(crate) fn scripted(answers: &[&[&str]]) -> (Resolve, Arc<Mutex<Vec<String>>>) {
    let answers: Vec<Vec<IpAddr>> =
        answers.iter().map(|all| all.iter().map(|one| one.parse().unwrap()).collect()).collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    let resolve: Resolve = Arc::new(move |name| {
        let mut asked = kept.lock().unwrap();
        let answer = answers[asked.len().min(answers.len() - 1)].clone();
        asked.push(name);
        async move { Ok::<_, io::Error>(answer) }.boxed()
    });
    (resolve, asked)
}

/// A gateway that lets these rules out to these private ranges; names are resolved to 127.0.0.1.
pub(crate) fn setup(rules: &[&str], private: &[&str]) -> Setup {
    let mut setup = Setup::new();
    setup.egress.rules = rules.iter().map(|text| text.parse().unwrap()).collect();
    setup.egress.allow_private = private.iter().map(|text| text.parse().unwrap()).collect();
    setup.resolve = scripted(&[&["127.0.0.1"]]).0;
    setup
}

/// A run whose workflow chose these.
pub(crate) fn choosing(entries: &[&str]) -> RunSpec {
    let mut spec = run_spec(None);
    spec.workflow.caisson.egress = Some(entries.iter().map(|entry| (*entry).to_owned()).collect());
    spec
}

/// A tool's connection.
pub(crate) struct Tool(pub(crate) UnixStream);

impl Tool {
    pub(crate) async fn new(sandbox: &Sandbox) -> Self {
        Self(UnixStream::connect(&sandbox.socket).await.unwrap())
    }

    /// Sends bytes and takes what comes back at once.
    pub(crate) async fn say(&mut self, text: &str) -> String {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.hear().await
    }

    pub(crate) async fn hear(&mut self) -> String {
        let mut buffer = vec![0; 64 * 1024];
        // A connection that was cut may end in an error.
        let read = timeout(PATIENCE, self.0.read(&mut buffer)).await.unwrap().unwrap_or(0);
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    /// Everything until the end; none if that does not come.
    pub(crate) async fn rest(&mut self) -> Option<String> {
        let mut all = Vec::new();
        let _cut = timeout(PATIENCE, self.0.read_to_end(&mut all)).await.ok()?;
        Some(String::from_utf8_lossy(&all).into_owned())
    }
}

/// The head of a request with the agent grant, as the shim sends it.
pub(crate) fn head(sandbox: &Sandbox, line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nproxy-authorization: Bearer {}\r\n{fields}\r\n", sandbox.agent)
}

/// The answer to a request that asks for one connection.
pub(crate) async fn ask(sandbox: &Sandbox, line: &str, fields: &str) -> String {
    let mut tool = Tool::new(sandbox).await;
    tool.0
        .write_all(head(sandbox, line, &format!("connection: close\r\n{fields}")).as_bytes())
        .await
        .unwrap();
    tool.rest().await.unwrap_or_else(|| panic!("{line} {fields:?} has no end"))
}

/// An open tunnel.
pub(crate) async fn tunnel(sandbox: &Sandbox, target: &str) -> Tool {
    let mut tool = Tool::new(sandbox).await;
    let answer = tool.say(&head(sandbox, &format!("CONNECT {target}"), "")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    tool
}

/// The shim says that the run is done.
pub(crate) async fn finish(sandbox: &Sandbox) {
    let outcome = Outcome { ending: Ending::Completed, result: None, head: None, pushed: false, kept: false };
    let line = sandbox.line(JournalBody::Finished(outcome));
    assert_eq!(sandbox.control(Method::POST, "/journal?offset=0", line).await.status, OK);
}

/// What was told of denials.
pub(crate) async fn denials(world: &World, sandbox: &Sandbox) -> Vec<Value> {
    world.events(&sandbox.run.id, EventKind::EgressDenied).await
}

/// What was told of uses, all items together.
pub(crate) async fn uses(world: &World, sandbox: &Sandbox) -> Vec<Value> {
    let events = world.events(&sandbox.run.id, EventKind::EgressUsed).await;
    events.iter().flat_map(|event| event["items"].as_array().unwrap().clone()).collect()
}
