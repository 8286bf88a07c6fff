//! What a run has moved outside so far, as its events tell: for a server that takes the run up again and bounds it.

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use serde::Deserialize;

use crate::database::sql;
use crate::rows::Columns;
use crate::{Store, StoreError};

/// What a run has moved outside, all of it together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MovedOutside {
    /// Connections or requests.
    pub count: u64,
    /// Bytes.
    pub sent: u64,
    /// Bytes.
    pub received: u64,
}

/// The details of an event, as the gateway writes them: what was moved since the one before.
#[derive(Deserialize)]
struct Told {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(alias = "connections", alias = "requests")]
    count: u64,
    sent_bytes: u64,
    received_bytes: u64,
}

/// The two kinds are named so that their own small index is used. All of them: what were left out would be given again. They are
/// few, since the gateway tells of what is moved ever more seldom.
pub(crate) const TOLD: &str = "select run_id, data from event \
     where run_id = $1 and kind = $2 and kind in ('egress.used', 'mcp.used')";

impl Store {
    /// What the run's events of a kind, [`EventKind::EgressUsed`] or [`EventKind::McpUsed`], tell altogether.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn moved_outside(&self, run: &RunId, kind: EventKind) -> Result<MovedOutside, StoreError> {
        let query = sql::query(TOLD).bind(run.as_str()).bind(kind.as_str());
        let rows = query.fetch_all(self.reader()).await?;
        let mut all = MovedOutside::default();
        for row in &rows {
            let told: Told = Columns::keyed("event", row, "run_id")?.json("data")?;
            for item in told.items {
                all.count = all.count.saturating_add(item.count);
                all.sent = all.sent.saturating_add(item.sent_bytes);
                all.received = all.received.saturating_add(item.received_bytes);
            }
        }
        Ok(all)
    }
}
