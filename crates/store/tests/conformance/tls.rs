//! The way to a `PostgreSQL` on which others may be: encrypted where that is asked for, and to whom the certificate says.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use caisson_store::{Clock, PostgresLimits, PostgresPlace, Store, StoreError};
use sqlx::{Connection as _, PgConnection, Row as _};
use testkit::cluster::Cluster;

/// Certificates: of `localhost` and 127.0.0.1 by `ca.pem`, valid until 2126.
const CERTIFICATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/tests/api/tls");

/// A cluster that listens on two addresses, and its port.
fn listening(options: &str) -> Option<(Cluster, u16)> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = format!("-c listen_addresses=127.0.0.1,127.0.0.2 -c port={port} {options}");
    Cluster::make(&options, None).unwrap().map(|cluster| (cluster, port))
}

/// A copy that the cluster's user alone may read, as the server wants its key.
fn private_copy(directory: &Path, name: &str) -> PathBuf {
    let copy = directory.join(name);
    std::fs::copy(Path::new(CERTIFICATES).join(name), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let of = |line: &str| line.split(':').nth(2).and_then(|uid| uid.parse().ok());
    let postgres: Option<u32> = users.lines().find(|line| line.starts_with("postgres:")).and_then(of);
    // Without root the cluster is one's own.
    chown(&copy, postgres, None).or_else(|_| copy.metadata().map(drop)).unwrap();
    copy
}

async fn connect(port: u16, host: &str, parameters: &str) -> Result<Store, StoreError> {
    let url = format!("postgres://caisson@{host}:{port}/postgres?{parameters}");
    Store::connect(&PostgresPlace::from_url(&url, PostgresLimits::default()).unwrap(), Clock::system()).await
}

#[tokio::test]
async fn a_connection_is_encrypted_and_to_whom_its_certificate_says() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let [certificate, key] = ["one.pem", "one.key"].map(|name| private_copy(directory.path(), name));
    let options =
        format!("-c ssl=on -c ssl_cert_file={} -c ssl_key_file={}", certificate.display(), key.display());
    let Some((cluster, port)) = listening(&options) else { return };
    let root = |name: &str| format!("sslrootcert={CERTIFICATES}/{name}");
    let (full, ca) =
        (format!("sslmode=verify-full&{}", root("ca.pem")), format!("sslmode=verify-ca&{}", root("ca.pem")));
    for (host, parameters) in [
        ("localhost", full.as_str()),
        ("127.0.0.1", &full),
        ("127.0.0.2", &ca),
        ("localhost", "sslmode=require"),
    ] {
        let store = connect(port, host, parameters).await.unwrap();
        let socket = format!(
            "postgres://caisson@localhost:{port}/postgres?host={}",
            cluster.home().join("socket").display()
        );
        let mut beside = PgConnection::connect(&socket).await.unwrap();
        let row = sqlx::query(
            "select count(*) filter (where ssl) as encrypted, count(*) filter (where not ssl) as open \
             from pg_stat_ssl join pg_stat_activity using (pid) where client_addr is not null",
        )
        .fetch_one(&mut beside)
        .await
        .unwrap();
        let (encrypted, open): (i64, i64) = (row.get("encrypted"), row.get("open"));
        assert!(encrypted > 0 && open == 0, "{host} {parameters}: {encrypted} encrypted, {open} open");
        beside.close().await.unwrap();
        store.close().await.unwrap();
    }
    let another = format!("sslmode=verify-full&{}", root("two.pem"));
    for (host, parameters) in [("127.0.0.2", &full), ("localhost", &another)] {
        let refused = connect(port, host, parameters).await.map(drop);
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{host} {parameters}: {refused:?}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_not_spoken_to_where_it_is_asked_for() {
    let Some((_cluster, port)) = listening("") else { return };
    connect(port, "127.0.0.1", "sslmode=disable").await.unwrap().close().await.unwrap();
    for mode in ["require", "verify-ca", "verify-full"] {
        let refused = connect(port, "127.0.0.1", &format!("sslmode={mode}")).await.map(drop);
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{mode}: {refused:?}");
    }
}
