use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Environment { variables, root: true }
}

fn load(toml: &str, variables: &[(&str, &str)]) -> anyhow::Result<Settings> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("caisson.toml");
    std::fs::write(&file, toml).unwrap();
    Settings::load(Some(&file), &environment(variables), Overrides::default())
}

fn fault(toml: &str, variables: &[(&str, &str)]) -> String {
    format!("{:#}", load(toml, variables).unwrap_err())
}

#[test]
fn defaults_need_no_file_and_allow_no_repository() {
    let settings = Settings::load(None, &environment(&[]), Overrides::default()).unwrap();
    assert_eq!(settings.state_dir, Path::new("/var/lib/caisson"));
    assert!(settings.repositories.is_empty() && settings.allow_repo.is_empty());
    assert_eq!(settings.agents_dir(), Path::new("/var/lib/caisson/agents"));
}

#[test]
fn a_variable_wins_over_the_file_and_a_flag_over_both() {
    let settings = load("slots = 3\nlisten = \"127.0.0.1:1\"\n", &[("CAISSON_SLOTS", "4")]).unwrap();
    assert_eq!(settings.slots, 4);
    let overrides = Overrides { listen: Some("127.0.0.1:2".parse().unwrap()), ..Overrides::default() };
    let settings =
        Settings::load(None, &environment(&[("CAISSON_LISTEN", "127.0.0.1:3")]), overrides).unwrap();
    assert_eq!(settings.listen.port(), 2);
}

#[test]
fn nested_keys_and_lists_come_from_variables() {
    let settings = load(
        "",
        &[
            ("CAISSON_MODEL__BASE_URL", "http://127.0.0.1:9"),
            ("CAISSON_MODEL__API_KEY", "12345"),
            ("CAISSON_REPOSITORIES", "https://a.example/* https://b.example/x"),
        ],
    )
    .unwrap();
    assert_eq!(settings.model.base_url.as_str(), "http://127.0.0.1:9/");
    assert_eq!(settings.repositories.len(), 2);
    assert!(settings.model.api_key.is_some());
    assert!(!format!("{settings:?}").contains("12345"));
}

#[test]
fn what_pushes_must_not_hold_is_read_from_both() {
    let variables = [
        ("CAISSON_GIT__FORBIDDEN_PATHS", ".github/workflows **/*.pem"),
        ("CAISSON_GIT__MAX_FILE_MIB", "7"),
        ("CAISSON_GIT__ANY_SUBMODULES", "true"),
        ("CAISSON_GIT__SECRET_RULES_FILE", "/etc/caisson/secret-rules.json"),
    ];
    let git = load("[git]\nsecret_rules_off = [\"generic-secret\"]\n", &variables).unwrap().git;
    assert_eq!(git.forbidden_paths, [".github/workflows", "**/*.pem"]);
    assert_eq!((git.max_file_mib, git.any_submodules), (7, true));
    assert_eq!(git.secret_rules_off, ["generic-secret"]);
    assert_eq!(git.secret_rules_file.as_deref(), Some(Path::new("/etc/caisson/secret-rules.json")));
    assert!(fault("[git]\nmax_file_mib = 0\n", &[]).contains("git.max_file_mib is 0"));
    let default = load("", &[]).unwrap().git;
    assert_eq!((default.max_file_mib, default.any_submodules), (100, false));
    assert!(default.forbidden_paths.is_empty() && default.secret_rules_off.is_empty());
    assert_eq!(default.secret_rules_file, None);
}

#[test]
fn unknown_keys_are_errors_wherever_they_stand() {
    assert!(fault("slot = 1\n", &[]).contains("slot"));
    assert!(fault("[model]\nkey = 1\n", &[]).contains("key"));
    assert!(fault("", &[("CAISSON_LISTN", "x")]).contains("listn"));
    assert!(fault("[docer]\n", &[]).contains("docer"));
    assert!(load("", &[("CAISSON_URL", "http://x"), ("CAISSON_API_KEY", "x")]).is_ok());
}

#[test]
fn every_fault_is_reported_together() {
    let message = fault("slots = 0\nuid_base = 10\n[egress]\nallow = [\"ftp://x.example/\"]\n", &[]);
    for part in ["slots is 0", "uid_base is 10", "egress.allow: "] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn tools_of_the_provider_are_read_from_both_and_no_others_are_taken() {
    use caisson_domain::provider::ProviderTool::{UrlSources, WebSearch};
    assert!(load("", &[]).unwrap().model.provider_tools().is_empty());
    let file = load("[model]\nprovider_tools = [\"web_search\"]\n", &[]).unwrap();
    assert_eq!(file.model.provider_tools(), [WebSearch]);
    let variable = load("", &[("CAISSON_MODEL__PROVIDER_TOOLS", "web_search url_sources")]).unwrap();
    assert_eq!(variable.model.provider_tools(), [WebSearch, UrlSources]);
    let message = fault("", &[("CAISSON_MODEL__PROVIDER_TOOLS", "web_serch")]);
    assert!(message.contains("model.provider_tools") && message.contains("web_fetch"), "{message}");
}

#[test]
fn what_cannot_be_read_is_reported_together_and_by_its_place() {
    let toml = "slot = 1\nlisten = \"here\"\n[modle]\na = 1\nb = 2\n";
    let message = fault(toml, &[("CAISSON_SLOTS", "many"), ("CAISSON_GIT__AUTOR", "x")]);
    for part in ["slot`", "listen`", "modle`", "CAISSON_SLOTS: ", "CAISSON_GIT__AUTOR: ", "autor`"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert_eq!(message.matches("caisson.toml\": ").count(), 3, "{message}");
    assert!(fault("slots = ", &[("CAISSON_SLOTS", "many")]).contains("CAISSON_SLOTS"), "{message}");
}

#[test]
fn no_fault_shows_a_secret_that_stands_in_the_settings() {
    for (toml, variables) in [
        ("[model]\napi_key = CANARY\n", &[][..]),
        ("[model]\napi_key = \"CANARY\"\napi_key = \"CANARY\"\n", &[]),
        ("[model]\napi_key = \"CANARY\n", &[]),
        ("[model]\napi_key = [\"CANARY\"]\n", &[]),
        ("[git]\noutbound_proxy = \"http://u:CANARY@h:99999\"\n", &[]),
        ("", &[("CAISSON_GIT__OUTBOUND_PROXY", "http://u:CANARY@h:99999")]),
        ("[model]\nbase_url = \"ftp://u:CANARY@h/?k=CANARY\"\n", &[]),
        ("[egress]\nallow = [\"https://u:CANARY@h/\", \"u:CANARY@h:443\"]\n", &[]),
        ("[mcp]\nallow = [\"https://u:CANARY@h/\"]\n", &[]),
        ("[api]\ncors_origins = [\"https://u:CANARY@h\"]\n", &[]),
    ] {
        let message = fault(toml, variables);
        assert!(!message.contains("CANARY"), "{message}");
    }
    assert!(fault("[model]\napi_key = CANARY\n", &[]).contains("line 2, column 11"), "the place is told");
}

#[test]
fn a_variable_is_taken_as_it_is_whatever_it_looks_like() {
    use secrecy::ExposeSecret;
    for text in ["007", "1e3", "true", "TRUE", " x ", "1.0", ""] {
        let variables = [
            ("CAISSON_GIT__AUTHOR_NAME", text),
            ("CAISSON_MODEL__API_KEY", text),
            ("CAISSON_DEFAULT_IMAGE", text),
            ("CAISSON_AGENT_VERSION", text),
        ];
        let settings = load("", &variables).unwrap();
        assert_eq!(settings.git.author_name, text);
        assert_eq!(settings.model.api_key.unwrap().expose_secret(), text);
        assert_eq!(settings.default_image.as_deref(), Some(text));
        assert_eq!(settings.agent_version, text);
    }
    let variables = [
        ("CAISSON_SLOTS", "3"),
        ("CAISSON_MIN_FREE_DISK_MIB", "0"),
        ("CAISSON_LOCAL__CONTROL_GROUPS", "false"),
        ("CAISSON_REPOSITORIES", " https://007.example/*  https://8.example/x "),
        ("CAISSON_LOCAL__READ_ONLY", "7"),
        ("CAISSON_LOCAL__TOOLCHAINS", ""),
    ];
    let settings = load("", &variables).unwrap();
    assert_eq!((settings.slots, settings.min_free_disk_mib), (3, 0));
    assert!(!settings.local.control_groups);
    assert_eq!(settings.repositories, ["https://007.example/*", "https://8.example/x"]);
    assert_eq!(settings.local.read_only, [Path::new("7")]);
    assert!(settings.local.toolchains.is_empty());
    assert!(load("", &[("CAISSON_LOCAL__CONTROL_GROUPS", "perhaps")]).is_err());
}

#[test]
fn budgets_are_none_unless_they_are_set_and_bounded() {
    let settings = load("", &[]).unwrap();
    assert_eq!((settings.budget.project_micro_usd, settings.budget.day_micro_usd), (None, None));
    let settings =
        load("[budget]\nproject_micro_usd = 0\n", &[("CAISSON_BUDGET__DAY_MICRO_USD", "5000000")]).unwrap();
    assert_eq!(
        (settings.budget.project_micro_usd, settings.budget.day_micro_usd),
        (Some(0), Some(5_000_000))
    );
    assert_eq!(settings.budget.soft_percent, 80);
    for percent in [1, 100] {
        assert_eq!(
            load(&format!("[budget]\nsoft_percent = {percent}\n"), &[]).unwrap().budget.soft_percent,
            percent
        );
    }
    for percent in [0, 101] {
        assert!(fault(&format!("[budget]\nsoft_percent = {percent}\n"), &[]).contains("budget.soft_percent"));
    }
    assert!(load("[budget]\nday_micro_usd = 1000000000000000\n", &[]).is_ok());
    assert!(fault("[budget]\nday_micro_usd = 1000000000000001\n", &[]).contains("budget.day_micro_usd"));
    assert!(fault("[budget]\nproject_micro_usd = -1\n", &[]).contains("budget.project_micro_usd"));
    assert!(
        fault("", &[("CAISSON_BUDGET__DAY_MICRO_USD", "5 USD")]).contains("CAISSON_BUDGET__DAY_MICRO_USD")
    );
}

#[test]
fn an_engine_that_is_none_is_told_with_those_there_are() {
    assert_eq!(load("engine = \"local\"\n", &[]).unwrap().engine, EngineChoice::Local);
    assert_eq!(load("", &[("CAISSON_ENGINE", "docker")]).unwrap().engine, EngineChoice::Docker);
    for message in [fault("", &[("CAISSON_ENGINE", "podman")]), fault("engine = \"podman\"\n", &[])] {
        let told = "engine is \"podman\"; give auto, docker or local";
        assert!(message.contains(told) && !message.contains("variant"), "{message}");
    }
}

#[test]
fn slots_are_bounded_at_256() {
    assert!(load("slots = 256\n", &[]).is_ok());
    assert!(fault("slots = 257\n", &[]).contains("slots"));
}

#[test]
fn the_silence_of_a_lost_server_is_bounded() {
    for (seconds, fits) in [(39, false), (40, true), (604_800, true), (604_801, false)] {
        let file = format!("server_lost_after_s = {seconds}\n");
        assert_eq!(load(&file, &[]).is_ok(), fits, "{seconds}");
    }
    assert!(fault("server_lost_after_s = 1\n", &[]).contains("server_lost_after_s is 1; give 40 to 604800"));
    assert_eq!(load("", &[]).unwrap().server_lost_after_s, 600);
}

#[test]
fn a_secret_file_holds_exactly_one_line() {
    use secrecy::ExposeSecret;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    std::fs::write(&file, "abc\n").unwrap();
    assert_eq!(read_secret("a.key", &file).unwrap().expose_secret(), "abc");
    for bad in ["", "\n", "a\nb\n"] {
        std::fs::write(&file, bad).unwrap();
        assert!(read_secret("a.key", &file).unwrap_err().to_string().starts_with("a.key: "), "{bad:?}");
    }
}

#[test]
fn what_is_the_servers_alone_is_every_file_with_a_secret_and_its_state() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for name in ["key", "token", "other"] {
        std::fs::write(at(name), "x").unwrap();
    }
    let text = format!(
        "state_dir = \"{}\"
model.api_key_file = \"{}\"
docker.host = \"unix://{}\"
[[git.credentials]]
url_prefix = \"https://a.example/\"
token_file = \"{}\"
[[git.credentials]]
url_prefix = \"https://b.example/\"
token_file = \"{}\"\n",
        at("state").display(),
        at("key").display(),
        at("docker.sock").display(),
        at("token").display(),
        at("other").display()
    );
    let file = at("caisson.toml");
    std::fs::write(&file, text).unwrap();
    let settings = Settings::load(Some(&file), &environment(&[]), Overrides::default()).unwrap();
    let mut found = settings.own_paths().unwrap();
    found.sort();
    assert_eq!(found, ["caisson.toml", "docker.sock", "key", "other", "state", "token"].map(at));
    // Relative paths are the working directory's.
    let relative = Settings { file: Some("here.toml".into()), ..settings };
    assert!(relative.own_paths().unwrap().iter().all(|path| path.is_absolute()));
}

#[test]
fn sandboxes_wait_within_their_bounds_and_not_at_all_unless_somebody_says_so() {
    assert_eq!(load("", &[]).unwrap().keep_alive_s, 0);
    for (key, least, most) in [
        ("keep_alive_s", 0, 86_400),
        ("keep_alive_sandboxes", 1, 256),
        ("keep_alive_memory_mib", 64, 16_777_216),
    ] {
        for (value, fits) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
            // Less than nothing is no number of that kind, which is told in other words.
            if value >= 0 {
                let loaded = load(&format!("{key} = {value}\n"), &[]);
                assert_eq!(loaded.is_ok(), fits, "{key} = {value}");
            }
        }
        let told = fault(&format!("{key} = {}\n", most + 1), &[]);
        assert!(told.contains(&format!("{key} is {}; give {least} to {most}", most + 1)), "{told}");
    }
}
