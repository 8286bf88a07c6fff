//! What a reply of the scripted model that was cut comes to, where it says nothing but `word `.

use serde_json::json;

/// Bytes of a reply that may have been served and not be counted once it is cut: what is on its way through sockets.
const ON_THE_WAY_BYTES: u64 = 256 * 1024;
/// Bytes of a reply that may be counted and not have been served as words: its head, and what a token is rounded up to.
const HEAD_BYTES: u64 = 16 * 1024;
const WORD: &str = "word ";
/// Bytes of text that count as one token where nobody tells the real count.
const TOKEN_BYTES: u64 = 4;

/// Asserts that the tokens counted of a cut reply are those that were served, but for what was on its way.
///
/// # Panics
/// They are not.
#[track_caller]
pub fn assert_counted(bytes_served: u64, counted_tokens: u64) {
    // Each word is an event of its own.
    let event =
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORD}});
    let event_bytes = format!("event: content_block_delta\ndata: {event}\n\n").len() as u64;
    let counted_bytes = counted_tokens * TOKEN_BYTES * event_bytes / WORD.len() as u64;
    let shown =
        format!("{bytes_served} bytes were served, {counted_tokens} tokens ({counted_bytes} bytes) counted");
    assert!(bytes_served <= counted_bytes + ON_THE_WAY_BYTES, "{shown}");
    assert!(counted_bytes <= bytes_served + HEAD_BYTES, "{shown}");
}

#[cfg(test)]
mod tests {
    use super::assert_counted;

    #[test]
    fn what_is_counted_was_served_and_what_was_served_is_counted() {
        let event_bytes = 120;
        assert_counted(5_000 * event_bytes, 5_000 * 5 / 4);
        let fails = |bytes, tokens| std::panic::catch_unwind(|| assert_counted(bytes, tokens)).is_err();
        assert!(fails(10_000 * event_bytes, 5_000 * 5 / 4), "too little is counted");
        assert!(fails(5_000 * event_bytes, 10_000 * 5 / 4), "too much is counted");
    }
}
