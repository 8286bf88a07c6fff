//! Splitting the agent's standard output into lines with a bounded buffer.

use tokio::io::{AsyncRead, AsyncReadExt};

use caisson_domain::limits::JOURNAL_LINE_BYTES;

use crate::echo::Echo;

/// One read, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// One line without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawLine {
    /// At most [`JOURNAL_LINE_BYTES`].
    pub(crate) bytes: Vec<u8>,
    /// Bytes cut off its end.
    pub(crate) cut_bytes: u64,
}

/// Splits bytes into lines; pure.
#[derive(Debug)]
struct Splitter {
    line: Vec<u8>,
    cut_bytes: u64,
    bound: usize,
    echo: Echo,
}

impl Splitter {
    fn new(bound: usize) -> Self {
        Self { line: Vec::new(), cut_bytes: 0, bound, echo: Echo::default() }
    }

    /// Takes from the front of `input` up to the end of a line; how much it took, and the line if it is whole.
    fn take(&mut self, input: &[u8]) -> (usize, Option<RawLine>) {
        let end = input.iter().position(|byte| *byte == b'\n');
        let mut part = &input[..end.unwrap_or(input.len())];
        while !part.is_empty() {
            let (taken, kept) = self.echo.take(&self.line, part);
            if kept {
                self.keep(&part[..taken]);
            }
            part = &part[taken..];
        }
        match end {
            Some(end) => (end + 1, self.finish()),
            None => (input.len(), None),
        }
    }

    fn keep(&mut self, part: &[u8]) {
        let room = self.bound.saturating_sub(self.line.len()).min(part.len());
        self.line.extend_from_slice(&part[..room]);
        self.cut_bytes += (part.len() - room) as u64;
    }

    /// Ends the line; none if there is nothing in it.
    fn finish(&mut self) -> Option<RawLine> {
        let line = RawLine { bytes: std::mem::take(&mut self.line), cut_bytes: self.cut_bytes };
        self.cut_bytes = 0;
        self.echo.end();
        (!line.bytes.is_empty()).then_some(line)
    }
}

/// Lines of a pipe.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    pipe: R,
    splitter: Splitter,
    buffer: Vec<u8>,
    taken: usize,
    filled: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(pipe: R) -> Self {
        let splitter = Splitter::new(JOURNAL_LINE_BYTES);
        Self { pipe, splitter, buffer: vec![0; READ_BYTES], taken: 0, filled: 0 }
    }

    /// The next line that is not empty; none at the end. A pipe that fails has ended.
    ///
    /// # Cancel safety
    /// Safe: a read that was given up took nothing.
    pub(crate) async fn next(&mut self) -> Option<RawLine> {
        loop {
            while self.taken < self.filled {
                let (took, line) = self.splitter.take(&self.buffer[self.taken..self.filled]);
                self.taken += took;
                if line.is_some() {
                    return line;
                }
            }
            match self.pipe.read(&mut self.buffer).await {
                Ok(read @ 1..) => (self.taken, self.filled) = (0, read),
                Ok(_) | Err(_) => return self.splitter.finish(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(bytes: &[u8], cut_bytes: u64) -> RawLine {
        RawLine { bytes: bytes.to_vec(), cut_bytes }
    }

    #[test]
    fn a_line_is_cut_at_its_bound_and_the_cut_bytes_are_counted() {
        let mut splitter = Splitter::new(4);
        assert_eq!(splitter.take(b"abcd\nabcde\n"), (5, Some(line(b"abcd", 0))));
        assert_eq!(splitter.take(b"abcde\n"), (6, Some(line(b"abcd", 1))));
        for _ in 0..3 {
            assert_eq!(splitter.take(b"xyz"), (3, None));
        }
        assert_eq!(splitter.take(b"\n\n"), (1, Some(line(b"xyzx", 5))));
        assert_eq!(splitter.take(b"\n"), (1, None));
    }

    #[tokio::test]
    async fn a_last_line_without_an_end_is_a_line() {
        let mut lines = Lines::new(&b"one\r\n\ntwo"[..]);
        assert_eq!(lines.next().await, Some(line(b"one\r", 0)));
        assert_eq!(lines.next().await, Some(line(b"two", 0)));
        assert_eq!(lines.next().await, None);
    }

    #[tokio::test]
    async fn a_line_of_the_bound_is_whole_and_a_longer_one_is_not() {
        for (bytes, cut) in
            [(JOURNAL_LINE_BYTES, 0), (JOURNAL_LINE_BYTES + 1, 1), (5 * JOURNAL_LINE_BYTES, 4)]
        {
            let cut = if cut > 1 { cut * JOURNAL_LINE_BYTES as u64 } else { cut };
            let input = vec![b'x'; bytes];
            let read = Lines::new(input.as_slice()).next().await.unwrap();
            assert_eq!((read.bytes.len(), read.cut_bytes), (JOURNAL_LINE_BYTES, cut));
        }
    }

    /// As Claude Code 2.1.330 echoes a prompt.
    fn echo(images: &[&str], text: &str) -> String {
        let image = |data: &&str| {
            format!(
                r#"{{"type":"image","source":{{"type":"base64","media_type":"image/png","data":"{data}"}}}}"#
            )
        };
        let mut blocks: Vec<String> = images.iter().map(image).collect();
        blocks.push(format!(r#"{{"type":"text","text":{}}}"#, serde_json::to_string(text).unwrap()));
        format!(
            "{{\"type\":\"user\",\"message\":{{\"role\":\"user\",\"content\":[{}]}},\"isReplay\":true}}\n",
            blocks.join(",")
        )
    }

    #[tokio::test]
    async fn an_echoed_prompt_is_journaled_without_the_bytes_of_its_images() {
        let long = "iVBO".repeat(JOURNAL_LINE_BYTES);
        let text = r#"so is ","data":"this" a text"#;
        let other = r#"{"type":"user","message":{"content":[{"media_type":"image/png","data":"kept"}]}}"#;
        let input = format!("{}{other}\n{}", echo(&[&long, "AA=="], text), echo(&[], "x"));
        let mut lines = Lines::new(input.as_bytes());
        let wanted = echo(&["", ""], text);
        assert_eq!(lines.next().await, Some(line(wanted.trim_end().as_bytes(), 0)));
        assert_eq!(lines.next().await, Some(line(other.as_bytes(), 0)), "what a tool shows stays");
        assert_eq!(lines.next().await, Some(line(echo(&[], "x").trim_end().as_bytes(), 0)));
        assert_eq!(lines.next().await, None);
        // One that breaks off within an image leaves nothing behind.
        let broken = format!("{}\n{other}", &echo(&[&long], "x")[..200]);
        let mut lines = Lines::new(broken.as_bytes());
        assert!(lines.next().await.unwrap().bytes.ends_with(br#""data":""#));
        assert_eq!(lines.next().await, Some(line(other.as_bytes(), 0)));
    }

    proptest! {
        #[test]
        fn an_echo_does_not_depend_on_how_its_bytes_arrive(
            first in "[A-Za-z0-9+/]{0,40}", second in "[A-Za-z0-9+/]{0,9}", text in "[a-z\",:]{1,30}",
            pieces in prop::collection::vec(1_usize..30, 1..40),
        ) {
            let (input, wanted) = (echo(&[&first, &second], &text), echo(&["", ""], &text));
            let (mut splitter, mut rest, mut found) = (Splitter::new(10_000), input.as_bytes(), None);
            let mut sizes = pieces.iter().cycle();
            while !rest.is_empty() {
                let piece = rest.len().min(*sizes.next().unwrap());
                let (took, whole) = splitter.take(&rest[..piece]);
                found = found.or(whole);
                rest = &rest[took..];
            }
            prop_assert_eq!(found, Some(line(wanted.trim_end().as_bytes(), 0)));
        }

        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(
            input in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            pieces in prop::collection::vec(1_usize..20, 1..40),
        ) {
            let split = |sizes: &[usize]| {
                let (mut splitter, mut found, mut rest) = (Splitter::new(8), Vec::new(), input.as_slice());
                let mut sizes = sizes.iter().cycle();
                while !rest.is_empty() {
                    let piece = rest.len().min(*sizes.next().unwrap());
                    let (took, line) = splitter.take(&rest[..piece]);
                    found.extend(line);
                    rest = &rest[took..];
                }
                found.extend(splitter.finish());
                found
            };
            prop_assert_eq!(split(&pieces), split(&[input.len().max(1)]));
        }
    }
}
