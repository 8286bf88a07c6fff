//! Repositories that choose their sandbox's image.

use caisson_domain::event::EventKind;
use caisson_domain::image::ImageWish;
use caisson_domain::protocol::Ending;
use caisson_domain::run::{FailureKind, RunStatus};

use crate::shim::Play;
use crate::world::World;

fn wish(image: &str) -> Ending {
    Ending::OtherImage(ImageWish { image: image.to_owned(), line: Some(4) })
}

#[tokio::test]
async fn a_run_whose_repository_chose_an_image_comes_into_a_sandbox_of_it() {
    let world = World::new().await;
    let run = world.queue().await;
    let chosen = "registry.example/team/tools:1";
    world.shims.of(&run, vec![Play::SayEarly(wish(chosen)), Play::Complete]);
    let server = world.boot().await;
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 2));
    let images: Vec<_> = world.engine.made().into_iter().map(|spec| spec.image.unwrap()).collect();
    assert_eq!(images, ["caisson-sandbox:latest", chosen]);
    assert_eq!(world.shims.agents(&run), 1);
    let requeued = world.told(&run, EventKind::RunRequeued).await;
    assert_eq!(requeued[0]["reason"], format!("its repository chose the image {chosen}"));
    world.clean().await;
    world.told_once(&run).await;
    server.kill();
}

#[tokio::test]
async fn what_a_sandbox_asks_for_is_bounded_by_what_the_operator_allows() {
    let world = World::new().await;
    let (other, odd, late) = (world.queue().await, world.queue().await, world.queue().await);
    world.shims.of(&other, vec![Play::SayEarly(wish("registry.example/teams/tools:1"))]);
    world.shims.of(&odd, vec![Play::SayEarly(wish("registry.example/team/../x"))]);
    world.shims.of(&late, vec![Play::Say(wish("registry.example/team/tools:1"))]);
    let server = world.boot().await;
    let refused = world.failed(&other).await;
    assert_eq!(refused.kind, FailureKind::BadWorkflow);
    assert!(refused.message.starts_with(".caisson.yaml, line 4: image"), "{}", refused.message);
    assert!(refused.message.contains("(registry.example/team/*)"), "{}", refused.message);
    let refused = world.failed(&odd).await;
    assert!(refused.message.contains("does not name an image"), "{}", refused.message);
    let refused = world.failed(&late).await;
    assert_eq!(refused.kind, FailureKind::Internal, "its agent has had its prompt: {}", refused.message);
    assert_eq!(world.shims.agents(&late), 1, "an agent is never started again");
    let images: Vec<_> = world.engine.made().into_iter().map(|spec| spec.image.unwrap()).collect();
    assert_eq!(images, ["caisson-sandbox:latest"; 3]);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_follow_up_begins_in_the_image_that_its_repository_chose_as_long_as_that_is_allowed() {
    let mut world = World::new().await;
    let chosen = "registry.example/team/tools:1";
    let first = world.queue().await;
    world.shims.of(&first, vec![Play::SayEarly(wish(chosen)), Play::Complete]);
    let server = world.boot().await;
    world.finished(&first).await;
    for _ in 0..2 {
        let next = world.next(&first, |_| {}).await;
        let ended = world.finished(&next).await;
        assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 1));
    }
    let asking = world.next(&first, |spec| spec.image = Some("own:1".to_owned())).await;
    world.finished(&asking).await;
    // What a run asked for is its own.
    let plain = world.next(&first, |_| {}).await;
    world.finished(&plain).await;
    let made = || world.engine.made().into_iter().map(|spec| spec.image.unwrap()).collect::<Vec<_>>();
    let default = "caisson-sandbox:latest";
    assert_eq!(made(), [default, chosen, chosen, chosen, "own:1", default]);
    world.clean().await;
    server.kill();

    let other = world.queue().await;
    world.shims.of(&other, vec![Play::SayEarly(wish(chosen)), Play::Complete]);
    let server = world.boot().await;
    world.finished(&other).await;
    world.clean().await;
    server.kill();
    world.setup.config.repository_images.clear();
    let server = world.boot().await;
    let next = world.next(&other, |_| {}).await;
    assert_eq!(world.finished(&next).await.status, RunStatus::Succeeded);
    let made: Vec<_> = world.engine.made().into_iter().map(|spec| spec.image.unwrap()).collect();
    assert_eq!(made[6..], [default, chosen, default], "it may not be chosen any more");
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_sandbox_chooses_nothing_for_a_run_that_names_its_image_or_has_chosen_one() {
    let world = World::new().await;
    let [first, second] = ["registry.example/team/one:1", "registry.example/team/two:1"];
    let named = world.queue_with(|spec| spec.image = Some("registry.example/own:1".to_owned())).await;
    let again = world.queue().await;
    world.shims.of(&named, vec![Play::SayEarly(wish(first))]);
    world.shims.of(&again, vec![Play::SayEarly(wish(first)), Play::SayEarly(wish(second))]);
    let server = world.boot().await;
    for (run, stays) in [(&named, "registry.example/own:1"), (&again, first)] {
        let refused = world.failed(run).await;
        assert_eq!(refused.kind, FailureKind::PolicyDenied);
        assert!(refused.message.contains(&format!("\"{stays}\", which stays")), "{}", refused.message);
        assert_eq!(world.shims.agents(run), 0);
    }
    let mut images: Vec<_> = world.engine.made().into_iter().map(|spec| spec.image.unwrap()).collect();
    images.sort();
    assert_eq!(images, ["caisson-sandbox:latest", "registry.example/own:1", first]);
    world.clean().await;
    server.kill();
}
