//! Projects: the tenants.

use caisson_domain::grant::Token;
use caisson_domain::id::{DEFAULT_PROJECT, ProjectId};
use caisson_domain::limits::{PAGE_ITEMS, PROJECTS};
use caisson_domain::queue::{CAP, ProjectShare, WEIGHT};

use crate::database::{Row, Tx, sql};
use crate::removal::nameable;
use crate::rows::Columns;
use crate::{Actor, ApiKey, NewApiKey, NewAudit, Store, StoreError, Topic, audit, keys};

/// A tenant: whose runs, sessions, keys, credentials, budgets and audit records are its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its name.
    pub id: ProjectId,
    /// When it was made, Unix ms; 0 of the one that exists from the start.
    pub created_at_ms: i64,
    /// Its part of the queue.
    pub share: ProjectShare,
}

/// A change to a project's part of the queue; what is `None` stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChangeShare {
    /// Its weight, within [`WEIGHT`].
    pub weight: Option<i64>,
    /// Most runs of it that run at once; `Some(None)`: as the settings say.
    pub max_running: Option<Option<i64>>,
    /// Most runs of it that wait; `Some(None)`: as the settings say.
    pub max_queued: Option<Option<i64>>,
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

const COUNT: &str = concat!("select count(*) from project where ", nameable!());

const INSERT: &str = "insert into project (id, created_at_ms) values ($1, $2) on conflict (id) do nothing";

const COPY_WORKFLOWS: &str = "insert into workflow (project_id, name, version, updated_at_ms, definition, is_own, \
     server_definition) select $1, name, 1, $2, definition, is_own, server_definition from workflow where project_id = $3";

const LIST: &str = concat!(
    "select id, created_at_ms, weight, max_running, max_queued from project where id > $1 and ",
    nameable!(),
    " order by id limit $2"
);

const ONE: &str = "select id, created_at_ms, weight, max_running, max_queued from project where id = $1";

const SET_SHARE: &str = "update project set weight = $2, max_running = $3, max_queued = $4 where id = $1";

async fn create(tx: &mut Tx<'_>, id: &ProjectId, by: Actor) -> Result<CreateProject, StoreError> {
    let count: i64 = sql::query_scalar(COUNT).fetch_one(&mut *tx.db).await?;
    let inserted =
        sql::query(INSERT).bind(id.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?.rows_affected();
    if inserted == 0 || count >= PROJECTS {
        return Ok(if inserted == 0 { CreateProject::Exists } else { CreateProject::Full });
    }
    sql::query(COPY_WORKFLOWS)
        .bind(id.as_str())
        .bind(tx.now_ms)
        .bind(DEFAULT_PROJECT)
        .execute(&mut *tx.db)
        .await?;
    let project = Project { id: id.clone(), created_at_ms: tx.now_ms, share: ProjectShare::default() };
    let record = NewAudit::new(&ProjectId::default_project(), by, "project.create", id.as_str());
    audit::write(tx, &record).await?;
    Ok(CreateProject::Created(project))
}

/// Keeps what was made, and gives up what was not.
async fn finish(tx: Tx<'_>, created: &CreateProject) -> Result<(), StoreError> {
    match created {
        CreateProject::Created(_) => tx.commit().await,
        CreateProject::Exists | CreateProject::Full => tx.rollback().await,
    }
}

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
        let created = create(&mut tx, id, by).await?;
        finish(tx, &created).await?;
        Ok(created)
    }

    /// The same with a first key, in one transaction: so a project that is made over the API is never without one. The key is of the
    /// project that it names; it is there if the project was made.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have made both, with a secret that nobody knows.
    pub async fn create_project_with_key(
        &self,
        first: &NewApiKey,
    ) -> Result<(CreateProject, Option<(ApiKey, Token)>), StoreError> {
        let mut tx = self.begin().await?;
        let created = create(&mut tx, &first.project, first.by.clone()).await?;
        let key = match created {
            CreateProject::Created(_) => keys::make(&mut tx, first).await?,
            CreateProject::Exists | CreateProject::Full => None,
        };
        finish(tx, &created).await?;
        Ok((created, key))
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

    /// Changes a project's part of the queue and answers with the project as it is then; `None` if there is no such project.
    /// It holds from the next claim and the next request on; what runs and waits already stays. Recorded in the default
    /// project's audit log, since it is not the project's own to change.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] for a value outside its range.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn change_share(
        &self,
        id: &ProjectId,
        change: &ChangeShare,
        by: Actor,
    ) -> Result<Option<Project>, StoreError> {
        let mut tx = self.begin().await?;
        let row = sql::query(ONE).bind(id.as_str()).fetch_optional(&mut *tx.db).await?;
        let Some(before) = row.as_ref().map(project).transpose()? else { return Ok(None) };
        let share = ProjectShare {
            weight: change.weight.unwrap_or(before.share.weight),
            max_running: change.max_running.unwrap_or(before.share.max_running),
            max_queued: change.max_queued.unwrap_or(before.share.max_queued),
        };
        let caps = [share.max_running, share.max_queued];
        if !WEIGHT.contains(&share.weight) || caps.iter().flatten().any(|cap| !CAP.contains(cap)) {
            return Err(StoreError::corrupt(format!("the share of {id}"), "a value is outside its range"));
        }
        let unchanged = share == before.share;
        let project = Project { share, ..before };
        if unchanged {
            return Ok(Some(project));
        }
        sql::query(SET_SHARE)
            .bind(id.as_str())
            .bind(share.weight)
            .bind(share.max_running)
            .bind(share.max_queued)
            .execute(&mut *tx.db)
            .await?;
        let cap = |cap: Option<i64>| cap.map_or_else(|| "settings".to_owned(), |cap| cap.to_string());
        let (weight, running, queued) = (share.weight, cap(share.max_running), cap(share.max_queued));
        let subject = format!("{id}: weight {weight}, max_running {running}, max_queued {queued}");
        let record = NewAudit::new(&ProjectId::default_project(), by, "project.share", &subject);
        audit::write(&mut tx, &record).await?;
        tx.wake(Topic::Queue);
        tx.commit().await?;
        Ok(Some(project))
    }
}

fn project(row: &Row) -> Result<Project, StoreError> {
    let columns = Columns::of("project", row)?;
    let share = ProjectShare {
        weight: columns.get("weight")?,
        max_running: columns.get("max_running")?,
        max_queued: columns.get("max_queued")?,
    };
    Ok(Project { id: columns.parse("id")?, created_at_ms: columns.get("created_at_ms")?, share })
}
