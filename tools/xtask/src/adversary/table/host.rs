//! Ways to the machine below.

use testkit::engine::Engine;

use super::super::walls::{
    FILTER, Kind, PROCESSES, Place, RIGHTS, SHIM, Stands, Wall, met, not_shown, read_only, wall,
};
use super::{Attempt, Needs, attempt};

/// Settings of the kernel: mounted read-only in a container; what a local sandbox has is that it is not root.
const SETTINGS: &[Wall] = &[
    met(
        Stands::Docker,
        read_only(&["--ro-bind", "/proc/sys", "/proc/sys"], &["--bind", "/proc/sys", "/proc/sys"]),
    ),
    met(Stands::Local, wall(Kind::NotRoot, &["EACCES"])),
];
/// Control groups: not shown in a local sandbox, shown read-only in a container, and another user's in both.
const GROUPS: &[Wall] = &[
    met(Stands::Local, not_shown(&["--bind", "/sys", "/sys"])),
    met(Stands::Docker, read_only(&["--ro-bind", "/sys", "/sys"], &[])),
    met(Stands::Behind, wall(Kind::NotRoot, &["EACCES"])),
];
/// A file of the kernel's with which another one is mounted in a container.
const MASKED: Place =
    Place { text: "masked", with: &["--dev-bind", "/dev/null", "/proc/kcore"], without: &[] };
/// What only a right opens, and the filter refuses besides.
const RIGHTS_AND_FILTER: &[Wall] = &[RIGHTS, FILTER];

pub(super) const ALL: &[Attempt] = &[
    attempt(
        "host.write_agent",
        &[],
        &[read_only(&["--ro-bind", "{agent}", "/caisson/agent"], &["--bind", "{agent}", "/caisson/agent"])],
    ),
    attempt(
        "host.replace_shim",
        &[],
        &[read_only(
            &["--ro-bind", "{agent}/shim", "/caisson/shim"],
            &["--bind", "{agent}/shim", "/caisson/shim"],
        )],
    ),
    attempt(
        "host.unlink_door",
        &[],
        &[read_only(&["--ro-bind", "{agent}", "/caisson/door"], &["--bind", "{agent}", "/caisson/door"])],
    ),
    attempt("host.root_directory", &[], &[wall(Kind::Place(super::super::ground::ROOT), &["EROFS"])]),
    attempt("host.system_programs", &[], &[read_only(&["--remount-ro", "/usr/bin"], &[])]).in_control(&[
        "--perms",
        "0777",
        "--tmpfs",
        "/usr/bin",
        "--ro-bind",
        "{python}",
        "/usr/bin/python3",
        "--ro-bind",
        "{setpriv}",
        "/usr/bin/setpriv",
    ]),
    attempt("host.kernel_settings", &[], SETTINGS),
    attempt("host.core_pattern", &[], SETTINGS),
    attempt("host.host_name", &[], SETTINGS),
    attempt(
        "host.magic_keys",
        &[],
        &[
            met(
                Stands::Docker,
                read_only(
                    &["--ro-bind", "/proc/sysrq-trigger", "/proc/sysrq-trigger"],
                    &["--bind", "/proc/sysrq-trigger", "/proc/sysrq-trigger"],
                ),
            ),
            met(Stands::Local, wall(Kind::NotRoot, &["EACCES"])),
        ],
    )
    .needs(Needs::File("/proc/sysrq-trigger")),
    attempt("host.control_groups", &[], GROUPS),
    attempt("host.limits_of_groups", &[], GROUPS),
    attempt("host.kernel_log", &[], &[not_shown(&["--dev-bind", "/dev/kmsg", "/dev/kmsg"])])
        .needs(Needs::File("/dev/kmsg")),
    attempt("host.kernel_log_by_call", &[], RIGHTS_AND_FILTER)
        .needs(Needs::Setting("/proc/sys/kernel/dmesg_restrict", "1")),
    attempt("host.physical_memory", &[], &[not_shown(&["--dev-bind", "/dev/mem", "/dev/mem"])])
        .needs(Needs::File("/dev/mem")),
    attempt(
        "host.kernel_memory",
        &[],
        &[
            met(Stands::Docker, wall(Kind::Place(MASKED), &["NOTHING"])),
            met(Stands::Local, wall(Kind::NotRoot, &["EACCES"])),
            met(Stands::Behind, wall(Kind::Rights, &["EPERM"])),
        ],
    )
    .needs(Needs::File("/proc/kcore")),
    attempt("host.disks", &[], &[not_shown(&["--dev-bind", "/dev", "/dev"])]).needs(Needs::Disk),
    attempt("host.own_devices", &[], &[RIGHTS]),
    attempt("host.mount", &[], RIGHTS_AND_FILTER),
    attempt("host.remount_root", &[], RIGHTS_AND_FILTER),
    attempt("host.new_mount_calls", &[], RIGHTS_AND_FILTER),
    attempt("host.user_namespace", &[], &[FILTER]),
    attempt("host.cloned_namespace", &[], &[FILTER]),
    attempt("host.mount_namespace", &[], RIGHTS_AND_FILTER),
    attempt("host.join_namespace", &[], RIGHTS_AND_FILTER),
    attempt("host.namespace_of_first_process", &[], &[SHIM]).in_control(&["--as-pid-1"]),
    attempt("host.trace_outside", &["pid={pid}"], &[PROCESSES]),
    attempt("host.signal_outside", &["pid={pid}"], &[PROCESSES]),
    attempt("host.descriptor_of_outside", &["pid={pid}"], &[PROCESSES, met(Stands::Behind, FILTER)]),
    // A container has no terminal of the host's, and its filter lets it through.
    attempt("host.terminal_input", &[], &[FILTER]).past(&["EIO"]).only(Engine::Local),
    attempt("host.lingering_descriptor", &[], &[wall(Kind::Filter, &["NOTHING"])]),
    attempt("host.keyring", &[], &[FILTER]).absent(&["ENOSYS"]),
    attempt("host.asynchronous_calls", &[], &[wall(Kind::Filter, &["EPERM", "ENOSYS"])])
        .absent(&["ENOSYS"])
        .needs(Needs::Setting("/proc/sys/kernel/io_uring_disabled", "0")),
    attempt("host.bpf", &[], RIGHTS_AND_FILTER).absent(&["ENOSYS"]),
    // Some distributions let nobody but root measure, and say so in another word.
    attempt("host.performance_events", &[], &[FILTER]).past(&["EACCES"]).absent(&["ENOSYS"]),
    attempt("host.page_faults", &[], &[FILTER]).absent(&["ENOSYS"]),
    attempt("host.become_root", &[], BECOME),
    attempt("host.become_somebody", &[], BECOME),
    // By whom it may be asked is looked at before whether there is such a file.
    attempt("host.open_by_handle", &[], RIGHTS_AND_FILTER)
        .in_control(&["--ro-bind", "/", "/mnt"])
        .instead(&["mount=/mnt"])
        .past(&["ESTALE"]),
];

/// Nobody else is in a local sandbox's user namespace; a container's user may become nobody else.
const BECOME: &[Wall] = &[met(Stands::Docker, RIGHTS), met(Stands::Local, wall(Kind::Users, &["EINVAL"]))];
