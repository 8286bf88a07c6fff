//! Sessions that go on, on real directories: deleted ones, and one that comes back to a server that was lost.

use std::path::PathBuf;

use caisson_domain::grant::{GrantKind, Token};
use caisson_domain::id::{ProjectId, RunId, ServerId, SessionId};
use caisson_domain::limits::SERVER_LOST_MS_DEFAULT;
use caisson_domain::run::RunStatus;
use caisson_store::{
    Actor, Clock, CreateRun, DeleteSession, Finish, JournalEffect, JournalEntry, NewArtifact, NewRun,
    NewSandbox, SandboxState,
};

use crate::damage::has_been_there;
use crate::shim::Play;
use crate::world::{World, sandbox_id, until};

impl World {
    fn session_dir(&self, session: &SessionId) -> PathBuf {
        self.setup.config.state_dir.join("sessions").join(session.as_str())
    }

    /// A run that has ended, with its sandbox gone and a file kept for it.
    async fn ended(&self) -> (RunId, SessionId, PathBuf) {
        let run = self.queue().await;
        self.finished(&run).await;
        self.clean().await;
        let session = self.run(&run).await.session;
        let kept = self.setup.config.state_dir.join("artifacts").join(run.as_str());
        std::fs::create_dir_all(&kept).unwrap();
        let artifact = NewArtifact {
            name: "a".to_owned(),
            size_bytes: 1,
            sha256: "ab".repeat(32),
            path: format!("{run}/a"),
        };
        self.store.put_artifact(&run, &artifact).await.unwrap();
        (run, session, kept)
    }

    async fn delete(&self, session: &SessionId) {
        let project = ProjectId::default_project();
        let deleted = self.store.delete_session_of(&project, session, Actor::Operator).await.unwrap();
        assert_eq!(deleted, DeleteSession::Deleted);
    }

    async fn nothing_left(&self) -> bool {
        self.store.files_left(&self.setup.config.server).await.unwrap().is_empty()
    }

    /// Queues a further run of the session.
    async fn follow(&self, session: &SessionId, like: &RunId) -> RunId {
        let spec = self.run(like).await.spec;
        let new = NewRun { project: ProjectId::default_project(), created_by: None, spec, idempotency: None };
        let made = self.store.create_run_in(session.clone(), new).await.unwrap();
        let CreateRun::Created(run) = made else { panic!("not made: {made:?}") };
        run.id
    }
}

#[tokio::test]
async fn files_of_a_deleted_session_go_and_those_of_others_stay() {
    let world = World::new().await;
    let server = world.boot().await;
    let (_, session, kept) = world.ended().await;
    let (_, other, others) = world.ended().await;
    let dir = world.session_dir(&session);
    assert!(dir.join("workspace").is_dir() && kept.is_dir());
    world.delete(&session).await;
    until("its files are gone", || async { !dir.exists() && !kept.exists() }).await;
    until("it is noted", || world.nothing_left()).await;
    assert!(world.session_dir(&other).is_dir() && others.is_dir());
    server.shut_down();
}

#[tokio::test]
async fn files_of_a_session_that_was_deleted_while_the_server_was_away_go_at_its_start() {
    let world = World::new().await;
    let server = world.boot().await;
    let (_, session, kept) = world.ended().await;
    server.shut_down();
    world.delete(&session).await;
    let dir = world.session_dir(&session);
    assert!(dir.is_dir() && kept.is_dir() && !world.nothing_left().await);
    // As after a crash between the removal and the note of it: what is gone is as good as removed.
    std::fs::remove_dir_all(&kept).unwrap();
    let server = world.boot().await;
    until("its files are gone", || async { !dir.exists() }).await;
    until("it is noted", || world.nothing_left()).await;
    server.shut_down();
}

/// The session goes on elsewhere, as far as the store can know: an agent works there, and its run ends.
async fn goes_on_elsewhere(world: &World, elsewhere: &ServerId, run: &RunId) {
    world.store.register_server(elsewhere).await.unwrap();
    has_been_there(world, elsewhere).await;
    let claimed = world.store.claim(elsewhere).await.unwrap().unwrap();
    assert_eq!(claimed.run.id, *run);
    let grant = |kind| Token::grant(kind, [9; 32]).hash();
    let new = NewSandbox {
        id: sandbox_id(99),
        session: claimed.run.session.clone(),
        server: elsewhere.clone(),
        engine: "fake".to_owned(),
        image: String::new(),
        uid: 1,
        control: grant(GrantKind::Control),
        agent: grant(GrantKind::Agent),
    };
    world.store.create_sandbox(&new).await.unwrap();
    assert!(world.store.place(run, claimed.epoch, &new.id).await.unwrap());
    let started = JournalEntry {
        run: run.clone(),
        attempt: claimed.run.attempt,
        event: None,
        effect: JournalEffect::AgentStarted,
    };
    world.store.append_journal(&new.id, 0, 1, vec![started]).await.unwrap();
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(world.store.finish(run, claimed.epoch, &finish).await.unwrap());
    world.store.set_sandbox_state(&new.id, SandboxState::Destroyed).await.unwrap();
}

#[tokio::test]
async fn a_session_that_went_on_elsewhere_does_not_get_its_old_workspace_back() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    let server = world.boot().await;
    let (first, session, _) = world.ended().await;
    let dir = world.session_dir(&session);
    std::fs::write(dir.join("workspace/old"), "x").unwrap();
    // A further run that stays here finds what is here.
    let second = world.follow(&session, &first).await;
    world.finished(&second).await;
    world.clean().await;
    assert!(dir.join("workspace/old").is_file());
    server.shut_down();
    let elsewhere = ServerId::new(1, [8; 10]);
    let third = world.follow(&session, &first).await;
    handle.advance(SERVER_LOST_MS_DEFAULT + 1);
    goes_on_elsewhere(&world, &elsewhere, &third).await;
    let fourth = world.follow(&session, &first).await;
    handle.advance(SERVER_LOST_MS_DEFAULT + 1);
    has_been_there(&world, &world.setup.config.server).await;
    let server = world.boot().await;
    world.finished(&fourth).await;
    world.clean().await;
    assert!(dir.join("workspace").is_dir() && !dir.join("workspace/old").exists());
    let aside = std::fs::read_dir(dir.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let aside: Vec<PathBuf> = aside.filter(|path| path.to_string_lossy().contains(".left-")).collect();
    assert!(aside.len() == 1 && aside[0].join("workspace/old").is_file(), "{aside:?}");
    server.shut_down();
}

#[tokio::test]
async fn a_session_that_was_deleted_while_its_server_was_lost_leaves_nothing_there_when_it_is_back() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    world.shims.by_default(Play::Work { obeys: true });
    let server = world.boot().await;
    let run = world.queue().await;
    world.agent_works(&run).await;
    let (session, sandbox) = (world.run(&run).await.session, world.run(&run).await.sandbox.unwrap());
    let dir = world.session_dir(&session);
    server.kill();
    let elsewhere = ServerId::new(1, [8; 10]);
    world.store.register_server(&elsewhere).await.unwrap();
    has_been_there(&world, &elsewhere).await;
    handle.advance(SERVER_LOST_MS_DEFAULT + 1);
    assert_eq!(world.store.write_off_lost(&elsewhere).await.unwrap(), [run]);
    world.delete(&session).await;
    assert!(world.engine.ids().contains(&sandbox) && dir.is_dir(), "nobody else can take it away");
    let server = world.boot().await;
    until("its sandbox is gone", || async { world.engine.ids().is_empty() }).await;
    until("its files are gone", || async { !dir.exists() }).await;
    until("it is noted", || world.nothing_left()).await;
    until("nothing else is left", || async { world.leftovers().is_empty() }).await;
    server.shut_down();
}
