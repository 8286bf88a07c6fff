//! Server-sent events, read while they pass: incremental, bounded, never failing. Source: the WHATWG HTML
//! standard, "Parsing an event stream". Only `data` matters here; names, ids and retry times are skipped.
//! The parser of `caisson_domain::sse` is for events of ours: it fails at a line that is too long, where this one goes
//! on with the next event, and it drops an event that the stream's end cut off.

use crate::bounds::SSE_LINE_BYTES;

/// Bytes up to [`SSE_LINE_BYTES`]; none once they were more.
#[derive(Debug)]
struct Bounded(Option<Vec<u8>>);

impl Default for Bounded {
    fn default() -> Self {
        Self(Some(Vec::new()))
    }
}

impl Bounded {
    fn extend(&mut self, part: &[u8]) {
        if let Some(bytes) = &mut self.0 {
            if bytes.len() + part.len() > SSE_LINE_BYTES {
                self.0 = None;
            } else {
                bytes.extend_from_slice(part);
            }
        }
    }
}

/// Reads events from bytes cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The line so far.
    line: Bounded,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    /// The first line was seen, so no byte order mark can come any more.
    begun: bool,
    /// Data of the event so far, if it has any; an event that is too long is not shown.
    data: Option<Bounded>,
}

impl Parser {
    /// Takes the next bytes and shows the data of each event that they end to `each`.
    pub(super) fn feed<F: FnMut(&[u8])>(&mut self, mut bytes: &[u8], each: &mut F) {
        if self.after_return && !bytes.is_empty() {
            self.after_return = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.line.extend(&bytes[..end]);
            let returned = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if returned {
                self.after_return = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            self.end_line(each);
        }
        self.line.extend(bytes);
    }

    /// The stream ended: an event without its closing empty line is shown all the same.
    pub(super) fn end<F: FnMut(&[u8])>(&mut self, each: &mut F) {
        self.end_line(each);
        self.dispatch(each);
    }

    fn end_line<F: FnMut(&[u8])>(&mut self, each: &mut F) {
        let begun = std::mem::replace(&mut self.begun, true);
        let Some(line) = std::mem::take(&mut self.line).0 else {
            self.data = Some(Bounded(None));
            return;
        };
        let line = if begun { &line[..] } else { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) };
        if line.is_empty() {
            self.dispatch(each);
        } else if let Some(value) = field(line, b"data") {
            match &mut self.data {
                None => self.data.insert(Bounded::default()).extend(value),
                Some(data) => {
                    data.extend(b"\n");
                    data.extend(value);
                }
            }
        }
    }

    fn dispatch<F: FnMut(&[u8])>(&mut self, each: &mut F) {
        if let Some(Bounded(Some(data))) = self.data.take() {
            each(&data);
        }
    }
}

/// The value of the line if its field is `name`.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(name)?;
    match rest.first() {
        None => Some(rest),
        Some(b':') => Some(rest[1..].strip_prefix(b" ").unwrap_or(&rest[1..])),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::default();
        let mut seen = Vec::new();
        let mut each = |data: &[u8]| seen.push(String::from_utf8_lossy(data).into_owned());
        for piece in pieces {
            parser.feed(piece, &mut each);
        }
        parser.end(&mut each);
        seen
    }

    #[test]
    fn data_is_read_as_the_standard_says() {
        let text =
            "\u{feff}data: a\n\n: comment\nevent: x\ndata:b\r\ndata:  c\r\rdata\n\nid: 7\n\ndata: last";
        assert_eq!(read(&[text.as_bytes()]), ["a", "b\n c", "", "last"]);
        assert_eq!(read(&[b"database: x\n\n"]), Vec::<String>::new());
    }

    #[test]
    fn an_event_longer_than_its_bound_is_skipped_and_the_next_is_read() {
        let fits = format!("data:{}\n\n", "x".repeat(SSE_LINE_BYTES - 5));
        assert_eq!(read(&[fits.as_bytes()])[0].len(), SSE_LINE_BYTES - 5);
        let long = format!("data:{}\n\ndata: next\n\n", "x".repeat(SSE_LINE_BYTES - 4));
        assert_eq!(read(&[long.as_bytes()]), ["next"]);
        let half = format!("data:{}\n", "x".repeat(SSE_LINE_BYTES / 2));
        let many = format!("{half}{half}\ndata: next\n\n");
        assert_eq!(read(&[many.as_bytes()]), ["next"]);
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            text in "(data|event|:|id|\u{feff}|x|ä| |: |\r\n|\n\n|\r|\n){0,60}",
            cuts in prop::collection::vec(0_usize..200, 0..12),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&pieces), read(&[bytes]));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            read(&[&bytes]);
        }
    }
}
