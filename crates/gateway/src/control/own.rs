//! Whose files a sandbox asks for: those of the run that is running in it, and of no other.

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::run::Run;
use serde_json::json;

use crate::problem::Refusal;
use crate::shared::Door;

/// The run in the sandbox, and whether it is the one that is `named`.
pub(super) async fn placed(door: &Door, named: &RunId) -> Result<(Option<Run>, bool), Refusal> {
    let placed = door.shared.store.door_run(&door.sandbox).await.map_err(|error| Refusal::store(&error))?;
    let is_own = placed.as_ref().is_some_and(|placed| placed.id == *named);
    Ok((placed, is_own))
}

/// Tells that what was asked for is another session's. An earlier run of the sandbox's own session is one whose last request came
/// late, and where no run is running there is nobody to tell of.
pub(super) async fn tell_other(door: &Door, what: &str, placed: Option<&Run>, named: &RunId) {
    let Some(placed) = placed else { return };
    match door.shared.store.run(&placed.project, named).await {
        Ok(Some(run)) if run.session == door.session => {}
        Ok(_) => {
            let remedy = "a sandbox has the files of its own run and of no other";
            let data = json!({"what": what, "rule": "other_run", "remedy": remedy});
            door.tell(&placed.id, EventKind::GatewayDenied, data).await;
        }
        Err(error) => {
            tracing::warn!(run.id = %placed.id, error = %error, "a request for another run's files was not written down");
        }
    }
}
