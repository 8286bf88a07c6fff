//! Repositories on a git host: smart HTTP, with the credential of the longest matching prefix.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION,
    USER_AGENT,
};
use ::http::{HeaderMap, HeaderValue, Method, StatusCode};
use caisson_domain::redact::Redactor;
use caisson_domain::run::Run;
use caisson_store::DoorRun;
use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;
use url::Url;

use super::fault::Fault;
use super::{Answer, Exchange, Service};
use crate::body::{self, Chunks};
use crate::config::{GitCredential, secret_header};
use crate::credentials::{self, GitLogin, basic, covers, prefix_length};
use crate::shared::Shared;

/// Git hosts serve smart HTTP to clients that say they are git.
const AGENT: &str = concat!("git/2.0 (caisson ", env!("CARGO_PKG_VERSION"), ")");

/// A request up to this size is sent with its length: what git calls `http.postBuffer`.
const GATHERED_BYTES: u64 = 1024 * 1024;

pub(super) struct HttpRepository {
    shared: Arc<Shared>,
    run: DoorRun,
    url: Url,
    login: Option<GitLogin>,
}

impl HttpRepository {
    /// With the store's credential for the URL, else the configuration's.
    pub(super) async fn new(shared: &Arc<Shared>, run: &Run, url: Url) -> Result<Self, Fault> {
        let run = DoorRun { id: run.id.clone(), project: run.project.clone() };
        let stored = credentials::git(shared, &run, &url).await.map_err(Fault::Credential)?;
        let login = match stored {
            Some(login) => Some(login),
            None => configured(&shared.git.credentials, &url)?,
        };
        Ok(Self { shared: Arc::clone(shared), run, url, login })
    }

    /// What takes live secrets out of what the host says.
    pub(super) fn redactor(&self) -> Arc<Redactor> {
        self.shared.secrets.of(&self.run.project).redactor()
    }

    pub(super) async fn advertise(&self, service: Service, protocol: Option<&str>) -> Result<Answer, Fault> {
        let mut url = self.below("info/refs");
        url.set_query(Some(&format!("service={}", service.name())));
        let request = self.request(Method::GET, url, protocol.filter(|_| service == Service::UploadPack));
        let patience = self.shared.bounds.first_byte;
        self.send((service, "advertisement"), request, patience).await
    }

    pub(super) async fn exchange(
        &self,
        service: Service,
        protocol: Option<&str>,
        exchange: Exchange,
    ) -> Result<Answer, Fault> {
        let protocol = protocol.filter(|_| service == Service::UploadPack);
        let mut request = self.request(Method::POST, self.below(service.name()), protocol);
        let headers = request.headers_mut();
        let text = |kind: &str| HeaderValue::from_str(&format!("application/x-{}-{kind}", service.name()));
        if let (Ok(content), Ok(accept)) = (text("request"), text("result")) {
            headers.insert(CONTENT_TYPE, content);
            headers.insert(ACCEPT, accept);
        }
        let (chunks, length) = match exchange.length {
            Some(length) => (exchange.chunks, Some(length)),
            None => gathered(exchange.chunks).await,
        };
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        *request.body_mut() = Some(reqwest::Body::wrap_stream(chunks));
        // A push is answered only after it was sent as a whole.
        let patience = match service {
            Service::UploadPack => self.shared.bounds.first_byte,
            Service::ReceivePack => self.shared.bounds.exchange,
        };
        self.send((service, "result"), request, patience).await
    }

    fn below(&self, rest: &str) -> Url {
        let mut url = self.url.clone();
        let path = format!("{}/{rest}", self.url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }

    fn request(&self, method: Method, url: Url, protocol: Option<&str>) -> reqwest::Request {
        let mut request = reqwest::Request::new(method, url);
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(value) = protocol.and_then(|protocol| HeaderValue::from_str(protocol).ok()) {
            headers.insert("git-protocol", value);
        }
        if let Some(login) = &self.login {
            headers.insert(AUTHORIZATION, login.authorization.clone());
        }
        request
    }

    /// Sends a request that is answered with such a part of the service's; each one that carries a credential is written down
    /// before.
    async fn send(
        &self,
        (service, expected): (Service, &str),
        request: reqwest::Request,
        patience: Duration,
    ) -> Result<Answer, Fault> {
        let bounds = &self.shared.bounds;
        if let Some(login) = &self.login {
            let to = (self.url.host_str().unwrap_or_default(), service.purpose());
            login.note(&self.shared, &self.run, to).await.map_err(Fault::Credential)?;
        }
        let sent = timeout(patience, self.shared.git.client.execute(request)).await;
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() => return Err(Fault::Connect),
            Ok(Err(error)) => {
                tracing::debug!(error = %error.without_url(), "a git host broke off");
                return Err(Fault::Failed { status: 0, detail: "broke the connection off" });
            }
            Err(_) => return Err(Fault::Failed { status: 0, detail: "did not answer in time" }),
        };
        self.judge(response.status(), response.headers())?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if kind != Some(&format!("application/x-{}-{expected}", service.name())) {
            return Err(Fault::NotGit);
        }
        let encoding = response.headers().get(CONTENT_ENCODING).cloned();
        let chunks = response.bytes_stream().map(|chunk| chunk.map_err(|error| error.without_url().into()));
        Ok(Answer { chunks: body::timed(chunks, bounds.idle, bounds.exchange), encoding })
    }

    fn judge(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), Fault> {
        let number = status.as_u16();
        match number {
            200 => Ok(()),
            401 | 403 => {
                if let Some(login) = &self.login {
                    login.refused(&self.shared);
                }
                Err(Fault::Auth { status: number, with_credential: self.login.is_some() })
            }
            404 | 410 => Err(Fault::NotFound { status: number }),
            300..=399 => {
                Err(Fault::Redirect { status: number, to: target(&self.url, headers, &self.redactor()) })
            }
            _ => Err(Fault::Failed { status: number, detail: "failed" }),
        }
    }
}

/// Learns the length of a short request, since not every server in front of a git host takes one without. Git
/// itself does not tell the length of a long one either.
async fn gathered(mut chunks: Chunks) -> (Chunks, Option<u64>) {
    let mut seen = Vec::new();
    let mut bytes = 0;
    while bytes <= GATHERED_BYTES {
        match chunks.next().await {
            None => return (stream::iter(seen).boxed(), Some(bytes)),
            Some(Ok(chunk)) => {
                bytes += chunk.len() as u64;
                seen.push(Ok(chunk));
            }
            Some(Err(error)) => {
                seen.push(Err(error));
                break;
            }
        }
    }
    (stream::iter(seen).chain(chunks).boxed(), None)
}

/// Where a redirect leads, as the URL of a repository: without what could be a secret, which goes before the URL is cut.
fn target(base: &Url, headers: &HeaderMap, redactor: &Redactor) -> Option<String> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    let mut url = base.join(location).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    let text = url.to_string();
    let ends = ["/info/refs", "/git-upload-pack", "/git-receive-pack"];
    let repository = ends.iter().find_map(|end| text.strip_suffix(end)).unwrap_or(&text);
    let repository = redactor.text(repository);
    Some(repository.chars().take(caisson_domain::limits::REPOSITORY_BYTES).collect())
}

/// What the configuration's credential makes of a request.
fn configured(credentials: &[GitCredential], url: &Url) -> Result<Option<GitLogin>, Fault> {
    let Some(credential) = credential_for(credentials, url) else { return Ok(None) };
    let header = secret_header("a git credential", &basic(&credential.username, &credential.token));
    let header = header.map_err(|_| Fault::Auth { status: 0, with_credential: true })?;
    Ok(Some(GitLogin::of_settings(header, credential.url_prefix.to_string())))
}

/// The credential with the longest prefix that covers `url`.
fn credential_for<'a>(credentials: &'a [GitCredential], url: &Url) -> Option<&'a GitCredential> {
    credentials
        .iter()
        .filter(|credential| covers(&credential.url_prefix, url))
        .max_by_key(|credential| prefix_length(&credential.url_prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_in_whole_parts_of_the_same_origin_wins() {
        let credential = |prefix: &str| GitCredential {
            url_prefix: url(prefix),
            username: prefix.to_owned(),
            token: "t".to_owned().into(),
        };
        let all = [
            credential("https://h.example/"),
            credential("https://h.example/team/"),
            credential("https://h.example/team/one.git"),
            credential("http://other.example:81/x"),
        ];
        let of = |text: &str| credential_for(&all, &url(text)).map(|found| found.username.clone());
        assert_eq!(of("https://h.example/team/one").as_deref(), Some("https://h.example/team/one.git"));
        assert_eq!(of("https://h.example/team/one.git").as_deref(), Some("https://h.example/team/one.git"));
        assert_eq!(of("https://h.example/team/two").as_deref(), Some("https://h.example/team/"));
        assert_eq!(of("https://h.example/teamwork/x").as_deref(), Some("https://h.example/"));
        assert_eq!(of("http://other.example:81/x/y").as_deref(), Some("http://other.example:81/x"));
        for outside in [
            "http://h.example/team/one",
            "https://h.example:8443/team/one",
            "https://h.example.evil/team/one",
            "http://other.example/x",
            "http://other.example:81/xy",
        ] {
            assert_eq!(of(outside), None, "{outside}");
        }
    }

    #[test]
    fn a_redirects_target_is_named_without_what_could_be_secret() {
        let of = |location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, location.parse().unwrap());
            let redactor = Redactor::new([&secrecy::SecretString::from("ghp_canaryToken0123")]);
            target(&url("http://h.example/a/b.git"), &headers, &redactor)
        };
        assert_eq!(
            of("https://u:p@new.example/c.git/info/refs?service=x&token=y").as_deref(),
            Some("https://new.example/c.git")
        );
        assert_eq!(of("/login").as_deref(), Some("http://h.example/login"));
        assert_eq!(of("ftp://x/"), None);
        // The secret lies over the end of what is shown.
        let base = "http://h.example/";
        let fill = "x".repeat(caisson_domain::limits::REPOSITORY_BYTES - base.len() - 10);
        let shown = of(&format!("{base}{fill}ghp_canaryToken0123")).unwrap();
        assert!(shown.ends_with("x[redacted]"), "{shown}");
    }
}
