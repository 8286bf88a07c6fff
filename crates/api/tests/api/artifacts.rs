//! The patch and the artifacts of a run.

use caisson_domain::run::Run;
use caisson_store::{NewArtifact, PutArtifact};
use http::StatusCode;
use serde_json::json;

use crate::support::Api;

const PATCH: &str = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";

/// Keeps an artifact at `path` below the directory of artifacts, with those bytes in it.
async fn keep(api: &Api, run: &Run, name: &str, path: &str, bytes: &[u8]) {
    let file = api.dir.path().join("artifacts").join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, bytes).unwrap();
    know(api, run, name, path, bytes.len()).await;
}

async fn know(api: &Api, run: &Run, name: &str, path: &str, bytes: usize) {
    let artifact = NewArtifact {
        name: name.to_owned(),
        size_bytes: i64::try_from(bytes).unwrap(),
        sha256: "0".repeat(64),
        path: path.to_owned(),
    };
    assert_eq!(api.store.put_artifact(&run.id, &artifact).await.unwrap(), PutArtifact::Stored);
}

#[tokio::test]
async fn a_runs_patch_is_sent_as_a_patch() {
    let api = Api::start().await;
    let run = api.queued().await;
    let path = format!("/v1/runs/{}/diff", run.id);
    api.get(&path).await.assert_problem(404, "no_diff");
    keep(&api, &run, "diff.patch", "run/diff.patch", PATCH.as_bytes()).await;
    let answer = api.get(&path).await;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, PATCH));
    assert_eq!(answer.header("content-type"), "text/x-diff; charset=utf-8");
    assert_eq!(answer.header("content-length"), PATCH.len().to_string());
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn artifacts_are_listed_and_sent_as_bytes_to_be_saved() {
    let api = Api::start().await;
    let run = api.queued().await;
    let path = format!("/v1/runs/{}/artifacts", run.id);
    assert_eq!(api.get(&path).await.json(), json!({"items": []}));
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
    keep(&api, &run, "work bundle.html", "run/1", &bytes).await;
    keep(&api, &run, "empty", "run/2", b"").await;
    let list = api.get(&path).await;
    assert_eq!(list.json()["items"][1]["size_bytes"], 300_000);
    insta::assert_json_snapshot!("artifacts", list.json());
    let answer = api.get(&format!("{path}/work%20bundle.html")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body == bytes);
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    assert_eq!(answer.header("content-disposition"), "attachment; filename*=UTF-8''work%20bundle.html");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(api.get(&format!("{path}/empty")).await.body.len(), 0);
    api.get(&format!("{path}/other")).await.assert_problem(404, "unknown_artifact");
    api.get(&format!("{path}/%2e%2e%2fstore.db")).await.assert_problem(404, "unknown_artifact");
    let unknown = format!("/v1/runs/run_{}/artifacts", "0".repeat(32));
    api.get(&unknown).await.assert_problem(404, "unknown_run");
    api.get(&format!("{unknown}/x")).await.assert_problem(404, "unknown_run");
}

#[tokio::test]
async fn a_file_that_is_not_what_was_kept_is_never_sent() {
    let api = Api::start().await;
    let run = api.queued().await;
    keep(&api, &run, "other-size", "run/1", b"abc").await;
    know(&api, &run, "other-size", "run/1", 2).await;
    know(&api, &run, "gone", "run/gone", 3).await;
    know(&api, &run, "outside", "../store.db", 3).await;
    know(&api, &run, "absolute", "/etc/passwd", 3).await;
    let target = api.dir.path().join("target");
    std::fs::write(&target, b"abc").unwrap();
    std::os::unix::fs::symlink(&target, api.dir.path().join("artifacts/run/link")).unwrap();
    know(&api, &run, "link", "run/link", 3).await;
    for name in ["other-size", "gone", "outside", "absolute", "link"] {
        api.get(&format!("/v1/runs/{}/artifacts/{name}", run.id)).await.assert_problem(500, "internal");
    }
}
