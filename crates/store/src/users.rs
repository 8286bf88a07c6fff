//! Users of the Automagik-compatible API: people whom its clients name. They are labels and open nothing; who calls is
//! told by the key.

use caisson_domain::id::ProjectId;
use caisson_domain::limits::{PAGE_ITEMS, PROJECT_USERS};

use crate::database::{Row, sql};
use crate::random::uuid_v4;
use crate::rows::Columns;
use crate::{Actor, NewAudit, Store, StoreError, audit};

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its id, a UUID.
    pub id: String,
    /// What is known of it.
    pub fields: UserFields,
    /// Unix ms.
    pub created_at_ms: i64,
    /// Unix ms.
    pub updated_at_ms: i64,
}

/// What is known of a user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserFields {
    /// Unique in its project.
    pub email: Option<String>,
    /// Unique in its project.
    pub phone_number: Option<String>,
    /// Anything, as JSON text.
    pub user_data: Option<String>,
}

/// What came of making or changing a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeUser {
    /// This is the user now.
    Done(User),
    /// The project has no such user.
    Unknown,
    /// Another one has that address or number; nothing is changed.
    Taken,
    /// There are [`PROJECT_USERS`] already; nothing is changed.
    Full,
}

macro_rules! select_user {
    () => {
        "select id, email, phone_number, user_data, created_at_ms, updated_at_ms from automagik_user "
    };
}

const COUNT: &str = "select count(*) from automagik_user where project_id = $1";

const TAKEN: &str = "select count(*) from automagik_user where project_id = $1 and id <> $2 \
     and (email = $3 or phone_number = $4)";

const INSERT: &str = "insert into automagik_user \
     (id, project_id, email, phone_number, user_data, created_at_ms, updated_at_ms) values ($2, $1, $3, $4, $5, $6, $6)";

const UPDATE: &str = "update automagik_user set email = $3, phone_number = $4, user_data = $5, updated_at_ms = $6 \
     where project_id = $1 and id = $2";

const DELETE: &str = "delete from automagik_user where project_id = $1 and id = $2";

const ONE: &str = concat!(select_user!(), "where project_id = $1 and id = $2");

const FIND: &str = concat!(
    select_user!(),
    "where project_id = $1 and (id = $2 or email = $2 or phone_number = $2) \
     order by case when id = $2 then 0 when email = $2 then 1 else 2 end, id limit 1"
);

const LIST: &str =
    concat!(select_user!(), "where project_id = $1 order by created_at_ms, id limit $2 offset $3");

impl Store {
    /// Makes a user. `by` asks for it; the audit log tells of it by the user's id alone.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if `user_data` is no JSON.
    /// # Cancel safety
    /// Safe: made or not.
    pub async fn create_user(
        &self,
        project: &ProjectId,
        fields: UserFields,
        by: Actor,
    ) -> Result<ChangeUser, StoreError> {
        let mut tx = self.begin().await?;
        let count: i64 = sql::query_scalar(COUNT).bind(project.as_str()).fetch_one(&mut *tx.db).await?;
        if count >= PROJECT_USERS {
            return Ok(ChangeUser::Full);
        }
        let id = uuid_v4(tx.random());
        let user = User { id, fields, created_at_ms: tx.now_ms, updated_at_ms: tx.now_ms };
        let changed = write(&mut tx, project, &user, INSERT).await?;
        if changed {
            audit::write(&mut tx, &NewAudit::new(project, by, "user.create", &user.id)).await?;
            tx.commit().await?;
        }
        Ok(if changed { ChangeUser::Done(user) } else { ChangeUser::Taken })
    }

    /// Gives the user with this id other fields; audited as [`Store::create_user`].
    ///
    /// # Errors
    /// As [`Store::create_user`].
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn update_user(
        &self,
        project: &ProjectId,
        id: &str,
        fields: UserFields,
        by: Actor,
    ) -> Result<ChangeUser, StoreError> {
        let mut tx = self.begin().await?;
        let row = sql::query(ONE).bind(project.as_str()).bind(id).fetch_optional(&mut *tx.db).await?;
        let Some(known) = row.as_ref().map(user).transpose()? else { return Ok(ChangeUser::Unknown) };
        let user = User { fields, updated_at_ms: tx.now_ms, ..known };
        let changed = write(&mut tx, project, &user, UPDATE).await?;
        if changed {
            audit::write(&mut tx, &NewAudit::new(project, by, "user.update", &user.id)).await?;
            tx.commit().await?;
        }
        Ok(if changed { ChangeUser::Done(user) } else { ChangeUser::Taken })
    }

    /// Removes a user; `false` if there is none. Runs asked for on its behalf keep its id. Audited as [`Store::create_user`].
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn delete_user(&self, project: &ProjectId, id: &str, by: Actor) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let gone = sql::query(DELETE).bind(project.as_str()).bind(id).execute(&mut *tx.db).await?;
        if gone.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        audit::write(&mut tx, &NewAudit::new(project, by, "user.delete", id)).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The user with this id, else with this address, else with this number: an address may well read like the id of
    /// somebody else.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn find_user(&self, project: &ProjectId, named: &str) -> Result<Option<User>, StoreError> {
        let row = sql::query(FIND).bind(project.as_str()).bind(named).fetch_optional(self.reader()).await?;
        row.as_ref().map(user).transpose()
    }

    /// The users behind the first `skip`, oldest first, at most [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_users(
        &self,
        project: &ProjectId,
        skip: i64,
        limit: u32,
    ) -> Result<Vec<User>, StoreError> {
        let rows = sql::query(LIST)
            .bind(project.as_str())
            .bind(limit.min(PAGE_ITEMS))
            .bind(skip)
            .fetch_all(self.lists())
            .await?;
        rows.iter().map(user).collect()
    }

    /// How many users the project has.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn count_users(&self, project: &ProjectId) -> Result<i64, StoreError> {
        Ok(sql::query_scalar::<i64>(COUNT).bind(project.as_str()).fetch_one(self.lists()).await?)
    }
}

/// Writes the user unless another one has its address or number.
async fn write(
    tx: &mut crate::database::Tx<'_>,
    project: &ProjectId,
    user: &User,
    statement: &'static str,
) -> Result<bool, StoreError> {
    let taken: i64 = sql::query_scalar(TAKEN)
        .bind(project.as_str())
        .bind(user.id.as_str())
        .bind(user.fields.email.as_deref())
        .bind(user.fields.phone_number.as_deref())
        .fetch_one(&mut *tx.db)
        .await?;
    if taken > 0 {
        return Ok(false);
    }
    sql::query(statement)
        .bind(project.as_str())
        .bind(user.id.as_str())
        .bind(user.fields.email.as_deref())
        .bind(user.fields.phone_number.as_deref())
        .bind(user.fields.user_data.as_deref())
        .bind(tx.now_ms)
        .execute(&mut *tx.db)
        .await?;
    Ok(true)
}

fn user(row: &Row) -> Result<User, StoreError> {
    let columns = Columns::of("automagik_user", row)?;
    Ok(User {
        id: columns.get("id")?,
        fields: UserFields {
            email: columns.get("email")?,
            phone_number: columns.get("phone_number")?,
            user_data: columns.get("user_data")?,
        },
        created_at_ms: columns.get("created_at_ms")?,
        updated_at_ms: columns.get("updated_at_ms")?,
    })
}
