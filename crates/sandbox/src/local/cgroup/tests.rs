//! Groups of this kernel, of whichever version it has.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

#[expect(clippy::disallowed_methods, reason = "processes to put into groups")]
pub(super) fn start(program: &str, arguments: &[&str]) -> Child {
    Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Starts a script in a group: it reads a line first, so that it is in there before it does anything.
#[expect(clippy::disallowed_methods, reason = "a process in a group")]
fn begin(group: &Group, script: &str) -> Child {
    let script = format!("read line; {script}");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    group.add(pid(&child)).unwrap();
    io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    child
}

pub(super) fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

/// Says that a test is skipped, or fails if no test may be.
#[expect(clippy::disallowed_methods, reason = "the environment says whether tests may be skipped")]
pub(super) fn skipped(reason: &str) {
    let required = std::env::var("TEST_REQUIRE").is_ok_and(|value| value == "1");
    assert!(!required, "no test may be skipped here: no control groups: {reason}");
    eprintln!("SKIPPED: no control groups: {reason}");
}

/// A group of this machine; says so and gives none where there are none.
fn group(name: &str, limits: &ResourceLimits) -> Option<Group> {
    let controllers = Controllers::find(Does::Arrange);
    if let Controllers::None { reason } = &controllers {
        skipped(reason);
        return None;
    }
    let name = format!("test_{name}_{}", std::process::id());
    let group = controllers.make(&name, limits).unwrap().unwrap();
    assert_eq!(controllers.group(&name).as_ref(), Some(&group), "it is found again by its name");
    Some(group)
}

#[test]
fn a_group_counts_what_is_in_it_and_goes_without_a_trace() {
    let Some(group) = group("counts", &ResourceLimits::default()) else { return };
    let mut child = start("/bin/sleep", &["600"]);
    group.add(pid(&child)).unwrap();
    let usage = group.usage().unwrap();
    assert_eq!((usage.pids, group.oom_kills()), (1, 0));
    assert!(group.remove().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy), "it is in use");
    let waiting = std::thread::spawn(move || child.wait().unwrap());
    group.kill().unwrap();
    waiting.join().unwrap();
    group.remove().unwrap();
    group.remove().unwrap();
    assert!(group.directories().iter().all(|directory| !directory.exists()));
    assert!(group.usage().is_err());
    assert_eq!(group.oom_kills(), 0);
    group.kill().unwrap();
}

#[test]
fn the_group_of_a_process_is_found_by_its_name_alone() {
    let Some(group) = group("found", &ResourceLimits::default()) else { return };
    let mut child = start("/bin/sleep", &["600"]);
    group.add(pid(&child)).unwrap();
    let name = format!("test_found_{}", std::process::id());
    let found = |name: &str| Group::of_process(i64::from(pid(&child)), name);
    assert_eq!(found(&name).map(|found| found.usage().unwrap().pids), Some(1));
    assert_eq!(found("another"), None);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(Group::of_process(i64::from(pid(&child)), &name), None, "it has ended");
    group.kill().unwrap();
    group.remove().unwrap();
}

#[test]
fn groups_of_a_container_are_read_on_both_versions() {
    let mount = |kind: &str, place: &str, options: &str| {
        format!("30 25 0:26 / {place} rw,nosuid - {kind} {kind} rw,{options}\n")
    };
    let of = |mounts: &str, groups: &str| Group::within(&Mount::all(mounts.as_bytes()), groups, "c0ffee");
    let first = mount("cgroup", "/sys/fs/cgroup/memory", "memory")
        + &mount("cgroup", "/sys/fs/cgroup/pids", "pids")
        + &mount("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct");
    let groups =
        "9:memory:/docker/c0ffee\n8:pids:/docker/c0ffee\n4:cpu,cpuacct:/docker/c0ffee\n1:name=systemd:/x\n";
    let Some(Group::V1(found)) = of(&first, groups) else { panic!("version 1") };
    let directories: Vec<_> = found.all().iter().map(|place| place.display().to_string()).collect();
    let place = |hierarchy: &str| format!("/sys/fs/cgroup/{hierarchy}/docker/c0ffee");
    assert_eq!(directories, [place("memory"), place("pids"), place("cpu,cpuacct")]);
    let second = mount("cgroup2", "/sys/fs/cgroup", "nsdelegate");
    let directory = "/sys/fs/cgroup/system.slice/docker-c0ffee.scope".into();
    let scope = "0::/system.slice/docker-c0ffee.scope\n";
    assert_eq!(of(&second, scope), Some(Group::V2 { directory }));
    for (mounts, groups) in [
        (&first, groups.replace("8:pids:/docker/c0ffee", "8:pids:/docker/other").as_str()),
        (&first, "9:memory:/docker/c0ffee\n"),
        (&second, "0::/../docker-other.scope\n"),
        (&second, ""),
        (&String::new(), scope),
    ] {
        assert_eq!(of(mounts, groups), None, "{groups}");
    }
}

#[test]
fn want_of_memory_is_counted() {
    let limits = ResourceLimits { memory_bytes: crate::MEMORY_BYTES_MIN, ..ResourceLimits::default() };
    let Some(group) = group("starves", &limits) else { return };
    let mut child = begin(&group, "exec tail /dev/zero");
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert_eq!(group.oom_kills(), 1);
    group.remove().unwrap();
}

#[test]
fn refused_processes_are_counted() {
    let limits = ResourceLimits { pids: crate::PIDS_MIN, ..ResourceLimits::default() };
    let Some(group) = group("refuses", &limits) else { return };
    assert_eq!(group.usage().unwrap().pids_refused, Some(0));
    let script = format!("for one in $(seq {}); do sleep 60 & done; exec sleep 60", limits.pids + 1);
    let mut child = begin(&group, &script);
    let until = Instant::now() + Duration::from_mins(1);
    while group.usage().unwrap().pids_refused == Some(0) {
        assert!(Instant::now() < until, "a process more than the limit was not counted");
        sleep(ROUND);
    }
    let waiting = std::thread::spawn(move || child.wait().unwrap());
    group.kill().unwrap();
    waiting.join().unwrap();
    group.remove().unwrap();
}

#[test]
fn a_group_that_cannot_have_its_limits_is_not_left() {
    let controllers = Controllers::find(Does::Arrange);
    // More than the kernel's counters hold.
    let limits = ResourceLimits { pids: u32::MAX, ..ResourceLimits::default() };
    if let Controllers::None { reason } = &controllers {
        return skipped(reason);
    }
    let name = format!("test_refused_{}", std::process::id());
    controllers.make(&name, &limits).unwrap_err();
    assert!(controllers.group(&name).unwrap().directories().iter().all(|directory| !directory.exists()));
}

#[test]
fn a_group_that_is_there_already_is_refused_and_stays_as_it_is() {
    let limits = ResourceLimits::default();
    let Some(group) = group("there", &limits) else { return };
    let mut child = start("/bin/sleep", &["600"]);
    group.add(pid(&child)).unwrap();
    let (controllers, name) =
        (Controllers::find(Does::Arrange), format!("test_there_{}", std::process::id()));
    let error = controllers.make(&name, &ResourceLimits { pids: 99, ..limits }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    let directories = group.directories();
    let most = directories.iter().find_map(|directory| fs::read_to_string(directory.join("pids.max")).ok());
    let most = most.unwrap();
    assert_eq!(most.trim(), limits.pids.to_string(), "its limits are what they were");
    assert_eq!(group.processes().unwrap(), [pid(&child)], "and so is what is in it");
    // What there is of it in one hierarchy only keeps it from being made in the others.
    child.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    let last = *directories.last().unwrap();
    fs::create_dir(last).unwrap();
    controllers.make(&name, &limits).unwrap_err();
    let left: Vec<_> = directories.iter().copied().filter(|directory| directory.exists()).collect();
    assert_eq!(left, [last]);
    fs::remove_dir(last).unwrap();
}

#[test]
fn a_process_that_cannot_be_seen_is_not_taken_for_ones_own_group() {
    assert_eq!(["0", "-1", "x", "17"].map(process), [None, None, None, Some(17)]);
}

#[test]
fn a_group_that_goes_while_it_is_looked_at_is_gone() {
    let gone = [io::Error::from(io::ErrorKind::NotFound), io::Error::from_raw_os_error(19)];
    assert!(gone.iter().all(is_gone));
    assert!(!is_gone(&io::ErrorKind::PermissionDenied.into()));
}

#[test]
fn what_is_killed_cannot_start_anything_meanwhile() {
    let Some(group) = group("forks", &ResourceLimits::default()) else { return };
    // It starts processes as fast as it can, and each of them goes on when it is gone.
    let mut child = begin(&group, "while :; do (sleep 600 &); done");
    while group.processes().unwrap().len() < 50 {
        sleep(Duration::from_millis(1));
    }
    let waiting = std::thread::spawn(move || child.wait().unwrap());
    group.kill().unwrap();
    waiting.join().unwrap();
    group.remove().unwrap();
}

/// Everything below a directory, with what is in its files.
pub(super) fn everything(directory: &Path) -> Vec<(PathBuf, Option<String>)> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            found.push((path.clone(), fs::read_to_string(&path).ok()));
            left.extend(path.is_dir().then_some(path));
        }
    }
    found.sort();
    found
}

#[test]
fn who_only_looks_at_version_1_finds_the_same_and_makes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mounts = ["memory", "pids", "cpu", "cpuacct"].map(|controller| {
        let place = root.path().join(controller);
        fs::create_dir(&place).unwrap();
        let (kind, options) = ("cgroup".to_owned(), vec!["rw".to_owned(), controller.to_owned()]);
        Mount { root: "/".into(), place, kind, source: "cgroup".into(), options }
    });
    let roots = v1::Roots::find(&mounts).unwrap();
    let before = everything(root.path());
    roots.usable(Does::Look).unwrap();
    assert_eq!(everything(root.path()), before);
    roots.usable(Does::Arrange).unwrap();
    let shares = root.path().join("cpu/caisson/cpu.shares");
    assert_eq!(fs::read_to_string(&shares).unwrap(), "512");
    // What is there already is not written to either.
    fs::write(&shares, "7").unwrap();
    roots.usable(Does::Look).unwrap();
    assert_eq!(fs::read_to_string(&shares).unwrap(), "7");
    fs::remove_dir(root.path().join("pids/caisson")).unwrap();
    fs::remove_dir(root.path().join("pids")).unwrap();
    for does in [Does::Look, Does::Arrange] {
        roots.usable(does).unwrap_err();
    }
}

const HYBRID: &str = "\
25 30 0:22 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 25 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
33 25 0:28 / /sys/fs/cgroup/pids rw,nosuid shared:9 - cgroup cgroup rw,pids
34 25 0:29 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw";

#[test]
fn hierarchies_are_found_by_their_controllers_also_where_two_share_one() {
    let roots = v1::Roots::find(&Mount::all(HYBRID.as_bytes())).unwrap();
    let group = Group::V1(roots.group("x"));
    let places: Vec<_> = group.directories().iter().map(|place| place.display().to_string()).collect();
    assert_eq!(
        places,
        [
            "/sys/fs/cgroup/memory/caisson/x",
            "/sys/fs/cgroup/pids/caisson/x",
            "/sys/fs/cgroup/cpu,cpuacct/caisson/x"
        ]
    );
    let without = HYBRID.lines().filter(|line| !line.contains("memory")).collect::<Vec<_>>().join("\n");
    assert_eq!(v1::Roots::find(&Mount::all(without.as_bytes())), None);
    let found: Group = serde_json::from_str(&serde_json::to_string(&group).unwrap()).unwrap();
    assert_eq!(found, group, "a record keeps it");
}
