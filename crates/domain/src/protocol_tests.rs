//! Words of the door as they are on the wire.

use super::*;
use crate::run::FailureKind;

fn round_trip<T>(value: &T) -> String
where
    T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
{
    let json = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value);
    json
}

#[test]
fn records_are_one_line_each_and_parse_back() {
    let run = RunId::new(1, [0; 10]);
    let bodies = [
        JournalBody::Phase { phase: Phase::Agent },
        JournalBody::AgentStarted,
        JournalBody::Line { line: "{\"type\":\"x\\n\"}\r".to_owned() },
        JournalBody::Checks(vec![CheckResult {
            name: CheckName::Test,
            command: "make test".to_owned(),
            outcome: crate::check_result::CheckOutcome::Failed,
            exit_code: Some(2),
            output: Some("one\ntwo".to_owned()),
            turns: 1,
        }]),
        JournalBody::Finished(Outcome {
            ending: Ending::OtherImage(ImageWish { image: "debian:12".to_owned(), line: Some(3) }),
            result: None,
            head: None,
            pushed: false,
            kept: false,
        }),
        JournalBody::Finished(Outcome {
            ending: Ending::Failed(Failure::new(FailureKind::RepoAuth, "no\nnewline")),
            result: None,
            head: None,
            pushed: false,
            kept: false,
        }),
    ];
    for body in bodies {
        let json = round_trip(&JournalRecord { run: run.clone(), attempt: 1, body });
        assert!(!json.contains('\n'));
    }
}

#[test]
fn work_has_a_kind_that_an_older_shim_can_name() {
    assert_eq!(round_trip(&Work::Exit), r#"{"kind":"exit"}"#);
}
