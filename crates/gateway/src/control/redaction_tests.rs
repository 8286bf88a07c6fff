use std::collections::BTreeSet;

use caisson_domain::redact::MARKER;
use caisson_domain::run::FailureKind;
use serde_json::json;

use super::*;

const SECRET: &str = "sk-ant-canary-7f3a9b2c5d8e1f40";

fn redactor() -> Arc<Redactor> {
    Arc::new(Redactor::new(&[SECRET.to_owned().into()]))
}

fn completed(result: Option<String>, head: Option<String>) -> JournalBody {
    JournalBody::Finished(Outcome { ending: Ending::Completed, result, head, pushed: false, kept: false })
}

fn outcome(ending: Ending) -> JournalBody {
    JournalBody::Finished(Outcome { ending, result: None, head: None, pushed: false, kept: false })
}

/// The place of a record's kind in the list below; a new kind needs one, and a record there.
fn place(body: &JournalBody) -> usize {
    match body {
        JournalBody::Prepared { .. } => 0,
        JournalBody::Steered(_) => 1,
        JournalBody::Line { .. } => 2,
        JournalBody::Text { .. } => 3,
        JournalBody::AgentExited { .. } => 4,
        JournalBody::Commit { .. } => 5,
        JournalBody::Output { .. } => 6,
        JournalBody::Checks(_) => 7,
        JournalBody::ApprovalRequested { .. } => 8,
        JournalBody::ApprovalWithdrawn { .. } => 9,
        JournalBody::Note { .. } => 10,
        JournalBody::Finished(_) => 11,
        // They have no text.
        JournalBody::Phase { .. } | JournalBody::AgentStarted | JournalBody::Input { .. } => usize::MAX,
    }
}

/// How many kinds of records have texts.
const PLACES: usize = 12;

/// Records of every kind with the secret in one text of theirs.
fn told(said: &str) -> Vec<JournalBody> {
    let (said, branch) = (said.to_owned(), Some(SECRET.parse().unwrap()));
    let failure = Failure::new(FailureKind::AgentError, "");
    let author = caisson_domain::protocol::MessageAuthor::Agent;
    let commit = |commit: &str, message: &str| JournalBody::Commit {
        commit: commit.into(),
        message: message.into(),
        author,
    };
    let check = |command: &str, output: Option<&str>| {
        JournalBody::Checks(vec![CheckResult {
            name: caisson_domain::repository_file::CheckName::Test,
            command: command.to_owned(),
            outcome: caisson_domain::check_result::CheckOutcome::Failed,
            exit_code: Some(1),
            output: output.map(str::to_owned),
            turns: 0,
        }])
    };
    let asked = |[request, tool, description, input]: [&str; 4]| JournalBody::ApprovalRequested {
        request: request.to_owned(),
        tool: tool.to_owned(),
        description: Some(description.to_owned()),
        input: json!({ "content": input }).to_string(),
        cut_bytes: 0,
    };
    vec![
        JournalBody::Prepared { base_commit: Some(said.clone()), branch: None },
        JournalBody::Prepared { base_commit: None, branch },
        JournalBody::Line { line: json!({ "text": said }).to_string() },
        JournalBody::Text { text: said.clone(), cut_bytes: 0 },
        JournalBody::Text { text: format!("a {}", &SECRET[..20]), cut_bytes: 10 },
        JournalBody::AgentExited { code: Some(1), signal: None, stderr: said.clone() },
        commit(&said, ""),
        commit("", &said),
        JournalBody::Output { output: json!({ "a": [said] }) },
        check(&said, None),
        check("make", Some(&said)),
        asked([&said, "", "", ""]),
        asked(["", &said, "", ""]),
        asked(["", "", &said, ""]),
        asked(["", "", "", &said]),
        JournalBody::ApprovalWithdrawn { request: said.clone() },
        JournalBody::Note { level: caisson_domain::protocol::NoteLevel::Info, message: said.clone() },
        outcome(Ending::Failed(Failure::new(FailureKind::AgentError, said.clone()))),
        outcome(Ending::Failed(failure.with_evidence(said.clone()))),
        outcome(Ending::OtherImage(ImageWish { image: said.clone(), line: None })),
        completed(Some(said.clone()), None),
        completed(None, Some(said)),
    ]
}

/// The same of whose files steer the agent.
fn steered(said: &str) -> [JournalBody; 4] {
    let none = Steering {
        anchor: None,
        commit: String::new(),
        settings: false,
        files: Vec::new(),
        files_count: 0,
        replaced: Vec::new(),
        replaced_count: 0,
    };
    [
        Steering { anchor: Some(SECRET.parse().unwrap()), ..none.clone() },
        Steering { commit: said.to_owned(), ..none.clone() },
        Steering { files: vec![said.to_owned()], ..none.clone() },
        Steering { replaced: vec![said.to_owned()], ..none },
    ]
    .map(JournalBody::Steered)
}

#[test]
fn every_text_of_every_record_is_cleaned() {
    let said = format!("a {SECRET} b");
    let bodies: Vec<_> = told(&said).into_iter().chain(steered(&said)).collect();
    let places: BTreeSet<usize> = bodies.iter().map(place).collect();
    assert_eq!(places, (0..PLACES).collect(), "every kind is there");
    for body in bodies {
        let redactor = redactor();
        let mut cleaner = Cleaner::new(&redactor);
        let clean = serde_json::to_string(&cleaner.body(body)).unwrap();
        assert!(cleaner.found && !clean.contains("canary-7f"), "{clean}");
    }
    let redactor = redactor();
    let mut cleaner = Cleaner::new(&redactor);
    let line = "{\"b\" : 1,  \"a\":\"\\u0000\"}".to_owned();
    assert_eq!(cleaner.body(JournalBody::Line { line: line.clone() }), JournalBody::Line { line });
    assert!(!cleaner.found);
}

#[test]
fn a_secret_over_several_pieces_of_live_text_is_cleaned_and_other_runs_begin_anew() {
    let (live, redactor) = (LiveText::default(), redactor());
    let run = RunId::new(1, [1; 10]);
    let push = |kind, piece: &str| live.push((&run, kind), piece, &redactor);
    let (first, second) = SECRET.split_at(11);
    let shown = [push(DeltaKind::Text, "see "), push(DeltaKind::Text, first), push(DeltaKind::Text, second)];
    assert_eq!(shown.concat(), format!("see {MARKER}"));
    assert_eq!(push(DeltaKind::Text, first), "");
    assert_eq!(push(DeltaKind::Thinking, "other"), "other");
    assert_eq!(push(DeltaKind::Text, second), second, "a part without its beginning is no secret");
}
