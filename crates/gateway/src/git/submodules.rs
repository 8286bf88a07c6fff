//! The submodules that a `.gitmodules` file names: pure. See gitmodules(5) and git-config(1) "Syntax".

use std::collections::BTreeSet;

use caisson_domain::git::{AllowList, Repository};

/// Largest file that is read, in bytes: a larger one is taken for one that names what it must not.
pub(super) const GITMODULES_BYTES: usize = 1024 * 1024;

/// Every value of a key `url`, as git reads it. Read generously: what is no setting to git may be one here.
pub(super) fn urls(text: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(text).replace("\\\r\n", "").replace("\\\n", "");
    let values = text.split('\n').filter_map(|line| {
        // A section may stand on the same line before its first setting.
        let line = line.rsplit_once(']').map_or(line, |(_, rest)| rest);
        let (key, value) = line.split_once('=')?;
        key.trim().eq_ignore_ascii_case("url").then(|| plain(value))
    });
    values.collect()
}

/// The value without quotes, escapes and comment.
fn plain(value: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    let mut characters = value.trim().chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' => out.extend(characters.next()),
            '#' | ';' if !quoted => break,
            c => out.push(c),
        }
    }
    out.trim().to_owned()
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
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn urls_are_read_as_git_reads_them() {
        let text = b"[submodule \"a\"]\n\tpath = a\n\turl = https://h.example/a.git # why\n[submodule \"b\"] URL = \"../b\"\n\
            url=https://h.example/\\\nlong\n\tfetchurl = no\n";
        let found: Vec<String> = urls(text).into_iter().collect();
        assert_eq!(found, ["../b", "https://h.example/a.git", "https://h.example/long"]);
    }

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
