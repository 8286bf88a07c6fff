//! Parameters of a query: what is not known is ignored, what is known must be right.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use caisson_domain::run::cut;

use super::refusal::Refusal;
use crate::problem::Faults;

/// Longest part of a value that a refusal repeats, in bytes.
const ECHO_BYTES: usize = 64;
/// The largest page number: the items before it are skipped one by one.
const PAGES: i64 = 10_000;

/// The parameters, taken one by one; of one that comes twice the last counts.
pub(super) struct Query {
    pairs: BTreeMap<String, String>,
    faults: Faults,
}

/// Which page of a list is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    /// From 1.
    pub(super) number: i64,
    /// Items of a page.
    pub(super) size: u32,
}

impl Page {
    /// Items before it.
    pub(super) fn skip(self) -> i64 {
        (self.number - 1) * i64::from(self.size)
    }

    /// How many pages so many items make.
    pub(super) fn pages(self, items: i64) -> i64 {
        let size = i64::from(self.size);
        (items + size - 1) / size
    }

    /// Whether there is another page behind it.
    pub(super) fn has_next(self, items: i64) -> bool {
        self.number < self.pages(items)
    }
}

impl Query {
    pub(super) fn of(text: &str) -> Self {
        let pairs = url::form_urlencoded::parse(text.as_bytes());
        Self { pairs: pairs.into_owned().collect(), faults: Faults::default() }
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let text = self.pairs.remove(name)?;
        if text.contains('\0') {
            self.fault(name, "invalid", "it holds a null character");
            return None;
        }
        Some(text)
    }

    /// A truth value, in all the spellings that upstream takes.
    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        let text = self.pairs.remove(name)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "on" | "yes" | "t" | "y" => Some(true),
            "false" | "0" | "off" | "no" | "f" | "n" => Some(false),
            _ => {
                self.fault(name, "bool_parsing", "Input should be a valid boolean");
                None
            }
        }
    }

    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let text = self.pairs.remove(name)?;
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let message = format!("Input should be a whole number from {} to {}", range.start(), range.end());
            self.fault(name, "out_of_range", &message);
        }
        number
    }

    /// One of a few texts.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.pairs.remove(name)?;
        let chosen = choices.iter().find(|(known, _)| *known == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let known: Vec<&str> = choices.iter().map(|(known, _)| *known).collect();
            let message =
                format!("\"{}\" is none of: {}", cut(&text, ECHO_BYTES).escape_debug(), known.join(", "));
            self.fault(name, "enum", &message);
        }
        chosen
    }

    /// `page` and `page_size`.
    pub(super) fn page(&mut self, size: u32) -> Page {
        let number = self.number("page", 1..=PAGES).unwrap_or(1);
        let given = self.number("page_size", 1..=100).and_then(|size| u32::try_from(size).ok());
        Page { number, size: given.unwrap_or(size) }
    }

    fn fault(&mut self, name: &str, code: &'static str, message: &str) {
        self.faults.add(&format!("query.{name}"), code, message);
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// [`Refusal::Fields`] with all faults.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        if self.faults.is_empty() { Ok(()) } else { Err(Refusal::body(self.faults)) }
    }

    /// Ends the taking where faults are told in a sentence, with the status 400.
    ///
    /// # Errors
    /// [`Refusal::Told`] with the first fault.
    pub(super) fn finish_plainly(self) -> Result<(), Refusal> {
        match self.faults.into_items().into_iter().next() {
            None => Ok(()),
            Some(fault) => {
                let field = fault.field.unwrap_or_default();
                let name = field.trim_start_matches("query.");
                Err(Refusal::bad_request("invalid_query", format!("Invalid {name}: {}", fault.message)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_from_one() {
        let page = |number, size| Page { number, size };
        assert_eq!((page(1, 20).skip(), page(3, 20).skip()), (0, 40));
        assert_eq!((page(1, 20).pages(0), page(1, 20).pages(20), page(1, 20).pages(21)), (0, 1, 2));
        assert!(page(1, 20).has_next(21) && !page(2, 20).has_next(21) && !page(1, 20).has_next(0));
    }
}
