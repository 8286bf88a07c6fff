//! `POST git-receive-pack`: its commands are judged, then its pack is received into a quarantine and looked at, and only
//! then a byte of it is forwarded.

use std::sync::Arc;
use std::time::Duration;

use ::http::{Response, StatusCode};
use bytes::Bytes;
use caisson_domain::event::EventKind;
use caisson_domain::globs::Globs;
use caisson_domain::run::Run;
use caisson_store::{BoxError, Push};
use futures_util::stream::{self, StreamExt};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout};

use super::brought::Standing;
use super::fault::Fault;
use super::finding::{FINDINGS, Finding};
use super::forward::{self, Cleared};
use super::inspect::{Case, InspectError, Inspector};
use super::lease::{self, Unfit};
use super::pktline::{Command, Section, SectionReader};
use super::quarantine::{PACK, Quarantine, ReceiveError, Room, receive};
use super::receive::{self, Denial};
use super::secrets::Secrets;
use super::trusted::{self, AskError};
use super::under_way::UnderWay;
use super::{Answer, Exchange, Operation, Upstream, refused_body, respond, slot_of, tell};
use crate::body::{Body, Chunks};
use crate::bounds::{COMMAND_SECTION_BYTES, DENIED_BYTES};
use crate::credentials;
use crate::hold::hold;
use crate::problem::Refusal;
use crate::shared::{Door, Shared};

/// A push on its way: a task of its own, so that it is recorded whatever becomes of the connection it came
/// by.
pub(super) struct Carriage {
    pub(super) door: Arc<Door>,
    pub(super) run: Run,
    /// Until it is recorded.
    pub(super) under_way: UnderWay,
    /// The sandbox's share of exchanges and of pushes.
    pub(super) slots: [OwnedSemaphorePermit; 2],
    pub(super) upstream: Upstream,
    pub(super) section: Section,
    /// What its one command asks for.
    pub(super) push: Push,
}

pub(super) type Reply = oneshot::Sender<Result<Response<Body>, Refusal>>;

/// What looking at a push came to, where it is not forwarded.
enum Halt {
    /// By a rule.
    Denied(Vec<Denial>),
    /// By the sender, or by the server.
    Refused(Refusal),
    Fault(Fault),
    /// Nobody waits for it any longer, or the server stops.
    GivenUp,
}

pub(super) async fn answer(
    door: &Arc<Door>,
    (run, slot): (Run, OwnedSemaphorePermit),
    upstream: Upstream,
    mut exchange: Exchange,
) -> Result<Response<Body>, Refusal> {
    let shared = &door.shared;
    let (section, rest) = match read_section(&mut exchange.chunks).await {
        Ok(read) => read,
        Err(Unread::Refused(refusal)) => return Err(refusal),
        Err(Unread::Unreadable(message)) => {
            return Err(deny_unread(door, &run, "unreadable", message).await);
        }
        Err(Unread::NotTaken(part, message)) => {
            drain(shared, &mut exchange.chunks).await;
            let answer = receive::answer_part(&part, &message);
            let refusal = deny_unread(door, &run, "push_commands", message).await;
            return answer.map(reported).ok_or(refusal);
        }
    };
    let Some(command) = section.commands.first() else {
        // Git asks with an empty push whether a large one is welcome.
        let chunks = stream::empty().boxed();
        return Ok(respond(Operation::Push, Answer { chunks, encoding: None }));
    };
    let Command { old, new, ref_name } = command.clone();
    let push = Push { ref_name, old, new };
    let branch = run.spec.branch.as_ref().map(caisson_domain::git::BranchName::full_ref);
    let mut denials = receive::judge(&section, branch.as_deref().unwrap_or_default());
    let bound = shared.bounds.push_bytes;
    if denials.is_empty() && exchange.length.is_some_and(|length| length > bound) {
        denials = vec![too_large(&push, bound)];
    }
    if !denials.is_empty() {
        drain(shared, &mut exchange.chunks).await;
        return Ok(deny(door, &run, &section, &denials).await);
    }
    let slots = [slot, slot_of(door, &door.pushes).await?];
    let rest = (!rest.is_empty()).then_some(Ok(rest));
    // It may be read on after its end, where a refusal drains it.
    let chunks = stream::iter(rest).chain(exchange.chunks).fuse().boxed();
    let (door, under_way) = (Arc::clone(door), shared.pushes.begin(&run.id));
    let carriage = Carriage { door, run, under_way, slots, upstream, section, push };
    let (reply, answered) = oneshot::channel();
    shared.tracker.spawn(carry(carriage, chunks, reply));
    answered.await.unwrap_or_else(|_| {
        let message = "the push was given up inside the server; push again";
        Err(Refusal::new(StatusCode::BAD_GATEWAY, "repo_unreachable", message))
    })
}

/// Why a push's commands were not read.
enum Unread {
    /// They did not come.
    Refused(Refusal),
    /// They are none that git writes, in a sentence.
    Unreadable(String),
    /// Git writes such, and they are not taken: what was read of them, and why in a sentence.
    NotTaken(Section, String),
}

/// Tells of commands that were not read to their end.
async fn deny_unread(door: &Door, run: &Run, rule: &str, message: String) -> Refusal {
    let data = json!({"what": "push", "rule": rule, "remedy": message});
    door.tell(&run.id, EventKind::GatewayDenied, data).await;
    Refusal::new(StatusCode::BAD_REQUEST, "push_refused", message)
}

/// The commands, and the bytes behind them that came along.
async fn read_section(chunks: &mut Chunks) -> Result<(Section, Bytes), Unread> {
    let mut reader = SectionReader::default();
    while let Some(chunk) = chunks.next().await {
        let refused = |error| Unread::Refused(refused_body(error, COMMAND_SECTION_BYTES as u64));
        let chunk = chunk.map_err(refused)?;
        match reader.push(&chunk) {
            Ok(None) => {}
            Ok(Some(found)) => return Ok(found),
            Err(error) if error.is_of_git() => {
                return Err(Unread::NotTaken(reader.into_part(), format!("the push is not taken: {error}")));
            }
            Err(error) => {
                return Err(Unread::Unreadable(format!("the push cannot be read: {error}")));
            }
        }
    }
    Err(Unread::Unreadable("the push ended before its commands did".to_owned()))
}

fn too_large(push: &Push, bytes: u64) -> Denial {
    let reason = format!("the push is larger than {bytes} bytes; leave large files out of the commits");
    Denial::new(&push.ref_name, "push_size", reason)
}

/// Reads a refused push to its end, so that git listens to the answer instead of finding its connection
/// closed.
async fn drain(shared: &Shared, chunks: &mut Chunks) {
    let mut left = DENIED_BYTES;
    let all = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                return;
            }
        }
    };
    if timeout(shared.bounds.drain, all).await.is_err() {
        tracing::debug!("a refused push was not read to its end");
    }
}

/// Tells of the refusal and answers it as a git host's own hook would.
async fn deny(door: &Door, run: &Run, section: &Section, denials: &[Denial]) -> Response<Body> {
    for denial in denials {
        let mut data: Map<String, Value> = denial.details.clone();
        for (key, value) in
            [("what", "push"), ("ref", &denial.ref_name), ("rule", denial.rule), ("remedy", &denial.reason)]
        {
            data.insert(key.to_owned(), json!(value));
        }
        door.tell(&run.id, EventKind::GatewayDenied, data.into()).await;
    }
    report(section, denials)
}

/// A git host's answer, made here: the push is taken already.
pub(super) fn taken(section: &Section) -> Response<Body> {
    report(section, &[])
}

fn report(section: &Section, denials: &[Denial]) -> Response<Body> {
    reported(receive::answer(section, denials))
}

fn reported(report: Vec<u8>) -> Response<Body> {
    let chunks = stream::iter([Ok::<_, BoxError>(Bytes::from(report))]).boxed();
    respond(Operation::Push, Answer { chunks, encoding: None })
}

pub(super) fn hand_over(reply: Reply, answer: Result<Response<Body>, Refusal>) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for a push's answer any more");
    }
}

/// Receives the pack, looks at it, and forwards it if nothing is against it.
async fn carry(carriage: Carriage, mut chunks: Chunks, mut reply: Reply) {
    let (shared, began) = (Arc::clone(&carriage.door.shared), Instant::now());
    let made = match &shared.git.inspector {
        Some(inspector) => Some((inspector, inspector.quarantines.make(carriage.push.new.len()).await)),
        None => None,
    };
    let Some((inspector, Ok(quarantine))) = made else {
        tracing::error!("no quarantine could be made for a push");
        let fault = Fault::Local { detail: "no place could be made for the push".to_owned() };
        return hand_over(reply, Err(tell(&carriage.door, &carriage.run, fault).await));
    };
    let examined = tokio::select! {
        examined = examine(&carriage, inspector, &quarantine, &mut chunks) => examined,
        () = shared.patience(reply.closed(), Duration::ZERO) => {
            Err(Halt::GivenUp)
        }
    };
    match examined {
        Ok(cleared) => {
            let (run, held_ms) = (&carriage.run.id, began.elapsed().as_millis());
            tracing::debug!(run.id = %run, bytes = cleared.bytes, held_ms, "held a push of {run} for {held_ms} ms");
            Box::pin(forward::carry(carriage, &quarantine, cleared, reply)).await;
        }
        // Whoever is left hears that it was given up; where the server stops, the next one gets it again.
        Err(Halt::GivenUp) => drop(reply),
        Err(Halt::Refused(refusal)) => {
            drain(&shared, &mut chunks).await;
            hand_over(reply, Err(refusal));
        }
        Err(Halt::Denied(denials)) => {
            drain(&shared, &mut chunks).await;
            let Carriage { door, run, section, .. } = &carriage;
            hand_over(reply, Ok(deny(door, run, section, &denials).await));
        }
        Err(Halt::Fault(fault)) => {
            drain(&shared, &mut chunks).await;
            hand_over(reply, Err(tell(&carriage.door, &carriage.run, fault).await));
        }
    }
    quarantine.remove().await;
}

async fn examine(
    carriage: &Carriage,
    inspector: &Inspector,
    quarantine: &Quarantine,
    chunks: &mut Chunks,
) -> Result<Cleared, Halt> {
    let Carriage { door, run, push, upstream, .. } = carriage;
    let shared = &door.shared;
    let trusted::Look { steers, begins } = trusted::look(shared, run, upstream).await?;
    if let Some((steers, branch)) = steers.zip(run.spec.branch.as_ref()) {
        return Err(Halt::Denied(vec![steers.denial(branch)]));
    }
    let bounds = &shared.bounds;
    let room =
        Room { bytes: bounds.push_bytes, objects: bounds.push.objects, free_bytes: bounds.push.free_bytes };
    let received = receive(chunks, &quarantine.directory.join(PACK), room).await;
    let bytes = received.map_err(|error| not_received(error, push, bounds.push_bytes))?;
    let Some(repository) = &run.spec.repository else { return Err(Halt::Refused(Refusal::no_run())) };
    let digits = push.new.len();
    // Some may have been added or rotated since.
    let kept_out =
        hold(&shared.cancel, bounds.store_hold, || credentials::keep_out_of_the_record(shared, &run.project));
    kept_out.await.map_err(|error| Halt::Refused(Refusal::store(&error)))?;
    let secrets = inspector.secrets(&door.secrets);
    // Checked when the workflow was accepted; should another version have done that, nothing passes.
    let forbidden = Globs::new(&run.spec.workflow.caisson.forbidden_paths)
        .map_err(|error| Halt::Denied(vec![Finding::unknown_path(&error).denial(&push.ref_name)]))?;
    let allow = &shared.git.allow;
    let standing = Standing::of(shared, run, push).await;
    let standing = standing.map_err(|error| Halt::Refused(Refusal::store(&error)))?;
    let forbidden = Arc::new(forbidden);
    let case = Case { quarantine, upstream, repository, allow, bounds, secrets, forbidden, standing, digits };
    let (contents, findings) =
        inspector.inspect(&case).await.map_err(|error| not_inspected(&error, push, &case.secrets))?;
    if !findings.is_empty() {
        let told = findings.iter().take(FINDINGS);
        return Err(Halt::Denied(told.map(|finding| finding.denial(&push.ref_name)).collect()));
    }
    let rewrites = lease::judge(shared, run, push, (inspector, &case, &contents)).await?;
    let noted = trusted::note_beginning(shared, run, push, begins).await;
    noted.map_err(|error| Halt::Refused(Refusal::store(&error)))?;
    Ok(Cleared { bytes, rewrites })
}

fn not_received(error: ReceiveError, push: &Push, bound: u64) -> Halt {
    let pack = |why: &str| Halt::Denied(vec![Finding::pack(why).denial(&push.ref_name)]);
    match error {
        ReceiveError::NoPack | ReceiveError::TooManyObjects(_) => pack(&error.to_string()),
        ReceiveError::TooLarge => Halt::Denied(vec![too_large(push, bound)]),
        ReceiveError::Broken(error) => Halt::Refused(refused_body(error, bound)),
        ReceiveError::DiskFull => Halt::Fault(Fault::DiskFull),
        ReceiveError::Disk(error) => {
            tracing::error!(error = %error, "a push could not be written to its quarantine");
            Halt::Fault(Fault::Local { detail: "the push could not be written to the disk".to_owned() })
        }
    }
}

fn not_inspected(error: &InspectError, push: &Push, secrets: &Secrets) -> Halt {
    match error {
        InspectError::Late => Halt::Denied(vec![
            Finding::pack("looking at it took too long; push fewer commits at once").denial(&push.ref_name),
        ]),
        InspectError::Helper(_)
        | InspectError::Read(_)
        | InspectError::Compare(_)
        | InspectError::Stopped(_) => {
            let detail = secrets.none_in(error.to_string());
            tracing::warn!(error = %detail, "a push could not be looked at");
            Halt::Fault(Fault::Uninspected { detail })
        }
    }
}

impl From<Unfit> for Halt {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Denied(denial) => Self::Denied(vec![denial]),
            Unfit::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

impl From<AskError> for Halt {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Store(error) => Self::Refused(Refusal::store(&error)),
            AskError::Host(fault) => Self::Fault(fault),
        }
    }
}
