//! Attachments: images and files that an agent is given with a text.

use serde::{Deserialize, Serialize};

use crate::limits::API_BODY_BYTES;
use crate::run::text_enum;

/// Attachments of one run, or of one input.
pub const ATTACHMENTS: usize = 10;
/// One attachment, in bytes (8 MiB).
pub const ATTACHMENT_BYTES: usize = 8 * 1024 * 1024;
/// The attachments of one run, or of one input, together, in bytes (12 MiB).
pub const ATTACHMENTS_BYTES: usize = 12 * 1024 * 1024;
/// The attachments of inputs that are not yet delivered to a run, together, in bytes: the shim holds what waits in memory.
pub const PENDING_ATTACHMENTS_BYTES: i64 = 16 * 1024 * 1024;
/// The attachments of a run with all its inputs, together, in bytes (48 MiB).
pub const RUN_ATTACHMENTS_BYTES: i64 = 48 * 1024 * 1024;
/// The attachments of all of a project's sessions, together, in bytes (2 GiB): they are in the database.
pub const PROJECT_ATTACHMENTS_BYTES: i64 = 2 * 1024 * 1024 * 1024;
/// Longest name of an attachment, in bytes of UTF-8.
pub const ATTACHMENT_NAME_BYTES: usize = 128;
/// Longest side of an image, in pixels: the model API takes no larger one. Claude Code 2.1.330 makes smaller by itself what is larger
/// than 2000 pixels or about 500 kB, and passes on as it is what is not.
pub const IMAGE_SIDE_PX: u32 = 8_000;
/// Largest JSON body of a request that may carry attachments, in bytes (21 MiB): what any other may have, and
/// [`ATTACHMENTS_BYTES`] in base64, which is a third more, with room for names.
pub const ATTACHMENT_BODY_BYTES: usize = API_BODY_BYTES + ATTACHMENTS_BYTES / 3 * 4 + 1024 * 1024;

text_enum! {
    /// How an attachment reaches the agent.
    AttachmentKind, "attachment kind" {
        /// As an image of the message.
        Image = "image",
        /// As a file in the sandbox, outside the workspace, which the message names.
        File = "file",
    }
}

/// What is known of an attachment, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its number in the run, from 0; those of the run's inputs are counted with it.
    pub number: i64,
    /// Its name, for which [`check_name`] holds.
    pub name: String,
    /// How it reaches the agent.
    pub kind: AttachmentKind,
    /// Of an image, what its bytes are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Its size, in bytes.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
}

impl Attachment {
    /// Whether another one is the same but for its number.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        let of = |it: &Self| Self { number: 0, ..it.clone() };
        of(self) == of(other)
    }
}

/// What is wrong with the name of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no plain file name: use 1 to {ATTACHMENT_NAME_BYTES} bytes without slash, backslash, control or invisible characters and \
     without space at either end, other than \".\" and \"..\""
)]
pub struct NameError;

/// Checks that a name is that of a file and of no path, and shows itself as it is.
///
/// # Errors
/// [`NameError`] if it is not.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let fits = (1..=ATTACHMENT_NAME_BYTES).contains(&name.len()) && name.trim() == name;
    let plain = |c: char| !(c.is_control() || matches!(c, '/' | '\\') || is_invisible(c));
    if fits && !matches!(name, "." | "..") && name.chars().all(plain) { Ok(()) } else { Err(NameError) }
}

/// Zero-width and direction characters, fillers and other line ends, which make a name read as another one, and tags and selectors of
/// variants, which carry words that nobody sees. U+FE0F stays: it is part of ordinary emoji.
const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0e}' | '\u{feff}' | '\u{ffa0}' | '\u{e0000}'..='\u{e0fff}'
    )
}

/// An image, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Its media type.
    pub media_type: &'static str,
    /// Width and height in pixels; none if its head cannot be read.
    pub size_px: Option<(u32, u32)>,
}

impl Image {
    /// Reads the head of a PNG, JPEG, GIF or WebP image; none if the bytes begin as none of them does. Names count for nothing.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (media_type, size_px) = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            ("image/png", png(bytes))
        } else if bytes.starts_with(b"\xff\xd8\xff") {
            ("image/jpeg", jpeg(bytes))
        } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            ("image/gif", little(bytes, 6, 2).zip(little(bytes, 8, 2)))
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            ("image/webp", webp(bytes))
        } else {
            return None;
        };
        Some(Self { media_type, size_px: size_px.filter(|(width, height)| *width > 0 && *height > 0) })
    }
}

/// A number of some bytes, the least first.
fn little(bytes: &[u8], at: usize, count: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(count)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
}

/// The same, the greatest first.
fn big(bytes: &[u8], at: usize, count: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(count)?)?;
    Some(bytes.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
}

/// PNG (ISO/IEC 15948), section 11.2.2: the first chunk.
fn png(bytes: &[u8]) -> Option<(u32, u32)> {
    if bytes.get(12..16)? == b"IHDR" { big(bytes, 16, 4).zip(big(bytes, 20, 4)) } else { None }
}

/// JPEG (ITU-T T.81), annex B: the frame header, behind segments that name their length.
fn jpeg(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut at = 2;
    loop {
        if *bytes.get(at)? != 0xff {
            return None;
        }
        match *bytes.get(at + 1)? {
            // Fill bytes.
            0xff => at += 1,
            0x01 | 0xd0..=0xd7 => at += 2,
            // Beginning, end, and the picture itself: no frame comes any more.
            0xd8..=0xda => return None,
            marker @ 0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                return big(bytes, at + 7, 2).zip(big(bytes, at + 5, 2));
            }
            _ => at += 2 + segment(bytes, at)?,
        }
    }
}

/// The length of a segment, which counts its own two bytes.
fn segment(bytes: &[u8], at: usize) -> Option<usize> {
    big(bytes, at + 2, 2).and_then(|length| usize::try_from(length).ok()).filter(|length| *length >= 2)
}

/// WebP (RFC 9649), section 2: what the first chunk is says where the size is.
fn webp(bytes: &[u8]) -> Option<(u32, u32)> {
    match bytes.get(12..16)? {
        b"VP8 " if bytes.get(23..26)? == b"\x9d\x01\x2a" => {
            let side = |at| little(bytes, at, 2).map(|side| side & 0x3fff);
            side(26).zip(side(28))
        }
        b"VP8L" if *bytes.get(20)? == 0x2f => {
            let both = little(bytes, 21, 4)?;
            Some(((both & 0x3fff) + 1, ((both >> 14) & 0x3fff) + 1))
        }
        b"VP8X" => {
            let side = |at| little(bytes, at, 3).map(|side| side + 1);
            side(24).zip(side(27))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "attachment_tests.rs"]
mod tests;
