//! What is secret about a credential. Debug output hides it, and memory is wiped when it is dropped.

use secrecy::zeroize::Zeroize;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};

use crate::redact::SECRET_BYTES_MIN;

/// The secret of a credential.
#[derive(Debug, Clone)]
pub enum CredentialSecret {
    /// A key or token.
    Value {
        /// The key or token itself.
        value: SecretString,
        /// `user:password` of the outbound proxy.
        proxy_login: Option<SecretString>,
    },
    /// Tokens that are refreshed.
    Oauth {
        /// What is sent.
        access_token: SecretString,
        /// What a new access token is had with.
        refresh_token: SecretString,
        /// When the access token stops opening anything, Unix ms; 0 if that is not known, so that it is refreshed first.
        expires_at_ms: i64,
        /// `user:password` of the outbound proxy.
        proxy_login: Option<SecretString>,
    },
    /// A private key.
    PrivateKey {
        /// RSA, PEM.
        private_key: SecretString,
    },
}

/// What was sealed is not a secret of any kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was sealed is no secret of a credential")]
pub struct UnreadableSecret;

/// As it is written; the same names as people use.
#[derive(Serialize)]
struct Written<'a> {
    value: Option<&'a str>,
    access_token: Option<&'a str>,
    refresh_token: Option<&'a str>,
    expires_at_ms: Option<i64>,
    private_key: Option<&'a str>,
    proxy_login: Option<&'a str>,
}

#[derive(Deserialize)]
struct Read {
    value: Option<SecretString>,
    access_token: Option<SecretString>,
    refresh_token: Option<SecretString>,
    expires_at_ms: Option<i64>,
    private_key: Option<SecretString>,
    proxy_login: Option<SecretString>,
}

impl CredentialSecret {
    /// `user:password` of the outbound proxy.
    #[must_use]
    pub const fn proxy_login(&self) -> Option<&SecretString> {
        match self {
            Self::Value { proxy_login, .. } | Self::Oauth { proxy_login, .. } => proxy_login.as_ref(),
            Self::PrivateKey { .. } => None,
        }
    }

    /// The same with the outbound proxy's login of another secret, unless it has its own.
    #[must_use]
    pub fn or_login_of(mut self, other: &Self) -> Self {
        if let Self::Value { proxy_login, .. } | Self::Oauth { proxy_login, .. } = &mut self
            && proxy_login.is_none()
        {
            *proxy_login = other.proxy_login().cloned();
        }
        self
    }

    /// Every text in it that must not be shown, the password of a login also by itself.
    #[must_use]
    pub fn texts(&self) -> Vec<SecretString> {
        let password = |login: &SecretString| {
            let (_, password) = login.expose_secret().split_once(':')?;
            // A shorter one could not be told from other text.
            (password.len() >= SECRET_BYTES_MIN).then(|| SecretString::from(password.to_owned()))
        };
        let login = self.proxy_login().into_iter();
        let own = match self {
            Self::Value { value, .. } => vec![value],
            Self::Oauth { access_token, refresh_token, .. } => vec![access_token, refresh_token],
            Self::PrivateKey { private_key } => vec![private_key],
        };
        own.into_iter().chain(login.clone()).cloned().chain(login.filter_map(password)).collect()
    }

    /// The text to be sealed.
    ///
    /// # Panics
    /// Never: texts and a number can be written to memory.
    #[must_use]
    pub fn to_plain(&self) -> SecretSlice<u8> {
        let empty = Written {
            value: None,
            access_token: None,
            refresh_token: None,
            expires_at_ms: None,
            private_key: None,
            proxy_login: self.proxy_login().map(ExposeSecret::expose_secret),
        };
        let written = match self {
            Self::Value { value, .. } => Written { value: Some(value.expose_secret()), ..empty },
            Self::Oauth { access_token, refresh_token, expires_at_ms, .. } => Written {
                access_token: Some(access_token.expose_secret()),
                refresh_token: Some(refresh_token.expose_secret()),
                expires_at_ms: Some(*expires_at_ms),
                ..empty
            },
            Self::PrivateKey { private_key } => {
                Written { private_key: Some(private_key.expose_secret()), ..empty }
            }
        };
        let texts = [
            written.value,
            written.access_token,
            written.refresh_token,
            written.private_key,
            written.proxy_login,
        ];
        let bytes: usize = texts.into_iter().flatten().map(str::len).sum();
        // Room for every byte escaped, so that the text never moves and leaves a copy behind.
        let mut plain = Vec::with_capacity(6 * bytes + 256);
        serde_json::to_writer(&mut plain, &written).expect("texts and a number can be written to memory");
        // A slice of the exact size is taken, since shrinking may move the text; the first place is wiped here.
        let fitted = plain.as_slice().to_vec();
        plain.zeroize();
        SecretSlice::from(fitted)
    }

    /// Reads what [`CredentialSecret::to_plain`] wrote.
    ///
    /// # Errors
    /// [`UnreadableSecret`], which does not say what was read.
    pub fn from_plain(plain: &[u8]) -> Result<Self, UnreadableSecret> {
        // The parser's own message could quote the secret.
        let read: Read = serde_json::from_slice(plain).map_err(|_| UnreadableSecret)?;
        match (read.value, read.access_token, read.refresh_token, read.private_key) {
            (Some(value), None, None, None) => Ok(Self::Value { value, proxy_login: read.proxy_login }),
            (None, Some(access_token), Some(refresh_token), None) => Ok(Self::Oauth {
                access_token,
                refresh_token,
                expires_at_ms: read.expires_at_ms.unwrap_or(0),
                proxy_login: read.proxy_login,
            }),
            (None, None, None, Some(private_key)) => Ok(Self::PrivateKey { private_key }),
            _ => Err(UnreadableSecret),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_taken_from_another_secret_where_there_is_none() {
        let secret = |text: &str| SecretString::from(text.to_owned());
        let value = |login: Option<&str>| CredentialSecret::Value {
            value: secret("canary-1"),
            proxy_login: login.map(secret),
        };
        let oauth = |login: Option<&str>| CredentialSecret::Oauth {
            access_token: secret("canary-2"),
            refresh_token: secret("canary-3"),
            expires_at_ms: 7,
            proxy_login: login.map(secret),
        };
        let login = |of: CredentialSecret, other: &CredentialSecret| {
            of.or_login_of(other).proxy_login().map(|login| login.expose_secret().to_owned())
        };
        let old = value(Some("u:old"));
        for (new, kept) in [
            (value(None), Some("u:old")),
            (value(Some("u:new")), Some("u:new")),
            (oauth(None), Some("u:old")),
            (CredentialSecret::PrivateKey { private_key: secret("canary-4") }, None),
        ] {
            assert_eq!(login(new, &old).as_deref(), kept);
        }
        assert_eq!(login(value(None), &oauth(None)), None);
    }

    #[test]
    fn a_secret_is_written_and_read_back_and_never_shown() {
        let secret = |text: &str| SecretString::from(text.to_owned());
        let all = [
            CredentialSecret::Value { value: secret("canary\"\n"), proxy_login: Some(secret("canary:p")) },
            CredentialSecret::Oauth {
                access_token: secret("canary1"),
                refresh_token: secret("canary2"),
                expires_at_ms: 7,
                proxy_login: None,
            },
            CredentialSecret::PrivateKey { private_key: secret("canary\nkey\n") },
        ];
        for secret in all {
            assert!(!format!("{secret:?}").contains("canary"), "{secret:?}");
            let plain = secret.to_plain();
            let read = CredentialSecret::from_plain(plain.expose_secret()).unwrap();
            assert_eq!(read.to_plain().expose_secret(), plain.expose_secret());
        }
        for bad in
            [&b"{}"[..], b"canary", b"{\"value\":\"a\",\"private_key\":\"b\"}", b"{\"access_token\":\"a\"}"]
        {
            assert_eq!(CredentialSecret::from_plain(bad).unwrap_err(), UnreadableSecret);
        }
    }
}
