//! Branches whose files steer agents: which pushes are refused for that, and which are not.

use std::path::PathBuf;

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use caisson_domain::run::RunSpec;
use caisson_domain::workflow::Workflow;
use http::Method;

use super::git_host::{Client, Done, git};
use super::git_scene::{KINDS, Kind, Scene, scene_of};
use super::support::{Sandbox, Setup, World, fetch, run_spec};

/// The run's branch, which has no name that is made for runs.
const OWN: &str = "team/x";
const FETCH: &str = "/git/origin/info/refs?service=git-upload-pack";

fn own(spec: &mut RunSpec) {
    spec.branch = Some(OWN.parse().unwrap());
}

async fn own_scene(kind: Kind, specify: fn(&mut RunSpec)) -> Scene {
    let scene = scene_of(kind, |_| {}, |_| {}, specify).await;
    scene.commit("steer").await;
    scene
}

impl Scene {
    /// Pushes to [`OWN`], which must be refused in these words.
    async fn steers(&self, words: &str) {
        let (before, told) = (self.refs().await, self.denied().await.len());
        let pushed = self.client.push(&["HEAD:refs/heads/team/x"]).await;
        assert!(!pushed.ok && pushed.said.contains("(caisson: team/x "), "{}", pushed.said);
        assert!(pushed.said.contains(words) && pushed.said.contains("trust.publish"), "{}", pushed.said);
        let denied = &self.denied().await[told];
        assert_eq!(
            (&denied["rule"], &denied["ref"]),
            (&"trusted_branch".into(), &"refs/heads/team/x".into())
        );
        assert!(denied["remedy"].as_str().unwrap().contains("name another branch"), "{denied}");
        assert_eq!(self.refs().await, before);
        assert_eq!(self.world.events(&self.sandbox.run.id, EventKind::GitPush).await.len(), 0);
    }

    async fn taken(&self) {
        let pushed = self.client.push(&["HEAD:refs/heads/team/x"]).await;
        assert!(pushed.ok, "{}", pushed.said);
    }

    async fn head(&self, branch: &str) {
        git(&self.bare, &["symbolic-ref", "HEAD", &format!("refs/heads/{branch}")]).await;
    }
}

async fn trust(world: &World, entry: &str) {
    let text =
        format!("---\nname: releases\ndescription: x\ncaisson: {{trust: {{branches: ['{entry}']}}}}\n---\n");
    let workflow = Workflow::parse(&text).unwrap();
    world.store.put_workflow(&"default".parse().unwrap(), &workflow).await.unwrap();
}

#[tokio::test]
async fn no_run_pushes_to_the_default_branch_by_any_name_of_it() {
    for kind in KINDS {
        let scene = own_scene(kind, own).await;
        git(&scene.bare, &["branch", OWN, "main"]).await;
        scene.head(OWN).await;
        scene.steers("is the repository's default branch").await;
        git(&scene.bare, &["branch", "-m", OWN, "trunk"]).await;
        git(&scene.bare, &["symbolic-ref", "refs/heads/team/x", "refs/heads/trunk"]).await;
        scene.head("trunk").await;
        scene.steers("is the repository's default branch").await;
        // It is not there yet, and whoever made it would have made the default branch.
        git(&scene.bare, &["symbolic-ref", "-d", "refs/heads/team/x"]).await;
        scene.head(OWN).await;
        scene.steers("is the repository's default branch").await;
        scene.head("main").await;
        scene.taken().await;
        // No branch is: HEAD is a commit.
        git(&scene.bare, &["update-ref", "--no-deref", "HEAD", "main"]).await;
        scene.commit("more").await;
        scene.taken().await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn no_run_pushes_to_a_branch_that_a_workflow_trusts_by_any_name_of_it() {
    for kind in KINDS {
        let scene = own_scene(kind, own).await;
        trust(&scene.world, "team/*").await;
        scene.steers("trusted by the workflow releases").await;
        trust(&scene.world, "release/*").await;
        git(&scene.bare, &["branch", "release/1", "main"]).await;
        git(&scene.bare, &["symbolic-ref", "refs/heads/team/x", "refs/heads/release/1"]).await;
        scene.steers("trusted by the workflow releases").await;
        git(&scene.bare, &["symbolic-ref", "-d", "refs/heads/team/x"]).await;
        scene.taken().await;
        scene.world.stop().await;
    }
    // By the run's own workflow, as it was when the run was made; a name that was made for a run is looked at with its push.
    let trusts_made =
        |spec: &mut RunSpec| spec.workflow.caisson.trust.branches = vec!["caisson/*".to_owned()];
    let scene = own_scene(Kind::Directory, trusts_made).await;
    let (denied, said) = scene.refused(&[]).await;
    assert_eq!(denied["rule"], "trusted_branch");
    assert!(said.contains("trusted by the workflow fixer"), "{said}");
    scene.world.stop().await;
}

#[tokio::test]
async fn a_workflow_that_says_so_has_its_runs_push_to_what_steers() {
    let scene = own_scene(Kind::Host, |spec| {
        own(spec);
        spec.workflow.caisson.trust.publish = true;
    })
    .await;
    trust(&scene.world, "team/*").await;
    git(&scene.bare, &["branch", OWN, "main"]).await;
    scene.head(OWN).await;
    scene.taken().await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_branch_that_steers_is_told_of_before_the_agent_begins() {
    let scene = own_scene(Kind::Host, own).await;
    let asked = async || fetch(scene.sandbox.request(Method::GET, FETCH, &scene.sandbox.agent)).await;
    assert_eq!(asked().await.status, 200);
    trust(&scene.world, "team/*").await;
    let refused = asked().await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "policy_denied"));
    assert!(refused.text().contains("trusted by the workflow releases"), "{}", refused.text());
    trust(&scene.world, "release/*").await;
    git(&scene.bare, &["branch", OWN, "main"]).await;
    scene.head(OWN).await;
    assert!(asked().await.text().contains("is the repository's default branch"));
    let denied = scene.denied().await;
    assert_eq!((denied.len(), &denied[1]["rule"]), (2, &"policy_denied".into()));
    scene.world.stop().await;
}

#[tokio::test]
async fn a_branch_that_the_run_made_beside_others_is_the_default_branch_like_any_other() {
    for kind in KINDS {
        let scene = own_scene(kind, own).await;
        scene.taken().await;
        scene.commit("more").await;
        scene.taken().await;
        // Somebody makes it the default branch while the run lives.
        scene.head(OWN).await;
        let (before, more) = (scene.refs().await, scene.commit("steer others").await);
        let pushed = scene.client.push(&["HEAD:refs/heads/team/x"]).await;
        assert!(!pushed.ok && pushed.said.contains("is the repository's default branch"), "{}", pushed.said);
        assert_eq!(scene.denied().await.last().unwrap()["rule"], "trusted_branch");
        assert_eq!(scene.refs().await, before);
        // Also where nothing else is left.
        git(&scene.bare, &["update-ref", "-d", "refs/heads/main"]).await;
        assert!(!scene.client.push(&["HEAD:refs/heads/team/x"]).await.ok);
        git(&scene.bare, &["branch", "main", OWN]).await;
        scene.head("main").await;
        scene.taken().await;
        assert_eq!(git(&scene.bare, &["rev-parse", OWN]).await, more);
        scene.world.stop().await;
    }
}

/// An empty repository whose default branch is to be `trunk`, and a clone of it for a run on `branch`.
struct Beginning {
    world: World,
    sandbox: Sandbox,
    client: Client,
    bare: PathBuf,
    branch: &'static str,
}

impl Beginning {
    async fn of(branch: &'static str) -> Self {
        let world = World::new().await;
        let root = world.root.path().canonicalize().unwrap();
        git(&root, &["init", "-q", "--bare", "-b", "trunk", "bare.git"]).await;
        let bare = root.join("bare.git");
        let mut spec = run_spec(Some(bare.to_str().unwrap()));
        spec.branch = Some(branch.parse().unwrap());
        let sandbox = world.sandbox(spec).await;
        let mut setup = Setup::new();
        setup.git.allow = AllowList::new(&[], vec![root.clone()]).unwrap();
        world.start(setup).await;
        let client = Client::new(&sandbox, root.join("client")).await;
        let cloned = client.clone().await;
        assert!(cloned.ok, "{}", cloned.said);
        let work = client.directory.join("work");
        std::fs::write(work.join("file"), "one\n").unwrap();
        git(&work, &["add", "."]).await;
        git(&work, &["commit", "-qm", "first"]).await;
        Self { world, sandbox, client, bare, branch }
    }

    async fn push(&self) -> Done {
        self.client.push(&[&format!("HEAD:refs/heads/{}", self.branch)]).await
    }

    async fn began(&self) -> bool {
        self.world.store.began_repository(&self.sandbox.run.id).await.unwrap()
    }
}

#[tokio::test]
async fn whatever_begins_an_empty_repository_stays_the_runs_also_where_the_host_makes_it_the_default() {
    let beginning = Beginning::of("team/x").await;
    assert!(beginning.push().await.ok && beginning.began().await);
    // As hosts do whose repository was empty.
    git(&beginning.bare, &["symbolic-ref", "HEAD", "refs/heads/team/x"]).await;
    let more = beginning.client.commit("two\n").await;
    let pushed = beginning.push().await;
    assert!(pushed.ok, "{}", pushed.said);
    assert_eq!(git(&beginning.bare, &["rev-parse", "team/x"]).await, more);
    beginning.world.stop().await;

    // One that somebody else began is not, whatever was so before.
    let beginning = Beginning::of("team/x").await;
    beginning.world.store.set_began_repository(&beginning.sandbox.run.id, true).await.unwrap();
    let work = beginning.client.directory.join("work");
    git(&work, &["push", "-q", beginning.bare.to_str().unwrap(), "HEAD:trunk"]).await;
    assert!(beginning.push().await.ok && !beginning.began().await);
    git(&beginning.bare, &["symbolic-ref", "HEAD", "refs/heads/team/x"]).await;
    beginning.client.commit("two\n").await;
    let pushed = beginning.push().await;
    assert!(!pushed.ok && pushed.said.contains("default branch"), "{}", pushed.said);
    beginning.world.stop().await;
}

#[tokio::test]
async fn an_empty_repository_takes_its_first_branch_and_what_its_run_adds_to_it() {
    let beginning = Beginning::of("trunk").await;
    let pushed = beginning.push().await;
    assert!(pushed.ok, "{}", pushed.said);
    // What it has made is its own as long as it works.
    let more = beginning.client.commit("two\n").await;
    let pushed = beginning.push().await;
    assert!(pushed.ok, "{}", pushed.said);
    assert_eq!(git(&beginning.bare, &["rev-parse", "trunk"]).await, more);
    beginning.world.stop().await;
}
