//! The image that a run's repository chose.

use caisson_domain::id::{RunId, SessionId};

use crate::database::sql;
use crate::{HomeEpoch, Store, StoreError};

/// Where the run names an image itself, or has chosen another one before, nothing is left to choose. Chosen again it may be: the
/// answer may have been lost.
macro_rules! choose {
    ($named:literal) => {
        concat!(
            "update run set repository_image = $3 \
             where id = $1 and lease_epoch = $2 and home_server_id = $4 and status = 'running' and agent_started = 0 \
             and (repository_image is null or repository_image = $3) and (",
            $named,
            ") is null"
        )
    };
}
const CHOOSE: sql::Statement = sql::Statement::Each {
    sqlite: choose!("json_extract(spec, '$.image')"),
    postgres: choose!("cast(spec as json) ->> 'image'"),
};

/// One that a run asked for itself, or the default one of that time, says nothing about the repository.
const LAST: &str = "select sandbox.image from sandbox where sandbox.id = (select run.sandbox_id from run where run.id = \
     (select attempt.run_id from attempt where attempt.session_id = $1 and attempt.run_id <> $2 \
       and attempt.agent_started_at_ms is not null order by attempt.agent_started_at_ms desc limit 1)) \
     and exists (select 1 from run where run.session_id = $1 and run.repository_image = sandbox.image)";

impl Store {
    /// The image in which an agent has worked last in another run of the session than this one, if the session's repository has
    /// chosen it: the next one most likely wants it again. Whether the operator still allows it, the caller looks.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn session_image(
        &self,
        session: &SessionId,
        but: &RunId,
    ) -> Result<Option<String>, StoreError> {
        let found: Option<String> = sql::query_scalar(LAST)
            .bind(session.as_str())
            .bind(but.as_str())
            .fetch_optional(self.reader())
            .await?;
        Ok(found)
    }

    /// Notes the image that the run's next sandbox is made of; `false` if the caller has lost the run, its agent was started, the
    /// run names an image itself, or another one was chosen for it before. Whether the operator allows it, the caller has looked.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn choose_image(&self, run: &RunId, epoch: HomeEpoch, image: &str) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let chosen = sql::query(CHOOSE)
            .bind(run.as_str())
            .bind(epoch.number)
            .bind(image)
            .bind(epoch.home())
            .execute(&mut *tx.db)
            .await?
            .rows_affected()
            == 1;
        tx.commit().await?;
        Ok(chosen)
    }
}
