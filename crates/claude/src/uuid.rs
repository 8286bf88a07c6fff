//! The one shape of id that the CLI takes for sessions.

use std::fmt;

/// A UUID in its canonical text form, lower case.
///
/// The CLI takes no other text as a session id, and `--resume` would take other text for a search term or a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(String);

/// The text is not a UUID of 36 characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID of the form 8-4-4-4-12 hexadecimal digits")]
pub struct UuidError;

impl Uuid {
    /// Reads a UUID of any version; capital letters become small ones.
    ///
    /// # Errors
    /// [`UuidError`] for any other text.
    pub fn parse(text: &str) -> Result<Self, UuidError> {
        let fits = |(index, byte): (usize, u8)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        };
        if text.len() == 36 && text.bytes().enumerate().all(fits) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(UuidError)
        }
    }

    /// Gives the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_text_is_a_uuid() {
        let good = "0192F0C1-2345-7abc-8def-0123456789ab";
        assert_eq!(Uuid::parse(good).unwrap().to_string(), good.to_ascii_lowercase());
        for bad in [
            "",
            "0192f0c1-2345-7abc-8def-0123456789a",
            "0192f0c1-2345-7abc-8def-0123456789abc",
            "0192f0c1x2345-7abc-8def-0123456789ab",
            "0192f0c1-2345-7abc-8def-0123456789ag",
            "--dangerously-skip-permissions-12345",
            "é192f0c1-2345-7abc-8def-0123456789a",
        ] {
            assert_eq!(Uuid::parse(bad), Err(UuidError), "{bad}");
        }
    }
}
