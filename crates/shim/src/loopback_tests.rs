use super::*;
use crate::door::Grants;
use crate::forward::{HOLD_MS, RESENT_BODY_BYTES};
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What the other side of the door does with one connection.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Takes the request and breaks off.
    Break,
    /// Takes the request and answers these bytes.
    Answer(&'static str),
    /// Breaks off as soon as something comes.
    BreakEarly,
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\nx-kept: 1\r\n\r\nok";

struct World {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    address: SocketAddr,
    activity: Arc<Activity>,
    tracker: TaskTracker,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("door");
        let tracker = TaskTracker::new();
        let door = Door::new(socket.clone(), Grants::new("csc_1", "csa_1").unwrap(), tracker.clone());
        let activity = Arc::new(Activity::default());
        let (listener, address) = Loopback::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        tracker.spawn(Loopback::new(&door, &activity).serve(listener, tracker.clone()));
        Self { _directory: directory, socket, address, activity, tracker }
    }

    /// Opens the other side; what it was sent comes out of the channel.
    fn open(&self, acts: &'static [Act]) -> mpsc::UnboundedReceiver<String> {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        self.tracker.spawn(async move {
            for act in acts {
                let (stream, _) = listener.accept().await.unwrap();
                let request = serve(stream, *act).await;
                sender.send(request).unwrap();
            }
        });
        receiver
    }

    fn send(&self, request: impl Into<Vec<u8>>) -> JoinHandle<String> {
        let (address, request) = (self.address, request.into());
        self.tracker.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // A refusal may come before all of it is sent.
            let _refused = stream.write_all(&request).await;
            let mut reply = Vec::new();
            let _cut = stream.read_to_end(&mut reply).await;
            String::from_utf8_lossy(&reply).into_owned()
        })
    }
}

async fn serve(mut stream: UnixStream, act: Act) -> String {
    let mut request = Vec::new();
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        request.extend_from_slice(&buffer[..read]);
        if read == 0 || matches!(act, Act::BreakEarly) || is_whole(&request) {
            break;
        }
    }
    if let Act::Answer(answer) = act {
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    String::from_utf8_lossy(&request).into_owned()
}

fn is_whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    match length {
        Some(length) => request.len() >= end + 4 + length,
        None => !head.contains("chunked") || request.ends_with(b"0\r\n\r\n"),
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[test]
fn only_the_model_the_repository_and_mcp_servers_have_paths() {
    let route = |text: &str| route(&Method::GET, &text.parse().unwrap());
    assert_eq!(route("/model/v1/messages?beta=true"), Ok(Route::Model));
    assert_eq!(route("/git/origin/info/refs?service=git-upload-pack"), Ok(Route::Git));
    assert_eq!(route("/mcp/notes"), Ok(Route::Mcp));
    for nowhere in [
        "/",
        "/next",
        "/journal?offset=0",
        "/inputs",
        "/artifacts/x/y",
        "/model",
        "/modelx/y",
        "/git",
        "/gitx",
        "/mcp",
        "/mcpx/y",
        "/mcp/notes/../secret",
        "/mcp/%2e%2e/next",
        "/.well-known/oauth-protected-resource/mcp/notes",
        "/model/../next",
        "/model/./x",
        "/git/%2e%2e/next",
        "/git/x%2F..%2fnext",
        "//next",
        "/model//next",
        "/MODEL/x",
        "/git/a%5cb",
    ] {
        assert_eq!(route(nowhere), Err(Refused::NoPath), "{nowhere}");
    }
    assert_eq!(route("http://example.com/model/x"), Ok(Route::Outside));
    assert_eq!(super::route(&Method::CONNECT, &"example.com:443".parse().unwrap()), Ok(Route::Outside));
}

#[test]
fn headers_about_one_connection_are_not_carried() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "keep-alive, x-private"),
        ("x-private", "1"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        (VERSION_HEADER, "9"),
        ("anthropic-version", "2023-06-01"),
        ("authorization", "Bearer x"),
    ] {
        headers.insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    let carried = carried(headers);
    let mut names: Vec<_> = carried.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["anthropic-version", "authorization"]);
}

#[tokio::test]
async fn git_gets_the_agent_grant_and_the_agent_brings_its_own() {
    let world = World::new().await;
    let mut seen = world.open(&[Act::Answer(OK), Act::Answer(OK)]);
    let reply = world.send(get("/git/origin/info/refs?service=git-upload-pack")).await.unwrap();
    assert!(
        reply.starts_with("HTTP/1.1 200") && reply.ends_with("ok") && reply.contains("x-kept: 1"),
        "{reply}"
    );
    let request = seen.recv().await.unwrap();
    assert!(
        request.starts_with("GET /git/origin/info/refs?service=git-upload-pack HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains("authorization: Bearer csa_1\r\n") && request.contains("host: door\r\n"),
        "{request}"
    );
    world.send(post("/model/v1/messages", "body")).await.unwrap();
    let request = seen.recv().await.unwrap();
    assert!(!request.contains("csa_1") && request.ends_with("\r\n\r\nbody"), "{request}");
    assert!(request.contains("content-length: 4\r\n"), "{request}");
    assert!(world.activity.model_moved_at().is_some());
}

#[tokio::test]
async fn a_request_to_an_mcp_server_has_the_agent_grant_and_is_sent_once() {
    const REFUSED: &str = "HTTP/1.1 424 Failed Dependency\r\ncontent-type: application/json\r\ncontent-length: 39\r\n\r\n\
                           {\"code\":\"mcp_idle\",\"message\":\"because\"}";
    const OTHER: &str = "HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: 32\r\n\r\n\
                         {\"code\":\"x\",\"message\":\"its own\"}";
    let world = World::new().await;
    // Nobody opens the door yet: the request is held before it is sent.
    let call = "POST /mcp/notes HTTP/1.1\r\nhost: x\r\nauthorization: Bearer own\r\nmcp-session-id: s\r\ncontent-length: 2\r\n\
                connection: close\r\n\r\n{}";
    let held = world.send(call);
    let mut seen =
        world.open(&[Act::Answer(OK), Act::Break, Act::Answer(REFUSED), Act::Answer(OTHER), Act::Answer(OK)]);
    assert!(held.await.unwrap().ends_with("ok"));
    let carried = seen.recv().await.unwrap();
    assert!(
        carried.starts_with("POST /mcp/notes HTTP/1.1\r\n") && carried.ends_with("\r\n\r\n{}"),
        "{carried}"
    );
    for there in ["authorization: Bearer csa_1\r\n", "mcp-session-id: s\r\n", "content-length: 2\r\n"] {
        assert!(carried.contains(there), "{there:?} in {carried}");
    }
    assert!(!carried.contains("own"), "{carried}");
    let reply = world.send(call).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503") && reply.contains("gateway_away"), "{reply}");
    seen.recv().await.unwrap();
    let reply = world.send(call).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 424") && reply.contains("because"), "it is the next one: {reply}");
    // A refusal of the gateway is kept, a server's own words are not, and an answer takes it back.
    assert!(world.send(call).await.unwrap().contains("its own"));
    assert_eq!(world.activity.take_mcp_problem("notes").unwrap().message, "because");
    world.activity.mcp_refused("notes", DoorProblem { code: "mcp_idle".to_owned(), message: String::new() });
    world.send(call).await.unwrap();
    assert_eq!(world.activity.take_mcp_problem("notes"), None);
}

#[tokio::test]
async fn what_is_not_carried_is_refused_with_a_reason() {
    let world = World::new().await;
    let reply = world.send(get("/next")).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 404") && reply.contains("not_found"), "{reply}");
}

#[tokio::test]
async fn a_request_to_the_outside_goes_to_the_door_as_it_is_with_the_agent_grant() {
    let world = World::new().await;
    let mut seen = world.open(&[Act::Answer(OK), Act::Answer(OK)]);
    let request = "GET http://example.com/a?b HTTP/1.1\r\nhost: Example.com\r\nhost: other.example\r\n\
                   authorization: Bearer own\r\nproxy-authorization: Bearer mine\r\nproxy-connection: x\r\n\
                   connection: close\r\n\r\n";
    assert!(world.send(request).await.unwrap().ends_with("ok"));
    let carried = seen.recv().await.unwrap();
    assert!(carried.starts_with("GET http://example.com/a?b HTTP/1.1\r\n"), "{carried}");
    for there in ["host: Example.com\r\nhost: other.example\r\n", "authorization: Bearer own\r\n"] {
        assert!(carried.contains(there), "{there:?} in {carried}");
    }
    assert!(carried.contains("proxy-authorization: Bearer csa_1\r\n"), "{carried}");
    assert!(!carried.contains("mine") && !carried.contains("proxy-connection"), "{carried}");
    // A control path with a host before it is a host's path, for the shim and for the gateway.
    world.send(get("http://door/next")).await.unwrap();
    let carried = seen.recv().await.unwrap();
    assert!(
        carried.starts_with("GET http://door/next HTTP/1.1\r\n") && !carried.contains("csc_1"),
        "{carried}"
    );
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_until_its_end() {
    let world = World::new().await;
    let listener = UnixListener::bind(&world.socket).unwrap();
    let mut tool = TcpStream::connect(world.address).await.unwrap();
    tool.write_all(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n").await.unwrap();
    let (mut gateway, _) = listener.accept().await.unwrap();
    let mut buffer = [0; 1024];
    let read = gateway.read(&mut buffer).await.unwrap();
    let head = String::from_utf8_lossy(&buffer[..read]).into_owned();
    assert!(head.starts_with("CONNECT example.com:443 HTTP/1.1\r\n"), "{head}");
    assert!(
        head.contains("proxy-authorization: Bearer csa_1\r\n") && !head.contains("content-length"),
        "{head}"
    );
    gateway.write_all(b"HTTP/1.1 200 OK\r\n\r\nearly").await.unwrap();
    let mut reply = Vec::new();
    while !reply.ends_with(b"early") {
        let read = tool.read(&mut buffer).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&reply));
        reply.extend_from_slice(&buffer[..read]);
    }
    assert!(reply.starts_with(b"HTTP/1.1 200"));
    tool.write_all(b"out").await.unwrap();
    gateway.read_exact(&mut buffer[..3]).await.unwrap();
    assert_eq!(&buffer[..3], b"out");
    drop(gateway);
    assert_eq!(tool.read(&mut buffer).await.unwrap(), 0);
}

#[tokio::test]
async fn tunnels_take_no_place_of_the_models_connections() {
    let world = World::new().await;
    let acts: Vec<Act> = vec![Act::Answer("HTTP/1.1 200 OK\r\n\r\n"); CONNECTIONS];
    let listener = UnixListener::bind(&world.socket).unwrap();
    let (sender, mut held) = mpsc::unbounded_channel();
    world.tracker.spawn(async move {
        for act in acts {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            let Act::Answer(answer) = act else { return };
            stream.write_all(answer.as_bytes()).await.unwrap();
            sender.send(stream).unwrap();
        }
    });
    let mut tunnels = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut tool = TcpStream::connect(world.address).await.unwrap();
        tool.write_all(b"CONNECT h.example:443 HTTP/1.1\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        tool.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        tunnels.push((tool, held.recv().await.unwrap()));
    }
    assert!(world.send(get("/next")).await.unwrap().starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_refused_tunnel_says_why() {
    let world = World::new().await;
    let _seen = world.open(&[Act::Answer(
        "HTTP/1.1 403 Refused by the sandbox: egress_not_allowed\r\ncontent-length: 7\r\n\r\nbecause",
    )]);
    let request = "CONNECT example.com:443 HTTP/1.1\r\nconnection: close\r\n\r\n";
    let reply = world.send(request).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 403 Refused by the sandbox: egress_not_allowed\r\n"), "{reply}");
    assert!(reply.ends_with("because"), "{reply}");
}

#[tokio::test(start_paused = true)]
async fn a_request_to_the_outside_is_held_before_it_is_sent_and_never_sent_twice() {
    let world = World::new().await;
    let reply = world.send(get("http://example.com/"));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!reply.is_finished());
    let mut seen = world.open(&[Act::Break, Act::Answer(OK)]);
    let reply = reply.await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503") && reply.contains("gateway_away"), "{reply}");
    assert!(seen.recv().await.is_some());
    assert!(seen.try_recv().is_err(), "it was sent once");
}

#[tokio::test(start_paused = true)]
async fn a_request_to_the_outside_is_held_for_a_bounded_time() {
    let world = World::new().await;
    let begun = tokio::time::Instant::now();
    let reply = world.send(get("http://example.com/")).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503"), "{reply}");
    assert!(begun.elapsed() <= Duration::from_millis(crate::outside::HOLD_MS), "{:?}", begun.elapsed());
    assert!(world.activity.take_git_problem().is_none(), "it is no fault of the repository");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_held_while_the_gateway_is_away_and_sent_whole_when_it_is_back() {
    let world = World::new().await;
    let reply = world.send(post("/model/v1/messages", &"x".repeat(200_000)));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!reply.is_finished());
    // The first try of the living gateway breaks before its first byte: that is held, too.
    let mut seen = world.open(&[Act::Break, Act::Answer(OK)]);
    assert!(reply.await.unwrap().ends_with("ok"));
    let (first, second) = (seen.recv().await.unwrap(), seen.recv().await.unwrap());
    assert_eq!(first, second);
    assert!(second.len() > 200_000);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_held_for_a_bounded_time() {
    let world = World::new().await;
    let begun = tokio::time::Instant::now();
    let reply = world.send(get("/git/origin/info/refs")).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503") && reply.contains("gateway_away"), "{reply}");
    let held = begun.elapsed();
    assert!(
        held <= Duration::from_millis(HOLD_MS) && held > Duration::from_millis(HOLD_MS - 2000),
        "{held:?}"
    );
    assert_eq!(world.activity.take_git_problem().unwrap().code, "gateway_away");
}

#[tokio::test]
async fn a_reply_that_breaks_off_breaks_the_clients_connection() {
    let world = World::new().await;
    let mut seen =
        world.open(&[Act::Answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\ndata\r\n")]);
    let reply = world.send(post("/model/v1/messages", "x")).await.unwrap();
    assert!(reply.contains("data") && !reply.ends_with("0\r\n\r\n"), "{reply}");
    assert!(seen.recv().await.is_some());
    assert!(seen.recv().await.is_none(), "it is not sent again");
}

#[tokio::test]
async fn a_body_of_the_bound_is_sent_again_and_a_longer_one_is_not() {
    let world = World::new().await;
    let mut seen = world.open(&[Act::BreakEarly, Act::Answer(OK), Act::BreakEarly, Act::Answer(OK)]);
    let reply =
        world.send(post("/git/origin/git-receive-pack", &"x".repeat(RESENT_BODY_BYTES))).await.unwrap();
    assert!(reply.ends_with("ok"), "{}", &reply[..reply.len().min(200)]);
    seen.recv().await.unwrap();
    assert!(seen.recv().await.unwrap().len() > RESENT_BODY_BYTES);
    // With a length, and in pieces without one.
    let long = "x".repeat(RESENT_BODY_BYTES + 1);
    let reply = world.send(post("/git/origin/git-receive-pack", &long)).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503"), "{reply}");
    seen.recv().await.unwrap();
    let pieces = format!(
        "POST /git/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    assert!(world.send(pieces).await.unwrap().ends_with("ok"));
    let request = seen.recv().await.unwrap();
    assert!(request.contains("transfer-encoding: chunked") && request.len() > RESENT_BODY_BYTES);
}

#[tokio::test]
async fn the_reason_of_a_refused_git_request_is_kept() {
    let world = World::new().await;
    let _seen = world.open(&[Act::Answer(
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 40\r\n\r\n{\"code\":\"repo_auth\",\"message\":\"a token\"}",
    )]);
    let reply = world.send(get("/git/origin/info/refs")).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 403") && reply.contains("a token"), "{reply}");
    assert_eq!(world.activity.take_git_problem().unwrap().message, "a token");
    assert!(world.activity.take_git_problem().is_none());
}

#[tokio::test]
async fn a_refusal_longer_than_its_bound_is_given_up() {
    let world = World::new().await;
    let long = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-length: {0}\r\n\r\n{1}",
        PROBLEM_BYTES + 1,
        "x".repeat(PROBLEM_BYTES + 1)
    );
    let _seen = world.open(Box::leak(Box::new([Act::Answer(long.leak())])));
    let reply = world.send(get("/git/origin/info/refs")).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503"), "{reply}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_is_closed_in_the_end() {
    let world = World::new().await;
    let begun = tokio::time::Instant::now();
    let mut idle = TcpStream::connect(world.address).await.unwrap();
    let mut nothing = Vec::new();
    idle.read_to_end(&mut nothing).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(IDLE_MS));
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let world = World::new().await;
    let padded =
        |bytes: usize| format!("GET /next HTTP/1.1\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(bytes));
    let reply = world.send(padded(HEAD_BYTES)).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 431"), "{reply}");
    let fits = HEAD_BYTES - padded(0).len();
    let reply = world.send(padded(fits)).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 404"), "{reply}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_beyond_the_bound_waits_for_another_to_end() {
    let world = World::new().await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 404");
        open.push(stream);
    }
    let mut reply = world.send(get("/next"));
    let early = tokio::time::timeout(Duration::from_secs(1), &mut reply).await;
    assert!(early.is_err(), "one too many was answered");
    open.pop();
    let reply = reply.await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 404"), "{reply}");
}
