//! Connections to `PostgreSQL`, and the end of every wait for one.
//!
//! The server's own time limits are no help against a server that is not there any more: once it has acknowledged a request
//! and its machine loses its power, nothing ever comes back and nothing tells this side. So each answer is waited for by
//! this side's clock as well, a little longer than the server would work on it; a connection that gave none is dropped, and
//! what is given back to the pool is looked at for a bounded time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::breaker::Breaker;
use super::postgres::PostgresLimits;

/// How much longer an answer is waited for than the server works on a statement, in milliseconds.
pub(crate) const GRACE_MS: u64 = 5_000;
/// How long a connection that nobody used has to say that it is there, in milliseconds. One that does not is replaced, so that
/// a way on which everything vanishes costs a call this long and no more.
const CHECK_MS: u64 = 2_000;

pub(super) const COMMIT: &str = "commit";
pub(super) const ROLLBACK: &str = "rollback";

/// How long an answer to one statement is waited for.
pub(crate) const fn answer(limits: &PostgresLimits) -> Duration {
    Duration::from_millis(limits.statement_timeout_ms.saturating_add(GRACE_MS))
}

/// The answer did not come; whether the statement was executed, nobody knows.
pub(crate) fn late() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "PostgreSQL did not answer in time"))
}

/// A few connections to one server.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    inner: PgPool,
    answer: Duration,
    breaker: Arc<Breaker>,
    /// How many there are at most.
    connections: u32,
    /// How many somebody has now.
    in_hand: Arc<AtomicU32>,
}

impl Pool {
    /// A pool that connects when it is used. The breaker is that of all pools of the same database.
    pub(crate) fn new(
        options: PgConnectOptions,
        limits: &PostgresLimits,
        connections: u32,
        breaker: &Arc<Breaker>,
    ) -> Self {
        let connections = connections.max(1);
        let inner = PoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_millis(limits.acquire_timeout_ms))
            // A server that was restarted has cut every connection, and one that has vanished has not: both are found out here.
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(async move { Ok(is_there(connection).await) }))
            .connect_lazy_with(options);
        Self {
            inner,
            answer: answer(limits),
            breaker: Arc::clone(breaker),
            connections,
            in_hand: Arc::default(),
        }
    }

    /// A connection that nobody else has, or an error at once while the database is known to give none.
    pub(crate) async fn acquire(&self) -> Result<Leased, sqlx::Error> {
        let pass = self.breaker.pass()?;
        match self.inner.acquire().await {
            Ok(connection) => {
                pass.got_one();
                let in_hand = InHand::take(&self.in_hand);
                let connection = Some(connection);
                Ok(Leased {
                    connection,
                    answer: self.answer,
                    under_way: None,
                    in_transaction: false,
                    in_hand,
                })
            }
            Err(error) => {
                // What waits for those that others have waits for them, and not for the database.
                let all_in_hand = self.in_hand.load(Ordering::Relaxed) >= self.connections;
                if !all_in_hand && !self.inner.is_closed() {
                    pass.got_none();
                }
                Err(error)
            }
        }
    }

    /// What its calls pass.
    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Waits until the pool is closed.
    pub(crate) async fn closed(&self) {
        self.inner.close_event().await;
    }

    /// Lets nobody have a connection any more, and waits for those who have one, as long as an answer may take.
    pub(crate) async fn close(&self) {
        if timeout(self.answer, self.inner.close()).await.is_err() {
            tracing::debug!("connections to PostgreSQL were left as they are");
        }
    }
}

async fn is_there(connection: &mut PgConnection) -> bool {
    matches!(timeout(Duration::from_millis(CHECK_MS), connection.ping()).await, Ok(Ok(())))
}

/// A connection of a pool. Dropping it gives it back, and gives up the transaction that it is in.
#[derive(Debug)]
pub(crate) struct Leased {
    /// None from when it is dropped, or did not answer.
    connection: Option<PoolConnection<Postgres>>,
    answer: Duration,
    /// Until when an answer is waited for that has not come.
    under_way: Option<Instant>,
    in_transaction: bool,
    in_hand: InHand,
}

/// Counts a connection as somebody's until the last of its clones is dropped.
#[derive(Debug, Clone)]
struct InHand {
    _one: Arc<One>,
}

#[derive(Debug)]
struct One(Arc<AtomicU32>);

impl InHand {
    fn take(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { _one: Arc::new(One(Arc::clone(count))) }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Leased {
    /// Begins a transaction.
    pub(super) async fn begin(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        self.in_transaction = true;
        self.execute(sql).await
    }

    /// Ends the transaction; does nothing if there is none.
    pub(super) async fn end(mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        if self.in_transaction {
            self.execute(sql).await?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// Executes a statement without values and without rows.
    pub(crate) async fn execute(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        let (connection, until) = self.ask()?;
        let answered = timeout_at(until, sqlx::raw_sql(sql).execute(connection)).await;
        self.answered(answered).map(drop)
    }

    /// The connection, to be asked something, and until when the answer may come.
    pub(super) fn ask(&mut self) -> Result<(&mut PgConnection, Instant), sqlx::Error> {
        let until = Instant::now() + self.answer;
        let connection = self.connection.as_deref_mut().ok_or_else(late)?;
        self.under_way = Some(until);
        Ok((connection, until))
    }

    /// What came of asking. A connection whose answer did not come is closed: it may come later, to another question.
    pub(super) fn answered<T>(
        &mut self,
        answered: Result<Result<T, sqlx::Error>, Elapsed>,
    ) -> Result<T, sqlx::Error> {
        self.under_way = None;
        answered.unwrap_or_else(|_| {
            drop(self.connection.take().map(PoolConnection::detach));
            Err(late())
        })
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        // Whoever gave up an answer keeps the connection no longer than the answer might have taken.
        let until = self.under_way.unwrap_or_else(|| Instant::now() + Duration::from_millis(GRACE_MS));
        let giving_back = Returning(Some(connection)).give_back(self.in_transaction);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let in_hand = self.in_hand.clone();
        // It ends by its time limit.
        drop(runtime.spawn(async move {
            let _in_hand = in_hand;
            if !matches!(timeout_at(until, giving_back).await, Ok(Ok(()))) {
                tracing::debug!("a connection to PostgreSQL did not answer and was closed");
            }
        }));
    }
}

/// A connection on its way back to the pool, which is closed if it does not get there.
struct Returning(Option<PoolConnection<Postgres>>);

impl Returning {
    async fn give_back(mut self, in_transaction: bool) -> Result<(), sqlx::Error> {
        if in_transaction && let Some(connection) = self.0.as_deref_mut() {
            sqlx::raw_sql(ROLLBACK).execute(connection).await?;
        }
        if let Some(mut connection) = self.0.take() {
            // The pool's own way, which asks the connection whether it is there, and by itself waits for ever.
            connection.return_to_pool().await;
        }
        Ok(())
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}
