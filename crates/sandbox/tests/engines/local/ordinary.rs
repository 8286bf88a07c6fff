//! A server that is not root: the same tests again, by a copy of this very program that an ordinary user runs, and what such a
//! server alone has to fear.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use caisson_sandbox::Engine;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::bench::{COPY, on_bench, supervise};
use crate::places::{ready, skipped, variable, written};

/// Nobody whom this machine knows by name.
const USER: u32 = 65_533;
/// Names a directory that the outer test mounts on while the inner one's sandbox lives.
const SHARED: &str = "TEST_SHARED_DIRECTORY";
/// What the inner test does not do again.
const ONLY_OUTSIDE: &str = "local::ordinary::";
/// What it cannot do: these need root, or control groups, which nobody gives this user.
const NOT_BY_HIM: [&str; 4] = [
    "local::inside::every_way_out_is_refused_and_open_without_its_wall",
    "local::outside::limits_hold_in_the_kernel",
    "local::options::a_control_group_that_was_there_before_is_neither_joined_nor_ended",
    "local::deaths::want_of_memory_is_told_also_where_the_end_could_not_be_written_down",
];
/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_mins(1);

/// This program and the supervisor where an ordinary user finds them, and a place for its files.
struct Copies {
    directory: tempfile::TempDir,
}

impl Copies {
    fn make() -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let copies = Self { directory };
        let open =
            |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        open(copies.directory.path());
        for (program, copy) in
            [(std::env::current_exe().unwrap(), copies.tests()), (supervise(), copies.supervise())]
        {
            std::fs::copy(program, &copy).unwrap();
            open(&copy);
        }
        std::fs::create_dir(copies.tmp()).unwrap();
        chown(copies.tmp(), Some(USER), Some(USER)).unwrap();
        copies
    }

    fn tests(&self) -> PathBuf {
        self.directory.path().join("tests")
    }

    fn supervise(&self) -> PathBuf {
        self.directory.path().join("supervise")
    }

    fn tmp(&self) -> PathBuf {
        self.directory.path().join("tmp")
    }

    /// The tests with these words in their names, by the ordinary user.
    fn run(&self, words: &[&str]) -> Command {
        #[expect(
            clippy::disallowed_methods,
            reason = "this program is started again here, with an argument vector"
        )]
        let mut command = Command::new("setpriv");
        let user = [format!("--reuid={USER}"), format!("--regid={USER}")];
        command.args(user).args(["--clear-groups", "--"]).arg(self.tests()).args(words);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TMPDIR", self.tmp())
            .env(COPY, self.supervise());
        command.current_dir("/").stdin(Stdio::null());
        command
    }
}

fn assert_passed(output: &Output) -> usize {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let passed =
        said.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse().ok());
    passed.unwrap_or_else(|| panic!("no result in {said}"))
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn an_ordinary_user_s_server_keeps_the_contract_and_all_that_needs_no_root() {
    if !is_root() {
        // This user's own run of the other tests shows it.
        return;
    }
    let copies = Copies::make();
    // More than one at a time, since only then each has a thread that bears its name.
    let how = ["--nocapture", "--test-threads=2"];
    let words = [&["local::", "--skip", ONLY_OUTSIDE], &how[..]].concat();
    let output = copies.run(&words).output().unwrap();
    let passed = assert_passed(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    // The environment is empty, so a test may skip itself; it then counts as passed there, and not here.
    let skipped: Vec<_> = said.lines().filter(|line| line.contains("SKIPPED")).collect();
    let expected =
        |line: &&&str| NOT_BY_HIM.iter().any(|name| line.starts_with(&format!("SKIPPED: {name}: ")));
    assert_eq!(skipped.iter().filter(|line| !expected(line)).collect::<Vec<_>>(), Vec::<&&str>::new());
    let ran = passed - skipped.len();
    assert!(ran >= 33, "{ran}");
}

#[test]
fn what_the_host_mounts_later_does_not_appear_in_a_living_sandbox() {
    if !is_root() {
        return skipped("mounting needs root").unwrap_or_default();
    }
    let copies = Copies::make();
    let shared = copies.directory.path().join("shared");
    std::fs::create_dir_all(shared.join("later")).unwrap();
    let plain = |flags| mount(Some(&shared), &shared, None::<&str>, flags, None::<&str>).unwrap();
    plain(MsFlags::MS_BIND);
    plain(MsFlags::MS_SHARED);
    let mut command = copies.run(&["local::ordinary::inner", "--ignored", "--nocapture"]);
    let inner = command.env(SHARED, &shared).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (begun, running) = (Instant::now(), copies.tmp().join("running"));
    while !running.exists() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let later = shared.join("later");
    mount(Some("tmpfs"), &later, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0777")).unwrap();
    std::fs::write(later.join("seen"), "").unwrap();
    std::fs::write(copies.tmp().join("mounted"), "").unwrap();
    let output = inner.wait_with_output().unwrap();
    for mounted in [&later, &shared] {
        umount2(mounted, MntFlags::MNT_DETACH).unwrap();
    }
    assert_eq!(assert_passed(&output), 1);
}

#[tokio::test]
#[ignore = "the inner half of the test above"]
async fn inner_half_with_a_living_sandbox() {
    let shared = PathBuf::from(variable(SHARED).unwrap());
    let tmp = std::env::temp_dir();
    on_bench(async |bench| {
        let engine = bench.engine_with(|config| config.read_only = vec![shared.clone()]);
        let spec = bench.sandbox(&format!(
            "echo ready > /workspace/ready; read go < /workspace/go
             ls '{0}/later' > /workspace/seen; touch '{0}/later/x' 2> /workspace/refused; exit 0",
            shared.display(),
        ));
        engine.create(&spec).await.unwrap();
        engine.start(&spec.id).await.unwrap();
        assert_eq!(ready(&spec).await, "ready");
        std::fs::write(tmp.join("running"), "").unwrap();
        let begun = Instant::now();
        while !tmp.join("mounted").exists() && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(shared.join("later/seen").exists(), "it is mounted on the host");
        std::fs::write(spec.mounts.workspace_dir.join("go"), "go\n").unwrap();
        engine.wait(&spec.id).await.unwrap();
        assert_eq!(written(&spec, "seen"), "");
        assert!(written(&spec, "refused").contains("Read-only"), "{}", written(&spec, "refused"));
    })
    .await;
}
