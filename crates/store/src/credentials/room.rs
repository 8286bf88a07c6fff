//! How much of secrets a project may keep: as much as is looked for in everything that its runs say. What a refresh brings is kept beyond
//! that, since nobody else has it.

use caisson_domain::id::{CredentialId, ProjectId};
use caisson_domain::redact::PROJECT_SECRETS_BYTES;

use super::CredentialError;
use crate::database::{Tx, sql};
use crate::vault::Sealed;

/// As they are sealed, which can be asked without any key: base64 of what it holds, in groups of four for three bytes.
const SEALED: &str = "select coalesce(sum(case when id = $2 then 0 else length(sealed) / 4 * 3 end), 0), \
     coalesce(sum(case when id = $2 then length(sealed) / 4 * 3 else 0 end), 0) from credential where project_id = $1";

/// Looks whether the new secret of a credential has room beside the project's others. One that is no longer than the one that
/// it replaces has: a project that has more than it may, since an earlier version let it, must be able to rotate.
///
/// # Errors
/// [`CredentialError::NoRoom`].
pub(super) async fn check(
    tx: &mut Tx<'_>,
    (project, id): (&ProjectId, &CredentialId),
    sealed: &Sealed,
) -> Result<(), CredentialError> {
    let asked = sql::query_as(SEALED).bind(project.as_str()).bind(id.as_str());
    let sums: Option<(i64, i64)> = asked.fetch_optional(&mut *tx.db).await?;
    let (others, own) = sums.unwrap_or_default();
    let new = i64::try_from(sealed.secret.len() / 4 * 3).unwrap_or(i64::MAX);
    let bytes = others.saturating_add(new);
    let fits = usize::try_from(bytes).is_ok_and(|bytes| bytes <= PROJECT_SECRETS_BYTES);
    if fits || new <= own { Ok(()) } else { Err(CredentialError::NoRoom { bytes }) }
}
