//! Listeners outside of every sandbox: what reaches them got out, whatever an attempt says.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a connection may take to say its word.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest word, in bytes.
const WORD: usize = 512;
/// What is answered to whoever speaks HTTP.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Everything that was said outside.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    /// Keeps a word.
    pub(crate) fn keep(&self, word: &[u8]) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.extend_from_slice(word);
        heard.push(b'\n');
    }
}

/// The listeners, which end with this process.
#[derive(Debug)]
pub(crate) struct Witness {
    /// Port of 127.0.0.1 and every other address of IPv4.
    pub(crate) port: u16,
    /// Port of `::1` and every other address of IPv6.
    pub(crate) port6: u16,
    /// Port for datagrams.
    pub(crate) udp_port: u16,
    /// Name of the abstract socket.
    pub(crate) name: String,
    /// What they hear.
    pub(crate) heard: Heard,
}

impl Witness {
    /// Listens everywhere.
    ///
    /// # Errors
    /// The system gives no port.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let heard = Heard::default();
        let (tcp, tcp6) = (TcpListener::bind("0.0.0.0:0")?, TcpListener::bind("[::]:0")?);
        let udp = UdpSocket::bind("127.0.0.1:0")?;
        let name = format!("caisson-adversary-{}", std::process::id());
        let abstract_ = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        let witness = Self {
            port: tcp.local_addr()?.port(),
            port6: tcp6.local_addr()?.port(),
            udp_port: udp.local_addr()?.port(),
            name,
            heard: heard.clone(),
        };
        for listener in [tcp, tcp6] {
            let heard = heard.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let heard = heard.clone();
                    std::thread::spawn(move || converse(stream, &heard));
                }
            });
        }
        let of_datagrams = heard.clone();
        std::thread::spawn(move || {
            let mut word = [0; WORD];
            while let Ok(length) = udp.recv(&mut word) {
                of_datagrams.keep(&word[..length]);
            }
        });
        std::thread::spawn(move || {
            for mut stream in abstract_.incoming().flatten() {
                stream.set_read_timeout(Some(PATIENCE)).ok();
                take(&mut stream, &heard);
            }
        });
        Ok(witness)
    }

    /// Whether a word has come, waiting a moment for one that is on its way.
    pub(crate) fn heard(&self, token: &str) -> bool {
        for _ in 0..20 {
            let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
            if heard.windows(token.len()).any(|word| word == token.as_bytes()) {
                return true;
            }
            drop(heard);
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

/// Listens to everything that is said on a connection, and answers once.
fn converse(mut stream: TcpStream, heard: &Heard) {
    stream.set_read_timeout(Some(PATIENCE)).ok();
    let (mut word, mut answered) = ([0; WORD], false);
    while let Ok(length @ 1..) = stream.read(&mut word) {
        heard.keep(&word[..length]);
        if !answered && word.windows(4).any(|end| end == b"\r\n\r\n") {
            answered = stream.write_all(ANSWER).is_ok();
        }
    }
}

fn take(stream: &mut impl Read, heard: &Heard) {
    let mut word = [0; WORD];
    if let Ok(length) = stream.read(&mut word) {
        heard.keep(&word[..length]);
    }
}

/// A word that only one attempt says.
pub(crate) fn token(name: &str, side: &str) -> String {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{side}x{name}x{}", std::process::id())
}

/// Fills `{…}` in an argument.
pub(crate) fn fill(text: &str, values: &HashMap<&'static str, String>) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_hears_what_is_said_and_nothing_else() {
        let witness = Witness::start().unwrap();
        let word = token("network.tcp", "test");
        assert!(!witness.heard(&word));
        TcpStream::connect(("127.0.0.1", witness.port)).unwrap().write_all(word.as_bytes()).unwrap();
        assert!(witness.heard(&word));
        assert!(!witness.heard(&token("network.udp", "test")));
    }

    #[test]
    fn every_place_in_an_argument_is_filled() {
        let values = HashMap::from([("a", "1".to_owned()), ("b", "2".to_owned())]);
        assert_eq!(fill("x={a},{b},{c}", &values), "x=1,2,{c}");
    }
}
