//! Attempts at more of the machine than a sandbox may have: processes, memory, descriptors, disk, and room in the record.
//!
//! Each stops by itself a little beyond its bound, and its control without the bound runs within limits of its own, so that the
//! machine is safe from both. Where the bound is the server's to watch, the control is a run with a larger one, or the same attempt
//! on a server that leaves the bound out. Output without end comes from an agent behind pipes, since no tool reaches what another one
//! writes to. The shim, which cuts lines, is one program that no build leaves anything out of: there the
//! control is a line within the bound, which arrives.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use caisson_domain::checks::Check;
use serde_json::{Value, json};
use testkit::parts::Parts;
use testkit::piped_agent::{STREAM, behind_pipes};
use testkit::world::{World, WorldSpec};

use super::control::Shown;
use super::door::{CONTROLS, without, without_checks};
use super::report::{Report, Tried};
use super::surroundings::{Surroundings, UID, write_attempts};
use super::verdict::Verdict;
use super::world::{Owner, Side, bash, results};

const WAIT: Duration = Duration::from_mins(15);
/// What the sandboxes may have: processes; and memory, temporary files and disk in MiB.
const PIDS: u32 = 200;
const MEMORY_MIB: u32 = 768;
const TMP_MIB: u32 = 64;
const DISK_MIB: u64 = 96;
/// What a run may have on the disk whose control is that it has more.
const MORE_DISK_MIB: u64 = 512;
/// Open files of a process, as both engines have it.
const DESCRIPTORS: u32 = 16_384;
/// What a control may have: beyond every bound, and far below the machine.
const CAPS: [&str; 4] = ["--nproc=2000", "--nofile=20000", "--as=4294967296", "--fsize=268435456"];
/// Longest line and most bytes of events that a run's record keeps, with some room for what is around them.
const LINE_BYTES: usize = 1024 * 1024 + 64 * 1024;
const EVENTS_BYTES: usize = 280 * 1024 * 1024;
/// What an agent writes to its output, in bytes.
const OUTPUT_BYTES: usize = 1_000_000_000;
/// What of a text is kept here while events are looked at, in characters.
const BEGINNING: usize = 64;
/// How long a tool of the agent may take, in milliseconds.
const TOOL_MS: u32 = 590_000;

/// An attempt that the system refuses.
struct Limit {
    name: &'static str,
    argument: fn() -> String,
    wall: &'static str,
    refuses: &'static [&'static str],
}

const LIMITS: [Limit; 4] = [
    Limit {
        name: "resources.processes",
        argument: || format!("bound={PIDS}"),
        wall: "a bound on processes",
        refuses: &["EAGAIN"],
    },
    Limit {
        name: "resources.memory",
        argument: || format!("bound_mib={MEMORY_MIB}"),
        wall: "a bound on memory",
        // Without control groups it is each process that has the bound.
        refuses: &["KILLED", "ENOMEM"],
    },
    Limit {
        name: "resources.descriptors",
        argument: || format!("bound={DESCRIPTORS}"),
        wall: "a bound on open files",
        refuses: &["EMFILE"],
    },
    Limit {
        name: "resources.temporary_files",
        argument: || format!("bound_mib={TMP_MIB}"),
        wall: "a bound on temporary files",
        refuses: &["ENOSPC"],
    },
];

/// An attempt in a run of its own, judged by what the server says of that run.
struct Taken {
    name: &'static str,
    wall: &'static str,
    refuses: &'static [&'static str],
    /// What the agent does.
    command: fn() -> String,
    control: Control,
    judge: fn(&Value, &[Value]) -> Verdict,
}

/// How an attempt of a run of its own gets through.
enum Control {
    /// With so much disk, in MiB.
    MoreDisk(u64),
    /// Within the bound, by another command.
    Within(fn() -> String),
    /// On a server that leaves this out.
    Without(Check),
}

/// Fills the disk behind a file of four thousand names, which it keeps where nobody has looked yet or where everybody has: whoever
/// counts a file by its names finds little of it.
const HARD_LINKS: &str = r#"cat > race.py <<'END'
import ctypes, os, time
exchange = ctypes.CDLL(None, use_errno=True).renameat2
place = os.environ["HOME"] + "/.races"
os.makedirs(place + "/a/names"); os.makedirs(place + "/b/names")
open(place + "/big", "w").close()
for number in range(4000): os.link(place + "/big", f"{place}/a/names/{number}")
open("race-ready", "w").close()
one, other = (f"{place}/{part}/names".encode() for part in "ab")
end = time.monotonic() + 120
while time.monotonic() < end:
    if exchange(-100, one, -100, other, 2):
        raise OSError(ctypes.get_errno())
    time.sleep(0.002)
END
setsid nohup python3 race.py > race.log 2>&1 < /dev/null &
until test -e race-ready; do sleep 0.1; test -s race.log && cat race.log && exit 1; done
dd if=/dev/urandom of=$HOME/.races/big conv=notrunc bs=1M count=COUNT; sleep 20; cat race.log; rm race.py race.log race-ready; true"#;

fn taken() -> [Taken; 5] {
    let fill = || format!("dd if=/dev/urandom of=$HOME/ballast bs=1M count={}; sleep 3", DISK_MIB * 2);
    let files = || {
        "mkdir $HOME/many; cd $HOME/many; python3 -c 'for n in range(30000): open(str(n), \"w\").close()'; sleep 3".to_owned()
    };
    let line = || format!("head -c 100000000 /dev/zero | tr '\\0' x > {STREAM}; echo > {STREAM}");
    let short = || format!("head -c 100000 /dev/zero | tr '\\0' x > {STREAM}; echo > {STREAM}");
    let flood = || {
        format!(
            "yes \"$(head -c 120000 /dev/zero | tr '\\0' y)\" | head -c {OUTPUT_BYTES} > {STREAM}; echo > {STREAM}"
        )
    };
    let names = || HARD_LINKS.replace("COUNT", &(DISK_MIB * 2).to_string());
    [
        Taken {
            name: "resources.disk",
            wall: "a bound on the session's disk",
            refuses: &["ENOSPC", "disk_full"],
            command: fill,
            control: Control::MoreDisk(MORE_DISK_MIB),
            judge: by_space,
        },
        Taken {
            name: "resources.number_of_files",
            wall: "a bound on the session's files",
            refuses: &["ENOSPC", "disk_full"],
            command: files,
            control: Control::MoreDisk(MORE_DISK_MIB),
            judge: by_space,
        },
        Taken {
            name: "shared.raced_hard_links",
            wall: "a bound on the session's disk",
            refuses: &["ENOSPC", "disk_full"],
            command: names,
            control: Control::MoreDisk(MORE_DISK_MIB),
            judge: by_space,
        },
        Taken {
            name: "resources.line_of_output",
            wall: "a bound on lines",
            refuses: &["CUT"],
            command: line,
            control: Control::Within(short),
            judge: |_, events| by_line(events),
        },
        Taken {
            name: "resources.output",
            wall: "a bound on a run's record",
            refuses: &["CUT"],
            command: flood,
            control: Control::Without(Check::RecordBounds),
            judge: |_, events| by_bytes(events),
        },
    ]
}

/// Whether an attempt has this in its name.
pub(super) fn has(only: &str) -> bool {
    names().any(|name| name.contains(only))
}

/// The checks that stop something of it.
#[cfg(test)]
pub(super) fn checks() -> impl Iterator<Item = Check> {
    taken().into_iter().filter_map(|taken| match taken.control {
        Control::Without(check) => Some(check),
        Control::MoreDisk(_) | Control::Within(_) => None,
    })
}

/// Those that are functions.
#[cfg(test)]
pub(super) fn limited() -> impl Iterator<Item = &'static str> {
    LIMITS.iter().map(|limit| limit.name)
}

fn names() -> impl Iterator<Item = &'static str> {
    LIMITS.iter().map(|limit| limit.name).chain(taken().map(|taken| taken.name))
}

/// The controls of what the system refuses, the same beyond no bound; and of what the server does, on one that does not.
///
/// # Errors
/// Python cannot be started, or the build that leaves out checks is missing.
pub(super) async fn controls(
    parts: &Parts,
    only: &str,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    for taken in taken().iter().filter(|taken| taken.name.contains(only)) {
        let Control::Without(check) = taken.control else { continue };
        super::say(&format!("{} on a server without {}", taken.name, check.name()));
        let place = tempfile::tempdir_in("/var/tmp")?;
        let owner = CONTROLS.owner(&behind_pipes(&without_checks(parts)?, place.path())?)?;
        let world = open(&owner, CONTROLS, without(check)).await?;
        let (outcome, events) = run(&world, taken.name, DISK_MIB).await?;
        report.take(match (taken.judge)(&outcome, &events) {
            Verdict::Through(_) => Shown::Real(1),
            refused @ Verdict::Refused { .. } => {
                Shown::Nothing(vec![format!("{} without {}: refused: {refused}", taken.name, check.name())])
            }
        });
    }
    for limit in LIMITS.iter().filter(|limit| limit.name.contains(only)) {
        let (uid, gid) = (format!("--reuid={UID}"), format!("--regid={UID}"));
        #[expect(clippy::disallowed_methods, reason = "the control is started here, with an argument vector")]
        let mut command = Command::new("/usr/bin/prlimit");
        command.args(CAPS).args(["/usr/bin/setpriv", &uid, &gid, "--clear-groups", "/usr/bin/python3", "-B"]);
        command.arg(surroundings.attempts().join("attempt.py")).args([limit.name, &(limit.argument)()]);
        command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        let output = command.output().context("prlimit cannot be started")?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let verdict = Verdict::read(limit.name, &told)
            .with_context(|| format!("the control of {} told nothing: {output:?}", limit.name))?;
        report.take(match verdict {
            Verdict::Through(_) => Shown::Real(1),
            refused @ Verdict::Refused { .. } => {
                Shown::Nothing(vec![format!("{} without its bound: refused: {refused}", limit.name)])
            }
        });
    }
    Ok(())
}

/// Takes everything in the sandboxes of one side.
///
/// # Errors
/// A part does not start, a run does not end, or an attempt told nothing.
pub(super) async fn attack(parts: &Parts, side: Side, only: &str, report: &mut Report) -> anyhow::Result<()> {
    super::say(&format!(
        "{} attempts at the resources of {}",
        names().filter(|name| name.contains(only)).count(),
        side.name()
    ));
    let place = tempfile::tempdir_in("/var/tmp")?;
    let owner = side.owner(&behind_pipes(parts, place.path())?)?;
    let world = open(&owner, side, Vec::new()).await?;
    let limits: Vec<_> = LIMITS.iter().filter(|limit| limit.name.contains(only)).collect();
    if !limits.is_empty() {
        let (_, events) = run(&world, "limits", DISK_MIB).await?;
        let told = results(&events);
        for limit in limits {
            let verdict = Verdict::read(limit.name, &told)
                .with_context(|| format!("{} told nothing on {}: {told}", limit.name, side.name()))?;
            report.tried.push(tried(limit.name, limit.wall, limit.refuses, side, verdict));
        }
    }
    for taken in taken().iter().filter(|taken| taken.name.contains(only)) {
        let (outcome, events) = run(&world, taken.name, DISK_MIB).await?;
        report.tried.push(tried(
            taken.name,
            taken.wall,
            taken.refuses,
            side,
            (taken.judge)(&outcome, &events),
        ));
        let (scenario, disk_mib) = match taken.control {
            Control::MoreDisk(mib) => (taken.name.to_owned(), mib),
            Control::Within(_) => (format!("{}.control", taken.name), DISK_MIB),
            Control::Without(_) => continue,
        };
        let (outcome, events) = run(&world, &scenario, disk_mib).await?;
        report.take(match (taken.judge)(&outcome, &events) {
            Verdict::Through(_) => Shown::Real(1),
            refused @ Verdict::Refused { .. } => Shown::Nothing(vec![format!(
                "{} of {} within a larger bound: refused: {refused}",
                taken.name,
                side.name()
            )]),
        });
    }
    Ok(())
}

fn tried(name: &'static str, wall: &str, refusals: &[&'static str], side: Side, verdict: Verdict) -> Tried {
    Tried { name, walls: wall.to_owned(), refusals: refusals.to_vec(), side: side.name(), verdict }
}

async fn open(owner: &Owner, side: Side, more: Vec<(String, String)>) -> anyhow::Result<World> {
    let user = owner.user.clone();
    let limits = LIMITS
        .iter()
        .map(|limit| bash(&format!("python3 -B attempt.py {} {}", limit.name, (limit.argument)()), 120_000));
    let mut scenarios = vec![scenario("limits", limits.collect())];
    for taken in taken() {
        scenarios.push(scenario(taken.name, vec![bash(&(taken.command)(), TOOL_MS)]));
        if let Control::Within(command) = taken.control {
            scenarios.push(scenario(&format!("{}.control", taken.name), vec![bash(&command(), TOOL_MS)]));
        }
    }
    let variables = [vec![("LIMITS__WORKSPACE_MIB".to_owned(), MORE_DISK_MIB.to_string())], more].concat();
    let spec =
        WorldSpec { scenario: "limits".to_owned(), scenarios, variables, user, ..WorldSpec::on(side.engine) };
    let world = World::start(&owner.parts, spec).await?;
    let project = tempfile::tempdir()?;
    write_attempts(project.path())?;
    let repositories = world.bare.parent().context("the repository has a directory")?;
    testkit::repository::bare_from(repositories, "resources.git", project.path())?;
    Ok(world)
}

fn scenario(name: &str, mut steps: Vec<Value>) -> String {
    steps.push(json!({ "text": "Took everything." }));
    json!({ name: { "prompts": [steps, [{ "text": "chore: take everything" }]] } }).to_string()
}

/// A run and its events, once it has ended.
async fn run(world: &World, scenario: &str, disk_mib: u64) -> anyhow::Result<(Value, Vec<Value>)> {
    let resources =
        json!({ "pids": PIDS, "memory_mib": MEMORY_MIB, "tmp_mib": TMP_MIB, "workspace_mib": disk_mib });
    let body = json!({ "workflow": "bug-fixer", "prompt": format!("[[scn:{scenario}]] Take everything."),
        "repository": world.host.url("resources.git"), "resources": resources });
    let id = world.api.submit(&body).await?;
    let run = world.api.wait_end(&id, WAIT).await?;
    Ok((run, told(world, &id).await?))
}

/// The events of a run, of whose texts only the beginning is kept, each with its length in `bytes`: a gigabyte of them need not be
/// here at once.
async fn told(world: &World, id: &str) -> anyhow::Result<Vec<Value>> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let after = all.last().map_or(0, |event| event["seq"].as_i64().unwrap_or(0));
        let page = world.api.get(&format!("/v1/runs/{id}/events?after={after}&limit=100")).await?;
        let items = page.body["items"].as_array().with_context(|| format!("no items: {}", page.status))?;
        if items.is_empty() {
            return Ok(all);
        }
        all.extend(items.iter().map(short));
    }
}

fn short(event: &Value) -> Value {
    let mut short = event.clone();
    short["bytes"] = json!(event.to_string().len());
    if let Some(text) = event["data"]["text"].as_str() {
        short["data"]["text"] = json!(text.chars().take(BEGINNING).collect::<String>());
    }
    short
}

fn bytes(event: &Value) -> usize {
    event["bytes"].as_u64().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default()
}

/// Refused if the agent met the end of the disk, or if the run failed, by the kind of its failure.
fn by_space(run: &Value, events: &[Value]) -> Verdict {
    if results(events).contains("No space left on device") {
        return Verdict::Refused { error: "ENOSPC".to_owned(), said: "the agent was told so".to_owned() };
    }
    match run["failure"]["kind"].as_str() {
        None => Verdict::Through(format!("the run {}", run["status"])),
        Some(kind) => {
            Verdict::Refused { error: kind.to_owned(), said: run["failure"]["message"].to_string() }
        }
    }
}

/// Refused if a line of x was cut; through if one came whole.
fn by_line(events: &[Value]) -> Verdict {
    let texts = events
        .iter()
        .filter(|event| event["data"]["text"].as_str().is_some_and(|text| text.starts_with("xxxx")));
    let cut = texts.clone().filter_map(|event| event["data"]["cut_bytes"].as_u64()).max();
    let longest = events.iter().map(bytes).max().unwrap_or(0);
    match cut {
        Some(cut @ 1..) if longest < LINE_BYTES => {
            Verdict::Refused { error: "CUT".to_owned(), said: format!("{cut} bytes of it") }
        }
        Some(_) => Verdict::Through(format!("the longest event has {longest} bytes")),
        None => Verdict::Refused { error: "LOST".to_owned(), said: "the line did not come".to_owned() },
    }
}

/// Refused if the record is full and told so; through if all of it came.
fn by_bytes(events: &[Value]) -> Verdict {
    let bytes: usize = events.iter().map(bytes).sum();
    let full = events
        .iter()
        .any(|event| event["kind"] == "note" && event["data"].to_string().contains("the run has told"));
    match (full, bytes < EVENTS_BYTES) {
        (true, true) => Verdict::Refused { error: "CUT".to_owned(), said: format!("{bytes} bytes are kept") },
        (false, true) if bytes < OUTPUT_BYTES / 2 => Verdict::Refused {
            error: "LOST".to_owned(),
            said: format!("{bytes} bytes are kept, and nobody says why"),
        },
        (_, _) => Verdict::Through(format!("{bytes} bytes are kept")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_or_whole_or_lost() {
        let line = |text: String, cut: u64| {
            short(&json!({ "kind": "agent.text", "data": { "text": text, "cut_bytes": cut } }))
        };
        assert!(by_line(&[line("xxxxx".to_owned(), 0)]).is_through());
        assert!(
            by_line(&[line("x".repeat(LINE_BYTES + 1), 7)]).is_through(),
            "cut, and too long all the same"
        );
        assert_eq!(
            by_line(&[line("xxxxx".to_owned(), 7)]).judge(&["CUT"]),
            super::super::verdict::Judgement::Refused
        );
        assert!(matches!(by_line(&[]), Verdict::Refused { error, .. } if error == "LOST"));
    }

    #[test]
    fn output_is_kept_whole_or_cut_with_a_word_or_lost() {
        let text = |bytes: usize| json!({ "kind": "agent.text", "data": { "text": "y" }, "bytes": bytes });
        let full = json!({ "kind": "note", "data": { "message": "the run has told 1 events" }, "bytes": 9 });
        assert!(by_bytes(&[text(OUTPUT_BYTES)]).is_through());
        assert!(
            by_bytes(&[text(EVENTS_BYTES), full.clone()]).is_through(),
            "told, and too much all the same"
        );
        assert!(matches!(by_bytes(&[text(100), full]), Verdict::Refused { error, .. } if error == "CUT"));
        assert!(matches!(by_bytes(&[text(100)]), Verdict::Refused { error, .. } if error == "LOST"));
    }
}
