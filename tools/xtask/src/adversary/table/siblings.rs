//! Ways to another living sandbox, and to the server. Where the server is not root, all of them are one user's.

use super::super::walls::{Kind, NETWORK, PROCESSES, PROCESSES_SHOWN, not_shown, wall};
use super::{Attempt, attempt};

pub(super) const ALL: &[Attempt] = &[
    attempt("siblings.processes", &[], &[PROCESSES_SHOWN]),
    attempt("siblings.signal", &["sibling_pid={sibling_pid}"], &[PROCESSES]),
    attempt("siblings.environment", &["sibling_pid={sibling_pid}"], &[PROCESSES_SHOWN]),
    attempt("siblings.memory", &["sibling_pid={sibling_pid}"], &[PROCESSES_SHOWN]),
    attempt("siblings.trace", &["sibling_pid={sibling_pid}"], &[PROCESSES]),
    attempt("siblings.files_by_its_root", &["sibling_pid={sibling_pid}"], &[PROCESSES_SHOWN]),
    attempt(
        "siblings.workspace",
        &["sibling_file={sibling_file}"],
        &[not_shown(&["--ro-bind", "{sibling_file}", "{sibling_file}"])],
    ),
    attempt(
        "siblings.places_of_all",
        &[],
        &[not_shown(&["--ro-bind", "{sibling_file}", "/tmp/sibling-secret"])],
    ),
    attempt(
        "siblings.door",
        &["sibling_door={sibling_door}"],
        &[not_shown(&["--ro-bind", "{sibling_door}", "{sibling_door}"])],
    ),
    attempt("siblings.loopback", &["sibling_port={sibling_port}"], &[NETWORK]),
    attempt("siblings.abstract_socket", &["sibling_name={sibling_name}"], &[NETWORK]),
    attempt(
        "siblings.path_socket",
        &[],
        &[not_shown(&["--ro-bind", "{sibling_socket}", "/tmp/sibling.sock"])],
    ),
    attempt("siblings.shared_memory", &["sibling_key={sibling_key}"], &[wall(Kind::Messages, &["ENOENT"])]),
    attempt("server.signal", &["server_pid={server_pid}"], &[PROCESSES]),
    attempt("server.environment", &["server_pid={server_pid}"], &[PROCESSES_SHOWN]),
    attempt("server.memory", &["server_pid={server_pid}"], &[PROCESSES_SHOWN]),
    attempt("server.trace", &["server_pid={server_pid}"], &[PROCESSES]),
    attempt("server.files_by_its_root", &["server_pid={server_pid}"], &[PROCESSES_SHOWN]),
    attempt(
        "server.state",
        &["state_dir={state_dir}"],
        &[not_shown(&["--ro-bind", "{state_dir}", "{state_dir}"])],
    ),
    attempt("server.api", &["api_port={api_port}"], &[NETWORK]),
];
