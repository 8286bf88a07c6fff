//! What a sandbox says never brings a live secret to disk, however it is written and cut.

use std::sync::Arc;

use base64::Engine as _;
use caisson_domain::credential::{CredentialKind, CredentialSettings};
use caisson_domain::event::{DeltaKind, EventKind};
use caisson_domain::id::ProjectId;
use caisson_domain::limits::CREDENTIAL_SECRET_BYTES;
use caisson_domain::protocol::{DeltaBatch, DeltaItem, Ending, JournalBody, NoteLevel, Outcome};
use caisson_domain::redact::{LiveSecrets, MARKER};
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::trust::Steering;
use caisson_store::{Actor, NewCredential};
use futures_util::StreamExt;
use http::Method;
use secrecy::SecretString;
use serde_json::json;
use tokio::sync::Notify;

use super::model_host::{ModelHost, Script};
use super::outside::{self, Outside, ask, denials, finish, tunnel, uses};
use super::support::{MODEL_KEY, OK, Sandbox, Setup, World, eventually, run_spec, value};
use crate::config::{GitCredential, ModelCredential};
use crate::problem::Refusal;

const TOKEN: &str = "ghp_canary1A2b3C4d5E6f7G8h9I0j";

fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.git.credentials = vec![GitCredential {
        url_prefix: "https://git.example.com/".parse().unwrap(),
        username: "x-access-token".to_owned(),
        token: TOKEN.to_owned().into(),
    }];
    setup
}

async fn world() -> (World, Sandbox) {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(setup()).await;
    (world, sandbox)
}

/// Every form that must not be on disk.
fn needles() -> Vec<String> {
    let base64 = base64::engine::general_purpose::STANDARD_NO_PAD;
    [MODEL_KEY, TOKEN]
        .iter()
        .flat_map(|secret| {
            let core = |text: String| text[4..text.len() - 4].to_owned();
            [
                (*secret).to_owned(),
                hex::encode(secret),
                core(base64.encode(secret)),
                core(base64.encode(format!("x-access-token:{secret}"))[20..].to_owned()),
            ]
        })
        .collect()
}

fn said(secret: &str) -> String {
    let base64 = base64::engine::general_purpose::STANDARD;
    let basic = base64.encode(format!("x-access-token:{secret}"));
    format!("key {secret}, basic {basic}, hex {}, alone {}.", hex::encode(secret), base64.encode(secret))
}

#[tokio::test]
async fn nothing_that_a_sandbox_journals_brings_a_secret_to_disk() {
    let (world, sandbox) = world().await;
    let said = said(TOKEN) + &said(MODEL_KEY);
    let failure = Failure::new(FailureKind::AgentError, said.clone()).with_evidence(said.clone());
    let outcome = Outcome {
        ending: Ending::Failed(failure),
        result: Some(said.clone()),
        head: None,
        pushed: false,
        kept: false,
    };
    let bodies = [
        JournalBody::Line { line: json!({"type": "assistant", "text": said, "n": 1.5}).to_string() },
        JournalBody::Text { text: said.clone(), cut_bytes: 0 },
        JournalBody::AgentExited { code: Some(1), signal: None, stderr: said.clone() },
        JournalBody::Note { level: NoteLevel::Info, message: said.clone() },
        JournalBody::Steered(Steering {
            anchor: Some(TOKEN.parse().unwrap()),
            commit: "a".repeat(40),
            settings: false,
            files: vec![said.clone()],
            files_count: 1,
            replaced: vec![said.clone()],
            replaced_count: 1,
        }),
        JournalBody::Finished(outcome),
    ];
    let mut batch: Vec<u8> = bodies.into_iter().flat_map(|body| sandbox.line(body)).collect();
    // A line that is not understood is shown in part: the secret lies over the end of what is shown.
    batch.extend(format!("{}{MODEL_KEY}\n", "x".repeat(crate::bounds::EXCERPT_BYTES - 10)).as_bytes());
    let reply = sandbox.control(Method::POST, "/journal?offset=0", batch).await;
    assert_eq!(reply.status, OK, "{}", reply.text());
    let line = &world.events(&sandbox.run.id, EventKind::AgentLine).await[0];
    assert_eq!(line["n"], 1.5);
    assert!(line["text"].as_str().unwrap().starts_with(&format!("key {MARKER}, basic ")), "{line}");
    let notes = world.events(&sandbox.run.id, EventKind::Note).await;
    let alarms = notes.iter().filter(|note| note["message"].to_string().contains("was redacted")).count();
    assert_eq!(alarms, 1, "{notes:?}");
    world.stop().await;
    world.store.close().await.unwrap();
    for needle in needles() {
        assert!(!world.disk_has(&needle), "{needle}");
    }
    assert!(!world.disk_has(&MODEL_KEY[..10]), "nor a part of one at the end of an excerpt");
    assert!(world.disk_has(MARKER), "the search finds");
}

#[tokio::test]
async fn the_token_of_an_mcp_header_is_kept_out_before_any_server_was_sent_it() {
    let world = World::new().await;
    world.unlock().await;
    let settings = [("url", "https://mcp.example.com/"), ("header", "Authorization")];
    let header = format!("Bearer {TOKEN}");
    world.add_credential("notes", CredentialKind::McpHeader, &settings, value(&header)).await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let line = sandbox.line(JournalBody::Text { text: format!("I know {TOKEN}."), cut_bytes: 0 });
    assert_eq!(sandbox.control(Method::POST, "/journal?offset=0", line).await.status, OK);
    let path = format!("/artifacts/{}/work.patch", sandbox.run.id);
    assert_eq!(sandbox.control(Method::PUT, &path, TOKEN).await.status, 204);
    world.stop().await;
    world.store.close().await.unwrap();
    assert!(!world.disk_has(TOKEN));
    assert!(world.disk_has(&format!("I know {MARKER}.")));
}

#[tokio::test]
async fn old_and_large_secrets_of_another_project_leave_this_ones_kept_out() {
    let world = World::new().await;
    world.unlock().await;
    let other: ProjectId = "other".parse().unwrap();
    world.store.create_project(&other, Actor::Operator).await.unwrap();
    for name in ["large", "larger"] {
        let settings =
            CredentialSettings::RegistryToken { host: "registry.example.com".to_owned(), username: None };
        let secret = value(&name.repeat(CREDENTIAL_SECRET_BYTES / name.len()));
        let new = NewCredential { project: other.clone(), name: name.to_owned(), settings, secret };
        world.store.add_credential(new, &Actor::Operator).await.unwrap();
    }
    let of_other = "the-other-projects-token";
    let settings =
        CredentialSettings::RegistryToken { host: "packages.example.com".to_owned(), username: None };
    let new = NewCredential { project: other, name: "small".to_owned(), settings, secret: value(of_other) };
    world.store.add_credential(new, &Actor::Operator).await.unwrap();
    world
        .add_credential(
            "own",
            CredentialKind::RegistryToken,
            &[("host", "registry.example.com")],
            value(TOKEN),
        )
        .await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let said = JournalBody::Text { text: format!("{TOKEN} {MODEL_KEY} {of_other}"), cut_bytes: 0 };
    assert_eq!(sandbox.control(Method::POST, "/journal?offset=0", sandbox.line(said)).await.status, OK);
    world.stop().await;
    world.store.close().await.unwrap();
    // Nobody has told this run the other project's secret: what it says by chance stays.
    assert!(world.disk_has(&format!("{MARKER} {MARKER} {of_other}")));
    assert!(!world.disk_has(TOKEN));
}

#[tokio::test]
async fn an_artifact_is_kept_without_the_secret_that_comes_in_two_pieces() {
    let (world, sandbox) = world().await;
    let (first, second) = TOKEN.split_at(11);
    let zeros = vec![0_u8; 100_000];
    let pieces = [&zeros, first.as_bytes(), second.as_bytes(), &zeros, TOKEN.as_bytes()];
    let pieces: Vec<_> = pieces.iter().map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let path = format!("/artifacts/{}/work.patch", sandbox.run.id);
    assert_eq!(sandbox.control(Method::PUT, &path, body).await.status, 204);
    let kept = world.store.artifact(&sandbox.run.id, "work.patch").await.unwrap().unwrap();
    let bytes = std::fs::read(world.root.path().join("artifacts").join(&kept.path)).unwrap();
    assert_eq!(bytes, [&zeros, MARKER.as_bytes(), &zeros, MARKER.as_bytes()].concat());
    assert_eq!(usize::try_from(kept.size_bytes).unwrap(), bytes.len());
    let notes = world.events(&sandbox.run.id, EventKind::Note).await;
    assert!(notes[0]["message"].to_string().contains("artifact work.patch"), "{notes:?}");
    world.stop().await;
}

#[tokio::test]
async fn nothing_is_kept_under_the_name_of_a_secret() {
    let (world, sandbox) = world().await;
    for name in [TOKEN.to_owned(), format!("{}.patch", hex::encode(TOKEN))] {
        let path = format!("/artifacts/{}/{name}", sandbox.run.id);
        let reply = sandbox.control(Method::PUT, &path, "x").await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "artifact_name"), "{}", reply.text());
    }
    let notes = world.events(&sandbox.run.id, EventKind::Note).await;
    assert!(notes[0]["message"].to_string().contains("the name of an artifact"), "{notes:?}");
    world.stop().await;
    world.store.close().await.unwrap();
    for needle in needles() {
        assert!(!world.disk_has(&needle), "{needle}");
        let named = |path: &std::path::Path| path.to_string_lossy().contains(&needle);
        assert!(!any_path(world.root.path(), &named), "{needle}");
    }
}

/// Whether a file or a directory below has such a path.
fn any_path(directory: &std::path::Path, is: &dyn Fn(&std::path::Path) -> bool) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        is(&path) || (path.is_dir() && any_path(&path, is))
    })
}

/// The names of models as they were stored and told, of a request that asks for `asked` and a reply of `answered`.
async fn model_names(asked: &str, answered: &str) -> (World, Vec<serde_json::Value>) {
    let reply =
        json!({"type": "message", "model": answered, "usage": {"input_tokens": 1, "output_tokens": 1}});
    let reply: &'static str = reply.to_string().leak();
    let host = ModelHost::start(Script::json(200, reply)).await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = setup();
    setup.model.base_url = host.url.clone();
    world.start(setup).await;
    let body = json!({"model": asked, "max_tokens": 1}).to_string();
    assert_eq!(sandbox.agent(Method::POST, "/model/v1/messages", body.clone()).await.status, OK);
    assert_eq!(host.seen()[0].body, body, "what goes to the model API is as it came");
    let calls = world.events(&sandbox.run.id, EventKind::ModelCall).await;
    (world, calls.into_iter().map(|call| call["model"].clone()).collect())
}

#[tokio::test]
async fn a_model_that_is_named_like_a_secret_is_stored_without_it() {
    let cut = "m".repeat(crate::bounds::MODEL_NAME_BYTES - 12) + TOKEN;
    for (asked, answered, kept) in [
        (format!("a-{TOKEN}-b"), "claude-x".to_owned(), "claude-x".to_owned()),
        ("claude-x".to_owned(), format!("{}-b", hex::encode(TOKEN)), format!("{MARKER}-b")),
        (cut.clone(), cut.clone(), cut.replace(TOKEN, MARKER)),
    ] {
        let (world, names) = model_names(&asked, &answered).await;
        assert_eq!(names, [kept], "{asked}");
        world.stop().await;
        world.store.close().await.unwrap();
        for needle in needles() {
            assert!(!world.disk_has(&needle), "{needle}");
        }
        assert!(!world.disk_has(&TOKEN[..12]), "nor a part of one at the end of a name");
    }
}

#[tokio::test]
async fn a_models_name_answers_no_guess_of_a_secret_and_shows_no_part_of_a_whole_one() {
    let bound = crate::bounds::MODEL_NAME_BYTES;
    let guess = "m".repeat(bound - 13) + &TOKEN[..13];
    let beyond = "m".repeat(bound - 8);
    let most = crate::bounds::MODEL_NAME_READ_BYTES;
    for (name, kept) in [
        (guess.clone(), guess.clone()),
        (guess.clone() + "x", guess.clone()),
        (format!("{}{TOKEN}", &beyond[..bound - 32]), format!("{}{MARKER}", &beyond[..bound - 32])),
        // It ends behind what is kept, and far behind it.
        (format!("{beyond}{TOKEN}"), format!("{beyond}{}", &MARKER[..8])),
        (format!("{beyond}{TOKEN}{}", "m".repeat(2000)), format!("{beyond}{}", &MARKER[..8])),
        ("m".repeat(most + 1), "unknown".to_owned()),
    ] {
        let (world, names) = model_names(&name, &name).await;
        assert_eq!(names, [kept], "{name}");
        world.stop().await;
    }
}

#[tokio::test]
async fn hosts_that_are_named_like_a_secret_are_told_and_audited_without_it() {
    const SECRET: &str = "reg-canary-5d0c1e77ab";
    let world = World::new().await;
    world.unlock().await;
    let settings = [("host", "registry.example.com")];
    world.add_credential("registry", CredentialKind::RegistryToken, &settings, value(SECRET)).await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", "").await;
    let port = outside.address.port();
    world.start(outside::setup(&[&format!("*.allowed.example:{port}")], &["127.0.0.1/32"])).await;
    let denied = ask(&sandbox, &format!("CONNECT {SECRET}.denied.example:{port}"), "").await;
    assert!(denied.contains("egress_not_allowed") && !denied.contains(SECRET), "{denied}");
    let mut tool = tunnel(&sandbox, &format!("{SECRET}.allowed.example:{port}")).await;
    assert_eq!(tool.say("hello").await, "hello");
    drop(tool);
    finish(&sandbox).await;
    let hosts = [denials(&world, &sandbox).await, uses(&world, &sandbox).await].concat();
    let hosts: Vec<_> = hosts.iter().map(|told| told["host"].as_str().unwrap()).collect();
    let clean = |zone: &str| format!("{MARKER}.{zone}.example");
    assert_eq!(hosts, [clean("denied"), clean("allowed")]);
    let audit = world.audit().await;
    for (action, zone, reason) in [("egress.deny", "denied", " not_allowed"), ("egress.allow", "allowed", "")]
    {
        let record = audit.iter().find(|record| record.0 == action).unwrap();
        let subject = format!("{}:{port}{reason}", clean(zone));
        assert_eq!((&record.1, &record.3), (&subject, &Some(clean(zone))), "{record:?}");
    }
    world.stop().await;
    world.store.close().await.unwrap();
    assert!(!world.disk_has(SECRET));
    assert!(world.disk_has(&clean("allowed")), "the search finds");
}

#[tokio::test]
async fn an_artifact_is_kept_without_a_secret_that_became_live_while_it_came() {
    const KEY: &str = "key-canary-that-became-live-71c";
    let host = ModelHost::start(Script::json(200, "{\"type\":\"message\"}")).await;
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = setup();
    setup.model.base_url = host.url.clone();
    world.start(setup).await;
    let (zeros, gate) = (vec![0_u8; 100_000], Arc::new(Notify::new()));
    let (begin, rest) = (zeros.clone(), [KEY.as_bytes(), &zeros].concat());
    let opened = Arc::clone(&gate);
    let rest = async move {
        opened.notified().await;
        Ok(rest)
    };
    let begin = futures_util::stream::iter([Ok::<_, std::io::Error>(begin)]);
    let body = reqwest::Body::wrap_stream(begin.chain(futures_util::stream::once(rest)));
    let path = format!("/artifacts/{}/work.patch", sandbox.run.id);
    let artifacts = world.root.path().join("artifacts");
    let becomes_live = async {
        eventually(|| async {
            // What came so far was looked through without the secret.
            let mut coming = std::fs::read_dir(artifacts.join(".incoming")).ok()?.flatten();
            coming.any(|file| file.metadata().is_ok_and(|file| file.len() > 50_000)).then_some(())
        })
        .await;
        world.add_credential("model", CredentialKind::ModelApiKey, &[], value(KEY)).await;
        let call = sandbox.agent(Method::POST, "/model/v1/messages", "{\"model\":\"claude-opus-5-5\"}").await;
        assert_eq!(call.status, OK, "{}", call.text());
        gate.notify_one();
    };
    let (reply, ()) = tokio::join!(sandbox.control(Method::PUT, &path, body), becomes_live);
    assert_eq!(reply.status, 204, "{}", reply.text());
    assert_eq!(host.seen()[0].headers["x-api-key"], KEY);
    let kept = world.store.artifact(&sandbox.run.id, "work.patch").await.unwrap().unwrap();
    let bytes = std::fs::read(artifacts.join(&kept.path)).unwrap();
    assert_eq!(bytes, [&zeros, MARKER.as_bytes(), &zeros].concat());
    world.stop().await;
}

#[tokio::test]
async fn live_text_is_shown_without_the_secret_that_comes_in_two_deltas() {
    let (world, sandbox) = world().await;
    let mut live = world.store.subscribe_deltas(&sandbox.run.session);
    let item = |text: &str| DeltaItem {
        kind: DeltaKind::Text,
        message_id: TOKEN.to_owned(),
        block: 0,
        text: text.to_owned(),
    };
    for items in [vec![item("it is "), item(&TOKEN[..9])], vec![item(&TOKEN[9..]), item(" indeed")]] {
        let batch = DeltaBatch { run: sandbox.run.id.clone(), items };
        let reply = sandbox.control(Method::POST, "/deltas", serde_json::to_vec(&batch).unwrap()).await;
        assert_eq!(reply.status, 204);
    }
    let mut shown = String::new();
    while !shown.ends_with("indeed") {
        let delta = live.recv().await.unwrap();
        assert_eq!(delta.message_id, "", "what is a secret is no id");
        shown.push_str(&delta.text);
    }
    assert_eq!(shown, format!("it is {MARKER} indeed"));
    world.stop().await;
}

#[test]
fn a_refusal_repeats_no_secret_and_a_replaced_one_counts_at_once() {
    let live = LiveSecrets::new(&crate::secrets(&setup().model, &setup().git, &setup().egress));
    let secrets = live.of(&ProjectId::default_project());
    let refused = || Refusal::bad_request(format!("the host said {TOKEN}, {MODEL_KEY} and another-secret"));
    let message = refused().without(&secrets).message;
    assert_eq!(message, format!("the host said {MARKER}, {MARKER} and another-secret"));
    live.replace(&[SecretString::from("another-secret")]);
    let message = refused().without(&secrets).message;
    assert!(message.contains(TOKEN) && message.ends_with(MARKER), "{message}");
}

#[test]
fn every_secret_of_the_configuration_is_live() {
    let mut setup = setup();
    setup.model.credential = Some(ModelCredential::Bearer("bearer-canary".to_owned().into()));
    setup.model.outbound_proxy = Some("http://user:proxy-canary@proxy:1/".parse().unwrap());
    setup.git.outbound_proxy = Some("http://proxy:1/".parse().unwrap());
    let live = LiveSecrets::new(&crate::secrets(&setup.model, &setup.git, &setup.egress));
    let redactor = live.of(&ProjectId::default_project()).redactor();
    for secret in ["bearer-canary", "proxy-canary", TOKEN] {
        assert_eq!(redactor.text(secret), MARKER);
    }
}
