//! Whether what is stored is sound: by the database's own word, and by what must hold between rows.

use caisson_domain::id::ServerId;
use caisson_domain::limits::PAGE_ITEMS;

use crate::database::{Database, sql};
use crate::rows::Columns;
use crate::{Store, StoreError};

/// Most faults of one kind that are told.
pub const CHECK_FAULTS: usize = 20;

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckPart {
    /// How many things were looked at.
    pub looked_at: i64,
    /// What is wrong, in sentences; at most [`CHECK_FAULTS`] and one that says that there are more.
    pub faults: Vec<String>,
}

impl CheckPart {
    /// Notes a fault.
    pub fn note(&mut self, fault: String) {
        if self.faults.len() < CHECK_FAULTS {
            self.faults.push(fault);
        } else if self.faults.len() == CHECK_FAULTS {
            self.faults.push("and more".to_owned());
        }
    }

    const fn is_told(&self) -> bool {
        self.faults.len() > CHECK_FAULTS
    }
}

/// A file of a server that a row tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// The id of the row, to go on behind it.
    pub id: String,
    /// Whose it is: the run's id.
    pub run: String,
    /// Its name there.
    pub name: String,
    /// The server that has it; none if nobody knows.
    pub server: Option<ServerId>,
    /// Where it is, below that server's directory of artifacts.
    pub path: String,
    /// Its size in bytes.
    pub size_bytes: i64,
}

/// One line each: `ok`, or what is wrong.
const SQLITE_INTEGRITY: &str = "select integrity_check from pragma_integrity_check limit $1";
/// A constraint or an index that the database itself does not rely on.
const POSTGRES_INTEGRITY: &str = "select cast('constraint ' || conname || ' is not valid' as text) from pg_constraint \
     where connamespace = cast(current_schema() as regnamespace) and not convalidated \
     union all select 'index ' || cast(cast(indexrelid as regclass) as text) || ' is not valid' from pg_index, pg_class \
     where pg_class.oid = indrelid and relnamespace = cast(current_schema() as regnamespace) and not indisvalid \
     order by 1 limit $1";
const SQLITE_REFERENCES: &str = "select 'a row of ' || \"table\" || case when rowid is null then '' else ' (rowid ' || rowid || ')' end \
     || ' refers to a row of ' || parent || ' that is not there' from pragma_foreign_key_check limit $1";
/// Whether references are kept is told by the triggers that keep them.
const POSTGRES_REFERENCES: &str = "select cast('references of ' || cast(cast(tgrelid as regclass) as text) || ' are not kept: a trigger \
     is off' as text) from pg_trigger, pg_class where pg_class.oid = tgrelid \
     and relnamespace = cast(current_schema() as regnamespace) and tgenabled in ('D', 'R') order by 1 limit $1";

/// Events behind what retention took away, which are gapless up to the session's last.
const EVENTS: &str = "select session.id, session.last_seq, session.events_deleted_seq, count(event.seq), \
     coalesce(min(event.seq), 0), coalesce(max(event.seq), 0) from session left join event \
     on event.session_id = session.id and event.seq > session.events_deleted_seq \
     where session.id > $1 group by session.id, session.last_seq, session.events_deleted_seq \
     order by session.id limit $2";

const FIRST_GAP: &str = "select min(seq) from (select $2 as seq union all select seq from event \
     where session_id = $1 and seq > $2) as had where not exists \
     (select 1 from event where session_id = $1 and seq = had.seq + 1)";

const FILES: &str =
    "select id, run_id, name, server_id, path, size_bytes from artifact where id > $1 order by id limit $2";

const VERSION: &str = "select max(version) from _sqlx_migrations";

impl Store {
    /// The number of the newest migration.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn schema_version(&self) -> Result<i64, StoreError> {
        Ok(sql::query_scalar(VERSION).fetch_one(self.reader()).await?)
    }

    /// What the database itself says of its files: `integrity_check` of `SQLite`; whether constraints and indexes are valid
    /// of `PostgreSQL`, whose files are its server's to check.
    ///
    /// # Errors
    /// As every read; a file that is damaged badly cannot be read at all.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn check_integrity(&self) -> Result<CheckPart, StoreError> {
        let mut part = self.told_by(SQLITE_INTEGRITY, POSTGRES_INTEGRITY).await?;
        part.faults.retain(|line| line != "ok");
        Ok(part)
    }

    /// Rows that refer to rows that are not there.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn check_references(&self) -> Result<CheckPart, StoreError> {
        self.told_by(SQLITE_REFERENCES, POSTGRES_REFERENCES).await
    }

    async fn told_by(&self, sqlite: &'static str, postgres: &'static str) -> Result<CheckPart, StoreError> {
        let text = match self.shared.database {
            Database::Sqlite(_) => sqlite,
            Database::Postgres(_) => postgres,
        };
        let rows = sql::query(text).bind(of_usize(CHECK_FAULTS + 1)).fetch_all(self.reader()).await?;
        let mut part = CheckPart { looked_at: 1, ..CheckPart::default() };
        for row in &rows {
            part.note(row.get(0)?);
        }
        Ok(part)
    }

    /// Sessions whose events are not numbered without a gap.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn check_events(&self) -> Result<CheckPart, StoreError> {
        let mut part = CheckPart::default();
        let mut after = String::new();
        loop {
            let rows: Vec<(String, i64, i64, i64, i64, i64)> =
                sql::query_as(EVENTS).bind(&after).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
            let Some((last, ..)) = rows.last() else { return Ok(part) };
            after.clone_from(last);
            for (session, last, deleted, count, first, newest) in &rows {
                part.looked_at += 1;
                let whole =
                    count + deleted == *last && (*count == 0 || (*first == deleted + 1 && newest == last));
                if !whole {
                    part.note(self.event_fault(session, *deleted, *last).await?);
                }
            }
            if part.is_told() {
                return Ok(part);
            }
        }
    }

    async fn event_fault(&self, session: &str, deleted: i64, last: i64) -> Result<String, StoreError> {
        let before: i64 =
            sql::query_scalar(FIRST_GAP).bind(session).bind(deleted).fetch_one(self.reader()).await?;
        Ok(if before < last {
            format!("session {session}: event {} of {last} is missing", before + 1)
        } else {
            format!("session {session}: its last event is {before}, but it should be {last}")
        })
    }

    /// Files that rows tell of, behind the row `after`; at most [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn stored_files(&self, after: &str) -> Result<Vec<StoredFile>, StoreError> {
        let rows = sql::query(FILES).bind(after).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        let file = |row| {
            let columns = Columns::of("artifact", row)?;
            Ok(StoredFile {
                id: columns.get("id")?,
                run: columns.get("run_id")?,
                name: columns.get("name")?,
                server: columns.parse_optional("server_id")?,
                path: columns.get("path")?,
                size_bytes: columns.get("size_bytes")?,
            })
        };
        rows.iter().map(file).collect()
    }
}

fn of_usize(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
