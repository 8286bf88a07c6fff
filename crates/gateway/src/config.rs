//! What the composition root gives the gateway.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use caisson_domain::git::AllowList;
use caisson_domain::id::ServerId;
use caisson_domain::provider::ProviderTool;
use caisson_domain::redact::LiveSecrets;
use caisson_domain::usage::PriceTable;
use caisson_store::StoreError;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::bounds;
use crate::egress::EgressUpstreams;
use crate::mcp::McpUpstreams;
use crate::secret_rules::SecretRuleChange;

/// Everything the gateway must know at start. It has no `Debug`, since an outbound proxy's URL may hold a
/// password.
#[derive(Clone)]
pub struct GatewayConfig {
    /// The server whose sandboxes it serves.
    pub server: ServerId,
    /// Directory of the sockets: `<doors_dir>/<sandbox id>/gateway.sock`. Whoever writes a sandbox's row
    /// makes the inner directory first.
    pub doors_dir: PathBuf,
    /// Directory of the artifacts' bytes, for this server alone.
    pub artifacts_dir: PathBuf,
    /// Directory in which pushes are looked at before they are forwarded, for this server alone. What is in it at the
    /// start is removed.
    pub quarantine_dir: PathBuf,
    /// The model API.
    pub model: ModelUpstream,
    /// What its tokens cost.
    pub prices: PriceTable,
    /// The git hosts.
    pub git: GitUpstreams,
    /// Where tools may go.
    pub egress: EgressUpstreams,
    /// Which MCP servers workflows may name.
    pub mcp: McpUpstreams,
    /// Who signs the commits made in a sandbox.
    pub identity: GitIdentity,
    /// Whether the agent of a run that has gone well may wait in its sandbox for another run.
    pub keep_alive: bool,
    /// What must never be stored. Whoever changes a credential changes them too.
    pub secrets: LiveSecrets,
}

/// The model API behind `/model`.
#[derive(Clone)]
pub struct ModelUpstream {
    /// Where it is; `/v1/messages` is put behind it. `http` or `https`, without credential, query and
    /// fragment.
    pub base_url: Url,
    /// The real credential; without one every call is refused with the remedy.
    pub credential: Option<ModelCredential>,
    /// Proxy for all connections to it; the environment's proxies are not used.
    pub outbound_proxy: Option<Url>,
    /// Further certificate authorities, PEM.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// What agents may have the provider do outside; calls that ask for more are refused.
    pub provider_tools: Vec<ProviderTool>,
}

/// How the model API knows us.
#[derive(Debug, Clone)]
pub enum ModelCredential {
    /// Sent as `x-api-key`.
    ApiKey(SecretString),
    /// Sent as `Authorization: Bearer`.
    Bearer(SecretString),
}

/// The git hosts behind `/git`.
#[derive(Clone)]
pub struct GitUpstreams {
    /// Which credential goes to which URLs; the longest matching prefix wins.
    pub credentials: Vec<GitCredential>,
    /// The repositories that may be reached, asked again for every request. Its directories are resolved.
    pub allow: AllowList,
    /// Proxy for all connections to git hosts; the environment's proxies are not used.
    pub outbound_proxy: Option<Url>,
    /// Further certificate authorities, PEM.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// Directories in which agents write, such as the server's state directory. Git on the server works on no repository
    /// that overlaps one of them, whatever the list allows: it would run an agent's hooks.
    pub forbidden: Vec<PathBuf>,
    /// The git program that serves repositories that are directories on the server: absolute, or a plain name that is
    /// looked for once, at start, as [`find_program`] does.
    pub git_program: PathBuf,
    /// What pushes must not hold.
    pub pushes: PushRules,
}

/// What pushes must not hold, beside what git itself refuses.
#[derive(Debug, Clone)]
pub struct PushRules {
    /// Patterns of paths that no push may add, change or remove: `*` and `?` stay within one part of a path, `**` stands
    /// for any number of parts; a pattern that names a directory covers everything in it. Case does not matter.
    pub forbidden_paths: Vec<String>,
    /// Largest file, in bytes.
    pub file_bytes: u64,
    /// Rules for secrets that are not applied, such as `generic-secret`, further ones that are, and texts that are no secrets.
    pub secret_rules: Vec<SecretRuleChange>,
    /// Whether a push may add submodules from everywhere, and not only from allowed repositories.
    pub any_submodules: bool,
}

impl Default for PushRules {
    /// No path is forbidden, and a file has at most 100 MiB, which is what large git hosts take.
    fn default() -> Self {
        Self {
            forbidden_paths: Vec::new(),
            file_bytes: 100 * 1024 * 1024,
            secret_rules: Vec::new(),
            any_submodules: false,
        }
    }
}

/// Every secret in the upstreams' configuration: the credentials, and the passwords of proxies.
#[must_use]
pub fn secrets(model: &ModelUpstream, git: &GitUpstreams, egress: &EgressUpstreams) -> Vec<SecretString> {
    let credential = model.credential.iter().map(|credential| match credential {
        ModelCredential::ApiKey(secret) | ModelCredential::Bearer(secret) => secret.clone(),
    });
    let tokens = git.credentials.iter().map(|credential| credential.token.clone());
    let proxies = [&model.outbound_proxy, &git.outbound_proxy].into_iter().flatten();
    let passwords =
        proxies.filter_map(|proxy| proxy.password()).map(|text| SecretString::from(text.to_owned()));
    let outside = egress.credentials.iter().map(|credential| credential.token.clone());
    credential.chain(tokens).chain(outside).chain(passwords).collect()
}

/// Where programs are looked for, by the gateway and by the git that it starts: not in the server's own `PATH`.
pub(crate) const PROGRAMS: &str = "/usr/local/bin:/usr/bin:/bin";

/// The absolute path of `program`: itself if it is one, else the first of that name in `/usr/local/bin`, `/usr/bin` and
/// `/bin`.
///
/// # Errors
/// [`GatewayError::Program`] if there is none that can be run.
pub fn find_program(program: &Path) -> Result<PathBuf, GatewayError> {
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let plain = program.components().count() == 1;
    // Joining an absolute path gives that path.
    let found =
        PROGRAMS.split(':').map(|directory| Path::new(directory).join(program)).find(|path| runs(path));
    found
        .filter(|_| plain || program.is_absolute())
        .ok_or_else(|| GatewayError::Program { program: program.to_owned() })
}

/// A credential for the repositories under a URL.
#[derive(Debug, Clone)]
pub struct GitCredential {
    /// Same origin and whole path parts: `https://git.example.com/team` covers `/team/x`, not `/teamwork`.
    pub url_prefix: Url,
    /// User name of Basic authentication; many hosts take any.
    pub username: String,
    /// The token, sent as the password.
    pub token: SecretString,
}

/// Author and committer of what is done in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitIdentity {
    /// Name.
    pub name: String,
    /// Address.
    pub email: String,
}

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A URL of the configuration cannot be used.
    #[error("{which} cannot be used: {reason}")]
    Url {
        /// Which setting.
        which: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A credential has characters that no header can carry.
    #[error("{which} cannot be sent as a header; take out line ends and control characters")]
    Credential {
        /// Which credential.
        which: &'static str,
    },
    /// The HTTP client for an upstream cannot be made.
    #[error("cannot make the HTTP client for {which}; check its extra certificates and outbound proxy")]
    Client {
        /// Which upstream.
        which: &'static str,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Connections to an upstream cannot be encrypted.
    #[error("cannot prepare TLS for {which}; check its extra certificates and the system's")]
    Tls {
        /// Which upstream.
        which: &'static str,
        /// Why.
        #[source]
        source: tokio_rustls::rustls::Error,
    },
    /// The artifacts' directory cannot be used.
    #[error("cannot prepare the artifacts' directory")]
    Artifacts(#[source] std::io::Error),
    /// A rule for pushes cannot be used.
    #[error("{which} \"{value}\" cannot be used: {reason}")]
    PushRule {
        /// Which setting.
        which: &'static str,
        /// The value.
        value: String,
        /// What to do.
        reason: &'static str,
    },
    /// The directory for pushes cannot be used.
    #[error("cannot prepare the directory in which pushes are looked at")]
    Quarantine(#[source] std::io::Error),
    /// There is no such program, and repositories need it.
    #[error("cannot find \"{}\" as an absolute path or in {PROGRAMS}; install it there", program.display())]
    Program {
        /// As configured.
        program: PathBuf,
    },
    /// A directory that repositories are kept apart from is not there.
    #[error("cannot resolve \"{}\", which repositories are kept apart from", directory.display())]
    Forbidden {
        /// As configured.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store failed.
    #[error("cannot read the sandboxes of this server, or what must be kept out of their record")]
    Store(#[from] StoreError),
}

/// The client of one upstream: nothing from the environment, no redirects, no decompression, HTTP/1.1 alone,
/// so that a slow reader of one reply never fills a window it shares with others.
pub(crate) fn client(
    which: &'static str,
    proxy: Option<&Url>,
    extra_ca_pem: Option<&[u8]>,
) -> Result<reqwest::Client, GatewayError> {
    build_client(which, reqwest::Client::builder(), proxy, extra_ca_pem)
}

/// The same, with a resolver of its own.
pub(crate) fn build_client(
    which: &'static str,
    builder: reqwest::ClientBuilder,
    proxy: Option<&Url>,
    extra_ca_pem: Option<&[u8]>,
) -> Result<reqwest::Client, GatewayError> {
    let build = || {
        let mut builder = builder
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(bounds::CONNECT)
            .pool_idle_timeout(bounds::POOL_IDLE)
            .tcp_nodelay(true);
        if let Some(proxy) = proxy {
            builder = builder.proxy(reqwest::Proxy::all(proxy.clone())?);
        }
        if let Some(pem) = extra_ca_pem {
            builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        builder.build()
    };
    build().map_err(|source| GatewayError::Client { which, source: source.without_url() })
}

/// Refuses URLs that would carry a credential or could not be extended by a path.
pub(crate) fn check_url(which: &'static str, url: &Url) -> Result<(), GatewayError> {
    let fault = |reason| Err(GatewayError::Url { which, reason });
    if !matches!(url.scheme(), "http" | "https") {
        return fault("it is neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fault("it holds a credential; give that separately");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return fault("it has a query or a fragment");
    }
    Ok(())
}

/// A header value that never shows in debug output.
pub(crate) fn secret_header(which: &'static str, text: &str) -> Result<HeaderValue, GatewayError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| GatewayError::Credential { which })?;
    value.set_sensitive(true);
    Ok(value)
}

impl ModelCredential {
    /// The header that carries the credential.
    pub(crate) fn header(&self) -> Result<(reqwest::header::HeaderName, HeaderValue), GatewayError> {
        const WHICH: &str = "the model API's credential";
        match self {
            Self::ApiKey(key) => Ok((
                reqwest::header::HeaderName::from_static("x-api-key"),
                secret_header(WHICH, key.expose_secret())?,
            )),
            Self::Bearer(token) => Ok((
                reqwest::header::AUTHORIZATION,
                secret_header(WHICH, &format!("Bearer {}", token.expose_secret()))?,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_holds_a_credential_or_a_query_is_refused() {
        let check = |text: &str| check_url("x", &Url::parse(text).unwrap());
        assert!(check("https://model.example.com/v9").is_ok());
        for bad in ["ftp://h/", "https://u@h/", "https://:p@h/", "https://h/?a=b", "https://h/#f"] {
            assert!(matches!(check(bad), Err(GatewayError::Url { .. })), "{bad}");
        }
    }

    #[test]
    fn a_credential_that_no_header_can_carry_is_refused_without_showing_it() {
        let error = ModelCredential::ApiKey("canary\n".to_owned().into()).header().unwrap_err();
        assert!(matches!(error, GatewayError::Credential { .. }));
        assert!(!format!("{error} {error:?}").contains("canary"));
        let (name, value) = ModelCredential::Bearer("abc".to_owned().into()).header().unwrap();
        assert_eq!(name, "authorization");
        assert_eq!(value, "Bearer abc");
        assert!(!format!("{value:?}").contains("abc"));
    }

    #[test]
    fn a_program_is_found_by_its_name_or_at_its_place() {
        let git = find_program(Path::new("git")).unwrap();
        assert!(git.is_absolute() && git.ends_with("git"), "{}", git.display());
        assert_eq!(find_program(&git).unwrap(), git);
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        std::fs::write(&data, "no program").unwrap();
        for missing in
            [Path::new("caisson-no-such-program"), Path::new("../bin/git"), Path::new(""), root.path(), &data]
        {
            let error = find_program(missing).unwrap_err();
            assert!(matches!(error, GatewayError::Program { .. }), "{error}");
        }
    }

    #[test]
    fn certificates_that_are_none_are_refused() {
        crate::tests::install_crypto();
        let pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let error = client("the model API", None, Some(pem)).unwrap_err();
        assert!(matches!(error, GatewayError::Client { which: "the model API", .. }));
    }
}
