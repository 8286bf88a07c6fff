//! Looks at the host before anything of it is shown in a sandbox.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::profile::HOSTS;
use crate::spec::{Access, MountEntry};
use crate::{MountFault, Mounts, SpecError};

/// Sockets that make root of whoever writes to them, beside the engine's own.
const WELL_KNOWN_SOCKETS: [&str; 6] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/buildkit/buildkitd.sock",
];

/// A mount that was looked at: absolute, existing, without a symbolic link in its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: String,
    pub(crate) target: &'static str,
    pub(crate) access: Access,
}

/// File name of the hosts file in the directory that it is kept in.
const HOSTS_FILE: &str = "sandbox-hosts";

/// Writes the file that sandboxes see as `/etc/hosts`, whole or not at all, since living sandboxes may look at it.
pub(crate) fn write_hosts_file(directory: &Path) -> Result<PathBuf, SpecError> {
    let fault = |fault| SpecError::Mount { mount: "hosts_file", path: directory.to_path_buf(), fault };
    if !directory.is_absolute() {
        return Err(fault(MountFault::Relative));
    }
    let write = || {
        let file = directory.canonicalize()?.join(HOSTS_FILE);
        // Already right: a new file would leave the old one to the sandboxes that live.
        if std::fs::read(&file).is_ok_and(|text| text == HOSTS.as_bytes()) {
            return Ok(file);
        }
        let new = file.with_extension("new");
        std::fs::write(&new, HOSTS)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&new, &file)?;
        Ok(file)
    };
    let file = write().map_err(|error| fault(MountFault::Unreadable(error)))?;
    if file.to_str().is_none() {
        return Err(fault(MountFault::NotText));
    }
    Ok(file)
}

/// Whether showing `directory` would show an engine's socket.
pub(crate) fn shows_engine_socket(directory: &Path) -> bool {
    engine_sockets(None).iter().any(|socket| socket.starts_with(directory))
}

/// Every engine's socket that is known, as it is written and as it is without symbolic links.
fn engine_sockets(own: Option<&Path>) -> Vec<PathBuf> {
    own.into_iter()
        .chain(WELL_KNOWN_SOCKETS.iter().map(Path::new))
        .flat_map(|socket| [socket.canonicalize().ok(), Some(socket.to_path_buf())])
        .flatten()
        .collect()
}

/// Resolves and checks all mounts; blocks on the file system.
pub(crate) fn resolve(mounts: &Mounts, engine_socket: Option<&Path>) -> Result<Vec<Bind>, SpecError> {
    let sockets = engine_sockets(engine_socket);
    let entries = mounts.entries();
    let mut sources = Vec::with_capacity(entries.len());
    for entry in &entries {
        let source = look_at(entry, &sockets).map_err(|fault| refused(entry, fault))?;
        sources.push(source);
    }
    for (index, entry) in entries.iter().enumerate() {
        if entry.access == Access::Writable
            && let Some(other) = contained(index, &sources)
        {
            return Err(refused(entry, MountFault::Overlaps(entries[other].name)));
        }
    }
    let bind = |(entry, source): (&MountEntry<'_>, PathBuf)| {
        let source = source.into_os_string().into_string();
        let source = source.map_err(|_| refused(entry, MountFault::NotText))?;
        Ok(Bind { source, target: entry.target, access: entry.access })
    };
    entries.iter().zip(sources).map(bind).collect()
}

fn refused(entry: &MountEntry<'_>, fault: MountFault) -> SpecError {
    SpecError::Mount { mount: entry.name, path: entry.source.to_path_buf(), fault }
}

fn look_at(entry: &MountEntry<'_>, sockets: &[PathBuf]) -> Result<PathBuf, MountFault> {
    if !entry.source.is_absolute() {
        return Err(MountFault::Relative);
    }
    let source = entry.source.canonicalize().map_err(MountFault::Unreadable)?;
    if let Some(socket) = sockets.iter().find(|socket| socket.starts_with(&source)) {
        return Err(MountFault::EngineSocket(socket.clone()));
    }
    let kind = source.metadata().map_err(MountFault::Unreadable)?.file_type();
    match (entry.is_file(), kind.is_file(), kind.is_dir()) {
        (true, false, _) => Err(MountFault::NotAFile),
        (false, _, false) => Err(MountFault::NotADirectory),
        (true, true, _) | (false, _, true) => Ok(source),
    }
}

/// The first other source that is, or lies in, the source at `index`.
fn contained(index: usize, sources: &[PathBuf]) -> Option<usize> {
    (0..sources.len()).find(|&other| other != index && sources[other].starts_with(&sources[index]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    struct Host {
        directory: tempfile::TempDir,
        mounts: Mounts,
    }

    fn host() -> Host {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let make = |name: &str| {
            std::fs::create_dir(root.join(name)).unwrap();
            root.join(name)
        };
        std::fs::write(root.join("shim"), "x").unwrap();
        let mounts = Mounts {
            shim: root.join("shim"),
            agent_dir: make("agent"),
            door_dir: make("door"),
            journal_dir: make("journal"),
            workspace_dir: make("work:space ü"),
            home_dir: make("home"),
        };
        Host { directory, mounts }
    }

    fn fault(mounts: &Mounts, socket: &Path) -> (&'static str, MountFault) {
        match resolve(mounts, Some(socket)) {
            Err(SpecError::Mount { mount, fault, .. }) => (mount, fault),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_mount_gets_its_place_and_only_three_are_writable() {
        let host = host();
        let binds = resolve(&host.mounts, Some(Path::new("/nowhere.sock"))).unwrap();
        let writable: Vec<_> =
            binds.iter().filter(|b| b.access == Access::Writable).map(|b| b.target).collect();
        let read_only: Vec<_> =
            binds.iter().filter(|b| b.access == Access::ReadOnly).map(|b| b.target).collect();
        assert_eq!(writable, ["/caisson/journal", "/workspace", "/home/agent"]);
        assert_eq!(read_only, ["/caisson/shim", "/caisson/agent", "/caisson/door"]);
        assert!(binds[4].source.ends_with("/work:space ü"));
    }

    #[test]
    fn symbolic_links_are_resolved_before_they_are_judged() {
        let mut host = host();
        let link = host.directory.path().join("link");
        std::os::unix::fs::symlink(&host.mounts.home_dir, &link).unwrap();
        let target = host.mounts.home_dir.clone();
        host.mounts.home_dir = link.clone();
        let binds = resolve(&host.mounts, Some(Path::new("/nowhere.sock"))).unwrap();
        assert_eq!(Path::new(&binds[5].source), target);
        host.mounts.workspace_dir = link;
        let found = fault(&host.mounts, Path::new("/nowhere.sock"));
        assert!(matches!(found, ("workspace_dir", MountFault::Overlaps("home_dir"))), "{found:?}");
    }

    #[test]
    fn relative_missing_and_wrong_kinds_of_paths_are_refused() {
        type Change = fn(&mut Mounts);
        let cases: [(Change, &str, &str); 5] = [
            (|m| m.shim = "shim".into(), "shim", "is not an absolute path"),
            (|m| m.shim = m.home_dir.clone(), "shim", "is not a regular file"),
            (|m| m.shim = "/dev/null".into(), "shim", "is not a regular file"),
            (|m| m.door_dir = m.shim.clone(), "door_dir", "is not a directory"),
            (
                |m| m.home_dir = "/does/not/exist".into(),
                "home_dir",
                "cannot be read: No such file or directory",
            ),
        ];
        for (change, name, text) in cases {
            let mut host = host();
            change(&mut host.mounts);
            let (mount, fault) = fault(&host.mounts, Path::new("/nowhere.sock"));
            assert_eq!(mount, name);
            assert!(fault.to_string().starts_with(text), "{fault}");
        }
    }

    #[test]
    fn a_path_that_is_no_text_is_refused() {
        let mut host = host();
        let name = std::ffi::OsString::from_vec(b"not-\xff-text".to_vec());
        host.mounts.home_dir = host.directory.path().join(name);
        std::fs::create_dir(&host.mounts.home_dir).unwrap();
        let found = fault(&host.mounts, Path::new("/nowhere.sock"));
        assert!(matches!(found, ("home_dir", MountFault::NotText)), "{found:?}");
    }

    #[test]
    fn no_mount_is_or_contains_the_engine_socket() {
        let mut host = host();
        let socket = host.mounts.door_dir.join("engine.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let found = fault(&host.mounts, &socket);
        assert!(
            matches!(&found, ("door_dir", MountFault::EngineSocket(path)) if *path == socket),
            "{found:?}"
        );
        host.mounts.shim.clone_from(&socket);
        let found = fault(&host.mounts, &socket);
        assert!(matches!(found, ("shim", MountFault::EngineSocket(_))), "{found:?}");
        drop(listener);
        // A socket that is not there yet (the engine is down) is guarded as well.
        let host = self::host();
        let found = fault(&host.mounts, &host.mounts.home_dir.join("later.sock"));
        assert!(matches!(found, ("home_dir", MountFault::EngineSocket(_))), "{found:?}");
    }

    #[test]
    fn the_root_and_run_directories_are_refused_whatever_engine_is_used() {
        for path in ["/", "/run"] {
            let mut host = host();
            host.mounts.agent_dir = path.into();
            let found = fault(&host.mounts, Path::new("/nowhere.sock"));
            assert!(matches!(found, ("agent_dir", MountFault::EngineSocket(_))), "{path}: {found:?}");
        }
    }

    #[test]
    fn the_hosts_file_is_readable_by_all_and_written_once() {
        let host = host();
        let file = write_hosts_file(host.directory.path()).unwrap();
        let before = file.metadata().unwrap();
        assert_eq!(before.permissions().mode() & 0o777, 0o644);
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("127.0.0.1\tlocalhost sandbox\n"));
        assert_eq!(write_hosts_file(host.directory.path()).unwrap(), file);
        assert_eq!(file.metadata().unwrap().modified().unwrap(), before.modified().unwrap());
        std::fs::write(&file, "torn").unwrap();
        write_hosts_file(host.directory.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), HOSTS);
        for (bad, text) in [("relative", "absolute"), ("/does/not/exist", "No such file")] {
            let error = write_hosts_file(Path::new(bad)).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn what_is_writable_neither_is_nor_contains_another_mount() {
        let mut host = host();
        host.mounts.door_dir = host.mounts.workspace_dir.join("door");
        std::fs::create_dir(&host.mounts.door_dir).unwrap();
        let found = fault(&host.mounts, Path::new("/nowhere.sock"));
        assert!(matches!(found, ("workspace_dir", MountFault::Overlaps("door_dir"))), "{found:?}");
        let mut host = self::host();
        host.mounts.journal_dir.clone_from(&host.mounts.home_dir);
        let found = fault(&host.mounts, Path::new("/nowhere.sock"));
        assert!(matches!(found, ("journal_dir", MountFault::Overlaps("home_dir"))), "{found:?}");
        // Two read-only ones may be in one another: the shim may lie beside the agent.
        let mut host = self::host();
        host.mounts.shim = host.mounts.agent_dir.join("shim");
        std::fs::write(&host.mounts.shim, "x").unwrap();
        assert!(resolve(&host.mounts, Some(Path::new("/nowhere.sock"))).is_ok());
    }
}
