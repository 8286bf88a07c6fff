//! The turn at refreshing an access token, which one server on a database has at a time.

use caisson_store::{Credential, RenewalTurn, Topic};
use tokio::time::Instant;

use super::CredentialFault;
use super::oauth::Failed;
use super::token::TokenFault;
use crate::bounds::RENEWAL_LOOK;
use crate::hold::hold;
use crate::shared::Shared;

/// A turn of this server's, by its number.
pub(super) struct Turn(i64);

/// Waits for the turn at the credential as it was opened; none if another server has changed it meanwhile, so that there is nothing
/// to refresh.
///
/// # Errors
/// [`TokenFault::Unreachable`] if the others take longer than they may, or the server stops.
/// # Cancel safety
/// A turn that was taken ends by itself.
pub(super) async fn take(shared: &Shared, credential: &Credential) -> Result<Option<Turn>, Failed> {
    let (store, bounds) = (&shared.store, &shared.bounds);
    let turn_ms = i64::try_from(bounds.renewal_turn.as_millis()).unwrap_or(i64::MAX);
    let mut changes = store.watch(Topic::Credentials);
    let end = Instant::now() + bounds.renewal_wait;
    loop {
        let asked = hold(&shared.cancel, bounds.store_hold, || store.take_renewal(credential, turn_ms)).await;
        match asked.map_err(|error| Failed::Other(CredentialFault::store(&error)))? {
            RenewalTurn::Own { epoch } => return Ok(Some(Turn(epoch))),
            RenewalTurn::Passed => return Ok(None),
            RenewalTurn::Others { left_ms } if Instant::now() < end => {
                tracing::debug!(credential.id = %credential.id, left_ms, "another server refreshes {}", credential.id);
            }
            RenewalTurn::Others { .. } => return Err(Failed::Token(TokenFault::Unreachable)),
        }
        tokio::select! {
            () = changes.changed(RENEWAL_LOOK) => {}
            () = shared.cancel.cancelled() => return Err(Failed::Token(TokenFault::Unreachable)),
        }
    }
}

/// Gives the turn back, of which nothing came. A store that does not answer has it end by itself.
pub(super) async fn end(shared: &Shared, credential: &Credential, Turn(epoch): Turn) {
    if let Err(error) = shared.store.end_renewal(credential, epoch).await {
        tracing::warn!(credential.id = %credential.id, error = %error, "the turn at refreshing {} ends by itself", credential.id);
    }
}
