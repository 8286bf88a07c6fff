//! The submodules that a `.gitmodules` file names: pure. See gitmodules(5) and git-config(1) "Syntax".

use std::collections::BTreeSet;

use caisson_domain::git::{AllowList, Repository};

/// Largest file that is read, in bytes; a larger one is refused.
pub(super) const GITMODULES_BYTES: u64 = 1024 * 1024;

/// What may stand before everything else in a file of settings.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Every value of a key `url`, as git reads them, in whatever section; without a value it is empty. None of a file that git does
/// not read to its end, or in which there is a NUL byte, at which some readers stop.
pub(super) fn urls(text: &[u8]) -> Option<BTreeSet<String>> {
    if text.contains(&0) {
        return None;
    }
    let mut text = Settings { rest: text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text) };
    let mut found = BTreeSet::new();
    while let Some(byte) = text.next() {
        match byte {
            b'#' | b';' => text.skip_line(),
            b'[' => text.section()?,
            byte if is_space(byte) => {}
            byte if byte.is_ascii_alphabetic() => {
                let (key, value) = text.setting(byte)?;
                if key.eq_ignore_ascii_case(b"url") {
                    found.insert(value);
                }
            }
            _ => return None,
        }
    }
    Some(found)
}

/// What git takes for space (`sane_ctype`).
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

const fn is_of_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// A file of settings, read byte by byte as git does it (`config.c`): none where git gives it up. Its end is the end of a line.
struct Settings<'a> {
    rest: &'a [u8],
}

impl Settings<'_> {
    fn next(&mut self) -> Option<u8> {
        if let Some(rest) = self.rest.strip_prefix(b"\r\n") {
            self.rest = rest;
            return Some(b'\n');
        }
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn next_or_end(&mut self) -> u8 {
        self.next().unwrap_or(b'\n')
    }

    /// The rest of a comment. A backslash at its end does not go on with it.
    fn skip_line(&mut self) {
        let end = memchr::memchr(b'\n', self.rest).map_or(self.rest.len(), |end| end + 1);
        self.rest = &self.rest[end..];
    }

    /// Behind `[`.
    fn section(&mut self) -> Option<()> {
        let mut named = false;
        loop {
            match self.next()? {
                b']' => return named.then_some(()),
                byte if is_space(byte) => return self.subsection(byte),
                byte if is_of_key(byte) || byte == b'.' => named = true,
                _ => return None,
            }
        }
    }

    /// The second name of a section, in quotes. Only its end matters here.
    fn subsection(&mut self, mut byte: u8) -> Option<()> {
        while is_space(byte) {
            if byte == b'\n' {
                return None;
            }
            byte = self.next()?;
        }
        if byte != b'"' {
            return None;
        }
        loop {
            match self.next()? {
                b'\n' => return None,
                b'"' => return (self.next()? == b']').then_some(()),
                b'\\' if self.next()? == b'\n' => return None,
                _ => {}
            }
        }
    }

    /// A key that begins with `first`, and its value.
    fn setting(&mut self, first: u8) -> Option<(Vec<u8>, String)> {
        let mut key = vec![first];
        let mut byte = self.next_or_end();
        while is_of_key(byte) {
            key.push(byte);
            byte = self.next_or_end();
        }
        while matches!(byte, b' ' | b'\t') {
            byte = self.next_or_end();
        }
        match byte {
            b'\n' => Some((key, String::new())),
            b'=' => Some((key, self.value()?)),
            _ => None,
        }
    }

    /// A value to the end of its line, or of those that it goes on with, without quotes, escapes and comment.
    fn value(&mut self) -> Option<String> {
        let (mut value, mut quoted, mut end) = (Vec::new(), false, 0);
        loop {
            match self.next_or_end() {
                b'\n' if quoted => return None,
                b'\n' => break,
                byte if !quoted && is_space(byte) => {
                    // At its beginning it is left out, and at its end.
                    if !value.is_empty() {
                        value.push(byte);
                    }
                    continue;
                }
                b'#' | b';' if !quoted => {
                    self.skip_line();
                    break;
                }
                b'"' => quoted = !quoted,
                b'\\' => match self.next_or_end() {
                    b'\n' => {}
                    b't' => value.push(b'\t'),
                    b'n' => value.push(b'\n'),
                    b'b' => value.push(8),
                    byte @ (b'\\' | b'"') => value.push(byte),
                    _ => return None,
                },
                byte => value.push(byte),
            }
            end = value.len();
        }
        value.truncate(end);
        Some(String::from_utf8_lossy(&value).into_owned())
    }
}

/// Whether some file system takes the name for `.gitmodules`: git itself reads it then.
pub(super) fn is_gitmodules(name: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(name) else { return false };
    // HFS+ leaves these out, NTFS what is behind a colon and dots and spaces at the end.
    let seen = |c: &char| !matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let text: String = text.chars().filter(seen).collect::<String>().to_lowercase();
    let text = text.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    text == ".gitmodules" || text.starts_with("gitmod~") || text.starts_with("gi7eba~")
}

/// Whether a submodule may come from `url`: one that the allow-list has, where a relative one begins at the run's own
/// repository.
pub(super) fn is_allowed(url: &str, own: &Repository, allow: &AllowList) -> bool {
    let absolute = if url.starts_with("./") || url.starts_with("../") {
        relative(url, own)
    } else {
        Some(url.to_owned())
    };
    absolute.and_then(|url| url.parse().ok()).is_some_and(|repository| allow.allows(&repository))
}

/// As git resolves it: each `../` takes away a part of the path.
fn relative(url: &str, own: &Repository) -> Option<String> {
    let own = own.to_string();
    let (origin, path) = match own.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/')?;
            (format!("{scheme}://{host}"), path.to_owned())
        }
        None => (String::new(), own.trim_start_matches('/').to_owned()),
    };
    let mut parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let mut rest = url;
    loop {
        if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("../") {
            parts.pop()?;
            rest = after;
        } else {
            parts.push(rest);
            return Some(format!("{origin}/{}", parts.join("/")));
        }
    }
}

#[cfg(test)]
#[path = "submodules_tests.rs"]
mod read_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_submodule_comes_from_what_the_allow_list_has() {
        let allow = AllowList::new(&["https://h.example/team/*".to_owned()], vec![PathBuf::from("/srv/git")])
            .unwrap();
        let own: Repository = "https://h.example/team/one.git".parse().unwrap();
        let of = |url: &str| is_allowed(url, &own, &allow);
        for good in ["https://h.example/team/two", "../two.git", "/srv/git/x", "../../team/two"] {
            assert!(of(good), "{good}");
        }
        for bad in [
            "https://evil.example/x",
            "../../other/two",
            "../../../../x",
            "git@h.example:team/two",
            "ext::sh -c x",
            "-u./x",
            "",
            "file:///etc",
        ] {
            assert!(!of(bad), "{bad}");
        }
        let local: Repository = "/srv/git/one.git".parse().unwrap();
        assert!(is_allowed("../two.git", &local, &allow) && !is_allowed("../../two.git", &local, &allow));
    }
}
