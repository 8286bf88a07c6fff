//! Where a repository on the server keeps its objects and refs: git follows links and reads the objects of others, and
//! whoever may write in an allowed directory must not make it serve what lies elsewhere.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest list of further object directories that is read, in bytes.
const ALTERNATES_BYTES: u64 = 64 * 1024;
/// Most object directories of one repository.
const OBJECT_DIRECTORIES: usize = 20;
/// How deep links are looked for below `refs`; branches that lie deeper are files that git itself made.
const REFS_DEPTH: usize = 3;

/// What of the git directory leads to where `inside` says no: a link, or a further object directory. None if nothing does.
pub(super) fn stray(directory: &Path, inside: &dyn Fn(&Path) -> bool) -> Option<String> {
    let leads_out = |path: &Path| !path.canonicalize().is_ok_and(|path| inside(&path));
    for part in ["HEAD", "packed-refs", "refs", "objects"] {
        let path = directory.join(part);
        if path.is_symlink() && leads_out(&path) {
            return Some(format!("its {part} is a link that leads"));
        }
    }
    if let Some(link) = links(&directory.join("refs"), REFS_DEPTH).into_iter().find(|link| leads_out(link)) {
        return Some(format!("{} is a link that leads", named(&link, directory)));
    }
    let mut open = vec![directory.join("objects")];
    let mut seen = Vec::new();
    while let Some(objects) = open.pop() {
        if let Some(link) = links(&objects, 2).into_iter().find(|link| leads_out(link)) {
            return Some(format!("{} is a link that leads", named(&link, directory)));
        }
        let further = alternates(&objects);
        let Some(further) = further.filter(|further| !further.iter().any(|path| leads_out(path))) else {
            return Some("its objects/info/alternates leads".to_owned());
        };
        for path in further.iter().filter_map(|path| path.canonicalize().ok()) {
            if !seen.contains(&path) {
                seen.push(path.clone());
                open.push(path);
            }
        }
        if seen.len() > OBJECT_DIRECTORIES {
            return Some("its objects/info/alternates names too many directories and may lead".to_owned());
        }
    }
    None
}

fn named<'a>(path: &'a Path, directory: &Path) -> std::path::Display<'a> {
    path.strip_prefix(directory).unwrap_or(path).display()
}

/// The links in a directory, down to `depth` levels.
fn links(directory: &Path, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => found.push(entry.path()),
            Ok(kind) if kind.is_dir() && depth > 1 => found.extend(links(&entry.path(), depth - 1)),
            Ok(_) => {}
            // What cannot be told is taken for one.
            Err(_) => found.push(entry.path()),
        }
    }
    found
}

/// The further object directories that one names (gitrepository-layout(5)); none if the list cannot be read as a whole.
fn alternates(objects: &Path) -> Option<Vec<PathBuf>> {
    let file = match File::open(objects.join("info/alternates")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(Vec::new()),
        Err(_) => return None,
        Ok(file) => file,
    };
    let mut text = String::new();
    file.take(ALTERNATES_BYTES + 1).read_to_string(&mut text).ok()?;
    let quoted = text.lines().any(|line| line.starts_with('"'));
    if quoted || text.len() as u64 > ALTERNATES_BYTES {
        return None;
    }
    let named = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    Some(named.map(|line| objects.join(line)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Place {
        _root: tempfile::TempDir,
        allowed: PathBuf,
        outside: PathBuf,
    }

    fn place() -> Place {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().canonicalize().unwrap();
        let (allowed, outside) = (path.join("allowed"), path.join("outside"));
        for directory in [&allowed, &outside] {
            for part in ["one/objects/info", "one/objects/pack", "one/refs/heads/a", "two/objects/info"] {
                fs::create_dir_all(directory.join(part)).unwrap();
            }
            fs::write(directory.join("one/HEAD"), "ref: refs/heads/main\n").unwrap();
        }
        Place { _root: root, allowed, outside }
    }

    impl Place {
        fn stray(&self) -> Option<String> {
            stray(&self.allowed.join("one"), &|path| path.starts_with(&self.allowed))
        }

        fn says(&self, text: &str) {
            let said = self.stray().unwrap_or_default();
            assert!(said.contains(text), "{said}");
        }
    }

    #[test]
    fn a_plain_repository_and_one_that_shares_objects_inside_are_fine() {
        let place = place();
        assert_eq!(place.stray(), None);
        let info = place.allowed.join("one/objects/info/alternates");
        fs::write(
            &info,
            format!("# shared\n\n../../two/objects\n{}\n", place.allowed.join("two/objects").display()),
        )
        .unwrap();
        assert_eq!(place.stray(), None);
        // They may go round in a ring, which git cuts.
        fs::write(place.allowed.join("two/objects/info/alternates"), "../../one/objects\n").unwrap();
        assert_eq!(place.stray(), None);
        symlink(place.allowed.join("two/objects"), place.allowed.join("one/objects/ab")).unwrap();
        assert_eq!(place.stray(), None);
    }

    #[test]
    fn links_that_lead_out_are_told_wherever_they_are() {
        for (link, said) in [
            ("objects", "its objects is a link"),
            ("refs", "its refs is a link"),
            ("HEAD", "its HEAD is a link"),
            ("objects/ab", "objects/ab is a link"),
            ("objects/pack/pack-1.pack", "objects/pack/pack-1.pack is a link"),
            ("refs/tags", "refs/tags is a link"),
            ("refs/heads/a/b", "refs/heads/a/b is a link"),
        ] {
            let place = place();
            let path = place.allowed.join("one").join(link);
            if path.is_dir() {
                fs::remove_dir_all(&path).unwrap();
            } else if path.exists() {
                fs::remove_file(&path).unwrap();
            }
            symlink(place.outside.join("one/objects"), &path).unwrap();
            place.says(said);
            // One that leads nowhere may lead somewhere later.
            fs::remove_file(&path).unwrap();
            symlink(place.allowed.join("missing"), &path).unwrap();
            place.says(said);
        }
    }

    #[test]
    fn alternates_that_lead_out_or_cannot_be_read_are_told() {
        let place = place();
        let info = place.allowed.join("one/objects/info/alternates");
        let outside = place.outside.join("one/objects").display().to_string();
        for text in [
            format!("{outside}\n"),
            "../../../outside/one/objects\n".to_owned(),
            "../../missing\n".to_owned(),
            "\"quoted\"\n".to_owned(),
            "#\n".repeat(usize::try_from(ALTERNATES_BYTES).unwrap()),
        ] {
            fs::write(&info, text).unwrap();
            place.says("alternates leads");
        }
        // Nor by way of another one.
        fs::write(&info, "../../two/objects\n").unwrap();
        fs::write(place.allowed.join("two/objects/info/alternates"), format!("{outside}\n")).unwrap();
        place.says("alternates leads");
    }

    #[test]
    fn object_directories_are_bounded() {
        let place = place();
        let lines = |count: usize| {
            let line = |number: usize| {
                fs::create_dir_all(place.allowed.join(format!("n{number}"))).unwrap();
                format!("../../n{number}\n")
            };
            (0..count).map(line).collect::<Vec<_>>().concat()
        };
        let info = place.allowed.join("one/objects/info/alternates");
        fs::write(&info, lines(OBJECT_DIRECTORIES)).unwrap();
        assert_eq!(place.stray(), None);
        fs::write(&info, lines(OBJECT_DIRECTORIES + 1)).unwrap();
        place.says("too many directories");
    }
}
