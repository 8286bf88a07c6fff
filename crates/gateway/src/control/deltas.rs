//! `POST /deltas`: text on its way to live readers. Lossy by design.

use std::sync::Arc;

use caisson_domain::event::Delta;
use caisson_domain::limits::{DELTA_BYTES, DELTAS_PER_SECOND, MESSAGE_ID_BYTES};
use caisson_domain::protocol::DeltaBatch;
use caisson_domain::redact::Redactor;
use caisson_domain::run::cut;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{heavy, read_body};
use crate::body::Body;
use crate::bounds::DELTA_BODY_BYTES;
use crate::problem::{Refusal, bare};
use crate::shared::Door;

/// Counts the deltas of the current second.
#[derive(Debug, Default)]
pub(crate) struct Window {
    second: i64,
    count: u32,
}

impl Window {
    /// How many of `wanted` may pass at `now_ms`.
    fn take(&mut self, now_ms: i64, wanted: usize) -> usize {
        let second = now_ms.div_euclid(1000);
        if second != self.second {
            *self = Self { second, count: 0 };
        }
        let free = DELTAS_PER_SECOND - self.count.min(DELTAS_PER_SECOND);
        let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(free);
        self.count += taken;
        taken as usize
    }
}

/// Hands deltas of the running run on; what is beyond the bounds is dropped.
pub(super) async fn publish(door: &Arc<Door>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let (bytes, permit) = read_body(door, request.into_body(), DELTA_BODY_BYTES).await?;
    let batch = heavy(bytes.len(), move || serde_json::from_slice::<DeltaBatch>(&bytes)).await?;
    drop(permit);
    let batch = batch.map_err(|_| Refusal::bad_request("the body is not a batch of text deltas"))?;
    let store = &door.shared.store;
    let run = store.door_run(&door.sandbox).await.map_err(|error| Refusal::store(&error))?;
    if run.is_some_and(|run| run.id == batch.run) {
        let allowed = match door.deltas.lock() {
            Ok(mut window) => window.take(store.now_ms(), batch.items.len()),
            Err(_) => 0,
        };
        let redactor = door.secrets.redactor();
        for item in batch.items.into_iter().take(allowed) {
            let text = cut(&item.text, DELTA_BYTES);
            let text = door.live_text.push((&batch.run, item.kind), text, &redactor);
            if text.is_empty() {
                continue;
            }
            let (run, message_id) = (batch.run.clone(), message_id(item.message_id, &redactor));
            store.publish_delta(
                &door.session,
                Delta { run, kind: item.kind, message_id, block: item.block, text },
            );
        }
    }
    Ok(bare(StatusCode::NO_CONTENT))
}

/// The id if it looks like one and is no secret; otherwise none.
fn message_id(id: String, redactor: &Redactor) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let is_id = id.len() <= MESSAGE_ID_BYTES && id.chars().all(is_part) && redactor.text(&id) == id;
    if is_id { id } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_twenty_deltas_pass_in_a_second() {
        let mut window = Window::default();
        assert_eq!(window.take(1_000, 15), 15);
        assert_eq!(window.take(1_999, 15), 5);
        assert_eq!(window.take(1_999, 1), 0);
        assert_eq!(window.take(2_000, 100), DELTAS_PER_SECOND as usize);
    }

    #[test]
    fn what_does_not_look_like_an_id_is_none() {
        let redactor = Redactor::new(&["sk-ant-canary-7f3a".to_owned().into()]);
        let longest = "m".repeat(MESSAGE_ID_BYTES);
        for id in ["msg_01XFDUDYJgAACzvnptvVoYEL", "gen-1", longest.as_str()] {
            assert_eq!(message_id(id.to_owned(), &redactor), id);
        }
        for id in ["sk-ant-canary-7f3a", "a b", "<b>", "é", &format!("{longest}m")] {
            assert_eq!(message_id(id.to_owned(), &redactor), "", "{id}");
        }
    }
}
