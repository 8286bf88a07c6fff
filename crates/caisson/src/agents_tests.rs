use super::*;

/// A package with the given files.
fn package(directory: &Path, name: &str, version: &str, files: &[&str]) -> PathBuf {
    let path = directory.join("package.tgz");
    let encoder =
        flate2::write::GzEncoder::new(fs::File::create(&path).unwrap(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(encoder);
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, path, bytes).unwrap();
    };
    add("package/package.json", format!("{{\"name\":\"{name}\",\"version\":\"{version}\"}}").as_bytes());
    for file in files {
        add(&format!("package/{file}"), b"#!/bin/sh\n");
    }
    archive.into_inner().unwrap().finish().unwrap();
    path
}

struct Fixture {
    directory: tempfile::TempDir,
    agents: Agents,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let agents = Agents::new(directory.path().join("agents"));
        Self { directory, agents }
    }

    fn install(
        &self,
        package: &Path,
        version: Option<&str>,
        integrity: Option<String>,
    ) -> anyhow::Result<Manifest> {
        let request =
            Request { version: version.map(str::to_owned), from: Some(package.to_owned()), integrity };
        let result = self.agents.install(&request, "9.9.9");
        let left: Vec<_> = fs::read_dir(self.directory.path().join("agents").join(FOLDER))
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        result
    }
}

#[test]
fn a_package_with_the_given_integrity_is_installed_and_verified() {
    let fixture = Fixture::new();
    let file = package(fixture.directory.path(), PACKAGE, "1.2.3", &[BINARY, "README.md"]);
    let integrity = integrity_of(&file).unwrap();
    let manifest = fixture.install(&file, None, Some(integrity)).unwrap();
    assert_eq!((manifest.version.as_str(), manifest.trust), ("1.2.3", Trust::Given));
    assert_eq!(fixture.agents.list(), std::slice::from_ref(&manifest));
    assert_eq!(fixture.agents.verify("1.2.3").unwrap(), manifest);
    let binary = fixture.agents.directory("1.2.3").join(BINARY);
    assert_eq!(fs::metadata(&binary).unwrap().permissions().mode() & 0o777, 0o555);
    fs::remove_file(&binary).unwrap();
    fs::write(&binary, "changed").unwrap();
    assert!(fixture.agents.verify("1.2.3").unwrap_err().to_string().contains("was changed"));
}

#[test]
fn two_versions_stand_side_by_side() {
    let fixture = Fixture::new();
    for version in ["1.2.3", "1.2.4"] {
        let file = package(fixture.directory.path(), PACKAGE, version, &[BINARY]);
        fixture.install(&file, None, Some(integrity_of(&file).unwrap())).unwrap();
    }
    assert_eq!(fixture.agents.list().len(), 2);
}

#[test]
fn another_integrity_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let file = package(fixture.directory.path(), PACKAGE, "1.2.3", &[BINARY]);
    let error = fixture.install(&file, None, Some("sha512-AAAA".to_owned())).unwrap_err().to_string();
    assert!(error.contains("another integrity"), "{error}");
    let error = fixture.install(&file, None, None).unwrap_err().to_string();
    assert!(error.contains("--integrity"), "{error}");
    let pinned = package(fixture.directory.path(), PACKAGE, KNOWN[0].0, &[BINARY]);
    let error = fixture.install(&pinned, None, Some(integrity_of(&pinned).unwrap())).unwrap_err().to_string();
    assert!(error.contains("another integrity"), "a pin cannot be talked over: {error}");
    assert!(fixture.agents.list().is_empty());
}

#[test]
fn a_file_that_is_not_the_package_is_refused() {
    let fixture = Fixture::new();
    let refuse =
        |file: &Path, version: Option<&str>| fixture.install(file, version, None).unwrap_err().to_string();
    let other = package(fixture.directory.path(), "left-pad", "1.2.3", &[BINARY]);
    assert!(refuse(&other, None).contains("left-pad"));
    let empty = package(fixture.directory.path(), PACKAGE, "1.2.3", &[]);
    assert!(refuse(&empty, None).contains("is not a package"));
    let wrong = package(fixture.directory.path(), PACKAGE, "1.2.3", &[BINARY]);
    assert!(refuse(&wrong, Some("1.2.4")).contains("holds version 1.2.3"));
    let text = fixture.directory.path().join("text");
    fs::write(&text, "no archive").unwrap();
    assert!(refuse(&text, None).contains("is not a package"));
    assert!(refuse(Path::new("/no/such/file"), None).contains("cannot be opened"));
}

#[test]
fn only_exact_versions_are_taken() {
    assert!(check_version("2.1.330").is_ok());
    assert!(check_version("2.1.330-rc.1+x").is_ok());
    for bad in
        ["", "latest", "^2.1.330", "2.1", "../../x.y.z", "2.1.330/..", &format!("1.2.{}", "3".repeat(64))]
    {
        assert!(check_version(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_an_exact_version_is_asked_for_and_one_that_is_not_there_is_told() {
    for good in ["2.1.330", "2.1.330-beta.1", "2.1.330+build"] {
        assert!(check_version(good).is_ok(), "{good}");
    }
    for bad in
        ["", "2", "2.1", "9.9.9x", "2.1.330.1", "2..1", "2.1.330-", "latest", "^2.1.330", "../x", "1.2.3-a b"]
    {
        assert!(check_version(bad).is_err(), "{bad}");
    }
    // As npm 10 says it.
    let missing = br#"{"error": {"code": "ETARGET", "summary": "No matching version found for x@9.9.9."}}"#;
    assert!(refusal("9.9.9", missing, b"").contains("no version 9.9.9"));
    let away = br#"{"error": {"code": "ECONNREFUSED", "summary": "connect ECONNREFUSED 127.0.0.1:1"}}"#;
    assert!(refusal("9.9.9", away, b"").ends_with("connect ECONNREFUSED 127.0.0.1:1"));
    assert!(refusal("9.9.9", b"", b"npm error first\nlast\n").ends_with("last"));
    assert!(refusal("9.9.9", b"", b"").ends_with("it gave no reason"));
}
