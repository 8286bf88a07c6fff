use super::*;

/// A machine with these files below its root, whose home is `/home/u`.
fn machine(files: &[(&str, &str)], variables: &[(&str, &str)]) -> (tempfile::TempDir, Clients) {
    let root = tempfile::tempdir().unwrap();
    for (place, text) in files {
        let path = root.path().join(place);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let home = root.path().join("home/u").display().to_string();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let variables: Vec<_> = variables.chain([("HOME".to_owned(), home)]).collect();
    let clients = Clients::new(root.path(), &variables);
    (root, clients)
}

fn rules(found: &Found) -> Vec<String> {
    found.rules.iter().map(ToString::to_string).collect()
}

#[test]
fn npm_is_where_npmrc_says() {
    let npmrc = "; registry=https://no.example/\nregistry = \"https://mirror.example:8443/npm/\"\n\
                 @team:registry=http://token:secret@team.example/\n//team.example/:_authToken=secret\n";
    let (_root, clients) = machine(
        &[("home/u/.npmrc", npmrc), ("etc/npmrc", "registry=https://mirror.example:8443/other/\n")],
        &[("NPM_CONFIG_REGISTRY", "https://env.example/")],
    );
    let found = clients.read(Preset::Npm);
    assert_eq!(rules(&found), ["env.example:443", "mirror.example:8443", "http://team.example/#GET,HEAD"]);
    assert!(found.notes.is_empty() && !format!("{found:?}").contains("secret"), "{found:?}");
}

#[test]
fn pip_is_where_its_files_and_variables_say() {
    let conf = "[global]\nindex-url = https://mirror.example/simple\n# index-url = https://no.example/\n\
                extra_index_url =\n    https://one.example/simple\n    http://two.example:8080/simple\ntimeout = 5\n\
                \thttps://not.example/\n";
    let (_root, clients) = machine(
        &[
            ("home/u/.config/pip/pip.conf", conf),
            ("etc/pip.conf", "[global]\nindex-url: https://etc.example/simple\n"),
        ],
        &[("PIP_EXTRA_INDEX_URL", "https://a.example/ https://b.example/")],
    );
    assert_eq!(
        rules(&clients.read(Preset::Pip)),
        [
            "a.example:443",
            "b.example:443",
            "etc.example:443",
            "mirror.example:443",
            "one.example:443",
            "http://two.example:8080/#GET,HEAD"
        ]
    );
}

#[test]
fn cargo_is_where_its_sources_and_registries_are() {
    let config = "[source.crates-io]\nreplace-with = \"mirror\"\n[source.mirror]\nregistry = \"sparse+https://mirror.example/index/\"\n\
                  [registries.team]\nindex = \"sparse+http://team.example/\"\n[source.vendored]\ndirectory = \"vendor\"\n";
    let (_root, clients) = machine(
        &[("home/u/.cargo/config.toml", config)],
        &[("CARGO_REGISTRIES_OTHER_INDEX", "ssh://git@git.example/index")],
    );
    let found = clients.read(Preset::Cargo);
    assert_eq!(rules(&found), ["mirror.example:443", "http://team.example/#GET,HEAD"]);
    assert!(found.notes[0].contains("neither http nor https"), "{found:?}");
}

#[test]
fn apt_is_where_both_kinds_of_its_lists_say() {
    let (_root, clients) = machine(
        &[
            (
                "etc/apt/sources.list",
                "deb [signed-by=/x arch=amd64] http://deb.example/debian stable main\n# deb http://no.example/ x y\n",
            ),
            ("etc/apt/sources.list.d/a.list", "deb-src https://src.example:444/x stable main\n"),
            (
                "etc/apt/sources.list.d/b.sources",
                "Types: deb\nURIs: http://one.example/a\n  https://two.example/b\nSuites: stable\n http://no.example/\n",
            ),
            (
                "etc/apt/sources.list.d/d.sources",
                "URIs: http://no.example/\nEnabled: No\n\n\n# x\nEnabled: yes\nURIs: http://three.example/\n \nURIs: http://no.example/\nEnabled: 0\n",
            ),
            (
                "etc/apt/sources.list.d/e.list",
                "  deb\thttp://tab.example/debian stable main\ndebx http://no.example/ x y\n",
            ),
            ("etc/apt/sources.list.d/c.save", "deb http://no.example/ stable main\n"),
        ],
        &[],
    );
    assert_eq!(
        rules(&clients.read(Preset::Apt)),
        [
            "http://deb.example/#GET,HEAD",
            "src.example:444",
            "http://one.example/#GET,HEAD",
            "two.example:443",
            "http://three.example/#GET,HEAD",
            "http://tab.example/#GET,HEAD"
        ]
    );
}

#[test]
fn a_preset_with_nothing_found_says_so_and_allows_nothing() {
    let (_root, clients) =
        machine(&[("home/u/.npmrc", "fund=false\n"), ("home/u/.cargo/config.toml", "not toml [")], &[]);
    for preset in Preset::ALL {
        let found = clients.read(*preset);
        assert!(found.rules.is_empty());
        assert!(
            found.notes[0].contains("names no host") && found.notes[0].contains("egress.allow"),
            "{found:?}"
        );
    }
}

#[test]
fn what_is_too_large_to_be_a_configuration_is_not_read() {
    let huge = format!("registry=https://r.example/\n{}", "#\n".repeat(1024 * 1024));
    let (root, clients) = machine(&[("home/u/.npmrc", &huge)], &[]);
    assert!(clients.read(Preset::Npm).rules.is_empty());
    for number in 0..=FILES {
        let list = root.path().join(format!("etc/apt/sources.list.d/{number:04}.list"));
        std::fs::create_dir_all(list.parent().unwrap()).unwrap();
        std::fs::write(list, format!("deb http://h{number}.example/ s m\n")).unwrap();
    }
    assert_eq!(clients.read(Preset::Apt).rules.len(), FILES);
}

#[test]
fn this_machine_can_be_read_whatever_it_is() {
    let clients = Clients::new(Path::new("/"), &[("HOME".to_owned(), "/root".to_owned())]);
    for preset in Preset::ALL {
        let found = clients.read(*preset);
        assert!(!found.rules.is_empty() || !found.notes.is_empty(), "{preset}");
    }
}

#[test]
fn variables_that_are_not_theirs_are_not_kept_and_none_is_shown() {
    let (_root, clients) =
        machine(&[], &[("NPM_CONFIG_REGISTRY", "https://u:canary@r.example/"), ("A_KEY", "canary")]);
    assert_eq!(clients.variables.len(), 1);
    assert!(!format!("{clients:?}").contains("canary"));
}
