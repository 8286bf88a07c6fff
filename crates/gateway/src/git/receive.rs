//! The rule for pushes, and the answer to one that breaks it: pure.

use caisson_domain::checks::{Check, stands};
use serde_json::{Map, Value};

use super::pktline::{self, Command, PACKET_BYTES, Section};
use crate::bounds::REF_BYTES;

/// What our reasons begin with, so that nobody takes them for the git host's.
const OURS: &str = "caisson: ";
/// Room for a payload on a side band: the packet without its length and the band's number.
const BAND_BYTES: usize = PACKET_BYTES - 5;
/// The same for the older, small side band (gitprotocol-capabilities(5)).
const SMALL_BAND_BYTES: usize = 1000 - 5;

/// Why one ref is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Denial {
    pub(super) ref_name: String,
    /// The rule's stable name.
    pub(super) rule: &'static str,
    /// What git shows behind the ref: a reason with its remedy.
    pub(super) reason: String,
    /// What else the event tells.
    pub(super) details: Map<String, Value>,
}

impl Denial {
    pub(super) fn new(ref_name: &str, rule: &'static str, reason: impl Into<String>) -> Self {
        Self { ref_name: ref_name.to_owned(), rule, reason: reason.into(), details: Map::new() }
    }
}

/// The refs that break the rule: a push creates or updates `branch` (a full ref), nothing else, once. Empty
/// means: forward it.
pub(super) fn judge(section: &Section, branch: &str) -> Vec<Denial> {
    let deny = |command: &Command, rule, reason: String| Denial::new(&command.ref_name, rule, reason);
    let short = branch.trim_start_matches("refs/heads/");
    let mut denials: Vec<Denial> = section
        .commands
        .iter()
        .filter_map(|command| {
            let (rule, reason) = if command.ref_name != branch && stands(Check::OwnBranch) {
                ("own_branch", format!("this run may push {short} only; push HEAD:{short} instead"))
            } else if command.is_delete() && stands(Check::NoDelete) {
                ("no_delete", "a run may not delete its branch; push commits to it instead".to_owned())
            } else {
                return None;
            };
            Some(deny(command, rule, reason))
        })
        .collect();
    let whole = if section.has("push-options") {
        Some(("no_options", "push options do not pass the door; push without --push-option"))
    } else if section.commands.len() > 1 && stands(Check::OneRef) {
        Some(("one_ref", "one ref at a time passes the door; push this one alone"))
    } else {
        None
    };
    if let Some((rule, reason)) = whole {
        for command in &section.commands {
            if !denials.iter().any(|denial| denial.ref_name == command.ref_name) {
                denials.push(deny(command, rule, reason.to_owned()));
            }
        }
    }
    denials
}

/// A receive-pack's answer in the form the client asked for: every ref of the push is refused, or, without denials,
/// every one is taken.
pub(super) fn answer(section: &Section, denials: &[Denial]) -> Vec<u8> {
    let mut report = Vec::new();
    // Whatever was wrong, refs are refused as a hook would.
    pktline::write(&mut report, b"unpack ok\n");
    for command in &section.commands {
        if denials.is_empty() {
            pktline::write(&mut report, format!("ok {}\n", command.ref_name).as_bytes());
            continue;
        }
        let denial = denials.iter().find(|denial| denial.ref_name == command.ref_name);
        let reason = denial.map_or("refused with the others of this push", |denial| denial.reason.as_str());
        pktline::write(&mut report, format!("ng {} {OURS}{reason}\n", command.ref_name).as_bytes());
    }
    report.extend_from_slice(pktline::FLUSH);
    let Some(room) = band_room(section) else { return report };
    let mut out = Vec::new();
    for denial in denials {
        let name = &denial.ref_name[..denial.ref_name.floor_char_boundary(REF_BYTES.min(200))];
        band(&mut out, 2, format!("caisson: {name} refused: {}\n", denial.reason).as_bytes(), room);
    }
    if section.has("report-status") || section.has("report-status-v2") {
        band(&mut out, 1, &report, room);
    }
    out.extend_from_slice(pktline::FLUSH);
    out
}

/// A receive-pack's answer to commands that are not taken, of which a part was read; none if the client asked for none in which
/// it would be told why.
pub(super) fn answer_part(section: &Section, message: &str) -> Option<Vec<u8>> {
    let room = band_room(section)?;
    let mut out = Vec::new();
    band(&mut out, 2, format!("caisson: {message}\n").as_bytes(), room);
    if section.has("report-status") || section.has("report-status-v2") {
        let mut report = Vec::new();
        pktline::write(&mut report, format!("unpack {OURS}{message}\n").as_bytes());
        report.extend_from_slice(pktline::FLUSH);
        band(&mut out, 1, &report, room);
    }
    out.extend_from_slice(pktline::FLUSH);
    Some(out)
}

/// Most of a payload in one packet of a side band; none if the push asks for no such answer.
pub(super) fn band_room(section: &Section) -> Option<usize> {
    match (section.has("side-band-64k"), section.has("side-band")) {
        (true, _) => Some(BAND_BYTES),
        (false, true) => Some(SMALL_BAND_BYTES),
        (false, false) => None,
    }
}

/// A payload on a side band, in as many packets as it takes.
pub(super) fn band(out: &mut Vec<u8>, number: u8, payload: &[u8], room: usize) {
    for part in payload.chunks(room) {
        let mut packet = Vec::with_capacity(part.len() + 1);
        packet.push(number);
        packet.extend_from_slice(part);
        pktline::write(out, &packet);
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Report, Verdict};
    use super::*;

    const BRANCH: &str = "refs/heads/caisson/x/1";

    fn section(refs: &[(&str, &str)], capabilities: &str) -> Section {
        let old = "1".repeat(40);
        let commands = refs
            .iter()
            .map(|(ref_name, digit)| Command {
                old: old.clone(),
                new: digit.repeat(40),
                ref_name: (*ref_name).to_owned(),
            })
            .collect();
        let capabilities = capabilities.split_whitespace().map(str::to_owned).collect();
        Section { commands, capabilities }
    }

    fn rules(refs: &[(&str, &str)], capabilities: &str) -> Vec<&'static str> {
        judge(&section(refs, capabilities), BRANCH).iter().map(|denial| denial.rule).collect()
    }

    #[test]
    fn only_the_runs_own_branch_is_created_or_updated() {
        assert!(rules(&[(BRANCH, "2")], "report-status atomic").is_empty());
        assert_eq!(rules(&[("refs/heads/main", "2")], ""), ["own_branch"]);
        assert_eq!(rules(&[("refs/tags/v1", "2")], ""), ["own_branch"]);
        assert_eq!(rules(&[("refs/heads/caisson/x/10", "2")], ""), ["own_branch"]);
        assert_eq!(rules(&[(BRANCH, "0")], ""), ["no_delete"]);
        assert_eq!(rules(&[(BRANCH, "2")], "push-options"), ["no_options"]);
        assert_eq!(rules(&[(BRANCH, "2")], "push-options=1"), ["no_options"], "git takes it for the same");
        assert_eq!(rules(&[(BRANCH, "2"), ("refs/heads/main", "2")], ""), ["own_branch", "one_ref"]);
        assert_eq!(rules(&[(BRANCH, "2"), (BRANCH, "3")], ""), ["one_ref"]);
    }

    #[test]
    fn a_refusal_takes_the_form_that_was_asked_for() {
        let refs = [("refs/heads/main", "2")];
        let of = |capabilities: &str| {
            let section = section(&refs, capabilities);
            String::from_utf8(answer(&section, &judge(&section, BRANCH))).unwrap()
        };
        let plain = of("report-status");
        assert!(
            plain.starts_with("000eunpack ok\n")
                && plain.contains("ng refs/heads/main caisson: this run may push")
        );
        assert!(plain.ends_with("\n0000"));
        let banded = of("report-status side-band-64k");
        assert!(
            banded.contains("\u{2}caisson: refs/heads/main refused: ")
                && banded.contains("\u{1}000eunpack ok")
        );
        assert!(banded.ends_with("00000000"));
        assert!(!of("side-band-64k").contains("unpack"));
    }

    #[test]
    fn without_denials_every_ref_is_taken() {
        let section = section(&[(BRANCH, "2")], "report-status side-band-64k");
        let mut report = Report::of(&section);
        report.feed(&answer(&section, &[]));
        assert_eq!(report.verdict(BRANCH), Verdict::Taken);
    }

    #[test]
    fn a_long_report_is_cut_into_packets_of_the_small_band() {
        let name = format!("refs/heads/{}", "x".repeat(REF_BYTES - 11));
        let section = section(&[(&name, "2")], "report-status side-band");
        let out = answer(&section, &judge(&section, BRANCH));
        let mut reader = pktline::Reader::default();
        reader.push(&out);
        let mut packets = 0;
        while let Some(pktline::Packet::Data(data)) = reader.next().unwrap() {
            assert!(data.len() <= SMALL_BAND_BYTES + 1);
            packets += 1;
        }
        assert_eq!(packets, 3);
    }
}
