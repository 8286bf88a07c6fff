use super::*;

#[test]
fn branch_names_follow_gits_own_rules() {
    for good in ["main", "fix/a-b", "caisson/bug-fixer/0a1b2c3d", "ä/ö", &"b".repeat(limits::BRANCH_BYTES)]
    {
        assert!(good.parse::<BranchName>().is_ok(), "{good}");
    }
    let long = "b".repeat(limits::BRANCH_BYTES + 1);
    for bad in [
        "",
        "-x",
        "+x",
        "refs/heads/main",
        "a b",
        "a\tb",
        "a\u{7f}",
        "a..b",
        "a~1",
        "a^",
        "a:b",
        "a?",
        "a*",
        "a[",
        "a\\b",
        "@",
        "HEAD",
        "a@{b",
        "/a",
        "a/",
        "a//b",
        "a.",
        ".a",
        "a/.b",
        "a.lock",
        "a.lock/b",
        &long,
    ] {
        assert!(bad.parse::<BranchName>().is_err(), "{bad}");
    }
}

#[test]
fn repositories_are_urls_without_credentials_or_plain_absolute_paths() {
    for good in ["https://git.example.com/team/x.git", "http://127.0.0.1:8080/x", "/srv/git/x.git"] {
        assert_eq!(good.parse::<Repository>().unwrap().to_string(), good);
    }
    let refused = |text: &str| text.parse::<Repository>().unwrap_err();
    assert_eq!(refused("https://u:p@git.example.com/x"), RepositoryError::HoldsCredential);
    assert_eq!(refused("https://git.example.com/x?y=1"), RepositoryError::QueryOrFragment);
    assert!(matches!(refused("git@git.example.com:team/x.git"), RepositoryError::Ssh(_)));
    assert!(matches!(refused("ssh://git.example.com/x"), RepositoryError::Ssh(_)));
    assert!(matches!(refused("file:///etc"), RepositoryError::Form(_)));
    assert!(matches!(refused("ext::sh -c x"), RepositoryError::Form(_)));
    assert!(matches!(refused("--upload-pack=x"), RepositoryError::Form(_)));
    assert!(matches!(refused("https://git.example.com/a%2f..%2fb"), RepositoryError::Form(_)));
    assert!(matches!(refused("/srv/../etc"), RepositoryError::Path(_)));
    assert!(matches!(refused("/srv/./x"), RepositoryError::Path(_)));
    assert_eq!(refused(&format!("/{}", "x".repeat(limits::REPOSITORY_BYTES))), RepositoryError::TooLong);
    assert!(format!("/{}", "x".repeat(limits::REPOSITORY_BYTES - 1)).parse::<Repository>().is_ok());
}

#[test]
fn a_repository_has_one_key_however_it_is_spelled() {
    let key = |text: &str| text.parse::<Repository>().unwrap().key();
    for spelling in [
        "https://git.example.com/team/x",
        "https://git.example.com/team/x/",
        "https://git.example.com/team/x.git",
        "https://git.example.com/team/x.git/",
        "https://GIT.Example.com:443/team/x",
        "https://git.example.com/team/./y/../x",
        "https://git.example.com/team/%78",
        "https://git.example.com/%74%65%61%6D/%78.git",
        // A host that takes them for two has their runs wait for one another; one that takes them for one would have
        // two agents on one branch.
        "https://git.example.com/team/X",
        "https://git.example.com/Team/x.GIT",
        "https://git.example.com/team/%58",
    ] {
        assert_eq!(key(spelling), "https://git.example.com/team/x", "{spelling}");
    }
    for other in [
        "http://git.example.com/team/x",
        "https://git.example.com:8443/team/x",
        "https://git.example.com/team/x.gi",
        "https://git.example.com/team/xx",
        "https://git.example.com/team",
    ] {
        assert_ne!(key(other), "https://git.example.com/team/x", "{other}");
    }
    for (left, right) in
        [("/ä", "/%c3%A4"), ("/Ä", "/ä"), ("/a b", "/a%20B"), ("/a(b)+@!", "/a%28b%29%2B%40%21")]
    {
        let (left, right) = (format!("https://h.example{left}"), format!("https://h.example{right}"));
        assert_eq!(key(&left), key(&right), "{left} {right}");
    }
    for (left, right) in [("/%", "/%2"), ("/%zz", "/%z"), ("/%c3%28", "/%28")] {
        let (left, right) = (format!("https://h.example{left}"), format!("https://h.example{right}"));
        assert_ne!(key(&left), key(&right), "{left} {right}");
    }
    assert_ne!(key("/srv/git/X"), key("/srv/git/x"), "two directories of this machine");
    assert_eq!((key("/srv/git/x/"), key("/srv//git/x")), ("/srv/git/x".into(), "/srv/git/x".into()));
    assert_ne!(key("/srv/git/x.git"), key("/srv/git/x"), "two directories");
    assert_eq!(key("/"), "/");
}

#[test]
fn the_allow_list_is_closed_and_compares_whole_path_parts() {
    let list = AllowList::new(
        &["https://git.example.com/team/*".to_owned(), "https://git.example.com/solo/one.git".to_owned()],
        vec![PathBuf::from("/srv/git")],
    )
    .unwrap();
    let allows = |text: &str| list.allows(&text.parse().unwrap());
    assert!(allows("https://git.example.com/team/x.git"));
    assert!(allows("https://git.example.com/solo/one"));
    assert!(allows("/srv/git/x"));
    for outside in [
        "https://git.example.com/team",
        "https://git.example.com/teamwork/x",
        "https://git.example.com/solo/one/two",
        "http://git.example.com/team/x",
        "https://git.example.com:8443/team/x",
        "https://example.com/team/x",
        "https://git.example.com/team/../solo/two",
        "/srv/gitx/y",
        "/etc",
    ] {
        assert!(!allows(outside), "{outside}");
    }
    assert!(!AllowList::default().allows(&"https://git.example.com/x".parse().unwrap()));
}

#[test]
fn a_url_that_servers_may_read_in_two_ways_is_refused() {
    for bad in [
        "/team/..;/solo/two",
        "/team/x;v=1",
        "/team//x",
        "//team/x",
        "/team/x//",
        "/team/%252e%252e/solo",
        "/team/%2e%2e/solo",
        "/team/x%2Egit",
        "/team/..%3B/solo",
        "/team/..%3b/solo",
        "/team%2fx",
        "/team%5Cx",
        "/team/x%00",
    ] {
        let text = format!("https://git.example.com{bad}");
        assert_eq!(text.parse::<Repository>(), Err(RepositoryError::Form(text.clone())));
        assert!(AllowList::new(&[format!("{text}/*")], Vec::new()).is_err(), "{bad}");
    }
    for good in ["https://git.example.com/team/x/", "https://git.example.com/team/a%20b"] {
        assert!(good.parse::<Repository>().is_ok(), "{good}");
    }
}

#[test]
fn a_url_whose_host_programs_may_read_differently_is_refused() {
    for bad in [
        r"https://git.example.com\team\@evil.example/x.git",
        r"https://git.example.com\@evil.example/x.git",
        r"https://evil.example\@git.example.com/team/x.git",
        r"https://git.example.com/team\x",
        r"https:\\git.example.com/team/x",
        r"https://git.example.com/team/..\solo/x",
        "https:///git.example.com/team/x",
        "https:////git.example.com/team/x",
        "https://@git.example.com/team/x",
        "https://:@git.example.com/team/x",
        "https://git.example.com:/team/x",
        "https://git.example.com:+443/team/x",
        "https://git%2eexample.com/team/x",
        "https://g%69t.example.com/team/x",
        "https://git\u{3002}example.com/team/x",
        "https://ｇit.example.com/team/x",
        "https://git\u{ad}.example.com/team/x",
        "https://b\u{fc}cher.example/team/x",
        "https://127.1/team/x",
        "https://0x7f.0.0.1/team/x",
        "https://2130706433/team/x",
        "https://git.example.com/team/x ",
        "https:// git.example.com/team/x",
        "https://git.example.com /team/x",
        "https://git.example.com,evil.example/team/x",
        "https://[::1%25lo]/team/x",
    ] {
        assert!(bad.parse::<Repository>().is_err(), "{bad}");
        assert!(AllowList::new(&[format!("{bad}/*")], Vec::new()).is_err(), "{bad}");
    }
    // These are no URLs at all, or hold a control character.
    for bad in [
        "https:/git.example.com/x",
        "https:git.example.com/x",
        " https://git.example.com/x",
        "https://g\tit.example.com/x",
    ] {
        assert!(matches!(bad.parse::<Repository>(), Err(RepositoryError::Form(_))), "{bad}");
    }
    let told = r"https://git.example.com\team\@evil.example/x.git".parse::<Repository>().unwrap_err();
    assert!(
        matches!(&told, RepositoryError::Host(_)) && told.to_string().contains("use no backslash"),
        "{told}"
    );
    for (good, read) in [
        ("https://GIT.Example.com:443/team/x", "https://git.example.com/team/x"),
        ("http://git_host:3000/team/x", "http://git_host:3000/team/x"),
        ("https://git.example.com./team/x", "https://git.example.com./team/x"),
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x"),
        ("http://[0:0::1]:8080/x", "http://[::1]:8080/x"),
        ("http://[::ffff:10.0.0.1]/x", "http://[::ffff:a00:1]/x"),
        ("https://xn--bcher-kva.example/x", "https://xn--bcher-kva.example/x"),
        ("https://git.example.com", "https://git.example.com/"),
    ] {
        assert_eq!(good.parse::<Repository>().unwrap().to_string(), read);
    }
}

#[test]
fn a_list_says_whether_it_allows_anything() {
    assert!(AllowList::default().is_empty());
    assert!(!AllowList::new(&[], vec![PathBuf::from("/srv/git")]).unwrap().is_empty());
    for pattern in ["https://h.example/*", "https://h.example/x"] {
        assert!(!AllowList::new(&[pattern.to_owned()], Vec::new()).unwrap().is_empty());
    }
}

#[test]
fn a_pattern_that_is_no_url_is_refused() {
    for bad in ["*", "git.example.com/*", "/srv/git", "https://*.example.com/x"] {
        assert!(AllowList::new(&[bad.to_owned()], Vec::new()).is_err(), "{bad}");
    }
}
