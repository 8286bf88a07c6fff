//! `caisson gc` on a Docker Engine that has images: what Caisson built long ago and nothing uses goes, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::docker::docker;
use testkit::parts::Parts;
use testkit::process::ServerSpec;

/// How the names of this test's images begin.
const TAG: &str = "caisson-gc-";
/// As the build of an earlier version left it.
const OURS: &str = "/bin/sh -c #(nop)  LABEL caisson.image=caisson-sandbox:0";
/// What somebody made FROM one of ours.
const THEIRS: &str = "/bin/sh -c apt-get install -y cargo";

/// Gives the engine an image of 2020 with a label of ours, whose last instruction is this; returns its name.
fn load(parts: &Parts, directory: &Path, name: &str, last: &str) -> String {
    let tag = format!("{TAG}{name}:{}", std::process::id());
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "made-for", tag.as_bytes());
    let layer = layer.into_inner().unwrap();
    let made = "2020-01-01T00:00:00Z";
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": made,
        "config": {"Labels": {"caisson.image": "caisson-sandbox:0"}, "Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))]},
        "history": [
            {"created": made, "created_by": "ADD made-for"},
            {"created": made, "created_by": last, "empty_layer": true},
        ],
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]);
    let file = directory.join(format!("{name}.tar"));
    let mut image = tar::Builder::new(std::fs::File::create(&file).unwrap());
    append(&mut image, "layer.tar", &layer);
    append(&mut image, "config.json", config.to_string().as_bytes());
    append(&mut image, "manifest.json", manifest.to_string().as_bytes());
    image.into_inner().unwrap();
    docker(parts, &["load", "--quiet", "--input", file.to_str().unwrap()]).unwrap();
    tag
}

fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes).unwrap();
}

fn is_there(parts: &Parts, tag: &str) -> bool {
    docker(parts, &["image", "inspect", tag]).is_ok()
}

/// What `gc` told of the images of this test; the engine may have others.
fn told(spec: &ServerSpec, arguments: &[&str]) -> Vec<Value> {
    let output = spec.command(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let documents = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = format!(":{}", std::process::id());
    let is_own = |tag: &Value| tag.as_str().is_some_and(|tag| tag.starts_with(TAG) && tag.ends_with(&own));
    let has_own = |document: &Value| document["tags"].as_array().is_some_and(|tags| tags.iter().any(is_own));
    documents.filter(|document| document["kind"] == "image" && has_own(document)).collect()
}

#[test]
fn gc_removes_an_old_image_of_ours_that_nothing_uses_and_no_other() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    spec.set("ENGINE", "docker");
    spec.create_key().unwrap();
    let ours = load(&parts, directory.path(), "ours", OURS);
    let theirs = load(&parts, directory.path(), "theirs", THEIRS);
    let used = load(&parts, directory.path(), "used", OURS);
    let container = String::from_utf8(docker(&parts, &["create", &used]).unwrap()).unwrap();

    assert_eq!(told(&spec, &["gc", "--json"]), Vec::<Value>::new(), "for ever, by default");
    spec.set("RETENTION__IMAGES_DAYS", "300");
    let could = told(&spec, &["gc", "--dry-run", "--json"]);
    let named: Vec<_> = could.iter().map(|image| image["tags"][0].as_str().unwrap()).collect();
    assert_eq!((named, &could[0]["removed"]), (vec![ours.as_str()], &json!(false)), "{could:?}");
    assert!(is_there(&parts, &ours), "a dry run removes nothing");
    // Named by the settings, it is in use.
    spec.set("DEFAULT_IMAGE", &ours);
    assert_eq!(told(&spec, &["gc", "--json"]), Vec::<Value>::new());
    spec.variables.retain(|(name, _)| name != "CAISSON_DEFAULT_IMAGE");
    let removed = told(&spec, &["gc", "--json"]);
    assert_eq!((removed.len(), &removed[0]["removed"]), (1, &json!(true)), "{removed:?}");
    let left = [&ours, &theirs, &used].map(|tag| is_there(&parts, tag));
    docker(&parts, &["rm", container.trim()]).unwrap();
    docker(&parts, &["rmi", &theirs, &used]).unwrap();
    assert_eq!(left, [false, true, true]);
}
