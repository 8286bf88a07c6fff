//! The agent's echo of a prompt with images: the journal has the line without their bytes, which are the server's already.

/// What the echo of a prompt with images begins with, as Claude Code 2.1.330 prints it. A tool's result begins otherwise.
const ECHO: &[u8] = br#"{"type":"user","message":{"role":"user","content":[{"type":"image""#;
/// What comes before the bytes of an image. Within a text its quotes would be escaped.
const DATA: &[u8] = br#"","data":""#;

/// Leaves the bytes of images out of a line that comes piece by piece; pure.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    /// Whether what comes are the bytes of an image.
    in_image: bool,
}

impl Echo {
    /// Whether the line so far begins as an echo. Of a shorter one nothing is known.
    fn begins(line: &[u8]) -> bool {
        line.starts_with(ECHO)
    }

    /// Takes from the front of `part` what is kept as it is, or what is left out: how long it is, and whether it is kept. `line` is
    /// what was kept so far.
    pub(crate) fn take(&mut self, line: &[u8], part: &[u8]) -> (usize, bool) {
        if self.in_image {
            let end = part.iter().position(|byte| *byte == b'"');
            self.in_image = end.is_none();
            return (end.unwrap_or(part.len()), false);
        }
        if line.len() < ECHO.len() {
            let missing = ECHO.len() - line.len();
            return (missing.min(part.len()), true);
        }
        if !Self::begins(line) {
            return (part.len(), true);
        }
        // One byte behind each quote, since the mark may come in pieces.
        let quote = part.iter().position(|byte| *byte == b'"').map_or(part.len(), |at| at + 1);
        let tail = [&line[line.len().saturating_sub(DATA.len())..], &part[..quote]].concat();
        self.in_image = tail.ends_with(DATA);
        (quote, true)
    }

    /// Begins with another line.
    pub(crate) fn end(&mut self) {
        self.in_image = false;
    }
}
