//! Taking live secrets out of what is about to be stored: the second line of defence, behind keeping them out of sandboxes.
//!
//! A secret is looked for as it is and in the forms in which tools write one: base64 in both alphabets and wherever it
//! begins in a longer text, percent-encoded, in hexadecimal digits, escaped as in JSON. Whatever else somebody may do to
//! hide one is not found. Pure, and the same however a text is cut into pieces.
//!
//! Whatever a redactor is given it looks for. What may be given is bounded where secrets are taken in: those of the
//! configuration by [`check`], those of a project by the store.

mod forms;
mod json;
mod live;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use secrecy::{ExposeSecret, SecretString};

pub(crate) use self::forms::forms;
use self::forms::pieces;
pub use self::live::{EARLIER, EARLIER_BYTES, GRACE_MS, Held, LiveSecrets, Origin, ProjectSecrets};

/// What stands in a secret's place.
pub const MARKER: &str = "[redacted]";
/// A shorter secret is not looked for, in bytes: it would be found where it is not meant. Configurations refuse such.
pub const SECRET_BYTES_MIN: usize = 8;
/// Most bytes of all secrets of a configuration together, which are looked for in what every project says.
pub const SECRETS_BYTES: usize = 32 * 1024;
/// Most bytes of all secrets of a project together, each counted as the store seals it: with its fields' names and with
/// escapes. The store refuses more.
pub const PROJECT_SECRETS_BYTES: usize = 128 * 1024;
/// A longer secret, such as a private key, is looked for in pieces of so many bytes.
const PIECE_BYTES: usize = 512;

/// Why a configuration's secrets cannot be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretFault {
    /// It would be found everywhere.
    #[error(
        "the secret is shorter than {SECRET_BYTES_MIN} bytes and could not be told from other text; use a longer one"
    )]
    TooShort,
    /// There are too many, or they are too long.
    #[error("the secrets are longer than {SECRETS_BYTES} bytes together; use fewer or shorter ones")]
    TooMany,
}

/// Checks that all of a configuration's secrets can be looked for.
///
/// # Errors
/// The first [`SecretFault`].
pub fn check<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Result<(), SecretFault> {
    let mut bytes = 0;
    for secret in secrets {
        bytes += secret.expose_secret().len();
        if secret.expose_secret().len() < SECRET_BYTES_MIN {
            return Err(SecretFault::TooShort);
        }
    }
    if bytes > SECRETS_BYTES { Err(SecretFault::TooMany) } else { Ok(()) }
}

/// Finds secrets and puts [`MARKER`] in their place.
#[derive(Default)]
pub struct Redactor {
    /// Finds the first [`SECRET_BYTES_MIN`] bytes of every form, so that long secrets cost no more than short ones; none
    /// without a secret.
    finder: Option<AhoCorasick>,
    /// What is looked for, sorted.
    forms: Vec<Vec<u8>>,
    longest: usize,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Redactor({} forms)", self.forms.len())
    }
}

impl Redactor {
    /// Looks for all of these secrets that have [`SECRET_BYTES_MIN`] bytes.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let secrets = secrets.into_iter().map(ExposeSecret::expose_secret);
        let long = secrets.filter(|secret| secret.len() >= SECRET_BYTES_MIN);
        // No form is shorter than its secret.
        let forms: BTreeSet<Vec<u8>> = long.flat_map(pieces).flat_map(forms).collect();
        let forms: Vec<_> = forms.into_iter().collect();
        let longest = forms.iter().map(Vec::len).max().unwrap_or(0);
        let mut heads: Vec<&[u8]> = forms.iter().filter_map(|form| form.get(..SECRET_BYTES_MIN)).collect();
        heads.dedup();
        // It fails only beyond billions of states, which the bounds of whoever gives secrets keep away.
        let finder = (!heads.is_empty()).then(|| AhoCorasick::new(&heads).ok()).flatten();
        Self { finder, forms, longest }
    }

    /// The text without secrets; borrowed if there is none in it.
    #[must_use]
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        replaced(text, self.find(text.as_bytes()))
    }

    /// As [`Redactor::text`], for the beginning of a longer text: a secret that is cut off at its end goes too.
    #[must_use]
    pub fn cut_text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let begun = self.begun(text.as_bytes(), 0);
        if text.len() - begun < SECRET_BYTES_MIN {
            return self.text(text);
        }
        let whole = text.get(..begun).unwrap_or_default();
        Cow::Owned(self.text(whole).into_owned() + MARKER)
    }

    /// Where secrets stand, in order; those that overlap are one.
    fn find(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        self.find_on(bytes, 0..0, &mut found);
        found
    }

    /// Adds to those found in the bytes until `known.end` those that end behind it; none of these begins before `known.start`.
    fn find_on(&self, bytes: &[u8], known: Range<usize>, found: &mut Vec<Range<usize>>) {
        let Some(finder) = &self.finder else { return };
        for head in finder.find_overlapping_iter(&bytes[known.start..]) {
            let start = known.start + head.start();
            let Some(length) = self.form_at(&bytes[start..]) else { continue };
            let mut range = start..start + length;
            if range.end <= known.end {
                continue;
            }
            // A longer one may begin before several that were found in the bytes until `known.end`.
            while let Some(last) = found.pop_if(|last| last.end > range.start) {
                range = range.start.min(last.start)..range.end.max(last.end);
            }
            found.push(range);
        }
    }

    /// The length of the longest form with which the bytes begin.
    fn form_at(&self, bytes: &[u8]) -> Option<usize> {
        let mut bytes = &bytes[..bytes.len().min(self.longest)];
        loop {
            let behind = self.forms.partition_point(|form| form.as_slice() <= bytes);
            // Every form that is a beginning of the bytes is one of this form as well, so of what the two have in common.
            let form = self.forms.get(behind.checked_sub(1)?)?;
            let same = form.iter().zip(bytes).take_while(|(one, other)| one == other).count();
            if same == form.len() {
                return Some(same);
            }
            bytes = &bytes[..same];
        }
    }

    /// Where the longest end of the bytes begins that may be the beginning of a secret; none does before `from`.
    fn begun(&self, bytes: &[u8], from: usize) -> usize {
        let most = self.longest.saturating_sub(1).min(bytes.len());
        let begins = |start: &usize| {
            let tail = &bytes[*start..];
            let at = self.forms.partition_point(|form| form.as_slice() < tail);
            self.forms.get(at).is_some_and(|form| form.len() > tail.len() && form.starts_with(tail))
                || self.forms.get(at + 1).is_some_and(|form| form.starts_with(tail))
        };
        (from.max(bytes.len() - most)..bytes.len()).find(begins).unwrap_or(bytes.len())
    }
}

/// Ranges in order, those that overlap as one.
fn apart(mut found: Vec<Range<usize>>) -> Vec<Range<usize>> {
    found.sort_unstable_by_key(|range| range.start);
    let mut apart: Vec<Range<usize>> = Vec::with_capacity(found.len());
    for range in found {
        match apart.last_mut() {
            Some(last) if last.end > range.start => last.end = last.end.max(range.end),
            Some(_) | None => apart.push(range),
        }
    }
    apart
}

/// The text with [`MARKER`] in place of these ranges, which are in order and apart; borrowed if there is none.
fn replaced(text: &str, found: Vec<Range<usize>>) -> Cow<'_, str> {
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut behind = 0;
    for range in found {
        // Every form begins with the first byte of a character and ends with the last one of another.
        kept.push_str(text.get(behind..range.start).unwrap_or_default());
        kept.push_str(MARKER);
        behind = range.end;
    }
    kept.push_str(text.get(behind..).unwrap_or_default());
    Cow::Owned(kept)
}

/// Takes secrets out of a text that comes in pieces, wherever it is cut.
///
/// A piece costs what it has, however much is looked for: of what came before, only what may be the beginning of a secret is
/// looked at again.
#[derive(Debug)]
pub struct Stream {
    redactor: Arc<Redactor>,
    /// The end of what came: what is not decided yet, and before that as much as a secret is long.
    window: Vec<u8>,
    /// Bytes of the window that were decided.
    decided: usize,
    /// Bytes of the window that were looked at.
    looked: usize,
    /// Where in these the longest end begins that may be the beginning of a secret.
    begun: usize,
    /// Where in these secrets stand, as far as they reach beyond what is decided.
    secrets: Vec<Range<usize>>,
    /// Whether the last decided byte was a secret's.
    inside: bool,
    hold_bytes: usize,
    found: u64,
}

impl Stream {
    /// Nothing of a secret passes: what may be the beginning of one waits for what follows.
    #[must_use]
    pub fn new(redactor: Arc<Redactor>) -> Self {
        Self::holding(redactor, 1)
    }

    /// As [`Stream::new`], but shorter beginnings than `hold_bytes` pass at once: for live text, whose last letters must
    /// not wait for a next piece that may never come.
    #[must_use]
    pub fn holding(redactor: Arc<Redactor>, hold_bytes: usize) -> Self {
        let (window, secrets) = (Vec::new(), Vec::new());
        Self {
            redactor,
            window,
            decided: 0,
            looked: 0,
            begun: 0,
            secrets,
            inside: false,
            hold_bytes,
            found: 0,
        }
    }

    /// Goes on with what is live now: a stream may be open for longer than a secret is.
    pub fn follow(&mut self, redactor: &Arc<Redactor>) {
        // Without any secret nothing would give out what waits.
        if redactor.finder.is_some() && !Arc::ptr_eq(redactor, &self.redactor) {
            self.redactor = Arc::clone(redactor);
            (self.looked, self.begun) = (0, 0);
            self.secrets.clear();
        }
    }

    /// How many secrets were found so far.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Takes a piece in; returns what is decided. At most the longest form of a secret waits.
    #[must_use]
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        if self.redactor.finder.is_none() {
            return piece.to_vec();
        }
        self.window.extend_from_slice(piece);
        self.look();
        let begun = self.window.len() - self.begun;
        let waits = if begun < self.hold_bytes { 0 } else { begun };
        // What has passed already stays so.
        self.decide((self.window.len() - waits).max(self.decided))
    }

    /// Returns what waited.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        self.look();
        self.decide(self.window.len())
    }

    /// Looks at what is new. A secret that ends in it began in it, or in what might be the beginning of one.
    fn look(&mut self) {
        self.redactor.find_on(&self.window, self.begun..self.looked, &mut self.secrets);
        self.begun = self.redactor.begun(&self.window, self.begun);
        self.looked = self.window.len();
    }

    fn decide(&mut self, until: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(until.saturating_sub(self.decided));
        let mut at = self.decided;
        for range in &self.secrets {
            let (start, end) = (range.start.max(at), range.end.min(until));
            if end <= at || start >= until {
                continue;
            }
            out.extend_from_slice(&self.window[at..start]);
            // One that goes on from before has its marker already.
            if !(self.inside && range.start < self.decided) {
                out.extend_from_slice(MARKER.as_bytes());
                self.found += 1;
            }
            at = end;
        }
        if at < until {
            out.extend_from_slice(&self.window[at..until]);
            self.inside = false;
        } else if until > self.decided {
            self.inside = true;
        }
        let past = until.saturating_sub(self.redactor.longest.saturating_sub(1));
        self.window.drain(..past);
        self.decided = until - past;
        self.looked -= past;
        self.begun = self.begun.saturating_sub(past);
        self.secrets.retain(|range| range.end > until);
        for range in &mut self.secrets {
            *range = range.start.saturating_sub(past)..range.end - past;
        }
        out
    }
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
