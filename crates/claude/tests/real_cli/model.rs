//! A model API that answers from a list.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

/// Requests that one test may make; a loop in the CLI must not be one here.
const REQUESTS_MAX: usize = 32;
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// What the model says to one request.
#[derive(Clone)]
pub(crate) struct Reply {
    start: Value,
    delta: Value,
    stop_reason: &'static str,
}

impl Reply {
    pub(crate) fn text(text: &str) -> Self {
        Self {
            start: json!({ "type": "text", "text": "" }),
            delta: json!({ "type": "text_delta", "text": text }),
            stop_reason: "end_turn",
        }
    }

    pub(crate) fn tool(name: &str, input: &str) -> Self {
        Self {
            start: json!({ "type": "tool_use", "id": format!("toolu_{name}{}", input.len()), "name": name, "input": {} }),
            delta: json!({ "type": "input_json_delta", "partial_json": input }),
            stop_reason: "tool_use",
        }
    }

    fn frames(&self, number: usize) -> String {
        let usage = json!({ "input_tokens": 10, "output_tokens": 5 });
        let message = json!({ "id": format!("msg_{number}"), "type": "message", "role": "assistant",
            "model": "scripted", "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage });
        let stop = json!({ "stop_reason": self.stop_reason, "stop_sequence": null });
        [
            json!({ "type": "message_start", "message": message }),
            json!({ "type": "content_block_start", "index": 0, "content_block": self.start }),
            json!({ "type": "content_block_delta", "index": 0, "delta": self.delta }),
            json!({ "type": "content_block_stop", "index": 0 }),
            json!({ "type": "message_delta", "delta": stop, "usage": { "output_tokens": 5 } }),
            json!({ "type": "message_stop" }),
        ]
        .iter()
        .flat_map(|frame| {
            let name = frame["type"].as_str().unwrap_or_default();
            ["event: ".to_owned(), name.to_owned(), format!("\ndata: {frame}\n\n")]
        })
        .collect()
    }
}

/// What the CLI asked.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// The server; it ends when dropped.
pub(crate) struct Model {
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Model {
    /// Starts; the last reply is given again and again.
    pub(crate) fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback is there");
        let port = listener.local_addr().expect("it is bound").port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let (kept, stop) = (Arc::clone(&requests), Arc::clone(&ended));
        let serve = move || {
            for stream in listener.incoming().take(REQUESTS_MAX) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Some((stream, request)) = stream.ok().and_then(read) else { continue };
                let number = {
                    let mut kept = kept.lock().expect("no holder panics");
                    kept.push(request);
                    kept.len() - 1
                };
                answer(stream, &replies[number.min(replies.len() - 1)].frames(number));
            }
        };
        Self { port, requests, ended, thread: Some(std::thread::spawn(serve)) }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no holder panics").clone()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn read(stream: TcpStream) -> Option<(TcpStream, Request)> {
    stream.set_read_timeout(Some(READ_TIMEOUT)).ok()?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    Some((reader.into_inner(), Request { path, head, body: String::from_utf8(body).ok()? }))
}

fn answer(mut stream: TcpStream, frames: &str) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n";
    // The CLI may be gone already when it was interrupted.
    drop(write!(stream, "{head}content-length: {}\r\n\r\n{frames}", frames.len()));
}
