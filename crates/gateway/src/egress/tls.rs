//! TLS that the gateway makes itself: for a tool's plain request that an HTTPS rule sends on encrypted, so that its method and
//! path are judged and a credential can be added to it. What a tool encrypts itself stays closed to us.

use std::io;
use std::sync::Arc;

use caisson_domain::egress::{Host, Target};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error};

use super::fault::Fault;
use crate::bounds::Bounds;
use crate::config::GatewayError;

const UNKNOWN_AUTHORITY: &str = "its certificate is of no authority that the server knows; whoever runs the server can name \
    the authority's file in egress.extra_ca_file";
const OTHER_NAME: &str = "its certificate is for another name; ask for the name that the certificate has, and have the rule name it";
const NOT_NOW: &str = "its certificate is not valid now; it needs a new one, or the server's clock is wrong";
const UNUSABLE: &str = "its certificate cannot be used; it needs another one";
const NOT_TLS: &str =
    "it does not speak TLS on this port; the rule needs its TLS port, or http:// in place of https://";
const REFUSED: &str = "it refused the handshake; look whether it serves this name and speaks HTTP/1.1, TLS 1.2 or 1.3, and asks for no \
    client certificate";
const NO_AGREEMENT: &str = "it and the server agree on no version or kind of TLS; it needs TLS 1.2 or 1.3";
const BROKE_OFF: &str = "it broke the handshake off; look whether it speaks TLS on this port";

/// Who is trusted, and how a connection is encrypted.
pub(super) struct Tls(TlsConnector);

impl Tls {
    /// Trusts the authorities that the system does, as for the model API and git hosts, and further ones.
    pub(super) fn new(extra_ca_pem: Option<&[u8]>) -> Result<Self, GatewayError> {
        let provider = Arc::new(ring::default_provider());
        let build = || {
            let given = CertificateDer::pem_slice_iter(extra_ca_pem.unwrap_or_default());
            let extra: Vec<_> = given.collect::<Result<_, _>>().map_err(|error| {
                Error::General(format!("a certificate of egress.extra_ca_file cannot be read: {error}"))
            })?;
            if extra_ca_pem.is_some() && extra.is_empty() {
                return Err(Error::General("egress.extra_ca_file has no certificate in PEM".to_owned()));
            }
            let verifier = Verifier::new_with_extra_roots(extra, Arc::clone(&provider))?;
            let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()?;
            // The certificate is looked at as always, by a verifier that knows further authorities.
            let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
            let mut config = config.with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(config)
        };
        let config = build().map_err(|source| GatewayError::Tls { which: "hosts of egress", source })?;
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Encrypts a connection to the target. Its certificate has to be for the target's name, or for its address where the
    /// rule names an address: where the name led to does not matter.
    pub(super) async fn over(
        &self,
        tcp: TcpStream,
        target: &Target,
        bounds: &Bounds,
    ) -> Result<TlsStream<TcpStream>, Fault> {
        let name = match &target.host {
            Host::Name(name) => {
                ServerName::try_from(name.clone()).map_err(|_| Fault::Tls { what: OTHER_NAME })?
            }
            Host::Address(address) => ServerName::IpAddress((*address).into()),
        };
        match timeout(bounds.egress_connect, self.0.connect(name, tcp)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "a host was not reached over TLS");
                Err(Fault::Tls { what: what(&error) })
            }
            Err(_) => Err(Fault::ConnectTimeout),
        }
    }
}

/// What is wrong, and what to do.
fn what(error: &io::Error) -> &'static str {
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return BROKE_OFF;
    };
    if let Error::InvalidCertificate(why) = error {
        return of_certificate(why);
    }
    if matches!(error, Error::InvalidMessage(_)) {
        return NOT_TLS;
    }
    // An alert has many causes, and few hosts say the right one.
    if matches!(error, Error::AlertReceived(_) | Error::NoApplicationProtocol) {
        return REFUSED;
    }
    NO_AGREEMENT
}

fn of_certificate(why: &CertificateError) -> &'static str {
    if matches!(why, CertificateError::UnknownIssuer) {
        return UNKNOWN_AUTHORITY;
    }
    if matches!(why, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) {
        return OTHER_NAME;
    }
    let not_now = matches!(
        why,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    );
    if not_now { NOT_NOW } else { UNUSABLE }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::{AlertDescription, PeerIncompatible};

    use super::*;

    #[test]
    fn each_fault_of_a_certificate_says_what_to_do() {
        let of = |error: Error| what(&io::Error::new(io::ErrorKind::InvalidData, error));
        for (error, part) in [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "egress.extra_ca_file"),
            (Error::InvalidCertificate(CertificateError::NotValidForName), "another name"),
            (Error::InvalidCertificate(CertificateError::Expired), "not valid now"),
            (Error::InvalidCertificate(CertificateError::NotValidYet), "not valid now"),
            (Error::InvalidCertificate(CertificateError::Revoked), "needs another one"),
            (Error::InvalidMessage(tokio_rustls::rustls::InvalidMessage::InvalidContentType), "http://"),
            (Error::AlertReceived(AlertDescription::UnrecognisedName), "serves this name"),
            (Error::AlertReceived(AlertDescription::HandshakeFailure), "refused the handshake"),
            (Error::AlertReceived(AlertDescription::CertificateRequired), "no client certificate"),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), "TLS 1.2 or 1.3"),
            (Error::NoApplicationProtocol, "HTTP/1.1"),
            (Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13), "agree on no version"),
        ] {
            assert!(of(error.clone()).contains(part), "{error}");
        }
        assert_eq!(what(&io::Error::from(io::ErrorKind::UnexpectedEof)), BROKE_OFF);
    }

    #[test]
    fn authorities_that_cannot_be_read_are_told_at_the_start() {
        let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for pem in ["", "nonsense", broken, nonsense] {
            let fault = Tls::new(Some(pem.as_bytes())).err();
            assert!(matches!(fault, Some(GatewayError::Tls { .. })), "{pem:?}: {fault:?}");
        }
    }
}
