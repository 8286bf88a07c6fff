//! Forks go on from what the session that they come from had pushed.

use caisson_domain::id::{ProjectId, SessionId};
use caisson_domain::run::RunStatus;
use caisson_store::{Actor, DeleteSession, Finish, ForkSession, NewFork, SandboxState};

use super::git_brought::{WORKFLOW, forbid, seed, somebody, write};
use super::git_host::{Client, Done, git};
use super::git_scene::{Kind, Scene, scene};

/// The scene's run ends, with a conversation.
async fn end(scene: &Scene) {
    let (store, run) = (&scene.world.store, &scene.sandbox.run.id);
    assert!(store.put_transcript(run, "said").await.unwrap());
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(store.finish(run, scene.sandbox.epoch, &finish).await.unwrap());
    assert!(store.set_sandbox_state(&scene.sandbox.id, SandboxState::Destroyed).await.unwrap());
}

async fn fork(scene: &Scene, session: &SessionId, branch: &str) -> SessionId {
    let new = NewFork { branch: Some(branch.parse().unwrap()), ..NewFork::default() };
    let project = ProjectId::default_project();
    let forked = scene.world.store.fork_session(&project, session, &new, Actor::Operator).await.unwrap();
    let ForkSession::Forked { session } = forked else { panic!("not forked: {forked:?}") };
    session
}

/// A run of the session, or of one of its own, pushes something on top of `start`.
async fn go_on(scene: &Scene, session: Option<&SessionId>, (branch, start): (&str, &str)) -> Done {
    let mut spec = scene.sandbox.run.spec.clone();
    spec.branch = Some(branch.parse().unwrap());
    let sandbox = match session {
        Some(session) => scene.world.sandbox_in(session, spec).await,
        None => scene.world.sandbox(spec).await,
    };
    let root = scene.world.root.path().canonicalize().unwrap();
    let client = Client::new(&sandbox, root.join(branch.replace('/', "-"))).await;
    let cloned = client.clone().await;
    assert!(cloned.ok, "{}", cloned.said);
    let work = client.directory.join("work");
    git(&work, &["reset", "-q", "--hard", start]).await;
    write(&work, "src/c", branch);
    git(&work, &["add", "-A"]).await;
    git(&work, &["commit", "-q", "-m", "mine"]).await;
    client.push(&[&format!("HEAD:{branch}")]).await
}

#[tokio::test]
async fn a_fork_goes_on_from_what_its_origin_had_pushed_also_when_that_is_deleted() {
    let scene = scene(Kind::Host, forbid, seed).await;
    scene.write("src/b", "mine\n");
    let pushed = scene.commit("mine").await;
    scene.accepted(&[]).await;
    end(&scene).await;
    let origin = &scene.sandbox.run.session;
    let first = fork(&scene, origin, "team/first").await;
    let of_fork = fork(&scene, &first, "team/of-fork").await;
    let late = fork(&scene, origin, "team/late").await;
    somebody(&scene, ("main", "refs/heads/main"), WORKFLOW, "theirs, again\n").await;
    for (session, branch) in [(&first, "team/first"), (&of_fork, "team/of-fork")] {
        let done = go_on(&scene, Some(session), (branch, &pushed)).await;
        assert!(done.ok, "{branch}: {}", done.said);
    }
    let project = ProjectId::default_project();
    let deleted = scene.world.store.delete_session_of(&project, origin, Actor::Operator).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    let done = go_on(&scene, Some(&late), ("team/late", &pushed)).await;
    assert!(done.ok, "{}", done.said);
    let done = go_on(&scene, None, ("team/other", &pushed)).await;
    assert!(!done.ok && done.said.contains("comes from elsewhere"), "{}", done.said);
    scene.world.stop().await;
}
