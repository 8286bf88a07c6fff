//! What the gateway sends on over TLS: a host with a certificate, for the name `localhost`, of an authority of its own. The key
//! in `tls/` is for these tests alone and opens nothing.

use std::sync::{Arc, Mutex};

use caisson_domain::credential::CredentialKind;
use caisson_domain::event::EventKind;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ALL_VERSIONS, ServerConfig, SupportedProtocolVersion};

use super::outside::{Outside, ask, choosing, denials, finish, scripted, setup, uses};
use super::support::{Setup, World, run_spec, value};
use crate::EgressCredential;

const AUTHORITY: &[u8] = include_bytes!("tls/ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("tls/leaf.pem");
const KEY: &[u8] = include_bytes!("tls/leaf.key");
/// Of another authority, for 127.0.0.1 as well.
const OTHER_AUTHORITY: &[u8] = include_bytes!("../../../api/tests/api/tls/ca.pem");
const OF_ADDRESS: &[u8] = include_bytes!("../../../api/tests/api/tls/one.pem");
const KEY_OF_ADDRESS: &[u8] = include_bytes!("../../../api/tests/api/tls/one.key");
const REPLY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A host that speaks TLS; it remembers what came over it, and how many connections there were.
struct Secure {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

impl Secure {
    async fn start(world: &World) -> Self {
        Self::start_with(world, ALL_VERSIONS, (CERTIFICATE, KEY)).await
    }

    async fn start_with(
        world: &World,
        versions: &[&'static SupportedProtocolVersion],
        (certificate, key): (&[u8], &[u8]),
    ) -> Self {
        super::install_crypto();
        let certificate = CertificateDer::from_pem_slice(certificate).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key).unwrap();
        let config = ServerConfig::builder_with_protocol_versions(versions).with_no_client_auth();
        let config = config.with_single_cert(vec![certificate], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heard, connections) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<usize>>::default());
        let (kept, counted, cancel) = (Arc::clone(&heard), Arc::clone(&connections), world.cancel.clone());
        world.tracker.spawn(async move {
            let serve = async {
                while let Ok((stream, _)) = listener.accept().await {
                    *counted.lock().unwrap() += 1;
                    serve(&acceptor, stream, &kept).await;
                }
            };
            cancel.run_until_cancelled(serve).await;
        });
        Self { port, heard, connections }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

async fn serve(acceptor: &TlsAcceptor, stream: TcpStream, heard: &Mutex<Vec<String>>) {
    let Ok(mut tls) = acceptor.accept(stream).await else { return };
    let mut buffer = vec![0; 64 * 1024];
    let Ok(read @ 1..) = tls.read(&mut buffer).await else { return };
    heard.lock().unwrap().push(String::from_utf8_lossy(&buffer[..read]).into_owned());
    tls.write_all(REPLY.as_bytes()).await.ok();
    tls.shutdown().await.ok();
}

/// A gateway that knows the authority.
fn trusting(rules: &[&str]) -> Setup {
    let mut setup = setup(rules, &["127.0.0.1/32"]);
    setup.egress.extra_ca_pem = Some(AUTHORITY.to_vec());
    setup
}

fn credential(prefix: &str, token: &str) -> EgressCredential {
    EgressCredential { url_prefix: prefix.parse().unwrap(), username: None, token: token.to_owned().into() }
}

#[tokio::test]
async fn a_plain_request_goes_on_over_tls_judged_and_with_the_stores_token() {
    const TOKEN: &str = "registry-canary-tls-81";
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let host = Secure::start(&world).await;
    let port = host.port;
    let registry = format!("https://localhost:{port}");
    world.start(trusting(&[&format!("{registry}/team/#GET,POST")])).await;
    let token = world
        .add_credential("npm", CredentialKind::RegistryToken, &[("host", &registry)], value(TOKEN))
        .await;
    // A tool names the host without the port, or with the rule's.
    let own = "authorization: Bearer own\r\nhost: LOCALHOST\r\n";
    let answer = ask(&sandbox, "GET http://localhost/team/a?b=c", own).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    assert!(!answer.contains(TOKEN), "{answer}");
    let body = "content-length: 4\r\n\r\nbody";
    assert!(ask(&sandbox, &format!("POST http://localhost:{port}/team/a"), body).await.ends_with("ok"));
    for line in [
        "PUT http://localhost/team/a".to_owned(),
        "GET http://localhost/teamwork".to_owned(),
        "GET http://localhost/team/%2e%2e/x".to_owned(),
        "GET http://localhost:81/team/a".to_owned(),
        format!("CONNECT localhost:{port}"),
        "CONNECT localhost:443".to_owned(),
        "GET http://127.0.0.1/team/a".to_owned(),
    ] {
        let answer = ask(&sandbox, &line, "").await;
        assert!(answer.contains("egress_not_allowed"), "{line}: {answer}");
    }
    let tunnel = ask(&sandbox, &format!("CONNECT localhost:{port}"), "").await;
    assert!(tunnel.contains(&format!("ask for http://localhost:{port}/team/ without TLS")), "{tunnel}");
    let trace = ask(&sandbox, "TRACE http://localhost/team/a", "").await;
    assert!(trace.contains("egress_bad_request"), "{trace}");
    let encrypted = ask(&sandbox, &format!("GET https://localhost:{port}/team/a"), "").await;
    assert!(encrypted.contains("egress_bad_request") && encrypted.contains("http://"), "{encrypted}");
    let heard = host.heard();
    assert_eq!((heard.len(), *host.connections.lock().unwrap()), (2, 2), "{heard:?}");
    assert!(heard[0].starts_with("GET /team/a?b=c HTTP/1.1\r\n"), "{heard:?}");
    assert!(heard[0].contains(&format!("host: localhost:{port}\r\n")), "{heard:?}");
    assert!(heard[0].contains(&format!("authorization: Bearer {TOKEN}\r\n")), "{heard:?}");
    assert!(!heard[0].contains("own") && !heard[0].contains("proxy-"), "{heard:?}");
    let audit = world.audit().await;
    let of = |action: &str| audit.iter().filter(|(one, ..)| one == action).collect::<Vec<_>>();
    assert_eq!(of("egress.allow").len(), 2, "one for each method: {audit:?}");
    assert_eq!(of("egress.allow")[0].1, format!("localhost:{port}"));
    let used = of("credential.use");
    assert_eq!(
        (used.len(), &used[0].2, &used[0].3),
        (1, &Some(format!("{} npm", token.id)), &Some("localhost".to_owned()),)
    );
    finish(&sandbox).await;
    let told = uses(&world, &sandbox).await;
    let get = told.iter().find(|item| item["method"] == "GET").unwrap();
    assert_eq!(
        (&get["host"], &get["port"], &get["via"], &get["path"], &get["connections"]),
        (&json!("localhost"), &json!(port), &json!("https"), &json!("/team/a"), &json!(1))
    );
    assert!(get["received_bytes"].as_u64().unwrap() > 0 && get["sent_bytes"].as_u64().unwrap() > 0, "{get}");
    world.stop().await;
    assert!(!world.disk_has(TOKEN));
}

#[tokio::test]
async fn a_token_for_tls_is_not_sent_in_plain_and_one_for_plain_http_not_over_tls() {
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let secure = Secure::start(&world).await;
    let plain = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let (tls_port, plain_port) = (secure.port, plain.address.port());
    let mut setup =
        trusting(&[&format!("https://localhost:{tls_port}/"), &format!("http://localhost:{plain_port}/")]);
    // Each names the other's port.
    setup.egress.credentials = vec![
        credential(&format!("https://localhost:{plain_port}/"), "settings-for-tls"),
        credential(&format!("http://localhost:{tls_port}/"), "settings-for-plain"),
        credential("http://localhost/", "settings-for-port-80"),
    ];
    world.start(setup).await;
    let kind = CredentialKind::RegistryToken;
    let add = async |name: &str, host: String| {
        let secret = value(&format!("stored-{name}"));
        world.add_credential(name, kind, &[("host", &host)], secret).await;
    };
    add("for-tls", format!("https://localhost:{plain_port}")).await;
    add("for-plain", format!("localhost:{tls_port}")).await;
    add("for-port-80", "localhost".to_owned()).await;
    for line in [
        format!("GET http://localhost:{plain_port}/x"),
        format!("GET http://localhost:{tls_port}/x"),
        "GET http://localhost/x".to_owned(),
    ] {
        assert!(ask(&sandbox, &line, "").await.ends_with("ok"), "{line}");
    }
    let (over_tls, in_plain) = (secure.heard(), plain.heard());
    assert_eq!((over_tls.len(), in_plain.len()), (2, 1));
    for heard in over_tls.iter().chain(&in_plain) {
        assert!(!heard.contains("authorization"), "{heard}");
    }
    // Each goes where it is meant to.
    add("right", format!("https://localhost:{tls_port}")).await;
    add("plain-right", format!("localhost:{plain_port}")).await;
    assert!(ask(&sandbox, "GET http://localhost/x", "").await.ends_with("ok"));
    assert!(ask(&sandbox, &format!("GET http://localhost:{plain_port}/x"), "").await.ends_with("ok"));
    assert!(secure.heard()[2].contains("Bearer stored-right\r\n"));
    assert!(plain.heard()[1].contains("Bearer stored-plain-right\r\n"));
    world.stop().await;
}

#[tokio::test]
async fn a_credential_of_the_settings_is_added_below_its_https_prefix() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let host = Secure::start(&world).await;
    let prefix = format!("https://localhost:{}/team/", host.port);
    let mut setup = trusting(&[&format!("https://localhost:{}/", host.port)]);
    setup.egress.credentials = vec![credential(&prefix, "settings-canary-tls-7")];
    world.start(setup).await;
    assert!(ask(&sandbox, "GET http://localhost/team/x", "").await.ends_with("ok"));
    assert!(ask(&sandbox, "GET http://localhost/teamwork", "").await.ends_with("ok"));
    let heard = host.heard();
    assert!(heard[0].contains("authorization: Bearer settings-canary-tls-7\r\n"), "{heard:?}");
    assert!(!heard[1].contains("authorization"), "{heard:?}");
    let audit = world.audit().await;
    let used = audit.into_iter().find(|(action, ..)| action == "credential.use").unwrap();
    assert_eq!((used.2, used.3), (Some(prefix), Some("localhost".to_owned())));
    world.stop().await;
    assert!(!world.disk_has("settings-canary-tls-7"));
}

#[tokio::test]
async fn a_host_whose_certificate_does_not_fit_hears_nothing_and_the_tool_is_told_why() {
    for (name, trusted, why) in [
        ("localhost", false, "egress.extra_ca_file"),
        ("other.example", true, "another name"),
        ("127.0.0.1", true, "another name"),
    ] {
        let world = World::new().await;
        let sandbox = world.sandbox(run_spec(None)).await;
        let host = Secure::start(&world).await;
        let url = format!("https://{name}:{}/", host.port);
        let mut setup = trusting(&[&url]);
        setup.egress.credentials = vec![credential(&url, "never-said-to-a-stranger")];
        if !trusted {
            setup.egress.extra_ca_pem = None;
        }
        world.start(setup).await;
        let answer = ask(&sandbox, &format!("GET http://{name}/x"), "").await;
        assert!(
            answer.starts_with("HTTP/1.1 502 Refused by the sandbox: egress_tls\r\n"),
            "{name}: {answer}"
        );
        assert!(answer.contains(why) && answer.contains(name), "{name}: {answer}");
        assert!(host.heard().is_empty(), "{name}: {:?}", host.heard());
        assert_eq!(*host.connections.lock().unwrap(), 1, "{name}");
        let told = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
        assert_eq!((&told[0]["upstream"], &told[0]["kind"]), (&json!("egress"), &json!("egress_tls")));
        assert!(denials(&world, &sandbox).await.is_empty(), "no rule would help");
        world.stop().await;
    }
}

#[tokio::test]
async fn a_host_of_either_version_is_reached_and_a_rule_that_names_an_address() {
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let world = World::new().await;
        let sandbox = world.sandbox(run_spec(None)).await;
        let host = Secure::start_with(&world, versions, (CERTIFICATE, KEY)).await;
        world.start(trusting(&[&format!("https://localhost:{}/", host.port)])).await;
        assert!(ask(&sandbox, "GET http://localhost/x", "").await.ends_with("ok"), "{versions:?}");
        assert_eq!(host.heard().len(), 1, "{versions:?}");
        world.stop().await;
    }
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let host = Secure::start_with(&world, ALL_VERSIONS, (OF_ADDRESS, KEY_OF_ADDRESS)).await;
    let mut setup = trusting(&[&format!("https://127.0.0.1:{}/", host.port)]);
    setup.egress.extra_ca_pem = Some(OTHER_AUTHORITY.to_vec());
    world.start(setup).await;
    assert!(ask(&sandbox, "GET http://127.0.0.1/x", "").await.ends_with("ok"));
    assert!(host.heard()[0].contains(&format!("host: 127.0.0.1:{}\r\n", host.port)), "{:?}", host.heard());
    world.stop().await;
}

#[tokio::test]
async fn a_host_that_answers_a_handshake_in_plain_is_told_to_need_another_rule() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let cancel = world.cancel.clone();
    world.tracker.spawn(cancel.run_until_cancelled_owned(async move {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let mut buffer = vec![0; 64 * 1024];
        // As servers of plain HTTP do.
        if stream.read(&mut buffer).await.is_ok() {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await.ok();
        }
    }));
    world.start(trusting(&[&format!("https://localhost:{port}/")])).await;
    let answer = ask(&sandbox, "GET http://localhost/x", "").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("egress_tls"), "{answer}");
    assert!(answer.contains("http:// in place of https://"), "{answer}");
    world.stop().await;
}

#[tokio::test]
async fn a_host_that_speaks_no_tls_or_says_nothing_is_told_of() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let plain = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let mut setup = trusting(&[
        &format!("https://localhost:{}/", plain.address.port()),
        &format!("https://silent.example:{silent_port}/"),
    ]);
    setup.bounds.egress_connect = std::time::Duration::from_millis(500);
    world.start(setup).await;
    // It answers a handshake with what it was sent.
    let answer = ask(&sandbox, "GET http://localhost/x", "").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("egress_tls"), "{answer}");
    assert!(!plain.heard().concat().contains("GET /x"), "nothing is said in plain: {:?}", plain.heard());
    let answer = ask(&sandbox, "GET http://silent.example/x", "").await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("egress_connect_timeout"), "{answer}");
    drop(silent);
    world.stop().await;
}

#[tokio::test]
async fn addresses_are_checked_and_pinned_for_tls_as_for_plain_http() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let host = Secure::start(&world).await;
    let mut setup = trusting(&[&format!("https://localhost:{}/", host.port)]);
    let (resolve, asked) = scripted(&[&["127.0.0.1"], &["169.254.169.254"], &["127.0.0.2", "127.0.0.1"]]);
    setup.resolve = resolve;
    world.start(setup).await;
    assert!(ask(&sandbox, "GET http://localhost/1", "").await.ends_with("ok"));
    assert_eq!(asked.lock().unwrap().len(), 1, "one connection, one lookup");
    let answer = ask(&sandbox, "GET http://localhost/2", "").await;
    assert!(answer.contains("egress_private_address") && answer.contains("169.254.169.254"), "{answer}");
    assert!(ask(&sandbox, "GET http://localhost/3", "").await.ends_with("ok"));
    assert_eq!((host.heard().len(), asked.lock().unwrap().len()), (2, 3));
    let told = denials(&world, &sandbox).await;
    assert_eq!((&told[0]["via"], &told[0]["setting"]), (&json!("https"), &json!("egress.allow_private")));
    world.stop().await;
}

#[tokio::test]
async fn tls_comes_before_the_plain_way_and_a_workflow_narrows_both() {
    let rules = |port: u16| [format!("http://localhost:{port}/"), format!("https://localhost:{port}/")];
    for (entries, code) in [
        (&["https://localhost"][..], "egress_not_in_workflow"),
        (&["localhost:PORT"], "ok"),
        (&[], "egress_not_in"),
    ] {
        let world = World::new().await;
        let host = Secure::start(&world).await;
        let port = host.port.to_string();
        let entries: Vec<String> = entries.iter().map(|entry| entry.replace("PORT", &port)).collect();
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        let sandbox = world.sandbox(choosing(&entries)).await;
        let rules = rules(host.port);
        world.start(trusting(&[&rules[0], &rules[1]])).await;
        let answer = ask(&sandbox, &format!("GET http://localhost:{port}/x"), "").await;
        assert!(answer.contains(code), "{entries:?}: {answer}");
        if code != "ok" {
            let told = denials(&world, &sandbox).await;
            assert_eq!(
                (&told[0]["via"], &told[0]["rule"]),
                (&json!("https"), &json!(format!("https://localhost:{port}/x#GET")),)
            );
        }
        world.stop().await;
    }
}
