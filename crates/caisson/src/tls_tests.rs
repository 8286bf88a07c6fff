use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;
use crate::settings::{Environment, Overrides};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/tests/api/tls");

fn put(directory: &Path, pair: &str) {
    for (from, to) in [("pem", "cert.pem"), ("key", "key.pem")] {
        let bytes = fs::read(format!("{FIXTURES}/{pair}.{from}")).unwrap();
        // Renamed into place, as tools that renew certificates do.
        let staged = directory.join("staged");
        fs::write(&staged, bytes).unwrap();
        fs::rename(staged, directory.join(to)).unwrap();
    }
}

fn settings(directory: &Path) -> Settings {
    let variable = |name: &str, file: &str| (name.to_owned(), directory.join(file).display().to_string());
    let environment = Environment {
        variables: vec![
            variable("CAISSON_TLS__CERT_FILE", "cert.pem"),
            variable("CAISSON_TLS__KEY_FILE", "key.pem"),
        ],
        root: false,
    };
    Settings::load(None, &environment, Overrides::default()).unwrap()
}

fn client(versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(&fs::read(format!("{FIXTURES}/ca.pem")).unwrap()).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// Asks the server and tells the certificate that it showed.
fn shown(address: SocketAddr, versions: &[&'static SupportedProtocolVersion]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).unwrap();
    let mut connection = ClientConnection::new(client(versions), "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    connection.peer_certificates().unwrap()[0].to_vec()
}

fn fixture(pair: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(&fs::read(format!("{FIXTURES}/{pair}.pem")).unwrap()).unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_without_a_restart_and_a_bad_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), "one");
    let certificate = Certificate::of(&settings(directory.path())).unwrap().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cancel = CancellationToken::new();
    let router =
        caisson_store::Store::open(&directory.path().join("db"), caisson_store::Clock::system()).await;
    let router = caisson_api::router(caisson_api::ApiConfig::default(), router.unwrap(), cancel.clone());
    let limits = caisson_api::ServeLimits::default();
    let config = certificate.server_config().unwrap();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(caisson_api::serve_tls(listener, router, limits, config, cancel.clone()));
    serving.spawn(Arc::clone(&certificate).follow(cancel.clone()));
    let ask = async || {
        tokio::task::spawn_blocking(move || shown(address, &[&rustls::version::TLS13])).await.unwrap()
    };
    assert_eq!(ask().await, fixture("one"));
    let old = move || shown(address, &[&rustls::version::TLS12]);
    assert_eq!(tokio::task::spawn_blocking(old).await.unwrap(), fixture("one"), "TLS 1.2 is spoken as well");
    put(directory.path(), "two");
    let begun = std::time::Instant::now();
    while ask().await != fixture("two") {
        assert!(begun.elapsed() < LOOK * 5, "the new certificate is never shown");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The key of another certificate.
    fs::copy(format!("{FIXTURES}/one.key"), directory.path().join("key.pem")).unwrap();
    assert!(certificate.look().is_err() || !certificate.look().unwrap());
    assert_eq!(ask().await, fixture("two"));
    fs::remove_file(directory.path().join("cert.pem")).unwrap();
    assert!(certificate.look().is_err());
    assert_eq!(ask().await, fixture("two"));
    put(directory.path(), "one");
    certificate.look().unwrap();
    assert_eq!(ask().await, fixture("one"));
    cancel.cancel();
    while serving.join_next().await.is_some() {}
}

#[test]
fn files_that_cannot_be_used_keep_a_server_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), "one");
    let of =
        || Certificate::of(&settings(directory.path())).map(|_| ()).map_err(|error| format!("{error:#}"));
    of().unwrap();
    let key = directory.path().join("key.pem");
    fs::copy(format!("{FIXTURES}/two.key"), &key).unwrap();
    assert!(of().unwrap_err().contains("do not belong together"));
    fs::write(&key, "nonsense").unwrap();
    assert!(of().unwrap_err().contains("tls.key_file"));
    fs::write(&key, vec![b'x'; usize::try_from(FILE_BYTES).unwrap() + 1]).unwrap();
    assert!(of().unwrap_err().contains("longer than"));
    put(directory.path(), "one");
    fs::write(directory.path().join("cert.pem"), "").unwrap();
    assert!(of().unwrap_err().contains("no certificate"));
    let mut half = settings(directory.path());
    half.tls.key_file = None;
    assert!(Certificate::of(&half).unwrap_err().to_string().contains("both or neither"));
}
