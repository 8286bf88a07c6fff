//! Who the secrets are for, besides the model and the git host: an OAuth endpoint, the API of a GitHub App, a registry, and a
//! proxy on the way to the model.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::secrets::{INSTALLATION, NEXT_ACCESS};

/// Longest request that is read, in bytes.
const REQUEST: usize = 64 * 1024;
/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// One small host that answers for all of them, and remembers what it was sent; and the proxy.
#[derive(Debug)]
pub(super) struct Upstreams {
    pub(super) port: u16,
    /// Of a proxy for plain HTTP.
    pub(super) proxy_port: u16,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Upstreams {
    /// Listens on loopback, until this process ends.
    ///
    /// # Errors
    /// No port is free.
    pub(super) fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let proxy = TcpListener::bind(("127.0.0.1", 0))?;
        let (port, proxy_port) = (listener.local_addr()?.port(), proxy.local_addr()?.port());
        let upstreams = Self { port, proxy_port, heard: Arc::default() };
        let heard = Arc::clone(&upstreams.heard);
        std::thread::spawn(move || {
            for stream in proxy.incoming().flatten() {
                let heard = Arc::clone(&heard);
                std::thread::spawn(move || pass_on(stream, &heard));
            }
        });
        let heard = Arc::clone(&upstreams.heard);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if let Some(request) = request(&mut stream) {
                    let answer = answer(&request);
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                    // Whoever does not wait for it has left.
                    drop(stream.write_all(answer.as_bytes()));
                }
            }
        });
        Ok(upstreams)
    }

    /// That a request had this in it.
    ///
    /// # Errors
    /// None had.
    pub(super) fn expect(&self, what: &str) -> anyhow::Result<()> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let found = heard.iter().any(|request| request.contains(what));
        found.then_some(()).with_context(|| format!("\"{what}\" was not sent to whom it is for"))
    }
}

/// Remembers the head of a connection's first request, and carries the connection to the host that its URL names.
fn pass_on(mut inside: TcpStream, heard: &Mutex<Vec<String>>) -> Option<()> {
    inside.set_read_timeout(Some(PATIENCE)).ok()?;
    let (mut first, mut piece) = (Vec::new(), [0; 4096]);
    let end = loop {
        if let Some(end) = first.windows(4).position(|end| end == b"\r\n\r\n") {
            break end;
        }
        match inside.read(&mut piece).ok()? {
            0 => return None,
            _ if first.len() >= REQUEST => return None,
            read => first.extend_from_slice(&piece[..read]),
        }
    };
    let asked = String::from_utf8_lossy(&first[..end]).into_owned();
    let host = asked.split(' ').nth(1)?.strip_prefix("http://")?.split('/').next()?.to_owned();
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    let mut outside = TcpStream::connect(host).ok()?;
    outside.write_all(&first).ok()?;
    inside.set_read_timeout(None).ok()?;
    let (mut answers, mut back) = (outside.try_clone().ok()?, inside.try_clone().ok()?);
    std::thread::spawn(move || {
        // Whoever ends first ends both ways.
        drop(io::copy(&mut answers, &mut back));
        drop(back.shutdown(Shutdown::Both));
    });
    drop(io::copy(&mut inside, &mut outside));
    outside.shutdown(Shutdown::Both).ok()
}

/// A request as it came: its head, and as much body as it says.
fn request(stream: &mut TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut told = Vec::new();
    let mut piece = [0; 4096];
    while told.len() < REQUEST {
        let text = String::from_utf8_lossy(&told).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(String::from_utf8_lossy(&told).into_owned());
            }
        }
        match stream.read(&mut piece).ok()? {
            0 => return None,
            read => told.extend_from_slice(&piece[..read]),
        }
    }
    None
}

fn answer(request: &str) -> String {
    let path = request.split(' ').nth(1).unwrap_or_default();
    let body = if path.ends_with("/oauth/token") {
        json!({ "access_token": NEXT_ACCESS, "token_type": "bearer", "expires_in": 3600 }).to_string()
    } else if path.ends_with("/access_tokens") {
        json!({ "token": INSTALLATION, "expires_at": "2099-01-01T00:00:00Z" }).to_string()
    } else {
        "a package".to_owned()
    };
    let kind = if body.starts_with('{') { "application/json" } else { "text/plain" };
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
