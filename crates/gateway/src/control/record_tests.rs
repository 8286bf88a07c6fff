use super::*;
use caisson_domain::protocol::{MessageAuthor, StopReason};
use caisson_domain::run::{FailureKind, Phase};
use caisson_domain::trust::STEERING_PATHS;

fn run() -> RunId {
    RunId::new(1, [7; 10])
}

fn line(body: JournalBody) -> Vec<u8> {
    let mut line = serde_json::to_vec(&JournalRecord { run: run(), attempt: 2, body }).unwrap();
    line.push(b'\n');
    line
}

/// As without any secret.
fn clean(batch: &[u8]) -> Batch {
    read(batch, &Redactor::default())
}

fn one(body: JournalBody) -> JournalEntry {
    let mut entries = clean(&line(body)).into_entries(None);
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn data(entry: &JournalEntry) -> serde_json::Value {
    serde_json::from_str(entry.event.as_ref().unwrap().data.get()).unwrap()
}

fn kind(entry: &JournalEntry) -> Option<EventKind> {
    entry.event.as_ref().map(|event| event.kind)
}

fn steering(commit: &str, paths: usize) -> Steering {
    Steering {
        anchor: Some("main".parse().unwrap()),
        commit: commit.to_owned(),
        settings: false,
        files: vec!["CLAUDE.md".to_owned()],
        files_count: 1,
        replaced: vec!["x".to_owned(); paths],
        replaced_count: paths as u64,
    }
}

#[test]
fn each_kind_becomes_its_event_and_effect() {
    let commit = "a".repeat(40);
    let prepared = one(JournalBody::Prepared { base_commit: Some(commit.clone()), branch: None });
    assert_eq!(kind(&prepared), Some(EventKind::WorkspacePrepared));
    assert!(matches!(prepared.effect, JournalEffect::Prepared { base_commit: Some(_) }));
    let phase = one(JournalBody::Phase { phase: Phase::Agent });
    assert_eq!((kind(&phase), phase.attempt), (Some(EventKind::RunPhase), 2));
    assert!(matches!(phase.effect, JournalEffect::Phase(Phase::Agent)));
    let steered = one(JournalBody::Steered(steering("not a commit", STEERING_PATHS + 1)));
    assert_eq!(kind(&steered), Some(EventKind::WorkspaceSteered));
    let told = data(&steered);
    assert_eq!(told["commit"], json!(null));
    assert_eq!(told["replaced"].as_array().unwrap().len(), STEERING_PATHS);
    assert_eq!((&told["replaced_count"], &told["anchor"]), (&json!(101), &json!("main")));
    let started = one(JournalBody::AgentStarted);
    assert!(matches!(started.effect, JournalEffect::AgentStarted));
    assert_eq!(data(&started), json!({"attempt": 2}));
    let exited = one(JournalBody::AgentExited { code: None, signal: Some(9), stderr: "e".to_owned() });
    assert_eq!(data(&exited), json!({"code": null, "signal": 9, "stderr": "e"}));
    let author = MessageAuthor::Fallback;
    let committed = one(JournalBody::Commit { commit, message: "fix: x".to_owned(), author });
    assert_eq!(kind(&committed), Some(EventKind::GitCommit));
    assert_eq!(data(&committed)["author"], "fallback");
    let note = one(JournalBody::Note { level: NoteLevel::Info, message: "m".to_owned() });
    assert_eq!(data(&note), json!({"level": "info", "message": "m"}));
    let ending = Ending::Stopped(StopReason::Cancel);
    let finished =
        one(JournalBody::Finished(Outcome { ending, result: None, head: None, pushed: false, kept: false }));
    assert!(finished.event.is_none());
    assert!(matches!(finished.effect, JournalEffect::Finished(_)));
}

#[test]
fn an_agent_line_keeps_its_bytes_and_anything_else_is_text() {
    let raw = "{\"b\" : 1,  \"a\":\"\\u0000\"}";
    let kept = one(JournalBody::Line { line: raw.to_owned() });
    assert_eq!(kind(&kept), Some(EventKind::AgentLine));
    assert_eq!(kept.event.unwrap().data.get(), raw);
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(400), "]".repeat(400));
    let unreadable = ["{\"n\":1e999}", "{\"s\":\"\\ud83d\"}", &deep];
    for text in ["not json", "[1]", "{\"a\":", "{\n}", "{}{}", ""].into_iter().chain(unreadable) {
        let entry = one(JournalBody::Line { line: text.to_owned() });
        assert_eq!(kind(&entry), Some(EventKind::AgentText), "{text}");
        assert_eq!(data(&entry)["text"], text);
    }
}

#[test]
fn a_line_longer_than_its_bound_is_cut_and_counted() {
    let object = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    let fits = one(JournalBody::Line { line: object(JOURNAL_LINE_BYTES) });
    assert_eq!(kind(&fits), Some(EventKind::AgentLine));
    let long = one(JournalBody::Line { line: object(JOURNAL_LINE_BYTES + 5) });
    assert_eq!(data(&long)["cut_bytes"], 5);
    let text = one(JournalBody::Text { text: "x".repeat(JOURNAL_LINE_BYTES + 1), cut_bytes: 10 });
    assert_eq!(data(&text)["cut_bytes"], 11);
}

#[test]
fn lines_not_understood_become_notes_at_their_place() {
    let mut batch = line(JournalBody::AgentStarted);
    batch.extend(b"garbage \xff\n\n{\"run\":\"x\"}\n");
    let unknown = format!("{{\"run\":\"{}\",\"attempt\":2,\"kind\":\"newer\",\"data\":{{}}}}\n", run());
    batch.extend(unknown.as_bytes());
    batch.extend(line(JournalBody::Phase { phase: Phase::Publish }));
    let read = clean(&batch);
    assert_eq!(read.bytes, batch.len() as u64);
    assert!(!read.is_understood());
    let entries = read.into_entries(Some((&run(), 2)));
    let messages: Vec<_> = entries[1..4].iter().map(|entry| data(entry)["message"].to_string()).collect();
    assert!(messages[0].contains("journal line 2 not understood: garbage"), "{messages:?}");
    assert!(messages[1].contains("journal line 4") && messages[2].contains("journal line 5"));
    assert_eq!(data(&entries[1])["level"], "warn");
    assert_eq!(kind(&entries[4]), Some(EventKind::RunPhase));
}

#[test]
fn notes_of_a_batch_are_bounded_and_the_rest_is_counted() {
    let batch = format!("{}\n", "x".repeat(EXCERPT_BYTES * 2)).repeat(JOURNAL_NOTES + 3);
    let entries = clean(batch.as_bytes()).into_entries(Some((&run(), 1)));
    assert_eq!(entries.len(), JOURNAL_NOTES + 1);
    assert!(data(&entries[0])["message"].as_str().unwrap().len() < EXCERPT_BYTES + 50);
    assert!(data(&entries[JOURNAL_NOTES])["message"].as_str().unwrap().starts_with("3 more"));
    assert!(clean(batch.as_bytes()).into_entries(None).is_empty());
    let exact = "x\n".repeat(JOURNAL_NOTES);
    assert_eq!(clean(exact.as_bytes()).into_entries(Some((&run(), 1))).len(), JOURNAL_NOTES);
}

#[test]
fn a_batch_of_more_lines_than_the_bound_is_taken_in_part() {
    let record = line(JournalBody::AgentStarted);
    let batch = record.repeat(JOURNAL_BATCH_LINES + 1);
    let read = clean(&batch);
    assert_eq!(read.bytes, (record.len() * JOURNAL_BATCH_LINES) as u64);
    assert_eq!(read.into_entries(None).len(), JOURNAL_BATCH_LINES);
}

#[test]
fn an_outcome_is_cut_to_its_bounds_and_judged_by_us() {
    let mut failure = Failure::new(FailureKind::PolicyDenied, "m".repeat(RESULT_TEXT_BYTES + 1));
    failure.evidence = Some("e".repeat(RESULT_TEXT_BYTES + 1));
    failure.retry_can_help = true;
    let outcome = Outcome {
        ending: Ending::Failed(failure),
        result: Some("r".repeat(RESULT_TEXT_BYTES + 1)),
        head: Some("--force".to_owned()),
        pushed: true,
        kept: true,
    };
    let JournalEffect::Finished(kept) = one(JournalBody::Finished(outcome)).effect else {
        panic!("not finished")
    };
    let Ending::Failed(failure) = kept.ending else { panic!("not failed") };
    assert!(!failure.retry_can_help);
    assert_eq!(failure.message.len(), RESULT_TEXT_BYTES);
    assert_eq!(failure.evidence.unwrap().len(), RESULT_TEXT_BYTES);
    assert_eq!(kept.result.unwrap().len(), RESULT_TEXT_BYTES);
    assert_eq!(kept.head, None);
}

#[test]
fn a_note_is_cut_to_its_bound() {
    let message = |bytes: usize| {
        let note = one(JournalBody::Note { level: NoteLevel::Warn, message: "m".repeat(bytes) });
        data(&note)["message"].as_str().unwrap().len()
    };
    assert_eq!((message(NOTE_BYTES), message(NOTE_BYTES + 1)), (NOTE_BYTES, NOTE_BYTES));
}

#[test]
fn a_commit_that_is_none_is_left_out() {
    let prepared = one(JournalBody::Prepared { base_commit: Some("HEAD".to_owned()), branch: None });
    assert!(matches!(prepared.effect, JournalEffect::Prepared { base_commit: None }));
    assert!(is_commit(&"0".repeat(64)) && !is_commit(&"0".repeat(41)) && !is_commit(&"A".repeat(40)));
}

#[test]
fn what_is_told_of_checks_and_images_is_cut_at_its_bounds() {
    use caisson_domain::check_result::{CHECK_COMMAND_BYTES, CHECK_OUTPUT_BYTES, CheckOutcome};
    use caisson_domain::repository_file::CheckName;
    let result = |bytes: usize| CheckResult {
        name: CheckName::Lint,
        command: "c".repeat(bytes),
        outcome: CheckOutcome::Failed,
        exit_code: Some(1),
        output: Some("o".repeat(bytes)),
        turns: 0,
    };
    let all = |count: usize, bytes| one(JournalBody::Checks(vec![result(bytes); count])).effect;
    let JournalEffect::Checks(kept) = all(CHECK_RESULTS + 1, CHECK_OUTPUT_BYTES + 1) else { panic!() };
    assert_eq!(kept.len(), CHECK_RESULTS);
    assert_eq!(kept[0].command.len(), CHECK_COMMAND_BYTES);
    assert_eq!(kept[0].output.as_ref().map(String::len), Some(CHECK_OUTPUT_BYTES));
    let whole = result(CHECK_COMMAND_BYTES);
    let JournalEffect::Checks(kept) = all(CHECK_RESULTS, CHECK_COMMAND_BYTES) else { panic!() };
    assert_eq!(kept, vec![whole; CHECK_RESULTS]);
    let long = ImageWish { image: "a".repeat(IMAGE_BYTES + 1), line: Some(1) };
    let ending = Ending::OtherImage(long);
    let outcome = Outcome { ending, result: None, head: None, pushed: false, kept: false };
    let JournalEffect::Finished(outcome) = one(JournalBody::Finished(outcome)).effect else { panic!() };
    let Ending::OtherImage(kept) = outcome.ending else { panic!() };
    assert_eq!(kept.image.len(), IMAGE_BYTES);
}
