//! Artifacts whose sender leaves, and those that cannot be made known: no file stays that nobody knows of.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::support::{Sandbox, Setup, World, eventually, run_spec};
use crate::bounds::Bounds;

/// With one artifact of a sandbox at a time, a further one comes at once or not at all.
async fn world() -> (World, Sandbox) {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let store_hold = Duration::from_millis(100);
    let bounds = Bounds { store_hold, grace: store_hold, ..Bounds::default() };
    world.start(Setup { bounds, ..Setup::new() }).await;
    (world, sandbox)
}

fn path(sandbox: &Sandbox, name: &str) -> String {
    format!("/artifacts/{}/{name}", sandbox.run.id)
}

/// The files below a directory of the artifacts, if there is one.
fn files(world: &World, directory: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(world.root.path().join("artifacts").join(directory)) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The files that the store knows of.
async fn known(world: &World, sandbox: &Sandbox) -> Vec<PathBuf> {
    let root = world.root.path().join("artifacts");
    let known = world.store.artifacts(&sandbox.run.id).await.unwrap();
    let mut files: Vec<PathBuf> = known.iter().map(|artifact| root.join(&artifact.path)).collect();
    files.sort();
    files
}

/// A connection on which an upload began, with the head of it written; `length` tells how its body is measured.
async fn begun(sandbox: &Sandbox, name: &str, length: &str) -> UnixStream {
    let mut stream = UnixStream::connect(&sandbox.socket).await.unwrap();
    let head = format!(
        "PUT {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{length}\r\n\r\n",
        path(sandbox, name),
        sandbox.control
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Hangs up, and waits until the server has done so as well; answers what it said before.
async fn hang_up(mut stream: UnixStream) -> Vec<u8> {
    stream.shutdown().await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    said
}

/// Waits until every file is known, none is on its way, and another one is taken.
async fn is_tidy(world: &World, sandbox: &Sandbox) {
    let (path, run) = (path(sandbox, "next"), sandbox.run.id.to_string());
    eventually(|| async { (sandbox.control(Method::PUT, &path, "x").await.status == 204).then_some(()) })
        .await;
    assert_eq!(files(world, ".incoming"), Vec::<PathBuf>::new());
    assert_eq!(files(world, &run), known(world, sandbox).await);
}

#[tokio::test]
async fn whoever_hangs_up_behind_the_last_byte_leaves_no_file_that_nobody_knows_of() {
    let (world, sandbox) = world().await;
    let run = sandbox.run.id.to_string();
    // It cannot be made known yet.
    let locked = world.locked().await;
    let mut stream = begun(&sandbox, "work", "content-length: 4").await;
    stream.write_all(b"work").await.unwrap();
    eventually(|| async { (files(&world, &run).len() == 1).then_some(()) }).await;
    assert_eq!(hang_up(stream).await, b"");
    let busy = sandbox.control(Method::PUT, &path(&sandbox, "other"), "x").await;
    assert_eq!((busy.status, busy.code().as_str()), (503, "busy"), "its place is taken until its end");
    drop(locked);
    is_tidy(&world, &sandbox).await;
    assert!(world.store.artifact(&sandbox.run.id, "work").await.unwrap().is_some());
    world.stop().await;
}

#[tokio::test]
async fn whoever_hangs_up_again_and_again_leaves_nothing_on_its_way() {
    let (world, sandbox) = world().await;
    let body = vec![b'x'; 1 << 20];
    for number in 0..20 {
        let mut stream =
            begun(&sandbox, &format!("n{number}"), &format!("content-length: {}", body.len())).await;
        stream.write_all(&body).await.unwrap();
        hang_up(stream).await;
    }
    is_tidy(&world, &sandbox).await;
    world.stop().await;
}

#[tokio::test]
async fn an_artifact_that_did_not_come_to_its_end_is_not_kept() {
    let (world, sandbox) = world().await;
    for (length, part) in
        [("content-length: 9", b"half".as_slice()), ("transfer-encoding: chunked", b"4\r\nhalf\r\n")]
    {
        let mut stream = begun(&sandbox, "half", length).await;
        stream.write_all(part).await.unwrap();
        eventually(|| async { (files(&world, ".incoming").len() == 1).then_some(()) }).await;
        hang_up(stream).await;
        is_tidy(&world, &sandbox).await;
    }
    // The server goes on to the end of its grace, and drops the connection without an end of the body.
    let mut stream = begun(&sandbox, "half", "transfer-encoding: chunked").await;
    stream.write_all(b"4\r\nhalf\r\n").await.unwrap();
    eventually(|| async { (files(&world, ".incoming").len() == 1).then_some(()) }).await;
    world.stop().await;
    assert_eq!(files(&world, ".incoming"), Vec::<PathBuf>::new());
    assert_eq!(files(&world, sandbox.run.id.as_str()), known(&world, &sandbox).await);
    assert!(world.store.artifact(&sandbox.run.id, "half").await.unwrap().is_none());
}

#[tokio::test]
async fn an_artifact_that_cannot_be_made_known_leaves_no_file_and_the_older_one_stays() {
    let (world, sandbox) = world().await;
    assert_eq!(sandbox.control(Method::PUT, &path(&sandbox, "work"), "old").await.status, 204);
    let mut database = world.locked().await;
    for statement in
        ["create trigger refuse before insert on artifact begin select raise(abort, 'no'); end", "commit"]
    {
        sqlx::query(statement).execute(&mut database).await.unwrap();
    }
    for body in ["new", "old"] {
        let refused = sandbox.control(Method::PUT, &path(&sandbox, "work"), body).await;
        assert!(refused.status >= 500, "{}", refused.text());
        let kept = files(&world, sandbox.run.id.as_str());
        assert_eq!(kept, known(&world, &sandbox).await);
        assert_eq!(std::fs::read_to_string(&kept[0]).unwrap(), "old");
        assert_eq!(files(&world, ".incoming"), Vec::<PathBuf>::new());
    }
    sqlx::query("drop trigger refuse").execute(&mut database).await.unwrap();
    is_tidy(&world, &sandbox).await;
    world.stop().await;
}
