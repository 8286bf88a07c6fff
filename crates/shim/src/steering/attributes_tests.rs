//! What is written has git say of every path what the anchor's own files say of it, whatever those of the branch say.

use std::fs;
use std::process::Command;

use super::super::anchor::Entry;
use super::*;

fn files(named: &[(&str, &str)]) -> Files {
    let mut files = Files::default();
    for (path, content) in named {
        let entry = Entry { path: (*path).to_owned(), executable: false };
        files.contents.insert((*path).to_owned(), (entry, content.as_bytes().to_vec()));
    }
    files
}

fn own(branch: &[(&str, &str)], anchor: &[(&str, &str)]) -> Option<String> {
    in_place_of(&files(branch), &files(anchor)).map(|own| String::from_utf8(own).unwrap())
}

/// Directories and files that a pattern could take for something else.
const PATHS: [&str; 12] = [
    "a.txt",
    "a.py",
    "sub/a.txt",
    "sub/deep/a.txt",
    "sub/deep/b.py",
    "sub/x/y.bin",
    "other/a.txt",
    "odd [x]*?/a.txt",
    "odd x/a.txt",
    "quo\"te\\d/a.txt",
    "!not/a.txt",
    "#no comment/a b.txt",
];

/// What git says of every path in a repository with these files of attributes and, if it has some, attributes of its own.
#[expect(clippy::disallowed_methods, reason = "the real git is what the words are for")]
fn said(program: &str, files: &[(&str, &str)], own: Option<&str>) -> String {
    let place = tempfile::tempdir().unwrap();
    let git = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(place.path()).env_clear().env("HOME", place.path());
        let output = command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_ATTR_NOSYSTEM", "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    git(&["init", "--quiet", "--template=", "."]);
    for (path, content) in files.iter().copied().chain(PATHS.map(|path| (path, ""))) {
        let file = place.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    write(&place.path().join(".git"), own.map(str::as_bytes)).unwrap();
    let mut told = git(&[&["check-attr", "-a", "--"], PATHS.as_slice()].concat());
    for name in ["diff", "text", "filter", "eol", "mine"] {
        told.push_str(&git(&[&["check-attr", name, "--"], PATHS.as_slice()].concat()));
    }
    // They come in the order in which git has read of them.
    let mut lines: Vec<_> = told.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The gits that there are: that of the search path, and that of the operating system, which may be older.
fn gits() -> impl Iterator<Item = &'static str> {
    ["git", "/usr/bin/git"].into_iter().filter(|git| *git == "git" || Path::new(git).exists())
}

const ANCHOR: [(&str, &str); 7] = [
    (
        ".gitattributes",
        "\u{feff}# a comment\n[attr]mine diff=mine -text\n*.py mine\r\n\t*.bin binary\n/a.txt eol=lf\nsub/*.txt whitespace=-indent\n\"a b.txt\" ident\n!a.txt filter=no\n",
    ),
    (
        "sub/.gitattributes",
        "*.txt diff=sub text\ndeep/* filter=deep\n/a.txt !text\n[attr]no diff\n**/y.bin merge=y\n",
    ),
    ("sub/deep/.gitattributes", "a.txt -diff eol=crlf\n\"b.p\\171\" custom\n"),
    ("odd [x]*?/.gitattributes", "*.txt eol=lf\n"),
    ("quo\"te\\d/.gitattributes", "a.txt eol=lf\n"),
    ("!not/.gitattributes", "a.txt eol=lf\n"),
    ("#no comment/.gitattributes", "\"a b.txt\" eol=lf\n\"/a \\142.txt\" text"),
];

const BRANCH: [(&str, &str); 4] = [
    (
        ".gitattributes",
        "[attr]mine -diff\n[attr]binary diff=own\n[attr]hide -diff -text filter=own\n* hide custom=own linguist-generated\n* mine binary\n",
    ),
    ("sub/deep/.gitattributes", "* -diff -custom !whitespace\n*.py working-tree-encoding=UTF-16\n"),
    ("other/.gitattributes", "* text eol=crlf ident merge=own\n"),
    ("odd x/.gitattributes", "* -text\n"),
];

#[test]
fn git_says_of_every_path_what_the_anchor_says() {
    for program in gits() {
        let wanted = said(program, &ANCHOR, None);
        assert!(
            wanted.contains("sub/deep/a.txt: eol: crlf") && wanted.contains("a.py: mine: set"),
            "{wanted}"
        );
        let branch = said(program, &BRANCH, None);
        assert!(
            branch.contains("other/a.txt: eol: crlf") && branch.contains("a.txt: custom: own"),
            "{branch}"
        );
        let own = own(&BRANCH, &ANCHOR).unwrap();
        assert_eq!(said(program, &BRANCH, Some(&own)), wanted, "{program}\n{own}");
        // Also where the branch has none, or the anchor has none.
        let all = self::own(&[], &ANCHOR).unwrap();
        assert_eq!(said(program, &[], Some(&all)), wanted, "{program}\n{all}");
        let none = self::own(&BRANCH, &[]).unwrap();
        assert_eq!(said(program, &BRANCH, Some(&none)), said(program, &[], None), "{program}\n{none}");
    }
}

/// Files that are neither the branch's nor the anchor's, as a set-up command may leave them.
const LEFT: [(&str, &str); 3] = [
    (
        ".gitattributes",
        "[attr]mine -diff filter=own\n[attr]custom -diff\n[attr]text -diff\n[attr]diff -text\n[attr]ident -diff\n[attr]hide -diff\n* hide\n",
    ),
    (
        "sub/.gitattributes",
        "* -diff ident eol=crlf filter=own working-tree-encoding=UTF-16\n*.py text custom\n",
    ),
    ("other/.gitattributes", "* binary custom merge=own\n"),
];

#[test]
fn files_of_attributes_that_are_no_commits_say_nothing_by_which_git_goes() {
    // Each name that the anchor says is one that such a file can have stand for others.
    let anchor =
        [ANCHOR.as_slice(), &[("odd x/.gitattributes", "* custom text diff ident=x mine\n")]].concat();
    let own = own(&[], &anchor).unwrap();
    // The name of its own stays, which says nothing to git.
    let without =
        |said: String| said.lines().filter(|line| !line.contains(": hide: ")).collect::<Vec<_>>().join("\n");
    for program in gits() {
        let wanted = said(program, &anchor, None);
        assert_ne!(said(program, &LEFT, None), wanted);
        assert_eq!(without(said(program, &LEFT, Some(&own))), wanted, "{program}\n{own}");
    }
}

#[test]
fn a_name_that_git_would_not_take_is_not_unsaid() {
    let own =
        own(&[(".gitattributes", "* bad/name good -=x builtin_x\n[attr] x\n[attr]-y z\n")], &[]).unwrap();
    assert!(own.contains("\n* !good\n") && own.contains("\n* !x\n") && own.contains("\n* !z\n"), "{own}");
    assert!(!own.contains("bad") && !own.contains("builtin") && !own.contains("-y"), "{own}");
}

#[test]
fn a_line_that_git_would_pass_over_is_refused_and_one_of_the_bound_is_not() {
    let line = |bytes: usize| format!("{} eol=lf", "x".repeat(bytes - " eol=lf".len()));
    let below = "\"/d/**/\"\n".len();
    let fits = own(&[], &[("d/.gitattributes", &line(LINE_BYTES - below))]).unwrap();
    assert_eq!(fits.lines().last().map(str::len), Some(LINE_BYTES - 1));
    assert_eq!(own(&[], &[("d/.gitattributes", &line(LINE_BYTES - below + 1))]), None);
    // Git passes it over where it is as well.
    let longer = line(LINE_BYTES);
    assert_eq!(own(&[], &[("d/.gitattributes", &longer)]), own(&[], &[]));
    let path = "x".repeat(100);
    let of_bytes = |bytes: usize| format!("{path} {}", "a".repeat(bytes - 101));
    for program in gits() {
        let says = |bytes: usize| {
            let file = of_bytes(bytes) + "\n";
            let own = format!("{file}a.txt eol=lf\n");
            said(program, &[], Some(&own)).contains("a.txt: eol: lf")
        };
        assert!(says(LINE_BYTES - 1) && says(LINE_BYTES));
    }
}

#[test]
fn links_on_the_way_are_not_followed() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for directory in ["git", "elsewhere", "linked"] {
        fs::create_dir(at(directory)).unwrap();
    }
    write(&at("git"), None).unwrap();
    assert!(!at("git/info").exists());
    write(&at("git"), Some(b"* text\n")).unwrap();
    assert_eq!(fs::read(at("git/info/attributes")).unwrap(), b"* text\n");
    write(&at("git"), Some(b"* eol=lf\n")).unwrap();
    assert_eq!(fs::read(at("git/info/attributes")).unwrap(), b"* eol=lf\n");
    // The file itself gives way, and what it led to stays.
    fs::write(at("elsewhere/attributes"), "kept").unwrap();
    fs::remove_file(at("git/info/attributes")).unwrap();
    std::os::unix::fs::symlink(at("elsewhere/attributes"), at("git/info/attributes")).unwrap();
    write(&at("git"), None).unwrap();
    assert!(at("git/info/attributes").symlink_metadata().is_err());
    std::os::unix::fs::symlink(at("elsewhere"), at("linked/info")).unwrap();
    std::os::unix::fs::symlink(at("git"), at("link")).unwrap();
    for place in ["linked", "link"] {
        assert!(write(&at(place), None).is_err() && write(&at(place), Some(b"")).is_err(), "{place}");
    }
    assert_eq!(fs::read(at("elsewhere/attributes")).unwrap(), b"kept");
}
