use super::*;
use proptest::prelude::*;

fn git(kind: &str, subject: &str) -> GitWork {
    GitWork {
        base: None,
        anchor: None,
        branch: "b".parse().unwrap(),
        go_on: false,
        start: None,
        start_branch: None,
        is_first: false,
        since: None,
        revisions: std::collections::BTreeMap::new(),
        author_name: "A".to_owned(),
        author_email: "a@example.com".to_owned(),
        commit_type: kind.to_owned(),
        commit_subject: subject.to_owned(),
    }
}

#[test]
fn a_message_is_checked_against_every_bound() {
    let subject = |chars: usize| format!("fix: {}", "ä".repeat(chars - 5));
    assert_eq!(check(&subject(SUBJECT_CHARS)), Ok(()));
    assert_eq!(check(&subject(SUBJECT_CHARS + 1)), Err(Fault::LongSubject(SUBJECT_CHARS + 1)));
    let body = |bytes: usize| format!("fix: x\n\n{}", "b".repeat(bytes - 1));
    assert_eq!(check(&body(BODY_BYTES)), Ok(()));
    assert_eq!(check(&body(BODY_BYTES + 1)), Err(Fault::LongBody(BODY_BYTES + 1)));
    assert_eq!(check(" \n"), Err(Fault::Empty));
    assert_eq!(check("fix: \u{1b}[31mred"), Err(Fault::Control));
    for bad in ["Fixed the bug", "fix the bug", "fix:", "fix: x\nno empty line"] {
        assert!(matches!(check(bad), Err(Fault::Form(_))), "{bad}");
    }
    for good in ["fix: x", "feat(api)!: y\n\nbecause\n\nRefs: 1", "docs: z\n\n- a\n\t- b"] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
}

#[test]
fn the_answer_is_taken_out_of_its_fence_or_as_it_is() {
    for answer in [
        "fix: x",
        "\nfix: x  \n",
        "```\nfix: x\n```",
        "Here it is:\n\n```text\nfix: x\n```\nGood?",
        "fix: x\r\n",
    ] {
        assert_eq!(from_answer(answer), "fix: x", "{answer}");
    }
    assert_eq!(from_answer("fix: x\n\nbody  \nmore"), "fix: x\n\nbody\nmore");
}

#[test]
fn the_question_names_a_commit_message_and_is_bounded() {
    let question = question(&"a.txt | 1 +\n".repeat(10_000));
    assert!(question.contains("commit message") && question.len() < CHANGES_BYTES + 1000);
    let again = question_for_commit("wip", " a.txt | 1 +", &Fault::Empty);
    assert!(again.contains("commit message") && again.contains("wip") && again.contains("a.txt"));
    assert!(question_again(&Fault::Control).contains("control characters"));
}

#[test]
fn a_message_that_stands_in_is_always_one_that_can_be_kept() {
    assert_eq!(fallback(&git("fix", "the sum of an empty list")), "fix: the sum of an empty list");
    assert_eq!(fallback(&git("fix", "two\nlines\u{7}")), "fix: two lines");
    assert_eq!(fallback(&git("no type", "x")), "chore: x");
    assert_eq!(fallback(&git("fix", " ")), "chore: update the files");
    let long = fallback(&git("fix", &"word ".repeat(50)));
    assert!(long.chars().count() <= FALLBACK_CHARS && long.ends_with("word"), "{long}");
}

#[test]
fn a_faulty_message_keeps_its_words() {
    let git = git("fix", "x");
    assert_eq!(
        reworded("Repair the parser\n\nIt was broken.", &git),
        "fix: Repair the parser\n\nIt was broken."
    );
    assert_eq!(
        reworded("feat: add it\nwithout an empty line", &git),
        "feat: add it\n\nwithout an empty line"
    );
    assert_eq!(reworded("", &git), "fix: x");
    let long = reworded(&format!("feat: {}", "word ".repeat(40)), &git);
    assert!(long.starts_with("feat: word") && long.chars().count() <= SUBJECT_CHARS);
}

proptest! {
    #[test]
    fn whatever_an_agent_or_a_workflow_says_the_result_can_be_kept(
        message in "\\PC{0,300}|[\\x00-\\x7f]{0,300}", kind in "[a-z]{0,8}|\\PC{0,5}", subject in "\\PC{0,200}"
    ) {
        let git = git(&kind, &subject);
        prop_assert_eq!(check(&reworded(&message, &git)), Ok(()));
        prop_assert_eq!(check(&fallback(&git)), Ok(()));
    }
}
