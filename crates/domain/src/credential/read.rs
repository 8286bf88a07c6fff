//! Reading a credential from the fields that a person gives, over the API or on the command line.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{
    CredentialKind, CredentialSecret, CredentialSettings, ModelReach, OVER_TLS, SendAs, TokenFormat,
};
use crate::egress::{HTTP_PORT, HTTPS_PORT, Host};
use crate::git::Repository;
use crate::limits::{CREDENTIAL_CA_BYTES, CREDENTIAL_SECRET_BYTES, CREDENTIAL_TEXT_BYTES};
use crate::redact::SECRET_BYTES_MIN;

/// The one field with the secrets that is none.
const EXPIRES_AT_MS: &str = "expires_at_ms";

/// Every field that may be public, of any kind.
pub const SETTING_FIELDS: [&str; 16] = [
    "base_url",
    "outbound_proxy",
    "ca_pem",
    "send_as",
    "token_url",
    "client_id",
    "token_format",
    "anthropic_beta",
    "url_prefix",
    "username",
    "api_base_url",
    "app_id",
    "installation_id",
    "url",
    "header",
    "host",
];
/// Every field that may be secret, of any kind.
pub const SECRET_FIELDS: [&str; 6] =
    ["value", "access_token", "refresh_token", EXPIRES_AT_MS, "private_key", "proxy_login"];

/// User name that is sent with a git token whose credential names none; GitHub wants it with installation tokens.
const GIT_USER: &str = "x-access-token";
/// Where GitHub is.
const GITHUB: &str = "https://github.com/";
/// Where its API is.
const GITHUB_API: &str = "https://api.github.com/";

/// A field that cannot be used. It never repeats a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialFault {
    /// The field.
    pub field: &'static str,
    /// Stable, for programs: `missing_field`, `unknown_field` or `invalid_value`.
    pub code: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// The fields given, by their names.
#[derive(Debug, Default)]
pub struct CredentialFields {
    /// Of [`SETTING_FIELDS`].
    pub settings: BTreeMap<&'static str, String>,
    /// Of [`SECRET_FIELDS`].
    pub secret: BTreeMap<&'static str, SecretString>,
}

impl CredentialFields {
    /// Reads what is public; whatever the kind does not know is a fault.
    ///
    /// # Errors
    /// Every fault.
    pub fn settings(mut self, kind: CredentialKind) -> Result<CredentialSettings, Vec<CredentialFault>> {
        let mut read = Reading { fields: &mut self.settings, faults: Vec::new() };
        let settings = settings(kind, &mut read);
        let mut faults = read.faults;
        faults.extend(self.settings.keys().map(|field| unknown(kind, field)));
        settings.filter(|_| faults.is_empty()).ok_or(faults)
    }

    /// Reads what is secret; whatever the kind does not know is a fault.
    ///
    /// # Errors
    /// Every fault.
    pub fn secret(&mut self, kind: CredentialKind) -> Result<CredentialSecret, Vec<CredentialFault>> {
        let mut fields = std::mem::take(&mut self.secret);
        let mut faults = Vec::new();
        let secret = secret(kind, &mut fields, &mut faults);
        faults.extend(fields.keys().map(|field| unknown(kind, field)));
        secret.filter(|_| faults.is_empty()).ok_or(faults)
    }
}

fn unknown(kind: CredentialKind, field: &'static str) -> CredentialFault {
    let message = format!("a credential of the kind {kind} has no such field; leave it out");
    CredentialFault { field, code: "unknown_field", message }
}

fn invalid(field: &'static str, message: impl Into<String>) -> CredentialFault {
    CredentialFault { field, code: "invalid_value", message: message.into() }
}

fn missing(field: &'static str) -> CredentialFault {
    CredentialFault { field, code: "missing_field", message: "it is required".to_owned() }
}

fn settings(kind: CredentialKind, read: &mut Reading<'_>) -> Option<CredentialSettings> {
    match kind {
        CredentialKind::ModelApiKey => {
            let reach = read.reach();
            let send_as = read.parsed("send_as");
            Some(CredentialSettings::ModelApiKey { reach, send_as: send_as.unwrap_or(SendAs::XApiKey) })
        }
        CredentialKind::ModelOauth => {
            let reach = read.reach();
            let (token_url, client_id) = (read.required("token_url", Reading::url), read.text("client_id"));
            let token_format = read.parsed("token_format").unwrap_or(TokenFormat::Form);
            let anthropic_beta = read.text("anthropic_beta");
            let token_url = token_url?;
            Some(CredentialSettings::ModelOauth { reach, token_url, client_id, token_format, anthropic_beta })
        }
        CredentialKind::GitToken => {
            let url_prefix = read.required("url_prefix", Reading::prefix);
            let username = read.username().unwrap_or_else(|| GIT_USER.to_owned());
            Some(CredentialSettings::GitToken { url_prefix: url_prefix?, username })
        }
        CredentialKind::GitGithubApp => {
            let url_prefix = read.prefix("url_prefix").or_else(|| GITHUB.parse().ok());
            let api_base_url = read.url("api_base_url").or_else(|| GITHUB_API.parse().ok());
            let app_id = read.required("app_id", Reading::text);
            let installation_id = read.required("installation_id", Reading::parsed);
            Some(CredentialSettings::GitGithubApp {
                url_prefix: url_prefix?,
                api_base_url: api_base_url?,
                app_id: app_id?,
                installation_id: installation_id?,
            })
        }
        CredentialKind::McpHeader => {
            let (url, header) =
                (read.required("url", Reading::url), read.required("header", Reading::header_name));
            Some(CredentialSettings::McpHeader { url: url?, header: header? })
        }
        CredentialKind::RegistryToken => {
            let (host, username) = (read.required("host", Reading::host), read.username());
            Some(CredentialSettings::RegistryToken { host: host?, username })
        }
    }
}

/// The public fields that are left, and the faults found so far.
struct Reading<'a> {
    fields: &'a mut BTreeMap<&'static str, String>,
    faults: Vec<CredentialFault>,
}

impl Reading<'_> {
    fn required<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        if !self.fields.contains_key(field) {
            self.faults.push(missing(field));
        }
        read(self, field)
    }

    /// A text of one line that a header can carry.
    fn text(&mut self, field: &'static str) -> Option<String> {
        let text = self.fields.remove(field)?;
        match fault_of_text(&text, CREDENTIAL_TEXT_BYTES) {
            None => Some(text),
            Some(fault) => {
                self.faults.push(invalid(field, fault));
                None
            }
        }
    }

    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, field: &'static str) -> Option<T> {
        let text = self.text(field)?;
        text.parse().map_err(|error: T::Err| self.faults.push(invalid(field, error.to_string()))).ok()
    }

    fn url(&mut self, field: &'static str) -> Option<Url> {
        let text = self.text(field)?;
        let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let plain = |url: &Url| {
            url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        };
        match url {
            Some(url) if plain(&url) => Some(url),
            Some(_) => {
                let message = "the URL holds a login, a query or a fragment; give the plain URL";
                self.faults.push(invalid(field, message));
                None
            }
            None => {
                self.faults.push(invalid(field, "it is not an http or https URL"));
                None
            }
        }
    }

    /// A URL that git hosts cannot read in two ways.
    fn prefix(&mut self, field: &'static str) -> Option<Url> {
        let url = self.url(field)?;
        match url.as_str().parse() {
            Ok(Repository::Url(url)) => Some(url),
            Ok(Repository::Path(_)) | Err(_) => {
                let message = "it is not the plain URL of a git host, a team or a repository";
                self.faults.push(invalid(field, message));
                None
            }
        }
    }

    fn reach(&mut self) -> ModelReach {
        ModelReach {
            base_url: self.url("base_url"),
            outbound_proxy: self.url("outbound_proxy"),
            ca_pem: self.certificates("ca_pem"),
        }
    }

    fn certificates(&mut self, field: &'static str) -> Option<String> {
        let text = self.fields.remove(field)?;
        let fault = if text.len() > CREDENTIAL_CA_BYTES {
            format!("it is longer than {CREDENTIAL_CA_BYTES} bytes")
        } else if !text.contains("-----BEGIN CERTIFICATE-----") {
            "it holds no certificate in PEM".to_owned()
        } else {
            return Some(text);
        };
        self.faults.push(invalid(field, fault));
        None
    }

    /// Basic authentication ends the user name at the first colon.
    fn username(&mut self) -> Option<String> {
        let name = self.text("username")?;
        if name.contains(':') {
            self.faults.push(invalid("username", "a user name has no colon"));
            return None;
        }
        Some(name)
    }

    fn header_name(&mut self, field: &'static str) -> Option<String> {
        let name = self.text(field)?.to_ascii_lowercase();
        let token = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        // What belongs to the connection is never a credential.
        let ours = ["host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "trailer"];
        if token && !ours.contains(&name.as_str()) {
            return Some(name);
        }
        self.faults.push(invalid(field, "it is not the name of a header that can carry a credential"));
        None
    }

    /// A host of plain HTTP, or with `https://` before it one of TLS: what is said to the one is never said to the other.
    fn host(&mut self, field: &'static str) -> Option<String> {
        let given = self.text(field)?;
        let over_tls = given.split_at_checked(OVER_TLS.len());
        let over_tls = over_tls.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(OVER_TLS));
        // A URL as people copy it ends in a slash.
        let (scheme, text, usual) = over_tls.map_or(("", given.as_str(), HTTP_PORT), |(_, text)| {
            (OVER_TLS, text.strip_suffix('/').unwrap_or(text), HTTPS_PORT)
        });
        let message = match host_and_port(text) {
            Some((_, Some(HTTPS_PORT))) if scheme.is_empty() => {
                "port 443 speaks TLS; write https:// before the host, and the token is sent over TLS alone"
            }
            Some((host, Some(port))) if port != usual => return Some(format!("{scheme}{host}:{port}")),
            Some((host, Some(_) | None)) => return Some(format!("{scheme}{host}")),
            None => {
                "it is not a host, with a port behind a colon and https:// before it if need be; leave a path out"
            }
        };
        self.faults.push(invalid(field, message));
        None
    }
}

/// A host in its one spelling, and the port behind it; none if there is more or less than that.
fn host_and_port(text: &str) -> Option<(Host, Option<u16>)> {
    let (name, port) = match text.rsplit_once(':') {
        // What ends in a bracket is within an address.
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        Some(_) | None => (text, None),
    };
    // Read here: a reader of URLs takes the port away that is usual for its own scheme, however many zeros are before it.
    let digits = |port: &&str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = match port {
        None => None,
        Some(port) => Some(Some(port).filter(digits)?.parse().ok().filter(|port: &u16| *port != 0)?),
    };
    Some((Host::parse(name).ok()?, port))
}

/// What is wrong with a text that a header must be able to carry.
fn fault_of_text(text: &str, bytes: usize) -> Option<String> {
    if text.is_empty() {
        return Some("it is empty".to_owned());
    }
    if text.len() > bytes {
        return Some(format!("it is longer than {bytes} bytes"));
    }
    let plain = text.bytes().all(|b| (b' '..=b'~').contains(&b)) && text.trim() == text;
    (!plain).then(|| {
        "it has line ends, control characters, characters beyond ASCII or space around it".to_owned()
    })
}

fn secret(
    kind: CredentialKind,
    fields: &mut BTreeMap<&'static str, SecretString>,
    faults: &mut Vec<CredentialFault>,
) -> Option<CredentialSecret> {
    let mut line = |field: &'static str, faults: &mut Vec<CredentialFault>| {
        let secret = fields.remove(field)?;
        let short = field != EXPIRES_AT_MS && secret.expose_secret().len() < SECRET_BYTES_MIN;
        let short = short.then(|| {
            format!("it is shorter than {SECRET_BYTES_MIN} bytes and could not be kept out of the record")
        });
        match fault_of_text(secret.expose_secret(), CREDENTIAL_SECRET_BYTES).or(short) {
            None => Some(secret),
            Some(fault) => {
                faults.push(invalid(field, fault));
                None
            }
        }
    };
    let required = |secret: Option<SecretString>, field: &'static str, faults: &mut Vec<CredentialFault>| {
        if secret.is_none() && !faults.iter().any(|fault| fault.field == field) {
            faults.push(missing(field));
        }
        secret
    };
    match kind {
        CredentialKind::ModelApiKey => {
            let value = line("value", faults);
            let proxy_login = proxy_login(line("proxy_login", faults), faults);
            Some(CredentialSecret::Value { value: required(value, "value", faults)?, proxy_login })
        }
        CredentialKind::GitToken | CredentialKind::McpHeader | CredentialKind::RegistryToken => {
            let value = line("value", faults);
            Some(CredentialSecret::Value { value: required(value, "value", faults)?, proxy_login: None })
        }
        CredentialKind::ModelOauth => {
            let (access, refresh) = (line("access_token", faults), line("refresh_token", faults));
            let proxy_login = proxy_login(line("proxy_login", faults), faults);
            let expires = line(EXPIRES_AT_MS, faults).map_or(Some(0), |text| {
                let number = text.expose_secret().parse().ok().filter(|ms: &i64| *ms >= 0);
                if number.is_none() {
                    faults.push(invalid(EXPIRES_AT_MS, "it is not a time in Unix milliseconds"));
                }
                number
            });
            let access_token = required(access, "access_token", faults);
            let refresh_token = required(refresh, "refresh_token", faults);
            Some(CredentialSecret::Oauth {
                access_token: access_token?,
                refresh_token: refresh_token?,
                expires_at_ms: expires?,
                proxy_login,
            })
        }
        CredentialKind::GitGithubApp => {
            let key = fields.remove("private_key");
            if key.as_ref().is_some_and(|key| key.expose_secret().len() > CREDENTIAL_SECRET_BYTES) {
                faults.push(invalid(
                    "private_key",
                    format!("it is longer than {CREDENTIAL_SECRET_BYTES} bytes"),
                ));
            }
            Some(CredentialSecret::PrivateKey { private_key: required(key, "private_key", faults)? })
        }
    }
}

fn proxy_login(login: Option<SecretString>, faults: &mut Vec<CredentialFault>) -> Option<SecretString> {
    let bad = login.as_ref().is_some_and(|login| !login.expose_secret().contains(':'));
    if bad {
        faults.push(invalid("proxy_login", "it is not USER:PASSWORD"));
    }
    login
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
