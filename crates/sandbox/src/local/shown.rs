//! What every sandbox is to see of the host beside its own directories.

use std::path::{Component, Path, PathBuf};

use caisson_domain::protocol::places;

use super::order::Shown;
use crate::mounts::shows_engine_socket;
use crate::{MountFault, SpecError};

/// Places that a sandbox has of its own: nothing of the host may be shown at, above or below them.
const OWN_PLACES: [&str; 16] = [
    "/proc",
    "/dev",
    "/sys",
    "/run",
    "/tmp",
    "/etc",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/caisson",
    places::WORKSPACE,
    places::HOME,
];
/// Places of the host to, above or below which no link may lead: they are the kernel's, or of services that run.
const HIDDEN: [&str; 4] = ["/proc", "/dev", "/sys", "/run"];

/// Checks paths that sandboxes are to see, and that none leads to, above or below a `private` one (absolute, without links);
/// blocks on the file system.
///
/// # Errors
/// [`SpecError::Mount`] for the first that cannot be shown.
pub(super) fn check(paths: &[PathBuf], what: &'static str, private: &[PathBuf]) -> Result<(), SpecError> {
    for path in paths {
        look_at(path, private).map_err(|fault| SpecError::Mount {
            mount: what,
            path: path.clone(),
            fault,
        })?;
    }
    Ok(())
}

fn look_at(path: &Path, private: &[PathBuf]) -> Result<(), MountFault> {
    if !path.is_absolute() {
        return Err(MountFault::Relative);
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(MountFault::Upwards);
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
    if let Some(own) = OWN_PLACES.into_iter().find(|own| overlap(path, Path::new(own))) {
        return Err(MountFault::Reserved(own));
    }
    let private = private.iter().map(PathBuf::as_path);
    match HIDDEN.into_iter().map(Path::new).chain(private).find(|hidden| overlap(&source, hidden)) {
        Some(hidden) => Err(MountFault::Hidden(hidden.to_owned())),
        None => Ok(()),
    }
}

fn overlap(left: &Path, right: &Path) -> bool {
    left.starts_with(right) || right.starts_with(left)
}

/// Checks directories whose programs are to be found; blocks on the file system.
///
/// # Errors
/// As [`check`], and [`MountFault::Colon`].
pub(super) fn check_toolchains(paths: &[PathBuf], private: &[PathBuf]) -> Result<(), SpecError> {
    let what = "toolchains";
    check(paths, what, private)?;
    match paths.iter().find(|path| path.as_os_str().as_encoded_bytes().contains(&b':')) {
        Some(path) => Err(SpecError::Mount { mount: what, path: path.clone(), fault: MountFault::Colon }),
        None => Ok(()),
    }
}

/// The binds of paths that were checked, as they are now; those that are gone are left out.
pub(super) fn binds(paths: &[PathBuf]) -> Vec<Shown> {
    let bind = |path: &PathBuf| {
        let source = path.canonicalize().ok()?;
        let is_file = source.is_file();
        let source = source.into_os_string().into_string().ok()?;
        Some(Shown { source, target: path.to_str()?.to_owned(), writable: false, is_file })
    };
    paths.iter().filter_map(bind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sandbox_has_of_its_own_is_not_covered() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        assert!(look_at(dir.path(), &[]).is_ok());
        for path in ["/", "/usr/lib", "/proc/self", "/home", "/etc", "/tmp", "/bin", "/lib"] {
            let found = look_at(Path::new(path), &[]);
            assert!(
                matches!(found, Err(MountFault::Reserved(_) | MountFault::EngineSocket(_))),
                "{path}: {found:?}"
            );
        }
        assert!(matches!(look_at(Path::new("opt"), &[]), Err(MountFault::Relative)));
        assert!(matches!(look_at(Path::new("/does/not/exist"), &[]), Err(MountFault::Unreadable(_))));
        for path in ["/var/../etc", "/var/..", "/var/tmp/../tmp"] {
            assert!(matches!(look_at(Path::new(path), &[]), Err(MountFault::Upwards)), "{path}");
        }
    }

    #[test]
    fn no_link_leads_to_what_a_sandbox_may_not_see() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir_all(state.join("inner")).unwrap();
        let private = [state.clone()];
        let leads_to = |target: &Path| {
            let link = dir.path().join("link");
            std::fs::remove_file(&link).ok();
            std::os::unix::fs::symlink(target, &link).unwrap();
            look_at(&link, &private)
        };
        assert!(leads_to(Path::new("/usr/share")).is_ok());
        for target in [Path::new("/proc"), Path::new("/sys/kernel"), &state, &state.join("inner"), dir.path()]
        {
            let found = leads_to(target);
            assert!(matches!(found, Err(MountFault::Hidden(_))), "{}: {found:?}", target.display());
        }
        assert!(leads_to(Path::new("/")).is_err());
        assert!(matches!(look_at(&state, &private), Err(MountFault::Hidden(path)) if path == state));
        let beside = dir.path().join("state-of-something-else");
        std::fs::create_dir(&beside).unwrap();
        assert!(look_at(&beside, &private).is_ok(), "a name that only begins alike");
    }

    #[test]
    fn a_toolchain_with_a_colon_would_be_two_parts_of_a_search_path() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (colon, plain) = (dir.path().join("a:b"), dir.path().join("c d"));
        for path in [&colon, &plain] {
            std::fs::create_dir(path).unwrap();
        }
        assert!(check_toolchains(std::slice::from_ref(&plain), &[]).is_ok());
        let error = check_toolchains(&[plain, colon.clone()], &[]).unwrap_err();
        assert!(
            matches!(&error, SpecError::Mount { path, fault: MountFault::Colon, .. } if *path == colon),
            "{error}"
        );
    }

    #[test]
    fn a_link_is_shown_under_its_own_name() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let binds = binds(&[link.clone(), dir.path().join("gone")]);
        assert_eq!(binds.len(), 1);
        assert_eq!(
            (Path::new(&binds[0].source), Path::new(&binds[0].target)),
            (target.as_path(), link.as_path())
        );
    }
}
