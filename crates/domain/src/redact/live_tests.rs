use super::*;
use crate::redact::MARKER;

const NOW: i64 = 1_700_000_000_000;

fn secret(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}

fn project(name: &str) -> ProjectId {
    name.parse().unwrap()
}

fn id(number: u8) -> CredentialId {
    CredentialId::new(1, [number; 10])
}

fn held(number: u8, version: i64, text: &str) -> Held {
    Held { credential: id(number), origin: Origin::Stored, version, secrets: vec![secret(text)] }
}

fn seen(live: &LiveSecrets, name: &str, text: &str) -> String {
    live.of(&project(name)).redactor().text(text).into_owned()
}

#[test]
fn replaced_secrets_are_live_for_every_clone_and_every_project_and_never_shown() {
    let live = LiveSecrets::default();
    let other = live.clone();
    assert_eq!(seen(&other, "a", "the-canary-1"), "the-canary-1");
    live.keep(&project("a"), held(1, 1, "stored-in-a"), NOW);
    live.replace(&[secret("the-canary-1")]);
    for name in ["a", "b"] {
        assert_eq!(seen(&other, name, "the-canary-1"), MARKER);
    }
    assert!(!format!("{live:?} {:?}", live.of(&project("a"))).contains("canary"));
    live.replace(&[]);
    assert_eq!(seen(&other, "a", "the-canary-1 stored-in-a"), "the-canary-1 [redacted]");
}

#[test]
fn a_project_is_looked_through_for_its_own_secrets_and_the_servers_alone() {
    let live = LiveSecrets::new(&[secret("of-the-server")]);
    live.keep(&project("a"), held(1, 1, "secret-of-a"), NOW);
    live.keep(&project("b"), held(2, 1, "secret-of-b"), NOW);
    let text = "of-the-server secret-of-a secret-of-b";
    assert_eq!(seen(&live, "a", text), "[redacted] [redacted] secret-of-b");
    assert_eq!(seen(&live, "b", text), "[redacted] secret-of-a [redacted]");
    assert_eq!(seen(&live, "c", text), "[redacted] secret-of-a secret-of-b");
    assert_eq!(live.text(text), "[redacted] [redacted] [redacted]", "the log is everybody's");
    let (_, all) = live.of(&project("a")).now();
    assert_eq!(
        all.iter().map(ExposeSecret::expose_secret).collect::<Vec<_>>(),
        ["of-the-server", "secret-of-a"]
    );
}

#[test]
fn secrets_of_two_projects_that_overlap_are_gone_from_the_log_altogether() {
    let live = LiveSecrets::default();
    live.keep(&project("a"), held(1, 1, "abcdefgh"), NOW);
    live.keep(&project("b"), held(2, 1, "abcdefgh-and-more"), NOW);
    live.keep(&project("c"), held(3, 1, "more-behind"), NOW);
    assert_eq!(live.text("x abcdefgh-and-more-behind y"), "x [redacted] y");
    assert!(matches!(live.text("nothing"), Cow::Borrowed(_)));
}

#[test]
fn large_old_secrets_of_one_project_leave_room_for_those_of_all_others() {
    let live = LiveSecrets::default();
    let large = |number: u8| held(number, 1, &format!("{number:03}").repeat(16 * 1024 / 3));
    let listed: Vec<CredentialId> = (0..8).map(id).collect();
    live.update(&project("old"), &listed, (0..8).map(large).collect(), NOW);
    live.keep(&project("old"), held(250, 1, "its-newest-secret"), NOW);
    live.keep(&project("new"), held(251, 1, "secret-of-another"), NOW);
    assert_eq!(seen(&live, "old", "its-newest-secret"), MARKER);
    assert_eq!(seen(&live, "new", "secret-of-another"), MARKER);
    assert_eq!(live.text("its-newest-secret secret-of-another"), "[redacted] [redacted]");
}

#[test]
fn a_rotated_secret_is_looked_for_until_its_time_is_over() {
    let live = LiveSecrets::default();
    let a = project("a");
    live.keep(&a, held(1, 1, "first-value"), NOW);
    live.forget(NOW + 10 * GRACE_MS);
    assert_eq!(seen(&live, "a", "first-value"), MARKER, "what is live has no end");
    live.keep(&a, held(1, 2, "second-value"), NOW);
    live.keep(&a, held(1, 2, "second-value"), NOW + GRACE_MS / 2);
    live.forget(NOW + GRACE_MS - 1);
    assert_eq!(seen(&live, "a", "first-value second-value"), "[redacted] [redacted]");
    live.forget(NOW + GRACE_MS);
    assert_eq!(seen(&live, "a", "first-value second-value"), "first-value [redacted]");
}

#[test]
fn a_removed_credentials_secrets_leave_with_what_was_issued_for_it() {
    let live = LiveSecrets::default();
    let a = project("a");
    let token = Held { origin: Origin::Issued, ..held(1, NOW, "issued-token") };
    live.update(&a, &[id(1), id(2)], vec![held(1, 1, "private-key"), held(2, 1, "the-other-one")], NOW);
    live.keep(&a, token, NOW);
    let text = "private-key issued-token the-other-one";
    // One that could not be opened keeps what is known of it.
    live.update(&a, &[id(2)], Vec::new(), NOW);
    live.update(&a, &[id(2)], Vec::new(), NOW + GRACE_MS - 1);
    assert_eq!(seen(&live, "a", text), "[redacted] [redacted] [redacted]");
    live.update(&a, &[id(2)], Vec::new(), NOW + GRACE_MS);
    assert_eq!(seen(&live, "a", text), "private-key issued-token [redacted]");
    live.update(&a, &[], Vec::new(), NOW + GRACE_MS);
    live.forget(NOW + 2 * GRACE_MS);
    assert_eq!(seen(&live, "a", text), text);
    assert!(live.read().projects.is_empty(), "nothing is left of it");
}

#[test]
fn a_value_that_was_read_late_does_not_push_a_newer_one_out() {
    let live = LiveSecrets::default();
    let a = project("a");
    live.keep(&a, held(1, 2, "second-value"), NOW);
    live.keep(&a, held(1, 1, "first-value"), NOW);
    assert_eq!(seen(&live, "a", "first-value second-value"), "[redacted] [redacted]");
    live.forget(NOW + GRACE_MS);
    assert_eq!(seen(&live, "a", "first-value second-value"), "first-value [redacted]");
}

#[test]
fn so_many_earlier_values_are_looked_for_and_no_more() {
    let live = LiveSecrets::default();
    let values: Vec<String> = (0..EARLIER + 2).map(|number| format!("value-number-{number}")).collect();
    for (version, value) in (1..).zip(&values) {
        live.keep(&project("a"), held(1, version, value), NOW);
    }
    let shown: Vec<bool> = values.iter().map(|value| seen(&live, "a", value) == *value).collect();
    assert_eq!(shown, [vec![true], vec![false; EARLIER + 1]].concat());
}

#[test]
fn earlier_values_have_bounded_room_but_for_the_newest_two() {
    let shown = |bytes: usize, values: usize| {
        let live = LiveSecrets::default();
        let value = |number: usize| format!("value{number:03}").repeat(bytes / 8) + &"z".repeat(bytes % 8);
        let values: Vec<String> = (0..values).map(value).collect();
        for (version, value) in (1..).zip(&values) {
            live.keep(&project("a"), held(1, version, value), NOW);
        }
        values.iter().filter(|value| seen(&live, "a", value) == **value).count()
    };
    let quarter = EARLIER_BYTES / 4;
    assert_eq!(shown(quarter, 5), 0, "four earlier ones that fit exactly");
    assert_eq!(shown(quarter, 6), 1);
    assert_eq!(shown(quarter + 1, 5), 1);
    assert_eq!(shown(EARLIER_BYTES + 1, 4), 1, "the newest two are looked for in any case");
}

#[test]
fn a_clock_that_goes_back_keeps_nothing_for_ever() {
    let live = LiveSecrets::default();
    live.keep(&project("a"), held(1, 1, "first-value"), NOW);
    live.keep(&project("a"), held(1, 2, "second-value"), NOW);
    live.forget(NOW - 5 * GRACE_MS);
    live.forget(NOW - 4 * GRACE_MS);
    assert_eq!(seen(&live, "a", "first-value"), "first-value");
}
