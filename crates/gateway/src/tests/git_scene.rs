//! A run with a repository, on the server or on a git host, and a clone of it in the sandbox.

use std::path::{Path, PathBuf};

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use caisson_domain::run::RunSpec;
use http::Method;
use serde_json::Value;

use super::git_host::{Client, Done, GitHost, Mood, bare_repository, git, git_with};
use super::support::{GIT_TOKEN, Reply, Sandbox, Setup, World, run_spec};
use crate::GitCredential;

pub(crate) const BRANCH: &str = "caisson/fixer/1";
pub(crate) const RECEIVE: &str = "/git/origin/git-receive-pack";

/// Where the repository is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Host,
}

/// Both, for what must hold for both.
pub(crate) const KINDS: [Kind; 2] = [Kind::Directory, Kind::Host];

pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) sandbox: Sandbox,
    pub(crate) bare: PathBuf,
    pub(crate) client: Client,
    pub(crate) work: PathBuf,
    pub(crate) host: Option<GitHost>,
}

/// A bare repository whose `main` has what `seed` wrote on top of the first commit, and a clone of it.
pub(crate) async fn scene(kind: Kind, shorten: fn(&mut Setup), seed: fn(&Path)) -> Scene {
    Box::pin(scene_of(kind, shorten, seed, |_| {})).await
}

/// As [`scene`], for a run with another specification.
pub(crate) async fn scene_of(
    kind: Kind,
    shorten: fn(&mut Setup),
    seed: fn(&Path),
    specify: fn(&mut RunSpec),
) -> Scene {
    let world = Box::pin(World::new()).await;
    let root = world.root.path().canonicalize().unwrap();
    let bare = root.join("host/team/one.git");
    std::fs::create_dir_all(bare.parent().unwrap()).unwrap();
    bare_repository(&bare).await;
    git(&bare, &["config", "http.receivepack", "true"]).await;
    let seeding = root.join("seeding");
    git(&root, &["clone", "-q", bare.to_str().unwrap(), "seeding"]).await;
    seed(&seeding);
    git(&seeding, &["add", "."]).await;
    git(&seeding, &["commit", "-q", "--allow-empty", "-m", "seed"]).await;
    git(&seeding, &["push", "-q", "origin", "HEAD:main"]).await;
    let host = match kind {
        Kind::Directory => None,
        Kind::Host => Some(Box::pin(GitHost::start(&root.join("host"), Mood::Serves)).await),
    };
    let repository = host
        .as_ref()
        .map_or_else(|| bare.to_str().unwrap().to_owned(), |host| format!("{}/team/one.git", host.url));
    let mut setup = Setup::new();
    let urls: Vec<String> = host.iter().map(|host| format!("{}/team/*", host.url)).collect();
    setup.git.allow = AllowList::new(&urls, vec![root.join("host/team")]).unwrap();
    let credential = |host: &GitHost| GitCredential {
        url_prefix: host.url.parse().unwrap(),
        username: "robot".to_owned(),
        token: GIT_TOKEN.to_owned().into(),
    };
    setup.git.credentials = host.iter().map(credential).collect();
    shorten(&mut setup);
    let mut spec = run_spec(Some(&repository));
    specify(&mut spec);
    let sandbox = Box::pin(world.sandbox(spec)).await;
    Box::pin(world.start(setup)).await;
    let client = Client::new(&sandbox, root.join("client")).await;
    let cloned = client.clone().await;
    assert!(cloned.ok, "{}", cloned.said);
    let work = client.directory.join("work");
    Scene { world, sandbox, bare, client, work, host }
}

impl Scene {
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.work.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Commits everything; answers the commit.
    pub(crate) async fn commit(&self, message: &str) -> String {
        git(&self.work, &["add", "-A", "."]).await;
        git(&self.work, &["commit", "-q", "--allow-empty", "-m", message]).await;
        git(&self.work, &["rev-parse", "HEAD"]).await
    }

    /// Pushes to the run's branch.
    pub(crate) async fn push(&self, arguments: &[&str]) -> Done {
        let own = format!("HEAD:{BRANCH}");
        self.client.push(&[arguments, &[&own]].concat()).await
    }

    /// Pushes what must be refused; answers the event of it. Nothing has changed and nothing is left.
    pub(crate) async fn refused(&self, arguments: &[&str]) -> (Value, String) {
        let (before, told) = (self.refs().await, self.denied().await.len());
        let pushed = self.push(arguments).await;
        assert!(!pushed.ok && pushed.said.contains("[remote rejected]"), "{}", pushed.said);
        assert!(pushed.said.contains("(caisson: "), "{}", pushed.said);
        assert_eq!(self.refs().await, before);
        self.assert_nothing_is_left().await;
        let denied = self.denied().await;
        assert!(denied.len() > told);
        (denied[told].clone(), pushed.said)
    }

    pub(crate) async fn accepted(&self, arguments: &[&str]) {
        let pushed = self.push(arguments).await;
        assert!(pushed.ok, "{}", pushed.said);
        let head = git(&self.work, &["rev-parse", "HEAD"]).await;
        assert_eq!(git(&self.bare, &["rev-parse", BRANCH]).await, head);
        self.assert_nothing_is_left().await;
    }

    async fn assert_nothing_is_left(&self) {
        let quarantine = self.world.root.path().join("held/quarantine");
        super::support::eventually(|| async {
            (std::fs::read_dir(&quarantine).unwrap().count() == 0).then_some(())
        })
        .await;
    }

    pub(crate) async fn refs(&self) -> String {
        git(&self.bare, &["for-each-ref"]).await
    }

    /// Everything that was told of the run.
    pub(crate) async fn told(&self) -> Vec<Value> {
        let events = self.world.store.events(&self.sandbox.run.id, 0, 1000).await.unwrap();
        events.iter().map(|event| serde_json::from_str(event.data.get()).unwrap()).collect()
    }

    pub(crate) async fn denied(&self) -> Vec<Value> {
        self.world.events(&self.sandbox.run.id, EventKind::GatewayDenied).await
    }

    /// Sends a push that no git would make: commands with these capabilities, and these bytes behind them.
    pub(crate) async fn forge(&self, new: &str, capabilities: &str, pack: &[u8]) -> Reply {
        let command = format!("{} {new} refs/heads/{BRANCH}\0 report-status {capabilities}", "0".repeat(40));
        let section = format!("{:04x}{command}0000", command.len() + 4);
        self.sandbox.agent(Method::POST, RECEIVE, [section.as_bytes(), pack].concat()).await
    }

    /// A pack of the clone's objects, named on lines of their own.
    pub(crate) async fn pack(&self, arguments: &[&str], objects: &str) -> Vec<u8> {
        let file = self.client.directory.join("forged");
        let name = file.to_str().unwrap();
        let all = [&["pack-objects", "-q"], arguments, &[name]].concat();
        let hash = git_with(&self.work, &all, objects.as_bytes()).await;
        std::fs::read(format!("{name}-{}.pack", hash.trim())).unwrap()
    }
}
