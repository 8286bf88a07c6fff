//! What a push brings from elsewhere on the host: a stranger's commits, which its pack does not hold; and commits that say of
//! themselves what git does not read.

use std::path::Path;

use super::git_host::{git, git_with};
use super::git_scene::{BRANCH, KINDS, Kind, Scene, scene, scene_of};
use super::support::Setup;

pub(super) const WORKFLOW: &str = ".github/workflows/ci.yml";
/// Where hosts keep the head of a change request.
pub(super) const STRANGER: &str = "refs/pull/1/head";

pub(super) fn forbid(setup: &mut Setup) {
    setup.git.pushes.forbidden_paths = vec![".github/workflows".to_owned()];
}

pub(super) fn seed(seeding: &Path) {
    write(seeding, WORKFLOW, "theirs\n");
    write(seeding, "src/a", "a\n");
}

pub(super) fn write(directory: &Path, path: &str, text: &str) {
    std::fs::create_dir_all(directory.join(path).parent().unwrap()).unwrap();
    std::fs::write(directory.join(path), text).unwrap();
}

/// Somebody's clone of the repository.
fn others(scene: &Scene) -> std::path::PathBuf {
    scene.world.root.path().canonicalize().unwrap().join("seeding")
}

/// Somebody commits a file on top of `from`, and has it at `to`.
pub(super) async fn somebody(scene: &Scene, (from, to): (&str, &str), path: &str, text: &str) -> String {
    let other = others(scene);
    git(&other, &["fetch", "-q", "origin", from]).await;
    git(&other, &["checkout", "-q", "--detach", "FETCH_HEAD"]).await;
    write(&other, path, text);
    git(&other, &["add", "-A"]).await;
    git(&other, &["commit", "-q", "-m", "theirs"]).await;
    git(&other, &["push", "-q", "origin", &format!("HEAD:{to}")]).await;
    git(&other, &["rev-parse", "HEAD"]).await
}

pub(super) async fn fetch(scene: &Scene, name: &str) {
    let fetched = scene.client.git("work", &["fetch", "-q", "origin", name]).await;
    assert!(fetched.ok, "{}", fetched.said);
}

pub(super) async fn take(scene: &Scene, name: &str) {
    fetch(scene, name).await;
    git(&scene.work, &["reset", "-q", "--hard", "FETCH_HEAD"]).await;
}

async fn merge(scene: &Scene, name: &str) {
    fetch(scene, name).await;
    git(&scene.work, &["merge", "-q", "--no-ff", "--no-edit", "FETCH_HEAD"]).await;
}

pub(super) async fn refused_for(scene: &Scene, rule: &str, path: &str) -> String {
    let (denied, said) = scene.refused(&[]).await;
    assert_eq!((&denied["rule"], &denied["path"]), (&rule.into(), &path.into()), "{said}");
    said
}

#[tokio::test]
async fn a_strangers_commit_is_not_pushed_for_its_forbidden_path() {
    for kind in KINDS {
        let scene = scene(kind, forbid, seed).await;
        let stranger = somebody(&scene, ("main", STRANGER), WORKFLOW, "a stranger's\n").await;
        // As it is: the host has it already, so that the pack is empty.
        take(&scene, STRANGER).await;
        let said = refused_for(&scene, "forbidden_path", WORKFLOW).await;
        assert!(said.contains("comes from elsewhere") && said.contains(&stranger[..12]), "{said}");
        // With something on top of it.
        scene.write("src/a", "mine\n");
        scene.commit("mine").await;
        refused_for(&scene, "forbidden_path", WORKFLOW).await;
        // Merged into a branch that is new, and into one that is there.
        for there in [false, true] {
            take(&scene, "main").await;
            scene.write("src/b", "mine\n");
            scene.commit("mine").await;
            if there {
                scene.accepted(&[]).await;
            }
            merge(&scene, STRANGER).await;
            refused_for(&scene, "forbidden_path", WORKFLOW).await;
            scene.commit("more").await;
            refused_for(&scene, "forbidden_path", WORKFLOW).await;
        }
        // What is put back in a merge is what it was.
        git(&scene.work, &["checkout", "-q", "HEAD~2", "--", WORKFLOW]).await;
        scene.commit("put back").await;
        let (denied, _) = scene.refused(&[]).await;
        assert_eq!(denied["rule"], "forbidden_path", "a commit of the push changes it");
        take(&scene, BRANCH).await;
        fetch(&scene, STRANGER).await;
        git(&scene.work, &["merge", "-q", "--no-commit", "--no-ff", "FETCH_HEAD"]).await;
        git(&scene.work, &["checkout", "-q", "HEAD", "--", WORKFLOW]).await;
        scene.commit("theirs without it").await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn what_a_workflow_forbids_is_not_brought_either() {
    for kind in KINDS {
        let scene = scene_of(
            kind,
            |_| {},
            seed,
            |spec| spec.workflow.caisson.forbidden_paths = vec![".github/workflows".to_owned()],
        )
        .await;
        somebody(&scene, ("main", STRANGER), WORKFLOW, "a stranger's\n").await;
        take(&scene, STRANGER).await;
        let said = refused_for(&scene, "forbidden_path", WORKFLOW).await;
        assert!(
            said.contains("comes from elsewhere") && said.contains("the run's workflow forbids"),
            "{said}"
        );
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_strangers_commit_is_taken_if_it_leaves_forbidden_paths_alone() {
    for kind in KINDS {
        let scene = scene(kind, forbid, seed).await;
        somebody(&scene, ("main", STRANGER), "src/a", "a stranger's\n").await;
        take(&scene, STRANGER).await;
        scene.accepted(&[]).await;
        somebody(&scene, ("main", "refs/pull/2/head"), "src/b", "another's\n").await;
        merge(&scene, "refs/pull/2/head").await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn what_the_hosts_branches_have_is_no_change_of_the_runs() {
    for kind in KINDS {
        let scene = scene(kind, forbid, seed).await;
        let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
        // The default branch goes on while the run works: its beginning is that branch's own.
        somebody(&scene, ("main", "refs/heads/main"), WORKFLOW, "theirs, again\n").await;
        scene.write("src/b", "mine\n");
        scene.commit("mine").await;
        scene.accepted(&[]).await;
        merge(&scene, "main").await;
        scene.accepted(&[]).await;
        assert_eq!(std::fs::read_to_string(scene.work.join(WORKFLOW)).unwrap(), "theirs, again\n");
        // Put on top of the newest instead.
        take(&scene, "main").await;
        scene.write("src/c", "mine\n");
        scene.commit("rebased").await;
        scene.accepted(&["--force"]).await;
        // A branch that is there is not led back to how the path was before.
        git(&scene.work, &["reset", "-q", "--hard", &base]).await;
        scene.write("src/d", "mine\n");
        scene.commit("from before").await;
        let (denied, _) = scene.refused(&["--force"]).await;
        assert_eq!((&denied["rule"], &denied["path"]), (&"forbidden_path".into(), &WORKFLOW.into()));
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_branch_that_was_removed_is_pushed_again_with_what_its_session_had_pushed() {
    let scene = scene(Kind::Host, forbid, seed).await;
    scene.write("src/b", "mine\n");
    scene.commit("mine").await;
    scene.accepted(&[]).await;
    git(&scene.bare, &["update-ref", "refs/pull/1/head", BRANCH]).await;
    git(&scene.bare, &["update-ref", "-d", &format!("refs/heads/{BRANCH}")]).await;
    somebody(&scene, ("main", "refs/heads/main"), WORKFLOW, "theirs, again\n").await;
    scene.accepted(&[]).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_runs_base_branch_is_merged_with_what_it_has() {
    let scene =
        scene_of(Kind::Host, forbid, seed, |spec| spec.base = Some("team/next".parse().unwrap())).await;
    somebody(&scene, ("main", "refs/heads/team/next"), WORKFLOW, "the next\n").await;
    somebody(&scene, ("main", "refs/heads/team/other"), WORKFLOW, "another\n").await;
    take(&scene, "team/next").await;
    scene.write("src/b", "mine\n");
    scene.commit("mine").await;
    scene.accepted(&[]).await;
    somebody(&scene, ("team/next", "refs/heads/team/next"), WORKFLOW, "the next but one\n").await;
    merge(&scene, "team/next").await;
    scene.accepted(&[]).await;
    // Any other branch is anybody's.
    fetch(&scene, "team/other").await;
    git(&scene.work, &["merge", "-q", "--no-ff", "--no-edit", "-X", "theirs", "FETCH_HEAD"]).await;
    refused_for(&scene, "forbidden_path", WORKFLOW).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_strangers_submodule_comes_from_an_allowed_repository() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, seed).await;
        let module = |url: &str| format!("[submodule \"x\"]\n\tpath = x\n\turl = {url}\n");
        somebody(&scene, ("main", STRANGER), ".gitmodules", &module("https://evil.example/x")).await;
        take(&scene, STRANGER).await;
        refused_for(&scene, "submodule", ".gitmodules").await;
        take(&scene, "main").await;
        scene.write("src/b", "mine\n");
        scene.commit("mine").await;
        merge(&scene, STRANGER).await;
        refused_for(&scene, "submodule", ".gitmodules").await;
        // What keeps the stranger's URL beside a new one brings it as well.
        let text = std::fs::read_to_string(scene.work.join(".gitmodules")).unwrap();
        scene.write(".gitmodules", &format!("{text}[submodule \"y\"]\n\tpath = y\n\turl = ../two.git\n"));
        scene.commit("another").await;
        refused_for(&scene, "submodule", ".gitmodules").await;
        take(&scene, "main").await;
        somebody(&scene, ("main", "refs/pull/2/head"), ".gitmodules", &module("../two.git")).await;
        merge(&scene, "refs/pull/2/head").await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

/// A commit object as it is written, whatever git thinks of it.
async fn forged(scene: &Scene, text: &str) -> String {
    git_with(&scene.work, &["hash-object", "-t", "commit", "--literally", "-w", "--stdin"], text.as_bytes())
        .await
        .trim()
        .to_owned()
}

#[tokio::test]
async fn a_parent_that_git_does_not_read_adds_nothing_to_a_branch() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, seed).await;
        let old = somebody(&scene, ("main", &format!("refs/heads/{BRANCH}")), "src/a", "their work\n").await;
        let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
        let tree = git(&scene.work, &["rev-parse", "HEAD^{tree}"]).await;
        fetch(&scene, BRANCH).await;
        let who = "A <a@example.com> 1 +0000";
        for (before, behind) in [
            ("", format!("parent {old}\n")),
            ("", format!("encoding UTF-8\nparent {old}\n")),
            ("", format!("gpgsig x\n y\nparent {old}\n")),
        ] {
            let text = format!(
                "tree {tree}\nparent {base}\n{before}author {who}\ncommitter {who}\n{behind}\nfeat: x\n"
            );
            let commit = forged(&scene, &text).await;
            git(&scene.work, &["reset", "-q", "--hard", &commit]).await;
            let (denied, said) = scene.refused(&["--force"]).await;
            assert_eq!(denied["rule"], "no_rewrite", "{said}");
        }
        // The same where git reads it adds to the branch.
        let text =
            format!("tree {tree}\nparent {base}\nparent {old}\nauthor {who}\ncommitter {who}\n\nfeat: x\n");
        let commit = forged(&scene, &text).await;
        git(&scene.work, &["reset", "-q", "--hard", &commit]).await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

/// A tree object as it is written, whatever git thinks of it: modes, names and objects.
async fn tree(scene: &Scene, entries: &[(&str, String, &str)]) -> String {
    let raw: Vec<u8> = entries
        .iter()
        .flat_map(|(mode, name, id)| {
            [format!("{mode} {name}\0").as_bytes(), &hex::decode(id).unwrap()].concat()
        })
        .collect();
    let arguments = ["hash-object", "-t", "tree", "--literally", "-w", "--stdin"];
    git_with(&scene.work, &arguments, &raw).await.trim().to_owned()
}

#[tokio::test]
async fn an_entry_that_git_does_not_write_is_refused() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, seed).await;
        let file = git(&scene.work, &["rev-parse", "HEAD:src/a"]).await;
        let inner = git(&scene.work, &["rev-parse", "HEAD:src"]).await;
        let (file, inner) = (file.as_str(), inner.as_str());
        let push = async |mode: &str, id: &str| {
            let tree = tree(&scene, &[(mode, "x".to_owned(), id)]).await;
            let commit = git(&scene.work, &["commit-tree", &tree, "-p", "main", "-m", "x"]).await;
            let pushed = scene.client.push(&["--force", &format!("{commit}:refs/heads/{BRANCH}")]).await;
            (pushed.ok, pushed.said)
        };
        for (mode, id) in
            [("40755", inner), ("40777", inner), ("1040000", inner), ("100600", file), ("100777", file)]
        {
            let (ok, said) = push(mode, id).await;
            assert!(!ok && said.contains("the pack was refused"), "{mode}: {said}");
            assert_eq!(scene.denied().await.last().unwrap()["rule"], "pack");
        }
        for (mode, id) in [("40000", inner), ("100644", file), ("100664", file), ("120000", file)] {
            let (ok, said) = push(mode, id).await;
            assert!(ok, "{mode}: {said}");
        }
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_tree_bomb_is_one_whatever_the_modes_of_its_directories() {
    let scene = scene(Kind::Host, |_| {}, seed).await;
    let mut below = git(&scene.work, &["rev-parse", "HEAD:src/a"]).await;
    for (level, mode) in ["100644"].into_iter().chain(["40755"; 9]).enumerate() {
        let entries: Vec<_> =
            (0..10).map(|number| (mode, format!("{level}{number}"), below.as_str())).collect();
        below = tree(&scene, &entries).await;
    }
    let commit = git(&scene.work, &["commit-tree", &below, "-p", "main", "-m", "x"]).await;
    let pushed = scene.client.push(&[&format!("{commit}:refs/heads/{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("the pack was refused"), "{}", pushed.said);
    assert_eq!(scene.denied().await[0]["rule"], "pack");
    scene.world.stop().await;
}
