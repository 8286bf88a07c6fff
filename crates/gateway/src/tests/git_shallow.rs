//! Pushes from a clone that lacks what comes before some of its commits, and lies about that.

use http::Method;

use super::git_brought::{WORKFLOW, forbid, refused_for, seed, somebody};
use super::git_host::git;
use super::git_scene::{BRANCH, KINDS, Kind, RECEIVE, Scene, scene};
use super::support::Reply;

/// As `git fetch --depth=1` leaves a clone.
async fn shorten(scene: &Scene) {
    let fetched = scene.client.git("work", &["fetch", "-q", "--depth=1", "origin", "main"]).await;
    assert!(fetched.ok, "{}", fetched.said);
    assert_eq!(git(&scene.work, &["rev-parse", "--is-shallow-repository"]).await, "true");
    assert_eq!(git(&scene.work, &["rev-list", "--count", "origin/main"]).await, "1");
}

#[tokio::test]
async fn a_shallow_clone_pushes_and_is_looked_at_like_any_other() {
    for kind in KINDS {
        let scene = scene(kind, forbid, seed).await;
        shorten(&scene).await;
        scene.write("src/b", "mine\n");
        scene.commit("mine").await;
        scene.accepted(&[]).await;
        assert_eq!(git(&scene.bare, &["rev-list", "--count", BRANCH]).await, "3", "with what it comes after");
        scene.write(WORKFLOW, "mine\n");
        scene.commit("not mine to change").await;
        refused_for(&scene, "forbidden_path", WORKFLOW).await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn what_a_shallow_clone_begins_with_may_come_along() {
    for kind in KINDS {
        let scene = scene(kind, forbid, seed).await;
        shorten(&scene).await;
        // So the clone's beginning is no branch's newest commit any more, and is pushed as well: the one that added the workflow,
        // without its parent.
        somebody(&scene, ("main", "main"), "src/c", "theirs\n").await;
        scene.write("src/b", "mine\n");
        scene.commit("mine").await;
        scene.accepted(&[]).await;
        assert_eq!(git(&scene.bare, &["rev-list", "--count", BRANCH]).await, "3");
        scene.world.stop().await;
    }
}

/// A push that says of these commits that their parents are lacking.
async fn push_saying(scene: &Scene, shallow: &[&str], new: &str, pack: &[u8]) -> Reply {
    let line = |text: String| format!("{:04x}{text}", text.len() + 4);
    let lacking: Vec<String> = shallow.iter().map(|id| line(format!("shallow {id}\n"))).collect();
    let command = line(format!("{} {new} refs/heads/{BRANCH}\0 report-status", "0".repeat(40)));
    let section = format!("{}{command}0000", lacking.concat());
    scene.sandbox.agent(Method::POST, RECEIVE, [section.as_bytes(), pack].concat()).await
}

#[tokio::test]
async fn a_lie_about_what_is_lacking_changes_nothing() {
    for kind in KINDS {
        let scene = scene(kind, |_| {}, seed).await;
        scene.write("src/b", "one\n");
        let first = scene.commit("one").await;
        scene.write("src/b", "two\n");
        let second = scene.commit("two").await;
        let all = scene.pack(&["--revs"], &format!("{second}\n^origin/main\n")).await;
        let one = scene.pack(&["--revs"], &format!("{second}\n^{first}\n")).await;
        let (before, nobodys) = (scene.refs().await, "1".repeat(40));
        // What comes before it is on no host.
        let reply = push_saying(&scene, &[&second], &second, &one).await;
        assert!(!reply.text().contains("ok refs/heads"), "{}", reply.text());
        assert_eq!(scene.refs().await, before, "{kind:?}");
        let lies = [second.as_str(), first.as_str(), &nobodys, &nobodys];
        let reply = push_saying(&scene, &lies, &second, &all).await;
        assert!(
            reply.text().contains("unpack ok") && reply.text().contains("ok refs/heads"),
            "{}",
            reply.text()
        );
        assert_eq!(git(&scene.bare, &["rev-list", "--count", BRANCH]).await, "4");
        assert!(!scene.bare.join("shallow").exists());
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_section_full_of_what_is_lacking_is_pushed_up_to_its_bound() {
    let scene = scene(Kind::Directory, |_| {}, seed).await;
    let new = scene.commit("mine").await;
    let pack = scene.pack(&["--revs"], &format!("{new}\n^origin/main\n")).await;
    let id = "1".repeat(40);
    let many = vec![id.as_str(); 1300];
    let reply = push_saying(&scene, &many, &new, &pack).await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "push_refused"), "{}", reply.text());
    let reply = push_saying(&scene, &many[..1200], &new, &pack).await;
    assert!(reply.text().contains("ok refs/heads"), "{}", reply.text());
    scene.world.stop().await;
}
