//! API keys.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use caisson_domain::grant::{Token, TokenHash};
use caisson_domain::id::{ApiKeyId, ProjectId};
use caisson_domain::limits::{API_KEYS, PAGE_ITEMS};
use caisson_domain::principal::{Principal, Scope};

use crate::database::{Row, Tx, sql};
use crate::rows::{Columns, document};
use crate::{Actor, NewAudit, Store, StoreError, audit};

/// An API key as people may see it: never its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its handle.
    pub id: ApiKeyId,
    /// The tenant whose things it opens.
    pub project: ProjectId,
    /// Its name, for people.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// Unix ms.
    pub created_at_ms: i64,
    /// When it stopped opening anything, Unix ms.
    pub revoked_at_ms: Option<i64>,
    /// When it stops opening anything by itself, Unix ms; none: never.
    pub expires_at_ms: Option<i64>,
    /// About when it was last used, Unix ms; exact to a minute.
    pub last_used_at_ms: Option<i64>,
}

/// A key to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApiKey {
    /// The tenant.
    pub project: ProjectId,
    /// A name for people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it stops opening anything, Unix ms; none: never.
    pub expires_at_ms: Option<i64>,
    /// Who makes it.
    pub by: Actor,
}

/// How exactly it is known when a key was last used, in milliseconds.
const USE_STEP_MS: i64 = 60_000;

/// Uses of keys that are not written yet: at most one entry a key, and only for keys that are due.
#[derive(Debug, Default)]
pub(crate) struct KeyUses(Mutex<HashMap<ApiKeyId, i64>>);

impl KeyUses {
    fn lock(&self) -> MutexGuard<'_, HashMap<ApiKeyId, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const INSERT: &str = "insert into api_key (id, project_id, name, scopes, secret_hash, created_at_ms, expires_at_ms) \
     values ($1, $2, $3, $4, $5, $6, $7)";

const LIST: &str = "select id, project_id, name, scopes, created_at_ms, revoked_at_ms, expires_at_ms, last_used_at_ms \
     from api_key where project_id = $1 and id > $2 order by id limit $3";

const COUNT: &str = "select count(*) from (select 1 from api_key where project_id = $1 and revoked_at_ms is null \
     and (expires_at_ms is null or expires_at_ms > $2) limit $3) as valid";

const REVOKE: &str = "update api_key set revoked_at_ms = $2 \
     where id = $1 and revoked_at_ms is null and ($3 is null or project_id = $3) returning id, project_id";

pub(crate) const BY_SECRET: &str = "select id, project_id, name, scopes, expires_at_ms, last_used_at_ms from api_key \
     where secret_hash = $1 and revoked_at_ms is null and (expires_at_ms is null or expires_at_ms > $2)";

const VALID: &str = "select exists (select 1 from api_key where id = $1 and revoked_at_ms is null \
     and (expires_at_ms is null or expires_at_ms > $2))";

/// Another process may have written a later use.
const USED: &str = "update api_key set last_used_at_ms = $2 where id = $1 \
     and (last_used_at_ms is null or last_used_at_ms < $2)";

impl Store {
    /// Makes a key that never expires, for the operator of the machine; see [`Store::make_api_key`].
    ///
    /// # Errors
    /// As [`Store::make_api_key`]; [`StoreError::Corrupt`] as well if there are [`API_KEYS`] valid keys.
    /// # Cancel safety
    /// A dropped call may have made a key whose secret nobody knows; it opens nothing for anybody.
    pub async fn create_api_key(
        &self,
        project: &ProjectId,
        name: &str,
        scopes: &[Scope],
    ) -> Result<(ApiKeyId, Token), StoreError> {
        let made = self
            .make_api_key(&NewApiKey {
                project: project.clone(),
                name: name.to_owned(),
                scopes: scopes.to_vec(),
                expires_at_ms: None,
                by: Actor::Operator,
            })
            .await?;
        made.ok_or_else(|| {
            StoreError::corrupt(format!("api_key of {project}"), format!("it has {API_KEYS} valid keys"))
        })
        .map(|(key, secret)| (key.id, secret))
    }

    /// Makes an API key and returns its secret, which nobody can read again: only its hash is stored. `None` if the
    /// project has [`API_KEYS`] valid keys.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// A dropped call may have made a key whose secret nobody knows; it opens nothing for anybody.
    pub async fn make_api_key(&self, new: &NewApiKey) -> Result<Option<(ApiKey, Token)>, StoreError> {
        let mut tx = self.begin().await?;
        let Some(made) = make(&mut tx, new).await? else {
            tx.rollback().await?;
            return Ok(None);
        };
        tx.commit().await?;
        Ok(Some(made))
    }

    /// All keys of a project, oldest first, revoked ones among them, read a page at a time: for the machine's operator, since of those
    /// that are revoked there may be any number.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_api_keys(&self, project: &ProjectId) -> Result<Vec<ApiKey>, StoreError> {
        let mut keys: Vec<ApiKey> = Vec::new();
        loop {
            let after = keys.last().map(|last| last.id.clone());
            let page = self.list_api_keys_after(project, after.as_ref(), PAGE_ITEMS).await?;
            let is_last = page.len() < PAGE_ITEMS as usize;
            keys.extend(page);
            if is_last {
                return Ok(keys);
            }
        }
    }

    /// The keys of a project behind `after`, oldest first; at most one more than [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_api_keys_after(
        &self,
        project: &ProjectId,
        after: Option<&ApiKeyId>,
        limit: u32,
    ) -> Result<Vec<ApiKey>, StoreError> {
        let rows = sql::query(LIST)
            .bind(project.as_str())
            .bind(after.map_or("", ApiKeyId::as_str))
            .bind(limit.min(PAGE_ITEMS + 1))
            .fetch_all(self.reader())
            .await?;
        let mut keys = rows.iter().map(api_key).collect::<Result<Vec<_>, _>>()?;
        let uses = self.shared.key_uses.lock();
        for key in &mut keys {
            key.last_used_at_ms = key.last_used_at_ms.max(uses.get(&key.id).copied());
        }
        Ok(keys)
    }

    /// Revokes a key for the operator of the machine; see [`Store::revoke_api_key_of`].
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: revoked or not.
    pub async fn revoke_api_key(&self, id: &ApiKeyId) -> Result<bool, StoreError> {
        self.revoke_api_key_of(None, id, Actor::Operator).await
    }

    /// Revokes a key, of `project` alone if one is given; `false` if there is no such key or it was revoked before.
    /// From then on it opens nothing, in any process.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: revoked or not.
    pub async fn revoke_api_key_of(
        &self,
        project: Option<&ProjectId>,
        id: &ApiKeyId,
        by: Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let row = sql::query(REVOKE)
            .bind(id.as_str())
            .bind(tx.now_ms)
            .bind(project.map(ProjectId::as_str))
            .fetch_optional(&mut *tx.db)
            .await?;
        let Some(row) = row else {
            tx.rollback().await?;
            return Ok(false);
        };
        let project = Columns::of("api_key", &row)?.parse("project_id")?;
        audit::write(&mut tx, &NewAudit::new(&project, by, "key.revoke", id.as_str())).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Whether a key still opens something: for what goes on long after its request, such as an event stream.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn is_key_valid(&self, id: &ApiKeyId) -> Result<bool, StoreError> {
        let valid: i64 =
            sql::query_scalar(VALID).bind(id.as_str()).bind(self.now_ms()).fetch_one(self.reader()).await?;
        Ok(valid != 0)
    }

    /// Who presents `secret`; `None` if no key that is neither revoked nor expired has it.
    ///
    /// When a key was last used is noted in memory and written by the next [`Store::beat`] or
    /// [`Store::close`], at most once a minute for a key, so that authentication never waits for the disk.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn authenticate(&self, secret: &str) -> Result<Option<Principal>, StoreError> {
        // Looking a hash up takes different times for different hashes, which tells nothing about a random secret.
        let hash = TokenHash::of(secret);
        let now_ms = self.now_ms();
        let row =
            sql::query(BY_SECRET).bind(hash.as_str()).bind(now_ms).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(None) };
        let columns = Columns::of("api_key", &row)?;
        let principal = Principal {
            key: columns.parse("id")?,
            name: columns.get("name")?,
            project: columns.parse("project_id")?,
            scopes: columns.json("scopes")?,
            expires_at_ms: columns.get("expires_at_ms")?,
        };
        let written: Option<i64> = columns.get("last_used_at_ms")?;
        if written.is_none_or(|written| now_ms.saturating_sub(written) >= USE_STEP_MS) {
            self.shared.key_uses.lock().insert(principal.key.clone(), now_ms);
        }
        Ok(Some(principal))
    }

    /// Writes the uses noted since the last time. What is not written stays noted.
    pub(crate) async fn write_key_uses(&self) -> Result<(), StoreError> {
        let uses = self.shared.key_uses.lock().clone();
        if uses.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        for (id, at_ms) in &uses {
            sql::query(USED).bind(id.as_str()).bind(at_ms).execute(&mut *tx.db).await?;
        }
        tx.commit().await?;
        // The key may have been used again meanwhile.
        self.shared.key_uses.lock().retain(|id, at_ms| uses.get(id) != Some(at_ms));
        Ok(())
    }
}

/// What the audit log has of a key that is made.
fn told(ApiKey { id, scopes, expires_at_ms, .. }: &ApiKey) -> String {
    let scopes: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
    let expires = expires_at_ms.map_or_else(|| "none".to_owned(), |at_ms| at_ms.to_string());
    format!("{id}: scopes {}, expires_at_ms {expires}", scopes.join(" "))
}

fn api_key(row: &Row) -> Result<ApiKey, StoreError> {
    let columns = Columns::of("api_key", row)?;
    Ok(ApiKey {
        id: columns.parse("id")?,
        project: columns.parse("project_id")?,
        name: columns.get("name")?,
        scopes: columns.json("scopes")?,
        created_at_ms: columns.get("created_at_ms")?,
        revoked_at_ms: columns.get("revoked_at_ms")?,
        expires_at_ms: columns.get("expires_at_ms")?,
        last_used_at_ms: columns.get("last_used_at_ms")?,
    })
}

/// Makes a key and writes its audit record; `None`, with nothing changed, if the project has [`API_KEYS`] valid ones.
pub(crate) async fn make(tx: &mut Tx<'_>, new: &NewApiKey) -> Result<Option<(ApiKey, Token)>, StoreError> {
    let valid: i64 = sql::query_scalar(COUNT)
        .bind(new.project.as_str())
        .bind(tx.now_ms)
        .bind(API_KEYS)
        .fetch_one(&mut *tx.db)
        .await?;
    if valid >= API_KEYS {
        return Ok(None);
    }
    let id = ApiKeyId::new(tx.now_ms, tx.random());
    let secret = Token::api_key(tx.random());
    sql::query(INSERT)
        .bind(id.as_str())
        .bind(new.project.as_str())
        .bind(new.name.as_str())
        .bind(document("api_key.scopes", &new.scopes)?)
        .bind(secret.hash().as_str())
        .bind(tx.now_ms)
        .bind(new.expires_at_ms)
        .execute(&mut *tx.db)
        .await?;
    let key = ApiKey {
        id,
        project: new.project.clone(),
        name: new.name.clone(),
        scopes: new.scopes.clone(),
        created_at_ms: tx.now_ms,
        revoked_at_ms: None,
        expires_at_ms: new.expires_at_ms,
        last_used_at_ms: None,
    };
    audit::write(tx, &NewAudit::new(&new.project, new.by.clone(), "key.create", &told(&key))).await?;
    Ok(Some((key, secret)))
}
