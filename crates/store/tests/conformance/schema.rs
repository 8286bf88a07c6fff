//! Both databases have the same tables, columns and indexes, and their migrations the same numbers.

use std::collections::BTreeSet;

use crate::fixture::Fixture;

/// The number of the first migration of `PostgreSQL`, which holds what `SQLite`'s come to up to there.
const FIRST: i64 = 6;

const COLUMNS: (&str, &str) = (
    "select tables.name || '.' || columns.name || case when columns.\"notnull\" = 1 then ' not null' else '' end \
     from sqlite_master as tables, pragma_table_info(tables.name) as columns \
     where tables.type = 'table' and tables.name not like 'sqlite_%' and columns.pk = 0",
    "select table_name || '.' || column_name || case when is_nullable = 'NO' then ' not null' else '' end \
     from information_schema.columns as columns where table_schema = current_schema() and not exists \
     (select 1 from pg_index, pg_attribute where indisprimary \
      and indrelid = cast(quote_ident(columns.table_name) as regclass) and attrelid = indrelid \
      and attnum = any (indkey) and attname = columns.column_name)",
);

const INDEXES: (&str, &str) = (
    "select name from sqlite_master where type = 'index' and name not like 'sqlite_%'",
    "select cast(indexname as text) from pg_indexes where schemaname = current_schema() and not exists \
     (select 1 from pg_constraint where conname = indexname and connamespace = cast(schemaname as regnamespace))",
);

const MIGRATIONS: &str = "select version from _sqlx_migrations order by version";

async fn texts(fixture: &Fixture, sql: (&'static str, &'static str)) -> BTreeSet<String> {
    fixture.rows(sql).await.iter().map(|row| row.get::<String>(0)).collect()
}

async fn numbers(fixture: &Fixture) -> Vec<i64> {
    fixture.rows(MIGRATIONS).await.iter().map(|row| row.get(0)).filter(|number| *number >= FIRST).collect()
}

#[tokio::test]
async fn both_databases_have_the_same_tables_columns_indexes_and_migrations() {
    let Some(postgres) = Fixture::postgres().await else { return };
    let sqlite = Fixture::sqlite().await;
    // The driver's own table is of the driver's making.
    let columns = |texts: BTreeSet<String>| -> BTreeSet<String> {
        texts.into_iter().filter(|text| !text.starts_with("_sqlx_migrations.")).collect()
    };
    let wanted = columns(texts(&sqlite, COLUMNS).await);
    assert!(wanted.contains("run.spec not null") && wanted.contains("run.failure"), "{wanted:?}");
    assert_eq!(columns(texts(&postgres, COLUMNS).await), wanted);
    let wanted = texts(&sqlite, INDEXES).await;
    assert!(wanted.contains("run_live_branch"), "{wanted:?}");
    assert_eq!(texts(&postgres, INDEXES).await, wanted);
    assert_eq!(numbers(&postgres).await, numbers(&sqlite).await);
}
