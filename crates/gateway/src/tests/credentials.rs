//! Credentials of the store: what counts is asked for each request, and comes before those of the settings.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::credential::{CredentialKind, CredentialSecret};
use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use caisson_domain::id::ProjectId;
use caisson_store::{Actor, Clock, MasterKeyFile, Store};
use http::Method;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::git_host::{Client, GitHost, Mood, bare_repository, git};
use super::model_host::{END, ModelHost, Piece, START, Script, piece};
use super::outside::{Outside, ask as ask_outside, setup as egress_setup};
use super::support::{GIT_TOKEN, MODEL_KEY, OK, Reply, Sandbox, Setup, World, eventually, run_spec, value};
use crate::{GitCredential, ModelCredential};

const MESSAGES: &str = "/model/v1/messages";
const BRANCH: &str = "caisson/fixer/1";

async fn world() -> (World, Sandbox, ModelHost) {
    world_with(vec![Script::stream(vec![piece(START), piece(END)])]).await
}

async fn world_with(scripts: Vec<Script>) -> (World, Sandbox, ModelHost) {
    let host = ModelHost::start_with(scripts).await;
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    setup.model.credential = Some(ModelCredential::ApiKey("of-the-settings".to_owned().into()));
    setup.bounds.retry_first = Duration::from_millis(400);
    world.start(setup).await;
    (world, sandbox, host)
}

/// Refuses a call for now; the refusal ends when the test has done what it does meanwhile, and no try comes before.
fn busy_until(gate: &Arc<Notify>) -> Script {
    let mut script = Script::json(529, "{}");
    script.pieces.insert(0, Piece::Gate(Arc::clone(gate)));
    script
}

async fn ask(sandbox: &Sandbox) -> Reply {
    sandbox.agent(Method::POST, MESSAGES, "{\"model\":\"claude-opus-5-5\"}").await
}

async fn key_sent(sandbox: &Sandbox, host: &ModelHost) -> String {
    let reply = ask(sandbox).await;
    assert_eq!(reply.status, OK, "{}", reply.text());
    host.seen().last().unwrap().headers["x-api-key"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_rotation_and_a_removal_act_on_the_next_call_of_the_same_grant() {
    let (world, sandbox, host) = world().await;
    assert_eq!(key_sent(&sandbox, &host).await, "of-the-settings");
    let kind = CredentialKind::ModelApiKey;
    let credential = world.add_credential("model", kind, &[], value(MODEL_KEY)).await;
    assert_eq!(key_sent(&sandbox, &host).await, MODEL_KEY);
    assert_eq!(key_sent(&sandbox, &host).await, MODEL_KEY, "the one that was opened last");
    let rotated = format!("rotated-{MODEL_KEY}");
    world.rotate(&credential, &value(&rotated)).await;
    assert_eq!(key_sent(&sandbox, &host).await, rotated);
    let newer = world.add_credential("newer", kind, &[], value("newer")).await;
    assert_eq!(key_sent(&sandbox, &host).await, "newer", "the newest wins");
    for gone in [newer, credential.clone()] {
        assert!(world.store.remove_credential(&gone.project, &gone.id, &Actor::Operator).await.unwrap());
    }
    assert_eq!(key_sent(&sandbox, &host).await, "of-the-settings");
    let used = world.store.credentials_used(&sandbox.run.id).await.unwrap();
    assert_eq!(used.len(), 2);
    assert_eq!(used[0].credential, credential.id.as_str());
    world.stop().await;
    world.store.close().await.unwrap();
    assert!(!world.disk_has(MODEL_KEY));
    assert!(world.disk_has(credential.id.as_str()), "the search finds what is there");
}

#[tokio::test]
async fn a_call_whose_body_comes_slowly_is_sent_with_what_counts_by_then() {
    let (world, sandbox, host) = world().await;
    let credential = world.add_credential("model", CredentialKind::ModelApiKey, &[], value("first")).await;
    assert_eq!(key_sent(&sandbox, &host).await, "first");
    let body = "{\"model\":\"claude-opus-5-5\"}";
    let head = format!(
        "POST {MESSAGES} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        sandbox.agent,
        body.len()
    );
    let mut slow = UnixStream::connect(&sandbox.socket).await.unwrap();
    slow.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    world.rotate(&credential, &value("second")).await;
    slow.write_all(body.as_bytes()).await.unwrap();
    eventually(|| async { (host.seen().len() == 2).then_some(()) }).await;
    assert_eq!(host.seen()[1].headers["x-api-key"], "second");
    world.stop().await;
}

#[tokio::test]
async fn a_call_that_is_tried_again_goes_with_what_counts_by_then() {
    let gates: [Arc<Notify>; 3] = Default::default();
    let whole = Script::stream(vec![piece(START), piece(END)]);
    let scripts = gates.iter().map(busy_until).chain([whole]).collect();
    let (world, sandbox, host) = world_with(scripts).await;
    let kind = CredentialKind::ModelApiKey;
    let credential = world.add_credential("model", kind, &[], value("first")).await;
    let change = async {
        let seen = async |count| eventually(|| async { (host.seen().len() == count).then_some(()) }).await;
        seen(1).await;
        world.rotate(&credential, &value("second")).await;
        gates[0].notify_one();
        seen(2).await;
        let bearer = [("send_as", "bearer")];
        world.add_credential("newer", kind, &bearer, value("third")).await;
        gates[1].notify_one();
        seen(3).await;
        for gone in world.store.list_credentials(&sandbox.run.project).await.unwrap() {
            assert!(world.store.remove_credential(&gone.project, &gone.id, &Actor::Operator).await.unwrap());
        }
        gates[2].notify_one();
    };
    let (reply, ()) = tokio::join!(ask(&sandbox), change);
    assert_eq!(reply.status, OK, "{}", reply.text());
    let sent: Vec<_> = host
        .seen()
        .iter()
        .map(|seen| {
            let text = |name| seen.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (text("x-api-key"), text("authorization"))
        })
        .collect();
    let key = |text: &str| (Some(text.to_owned()), None);
    let expected =
        [key("first"), key("second"), (None, Some("Bearer third".to_owned())), key("of-the-settings")];
    assert_eq!(sent, expected);
    world.store.write_credential_uses_of(&sandbox.run.id).await.unwrap();
    let used = world.store.credentials_used(&sandbox.run.id).await.unwrap();
    let counts = |ours| {
        let of_them = used.iter().filter(|one| (one.credential == credential.id.as_str()) == ours);
        of_them.map(|one| one.uses).collect::<Vec<_>>()
    };
    assert_eq!((counts(true), counts(false)), (vec![2], vec![1, 1]), "{used:?}");
    let audited = world.audit().await.into_iter().filter(|(action, ..)| action == "credential.use").count();
    assert_eq!(audited, 3, "each was told of before it was sent");
    world.stop().await;
}

#[tokio::test]
async fn a_call_whose_credential_leads_elsewhere_by_its_next_try_is_left_to_the_agent() {
    // Also where the key is the very one that the call was made with.
    for key in ["x", "of-the-settings"] {
        let gate = Arc::new(Notify::new());
        let (world, sandbox, host) = world_with(vec![busy_until(&gate)]).await;
        let kind = CredentialKind::ModelApiKey;
        let change = async {
            eventually(|| async { (host.seen().len() == 1).then_some(()) }).await;
            let elsewhere = [("base_url", "https://elsewhere.example")];
            world.add_credential("model", kind, &elsewhere, value(key)).await;
            gate.notify_one();
        };
        let (reply, ()) = tokio::join!(ask(&sandbox), change);
        assert_eq!((reply.status, host.seen().len()), (529, 1), "{key}: {}", reply.text());
        world.stop().await;
    }
}

#[tokio::test]
async fn a_refused_credential_is_named_with_what_replaces_it() {
    for status in [401, 403] {
        let host = ModelHost::start(Script::json(status, "{\"type\":\"error\"}")).await;
        let world = World::new().await;
        world.unlock().await;
        let sandbox = world.sandbox(run_spec(None)).await;
        let mut setup = Setup::new();
        setup.model.base_url = host.url.clone();
        world.start(setup).await;
        ask(&sandbox).await;
        let failure = async || {
            let progress = world.store.progress(&sandbox.run.id, sandbox.epoch).await.unwrap().unwrap();
            progress.model_failure.unwrap().message
        };
        let said = failure().await;
        let in_settings = "the server's credential";
        assert!(said.contains(in_settings) && said.contains("in the server's configuration"), "{said}");
        assert!(!said.contains("caisson credential"), "{said}");

        world.add_credential("team-key", CredentialKind::ModelApiKey, &[], value(MODEL_KEY)).await;
        ask(&sandbox).await;
        let said = failure().await;
        assert!(said.contains("the credential \"team-key\""), "{said}");
        assert!(said.contains("`caisson credential rotate team-key` on the server's machine"), "{said}");
        assert!(!said.contains("configuration"), "{said}");
        world.stop().await;
    }
}

#[tokio::test]
async fn another_projects_credential_is_not_used() {
    let (world, sandbox, host) = world().await;
    let credential = world.add_credential("model", CredentialKind::ModelApiKey, &[], value(MODEL_KEY)).await;
    assert_eq!(key_sent(&sandbox, &host).await, MODEL_KEY);
    let other: ProjectId = "other".parse().unwrap();
    assert!(world.store.open_credential(&other, &credential.id).await.unwrap().is_none());
    let kinds = [CredentialKind::ModelApiKey, CredentialKind::ModelOauth];
    assert!(world.store.credentials_of_kinds(&other, kinds).await.unwrap().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_credential_brings_its_own_url_header_and_proxy() {
    let (world, sandbox, host) = world().await;
    let own = ModelHost::start(Script::json(200, "{\"type\":\"message\"}")).await;
    let settings = [("base_url", own.url.as_str()), ("send_as", "bearer")];
    world.add_credential("own", CredentialKind::ModelApiKey, &settings, value(MODEL_KEY)).await;
    assert_eq!(ask(&sandbox).await.status, OK);
    let seen = own.seen();
    assert_eq!(seen[0].uri, "/base/v1/messages");
    assert_eq!(seen[0].headers["authorization"], format!("Bearer {MODEL_KEY}"));
    assert!(!seen[0].headers.contains_key("x-api-key"));
    // A proxy for plain HTTP is asked for the whole URL.
    let proxy = ModelHost::start(Script::json(200, "{\"type\":\"message\"}")).await;
    let origin = proxy.url.origin().ascii_serialization();
    let settings = [("base_url", "http://model.invalid/api"), ("outbound_proxy", origin.as_str())];
    let login = |password: &str| CredentialSecret::Value {
        value: MODEL_KEY.to_owned().into(),
        proxy_login: Some(format!("me:{password}").into()),
    };
    let kind = CredentialKind::ModelApiKey;
    let credential = world.add_credential("proxied", kind, &settings, login("p@ss:1")).await;
    let proxied = async |expected: &str| {
        assert_eq!(ask(&sandbox).await.status, OK);
        let seen = proxy.seen();
        let last = seen.last().unwrap();
        assert_eq!(last.uri, "http://model.invalid/api/v1/messages");
        let basic = crate::credentials::basic("me", &expected.to_owned().into());
        assert_eq!(last.headers["proxy-authorization"], basic.as_str());
    };
    proxied("p@ss:1").await;
    world.rotate(&credential, &login("p2")).await;
    proxied("p2").await;
    assert!(host.seen().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_credential_that_cannot_be_opened_or_sent_is_told_and_nothing_is_sent() {
    let (world, sandbox, host) = world().await;
    let pem = "-----BEGIN CERTIFICATE-----\nMAEA\n-----END CERTIFICATE-----\n";
    let kind = CredentialKind::ModelApiKey;
    let unusable = world.add_credential("unusable", kind, &[("ca_pem", pem)], value(MODEL_KEY)).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (403, &"permission_error".into()));
    assert!(reply.text().contains("the credential \\\"unusable\\\" cannot be sent"), "{}", reply.text());
    let failed = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert_eq!((failed.len(), &failed[0]["kind"]), (1, &"auth".into()));
    let project = ProjectId::default_project();
    let removed = world.store.remove_credential(&project, &unusable.id, &Actor::Operator).await;
    assert!(removed.unwrap());
    world.add_credential("sealed", kind, &[], value(MODEL_KEY)).await;
    assert_eq!(key_sent(&sandbox, &host).await, MODEL_KEY);
    let (calls, key) = (host.seen().len(), world.root.path().join("master.key"));
    // A process that has the wrong key, as a restored database would.
    std::fs::write(&key, "ab".repeat(32)).unwrap();
    let other = MasterKeyFile::named(key);
    assert!(world.store.unlock(other).await.is_err());
    world.stop().await;
    let path = world.root.path().join("caisson.db");
    let store = Store::open(&path, Clock::system()).await.unwrap();
    let world = World { store, cancel: CancellationToken::new(), ..world };
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    world.start(setup).await;
    let reply = ask(&sandbox).await;
    assert_eq!(reply.status, 403, "{}", reply.text());
    assert!(reply.text().contains("log says why"), "{}", reply.text());
    assert_eq!(host.seen().len(), calls);
    world.stop().await;
}

#[tokio::test]
async fn a_git_token_of_the_store_is_used_and_its_rotation_acts_on_a_living_sandbox() {
    let world = World::new().await;
    world.unlock().await;
    let root = world.root.path().join("host");
    let bare = root.join("team/one.git");
    std::fs::create_dir_all(bare.parent().unwrap()).unwrap();
    bare_repository(&bare).await;
    git(&bare, &["config", "http.receivepack", "true"]).await;
    let host = GitHost::start(&root, Mood::Serves).await;
    let sandbox = world.sandbox(run_spec(Some(&format!("{}/team/one.git", host.url)))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[format!("{}/*", host.url)], Vec::new()).unwrap();
    // The settings' longer prefix does not come before the store's.
    setup.git.credentials = vec![GitCredential {
        url_prefix: format!("{}/team/one.git", host.url).parse().unwrap(),
        username: "robot".to_owned(),
        token: "of-the-settings".to_owned().into(),
    }];
    world.start(setup).await;
    let prefix = format!("{}/team", host.url);
    let settings = [("url_prefix", prefix.as_str()), ("username", "robot")];
    let stored = world.add_credential("git", CredentialKind::GitToken, &settings, value("wrong")).await;
    let client = Client::new(&sandbox, world.root.path().join("client")).await;
    let refused = client.clone().await;
    assert!(!refused.ok && refused.said.contains("refused the credential"), "{}", refused.said);
    world.rotate(&stored, &value(GIT_TOKEN)).await;
    client.clone_and_commit().await;
    world.rotate(&stored, &value("wrong again")).await;
    let refused = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!refused.ok && refused.said.contains("refused the credential"), "{}", refused.said);
    world.rotate(&stored, &value(GIT_TOKEN)).await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(pushed.ok, "{}", pushed.said);
    let removed = world.store.remove_credential(&stored.project, &stored.id, &Actor::Operator).await;
    assert!(removed.unwrap());
    let path = "/git/origin/info/refs?service=git-upload-pack";
    assert_eq!(sandbox.agent(Method::GET, path, "").await.status, 403);
    let basic = crate::credentials::basic("robot", &"of-the-settings".to_owned().into());
    assert_eq!(host.seen().last().unwrap().1["authorization"], basic.as_str());
    world.stop().await;
    world.store.close().await.unwrap();
    assert!(!world.disk_has(GIT_TOKEN));
}

#[tokio::test]
async fn a_registrys_token_goes_to_its_host_over_plain_http_and_acts_at_once() {
    const REPLY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let port = outside.address.port();
    let (registry, other) = (format!("npm.example:{port}"), format!("other.example:{port}"));
    world.start(egress_setup(&[&registry, &other], &["127.0.0.1/32"])).await;
    let kind = CredentialKind::RegistryToken;
    let host = [("host", registry.as_str())];
    let token = world.add_credential("npm", kind, &host, value("registry-canary-1")).await;
    let get = |host: &str| format!("GET http://{host}/package");
    assert!(ask_outside(&sandbox, &get(&registry), "").await.ends_with("ok"));
    assert!(ask_outside(&sandbox, &get(&other), "").await.ends_with("ok"));
    world.rotate(&token, &value("registry-canary-2")).await;
    assert!(ask_outside(&sandbox, &get(&registry), "authorization: Bearer own\r\n").await.ends_with("ok"));
    let named = [("host", registry.as_str()), ("username", "team")];
    let newer = world.add_credential("newer", kind, &named, value("registry-canary-3")).await;
    assert!(ask_outside(&sandbox, &get(&registry), "").await.ends_with("ok"));
    let heard = outside.heard();
    assert!(heard[0].contains("authorization: Bearer registry-canary-1\r\n"), "{heard:?}");
    assert!(!heard[1].contains("authorization"), "{heard:?}");
    assert!(heard[2].contains("Bearer registry-canary-2") && !heard[2].contains("own"), "{heard:?}");
    // team:registry-canary-3
    assert!(heard[3].contains("authorization: Basic dGVhbTpyZWdpc3RyeS1jYW5hcnktMw==\r\n"), "{heard:?}");
    let audit = world.audit().await;
    let used = audit.iter().filter(|(action, ..)| action == "credential.use");
    let used: Vec<_> =
        used.map(|(_, purpose, name, host)| (purpose.as_str(), name.as_deref(), host.as_deref())).collect();
    let recorded = [format!("{} npm", token.id), format!("{} newer", newer.id)];
    let expected = recorded.each_ref().map(|name| ("registry", Some(name.as_str()), Some("npm.example")));
    assert_eq!(used, expected, "once for each run, credential and host");
    world.store.write_credential_uses_of(&sandbox.run.id).await.unwrap();
    let counted = world.store.credentials_used(&sandbox.run.id).await.unwrap();
    for (credential, uses) in [(&token, 2), (&newer, 1)] {
        let of_it = counted.iter().find(|one| one.credential == credential.id.as_str()).unwrap();
        assert_eq!(of_it.uses, uses, "{counted:?}");
        let known = world.store.credential(&credential.project, &credential.id).await.unwrap().unwrap();
        assert!(known.last_used_at_ms.is_some(), "{known:?}");
    }
    world.stop().await;
    assert!(!world.disk_has("registry-canary"));

    // Without the master key nobody is asked without the token.
    let store = Store::open(&world.root.path().join("caisson.db"), Clock::system()).await.unwrap();
    let world = World { store, cancel: CancellationToken::new(), ..world };
    let outside = Outside::start(&world, &format!("127.0.0.1:{port}"), REPLY).await;
    world.start(egress_setup(&[&registry, &other], &["127.0.0.1/32"])).await;
    let answer = ask_outside(&sandbox, &get(&registry), "").await;
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("egress_credential"), "{answer}");
    assert!(ask_outside(&sandbox, &get(&other), "").await.ends_with("ok"));
    assert_eq!(outside.heard().len(), 1, "and nothing of the registry's");
    world.stop().await;
}
