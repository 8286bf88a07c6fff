use super::*;
use caisson_domain::id::RunId;
use caisson_domain::protocol::JournalBody;
use futures_util::FutureExt;

fn record(text: &str) -> JournalRecord {
    let body = JournalBody::Text { text: text.to_owned(), cut_bytes: 0 };
    JournalRecord { run: RunId::new(1, [0; 10]), attempt: 1, body }
}

fn length(text: &str) -> u64 {
    serde_json::to_vec(&record(text)).unwrap().len() as u64 + 1
}

async fn next(journal: &Journal) -> Batch {
    journal.next_batch().await
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
async fn what_is_sent_is_what_was_written_whatever_becomes_of_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    journal.append(&record("a")).await.unwrap();
    let forged = directory.path().join("forged");
    std::fs::write(&forged, serde_json::to_vec(&record("x")).unwrap()).unwrap();
    let segments = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".jsonl");
    for entry in std::fs::read_dir(directory.path()).unwrap().flatten() {
        if segments(&entry.file_name()) {
            std::fs::rename(&forged, entry.path()).unwrap();
        }
    }
    let end = journal.append(&record("b")).await.unwrap();
    assert_eq!(texts(&next(&journal).await), ["a", "b"]);
    std::fs::remove_dir_all(directory.path()).unwrap();
    assert_eq!(texts(&next(&journal).await), ["a", "b"]);
    assert!(journal.acknowledge(end));
    journal.flushed().await;
}

#[tokio::test]
async fn a_batch_ends_with_the_line_that_reaches_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    let long = "x".repeat(JOURNAL_BATCH_BYTES - usize::try_from(length("a") + length("")).unwrap());
    for text in ["a", &long, "b"] {
        journal.append(&record(text)).await.unwrap();
    }
    let batch = next(&journal).await;
    assert_eq!((batch.lines.len(), texts(&batch).len()), (JOURNAL_BATCH_BYTES, 2));
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
