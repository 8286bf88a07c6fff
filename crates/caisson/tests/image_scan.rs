//! `caisson image scan` on the real default image: what it has, and what is known about that.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use testkit::docker::docker;
use testkit::parts::Parts;
use testkit::process::ServerSpec;

fn scan(spec: &ServerSpec, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        spec.command(&[&["image", "scan"], arguments].concat()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn written(directory: &Path, advisories: &Value) -> String {
    let file = directory.join("advisories.json");
    std::fs::write(&file, advisories.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

fn hole(release: &str, fixed: &str) -> Value {
    json!({"releases": {release: {"status": "resolved", "fixed_version": fixed, "urgency": "high"}}})
}

#[test]
fn the_default_image_is_listed_and_compared_with_what_is_known() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();

    // Nothing is reached at that address, and it is said so.
    let nowhere = ["--advisories", "http://127.0.0.1:9/data.json"];
    let (code, listed, why) = scan(&spec, &nowhere);
    assert_eq!(code, 4, "{why}");
    assert!(
        listed.contains("git 1:2.") && why.contains("NOT COMPARED") && why.contains("--advisories FILE"),
        "{why}"
    );
    let (code, told, _) = scan(&spec, &[&nowhere[..], &["--format", "json"]].concat());
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["findings"]), (4, &Value::Null));
    let release = told["release"].as_str().unwrap();
    let git = told["packages"].as_array().unwrap().iter().find(|package| package["name"] == "git").unwrap();
    let (version, source) = (git["source_version"].as_str().unwrap(), git["source"].as_str().unwrap());

    // One hole in git that a later version closes, one that this version closed, one of a package that is not there.
    let known = json!({
        source: {"CVE-2099-0001": hole(release, "1:999"), "CVE-2099-0002": hole(release, version)},
        "nginx": {"CVE-2099-0003": hole(release, "999")},
    });
    let (code, told, why) = scan(&spec, &["--advisories", &written(directory.path(), &known)]);
    assert_eq!(code, 3, "{told}{why}");
    assert!(
        told.contains("CVE-2099-0001") && told.contains("1:999") && told.contains("1 known holes"),
        "{told}"
    );
    assert!(!told.contains("CVE-2099-0002") && !told.contains("CVE-2099-0003"), "{told}");

    let known = json!({source: {"CVE-2099-0002": hole(release, version)}});
    let (code, told, _) = scan(&spec, &["--advisories", &written(directory.path(), &known)]);
    assert_eq!(code, 0, "{told}");

    // What is no such file is never taken for good news.
    for (text, remedy) in [("{}", "knows nothing"), ("<html>", "no JSON of Debian's security tracker")] {
        let file = directory.path().join("other.json");
        std::fs::write(&file, text).unwrap();
        let (code, _, why) = scan(&spec, &["--advisories", file.to_str().unwrap()]);
        assert!(code == 1 && why.contains(remedy), "{code} {why}");
    }
    let large = directory.path().join("large.json");
    std::fs::File::create(&large).unwrap().set_len(256 * 1024 * 1024 + 1).unwrap();
    let (code, _, why) = scan(&spec, &["--advisories", large.to_str().unwrap()]);
    assert!(code == 1 && why.contains("has more than 268435456 bytes"), "{code} {why}");
    // The tracker forgets old releases; that it is silent about one says nothing about its packages.
    let elsewhere = json!({source: {"CVE-2099-0001": hole("another", "1:999")}});
    let (code, _, why) = scan(&spec, &["--advisories", &written(directory.path(), &elsewhere)]);
    assert!(code == 4 && why.contains("says nothing about the release"), "{code} {why}");
}

#[test]
fn an_engine_or_an_image_that_cannot_be_looked_at_is_an_error_with_a_remedy() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    let (code, _, why) = scan(&spec, &["caisson-test:does-not-exist"]);
    assert!(code == 1 && why.contains("does-not-exist"), "{code} {why}");
    let (code, _, why) = scan(&spec, &["--not:an image"]);
    assert_eq!(code, 2, "{why}");

    // An image of one file, without a package manager.
    let archive = directory.path().join("image.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&archive).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    tar.append_data(&mut header, "only", &b"x"[..]).unwrap();
    tar.into_inner().unwrap();
    let image = format!("caisson-test:bare-{}", std::process::id());
    docker(&parts, &["import", archive.to_str().unwrap(), &image]).unwrap();
    let bare = scan(&spec, &[&image, "--advisories", "http://127.0.0.1:9/"]);
    docker(&parts, &["image", "rm", &image]).unwrap();
    let (code, listed, why) = bare;
    assert!(code == 1 && why.contains("has no Debian package database") && listed.is_empty(), "{code} {why}");

    spec.set("DOCKER__HOST", "unix:///nonexistent/docker.sock");
    let (code, _, why) = scan(&spec, &[]);
    assert!(code == 1 && why.contains("/nonexistent/docker.sock"), "{code} {why}");
}

#[test]
fn a_source_that_answers_badly_is_never_taken_for_good_news() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    for (answer, expected, part) in [
        ("404 Not Found\r\ncontent-length: 2\r\n\r\n{}", 4, "404 Not Found"),
        ("503 Busy\r\ncontent-length: 0\r\n\r\n", 4, "--advisories FILE"),
        ("200 OK\r\ncontent-length: 99\r\n\r\n{\"git\": {}}", 4, "cannot be had"),
        ("200 OK\r\ncontent-length: 9\r\n\r\n{\"git\": {", 1, "no JSON of Debian's security tracker"),
        ("200 OK\r\ncontent-length: 11\r\n\r\n{\"git\": {}}", 4, "says nothing about the release"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // The server's settings are read as well: the variable is none of them.
        spec.set("ADVISORIES", &format!("http://{}/data.json", listener.local_addr().unwrap()));
        let serve = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let read = stream.read(&mut [0; 4096]).unwrap();
            assert!(read > 0, "a request came");
            stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).unwrap();
        });
        let (code, _, why) = scan(&spec, &[]);
        serve.join().unwrap();
        assert!(code == expected && why.contains(part), "{answer}: {code} {why}");
    }
}

#[test]
fn the_bill_of_materials_names_every_package_once() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    let (code, bill, why) = scan(&spec, &["--format", "cyclonedx"]);
    assert_eq!(code, 0, "{why}");
    let bill: Value = serde_json::from_str(&bill).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
    let mut references: Vec<_> =
        bill["components"].as_array().unwrap().iter().map(|part| part["bom-ref"].as_str().unwrap()).collect();
    assert!(
        references.iter().any(|purl| purl.starts_with("pkg:deb/debian/ca-certificates@")),
        "{references:?}"
    );
    let all = references.len();
    references.sort_unstable();
    references.dedup();
    assert!(references.len() == all && all > 100, "{all}");
}
