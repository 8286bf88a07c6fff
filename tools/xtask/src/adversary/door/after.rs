//! The door after the run: its grants, and a connection that was opened while it ran.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

use super::super::control::Shown;
use super::super::report::{Report, Tried};
use super::super::surroundings::{Sibling, write_attempts};
use super::super::verdict::Verdict;
use super::super::world::{Side, find, living_sibling, sibling_scenario};
use super::stage::{STRAY, variable};

/// In reports.
pub(super) const NAME: &str = "door.grant_after_the_run";
const WAIT: Duration = Duration::from_mins(2);
/// The words by which a door that is shut refuses: that of its grants and of a run that is none, and that nobody is there.
const REFUSALS: [&str; 5] = [REFUSED, CLOSED, "ConnectionRefused", "ConnectionReset", "BrokenPipe"];
const REFUSED: &str = "permission_error";
const CLOSED: &str = "CLOSED";

/// Calls the model with a run's grant while it runs, which is the control, and after its end.
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
    let grant = variable(living.pid, "ANTHROPIC_AUTH_TOKEN")?;
    let is_door = |path: &Path| path.file_name().is_some_and(|name| name == "gateway.sock");
    let door = find(&world.state_dir().join("doors"), &is_door).context("the sandbox has no door")?;
    // Another name of the socket, which outlives its own.
    let kept = world.directory.path().join("door");
    std::fs::hard_link(&door, &kept)?;

    let before = call(UnixStream::connect(&door)?, &grant)?;
    report.take(match &before {
        Verdict::Through(_) => Shown::Real(1),
        refused @ Verdict::Refused { .. } => {
            Shown::Nothing(vec![format!("{NAME} while it runs: refused: {refused}")])
        }
    });
    let open = UnixStream::connect(&door)?;
    ensure!(
        world.api.post(&format!("/v1/runs/{run}/cancel"), &json!({})).await?.status < 300,
        "not cancelled"
    );
    world.api.wait_end(&run, WAIT).await?;
    let again = || UnixStream::connect(&kept).map_err(anyhow::Error::from);
    for (what, stream) in [("by an open connection", Ok(open)), ("by its socket", again())] {
        let verdict = match stream {
            Ok(stream) => call(stream, &grant)?,
            Err(error) => refused(&error),
        };
        report.tried.push(Tried {
            name: NAME,
            walls: format!("the run's end, {what}"),
            refusals: REFUSALS.to_vec(),
            side: side.name(),
            verdict,
        });
    }
    Ok(())
}

/// A model call with the grant.
fn call(mut stream: UnixStream, grant: &str) -> anyhow::Result<Verdict> {
    let body = json!({ "model": "claude-sonnet-4-5", "max_tokens": 16,
        "messages": [{ "role": "user", "content": "[[scn:stray]] Hello." }] })
    .to_string();
    let request = format!(
        "POST /model/v1/messages HTTP/1.1\r\nHost: caisson\r\nAuthorization: Bearer {grant}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
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
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(Verdict::Through("the model answered".to_owned()));
    }
    let word = if answer.contains(REFUSED) { REFUSED } else { CLOSED };
    ensure!(answer.is_empty() || word == REFUSED, "the door said something else: {answer}");
    Ok(Verdict::Refused {
        error: word.to_owned(),
        said: answer.lines().last().unwrap_or_default().to_owned(),
    })
}

fn refused(error: &anyhow::Error) -> Verdict {
    let kind = error.downcast_ref::<std::io::Error>().map(|error| format!("{:?}", error.kind()));
    Verdict::Refused { error: kind.unwrap_or_default(), said: error.to_string() }
}
