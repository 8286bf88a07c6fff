//! What a worker is told at its start, checked before anything is done with it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_domain::artifacts::SharedArtifacts;
use caisson_domain::id::ServerId;
use caisson_domain::image::ImageRule;
use caisson_domain::limits;
use caisson_domain::retention::Retention;
use caisson_domain::workflow::WORKSPACE_MIB;
use caisson_sandbox::{ID_MAX, check_image_name};

use crate::disk::DiskCaps;
use crate::kept::KeepAlive;

/// Fewest and most runs that a worker has in hand at once.
pub const SLOTS: RangeInclusive<usize> = 1..=256;
/// Slots of a worker that is told no number.
pub const SLOTS_DEFAULT: usize = 8;

/// What a worker is told at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The server whose runs and sandboxes it tends.
    pub server: ServerId,
    /// The engine's name, as sandboxes are written down: `docker` or `local`.
    pub engine_name: String,
    /// Runs in hand at once, within [`SLOTS`]; [`SLOTS_DEFAULT`] if nobody says otherwise.
    pub slots: usize,
    /// How long sandboxes of finished runs wait for another run of their session, and how many.
    pub keep_alive: KeepAlive,
    /// The server's own directory, absolute. The worker keeps `sessions`, `sandboxes`, `doors` and `trash` below it.
    pub state_dir: PathBuf,
    /// The directory of artifacts that the server shares with others; none for `artifacts` in its own directory.
    pub shared_artifacts: Option<SharedArtifacts>,
    /// The image of runs that name none; none for an engine without images.
    pub default_image: Option<String>,
    /// Images that a repository may choose by its `.caisson.yaml`, beside that one.
    pub repository_images: Vec<ImageRule>,
    /// What of the sandboxes' walls and limits is weaker here than it could be, for people; each run tells it.
    pub weaknesses: Vec<String>,
    /// The shim's binary, absolute.
    pub shim: PathBuf,
    /// The directory that holds `claude`, absolute; none if no agent is installed, and then nothing is claimed.
    pub agent_dir: Option<PathBuf>,
    /// Who the sandboxes' processes are.
    pub uids: UidPlan,
    /// Free disk space below which nothing is claimed, in bytes; below half of it, runs that fill the disk are ended.
    pub min_free_disk_bytes: u64,
    /// The most that a session's workspace and home may hold together, in MiB, within [`WORKSPACE_MIB`]; a run may ask for less.
    pub workspace_mib: u32,
    /// How sessions are kept within that.
    pub disk_caps: DiskCaps,
    /// How long things are kept in projects that say nothing else.
    pub retention: Retention,
    /// Waits and intervals; the product uses the default.
    pub timing: Timing,
}

/// Who the processes of sandboxes are, on the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UidPlan {
    /// All the same: the server is not root and can give directories to nobody else.
    Fixed {
        /// The server's own user id.
        uid: u32,
        /// The server's own group id.
        gid: u32,
    },
    /// Each session has a user and group id of its own, from `base` upwards; needs a root server.
    PerSession {
        /// The first session's id.
        base: u32,
    },
}

/// The user and group of a sandbox's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl UidPlan {
    /// The owner for the session with this offset; none if the numbers are used up.
    pub(crate) fn owner(self, session_offset: i64) -> Option<Owner> {
        match self {
            Self::Fixed { uid, gid } => Some(Owner { uid, gid }),
            Self::PerSession { base } => {
                let id = base.checked_add(u32::try_from(session_offset).ok()?)?;
                (id <= ID_MAX).then_some(Owner { uid: id, gid: id })
            }
        }
    }
}

/// Waits and intervals. They are data so that tests need not wait as long as the product does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease is good for by the worker's own clock; [`limits::LEASE_MS`], as the store has it.
    pub lease: Duration,
    /// Between two extensions of a lease; well under [`limits::LEASE_MS`].
    pub lease_heartbeat: Duration,
    /// Between two checks of the server's health; well under [`limits::SERVER_SILENT_MS`].
    pub health_check: Duration,
    /// Longest answer of a probe; a later one counts as an engine that does not answer.
    pub probe: Duration,
    /// Longest wait for a hint that a run can be claimed.
    pub queue_poll: Duration,
    /// Between two claims without a hint, while what waits is held back.
    pub queue_rest: Duration,
    /// Longest wait for a hint about a run in hand.
    pub run_poll: Duration,
    /// Between two reconcile passes.
    pub reconcile: Duration,
    /// First back-off after a failure of store or engine; it doubles up to [`Timing::retry_most`].
    pub retry_first: Duration,
    /// Longest back-off after a failure of store or engine.
    pub retry_most: Duration,
    /// First delay of a run that goes back to the queue; it doubles with each attempt up to [`Timing::requeue_most`].
    pub requeue_first: Duration,
    /// Longest delay of a run that goes back to the queue.
    pub requeue_most: Duration,
    /// Longest time that a sandbox counts as starting, and keeps others from it, after it was started.
    pub starting: Duration,
    /// Longest time that a start waits for a machine whose processors are busy, if another one was not long ago.
    pub start_patience: Duration,
    /// Time that a run told to stop has before its sandbox is killed.
    pub stop_grace: Duration,
    /// How much later than time limit and grace the worker's own clock ends a sandbox: a run is told to stop by way of a database that
    /// may be slow, and has its grace from then on.
    pub told_late: Duration,
    /// Time that the last words of an ended sandbox have to reach the store.
    pub settle: Duration,
    /// Time that the model calls of a run that ends have to be settled; what is open then counts as estimated.
    pub open_calls: Duration,
    /// Time that a push of which nobody has seen the end has to be settled before its run ends; what is pending then is
    /// not recorded any more. It is longer than the gateway goes on with a push whose sandbox is gone, and than the
    /// longest wait between two looks at the git host.
    pub pending_push: Duration,
    /// Time that the shim of a finished run has to end by itself.
    pub exit_grace: Duration,
    /// Longest wait for the session's previous sandbox to be gone.
    pub predecessor: Duration,
    /// Between two looks at the free space of the server's disk.
    pub disk_look: Duration,
    /// The same while little is left, and the shortest time between two looks at what a session has.
    pub disk_look_near: Duration,
    /// Longest time between two looks at what a session has.
    pub room_look: Duration,
    /// How long a session's volume may be full before its run is ended: an agent that sees it may clean up.
    pub full_patience: Duration,
    /// Between two looks at what a sandbox uses that waits for another run; the first ones come sooner.
    pub kept_look: Duration,
    /// Between two passes of retention, and between the start and the first one.
    pub retention: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_millis(limits::LEASE_MS.unsigned_abs()),
            lease_heartbeat: Duration::from_millis(limits::HEARTBEAT_MS.unsigned_abs()),
            health_check: Duration::from_millis(limits::HEARTBEAT_MS.unsigned_abs() / 2),
            probe: Duration::from_secs(10),
            queue_poll: Duration::from_secs(1),
            queue_rest: Duration::from_secs(5),
            run_poll: Duration::from_secs(5),
            reconcile: Duration::from_secs(30),
            retry_first: Duration::from_millis(100),
            retry_most: Duration::from_secs(5),
            requeue_first: Duration::from_secs(1),
            requeue_most: Duration::from_secs(30),
            starting: Duration::from_secs(5),
            start_patience: Duration::from_secs(3),
            stop_grace: Duration::from_secs(u64::from(limits::STOP_GRACE_S)),
            told_late: Duration::from_secs(10),
            settle: Duration::from_millis(500),
            open_calls: Duration::from_secs(5),
            pending_push: Duration::from_secs(45),
            exit_grace: Duration::from_secs(2),
            predecessor: Duration::from_secs(30),
            disk_look: Duration::from_secs(1),
            disk_look_near: Duration::from_millis(100),
            room_look: Duration::from_secs(2),
            full_patience: Duration::from_secs(30),
            kept_look: Duration::from_secs(5),
            retention: Duration::from_mins(5),
        }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the worker's configuration cannot be used: {}", .faults.join("; "))]
pub struct ConfigError {
    /// One sentence each.
    pub faults: Vec<String>,
}

impl WorkerConfig {
    /// Checks every value against its bounds, without looking at the host.
    ///
    /// # Errors
    /// [`ConfigError`] with all faults together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        if !SLOTS.contains(&self.slots) {
            faults.push(format!(
                "slots is {}, but must be from {} to {}",
                self.slots,
                SLOTS.start(),
                SLOTS.end()
            ));
        }
        let paths = [
            ("state_dir", Some(&self.state_dir)),
            ("shim", Some(&self.shim)),
            ("agent_dir", self.agent_dir.as_ref()),
        ];
        let relative = |path: &Path| !path.is_absolute();
        for (name, path) in paths {
            if let Some(path) = path.filter(|path| relative(path)) {
                faults.push(format!("{name} is {}, but must be an absolute path", path.display()));
            }
        }
        if !WORKSPACE_MIB.contains(&self.workspace_mib) {
            faults.push(format!(
                "workspace_mib is {}, but must be from {} to {}",
                self.workspace_mib,
                WORKSPACE_MIB.start(),
                WORKSPACE_MIB.end()
            ));
        }
        if let Some(Err(error)) = self.default_image.as_deref().map(check_image_name) {
            faults.push(format!("default_image: {error}"));
        }
        let ids = match self.uids {
            UidPlan::Fixed { uid, gid } => [("uid", uid), ("gid", gid)],
            UidPlan::PerSession { base } => [("the first uid", base), ("the first gid", base)],
        };
        for (name, id) in ids {
            if !(1..=ID_MAX).contains(&id) {
                faults.push(format!("{name} is {id}, but must be from 1 to {ID_MAX}"));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError { faults }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> WorkerConfig {
        WorkerConfig {
            server: ServerId::new(1, [1; 10]),
            engine_name: "docker".to_owned(),
            slots: SLOTS_DEFAULT,
            keep_alive: KeepAlive::OFF,
            state_dir: "/var/lib/caisson".into(),
            shared_artifacts: None,
            default_image: Some("caisson-sandbox:latest".to_owned()),
            repository_images: Vec::new(),
            weaknesses: Vec::new(),
            shim: "/usr/lib/caisson/shim".into(),
            agent_dir: Some("/var/lib/caisson/agent".into()),
            uids: UidPlan::PerSession { base: 200_000 },
            min_free_disk_bytes: 0,
            workspace_mib: 64,
            disk_caps: DiskCaps::Measured { reason: "a test".to_owned() },
            retention: Retention::default(),
            timing: Timing::default(),
        }
    }

    fn faults(change: impl FnOnce(&mut WorkerConfig)) -> Vec<String> {
        let mut config = config();
        change(&mut config);
        config.validate().err().map(|error| error.faults).unwrap_or_default()
    }

    #[test]
    fn slots_are_bounded_from_1_to_256() {
        for (slots, fits) in [(0, false), (1, true), (256, true), (257, false)] {
            assert_eq!(faults(|config| config.slots = slots).is_empty(), fits, "{slots}");
        }
    }

    #[test]
    fn all_faults_are_reported_together() {
        let found = faults(|config| {
            config.slots = 0;
            config.state_dir = "state".into();
            config.shim = "shim".into();
            config.agent_dir = Some("agent".into());
            config.default_image = Some("../x".to_owned());
            config.uids = UidPlan::Fixed { uid: 0, gid: ID_MAX + 1 };
            config.workspace_mib = WORKSPACE_MIB.start() - 1;
        });
        assert_eq!(found.len(), 8, "{found:?}");
        let error = ConfigError { faults: found }.to_string();
        assert!(error.contains("slots is 0") && error.contains("state_dir is state"), "{error}");
    }

    #[test]
    fn no_sandbox_is_root_and_uids_end_at_their_bound() {
        assert_eq!(faults(|config| config.uids = UidPlan::PerSession { base: 0 }).len(), 2);
        assert!(faults(|config| config.uids = UidPlan::Fixed { uid: ID_MAX, gid: 1 }).is_empty());
        let plan = UidPlan::PerSession { base: ID_MAX - 1 };
        assert_eq!(plan.owner(1), Some(Owner { uid: ID_MAX, gid: ID_MAX }));
        assert_eq!(plan.owner(2), None);
        assert_eq!(plan.owner(i64::MAX), None);
        assert_eq!(plan.owner(-1), None);
        assert_eq!(UidPlan::Fixed { uid: 7, gid: 8 }.owner(i64::MAX), Some(Owner { uid: 7, gid: 8 }));
    }

    #[test]
    fn heartbeats_come_well_before_lease_and_silence_end() {
        let timing = Timing::default();
        assert!(timing.lease_heartbeat.as_millis() * 2 < limits::LEASE_MS.unsigned_abs().into());
        assert!(
            (timing.health_check + timing.probe).as_millis() < limits::SERVER_SILENT_MS.unsigned_abs().into()
        );
    }
}
