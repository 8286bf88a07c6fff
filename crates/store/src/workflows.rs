//! Workflows, one row a name.

use caisson_domain::id::ProjectId;
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::workflow::Workflow;

use crate::database::{Row, sql};
use crate::rows::{Columns, document};
use crate::{Store, StoreError};

/// A workflow as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredWorkflow {
    /// The definition.
    pub workflow: Workflow,
    /// How often it was changed, 1 for the first definition.
    pub version: i64,
    /// When it was last changed, Unix ms.
    pub updated_at_ms: i64,
}

const UPSERT: &str = "insert into workflow (project_id, name, version, updated_at_ms, definition) \
     values ($1, $2, 1, $3, $4) on conflict (project_id, name) do update \
     set version = workflow.version + 1, updated_at_ms = excluded.updated_at_ms, definition = excluded.definition \
     where workflow.definition <> excluded.definition";

const ONE: &str =
    "select name, version, updated_at_ms, definition from workflow where project_id = $1 and name = $2";

const LIST: &str = "select name, version, updated_at_ms, definition from workflow where project_id = $1 \
     order by name limit $2";

impl Store {
    /// Stores a workflow under its name. A changed definition raises the version; the same one changes nothing.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn put_workflow(&self, project: &ProjectId, workflow: &Workflow) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sql::query(UPSERT)
            .bind(project.as_str())
            .bind(workflow.name.as_str())
            .bind(tx.now_ms)
            .bind(document("workflow.definition", workflow)?)
            .execute(&mut *tx.db)
            .await?;
        tx.commit().await
    }

    /// The workflow of that name.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn workflow(
        &self,
        project: &ProjectId,
        name: &str,
    ) -> Result<Option<StoredWorkflow>, StoreError> {
        let row = sql::query(ONE).bind(project.as_str()).bind(name).fetch_optional(self.reader()).await?;
        row.as_ref().map(stored_workflow).transpose()
    }

    /// The workflows of a project by name; at most [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_workflows(&self, project: &ProjectId) -> Result<Vec<StoredWorkflow>, StoreError> {
        let rows = sql::query(LIST).bind(project.as_str()).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        rows.iter().map(stored_workflow).collect()
    }
}

fn stored_workflow(row: &Row) -> Result<StoredWorkflow, StoreError> {
    let columns = Columns::keyed("workflow", row, "name")?;
    Ok(StoredWorkflow {
        workflow: columns.json("definition")?,
        version: columns.get("version")?,
        updated_at_ms: columns.get("updated_at_ms")?,
    })
}
