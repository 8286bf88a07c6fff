use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use caisson_domain::protocol::{Ending, JournalBody, Outcome};
use caisson_domain::workflow::Publish;
use caisson_store::meters::{DENIALS, Value};
use http::Method;
use std::path::PathBuf;

use super::git_host::{Client, bare_repository, git};
use super::support::{MODEL_KEY, OK, Sandbox, Setup, World, fetch, run_spec};
use crate::GatewayError;
use crate::bounds::TOLD_EVENTS;

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
    let client = client(&world, &sandbox).await;
    client.clone_and_commit().await;
    // Beside it: in the workspace itself it would be the default branch.
    git(&workspace, &["worktree", "add", "-qb", BRANCH, "../beside"]).await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("branch is currently checked out"), "{}", pushed.said);
    assert_eq!(git(&workspace, &["rev-parse", BRANCH]).await, first);
    let records = world.events(&sandbox.run.id, EventKind::GitPush).await;
    assert_eq!(records[0]["ok"], false);
    assert!(records[0]["message"].as_str().unwrap().contains("checked out"));
    git(&workspace, &["worktree", "remove", "../beside"]).await;
    assert!(client.push(&[&format!("HEAD:{BRANCH}")]).await.ok);
    world.stop().await;
}

#[tokio::test]
async fn a_checked_out_branch_is_refused_before_the_agent_begins() {
    let (world, sandbox, bare, _first) = world("workspace").await;
    let workspace = bare.with_file_name("workspace");
    git(&bare, &["clone", "-q", ".", workspace.to_str().unwrap()]).await;
    git(&workspace, &["checkout", "-qb", BRANCH]).await;
    let client = client(&world, &sandbox).await;
    let path = "/git/origin/info/refs?service=git-upload-pack";
    let asked = async || fetch(sandbox.request(Method::GET, path, &sandbox.agent)).await.status;
    let cloned = client.clone().await;
    assert!(!cloned.ok && cloned.said.contains("is checked out"), "{}", cloned.said);
    assert!(cloned.said.contains("push_rejected"), "{}", cloned.said);
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert!(denied[0]["remedy"].as_str().unwrap().contains(BRANCH), "{denied:?}");
    // As in a checkout beside it.
    git(&workspace, &["checkout", "-q", "main"]).await;
    assert_eq!(asked().await, 200);
    git(&workspace, &["worktree", "add", "-q", "../beside", BRANCH]).await;
    assert_eq!(asked().await, 403);
    git(&workspace, &["config", "receive.denyCurrentBranch", "updateInstead"]).await;
    assert_eq!(asked().await, 200);
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
async fn a_repository_that_serves_somebody_elses_objects_is_refused() {
    for part in ["objects", "refs", "objects/info/alternates"] {
        let (world, sandbox, bare, _first) = world("bare.git").await;
        let outside = world.root.path().canonicalize().unwrap().join("outside.git");
        bare_repository(&outside).await;
        let path = bare.join(part);
        if part.ends_with("alternates") {
            std::fs::write(&path, format!("{}\n", outside.join("objects").display())).unwrap();
        } else {
            std::fs::remove_dir_all(&path).unwrap();
            std::os::unix::fs::symlink(outside.join(part), &path).unwrap();
        }
        let cloned = client(&world, &sandbox).await.clone().await;
        assert!(!cloned.ok && cloned.said.contains("policy_denied"), "{part}: {}", cloned.said);
        assert!(cloned.said.contains("out of the allowed directories"), "{}", cloned.said);
        let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
        assert_eq!(denied[0]["rule"], "policy_denied");
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

    for (program, part) in [("gone", "could not be started"), ("hangs", "did not answer in time")] {
        let world = World::new().await;
        let root = world.root.path().canonicalize().unwrap();
        bare_repository(&root.join("bare.git")).await;
        let script = root.join(program);
        std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let sandbox = world.sandbox(run_spec(Some(root.join("bare.git").to_str().unwrap()))).await;
        let mut setup = Setup::new();
        setup.git.git_program.clone_from(&script);
        setup.git.allow = AllowList::new(&[], vec![root]).unwrap();
        setup.bounds.idle = std::time::Duration::from_millis(100);
        world.start(setup).await;
        if program == "gone" {
            std::fs::remove_file(&script).unwrap();
        }
        let reply = fetch(sandbox.request(Method::GET, path, &sandbox.agent)).await;
        assert!(reply.status == 502 && reply.text().contains(part), "{}", reply.text());
        world.stop().await;
    }
}

#[tokio::test]
async fn git_must_be_there_if_directories_are_allowed_and_need_not_otherwise() {
    let world = World::new().await;
    let setup = |directories: Vec<PathBuf>| {
        let mut setup = Setup::new();
        setup.git.git_program = PathBuf::from("caisson-no-such-git");
        setup.git.allow = AllowList::new(&[], directories).unwrap();
        setup
    };
    let error = world.try_start(setup(vec![PathBuf::from("/srv")])).await.unwrap_err();
    assert!(matches!(error, GatewayError::Program { .. }), "{error}");
    world.start(setup(Vec::new())).await;
    world.stop().await;
}

#[tokio::test]
async fn a_directory_to_keep_away_from_must_be_there() {
    let world = World::new().await;
    let mut setup = Setup::new();
    setup.git.forbidden = vec![world.root.path().join("missing")];
    let error = world.try_start(setup).await.unwrap_err();
    assert!(matches!(error, GatewayError::Forbidden { .. }), "{error}");
}

#[tokio::test]
async fn a_repository_where_agents_write_is_refused_and_its_hooks_never_run() {
    for name in ["state/planted.git", "link", "tree"] {
        let world = World::new().await;
        let root = world.root.path().canonicalize().unwrap();
        let planted = root.join("state/planted.git");
        bare_repository(&planted).await;
        let marker = root.join("the-hook-ran");
        let hook = planted.join("hooks/pre-receive");
        std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
        std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&planted, root.join("link")).unwrap();
        std::fs::create_dir(root.join("tree")).unwrap();
        std::fs::write(root.join("tree/.git"), format!("gitdir: {}\n", planted.display())).unwrap();
        let sandbox = world.sandbox(run_spec(Some(root.join(name).to_str().unwrap()))).await;
        let mut setup = Setup::new();
        setup.git.allow = AllowList::new(&[], vec![root.clone()]).unwrap();
        setup.git.forbidden = vec![root.join("state")];
        world.start(setup).await;
        let client = client(&world, &sandbox).await;
        git(&client.directory, &["clone", "-q", planted.to_str().unwrap(), "work"]).await;
        client.commit("two\n").await;
        let pushed = client.git("work", &["push", &client.url, &format!("HEAD:{BRANCH}")]).await;
        assert!(!marker.exists(), "{name}: the hook ran");
        let said = "remote: {\"code\":\"policy_denied\"";
        assert!(!pushed.ok && pushed.said.contains(said), "{name}: {}", pushed.said);
        assert!(pushed.said.contains("where the server keeps what agents write"), "{}", pushed.said);
        let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
        assert_eq!(denied[0]["rule"], "policy_denied");
        world.stop().await;
    }
}

#[tokio::test]
async fn a_run_that_publishes_nothing_fetches_and_does_not_push() {
    let world = World::new().await;
    let root = world.root.path().canonicalize().unwrap();
    let bare = root.join("bare.git");
    bare_repository(&bare).await;
    let mut spec = run_spec(Some(bare.to_str().unwrap()));
    spec.workflow.caisson.publish = Publish::None;
    let sandbox = world.sandbox(spec).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[], vec![root]).unwrap();
    world.start(setup).await;
    let client = client(&world, &sandbox).await;
    client.clone_and_commit().await;
    let before = git(&bare, &["for-each-ref"]).await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("policy_denied"), "{}", pushed.said);
    assert!(pushed.said.contains("publishes nothing"), "{}", pushed.said);
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert_eq!((&denied[0]["what"], &denied[0]["rule"]), (&"git".into(), &"policy_denied".into()));
    // Nor without asking first.
    let new = git(&bare, &["rev-parse", "main"]).await;
    let command = format!("{} {new} refs/heads/{BRANCH}\0 report-status", "0".repeat(40));
    let push = format!("{:04x}{command}0000", command.len() + 4);
    let reply = sandbox.agent(Method::POST, "/git/origin/git-receive-pack", push).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "policy_denied"));
    assert_eq!(git(&bare, &["for-each-ref"]).await, before);
    assert_eq!(world.events(&sandbox.run.id, EventKind::GatewayDenied).await.len(), 2);
    world.stop().await;
}

#[tokio::test]
async fn only_gits_smart_protocol_and_only_origin_are_behind_the_door() {
    let (world, sandbox, _bare, _first) = world("bare.git").await;
    let of = |method: Method, path: &'static str| fetch(sandbox.request(method, path, &sandbox.agent));
    assert_eq!(of(Method::GET, "/git/origin/info/refs").await.code(), "dumb_protocol");
    assert_eq!(of(Method::GET, "/git/origin/HEAD").await.status, 404);
    assert!(world.events(&sandbox.run.id, EventKind::GatewayDenied).await.is_empty());
    assert_eq!(of(Method::GET, "/git/other/info/refs?service=git-upload-pack").await.status, 404);
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await.pop().unwrap();
    assert_eq!((&denied["what"], &denied["rule"]), (&"git".into(), &"other_repository".into()));
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
    assert_eq!(post(encoder.finish().unwrap(), "gzip").await.status, 413, "decoded");
    assert_eq!(post(command, "br").await.status, 415);
    world.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_refused_for_ever_fills_no_database() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(Some("/not/allowed"))).await;
    world.start(Setup::new()).await;
    let client = sandbox.client();
    let url = "http://gateway/git/origin/info/refs?service=git-upload-pack";
    let refused = async || {
        assert_eq!(fetch(client.get(url).bearer_auth(&sandbox.agent)).await.code(), "policy_denied");
    };
    let told = async || world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    let bound = TOLD_EVENTS as usize;
    for _ in 0..bound + 4 {
        refused().await;
    }
    assert_eq!(told().await.len(), bound + 1, "the others are counted");
    // What is refused for another reason is told all the same, and that a credential was found.
    let search = r#"{"model":"m","tools":[{"type":"web_search_20250305","name":"web_search"}]}"#;
    let other = sandbox.agent(Method::POST, "/model/v1/messages", search).await;
    assert!(other.text().contains("model.provider_tools"), "{}", other.text());
    assert_eq!(told().await.last().unwrap()["rule"], "provider_tools");
    let line = sandbox.line(JournalBody::Text { text: MODEL_KEY.to_owned(), cut_bytes: 0 });
    let end = line.len();
    assert_eq!(sandbox.control(Method::POST, "/journal?offset=0", line).await.status, OK);
    assert_eq!(world.events(&sandbox.run.id, EventKind::Note).await.len(), 1);
    for _ in 3..10 {
        refused().await;
    }
    assert_eq!(told().await.last().unwrap()["count"], 10, "so many are told at once");
    refused().await;
    let outcome = Outcome { ending: Ending::Completed, result: None, head: None, pushed: false, kept: false };
    let line = sandbox.line(JournalBody::Finished(outcome));
    assert_eq!(sandbox.control(Method::POST, &format!("/journal?offset={end}"), line).await.status, OK);
    assert_eq!(told().await.last().unwrap()["count"], 1, "the rest at the end");
    assert_eq!(told().await.len(), bound + 4);
    let audit = world.audit().await.into_iter().filter(|record| record.0 == "gateway.denied");
    let subjects: Vec<_> = audit.map(|record| record.1).skip(bound).collect();
    let policy = "git: policy_denied";
    assert_eq!(subjects[..2], [policy, "model call: provider_tools"]);
    assert_eq!(subjects[2..], [format!("{policy} (10 more)"), format!("{policy} (1 more)")]);
    let counted = world.store.meters().read().into_iter().find(|series| *series.family == DENIALS);
    assert_eq!(counted.unwrap().value, Value::Sum(u64::from(TOLD_EVENTS) + 13));
    world.stop().await;
}
