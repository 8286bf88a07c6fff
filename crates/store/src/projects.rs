//! Projects: the tenants.

use caisson_domain::id::{DEFAULT_PROJECT, ProjectId};
use caisson_domain::limits::{PAGE_ITEMS, PROJECTS};

use crate::database::{Row, sql};
use crate::rows::Columns;
use crate::{Actor, NewAudit, Store, StoreError, audit};

/// A tenant: whose runs, sessions, keys, credentials, budgets and audit records are its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its name.
    pub id: ProjectId,
    /// When it was made, Unix ms; 0 of the one that exists from the start.
    pub created_at_ms: i64,
}

/// What came of making a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateProject {
    /// It is there, with the workflows of the default project.
    Created(Project),
    /// There is one of that name; nothing is changed.
    Exists,
    /// There are [`PROJECTS`] already; nothing is changed.
    Full,
}

const COUNT: &str = "select count(*) from project";

const INSERT: &str = "insert into project (id, created_at_ms) values ($1, $2) on conflict (id) do nothing";

const COPY_WORKFLOWS: &str = "insert into workflow (project_id, name, version, updated_at_ms, definition, is_own, \
     server_definition) select $1, name, 1, $2, definition, is_own, server_definition from workflow where project_id = $3";

const LIST: &str = "select id, created_at_ms from project where id > $1 order by id limit $2";

const ONE: &str = "select id, created_at_ms from project where id = $1";

impl Store {
    /// Makes a project that has the workflows of the default one, and nothing else. That is recorded in the default
    /// project's audit log, since whoever reads the new one's may be somebody else.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: made or not.
    pub async fn create_project(&self, id: &ProjectId, by: Actor) -> Result<CreateProject, StoreError> {
        let mut tx = self.begin().await?;
        let count: i64 = sql::query_scalar(COUNT).fetch_one(&mut *tx.db).await?;
        let inserted =
            sql::query(INSERT).bind(id.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?.rows_affected();
        if inserted == 0 || count >= PROJECTS {
            tx.rollback().await?;
            return Ok(if inserted == 0 { CreateProject::Exists } else { CreateProject::Full });
        }
        sql::query(COPY_WORKFLOWS)
            .bind(id.as_str())
            .bind(tx.now_ms)
            .bind(DEFAULT_PROJECT)
            .execute(&mut *tx.db)
            .await?;
        let project = Project { id: id.clone(), created_at_ms: tx.now_ms };
        let record = NewAudit::new(&ProjectId::default_project(), by, "project.create", id.as_str());
        audit::write(&mut tx, &record).await?;
        tx.commit().await?;
        Ok(CreateProject::Created(project))
    }

    /// The projects behind `after`, by name; at most one more than [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_projects(
        &self,
        after: Option<&ProjectId>,
        limit: u32,
    ) -> Result<Vec<Project>, StoreError> {
        let rows = sql::query(LIST)
            .bind(after.map_or("", ProjectId::as_str))
            .bind(limit.min(PAGE_ITEMS + 1))
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(project).collect()
    }

    /// The project of that name.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn project(&self, id: &ProjectId) -> Result<Option<Project>, StoreError> {
        let row = sql::query(ONE).bind(id.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(project).transpose()
    }
}

fn project(row: &Row) -> Result<Project, StoreError> {
    let columns = Columns::of("project", row)?;
    Ok(Project { id: columns.parse("id")?, created_at_ms: columns.get("created_at_ms")? })
}
