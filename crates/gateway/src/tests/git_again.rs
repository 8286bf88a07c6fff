//! Pushes that a git host cannot move to their place are sent again, and no others.

use caisson_domain::event::EventKind;

use super::git_host::Mood;
use super::git_http::{BRANCH, scene};
use crate::bounds::PUSH_PAUSES;

const RECEIVE: &str = "/git-receive-pack";
/// How often a push is sent at most.
const MOST: usize = PUSH_PAUSES.len() + 1;

#[tokio::test]
async fn a_push_that_the_host_could_not_move_to_its_place_is_sent_again_and_recorded_once() {
    let scene = scene(Mood::HasNoPlace(MOST - 1), "team/one.git", "").await;
    let client = scene.client().await;
    let commit = client.clone_and_commit().await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(pushed.ok && !pushed.said.contains("unable to migrate"), "{}", pushed.said);
    assert_eq!(scene.host.count(RECEIVE), MOST);
    let records = scene.events(EventKind::GitPush).await;
    assert_eq!((records.len(), &records[0]["ok"]), (1, &true.into()), "{records:?}");
    assert_eq!(scene.world.run(&scene.sandbox.run.id).await.pushed_commit, Some(commit));
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_is_sent_again_a_bounded_number_of_times() {
    let scene = scene(Mood::HasNoPlace(MOST + 1), "team/one.git", "").await;
    let client = scene.client().await;
    client.clone_and_commit().await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("(unable to migrate objects"), "{}", pushed.said);
    assert_eq!(scene.host.count(RECEIVE), MOST);
    let records = scene.events(EventKind::GitPush).await;
    assert_eq!((records.len(), &records[0]["ok"]), (1, &false.into()), "{records:?}");
    assert!(records[0]["message"].as_str().unwrap().contains("unable to migrate"), "{records:?}");
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_that_is_refused_for_another_reason_is_sent_once() {
    let scene = scene(Mood::RepeatsLogin(0), "team/one.git", "").await;
    let client = scene.client().await;
    client.clone_and_commit().await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("[remote rejected]"), "{}", pushed.said);
    assert_eq!(scene.host.count(RECEIVE), 1);
    scene.world.stop().await;
}
