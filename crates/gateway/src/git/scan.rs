//! Looking for secrets in an object that comes in pieces, however long it is: pure.

use std::io::{self, Read};

use super::secrets::{Hit, Secrets};

/// What is looked at together, in bytes.
const WINDOW_BYTES: usize = 512 * 1024;
/// Longest secret with what tells it, in bytes. A longer one may be missed where two windows meet.
pub(super) const MATCH_BYTES: usize = 4 * 1024;
/// What two windows share: a match belongs to the one in which it does not begin in the outer half of what they share.
const OVERLAP_BYTES: usize = 2 * MATCH_BYTES;
/// Git's own measure of a text: no NUL among its first bytes.
const TEXT_BYTES: usize = 8000;

/// A secret in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) hit: Hit,
    /// From 1.
    pub(super) line: u64,
}

/// Reads `input` to its end and looks for secrets in it. `buffer` is used again and again.
///
/// # Errors
/// Those of `input`.
pub(super) fn scan(secrets: &Secrets, mut input: impl Read, buffer: &mut Vec<u8>) -> io::Result<Vec<Found>> {
    buffer.clear();
    let mut found = Vec::new();
    let mut binary = None;
    let mut lines = 1;
    let mut first = true;
    loop {
        let room = WINDOW_BYTES - buffer.len();
        let last = (&mut input).take(room as u64).read_to_end(buffer)? < room;
        let binary = *binary.get_or_insert_with(|| buffer[..buffer.len().min(TEXT_BYTES)].contains(&0));
        let from = if first { 0 } else { OVERLAP_BYTES / 2 };
        let to = if last { buffer.len() } else { buffer.len() - OVERLAP_BYTES / 2 };
        let (mut counted, mut line) = (0, lines);
        for hit in secrets.find(buffer, binary) {
            if (from..to).contains(&hit.at) {
                line += newlines(&buffer[counted..hit.at]);
                counted = hit.at;
                found.push(Found { hit, line });
            }
        }
        if last {
            return Ok(found);
        }
        let kept = buffer.len() - OVERLAP_BYTES;
        lines += newlines(&buffer[..kept]);
        buffer.drain(..kept);
        first = false;
    }
}

fn newlines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> String {
        format!("ghp_{}", "7".repeat(36))
    }

    #[test]
    fn a_secret_is_found_once_with_its_line_wherever_windows_meet() {
        let secrets = Secrets::new(&[], &[]).unwrap();
        let mut buffer = Vec::new();
        let around = [
            0,
            WINDOW_BYTES - OVERLAP_BYTES - 20,
            WINDOW_BYTES - OVERLAP_BYTES / 2 - 20,
            WINDOW_BYTES - OVERLAP_BYTES / 2,
            WINDOW_BYTES - 20,
            WINDOW_BYTES + 5,
            3 * WINDOW_BYTES,
        ];
        for before in around {
            // A line has 8 bytes.
            let before = before / 8 * 8;
            let mut text = "1234567\n".repeat(before / 8);
            text.push_str(&token());
            text.push_str(&"\nafter".repeat(WINDOW_BYTES / 4));
            let found = scan(&secrets, text.as_bytes(), &mut buffer).unwrap();
            let lines: Vec<u64> = found.iter().map(|found| found.line).collect();
            assert_eq!(lines, [before as u64 / 8 + 1], "{before}");
        }
    }

    #[test]
    fn an_empty_object_and_one_of_a_whole_window_are_read_to_their_end() {
        let secrets = Secrets::new(&[], &[]).unwrap();
        let mut buffer = Vec::new();
        assert!(scan(&secrets, &b""[..], &mut buffer).unwrap().is_empty());
        let mut text = vec![b' '; WINDOW_BYTES - token().len()];
        text.extend_from_slice(token().as_bytes());
        assert_eq!(scan(&secrets, &text[..], &mut buffer).unwrap().len(), 1);
        text.insert(0, b' ');
        assert_eq!(scan(&secrets, &text[..], &mut buffer).unwrap().len(), 1);
    }
}
