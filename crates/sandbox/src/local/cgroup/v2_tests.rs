//! Version 2 against this kernel for what no controller is needed for, or any will do; against directories that look like it for the
//! rest, since a kernel gives its controllers to one version only.

use std::fs::File;
use std::process::Child;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::super::Group;
use super::super::tests::{everything, pid, skipped, start};
use super::*;

const ALL: &str = "cpuset cpu io memory pids\n";
const GIVEN: &str = "cpu memory pids\n";

/// A directory that looks like a hierarchy of version 2, seen at its own place.
fn unified(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<Mount>) {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = root.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let mount = Mount {
        root: "/".into(),
        place: root.path().to_owned(),
        kind: "cgroup2".to_owned(),
        source: "none".into(),
        options: vec!["rw".to_owned()],
    };
    (root, vec![mount])
}

/// What a server in this group finds; who only looks finds the same, and changes nothing.
fn find(mounts: &[Mount], group: &str, owns: Owns) -> Result<Found, String> {
    let groups = format!("0::{group}\n");
    let server = |does| Server { pid: 0, groups: &groups, owns, needs: &CONTROLLERS, does };
    let before = mounts.first().map(|mount| everything(&mount.place));
    let looked = server(Does::Look).find(mounts);
    assert_eq!(mounts.first().map(|mount| everything(&mount.place)), before);
    let found = server(Does::Arrange).find(mounts);
    assert_eq!(looked, found);
    found
}

const UNIT: &str = "system.slice/caisson.service";

/// A hierarchy with a unit's group, and whether something is at the place of the group below the root.
fn with_unit() -> (tempfile::TempDir, Vec<Mount>) {
    let of = |name: &str| format!("{UNIT}/{name}");
    unified(&[
        ("cgroup.controllers", ALL),
        ("cgroup.subtree_control", GIVEN),
        ("caisson/cgroup.controllers", GIVEN),
        ("caisson/cgroup.subtree_control", GIVEN),
        (&of("cgroup.type"), "domain\n"),
        (&of("cgroup.controllers"), GIVEN),
        (&of("cgroup.subtree_control"), GIVEN),
        (&of("cgroup.procs"), ""),
        (&of("server/cgroup.type"), "domain\n"),
        (&of("server/cgroup.procs"), ""),
    ])
}

#[test]
fn a_server_in_no_group_but_the_root_makes_one_below_it() {
    for owns in [Owns::Marked, Owns::All] {
        let (root, mounts) = with_unit();
        let base = root.path().join("caisson");
        assert_eq!(find(&mounts, "/", owns), Ok(Found { base: base.clone(), weakness: None }));
        assert_eq!(fs::read_to_string(base.join("cpu.weight")).unwrap(), "50");
    }
}

#[test]
fn a_delegated_group_is_left_for_one_below_it_first_also_by_root() {
    for owns in [Owns::Writable, Owns::All] {
        let (root, mounts) = with_unit();
        let base = root.path().join(UNIT);
        let found = find(&mounts, &format!("/{UNIT}"), owns);
        assert_eq!(found, Ok(Found { base: base.clone(), weakness: None }), "{owns:?}");
        assert_eq!(fs::read_to_string(base.join("server/cgroup.procs")).unwrap(), "0");
        assert!(!root.path().join("caisson/cpu.weight").exists(), "nothing is done below the root");
    }
}

#[test]
fn a_server_that_was_put_into_the_group_below_stays_there() {
    for owns in [Owns::Writable, Owns::All] {
        let (root, mounts) = with_unit();
        let base = root.path().join(UNIT);
        let found = find(&mounts, &format!("/{UNIT}/server"), owns);
        assert_eq!(found, Ok(Found { base: base.clone(), weakness: None }), "{owns:?}");
        assert_eq!(fs::read_to_string(base.join("server/cgroup.procs")).unwrap(), "", "it need not move");
    }
}

#[test]
fn root_does_not_take_a_group_that_systemd_has_not_given_away_and_says_so() {
    let (root, mounts) = with_unit();
    let found = find(&mounts, &format!("/{UNIT}"), Owns::Marked).unwrap();
    assert_eq!(found.base, root.path().join("caisson"));
    let weakness = found.weakness.unwrap();
    assert!(weakness.contains("do not bound") && weakness.contains("is not given to it"), "{weakness}");
    assert_eq!(fs::read_to_string(root.path().join(UNIT).join("server/cgroup.procs")).unwrap(), "");
}

#[test]
fn root_says_what_its_group_lacks_and_goes_below_the_root() {
    let (root, mounts) = with_unit();
    fs::write(root.path().join(UNIT).join("cgroup.controllers"), "memory pids\n").unwrap();
    let found = find(&mounts, &format!("/{UNIT}"), Owns::All).unwrap();
    assert_eq!(found.base, root.path().join("caisson"));
    assert!(found.weakness.unwrap().contains("has no controller cpu"));
    let mounts = [Mount { root: "/elsewhere".into(), ..mounts[0].clone() }];
    let found = find(&mounts, &format!("/{UNIT}"), Owns::All).unwrap();
    assert!(found.weakness.is_none_or(|weakness| weakness.contains("is not seen")));
}

#[test]
fn what_is_missing_is_told() {
    let (_root, mounts) = unified(&[("cgroup.controllers", "cpu pids\n")]);
    assert!(find(&mounts, "/", Owns::All).unwrap_err().contains("no controller memory"));
    let (root, mounts) = unified(&[("cgroup.controllers", ALL)]);
    let error = find(&mounts, "/user", Owns::Writable).unwrap_err();
    assert!(error.contains("no control group is delegated to this server"), "{error}");
    assert!(!root.path().join("caisson").exists(), "what was made on the way is gone");
    assert!(find(&[], "/", Owns::All).is_err());
    let server =
        Server { pid: 0, groups: "1:memory:/\n", owns: Owns::All, needs: &CONTROLLERS, does: Does::Arrange };
    assert!(server.find(&mounts).is_err());
}

#[test]
fn limits_and_usage_of_version_2_are_written_and_read_where_the_kernel_has_them() {
    let (root, _) = unified(&[
        ("g/memory.swap.max", "max"),
        ("g/memory.stat", "anon 5\ninactive_file 1000\n"),
        ("g/memory.current", "5000\n"),
        ("g/memory.peak", "9000\n"),
        ("g/memory.events", "low 0\noom 3\noom_kill 2\n"),
        ("g/cpu.stat", "usage_usec 77\nuser_usec 1\n"),
        ("g/pids.current", "4\n"),
        ("g/pids.events", "max 6\n"),
    ]);
    let directory = root.path().join("g");
    let limits = ResourceLimits { memory_bytes: 1 << 30, pids: 99, cpu_millis: 500, tmp_bytes: 1 << 20 };
    limit(&directory, &limits).unwrap();
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    assert_eq!(
        (read("memory.max"), read("memory.swap.max"), read("pids.max")),
        ("1073741824".into(), "0".into(), "99".into())
    );
    let most = ResourceLimits { cpu_millis: crate::CPU_MILLIS_MAX, ..limits };
    assert_eq!(quota_micros(&most), 102_400_000, "more than any machine has is written as it is");
    assert_eq!((read("cpu.max"), read("cpu.weight")), ("50000 100000".into(), "50".into()));
    let group = Group::V2 { directory };
    let usage = SandboxUsage {
        memory_bytes: 4000,
        memory_peak_bytes: Some(9000),
        cpu_micros: 77,
        pids: 4,
        pids_refused: Some(6),
    };
    assert_eq!((group.usage().unwrap(), group.oom_kills()), (usage, 2));
}

/// The kernel's own hierarchy of version 2, at a place that only this thread sees and whose name has a blank.
struct Kernels {
    mounts: Vec<Mount>,
    /// What its groups can have: what sandboxes need, or else any controller.
    needs: Vec<&'static str>,
    /// What the root hands on for this test only.
    lent: Option<&'static str>,
    children: Vec<Child>,
    groups: Vec<PathBuf>,
    place: PathBuf,
    /// Held, so that tests that run beside this one do not take back what it needs.
    _turn: File,
    _directory: tempfile::TempDir,
}

impl Kernels {
    /// None, and a word about it, where a thread may not mount.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("of \\ version 2");
        fs::create_dir(&place).unwrap();
        let plain = |target: &Path, flags| mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
        let mounted = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| plain(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE))
            .and_then(|()| mount(Some("none"), &place, Some("cgroup2"), MsFlags::empty(), None::<&str>));
        if let Err(error) = mounted {
            skipped(&error.to_string());
            return None;
        }
        let turn = File::open(&place).unwrap();
        turn.lock().unwrap();
        let available = fs::read_to_string(place.join("cgroup.controllers")).unwrap();
        let handed_on = fs::read_to_string(place.join("cgroup.subtree_control")).unwrap();
        let (mut needs, mut lent) = (CONTROLLERS.to_vec(), None);
        if !needs.iter().all(|name| names(&available, name)) {
            needs = ["hugetlb", "misc", "rdma"].into_iter().filter(|name| names(&available, name)).collect();
            needs.truncate(1);
        }
        if let Some(name) = needs.first().filter(|name| !names(&handed_on, name)) {
            fs::write(place.join("cgroup.subtree_control"), format!("+{name}")).unwrap();
            lent = Some(*name);
        }
        let mounts = Mount::all(&fs::read("/proc/thread-self/mountinfo").unwrap());
        let mounts = mounts.into_iter().filter(|mount| mount.place == place).collect();
        let (children, groups) = (Vec::new(), Vec::new());
        Some(Self { mounts, needs, lent, children, groups, place, _turn: turn, _directory: directory })
    }

    fn group(&mut self, name: &str) -> PathBuf {
        let group = self.place.join(format!("test_{name}_{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        self.groups.push(group.clone());
        group
    }

    /// A process in a group.
    fn process(&mut self, group: &Path) -> u32 {
        let child = start("/bin/sleep", &["600"]);
        write(&group.join("cgroup.procs"), &child.id().to_string()).unwrap();
        self.children.push(child);
        self.children.last().unwrap().id()
    }

    fn find(&self, process: u32, owns: Owns) -> Result<Found, String> {
        let groups = groups(process);
        let server = |does| Server { pid: process, groups: &groups, owns, needs: &self.needs, does };
        let before: Vec<_> = self.groups.iter().map(|group| made(group)).collect();
        let looked = server(Does::Look).find(&self.mounts);
        assert_eq!(self.groups.iter().map(|group| made(group)).collect::<Vec<_>>(), before);
        assert_eq!(self::groups(process), groups, "who only looks does not move");
        let found = server(Does::Arrange).find(&self.mounts);
        assert_eq!(looked, found);
        found
    }

    /// What a server is told that is in a group of systemd's.
    fn refusal(&self, process: u32, group: &Path) -> io::Error {
        let server = Server {
            pid: process,
            groups: &groups(process),
            owns: Owns::Marked,
            needs: &self.needs,
            does: Does::Arrange,
        };
        server.delegated(group, &self.place).unwrap_err()
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        for group in &self.groups {
            for below in fs::read_dir(group).into_iter().flatten().flatten() {
                fs::remove_dir(below.path()).ok();
            }
            fs::remove_dir(group).ok();
        }
        if let Some(name) = self.lent {
            fs::write(self.place.join("cgroup.subtree_control"), format!("-{name}")).ok();
        }
        umount2(&self.place, MntFlags::MNT_DETACH).ok();
    }
}

/// The groups below one, and what it hands on to them.
fn made(group: &Path) -> (Vec<PathBuf>, String) {
    let below = fs::read_dir(group).unwrap().flatten().map(|entry| entry.path());
    let mut below: Vec<_> = below.filter(|path| path.is_dir()).collect();
    below.sort();
    (below, fs::read_to_string(group.join("cgroup.subtree_control")).unwrap())
}

/// The text of a process's groups.
fn groups(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap()
}

fn mark(group: &Path) {
    rustix::fs::setxattr(group, MARKS[1], b"1", rustix::fs::XattrFlags::empty()).unwrap();
}

/// On a thread of its own, whose mounts nobody else sees.
fn alone(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn the_kernel_takes_a_given_group_as_it_is_arranged() {
    alone(|| {
        let Some(mut kernels) = Kernels::mount() else { return };
        let base = kernels.group("marked");
        let server = kernels.process(&base);
        assert_eq!(kernels.mounts.len(), 1, "found in spite of its name");
        let error = kernels.refusal(server, &base);
        assert!(error.to_string().contains("is not given"), "{error}");
        mark(&base);
        let before = groups(server);
        let error = kernels.refusal(server, &base);
        assert!(error.to_string().contains("DelegateSubgroup=server"), "{error}");
        assert_eq!((groups(server), base.join(OWN).exists()), (before, false), "nothing was moved");
        // Without systemd it moves itself; with it, it is there already.
        for owns in [Owns::All, Owns::All, Owns::Marked, Owns::Writable] {
            assert_eq!(kernels.find(server, owns), Ok(Found { base: base.clone(), weakness: None }));
            assert!(groups(server).lines().any(|line| line.starts_with("0::") && line.ends_with("/server")));
        }
        let handed_on = fs::read_to_string(base.join("cgroup.subtree_control")).unwrap();
        assert!(kernels.needs.iter().all(|name| names(&handed_on, name)), "{handed_on}");
        if !kernels.needs.is_empty() {
            let other = start("/bin/sleep", &["600"]);
            let error = write(&base.join("cgroup.procs"), &other.id().to_string()).unwrap_err();
            kernels.children.push(other);
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "no process may be beside groups");
        }

        let group = Group::V2 { directory: base.join("caisson-x") };
        group.create().unwrap();
        assert_eq!(group.create().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let inside = start("/bin/sleep", &["600"]);
        group.add(pid(&inside)).unwrap();
        kernels.children.push(inside);
        let events = base.join("caisson-x/cgroup.events");
        assert!(fs::read_to_string(&events).unwrap().contains("populated 1"));
        group.kill().unwrap();
        assert!(fs::read_to_string(&events).unwrap().contains("populated 0"));
        group.remove().unwrap();
        assert!(groups(server).contains("/server"), "the server is not touched");
    });
}

#[test]
fn the_kernel_refuses_a_group_with_others_in_it_and_all_is_as_it_was() {
    alone(|| {
        let Some(mut kernels) = Kernels::mount() else { return };
        if kernels.needs.is_empty() {
            return skipped("version 2 has no controller at all here");
        }
        let base = kernels.group("shared");
        let (server, other) = (kernels.process(&base), kernels.process(&base));
        let before = (groups(server), groups(other));
        for does in [Does::Look, Does::Arrange] {
            let asks =
                Server { pid: server, groups: &before.0, owns: Owns::All, needs: &kernels.needs, does };
            let error = asks.delegated(&base, &kernels.place).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "{does:?}: {error}");
        }
        assert_eq!((groups(server), groups(other)), before);
        assert!(!base.join(OWN).exists());
    });
}
