//! Artifacts: what is kept for a run besides its events. The bytes live in files, the store knows where.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ArtifactId, RunId, ServerId};
use caisson_domain::limits::{PAGE_ITEMS, RUN_ARTIFACTS, SERVER_SILENT_MS};
use serde_json::json;

use crate::database::{Row, sql};
use crate::rows::Columns;
use crate::{Store, StoreError, door, events};

/// An artifact whose bytes are on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewArtifact {
    /// Its name, unique in its run.
    pub name: String,
    /// Its size.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
    /// Where its bytes are.
    pub path: String,
}

/// What came of keeping an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutArtifact {
    /// It is known now, in place of an older one of that name.
    Stored,
    /// The run has [`caisson_domain::limits::RUN_ARTIFACTS`] already.
    TooMany,
}

/// An artifact as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its id; it stays the same when the artifact is replaced.
    pub id: ArtifactId,
    /// Its name, unique in its run.
    pub name: String,
    /// Its size.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
    /// The server that has its bytes, which is the one that the run was on; none if nobody knows.
    pub server: Option<ServerId>,
    /// Where they are, below that server's directory of artifacts, which others may have as well: see [`Store::artifacts_id`].
    pub path: String,
    /// When it was stored, Unix ms.
    pub created_at_ms: i64,
}

const OTHERS: &str = "select count(*) from artifact where run_id = $1 and name <> $2";

const PUT: &str = "insert into artifact (id, project_id, run_id, name, size_bytes, sha256, path, created_at_ms, server_id) \
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (run_id, name) do update set \
     size_bytes = excluded.size_bytes, sha256 = excluded.sha256, path = excluded.path, \
     created_at_ms = excluded.created_at_ms, server_id = excluded.server_id";

const LIST: &str = "select id, name, size_bytes, sha256, server_id, path, created_at_ms from artifact where run_id = $1 \
     order by name limit $2";

const ONE: &str = "select id, name, size_bytes, sha256, server_id, path, created_at_ms from artifact \
     where run_id = $1 and name = $2";

const SHARED: &str = "select id, artifacts_id from server where id = $1";

const SHARE: &str = "update server set artifacts_id = $2 where id = $1";

/// Those of which a part was heard of lately.
const ALL_SHARED: &str = "select id, artifacts_id from server where forgotten_at_ms is null and exists (select 1 \
     from server_role where server_role.server_id = server.id and server_role.seen_at_ms >= $1) order by id limit $2";

/// They have nobody else who removes what they keep there.
const FORGOTTEN: &str =
    "select id from server where forgotten_at_ms is not null and artifacts_id = $1 order by id limit $2";

impl Store {
    /// The servers that were forgotten and have their artifacts in the shared directory of that id; at most [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn forgotten_sharing(&self, id: &str) -> Result<Vec<ServerId>, StoreError> {
        let rows = sql::query(FORGOTTEN).bind(id).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        rows.iter().map(|row| Columns::of("server", row)?.parse("id")).collect()
    }

    /// The id of the directory of artifacts that the server shares with others; none for one of its own.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn artifacts_id(&self, server: &ServerId) -> Result<Option<String>, StoreError> {
        let row = sql::query(SHARED).bind(server.as_str()).fetch_optional(self.reader()).await?;
        row.map_or(Ok(None), |row| Columns::of("server", &row)?.get("artifacts_id"))
    }

    /// Notes which shared directory the server has its artifacts in; none if in one of its own.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn set_artifacts_id(&self, server: &ServerId, id: Option<&str>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sql::query(SHARE).bind(server.as_str()).bind(id).execute(&mut *tx.db).await?;
        tx.commit().await
    }

    /// The servers that live, whatever they do, each with the id of the shared directory that it has its artifacts in; at most
    /// [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn live_artifacts_ids(&self) -> Result<Vec<(ServerId, Option<String>)>, StoreError> {
        let since_ms = self.now_ms() - SERVER_SILENT_MS;
        let rows = sql::query(ALL_SHARED).bind(since_ms).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        let of = |row: &Row| {
            let columns = Columns::of("server", row)?;
            Ok((columns.parse("id")?, columns.get("artifacts_id")?))
        };
        rows.iter().map(of).collect()
    }

    /// Makes an artifact known, in place of an older one of that name, and an event tells of it. Work that is saved only
    /// after the run's end is kept as well, but without an event: the last one tells of the end.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// Safe: repeatable, though each repetition appends its event.
    pub async fn put_artifact(&self, run: &RunId, artifact: &NewArtifact) -> Result<PutArtifact, StoreError> {
        let mut tx = self.begin().await?;
        let run = door::known_run(&mut tx, run).await?;
        let others: i64 = sql::query_scalar(OTHERS)
            .bind(run.id.as_str())
            .bind(artifact.name.as_str())
            .fetch_one(&mut *tx.db)
            .await?;
        if others >= RUN_ARTIFACTS {
            return Ok(PutArtifact::TooMany);
        }
        let id = ArtifactId::new(tx.now_ms, tx.random());
        sql::query(PUT)
            .bind(id.as_str())
            .bind(run.project.as_str())
            .bind(run.id.as_str())
            .bind(artifact.name.as_str())
            .bind(artifact.size_bytes)
            .bind(artifact.sha256.as_str())
            .bind(artifact.path.as_str())
            .bind(tx.now_ms)
            .bind(run.home.as_ref().map(ServerId::as_str))
            .execute(&mut *tx.db)
            .await?;
        if !run.status.is_final() {
            let data = json!({ "name": artifact.name, "size_bytes": artifact.size_bytes, "sha256": artifact.sha256 });
            let event = NewEvent::new(EventKind::ArtifactStored, &data);
            events::append(&mut tx, &run.session, &run.id, &[event]).await?;
        }
        tx.commit().await?;
        Ok(PutArtifact::Stored)
    }

    /// The run's artifacts by name; at most [`RUN_ARTIFACTS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn artifacts(&self, run: &RunId) -> Result<Vec<Artifact>, StoreError> {
        let rows = sql::query(LIST).bind(run.as_str()).bind(RUN_ARTIFACTS).fetch_all(self.reader()).await?;
        rows.iter().map(artifact).collect()
    }

    /// The run's artifact of that name.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn artifact(&self, run: &RunId, name: &str) -> Result<Option<Artifact>, StoreError> {
        let row = sql::query(ONE).bind(run.as_str()).bind(name).fetch_optional(self.reader()).await?;
        row.as_ref().map(artifact).transpose()
    }
}

fn artifact(row: &Row) -> Result<Artifact, StoreError> {
    let columns = Columns::of("artifact", row)?;
    Ok(Artifact {
        id: columns.parse("id")?,
        name: columns.get("name")?,
        size_bytes: columns.get("size_bytes")?,
        sha256: columns.get("sha256")?,
        server: columns.parse_optional("server_id")?,
        path: columns.get("path")?,
        created_at_ms: columns.get("created_at_ms")?,
    })
}
