//! Wake-ups between servers: a notification tells the other processes on a `PostgreSQL` database which topics changed.
//!
//! They are hints, as those inside a process are: sent after the commit and not with it, in batches, and lost when a
//! connection breaks or more come than fit. Whoever waits for one looks by itself now and then.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Topic;
use crate::hints::Hints;

/// Topics that wait to be sent; further ones are dropped.
const WAITING_TOPICS: usize = 1_024;
/// Longest text of a notification, in bytes; the server takes 7999.
const PAYLOAD_BYTES: usize = 7_000;
/// Pause before listening is tried again, in milliseconds.
const RETRY_MS: u64 = 1_000;
/// Separates the topics of a notification; no id or name has one.
const SPACE: char = ' ';

const NOTIFY: &str = "select pg_notify($1, $2)";

/// Sends this process's hints and receives those of others; both end when it is dropped.
#[derive(Debug)]
pub(crate) struct Notifier {
    topics: mpsc::Sender<Topic>,
    tasks: [JoinHandle<()>; 2],
}

impl Notifier {
    /// Begins to send and to listen. `channel` is that of the store in its database, `own` tells this process's
    /// notifications from others'.
    #[expect(
        clippy::disallowed_methods,
        reason = "the store has no tracker; the tasks end with the notifier"
    )]
    pub(crate) fn start(pool: PgPool, channel: String, own: String, hints: Arc<Hints>) -> Self {
        let (topics, waiting) = mpsc::channel(WAITING_TOPICS);
        let sending = tokio::spawn(send(pool.clone(), channel.clone(), own.clone(), waiting));
        let listening = tokio::spawn(listen(pool, channel, own, hints));
        Self { topics, tasks: [sending, listening] }
    }

    /// Tells the other processes, soon; never waits.
    pub(crate) fn wake(&self, topics: Vec<Topic>) {
        for topic in topics {
            // One that does not fit is found by those who look by themselves.
            drop(self.topics.try_send(topic));
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn send(pool: PgPool, channel: String, own: String, mut waiting: mpsc::Receiver<Topic>) {
    while let Some(first) = waiting.recv().await {
        let mut payload = own.clone();
        push(&mut payload, &first);
        while payload.len() < PAYLOAD_BYTES
            && let Ok(topic) = waiting.try_recv()
        {
            push(&mut payload, &topic);
        }
        let sent = sqlx::query(NOTIFY).bind(&channel).bind(&payload).execute(&pool).await;
        if let Err(error) = sent {
            tracing::debug!("a wake-up for other servers is lost: {error}");
        }
    }
}

fn push(payload: &mut String, topic: &Topic) {
    payload.push(SPACE);
    payload.push_str(&name(topic));
}

async fn listen(pool: PgPool, channel: String, own: String, hints: Arc<Hints>) {
    loop {
        let ended = follow(&pool, &channel, &own, &hints).await;
        if pool.is_closed() {
            return;
        }
        if let Err(error) = ended {
            tracing::debug!("wake-ups of other servers are not heard: {error}");
            tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
        }
    }
}

/// Listens until the connection is lost.
async fn follow(pool: &PgPool, channel: &str, own: &str, hints: &Hints) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(channel).await?;
    // Nobody knows what was missed until now.
    hints.wake_all();
    while let Some(notification) = listener.try_recv().await? {
        let mut words = notification.payload().split(SPACE);
        if words.next() != Some(own) {
            hints.wake(&words.filter_map(topic).collect::<Vec<_>>());
        }
    }
    Ok(())
}

const QUEUE: &str = "queue";
const AUDIT: &str = "audit";
const BUDGET: &str = "budget:";

/// A topic as it is sent: most are named by an id, whose beginning tells its kind.
fn name(topic: &Topic) -> String {
    match topic {
        Topic::Queue => QUEUE.to_owned(),
        Topic::Audit => AUDIT.to_owned(),
        Topic::Run(id) => id.to_string(),
        Topic::Session(id) => id.to_string(),
        Topic::Sandbox(id) => id.to_string(),
        Topic::Server(id) => id.to_string(),
        Topic::Budget(project) => format!("{BUDGET}{project}"),
    }
}

/// The topic of a name; none for one of another version.
fn topic(name: &str) -> Option<Topic> {
    match name {
        QUEUE => return Some(Topic::Queue),
        AUDIT => return Some(Topic::Audit),
        _ => {}
    }
    if let Some(project) = name.strip_prefix(BUDGET) {
        return project.parse().ok().map(Topic::Budget);
    }
    name.parse()
        .map(Topic::Run)
        .or_else(|_| name.parse().map(Topic::Session))
        .or_else(|_| name.parse().map(Topic::Sandbox))
        .or_else(|_| name.parse().map(Topic::Server))
        .ok()
}

#[cfg(test)]
mod tests {
    use caisson_domain::id::{ProjectId, RunId, SandboxId, ServerId, SessionId};

    use super::*;

    #[test]
    fn every_topic_comes_back_from_its_name_and_no_other_text_is_one() {
        let topics = [
            Topic::Queue,
            Topic::Audit,
            Topic::Run(RunId::new(1, [1; 10])),
            Topic::Session(SessionId::new(1, [2; 10])),
            Topic::Sandbox(SandboxId::new(1, [3; 10])),
            Topic::Server(ServerId::new(1, [4; 10])),
            Topic::Budget(ProjectId::default_project()),
        ];
        for wanted in topics {
            assert!(!name(&wanted).contains(SPACE));
            assert_eq!(topic(&name(&wanted)), Some(wanted));
        }
        for other in ["", "run", "run_x", "later:kind", "queue "] {
            assert_eq!(topic(other), None, "{other}");
        }
    }
}
