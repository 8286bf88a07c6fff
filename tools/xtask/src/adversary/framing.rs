//! A reader of HTTP that is less strict than it should be, in every way that such readers are known for: whoever can hide a
//! second request from the one in front of it is heard.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::witness::Heard;

/// How long a connection may say nothing until it is read.
const SILENCE: Duration = Duration::from_millis(300);
/// Most of a connection that is read, in bytes.
const MOST: usize = 256 * 1024;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Listens on a port of 127.0.0.1, until this process ends; second requests are heard.
///
/// # Errors
/// The system gives no port.
pub(crate) fn listen(heard: &Heard) -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let heard = heard.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let heard = heard.clone();
            std::thread::spawn(move || converse(stream, &heard));
        }
    });
    Ok(port)
}

fn converse(mut stream: TcpStream, heard: &Heard) {
    stream.set_read_timeout(Some(SILENCE)).ok();
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..length]);
        if all.len() > MOST {
            break;
        }
    }
    for second in seconds(&all) {
        heard.keep(second);
    }
    stream.write_all(ANSWER).ok();
}

/// The second requests that some reader finds in what came on a connection.
fn seconds(all: &[u8]) -> Vec<&[u8]> {
    let Some(at) = all.windows(4).position(|end| end == b"\r\n\r\n") else { return Vec::new() };
    let (head, body) = (String::from_utf8_lossy(&all[..at]).to_ascii_lowercase(), &all[at + 4..]);
    let fields = || head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    let field =
        |name: &'static str| fields().find(move |(found, _)| found.trim() == name).map(|(_, value)| value);
    let by_length = field("content-length").and_then(|length| length.trim().parse().ok());
    let by_length = by_length.and_then(|length: usize| body.get(length..));
    let in_chunks = field("transfer-encoding").is_some_and(|value| value.contains("chunked"));
    let by_chunks = [false, true].into_iter().filter_map(|lenient| behind_chunks(body, lenient));
    let by_chunks = by_chunks.filter(|_| in_chunks);
    by_length.into_iter().chain(by_chunks).filter(|rest| rest.starts_with(b"GET ")).collect()
}

/// What is behind the last chunk. A lenient reader ends a line at a line feed, takes of a size what looks like one, loses what
/// is too large for it, and looks for the end of a chunk's line behind its data.
fn behind_chunks(mut rest: &[u8], lenient: bool) -> Option<&[u8]> {
    let line = |text: &[u8]| {
        let end = text.iter().position(|byte| *byte == b'\n')?;
        (lenient || (end > 0 && text[end - 1] == b'\r')).then_some(end + 1)
    };
    loop {
        let end = line(rest)?;
        let digits = String::from_utf8_lossy(&rest[..end]).into_owned();
        let digits = digits.trim_start_matches(|sign: char| lenient && matches!(sign, '+' | ' '));
        let size = digits.chars().map_while(|digit| digit.to_digit(16));
        let size = size.fold(0_u64, |size, digit| (size << 4) | u64::from(digit));
        rest = rest.get(end..)?;
        if size == 0 {
            // Trailers, and the empty line behind them.
            loop {
                let end = line(rest)?;
                let empty = rest[..end].iter().all(|byte| matches!(byte, b'\r' | b'\n'));
                rest = rest.get(end..)?;
                if empty {
                    return Some(rest);
                }
            }
        }
        rest = rest.get(usize::try_from(size).ok()?..)?;
        rest = rest.get(line(rest)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(fields: &str, body: &str) -> usize {
        seconds(format!("POST /ok HTTP/1.1\r\n{fields}\r\n\r\n{body}").as_bytes()).len()
    }

    #[test]
    fn one_request_in_order_hides_no_other() {
        assert_eq!(found("content-length: 4", "body"), 0);
        assert_eq!(found("transfer-encoding: chunked", "2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"), 0);
        // A request in a body is no second one.
        assert_eq!(found("content-length: 21", "GET /hidden HTTP/1.1\n"), 0);
        assert_eq!(found("transfer-encoding: chunked", "6\r\nGET /x\r\n0\r\n\r\n"), 0);
        assert_eq!(seconds(b"GET / HTTP/1.1\r\n").len(), 0);
    }

    #[test]
    fn what_one_reader_takes_for_a_body_another_takes_for_a_request() {
        assert_eq!(found("content-length: 30\r\ntransfer-encoding: chunked", "0\r\n\r\nGET /hidden"), 2);
        assert_eq!(
            found("transfer-encoding: chunked\r\ncontent-length: 3", "b\r\nGET /hidden\r\n0\r\n\r\n"),
            1
        );
        for body in [
            "+0\r\n\r\nGET /hidden",
            "10000000000000000\r\n\r\nGET /hidden",
            "3\r\nabcd\r\n0\r\n\r\nGET /x",
            "0\n\nGET /x",
        ] {
            assert!(found("transfer-encoding: chunked", body) > 0, "{body:?}");
        }
        assert_eq!(found("content-length: 0", "GET /hidden"), 1);
    }
}
