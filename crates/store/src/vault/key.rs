//! One master key.

use ring::digest;
use secrecy::zeroize::Zeroizing;

/// Bytes of a master key and of a data key.
pub(crate) const KEY_BYTES: usize = 32;
/// What is hashed before a key to make its id, so that the id is of no use for anything else.
const ID_CONTEXT: &[u8] = b"caisson master key id\0";
/// Bytes of the hash that are the id: enough to tell keys apart.
const ID_BYTES: usize = 8;

/// A master key. Debug output shows its id alone, and memory is wiped when it is dropped.
pub(crate) struct MasterKey {
    id: String,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl MasterKey {
    pub(crate) fn new(bytes: [u8; KEY_BYTES]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(ID_CONTEXT);
        hash.update(&*bytes);
        Self { id: hex::encode(&hash.finish().as_ref()[..ID_BYTES]), bytes }
    }

    /// 16 hexadecimal digits that tell nothing about the key.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }

    /// Reads the text of a file: 64 hexadecimal digits, with or without a line end.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0_u8; KEY_BYTES]);
        hex::decode_to_slice(text.trim_end_matches(['\r', '\n']), &mut *bytes).ok()?;
        Some(Self::new(*bytes))
    }

    /// The text of a file.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", hex::encode(*self.bytes)))
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "MasterKey({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_from_its_text_and_shows_its_id_alone() {
        let key = MasterKey::new([0xab; KEY_BYTES]);
        let read = MasterKey::parse(&key.to_text()).unwrap();
        assert_eq!((read.id(), read.bytes()), (key.id(), key.bytes()));
        assert_eq!(key.id().len(), 2 * ID_BYTES);
        assert!(!format!("{key:?}").contains("abab"), "{key:?}");
        assert_ne!(key.id(), MasterKey::new([0xac; KEY_BYTES]).id());
        for bad in ["", "\n", "zz", &"a".repeat(63), &"a".repeat(65), &format!("{}\nx", "a".repeat(64))] {
            assert!(MasterKey::parse(bad).is_none(), "{bad}");
        }
    }
}
