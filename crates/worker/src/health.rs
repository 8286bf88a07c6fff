//! Whether this server can place runs, told to the store and to the claim loop.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use async_trait::async_trait;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::context::{Context, Halt, described};
use crate::dirs::blocking;

/// The agent's binary in its directory.
const AGENT_FILE: &str = "claude";

/// The part of `min_free_disk_bytes` that must be free beyond it before runs are placed again: a quarter.
pub const DISK_RESUME_PARTS: u64 = 4;

/// Checks what only the composition root knows how to ask: the engine, and the default image on it.
#[async_trait]
pub trait Probe: Send + Sync {
    /// What keeps the engine from making sandboxes; empty when nothing does. Each answer costs at most one small
    /// request or a few short processes, because it is asked every few seconds.
    ///
    /// # Cancel safety
    /// Must be safe to drop: an answer that takes longer than [`crate::Timing::probe`] is not waited for.
    async fn problems(&self) -> Vec<PlacementProblem>;
}

/// What is known of this server's health.
#[derive(Debug)]
pub(crate) struct Health {
    standing: watch::Sender<Standing>,
    recheck: Notify,
}

#[derive(Debug, Clone, Default)]
struct Standing {
    /// What the last check found; none before the first one.
    problems: Option<Vec<PlacementProblem>>,
    /// How often somebody suspected something.
    suspicions: u64,
    /// How many of them had come before the last check began.
    checked: u64,
}

impl Standing {
    fn is_sound(&self) -> bool {
        self.suspicions == self.checked && self.problems.as_ref().is_some_and(Vec::is_empty)
    }
}

impl Health {
    /// Nothing is known yet, so nothing is claimed before the first check.
    pub(crate) fn new() -> Self {
        Self { standing: watch::Sender::default(), recheck: Notify::new() }
    }

    /// What the last check found.
    pub(crate) fn problems(&self) -> Vec<PlacementProblem> {
        self.standing.borrow().problems.clone().unwrap_or_default()
    }

    /// Whether too little of the disk was free at the last check.
    pub(crate) fn is_disk_low(&self) -> bool {
        let low =
            |problems: &Vec<PlacementProblem>| problems.iter().any(|one| one.code == ProblemCode::DiskLow);
        self.standing.borrow().problems.as_ref().is_some_and(low)
    }

    /// Somebody saw engine or disk fail: check at once, and claim nothing before.
    pub(crate) fn suspect(&self) {
        self.standing.send_modify(|standing| standing.suspicions += 1);
        self.recheck.notify_one();
    }

    /// Waits until runs can be placed.
    async fn sound(&self) {
        let mut standing = self.standing.subscribe();
        // The sender lives as long as `self`, so this fails never; if it did, waiting on is the safe side.
        if standing.wait_for(Standing::is_sound).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn suspicions(&self) -> u64 {
        self.standing.borrow().suspicions
    }

    /// Notes what a check found that began when there had been `checked` suspicions.
    fn settle(&self, checked: u64, problems: &[PlacementProblem]) {
        let mut news = false;
        self.standing.send_modify(|standing| {
            news = standing.problems.as_deref() != Some(problems);
            standing.checked = checked;
            standing.problems = Some(problems.to_vec());
        });
        if news {
            log(problems);
        }
    }
}

fn log(problems: &[PlacementProblem]) {
    if problems.is_empty() {
        info!("this server can place runs");
    }
    for problem in problems {
        warn!(problem.code = %problem.code, "this server cannot place runs: {}", problem.message);
    }
}

/// Checks once and tells claim loop and store.
pub(crate) async fn check(ctx: &Context) -> Result<(), caisson_store::StoreError> {
    let suspicions = ctx.health.suspicions();
    let problems = find(ctx).await;
    ctx.health.settle(suspicions, &problems);
    ctx.store.heartbeat_server(&ctx.config.server, &problems).await
}

/// Checks at intervals, and whenever somebody suspects something, until the server goes down.
pub(crate) async fn keep(ctx: &Context) {
    loop {
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return,
            () = ctx.health.recheck.notified() => {}
            () = tokio::time::sleep(ctx.timing().health_check) => {}
        }
        if let Err(error) = check(ctx).await {
            warn!(error = described(&error), "could not tell the store of this server's health");
        }
    }
}

/// Waits until runs can be placed.
pub(crate) async fn sound(ctx: &Context) -> Result<(), Halt> {
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Halt::Shutdown),
        () = ctx.health.sound() => Ok(()),
    }
}

async fn find(ctx: &Context) -> Vec<PlacementProblem> {
    let mut problems = match &ctx.probe {
        None => Vec::new(),
        Some(probe) => match tokio::time::timeout(ctx.timing().probe, probe.problems()).await {
            Ok(problems) => problems,
            Err(_) => vec![problem(
                ProblemCode::EngineUnavailable,
                "the engine takes too long to answer; check that it is running".to_owned(),
            )],
        },
    };
    let (dirs, config) = (ctx.dirs.clone(), ctx.config.clone());
    let told = problems.iter().any(|problem| problem.code == ProblemCode::AgentMissing);
    let paused = ctx.health.is_disk_low();
    let here = blocking(move || {
        let disk = disk_problem(dirs.free()?.bytes, config.min_free_disk_bytes, paused);
        let agent = agent_problem(config.agent_dir.as_deref()).filter(|_| !told);
        Ok([agent, disk])
    });
    match here.await {
        Ok(found) => problems.extend(found.into_iter().flatten()),
        Err(error) => {
            problems.push(problem(
                ProblemCode::DiskLow,
                format!("{error}: {}; check the state directory", error.source),
            ));
        }
    }
    problems
}

fn problem(code: ProblemCode, message: String) -> PlacementProblem {
    PlacementProblem { code, message }
}

fn agent_problem(dir: Option<&Path>) -> Option<PlacementProblem> {
    let remedy = "run `caisson agent install`";
    let Some(dir) = dir else {
        return Some(problem(ProblemCode::AgentMissing, format!("no agent is installed; {remedy}")));
    };
    let runs = |found: std::fs::Metadata| found.is_file() && found.permissions().mode() & 0o111 != 0;
    if std::fs::metadata(dir.join(AGENT_FILE)).is_ok_and(runs) {
        return None;
    }
    let message = format!("{} holds no program named {AGENT_FILE}; {remedy}", dir.display());
    Some(problem(ProblemCode::AgentMissing, message))
}

/// Once too little was free, more has to be before anything is placed again: else each run that ends would let the next one
/// in, which fills the disk anew.
fn disk_problem(free_bytes: u64, least_bytes: u64, paused: bool) -> Option<PlacementProblem> {
    const MIB: u64 = 1024 * 1024;
    let needed =
        if paused { least_bytes.saturating_add(least_bytes / DISK_RESUME_PARTS) } else { least_bytes };
    (free_bytes < needed).then(|| {
        let (free, needed) = (free_bytes / MIB, needed.div_ceil(MIB));
        problem(
            ProblemCode::DiskLow,
            format!(
                "the state directory's disk has {free} MiB free, but {needed} MiB are needed before runs are placed again; make \
                 room: `caisson gc --dry-run` tells what retention could remove"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_disk_space_is_judged_at_its_bound() {
        assert_eq!(disk_problem(1024, 1024, false), None);
        let found = disk_problem(1023, 1024, false).unwrap();
        assert_eq!(found.code, ProblemCode::DiskLow);
        assert!(found.message.contains("0 MiB free, but 1 MiB"), "{}", found.message);
        assert_eq!(disk_problem(0, 0, false), None);
        assert_eq!(disk_problem(0, 0, true), None);
    }

    #[test]
    fn after_too_little_was_free_a_quarter_more_must_be() {
        assert!(disk_problem(1024, 1024, true).is_some());
        assert!(disk_problem(1024 + 1024 / DISK_RESUME_PARTS - 1, 1024, true).is_some());
        assert_eq!(disk_problem(1024 + 1024 / DISK_RESUME_PARTS, 1024, true), None);
    }

    #[test]
    fn an_agent_is_a_program_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let code = |dir: Option<&Path>| agent_problem(dir).map(|problem| problem.code);
        assert_eq!(code(None), Some(ProblemCode::AgentMissing));
        assert_eq!(code(Some(dir.path())), Some(ProblemCode::AgentMissing));
        let file = dir.path().join(AGENT_FILE);
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(code(Some(dir.path())), Some(ProblemCode::AgentMissing), "not executable");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(code(Some(dir.path())), None);
        assert!(agent_problem(None).unwrap().message.contains("caisson agent install"));
    }

    #[tokio::test]
    async fn nothing_is_placed_before_the_first_check_nor_after_a_suspicion() {
        let health = Health::new();
        let sound = |health: &Health| health.standing.borrow().is_sound();
        assert!(!sound(&health));
        health.settle(0, &[]);
        assert!(sound(&health));
        health.sound().await;
        let before = health.suspicions();
        health.suspect();
        assert!(!sound(&health));
        health.settle(before, &[]);
        assert!(!sound(&health), "a check that began before the suspicion does not lift it");
        health.recheck.notified().await;
        health.settle(health.suspicions(), &[problem(ProblemCode::DiskLow, String::new())]);
        assert!(!sound(&health));
        assert_eq!(health.problems().len(), 1);
        health.settle(health.suspicions(), &[]);
        health.sound().await;
    }
}
