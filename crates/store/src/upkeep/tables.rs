//! The tables of a `SQLite` database, as it tells of them itself, so that a table that a migration adds is never forgotten.

use sqlx::{Row as _, SqliteConnection};

use crate::StoreError;

/// A table, with what is needed to carry its rows elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    /// The columns of its primary key, in the key's order.
    pub(super) key: Vec<String>,
    /// The tables that its rows refer to.
    pub(super) refers_to: Vec<String>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// The two types that columns have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Text,
}

const TABLES: &str = "select name from sqlite_master where type = 'table' and name not like 'sqlite_%' \
     and name <> '_sqlx_migrations' order by name";

const COLUMNS: &str = "select name, lower(type) as type, pk from pragma_table_info($1) order by cid";

const REFERS_TO: &str = "select distinct \"table\" from pragma_foreign_key_list($1) order by 1";

/// Every table, in an order in which each comes behind those that its rows refer to.
pub(super) async fn in_order(connection: &mut SqliteConnection) -> Result<Vec<Table>, StoreError> {
    let names: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut *connection).await?;
    let mut waiting = Vec::new();
    for name in names {
        waiting.push(one(connection, name).await?);
    }
    sorted(waiting)
}

async fn one(connection: &mut SqliteConnection, name: String) -> Result<Table, StoreError> {
    let mut columns = Vec::new();
    let mut key = Vec::new();
    for row in sqlx::query(COLUMNS).bind(&name).fetch_all(&mut *connection).await? {
        let (column, kind, place): (String, String, i64) =
            (row.try_get("name")?, row.try_get("type")?, row.try_get("pk")?);
        let kind = match kind.as_str() {
            "integer" => Kind::Integer,
            "text" => Kind::Text,
            other => {
                return Err(StoreError::corrupt(format!("the type of {name}.{column}"), other.to_owned()));
            }
        };
        if place > 0 {
            key.push((place, column.clone()));
        }
        columns.push(Column { name: column, kind });
    }
    key.sort();
    if key.is_empty() {
        return Err(StoreError::corrupt(format!("table {name}"), "it has no primary key"));
    }
    let refers_to = sqlx::query_scalar(REFERS_TO).bind(&name).fetch_all(connection).await?;
    Ok(Table { name, columns, key: key.into_iter().map(|(_, column)| column).collect(), refers_to })
}

fn sorted(mut waiting: Vec<Table>) -> Result<Vec<Table>, StoreError> {
    let mut done: Vec<Table> = Vec::new();
    while !waiting.is_empty() {
        let ready = |table: &Table| {
            table
                .refers_to
                .iter()
                .all(|other| *other == table.name || done.iter().any(|done| done.name == *other))
        };
        let Some(place) = waiting.iter().position(ready) else {
            let names: Vec<_> = waiting.iter().map(|table| table.name.as_str()).collect();
            return Err(StoreError::corrupt("the tables' references", format!("a circle among {names:?}")));
        };
        done.push(waiting.remove(place));
    }
    Ok(done)
}

impl Table {
    /// The names of the columns, quoted and separated: they come from the schema, never from a request.
    pub(super) fn column_list(&self) -> String {
        list(self.columns.iter().map(|column| &column.name))
    }

    /// Reads every row in the key's order, which is the same in both databases.
    pub(super) fn select(&self) -> String {
        let order = list(self.key.iter());
        format!("select {} from {} order by {order}", self.column_list(), quoted(&self.name))
    }
}

fn list<'n>(names: impl Iterator<Item = &'n String>) -> String {
    names.map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// A name as SQL writes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, refers_to: &[&str]) -> Table {
        let refers_to = refers_to.iter().map(|&name| name.to_owned()).collect();
        Table { name: name.to_owned(), columns: Vec::new(), key: Vec::new(), refers_to }
    }

    #[test]
    fn a_table_comes_behind_those_it_refers_to_and_a_circle_is_told() {
        let tables = vec![table("a", &["b", "a"]), table("b", &["c"]), table("c", &[])];
        let names: Vec<_> = sorted(tables).unwrap().into_iter().map(|table| table.name).collect();
        assert_eq!(names, ["c", "b", "a"]);
        let error = sorted(vec![table("a", &["b"]), table("b", &["a"]), table("c", &[])]).unwrap_err();
        assert!(error.to_string().contains("references"), "{error}");
    }

    #[test]
    fn a_name_cannot_end_its_quotes() {
        assert_eq!(quoted("usage"), "\"usage\"");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
