//! The door of one sandbox, as its shim would use it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use caisson_domain::id::RunId;
use caisson_domain::protocol::{JournalAck, Work, paths, places};

use super::super::http::Caller;
use super::record;
use crate::bench::service::Service;

/// Time between two looks for the grant.
const LOOK: Duration = Duration::from_millis(20);

/// An open door with a run behind it.
pub(super) struct Door {
    caller: Caller,
    /// How much of the journal is acknowledged, in bytes.
    offset: u64,
    /// The run.
    pub(super) run: RunId,
    /// Its attempt.
    pub(super) attempt: i64,
}

impl Door {
    /// Waits until the run's sandbox has left its grant, asks for its work as the shim does, and says that the agent has
    /// started: until then the sandbox counts as starting, and keeps others from it.
    pub(super) async fn open(service: &Service, state_dir: &Path, run: &str) -> anyhow::Result<Self> {
        let found = service.api.get(&format!("/v1/runs/{run}")).await?.body;
        let session = found["session_id"].as_str().context("a run without a session")?;
        let file = state_dir.join("sessions").join(session).join("workspace/grant");
        // Whoever waits for this has a time limit.
        let grant = loop {
            if let Ok(grant) = std::fs::read_to_string(&file) {
                break grant;
            }
            tokio::time::sleep(LOOK).await;
        };
        // The sandbox works before the server has written down that it does.
        let started = loop {
            let events = service.api.events(run).await?;
            if let Some(started) = events.into_iter().find(|event| event["kind"] == "sandbox.started") {
                break started;
            }
            tokio::time::sleep(LOOK).await;
        };
        let sandbox = started["data"]["sandbox"].as_str().context("a sandbox without an id")?;
        let doors = state_dir.join("doors").join(sandbox);
        let mut caller = Caller::unix(&doors.join(places::DOOR_FILE), &grant).await?;
        let work: Work = serde_json::from_value(caller.get(paths::NEXT).await?.json(200)?)?;
        let Work::Run(work) = work else { anyhow::bail!("the sandbox of run {run} is told to end") };
        ensure!(work.run.as_str() == run, "the sandbox has work of another run");
        let mut door = Self { caller, offset: 0, run: work.run.clone(), attempt: work.attempt };
        let start = record::start(&door.run, door.attempt)?;
        door.append(&start).await?;
        Ok(door)
    }

    /// Sends a batch and waits until it is acknowledged; answers how long that took, in milliseconds.
    pub(super) async fn append(&mut self, batch: &[u8]) -> anyhow::Result<f64> {
        let path = format!("{}?offset={}", paths::JOURNAL, self.offset);
        let end = self.offset + batch.len() as u64;
        let reply = self.caller.post(&path, Bytes::copy_from_slice(batch)).await?;
        let ack: JournalAck = serde_json::from_value(reply.json(200)?)?;
        ensure!(ack.acknowledged == end, "{} bytes are acknowledged, not {end}", ack.acknowledged);
        self.offset = end;
        Ok(reply.took_ms())
    }
}
