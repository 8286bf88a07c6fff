//! Rows one after another.

use futures_util::TryStreamExt as _;

use super::{Query, Reader, Row, postgres, sqlite};

impl Query<'_> {
    /// Hands over one row after another and keeps none: for lists whose rows are large.
    pub(crate) async fn read_each<E: From<sqlx::Error>>(
        self,
        reader: &Reader,
        mut each: impl FnMut(Row) -> Result<(), E> + Send,
    ) -> Result<(), E> {
        let Self { statement, values, each_time } = self;
        match reader {
            Reader::Sqlite(pool) => {
                let mut rows = sqlite(statement, values).fetch(pool);
                while let Some(row) = rows.try_next().await? {
                    each(row.into())?;
                }
            }
            Reader::Postgres(pool) => {
                let mut rows = postgres(statement, values, each_time).fetch(pool);
                while let Some(row) = rows.try_next().await? {
                    each(row.into())?;
                }
            }
        }
        Ok(())
    }
}
