//! What a `.gitmodules` names is what git itself reads in it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
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

/// Two hosts of this machine, for the time that git asks one of them.
struct Hosts {
    good: TcpListener,
    evil: TcpListener,
}

impl Hosts {
    fn new() -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        Self { good: bind(), evil: bind() }
    }

    /// A URL with `G` for the one that the list has, and `E` for the other.
    fn url(&self, spelling: &str) -> String {
        let of = |host: &TcpListener| host.local_addr().unwrap().to_string();
        spelling.replace('G', &of(&self.good)).replace('E', &of(&self.evil))
    }

    fn allows(&self, url: &str) -> bool {
        let allow = AllowList::new(&[self.url("http://G/team/*")], Vec::new()).unwrap();
        is_allowed(url, &self.url("http://G/team/one.git").parse().unwrap(), &allow)
    }

    /// How often git comes to each of them for a URL.
    #[expect(clippy::disallowed_methods, reason = "the real git is what is compared with")]
    fn visits(&self, url: &str) -> (usize, usize) {
        const END: &[u8] = b"END";
        let count = |host: &TcpListener| {
            let mut visits = 0;
            loop {
                let (mut visitor, _) = host.accept().unwrap();
                let mut first = [0; END.len()];
                if visitor.read_exact(&mut first).is_ok() && first == END {
                    return visits;
                }
                visits += 1;
                // Git may have gone.
                drop(visitor.write_all(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n"));
            }
        };
        std::thread::scope(|scope| {
            let (good, evil) = (scope.spawn(|| count(&self.good)), scope.spawn(|| count(&self.evil)));
            let mut git = Command::new("git");
            git.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", "/nonexistent");
            git.env("GIT_TERMINAL_PROMPT", "0").args([
                "-c",
                "protocol.allow=never",
                "-c",
                "protocol.http.allow=always",
            ]);
            git.args(["ls-remote", "--", url]).current_dir("/").stdin(Stdio::null());
            let found = git.output().unwrap().status.success();
            assert!(!found, "there is no repository");
            for host in [&self.good, &self.evil] {
                TcpStream::connect(host.local_addr().unwrap()).unwrap().write_all(END).unwrap();
            }
            (good.join().unwrap(), evil.join().unwrap())
        })
    }
}

#[test]
fn git_goes_to_the_host_that_the_list_was_asked_about() {
    let hosts = Hosts::new();
    for good in ["http://G/team/x.git", "http://G/team/a%20b", "http://G/solo/../team/x"] {
        let url = hosts.url(good);
        assert!(hosts.allows(&url), "{url}");
        assert!(matches!(hosts.visits(&url), (1.., 0)), "{url}");
    }
    // What a browser would take for a path of the first host's is a user name of the second's to git.
    for bad in ["http://G\\team\\@E/x.git", "http://G\\@E/team/x.git", "http://G@E/team/x.git"] {
        let url = hosts.url(bad);
        assert!(matches!(hosts.visits(&url), (0, 1..)), "{url}");
        assert!(!hosts.allows(&url), "{url}");
    }
    for bad in [
        "http:///G/team/x",
        "http:/G/team/x",
        "http:G/team/x",
        "http:\\\\G/team/x",
        "http://@G/team/x",
        "http://G/team/x ",
        " http://G/team/x",
        "http://G\t/team/x",
        "http://G/team\\x",
        "http://G/team/x?@E/",
        "http://G#@E/team/x",
        "..\\..\\E/x",
        "../..\\@E/x",
    ] {
        let url = hosts.url(bad);
        assert!(!hosts.allows(&url), "{url}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_url_that_is_allowed_leads_git_elsewhere(
        begin in prop::sample::select(vec!["http://", "http://G", "http://G/team/", "http:/", "http:\\\\", "../"]),
        pieces in proptest::collection::vec(
            prop::sample::select(vec![
                "G", "E", "/", "/team/", "\\", "@", ":", "u", "x", "?", "#", "%2f", "%40", "%5c", " ", "\t", "..", ".", ";", "[", "\u{3002}",
            ]),
            0..8,
        ),
    ) {
        let hosts = Hosts::new();
        let url = hosts.url(&format!("{begin}{}", pieces.concat()));
        // A relative one begins at the run's repository, which is the gateway's to reach.
        if url.starts_with("http") && hosts.allows(&url) {
            prop_assert_eq!(hosts.visits(&url).1, 0, "{}", url);
        }
    }
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
