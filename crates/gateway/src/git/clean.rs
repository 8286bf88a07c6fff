//! Taking live secrets out of a git host's answer to a push while it passes: its packets are taken apart and made anew, so
//! that a secret that lies over the border of two is found as well. Pure, and bounded by one packet of each kind.
//!
//! Source: gitprotocol-pack(5) "Report Status" and gitprotocol-capabilities(5) "side-band".

use std::sync::Arc;

use caisson_domain::redact::{Redactor, Stream};

use super::pktline::{self, FLUSH, Packet, Reader, Section};
use super::receive::{band, band_room};

/// Number of the side band that has the report.
const REPORT: u8 = 1;
/// Number of the side band that has words for people.
const PROGRESS: u8 = 2;

/// Makes the answer anew, piece by piece.
pub(super) struct Clean {
    outer: Lines,
    bands: Option<Bands>,
    redactor: Arc<Redactor>,
}

/// What an answer on side bands carries.
struct Bands {
    /// Most of a packet's payload.
    room: usize,
    report: Lines,
    progress: Stream,
}

impl Clean {
    /// For the answer to this push.
    pub(super) fn of(section: &Section, redactor: &Arc<Redactor>) -> Self {
        let bands = band_room(section).map(|room| Bands {
            room,
            report: Lines::default(),
            progress: Stream::new(Arc::clone(redactor)),
        });
        Self { outer: Lines::default(), bands, redactor: Arc::clone(redactor) }
    }

    /// Takes a piece of the answer in; returns what can be passed on.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Self { outer, bands, redactor } = self;
        let mut out = Vec::new();
        outer.push(redactor, bytes, &mut out, |packet, out| match bands {
            Some(bands) => bands.take(redactor, packet, out),
            None => line(redactor, packet, out),
        });
        out
    }

    /// Returns what waited: of a whole answer nothing does.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(bands) = &mut self.bands {
            bands.finish(&self.redactor, &mut out);
        }
        self.outer.finish(&self.redactor, &mut out);
        out
    }
}

impl Bands {
    fn take(&mut self, redactor: &Arc<Redactor>, packet: &Packet, out: &mut Vec<u8>) {
        let data = match packet {
            Packet::Data(data) => data,
            Packet::Flush => {
                self.finish(redactor, out);
                return out.extend_from_slice(FLUSH);
            }
            Packet::Special => return,
        };
        let (number, clean) = match data.split_first() {
            // Says only that the host is still at work.
            None | Some((_, [])) => return pktline::write(out, data),
            Some((&REPORT, payload)) => {
                let mut clean = Vec::new();
                let each = |packet: &Packet, out: &mut Vec<u8>| line(redactor, packet, out);
                self.report.push(redactor, payload, &mut clean, each);
                (REPORT, clean)
            }
            Some((&PROGRESS, payload)) => (PROGRESS, self.progress.push(payload)),
            // The host's last words.
            Some((&number, payload)) => (number, without(redactor, payload)),
        };
        band(out, number, &clean, self.room);
    }

    fn finish(&mut self, redactor: &Arc<Redactor>, out: &mut Vec<u8>) {
        band(out, PROGRESS, &self.progress.finish(), self.room);
        let mut clean = Vec::new();
        self.report.finish(redactor, &mut clean);
        band(out, REPORT, &clean, self.room);
    }
}

/// One line of a report.
fn line(redactor: &Arc<Redactor>, packet: &Packet, out: &mut Vec<u8>) {
    match packet {
        Packet::Data(data) => pktline::write(out, &without(redactor, data)),
        Packet::Flush => out.extend_from_slice(FLUSH),
        Packet::Special => {}
    }
}

fn without(redactor: &Arc<Redactor>, bytes: &[u8]) -> Vec<u8> {
    let mut stream = Stream::new(Arc::clone(redactor));
    let mut clean = stream.push(bytes);
    clean.extend(stream.finish());
    clean
}

/// pkt-lines as long as they are some.
enum Lines {
    Packets(Reader),
    /// They are none, and their bytes pass as a text does.
    Bytes(Stream),
}

impl Default for Lines {
    fn default() -> Self {
        Self::Packets(Reader::default())
    }
}

impl Lines {
    fn push<F: FnMut(&Packet, &mut Vec<u8>)>(
        &mut self,
        redactor: &Arc<Redactor>,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut each: F,
    ) {
        let rest = match self {
            Self::Bytes(stream) => return out.extend(stream.push(bytes)),
            Self::Packets(reader) => {
                reader.push(bytes);
                loop {
                    match reader.next() {
                        Ok(Some(packet)) => each(&packet, out),
                        Ok(None) => return,
                        Err(_) => break std::mem::take(reader).into_rest(),
                    }
                }
            }
        };
        let mut stream = Stream::new(Arc::clone(redactor));
        out.extend(stream.push(&rest));
        *self = Self::Bytes(stream);
    }

    fn finish(&mut self, redactor: &Arc<Redactor>, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(stream) => out.extend(stream.finish()),
            Self::Packets(reader) => out.extend(without(redactor, &std::mem::take(reader).into_rest())),
        }
    }
}

#[cfg(test)]
mod tests {
    use caisson_domain::redact::MARKER;
    use secrecy::SecretString;

    use super::super::report::{Report, Verdict};
    use super::*;

    const TOKEN: &str = "ghp_canaryTokenOfTheHost0123";
    const REF: &str = "refs/heads/x";

    fn section(capabilities: &[&str]) -> Section {
        let capabilities = capabilities.iter().map(|text| (*text).to_owned()).collect();
        Section { commands: Vec::new(), capabilities }
    }

    fn cleaned(section: &Section, answer: &[u8], size: usize) -> Vec<u8> {
        let redactor = Arc::new(Redactor::new([&SecretString::from(TOKEN)]));
        let mut clean = Clean::of(section, &redactor);
        let mut out: Vec<u8> = answer.chunks(size).flat_map(|piece| clean.push(piece)).collect();
        out.extend(clean.finish());
        out
    }

    fn report(words: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for line in ["unpack ok\n".to_owned(), format!("ng {REF} {words}\n")] {
            pktline::write(&mut out, line.as_bytes());
        }
        out.extend_from_slice(FLUSH);
        out
    }

    /// The report on the first band in small parts, and on the second one words between them.
    fn banded(report: &[u8], words: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut words = words.as_bytes().chunks(11);
        for part in report.chunks(7) {
            if let Some(said) = words.next() {
                pktline::write(&mut out, &[&[PROGRESS], said].concat());
            }
            pktline::write(&mut out, &[&[REPORT], part].concat());
        }
        for said in words {
            pktline::write(&mut out, &[&[PROGRESS], said].concat());
        }
        out.extend_from_slice(FLUSH);
        out
    }

    /// The verdict on the ref, and what the second band has.
    fn read(section: &Section, answer: &[u8]) -> (Verdict, String) {
        let (mut report, mut reader) = (Report::of(section), Reader::default());
        report.feed(answer);
        reader.push(answer);
        let mut said = Vec::new();
        while let Some(packet) = reader.next().unwrap() {
            if let Packet::Data(data) = packet
                && data.first() == Some(&PROGRESS)
            {
                said.extend_from_slice(&data[1..]);
            }
        }
        assert_eq!(reader.pending(), 0);
        (report.verdict(REF), String::from_utf8(said).unwrap())
    }

    #[test]
    fn a_secret_is_taken_out_of_every_part_of_an_answer_however_it_is_cut() {
        let said = format!("no {TOKEN}, {}, for ever", hex::encode(TOKEN));
        let wanted = format!("no {MARKER}, {MARKER}, for ever");
        let refused = Verdict::Refused(wanted.clone());
        for band in ["side-band-64k", "side-band"] {
            let section = section(&["report-status", band]);
            let answer = banded(&report(&said), &said);
            for size in [1, 7, 1000] {
                let clean = cleaned(&section, &answer, size);
                assert_eq!(read(&section, &clean), (refused.clone(), wanted.clone()), "{size}");
            }
        }
        let plain = section(&["report-status"]);
        assert_eq!(read(&plain, &cleaned(&plain, &report(&said), 9)).0, refused);
    }

    #[test]
    fn an_answer_without_a_secret_says_the_same() {
        let section = section(&["report-status", "side-band-64k"]);
        let mut answer = b"0005\x01".to_vec();
        answer.extend(banded(&report("no, git"), "counting objects: 100% (ghp_c"));
        let clean = cleaned(&section, &answer, 5);
        assert!(clean.starts_with(b"0005\x01"), "a sign of life passes");
        assert_eq!(read(&section, &clean), read(&section, &answer));
        assert_eq!(cleaned(&self::section(&[]), &report("no"), 3), report("no"));
    }

    #[test]
    fn what_is_no_answer_passes_without_the_secret_as_well() {
        for capabilities in [&["side-band-64k"][..], &[]] {
            let section = section(capabilities);
            let page = format!("<html>{TOKEN}</html>");
            assert_eq!(cleaned(&section, page.as_bytes(), 4), format!("<html>{MARKER}</html>").as_bytes());
            // Cut off in the middle of a packet.
            let mut cut = Vec::new();
            pktline::write(&mut cut, format!("\x02words {TOKEN} and more").as_bytes());
            let clean = cleaned(&section, &cut[..cut.len() - 3], 6);
            assert!(String::from_utf8_lossy(&clean).contains(&format!("words {MARKER} and")), "{clean:?}");
        }
        let section = section(&["side-band-64k"]);
        let mut answer = Vec::new();
        pktline::write(&mut answer, format!("\x01no line {TOKEN}").as_bytes());
        pktline::write(&mut answer, format!("\x03last {TOKEN}").as_bytes());
        answer.extend_from_slice(FLUSH);
        let clean = String::from_utf8(cleaned(&section, &answer, 6)).unwrap();
        assert!(!clean.contains("canary") && clean.matches(MARKER).count() == 2, "{clean}");
    }
}
