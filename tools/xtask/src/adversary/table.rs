//! Every attempt, with the wall that is to stop it and the surroundings without that wall.

use testkit::engine::Engine;

/// Walls that Docker's own filter has in later versions only, or does not need: a container has no terminal of the host's.
const ONLY_LOCAL: [&str; 2] = ["host.terminal_input", "host.asynchronous_calls"];

/// One way out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// `module.function` of the Python files beside this one.
    pub(crate) name: &'static str,
    /// What is to stop it, for people.
    pub(crate) wall: &'static str,
    /// Arguments, `KEY=VALUE`, in a sandbox; `{…}` is filled in by the stage.
    pub(crate) arguments: &'static [&'static str],
    /// The same attempt without the wall.
    pub(crate) control: Control,
}

/// Surroundings in which nothing but the wall in question is missing: a bubblewrap that shows the machine as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control {
    /// Who makes the attempt.
    pub(crate) who: Who,
    /// Further arguments of bubblewrap.
    pub(crate) more: &'static [&'static str],
    /// Arguments of the attempt, where they are not the sandbox's.
    pub(crate) arguments: Option<&'static [&'static str]>,
    /// The attempt is made by the child of a first process that can be looked into.
    pub(crate) first: bool,
    /// How it shows that the wall is missing.
    pub(crate) shows: Shows,
}

/// Who makes a control's attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// A user like a sandbox's.
    Agent,
    /// Root with every capability: what stops the attempt is having none.
    Root,
}

/// How a control shows that the wall is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shows {
    /// The attempt gets through.
    Through,
    /// This kernel refuses it by itself (for a terminal, for want of a feature), but in other words than the wall.
    OtherWords,
    /// It gets through where the machine has this file; where it has not, nobody can try.
    Having(&'static str),
}

impl Attempt {
    /// Whether somebody outside hears it when it gets through.
    pub(crate) fn has_witness(&self) -> bool {
        self.arguments.contains(&"token={token}")
    }

    /// Whether sandboxes of an engine have the wall.
    pub(crate) fn fits(&self, engine: Engine) -> bool {
        engine == Engine::Local || !ONLY_LOCAL.contains(&self.name)
    }
}

impl Control {
    /// Whether this machine has what the attempt aims at.
    pub(crate) fn is_possible(&self) -> bool {
        match self.shows {
            Shows::Having(path) => std::path::Path::new(path).exists(),
            Shows::Through | Shows::OtherWords => true,
        }
    }
}

const fn by(who: Who, more: &'static [&'static str]) -> Control {
    Control { who, more, arguments: None, first: false, shows: Shows::Through }
}

const AGENT: Control = by(Who::Agent, &[]);
const ROOT: Control = by(Who::Root, &[]);

const fn with(control: Control, arguments: &'static [&'static str]) -> Control {
    Control { arguments: Some(arguments), ..control }
}

const fn otherwise(control: Control) -> Control {
    Control { shows: Shows::OtherWords, ..control }
}

const fn having(path: &'static str, control: Control) -> Control {
    Control { shows: Shows::Having(path), ..control }
}

/// Beside a first process of the same user that holds a credential.
const BESIDE_FIRST: Control = Control {
    first: true,
    ..by(Who::Agent, &["--unshare-pid", "--as-pid-1", "--proc", "/proc", "--setenv", "HELD", "{canary}"])
};

const fn attempt(
    name: &'static str,
    wall: &'static str,
    arguments: &'static [&'static str],
    control: Control,
) -> Attempt {
    Attempt { name, wall, arguments, control }
}

const OUTSIDE: &str = "credentials stay outside of the sandbox";
const SHIM: &str = "the shim cannot be looked into";
const PROCESSES: &str = "a process namespace of its own";
const NO_NETWORK: &str = "a network namespace with nothing but lo";
const READ_ONLY: &str = "mounted read-only";
const NOT_ROOT: &str = "not root, and mounted read-only";
const NO_RIGHTS: &str = "no capabilities";
const FILTER: &str = "the system call filter";
const NOT_SHOWN: &str = "not shown in the sandbox";

/// Every attempt.
pub(crate) const ALL: &[Attempt] = &[
    // Credentials.
    attempt("secrets.environment", OUTSIDE, &[], by(Who::Agent, &["--setenv", "MODEL_KEY", "{canary}"])),
    attempt("secrets.environment_of_others", PROCESSES, &[], ROOT),
    attempt("secrets.command_lines", PROCESSES, &[], AGENT),
    attempt(
        "secrets.files",
        OUTSIDE,
        &[],
        by(Who::Agent, &["--ro-bind", "{secret_file}", "/tmp/credentials"]),
    ),
    attempt(
        "secrets.git_configuration",
        OUTSIDE,
        &[],
        by(Who::Agent, &["--setenv", "GIT_CONFIG_GLOBAL", "{git_config}"]),
    ),
    attempt(
        "secrets.git_credential_helper",
        OUTSIDE,
        &[],
        by(Who::Agent, &["--setenv", "GIT_CONFIG_GLOBAL", "{git_config}"]),
    ),
    attempt("secrets.environment_of_first_process", SHIM, &[], BESIDE_FIRST),
    attempt("secrets.memory_of_first_process", SHIM, &[], BESIDE_FIRST),
    attempt("secrets.memory_by_call", SHIM, &[], BESIDE_FIRST),
    attempt("secrets.descriptors_of_first_process", SHIM, &[], BESIDE_FIRST),
    attempt("secrets.trace_of_first_process", SHIM, &[], BESIDE_FIRST),
    attempt("secrets.sockets_of_others", NOT_SHOWN, &[], with(by(Who::Root, &[]), &["place={doors}/own"])),
    attempt(
        "secrets.engine_socket",
        NOT_SHOWN,
        &[],
        by(Who::Root, &["--bind", "{doors}/other", "/mnt", "--bind", "{engine_socket}", "/run/docker.sock"]),
    ),
    attempt("secrets.home_of_root", NOT_SHOWN, &[], ROOT),
    attempt("secrets.password_hashes", NOT_SHOWN, &[], ROOT),
    // The network.
    attempt("network.tcp", NO_NETWORK, &["port={port}", "token={token}"], AGENT),
    attempt("network.tcp_by_ipv6", NO_NETWORK, &["port6={port6}", "token={token}"], AGENT),
    attempt("network.udp", NO_NETWORK, &["udp_port={udp_port}", "token={token}"], AGENT),
    attempt("network.dns_tunnel", NO_NETWORK, &["udp_port={udp_port}", "token={token}"], AGENT),
    attempt("network.address_of_host", NO_NETWORK, &["port={port}", "token={token}", "host={host}"], AGENT),
    attempt("network.abstract_socket", NO_NETWORK, &["abstract={abstract}", "token={token}"], AGENT),
    attempt("network.host_connections", NO_NETWORK, &[], AGENT),
    attempt("network.devices", NO_NETWORK, &[], AGENT),
    attempt("network.raw_packets", NO_RIGHTS, &[], ROOT),
    attempt("network.raw_ip", NO_RIGHTS, &[], ROOT),
    attempt("network.add_device", NO_RIGHTS, &[], otherwise(by(Who::Root, &["--unshare-net"]))),
    attempt("network.give_address", NO_RIGHTS, &[], by(Who::Root, &["--unshare-net"])),
    // The machine.
    attempt(
        "host.write_agent",
        READ_ONLY,
        &[],
        with(by(Who::Agent, &["--bind", "{agent}", "/mnt"]), &["place=/mnt"]),
    ),
    attempt(
        "host.replace_shim",
        READ_ONLY,
        &[],
        with(by(Who::Agent, &["--bind", "{agent}", "/mnt"]), &["shim=/mnt/shim"]),
    ),
    attempt(
        "host.unlink_door",
        READ_ONLY,
        &[],
        with(by(Who::Agent, &["--bind", "{agent}", "/mnt"]), &["door=/mnt"]),
    ),
    attempt(
        "host.root_directory",
        READ_ONLY,
        &[],
        by(
            Who::Root,
            &[
                "--tmpfs",
                "/",
                "--ro-bind",
                "/usr",
                "/usr",
                "--symlink",
                "usr/lib",
                "/lib",
                "--symlink",
                "usr/lib64",
                "/lib64",
                "--dir",
                "/tmp",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
            ],
        ),
    ),
    attempt(
        "host.system_programs",
        READ_ONLY,
        &[],
        by(Who::Root, &["--tmpfs", "/usr/bin", "--ro-bind", "{python}", "/usr/bin/python3"]),
    ),
    attempt("host.kernel_settings", NOT_ROOT, &[], by(Who::Root, &["--bind", "/proc", "/proc"])),
    attempt("host.core_pattern", NOT_ROOT, &[], by(Who::Root, &["--bind", "/proc", "/proc"])),
    attempt("host.host_name", NOT_ROOT, &[], by(Who::Root, &["--unshare-uts", "--bind", "/proc", "/proc"])),
    attempt(
        "host.magic_keys",
        NOT_ROOT,
        &[],
        having("/proc/sysrq-trigger", by(Who::Root, &["--bind", "/proc", "/proc"])),
    ),
    attempt("host.control_groups", NOT_SHOWN, &[], by(Who::Root, &["--bind", "/sys", "/sys"])),
    attempt("host.limits_of_groups", NOT_SHOWN, &[], by(Who::Root, &["--bind", "/sys", "/sys"])),
    attempt("host.kernel_log", NOT_SHOWN, &[], by(Who::Root, &["--dev-bind", "/dev", "/dev"])),
    attempt("host.kernel_log_by_call", NO_RIGHTS, &[], ROOT),
    attempt(
        "host.physical_memory",
        NOT_SHOWN,
        &[],
        having("/dev/mem", by(Who::Root, &["--dev-bind", "/dev", "/dev"])),
    ),
    attempt("host.kernel_memory", NOT_SHOWN, &[], having("/proc/kcore", ROOT)),
    attempt("host.disks", NOT_SHOWN, &[], otherwise(by(Who::Root, &["--dev-bind", "/dev", "/dev"]))),
    attempt("host.own_devices", NO_RIGHTS, &[], ROOT),
    attempt("host.mount", NO_RIGHTS, &[], ROOT),
    attempt("host.remount_root", NO_RIGHTS, &[], ROOT),
    attempt("host.new_mount_calls", NO_RIGHTS, &[], ROOT),
    attempt("host.user_namespace", FILTER, &[], AGENT),
    attempt("host.cloned_namespace", FILTER, &[], AGENT),
    attempt("host.mount_namespace", NO_RIGHTS, &[], ROOT),
    attempt("host.namespace_of_first_process", NO_RIGHTS, &[], with(ROOT, &["pid={pid}"])),
    attempt("host.trace_outside", PROCESSES, &["pid={pid}"], ROOT),
    attempt("host.signal_outside", PROCESSES, &["pid={pid}"], AGENT),
    attempt("host.descriptor_of_outside", PROCESSES, &["pid={pid}"], ROOT),
    attempt("host.terminal_input", FILTER, &[], otherwise(AGENT)),
    attempt("host.keyring", FILTER, &[], AGENT),
    attempt("host.asynchronous_calls", FILTER, &[], otherwise(AGENT)),
    attempt("host.bpf", FILTER, &[], otherwise(ROOT)),
    attempt("host.performance_events", FILTER, &[], otherwise(ROOT)),
    attempt("host.page_faults", FILTER, &[], otherwise(ROOT)),
    attempt("host.become_root", NO_RIGHTS, &[], ROOT),
    attempt("host.become_somebody", NO_RIGHTS, &[], ROOT),
    attempt("host.open_by_handle", NO_RIGHTS, &[], otherwise(ROOT)),
];
