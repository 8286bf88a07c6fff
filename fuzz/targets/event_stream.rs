#![no_main]

use caisson_domain::sse::{Message, Parser};

/// Messages of a stream that comes in pieces of `size` bytes; none where a line is too long.
fn read(bytes: &[u8], size: usize) -> Option<Vec<Message>> {
    let mut parser = Parser::default();
    let mut messages = Vec::new();
    for piece in bytes.chunks(size) {
        messages.extend(parser.push(piece).ok()?);
    }
    Some(messages)
}

// How a stream is cut says nothing about what it says.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = data.split_first() else { return };
    assert_eq!(read(bytes, usize::from(*size) + 1), read(bytes, bytes.len().max(1)));
});
