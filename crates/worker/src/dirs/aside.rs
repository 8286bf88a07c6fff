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
        assert!(!dirs.session(&session).exists(), "neither used nor removed with the session");
        fs::write(dirs.image(&session), "x").unwrap();
        fs::create_dir(dirs.session(&session)).unwrap();
        let left = dirs.set_aside(&session, 8).unwrap().unwrap();
        assert!(left.is_file() && left.display().to_string().ends_with(".img.left-8"), "{left:?}");
    }
}
