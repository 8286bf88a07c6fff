//! The one profile of every container, as pure data: what is asked of the engine, from which [`super::verify`] knows what must
//! come out.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use caisson_domain::id::{SandboxId, ServerId};
use caisson_domain::protocol::places;

use crate::SandboxSpec;
use crate::mounts::Bind;
use crate::profile::{CORE_BYTES, HIDDEN_DIRECTORIES, HIDDEN_FILES, NO_NAMESERVER, OPEN_FILES};
pub(crate) use crate::profile::{HOSTNAME, OOM_SCORE_ADJ, SHM_BYTES, TMP_PATH};
use crate::spec::Access;

/// Label that names the owning server.
pub(crate) const LABEL_SERVER: &str = "caisson.server";
/// Label that names the sandbox.
pub(crate) const LABEL_SANDBOX: &str = "caisson.sandbox";
/// Label that names the session.
pub(crate) const LABEL_SESSION: &str = "caisson.session";
/// Label with the version of this crate that made the container, for whoever reads `docker ps` years later.
pub(crate) const LABEL_VERSION: &str = "caisson.version";

/// Where names are looked up first.
const HOSTS_PATH: &str = "/etc/hosts";
/// [`crate::profile::LOG_BYTES`] as the engine writes it: one file of this size.
const LOG_SIZE: &str = "1m";
/// The signal that asks the shim to end.
pub(crate) const STOP_SIGNAL: &str = "SIGTERM";

/// A container that is asked for: the specification with what was found out on the host.
#[derive(Debug, Clone)]
pub(crate) struct Profile<'a> {
    pub(crate) spec: &'a SandboxSpec,
    pub(crate) binds: Vec<Bind>,
    /// The machine's cores; the engine refuses a limit above them.
    pub(crate) cores: u32,
    /// Whether the filter of system calls is ours; else the engine has one of its administrator's.
    pub(crate) own_seccomp: bool,
    /// Our own `/etc/hosts` on the host, if there is one.
    pub(crate) hosts_file: Option<String>,
}

/// The container's name of a sandbox.
pub(crate) fn container_name(id: &SandboxId) -> String {
    format!("caisson-{id}")
}

/// The label filter that finds the containers of a server.
pub(crate) fn owner_filter(server: &ServerId) -> String {
    format!("{LABEL_SERVER}={server}")
}

impl Profile<'_> {
    /// The whole request.
    pub(crate) fn body(&self) -> ContainerCreateBody {
        ContainerCreateBody {
            hostname: Some(HOSTNAME.to_owned()),
            user: Some(self.user()),
            attach_stdin: Some(false),
            attach_stdout: Some(false),
            attach_stderr: Some(false),
            tty: Some(false),
            open_stdin: Some(false),
            stdin_once: Some(false),
            env: Some(self.environment()),
            cmd: Some(Vec::new()),
            // The image's own health check would run a process of the image's beside the shim.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            image: self.spec.image.clone(),
            working_dir: Some(places::WORKSPACE.to_owned()),
            entrypoint: Some(vec![places::SHIM.to_owned()]),
            // With a hosts file of our own, nothing of the engine's networking is needed: the runtime makes an empty network
            // namespace, which takes half the time (measured on Docker 20.10: 140 ms instead of 260 for a start).
            network_disabled: Some(self.hosts_file.is_some()),
            labels: Some(self.labels()),
            stop_signal: Some(STOP_SIGNAL.to_owned()),
            host_config: Some(self.host_config()),
            ..ContainerCreateBody::default()
        }
    }

    fn host_config(&self) -> HostConfig {
        HostConfig {
            memory: Some(self.memory_bytes()),
            // Equal to `memory`: no swap beside it.
            memory_swap: Some(self.memory_bytes()),
            nano_cpus: Some(self.nano_cpus()),
            pids_limit: Some(i64::from(self.spec.limits.pids)),
            shm_size: Some(SHM_BYTES),
            oom_score_adj: Some(OOM_SCORE_ADJ),
            ulimits: Some(ulimits()),
            network_mode: Some("none".to_owned()),
            dns: Some(vec![NO_NAMESERVER.to_owned()]),
            // Docker reads "." as "no search domain", instead of the host's.
            dns_search: Some(vec![".".to_owned()]),
            extra_hosts: Some(vec![format!("{HOSTNAME}:127.0.0.1")]),
            readonly_rootfs: Some(true),
            tmpfs: Some(HashMap::from([(TMP_PATH.to_owned(), self.tmp_options())])),
            mounts: Some(self.binds().iter().map(mount).collect()),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(self.security_options()),
            masked_paths: Some(masked_paths()),
            privileged: Some(false),
            init: Some(false),
            ipc_mode: Some("private".to_owned()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            auto_remove: Some(false),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: Some(0),
            }),
            log_config: Some(log_config()),
            ..HostConfig::default()
        }
    }

    /// All that is mounted: what the specification names, and our hosts file.
    pub(crate) fn binds(&self) -> Vec<Bind> {
        let hosts = self.hosts_file.iter().map(|file| Bind {
            source: file.clone(),
            target: HOSTS_PATH,
            access: Access::ReadOnly,
        });
        self.binds.iter().cloned().chain(hosts).collect()
    }

    pub(crate) fn security_options(&self) -> Vec<String> {
        let filter = self.own_seccomp.then(super::seccomp::option);
        std::iter::once("no-new-privileges:true").chain(filter).map(str::to_owned).collect()
    }

    pub(crate) fn user(&self) -> String {
        format!("{}:{}", self.spec.uid, self.spec.gid)
    }

    /// `NAME=value` texts, as the engine takes them.
    pub(crate) fn environment(&self) -> Vec<String> {
        self.spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    pub(crate) fn labels(&self) -> HashMap<String, String> {
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        HashMap::from([
            label(LABEL_SERVER, self.spec.server.as_str()),
            label(LABEL_SANDBOX, self.spec.id.as_str()),
            label(LABEL_SESSION, self.spec.session.as_str()),
            label(LABEL_VERSION, env!("CARGO_PKG_VERSION")),
        ])
    }

    pub(crate) fn memory_bytes(&self) -> i64 {
        i64::try_from(self.spec.limits.memory_bytes).unwrap_or(i64::MAX)
    }

    pub(crate) fn nano_cpus(&self) -> i64 {
        let millis = self.spec.limits.cpu_millis.min(self.cores.saturating_mul(1000));
        i64::from(millis) * 1_000_000
    }

    /// Execution is allowed: build tools and test runners write programs to `/tmp` and run them.
    pub(crate) fn tmp_options(&self) -> String {
        format!("rw,exec,nosuid,nodev,size={},mode=1777", self.spec.limits.tmp_bytes)
    }
}

pub(crate) fn log_config() -> HostConfigLogConfig {
    let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([option("max-size", LOG_SIZE), option("max-file", "1")])),
    }
}

/// Kernel views that are hidden: all that Docker 29 hides by default, and what tells of the host's disks and of other sandboxes' volumes.
/// Those that a kernel does not have are passed over by the runtime.
pub(crate) fn masked_paths() -> Vec<String> {
    const BY_DEFAULT: [&str; 13] = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
        "/sys/firmware",
    ];
    const DISKS: [&str; 5] =
        ["/sys/block", "/sys/class/block", "/sys/dev/block", "/sys/devices/virtual/block", "/sys/fs/ext4"];
    BY_DEFAULT
        .iter()
        .chain(&DISKS)
        .chain(&HIDDEN_FILES)
        .chain(&HIDDEN_DIRECTORIES)
        .map(ToString::to_string)
        .collect()
}

pub(crate) fn ulimits() -> Vec<ResourcesUlimits> {
    let ulimit = |name: &str, value| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    };
    let bounded = |name, value| ulimit(name, i64::try_from(value).unwrap_or(i64::MAX));
    vec![bounded("core", CORE_BYTES), bounded("nofile", OPEN_FILES)]
}

/// The structured form, in which no character of a path has a meaning.
fn mount(bind: &Bind) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.source.clone()),
        target: Some(bind.target.to_owned()),
        read_only: Some(bind.access == Access::ReadOnly),
        bind_options: Some(MountBindOptions {
            // What is mounted on the host later does not appear in the sandbox, nor the other way round.
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}
