//! The image that a run's repository chose.

use caisson_domain::id::RunId;

use crate::database::sql;
use crate::{HomeEpoch, Store, StoreError};

const CHOOSE: &str = "update run set repository_image = $3 \
     where id = $1 and lease_epoch = $2 and home_server_id = $4 and status = 'running' and agent_started = 0";

impl Store {
    /// Notes the image that the run's next sandbox is made of, where run and workflow name none; `false` if the caller has lost
    /// the run or its agent was started. Whether the operator allows it, the caller has looked.
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
