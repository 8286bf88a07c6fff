//! What a `.gitmodules` names is what git itself reads in it.

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// What git reads: none if it gives the file up.
#[expect(clippy::disallowed_methods, reason = "the real git is what is compared with")]
fn urls_by_git(text: &[u8]) -> Option<BTreeSet<String>> {
    let mut git = Command::new("git");
    git.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", "/nonexistent");
    git.args(["config", "--no-includes", "--file", "-", "-z", "--list"]);
    git.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut git = git.spawn().unwrap();
    git.stdin.take().unwrap().write_all(text).unwrap();
    let output = git.wait_with_output().unwrap();
    let settings = output.stdout.split(|byte| *byte == 0);
    let urls = settings.filter_map(|setting| {
        let name = setting.split(|byte| *byte == b'\n').next()?;
        let key = name.rsplit(|byte| *byte == b'.').next()?;
        let value = setting.get(name.len() + 1..).unwrap_or_default();
        (key == b"url").then(|| String::from_utf8_lossy(value).into_owned())
    });
    output.status.success().then(|| urls.collect())
}

/// Versions of git keep space within a value as it is, or make it plain.
fn plain(urls: Option<BTreeSet<String>>) -> Option<BTreeSet<String>> {
    urls.map(|urls| urls.iter().map(|url| url.replace(['\t', '\r'], " ")).collect())
}

fn read_as_git_does(text: &[u8]) -> Option<BTreeSet<String>> {
    let urls = urls(text);
    assert_eq!(plain(urls.clone()), plain(urls_by_git(text)), "{:?}", String::from_utf8_lossy(text));
    urls
}

#[test]
fn urls_are_read_as_git_reads_them() {
    for (text, wanted) in [
        ("[submodule \"a\"]\n\tpath = a\n\turl = https://h.example/a.git # why\n", "https://h.example/a.git"),
        ("[submodule \"b\"] URL = \"../b\"\n\tfetchurl = no\n", "../b"),
        ("[s]\nurl=https://h.example/\\\nlong\n", "https://h.example/long"),
        // What is behind the last bracket of a line is not all that git reads of it.
        ("[s]\nurl = https://evil.example/x.git # ]\n", "https://evil.example/x.git"),
        ("[s]\nurl = https://evil.example/x.git?]\n", "https://evil.example/x.git?]"),
        ("[submodule \"a]b\"] url = x ; ]\n", "x"),
        ("[submodule \"a\\\"]b\"]url = x\n", "x"),
        // A comment ends with its line, and a backslash that is escaped goes on with nothing.
        ("[s]\n# c \\\nurl = x\n", "x"),
        ("[s]\npath = p ; c \\\nurl = x\n", "x"),
        ("[s]\npath = x\\\\\nurl = y\n", "y"),
        ("[s]\r\nurl = x\\\r\ny\r\n", "xy"),
        ("\u{feff}[s]\n\turl\t = \" a # b \"c\\t \\\\ ; d\n", " a # b c\t \\"),
        ("[s]\nurl\n", ""),
        ("[s]\nurl = x", "x"),
        ("[s]\nurl = x\\", "x"),
    ] {
        let wanted = BTreeSet::from([wanted.to_owned()]);
        assert_eq!(read_as_git_does(text.as_bytes()), Some(wanted), "{text:?}");
    }
    assert_eq!(
        read_as_git_does(b"[s]\npath = \"x \\\nurl = y\"\n"),
        Some(BTreeSet::new()),
        "it is in quotes"
    );
}

#[test]
fn what_git_does_not_read_is_not_read() {
    for text in [
        "[s]\nurl = \"x\n",
        "[s]\nurl = a\\qb\n",
        "[s\nurl = x\n",
        "[s \"x\" ]\nurl = x\n",
        "[s \"x\n\"]\nurl = x\n",
        "[]\nurl = x\n",
        "[s]\nu rl = x\n",
        "[s]\n= x\n",
        "[s]\nurl # x\n",
    ] {
        assert_eq!(read_as_git_does(text.as_bytes()), None, "{text:?}");
    }
    assert_eq!(urls(b"[s]\nurl = ../x\0y\n"), None, "some readers stop there");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_file_is_read_as_git_reads_it(
        pieces in proptest::collection::vec(
            prop::sample::select(vec![
                "[", "]", "[s]", "[s \"a\"]", "[s \"", "\"", "\\", "\\\\", "\n", "\r\n", "\r", " ", "\t", "#", ";", "=",
                "url", "url = ", "URL=", "path = ", "x", "y]", "-", ".", "\\n", "\\t", "\\\"", "\u{feff}", "é", "1",
            ]),
            0..24,
        ),
    ) {
        let text = format!("[s]\n{}", pieces.concat());
        read_as_git_does(text.as_bytes());
        read_as_git_does(pieces.concat().as_bytes());
    }
}
