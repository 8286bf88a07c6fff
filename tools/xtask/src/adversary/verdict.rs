//! What came of an attempt; pure.

use std::fmt;

use super::table::Attempt;
use super::witness::Witness;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It got through, and how it or a witness told so.
    Through(String),
    /// It did not.
    Refused {
        /// The error, as `errno` names it, or a word of the attempt's own.
        error: String,
        /// What the system said.
        said: String,
    },
}

/// What a verdict says about the walls that were to stop an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// They did not.
    Through,
    /// They did.
    Refused,
    /// Something else did.
    Inconclusive,
}

impl Judgement {
    /// In the report.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Through => "THROUGH",
            Self::Refused => "refused",
            Self::Inconclusive => "UNCLEAR",
        }
    }
}

impl Verdict {
    /// Reads the line that an attempt printed, anywhere in a text.
    pub(crate) fn read(name: &str, text: &str) -> Option<Self> {
        let begin = format!("attempt {name} ");
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&begin))?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "through" => Some(Self::Through(rest.to_owned())),
            "refused" => {
                let (error, said) = rest.split_once(' ').unwrap_or((rest, ""));
                (!error.is_empty()).then(|| Self::Refused { error: error.to_owned(), said: said.to_owned() })
            }
            _ => None,
        }
    }

    /// What a witness says counts for more than what the attempt says, which knows only that its packet was taken.
    pub(crate) fn witnessed(self, attempt: &Attempt, witness: &Witness, token: &str) -> Self {
        if !attempt.has_witness() {
            return self;
        }
        self.heard(witness, token)
    }

    /// The same of an attempt that has a witness.
    pub(crate) fn heard(self, witness: &Witness, token: &str) -> Self {
        if witness.heard(token) {
            return Self::Through("it was heard outside".to_owned());
        }
        self.unless_seen("UNHEARD")
    }

    /// What is left of the attempt's own word when whoever was to see it sees nothing: a refusal as it is, and if it took itself
    /// for through, this one.
    pub(crate) fn unless_seen(self, error: &str) -> Self {
        match self {
            Self::Through(said) => Self::Refused { error: error.to_owned(), said },
            refused @ Self::Refused { .. } => refused,
        }
    }

    /// Whether it got through.
    pub(crate) fn is_through(&self) -> bool {
        matches!(self, Self::Through(_))
    }

    /// What it says about walls that refuse by these errors.
    pub(crate) fn judge(&self, refusals: &[&str]) -> Judgement {
        match self {
            Self::Through(_) => Judgement::Through,
            Self::Refused { error, .. } if refusals.contains(&error.as_str()) => Judgement::Refused,
            Self::Refused { .. } => Judgement::Inconclusive,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Through(text) if text.is_empty() => out.write_str("it says no more"),
            Self::Through(text) => out.write_str(text),
            Self::Refused { error, said } => write!(out, "{error} {said}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(error: &str, said: &str) -> Verdict {
        Verdict::Refused { error: error.to_owned(), said: said.to_owned() }
    }

    #[test]
    fn the_line_of_an_attempt_is_found_and_no_other() {
        let text = "noise\nattempt a.b refused EPERM [Errno 1] no\nattempt a.bc through yes\n";
        assert_eq!(Verdict::read("a.b", text), Some(refused("EPERM", "[Errno 1] no")));
        assert_eq!(Verdict::read("a.bc", text), Some(Verdict::Through("yes".to_owned())));
        assert_eq!(Verdict::read("a", text), None);
        assert_eq!(Verdict::read("a.b", "attempt a.b maybe"), None);
        assert_eq!(Verdict::read("a.b", "attempt a.b refused"), None, "without an error nothing is told");
    }

    #[test]
    fn only_the_errors_of_a_wall_say_that_it_stopped_the_attempt() {
        assert_eq!(refused("EROFS", "").judge(&["EROFS"]), Judgement::Refused);
        assert_eq!(refused("EACCES", "").judge(&["EROFS"]), Judgement::Inconclusive);
        assert_eq!(Verdict::Through(String::new()).judge(&["EROFS"]), Judgement::Through);
    }

    #[test]
    fn what_nobody_sees_is_no_success_whatever_the_attempt_says_of_itself() {
        let through = Verdict::Through("answered 200".to_owned());
        assert_eq!(through.unless_seen("UNSEEN"), refused("UNSEEN", "answered 200"));
        assert_eq!(refused("HTTP409", "no").unless_seen("UNSEEN"), refused("HTTP409", "no"));
    }
}
