//! Repositories on a git host over HTTP, with Basic authentication.

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use http::Method;
use std::path::PathBuf;

use super::git_host::{Client, GitHost, Mood, bare_repository, git};
use super::support::{GIT_TOKEN, Reply, Sandbox, Setup, World, fetch, run_spec};
use crate::GitCredential;

pub(super) const BRANCH: &str = "caisson/fixer/1";

pub(super) struct Scene {
    pub(super) world: World,
    pub(super) sandbox: Sandbox,
    pub(super) host: GitHost,
    bare: PathBuf,
}

fn credential(prefix: &str) -> GitCredential {
    GitCredential {
        url_prefix: prefix.parse().unwrap(),
        username: "robot".to_owned(),
        token: GIT_TOKEN.to_owned().into(),
    }
}

/// A host with `team/one.git`; the server has a credential for what `prefix` (below the host's URL) covers.
pub(super) async fn scene(mood: Mood, repository: &str, prefix: &str) -> Scene {
    let world = World::new().await;
    let root = world.root.path().join("host");
    let bare = root.join("team/one.git");
    std::fs::create_dir_all(bare.parent().unwrap()).unwrap();
    bare_repository(&bare).await;
    git(&bare, &["config", "http.receivepack", "true"]).await;
    let host = GitHost::start(&root, mood).await;
    let sandbox = world.sandbox(run_spec(Some(&format!("{}/{repository}", host.url)))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[format!("{}/*", host.url)], Vec::new()).unwrap();
    setup.git.credentials = vec![credential(&format!("{}/{prefix}", host.url))];
    if mood == Mood::Hangs {
        setup.bounds.first_byte = std::time::Duration::from_millis(50);
    }
    world.start(setup).await;
    Scene { world, sandbox, host, bare }
}

impl Scene {
    pub(super) async fn client(&self) -> Client {
        Client::new(&self.sandbox, self.world.root.path().join("client")).await
    }

    async fn advertise(&self) -> Reply {
        let path = "/git/origin/info/refs?service=git-upload-pack";
        fetch(self.sandbox.request(Method::GET, path, &self.sandbox.agent)).await
    }

    pub(super) async fn events(&self, kind: EventKind) -> Vec<serde_json::Value> {
        self.world.events(&self.sandbox.run.id, kind).await
    }
}

#[tokio::test]
async fn a_repository_on_a_git_host_is_cloned_and_pushed_with_a_credential_that_nobody_sees() {
    let scene = scene(Mood::Serves, "team/one.git", "team").await;
    let client = scene.client().await;
    let commit = client.clone_and_commit().await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(pushed.ok, "{}", pushed.said);
    assert_eq!(git(&scene.bare, &["rev-parse", BRANCH]).await, commit);
    assert_eq!(scene.world.run(&scene.sandbox.run.id).await.pushed_commit, Some(commit));
    let seen = scene.host.seen();
    assert!(seen[0].0.starts_with("/team/one.git/info/refs?service=git-upload-pack"));
    assert_eq!(seen[0].1["git-protocol"], "version=2");
    let grant = format!("{:?}", seen.iter().map(|(_, headers)| headers).collect::<Vec<_>>());
    assert!(!grant.contains(&scene.sandbox.agent));
    let prefix = format!("{}/team", scene.host.url);
    let told: Vec<_> =
        scene.world.audit().await.into_iter().skip_while(|record| record.0 == "run.create").collect();
    let used = |purpose: &str| {
        ("credential.use".to_owned(), purpose.to_owned(), Some(prefix.clone()), Some("127.0.0.1".to_owned()))
    };
    assert_eq!(told[..2], [used("git fetch"), used("git push")], "each once");
    assert!(
        told.len() == 3 && told[2].0 == "git.push" && told[2].3.as_deref() == Some("127.0.0.1"),
        "{told:?}"
    );
    scene.world.stop().await;
    scene.world.store.close().await.unwrap();
    assert!(!scene.world.disk_has(GIT_TOKEN));
    assert!(!pushed.said.contains(GIT_TOKEN));
}

#[tokio::test]
async fn a_large_push_and_a_compressed_fetch_reach_the_host() {
    let scene = scene(Mood::Serves, "team/one.git", "").await;
    // Many branches make the fetch's list of wants long enough for git to compress it.
    let head = git(&scene.bare, &["rev-parse", "main"]).await;
    for number in 0..60 {
        git(&scene.bare, &["update-ref", &format!("refs/heads/b{number}"), &head]).await;
    }
    let client = scene.client().await;
    client.clone_and_commit().await;
    let work = client.directory.join("work");
    let noise: Vec<u8> = (0..400_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(work.join("noise"), noise).unwrap();
    git(&work, &["add", "noise"]).await;
    git(&work, &["-c", "core.compression=0", "commit", "-qm", "noise"]).await;
    let chunked = ["-c", "http.postBuffer=65536", "-c", "core.compression=0", "-c", "pack.compression=0"];
    let own = format!("HEAD:{BRANCH}");
    let push = [&chunked[..], &["push", "origin", &own]].concat();
    let pushed = client.git("work", &push).await;
    assert!(pushed.ok, "{}", pushed.said);
    let seen = scene.host.seen();
    let push = seen.iter().rfind(|(path, _)| path.ends_with("git-receive-pack")).unwrap();
    assert!(!push.1.contains_key("transfer-encoding"), "not every host takes a push without its length");
    assert!(push.1["content-length"].to_str().unwrap().parse::<u64>().unwrap() > 1_600_000);
    let url = client.git("work", &["remote", "get-url", "origin"]).await.out;
    let mirror = client.git(".", &["clone", "-q", "--mirror", &url, "mirror"]).await;
    assert!(mirror.ok, "{}", mirror.said);
    scene.world.stop().await;
}

#[tokio::test]
async fn the_credential_goes_to_its_own_prefix_and_host_alone() {
    for prefix in ["teamwork", "team/other.git"] {
        let scene = scene(Mood::Serves, "team/one.git", prefix).await;
        let reply = scene.advertise().await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "repo_auth"));
        assert!(reply.text().contains("the server has none for this URL"), "{}", reply.text());
        assert!(scene.host.seen().iter().all(|(_, headers)| !headers.contains_key("authorization")));
        scene.world.stop().await;
    }
    let scene = scene(Mood::Redirects, "team/one.git", "team").await;
    let reply = scene.advertise().await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "repo_unreachable"));
    assert!(reply.text().contains("redirects to https://moved.example.com/new.git; use"), "{}", reply.text());
    assert!(!reply.text().contains("secret"));
    scene.world.stop().await;
}

#[tokio::test]
async fn a_refused_credential_is_named_in_gits_own_output_and_in_the_events() {
    let world = World::new().await;
    let root = world.root.path().join("host");
    bare_repository(&root.join("one.git")).await;
    let host = GitHost::start(&root, Mood::Serves).await;
    let sandbox = world.sandbox(run_spec(Some(&format!("{}/one.git", host.url)))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[format!("{}/*", host.url)], Vec::new()).unwrap();
    let wrong = GitCredential { token: "wrong".to_owned().into(), ..credential(&host.url) };
    setup.git.credentials = vec![wrong];
    world.start(setup).await;
    let cloned = Client::new(&sandbox, world.root.path().join("client")).await.clone().await;
    assert!(
        cloned
            .said
            .contains("remote: {\"code\":\"repo_auth\",\"message\":\"the git host refused the credential"),
        "{}",
        cloned.said
    );
    let failed = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert_eq!((&failed[0]["kind"], &failed[0]["status"]), (&"repo_auth".into(), &401.into()));
    world.stop().await;
}

#[tokio::test]
async fn a_host_that_is_away_failing_or_no_git_host_is_said_to_be() {
    for (mood, repository, status, part) in [
        (Mood::Serves, "team/missing.git", 404, "does not exist, or the credential cannot see it"),
        (Mood::ShowsPage, "team/one.git", 502, "that is no git host"),
        (Mood::Fails, "team/one.git", 502, "failed (status 503)"),
    ] {
        let scene = scene(mood, repository, "").await;
        let reply = scene.advertise().await;
        assert_eq!((reply.status, reply.code().as_str()), (status, "repo_unreachable"));
        assert!(reply.text().contains(part), "{}", reply.text());
        assert_eq!(scene.events(EventKind::GatewayUpstreamFailed).await.len(), 1);
        scene.world.stop().await;
    }
    let scene = scene(Mood::Hangs, "team/one.git", "").await;
    let reply = scene.advertise().await;
    assert!(reply.status == 502 && reply.text().contains("did not answer in time"), "{}", reply.text());
    scene.world.stop().await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(Some("http://127.0.0.1:1/x.git"))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&["http://127.0.0.1:1/*".to_owned()], Vec::new()).unwrap();
    world.start(setup).await;
    let path = "/git/origin/info/refs?service=git-upload-pack";
    let reply = fetch(sandbox.request(Method::GET, path, &sandbox.agent)).await;
    assert!(reply.status == 502 && reply.text().contains("cannot be reached"), "{}", reply.text());
    world.stop().await;
}

#[tokio::test]
async fn a_push_whose_answer_is_lost_is_found_in_the_hosts_list_of_refs() {
    let scene = scene(Mood::SwallowsReports, "team/one.git", "").await;
    let client = scene.client().await;
    let commit = client.clone_and_commit().await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok, "the client cannot know");
    let records = scene.events(EventKind::GitPush).await;
    assert_eq!((records.len(), &records[0]["ok"]), (1, &true.into()));
    assert!(records[0]["message"].as_str().unwrap().contains("answer was lost"));
    assert_eq!(scene.world.run(&scene.sandbox.run.id).await.pushed_commit, Some(commit));
    let again = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(again.ok && again.said.contains("up-to-date"), "{}", again.said);
    scene.world.stop().await;
}

#[tokio::test]
async fn a_refused_push_never_reaches_the_host() {
    let scene = scene(Mood::Serves, "team/one.git", "").await;
    let client = scene.client().await;
    client.clone_and_commit().await;
    assert!(!client.push(&["HEAD:main"]).await.ok);
    let forwarded = scene.host.seen().iter().any(|(path, _)| path.ends_with("/git-receive-pack"));
    assert!(!forwarded);
    scene.world.stop().await;
}
