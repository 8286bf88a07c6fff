//! What is mounted where (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Which part of the file system is seen.
    pub(super) root: PathBuf,
    pub(super) place: PathBuf,
    pub(super) kind: String,
    /// What the file system lies on, such as a device.
    pub(super) source: PathBuf,
    /// Options of the file system; of a hierarchy of control groups its controllers are among them.
    pub(super) options: Vec<String>,
}

impl Mount {
    /// Every mount in the text of a `mountinfo`, which need not be UTF-8.
    pub(super) fn all(text: &[u8]) -> Vec<Self> {
        text.split(|byte| *byte == b'\n').filter_map(Self::parse).collect()
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, place) = (fields.nth(3)?, fields.next()?);
        // Optional fields end at a hyphen; then come kind, source and the file system's options.
        fields.by_ref().find(|field| *field == b"-")?;
        let kind = String::from_utf8(fields.next()?.to_vec()).ok()?;
        let source = plain(fields.next()?).into();
        let options = fields.next()?.split(|byte| *byte == b',');
        let options = options.map(|option| String::from_utf8_lossy(option).into_owned()).collect();
        Some(Self { root: plain(root).into(), place: plain(place).into(), kind, source, options })
    }
}

/// A field without the kernel's escapes: blank, tab, line feed and backslash are written as a backslash and three octal digits.
fn plain(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, behind @ ..] = rest {
        let (byte, behind) = match behind {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] if *first == b'\\' => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), behind)
            }
            _ => (*first, behind),
        };
        bytes.push(byte);
        rest = behind;
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn blanks_and_backslashes_of_a_mounts_path_are_read_as_they_are() {
        let line = br"41 31 0:38 /a\040b /mnt/t\011l\012b\134040\303\274 rw shared:9 - cgroup2 none rw,pids";
        let mounts = Mount::all(&[&line[..], b"short", b""].join(&b'\n'));
        let place = OsStr::from_bytes(b"/mnt/t\tl\nb\\040\xc3\xbc");
        assert_eq!(mounts.len(), 1);
        assert_eq!((mounts[0].root.as_path(), mounts[0].place.as_os_str()), ("/a b".as_ref(), place));
        assert_eq!((mounts[0].kind.as_str(), mounts[0].options.len()), ("cgroup2", 2));
        assert_eq!(mounts[0].source.as_os_str(), "none");
        for (written, meant) in [(r"\400", r"\400"), (r"\08x", r"\08x"), (r"a\", r"a\"), (r"\377", "\u{ff}")]
        {
            let meant: Vec<u8> = meant.chars().map(|char| char as u8).collect();
            assert_eq!(plain(written.as_bytes()).into_vec(), meant, "{written}");
        }
    }
}
