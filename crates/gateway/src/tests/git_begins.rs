//! Where new branches begin: what honest first pushes meet when the branches of the host have gone on, and what they are
//! compared with where there is none.

use std::path::Path;

use caisson_domain::event::EventKind;

use super::git_brought::{WORKFLOW, fetch, forbid, refused_for, seed, somebody, take, write};
use super::git_host::{Mood, git};
use super::git_scene::{BRANCH, KINDS, Kind, Scene, scene, scene_of};
use super::support::Setup;

type Shorten = fn(&mut Setup);

const MAIN: (&str, &str) = ("main", "refs/heads/main");
/// Most commits that are read in these tests.
const COMMITS: usize = 5;

/// The default branch goes on by more commits than are read.
async fn main_goes_on(scene: &Scene, path: &str) {
    for number in 0..=COMMITS + 1 {
        somebody(scene, MAIN, path, &format!("{number}\n")).await;
    }
}

/// A branch that stays where the work begins: git leaves out of a push what a branch of the host's is known to have.
async fn keep(scene: &Scene) {
    git(&scene.bare, &["branch", "kept", "main"]).await;
}

async fn remove_branch(scene: &Scene) {
    git(&scene.bare, &["update-ref", "-d", &format!("refs/heads/{BRANCH}")]).await;
}

fn seed_submodule(seeding: &Path) {
    seed(seeding);
    write(seeding, ".gitmodules", "[submodule \"x\"]\n\tpath = x\n\turl = https://elsewhere.example/x\n");
}

#[tokio::test]
async fn a_new_branch_begins_in_its_base_however_far_the_default_branch_is() {
    for kind in KINDS {
        let scene = scene_of(
            kind,
            |setup| setup.bounds.push.commits = COMMITS,
            seed_submodule,
            |spec| spec.base = Some("release/1.0".parse().unwrap()),
        )
        .await;
        keep(&scene).await;
        git(&scene.bare, &["branch", "release/1.0", "main"]).await;
        main_goes_on(&scene, "src/a").await;
        take(&scene, "release/1.0").await;
        scene.write("src/b", "mine\n");
        scene.commit("mine").await;
        // Neither branch has any longer what the work began with.
        somebody(&scene, MAIN, ".gitmodules", "").await;
        somebody(&scene, ("release/1.0", "refs/heads/release/1.0"), ".gitmodules", "").await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_branch_that_has_gone_on_further_than_is_read_is_compared_with() {
    for kind in KINDS {
        let shorten = |setup: &mut Setup| {
            forbid(setup);
            setup.bounds.push.commits = COMMITS;
        };
        let scene = scene(kind, shorten, seed).await;
        let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
        keep(&scene).await;
        scene.write("src/b", "mine\n");
        scene.commit("mine").await;
        main_goes_on(&scene, "src/c").await;
        scene.accepted(&[]).await;
        // What it has changed at such a path is told of in words that can be followed.
        remove_branch(&scene).await;
        somebody(&scene, MAIN, WORKFLOW, "theirs, again\n").await;
        git(&scene.work, &["reset", "-q", "--hard", &base]).await;
        scene.write("src/d", "mine\n");
        scene.commit("mine, again").await;
        let said = refused_for(&scene, "forbidden_path", WORKFLOW).await;
        assert!(said.contains("take it as the branch or its base branch has it"), "{said}");
        fetch(&scene, "main").await;
        git(&scene.work, &["rebase", "-q", "FETCH_HEAD"]).await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn where_nothing_is_forbidden_a_branch_that_has_gone_on_costs_no_question() {
    let scene = scene(Kind::Host, |_| {}, seed).await;
    let host = scene.host.as_ref().unwrap();
    let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
    let asked = async |path: &str| {
        scene.write(path, "mine\n");
        scene.commit("mine").await;
        let before = host.count("git-upload-pack");
        scene.accepted(&[]).await;
        host.count("git-upload-pack") - before
    };
    keep(&scene).await;
    let plain = asked("src/b").await;
    remove_branch(&scene).await;
    somebody(&scene, MAIN, WORKFLOW, "theirs, again\n").await;
    git(&scene.work, &["reset", "-q", "--hard", &base]).await;
    assert_eq!(asked("src/c").await, plain);
    scene.world.stop().await;
}

#[tokio::test]
async fn where_head_names_no_branch_a_refusal_says_so_and_a_base_is_compared_with() {
    for kind in KINDS {
        let without = scene(kind, forbid, seed).await;
        let with = scene_of(kind, forbid, seed, |spec| spec.base = Some("main".parse().unwrap())).await;
        for scene in [&without, &with] {
            git(&scene.bare, &["symbolic-ref", "HEAD", "refs/heads/nowhere"]).await;
            scene.write("src/b", "mine\n");
            scene.commit("mine").await;
        }
        let said = refused_for(&without, "forbidden_path", WORKFLOW).await;
        assert!(
            said.contains("HEAD names no branch") && said.contains("start the run with a base"),
            "{said}"
        );
        with.accepted(&[]).await;
        without.world.stop().await;
        with.world.stop().await;
    }
}

/// A commit with as many old commits of the default branch before it, each with the path as no other; its own is that of the
/// newest of them.
async fn with_beginnings(scene: &Scene, count: usize) -> String {
    let mut before = Vec::new();
    for number in 0..count {
        before.push(somebody(scene, MAIN, WORKFLOW, &format!("{number}\n")).await);
    }
    somebody(scene, MAIN, WORKFLOW, "the newest\n").await;
    fetch(scene, "main").await;
    let tree = format!("{}^{{tree}}", before.last().unwrap());
    let parents = before.iter().flat_map(|parent| ["-p", parent.as_str()]);
    let arguments: Vec<&str> = ["commit-tree", &tree, "-m", "x"].into_iter().chain(parents).collect();
    git(&scene.work, &arguments).await
}

#[tokio::test]
async fn so_many_beginnings_of_a_branch_are_looked_for() {
    for (count, fits) in [(4, true), (5, false)] {
        let scene = scene(Kind::Host, forbid, seed).await;
        let commit = with_beginnings(&scene, count).await;
        git(&scene.work, &["reset", "-q", "--hard", &commit]).await;
        if fits {
            scene.accepted(&[]).await;
        } else {
            let said = refused_for(&scene, "forbidden_path", WORKFLOW).await;
            assert!(said.contains("comes from elsewhere"), "{said}");
        }
        scene.world.stop().await;
    }
}

/// Has a commit of these parents for the next push, with the directory of the first but for what is done to it.
async fn merge(scene: &Scene, parents: [&str; 2], change: &[&str]) {
    git(&scene.work, &["reset", "-q", "--hard", parents[0]]).await;
    git(&scene.work, change).await;
    let tree = git(&scene.work, &["write-tree"]).await;
    let merged = ["commit-tree", tree.as_str(), "-p", parents[0], "-p", parents[1], "-m", "merge"];
    let merged = git(&scene.work, &merged).await;
    git(&scene.work, &["reset", "-q", "--hard", &merged]).await;
}

#[tokio::test]
async fn an_older_state_is_not_brought_by_a_merge_of_what_was_there_then() {
    for kind in KINDS {
        let scene = scene(kind, forbid, seed).await;
        let older = git(&scene.work, &["rev-parse", "HEAD"]).await;
        let newer = somebody(&scene, MAIN, WORKFLOW, "checked\n").await;
        somebody(&scene, MAIN, "src/a", "theirs, again\n").await;
        fetch(&scene, "main").await;
        // Of the newest commit, and of one that the branch has left behind.
        for (number, one) in ["FETCH_HEAD", newer.as_str()].into_iter().enumerate() {
            merge(&scene, [one, &older], &["checkout", "-q", &older, "--", WORKFLOW]).await;
            let said = refused_for(&scene, "forbidden_path", WORKFLOW).await;
            assert!(said.contains("comes from elsewhere"), "{number}: {said}");
        }
        // As the newer one has it, it is taken.
        merge(&scene, [&newer, &older], &["rm", "-q", "src/a"]).await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn nothing_is_taken_away_by_a_merge_of_a_commit_without_parents() {
    for kind in KINDS {
        for is_there in [false, true] {
            let scene = scene(kind, forbid, seed).await;
            if is_there {
                scene.write("src/b", "mine\n");
                scene.commit("mine").await;
                scene.accepted(&[]).await;
            }
            let head = git(&scene.work, &["rev-parse", "HEAD"]).await;
            let nothing = git(&scene.work, &["hash-object", "-t", "tree", "-w", "/dev/null"]).await;
            let root = git(&scene.work, &["commit-tree", &nothing, "-m", "root"]).await;
            merge(&scene, [&head, &root], &["rm", "-q", WORKFLOW]).await;
            let said = refused_for(&scene, "forbidden_path", WORKFLOW).await;
            assert!(said.contains("comes from elsewhere"), "{said}");
            // What nobody forbids may go so.
            merge(&scene, [&head, &root], &["rm", "-q", "src/a"]).await;
            scene.accepted(&[]).await;
            scene.world.stop().await;
        }
    }
}

#[tokio::test]
async fn a_host_of_the_older_protocol_takes_pushes_where_no_path_is_forbidden() {
    let cases: [(Shorten, bool); 2] = [(|_| {}, true), (forbid, false)];
    for (shorten, fits) in cases {
        let scene = scene(Kind::Host, shorten, seed).await;
        keep(&scene).await;
        scene.host.as_ref().unwrap().set_mood(Mood::SpeaksOldProtocol);
        somebody(&scene, MAIN, "src/a", "theirs, again\n").await;
        scene.write("src/b", "mine\n");
        scene.commit("mine").await;
        if fits {
            scene.accepted(&[]).await;
            // The whole of it is a directory that the host has.
            scene.commit("nothing").await;
            scene.accepted(&[]).await;
        } else {
            let before = scene.refs().await;
            assert!(!scene.push(&[]).await.ok);
            assert_eq!(scene.refs().await, before);
            let failed = scene.world.events(&scene.sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
            let message = failed[0]["message"].as_str().unwrap();
            assert!(message.contains("protocol version 2"), "{message}");
        }
        scene.world.stop().await;
    }
}
