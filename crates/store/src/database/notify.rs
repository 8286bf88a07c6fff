//! Wake-ups between servers: a notification tells the other processes on a `PostgreSQL` database which topics changed.
//!
//! They are hints, as those inside a process are: sent after the commit and not with it, in batches, and lost when a
//! connection breaks or more come than fit. Whoever waits for one looks by itself now and then.
//!
//! Text deltas go the same way, on a channel of their own and only while somebody elsewhere has said that it listens:
//! a server with a reader says so when the reader comes and now and then.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::event::Delta;
use caisson_domain::id::SessionId;
use sqlx::PgPool;
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgListener, PgNotification};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::leased::{GRACE_MS, Pool, late};
use super::live_text::{LiveText, join, payloads};
use super::postgres::PostgresLimits;
use super::sql;
use crate::Topic;
use crate::deltas::Deltas;
use crate::hints::Hints;

/// Topics that wait to be sent; further ones are dropped.
const WAITING_TOPICS: usize = 1_024;
/// Longest text of a notification, in bytes; the server takes 7999.
const PAYLOAD_BYTES: usize = 7_000;
/// Text deltas that wait to be sent; further ones are dropped.
const WAITING_TEXTS: usize = 256;
/// Between two words of a server that its readers still listen, in milliseconds; well under what such a word is good for.
const SAY_AGAIN_MS: u64 = 10_000;
/// Pause before listening is tried again, in milliseconds.
const RETRY_MS: u64 = 1_000;
/// Separates the topics of a notification; no id or name has one.
const SPACE: char = ' ';

const NOTIFY: &str = "select pg_notify($1, $2)";
const ARE_YOU_THERE: &str = "select 1";

/// How connections are made that listen. Each has a pool of its own: the driver takes a connection that it listened on back
/// as soon as that answers, which one that has vanished never does.
#[derive(Debug, Clone)]
pub(crate) struct Hearing {
    options: Box<PgConnectOptions>,
    acquire: Duration,
    quiet: Duration,
}

impl Hearing {
    pub(crate) fn new(options: PgConnectOptions, limits: &PostgresLimits) -> Self {
        let (acquire, quiet) = (limits.acquire_timeout_ms, limits.quiet_ms);
        Self {
            options: Box::new(options),
            acquire: Duration::from_millis(acquire),
            quiet: Duration::from_millis(quiet),
        }
    }

    fn pool(&self) -> PgPool {
        let one = PoolOptions::new().max_connections(1).acquire_timeout(self.acquire);
        one.connect_lazy_with(PgConnectOptions::clone(&self.options))
    }
}

/// What is to be told of by the notifications of others.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) hints: Arc<Hints>,
    pub(crate) deltas: Arc<Deltas>,
}

/// A word of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    /// Something changed.
    Changed(Topic),
    /// The sender has a reader of the session's text.
    Listens(SessionId),
}

/// The names that a store's notifications have, and the sender's.
#[derive(Debug, Clone)]
struct Channel {
    words: String,
    texts: String,
    own: String,
}

/// Sends this process's hints and text and receives those of others; both end when it is dropped.
#[derive(Debug)]
pub(crate) struct Notifier {
    words: mpsc::Sender<Word>,
    texts: mpsc::Sender<(SessionId, Delta)>,
    tasks: [JoinHandle<()>; 2],
}

impl Notifier {
    /// Begins to send and to listen. `channel` is that of the store in its database, `own` tells this process's
    /// notifications from others'.
    #[expect(
        clippy::disallowed_methods,
        reason = "the store has no tracker; the tasks end with the notifier"
    )]
    pub(crate) fn start(
        (pool, hearing): (Pool, Hearing),
        channel: String,
        own: String,
        heard: Heard,
    ) -> Self {
        let channel = Channel { texts: format!("{channel}_text"), words: channel, own };
        let (words, waiting_words) = mpsc::channel(WAITING_TOPICS);
        let (texts, waiting_texts) = mpsc::channel(WAITING_TEXTS);
        let sender =
            Sender { pool: pool.clone(), channel: channel.clone(), deltas: Arc::clone(&heard.deltas) };
        let sending = tokio::spawn(sender.send(waiting_words, waiting_texts));
        let listening = tokio::spawn(listen(pool, hearing, channel, heard));
        Self { words, texts, tasks: [sending, listening] }
    }

    /// Tells the other processes, soon; never waits.
    pub(crate) fn wake(&self, topics: Vec<Topic>) {
        for topic in topics {
            // One that does not fit is found by those who look by themselves.
            drop(self.words.try_send(Word::Changed(topic)));
        }
    }

    /// Tells the other processes, soon, that this one has a reader of the session's text; never waits.
    pub(crate) fn listen(&self, session: SessionId) {
        // One that does not fit is said again a little later.
        drop(self.words.try_send(Word::Listens(session)));
    }

    /// Sends a text delta to the readers of other processes, soon; never waits. What does not fit is lost.
    pub(crate) fn tell(&self, session: SessionId, delta: Delta) {
        drop(self.texts.try_send((session, delta)));
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Sender {
    pool: Pool,
    channel: Channel,
    deltas: Arc<Deltas>,
}

impl Sender {
    async fn send(self, mut words: mpsc::Receiver<Word>, mut texts: mpsc::Receiver<(SessionId, Delta)>) {
        let mut say_again = tokio::time::interval(Duration::from_millis(SAY_AGAIN_MS));
        say_again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut left: Option<(SessionId, Delta)> = None;
        loop {
            tokio::select! {
                // Hints first: they are few, and readers of text wait for events as well.
                biased;
                word = words.recv() => match word {
                    Some(first) => {
                        let mut more = std::iter::from_fn(|| words.try_recv().ok());
                        self.say(first, &mut more).await;
                    }
                    None => return,
                },
                _ = say_again.tick() => {
                    let mut listens = self.deltas.listened().into_iter().map(Word::Listens);
                    while let Some(first) = listens.next() {
                        self.say(first, &mut listens).await;
                    }
                }
                text = next_text(&mut left, &mut texts) => {
                    let Some(mut text) = text else { return };
                    while left.is_none()
                        && let Ok(next) = texts.try_recv()
                    {
                        left = join(&mut text, next);
                    }
                    for payload in payloads(text, &self.channel.own) {
                        self.notify(&self.channel.texts, &payload).await;
                    }
                }
            }
        }
    }

    /// Says a word, and as many more as fit into its notification.
    async fn say(&self, first: Word, more: &mut impl Iterator<Item = Word>) {
        let mut payload = self.channel.own.clone();
        push(&mut payload, &first);
        while payload.len() < PAYLOAD_BYTES
            && let Some(word) = more.next()
        {
            push(&mut payload, &word);
        }
        self.notify(&self.channel.words, &payload).await;
    }

    async fn notify(&self, channel: &str, payload: &str) {
        let sent = sql::query(NOTIFY).bind(channel).bind(payload).execute(&self.pool).await;
        if let Err(error) = sent {
            tracing::debug!("a wake-up for other servers is lost: {error}");
        }
    }
}

/// The text that was left from the last time, else the next one.
async fn next_text(
    left: &mut Option<(SessionId, Delta)>,
    texts: &mut mpsc::Receiver<(SessionId, Delta)>,
) -> Option<(SessionId, Delta)> {
    match left.take() {
        Some(text) => Some(text),
        None => texts.recv().await,
    }
}

fn push(payload: &mut String, word: &Word) {
    payload.push(SPACE);
    payload.push_str(&name(word));
}

/// Listens until the store is closed, which its other connections tell.
async fn listen(others: Pool, hearing: Hearing, channel: Channel, heard: Heard) {
    loop {
        let ended = tokio::select! {
            () = others.closed() => return,
            ended = follow(&hearing, &channel, &heard) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!("wake-ups of other servers are not heard: {error}");
            tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
        }
    }
}

/// Listens until the connection is lost.
async fn follow(hearing: &Hearing, channel: &Channel, heard: &Heard) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(&hearing.pool()).await?;
    listener.eager_reconnect(false);
    answered(listener.listen_all([channel.words.as_str(), channel.texts.as_str()])).await?;
    // Nobody knows what was missed until now.
    heard.hints.wake_all();
    loop {
        match timeout(hearing.quiet, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => hear(&notification, channel, heard),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            // A connection that is only listened to says nothing when it vanishes.
            Err(_) => {
                if let Err(error) = answered(sqlx::raw_sql(ARE_YOU_THERE).execute(&mut listener)).await {
                    tracing::warn!(
                        "the connection for wake-ups of other servers is gone, making another one: {error}"
                    );
                    return Err(error);
                }
            }
        }
    }
}

async fn answered<T>(asking: impl Future<Output = Result<T, sqlx::Error>> + Send) -> Result<T, sqlx::Error> {
    timeout(Duration::from_millis(GRACE_MS), asking).await.unwrap_or_else(|_| Err(late()))
}

fn hear(notification: &PgNotification, channel: &Channel, heard: &Heard) {
    if notification.channel() == channel.texts {
        if let Some(text) = LiveText::read(notification.payload(), &channel.own) {
            heard.deltas.publish(&text.session, text.delta);
        }
        return;
    }
    let mut words = notification.payload().split(SPACE);
    if words.next() == Some(&channel.own) {
        return;
    }
    let mut topics = Vec::new();
    for word in words.filter_map(word) {
        match word {
            Word::Changed(topic) => topics.push(topic),
            Word::Listens(session) => heard.deltas.want_elsewhere(&session),
        }
    }
    heard.hints.wake(&topics);
}

const LISTENS: &str = "text:";
const QUEUE: &str = "queue";
const AUDIT: &str = "audit";
const CREDENTIALS: &str = "credentials";
const BUDGET: &str = "budget:";

fn name(word: &Word) -> String {
    match word {
        Word::Changed(topic) => topic_name(topic),
        Word::Listens(session) => format!("{LISTENS}{session}"),
    }
}

/// The word of a name; none for one of another version.
fn word(name: &str) -> Option<Word> {
    match name.strip_prefix(LISTENS) {
        Some(session) => session.parse().ok().map(Word::Listens),
        None => topic(name).map(Word::Changed),
    }
}

/// A topic as it is sent: most are named by an id, whose beginning tells its kind.
fn topic_name(topic: &Topic) -> String {
    match topic {
        Topic::Queue => QUEUE.to_owned(),
        Topic::Audit => AUDIT.to_owned(),
        Topic::Credentials => CREDENTIALS.to_owned(),
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
        CREDENTIALS => return Some(Topic::Credentials),
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
    fn every_word_comes_back_from_its_name_and_no_other_text_is_one() {
        let topics = [
            Topic::Queue,
            Topic::Audit,
            Topic::Credentials,
            Topic::Run(RunId::new(1, [1; 10])),
            Topic::Session(SessionId::new(1, [2; 10])),
            Topic::Sandbox(SandboxId::new(1, [3; 10])),
            Topic::Server(ServerId::new(1, [4; 10])),
            Topic::Budget(ProjectId::default_project()),
        ];
        let listens = Word::Listens(SessionId::new(1, [2; 10]));
        for wanted in topics.into_iter().map(Word::Changed).chain([listens]) {
            assert!(!name(&wanted).contains(SPACE));
            assert_eq!(word(&name(&wanted)), Some(wanted));
        }
        for other in ["", "run", "run_x", "later:kind", "queue ", "text:", "text:run_x"] {
            assert_eq!(word(other), None, "{other}");
        }
    }
}
