use caisson_domain::budget::ProjectBudgets;
use caisson_domain::credential::{CredentialFields, CredentialKind, CredentialSecret};
use caisson_store::{Actor, BudgetChange, Clock, MasterKeyFile, NewCredential};

use super::*;
use crate::settings::{Environment, Overrides};

fn settings(directory: &Path, listen: &str) -> Settings {
    let key = directory.join("model-key");
    let environment = Environment {
        variables: vec![
            ("CAISSON_STATE_DIR".to_owned(), directory.join("state").display().to_string()),
            ("CAISSON_MODEL__API_KEY_FILE".to_owned(), key.display().to_string()),
        ],
        root: false,
    };
    let overrides = Overrides { listen: Some(listen.parse().unwrap()), ..Overrides::default() };
    Settings::load(None, &environment, overrides).unwrap()
}

fn chmod(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn an_image_by_its_tag_and_keys_without_a_limit_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let of = |image: Option<&str>, rate_per_minute: u32| {
        let mut settings = settings(directory.path(), "127.0.0.1:1");
        settings.default_image = image.map(str::to_owned);
        settings.api.rate_per_minute = rate_per_minute;
        of_settings(&settings)
    };
    let pinned = format!("r.example/x:1@sha256:{}", "a".repeat(64));
    for fine in [None, Some(DEFAULT_IMAGE), Some(pinned.as_str())] {
        assert_eq!(of(fine, 1), Vec::<String>::new());
    }
    let told = of(Some("r.example/x:1"), 0);
    assert!(
        told.len() == 2 && told[0].contains("r.example/x:1@sha256:") && told[1].contains("rate_per_minute"),
        "{told:?}"
    );
}

#[test]
fn a_queue_that_one_project_may_fill_is_told() {
    let told = |own: Option<i64>| warned(|settings| settings.queue.max_queued_per_project = own);
    for fine in [None, Some(0), Some(9_999)] {
        assert_eq!(told(fine), Vec::<String>::new(), "{fine:?}");
    }
    assert!(only(&told(Some(10_000)), &["queue.max_queued_per_project", "caisson project set"]));
}

#[test]
fn a_token_for_a_registry_that_others_can_read_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("registry-token");
    fs::write(&file, "t").unwrap();
    let configuration = directory.path().join("caisson.toml");
    let lines = format!(
        "[[egress.credentials]]\nurl_prefix = \"http://127.0.0.1:9/\"\ntoken_file = \"{}\"\n",
        file.display()
    );
    fs::write(&configuration, lines).unwrap();
    let environment = Environment {
        variables: vec![(
            "CAISSON_STATE_DIR".to_owned(),
            directory.path().join("state").display().to_string(),
        )],
        root: false,
    };
    let told = |mode: u32| {
        chmod(&file, mode);
        of_settings(&Settings::load(Some(&configuration), &environment, Overrides::default()).unwrap())
    };
    assert_eq!(told(0o600), Vec::<String>::new());
    assert!(told(0o644)[0].contains("registry-token"));
}

#[test]
fn an_open_address_and_files_that_others_can_use_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let (key, state) = (directory.path().join("model-key"), directory.path().join("state"));
    fs::write(&key, "k").unwrap();
    fs::create_dir(&state).unwrap();
    chmod(&key, 0o600);
    chmod(&state, 0o700);
    for narrow in ["127.0.0.1:7070", "[::1]:7070"] {
        assert_eq!(of_settings(&settings(directory.path(), narrow)), Vec::<String>::new());
    }
    for open in ["0.0.0.0:7070", "[::]:7070", "192.0.2.1:7070"] {
        let told = of_settings(&settings(directory.path(), open));
        assert!(told.len() == 1 && told[0].contains(open) && told[0].contains("tls.cert_file"), "{told:?}");
    }
    let mut secured = settings(directory.path(), "0.0.0.0:7070");
    secured.tls.cert_file = Some(key.clone());
    assert_eq!(of_settings(&secured), Vec::<String>::new());
    let told_of = |file: &Path, mode: u32| {
        chmod(file, mode);
        of_settings(&settings(directory.path(), "127.0.0.1:1"))
    };
    for mode in [0o640, 0o604, 0o620, 0o601] {
        let told = told_of(&key, mode);
        assert!(
            told.len() == 1 && told[0].contains("model-key") && told[0].contains("chmod 0600"),
            "{told:?}"
        );
    }
    chmod(&key, 0o600);
    assert_eq!(told_of(&state, 0o755), Vec::<String>::new(), "it may be anybody's");
    fs::write(state.join("audit_key"), "x").unwrap();
    chmod(&state.join("audit_key"), 0o600);
    let told = told_of(&state, 0o755);
    let remedy = format!("`chmod 0700 {}`", state.display());
    assert!(told.len() == 1 && told[0].ends_with(&remedy), "{told:?}");
    chmod(&state, 0o700);
    assert!(told_of(&state.join("audit_key"), 0o644)[0].contains("audit_key"));
}

/// What is told of settings that `change` was done to.
fn told_of(change: impl FnOnce(&mut Settings)) -> (Vec<String>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path(), "127.0.0.1:1");
    settings.budget.day_micro_usd = Some(1);
    settings.master_key_file = Some("/elsewhere/master.key".into());
    settings.audit_head = Some("/elsewhere/head".into());
    change(&mut settings);
    // As `unbounded` has it where there is no store.
    let named = settings.budget.project_micro_usd.or(settings.budget.day_micro_usd).is_some();
    let unbounded = if named { Vec::new() } else { vec![ProjectId::default_project()] };
    (of_settings(&settings), notes(&settings, &unbounded))
}

fn warned(change: impl FnOnce(&mut Settings)) -> Vec<String> {
    told_of(change).0
}

fn noted(change: impl FnOnce(&mut Settings)) -> Vec<String> {
    told_of(change).1
}

fn only(told: &[String], parts: &[&str]) -> bool {
    told.len() == 1 && parts.iter().all(|part| told[0].contains(part))
}

#[test]
fn a_configuration_that_others_can_write_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("caisson.toml");
    fs::write(&file, "").unwrap();
    let told = |mode: u32| {
        chmod(&file, mode);
        warned(|settings| settings.file = Some(file.clone()))
    };
    for narrow in [0o600, 0o640, 0o644] {
        assert_eq!(told(narrow), Vec::<String>::new(), "{narrow:o}");
    }
    for (open, remedy) in [(0o664, "chmod 0644"), (0o602, "chmod 0600")] {
        assert!(only(&told(open), &["caisson.toml", "change the configuration", remedy]), "{open:o}");
    }
    chmod(&file, 0o600);
    let place = directory.path();
    for (mode, remedy) in
        [(0o777, Some("chmod 0755")), (0o770, Some("chmod 0750")), (0o1777, None), (0o755, None)]
    {
        chmod(place, mode);
        let told = warned(|settings| settings.file = Some(file.clone()));
        match remedy {
            Some(remedy) => {
                let name = format!("\"{}\" has mode", place.display());
                assert!(only(&told, &[&name, "change the configuration", remedy]), "{mode:o}: {told:?}");
            }
            None => assert_eq!(told, Vec::<String>::new(), "{mode:o}"),
        }
    }
}

#[test]
fn a_file_of_another_users_is_told_unless_it_is_roots() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "t").unwrap();
    let own_uid = nix::unistd::geteuid().as_raw();
    assert_eq!(foreign(&file, own_uid), None);
    assert_eq!(foreign(Path::new("/proc/1/cmdline"), own_uid), None, "root is nobody else");
    if own_uid != 0 {
        return eprintln!("SKIPPED: only root can give a file away");
    }
    std::os::unix::fs::chown(&file, Some(4711), None).unwrap();
    let told = warned(|settings| settings.model.api_key_file = Some(file.clone()));
    assert!(told.iter().any(|text| text.contains("belongs to uid 4711")), "{told:?}");
    assert_eq!(foreign(&file, 4711), None);
    let told = warned(|settings| settings.master_key_file = Some(file.clone()));
    assert!(only(&told, &["token", "belongs to uid 4711"]), "{told:?}");
    let configuration = directory.path().join("caisson.toml");
    fs::write(&configuration, "").unwrap();
    std::os::unix::fs::chown(directory.path(), Some(4711), None).unwrap();
    let told = warned(|settings| settings.file = Some(configuration));
    assert!(only(&told, &[&format!("\"{}\" belongs to uid 4711", directory.path().display())]), "{told:?}");
}

#[test]
fn an_engines_socket_for_everybody_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let told = |mode: u32, engine: EngineChoice| {
        chmod(&socket, mode);
        let mut settings = settings(directory.path(), "127.0.0.1:1");
        settings.docker.host = Some(format!("unix://{}", socket.display()));
        settings.engine = engine;
        let told = weaknesses(&settings);
        told.iter().any(|text| text.contains("docker.sock\" has mode 0666") && text.contains("chmod o-rwx"))
    };
    assert!(told(0o666, EngineChoice::Docker) && told(0o666, EngineChoice::Auto));
    assert!(!told(0o666, EngineChoice::Local) && !told(0o660, EngineChoice::Docker));
    assert_eq!(open_socket(&directory.path().join("none")), None);
}

#[test]
fn users_who_have_uids_of_sandboxes_are_told() {
    for fine in [
        "",
        "# nothing\n",
        "anna:100000:65536\n",
        "anna:134464:65536",
        "anna:x:y\nbob:1",
        "a:9:18446744073709551615",
    ] {
        assert_eq!(shared_uids(200_000, fine), None, "{fine}");
    }
    for (users, parts) in [
        ("anna:165536:65536\n", ["\"anna\"", "231072 or more"]),
        ("anna:100000:65536\nbob:300000:65536\ncarl:231072:65536\n", ["\"bob\"", "365536 or more"]),
    ] {
        let told = shared_uids(200_000, users).unwrap();
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }
}

#[test]
fn credentials_and_pages_without_encryption_are_told() {
    let url = |text: &str| Url::parse(text).unwrap();
    for near in ["https://m.example/", "http://127.0.0.1:9/", "http://[::1]:9/", "http://localhost:9/"] {
        assert_eq!(warned(|settings| settings.model.base_url = url(near)), Vec::<String>::new(), "{near}");
        let origin = near.trim_end_matches('/').to_owned();
        assert_eq!(
            warned(|settings| settings.api.cors_origins = vec![origin]),
            Vec::<String>::new(),
            "{near}"
        );
    }
    let told = warned(|settings| settings.model.base_url = url("http://m.example/"));
    assert!(only(&told, &["model.base_url http://m.example/", "use https"]), "{told:?}");
    let told = warned(|settings| settings.api.cors_origins = vec!["http://ui.example".to_owned()]);
    assert!(only(&told, &["api.cors_origins has http://ui.example", "use https"]), "{told:?}");
    let token = |prefix: &str| crate::settings::GitCredential {
        url_prefix: url(prefix),
        username: "x".to_owned(),
        token_file: "/nowhere/token".into(),
    };
    let told = |prefix: &str| warned(|settings| settings.git.credentials = vec![token(prefix)]);
    assert_eq!(told("https://g.example/team/"), Vec::<String>::new());
    assert!(only(&told("http://g.example/team/"), &["http://g.example/team/ over plain HTTP"]));
}

/// What is told of a token for this prefix, with these rules.
fn of_egress(prefix: &str, allow: &[&str]) -> Vec<String> {
    let credential = serde_json::json!({"url_prefix": prefix, "token_file": "/nowhere/token"});
    warned(|settings| {
        settings.egress.credentials = vec![serde_json::from_value(credential).unwrap()];
        settings.egress.allow = allow.iter().map(|text| (*text).to_owned()).collect();
    })
}

#[test]
fn a_token_of_the_way_outside_that_others_can_read_is_told() {
    let rule = &["http://r.example/"];
    assert!(only(
        &of_egress("http://r.example/team/", rule),
        &["http://r.example/team/ over plain HTTP", "https://"]
    ));
    for near in ["http://127.0.0.1:9/", "http://[::1]:9/", "http://localhost/"] {
        assert_eq!(of_egress(near, rule), Vec::<String>::new(), "{near}");
    }
}

#[test]
fn a_token_for_tls_that_no_rule_sends_is_told() {
    let prefix = "https://r.example/team/";
    for rule in
        ["https://r.example/", "https://R.example/team/#GET,HEAD", "https://r.example/team/package/#POST"]
    {
        assert_eq!(of_egress(prefix, &["r.example:443", rule]), Vec::<String>::new(), "{rule}");
    }
    for rule in [
        "r.example:443",
        "http://r.example/team/",
        "https://r.example:8443/team/",
        "https://r.example/other/",
        "https://x.r.example/team/",
        "no rule at all",
    ] {
        let told = of_egress(prefix, &[rule]);
        assert!(only(&told, &["never sent", "the rule \"https://r.example/team/\""]), "{rule}: {told:?}");
    }
    assert_eq!(of_egress("https://r.corp.example/", &["https://*.corp.example/"]), Vec::<String>::new());
    assert!(only(&of_egress("https://r.example:8443/", &[]), &["never sent", "https://r.example:8443/"]));
}

#[test]
fn ways_outside_to_everybody_or_to_this_machine_are_told() {
    let put = |section: &str, settings: &mut Settings, allow: &[&str], allow_private: &[&str]| {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let (rules, ranges) = match section {
            "egress" => (&mut settings.egress.allow, &mut settings.egress.allow_private),
            _ => (&mut settings.mcp.allow, &mut settings.mcp.allow_private),
        };
        (*rules, *ranges) = (texts(allow), texts(allow_private));
    };
    for section in ["egress", "mcp"] {
        let ways = |rule: &str| warned(|settings| put(section, settings, &[rule], &[]));
        for narrow in ["*.cdn.example.com", "registry.example.com", "http://10.0.0.1/pool/#GET"] {
            assert_eq!(ways(narrow), Vec::<String>::new(), "{narrow}");
        }
        for wide in ["*.com", "*.com:443,8443", "http://*.dev/"] {
            assert!(only(&ways(wide), &[&format!("{section}.allow "), wide]), "{section} {wide}");
        }
        let ranges = |range: &str| warned(|settings| put(section, settings, &[], &[range]));
        for narrow in ["10.20.0.0/16", "169.254.1.0/24", "fd12::/16"] {
            assert_eq!(ranges(narrow), Vec::<String>::new(), "{narrow}");
        }
        for inside in ["169.254.0.0/16", "127.0.0.1", "fd00::/8", "::1"] {
            assert!(only(&ranges(inside), &[&format!("{section}.allow_private "), inside]), "{inside}");
        }
    }
}

#[test]
fn what_is_told_has_no_login_and_no_query_of_a_url() {
    let mut settings = settings(Path::new("/nowhere"), "127.0.0.1:1");
    settings.model.base_url = "http://somebody:pass-word@model.example/v1?key=0123".parse().unwrap();
    let told = weaknesses(&settings).join("\n");
    assert!(told.contains("model.example/v1") && told.contains("plain HTTP"), "{told}");
    assert!(!told.contains("pass-word") && !told.contains("0123"), "{told}");
}

async fn store(directory: &Path) -> Store {
    Store::open(&directory.join("caisson.db"), Clock::system()).await.unwrap()
}

#[tokio::test]
async fn a_budget_that_the_store_holds_is_one_and_every_project_is_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let mut bounded = settings(directory.path(), "127.0.0.1:1");
    bounded.budget.project_micro_usd = Some(1);
    let settings = settings(directory.path(), "127.0.0.1:1");
    let told = async |settings: &Settings, store: Option<&Store>| {
        let found = unbounded(settings, store).await.unwrap();
        let notes: Vec<_> =
            notes(settings, &found).into_iter().filter(|text| text.contains("budget")).collect();
        (found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), notes)
    };
    for known in [None, Some(&store)] {
        let (found, notes) = told(&settings, known).await;
        assert!(found == "default" && only(&notes, &["set budget.day_micro_usd"]), "{notes:?}");
        assert_eq!(told(&bounded, known).await, (String::new(), Vec::new()));
    }
    let project = ProjectId::default_project();
    let named = ProjectBudgets { total_micro_usd: Some(1), day_micro_usd: None };
    store.set_budgets(&project, &named).await.unwrap();
    assert_eq!(told(&settings, Some(&store)).await.0, "default", "it goes with the setting");
    store.set_budgets(&project, &ProjectBudgets::default()).await.unwrap();
    let day = async |project: &ProjectId| {
        let day = BudgetChange::Bound(1);
        store.change_budgets(project, BudgetChange::Keep, day, Actor::Operator).await.unwrap();
    };
    day(&project).await;
    assert_eq!(told(&settings, Some(&store)).await, (String::new(), Vec::new()));

    let others: Vec<ProjectId> =
        (1..=PROJECTS_NAMED + 1).map(|n| format!("team-{n}").parse().unwrap()).collect();
    for other in &others {
        store.create_project(other, Actor::Operator).await.unwrap();
    }
    // The settings' budgets are the default project's alone.
    let (found, notes) = told(&bounded, Some(&store)).await;
    assert_eq!(found.split(' ').count(), PROJECTS_NAMED + 1);
    assert!(only(&notes, &["team-1, team-2, team-3, team-4, team-5 and 1 more; ", "--day"]), "{notes:?}");
    for other in &others[1..] {
        day(other).await;
    }
    let (found, notes) = told(&settings, Some(&store)).await;
    assert!(found == "team-1" && only(&notes, &["other projects may spend: team-1; "]), "{notes:?}");
}

#[tokio::test]
async fn credentials_of_every_project_are_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    store.unlock(MasterKeyFile::in_state_dir(directory.path())).await.unwrap();
    assert_eq!(weaknesses_of_store(&store).await.unwrap(), Vec::<String>::new());
    let (first, second): (ProjectId, ProjectId) = ("team-a".parse().unwrap(), "team-b".parse().unwrap());
    for (project, name, url) in [
        (ProjectId::default_project(), "sealed", "https://g.example/"),
        (first, "fine", "http://127.0.0.1:1/"),
        (second, "told", "http://g.example/"),
    ] {
        store.create_project(&project, Actor::Operator).await.unwrap();
        let kind = CredentialKind::GitToken;
        let fields = CredentialFields {
            settings: [("url_prefix", url.to_owned())].into_iter().collect(),
            ..CredentialFields::default()
        };
        let settings = fields.settings(kind).unwrap();
        let secret = CredentialSecret::Value { value: "nobodys-token".to_owned().into(), proxy_login: None };
        let new = NewCredential { project, name: name.to_owned(), settings, secret };
        store.add_credential(new, &Actor::Operator).await.unwrap();
    }
    let told = weaknesses_of_store(&store).await.unwrap();
    assert!(only(&told, &["\"told\"", "http://g.example/"]), "{told:?}");
}

#[test]
fn a_disk_without_a_floor_is_told() {
    assert_eq!(warned(|settings| settings.min_free_disk_mib = 1), Vec::<String>::new());
    assert!(only(&warned(|settings| settings.min_free_disk_mib = 0), &["min_free_disk_mib is 0"]));
}

#[test]
fn what_may_be_meant_so_is_noted_and_not_warned_of() {
    assert_eq!(told_of(|_| {}), (Vec::new(), Vec::new()));
    let on_hosts = |paths: &[&str]| {
        noted(|settings| {
            settings.repositories = vec!["https://g.example/team/*".to_owned()];
            settings.git.forbidden_paths = paths.iter().map(|path| (*path).to_owned()).collect();
        })
    };
    assert!(only(&on_hosts(&[]), &["git.forbidden_paths"]));
    assert_eq!(on_hosts(&[".github/workflows"]), Vec::<String>::new());
    assert!(only(&noted(|settings| settings.budget.day_micro_usd = None), &["budget.day_micro_usd"]));
    assert!(only(&noted(|settings| settings.git.any_submodules = true), &["git.any_submodules"]));
    let tools = vec!["web_search".to_owned()];
    assert!(only(&noted(|settings| settings.model.provider_tools = tools), &["model.provider_tools"]));
    let rule = vec!["npm-token".to_owned()];
    assert!(only(&noted(|settings| settings.git.secret_rules_off = rule), &["git.secret_rules_off"]));
    let key = Some("sk-of-nobody".to_owned().into());
    assert!(only(
        &noted(|settings| settings.model.api_key = key),
        &["model.api_key", "caisson credential add"]
    ));
    assert!(only(&noted(|settings| settings.master_key_file = None), &["set master_key_file"]));
    let within = |settings: &mut Settings| settings.state_dir.join("inner");
    assert!(only(
        &noted(|settings| settings.master_key_file = Some(within(settings))),
        &["set master_key_file"]
    ));
    assert!(only(&noted(|settings| settings.audit_head = None), &["set audit_head"]));
}
