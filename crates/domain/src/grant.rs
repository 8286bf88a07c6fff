//! Grants: what a sandbox holds to pass its door, and API keys: what a principal holds. Both are random, so a plain
//! hash keeps them safe at rest.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::run::text_enum;

text_enum! {
    /// Which paths of the door a grant opens.
    GrantKind, "grant kind" {
        /// The shim's: `/next`, `/journal`, `/inputs`, `/deltas`, `/artifacts`.
        Control = "control",
        /// The agent's: `/model`, `/git`.
        Agent = "agent",
    }
}

/// A random secret with a prefix that tells what it is. Debug output hides it.
#[derive(Debug, Clone)]
pub struct Token(SecretString);

/// Random bytes in a token.
pub const TOKEN_BYTES: usize = 32;

impl Token {
    /// Makes a grant for a sandbox from random bytes.
    #[must_use]
    pub fn grant(kind: GrantKind, random: [u8; TOKEN_BYTES]) -> Self {
        let prefix = match kind {
            GrantKind::Control => "csc_",
            GrantKind::Agent => "csa_",
        };
        Self(format!("{prefix}{}", hex::encode(random)).into())
    }

    /// Makes the secret of an API key from random bytes.
    #[must_use]
    pub fn api_key(random: [u8; TOKEN_BYTES]) -> Self {
        Self(format!("csk_{}", hex::encode(random)).into())
    }

    /// The secret itself: to be shown once, or handed to the sandbox it is for.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What the store keeps.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(self.0.expose_secret())
    }
}

/// The SHA-256 of a token, as 64 hexadecimal digits.
#[derive(Debug, Clone)]
pub struct TokenHash(String);

impl TokenHash {
    /// Hashes a presented secret.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        Self(hex::encode(Sha256::digest(secret.as_bytes())))
    }

    /// Takes a stored hash.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_shows_in_debug_output() {
        let token = Token::grant(GrantKind::Agent, [0xab; TOKEN_BYTES]);
        assert!(!format!("{token:?}").contains("abab"));
        assert!(token.expose().starts_with("csa_abab"));
    }

    #[test]
    fn only_the_same_secret_matches_a_hash() {
        let token = Token::api_key([1; TOKEN_BYTES]);
        assert!(token.hash().matches(&TokenHash::of(token.expose())));
        assert!(!token.hash().matches(&TokenHash::of("csk_00")));
        assert!(!token.hash().matches(&TokenHash::from_stored(String::new())));
    }
}
