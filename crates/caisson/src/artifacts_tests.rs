//! Directories of artifacts that are shared, moved, or not there.

use super::*;
use crate::settings::{Environment, Overrides};

struct World {
    root: tempfile::TempDir,
    store: Store,
    server: ServerId,
}

impl World {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("state")).unwrap();
        fs::create_dir(root.path().join("shared")).unwrap();
        let clock = caisson_store::Clock::system();
        let store = Store::open(&root.path().join("state/caisson.db"), clock).await.unwrap();
        let server = ServerId::new(1, [1; 10]);
        store.register_server(&server).await.unwrap();
        Self { root, store, server }
    }

    fn settings(&self, shared: Option<&str>) -> Settings {
        let overrides = Overrides { state_dir: Some(self.root.path().join("state")), ..Overrides::default() };
        let environment = Environment { variables: Vec::new(), root: false };
        let mut settings = Settings::read(None, &environment, overrides).unwrap();
        settings.artifacts_dir = shared.map(|name| self.root.path().join(name));
        settings
    }

    async fn start(&self, shared: Option<&str>) -> Result<Option<SharedArtifacts>, String> {
        let started = at_start(&self.settings(shared), &self.store, &self.server).await;
        started.map_err(|error| format!("{error:#}"))
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

#[tokio::test]
async fn a_shared_directory_gets_an_id_once_and_the_database_knows_whose_it_is() {
    let world = World::new().await;
    let settings = world.settings(Some("shared"));
    assert!(look(&settings).unwrap_err().to_string().contains("holds no artifacts_id"));
    let examined = async |settings| examine(settings, (Some(&world.store), Some(&world.server))).await;
    assert!(examined(&settings).await.unwrap().unwrap().contains("never used"));
    assert_eq!(examined(&world.settings(None)).await, None);
    let shared = world.start(Some("shared")).await.unwrap().unwrap();
    assert_eq!(world.start(Some("shared")).await.unwrap().as_ref(), Some(&shared));
    assert_eq!(look(&world.settings(Some("shared"))).unwrap().as_ref(), Some(&shared));
    assert_eq!(make_id(&shared.directory).unwrap(), shared.id, "of two that make it at once one does");
    let other = ServerId::new(2, [2; 10]);
    world.store.register_server(&other).await.unwrap();
    assert_eq!(
        at_start(&world.settings(Some("shared")), &world.store, &other).await.unwrap(),
        Some(shared.clone())
    );
    for server in [&world.server, &other] {
        assert_eq!(world.store.artifacts_id(server).await.unwrap().as_ref(), Some(&shared.id));
    }
    fs::write(SharedArtifacts::id_file(&shared.directory), "no id").unwrap();
    assert!(world.start(Some("shared")).await.unwrap_err().contains("does not hold an id"));
    assert!(world.start(Some("none")).await.unwrap_err().contains("is no directory"));
}

#[tokio::test]
async fn a_volume_that_is_not_mounted_or_another_one_is_not_begun_to_be_filled() {
    let world = World::new().await;
    world.start(Some("shared")).await.unwrap();
    fs::create_dir(world.directory("other")).unwrap();
    let refused = world.start(Some("other")).await.unwrap_err();
    assert!(refused.contains("is not that one: mount it there"), "{refused}");
    assert!(fs::read_dir(world.directory("other")).unwrap().next().is_none(), "nothing was made");
    let settings = world.settings(Some("other"));
    let examined = examine(&settings, (Some(&world.store), Some(&world.server))).await.unwrap();
    assert_eq!(examined, Err(refused), "doctor says the same");
    let refused = world.start(None).await.unwrap_err();
    assert!(refused.contains("artifacts_dir is not set: set it"), "{refused}");
    // As the message says.
    fs::create_dir(own_directory(&world.settings(Some("other")), &world.server)).unwrap();
    let other = world.start(Some("other")).await.unwrap().unwrap();
    assert_eq!(world.store.artifacts_id(&world.server).await.unwrap(), Some(other.id));
    fs::create_dir(world.directory("state/artifacts")).unwrap();
    assert_eq!(world.start(None).await.unwrap(), None);
    assert_eq!(world.store.artifacts_id(&world.server).await.unwrap(), None);
}

#[tokio::test]
async fn what_was_kept_in_the_state_directory_has_to_be_moved_first() {
    let world = World::new().await;
    let kept = world.directory("state/artifacts");
    fs::create_dir_all(kept.join(".incoming")).unwrap();
    assert!(!holds_files(&kept), "what is on its way is not kept");
    fs::create_dir(kept.join("run_1")).unwrap();
    assert_eq!(world.start(None).await.unwrap(), None);
    let refused = world.start(Some("shared")).await.unwrap_err();
    let own = own_directory(&world.settings(Some("shared")), &world.server);
    assert!(refused.contains(&format!("`mv {} {}`", kept.display(), own.display())), "{refused}");
    fs::rename(&kept, &own).unwrap();
    assert!(world.start(Some("shared")).await.unwrap().is_some());
    assert!(own.join("run_1").is_dir());
}

#[tokio::test]
async fn a_shared_directory_that_goes_away_keeps_runs_from_being_placed() {
    let world = World::new().await;
    let shared = world.start(Some("shared")).await.unwrap().unwrap();
    let watched = Watched::new(shared);
    assert_eq!(watched.problem().await, None);
    fs::rename(world.directory("shared"), world.directory("elsewhere")).unwrap();
    let problem = watched.problem().await.unwrap();
    assert_eq!(problem.code, ProblemCode::ArtifactsAway);
    assert!(problem.message.contains("mount its volume again"), "{}", problem.message);
    fs::rename(world.directory("elsewhere"), world.directory("shared")).unwrap();
    assert_eq!(watched.problem().await, None);
    // One look got no answer.
    watched.looking.store(true, Ordering::Release);
    assert!(watched.problem().await.unwrap().message.contains("does not answer"));
}

#[tokio::test]
async fn servers_that_keep_artifacts_apart_are_told_of() {
    let world = World::new().await;
    let shared = world.start(Some("shared")).await.unwrap().unwrap();
    let other = ServerId::new(2, [2; 10]);
    let presence = caisson_store::Presence {
        server: other.clone(),
        roles: caisson_domain::server::Role::ALL.to_vec(),
        version: "1".to_owned(),
        slots: None,
    };
    let told = async || difference(&world.store, &world.server, Some(&shared.id)).await.unwrap();
    assert_eq!(told().await, None);
    world.store.beat(&presence).await.unwrap();
    let text = told().await.unwrap();
    assert!(text.contains(other.as_str()) && text.contains("set artifacts_dir of all servers"), "{text}");
    world.store.set_artifacts_id(&other, Some(&"0".repeat(32))).await.unwrap();
    assert_eq!(told().await, Some(text.clone()));
    world.store.set_artifacts_id(&other, Some(&shared.id)).await.unwrap();
    assert_eq!(told().await, None);
    // Two of which none shares its own keep theirs apart as well.
    world.store.set_artifacts_id(&other, None).await.unwrap();
    assert_eq!(difference(&world.store, &world.server, None).await.unwrap(), Some(text));
}
