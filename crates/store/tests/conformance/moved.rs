//! What a run has moved outside, as its events tell.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_store::MovedOutside;
use serde_json::json;

use crate::fixture::Fixture;

conformance! {
    what_a_run_moved_is_the_sum_of_what_its_events_tell,
}

async fn what_a_run_moved_is_the_sum_of_what_its_events_tell(fixture: Fixture) {
    let placed = fixture.placed().await;
    let (store, run) = (&fixture.store, &placed.run.id);
    let moved = async |kind| store.moved_outside(run, kind).await.unwrap();
    assert_eq!(moved(EventKind::EgressUsed).await, MovedOutside::default());
    let egress = |connections: u64, sent: u64, received: u64| json!({"host": "h", "connections": connections, "sent_bytes": sent, "received_bytes": received});
    let mcp = json!({"server": "notes", "requests": 5, "sent_bytes": 6, "received_bytes": 7});
    for (kind, items) in [
        (EventKind::EgressUsed, json!([egress(1, 10, 100), egress(2, 20, 200)])),
        (EventKind::McpUsed, json!([mcp])),
        (EventKind::EgressUsed, json!([egress(4, 40, u64::MAX)])),
    ] {
        store.append_gateway_event(run, NewEvent::new(kind, &json!({ "items": items }))).await.unwrap();
    }
    let egress = MovedOutside { count: 7, sent: 70, received: u64::MAX };
    assert_eq!(moved(EventKind::EgressUsed).await, egress);
    assert_eq!(moved(EventKind::McpUsed).await, MovedOutside { count: 5, sent: 6, received: 7 });
    let plan = fixture
        .rows((
            "explain query plan select run_id, data from event \
             where run_id = $1 and kind = $2 and kind in ('egress.used', 'mcp.used')",
            "explain select run_id, data from event \
             where run_id = 'r' and kind = 'mcp.used' and kind in ('egress.used', 'mcp.used')",
        ))
        .await;
    let wanted = fixture.database.of("event_of_moved (run_id=? AND kind=?)", "using event_of_moved");
    let uses =
        plan.iter().any(|row| row.get::<&str>(fixture.database.of("detail", "QUERY PLAN")).contains(wanted));
    assert!(uses, "it has an index of its own");
}
