//! Sealing by AES-256-GCM. Each secret has a data key of its own that seals once; the master key wraps data keys.
//!
//! What is sealed is bound to its credential: its id, project, kind and public settings. A row that somebody gave other
//! settings, such as another host, or whose sealed parts come from another row, opens nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice};

use super::MasterKey;
use super::key::KEY_BYTES;

/// Which credential something is sealed for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label<'a> {
    pub(crate) id: &'a str,
    pub(crate) project: &'a str,
    pub(crate) kind: &'a str,
    /// As stored.
    pub(crate) settings: &'a str,
}

impl Label<'_> {
    /// All parts, each with its length before it, so that no two labels are the same text.
    fn bound_to(&self, what: &str) -> Vec<u8> {
        let mut bound = Vec::new();
        for part in ["caisson 1", what, self.id, self.project, self.kind, self.settings] {
            bound.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bound.extend_from_slice(part.as_bytes());
        }
        bound
    }
}

/// A sealed secret as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// The master key's id.
    pub(crate) key_id: String,
    /// The wrapped data key.
    pub(crate) data_key: String,
    /// The secret under the data key.
    pub(crate) secret: String,
}

/// Fresh random bytes for one sealing.
pub(crate) struct Fresh {
    pub(crate) data_key: [u8; KEY_BYTES],
    pub(crate) nonces: [[u8; NONCE_LEN]; 2],
}

/// The key, the nonce or the label is not the one it was sealed with, or what was sealed was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotOpened;

/// Seals a secret.
pub(crate) fn seal(master: &MasterKey, label: Label<'_>, plain: &SecretSlice<u8>, fresh: &Fresh) -> Sealed {
    let data_key = Zeroizing::new(fresh.data_key);
    let [sealing, wrapping] = fresh.nonces;
    Sealed {
        key_id: master.id().to_owned(),
        secret: encrypt(&data_key, sealing, &label.bound_to("secret"), plain.expose_secret()),
        data_key: encrypt(master.bytes(), wrapping, &label.bound_to("data key"), &*data_key),
    }
}

/// Opens a secret.
pub(crate) fn open(
    master: &MasterKey,
    label: Label<'_>,
    sealed: &Sealed,
) -> Result<SecretSlice<u8>, NotOpened> {
    let data_key = unwrap(master, label, &sealed.data_key)?;
    let plain = decrypt(&data_key, &label.bound_to("secret"), &sealed.secret)?;
    Ok(SecretSlice::from(plain.to_vec()))
}

/// Wraps a data key anew; what it seals stays as it is.
pub(crate) fn rewrap(
    (old, new): (&MasterKey, &MasterKey),
    label: Label<'_>,
    data_key: &str,
    nonce: [u8; NONCE_LEN],
) -> Result<String, NotOpened> {
    let data_key = unwrap(old, label, data_key)?;
    Ok(encrypt(new.bytes(), nonce, &label.bound_to("data key"), &*data_key))
}

fn unwrap(
    master: &MasterKey,
    label: Label<'_>,
    data_key: &str,
) -> Result<Zeroizing<[u8; KEY_BYTES]>, NotOpened> {
    let plain = decrypt(master.bytes(), &label.bound_to("data key"), data_key)?;
    let bytes: [u8; KEY_BYTES] = plain.as_slice().try_into().map_err(|_| NotOpened)?;
    Ok(Zeroizing::new(bytes))
}

fn cipher(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes keys of 32 bytes"))
}

/// Nonce, ciphertext and tag, as text. A data key seals once. The master key wraps a data key for each change of a
/// secret: by far less than the 2³² times for which random nonces of 96 bits are safe (NIST SP 800-38D, 8.3).
fn encrypt(key: &[u8; KEY_BYTES], nonce: [u8; NONCE_LEN], bound: &[u8], plain: &[u8]) -> String {
    // In place, and with room for the tag, so that no copy of the plain text is left behind.
    let mut text = Zeroizing::new(Vec::with_capacity(plain.len() + AES_256_GCM.tag_len()));
    text.extend_from_slice(plain);
    cipher(key)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut *text)
        .expect("a secret is far shorter than the 64 GiB that AES-GCM seals");
    STANDARD.encode([&nonce[..], &text[..]].concat())
}

fn decrypt(key: &[u8; KEY_BYTES], bound: &[u8], text: &str) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
    let bytes = STANDARD.decode(text).map_err(|_| NotOpened)?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN).ok_or(NotOpened)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened)?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let length = cipher(key).open_in_place(nonce, Aad::from(bound), &mut plain).map_err(|_| NotOpened)?.len();
    plain.truncate(length);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label<'_> = Label { id: "crd_1", project: "p", kind: "git_token", settings: "{}" };

    fn fresh(number: u8) -> Fresh {
        Fresh { data_key: [number; KEY_BYTES], nonces: [[number; NONCE_LEN], [number + 1; NONCE_LEN]] }
    }

    fn sealed() -> (MasterKey, Sealed) {
        let master = MasterKey::new([7; KEY_BYTES]);
        let sealed = seal(&master, LABEL, &SecretSlice::from(b"canary".to_vec()), &fresh(1));
        (master, sealed)
    }

    #[test]
    fn a_secret_opens_with_its_key_and_label_alone() {
        let (master, sealed) = sealed();
        assert_eq!(open(&master, LABEL, &sealed).unwrap().expose_secret(), b"canary");
        assert!(open(&MasterKey::new([8; KEY_BYTES]), LABEL, &sealed).is_err());
        for other in [
            Label { id: "crd_2", ..LABEL },
            Label { project: "q", ..LABEL },
            Label { kind: "mcp_header", ..LABEL },
            Label { settings: "{\"url_prefix\":\"https://evil.example.com/\"}", ..LABEL },
            // The same text, divided otherwise.
            Label { id: "crd_1p", project: "", ..LABEL },
        ] {
            assert!(open(&master, other, &sealed).is_err(), "{other:?}");
        }
    }

    #[test]
    fn what_was_changed_or_cut_does_not_open() {
        let (master, whole) = sealed();
        for part in 0..2 {
            let text = if part == 0 { &whole.secret } else { &whole.data_key };
            let bytes = STANDARD.decode(text).unwrap();
            let mut variants: Vec<Vec<u8>> =
                (0..bytes.len()).map(|length| bytes[..length].to_vec()).collect();
            variants.extend((0..bytes.len()).map(|at| {
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                changed
            }));
            for variant in variants {
                let text = STANDARD.encode(variant);
                let changed = if part == 0 {
                    Sealed { secret: text, ..whole.clone() }
                } else {
                    Sealed { data_key: text, ..whole.clone() }
                };
                assert!(open(&master, LABEL, &changed).is_err());
            }
        }
        let other = seal(&master, LABEL, &SecretSlice::from(b"canary".to_vec()), &fresh(3));
        assert!(open(&master, LABEL, &Sealed { secret: other.secret, ..whole }).is_err(), "another data key");
    }

    #[test]
    fn a_data_key_is_wrapped_anew_and_its_secret_stays() {
        let (old, sealed) = sealed();
        let new = MasterKey::new([9; KEY_BYTES]);
        let data_key = rewrap((&old, &new), LABEL, &sealed.data_key, [5; NONCE_LEN]).unwrap();
        let moved = Sealed { key_id: new.id().to_owned(), data_key, secret: sealed.secret };
        assert_eq!(open(&new, LABEL, &moved).unwrap().expose_secret(), b"canary");
        assert!(open(&old, LABEL, &moved).is_err());
        assert!(rewrap((&old, &new), LABEL, &moved.data_key, [5; NONCE_LEN]).is_err());
    }
}
