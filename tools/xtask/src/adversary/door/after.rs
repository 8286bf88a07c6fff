//! The door after the run: its grants, and a connection that was opened while it ran.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use caisson_domain::protocol::environment::CONTROL_GRANT;
use serde_json::json;
use testkit::engine::variable;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

use super::super::control::Shown;
use super::super::report::{Report, Tried};
use super::super::surroundings::{Sibling, write_attempts};
use super::super::verdict::Verdict;
use super::super::world::{Side, find, living_sibling, sibling_scenario};
use super::stage::STRAY;

/// In reports.
pub(super) const NAME: &str = "door.grant_after_the_run";
const WAIT: Duration = Duration::from_mins(2);
/// The words by which a door that is shut refuses: those of its grants, to the model's client and to others, that no run is running any
/// more, that of an artifact of a run that has ended, and that nobody is there.
const REFUSALS: [&str; 8] =
    [REFUSED_BY_MODEL, REFUSED, NO_RUN, ENDED, CLOSED, "ConnectionRefused", "ConnectionReset", "BrokenPipe"];
const REFUSED_BY_MODEL: &str = "permission_error";
const REFUSED: &str = "grant_refused";
const NO_RUN: &str = "no_run";
const ENDED: &str = "artifact_refused";
const CLOSED: &str = "CLOSED";

/// A request that a grant opens while its run goes on.
struct Asked {
    what: &'static str,
    grant: String,
    /// Method and target.
    line: String,
    body: String,
}

impl Asked {
    /// One for each part of the door, by the grant for it.
    fn all(run: &str, agent: &str, control: &str) -> [Self; 3] {
        let model = json!({ "model": "claude-sonnet-4-5", "max_tokens": 16,
            "messages": [{ "role": "user", "content": "[[scn:stray]] Hello." }] });
        let asked = |what, grant: &str, line: &str, body: &str| Self {
            what,
            grant: grant.to_owned(),
            line: line.to_owned(),
            body: body.to_owned(),
        };
        [
            asked("the model", agent, "POST /model/v1/messages", &model.to_string()),
            asked("the repository", agent, "GET /git/origin/info/refs?service=git-upload-pack", ""),
            asked("an artifact", control, &format!("PUT /artifacts/{run}/after.txt"), "Kept."),
        ]
    }

    /// Asks it.
    fn by(&self, mut stream: UnixStream) -> anyhow::Result<Verdict> {
        let request = format!(
            "{} HTTP/1.1\r\nHost: caisson\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            self.line,
            self.grant,
            self.body.len(),
            self.body
        );
        stream.set_read_timeout(Some(WAIT))?;
        if let Err(error) = stream.write_all(request.as_bytes()) {
            return Ok(refused(&error.into()));
        }
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            return Ok(refused(&error.into()));
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if answer.starts_with("HTTP/1.1 2") {
            return Ok(Verdict::Through(format!("{} answered", self.what)));
        }
        let word = [REFUSED_BY_MODEL, REFUSED, NO_RUN, ENDED]
            .into_iter()
            .find(|word| answer.contains(word))
            .unwrap_or(CLOSED);
        let said_nothing_else = answer.is_empty() || word != CLOSED;
        ensure!(said_nothing_else, "{}: the door said something else: {answer}", self.what);
        Ok(Verdict::Refused {
            error: word.to_owned(),
            said: answer.lines().last().unwrap_or_default().to_owned(),
        })
    }
}

/// Asks each part of the door with a run's grants while it runs, which is the control, and after its end.
///
/// # Errors
/// A part does not start, or the run does not end.
pub(super) async fn attack(parts: &Parts, side: Side, report: &mut Report) -> anyhow::Result<()> {
    let owner = side.owner(parts)?;
    let sibling = Sibling::new(&format!("after-{}", side.name()))?;
    let scenarios = vec![sibling_scenario(&sibling), STRAY.to_owned()];
    let spec = WorldSpec {
        scenario: "sibling".to_owned(),
        scenarios,
        user: owner.user.clone(),
        ..WorldSpec::on(side.engine)
    };
    let world = World::start(&owner.parts, spec).await?;
    let project = tempfile::tempdir()?;
    write_attempts(project.path())?;
    let repositories = world.bare.parent().context("the repository has a directory")?;
    testkit::repository::bare_from(repositories, "sibling.git", project.path())?;
    let body = json!({ "workflow": "bug-fixer", "prompt": "Wait.", "max_turns": 1000,
        "repository": world.host.url("sibling.git") });
    let run = world.api.submit(&body).await?;
    let living = living_sibling(&world).await?;
    let control =
        world.processes(&living.sandbox)?.into_iter().find_map(|pid| variable(pid, CONTROL_GRANT).ok());
    let control = control.context("the shim has no grant")?;
    let all = Asked::all(&run, &variable(living.pid, "ANTHROPIC_AUTH_TOKEN")?, &control);
    let is_door = |path: &Path| path.file_name().is_some_and(|name| name == "gateway.sock");
    let door = find(&world.state_dir().join("doors"), &is_door).context("the sandbox has no door")?;
    // Another name of the socket, which outlives its own.
    let kept = world.directory.path().join("door");
    std::fs::hard_link(&door, &kept)?;

    for asked in &all {
        report.take(match asked.by(UnixStream::connect(&door)?)? {
            Verdict::Through(_) => Shown::Real(1),
            refused @ Verdict::Refused { .. } => {
                Shown::Nothing(vec![format!("{NAME}, {}, while it runs: refused: {refused}", asked.what)])
            }
        });
    }
    let open = all.iter().map(|_| UnixStream::connect(&door)).collect::<Result<Vec<_>, _>>()?;
    ensure!(
        world.api.post(&format!("/v1/runs/{run}/cancel"), &json!({})).await?.status < 300,
        "not cancelled"
    );
    world.api.wait_end(&run, WAIT).await?;
    for (asked, open) in all.iter().zip(open) {
        let again = UnixStream::connect(&kept).map_err(anyhow::Error::from);
        for (way, stream) in [("by an open connection", Ok(open)), ("by its socket", again)] {
            let verdict = match stream {
                Ok(stream) => asked.by(stream)?,
                Err(error) => refused(&error),
            };
            report.tried.push(Tried {
                name: NAME,
                walls: format!("the run's end, for {}, {way}", asked.what),
                refusals: REFUSALS.to_vec(),
                side: side.name(),
                verdict,
            });
        }
    }
    Ok(())
}

fn refused(error: &anyhow::Error) -> Verdict {
    let kind = error.downcast_ref::<std::io::Error>().map(|error| format!("{:?}", error.kind()));
    Verdict::Refused { error: kind.unwrap_or_default(), said: error.to_string() }
}
