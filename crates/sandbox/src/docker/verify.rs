//! Checks that the engine made what was asked for.
//!
//! An engine silently drops fields that it does not know, and drops limits that its kernel does not have. So every field
//! on which the sandbox's walls rest is read back, those that were never set among them: a default may change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;

use bollard::models::{
    ContainerConfig, ContainerInspectResponse, HostConfig, HostConfigCgroupnsModeEnum, MountPoint,
    ResourcesUlimits, RestartPolicyNameEnum,
};
use caisson_domain::protocol::places;

use super::profile::{self, Profile, container_name};
use super::seccomp;
use crate::EngineError;
use crate::spec::Access;

type Verdict = Result<(), EngineError>;

/// Compares an inspected container with what was asked for; the first field that differs is the error.
pub(crate) fn verify(profile: &Profile<'_>, found: &ContainerInspectResponse) -> Verdict {
    let config = found.config.as_ref().ok_or_else(|| missing("Config"))?;
    let host = found.host_config.as_ref().ok_or_else(|| missing("HostConfig"))?;
    process(profile, found, config)?;
    walls(profile, host)?;
    namespaces(host)?;
    devices(host)?;
    limits(profile, host)?;
    kernel_views(host)?;
    keeping(host)?;
    networks(found)?;
    tmpfs(profile, host)?;
    mounts(profile, host, found)
}

/// What runs: whose container it is, as whom, and by which program.
fn process(profile: &Profile<'_>, found: &ContainerInspectResponse, config: &ContainerConfig) -> Verdict {
    let spec = profile.spec;
    same("Name", format!("/{}", container_name(&spec.id)), text(found.name.as_ref()))?;
    same("Path", places::SHIM.to_owned(), text(found.path.as_ref()))?;
    nothing("Args", found.args.as_ref())?;
    same("Config.Image", text(spec.image.as_ref()), text(config.image.as_ref()))?;
    same("Config.User", profile.user(), text(config.user.as_ref()))?;
    same("Config.WorkingDir", places::WORKSPACE.to_owned(), text(config.working_dir.as_ref()))?;
    same("Config.StopSignal", profile::STOP_SIGNAL.to_owned(), text(config.stop_signal.as_ref()))?;
    same("Config.Tty", false, config.tty.unwrap_or(false))?;
    same("Config.OpenStdin", false, config.open_stdin.unwrap_or(false))?;
    let health = config.healthcheck.as_ref().and_then(|check| check.test.clone()).unwrap_or_default();
    same("Config.Healthcheck", vec!["NONE".to_owned()], health)?;
    let labels = config.labels.clone().unwrap_or_default();
    let ours: HashMap<String, String> =
        labels.into_iter().filter(|(name, _)| profile.labels().contains_key(name)).collect();
    same("Config.Labels", sorted(profile.labels()), sorted(ours))?;
    environment(profile, config)
}

/// What was asked for is there, once; the image's own variables stand beside it.
fn environment(profile: &Profile<'_>, config: &ContainerConfig) -> Verdict {
    let found = config.env.clone().unwrap_or_default();
    for entry in profile.environment() {
        let name = entry.split('=').next().unwrap_or_default();
        let of_name = |candidate: &&String| candidate.split('=').next() == Some(name);
        // The values stay out of the error: it may be shown to people who may not see the environment.
        if found.iter().filter(of_name).collect::<Vec<_>>() != [&entry] {
            return Err(EngineError::NotAsAsked {
                field: "Config.Env",
                asked: format!("{name} as asked for, once"),
                found: "missing, different or there twice".to_owned(),
            });
        }
    }
    Ok(())
}

/// What keeps the processes from becoming more than they are.
fn walls(profile: &Profile<'_>, host: &HostConfig) -> Verdict {
    same("HostConfig.Privileged", false, host.privileged.unwrap_or(false))?;
    same("HostConfig.ReadonlyRootfs", true, host.readonly_rootfs.unwrap_or(false))?;
    same("HostConfig.CapDrop", vec!["ALL".to_owned()], host.cap_drop.clone().unwrap_or_default())?;
    nothing("HostConfig.CapAdd", host.cap_add.as_ref())?;
    // Nothing besides: "seccomp=unconfined" and "label=disable" would stand here.
    let (asked, found) = (profile.security_options(), host.security_opt.clone().unwrap_or_default());
    same("HostConfig.SecurityOpt", shortened(asked), shortened(found))?;
    nothing("HostConfig.GroupAdd", host.group_add.as_ref())
}

/// The options with a word for the one that is a whole document.
fn shortened(options: Vec<String>) -> Vec<String> {
    let one =
        |option: String| if option == seccomp::option() { "seccomp=Caisson's".to_owned() } else { option };
    options.into_iter().map(one).collect()
}

/// What of the host's own is not shared.
fn namespaces(host: &HostConfig) -> Verdict {
    same("HostConfig.NetworkMode", "none".to_owned(), text(host.network_mode.as_ref()))?;
    same("HostConfig.IpcMode", "private".to_owned(), text(host.ipc_mode.as_ref()))?;
    same("HostConfig.PidMode", String::new(), text(host.pid_mode.as_ref()))?;
    same("HostConfig.UTSMode", String::new(), text(host.uts_mode.as_ref()))?;
    same("HostConfig.UsernsMode", String::new(), text(host.userns_mode.as_ref()))?;
    let cgroups = host.cgroupns_mode.unwrap_or(HostConfigCgroupnsModeEnum::EMPTY);
    same("HostConfig.CgroupnsMode", HostConfigCgroupnsModeEnum::PRIVATE, cgroups)?;
    same("HostConfig.CgroupParent", String::new(), text(host.cgroup_parent.as_ref()))?;
    same("HostConfig.PublishAllPorts", false, host.publish_all_ports.unwrap_or(false))?;
    none_of("HostConfig.PortBindings", host.port_bindings.as_ref())?;
    nothing("HostConfig.Links", host.links.as_ref())
}

/// No hardware, and no other container's or driver's volumes.
fn devices(host: &HostConfig) -> Verdict {
    nothing("HostConfig.Devices", host.devices.as_ref())?;
    nothing("HostConfig.DeviceRequests", host.device_requests.as_ref())?;
    nothing("HostConfig.DeviceCgroupRules", host.device_cgroup_rules.as_ref())?;
    nothing("HostConfig.Binds", host.binds.as_ref())?;
    nothing("HostConfig.VolumesFrom", host.volumes_from.as_ref())?;
    none_of("HostConfig.Sysctls", host.sysctls.as_ref())
}

fn limits(profile: &Profile<'_>, host: &HostConfig) -> Verdict {
    same("HostConfig.Memory", profile.memory_bytes(), host.memory.unwrap_or(0))?;
    same("HostConfig.MemorySwap", profile.memory_bytes(), host.memory_swap.unwrap_or(0))?;
    same("HostConfig.OomKillDisable", false, host.oom_kill_disable.unwrap_or(false))?;
    same("HostConfig.OomScoreAdj", profile::OOM_SCORE_ADJ, host.oom_score_adj.unwrap_or(0))?;
    same("HostConfig.PidsLimit", i64::from(profile.spec.limits.pids), host.pids_limit.unwrap_or(0))?;
    same("HostConfig.NanoCpus", profile.nano_cpus(), host.nano_cpus.unwrap_or(0))?;
    same("HostConfig.ShmSize", profile::SHM_BYTES, host.shm_size.unwrap_or(0))?;
    let found = host.ulimits.clone().unwrap_or_default();
    same("HostConfig.Ulimits", by_name(&profile::ulimits()), by_name(&found))
}

/// Parts of `/proc` and `/sys` that an engine hides, unless somebody asks it not to.
fn kernel_views(host: &HostConfig) -> Verdict {
    for path in profile::masked_paths() {
        contains("HostConfig.MaskedPaths", &path, host.masked_paths.as_ref())?;
    }
    contains("HostConfig.ReadonlyPaths", "/proc/sys", host.readonly_paths.as_ref())
}

/// How long it stays, and what it leaves behind.
fn keeping(host: &HostConfig) -> Verdict {
    same("HostConfig.Init", false, host.init.unwrap_or(false))?;
    same("HostConfig.AutoRemove", false, host.auto_remove.unwrap_or(false))?;
    let restart = host.restart_policy.as_ref().and_then(|policy| policy.name);
    let restarts = !matches!(restart, None | Some(RestartPolicyNameEnum::NO | RestartPolicyNameEnum::EMPTY));
    same("HostConfig.RestartPolicy", false, restarts)?;
    let (asked, found) = (profile::log_config(), host.log_config.clone().unwrap_or_default());
    same("HostConfig.LogConfig", text(asked.typ.as_ref()), text(found.typ.as_ref()))?;
    let options = |config: Option<HashMap<String, String>>| sorted(config.unwrap_or_default());
    same("HostConfig.LogConfig", options(asked.config), options(found.config))
}

fn networks(found: &ContainerInspectResponse) -> Verdict {
    let networks = found.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let mut names: Vec<&String> = networks.iter().flat_map(|networks| networks.keys()).collect();
    names.retain(|name| *name != "none");
    nothing("NetworkSettings.Networks", Some(&names))
}

fn tmpfs(profile: &Profile<'_>, host: &HostConfig) -> Verdict {
    let asked = BTreeMap::from([(profile::TMP_PATH.to_owned(), profile.tmp_options())]);
    same("HostConfig.Tmpfs", asked, sorted(host.tmpfs.clone().unwrap_or_default()))
}

/// Exactly the mounts asked for. A volume that the image declares would be one more.
fn mounts(profile: &Profile<'_>, host: &HostConfig, found: &ContainerInspectResponse) -> Verdict {
    let binds = profile.binds();
    let asked: BTreeSet<String> = binds
        .iter()
        .map(|bind| {
            let access = if bind.access == Access::Writable { "writable" } else { "read-only" };
            format!("bind {} at {} {access} rprivate", bind.source, bind.target)
        })
        .collect();
    let made: BTreeSet<String> = found.mounts.iter().flatten().map(described).collect();
    same("Mounts", asked, made)?;
    // `Mounts` shows no mount in memory; this does.
    let places = |places: Vec<String>| places.into_iter().collect::<BTreeSet<_>>();
    let asked = places(binds.iter().map(|bind| bind.target.to_owned()).collect());
    let made = places(host.mounts.iter().flatten().map(|mount| text(mount.target.as_ref())).collect());
    same("HostConfig.Mounts", asked, made)
}

fn described(mount: &MountPoint) -> String {
    let access = if mount.rw == Some(false) { "read-only" } else { "writable" };
    let [typ, source, target, propagation] =
        [&mount.typ, &mount.source, &mount.destination, &mount.propagation].map(|field| text(field.as_ref()));
    format!("{typ} {source} at {target} {access} {propagation}")
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "most values are made for the call; references would only add noise"
)]
fn same<T: PartialEq + Debug>(field: &'static str, asked: T, found: T) -> Verdict {
    if asked == found {
        return Ok(());
    }
    Err(EngineError::NotAsAsked { field, asked: format!("{asked:?}"), found: format!("{found:?}") })
}

fn nothing<T: Debug>(field: &'static str, found: Option<&Vec<T>>) -> Verdict {
    match found {
        Some(found) if !found.is_empty() => same(field, "none".to_owned(), format!("{found:?}")),
        Some(_) | None => Ok(()),
    }
}

fn none_of<K: Debug, V: Debug>(field: &'static str, found: Option<&HashMap<K, V>>) -> Verdict {
    nothing(field, found.map(|found| found.iter().collect()).as_ref())
}

fn contains(field: &'static str, asked: &str, found: Option<&Vec<String>>) -> Verdict {
    if found.is_some_and(|found| found.iter().any(|path| path == asked)) {
        return Ok(());
    }
    same(field, format!("with {asked}"), format!("{found:?}"))
}

fn missing(field: &'static str) -> EngineError {
    EngineError::NotAsAsked { field, asked: "given".to_owned(), found: "missing".to_owned() }
}

fn text(found: Option<&String>) -> String {
    found.cloned().unwrap_or_default()
}

fn sorted(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

fn by_name(ulimits: &[ResourcesUlimits]) -> BTreeMap<String, (Option<i64>, Option<i64>)> {
    ulimits.iter().map(|limit| (text(limit.name.as_ref()), (limit.soft, limit.hard))).collect()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
