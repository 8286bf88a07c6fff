//! A server whose state directory is something else for the Docker Engine, as that of a container with a wrong mount is, says so
//! at once: every sandbox would get something else than its session's files.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::process::{Command, Output};

use testkit::parts::Parts;
use testkit::process::ServerSpec;

/// Runs a command of the server's in a mount namespace of its own, in which another directory is mounted at its state directory:
/// the engine, outside, sees what was there before.
#[expect(
    clippy::disallowed_methods,
    reason = "the program under test is started here, with an argument vector"
)]
fn elsewhere(spec: &ServerSpec, inside: &Path, arguments: &[&str]) -> Output {
    let wanted = spec.command(arguments);
    let script = "mount --bind \"$1\" \"$2\"; shift 2; exec timeout 60 \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-euc", script, "bash"]);
    command.arg(inside).arg(&spec.state_dir).arg(wanted.get_program()).args(wanted.get_args());
    for (name, value) in wanted.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.output().unwrap()
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_state_directory_the_engine_finds_elsewhere_does_not_start() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    assert!(nix::unistd::geteuid().is_root(), "mounts can be tested by root only");
    let directory = tempfile::tempdir().unwrap();
    let (state, inside) = (directory.path().join("state"), directory.path().join("inside"));
    for made in [&state, &inside] {
        std::fs::create_dir(made).unwrap();
        std::fs::set_permissions(made, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    let mut spec = ServerSpec::new(&parts, &state, "http://127.0.0.1:9").unwrap();
    spec.set("ENGINE", "docker");
    let serve = ["serve"];
    let refused = elsewhere(&spec, &inside, &serve);
    let said = told(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("the Docker Engine finds nothing where this server has"), "{said}");
    assert!(
        said.contains("mount its state directory at the same path") && said.contains("--volume"),
        "{said}"
    );
    assert!(!inside.join("engine-probe").exists(), "the probe is taken away");
    // Doctor says the same by what is there already, and writes nothing.
    let doctor = told(&elsewhere(&spec, &inside, &["doctor"]));
    let line = doctor.lines().find(|line| line.contains("  paths ")).unwrap().to_owned();
    assert!(line.starts_with("FAIL") && line.contains("finds nothing"), "{doctor}");
    // Another file at the same place is not the server's either.
    std::fs::write(state.join("server_id"), "srv_other").unwrap();
    let other = told(&elsewhere(&spec, &inside, &["doctor"]));
    assert!(other.contains("finds another file"), "{other}");
    std::fs::remove_file(state.join("server_id")).unwrap();
    // Where both see the same, it starts.
    let mut server = spec.start().await.unwrap();
    let sound = told(&spec.command(&["doctor"]).output().unwrap());
    assert!(sound.lines().any(|line| line.starts_with("ok    paths")), "{sound}");
    server.terminate().await.unwrap();
}
