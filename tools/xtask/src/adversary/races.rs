//! Races for the directories that a sandbox shares with the server: an agent exchanges files and directories for links to the
//! host's, without end, while the server measures them, the shim publishes and artifacts are kept. The control is a server that
//! follows links where it measures; that the race is a real one on each side is shown by a reader beside it, who looks before it
//! opens, as most do. What the shim does is done inside, where the host's files are not: there is no check to be left out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use caisson_domain::checks::Check;
use serde_json::{Value, json};
use testkit::parts::Parts;
use testkit::repository::run_git;
use testkit::volumes::SessionFiles;
use testkit::world::{World, WorldSpec};

use super::control::Shown;
use super::door::{CONTROLS, without, without_checks};
use super::report::{Report, Tried};
use super::traces::{find_text, state};
use super::verdict::Verdict;
use super::world::{Owner, Side, bash, find};

/// The check that the control leaves out.
pub(super) const CHECK: Check = Check::Links;
const NAME: &str = "shared.raced_directories";
const WAIT: Duration = Duration::from_mins(2);
/// How long the agent goes on while the server measures, in seconds, and how long the control may take of that.
const RACE_S: u32 = 20;
const CONTROL: Duration = Duration::from_secs(15);
/// What a run may fill, and what of the host's it would be said to fill by whoever follows its links, in MiB.
pub(super) const DISK_MIB: u64 = 96;
const BIG_MIB: u64 = 400;
/// What nobody but the host has.
const MARK: &str = "a-mark-of-the-host-4f1c";
/// Exchanges a file and a directory for links to the host's in both shared directories, without a moment in between, and then waits a
/// moment: whoever renames without end keeps everybody on the machine from looking names up.
const PLANT: &str = r#"cat > .git/race.py <<'END'
import ctypes, os, time
exchange = ctypes.CDLL(None, use_errno=True).renameat2
pairs = []
for place in ("/workspace", os.environ["HOME"]):
    os.makedirs(f"{place}/.races/dir-a"); os.symlink("VICTIM", f"{place}/.races/dir-b")
    open(f"{place}/.races/dir-a/victim", "w").write("own")
    open(f"{place}/.races/file-a", "w").write("own"); os.symlink("VICTIM/victim", f"{place}/.races/file-b")
    pairs += [(f"{place}/.races/{kind}-a".encode(), f"{place}/.races/{kind}-b".encode()) for kind in ("dir", "file")]
open(".git/race-ready", "w").close()
end = time.monotonic() + 120
while time.monotonic() < end:
    for one, other in pairs:
        if exchange(-100, one, -100, other, 2):
            raise OSError(ctypes.get_errno())
    time.sleep(0.001)
END
setsid nohup python3 .git/race.py > .git/race.log 2>&1 < /dev/null &
until test -e .git/race-ready; do sleep 0.1; test -s .git/race.log && cat .git/race.log && exit 1; done
sleep RACE; cat .git/race.log; true"#;

/// Whether the attempt has this in its name.
pub(super) fn has(only: &str) -> bool {
    NAME.contains(only)
}

/// Races in one run of a side.
///
/// # Errors
/// A part does not start, or the run does not end.
pub(super) async fn attack(parts: &Parts, side: Side, report: &mut Report) -> anyhow::Result<()> {
    super::say(&format!("races for the directories of a run of {}", side.name()));
    let (fell, verdict) = race(&side.owner(parts)?, side, Vec::new()).await?;
    report.take(if fell {
        Shown::Real(1)
    } else {
        Shown::Nothing(vec![format!("{NAME} of {}: a careless reader never fell for it", side.name())])
    });
    report.tried.push(Tried {
        name: NAME,
        walls: "no link of a shared directory is followed outside".to_owned(),
        refusals: vec!["UNCHANGED"],
        side: side.name(),
        verdict,
    });
    Ok(())
}

/// The control: the same on a server that follows links where it measures.
///
/// # Errors
/// As of [`attack`]; the build is missing.
pub(super) async fn controls(parts: &Parts, report: &mut Report) -> anyhow::Result<()> {
    super::say("races for the directories of a run on a server that follows links");
    let owner = CONTROLS.owner(&without_checks(parts)?)?;
    let (_, verdict) = race(&owner, CONTROLS, without(CHECK)).await?;
    report.take(match verdict {
        Verdict::Through(_) => Shown::Real(1),
        refused @ Verdict::Refused { .. } => {
            Shown::Nothing(vec![format!("{NAME} without {}: refused: {refused}", CHECK.name())])
        }
    });
    Ok(())
}

/// One run that races: whether a careless reader fell for it, and what came of it.
async fn race(
    owner: &Owner,
    side: Side,
    variables: Vec<(String, String)>,
) -> anyhow::Result<(bool, Verdict)> {
    let victim = Victim::make()?;
    let before = state(&victim.file)?;
    let plant = PLANT.replace("RACE", &RACE_S.to_string()).replace("VICTIM", victim.path()?);
    let steps = json!([bash(&plant, 60_000), { "text": "Raced." }]);
    let scenario = json!({ "races": { "prompts": [steps, [{ "text": "chore: race" }]] } });
    let spec = WorldSpec {
        scenario: "races".to_owned(),
        scenarios: vec![scenario.to_string()],
        user: owner.user.clone(),
        variables,
        ..WorldSpec::on(side.engine)
    };
    let world = World::start(&owner.parts, spec).await?;
    let mut body = world.run_body();
    body["resources"] = json!({ "workspace_mib": DISK_MIB });
    let id = world.api.submit(&body).await?;
    let places = racing(&world).await?;
    let fell = tokio::task::spawn_blocking(move || falls_for_it(&places)).await?;
    let run = world.api.wait_end(&id, WAIT).await?;
    world.wait_tidy().await?;
    let verdict = match said_through(&world, &run, &id).await? {
        Some(how) => Verdict::Through(how),
        None if state(&victim.file).ok() != Some(before) => {
            Verdict::Through("a file of the host was changed".to_owned())
        }
        None => {
            Verdict::Refused { error: "UNCHANGED".to_owned(), said: format!("the run {}", run["status"]) }
        }
    };
    Ok((fell, verdict))
}

/// Files of the host that the links lead to.
pub(super) struct Victim {
    directory: tempfile::TempDir,
    pub(super) file: PathBuf,
}

impl Victim {
    /// Makes them, one of them large.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn make() -> anyhow::Result<Self> {
        // Not in /tmp, of which each sandbox has its own.
        let directory = tempfile::tempdir_in("/var/tmp")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
        let file = directory.path().join("victim");
        fs::write(&file, MARK)?;
        let big = fs::File::create(directory.path().join("big"))?;
        nix::fcntl::posix_fallocate(&big, 0, i64::try_from(BIG_MIB << 20)?)?;
        Ok(Self { directory, file })
    }

    /// Their directory.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub(super) fn path(&self) -> anyhow::Result<&str> {
        self.directory.path().to_str().context("a temporary path is not UTF-8")
    }
}

/// Where the races are, seen from here, once they have begun.
async fn racing(world: &World) -> anyhow::Result<Vec<PathBuf>> {
    let start = Instant::now();
    loop {
        let is_ready = |path: &Path| path.file_name().is_some_and(|name| name == "race-ready");
        if let Some(ready) = find(&world.state_dir().join("sessions"), &is_ready) {
            let workspace = ready.ancestors().nth(2).context("a repository is in a workspace")?.to_owned();
            let session = workspace.parent().context("a workspace has a directory")?;
            return Ok(vec![workspace.join(".races"), session.join("home/.races")]);
        }
        ensure!(start.elapsed() < WAIT, "no race began:\n{}", world.server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether somebody who looks at a file first, and then opens it, reads the host's: in each place, as a file and in a directory.
fn falls_for_it(places: &[PathBuf]) -> bool {
    let start = Instant::now();
    let mut left: Vec<(PathBuf, PathBuf)> = places
        .iter()
        .flat_map(|place| {
            let (file, directory) = (place.join("file-a"), place.join("dir-a"));
            [(file.clone(), file), (directory.clone(), directory.join("victim"))]
        })
        .collect();
    while start.elapsed() < CONTROL && !left.is_empty() {
        left.retain(|(looked_at, read)| {
            let is_own = fs::symlink_metadata(looked_at).is_ok_and(|found| !found.is_symlink());
            !(is_own && fs::read_to_string(read).is_ok_and(|text| text == MARK))
        });
    }
    left.is_empty()
}

/// How something of the host's came where it does not belong; none if it did not.
async fn said_through(world: &World, run: &Value, id: &str) -> anyhow::Result<Option<String>> {
    if run["failure"]["kind"] == "disk_full" {
        return Ok(Some("what a link leads to was measured".to_owned()));
    }
    if serde_json::to_string(&world.api.events(id).await?)?.contains(MARK) {
        return Ok(Some("an event has a file of the host".to_owned()));
    }
    if find_text(&world.state_dir().join("artifacts"), MARK) {
        return Ok(Some("an artifact has a file of the host".to_owned()));
    }
    if run_git(&world.bare, &["log", "--all", "--patch", "--format=%B"])?.contains(MARK) {
        return Ok(Some("a file of the host was pushed".to_owned()));
    }
    let session = run["session_id"].as_str().context("the run has no session")?;
    let files = SessionFiles::open(world.state_dir(), session)?;
    let own = ["workspace", "home"].map(|place| files.directory().join(place));
    Ok(own
        .iter()
        .any(|place| find_text(place, MARK))
        .then(|| "the session has a file of the host".to_owned()))
}
