//! Attempts at more of the machine than a sandbox may have: processes, memory, descriptors, disk, and room in the record.
//!
//! Each stops by itself a little beyond its bound, and its control without the bound runs within limits of its own, so that the
//! machine is safe from both. Where the bound is the server's to watch, the control is a run with a larger one, or an
//! attempt that stays within it: that what is taken arrives at all.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

use super::control::Shown;
use super::report::{Report, Tried};
use super::surroundings::{Surroundings, UID, write_attempts};
use super::verdict::Verdict;
use super::world::{Owner, Side, bash, results};

const WAIT: Duration = Duration::from_mins(6);
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
/// The agent's own standard output, as a tool of it reaches it: what is written there comes to the record.
const STREAM: &str = "/proc/$PPID/fd/1";
/// Longest line and most bytes of events that a run's record keeps, with some room for what is around them.
const LINE_BYTES: usize = 1024 * 1024 + 64 * 1024;
const EVENTS_BYTES: usize = 280 * 1024 * 1024;

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
    /// What it does in the control, and how much disk it has there.
    control: (fn() -> String, u64),
    judge: fn(&Value, &[Value]) -> Verdict,
}

fn taken() -> [Taken; 4] {
    let fill = || format!("dd if=/dev/urandom of=$HOME/ballast bs=1M count={}; sleep 3", DISK_MIB * 2);
    let files = || {
        "mkdir $HOME/many; cd $HOME/many; python3 -c 'for n in range(30000): open(str(n), \"w\").close()'; sleep 3".to_owned()
    };
    let line = || format!("head -c 100000000 /dev/zero | tr '\\0' x > {STREAM}; echo > {STREAM}");
    let short = || format!("head -c 100000 /dev/zero | tr '\\0' x > {STREAM}; echo > {STREAM}");
    let flood = || {
        format!(
            "yes \"$(head -c 120000 /dev/zero | tr '\\0' y)\" | head -c 330000000 > {STREAM}; echo > {STREAM}"
        )
    };
    let drops = || {
        format!("yes \"$(head -c 1200 /dev/zero | tr '\\0' y)\" | head -c 300000 > {STREAM}; echo > {STREAM}")
    };
    [
        Taken {
            name: "resources.disk",
            wall: "a bound on the session's disk",
            refuses: &["ENOSPC", "disk_full"],
            command: fill,
            control: (fill, MORE_DISK_MIB),
            judge: by_space,
        },
        Taken {
            name: "resources.number_of_files",
            wall: "a bound on the session's files",
            refuses: &["ENOSPC", "disk_full"],
            command: files,
            control: (files, MORE_DISK_MIB),
            judge: by_space,
        },
        Taken {
            name: "resources.line_of_output",
            wall: "a bound on lines",
            refuses: &["CUT"],
            command: line,
            control: (short, DISK_MIB),
            judge: |_, events| by_line(events),
        },
        Taken {
            name: "resources.output",
            wall: "a bound on a run's record",
            refuses: &["CUT"],
            command: flood,
            control: (drops, DISK_MIB),
            judge: |_, events| by_bytes(events),
        },
    ]
}

/// Whether an attempt has this in its name.
pub(super) fn has(only: &str) -> bool {
    names().any(|name| name.contains(only))
}

/// Those that are functions.
#[cfg(test)]
pub(super) fn limited() -> impl Iterator<Item = &'static str> {
    LIMITS.iter().map(|limit| limit.name)
}

fn names() -> impl Iterator<Item = &'static str> {
    LIMITS.iter().map(|limit| limit.name).chain(taken().map(|taken| taken.name))
}

/// The controls of what the system refuses: the same beyond no bound.
///
/// # Errors
/// Python cannot be started.
pub(super) fn controls(only: &str, surroundings: &Surroundings, report: &mut Report) -> anyhow::Result<()> {
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
    let owner = side.owner(parts)?;
    let world = open(&owner, side).await?;
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
        let (outcome, events) = run(&world, &format!("{}.control", taken.name), taken.control.1).await?;
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

async fn open(owner: &Owner, side: Side) -> anyhow::Result<World> {
    let user = owner.user.clone();
    let limits = LIMITS
        .iter()
        .map(|limit| bash(&format!("python3 -B attempt.py {} {}", limit.name, (limit.argument)()), 120_000));
    let mut scenarios = vec![scenario("limits", limits.collect())];
    for taken in taken() {
        scenarios.push(scenario(taken.name, vec![bash(&(taken.command)(), 240_000)]));
        scenarios
            .push(scenario(&format!("{}.control", taken.name), vec![bash(&(taken.control.0)(), 240_000)]));
    }
    let variables = vec![("LIMITS__WORKSPACE_MIB".to_owned(), MORE_DISK_MIB.to_string())];
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
    Ok((run, world.api.events(&id).await?))
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
    let longest = events.iter().map(|event| event.to_string().len()).max().unwrap_or(0);
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
    let bytes: usize = events.iter().map(|event| event["data"].to_string().len()).sum();
    let full = events
        .iter()
        .any(|event| event["kind"] == "note" && event["data"].to_string().contains("the run has told"));
    match (full, bytes < EVENTS_BYTES) {
        (true, true) => Verdict::Refused { error: "CUT".to_owned(), said: format!("{bytes} bytes are kept") },
        (_, _) => Verdict::Through(format!("{bytes} bytes are kept")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_or_whole_or_lost() {
        let line = |text: String, cut: u64| json!({ "kind": "agent.text", "data": { "text": text, "cut_bytes": cut } });
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
}
