//! What a git host says of a push is recorded and passed on without the login that it was sent.

use base64::Engine as _;
use caisson_domain::event::EventKind;
use caisson_domain::redact::MARKER;

use super::git_host::Mood;
use super::git_http::{BRANCH, scene};
use super::support::GIT_TOKEN;

/// Every form of the login that must not be seen, and what the beginning of one looks like.
fn needles() -> [String; 4] {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("robot:{GIT_TOKEN}"));
    [GIT_TOKEN.to_owned(), GIT_TOKEN[..10].to_owned(), login[8..24].to_owned(), hex::encode(&GIT_TOKEN[..10])]
}

#[tokio::test]
async fn a_host_that_repeats_the_login_in_its_refusal_is_recorded_and_heard_without_it() {
    let scene = scene(Mood::Serves, "team/one.git", "").await;
    let client = scene.client().await;
    client.clone_and_commit().await;
    // Also where it lies over the end of what is kept.
    for (number, fill) in [0, 970, 985].into_iter().enumerate() {
        scene.host.set_mood(Mood::RepeatsLogin(fill));
        let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
        assert!(!pushed.ok && pushed.said.contains("[remote rejected]"), "{}", pushed.said);
        assert!(pushed.said.contains(&format!("remote: you are {MARKER}, are you?")), "{}", pushed.said);
        let record = &scene.events(EventKind::GitPush).await[number];
        let message = record["message"].as_str().unwrap();
        assert_eq!(record["ok"], false);
        assert!(message.starts_with(&format!("{}{}", "x".repeat(fill), &MARKER[..5])), "{message}");
        for needle in needles() {
            assert!(!message.contains(&needle) && !pushed.said.contains(&needle), "{needle}: {record}");
        }
    }
    scene.world.stop().await;
    scene.world.store.close().await.unwrap();
    for needle in needles() {
        assert!(!scene.world.disk_has(&needle), "{needle}");
    }
    assert!(scene.world.disk_has(MARKER), "the search finds");
}

#[tokio::test]
async fn an_answer_that_cannot_be_looked_into_is_not_passed_on() {
    let scene = scene(Mood::EncodesReports, "team/one.git", "").await;
    let client = scene.client().await;
    let commit = client.clone_and_commit().await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok, "{}", pushed.said);
    let told = &scene.events(EventKind::GatewayUpstreamFailed).await[0];
    assert!(told.to_string().contains("in an encoding that was not asked for"), "{told}");
    let records = scene.events(EventKind::GitPush).await;
    assert_eq!((records.len(), &records[0]["ok"]), (1, &true.into()), "it was taken all the same");
    assert_eq!(scene.world.run(&scene.sandbox.run.id).await.pushed_commit, Some(commit));
    scene.world.stop().await;
}
