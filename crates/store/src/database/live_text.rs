//! Text deltas as notifications: small enough for `PostgreSQL`, and joined where several wait.

use std::borrow::Cow;

use caisson_domain::event::Delta;
use caisson_domain::id::SessionId;
use serde::{Deserialize, Serialize};

/// Longest text of a notification, in bytes of JSON; the server takes 7999 with everything around it.
const TEXT_BYTES: usize = 7_000;

/// A text delta on its way to the other servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LiveText<'t> {
    /// Which process sends it.
    from: Cow<'t, str>,
    pub(super) session: SessionId,
    pub(super) delta: Delta,
}

impl<'t> LiveText<'t> {
    /// Reads a notification of another process; none for one's own, or of another version.
    pub(super) fn read(payload: &'t str, own: &str) -> Option<Self> {
        serde_json::from_str::<Self>(payload).ok().filter(|text| text.from != own)
    }
}

/// Joins `next` to `text` if both are one text and fit into one notification; gives it back if not.
pub(super) fn join(text: &mut (SessionId, Delta), next: (SessionId, Delta)) -> Option<(SessionId, Delta)> {
    let (session, delta) = &next;
    let of = |delta: &Delta| (delta.run.clone(), delta.kind, delta.message_id.clone(), delta.block);
    let same = text.0 == *session && of(&text.1) == of(delta);
    if !same || json_bytes(&text.1.text) + json_bytes(&delta.text) > TEXT_BYTES {
        return Some(next);
    }
    text.1.text.push_str(&delta.text);
    None
}

/// The notifications that carry a text: one, unless it is long.
pub(super) fn payloads((session, delta): (SessionId, Delta), own: &str) -> Vec<String> {
    let Delta { text, .. } = &delta;
    let mut payloads = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (piece, left) = rest.split_at(fitting(rest));
        rest = left;
        let text = LiveText {
            from: Cow::Borrowed(own),
            session: session.clone(),
            delta: Delta { text: piece.to_owned(), ..delta.clone() },
        };
        // Ids and texts: they always serialise.
        payloads.extend(serde_json::to_string(&text));
    }
    payloads
}

/// How many bytes of a text that is not empty fit, never less than one character.
fn fitting(text: &str) -> usize {
    let mut bytes = 0;
    for (at, character) in text.char_indices() {
        bytes += escaped(character);
        if bytes > TEXT_BYTES && at > 0 {
            return at;
        }
    }
    text.len()
}

fn json_bytes(text: &str) -> usize {
    text.chars().map(escaped).sum()
}

/// Bytes of a character in JSON, at most.
fn escaped(character: char) -> usize {
    match character {
        '"' | '\\' => 2,
        '\u{0}'..='\u{1f}' => 6,
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use caisson_domain::event::DeltaKind;
    use caisson_domain::id::RunId;
    use caisson_domain::limits::{DELTA_BYTES, MESSAGE_ID_BYTES};

    use super::*;

    fn text(text: &str) -> (SessionId, Delta) {
        let (run, message_id) = (RunId::new(1, [1; 10]), "m".repeat(MESSAGE_ID_BYTES));
        let delta = Delta { run, kind: DeltaKind::Text, message_id, block: 0, text: text.to_owned() };
        (SessionId::new(1, [2; 10]), delta)
    }

    #[test]
    fn the_longest_delta_fits_into_notifications_whatever_is_in_it() {
        for piece in ["x", "\u{1}", "\"", "é", "😀"] {
            let long = piece.repeat(DELTA_BYTES / piece.len());
            let payloads = payloads(text(&long), "0123456789abcdef");
            assert!(payloads.iter().all(|payload| payload.len() < 8_000), "{piece:?}");
            assert!(payloads.len() <= 8, "{piece:?}: {}", payloads.len());
            let read: String =
                payloads.iter().map(|payload| LiveText::read(payload, "other").unwrap().delta.text).collect();
            assert_eq!(read, long);
        }
        assert!(payloads(text(""), "x").is_empty());
    }

    #[test]
    fn ones_own_text_and_other_things_are_not_read() {
        let payload = payloads(text("a"), "own").remove(0);
        assert!(LiveText::read(&payload, "own").is_none());
        assert!(LiveText::read("{\"version\":9}", "own").is_none());
    }

    #[test]
    fn texts_of_one_run_are_joined_up_to_the_bound_and_others_are_not() {
        let mut first = text("a");
        assert_eq!(join(&mut first, text("b")), None);
        assert_eq!(first.1.text, "ab");
        let mut thought = text("c");
        thought.1.kind = DeltaKind::Thinking;
        assert_eq!(join(&mut first, thought.clone()), Some(thought));
        let mut next = text("c");
        next.1.message_id = "next".to_owned();
        assert_eq!(join(&mut first, next.clone()), Some(next));
        let mut next = text("c");
        next.1.block = 1;
        assert_eq!(join(&mut first, next.clone()), Some(next));
        let other = (SessionId::new(2, [2; 10]), text("d").1);
        assert_eq!(join(&mut first, other.clone()), Some(other));
        let long = text(&"e".repeat(TEXT_BYTES - 1));
        assert_eq!(join(&mut first, long.clone()), Some(long));
        assert_eq!(join(&mut first, text(&"e".repeat(TEXT_BYTES - 2))), None, "to the last byte");
    }
}
