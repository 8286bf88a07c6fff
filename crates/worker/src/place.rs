//! Puts a claimed run into a new sandbox.

use std::sync::Arc;

use caisson_domain::event::EventKind;
use caisson_domain::grant::{GrantKind, Token};
use caisson_domain::id::SandboxId;
use caisson_domain::protocol::environment;
use caisson_sandbox::{EngineError, Mounts, ResourceLimits, SandboxSpec};
use caisson_store::{NewSandbox, SandboxState, Topic};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::attempt::Attempt;
use crate::config::Owner;
use crate::context::{Halt, described};
use crate::dirs::{DirError, SandboxDirs, blocking};
use crate::holds::{Hold, Predecessor};
use crate::judge::{Fault, FaultClass};
use crate::kept;
use crate::steps::Step;
use crate::teardown;

const MIB: u64 = 1024 * 1024;

/// What came of placing a run.
pub(crate) enum Placing {
    /// Its sandbox runs.
    Placed(Hold),
    /// Another worker has the run.
    Lost,
    /// There is no sandbox that runs; what there is of one is still to be taken away.
    Failed(Option<Hold>, Fault),
}

/// Why making a sandbox ended early.
enum Stop {
    Lost,
    Fault(Fault),
    Halt(Halt),
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Puts the run into a new sandbox and starts it.
///
/// The order is what makes a crash harmless: directories before the row that makes the gateway bind the door, the row
/// before the engine makes anything, and the placement before the start, so that the shim finds its work.
///
/// Where the sandbox of the session's last run waits and fits, it is that one, and nothing is made.
pub(crate) async fn place(attempt: &Attempt) -> Result<Placing, Halt> {
    let ctx = &attempt.ctx;
    if let Some(placing) = kept::reuse(attempt).await? {
        return Ok(placing);
    }
    kept::make_room(ctx);
    if let Err(stop) = clear_session(attempt).await {
        return stopped(stop, None);
    }
    let Ok(start) = Arc::clone(&ctx.starts).acquire_owned().await else { return Err(Halt::Shutdown) };
    tokio::select! {
        () = ctx.cancel.cancelled() => return Err(Halt::Shutdown),
        () = ctx.pressure.wait(ctx.timing().start_patience) => {}
    }
    let sandbox = SandboxId::new(ctx.store.now_ms(), ctx.random.bytes());
    let Some(hold) = ctx.holds.take(&sandbox, Some(&attempt.run.session)) else {
        return Ok(Placing::Failed(
            None,
            fault(FaultClass::Retry, "two sandboxes got the same id".to_owned()),
        ));
    };
    match build(attempt, &sandbox).await {
        Ok(()) => {
            until_agent_started(attempt, start);
            Ok(Placing::Placed(hold))
        }
        Err(stop) => stopped(stop, Some(hold)),
    }
}

/// Keeps the place among those that start until the agent has started, or for as long as starting may count.
fn until_agent_started(attempt: &Attempt, start: OwnedSemaphorePermit) {
    let (ctx, run, epoch) = (Arc::clone(&attempt.ctx), attempt.run.id.clone(), attempt.epoch);
    let tracker = ctx.tracker.clone();
    tracker.spawn(async move {
        let mut watch = ctx.store.watch(Topic::Run(run.clone()));
        let started = async {
            // A store that is away, and a run that is another's, are for whoever attends to the run.
            while let Ok(Some(progress)) = ctx.store.progress(&run, epoch).await
                && !progress.agent_started
                && progress.outcome.is_none()
            {
                watch.changed(ctx.timing().run_poll).await;
            }
        };
        tokio::select! {
            () = ctx.cancel.cancelled() => {}
            () = started => {}
            () = tokio::time::sleep(ctx.timing().starting) => {}
        }
        drop(start);
    });
}

fn stopped(stop: Stop, hold: Option<Hold>) -> Result<Placing, Halt> {
    match stop {
        Stop::Lost => Ok(Placing::Lost),
        Stop::Fault(fault) => Ok(Placing::Failed(hold, fault)),
        Stop::Halt(halt) => Err(halt),
    }
}

/// Waits until the session's earlier sandboxes are gone: two must never write to one workspace.
async fn clear_session(attempt: &Attempt) -> Result<(), Stop> {
    let ctx = &attempt.ctx;
    let until = Instant::now() + ctx.timing().predecessor;
    let mut changes = ctx.holds.changes();
    loop {
        changes.mark_unchanged();
        match ctx.holds.predecessor(&attempt.run.session) {
            None => return Ok(()),
            Some(Predecessor::Yours(hold)) => {
                if !teardown::destroy(ctx, hold).await {
                    return Err(in_the_way().into());
                }
            }
            Some(Predecessor::Busy) => {
                if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                    return Err(in_the_way().into());
                }
            }
        }
    }
}

fn in_the_way() -> Fault {
    fault(FaultClass::Passing, "the session's previous sandbox could not be removed yet".to_owned())
}

async fn build(attempt: &Attempt, sandbox: &SandboxId) -> Result<(), Stop> {
    let ctx = &attempt.ctx;
    let owner = ctx.config.uids.owner(attempt.session_offset).ok_or_else(|| {
        let message = "no user id is left for the session; give the server a lower first uid".to_owned();
        fault(FaultClass::Final, message)
    })?;
    set_stale_aside(attempt).await?;
    let dirs = make_dirs(attempt, sandbox, owner).await?;
    ctx.step(Step::DirsMade).await;

    let [control, agent] =
        [GrantKind::Control, GrantKind::Agent].map(|kind| Token::grant(kind, ctx.random.bytes()));
    let image = choose_image(attempt).await?;
    let row = NewSandbox {
        id: sandbox.clone(),
        session: attempt.run.session.clone(),
        server: ctx.config.server.clone(),
        engine: ctx.config.engine_name.clone(),
        image: image.clone().unwrap_or_default(),
        uid: owner.uid,
        control: control.hash(),
        agent: agent.hash(),
    };
    let spec = SandboxSpec { image, ..specify(attempt, &row, (owner, dirs), [&control, &agent])? };
    write_row(attempt, &row).await?;
    ctx.step(Step::SandboxWritten).await;

    let (store, run, epoch) = (&ctx.store, &attempt.run.id, attempt.epoch);
    if !ctx.insist("place a run", move || store.place(run, epoch, sandbox)).await? {
        return Err(Stop::Lost);
    }
    ctx.step(Step::Placed).await;
    let start_ms = bring_up(attempt, &spec).await?;
    announce(attempt, sandbox, &row.image, Some(start_ms)).await?.then_some(()).ok_or(Stop::Lost)
}

/// The image of the run's sandbox; none on an engine that has no images. A session whose repository chose one goes on in it, until
/// the repository says something else: nobody begins in the default one to be told the same again.
async fn choose_image(attempt: &Attempt) -> Result<Option<String>, Halt> {
    let (ctx, run) = (&attempt.ctx, &attempt.run);
    let (Some(own), None) = (&ctx.config.default_image, &run.spec.image) else {
        return Ok(run.spec.image.clone());
    };
    let store = &ctx.store;
    let last = move || store.session_image(&run.session, &run.id);
    let chosen = match &run.repository_image {
        Some(image) => Some(image.clone()),
        None => ctx.insist("look for a session's image", last).await?,
    };
    // What a repository chose counts nothing where it may not choose it any more.
    let may = |image: &String| ctx.config.repository_images.iter().any(|rule| rule.allows(image));
    Ok(chosen.filter(may).or_else(|| Some(own.clone())))
}

/// A session that went on elsewhere, since this server was lost, and comes back has another workspace than the one it left here:
/// it is made anew from what was pushed.
async fn set_stale_aside(attempt: &Attempt) -> Result<(), Stop> {
    let (ctx, run) = (&attempt.ctx, &attempt.run);
    let store = &ctx.store;
    let home = ctx.insist("look for a session's home", move || store.session_home(&run.session, &run.id));
    if home.await?.is_none_or(|home| home == ctx.config.server) {
        return Ok(());
    }
    let (dirs, session, now_ms) = (ctx.dirs.clone(), run.session.clone(), store.now_ms());
    let aside =
        blocking(move || dirs.set_aside(&session, now_ms)).await.map_err(|error| dir_fault(&error))?;
    if let Some(aside) = aside {
        warn!(
            session.id = %run.session,
            "session {} went on elsewhere; the workspace that it had here is now {}", run.session, aside.display()
        );
    }
    Ok(())
}

async fn make_dirs(attempt: &Attempt, sandbox: &SandboxId, owner: Owner) -> Result<SandboxDirs, Fault> {
    let (dirs, session, sandbox) = (attempt.ctx.dirs.clone(), attempt.run.session.clone(), sandbox.clone());
    let cap = attempt.cap();
    blocking(move || dirs.make((&session, cap), &sandbox, owner)).await.map_err(|error| {
        attempt.ctx.health.suspect();
        dir_fault(&error)
    })
}

fn dir_fault(error: &DirError) -> Fault {
    let class = if error.is_full() { FaultClass::Passing } else { FaultClass::Retry };
    fault(class, described(error))
}

/// Writes the sandbox down. A row that a lost answer has left is ours: the id is random.
async fn write_row(attempt: &Attempt, row: &NewSandbox) -> Result<(), Halt> {
    let store = &attempt.ctx.store;
    let write = move || async move {
        match store.create_sandbox(row).await {
            Err(error) if store.sandbox(&row.id).await?.is_none() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    };
    attempt.ctx.insist("write a sandbox down", write).await
}

fn specify(
    attempt: &Attempt,
    row: &NewSandbox,
    (owner, dirs): (Owner, SandboxDirs),
    [control, agent]: [&Token; 2],
) -> Result<SandboxSpec, Fault> {
    let config = &attempt.ctx.config;
    let agent_dir = config.agent_dir.clone().ok_or_else(|| {
        fault(FaultClass::Passing, "no agent is installed; run `caisson agent install`".to_owned())
    })?;
    let resources = attempt.run.spec.resources;
    Ok(SandboxSpec {
        id: row.id.clone(),
        session: row.session.clone(),
        server: row.server.clone(),
        image: None,
        uid: owner.uid,
        gid: owner.gid,
        mounts: Mounts {
            shim: config.shim.clone(),
            agent_dir,
            door_dir: dirs.door,
            journal_dir: dirs.journal,
            workspace_dir: dirs.workspace,
            home_dir: dirs.home,
        },
        environment: vec![
            (environment::CONTROL_GRANT.to_owned(), control.expose().to_owned()),
            (environment::AGENT_GRANT.to_owned(), agent.expose().to_owned()),
        ],
        limits: ResourceLimits {
            memory_bytes: u64::from(resources.memory_mib) * MIB,
            pids: resources.pids,
            cpu_millis: resources.cpu_millis,
            tmp_bytes: u64::from(resources.tmp_mib) * MIB,
        },
    })
}

/// Has the engine make and start the sandbox; returns how long that took, in milliseconds.
async fn bring_up(attempt: &Attempt, spec: &SandboxSpec) -> Result<i64, Stop> {
    let ctx = &attempt.ctx;
    let default_image = spec.image == ctx.config.default_image;
    let failed = |error: EngineError| {
        let fault = engine_fault(&error, default_image);
        // An engine that is broken may well answer, and refuse. What is the requester's affair says nothing about it.
        if fault.class != FaultClass::Final {
            ctx.health.suspect();
        }
        warn!(
            run.id = %attempt.run.id, sandbox.id = %spec.id,
            "could not start sandbox {} for run {}: {}", spec.id, attempt.run.id, fault.message
        );
        fault
    };
    let begun = Instant::now();
    ctx.engine.create(spec).await.map_err(failed)?;
    ctx.step(Step::Created).await;
    match ctx.engine.start(&spec.id).await {
        // It ran and ended already: whoever waits for it is told how.
        Ok(()) | Err(EngineError::Ended { .. }) => {}
        Err(error) => return Err(failed(error).into()),
    }
    let start_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
    ctx.step(Step::Started).await;
    info!(
        run.id = %attempt.run.id, sandbox.id = %spec.id, start_ms,
        "started sandbox {} for run {} in {start_ms} ms", spec.id, attempt.run.id
    );
    Ok(start_ms)
}

/// Tells that the sandbox runs, and only then writes it down as running: a sandbox that is written down as running has
/// been told of. An empty `image` is that of an engine without images. `false` if the run is lost.
pub(crate) async fn announce(
    attempt: &Attempt,
    sandbox: &SandboxId,
    image: &str,
    start_ms: Option<i64>,
) -> Result<bool, Halt> {
    let ctx = &attempt.ctx;
    let mut data = json!({ "engine": ctx.config.engine_name });
    if !image.is_empty() {
        data["image"] = image.into();
    }
    if !ctx.config.weaknesses.is_empty() {
        data["weaknesses"] = ctx.config.weaknesses.clone().into();
    }
    data["workspace_mib"] = attempt.cap().mib.into();
    if let Some(start_ms) = start_ms {
        data["start_ms"] = start_ms.into();
    }
    if !attempt.tell(sandbox, EventKind::SandboxStarted, data).await? {
        return Ok(false);
    }
    ctx.step(Step::Told).await;
    let store = &ctx.store;
    let running = move || store.set_sandbox_state(sandbox, SandboxState::Running);
    ctx.insist("write a sandbox down as running", running).await?;
    Ok(true)
}

fn fault(class: FaultClass, message: String) -> Fault {
    Fault { class, message }
}

/// What an engine's error means for the run.
fn engine_fault(error: &EngineError, default_image: bool) -> Fault {
    let class = match error {
        EngineError::Unavailable { .. } | EngineError::NotPermitted { .. } | EngineError::BadHost { .. } => {
            FaultClass::Passing
        }
        // The server's own image can be built at any time; one that the run names is the requester's affair.
        EngineError::ImageMissing { .. } if default_image => FaultClass::Passing,
        EngineError::ImageMissing { .. } | EngineError::BadSpec(_) => FaultClass::Final,
        EngineError::Unfit { .. }
        | EngineError::BuildFailed { .. }
        | EngineError::BaseMissing { .. }
        | EngineError::AlreadyExists { .. }
        | EngineError::NotFound { .. }
        | EngineError::Ended { .. }
        | EngineError::NotRunning { .. }
        | EngineError::NotAsAsked { .. }
        | EngineError::Refused { .. }
        | EngineError::BadReply { .. } => FaultClass::Retry,
    };
    fault(class, described(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> EngineError {
        EngineError::Unavailable { operation: "x", host: "h".to_owned(), source: "down".into() }
    }

    #[test]
    fn a_missing_image_is_the_servers_affair_only_if_it_is_the_default_one() {
        let missing = EngineError::ImageMissing { image: "mine:1".to_owned() };
        assert_eq!(engine_fault(&missing, true).class, FaultClass::Passing);
        let fault = engine_fault(&missing, false);
        assert_eq!(fault.class, FaultClass::Final);
        assert!(fault.message.contains("mine:1") && fault.message.contains("pull it"), "{}", fault.message);
    }

    #[test]
    fn an_engine_that_is_away_is_waited_for_and_other_errors_are_tried_again() {
        assert_eq!(engine_fault(&unavailable(), false).class, FaultClass::Passing);
        assert!(engine_fault(&unavailable(), false).message.ends_with(": down"));
        let refused = EngineError::Refused { operation: "x", message: "no".to_owned() };
        assert_eq!(engine_fault(&refused, true).class, FaultClass::Retry);
    }

    #[test]
    fn a_full_disk_is_waited_for() {
        let error =
            |kind: std::io::ErrorKind| DirError { operation: "make", path: "/x".into(), source: kind.into() };
        assert_eq!(dir_fault(&error(std::io::ErrorKind::StorageFull)).class, FaultClass::Passing);
        assert_eq!(dir_fault(&error(std::io::ErrorKind::PermissionDenied)).class, FaultClass::Retry);
    }
}
