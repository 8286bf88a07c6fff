//! Identifiers: newtypes over text, made of a prefix and 32 hexadecimal digits.
//!
//! The digits are a UUID version 7 (RFC 9562): 48 bits of Unix milliseconds, then random bits, so that ids of one
//! kind sort by age.

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {kind} id; it looks like {prefix}0123… with 32 hexadecimal digits")]
pub struct IdError {
    kind: &'static str,
    prefix: &'static str,
    text: String,
}

/// Number of hexadecimal digits behind the prefix of an id.
pub const ID_DIGITS: usize = 32;

/// Longest part of a refused text that an error repeats, in characters.
const ECHO_CHARS: usize = 64;

fn digits(now_ms: i64, random: [u8; 10]) -> String {
    let mut bytes = [0_u8; 16];
    let stamp = u64::try_from(now_ms).unwrap_or(0).to_be_bytes();
    bytes[..6].copy_from_slice(&stamp[2..]);
    bytes[6..].copy_from_slice(&random);
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    hex::encode(bytes)
}

/// The digits behind these; the last of all are their own successor.
fn next_digits(digits: &str) -> String {
    let number = u128::from_str_radix(digits, 16).unwrap_or(u128::MAX);
    format!("{:032x}", number.saturating_add(1))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes an id from the time (Unix ms) and random bytes, both given by the caller.
            #[must_use]
            pub fn new(now_ms: i64, random: [u8; 10]) -> Self {
                Self(format!("{}{}", $prefix, digits(now_ms, random)))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The next id, which sorts right behind this one: for what follows it within the same millisecond.
            #[must_use]
            pub fn successor(&self) -> Self {
                Self(format!("{}{}", $prefix, next_digits(&self.0[$prefix.len()..])))
            }

            /// The last eight digits, all random: short enough for people, a branch name or a title.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[self.0.len() - 8..]
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let valid = text.strip_prefix($prefix).is_some_and(|rest| {
                    rest.len() == ID_DIGITS && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                });
                if valid {
                    Ok(Self(text.to_owned()))
                } else {
                    let text = text.chars().take(ECHO_CHARS).collect();
                    Err(IdError { kind: $kind, prefix: $prefix, text })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id!(
    /// One task given to the agent.
    RunId, "a run", "run_"
);
id!(
    /// A conversation plus its workspace.
    SessionId, "a session", "ses_"
);
id!(
    /// The isolated place in which a session's agent works.
    SandboxId, "a sandbox", "sbx_"
);
id!(
    /// One server process's home: its state directory. It stays the same over restarts.
    ServerId, "a server", "srv_"
);
id!(
    /// An API key (the handle, never the secret).
    ApiKeyId, "an API key", "key_"
);
id!(
    /// A credential (the handle, never the secret).
    CredentialId, "a credential", "crd_"
);
id!(
    /// A file kept for a run.
    ArtifactId, "an artifact", "art_"
);
id!(
    /// One model call's accounting row.
    UsageId, "a usage", "use_"
);
id!(
    /// What an agent wants to do and somebody has to allow.
    ApprovalId, "an approval", "apv_"
);

/// The tenant that owns runs, credentials, workflows and budgets: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProjectId(String);

/// The project that exists from the start.
pub const DEFAULT_PROJECT: &str = "default";

impl ProjectId {
    /// The project that exists from the start.
    #[must_use]
    pub fn default_project() -> Self {
        Self(DEFAULT_PROJECT.to_owned())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ProjectId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::str::FromStr for ProjectId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name("project", text).map(Self)
    }
}

impl TryFrom<String> for ProjectId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ProjectId> for String {
    fn from(id: ProjectId) -> Self {
        id.0
    }
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a {kind} name; use 1 to {NAME_CHARS} lower-case letters, digits and hyphens, beginning with a letter or digit"
)]
pub struct NameError {
    kind: &'static str,
    text: String,
}

/// Longest name of a project or workflow, in characters.
pub const NAME_CHARS: usize = 63;

/// Checks the shape that names of projects and workflows share.
///
/// # Errors
/// [`NameError`] if the text is empty, longer than [`NAME_CHARS`] or has any other character.
pub fn check_name(kind: &'static str, text: &str) -> Result<String, NameError> {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if first && rest && text.len() <= NAME_CHARS {
        Ok(text.to_owned())
    } else {
        Err(NameError { kind, text: text.chars().take(ECHO_CHARS).collect() })
    }
}

/// A fencing number: it grows each time a run is claimed or adopted, and a write with an older one changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl std::fmt::Display for Epoch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_parse_back() {
        let old = RunId::new(1_000, [0xff; 10]);
        let new = RunId::new(1_001, [0; 10]);
        assert!(old < new);
        assert_eq!(old.as_str().parse::<RunId>().unwrap(), old);
        assert_eq!(new.short().len(), 8);
    }

    #[test]
    fn the_successor_of_an_id_comes_right_behind_it_and_is_one_as_well() {
        let id = RunId::new(1_000, [0x0f; 10]);
        let next = id.successor();
        assert!(id < next && next < id.successor().successor());
        assert_eq!(next.as_str().parse::<RunId>().unwrap(), next);
        assert!(next < RunId::new(1_001, [0; 10]), "still of its millisecond");
        let last: RunId = format!("run_{}", "f".repeat(ID_DIGITS)).parse().unwrap();
        assert_eq!(last.successor(), last, "there is none behind the last of all");
    }

    #[test]
    fn an_id_of_another_kind_is_refused_with_the_right_form() {
        let session = SessionId::new(1, [7; 10]);
        let error = session.as_str().parse::<RunId>().unwrap_err().to_string();
        assert!(error.contains("run_0123") && error.contains("is not a run id"), "{error}");
        let error = session.as_str().parse::<ApiKeyId>().unwrap_err().to_string();
        assert!(error.contains("is not an API key id"), "{error}");
        assert!("run_".parse::<RunId>().is_err());
        assert!(format!("run_{}", "A".repeat(32)).parse::<RunId>().is_err());
        assert!(format!("run_{}", "a".repeat(33)).parse::<RunId>().is_err());
    }

    #[test]
    fn names_are_bounded_at_63_characters() {
        assert!("a".repeat(NAME_CHARS).parse::<ProjectId>().is_ok());
        for bad in ["", "-a", "A", "a b", "a/b", "ä", &"a".repeat(NAME_CHARS + 1)] {
            assert!(bad.parse::<ProjectId>().is_err(), "{bad}");
        }
    }
}
