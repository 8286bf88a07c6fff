//! Ways to credentials.

use super::super::walls::{PROCESSES_SHOWN, SHIM, not_shown, outside};
use super::{Attempt, attempt};

/// A first process of the same user.
const FIRST: &[&str] = &["--as-pid-1"];

pub(super) const ALL: &[Attempt] = &[
    attempt("secrets.environment", &[], &[outside(&["--setenv", "MODEL_KEY", "{canary}"])]),
    attempt("secrets.environment_of_others", &[], &[PROCESSES_SHOWN]),
    attempt("secrets.command_lines", &[], &[PROCESSES_SHOWN]),
    attempt("secrets.files", &[], &[outside(&["--ro-bind", "{secret_file}", "/tmp/credentials"])]),
    attempt(
        "secrets.git_configuration",
        &[],
        &[outside(&[
            "--setenv",
            "GIT_CONFIG_GLOBAL",
            "{git_config}",
            "--ro-bind",
            "{git_config}",
            "{git_config}",
        ])],
    ),
    attempt(
        "secrets.git_credential_helper",
        &[],
        &[outside(&[
            "--setenv",
            "GIT_CONFIG_GLOBAL",
            "{git_config}",
            "--ro-bind",
            "{git_config}",
            "{git_config}",
        ])],
    ),
    attempt("secrets.environment_of_first_process", &[], &[SHIM]).in_control(FIRST),
    attempt("secrets.memory_of_first_process", &[], &[SHIM]).in_control(FIRST),
    attempt("secrets.memory_by_call", &[], &[SHIM]).in_control(FIRST),
    attempt("secrets.descriptors_of_first_process", &[], &[SHIM]).in_control(FIRST),
    attempt("secrets.trace_of_first_process", &[], &[SHIM]).in_control(FIRST),
    attempt("secrets.sockets_of_others", &[], &[not_shown(&["--ro-bind", "{doors}", "/caisson"])]),
    attempt(
        "secrets.engine_socket",
        &["docker={docker_socket}", "containerd=/run/containerd/containerd.sock"],
        &[not_shown(&["--ro-bind", "{docker_socket}", "{docker_socket}"])],
    ),
    attempt(
        "secrets.connection_to_engine",
        &["stand_in={engine_socket}"],
        &[not_shown(&["--ro-bind", "{engine_socket}", "{engine_socket}"])],
    ),
    attempt("secrets.home_of_root", &["same={home_of_root}"], &[not_shown(&["--ro-bind", "/root", "/root"])]),
    attempt(
        "secrets.password_hashes",
        &["same={password_hashes}"],
        &[not_shown(&["--ro-bind", "/etc/shadow", "/etc/shadow"])],
    ),
];
