//! TLS of the API: certificate and key from files, read again when they change.
//!
//! A pair that cannot be used changes nothing: the one before goes on, and the log says so. Connections that are open
//! keep the certificate that they were begun with.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::settings::Settings;

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);
/// The setting that names the certificate's file.
const CERT: &str = "tls.cert_file";
/// The setting that names the key's file.
const KEY: &str = "tls.key_file";
/// Longest file that is read, in bytes.
const FILE_BYTES: u64 = 1024 * 1024;

/// The API's certificate, as it is now.
#[derive(Debug)]
pub(crate) struct Certificate {
    cert_file: PathBuf,
    key_file: PathBuf,
    provider: Arc<CryptoProvider>,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    /// The files' bytes, whether they could be used or not: what did not change is not tried again.
    read: (Vec<u8>, Vec<u8>),
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads the files that the settings name; none if they name none.
    ///
    /// # Errors
    /// One of the two is not named, cannot be read or used, or they do not belong together.
    pub(crate) fn of(settings: &Settings) -> anyhow::Result<Option<Arc<Self>>> {
        let (Some(cert_file), Some(key_file)) = (&settings.tls.cert_file, &settings.tls.key_file) else {
            ensure!(
                settings.tls.cert_file.is_none() && settings.tls.key_file.is_none(),
                "tls has only one of cert_file and key_file; give both or neither"
            );
            return Ok(None);
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let read = match (read(CERT, cert_file), read(KEY, key_file)) {
            (Ok(cert), Ok(key)) => (cert, key),
            (Err(cert), Err(key)) => bail!("{cert:#}; {key:#}"),
            (Err(fault), Ok(_)) | (Ok(_), Err(fault)) => return Err(fault),
        };
        let key = Arc::new(certified(&read, &provider)?);
        let current = RwLock::new(Current { read, key });
        let (cert_file, key_file) = (cert_file.clone(), key_file.clone());
        Ok(Some(Arc::new(Self { cert_file, key_file, provider, current })))
    }

    /// How connections are secured: TLS 1.2 or 1.3, HTTP/1.1.
    ///
    /// # Errors
    /// The provider has no cipher suite for these versions.
    pub(crate) fn server_config(self: &Arc<Self>) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Reads the files again; true if there is a new certificate.
    ///
    /// # Errors
    /// The files changed and cannot be used. The same files are not complained of twice.
    pub(crate) fn look(&self) -> anyhow::Result<bool> {
        let read = (read(CERT, &self.cert_file)?, read(KEY, &self.key_file)?);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.read == read {
            return Ok(false);
        }
        let key = certified(&read, &self.provider);
        current.read = read;
        current.key = Arc::new(key?);
        Ok(true)
    }

    /// Looks at the files until `cancel`.
    pub(crate) async fn follow(self: Arc<Self>, cancel: CancellationToken) {
        let mut missing = false;
        while !cancel.is_cancelled() {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let this = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            match looked {
                Ok(Ok(true)) => info!("took the new TLS certificate of the API"),
                Ok(Ok(false)) => missing = false,
                // A file that is not there is complained of once.
                Ok(Err(_)) if missing => {}
                Ok(Err(fault)) => {
                    missing = true;
                    error!("the TLS certificate of the API stays the old one: {fault:#}");
                }
                Err(fault) => error!("the TLS files were not looked at: {fault}"),
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

fn read(key: &str, file: &PathBuf) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("{key}: \"{}\" cannot be read", file.display());
    let size = fs::metadata(file).with_context(cannot)?.len();
    ensure!(size <= FILE_BYTES, "{key}: \"{}\" is longer than {FILE_BYTES} bytes", file.display());
    fs::read(file).with_context(cannot)
}

fn certified((cert, key): &(Vec<u8>, Vec<u8>), provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>();
    let chain = chain.context("tls.cert_file is no PEM file of certificates")?;
    ensure!(!chain.is_empty(), "tls.cert_file holds no certificate");
    let key = PrivateKeyDer::from_pem_slice(key).context("tls.key_file holds no private key in PEM")?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .context("tls.key_file cannot be used with tls.cert_file: they do not belong together")?;
    Ok(key)
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
