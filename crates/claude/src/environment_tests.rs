use super::*;

const SPEC: EnvironmentSpec<'static> = EnvironmentSpec {
    home: "/home/agent",
    profiles: "/home/agent/.caisson/profiles",
    path: "/usr/local/bin:/usr/bin:/bin",
    tmpdir: "/tmp",
    base_url: "http://127.0.0.1:4180/model",
    agent_grant: "grant-1",
    proxy_url: None,
    extra: &[],
};

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn refused(extra: &[(&str, &str)]) -> Vec<(String, Refusal)> {
    match environment(&EnvironmentSpec { extra: &pairs(extra), ..SPEC }) {
        Err(EnvironmentError::Refused(refused)) => refused,
        made => panic!("{made:?}"),
    }
}

#[test]
fn the_environment_is_made_from_nothing() {
    let extra = pairs(&[("CI", "true"), ("API_TIMEOUT_MS", "60000")]);
    let spec = EnvironmentSpec { proxy_url: Some("http://127.0.0.1:4180"), extra: &extra, ..SPEC };
    insta::assert_debug_snapshot!("environment", environment(&spec).unwrap());
}

#[test]
fn without_a_way_outside_no_proxy_is_named() {
    let made = environment(&SPEC).unwrap();
    assert!(made.iter().all(|(name, _)| !name.to_ascii_lowercase().contains("proxy")), "{made:?}");
}

#[test]
fn what_steers_the_cli_cannot_be_added() {
    for name in [
        "PATH",
        "HOME",
        "LANG",
        "TMPDIR",
        "DISABLE_AUTOUPDATER",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "CLAUDE_CONFIG_DIR",
        "CLAUDECODE",
        "CAISSON_CONTROL_GRANT",
        "LD_PRELOAD",
        "BUN_OPTIONS",
        "HTTPS_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ] {
        assert_eq!(refused(&[(name, "x")]), [(name.to_owned(), Refusal::Reserved)]);
    }
}

#[test]
fn all_refusals_are_told_at_once_and_without_values() {
    let long = "v".repeat(EXTRA_VALUE_BYTES_MAX + 1);
    let extra = [
        ("LD_PRELOAD", "hidden"),
        ("A B", "hidden"),
        ("", "hidden"),
        ("1A", "hidden"),
        ("A=B", "hidden"),
        ("CI", "hidden"),
        ("CI", "hidden"),
        ("BIG", &long),
        ("CUT", "hidden\0"),
    ];
    let error = environment(&EnvironmentSpec { extra: &pairs(&extra), ..SPEC }).unwrap_err();
    assert!(!error.to_string().contains("hidden"));
    insta::assert_snapshot!("refusals", error.to_string());
}

#[test]
fn additions_end() {
    let many: Vec<_> = (0..=EXTRA_NAMES_MAX).map(|n| (format!("N{n}"), String::new())).collect();
    assert!(environment(&EnvironmentSpec { extra: &many[1..], ..SPEC }).is_ok());
    let error = environment(&EnvironmentSpec { extra: &many, ..SPEC }).unwrap_err();
    assert_eq!(error, EnvironmentError::TooMany { count: EXTRA_NAMES_MAX + 1 });
    assert_eq!(error.to_string(), "65 environment variables, more than 64");

    let value = "v".repeat(EXTRA_VALUE_BYTES_MAX);
    assert!(environment(&EnvironmentSpec { extra: &pairs(&[("A", &value)]), ..SPEC }).is_ok());
    assert_eq!(refused(&[("A", &format!("{value}v"))]), [("A".to_owned(), Refusal::TooLong)]);

    let name = "N".repeat(EXTRA_NAME_BYTES_MAX);
    assert!(environment(&EnvironmentSpec { extra: &pairs(&[(&name, "")]), ..SPEC }).is_ok());
    assert_eq!(refused(&[(&format!("{name}N"), "")]), [(name, Refusal::Malformed)]);
}

#[test]
fn a_nul_would_cut_a_fixed_value() {
    let error = environment(&EnvironmentSpec { home: "/a\0b", ..SPEC }).unwrap_err();
    assert_eq!(error, EnvironmentError::Refused(vec![("HOME".to_owned(), Refusal::Nul)]));
}

#[test]
fn the_grant_is_not_in_a_debug_text() {
    assert!(!format!("{SPEC:?}").contains("grant-1"));
}
