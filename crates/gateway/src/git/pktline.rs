//! Git's pkt-lines and the command section of a push: pure, and bounded.
//!
//! Sources: gitprotocol-common(5) for the framing, gitprotocol-pack(5) "Reference Update Request" for the
//! commands.

use bytes::{Buf, Bytes, BytesMut};

use crate::bounds::{COMMAND_SECTION_BYTES, COMMANDS, REF_BYTES};

/// Longest pkt-line, its four length digits included.
pub(super) const PACKET_BYTES: usize = 65520;
/// The flush packet.
pub(super) const FLUSH: &[u8] = b"0000";

/// Why the commands of a push are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PacketError {
    #[error("a pkt-line's length is not four hexadecimal digits in range")]
    Length,
    #[error(
        "its commands, with the commits before them at which the clone is cut off, are longer than \
         {COMMAND_SECTION_BYTES} bytes; push one ref alone, from a clone that is whole"
    )]
    TooLong,
    #[error("it has more than {COMMANDS} commands; push one ref alone")]
    TooManyCommands,
    #[error("the name of a ref is longer than {REF_BYTES} bytes; push to a shorter one")]
    LongRef,
    #[error("the name of a ref is not UTF-8; push to another one")]
    RefNotText,
    #[error("it is signed; push without --signed")]
    Signed,
    #[error("a line is no ref command")]
    NoCommand,
}

impl PacketError {
    /// Whether git itself writes such commands, if it is asked for them.
    pub(super) const fn is_of_git(&self) -> bool {
        match self {
            Self::TooLong | Self::TooManyCommands | Self::LongRef | Self::RefNotText | Self::Signed => true,
            Self::Length | Self::NoCommand => false,
        }
    }
}

/// One pkt-line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    /// `0000`.
    Flush,
    /// `0001` and `0002`, which only protocol version 2 has.
    Special,
    /// A payload, without the length.
    Data(Bytes),
}

/// Cuts pkt-lines out of bytes that come in pieces.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: BytesMut,
}

impl Reader {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next pkt-line, if it is there as a whole.
    pub(super) fn next(&mut self) -> Result<Option<Packet>, PacketError> {
        let Some(digits) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = length(*digits)?;
        let packet = match length {
            0 => Packet::Flush,
            1 | 2 => Packet::Special,
            3 => return Err(PacketError::Length),
            length if length > PACKET_BYTES => return Err(PacketError::Length),
            length if self.buffer.len() < length => return Ok(None),
            length => {
                let mut line = self.buffer.split_to(length);
                line.advance(4);
                return Ok(Some(Packet::Data(line.freeze())));
            }
        };
        self.buffer.advance(4);
        Ok(Some(packet))
    }

    /// Bytes that are not cut yet.
    pub(super) fn pending(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }
}

fn length(digits: [u8; 4]) -> Result<usize, PacketError> {
    digits.iter().try_fold(0, |sum, digit| {
        let value = char::from(*digit).to_digit(16).ok_or(PacketError::Length)?;
        Ok(sum * 16 + value as usize)
    })
}

/// Appends a payload as a pkt-line; what is beyond the longest line is left out.
pub(super) fn write(out: &mut Vec<u8>, payload: &[u8]) {
    let payload = &payload[..payload.len().min(PACKET_BYTES - 4)];
    out.extend_from_slice(format!("{:04x}", payload.len() + 4).as_bytes());
    out.extend_from_slice(payload);
}

/// One ref that a push wants changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) old: String,
    pub(super) new: String,
    pub(super) ref_name: String,
}

impl Command {
    /// Whether the ref is to be removed.
    pub(super) fn is_delete(&self) -> bool {
        self.new.bytes().all(|digit| digit == b'0')
    }
}

/// What comes before the pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) commands: Vec<Command>,
    /// What the client asks for, from the first command's line.
    pub(super) capabilities: Vec<String>,
}

/// Capabilities of a client that a host is told of (gitprotocol-capabilities(5)); the others ask for something that no
/// push of a run needs.
const FORWARDED: [&str; 9] = [
    "report-status",
    "report-status-v2",
    "side-band",
    "side-band-64k",
    "quiet",
    "atomic",
    "ofs-delta",
    "object-format",
    "agent",
];

impl Section {
    /// With a value or without: git takes `name=value` for the capability `name`, whether it has values or not.
    pub(super) fn has(&self, capability: &str) -> bool {
        let name = |offered: &String| offered.split('=').next() == Some(capability);
        self.capabilities.iter().any(name)
    }

    /// The section as it is forwarded: what was read, and nothing that was not.
    pub(super) fn encode(&self) -> Vec<u8> {
        let named = |capability: &&String| {
            let name = capability.split('=').next().unwrap_or_default();
            FORWARDED.contains(&name) && capability.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let capabilities: Vec<&str> = self.capabilities.iter().filter(named).map(String::as_str).collect();
        let mut out = Vec::new();
        for (number, Command { old, new, ref_name }) in self.commands.iter().enumerate() {
            let mut line = format!("{old} {new} {ref_name}");
            if number == 0 {
                line.push('\0');
                line.push_str(&capabilities.join(" "));
            }
            write(&mut out, line.as_bytes());
        }
        out.extend_from_slice(FLUSH);
        out
    }
}

/// Reads the section from bytes that come in pieces.
///
/// A repository that is shallow says so first: `shallow SP id`, for each commit whose parents it lacks. Nothing comes of these
/// lines and none is forwarded, so that a lie in one changes nothing: where a commit's parents are is asked of the host, which
/// refuses a push that builds on what it has not.
#[derive(Debug, Default)]
pub(super) struct SectionReader {
    reader: Reader,
    bytes: usize,
    /// Whether the client said what it lacks.
    shallow: bool,
    commands: Vec<Command>,
    capabilities: Vec<String>,
}

impl SectionReader {
    /// Takes a piece; answers the section and the bytes behind it as soon as its flush is there.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Option<(Section, Bytes)>, PacketError> {
        self.bytes += bytes.len();
        self.reader.push(bytes);
        loop {
            let packet = self.reader.next()?;
            if self.bytes - self.reader.pending() > COMMAND_SECTION_BYTES {
                return Err(PacketError::TooLong);
            }
            match packet {
                Some(Packet::Data(line)) => self.take(&line)?,
                Some(Packet::Special) => return Err(PacketError::NoCommand),
                // It asks for nothing: git says what it lacks before what it wants.
                Some(Packet::Flush) if self.shallow && self.commands.is_empty() => {
                    return Err(PacketError::NoCommand);
                }
                Some(Packet::Flush) => return Ok(Some(self.finish())),
                // A piece may be large, but a line that is not whole yet is not.
                None => return Ok(None),
            }
        }
    }

    /// What was read of a section that is not taken.
    pub(super) fn into_part(self) -> Section {
        Section { commands: self.commands, capabilities: self.capabilities }
    }

    fn finish(&mut self) -> (Section, Bytes) {
        let rest = std::mem::take(&mut self.reader).into_rest();
        let section = Section {
            commands: std::mem::take(&mut self.commands),
            capabilities: std::mem::take(&mut self.capabilities),
        };
        (section, rest)
    }

    fn take(&mut self, line: &[u8]) -> Result<(), PacketError> {
        let Ok(text) = std::str::from_utf8(line) else {
            let text = String::from_utf8_lossy(line);
            return Err(self.read(&text).err().unwrap_or(PacketError::RefNotText));
        };
        if self.commands.is_empty() && is_shallow(text) {
            self.shallow = true;
            return Ok(());
        }
        let (command, capabilities) = self.read(text)?;
        if self.commands.len() == COMMANDS {
            return Err(PacketError::TooManyCommands);
        }
        self.commands.push(command);
        self.capabilities.extend(capabilities.split_whitespace().map(str::to_owned));
        Ok(())
    }

    /// A command, and in the first one's line what the client asks for.
    fn read<'a>(&self, line: &'a str) -> Result<(Command, &'a str), PacketError> {
        let (command, capabilities) = match line.split_once('\0') {
            Some(("push-cert", _)) if self.commands.is_empty() => return Err(PacketError::Signed),
            Some((command, capabilities)) if self.commands.is_empty() => (command, capabilities),
            Some(_) => return Err(PacketError::NoCommand),
            None => (line.strip_suffix('\n').unwrap_or(line), ""),
        };
        Ok((parse(command)?, capabilities))
    }
}

/// `shallow SP id`, and nothing else.
fn is_shallow(line: &str) -> bool {
    line.strip_suffix('\n').unwrap_or(line).strip_prefix("shallow ").is_some_and(is_object)
}

/// `old SP new SP ref`.
fn parse(line: &str) -> Result<Command, PacketError> {
    let mut parts = line.splitn(3, ' ');
    let (Some(old), Some(new), Some(ref_name)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(PacketError::NoCommand);
    };
    let is_plain = ref_name.starts_with("refs/") && !ref_name.chars().any(|c| c.is_control() || c == ' ');
    if !is_object(old) || !is_object(new) || old.len() != new.len() || !is_plain {
        return Err(PacketError::NoCommand);
    }
    if ref_name.len() > REF_BYTES {
        return Err(PacketError::LongRef);
    }
    Ok(Command { old: old.to_owned(), new: new.to_owned(), ref_name: ref_name.to_owned() })
}

/// An object's id: SHA-1 or SHA-256.
pub(super) fn is_object(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OLD: &str = "1111111111111111111111111111111111111111";
    const NEW: &str = "2222222222222222222222222222222222222222";

    fn section(lines: &[String]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in lines {
            write(&mut bytes, line.as_bytes());
        }
        bytes.extend_from_slice(FLUSH);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Option<(Section, Bytes)>, PacketError> {
        SectionReader::default().push(bytes)
    }

    fn update(name: &str) -> String {
        format!("{OLD} {NEW} {name}")
    }

    #[test]
    fn commands_and_capabilities_are_read_and_the_pack_is_left() {
        let first = format!("{}\0 report-status side-band-64k agent=git/2", update("refs/heads/a"));
        let mut bytes = section(&[first, format!("{}\n", update("refs/heads/b"))]);
        bytes.extend_from_slice(b"PACK...");
        let (section, rest) = read(&bytes).unwrap().unwrap();
        assert_eq!(section.commands.len(), 2);
        assert_eq!(section.commands[1].ref_name, "refs/heads/b");
        assert!(section.has("side-band-64k") && !section.has("atomic"));
        assert_eq!(&rest[..], b"PACK...");
        let (empty, _) = read(FLUSH).unwrap().unwrap();
        assert!(empty.commands.is_empty());
    }

    #[test]
    fn what_is_forwarded_is_what_was_read_and_asks_for_nothing_else() {
        let capabilities = "report-status side-band-64k push-cert=x agent=git/2 session-id=1\0hidden atomic";
        let bytes = section(&[format!("{}\0 {capabilities}", update("refs/heads/a"))]);
        let (read_one, _) = read(&bytes).unwrap().unwrap();
        let text = String::from_utf8(read_one.encode()).unwrap();
        let wanted = format!("{}\0report-status side-band-64k agent=git/2 atomic", update("refs/heads/a"));
        assert_eq!(text, format!("{:04x}{wanted}0000", wanted.len() + 4));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        let zero = "0".repeat(40);
        let delete = format!("{OLD} {zero} refs/heads/a");
        assert!(read(&section(&[delete])).unwrap().unwrap().0.commands[0].is_delete());
        for line in [
            format!("shallow {OLD}"),
            format!("shallow {OLD}x"),
            format!("shallow {}", &OLD[1..]),
            format!("shallow  {OLD}"),
            format!("shallow {}", "G".repeat(40)),
            format!("shallow {OLD}\n\n"),
            format!("shallow {OLD}\0 report-status"),
            format!("shallow {OLD} {NEW}"),
            format!("Shallow {OLD}"),
            format!("unshallow {OLD}"),
            "shallow".to_owned(),
            "push-cert x".to_owned(),
            format!("{OLD} {NEW}"),
            format!("{OLD} {NEW} HEAD"),
            format!("{OLD} {NEW} refs/heads/a b"),
            format!("{OLD} {NEW} refs/heads/a\u{1b}[2J"),
            format!("{OLD} {} refs/heads/a", "2".repeat(64)),
            format!("{} {NEW} refs/heads/a", "G".repeat(40)),
            format!("{OLD} {NEW} refs/{}\u{7f}", "x".repeat(REF_BYTES)),
        ] {
            assert_eq!(read(&section(std::slice::from_ref(&line))), Err(PacketError::NoCommand), "{line}");
            let before = section(&[line.clone(), update("refs/heads/a")]);
            assert_eq!(read(&before).is_err(), line != format!("shallow {OLD}"), "{line}");
        }
        for behind in [format!("{}\0atomic", update("refs/heads/b")), "push-cert\0x".to_owned()] {
            let late = [update("refs/heads/a"), behind];
            assert_eq!(read(&section(&late)), Err(PacketError::NoCommand));
        }
        assert_eq!(read(b"0006\xff\xfe"), Err(PacketError::NoCommand));
        assert_eq!(read(b"0001"), Err(PacketError::NoCommand));
        assert_eq!(read(b"0003"), Err(PacketError::Length));
        assert_eq!(read(b"fff1"), Err(PacketError::Length));
        assert_eq!(read(b"00g0"), Err(PacketError::Length));
    }

    #[test]
    fn what_git_writes_and_is_not_taken_is_told_from_what_it_does_not_write() {
        let named = |bytes: usize| section(&[update(&format!("refs/{}", "x".repeat(bytes - 5)))]);
        assert!(read(&named(REF_BYTES)).unwrap().is_some());
        assert_eq!(read(&named(REF_BYTES + 1)), Err(PacketError::LongRef));
        let mut not_text = Vec::new();
        write(&mut not_text, &[update("refs/heads/").as_bytes(), b"\xff\0report-status"].concat());
        assert_eq!(read(&not_text), Err(PacketError::RefNotText));
        assert_eq!(read(&section(&["push-cert\0report-status".to_owned()])), Err(PacketError::Signed));
        let many = [vec![update("refs/heads/a"); COMMANDS], vec!["nonsense".to_owned()]].concat();
        assert_eq!(read(&section(&many)), Err(PacketError::NoCommand));
        let of_git = [PacketError::TooLong, PacketError::TooManyCommands, PacketError::LongRef];
        assert!(
            of_git.iter().chain(&[PacketError::RefNotText, PacketError::Signed]).all(PacketError::is_of_git)
        );
        assert!(!PacketError::Length.is_of_git() && !PacketError::NoCommand.is_of_git());
    }

    #[test]
    fn what_a_shallow_client_lacks_is_dropped_before_its_commands_and_refused_behind_them() {
        let shallow = |id: &str| format!("shallow {id}");
        let lines = [
            shallow(OLD) + "\n",
            shallow(&"a".repeat(64)),
            format!("{}\0report-status atomic", update("refs/heads/a")),
            update("refs/heads/b"),
        ];
        let (read_one, rest) = read(&[section(&lines), b"PACK".to_vec()].concat()).unwrap().unwrap();
        assert_eq!((read_one.commands.len(), &rest[..]), (2, &b"PACK"[..]));
        assert!(read_one.has("atomic"));
        let forwarded = String::from_utf8(read_one.encode()).unwrap();
        assert!(!forwarded.contains("shallow") && forwarded.contains("refs/heads/b"), "{forwarded}");
        assert_eq!(read(&section(&[update("refs/heads/a"), shallow(OLD)])), Err(PacketError::NoCommand));
        // Together with the commands they have the section's bytes.
        let of = |line: String, count: usize| {
            let mut lines = vec![line; count];
            lines.push(update("refs/heads/a"));
            section(&lines)
        };
        let (mut short, mut long) = (0, 0);
        while of(shallow(OLD), short + 1).len() <= COMMAND_SECTION_BYTES {
            short += 1;
        }
        while of(shallow(&"a".repeat(64)), long + 1).len() <= COMMAND_SECTION_BYTES {
            long += 1;
        }
        for (line, most) in [(shallow(OLD), short), (shallow(&"a".repeat(64)), long)] {
            assert!(read(&of(line.clone(), most)).unwrap().is_some(), "{line}");
            assert_eq!(read(&of(line, most + 1)), Err(PacketError::TooLong));
        }
    }

    #[test]
    fn the_section_is_bounded_in_commands_and_bytes() {
        let lines = |count: usize| vec![update("refs/heads/a"); count];
        assert!(read(&section(&lines(COMMANDS))).unwrap().is_some());
        assert_eq!(read(&section(&lines(COMMANDS + 1))), Err(PacketError::TooManyCommands));
        // One line of 32 KiB after another, filled with capabilities and then with nothing that is a command.
        let filled = |bytes: usize| {
            let head = format!("{}\0", update("refs/heads/a"));
            let name = "x".repeat(REF_BYTES - 5);
            let ref_line = update(&format!("refs/{name}"));
            let others = (COMMANDS - 1) * (ref_line.len() + 4);
            let spare = bytes - FLUSH.len() - others - head.len() - 4;
            let mut lines = vec![format!("{head}{}", "c".repeat(spare))];
            lines.extend(vec![ref_line; COMMANDS - 1]);
            section(&lines)
        };
        assert_eq!(filled(COMMAND_SECTION_BYTES).len(), COMMAND_SECTION_BYTES);
        assert!(read(&filled(COMMAND_SECTION_BYTES)).unwrap().is_some());
        assert_eq!(read(&filled(COMMAND_SECTION_BYTES + 1)), Err(PacketError::TooLong));
    }

    #[test]
    fn a_payload_beyond_the_longest_line_is_cut() {
        let mut out = Vec::new();
        write(&mut out, &vec![b'x'; PACKET_BYTES]);
        assert_eq!(out.len(), PACKET_BYTES);
        assert_eq!(&out[..4], b"fff0");
    }

    proptest! {
        #[test]
        fn malformed_input_is_an_error_and_never_panics(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'0'), Just(b'4')], 0..400),
        ) {
            let mut reader = SectionReader::default();
            for piece in bytes.chunks(7) {
                if !matches!(reader.push(piece), Ok(None)) {
                    break;
                }
            }
        }

        #[test]
        fn pieces_do_not_matter(size in 1_usize..200, count in 1_usize..COMMANDS) {
            let mut bytes = section(&vec![update("refs/heads/a"); count]);
            bytes.extend_from_slice(b"PACK");
            let whole = read(&bytes).unwrap().unwrap();
            let mut reader = SectionReader::default();
            let mut seen = None;
            let mut behind = Vec::new();
            for piece in bytes.chunks(size) {
                match &seen {
                    Some(_) => behind.extend_from_slice(piece),
                    None => if let Some((section, rest)) = reader.push(piece).unwrap() {
                        behind.extend_from_slice(&rest);
                        seen = Some(section);
                    }
                }
            }
            prop_assert_eq!(seen.unwrap(), whole.0);
            prop_assert_eq!(behind, &whole.1[..]);
        }
    }
}
