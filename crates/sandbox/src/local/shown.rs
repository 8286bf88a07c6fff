//! What every sandbox is to see of the host beside its own directories.

use std::io;
use std::path::{Component, Path, PathBuf};

use caisson_domain::protocol::places;

use super::bubblewrap::{ETC, SYSTEM_DIRECTORIES};
use super::order::Shown;
use crate::mounts::shows_engine_socket;
use crate::{MountFault, SpecError};

/// Places that a sandbox has of its own, beside the [`SYSTEM_DIRECTORIES`]: nothing of the host may be shown at, above or below them.
const OWN_PLACES: [&str; 10] =
    ["/proc", "/dev", "/sys", "/run", "/tmp", "/etc", "/usr", "/caisson", places::WORKSPACE, places::HOME];
/// What of the host is not shown at any other place either.
const HOSTS_OWN: [&str; 4] = ["/proc", "/dev", "/sys", "/run"];

/// Checks paths that sandboxes are to see, of which none may be, contain or lie in a hidden one; blocks on the file system.
///
/// Every [`SpecError::Mount`] for one that cannot be shown.
pub(super) fn check(paths: &[PathBuf], what: &'static str, hidden: &[PathBuf]) -> Vec<SpecError> {
    let found = paths.iter().filter_map(|path| Some((path, look_at(path, hidden).err()?)));
    found.map(|(path, fault)| SpecError::Mount { mount: what, path: path.clone(), fault }).collect()
}

/// Checks that nothing hidden lies where every sandbox sees the host's own; blocks on the file system.
///
/// # Errors
/// [`SpecError::Mount`] for the first directory that shows something hidden.
pub(super) fn check_hidden(hidden: &[PathBuf]) -> Result<(), SpecError> {
    for place in SYSTEM_DIRECTORIES.into_iter().chain(ETC).chain(["/usr"]).map(Path::new) {
        let Ok(source) = place.canonicalize() else { continue };
        if let Some(found) = hidden.iter().find(|hidden| resolved(hidden).starts_with(&source)) {
            let fault = MountFault::Hidden(found.clone());
            return Err(SpecError::Mount { mount: "system", path: place.to_owned(), fault });
        }
    }
    Ok(())
}

/// What is at the path, without symbolic links.
fn look_at(path: &Path, hidden: &[PathBuf]) -> Result<PathBuf, MountFault> {
    if !path.is_absolute() {
        return Err(MountFault::Relative);
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(MountFault::Parent);
    }
    if path.to_str().is_none() {
        return Err(MountFault::NotText);
    }
    let source = path.canonicalize().map_err(MountFault::Unreadable)?;
    for seen in [path, &source] {
        if shows_engine_socket(seen) {
            return Err(MountFault::EngineSocket(seen.to_owned()));
        }
    }
    if let Some(found) = hidden.iter().find(|hidden| overlap(&resolved(hidden), &source)) {
        return Err(MountFault::Hidden(found.clone()));
    }
    let mut covered = OWN_PLACES.into_iter().chain(SYSTEM_DIRECTORIES);
    let covered = covered.find(|own| overlap(path, Path::new(own)));
    match covered.or_else(|| HOSTS_OWN.into_iter().find(|own| overlap(&source, Path::new(own)))) {
        Some(own) => Err(MountFault::Own(own)),
        None => Ok(source),
    }
}

/// Whether one is, contains or lies in the other.
fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// Without symbolic links, as far as there is something.
fn resolved(path: &Path) -> PathBuf {
    let mut ancestors = path.ancestors();
    let found = ancestors.find_map(|above| Some((above, above.canonicalize().ok()?)));
    let Some((above, resolved)) = found else { return path.to_owned() };
    match path.strip_prefix(above) {
        Ok(rest) if rest.as_os_str().is_empty() => resolved,
        Ok(rest) => resolved.join(rest),
        Err(_) => path.to_owned(),
    }
}

/// Checks directories whose programs are to be found; blocks on the file system.
///
/// As [`check`], and [`MountFault::Colon`].
pub(super) fn check_toolchains(paths: &[PathBuf], hidden: &[PathBuf]) -> Vec<SpecError> {
    let what = "toolchains";
    let colons = paths.iter().filter(|path| path.as_os_str().as_encoded_bytes().contains(&b':'));
    let colons =
        colons.map(|path| SpecError::Mount { mount: what, path: path.clone(), fault: MountFault::Colon });
    check(paths, what, hidden).into_iter().chain(colons).collect()
}

/// The binds of paths that were checked, as they are now, so they are checked again: a link may lead elsewhere meanwhile. Those that
/// are gone are left out.
///
/// # Errors
/// [`SpecError::Mount`] for the first that cannot be shown.
pub(super) fn binds(paths: &[PathBuf], hidden: &[PathBuf]) -> Result<Vec<Shown>, SpecError> {
    let mut binds = Vec::new();
    for path in paths {
        let refused = |fault| SpecError::Mount { mount: "local", path: path.clone(), fault };
        let source = match look_at(path, hidden) {
            Err(MountFault::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => continue,
            looked => looked.map_err(refused)?,
        };
        let is_file = source.is_file();
        let text = |path: PathBuf| path.into_os_string().into_string();
        let source = text(source).map_err(|_| refused(MountFault::NotText))?;
        let target = text(path.clone()).map_err(|_| refused(MountFault::NotText))?;
        binds.push(Shown { source, target, writable: false, is_file });
    }
    Ok(binds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sandbox_has_of_its_own_is_not_covered() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        assert!(look_at(dir.path(), &[]).is_ok());
        for path in ["/", "/usr/lib", "/proc/self", "/home", "/etc", "/tmp", "/bin", "/lib/locale", "/sys"] {
            let found = look_at(Path::new(path), &[]);
            assert!(found.is_err(), "{path}");
        }
        assert!(matches!(look_at(Path::new("opt"), &[]), Err(MountFault::Relative)));
        assert!(matches!(look_at(Path::new("/does/not/exist"), &[]), Err(MountFault::Unreadable(_))));
    }

    #[test]
    fn a_path_with_a_way_up_is_refused_wherever_it_leads() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        for path in ["/opt/../usr/lib".into(), dir.path().join("a/.."), dir.path().join("a/../a")] {
            assert!(matches!(look_at(&path, &[]), Err(MountFault::Parent)), "{}", path.display());
        }
        // Two points in a name are no way up.
        let path = dir.path().join("..a");
        std::fs::create_dir(&path).unwrap();
        assert!(look_at(&path, &[]).is_ok());
    }

    #[test]
    fn what_is_hidden_is_shown_neither_by_itself_nor_with_what_it_is_in_nor_by_a_link() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["state/deep", "beside", "state-2"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::write(at("beside/key"), "secret").unwrap();
        std::os::unix::fs::symlink(at("state/deep"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("state"), at("alias")).unwrap();
        // Named by a link itself, or not there yet.
        let hidden = [at("alias"), at("beside/key"), at("state-2/later/still")];
        for path in ["", "state", "state/deep", "link", "beside", "beside/key", "state-2"] {
            let found = look_at(&at(path), &hidden);
            assert!(matches!(found, Err(MountFault::Hidden(_))), "{path}: {found:?}");
        }
        for name in ["state-2/other", "beside/other"] {
            std::fs::create_dir(at(name)).unwrap();
            assert!(look_at(&at(name), &hidden).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_link_does_not_show_the_hosts_own_places() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let link = dir.path().join("link");
        for target in ["/proc", "/dev/shm", "/sys"] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            let found = look_at(&link, &[]);
            assert!(matches!(found, Err(MountFault::Own(_))), "{target}: {found:?}");
            std::fs::remove_file(&link).unwrap();
        }
    }

    #[test]
    fn nothing_hidden_may_lie_where_every_sandbox_looks() {
        assert!(check_hidden(&["/var/lib/caisson".into(), "/etc/caisson/key".into()]).is_ok());
        for path in ["/usr/local/caisson", "/bin/key", "/etc/ssl/certs/key.pem"] {
            let error = check_hidden(&[path.into()]).unwrap_err();
            assert!(error.to_string().contains("no sandbox may see"), "{path}: {error}");
        }
    }

    #[test]
    fn a_toolchain_with_a_colon_would_be_two_parts_of_a_search_path() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (colon, plain) = (dir.path().join("a:b"), dir.path().join("c d"));
        for path in [&colon, &plain] {
            std::fs::create_dir(path).unwrap();
        }
        assert!(check_toolchains(std::slice::from_ref(&plain), &[]).is_empty());
        let [error] = &check_toolchains(&[plain, colon.clone()], &[])[..] else { panic!("one fault") };
        assert!(
            matches!(error, SpecError::Mount { path, fault: MountFault::Colon, .. } if *path == colon),
            "{error}"
        );
    }

    #[test]
    fn every_path_that_cannot_be_shown_is_told_at_once() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let config = crate::local::LocalConfig {
            records_dir: dir.path().join("records"),
            bubblewrap: None,
            read_only: ["opt", "/proc/self", "/usr/share"].map(PathBuf::from).to_vec(),
            toolchains: vec!["/does/not/exist".into(), dir.path().into()],
            hidden: Vec::new(),
            control_groups: crate::local::ControlGroups::Off,
            supervisor: ("/bin/false".into(), Vec::new()),
        };
        let error = crate::local::LocalEngine::open(config, caisson_domain::id::ServerId::new(1, [1; 10]))
            .unwrap_err();
        let crate::EngineError::BadSpec(told) = &error else { panic!("{error}") };
        let SpecError::Several(faults) = told else { panic!("{told}") };
        assert_eq!(faults.len(), 5, "{told}");
        for part in [
            "opt is not an absolute path",
            "/proc/self is",
            "/usr/share is",
            "/does/not/exist cannot",
            "no sandbox may see",
        ] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_link_is_shown_under_its_own_name() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let paths = [link.clone(), dir.path().join("gone")];
        let binds = binds(&paths, &[]).unwrap();
        assert_eq!(binds.len(), 1);
        assert_eq!(
            (Path::new(&binds[0].source), Path::new(&binds[0].target)),
            (target.as_path(), link.as_path())
        );
        // It was fine when the server started, and leads elsewhere now.
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        let error = super::binds(&paths, &[]).unwrap_err();
        assert!(matches!(error, SpecError::Mount { fault: MountFault::Own("/proc"), .. }), "{error}");
    }
}
