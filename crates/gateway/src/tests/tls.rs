//! An upstream behind a certificate authority of its own. The key in `tls/` is for this test alone and opens
//! nothing.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use caisson_domain::credential::CredentialKind;
use http::Method;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::mcp::{naming, setup as mcp_setup};
use super::support::{OK, Setup, World, run_spec, value};

const AUTHORITY: &[u8] = include_bytes!("tls/ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("tls/leaf.pem");
const KEY: &[u8] = include_bytes!("tls/leaf.key");
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";

/// Answers one connection after another, each once, as far as its handshake succeeds.
fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, connections: usize) {
    for _ in 0..connections {
        let (tcp, _) = listener.accept().unwrap();
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(config)).unwrap(), tcp);
        let mut seen = Vec::new();
        let mut buffer = [0; 1024];
        while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
            match tls.read(&mut buffer) {
                Ok(count @ 1..) => seen.extend_from_slice(&buffer[..count]),
                Ok(_) | Err(_) => break,
            }
        }
        if !seen.is_empty() {
            tls.write_all(REPLY).unwrap();
            tls.conn.send_close_notify();
            tls.flush().unwrap();
        }
    }
}

/// A server for so many connections, and its port.
fn start(connections: usize) -> (u16, std::thread::JoinHandle<()>) {
    super::install_crypto();
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    let config = Arc::new(config.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, std::thread::spawn(move || serve(&listener, &config, connections)))
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_where_it_is_configured_and_only_there() {
    let (port, server) = start(3);
    for (extra_ca_pem, status) in [(None, 429), (Some(AUTHORITY.to_vec()), OK)] {
        let world = World::new().await;
        let sandbox = world.sandbox(run_spec(None)).await;
        let mut setup = Setup::new();
        setup.model.base_url = format!("https://localhost:{port}/").parse().unwrap();
        setup.model.extra_ca_pem = extra_ca_pem;
        setup.bounds.model_tries = 1;
        world.start(setup).await;
        let reply = sandbox.agent(Method::GET, "/model/v1/models", "").await;
        assert_eq!(reply.status, status, "{}", reply.text());
        world.stop().await;
    }
    // A credential may bring the authority with it.
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let url = format!("https://localhost:{port}/");
    let settings = [("base_url", url.as_str()), ("ca_pem", std::str::from_utf8(AUTHORITY).unwrap())];
    world.add_credential("own", CredentialKind::ModelApiKey, &settings, value("k")).await;
    let reply = sandbox.agent(Method::GET, "/model/v1/models", "").await;
    assert_eq!(reply.status, OK, "{}", reply.text());
    world.stop().await;
    server.join().unwrap();
}

#[tokio::test]
async fn an_mcp_server_is_known_by_its_certificate_whatever_its_name_leads_to() {
    let (port, server) = start(3);
    for (host, extra_ca_pem, status) in [
        ("localhost", None, 502),
        ("localhost", Some(AUTHORITY.to_vec()), OK),
        ("other.example", Some(AUTHORITY.to_vec()), 502),
    ] {
        let world = World::new().await;
        let sandbox = world.sandbox(naming(&format!("https://{host}:{port}/mcp"))).await;
        let mut setup = mcp_setup(&[&format!("{host}:{port}")], &["127.0.0.1/32"]);
        setup.mcp.extra_ca_pem = extra_ca_pem;
        world.start(setup).await;
        let reply = sandbox.agent(Method::GET, "/mcp/notes", "").await;
        assert_eq!(reply.status, status, "{}", reply.text());
        assert!(status == OK || reply.code() == "mcp_unreachable", "{}", reply.text());
        world.stop().await;
    }
    server.join().unwrap();
}
