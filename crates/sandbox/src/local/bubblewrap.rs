//! The one profile of every sandbox of the local engine, as bubblewrap's arguments. Pure, but for a look at how the host
//! arranges its system directories.
//!
//! Arguments go through a descriptor (`--args`), so that no value of the environment is in any argument list.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use caisson_domain::protocol::places;

use super::order::Order;
use crate::profile::{HIDDEN_DIRECTORIES, HIDDEN_FILES, HOSTNAME, HOSTS, NO_NAMESERVER, SHM_BYTES, TMP_PATH};

/// Where the system's programs are looked for.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// System directories beside `/usr`: links into it on most systems of today.
pub(super) const SYSTEM_DIRECTORIES: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
/// The harmless few of `/etc`: how programs and libraries are found, which authorities are trusted, and the time zone.
pub(super) const ETC: [&str; 15] = [
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
];

/// How the host arranges one of the [`SYSTEM_DIRECTORIES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SystemDirectory {
    /// A symbolic link to there.
    Link(String),
    /// A directory of its own.
    Directory,
}

/// What of the host every sandbox is made over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) directories: Vec<(&'static str, SystemDirectory)>,
    /// Those of the kernel views to be hidden that this kernel has.
    pub(crate) hidden_files: Vec<&'static str>,
    pub(crate) hidden_directories: Vec<&'static str>,
}

impl Host {
    /// Looks at this machine.
    pub(crate) fn look() -> Self {
        let look = |path: &'static str| {
            let data = std::fs::symlink_metadata(path).ok()?;
            if data.is_symlink() {
                let target = std::fs::read_link(path).ok()?.into_os_string().into_string().ok()?;
                return Some((path, SystemDirectory::Link(target)));
            }
            data.is_dir().then_some((path, SystemDirectory::Directory))
        };
        let there = |path: &&'static str| Path::new(path).exists();
        Self {
            directories: SYSTEM_DIRECTORIES.into_iter().filter_map(look).collect(),
            hidden_files: HIDDEN_FILES.into_iter().filter(there).collect(),
            hidden_directories: HIDDEN_DIRECTORIES.into_iter().filter(there).collect(),
        }
    }
}

/// A file that is written into the sandbox's own `/etc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnFile {
    pub(crate) path: &'static str,
    pub(crate) text: String,
}

/// The files of `/etc` that say who and where the agent is; none of them is the host's.
pub(crate) fn own_files(uid: u32, gid: u32) -> Vec<OwnFile> {
    let own = |path, text: &str| OwnFile { path, text: text.to_owned() };
    let home = places::HOME;
    vec![
        own(
            "/etc/passwd",
            &format!("agent:x:{uid}:{gid}:agent:{home}:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
        ),
        own("/etc/group", &format!("agent:x:{gid}:\nnogroup:x:65534:\n")),
        own("/etc/hosts", HOSTS),
        own("/etc/hostname", &format!("{HOSTNAME}\n")),
        own("/etc/resolv.conf", &format!("nameserver {NO_NAMESERVER}\n")),
        own(
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
        ),
    ]
}

/// Descriptors that bubblewrap reads from, by what they are for.
pub(crate) struct Descriptors<'a> {
    /// Of each of the [`own_files`], in their order.
    pub(crate) files: &'a [i32],
    /// Of each system call filter, in their order.
    pub(crate) filters: &'a [i32],
}

/// The arguments that go through `--args`, each ended by a NUL.
///
/// `staged` gives the place at which bubblewrap finds the source of a bind; see [`super::stage`].
pub(crate) fn arguments(
    order: &Order,
    host: &Host,
    descriptors: &Descriptors<'_>,
    staged: impl Fn(usize) -> PathBuf,
) -> Vec<u8> {
    let mut list = Arguments::default();
    list.namespaces();
    list.system(host);
    for (file, descriptor) in own_files(order.uid, order.gid).iter().zip(descriptors.files) {
        list.add(&["--perms", "0444", "--file", &descriptor.to_string(), file.path]);
    }
    list.devices(order.limits.tmp_bytes);
    list.hide(host);
    for (index, shown) in order.binds.iter().enumerate() {
        let option = if shown.writable { "--bind" } else { "--ro-bind" };
        list.add_path(option, &staged(index), &shown.target);
    }
    // Last: everything above is made in the root, which nobody can write to from here on.
    list.add(&["--remount-ro", "/", "--chdir", places::WORKSPACE]);
    let mut path = order.search.iter().fold(String::new(), |mut path, directory| {
        write!(path, "{directory}:").expect("a String takes everything");
        path
    });
    path.push_str(SYSTEM_PATH);
    list.add(&["--clearenv", "--setenv", "PATH", &path]);
    for (name, value) in &order.environment {
        list.add(&["--setenv", name, value]);
    }
    for filter in descriptors.filters {
        list.add(&["--add-seccomp-fd", &filter.to_string()]);
    }
    list.bytes
}

/// The arguments of the emptiest sandbox: the same walls around a program that does nothing.
pub(crate) fn probe_arguments(host: &Host) -> Vec<String> {
    let mut list = Arguments::default();
    list.namespaces();
    list.system(host);
    list.add(&["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/", "--", "/usr/bin/true"]);
    let text = String::from_utf8(list.bytes).expect("every word is text");
    text.split_terminator('\0').map(str::to_owned).collect()
}

#[derive(Default)]
struct Arguments {
    bytes: Vec<u8>,
}

impl Arguments {
    fn add(&mut self, words: &[&str]) {
        for word in words {
            self.bytes.extend_from_slice(word.as_bytes());
            self.bytes.push(0);
        }
    }

    fn add_path(&mut self, option: &str, source: &Path, target: &str) {
        self.add(&[option]);
        self.bytes.extend_from_slice(source.as_os_str().as_encoded_bytes());
        self.bytes.push(0);
        self.add(&[target]);
    }

    /// No option lets bubblewrap do with less: what it cannot unshare makes it fail.
    fn namespaces(&mut self) {
        self.add(&["--unshare-user", "--disable-userns", "--unshare-ipc", "--unshare-pid", "--unshare-net"]);
        self.add(&["--unshare-uts", "--unshare-cgroup", "--hostname", HOSTNAME]);
        // A session of its own: no terminal to push characters into. The shim reaps, so it is process 1 itself.
        self.add(&["--new-session", "--as-pid-1", "--cap-drop", "ALL"]);
    }

    /// The host's programs, and of its `/etc` the harmless few.
    fn system(&mut self, host: &Host) {
        self.add(&["--ro-bind", "/usr", "/usr"]);
        for (path, arrangement) in &host.directories {
            match arrangement {
                SystemDirectory::Link(target) => self.add(&["--symlink", target, path]),
                SystemDirectory::Directory => self.add(&["--ro-bind", path, path]),
            }
        }
        for path in ETC {
            self.add(&["--ro-bind-try", path, path]);
        }
    }

    /// Puts nothing in the place of what tells of the host.
    fn hide(&mut self, host: &Host) {
        for path in &host.hidden_files {
            self.add(&["--ro-bind", "/dev/null", path]);
        }
        for path in &host.hidden_directories {
            self.add(&["--size", "4096", "--tmpfs", path, "--remount-ro", path]);
        }
    }

    /// What every program expects. Execution in `/tmp` is allowed: build tools write programs there and run them.
    fn devices(&mut self, tmp_bytes: u64) {
        self.add(&["--proc", "/proc", "--dev", "/dev"]);
        self.add(&["--perms", "1777", "--size", &SHM_BYTES.to_string(), "--tmpfs", "/dev/shm"]);
        self.add(&["--remount-ro", "/dev"]);
        self.add(&["--perms", "1777", "--size", &tmp_bytes.to_string(), "--tmpfs", TMP_PATH]);
        self.add(&["--dir", "/run", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::order::Shown;
    use super::*;
    use crate::ResourceLimits;

    fn order() -> Order {
        let shown = |source: &str, target: &str, writable| Shown {
            source: source.to_owned(),
            target: target.to_owned(),
            writable,
            is_file: false,
        };
        Order {
            bubblewrap: "/usr/bin/bwrap".into(),
            mark: "mark".to_owned(),
            group: None,
            uid: 7,
            gid: 8,
            binds: vec![shown("/a", "/caisson/shim", false), shown("/b", "/workspace", true)],
            search: vec!["/opt/tool/bin".to_owned()],
            environment: vec![("GRANT".to_owned(), "a secret\nof two lines".to_owned())],
            limits: ResourceLimits::default(),
        }
    }

    fn words(order: &Order) -> Vec<String> {
        let directories =
            vec![("/bin", SystemDirectory::Link("usr/bin".to_owned())), ("/lib", SystemDirectory::Directory)];
        let descriptors = Descriptors { files: &[10, 11, 12, 13, 14, 15], filters: &[20, 21] };
        let staged = |index| PathBuf::from(format!("/stage/{index}"));
        let host =
            Host { directories, hidden_files: vec!["/proc/cmdline"], hidden_directories: vec!["/proc/fs"] };
        let bytes = arguments(order, &host, &descriptors, staged);
        assert_eq!(bytes.last(), Some(&0), "each argument is ended");
        let text = String::from_utf8(bytes).unwrap();
        text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
    }

    fn has(words: &[String], wanted: &[&str]) -> bool {
        words.windows(wanted.len()).any(|found| found == wanted)
    }

    #[test]
    fn binds_come_from_their_stage_and_only_what_is_writable_is_writable() {
        let words = words(&order());
        assert!(has(&words, &["--ro-bind", "/stage/0", "/caisson/shim"]));
        assert!(has(&words, &["--bind", "/stage/1", "/workspace"]));
        assert!(
            has(&words, &["--symlink", "usr/bin", "/bin"]) && has(&words, &["--ro-bind", "/lib", "/lib"])
        );
        let writable: Vec<_> = words.iter().filter(|word| *word == "--bind").collect();
        assert_eq!(writable.len(), 1);
        let places: Vec<_> =
            words.iter().filter(|word| ["/home", "/root", "/sys", "/"].contains(&word.as_str())).collect();
        assert_eq!(places, ["/"], "the root is only named to be made read-only");
    }

    #[test]
    fn nothing_of_the_profile_is_optional_and_the_root_is_closed_last() {
        let words = words(&order());
        assert!(!words.iter().any(|word| word.starts_with("--unshare") && word.ends_with("-try")));
        assert!(!words.iter().any(|word| word == "--die-with-parent" || word == "--share-net"));
        assert!(has(&words, &["--ro-bind", "/dev/null", "/proc/cmdline"]));
        assert!(has(&words, &["--tmpfs", "/proc/fs", "--remount-ro", "/proc/fs"]));
        let closed = words.windows(2).position(|pair| pair == ["--remount-ro", "/"]).unwrap();
        let made = ["--ro-bind", "--bind", "--tmpfs", "--file", "--dir", "--symlink", "--dev", "--proc"];
        assert!(words[closed..].iter().all(|word| !made.contains(&word.as_str())));
    }

    #[test]
    fn the_environment_is_the_orders_and_the_search_path_begins_with_its_directories() {
        let words = words(&order());
        assert!(has(&words, &["--clearenv", "--setenv", "PATH"]));
        assert!(words.iter().any(|word| word.starts_with("/opt/tool/bin:/usr/local/sbin:")));
        assert!(has(&words, &["--setenv", "GRANT", "a secret\nof two lines"]));
        assert!(has(&words, &["--add-seccomp-fd", "20", "--add-seccomp-fd", "21"]));
    }

    #[test]
    fn the_agent_has_a_name_and_only_loopback_has_an_address() {
        let files = own_files(7, 8);
        assert!(files[0].text.starts_with("agent:x:7:8:agent:/home/agent:/bin/sh\n"));
        assert!(files.iter().any(|file| file.path == "/etc/hosts" && file.text == HOSTS));
    }
}
