//! What must hold for any bytes of git's.

use super::pktline::{Section, SectionReader};
use super::report::Report;
use crate::fuzz::cut;

fn section(bytes: &[u8], size: usize) -> Option<(Section, Vec<u8>)> {
    let mut reader = SectionReader::default();
    let mut pieces = bytes.chunks(size);
    while let Some(piece) = pieces.next() {
        if let Some((section, rest)) = reader.push(piece).ok()? {
            return Some((section, [rest.as_ref(), &pieces.collect::<Vec<_>>().concat()].concat()));
        }
    }
    None
}

fn asking_for(capability: &str) -> Section {
    Section { commands: Vec::new(), capabilities: vec![capability.to_owned()] }
}

/// The commands of a push and what is behind them, whatever the pieces in which they come; and what is forwarded says the same.
///
/// # Panics
/// A find.
pub fn packets(data: &[u8]) {
    let Some((size, bytes)) = cut(data) else { return };
    let whole = section(bytes, bytes.len().max(1));
    assert_eq!(section(bytes, size), whole);
    if let Some((read, rest)) = whole {
        assert!(bytes.ends_with(&rest));
        let forwarded = read.encode();
        let again = section(&forwarded, forwarded.len());
        assert_eq!(again.map(|(again, rest)| (again.commands, rest)), Some((read.commands, Vec::new())));
    }
}

/// A git host's report on a push, with and without side-band.
///
/// # Panics
/// A find.
pub fn push_report(data: &[u8]) {
    let Some((size, bytes)) = cut(data) else { return };
    for capability in ["report-status", "side-band-64k"] {
        let asked = asking_for(capability);
        let verdict = |size: usize| {
            let mut report = Report::of(&asked);
            bytes.chunks(size).for_each(|piece| report.feed(piece));
            report.verdict("refs/heads/x")
        };
        assert_eq!(verdict(size), verdict(bytes.len().max(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_a_push() {
        let seed = include_bytes!("../../../../fuzz/seeds/packets/update");
        assert_eq!(section(&seed[1..], 7).unwrap().0.commands.len(), 1);
    }
}
