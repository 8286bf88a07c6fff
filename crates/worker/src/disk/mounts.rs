//! What is mounted, as the kernel tells it: pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount of this process's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where.
    pub(super) point: PathBuf,
    /// Its device, for example `/dev/loop0`.
    pub(super) source: PathBuf,
    /// Its own options, such as `rw,nosuid,nodev`.
    pub(super) options: String,
}

/// Reads the text of `/proc/self/mountinfo` (proc(5)). A line that is not understood is left out.
pub(super) fn read(text: &str) -> Vec<Mounted> {
    text.lines().filter_map(line).collect()
}

/// The mounts whose place lies directly in `directory`, the later ones last.
pub(super) fn directly_in<'a>(
    mounts: &'a [Mounted],
    directory: &'a Path,
) -> impl Iterator<Item = &'a Mounted> {
    mounts.iter().filter(move |mounted| mounted.point.parent() == Some(directory))
}

fn line(line: &str) -> Option<Mounted> {
    let (own, behind) = line.split_once(" - ")?;
    let mut own = own.split(' ').skip(4);
    let point = unescaped(own.next()?);
    let options = own.next()?.to_owned();
    let source = unescaped(behind.split(' ').nth(1)?);
    Some(Mounted { point, source, options })
}

/// Space, tab, line end and backslash are written as a backslash and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
        42 27 7:0 / /s/sessions/ses_1 rw,nosuid,nodev,noatime shared:1 master:2 - ext4 /dev/loop0 rw\n\
        43 27 7:1 / /s/with\\040space/ses\\134x rw - ext4 /dev/loop1 rw\n\
        nonsense\n\
        44 42 7:2 / /s/sessions/ses_1/deeper rw - tmpfs none rw\n";

    #[test]
    fn mounts_are_read_with_and_without_propagation_fields() {
        let mounts = read(TEXT);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].source, Path::new("/dev/loop0"));
        assert_eq!(mounts[1].options, "rw,nosuid,nodev,noatime");
        assert_eq!(mounts[2].point, Path::new("/s/with space/ses\\x"));
    }

    #[test]
    fn only_what_lies_directly_in_a_directory_is_found_there() {
        let mounts = read(TEXT);
        let points: Vec<_> =
            directly_in(&mounts, Path::new("/s/sessions")).map(|mounted| mounted.point.clone()).collect();
        assert_eq!(points, [Path::new("/s/sessions/ses_1")]);
    }

    #[test]
    fn a_backslash_without_digits_stays() {
        assert_eq!(unescaped("a\\b\\04"), Path::new("a\\b\\04"));
    }
}
