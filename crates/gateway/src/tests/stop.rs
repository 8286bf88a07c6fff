//! A polite stop: what has no answer yet is left to the next server, which the shim sends it to again.

use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
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

    /// Answers what the git host is asked before every push: where its default branch is.
    async fn tell_default_branch(&self) {
        let mut stream = self.forwarded().await;
        let refs = format!("{NEW} HEAD\0symref=HEAD:refs/heads/main\n");
        let body = format!("001e# service=git-upload-pack\n0000{:04x}{refs}0000", refs.len() + 4);
        let answer = format!(
            "HTTP/1.1 200 x\r\ncontent-type: application/x-git-upload-pack-advertisement\r\ncontent-length: {}\r\n\
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
        let client = scene.push().await;
        scene.tell_default_branch().await;
        // The push has no commit of its own: the host is asked what that one names, and for its branches. It knows the older
        // protocol alone, so that nothing more is asked of it.
        scene.tell_default_branch().await;
        scene.tell_default_branch().await;
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
        for kind in [EventKind::GitPush, EventKind::GatewayUpstreamFailed] {
            assert_eq!(scene.world.events(&scene.sandbox.run.id, kind).await.len(), 0);
        }
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
