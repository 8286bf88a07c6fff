use super::*;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_grant_is_printable_text_and_hidden() {
    assert!(Grants::new("csc_1", "csa_1").is_ok());
    for (control, agent) in [("", "csa_1"), ("csc_1", ""), ("a b", "csa_1"), ("csc_1", "a\nb")] {
        assert!(Grants::new(control, agent).is_err());
    }
    let grants = Grants::new("csc_1", "csa_1").unwrap();
    assert_eq!(format!("{:?}", grants.agent()), "Sensitive");
}

#[test]
fn a_refusal_without_words_is_told_by_its_status() {
    let reply = Reply { status: StatusCode::BAD_GATEWAY, body: Bytes::from_static(b"<html>") };
    assert_eq!(reply.problem().code, "http_502");
    let body = Bytes::from_static(br#"{"code":"repo_auth","message":"give a token"}"#);
    assert_eq!(Reply { status: StatusCode::FORBIDDEN, body }.problem().code, "repo_auth");
}

fn caller(socket: &Path) -> (Caller, TaskTracker) {
    let tracker = TaskTracker::new();
    let door = Door::new(socket.to_owned(), Grants::new("csc_1", "csa_1").unwrap(), tracker.clone());
    (Caller::new(&door), tracker)
}

/// Answers each request on each connection with `answer`, `per_connection` times before it hangs up; how many
/// connections there were comes out of the channel.
fn serve(
    socket: &Path,
    tracker: &TaskTracker,
    per_connection: usize,
    answer: Vec<u8>,
) -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let listener = UnixListener::bind(socket).unwrap();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tracker.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            for _ in 0..per_connection {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                let _unheard = sender.send(String::from_utf8_lossy(&request[..read]).into_owned());
                let _gone = stream.write_all(&answer).await;
            }
        }
    });
    receiver
}

fn answer(body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

#[tokio::test]
async fn a_control_request_carries_grant_and_version_and_its_connection_is_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("door");
    let (mut caller, tracker) = caller(&socket);
    let mut seen = serve(&socket, &tracker, 2, answer(b"ok"));
    for _ in 0..3 {
        // The third finds its connection closed by the other side and is sent on a new one.
        let reply = caller.call(Method::GET, "/next", "", LIMIT).await.unwrap();
        assert_eq!((reply.status, &reply.body[..]), (StatusCode::OK, &b"ok"[..]));
        let request = seen.recv().await.unwrap();
        assert!(request.starts_with("GET /next HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("authorization: Bearer csc_1\r\n"), "{request}");
        assert!(request.contains(&format!("{VERSION_HEADER}: {VERSION}\r\n")), "{request}");
    }
}

#[tokio::test]
async fn a_door_where_nobody_listens_is_away() {
    let directory = tempfile::tempdir().unwrap();
    let (mut caller, _tracker) = caller(&directory.path().join("door"));
    let error = caller.call(Method::GET, "/next", "", LIMIT).await.unwrap_err();
    assert!(matches!(error, DoorError::Away(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_door_that_does_not_answer_is_given_up_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("door");
    let _silent = UnixListener::bind(&socket).unwrap();
    let (mut caller, _tracker) = caller(&socket);
    let error = caller.call(Method::GET, "/next", "", LIMIT).await.unwrap_err();
    assert!(matches!(error, DoorError::TimedOut(LIMIT)), "{error}");
}

#[tokio::test]
async fn an_answer_of_the_bound_is_taken_and_a_longer_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    for (bytes, fits) in [(REPLY_BYTES, true), (REPLY_BYTES + 1, false)] {
        let socket = directory.path().join(bytes.to_string());
        let (mut caller, tracker) = caller(&socket);
        let _seen = serve(&socket, &tracker, 1, answer(&vec![b'x'; bytes]));
        match caller.call(Method::GET, "/next", "", LIMIT * 10).await {
            Ok(reply) => assert!(fits && reply.body.len() == bytes),
            Err(error) => assert!(!fits && matches!(error, DoorError::Garbled(_)), "{error}"),
        }
    }
}
