//! Server-sent events, read piece by piece. The same bytes give the same messages however they are cut into chunks.
//!
//! Source: the WHATWG HTML standard, section 9.2.6 (interpretation of an event stream).

/// Longest line, in bytes: an event of ours carries one journal line of at most 1 MiB, escaped once more.
pub const LINE_BYTES: usize = 8 * 1024 * 1024;

/// One message of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The `event:` field.
    pub event: Option<String>,
    /// The `id:` field of this message.
    pub id: Option<String>,
    /// The `data:` fields, joined by line feeds.
    pub data: String,
}

/// A line was longer than [`LINE_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a line of the event stream is longer than {LINE_BYTES} bytes")]
pub struct LineTooLong;

/// Reads a stream piece by piece.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_carriage_return: bool,
    message: Message,
    has_data: bool,
}

impl Parser {
    /// Takes the next piece and returns the messages that it completes.
    ///
    /// # Errors
    /// [`LineTooLong`]; the parser must not be used any further.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<Message>, LineTooLong> {
        let mut messages = Vec::new();
        for &byte in piece {
            match byte {
                b'\n' if self.after_carriage_return => self.after_carriage_return = false,
                b'\n' | b'\r' => {
                    self.after_carriage_return = byte == b'\r';
                    messages.extend(self.end_line());
                }
                _ => {
                    self.after_carriage_return = false;
                    if self.line.len() == LINE_BYTES {
                        return Err(LineTooLong);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(messages)
    }

    fn end_line(&mut self) -> Option<Message> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return std::mem::take(&mut self.has_data).then_some(message);
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => self.message.event = Some(value.to_owned()),
            "id" => self.message.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b": comment\n\nid: 7\nevent: note\ndata: {\"a\":1}\n\ndata:x\r\ndata\r\ndata:  y\r\rretry: 5\nevent: none\n\n";

    fn read(pieces: &[&[u8]]) -> Vec<Message> {
        let mut parser = Parser::default();
        pieces.iter().flat_map(|piece| parser.push(piece).unwrap()).collect()
    }

    #[test]
    fn messages_do_not_depend_on_where_the_stream_is_cut() {
        let whole = read(&[STREAM]);
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0].id.as_deref(), Some("7"));
        assert_eq!(whole[0].data, "{\"a\":1}");
        assert_eq!(whole[1], Message { data: "x\n\n y".to_owned(), ..Message::default() });
        for cut in 0..STREAM.len() {
            assert_eq!(read(&[&STREAM[..cut], &STREAM[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_is_read_up_to_its_bound() {
        let mut parser = Parser::default();
        assert!(parser.push(&vec![b'x'; LINE_BYTES]).is_ok());
        assert_eq!(parser.push(b"x"), Err(LineTooLong));
    }
}
