//! Tokens that are had with a credential: refreshed access tokens and an app's installation tokens.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use caisson_domain::credential::{CredentialKind, CredentialSecret};
use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use caisson_store::{Credential, SigningKey};
use futures_util::future::join_all;
use http::Method;
use secrecy::ExposeSecret;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::Notify;

use super::model_host::{END, ModelHost, Piece, START, Script, Seen, piece};
use super::support::{OK, Reply, Sandbox, Setup, World, eventually, run_spec};
use crate::bounds::{Bounds, OAUTH_LIFETIME_MS_MOST, OAUTH_SKEW_MS, TOKEN_REPLY_BYTES};

/// Requests at once.
const PARALLEL: usize = 20;
const KEY: &str = include_str!("../../../store/src/credentials/test_keys/pkcs1.pem");
const ROTATED_KEY: &str = include_str!("../../../store/src/credentials/test_keys/rotated.pem");
/// A life that is far from its end.
const LONG_MS: i64 = 60 * 60 * 1000;
const REFS: &str = "/git/origin/info/refs?service=git-upload-pack";

fn oauth(access: &str, expires_at_ms: i64) -> CredentialSecret {
    CredentialSecret::Oauth {
        access_token: access.to_owned().into(),
        refresh_token: "refresh&1".to_owned().into(),
        expires_at_ms,
        proxy_login: None,
    }
}

struct Scene {
    world: World,
    sandbox: Sandbox,
    model: ModelHost,
    tokens: ModelHost,
    credential: Credential,
}

impl Scene {
    /// A model credential whose access token ends in `left_ms`.
    async fn oauth(answer: Script, settings: &[(&'static str, &str)], left_ms: i64) -> Self {
        let model = ModelHost::start(Script::stream(vec![piece(START), piece(END)])).await;
        Self::beside((model, answer), settings, left_ms, |_| {}).await
    }

    /// The same beside a model API, with other bounds.
    async fn beside(
        (model, answer): (ModelHost, Script),
        settings: &[(&'static str, &str)],
        left_ms: i64,
        change: impl FnOnce(&mut Bounds),
    ) -> Self {
        let answer_hangs = answer.hangs;
        let tokens = ModelHost::start(answer).await;
        let world = Box::pin(World::new()).await;
        Box::pin(world.unlock()).await;
        let sandbox = Box::pin(world.sandbox(run_spec(None))).await;
        let mut setup = Setup::new();
        setup.model.base_url = model.url.clone();
        if answer_hangs {
            setup.bounds.token_call = Duration::from_millis(100);
        }
        change(&mut setup.bounds);
        Box::pin(world.start(setup)).await;
        let settings = [&[("token_url", tokens.url.as_str())], settings].concat();
        let secret = oauth("old", world.store.now_ms() + left_ms);
        let adding = world.add_credential("oauth", CredentialKind::ModelOauth, &settings, secret);
        let credential = Box::pin(adding).await;
        Self { world, sandbox, model, tokens, credential }
    }

    async fn ask(&self) -> Reply {
        self.sandbox.agent(Method::POST, "/model/v1/messages", "{}").await
    }

    fn bearers(&self) -> Vec<String> {
        let seen = self.model.seen();
        seen.iter().map(|call| call.headers["authorization"].to_str().unwrap().to_owned()).collect()
    }
}

/// What the audit log has of secrets that were sent for a token.
async fn token_calls(world: &World) -> Vec<String> {
    let audit = world.audit().await.into_iter();
    let calls = audit.filter(|(action, purpose, ..)| action == "credential.use" && purpose == "token");
    calls.map(|(_, _, name, host)| format!("{} for {}", name.unwrap(), host.unwrap())).collect()
}

fn renewed() -> Script {
    Script::json(200, "{\"access_token\":\"new\",\"refresh_token\":\"refresh2\",\"expires_in\":3600}")
}

#[tokio::test]
async fn twenty_calls_at_once_refresh_an_access_token_once() {
    let settings = [("client_id", "c 1"), ("anthropic_beta", "oauth-x")];
    let scene = Scene::oauth(renewed(), &settings, OAUTH_SKEW_MS - 1).await;
    let replies = join_all((0..PARALLEL).map(|_| scene.ask())).await;
    assert!(replies.iter().all(|reply| reply.status == OK));
    let asked = scene.tokens.seen();
    assert_eq!(asked.len(), 1, "one call for a token");
    assert_eq!(asked[0].headers["content-type"], "application/x-www-form-urlencoded");
    let body = std::str::from_utf8(&asked[0].body).unwrap();
    assert_eq!(body, "grant_type=refresh_token&refresh_token=refresh%261&client_id=c+1");
    assert_eq!(scene.bearers(), vec!["Bearer new"; PARALLEL]);
    assert_eq!(scene.model.seen()[0].headers["anthropic-beta"], "oauth-x");
    let at = (&scene.credential.project, &scene.credential.id);
    let stored = scene.world.store.open_credential(at.0, at.1).await.unwrap().unwrap();
    let CredentialSecret::Oauth { refresh_token, expires_at_ms, .. } = &stored.secret else { panic!() };
    assert_eq!((stored.credential.version, refresh_token.expose_secret()), (2, "refresh2"));
    assert!(*expires_at_ms > scene.world.store.now_ms() + 3_500_000);
    assert_eq!(stored.credential.rotated_at_ms, None);
    let id = at.1.as_str();
    assert_eq!(token_calls(&scene.world).await, [format!("{id} oauth for 127.0.0.1")]);
    let audit = scene.world.audit().await;
    let renewed = audit.iter().filter(|(action, ..)| action == "credential.renew");
    assert_eq!(renewed.map(|(_, subject, ..)| subject.as_str()).collect::<Vec<_>>(), [id]);
    scene.world.stop().await;
    scene.world.store.close().await.unwrap();
    assert!(!scene.world.disk_has("refresh2"));
}

#[tokio::test]
async fn a_token_endpoint_may_want_json_and_give_no_new_refresh_token() {
    let answer = Script::json(200, "{\"access_token\":\"new\"}");
    let scene = Scene::oauth(answer, &[("token_format", "json")], 0).await;
    assert_eq!(scene.ask().await.status, OK);
    let body: serde_json::Value = serde_json::from_slice(&scene.tokens.seen()[0].body).unwrap();
    assert_eq!(body, serde_json::json!({"grant_type": "refresh_token", "refresh_token": "refresh&1"}));
    assert_eq!(scene.ask().await.status, OK);
    assert_eq!(scene.tokens.seen().len(), 1, "without a word on its life it is taken to live an hour");
    scene.world.stop().await;
}

#[tokio::test]
async fn a_refresh_that_was_begun_is_stored_although_nobody_waits_for_it() {
    let gate = Arc::new(Notify::new());
    let mut answer = renewed();
    answer.pieces.insert(0, Piece::Gate(Arc::clone(&gate)));
    let scene = Scene::oauth(answer, &[], 0).await;
    {
        let asking = scene.ask();
        tokio::pin!(asking);
        let begun = eventually(|| async { (!scene.tokens.seen().is_empty()).then_some(()) });
        tokio::select! {
            _ = &mut asking => panic!("the gate is shut"),
            () = begun => {}
        }
    }
    gate.notify_one();
    let at = (&scene.credential.project, &scene.credential.id);
    let stored = eventually(|| async {
        let found = scene.world.store.credential(at.0, at.1).await.unwrap().unwrap();
        (found.version == 2).then_some(found)
    });
    stored.await;
    assert_eq!(scene.ask().await.status, OK);
    assert_eq!((scene.tokens.seen().len(), scene.bearers()), (1, vec!["Bearer new".to_owned()]));
    scene.world.stop().await;
}

#[tokio::test]
async fn a_refused_refresh_is_told_and_not_tried_again_at_once() {
    for (answer, status, part) in [
        (Script::json(400, "{\"error\":\"invalid_grant\"}"), 403, "was refused (status 400)"),
        (Script::json(503, "{}"), 502, "cannot be reached"),
        (Script::json(200, "{\"token\":\"canary\"}"), 403, "the answer has no token"),
        (Script::json(200, &"x".repeat(TOKEN_REPLY_BYTES + 1)), 403, "the answer has no token"),
    ] {
        let scene = Scene::oauth(answer, &[], 0).await;
        for _ in 0..3 {
            let reply = scene.ask().await;
            assert_eq!(reply.status, status, "{}", reply.text());
            assert!(reply.text().contains(part) && !reply.text().contains("canary"), "{}", reply.text());
        }
        assert_eq!(scene.tokens.seen().len(), 1);
        assert!(scene.model.seen().is_empty());
        let failed = scene.world.events(&scene.sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
        assert_eq!(failed.len(), 3);
        // A rotated one is tried at once.
        scene.world.rotate(&scene.credential, &oauth("fresh", i64::MAX / 2)).await;
        assert_eq!(scene.ask().await.status, OK);
        assert_eq!(scene.bearers(), ["Bearer fresh"]);
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_token_endpoint_that_does_not_answer_is_waited_for_a_bounded_time() {
    let hanging = Script { hangs: true, ..renewed() };
    let scene = Scene::oauth(hanging, &[], 0).await;
    let reply = scene.ask().await;
    assert_eq!(reply.status, 502, "{}", reply.text());
    assert_eq!(scene.tokens.seen().len(), 1);
    scene.world.stop().await;
}

#[tokio::test]
async fn the_life_of_an_access_token_is_bounded() {
    for (seconds, least_ms, most_ms) in
        [(i64::MAX, OAUTH_LIFETIME_MS_MOST - 60_000, OAUTH_LIFETIME_MS_MOST), (-1, -60_000, 0)]
    {
        let answer = Script::json(200, &format!("{{\"access_token\":\"new\",\"expires_in\":{seconds}}}"));
        let scene = Scene::oauth(answer, &[], 0).await;
        assert_eq!(scene.ask().await.status, OK);
        let at = (&scene.credential.project, &scene.credential.id);
        let stored = scene.world.store.open_credential(at.0, at.1).await.unwrap().unwrap();
        let CredentialSecret::Oauth { expires_at_ms, .. } = stored.secret else { panic!() };
        let left_ms = expires_at_ms - scene.world.store.now_ms();
        assert!((least_ms..=most_ms).contains(&left_ms), "{left_ms}");
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_refreshed_yet_is_used_as_long_as_it_lives() {
    let scene = Scene::oauth(Script::json(503, "{}"), &[], OAUTH_SKEW_MS - 1).await;
    for _ in 0..2 {
        assert_eq!(scene.ask().await.status, OK);
    }
    assert_eq!((scene.tokens.seen().len(), scene.bearers()), (1, vec!["Bearer old".to_owned(); 2]));
    scene.world.stop().await;
}

struct App {
    world: World,
    sandbox: Sandbox,
    host: ModelHost,
    api: ModelHost,
    credential: Credential,
}

/// A repository on a host that answers `status`, and an app whose tokens end at `expires_at`.
async fn app(status: u16, expires_at: &str) -> App {
    let answer = format!("{{\"token\":\"ghs_minted\",\"expires_at\":\"{expires_at}\"}}");
    let api = ModelHost::start(Script::json(201, &answer)).await;
    let host = ModelHost::start(Script {
        headers: vec![("content-type", "application/x-git-upload-pack-advertisement")],
        ..Script::json(status, "0000")
    })
    .await;
    let origin = host.url.origin().ascii_serialization();
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(Some(&format!("{origin}/team/x.git")))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[format!("{origin}/*")], Vec::new()).unwrap();
    world.start(setup).await;
    let prefix = format!("{origin}/team");
    let settings = [
        ("url_prefix", prefix.as_str()),
        ("api_base_url", api.url.as_str()),
        ("app_id", "Iv1.abc"),
        ("installation_id", "42"),
    ];
    let secret = CredentialSecret::PrivateKey { private_key: KEY.to_owned().into() };
    let credential = world.add_credential("app", CredentialKind::GitGithubApp, &settings, secret).await;
    App { world, sandbox, host, api, credential }
}

#[tokio::test]
async fn an_app_signs_for_one_installation_token_and_keeps_it() {
    let app = app(200, "2999-01-01T00:00:00Z").await;
    let replies = join_all((0..PARALLEL).map(|_| app.sandbox.agent(Method::GET, REFS, ""))).await;
    assert!(replies.iter().all(|reply| reply.status == OK));
    let asked = app.api.seen();
    assert_eq!(asked.len(), 1, "one call for a token");
    assert_eq!(token_calls(&app.world).await, [format!("{} app for 127.0.0.1", app.credential.id)]);
    assert_eq!(asked[0].uri, "/base/app/installations/42/access_tokens");
    let basic = crate::credentials::basic("x-access-token", &"ghs_minted".to_owned().into());
    assert!(app.host.seen().iter().all(|seen| seen.headers["authorization"] == basic.as_str()));
    let signed = signed_with(KEY, &asked[0]);
    let part = |text: &str| -> serde_json::Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
    };
    let (head, claims) = signed.split_once('.').unwrap();
    assert_eq!(part(head)["alg"], "RS256");
    let (claims, now_s) = (part(claims), app.world.store.now_ms() / 1000);
    assert_eq!(claims["iss"], "Iv1.abc");
    assert!(claims["iat"].as_i64().unwrap() < now_s && claims["exp"].as_i64().unwrap() <= now_s + 600);
    // Another key counts from the next request on.
    let rotated = CredentialSecret::PrivateKey { private_key: ROTATED_KEY.to_owned().into() };
    app.world.rotate(&app.credential, &rotated).await;
    assert_eq!(app.sandbox.agent(Method::GET, REFS, "").await.status, OK);
    let asked = app.api.seen();
    assert_eq!(asked.len(), 2, "the token that the old key signed for is used no more");
    signed_with(ROTATED_KEY, &asked[1]);
    app.world.stop().await;
    app.world.store.close().await.unwrap();
    assert!(!app.world.disk_has("ghs_minted"));
    assert!(![KEY, ROTATED_KEY].iter().any(|key| app.world.disk_has(key.lines().nth(3).unwrap())));
}

/// What the app signed of its request for a token, with this key.
fn signed_with(key: &str, asked: &Seen) -> String {
    let token = asked.headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let key = SigningKey::from_pem(&key.to_owned().into()).unwrap();
    // This way of signing gives the same signature each time.
    assert_eq!(URL_SAFE_NO_PAD.decode(signature).unwrap(), key.sign(signed.as_bytes()).unwrap());
    signed.to_owned()
}

#[tokio::test]
async fn an_installation_token_that_ends_soon_or_was_refused_is_not_used_again() {
    let soon = app(200, "2020-01-01T00:00:00Z").await;
    let refused = app(401, "2999-01-01T00:00:00Z").await;
    for (app, status) in [(soon, OK), (refused, 403)] {
        for calls in 1..=2 {
            assert_eq!(app.sandbox.agent(Method::GET, REFS, "").await.status, status);
            assert_eq!(app.api.seen().len(), calls);
        }
        app.world.stop().await;
    }
}

#[tokio::test]
async fn an_app_whose_token_is_refused_is_told_as_such() {
    let app = app(200, "no time").await;
    let reply = app.sandbox.agent(Method::GET, REFS, "").await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "repo_auth"));
    assert!(reply.text().contains("the credential \\\"app\\\""), "{}", reply.text());
    assert!(!reply.text().contains("ghs_minted"));
    assert!(app.host.seen().is_empty(), "nothing was sent without it");
    let failed = app.world.events(&app.sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert_eq!((failed.len(), &failed[0]["upstream"]), (1, &"git".into()));
    app.world.stop().await;
}

/// A model that takes no access token but the new one, and a token endpoint that answers when the gate opens.
async fn with_a_refused_token(next: &'static str, gate: Option<&Arc<Notify>>) -> Scene {
    let mut answer = renewed();
    if let Some(gate) = gate {
        answer.pieces.insert(0, Piece::Gate(Arc::clone(gate)));
    }
    let model = ModelHost::start_judging(move |headers| match headers["authorization"].to_str() {
        Ok(bearer) if bearer == next => served(),
        Ok(_) | Err(_) => revoked(),
    });
    Scene::beside((model.await, answer), &[("anthropic_beta", "oauth-x")], LONG_MS, |_| {}).await
}

/// What a model says of a token that was revoked before its time.
fn revoked() -> Script {
    Script::json(401, "{\"error\":{\"message\":\"the token was revoked\"}}")
}

fn served() -> Script {
    Script::stream(vec![piece(START), piece(END)])
}

#[tokio::test]
async fn a_token_that_is_refused_at_the_last_try_is_tried_once_more() {
    let down = || Script::json(503, "{}");
    for (before, tries) in [(vec![], 1), (vec![down()], 2)] {
        let bearers = [vec!["Bearer old"; before.len() + 1], vec!["Bearer new"]].concat();
        let model = ModelHost::start_with([before, vec![revoked(), served()]].concat()).await;
        let scene =
            Scene::beside((model, renewed()), &[], LONG_MS, |bounds| bounds.model_tries = tries).await;
        let reply = scene.ask().await;
        assert_eq!(reply.status, OK, "{}", reply.text());
        assert_eq!(
            (scene.tokens.seen().len(), scene.bearers()),
            (1, bearers.iter().map(ToString::to_string).collect())
        );
        scene.world.stop().await;
    }
    // One try more, and no second one.
    let model = ModelHost::start_with(vec![revoked(), down(), served()]).await;
    let scene = Scene::beside((model, renewed()), &[], LONG_MS, |bounds| bounds.model_tries = 1).await;
    assert_eq!(scene.ask().await.status, 429);
    assert_eq!(scene.bearers(), ["Bearer old", "Bearer new"]);
    scene.world.stop().await;
}

#[tokio::test]
async fn a_call_of_which_no_copy_is_kept_is_left_to_the_agent_once_its_token_is_renewed() {
    let model = ModelHost::start_with(vec![revoked(), served()]).await;
    let scene = Scene::beside((model, renewed()), &[], LONG_MS, |bounds| bounds.retry_copies_bytes = 0).await;
    let reply = scene.ask().await;
    // As when the server is busy: the agent tries again at once, three times at most.
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (529, &"overloaded_error".into()));
    assert!(!reply.text().contains("provider_auth"), "{}", reply.text());
    assert_eq!(scene.ask().await.status, OK);
    assert_eq!(
        (scene.tokens.seen().len(), scene.bearers()),
        (1, vec!["Bearer old".into(), "Bearer new".into()])
    );
    let failed = scene.world.events(&scene.sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert_eq!((failed.len(), &failed[0]["kind"]), (1, &serde_json::json!("auth")));
    scene.world.stop().await;

    // Without another token it is the run's failure, as ever.
    let model = ModelHost::start(revoked()).await;
    let refused = Script::json(400, "{}");
    let scene = Scene::beside((model, refused), &[], LONG_MS, |bounds| bounds.retry_copies_bytes = 0).await;
    let reply = scene.ask().await;
    assert!(reply.status == 403 && reply.text().contains("provider_auth"), "{}", reply.text());
    scene.world.stop().await;
}

#[tokio::test]
async fn a_refused_access_token_is_renewed_once_for_all_calls_that_it_was_refused_to() {
    let gate = Arc::new(Notify::new());
    let scene = with_a_refused_token("Bearer new", Some(&gate)).await;
    let both_were_refused = async {
        eventually(|| async { (scene.model.seen().len() == 2).then_some(()) }).await;
        eventually(|| async { (!scene.tokens.seen().is_empty()).then_some(()) }).await;
        gate.notify_one();
    };
    let (one, other, ()) = tokio::join!(scene.ask(), scene.ask(), both_were_refused);
    assert_eq!((one.status, other.status), (OK, OK), "{} {}", one.text(), other.text());
    assert_eq!(scene.tokens.seen().len(), 1, "one refresh");
    assert_eq!(scene.bearers(), ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]);
    assert_eq!(scene.model.seen()[3].headers.get_all("anthropic-beta").iter().count(), 1);
    let failed = scene.world.events(&scene.sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert!(failed.is_empty(), "nobody is told of what was mended: {failed:?}");
    assert_eq!(scene.ask().await.status, OK);
    assert_eq!(scene.tokens.seen().len(), 1);
    scene.world.stop().await;
}

#[tokio::test]
async fn a_renewed_access_token_that_is_refused_as_well_is_told_after_one_retry() {
    let scene = with_a_refused_token("Bearer other", None).await;
    let reply = scene.ask().await;
    assert_eq!(reply.status, 403, "{}", reply.text());
    assert!(reply.text().contains("provider_auth") && !reply.text().contains("Bearer"), "{}", reply.text());
    assert_eq!(
        (scene.tokens.seen().len(), scene.bearers()),
        (1, vec!["Bearer old".into(), "Bearer new".into()])
    );
    let failed = scene.world.events(&scene.sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert_eq!((failed.len(), &failed[0]["kind"]), (1, &serde_json::json!("auth")));
    for _ in 0..3 {
        assert_eq!(scene.ask().await.status, 403);
    }
    assert_eq!(scene.tokens.seen().len(), 1, "a new token that is refused is not refreshed for each call");
    scene.world.stop().await;
}

/// Has the database take no record of a secret that is sent for a token.
async fn refuse_token_records(world: &World) {
    let options = SqliteConnectOptions::new().filename(world.root.path().join("caisson.db"));
    let mut database = options.connect().await.unwrap();
    let trigger = "create trigger refused before insert on audit when new.subject = 'token' \
         begin select raise(abort, 'no'); end";
    sqlx::query(trigger).execute(&mut database).await.unwrap();
}

#[tokio::test]
async fn no_secret_is_sent_for_a_token_when_its_use_cannot_be_written_down() {
    let (app, scene) = (app(200, "2999-01-01T00:00:00Z").await, Scene::oauth(renewed(), &[], 0).await);
    for world in [&app.world, &scene.world] {
        refuse_token_records(world).await;
    }
    assert_ne!(app.sandbox.agent(Method::GET, REFS, "").await.status, OK);
    assert_ne!(scene.ask().await.status, OK);
    assert_eq!((app.api.seen().len(), scene.tokens.seen().len()), (0, 0), "neither was asked");
    assert!(app.host.seen().is_empty() && scene.model.seen().is_empty());
    app.world.stop().await;
    scene.world.stop().await;
}
