//! Credentials where several servers, or several processes of one, are on a database.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::credential::{CredentialKind, CredentialSecret};
use caisson_domain::event::EventKind;
use caisson_domain::id::ServerId;
use caisson_domain::protocol::{Ending, JournalBody, Outcome};
use caisson_domain::redact::MARKER;
use caisson_store::{Clock, Credential, MasterKeyFile, RenewalTurn, Store};
use http::Method;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::git_scene::{Kind, scene};
use super::model_host::{END, ModelHost, Piece, START, Script, piece};
use super::support::{GIT_TOKEN, OK, Reply, Sandbox, Setup, World, eventually, run_spec, value};
use crate::bounds::{Bounds, OAUTH_SKEW_MS};

/// Long enough for a request to come to where it waits.
const A_WHILE: Duration = Duration::from_millis(300);

fn oauth(access: &str, refresh: &str, expires_at_ms: i64) -> CredentialSecret {
    CredentialSecret::Oauth {
        access_token: access.to_owned().into(),
        refresh_token: refresh.to_owned().into(),
        expires_at_ms,
        proxy_login: None,
    }
}

/// A token endpoint that takes a refresh token once, and answers when the gate opens.
async fn rotating(gate: &Arc<Notify>) -> ModelHost {
    let mut first =
        Script::json(200, "{\"access_token\":\"new\",\"refresh_token\":\"refresh2\",\"expires_in\":3600}");
    first.pieces.insert(0, Piece::Gate(Arc::clone(gate)));
    ModelHost::start_with(vec![first, Script::json(400, "{\"error\":\"invalid_grant\"}")]).await
}

/// Two servers with a gateway and a sandbox each.
struct Pair {
    one: World,
    other: World,
    sandboxes: [Sandbox; 2],
    model: ModelHost,
    tokens: ModelHost,
    credential: Credential,
}

impl Pair {
    async fn with(tokens: ModelHost, change: fn(&mut Bounds)) -> Self {
        let model = ModelHost::start(Script::stream(vec![piece(START), piece(END)])).await;
        let one = Box::pin(World::new()).await;
        Box::pin(one.unlock()).await;
        let other = Box::pin(beside(&one)).await;
        let mut sandboxes = Vec::new();
        for world in [&one, &other] {
            sandboxes.push(Box::pin(world.sandbox(run_spec(None))).await);
            let mut setup = Setup::new();
            setup.model.base_url = model.url.clone();
            change(&mut setup.bounds);
            Box::pin(world.start(setup)).await;
        }
        let settings = [("token_url", tokens.url.as_str())];
        let secret = oauth("old", "refresh1", one.store.now_ms());
        let credential =
            Box::pin(one.add_credential("oauth", CredentialKind::ModelOauth, &settings, secret)).await;
        let sandboxes = sandboxes.try_into().unwrap_or_else(|_| panic!("two were made"));
        Self { one, other, sandboxes, model, tokens, credential }
    }

    async fn ask(&self, which: usize) -> Reply {
        self.sandboxes[which].agent(Method::POST, "/model/v1/messages", "{}").await
    }

    fn bearers(&self) -> Vec<String> {
        let seen = self.model.seen();
        seen.iter().map(|call| call.headers["authorization"].to_str().unwrap().to_owned()).collect()
    }

    async fn version(&self) -> i64 {
        let at = (&self.credential.project, &self.credential.id);
        self.one.store.credential(at.0, at.1).await.unwrap().unwrap().version
    }

    async fn stop(&self) {
        self.one.stop().await;
        self.other.stop().await;
    }
}

/// Another server on the database of the first.
async fn beside(world: &World) -> World {
    let own = Box::pin(World::new()).await;
    let store = Store::open(&world.root.path().join("caisson.db"), Clock::system()).await.unwrap();
    store.unlock(MasterKeyFile::in_state_dir(world.root.path())).await.unwrap();
    let server = ServerId::new(1, [8; 10]);
    store.register_server(&server).await.unwrap();
    // Its sandboxes have other ids.
    World { store, server, count: 100.into(), ..own }
}

#[tokio::test]
async fn two_servers_refresh_an_access_token_once() {
    let gate = Arc::new(Notify::new());
    let pair = Pair::with(rotating(&gate).await, |_| {}).await;
    let first = pair.ask(0);
    let second = async {
        eventually(|| async { (!pair.tokens.seen().is_empty()).then_some(()) }).await;
        let asking = pair.ask(1);
        tokio::pin!(asking);
        assert!(timeout(A_WHILE, &mut asking).await.is_err(), "it waits for the other server's token");
        gate.notify_one();
        asking.await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status, second.status), (OK, OK), "{} {}", first.text(), second.text());
    assert_eq!((pair.tokens.seen().len(), pair.version().await), (1, 2), "one refresh");
    assert_eq!(pair.bearers(), ["Bearer new", "Bearer new"]);
    pair.stop().await;
}

#[tokio::test]
async fn a_server_that_died_in_its_turn_keeps_the_others_waiting_until_the_turn_ends() {
    let gate = Arc::new(Notify::new());
    let pair = Pair::with(rotating(&gate).await, |_| {}).await;
    // It had the turn, and sent nothing any more.
    let turn_ms = i64::try_from(10 * A_WHILE.as_millis()).unwrap();
    let turn = pair.one.store.take_renewal(&pair.credential, turn_ms).await.unwrap();
    assert!(matches!(turn, RenewalTurn::Own { .. }), "{turn:?}");
    gate.notify_one();
    let asking = pair.ask(1);
    tokio::pin!(asking);
    assert!(timeout(A_WHILE, &mut asking).await.is_err(), "it waits");
    assert!(pair.tokens.seen().is_empty(), "and nobody is asked");
    let reply = asking.await;
    assert_eq!(reply.status, OK, "{}", reply.text());
    assert_eq!((pair.tokens.seen().len(), pair.bearers()), (1, vec!["Bearer new".to_owned()]));
    pair.stop().await;
}

#[tokio::test]
async fn turns_of_other_servers_are_waited_for_a_bounded_time() {
    let gate = Arc::new(Notify::new());
    let pair = Pair::with(rotating(&gate).await, |bounds| bounds.renewal_wait = A_WHILE).await;
    pair.one.store.take_renewal(&pair.credential, i64::MAX).await.unwrap();
    let reply = pair.ask(1).await;
    assert_eq!(reply.status, 502, "{}", reply.text());
    assert!(pair.tokens.seen().is_empty());
    pair.stop().await;
}

#[tokio::test]
async fn a_refusal_counts_only_if_nobody_has_stored_another_token_meanwhile() {
    let gate = Arc::new(Notify::new());
    // The head of a refusal is judged before its body comes; what has no token is read to its end.
    let mut refused = Script::json(200, "{\"error\":\"invalid_grant\"}");
    refused.pieces.insert(0, Piece::Gate(Arc::clone(&gate)));
    let pair = Pair::with(ModelHost::start(refused).await, |_| {}).await;
    let asking = pair.ask(0);
    let storing = async {
        eventually(|| async { (!pair.tokens.seen().is_empty()).then_some(()) }).await;
        // As a server does whose turn was over before its answer came.
        let secret = oauth("stored", "refresh2", pair.one.store.now_ms() + 2 * OAUTH_SKEW_MS);
        let late = pair.other.store.renew_credential(&pair.credential, &secret).await;
        assert!(late.unwrap().is_some());
        gate.notify_one();
    };
    let (reply, ()) = tokio::join!(asking, storing);
    assert_eq!(reply.status, OK, "{}", reply.text());
    assert_eq!(pair.bearers(), ["Bearer stored"]);
    pair.stop().await;
}

#[tokio::test]
async fn a_refusal_ends_the_turn_for_the_other_server_as_well() {
    let pair = Pair::with(ModelHost::start(Script::json(400, "{}")).await, |_| {}).await;
    for which in [0, 1] {
        let reply = pair.ask(which).await;
        assert_eq!(reply.status, 403, "{}", reply.text());
    }
    assert_eq!(pair.tokens.seen().len(), 2, "each has asked, and waited for nobody");
    pair.stop().await;
}

#[tokio::test]
async fn a_runs_uses_are_written_before_its_outcome_is_acknowledged() {
    for is_stored in [true, false] {
        let model = ModelHost::start_with(vec![
            Script::json(503, "{}"),
            Script::stream(vec![piece(START), piece(END)]),
        ])
        .await;
        let world = World::new().await;
        world.unlock().await;
        let sandbox = world.sandbox(run_spec(None)).await;
        let mut setup = Setup::new();
        setup.model.base_url = model.url.clone();
        world.start(setup).await;
        let mut name = "config:model".to_owned();
        if is_stored {
            let kind = CredentialKind::ModelApiKey;
            name = world.add_credential("model", kind, &[], value("of-the-store")).await.id.to_string();
        }
        for _ in 0..3 {
            assert_eq!(sandbox.agent(Method::POST, "/model/v1/messages", "{}").await.status, OK);
        }
        let uses = async || {
            let used = world.store.credentials_used(&sandbox.run.id).await.unwrap();
            used.into_iter().map(|one| (one.credential, one.uses)).collect::<Vec<_>>()
        };
        let first = if is_stored { vec![(name.clone(), 1)] } else { Vec::new() };
        assert_eq!(uses().await, first, "further ones are counted in memory");
        let outcome =
            Outcome { ending: Ending::Completed, result: None, head: None, pushed: false, kept: false };
        let line = sandbox.line(JournalBody::Finished(outcome));
        assert_eq!(sandbox.control(Method::POST, "/journal?offset=0", line).await.status, OK);
        assert_eq!(model.seen().len(), 4, "the first call was tried again");
        assert_eq!(uses().await, [(name, 4)]);
        world.stop().await;
    }
}

#[tokio::test]
async fn each_request_that_carries_a_git_credential_is_counted_and_its_purpose_recorded() {
    let scene = scene(Kind::Host, |_| {}, |_| {}).await;
    let (world, host) = (&scene.world, scene.host.as_ref().unwrap());
    world.unlock().await;
    let settings = [("url_prefix", host.url.as_str()), ("username", "robot")];
    let stored = world.add_credential("git", CredentialKind::GitToken, &settings, value(GIT_TOKEN)).await;
    let before = host.seen().len();
    scene.commit("one").await;
    scene.accepted(&[]).await;
    let run = &scene.sandbox.run.id;
    world.store.write_credential_uses_of(run).await.unwrap();
    let seen = host.seen().split_off(before);
    let carried = seen.iter().filter(|(_, headers)| headers.contains_key("authorization")).count();
    assert!(carried > 3, "a push asks more than it sends: {carried}");
    let used = world.store.credentials_used(run).await.unwrap();
    // The clone was made with the configuration's.
    assert!(used.iter().any(|one| one.credential.starts_with("config:http://127.0.0.1")), "{used:?}");
    let of_it = used.iter().find(|one| one.credential == stored.id.as_str()).unwrap();
    assert_eq!(usize::try_from(of_it.uses).unwrap(), carried);
    let name = Some(format!("{} git", stored.id));
    let audit = world.audit().await;
    let of_it = audit.iter().filter(|(action, _, used, _)| action == "credential.use" && *used == name);
    let mut purposes: Vec<&str> = of_it.map(|(_, purpose, ..)| purpose.as_str()).collect();
    purposes.sort_unstable();
    assert_eq!(purposes, ["git fetch", "git push"], "each once");
    world.stop().await;
}

#[tokio::test]
async fn a_secret_that_is_added_while_a_sandbox_lives_is_kept_out_before_it_is_used() {
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let (mut offset, secrets) = (0, ["ghp_canaryAdded0123456789", "ghp_canaryRotated01234567"]);
    let host = [("host", "registry.example.com")];
    let added = world.add_credential("npm", CredentialKind::RegistryToken, &host, value(secrets[0])).await;
    for (number, secret) in secrets.iter().enumerate() {
        if number == 1 {
            world.rotate(&added, &value(secret)).await;
        }
        let said = loop {
            let text = format!("{number}: {secret}");
            let line = sandbox.line(JournalBody::Text { text, cut_bytes: 0 });
            let path = format!("/journal?offset={offset}");
            offset += line.len();
            assert_eq!(sandbox.control(Method::POST, &path, line).await.status, OK);
            let said = world.events(&sandbox.run.id, EventKind::AgentText).await.pop().unwrap();
            if !said.to_string().contains(secret) {
                break said.to_string();
            }
            assert!(offset < 100_000, "it is not looked for: {said}");
        };
        assert!(said.contains(&format!("{number}: {MARKER}")), "{said}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_process_without_a_gateway_looks_for_the_secrets_of_all_projects_in_its_log() {
    let world = World::new().await;
    world.unlock().await;
    let host = [("host", "registry.example.com")];
    let of = async |name: &str| {
        world
            .add_credential(name, CredentialKind::RegistryToken, &host, value(&format!("ghp_canary-{name}")))
            .await
    };
    of("before").await;
    let secrets = caisson_domain::redact::LiveSecrets::default();
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    crate::look_for_secrets(&world.store, &secrets, &tracker, &cancel).await.unwrap();
    assert_eq!(secrets.text("a ghp_canary-before b"), format!("a {MARKER} b"));
    let after = of("after").await;
    let gone = async |text: &str| secrets.text(text) == MARKER;
    eventually(|| async { gone("ghp_canary-after").await.then_some(()) }).await;
    world.rotate(&after, &value("ghp_canary-rotated")).await;
    eventually(|| async { gone("ghp_canary-rotated").await.then_some(()) }).await;
    assert!(gone("ghp_canary-after").await, "for a while");
    cancel.cancel();
    tracker.close();
    tracker.wait().await;
}
