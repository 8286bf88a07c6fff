//! A polite stop: what has no answer yet is left to the next server, which the shim sends it to again.

use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use caisson_store::{Push, PushRecord};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::git_pending::EMPTY_PACK;
use super::support::{PATIENCE, Sandbox, Setup, World, run_spec};

const NEW: &str = "1111111111111111111111111111111111111111";

struct Scene {
    world: World,
    sandbox: Sandbox,
    upstream: TcpListener,
}

/// A model API and a git host at one port, played by the test.
async fn scene(grace: Duration) -> Scene {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(Some(&format!("{url}/team/one.git")))).await;
    let mut setup = Setup::new();
    setup.bounds.grace = grace;
    setup.model.base_url = url.parse().unwrap();
    setup.git.allow = AllowList::new(&[format!("{url}/*")], Vec::new()).unwrap();
    world.start(setup).await;
    Scene { world, sandbox, upstream }
}

impl Scene {
    async fn send(&self, path: &str, body: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.sandbox.socket).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            self.sandbox.agent,
            body.len()
        );
        stream.write_all(&[request.as_bytes(), body].concat()).await.unwrap();
        stream
    }

    async fn ask(&self) -> UnixStream {
        self.send("/model/v1/messages", br#"{"model":"claude-opus-5-5"}"#).await
    }

    async fn push(&self) -> UnixStream {
        let command = format!("{} {NEW} refs/heads/caisson/fixer/1\0 report-status", "0".repeat(40));
        let section = format!("{:04x}{command}0000", command.len() + 4);
        self.send("/git/origin/git-receive-pack", &[section.as_bytes(), EMPTY_PACK].concat()).await
    }

    /// The branch was removed since: whatever is pushed to it again is the session's own.
    async fn has_pushed_before(&self) {
        let push = Push {
            ref_name: "refs/heads/caisson/fixer/1".to_owned(),
            old: "0".repeat(40),
            new: NEW.to_owned(),
        };
        let record = PushRecord { push, ok: true, message: None };
        self.world.store.record_push(&self.sandbox.run.id, &record).await.unwrap();
    }

    /// Answers what the git host is asked before every push: where its default branch is.
    async fn tell_default_branch(&self) {
        self.tell("git-upload-pack", &format!("{NEW} HEAD\0symref=HEAD:refs/heads/main\n")).await;
    }

    /// Answers what it is asked before a push to a branch of the session's that it has no more: what it has.
    async fn tell_branches(&self) {
        self.tell("git-receive-pack", &format!("{NEW} refs/heads/main\0report-status\n")).await;
    }

    async fn tell(&self, service: &str, refs: &str) {
        let mut stream = self.forwarded().await;
        let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let body = format!("{}0000{}0000", line(&format!("# service={service}\n")), line(refs));
        let answer = format!(
            "HTTP/1.1 200 x\r\ncontent-type: application/x-{service}-advertisement\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    /// The request as it comes to the upstream, which answers nothing yet.
    async fn forwarded(&self) -> TcpStream {
        let (mut stream, _) = tokio::time::timeout(PATIENCE, self.upstream.accept()).await.unwrap().unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        stream
    }
}

/// Everything that the door answers until it closes the connection.
async fn answered(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_call_without_a_reply_is_settled_and_not_answered_when_the_server_stops() {
    // The upstream breaks off while the server stops, or says nothing until the grace is over.
    for (breaks, grace) in [(true, PATIENCE), (false, Duration::from_millis(50))] {
        let scene = scene(grace).await;
        let client = scene.ask().await;
        let mut upstream = Some(scene.forwarded().await);
        scene.world.cancel.cancel();
        if breaks {
            upstream = None;
        }
        assert_eq!(answered(client).await, "");
        scene.world.stop().await;
        drop(upstream);
        let calls = scene.world.events(&scene.sandbox.run.id, EventKind::ModelCall).await;
        assert_eq!((calls.len(), &calls[0]["estimated"]), (1, &true.into()));
    }
}

#[tokio::test]
async fn a_push_without_an_answer_stays_pending_and_is_not_answered_when_the_server_stops() {
    for (breaks, grace) in [(true, PATIENCE), (false, Duration::from_millis(50))] {
        let scene = scene(grace).await;
        scene.has_pushed_before().await;
        let client = scene.push().await;
        scene.tell_default_branch().await;
        scene.tell_branches().await;
        let mut upstream = Some(scene.forwarded().await);
        scene.world.cancel.cancel();
        if breaks {
            upstream = None;
        }
        assert_eq!(answered(client).await, "");
        scene.world.stop().await;
        drop(upstream);
        let pending = scene.world.store.pending_push(&scene.sandbox.run.id).await.unwrap();
        assert_eq!(pending.unwrap().new, NEW);
        let told = async |kind| scene.world.events(&scene.sandbox.run.id, kind).await.len();
        assert_eq!(told(EventKind::GitPush).await, 1, "of the push before alone");
        assert_eq!(told(EventKind::GatewayUpstreamFailed).await, 0);
    }
}

#[tokio::test]
async fn what_is_the_requests_own_fault_is_answered_also_when_the_server_stops() {
    let scene = scene(PATIENCE).await;
    let client = scene.ask().await;
    let mut upstream = scene.forwarded().await;
    scene.world.cancel.cancel();
    upstream.write_all(b"HTTP/1.1 401 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(answered(client).await.starts_with("HTTP/1.1 403 "));
    scene.world.stop().await;
}
