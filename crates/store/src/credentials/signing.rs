//! RSA keys of apps: what is signed with them proves who asks for an installation token.

use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;
use secrecy::{ExposeSecret, SecretString};

use super::pem;

/// Why a text is not a signing key. It never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// Not one RSA key in PEM.
    #[error(
        "it is not one RSA private key in PEM; give the file that the app's page lets you download, as it came"
    )]
    Form,
    /// A key that cannot sign.
    #[error("it is not an RSA key of 2048 to 4096 bits")]
    Key,
    /// Signing failed.
    #[error("the key did not sign")]
    Failed,
}

/// An RSA private key.
#[derive(Debug)]
pub struct SigningKey(KeyPair);

impl SigningKey {
    /// Reads a key in PEM: PKCS #1 (`RSA PRIVATE KEY`), as GitHub gives it, or PKCS #8 (`PRIVATE KEY`).
    ///
    /// # Errors
    /// [`SigningKeyError`].
    pub fn from_pem(text: &SecretString) -> Result<Self, SigningKeyError> {
        let text = text.expose_secret();
        let blocks = |label| pem::blocks(text, label).ok_or(SigningKeyError::Form);
        let (first, eighth) = (blocks("RSA PRIVATE KEY")?, blocks("PRIVATE KEY")?);
        let read = match (first.as_slice(), eighth.as_slice()) {
            ([key], []) => KeyPair::from_der(key),
            ([], [key]) => KeyPair::from_pkcs8(key),
            _ => return Err(SigningKeyError::Form),
        };
        read.map(Self).map_err(|_| SigningKeyError::Key)
    }

    /// Signs with PKCS #1 v1.5 and SHA-256: RS256 of JSON Web Tokens.
    ///
    /// # Errors
    /// [`SigningKeyError::Failed`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningKeyError> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| SigningKeyError::Failed)?;
        Ok(signature)
    }

    /// The public key, as DER of PKCS #1: for whoever checks signatures.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        self.0.public().as_ref()
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;

    const FIRST: &str = include_str!("test_keys/pkcs1.pem");
    const EIGHTH: &str = include_str!("test_keys/pkcs8.pem");
    const SMALL: &str = include_str!("test_keys/small.pem");

    fn read(text: &str) -> Result<SigningKey, SigningKeyError> {
        SigningKey::from_pem(&text.to_owned().into())
    }

    #[test]
    fn both_forms_of_a_key_sign_what_the_public_key_verifies() {
        for text in [FIRST, EIGHTH] {
            let key = read(text).unwrap();
            let signature = key.sign(b"message").unwrap();
            let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key());
            assert!(public.verify(b"message", &signature).is_ok());
            assert!(public.verify(b"another", &signature).is_err());
        }
    }

    #[test]
    fn what_is_no_rsa_key_or_too_small_is_refused_without_being_repeated() {
        let cut: String = FIRST.chars().take(FIRST.len() / 2).collect();
        let mixed = FIRST.replace("RSA PRIVATE KEY", "PRIVATE KEY");
        for (text, expected) in [
            ("", SigningKeyError::Form),
            ("canary", SigningKeyError::Form),
            (&cut, SigningKeyError::Form),
            (&format!("{FIRST}{FIRST}"), SigningKeyError::Form),
            (&mixed, SigningKeyError::Key),
            (SMALL, SigningKeyError::Key),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error, expected);
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
        let shown = format!("{:?}", read(FIRST).unwrap());
        let body: String = FIRST.lines().nth(5).unwrap().to_owned();
        assert!(!shown.contains(&body), "{shown}");
    }
}
