//! Names that lead elsewhere from one look-up to the next, as whoever owns a domain can have them: a name server on this
//! machine, which hears every name that it is asked for, and who listens at the two addresses.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::witness::Heard;

/// Where the name server listens: an address that no other service has, at the port that a resolver asks.
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 53, 53, 53);
const PORT: u16 = 53;
/// Where names lead that may be reached, and where they must not lead.
const PUBLIC: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PRIVATE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// How long a connection may take to say its word.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest message of a resolver, and longest word, in bytes.
const MESSAGE: usize = 512;
/// Of a message's head: before its question.
const HEAD: usize = 12;
/// An address of version 4 is asked for, in the internet's class.
const QUESTION_A: [u8; 4] = [0, 1, 0, 1];

/// The name server and its listeners, which end with this process.
#[derive(Debug)]
pub(crate) struct Names {
    /// Port of both addresses.
    pub(crate) port: u16,
    /// A port of the private address alone.
    pub(crate) private_port: u16,
    /// What a resolver reads to ask here.
    pub(crate) resolver: PathBuf,
}

impl Names {
    /// Listens; what comes to the private address is heard, and so is each name that is looked up.
    ///
    /// # Errors
    /// Somebody else has the port, or the disk refuses.
    pub(crate) fn start(directory: &Path, heard: &Heard) -> anyhow::Result<Self> {
        let public = TcpListener::bind((PUBLIC, 0))?;
        let port = public.local_addr()?.port();
        let (private, alone) = (TcpListener::bind((PRIVATE, port))?, TcpListener::bind((PRIVATE, 0))?);
        let private_port = alone.local_addr()?.port();
        let udp = UdpSocket::bind((SERVER, PORT)).with_context(|| format!("{SERVER} has no port {PORT}"))?;
        let resolver = directory.join("resolv.conf");
        fs::write(&resolver, format!("nameserver {SERVER}\noptions timeout:1 attempts:2\n"))?;
        listen(public, None);
        listen(private, Some(heard.clone()));
        listen(alone, Some(heard.clone()));
        let heard = heard.clone();
        std::thread::spawn(move || {
            let (mut message, mut asked) = ([0; MESSAGE], HashMap::new());
            while let Ok((length, from)) = udp.recv_from(&mut message) {
                // Whoever has a zone reads what is looked up in it, whatever is answered.
                heard.keep(&message[..length].to_ascii_lowercase());
                if let Some(answer) = answer(&message[..length], &mut asked) {
                    udp.send_to(&answer, from).ok();
                }
            }
        });
        Ok(Self { port, private_port, resolver })
    }
}

/// Reads one word of each connection and ends it.
fn listen(listener: TcpListener, heard: Option<Heard>) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(PATIENCE)).ok();
            let mut word = [0; MESSAGE];
            let length = TcpStream::read(&mut stream, &mut word).unwrap_or(0);
            if let Some(heard) = &heard {
                heard.keep(&word[..length]);
            }
            stream.write_all(b"ok").ok();
        }
    });
}

/// The answer to a question; `asked` counts how often each name was looked up.
///
/// `moves…` leads to the public address the first time and to the private one from then on, `both…` to the private and the
/// public one at once; no other name is known.
fn answer(message: &[u8], asked: &mut HashMap<Vec<u8>, usize>) -> Option<Vec<u8>> {
    let question = message.get(HEAD..)?;
    let length = question.iter().position(|byte| *byte == 0)? + 1;
    let (name, kind) = (question.get(..length)?, question.get(length..length + QUESTION_A.len())?);
    let label = name.get(1..)?.to_ascii_lowercase();
    let addresses = match (label.starts_with(b"moves"), label.starts_with(b"both"), kind == QUESTION_A) {
        (true, _, true) => {
            let times = asked.entry(label).or_default();
            *times += 1;
            vec![if *times == 1 { PUBLIC } else { PRIVATE }]
        }
        (_, true, true) => vec![PRIVATE, PUBLIC],
        (_, _, _) => Vec::new(),
    };
    // A reply by whoever is asked for the name, with as many answers as there are addresses.
    let mut reply = message.get(..2)?.to_vec();
    reply.extend([0x85, 0x80, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    reply.extend_from_slice(question.get(..length + QUESTION_A.len())?);
    for address in addresses {
        // The name above, an address of four bytes, to be forgotten at once.
        reply.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: u8) -> Vec<u8> {
        let mut message = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.extend([0, 0, kind, 0, 1]);
        message
    }

    #[test]
    fn a_name_moves_after_its_first_look_up_and_others_are_not_known() {
        let mut asked = HashMap::new();
        let mut ends = |name: &str, kind| {
            let told = answer(&question(name, kind), &mut asked).unwrap();
            assert_eq!(told[..2], [7, 9]);
            (told[7], told[told.len() - 4..].to_vec())
        };
        // What else is asked of a name is no look-up of its addresses.
        assert_eq!(ends("moves.a.example", 28).0, 0);
        assert_eq!(ends("moves.a.example", 1), (1, PUBLIC.octets().to_vec()));
        assert_eq!(ends("MOVES.a.example", 1), (1, PRIVATE.octets().to_vec()));
        assert_eq!(ends("moves.b.example", 1), (1, PUBLIC.octets().to_vec()));
        assert_eq!(ends("both.a.example", 1).0, 2);
        assert_eq!(ends("other.example", 1).0, 0);
        assert_eq!(answer(&[0; 5], &mut HashMap::new()), None);
    }
}
