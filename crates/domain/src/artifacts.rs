//! A directory of artifacts that several servers share.

use std::path::{Path, PathBuf};

use crate::id::ServerId;

/// The file in it that tells it from others: whoever finds the same id has the same directory.
const ID_FILE: &str = "artifacts_id";
/// Digits of the id.
const ID_DIGITS: usize = 32;

/// A directory of artifacts that several servers share, as one volume that each of them has mounted. Below it each server has a
/// directory of its own by its id, which it alone writes, and all of them read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedArtifacts {
    /// Where it is here.
    pub directory: PathBuf,
    /// What tells it from others, as [`SharedArtifacts::parse_id`] has it.
    pub id: String,
}

impl SharedArtifacts {
    /// The file that holds the id of a shared directory.
    #[must_use]
    pub fn id_file(directory: &Path) -> PathBuf {
        directory.join(ID_FILE)
    }

    /// The id in the text of that file; none if that is none.
    #[must_use]
    pub fn parse_id(text: &str) -> Option<&str> {
        let id = text.trim();
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (id.len() == ID_DIGITS && id.bytes().all(is_digit)).then_some(id)
    }

    /// Where a server keeps what its runs leave.
    #[must_use]
    pub fn of(&self, server: &ServerId) -> PathBuf {
        self.directory.join(server.as_str())
    }

    /// Whether what stands in the id's file is this directory's: else something else is mounted there, or nothing.
    #[must_use]
    pub fn is_named(&self, text: &str) -> bool {
        Self::parse_id(text) == Some(self.id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_32_hexadecimal_digits() {
        let id = "0123456789abcdef".repeat(2);
        assert_eq!(SharedArtifacts::parse_id(&format!("{id}\n")), Some(id.as_str()));
        for bad in ["", "x", &id[1..], &format!("{id}0"), &id.to_uppercase(), &id.replace('a', "/")] {
            assert_eq!(SharedArtifacts::parse_id(bad), None, "{bad}");
        }
        let shared = SharedArtifacts { directory: "/shared".into(), id: id.clone() };
        assert!(shared.is_named(&id) && !shared.is_named(&id.replace('0', "1")) && !shared.is_named(""));
        let server = ServerId::new(1, [1; 10]);
        assert_eq!(shared.of(&server), Path::new("/shared").join(server.as_str()));
    }
}
