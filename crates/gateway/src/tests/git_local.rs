use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use http::Method;
use std::path::PathBuf;

use super::git_host::{Client, bare_repository, git};
use super::support::{OK, Sandbox, Setup, World, eventually, fetch, run_spec};
use crate::bounds::{GIT_EXCHANGES, TOLD_EVENTS};

const BRANCH: &str = "caisson/fixer/1";

/// A world with a bare repository in an allowed directory and a run that works on it.
async fn world(repository: &str) -> (World, Sandbox, PathBuf, String) {
    let world = World::new().await;
    let allowed = world.root.path().canonicalize().unwrap().join("repositories");
    std::fs::create_dir(&allowed).unwrap();
    let bare = allowed.join("bare.git");
    let first = bare_repository(&bare).await;
    let path = allowed.join(repository);
    let sandbox = world.sandbox(run_spec(Some(path.to_str().unwrap()))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[], vec![allowed]).unwrap();
    world.start(setup).await;
    (world, sandbox, bare, first)
}

async fn client(world: &World, sandbox: &Sandbox) -> Client {
    Client::new(sandbox, world.root.path().join("client")).await
}

#[tokio::test]
async fn a_directory_on_the_server_is_cloned_and_its_runs_branch_is_pushed_and_recorded() {
    let (world, sandbox, bare, first) = world("bare.git").await;
    let client = client(&world, &sandbox).await;
    let commit = client.clone_and_commit().await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(pushed.ok, "{}", pushed.said);
    assert_eq!(git(&bare, &["rev-parse", BRANCH]).await, commit);
    assert_eq!(git(&bare, &["rev-parse", "main"]).await, first);
    assert_eq!(world.run(&sandbox.run.id).await.pushed_commit, Some(commit.clone()));
    let again = client.commit("three\n").await;
    assert!(client.push(&[&format!("HEAD:{BRANCH}")]).await.ok);
    let records = world.events(&sandbox.run.id, EventKind::GitPush).await;
    assert_eq!(records.len(), 2);
    assert_eq!((&records[1]["old"], &records[1]["new"]), (&commit.into(), &again.into()));
    world.stop().await;
}

#[tokio::test]
async fn each_protocol_version_and_a_blobless_clone_work() {
    let (world, sandbox, _bare, first) = world("bare.git").await;
    let client = client(&world, &sandbox).await;
    for version in ["0", "1", "2"] {
        let setting = format!("protocol.version={version}");
        assert!(client.clone().await.ok);
        let fetched = client.git("work", &["-c", &setting, "fetch", "-q", "origin", "main"]).await;
        assert!(fetched.ok, "{version}: {}", fetched.said);
        std::fs::remove_dir_all(client.directory.join("work")).unwrap();
    }
    assert!(client.clone().await.ok);
    let url = client.git("work", &["remote", "get-url", "origin"]).await.out;
    let blobless = client.git(".", &["clone", "-q", "--filter=blob:none", &url, "lazy"]).await;
    assert!(blobless.ok, "{}", blobless.said);
    assert_eq!(client.git("lazy", &["rev-parse", "HEAD"]).await.out, first);
    world.stop().await;
}

#[tokio::test]
async fn the_checked_out_branch_of_somebodys_workspace_is_not_changed() {
    let (world, sandbox, bare, first) = world("workspace").await;
    let workspace = bare.with_file_name("workspace");
    git(&bare, &["clone", "-q", ".", workspace.to_str().unwrap()]).await;
    git(&workspace, &["checkout", "-qb", BRANCH]).await;
    let client = client(&world, &sandbox).await;
    client.clone_and_commit().await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("branch is currently checked out"), "{}", pushed.said);
    assert_eq!(git(&workspace, &["rev-parse", BRANCH]).await, first);
    let records = world.events(&sandbox.run.id, EventKind::GitPush).await;
    assert_eq!(records[0]["ok"], false);
    assert!(records[0]["message"].as_str().unwrap().contains("checked out"));
    git(&workspace, &["checkout", "-q", "main"]).await;
    assert!(client.push(&[&format!("HEAD:{BRANCH}")]).await.ok);
    world.stop().await;
}

#[tokio::test]
async fn a_path_that_leads_out_or_to_nothing_is_refused_with_a_sentence() {
    for (name, code) in
        [("link", "policy_denied"), ("missing", "repo_unreachable"), ("plain", "repo_unreachable")]
    {
        let (world, sandbox, bare, _first) = world(name).await;
        let outside = world.root.path().join("outside.git");
        bare_repository(&outside).await;
        std::os::unix::fs::symlink(&outside, bare.with_file_name("link")).unwrap();
        std::fs::create_dir(bare.with_file_name("plain")).unwrap();
        let path = "/git/origin/info/refs?service=git-upload-pack";
        let reply = fetch(sandbox.request(Method::GET, path, &sandbox.agent)).await;
        assert_eq!(reply.code(), code, "{name}");
        let cloned = client(&world, &sandbox).await.clone().await;
        assert!(
            !cloned.ok && cloned.said.contains(&format!("remote: {{\"code\":\"{code}\"")),
            "{}",
            cloned.said
        );
        let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await.len();
        let failed = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await.len();
        assert_eq!((denied, failed), if name == "link" { (2, 0) } else { (0, 2) });
        world.stop().await;
    }
}

#[tokio::test]
async fn a_directory_that_is_not_allowed_is_refused() {
    let world = World::new().await;
    let bare = world.root.path().join("bare.git");
    bare_repository(&bare).await;
    let sandbox = world.sandbox(run_spec(Some(bare.to_str().unwrap()))).await;
    world.start(Setup::new()).await;
    let cloned = client(&world, &sandbox).await.clone().await;
    assert!(!cloned.ok && cloned.said.contains("remote: {\"code\":\"policy_denied\""), "{}", cloned.said);
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert_eq!(denied[0]["rule"], "policy_denied");
    world.stop().await;
}

#[tokio::test]
async fn a_broken_repository_and_a_missing_git_are_said_to_be() {
    let (world, sandbox, bare, _first) = world("bare.git").await;
    std::fs::write(bare.join("config"), "[core\n").unwrap();
    let path = "/git/origin/info/refs?service=git-upload-pack";
    let reply = fetch(sandbox.request(Method::GET, path, &sandbox.agent)).await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "repo_unreachable"));
    assert!(reply.text().contains("bad config line"), "{}", reply.text());
    world.stop().await;

    for (program, part) in [("/nonexistent/git", "could not be started"), ("hangs", "did not answer in time")]
    {
        let world = World::new().await;
        let root = world.root.path().canonicalize().unwrap();
        bare_repository(&root.join("bare.git")).await;
        let script = root.join("hangs");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let sandbox = world.sandbox(run_spec(Some(root.join("bare.git").to_str().unwrap()))).await;
        let mut setup = Setup::new();
        setup.git.git_program = root.join(program);
        setup.git.allow = AllowList::new(&[], vec![root]).unwrap();
        setup.bounds.idle = std::time::Duration::from_millis(100);
        world.start(setup).await;
        let reply = fetch(sandbox.request(Method::GET, path, &sandbox.agent)).await;
        assert!(reply.status == 502 && reply.text().contains(part), "{}", reply.text());
        world.stop().await;
    }
}

#[tokio::test]
async fn only_gits_smart_protocol_and_only_origin_are_behind_the_door() {
    let (world, sandbox, _bare, _first) = world("bare.git").await;
    let of = |method: Method, path: &'static str| fetch(sandbox.request(method, path, &sandbox.agent));
    assert_eq!(of(Method::GET, "/git/origin/info/refs").await.code(), "dumb_protocol");
    assert_eq!(of(Method::GET, "/git/origin/HEAD").await.status, 404);
    assert_eq!(of(Method::GET, "/git/other/info/refs?service=git-upload-pack").await.status, 404);
    assert_eq!(of(Method::POST, "/git/origin/git-upload-archive").await.status, 404);
    assert_eq!(of(Method::GET, "/git/origin/info/refs?service=git-upload-pack").await.status, OK);
    world.stop().await;
}

#[tokio::test]
async fn a_run_without_a_repository_has_none_to_fetch() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let path = "/git/origin/info/refs?service=git-upload-pack";
    let reply = fetch(sandbox.request(Method::GET, path, &sandbox.agent)).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "no_repository"));
    world.stop().await;
}

#[tokio::test]
async fn a_fetch_request_is_bounded_whether_it_is_compressed_or_not() {
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;
    let world = World::new().await;
    let root = world.root.path().canonicalize().unwrap();
    bare_repository(&root.join("bare.git")).await;
    let sandbox = world.sandbox(run_spec(Some(root.join("bare.git").to_str().unwrap()))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[], vec![root]).unwrap();
    setup.bounds.fetch_request_bytes = 1000;
    world.start(setup).await;
    let post = |body: Vec<u8>, encoding: &'static str| {
        let request = sandbox.request(Method::POST, "/git/origin/git-upload-pack", &sandbox.agent);
        fetch(request.header("content-encoding", encoding).body(body))
    };
    let command = b"0014command=ls-refs\n00010000".to_vec();
    assert_eq!(post(vec![b'0'; 1001], "identity").await.status, 413);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&vec![b'0'; 100_000]).unwrap();
    // Git reads a thousand zeros as flushes and finds its input cut.
    assert_ne!(post(encoder.finish().unwrap(), "gzip").await.status, 413);
    assert_eq!(post(command, "br").await.status, 415);
    world.stop().await;
}

#[tokio::test]
async fn exchanges_of_one_sandbox_are_bounded() {
    let world = World::new().await;
    let root = world.root.path().canonicalize().unwrap();
    bare_repository(&root.join("bare.git")).await;
    let sandbox = world.sandbox(run_spec(Some(root.join("bare.git").to_str().unwrap()))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[], vec![root]).unwrap();
    setup.bounds.store_hold = std::time::Duration::from_millis(200);
    setup.bounds.grace = std::time::Duration::from_millis(50);
    world.start(setup).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..GIT_EXCHANGES {
        let silent = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        let request = sandbox.request(Method::POST, "/git/origin/git-upload-pack", &sandbox.agent);
        waiting.spawn(request.body(reqwest::Body::wrap_stream(silent)).send());
    }
    let path = "/git/origin/info/refs?service=git-upload-pack";
    let get = || fetch(sandbox.request(Method::GET, path, &sandbox.agent));
    eventually(|| async { (get().await.status == 503).then_some(()) }).await;
    assert_eq!(get().await.code(), "busy");
    drop(waiting);
    eventually(|| async { (get().await.status == OK).then_some(()) }).await;
    world.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_refused_for_ever_fills_no_database() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(Some("/not/allowed"))).await;
    world.start(Setup::new()).await;
    let client = sandbox.client();
    let url = "http://gateway/git/origin/info/refs?service=git-upload-pack";
    for _ in 0..=TOLD_EVENTS {
        assert_eq!(fetch(client.get(url).bearer_auth(&sandbox.agent)).await.code(), "policy_denied");
    }
    let told = world.events(&sandbox.run.id, EventKind::GatewayDenied).await.len();
    assert_eq!(u32::try_from(told).unwrap(), TOLD_EVENTS);
    world.stop().await;
}
