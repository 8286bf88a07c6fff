//! What pushes must not change: forbidden paths, submodules from elsewhere, and history that is not the run's own.

use std::path::Path;

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;

use super::git_host::{Client, git};
use super::git_scene::{BRANCH, KINDS, Kind, Scene, scene, scene_of};
use super::support::{Setup, World, run_spec};

fn seed_workflow(seeding: &Path) {
    for path in [".github/workflows/ci.yml", "docs/guide/ci.yml", "src/a"] {
        std::fs::create_dir_all(seeding.join(path).parent().unwrap()).unwrap();
        std::fs::write(seeding.join(path), path).unwrap();
    }
}

#[tokio::test]
async fn a_forbidden_path_is_not_changed_by_any_commit() {
    for kind in KINDS {
        let scene = scene(
            kind,
            |setup| {
                setup.git.pushes.forbidden_paths =
                    vec![".github/workflows".to_owned(), "**/*.pem".to_owned()];
            },
            seed_workflow,
        )
        .await;
        let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
        let refuse = async |path: &str| {
            let commit = scene.commit("change").await;
            let (denied, said) = scene.refused(&[]).await;
            assert_eq!(
                (&denied["rule"], &denied["path"]),
                (&"forbidden_path".into(), &path.into()),
                "{kind:?}"
            );
            assert_eq!(denied["commit"], commit);
            assert!(said.contains("leave it as it was"), "{said}");
            git(&scene.work, &["reset", "-q", "--hard", &base]).await;
        };
        scene.write(".github/workflows/ci.yml", "other");
        refuse(".github/workflows/ci.yml").await;
        std::fs::remove_file(scene.work.join(".github/workflows/ci.yml")).unwrap();
        refuse(".github/workflows/ci.yml").await;
        scene.write("src/deep/KEY.PEM", "x");
        refuse("src/deep/KEY.PEM").await;
        // A directory that the repository has already, in a place where it must not be: the push holds nothing of it.
        std::fs::remove_dir_all(scene.work.join(".github/workflows")).unwrap();
        git(&scene.work, &["mv", "docs/guide", ".github/workflows"]).await;
        refuse(".github/workflows/ci.yml").await;
        // What lies beside it may change.
        scene.write("src/a", "other");
        scene.write(".github/dependabot.yml", "x");
        scene.commit("fine").await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_workflow_forbids_paths_beside_those_that_the_server_forbids() {
    for kind in KINDS {
        let scene = scene_of(
            kind,
            |setup| setup.git.pushes.forbidden_paths = vec!["Makefile".to_owned()],
            seed_workflow,
            // What the server forbids cannot be allowed again.
            |spec| spec.workflow.caisson.forbidden_paths = vec!["docs/**".to_owned(), "!Makefile".to_owned()],
        )
        .await;
        let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
        for (path, whose) in
            [("docs/guide/ci.yml", "the run's workflow forbids"), ("Makefile", "this server lets no run")]
        {
            scene.write(path, "other");
            scene.commit("change").await;
            let (denied, said) = scene.refused(&[]).await;
            assert_eq!(
                (&denied["rule"], &denied["path"]),
                (&"forbidden_path".into(), &path.into()),
                "{kind:?}"
            );
            assert!(said.contains(whose), "{said}");
            git(&scene.work, &["reset", "-q", "--hard", &base]).await;
        }
        scene.write("src/a", "other");
        scene.commit("fine").await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
    // A pattern that another version has taken and this one cannot read lets nothing pass.
    let scene = scene_of(
        Kind::Host,
        |_| {},
        |_| {},
        |spec| spec.workflow.caisson.forbidden_paths = vec!["a//b".to_owned()],
    )
    .await;
    scene.write("x", "x");
    scene.commit("harmless").await;
    let (denied, said) = scene.refused(&[]).await;
    assert!(denied["rule"] == "forbidden_path" && said.contains("caisson.forbidden_paths"), "{said}");
    scene.world.stop().await;
}

#[tokio::test]
async fn a_merge_brings_what_others_did_to_a_forbidden_path() {
    let scene =
        scene(Kind::Host, |setup| setup.git.pushes.forbidden_paths = vec!["Makefile".to_owned()], |_| {})
            .await;
    scene.write("mine", "x");
    scene.commit("mine").await;
    scene.accepted(&[]).await;
    let other = scene.world.root.path().join("seeding");
    std::fs::write(other.join("Makefile"), "all:\n").unwrap();
    git(&other, &["add", "."]).await;
    git(&other, &["commit", "-qm", "theirs"]).await;
    git(&other, &["push", "-q", "origin", "HEAD:main"]).await;
    assert!(scene.client.git("work", &["pull", "-q", "--no-rebase", "--no-edit", "origin", "main"]).await.ok);
    scene.accepted(&[]).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_submodule_comes_from_an_allowed_repository_or_was_there() {
    for kind in KINDS {
        let scene = scene(
            kind,
            |_| {},
            |seeding| {
                let old = "[submodule \"old\"]\n\tpath = old\n\turl = https://elsewhere.example/old\n";
                std::fs::write(seeding.join(".gitmodules"), old).unwrap();
            },
        )
        .await;
        let old = std::fs::read_to_string(scene.work.join(".gitmodules")).unwrap();
        let base = git(&scene.work, &["rev-parse", "HEAD"]).await;
        let module = |url: &str| format!("{old}[submodule \"new\"]\n\tpath = new\n\turl = {url}\n");
        scene.write("src", "one");
        scene.commit("beside it").await;
        scene.accepted(&[]).await;
        scene.write(".gitmodules", &module("../two.git"));
        scene.commit("allowed").await;
        scene.accepted(&[]).await;
        scene.write(".gitmodules", &module("https://evil.example/x"));
        let commit = scene.commit("not allowed").await;
        let (denied, _) = scene.refused(&[]).await;
        assert_eq!(
            (&denied["rule"], &denied["path"], &denied["commit"]),
            (&"submodule".into(), &".gitmodules".into(), &commit.into())
        );
        git(&scene.work, &["reset", "-q", "--hard", BRANCH_HEAD]).await;
        // Pushed under another name first, so that the push itself does not hold it.
        scene.write("innocent", &module("https://evil.example/y"));
        scene.commit("prepare").await;
        scene.accepted(&[]).await;
        git(&scene.work, &["mv", "-f", "innocent", ".gitmodules"]).await;
        scene.commit("spring").await;
        assert_eq!(scene.refused(&[]).await.0["rule"], "submodule");
        assert_ne!(base, commit_of(&scene).await);
        scene.world.stop().await;
    }
}

const BRANCH_HEAD: &str = "HEAD~1";

async fn commit_of(scene: &Scene) -> String {
    git(&scene.bare, &["rev-parse", BRANCH]).await
}

#[tokio::test]
async fn submodules_from_everywhere_can_be_allowed() {
    let scene = scene(Kind::Directory, |setup| setup.git.pushes.any_submodules = true, |_| {}).await;
    scene.write(".gitmodules", "[submodule \"x\"]\n\tpath = x\n\turl = https://evil.example/x\n");
    scene.commit("x").await;
    scene.accepted(&[]).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_run_rewrites_what_it_pushed_itself_while_nobody_else_has() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, |_| {}).await;
        scene.write("x", "1");
        scene.commit("first").await;
        scene.accepted(&[]).await;
        git(&scene.work, &["commit", "-q", "--amend", "-m", "better"]).await;
        let without = scene.push(&[]).await;
        assert!(!without.ok && without.said.contains("[rejected]"), "{}", without.said);
        scene.accepted(&["--force-with-lease"]).await;
        git(&scene.work, &["commit", "-q", "--amend", "-m", "best"]).await;
        scene.accepted(&["--force"]).await;
        assert_eq!(scene.world.events(&scene.sandbox.run.id, EventKind::GitPush).await.len(), 3);
        // Somebody else adds to the branch.
        let other = scene.world.root.path().join("seeding");
        git(&other, &["fetch", "-q", "origin", BRANCH]).await;
        git(&other, &["checkout", "-q", "FETCH_HEAD"]).await;
        git(&other, &["commit", "-q", "--allow-empty", "-m", "theirs"]).await;
        git(&other, &["push", "-q", "origin", &format!("HEAD:{BRANCH}")]).await;
        git(&scene.work, &["commit", "-q", "--amend", "-m", "over it"]).await;
        let (denied, said) = scene.refused(&["--force"]).await;
        assert_eq!(denied["rule"], "no_rewrite");
        assert!(said.contains("takes commits away"), "{said}");
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_branch_that_was_there_before_is_added_to_and_never_rewritten() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, |_| {}).await;
        let other = scene.world.root.path().join("seeding");
        git(&other, &["commit", "-q", "--allow-empty", "-m", "theirs"]).await;
        git(&other, &["push", "-q", "origin", &format!("HEAD:{BRANCH}")]).await;
        scene.write("x", "1");
        scene.commit("beside it").await;
        let (denied, _) = scene.refused(&["--force"]).await;
        assert_eq!(denied["rule"], "no_rewrite");
        assert!(scene.client.git("work", &["fetch", "-q", "origin", BRANCH]).await.ok);
        git(&scene.work, &["rebase", "-q", "FETCH_HEAD"]).await;
        scene.accepted(&[]).await;
        git(&scene.work, &["commit", "-q", "--amend", "-m", "other"]).await;
        assert_eq!(scene.refused(&["--force"]).await.0["rule"], "no_rewrite");
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_branch_follows_history_that_only_the_host_has() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, |_| {}).await;
        scene.write("x", "1");
        scene.commit("first").await;
        scene.accepted(&[]).await;
        // Its work is merged, and the main branch goes on.
        let other = scene.world.root.path().join("seeding");
        git(&other, &["commit", "-q", "--allow-empty", "-m", "theirs"]).await;
        git(&other, &["pull", "-q", "--no-rebase", "--no-edit", "origin", BRANCH]).await;
        git(&other, &["push", "-q", "origin", "HEAD:main"]).await;
        assert!(scene.client.git("work", &["fetch", "-q", "origin", "main"]).await.ok);
        git(&scene.work, &["reset", "-q", "--hard", "FETCH_HEAD"]).await;
        scene.accepted(&[]).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn nothing_but_the_runs_own_branch_of_its_own_repository_is_pushed() {
    let scene = scene(Kind::Host, |_| {}, |_| {}).await;
    scene.commit("x").await;
    git(&scene.work, &["tag", "v1"]).await;
    let before = scene.refs().await;
    for arguments in [
        &["--mirror", "origin"][..],
        &["--all", "origin"],
        &["--tags", "origin"],
        &["--follow-tags", "origin", "HEAD:main"],
        &["origin", "HEAD:refs/for/main"],
        &["origin", "HEAD:refs/changes/1"],
        &["origin", "--delete", "main"],
    ] {
        let pushed = scene.client.git("work", &[&["push"], arguments].concat()).await;
        assert!(!pushed.ok, "{arguments:?}");
    }
    let elsewhere = scene.client.url.replace("/origin", "/other");
    let pushed = scene.client.git("work", &["push", &elsewhere, &format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("not found"), "{}", pushed.said);
    assert_eq!(scene.refs().await, before);
    scene.world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_compared_is_not_forwarded() {
    let shorten = |setup: &mut Setup| {
        setup.bounds.push.base_bytes = 20;
        setup.git.pushes.forbidden_paths = vec!["Makefile".to_owned()];
    };
    for kind in KINDS {
        let scene = scene(kind, shorten, |_| {}).await;
        let before = scene.refs().await;
        scene.write("x", "harmless");
        scene.commit("harmless").await;
        let pushed = scene.push(&[]).await;
        assert!(!pushed.ok, "{}", pushed.said);
        let failed = scene.world.events(&scene.sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
        let message = failed[0]["message"].as_str().unwrap();
        assert!(
            message.contains("could not look at the push") && message.contains("larger than"),
            "{message}"
        );
        // What was found counts as new, though nobody can say where.
        scene.write("x", &format!("ghp_{}", "9".repeat(36)));
        scene.commit("not harmless").await;
        let (denied, _) = scene.refused(&[]).await;
        assert_eq!((&denied["rule"], denied.get("path")), (&"secret".into(), None));
        assert_eq!(scene.refs().await, before);
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_repository_with_long_ids_is_looked_at_as_well() {
    let world = World::new().await;
    let root = world.root.path().canonicalize().unwrap();
    git(&root, &["init", "-q", "--object-format=sha256", "seed"]).await;
    let seed = root.join("seed");
    std::fs::write(seed.join("file"), "one\n").unwrap();
    git(&seed, &["add", "."]).await;
    git(&seed, &["commit", "-qm", "first"]).await;
    git(&root, &["clone", "-q", "--bare", "seed", "bare.git"]).await;
    let bare = root.join("bare.git");
    let sandbox = world.sandbox(run_spec(Some(bare.to_str().unwrap()))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[], vec![root.clone()]).unwrap();
    setup.git.pushes.forbidden_paths = vec!["Makefile".to_owned()];
    world.start(setup).await;
    let client = Client::new(&sandbox, root.join("client")).await;
    let commit = client.clone_and_commit().await;
    let own = format!("HEAD:{BRANCH}");
    let pushed = client.push(&[&own]).await;
    assert!(pushed.ok && commit.len() == 64, "{}", pushed.said);
    client.commit(&format!("ghp_{}\n", "9".repeat(36))).await;
    let pushed = client.push(&[&own]).await;
    assert!(
        !pushed.ok && pushed.said.contains("by rule github-token, in file line 1 of commit"),
        "{}",
        pushed.said
    );
    assert_eq!(git(&bare, &["rev-parse", BRANCH]).await, commit);
    // Without a branch of the host's to compare with, all that there is counts.
    git(&bare, &["update-ref", "-d", &format!("refs/heads/{BRANCH}")]).await;
    git(&bare, &["symbolic-ref", "HEAD", "refs/heads/nowhere"]).await;
    git(&client.directory.join("work"), &["reset", "-q", "--hard", "HEAD~2"]).await;
    let commit = client.commit("three\n").await;
    let pushed = client.push(&[&own]).await;
    assert!(pushed.ok, "{}", pushed.said);
    assert_eq!(git(&bare, &["rev-parse", BRANCH]).await, commit);
    world.stop().await;
}
