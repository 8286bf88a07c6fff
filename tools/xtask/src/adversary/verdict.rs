//! What came of an attempt; pure.

use std::fmt;

use super::table::{Attempt, Shows};
use super::witness::Witness;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It got through, and how it or a witness told so.
    Through(String),
    /// It did not, and what the system said.
    Refused(String),
}

impl Verdict {
    /// Reads the line that an attempt printed, anywhere in a text.
    pub(crate) fn read(name: &str, text: &str) -> Option<Self> {
        let begin = format!("attempt {name} ");
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&begin))?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "through" => Some(Self::Through(rest.to_owned())),
            "refused" => Some(Self::Refused(rest.to_owned())),
            _ => None,
        }
    }

    /// What a witness says counts for more than what the attempt says, which knows only that its packet was taken.
    pub(crate) fn witnessed(self, attempt: &Attempt, witness: &Witness, token: &str) -> Self {
        if !attempt.has_witness() {
            return self;
        }
        match self {
            _ if witness.heard(token) => Self::Through("it was heard outside".to_owned()),
            Self::Through(said) => Self::Refused(format!("{said}, and nobody heard it")),
            said @ Self::Refused(_) => said,
        }
    }

    /// Whether it got through.
    pub(crate) fn is_through(&self) -> bool {
        matches!(self, Self::Through(_))
    }

    /// Whether a control with this verdict shows that the attempt is a real one, which ended as `inside` in a sandbox.
    pub(crate) fn shows(&self, shows: Shows, inside: &Self) -> bool {
        match shows {
            Shows::Through | Shows::Having(_) => self.is_through(),
            Shows::OtherWords => self.is_through() || self != inside,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Through(text) | Self::Refused(text)) = self;
        out.write_str(if text.is_empty() { "it says no more" } else { text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_an_attempt_is_found_and_no_other() {
        let text = "noise\nattempt a.b refused OSError [Errno 1] no\nattempt a.bc through yes\n";
        assert_eq!(Verdict::read("a.b", text), Some(Verdict::Refused("OSError [Errno 1] no".to_owned())));
        assert_eq!(Verdict::read("a.bc", text), Some(Verdict::Through("yes".to_owned())));
        assert_eq!(Verdict::read("a", text), None);
        assert_eq!(Verdict::read("a.b", "attempt a.b maybe"), None);
    }

    #[test]
    fn a_control_proves_something_only_if_it_ends_otherwise() {
        let refused = |text: &str| Verdict::Refused(text.to_owned());
        let through = Verdict::Through(String::new());
        assert!(
            through.shows(Shows::Through, &refused("1")) && through.shows(Shows::OtherWords, &refused("1"))
        );
        assert!(!refused("2").shows(Shows::Through, &refused("1")));
        assert!(refused("2").shows(Shows::OtherWords, &refused("1")));
        assert!(!refused("1").shows(Shows::OtherWords, &refused("1")));
    }
}
