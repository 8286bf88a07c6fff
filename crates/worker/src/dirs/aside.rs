//! A session's workspace that is no longer its own, since it went on elsewhere when this server was lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caisson_domain::id::SessionId;

use super::{DirError, Dirs, failed};
use crate::disk::volume;

/// Stands between a session's id and the time in the name of what was set aside.
const ASIDE: &str = ".left-";

impl Dirs {
    /// Sets workspace, home and volume of the session aside under names of their own, so that the session begins with an empty
    /// workspace; where they are now, or none if there was nothing. No sandbox of the session may use them.
    pub(crate) fn set_aside(&self, session: &SessionId, now_ms: i64) -> Result<Option<PathBuf>, DirError> {
        let (room, image) = (self.session(session), self.image(session));
        let _mounting = self.mounting();
        if volume::is_mounted(&room) {
            volume::unmount(&room).map_err(failed("unmount", &room))?;
        }
        let image = move_aside(&image, now_ms)?;
        let room = move_aside(&room, now_ms)?;
        Ok(image.or(room))
    }
}

/// The path, which may be of nothing, and whatever of it was set aside.
pub(super) fn with_left(path: &Path) -> Result<Vec<PathBuf>, DirError> {
    let mut found = vec![path.to_path_buf()];
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(found) };
    let mut begin = name.to_owned();
    begin.push(ASIDE);
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        if entry.file_name().as_encoded_bytes().starts_with(begin.as_encoded_bytes()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn move_aside(path: &Path, now_ms: i64) -> Result<Option<PathBuf>, DirError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{ASIDE}{now_ms}"));
    let target = PathBuf::from(name);
    match fs::rename(path, &target) {
        Ok(()) => Ok(Some(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("set aside", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskCaps;

    #[test]
    fn what_a_session_left_behind_is_set_aside_and_no_longer_the_sessions() {
        let root = tempfile::tempdir().unwrap();
        let caps = DiskCaps::Measured { reason: "a test".to_owned() };
        let dirs = Dirs::open(&root.path().join("state"), caps).unwrap();
        let session = SessionId::new(1, [1; 10]);
        assert_eq!(dirs.set_aside(&session, 7).unwrap(), None);
        fs::create_dir(dirs.session(&session)).unwrap();
        fs::write(dirs.session(&session).join("work"), "x").unwrap();
        let left = dirs.set_aside(&session, 7).unwrap().unwrap();
        assert!(left.join("work").is_file() && left.display().to_string().ends_with(".left-7"), "{left:?}");
        assert!(!dirs.session(&session).exists(), "it is not used");
        fs::write(dirs.image(&session), "x").unwrap();
        fs::create_dir(dirs.session(&session)).unwrap();
        let left = dirs.set_aside(&session, 8).unwrap().unwrap();
        assert!(left.is_file() && left.display().to_string().ends_with(".img.left-8"), "{left:?}");
    }

    #[test]
    fn what_was_set_aside_goes_with_its_session_and_not_with_another() {
        let root = tempfile::tempdir().unwrap();
        let caps = DiskCaps::Measured { reason: "a test".to_owned() };
        let dirs = Dirs::open(&root.path().join("state"), caps).unwrap();
        let (session, other) = (SessionId::new(1, [1; 10]), SessionId::new(1, [2; 10]));
        let fill = |session: &SessionId| {
            fs::create_dir_all(dirs.session(session).join("workspace/deep")).unwrap();
            fs::write(dirs.image(session), "x").unwrap();
        };
        let names = || {
            let of = |part: &str| fs::read_dir(dirs.state_dir.join(part)).unwrap();
            let entries = ["sessions", "volumes", "trash"].into_iter().flat_map(of);
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        for session in [&session, &other] {
            for now_ms in [7, 8] {
                fill(session);
                dirs.set_aside(session, now_ms).unwrap();
            }
            fill(session);
        }
        assert_eq!(names().len(), 12);
        assert!(!dirs.remove_session(&session, || true).unwrap());
        assert_eq!(names().len(), 12, "it is used");
        assert!(dirs.remove_session(&session, || false).unwrap());
        let left = names();
        assert!(left.len() == 6 && left.iter().all(|name| name.starts_with(other.as_str())), "{left:?}");
        // What is left of a session that goes on nowhere here.
        fs::remove_file(dirs.image(&other)).unwrap();
        fs::remove_dir_all(dirs.session(&other)).unwrap();
        assert!(dirs.remove_session(&other, || false).unwrap());
        assert!(names().is_empty(), "{:?}", names());
    }
}
