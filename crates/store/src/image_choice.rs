//! The image that a run's repository chose.

use caisson_domain::id::RunId;

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

impl Store {
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
