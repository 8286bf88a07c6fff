//! Tests of reading listings.

use super::*;

const TOKEN: &str = "ghp_012345678901234567890123456789012345";

fn id(digit: char) -> String {
    digit.to_string().repeat(40)
}

fn raw(digit: char) -> Vec<u8> {
    hex::decode(id(digit)).unwrap()
}

fn object(out: &mut Vec<u8>, (name, kind, base): (char, &str, Option<char>), body: &[u8]) {
    let base = base.map_or_else(|| "0".repeat(40), id);
    out.extend_from_slice(format!("{} {kind} {} {base}\n", id(name), body.len()).as_bytes());
    out.extend_from_slice(body);
    out.push(b'\n');
}

fn tree(entries: &[(&str, &str, char)]) -> Vec<u8> {
    let entry =
        |(mode, name, id): &(&str, &str, char)| [format!("{mode} {name}\0").as_bytes(), &raw(*id)].concat();
    entries.iter().flat_map(entry).collect()
}

fn read_with(listing: &[u8], bounds: &PushBounds, file_bytes: u64) -> Result<Contents, ReadError> {
    let secrets = Secrets::new(&[], &[]).unwrap();
    Contents::read(listing, &Looking { secrets: &secrets, bounds, file_bytes })
}

fn read(listing: &[u8]) -> Contents {
    read_with(listing, &PushBounds::default(), 1000).unwrap()
}

fn excess(listing: &[u8], bounds: &PushBounds) -> Excess {
    match read_with(listing, bounds, 1000) {
        Err(ReadError::Excess(excess)) => excess,
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn a_listing_is_read_as_commits_trees_and_files() {
    let mut out = Vec::new();
    let message =
        format!("tree {}\nparent {}\nparent {}\nauthor a\n\nparent {}\n", id('b'), id('2'), id('9'), id('3'));
    object(&mut out, ('1', "commit", None), message.as_bytes());
    object(&mut out, ('2', "commit", None), format!("tree {}\nparent {}\n\nx", id('b'), id('8')).as_bytes());
    object(&mut out, ('b', "tree", None), &tree(&[("100644", "f", 'c'), ("40000", "d", 'e')]));
    object(&mut out, ('c', "blob", Some('d')), format!("line\n{TOKEN}\n").as_bytes());
    object(&mut out, ('d', "blob", None), &[b'x'; 1001]);
    object(&mut out, ('a', "tag", None), format!("object x\n\n{TOKEN}").as_bytes());
    let contents = read(&out);
    let at = |digit| Id::parse(&id(digit)).unwrap();
    assert_eq!(contents.boundary(), [at('8'), at('9')]);
    assert!(contents.reaches(at('1'), at('8')) && contents.reaches(at('1'), at('1')));
    assert!(!contents.reaches(at('1'), at('3')) && !contents.reaches(at('2'), at('9')));
    assert_eq!(contents.oversize, [(at('d'), 1001)]);
    let lines: Vec<_> = contents.candidates.iter().map(|found| (found.object, found.found.line)).collect();
    assert_eq!(lines, [(at('c'), 2)]);
    assert_eq!((contents.elsewhere.len(), contents.elsewhere[0].object), (1, at('a')));
    assert!(contents.blobs.contains(&at('d')) && !contents.submodules);
    assert_eq!(at('d').hex(20), id('d'));
}

#[test]
fn a_listing_that_is_cut_or_no_listing_is_an_error() {
    let mut out = Vec::new();
    object(&mut out, ('c', "blob", None), b"some text");
    for bytes in [&out[..out.len() - 1], &out[..60], b"no listing\n", &[b'1'; 1000][..]] {
        assert!(matches!(read_with(bytes, &PushBounds::default(), 1000), Err(ReadError::Cut(_))));
    }
}

#[test]
fn commits_and_directories_are_bounded() {
    let mut out = Vec::new();
    object(&mut out, ('1', "commit", None), b"tree x\n\na");
    object(&mut out, ('2', "commit", None), b"tree x\n\nb");
    let bounds = |change: fn(&mut PushBounds)| {
        let mut bounds = PushBounds::default();
        change(&mut bounds);
        bounds
    };
    assert!(read_with(&out, &bounds(|bounds| bounds.commits = 2), 9).is_ok());
    assert_eq!(excess(&out, &bounds(|bounds| bounds.commits = 1)), Excess::Commits(1));
    assert!(read_with(&out, &bounds(|bounds| bounds.tree_bytes = 18), 9).is_ok());
    assert_eq!(excess(&out, &bounds(|bounds| bounds.tree_bytes = 17)), Excess::Trees(17));
}

#[test]
fn a_directory_that_is_used_again_and_again_counts_each_time() {
    let mut out = Vec::new();
    let names: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let level = |mode, id| names.iter().map(|name| (mode, name.as_str(), id)).collect::<Vec<_>>();
    object(&mut out, ('1', "tree", None), &tree(&level("100644", 'f')));
    for (outer, inner) in [('2', '1'), ('3', '2'), ('4', '3')] {
        object(&mut out, (outer, "tree", None), &tree(&level("40000", inner)));
    }
    let bounds = |paths, path_depth| PushBounds { path_depth, paths, ..PushBounds::default() };
    assert!(read_with(&out, &bounds(10_000, 4), 9).is_ok());
    assert_eq!(excess(&out, &bounds(9_999, 4)), Excess::Paths(9_999));
    assert_eq!(excess(&out, &bounds(10_000, 3)), Excess::PathDepth(3));
}

#[test]
fn chains_of_deltas_are_bounded() {
    let mut out = Vec::new();
    for (name, base) in [('1', None), ('2', Some('1')), ('3', Some('2')), ('4', Some('3')), ('5', Some('1'))]
    {
        object(&mut out, (name, "blob", base), b"x");
    }
    let bounds = |delta_depth| PushBounds { delta_depth, ..PushBounds::default() };
    assert!(read_with(&out, &bounds(3), 9).is_ok());
    assert_eq!(excess(&out, &bounds(2)), Excess::DeltaDepth(2));
}

#[test]
fn candidates_are_bounded() {
    let mut out = Vec::new();
    object(&mut out, ('1', "blob", None), format!("{TOKEN}\n{TOKEN}x ghp_{}", "1".repeat(36)).as_bytes());
    let bounds = |candidates| PushBounds { candidates, ..PushBounds::default() };
    let of = |candidates| read_with(&out, &bounds(candidates), 9000).unwrap();
    assert!(!of(3).too_many_candidates);
    assert!(of(2).too_many_candidates && of(2).candidates.len() == 2);
}

#[test]
fn names_that_some_file_system_takes_for_gitmodules_are_told() {
    for name in [
        ".gitmodules",
        ".GitModules",
        "gitmod~1",
        "GI7EBA~1",
        ".gitmodules ",
        ".gitmodules::$INDEX_ALLOCATION",
    ] {
        assert!(is_gitmodules(name.as_bytes()), "{name}");
    }
    assert!(is_gitmodules(".git\u{200c}modules".as_bytes()));
    for name in ["gitmodules", ".gitmodules.txt", ".gitmodule"] {
        assert!(!is_gitmodules(name.as_bytes()), "{name}");
    }
    let mut out = Vec::new();
    object(&mut out, ('1', "tree", None), &tree(&[("100644", ".gitmodules", 'c')]));
    assert!(read(&out).submodules);
}
