use std::os::unix::fs::PermissionsExt;

use caisson_domain::id::ProjectId;
use caisson_store::{Actor, Clock, NewAudit};
use sqlx::{ConnectOptions as _, Connection as _};

use super::*;

struct World {
    directory: tempfile::TempDir,
    store: Store,
    server: ServerId,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("caisson.db"), Clock::system()).await.unwrap();
        let server = ServerId::new(1, [1; 10]);
        store.keep_audit(&server).await.unwrap();
        Self { directory, store, server }
    }

    fn head(&self) -> PathBuf {
        self.directory.path().join("audit_head")
    }

    fn keeper(&self) -> HeadKeeper {
        HeadKeeper::open(self.directory.path(), &self.head(), &self.server).unwrap()
    }

    async fn note(&self, subject: &str) {
        self.store
            .append_audit(&NewAudit::new(
                &ProjectId::default_project(),
                Actor::Operator,
                "test.note",
                subject,
            ))
            .await
            .unwrap();
    }

    /// Cuts the log off behind `seq`, as somebody with all rights on the database can.
    async fn cut(&self, seq: i64) {
        let path = self.directory.path().join("caisson.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut connection = options.connect().await.unwrap();
        sqlx::query("drop trigger if exists audit_left").execute(&mut connection).await.unwrap();
        sqlx::query("delete from audit where seq > $1").bind(seq).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_place_where_no_head_can_be_written_is_told() {
    let world = World::new().await;
    let (state_dir, head) = (world.directory.path(), world.head());
    let server = Some(&world.server);
    let told = look((state_dir, &head), &world.store, server).await.unwrap();
    assert!(told.contains("no head was signed yet"), "{told}");
    let missing = state_dir.join("not-there").join("head");
    let fault = look((state_dir, &missing), &world.store, server).await.unwrap_err().to_string();
    assert!(fault.contains("not-there\"") && fault.contains("audit_head"), "{fault}");
    // Records that no head signs may have been cut off at any place.
    world.note("one").await;
    let fault = look((state_dir, &head), &world.store, server).await.unwrap_err().to_string();
    assert!(fault.contains("1 records and no head"), "{fault}");
    world.keeper().keep(&world.store).await.unwrap();
    assert!(look((state_dir, &head), &world.store, server).await.unwrap().contains("signed up to record 1"));
}

#[tokio::test]
async fn the_head_follows_the_log_and_verifies_with_the_key_alone() {
    let world = World::new().await;
    let keeper = world.keeper();
    keeper.keep(&world.store).await.unwrap();
    assert!(!world.head().exists(), "there is nothing to sign yet");
    world.note("a").await;
    keeper.keep(&world.store).await.unwrap();
    let first = SignedHead::read(&world.head()).unwrap().unwrap();
    keeper.keep(&world.store).await.unwrap();
    assert_eq!(SignedHead::read(&world.head()).unwrap().unwrap(), first, "nothing new, nothing written");
    world.note("b").await;
    // Another process, with the key from the disk.
    world.keeper().keep(&world.store).await.unwrap();
    let second = SignedHead::read(&world.head()).unwrap().unwrap();
    assert_eq!((first.seq, second.seq), (1, 2));
    let key = public_key(world.directory.path()).unwrap().unwrap();
    let vouched = second.check(&key).unwrap();
    assert_eq!(world.store.verify_audit(&[vouched]).await.unwrap().chains[0].fault, None);
    for changed in [
        SignedHead { seq: 1, ..second.clone() },
        SignedHead { hash: first.hash, ..second.clone() },
        SignedHead { chain: "srv_x".to_owned(), ..second.clone() },
        SignedHead { at_ms: 1, ..second.clone() },
        SignedHead { signature: "00".to_owned(), ..second },
    ] {
        assert!(changed.check(&key).is_err());
    }
}

#[tokio::test]
async fn a_cut_log_keeps_the_last_head_that_was_right() {
    let world = World::new().await;
    let keeper = world.keeper();
    for subject in ["a", "b", "c"] {
        world.note(subject).await;
    }
    keeper.keep(&world.store).await.unwrap();
    let signed = fs::read(world.head()).unwrap();
    world.cut(1).await;
    assert!(keeper.keep(&world.store).await.unwrap_err().to_string().contains("record 3"));
    // It grows past the head again, with other records.
    for subject in ["x", "y", "z"] {
        world.note(subject).await;
    }
    assert!(keeper.keep(&world.store).await.unwrap_err().to_string().contains("record 3"));
    assert_eq!(fs::read(world.head()).unwrap(), signed, "the evidence stays");
    world.cut(0).await;
    let empty = keeper.keep(&world.store).await.unwrap_err().to_string();
    assert!(empty.contains("empty") && empty.contains("keep \""), "{empty}");
}

#[tokio::test]
async fn after_the_restore_of_an_older_database_the_head_is_moved_away_and_a_new_one_begins() {
    let world = World::new().await;
    let keeper = world.keeper();
    for subject in ["a", "b"] {
        world.note(subject).await;
    }
    keeper.keep(&world.store).await.unwrap();
    world.cut(1).await;
    let place = world.head().display().to_string();
    let looked = look((world.directory.path(), &world.head()), &world.store, Some(&world.server)).await;
    for told in [keeper.keep(&world.store).await.unwrap_err(), looked.unwrap_err()] {
        let told = told.to_string();
        assert!(told.contains("record 2") && told.contains(&format!("keep \"{place}\" elsewhere")), "{told}");
    }
    fs::rename(world.head(), world.directory.path().join("evidence")).unwrap();
    keeper.keep(&world.store).await.unwrap();
    assert_eq!(SignedHead::read(&world.head()).unwrap().unwrap().seq, 1, "as the message says");
}

#[tokio::test]
async fn the_head_of_another_server_is_told_as_such_whatever_signed_it() {
    let (world, other) = (World::new().await, ServerId::new(2, [2; 10]));
    world.note("a").await;
    world.keeper().keep(&world.store).await.unwrap();
    let signed = fs::read(world.head()).unwrap();
    // Its state directory has no key yet, and then one of its own.
    let state = tempfile::tempdir().unwrap();
    let told = |fault: anyhow::Error| {
        let text = fault.to_string();
        let named =
            text.contains(&format!("of the server {}", world.server)) && text.contains(other.as_str());
        assert!(named && text.contains("audit_head") && !text.contains("backup"), "{text}");
    };
    told(HeadKeeper::open(state.path(), &world.head(), &other).unwrap_err());
    assert!(!state.path().join(KEY_FILE).exists());
    let own = state.path().join("head");
    HeadKeeper::open(state.path(), &own, &other).unwrap();
    let keeper = HeadKeeper::open(state.path(), &world.head(), &other).unwrap();
    told(keeper.keep(&world.store).await.unwrap_err());
    told(look((state.path(), &world.head()), &world.store, Some(&other)).await.unwrap_err());
    assert_eq!(fs::read(world.head()).unwrap(), signed);
}

#[tokio::test]
async fn the_key_is_made_once_for_the_owner_alone_and_its_loss_is_told() {
    let world = World::new().await;
    let file = world.directory.path().join(KEY_FILE);
    let first = world.keeper().key.public_key().as_ref().to_vec();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(world.keeper().key.public_key().as_ref(), first);
    world.note("a").await;
    world.keeper().keep(&world.store).await.unwrap();
    fs::remove_file(&file).unwrap();
    let lost = HeadKeeper::open(world.directory.path(), &world.head(), &world.server).unwrap_err();
    assert!(lost.to_string().contains("put it back"), "{lost}");
    assert!(!file.exists(), "no new key hides the loss");
    fs::write(&file, "nonsense").unwrap();
    assert!(HeadKeeper::open(world.directory.path(), &world.head(), &world.server).is_err());
    fs::remove_file(world.head()).unwrap();
    fs::remove_file(&file).unwrap();
    assert_ne!(world.keeper().key.public_key().as_ref(), first, "as the message says");
}

#[tokio::test]
async fn what_is_no_head_is_told_and_not_written_over() {
    let world = World::new().await;
    let keeper = world.keeper();
    world.note("a").await;
    let long = "x".repeat(usize::try_from(HEAD_BYTES).unwrap() + 1);
    for text in ["", "{}", &long] {
        fs::write(world.head(), text).unwrap();
        assert!(keeper.keep(&world.store).await.is_err());
        assert_eq!(fs::read_to_string(world.head()).unwrap(), text);
    }
}

#[tokio::test]
async fn a_server_keeps_the_head_up_by_itself() {
    let world = World::new().await;
    let keeper = world.keeper();
    let cancel = CancellationToken::new();
    let work = async {
        world.note("a").await;
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if SignedHead::read(&world.head()).unwrap().is_some_and(|head| head.seq == 1) {
                break;
            }
        }
        cancel.cancel();
    };
    tokio::join!(keeper.follow(&world.store, &cancel), work);
    assert_eq!(SignedHead::read(&world.head()).unwrap().unwrap().seq, 1);
}
