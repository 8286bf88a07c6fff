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
    let secrets = Arc::new(Secrets::new(&[], &[]).unwrap());
    Contents::read(listing, &Looking { secrets, bounds: bounds.clone(), file_bytes })
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
fn directories_that_a_push_does_not_hold_are_told_up_to_a_bound() {
    let mut out = Vec::new();
    for (name, tree) in [('1', 'b'), ('2', 'c'), ('3', 'c')] {
        object(&mut out, (name, "commit", None), format!("tree {}\n\nx", id(tree)).as_bytes());
    }
    object(&mut out, ('4', "commit", None), format!("tree {EMPTY_TREE}\n\nx").as_bytes());
    object(&mut out, ('b', "tree", None), &tree(&[("40000", "d", 'e'), ("40000", "e", 'f')]));
    object(&mut out, ('f', "tree", None), &tree(&[("100644", ".gitmodules", '9'), ("160000", "x", 'd')]));
    let contents = read(&out);
    let at = |digit| Id::parse(&id(digit)).unwrap();
    assert_eq!(contents.outer_roots(), BTreeSet::from([at('c')]));
    assert_eq!(contents.outer_directories(2), Ok(BTreeSet::from([at('c'), at('e')])));
    assert_eq!(contents.outer_directories(1), Err(Excess::Directories(1)));
    let names = |digit| contents.names_submodules(at(digit));
    assert_eq!((names('b'), names('f'), names('c')), (Some(false), Some(true), None));
    assert!(tree_names_submodules(&tree(&[("100644", "a", '9'), ("100644", ".GITMODULES", '9')]), 20));
    assert!(!tree_names_submodules(&tree(&[("40000", ".gitmodules", '9')]), 20), "it is no file");
    let zero = [b"160000 .a\0".as_slice(), &[0; 20], &tree(&[("100644", ".gitmodules", '9')])].concat();
    assert!(tree_names_submodules(&zero, 20), "nothing is read behind an id of zeros");
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
fn a_parent_is_one_only_where_git_reads_it() {
    let mut out = Vec::new();
    let (tree, parent) = (format!("tree {}\n", id('b')), |digit| format!("parent {}\n", id(digit)));
    let people = "author a\ncommitter a\n";
    let forged = [&tree, &parent('2'), people, &parent('3'), "encoding x\n", &parent('4'), "\nx"].concat();
    object(&mut out, ('1', "commit", None), forged.as_bytes());
    let late = [&tree, people, &parent('5'), "\nx"].concat();
    object(&mut out, ('6', "commit", None), late.as_bytes());
    let broken = [&tree, "parent x\n", &parent('7'), people, "\nx"].concat();
    object(&mut out, ('8', "commit", None), broken.as_bytes());
    let contents = read(&out);
    let at = |digit| Id::parse(&id(digit)).unwrap();
    let parents = |digit| contents.commits[&at(digit)].parents.clone();
    assert_eq!(parents('1'), [at('2')]);
    assert!(parents('6').is_empty() && parents('8').is_empty());
    assert!(!contents.reaches(at('1'), at('3')) && !contents.reaches(at('1'), at('4')));
    assert_eq!(contents.boundary(), [at('2')]);
}

#[test]
fn a_directory_is_one_by_its_kind_and_an_entry_that_git_does_not_write_is_refused() {
    // Octal digits beyond sixteen bits are nothing to git.
    for mode in ["40000", "40755", "040000", "1040000", "47777"] {
        assert!(is_directory(mode.as_bytes()), "{mode}");
    }
    for mode in ["100644", "160000", "120000", "4000", "140000", ""] {
        assert!(!is_directory(mode.as_bytes()), "{mode}");
    }
    let listing = |body: &[u8]| {
        let mut out = Vec::new();
        object(&mut out, ('1', "tree", None), body);
        out
    };
    let bounds = PushBounds::default();
    for mode in ["40755", "040000", "1040000", "100600", "100777", "0", "", "x"] {
        assert_eq!(excess(&listing(&tree(&[(mode, "x", 'c')])), &bounds), Excess::Entry, "{mode}");
    }
    let whole = tree(&[("100644", "x", 'c')]);
    let none = [&b"100644 x\0"[..], &[0; 20]].concat();
    for bad in [&whole[..whole.len() - 1], &[&whole[..], b"1"].concat(), &none] {
        assert_eq!(excess(&listing(bad), &bounds), Excess::Entry);
    }
    for mode in ["40000", "100644", "100755", "120000", "160000", "100664"] {
        assert!(read_with(&listing(&tree(&[(mode, "x", 'c')])), &bounds, 9).is_ok(), "{mode}");
    }
    assert!(read_with(&listing(b""), &bounds, 9).is_ok());
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
