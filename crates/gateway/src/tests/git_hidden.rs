//! Directories that a push has and does not hold: the host has them, from whomever.

use caisson_domain::event::EventKind;
use serde_json::Value;

use super::git_brought::{STRANGER, WORKFLOW, fetch, forbid, seed, somebody, take};
use super::git_host::{git, git_with};
use super::git_scene::{BRANCH, KINDS, Scene, scene};
use super::support::Setup;

const EVIL: &str = "[submodule \"x\"]\n\tpath = x\n\turl = https://evil.example/x\n";

/// Pushes a commit as a new branch, with these objects and no others.
async fn push_alone(scene: &Scene, commit: &str, objects: &[&str]) {
    let pack = scene.pack(&[], &format!("{}\n", objects.join("\n"))).await;
    scene.forge(commit, "", &pack).await;
}

async fn refused_alone(scene: &Scene, commit: &str, objects: &[&str]) -> Value {
    let (before, told) = (scene.refs().await, scene.denied().await.len());
    push_alone(scene, commit, objects).await;
    assert_eq!(scene.refs().await, before);
    scene.denied().await[told].clone()
}

async fn accepted_alone(scene: &Scene, commit: &str, objects: &[&str]) {
    push_alone(scene, commit, objects).await;
    assert_eq!(git(&scene.bare, &["rev-parse", BRANCH]).await, commit);
}

async fn commit_of(scene: &Scene, tree: &str) -> String {
    git(&scene.work, &["commit-tree", tree, "-p", "main", "-m", "x"]).await
}

#[tokio::test]
async fn a_strangers_whole_directory_is_not_pushed_for_its_submodules() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, seed).await;
        somebody(&scene, ("main", STRANGER), ".gitmodules", EVIL).await;
        fetch(&scene, STRANGER).await;
        let commit = commit_of(&scene, "FETCH_HEAD^{tree}").await;
        let denied = refused_alone(&scene, &commit, &[&commit]).await;
        let wanted = (&"submodule".into(), &".gitmodules".into(), &commit.as_str().into());
        assert_eq!((&denied["rule"], &denied["path"], &denied["commit"]), wanted);
        // Behind a commit that puts it back, too: whoever checks that one out has it.
        let top = git(&scene.work, &["commit-tree", "main^{tree}", "-p", &commit, "-m", "y"]).await;
        let denied = refused_alone(&scene, &top, &[&commit, &top]).await;
        assert_eq!((&denied["rule"], &denied["commit"]), (&"submodule".into(), &commit.as_str().into()));
        // One without any is taken, and the one that has nothing in it.
        let commit = commit_of(&scene, "main^{tree}").await;
        accepted_alone(&scene, &commit, &[&commit]).await;
        take(&scene, BRANCH).await;
        git(&scene.work, &["rm", "-rq", "."]).await;
        scene.commit("nothing").await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

/// The directory of `main` with another object under one name.
async fn main_with(scene: &Scene, name: &str, object: &str) -> String {
    let listed = git(&scene.work, &["ls-tree", "main"]).await;
    let lines = listed.lines().map(|line| match line.split_once('\t') {
        Some((head, path)) if path == name => {
            format!("{} {object}\t{path}\n", &head[..head.rfind(' ').unwrap()])
        }
        Some(_) | None => format!("{line}\n"),
    });
    let lines = lines.collect::<Vec<_>>().concat();
    git_with(&scene.work, &["mktree"], lines.as_bytes()).await.trim().to_owned()
}

#[tokio::test]
async fn a_strangers_directory_inside_a_new_one_is_compared() {
    for kind in KINDS {
        let scene = scene(kind, forbid, seed).await;
        somebody(&scene, ("main", STRANGER), WORKFLOW, "a stranger's\n").await;
        somebody(&scene, ("main", "refs/pull/2/head"), "src/a", "a stranger's\n").await;
        fetch(&scene, STRANGER).await;
        let theirs = git(&scene.work, &["rev-parse", "FETCH_HEAD:.github"]).await;
        let root = main_with(&scene, ".github", &theirs).await;
        let commit = commit_of(&scene, &root).await;
        let denied = refused_alone(&scene, &commit, &[&commit, &root]).await;
        let wanted = (&"forbidden_path".into(), &WORKFLOW.into(), &commit.as_str().into());
        assert_eq!((&denied["rule"], &denied["path"], &denied["commit"]), wanted);
        // As the whole of it.
        let commit = commit_of(&scene, "FETCH_HEAD^{tree}").await;
        let denied = refused_alone(&scene, &commit, &[&commit]).await;
        assert_eq!((&denied["rule"], &denied["path"]), (&"forbidden_path".into(), &WORKFLOW.into()));
        fetch(&scene, "refs/pull/2/head").await;
        let theirs = git(&scene.work, &["rev-parse", "FETCH_HEAD:src"]).await;
        let root = main_with(&scene, "src", &theirs).await;
        let commit = commit_of(&scene, &root).await;
        accepted_alone(&scene, &commit, &[&commit, &root]).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_directory_that_nobody_has_is_not_pushed() {
    for kind in KINDS {
        let both: [fn(&mut Setup); 2] = [|_| {}, forbid];
        for shorten in both {
            let scene = scene(kind, shorten, seed).await;
            let base = git(&scene.work, &["rev-parse", "main"]).await;
            let who = "A <a@example.com> 1 +0000";
            let text =
                format!("tree {}\nparent {base}\nauthor {who}\ncommitter {who}\n\nfeat: x\n", "1".repeat(40));
            let arguments = ["hash-object", "-t", "commit", "--literally", "-w", "--stdin"];
            let commit = git_with(&scene.work, &arguments, text.as_bytes()).await.trim().to_owned();
            let before = scene.refs().await;
            push_alone(&scene, &commit, &[&commit]).await;
            assert_eq!(scene.refs().await, before);
            let failed = scene.world.events(&scene.sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
            let message = failed[0]["message"].as_str().unwrap();
            assert!(message.contains("could not look at the push"), "{message}");
            scene.world.stop().await;
        }
    }
}
