//! Workflows, one row a name.

use std::ops::ControlFlow;

use caisson_domain::git::BranchName;
use caisson_domain::id::ProjectId;
use caisson_domain::limits::{PAGE_ITEMS, WORKFLOWS};
use caisson_domain::trust::TrustBlock;
use caisson_domain::workflow::Workflow;
use serde::Deserialize;

use crate::database::{Row, Tx, sql};
use crate::rows::{Columns, document};
use crate::{Actor, NewAudit, Store, StoreError, audit};

/// A workflow as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredWorkflow {
    /// The definition.
    pub workflow: Workflow,
    /// How often it was changed, 1 for the first definition.
    pub version: i64,
    /// When it was last changed, Unix ms.
    pub updated_at_ms: i64,
    /// Whether it is the project's own, put through the API, and not the server's.
    pub is_own: bool,
}

/// What a list tells of a workflow: the rest of its definition, which may be long, is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowSummary {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The agent's most turns.
    pub max_turns: Option<u32>,
    /// The image that it names.
    pub image: Option<String>,
    /// See [`StoredWorkflow::version`].
    pub version: i64,
    /// See [`StoredWorkflow::updated_at_ms`].
    pub updated_at_ms: i64,
    /// See [`StoredWorkflow::is_own`].
    pub is_own: bool,
}

/// What came of putting a workflow of the project's own.
#[derive(Debug, Clone, PartialEq)]
pub enum PutWorkflow {
    /// It is in effect; whether the name is new in the project.
    Put(Box<StoredWorkflow>, bool),
    /// The project has [`WORKFLOWS`] already; nothing is changed.
    Full,
}

/// What came of removing a workflow of the project's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoveWorkflow {
    /// It is gone.
    Removed,
    /// It is gone, and the server's of that name is in effect again.
    Restored,
    /// The one in effect is the server's; nothing is changed.
    OfServer,
    /// There is none of that name.
    Unknown,
}

const UPSERT: &str = "insert into workflow (project_id, name, version, updated_at_ms, definition, server_definition) \
     values ($1, $2, 1, $3, $4, $4) on conflict (project_id, name) do update set \
     version = workflow.version + case when workflow.is_own = 0 and workflow.definition <> excluded.definition then 1 else 0 end, \
     updated_at_ms = case when workflow.is_own = 0 and workflow.definition <> excluded.definition \
       then excluded.updated_at_ms else workflow.updated_at_ms end, \
     definition = case when workflow.is_own = 0 then excluded.definition else workflow.definition end, \
     server_definition = excluded.server_definition";

const PUT_OWN: &str = "insert into workflow (project_id, name, version, updated_at_ms, definition, is_own) \
     values ($1, $2, 1, $3, $4, 1) on conflict (project_id, name) do update set \
     version = workflow.version + case when workflow.definition <> excluded.definition then 1 else 0 end, \
     updated_at_ms = case when workflow.definition <> excluded.definition then excluded.updated_at_ms else workflow.updated_at_ms end, \
     definition = excluded.definition, is_own = 1";

const COUNT: &str = "select count(*) from workflow where project_id = $1 and name <> $2";

const ONE: &str = "select name, version, updated_at_ms, definition, is_own from workflow where project_id = $1 and name = $2";

const LIST: &str = "select name, version, updated_at_ms, definition, is_own from workflow where project_id = $1 \
     order by name limit $2";

const NAMES: &str = "select name from workflow where project_id = $1 order by name limit $2";

const PAGE_OF_DEFINITIONS: &str = "select name, definition from workflow where project_id = $1 and name > $2 \
     order by name limit $3";

const RESTORE: &str = "update workflow set definition = server_definition, is_own = 0, version = version + 1, updated_at_ms = $3 \
     where project_id = $1 and name = $2 and is_own = 1 and server_definition is not null";

const REMOVE: &str = "delete from workflow where project_id = $1 and name = $2 and is_own = 1";

impl Store {
    /// Stores a workflow of the server's settings under its name. A changed definition raises the version; the same one changes
    /// nothing. Where the project has put one of its own over it, that one stays in effect.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn put_workflow(&self, project: &ProjectId, workflow: &Workflow) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        put(&mut tx, UPSERT, project, workflow).await?;
        tx.commit().await
    }

    /// Puts a workflow of the project's own under its name, over the server's if there is one. That is recorded in the audit log.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn put_own_workflow(
        &self,
        project: &ProjectId,
        workflow: &Workflow,
        by: Actor,
    ) -> Result<PutWorkflow, StoreError> {
        let mut tx = self.begin().await?;
        let name = workflow.name.as_str();
        let others: i64 =
            sql::query_scalar(COUNT).bind(project.as_str()).bind(name).fetch_one(&mut *tx.db).await?;
        let before = sql::query(ONE).bind(project.as_str()).bind(name).fetch_optional(&mut *tx.db).await?;
        if before.is_none() && others >= WORKFLOWS {
            tx.rollback().await?;
            return Ok(PutWorkflow::Full);
        }
        put(&mut tx, PUT_OWN, project, workflow).await?;
        let row = sql::query(ONE).bind(project.as_str()).bind(name).fetch_one(&mut *tx.db).await?;
        let stored = stored_workflow(&row)?;
        audit::write(&mut tx, &NewAudit::new(project, by, "workflow.put", name)).await?;
        tx.commit().await?;
        Ok(PutWorkflow::Put(Box::new(stored), before.is_none()))
    }

    /// Removes a workflow of the project's own; the server's of that name, if there is one, is in effect again. That is recorded in
    /// the audit log.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: removed or not.
    pub async fn remove_own_workflow(
        &self,
        project: &ProjectId,
        name: &str,
        by: Actor,
    ) -> Result<RemoveWorkflow, StoreError> {
        let mut tx = self.begin().await?;
        let restore = sql::query(RESTORE).bind(project.as_str()).bind(name).bind(tx.now_ms);
        let removed = if restore.execute(&mut *tx.db).await?.rows_affected() == 1 {
            RemoveWorkflow::Restored
        } else {
            let remove = sql::query(REMOVE).bind(project.as_str()).bind(name);
            let gone = remove.execute(&mut *tx.db).await?.rows_affected() == 1;
            if gone { RemoveWorkflow::Removed } else { RemoveWorkflow::Unknown }
        };
        if removed == RemoveWorkflow::Unknown {
            let row = sql::query(ONE).bind(project.as_str()).bind(name).fetch_optional(&mut *tx.db).await?;
            tx.rollback().await?;
            return Ok(if row.is_some() { RemoveWorkflow::OfServer } else { RemoveWorkflow::Unknown });
        }
        audit::write(&mut tx, &NewAudit::new(project, by, "workflow.remove", name)).await?;
        tx.commit().await?;
        Ok(removed)
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

    /// The workflows of a project by name; at most [`PAGE_ITEMS`]. One definition is looked into at a time.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_workflows(&self, project: &ProjectId) -> Result<Vec<WorkflowSummary>, StoreError> {
        let mut found = Vec::new();
        sql::query(LIST)
            .bind(project.as_str())
            .bind(PAGE_ITEMS)
            .read_each(self.reader(), |row| {
                found.push(summary(&row)?);
                Ok::<_, StoreError>(ControlFlow::Continue(()))
            })
            .await?;
        Ok(found)
    }

    /// Hands over the workflows of [`Store::list_workflows`] whole, one after another, until it is told to stop: each may be long.
    ///
    /// # Errors
    /// As every read; some may have been handed over by then.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn each_workflow(
        &self,
        project: &ProjectId,
        mut each: impl FnMut(StoredWorkflow) -> ControlFlow<()> + Send,
    ) -> Result<(), StoreError> {
        let query = sql::query(LIST).bind(project.as_str()).bind(PAGE_ITEMS);
        query.read_each(self.reader(), |row| Ok(each(stored_workflow(&row)?))).await
    }

    /// The first names of the project's workflows; at most `limit`, and at most [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn workflow_names(&self, project: &ProjectId, limit: u32) -> Result<Vec<String>, StoreError> {
        let query = sql::query(NAMES).bind(project.as_str()).bind(limit.min(PAGE_ITEMS));
        let rows = query.fetch_all(self.reader()).await?;
        rows.iter().map(|row| Columns::keyed("workflow", row, "name")?.get("name")).collect()
    }

    /// The first workflow of the project, by name, whose `trust.branches` name the branch; none if no one's do. It looks at
    /// all of them, a page at a time.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn workflow_trusting(
        &self,
        project: &ProjectId,
        branch: &BranchName,
    ) -> Result<Option<String>, StoreError> {
        let mut after = String::new();
        loop {
            let rows = sql::query(PAGE_OF_DEFINITIONS)
                .bind(project.as_str())
                .bind(after.as_str())
                .bind(PAGE_ITEMS)
                .fetch_all(self.reader())
                .await?;
            for row in &rows {
                let columns = Columns::keyed("workflow", row, "name")?;
                columns.get::<&str>("name")?.clone_into(&mut after);
                let Definition { caisson } = columns.json("definition")?;
                if caisson.trust.names(branch) {
                    return Ok(Some(after));
                }
            }
            if rows.len() < PAGE_ITEMS as usize {
                return Ok(None);
            }
        }
    }
}

/// What a list tells of a definition; the rest of it is not read.
#[derive(Debug, Deserialize)]
struct Listed {
    description: String,
    #[serde(default)]
    max_turns: Option<u32>,
    caisson: ListedBlock,
}

#[derive(Debug, Deserialize)]
struct ListedBlock {
    #[serde(default)]
    image: Option<String>,
}

fn summary(row: &Row) -> Result<WorkflowSummary, StoreError> {
    let columns = Columns::keyed("workflow", row, "name")?;
    let Listed { description, max_turns, caisson } = columns.json("definition")?;
    Ok(WorkflowSummary {
        name: columns.get("name")?,
        description,
        max_turns,
        image: caisson.image,
        version: columns.get("version")?,
        updated_at_ms: columns.get("updated_at_ms")?,
        is_own: columns.flag("is_own")?,
    })
}

/// What a definition says of trust; the rest of it is not read.
#[derive(Debug, Deserialize)]
struct Definition {
    caisson: Block,
}

#[derive(Debug, Deserialize)]
struct Block {
    #[serde(default)]
    trust: TrustBlock,
}

async fn put(
    tx: &mut Tx<'_>,
    statement: &'static str,
    project: &ProjectId,
    workflow: &Workflow,
) -> Result<(), StoreError> {
    sql::query(statement)
        .bind(project.as_str())
        .bind(workflow.name.as_str())
        .bind(tx.now_ms)
        .bind(document("workflow.definition", workflow)?)
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}

fn stored_workflow(row: &Row) -> Result<StoredWorkflow, StoreError> {
    let columns = Columns::keyed("workflow", row, "name")?;
    Ok(StoredWorkflow {
        workflow: columns.json("definition")?,
        version: columns.get("version")?,
        updated_at_ms: columns.get("updated_at_ms")?,
        is_own: columns.flag("is_own")?,
    })
}
