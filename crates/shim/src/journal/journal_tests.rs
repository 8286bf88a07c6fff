use super::*;
use caisson_domain::protocol::{Ending, Outcome};
use futures_util::FutureExt;

fn record(text: &str) -> JournalRecord {
    let body = JournalBody::Text { text: text.to_owned(), cut_bytes: 0 };
    JournalRecord { run: RunId::new(1, [0; 10]), attempt: 1, body }
}

fn length(text: &str) -> u64 {
    serde_json::to_vec(&record(text)).unwrap().len() as u64 + 1
}

async fn next(journal: &Journal) -> Batch {
    journal.next_batch().await.unwrap()
}

fn texts(batch: &Batch) -> Vec<String> {
    let lines = batch.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let body = serde_json::from_slice::<JournalRecord>(line).unwrap().body;
            let JournalBody::Text { text, .. } = body else { panic!("{body:?}") };
            text
        })
        .collect()
}

#[tokio::test]
async fn what_is_written_is_sent_at_once_and_what_comes_meanwhile_goes_together() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    assert!(journal.next_batch().now_or_never().is_none());
    let end = journal.append(&record("a")).await.unwrap();
    assert_eq!(end, length("a"));
    let batch = next(&journal).await;
    assert_eq!((batch.offset, texts(&batch)), (0, vec!["a".to_owned()]));
    journal.append(&record("b")).await.unwrap();
    journal.append(&record("c")).await.unwrap();
    assert!(journal.acknowledge(end));
    let batch = next(&journal).await;
    assert_eq!((batch.offset, texts(&batch)), (end, vec!["b".to_owned(), "c".to_owned()]));
    assert!(!journal.acknowledge(end), "that is no news");
    // A part of a batch may be stored.
    journal.acknowledge(end + length("b"));
    assert_eq!(texts(&next(&journal).await), ["c"]);
    assert!(journal.flushed().now_or_never().is_none());
    journal.acknowledge(end + length("b") + length("c"));
    journal.flushed().await;
}

#[tokio::test]
async fn writers_wait_at_the_bound_and_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open_bounded(directory.path(), 2 * length("a")).unwrap();
    journal.append(&record("a")).await.unwrap();
    journal.append(&record("b")).await.unwrap();
    assert!(!journal.is_full());
    let third = record("c");
    let mut waiting = Box::pin(journal.append(&third));
    assert!((&mut waiting).now_or_never().is_none());
    assert!(journal.is_full());
    journal.acknowledge(length("a"));
    assert_eq!(waiting.await.unwrap(), 3 * length("a"));
    assert!(!journal.is_full());
    assert_eq!(texts(&next(&journal).await), ["b", "c"]);
    // One that stops waiting has written nothing, and is not counted any more.
    let fourth = record("d");
    let mut given_up = Box::pin(journal.append(&fourth));
    assert!((&mut given_up).now_or_never().is_none());
    drop(given_up);
    assert!(!journal.is_full());
    assert_eq!(texts(&next(&journal).await), ["b", "c"]);
}

#[tokio::test]
async fn a_new_process_goes_on_where_the_gateway_stands() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    let first = journal.append(&record("a")).await.unwrap();
    journal.append(&record("b")).await.unwrap();
    journal.acknowledge(first);
    drop(journal);
    // What was acknowledged is not known any more: the gateway says it.
    let journal = Journal::open(directory.path()).unwrap();
    assert_eq!(next(&journal).await.offset, 0);
    assert!(journal.acknowledge(first));
    let batch = next(&journal).await;
    assert_eq!((batch.offset, texts(&batch)), (first, vec!["b".to_owned()]));
}

#[tokio::test]
async fn journals_that_do_not_fit_together_lose_nothing_that_is_here() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    journal.append(&record("a")).await.unwrap();
    // The gateway has more than was ever written here.
    assert!(journal.acknowledge(10_000));
    let batch = next(&journal).await;
    assert_eq!((batch.offset, texts(&batch)), (10_000, vec!["a".to_owned()]));
    journal.acknowledge(10_000 + length("a"));
    journal.flushed().await;
    // The gateway was set back before what is still here.
    journal.append(&record("b")).await.unwrap();
    assert!(journal.acknowledge(5));
    let batch = next(&journal).await;
    assert_eq!((batch.offset, texts(&batch)), (5, vec!["b".to_owned()]));
}

#[tokio::test]
async fn a_run_whose_last_record_is_written_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    assert_eq!(journal.progress(), None);
    let run = RunId::new(1, [0; 10]);
    let started = Progress { run: run.clone(), attempt: 1, stage: Stage::Started };
    journal.set_progress(&started).unwrap();
    journal.append(&record("a")).await.unwrap();
    assert_eq!(Journal::open(directory.path()).unwrap().progress(), Some(started));
    let outcome = Outcome { ending: Ending::Completed, result: None, head: None, pushed: false };
    let last = JournalRecord { run: run.clone(), attempt: 1, body: JournalBody::Finished(outcome) };
    journal.append(&last).await.unwrap();
    let finished = Progress { run, attempt: 1, stage: Stage::Finished };
    assert_eq!(Journal::open(directory.path()).unwrap().progress(), Some(finished));
}
