//! The git host's report on a push, read while it passes: pure and bounded. It is read behind [`super::clean`], since
//! what is cut here could be a secret's beginning, and is recorded.
//!
//! Source: gitprotocol-pack(5) "Report Status" and gitprotocol-capabilities(5) "side-band".

use super::pktline::{Packet, Reader, Section, is_object};
use crate::bounds::{ADVERTISEMENT_BYTES, REPORT_BYTES};

/// Most of a host's message that is kept, in bytes.
const MESSAGE_BYTES: usize = 1000;

/// What the host said about one ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Taken,
    Refused(String),
    /// It did not say.
    Unknown,
    /// Its answer did not arrive, or not as a whole: it may still be at work.
    Unheard,
}

/// Reads the report.
#[derive(Debug)]
pub(super) struct Report {
    outer: Reader,
    inner: Option<Reader>,
    unpack: Option<String>,
    refs: Vec<(String, Verdict)>,
    bytes: usize,
    /// Not what it should be, or longer than its bound: what follows is not read.
    broken: bool,
}

impl Report {
    /// For the answer to this push.
    pub(super) fn of(section: &Section) -> Self {
        let banded = section.has("side-band-64k") || section.has("side-band");
        Self {
            outer: Reader::default(),
            inner: banded.then(Reader::default),
            unpack: None,
            refs: Vec::new(),
            bytes: 0,
            broken: false,
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        self.outer.push(bytes);
        if self.read().is_none() {
            self.broken = true;
        }
    }

    fn read(&mut self) -> Option<()> {
        while let Some(packet) = self.outer.next().ok()? {
            let Packet::Data(data) = packet else { continue };
            match &mut self.inner {
                None => {
                    self.bytes += data.len();
                    self.line(&data);
                }
                Some(inner) => {
                    if let Some((1, payload)) = data.split_first() {
                        self.bytes += payload.len();
                        inner.push(payload);
                    }
                    // At once: what is damaged behind it takes nothing back.
                    self.lines()?;
                }
            }
            if self.bytes > REPORT_BYTES {
                return None;
            }
        }
        Some(())
    }

    /// Reads the whole lines that side-band has brought.
    fn lines(&mut self) -> Option<()> {
        while let Some(packet) = self.inner.as_mut()?.next().ok()? {
            if let Packet::Data(line) = packet {
                self.line(&line);
            }
        }
        Some(())
    }

    fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches('\n');
        if let Some(said) = text.strip_prefix("unpack ") {
            self.unpack = Some(message(said));
        } else if let Some(name) = text.strip_prefix("ok ") {
            self.refs.push((name.to_owned(), Verdict::Taken));
        } else if let Some(rest) = text.strip_prefix("ng ") {
            let (name, said) = rest.split_once(' ').unwrap_or((rest, "no reason given"));
            self.refs.push((name.to_owned(), Verdict::Refused(message(said))));
        }
    }

    /// What became of the ref.
    pub(super) fn verdict(&self, ref_name: &str) -> Verdict {
        let said = self.refs.iter().find(|(name, _)| name == ref_name).map(|(_, verdict)| verdict);
        match (self.unpack.as_deref(), said) {
            (Some("ok"), Some(verdict)) => verdict.clone(),
            (_, Some(Verdict::Refused(said))) => Verdict::Refused(said.clone()),
            (Some(fault), _) if fault != "ok" => Verdict::Refused(format!("unpacking failed: {fault}")),
            (_, _) => Verdict::Unknown,
        }
    }
}

fn message(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    caisson_domain::run::cut(&plain, MESSAGE_BYTES).to_owned()
}

/// Looks for a ref in the list that a receive-pack begins with.
#[derive(Debug)]
pub(super) struct RefSearch<'a> {
    reader: Reader,
    ref_name: &'a str,
    wanted: &'a str,
    bytes: usize,
    found: Option<String>,
}

impl<'a> RefSearch<'a> {
    pub(super) fn new(ref_name: &'a str, wanted: &'a str) -> Self {
        Self { reader: Reader::default(), ref_name, wanted, bytes: 0, found: None }
    }

    /// Takes a piece of the list; `false` means that reading on is no use.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        self.bytes += bytes.len();
        self.reader.push(bytes);
        while let Ok(Some(packet)) = self.reader.next() {
            let Packet::Data(line) = packet else { continue };
            let text = String::from_utf8_lossy(&line);
            let entry = text.split(['\0', '\n']).next().unwrap_or_default();
            if let Some((object, name)) = entry.split_once(' ')
                && name == self.ref_name
                && is_object(object)
            {
                self.found = Some(object.to_owned());
            }
        }
        self.found.is_none() && self.bytes <= ADVERTISEMENT_BYTES
    }

    /// Whether the ref is where the push wanted it.
    pub(super) fn is_there(&self) -> bool {
        self.found.as_deref() == Some(self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pktline;
    use super::*;

    const REF: &str = "refs/heads/x";

    fn section(capabilities: &[&str]) -> Section {
        let capabilities = capabilities.iter().map(|text| (*text).to_owned()).collect();
        Section { commands: Vec::new(), capabilities }
    }

    fn lines(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            pktline::write(&mut out, line.as_bytes());
        }
        out.extend_from_slice(pktline::FLUSH);
        out
    }

    /// The report on side band 1 in pieces of `size`, with progress between them.
    fn banded(report: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for part in report.chunks(size) {
            pktline::write(&mut out, b"\x02remote says hello\n");
            pktline::write(&mut out, &[b"\x01", part].concat());
        }
        out.extend_from_slice(pktline::FLUSH);
        out
    }

    #[test]
    fn a_verdict_is_read_with_and_without_side_band_however_it_is_cut() {
        let report = lines(&[
            "unpack ok\n",
            "ok refs/heads/x\n",
            "option refname y\n",
            "ng refs/heads/y hook said no\n",
        ]);
        let mut plain = Report::of(&section(&["report-status"]));
        plain.feed(&report);
        assert_eq!(plain.verdict(REF), Verdict::Taken);
        for size in [1, 7, 1000] {
            let mut report_reader = Report::of(&section(&["report-status", "side-band-64k"]));
            for piece in banded(&report, size).chunks(3) {
                report_reader.feed(piece);
            }
            assert_eq!(report_reader.verdict(REF), Verdict::Taken);
            assert_eq!(report_reader.verdict("refs/heads/y"), Verdict::Refused("hook said no".to_owned()));
            assert_eq!(report_reader.verdict("refs/heads/z"), Verdict::Unknown);
        }
    }

    #[test]
    fn what_was_not_said_is_unknown() {
        let of = |bytes: &[u8]| {
            let mut report = Report::of(&section(&[]));
            report.feed(bytes);
            report.verdict(REF)
        };
        assert_eq!(of(b""), Verdict::Unknown);
        assert_eq!(of(b"not a pkt-line"), Verdict::Unknown);
        assert_eq!(of(&lines(&["ok refs/heads/x\n"])), Verdict::Unknown);
        assert_eq!(of(&lines(&["unpack ok\n"])), Verdict::Unknown);
        let failed = of(&lines(&["unpack index-pack failed\n"]));
        assert_eq!(failed, Verdict::Refused("unpacking failed: index-pack failed".to_owned()));
    }

    #[test]
    fn a_report_is_read_up_to_its_bound() {
        let of = |fill: usize| {
            let filler = "f".repeat(fill);
            let mut report = Report::of(&section(&[]));
            report.feed(&lines(&["unpack ok\n", "ok refs/heads/x\n", &filler]));
            report.feed(&lines(&["ng refs/heads/y late\n"]));
            report.verdict("refs/heads/y")
        };
        let used = "unpack ok\n".len() + "ok refs/heads/x\n".len() + "ng refs/heads/y late\n".len();
        assert!(matches!(of(65_000), Verdict::Refused(_)));
        let mut report = Report::of(&section(&[]));
        report.feed(&lines(&[&"f".repeat(60_000), &"f".repeat(REPORT_BYTES - 60_000 - used + 1)]));
        report.feed(&lines(&["unpack ok\n", "ok refs/heads/x\n"]));
        report.feed(&lines(&["ng refs/heads/y late\n"]));
        report.feed(&lines(&["ng refs/heads/z later\n"]));
        assert!(matches!(report.verdict("refs/heads/y"), Verdict::Refused(_)));
        assert_eq!(report.verdict("refs/heads/z"), Verdict::Unknown);
    }

    #[test]
    fn a_ref_is_found_in_the_hosts_list() {
        let new = "2".repeat(40);
        let list = |object: &str| {
            let mut out = lines(&["# service=git-receive-pack\n"]);
            let first = format!("{} refs/heads/a\0report-status\n", "3".repeat(40));
            out.extend(lines(&[&first, &format!("{object} {REF}\n")]));
            out
        };
        let mut search = RefSearch::new(REF, &new);
        let there = list(&new);
        let (head, tail) = there.split_at(90);
        assert!(search.feed(head) && !search.is_there());
        assert!(!search.feed(tail) && search.is_there());
        let mut search = RefSearch::new(REF, &new);
        assert!(!search.feed(&list(&"4".repeat(40))) && !search.is_there());
        let mut search = RefSearch::new(REF, &new);
        assert!(search.feed(&vec![b'z'; ADVERTISEMENT_BYTES]));
        assert!(!search.feed(b"z"));
    }
}
