//! Rows: one after another, or as an answer.

use std::ops::ControlFlow;

use futures_util::TryStreamExt as _;
use tokio::time::timeout_at;

use super::{Query, Reader, Row, lists, postgres, sqlite};

impl Query<'_> {
    /// Hands over one row after another and keeps none, until it is told to stop: for lists whose rows are large.
    pub(crate) async fn read_each<E: From<sqlx::Error>>(
        self,
        reader: &Reader,
        mut each: impl FnMut(Row) -> Result<ControlFlow<()>, E> + Send,
    ) -> Result<(), E> {
        let Self { statement, values, each_time } = self;
        match reader {
            Reader::Sqlite(pool) => {
                let mut rows = sqlite(statement, values).fetch(pool);
                while let Some(row) = rows.try_next().await? {
                    if each(row.into())?.is_break() {
                        break;
                    }
                }
            }
            Reader::SqliteLists(pool) => {
                let (mut connection, _asking) = lists::lease(pool).await?;
                let mut rows = sqlite(statement, values).fetch(&mut *connection);
                while let Some(row) = rows.try_next().await? {
                    if each(row.into())?.is_break() {
                        break;
                    }
                }
            }
            Reader::Postgres(pool) => {
                let mut leased = pool.acquire().await?;
                let (connection, until) = leased.ask()?;
                let mut rows = postgres(statement, values, each_time).fetch(connection);
                // All of them are one answer, which the server makes within one statement's time.
                let answered = loop {
                    match timeout_at(until, rows.try_next()).await {
                        Ok(Ok(Some(row))) => {
                            // What comes of the answer yet is read, and kept by nobody, on the way back to the pool.
                            if each(row.into())?.is_break() {
                                break Ok(Ok(()));
                            }
                        }
                        Ok(Ok(None)) => break Ok(Ok(())),
                        Ok(Err(error)) => break Ok(Err(error)),
                        Err(late) => break Err(late),
                    }
                };
                drop(rows);
                leased.answered(answered)?;
            }
        }
        Ok(())
    }
}

pub(super) fn optional<R>(row: Option<R>) -> Option<Row>
where
    Row: From<R>,
{
    row.map(Row::from)
}

pub(super) fn all<R>(rows: Vec<R>) -> Vec<Row>
where
    Row: From<R>,
{
    rows.into_iter().map(Row::from).collect()
}
