//! What is known of a sandbox on disk, so that a server that starts again finds it.
//!
//! ```text
//! <records>/<sandbox>/          the server's own, mode 0700
//!     label.json                whose it is; written before anything of it exists
//!     supervisor.json           its supervisor
//!     first.json                its first process and its control group; written before that process may go on
//!     exit.json                 how it ended; written by the supervisor, or never if that was killed
//!     control                   the supervisor's socket
//!     log                       the last words of bubblewrap and shim, bounded
//! ```
//! Nothing here is a secret: the grants are in the supervisor's memory alone.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use caisson_domain::id::{SandboxId, ServerId, SessionId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::cgroup::Group;
use super::identity::Identity;
use crate::{Exit, Liveness, OwnedSandbox};

/// Whose it is.
pub(crate) const LABEL: &str = "label.json";
/// Its supervisor.
pub(crate) const SUPERVISOR: &str = "supervisor.json";
/// Its first process.
pub(crate) const FIRST: &str = "first.json";
/// How it ended.
pub(crate) const EXIT: &str = "exit.json";
/// The supervisor's socket.
pub(crate) const CONTROL: &str = "control";
/// Last words.
pub(crate) const LOG: &str = "log";

/// Longest record that is read, in bytes.
const RECORD_BYTES: u64 = 64 * 1024;

/// Whose a sandbox is: the local engine's labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) server: ServerId,
    pub(crate) session: SessionId,
    /// Version of this crate that made it, for whoever reads it years later.
    pub(crate) version: String,
}

/// The first process of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct First {
    pub(crate) process: Identity,
    /// Its control group; none where none can be had.
    pub(crate) group: Option<Group>,
}

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) code: Option<i64>,
    pub(crate) oom_killed: bool,
    pub(crate) finished_at_ms: Option<i64>,
}

impl From<Ended> for Exit {
    fn from(ended: Ended) -> Self {
        Self { code: ended.code, oom_killed: ended.oom_killed, finished_at_ms: ended.finished_at_ms }
    }
}

/// One sandbox's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    dir: PathBuf,
}

impl Record {
    /// Where the record of a sandbox is or would be.
    pub(crate) fn of(records: &Path, id: &SandboxId) -> Self {
        Self { dir: records.join(id.as_str()) }
    }

    /// The record in a directory.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes it; `false` if it is there already.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn make(&self, label: &Label) -> io::Result<bool> {
        match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error),
        }
        self.write(LABEL, label).map(|()| true)
    }

    /// Writes one of its files, whole or not at all.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let new = self.dir.join(format!("{name}.new"));
        fs::write(&new, serde_json::to_vec(value)?)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        fs::rename(new, self.dir.join(name))
    }

    /// Reads one of its files; none if it is not there or says nothing that can be understood.
    ///
    /// A file that was written just before the machine lost its power may be empty or torn. It is not synced, because nothing of the
    /// sandbox outlives that either: what it does not tell is as if it had never been written.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.dir.join(name);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        match file.take(RECORD_BYTES + 1).read_to_end(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                warn!("{} is a directory, and taken as not written", path.display());
                return Ok(None);
            }
            read => drop(read?),
        }
        if bytes.len() as u64 > RECORD_BYTES {
            warn!("{} is too long, and taken as not written", path.display());
            return Ok(None);
        }
        let told = serde_json::from_slice(&bytes);
        Ok(told
            .inspect_err(|error| warn!("{} is damaged, and taken as not written: {error}", path.display()))
            .ok())
    }

    /// Whether there is one.
    pub(crate) fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// How far the sandbox has come; none if it was never made, or is gone.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn liveness(&self) -> io::Result<Option<Liveness>> {
        // The supervisor writes how it ended before it ends itself, so this order sees every change.
        let supervised = self.supervisor()?.is_some_and(|supervisor| supervisor.is_alive());
        let first: Option<First> = self.read(FIRST)?;
        if let Some(ended) = self.read::<Ended>(EXIT)? {
            return Ok(Some(Liveness::Exited(ended.into())));
        }
        if !self.exists() {
            return Ok(None);
        }
        Ok(Some(match (supervised, first) {
            (true, None) => Liveness::Created,
            (true, Some(_)) => Liveness::Running,
            (false, Some(first)) if first.process.is_alive() => Liveness::Running,
            // Nobody saw how it ended; its control group has still counted.
            (false, first) => Liveness::Exited(Exit {
                code: None,
                oom_killed: first.and_then(|first| first.group).is_some_and(|group| group.oom_kills() > 0),
                finished_at_ms: None,
            }),
        }))
    }

    /// The supervisor, if one was written down.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn supervisor(&self) -> io::Result<Option<Identity>> {
        self.read(SUPERVISOR)
    }

    /// Removes it; one that is gone is fine.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // Half removed, it would tell of an end that nobody saw. A crash may have left what was put aside.
        let aside = self.dir.with_extension("gone");
        fine_if_gone(fs::remove_dir_all(&aside))?;
        fine_if_gone(fs::rename(&self.dir, &aside))?;
        fine_if_gone(fs::remove_dir_all(&aside))
    }
}

fn fine_if_gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Every record in a directory, by its sandbox; names that are no sandbox's are left alone.
///
/// # Errors
/// The directory cannot be listed.
pub(crate) fn list(records: &Path) -> io::Result<Vec<(SandboxId, Record)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(records)? {
        let entry = entry?;
        if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<SandboxId>().ok()) {
            found.push((id, Record::at(entry.path())));
        }
    }
    found.sort_by(|(one, _), (two, _)| one.cmp(two));
    Ok(found)
}

/// The sandboxes of a server, by their records. One whose record cannot be read is told as running, whosever it is, so that
/// whoever looks after it meets the fault, and nobody else.
///
/// # Errors
/// The directory cannot be listed.
pub(crate) fn owned(records: &Path, server: &ServerId) -> io::Result<Vec<OwnedSandbox>> {
    let look = |id: &SandboxId, record: &Record| {
        // A record without a label is one that is being made or removed, or that a crash has left half made.
        let label = record.read::<Label>(LABEL)?;
        if label.as_ref().is_some_and(|label| label.server != *server) {
            return Ok(None);
        }
        let session = label.map(|label| label.session);
        Ok::<_, io::Error>(record.liveness()?.map(|liveness| OwnedSandbox {
            id: id.clone(),
            session,
            liveness,
        }))
    };
    let found = list(records)?.into_iter().filter_map(|(id, record)| {
        look(&id, &record).unwrap_or_else(|error| {
            warn!(sandbox.id = %id, %error, "the record of sandbox {id} cannot be read; look at {}", record.dir().display());
            Some(OwnedSandbox { id, session: None, liveness: Liveness::Running })
        })
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> (tempfile::TempDir, Record) {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::of(dir.path(), &SandboxId::new(1, [1; 10]));
        let label = Label {
            server: ServerId::new(1, [2; 10]),
            session: SessionId::new(1, [3; 10]),
            version: "0".to_owned(),
        };
        assert_eq!(record.liveness().unwrap(), None);
        assert!(record.make(&label).unwrap());
        assert!(!record.make(&label).unwrap(), "an id is used once");
        assert_eq!(record.read::<Label>(LABEL).unwrap(), Some(label));
        (dir, record)
    }

    /// Something that has ended.
    fn dead() -> Identity {
        let mut value = serde_json::to_value(Identity::own().unwrap()).unwrap();
        value["started"] = 1.into();
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_files_tell_how_far_a_sandbox_has_come() {
        let (dir, record) = record();
        let unknown = Exit { code: None, oom_killed: false, finished_at_ms: None };
        assert_eq!(record.liveness().unwrap(), Some(Liveness::Exited(unknown)), "nobody looks after it");
        record.write(SUPERVISOR, &Identity::own().unwrap()).unwrap();
        assert_eq!(record.liveness().unwrap(), Some(Liveness::Created));
        record.write(FIRST, &First { process: Identity::own().unwrap(), group: None }).unwrap();
        assert_eq!(record.liveness().unwrap(), Some(Liveness::Running));
        record.write(SUPERVISOR, &dead()).unwrap();
        assert_eq!(record.liveness().unwrap(), Some(Liveness::Running), "it outlives its supervisor");
        record.write(FIRST, &First { process: dead(), group: None }).unwrap();
        assert_eq!(record.liveness().unwrap(), Some(Liveness::Exited(unknown)));
        let ended = Ended { code: Some(3), oom_killed: true, finished_at_ms: Some(7) };
        record.write(EXIT, &ended).unwrap();
        assert_eq!(record.liveness().unwrap(), Some(Liveness::Exited(ended.into())));
        assert_eq!(list(dir.path()).unwrap().len(), 1);
        fs::create_dir(dir.path().join("other")).unwrap();
        assert_eq!(list(dir.path()).unwrap().len(), 1);
        // A crash in the middle of removing it: nothing is told of it, and the next time removes the rest.
        fs::rename(record.dir(), record.dir().with_extension("gone")).unwrap();
        assert_eq!((record.liveness().unwrap(), list(dir.path()).unwrap().len()), (None, 0));
        record.remove().unwrap();
        record.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the other directory");
        assert_eq!(record.liveness().unwrap(), None);
    }

    #[test]
    fn a_file_that_is_damaged_or_too_long_is_as_if_it_was_never_written() {
        let (_dir, record) = record();
        let unknown = Exit { code: None, oom_killed: false, finished_at_ms: None };
        let ended = Ended { code: Some(3), oom_killed: false, finished_at_ms: Some(7) };
        let mut text = serde_json::to_vec(&ended).unwrap();
        text.resize(64 * 1024, b' ');
        for (text, exit) in [
            (Vec::new(), unknown),
            (b"{".to_vec(), unknown),
            (text.clone(), ended.into()),
            ([text, b" ".to_vec()].concat(), unknown),
        ] {
            fs::write(record.dir().join(EXIT), text).unwrap();
            assert_eq!(record.liveness().unwrap(), Some(Liveness::Exited(exit)));
        }
        for name in [LABEL, SUPERVISOR, FIRST] {
            fs::write(record.dir().join(name), "{").unwrap();
        }
        assert_eq!(record.liveness().unwrap(), Some(Liveness::Exited(unknown)));
        assert_eq!(record.read::<Label>(LABEL).unwrap(), None);
        for name in [LABEL, EXIT] {
            fs::remove_file(record.dir().join(name)).unwrap();
            fs::create_dir(record.dir().join(name)).unwrap();
        }
        assert_eq!(record.read::<Label>(LABEL).unwrap(), None);
        assert_eq!(record.liveness().unwrap(), Some(Liveness::Exited(unknown)));
        fs::remove_dir(record.dir().join(LABEL)).unwrap();
        std::os::unix::fs::symlink(LABEL, record.dir().join(LABEL)).unwrap();
        assert!(record.read::<Label>(LABEL).is_err(), "the disk's own faults are told");
    }

    #[test]
    fn a_damaged_record_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (server, session) = (ServerId::new(1, [2; 10]), SessionId::new(1, [3; 10]));
        let label = Label { server: server.clone(), session: session.clone(), version: "0".to_owned() };
        let ids: Vec<_> = (1..=4).map(|number| SandboxId::new(number, [1; 10])).collect();
        for id in &ids {
            assert!(Record::of(dir.path(), id).make(&label).unwrap());
        }
        let place = |number: usize, name: &str| Record::of(dir.path(), &ids[number]).dir().join(name);
        fs::create_dir(place(0, EXIT)).unwrap();
        // What the disk does not give back.
        std::os::unix::fs::symlink(SUPERVISOR, place(1, SUPERVISOR)).unwrap();
        let other = Label { server: ServerId::new(2, [2; 10]), ..label };
        fs::write(place(2, LABEL), serde_json::to_vec(&other).unwrap()).unwrap();
        let exited = Liveness::Exited(Exit { code: None, oom_killed: false, finished_at_ms: None });
        let told = |number: usize, session: Option<&SessionId>, liveness| OwnedSandbox {
            id: ids[number].clone(),
            session: session.cloned(),
            liveness,
        };
        assert_eq!(
            owned(dir.path(), &server).unwrap(),
            [
                told(0, Some(&session), exited),
                told(1, None, Liveness::Running),
                told(3, Some(&session), exited)
            ]
        );
    }
}
