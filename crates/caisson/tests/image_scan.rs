//! `caisson image scan` on the real default image: what it has, and what is known about that.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
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
    let (code, _, why) = scan(&spec, &["caisson-test:does-not-exist"]);
    assert!(code == 1 && why.contains("does-not-exist"), "{code} {why}");
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
