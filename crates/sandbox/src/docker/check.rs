//! Whether an engine can make sandboxes that are safe, and what it can do besides.

use bollard::models::{SystemInfo, SystemVersion};

use super::DockerEngine;
use crate::{EngineError, check_image_name};

/// Oldest version of the Docker Engine API that will do (Docker 20.10).
pub const API_VERSION_MIN: (u32, u32) = (1, 41);

/// What an engine that is fit for sandboxes can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The engine's own version, as it says it.
    pub engine_version: String,
    /// The newest version of the API that it speaks.
    pub api_version: (u32, u32),
    /// The machine's cores as the engine sees them.
    pub cores: u32,
    /// The machine's memory as the engine sees it, in bytes; none if it does not tell.
    pub memory_bytes: Option<u64>,
    /// Which version of control groups holds the limits, as the engine says it; none if it does not tell.
    pub cgroup_version: Option<String>,
    /// Whose filter of system calls its containers have.
    pub seccomp: Seccomp,
    /// Whether root in a container is another user outside (`userns-remap`). The directories that are mounted must then
    /// belong to the uids as the host sees them.
    pub user_namespaces: bool,
    /// Whether the engine itself runs without root.
    pub rootless: bool,
    /// Whether containers outlive the engine's own restart (`live-restore`).
    pub live_restore: bool,
}

/// Whose filter of system calls containers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// Caisson's own.
    Own,
    /// One that the engine's administrator chose (`seccomp-profile`), which may stop more or less than Caisson's.
    Administrator,
}

impl DockerEngine {
    /// Asks the engine what it can do.
    ///
    /// # Errors
    /// [`EngineError::Unfit`] if it cannot make sandboxes that are safe, and the general ones.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn check(&self) -> Result<Capabilities, EngineError> {
        let version = self
            .read("asking for the engine's version", |docker| async move { docker.version().await })
            .await?;
        let info =
            self.read("asking what the engine can do", |docker| async move { docker.info().await }).await?;
        let capabilities = judge(&version, &info)?;
        self.remember(Some(capabilities.clone()));
        Ok(capabilities)
    }

    /// What the engine can do, asked anew if it was away since the last time.
    pub(super) async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        match self.remembered() {
            Some(capabilities) => Ok(capabilities),
            None => self.check().await,
        }
    }

    /// Whether the engine has an image of this name.
    ///
    /// # Errors
    /// [`EngineError::BadSpec`] if it is no image name, and the general ones.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn image_present(&self, name: &str) -> Result<bool, EngineError> {
        check_image_name(name).map_err(crate::SpecError::from)?;
        let image = name.to_owned();
        match self
            .read("looking for an image", |docker| async move { docker.inspect_image(&image).await })
            .await
        {
            Ok(_) => Ok(true),
            Err(fault) if fault.code() == Some(super::fault::NOT_FOUND) => Ok(false),
            Err(fault) => Err(fault.into()),
        }
    }
}

fn judge(version: &SystemVersion, info: &SystemInfo) -> Result<Capabilities, EngineError> {
    let api_text = version.api_version.as_deref().unwrap_or("none");
    let api_version =
        api_version(api_text).filter(|api| *api >= API_VERSION_MIN).ok_or(EngineError::Unfit {
            need: "version 1.41 of the Docker Engine API or a later one",
            found: api_text.to_owned(),
            remedy: "install Docker 20.10 or later",
        })?;
    judge_limits(info)?;
    let options: Vec<&str> = info.security_options.iter().flatten().map(String::as_str).collect();
    let seccomp = judge_seccomp(&options)?;
    let has = |name: &str| options.iter().any(|option| option_name(option) == name);
    Ok(Capabilities {
        engine_version: version.version.clone().unwrap_or_default(),
        api_version,
        cores: info.ncpu.and_then(|cores| u32::try_from(cores).ok()).unwrap_or(1).max(1),
        memory_bytes: info.mem_total.and_then(|bytes| u64::try_from(bytes).ok()),
        cgroup_version: info
            .cgroup_version
            .map(|version| version.to_string())
            .filter(|text| !text.is_empty()),
        seccomp,
        user_namespaces: has("userns"),
        rootless: has("rootless"),
        live_restore: info.live_restore_enabled.unwrap_or(false),
    })
}

/// An engine on a kernel without a limit drops the field with a warning, and the sandbox has no limit.
fn judge_limits(info: &SystemInfo) -> Result<(), EngineError> {
    const MEMORY: &str =
        "enable the memory controller, for example by the kernel's option cgroup_enable=memory";
    const SWAP: &str = "use cgroup v2, or the kernel's option swapaccount=1";
    const PIDS: &str = "enable the pids controller of the kernel (CONFIG_CGROUP_PIDS)";
    const CPU: &str = "enable the kernel's CPU bandwidth control (CONFIG_CFS_BANDWIDTH)";
    for (need, has, remedy) in [
        ("limits on memory", info.memory_limit, MEMORY),
        ("limits on swap", info.swap_limit, SWAP),
        ("limits on processes", info.pids_limit, PIDS),
        ("limits on CPU (period)", info.cpu_cfs_period, CPU),
        ("limits on CPU (quota)", info.cpu_cfs_quota, CPU),
    ] {
        if has != Some(true) {
            return Err(EngineError::Unfit { need, found: "none".to_owned(), remedy });
        }
    }
    Ok(())
}

/// A profile of the administrator's own is taken; none at all is not, since somebody meant it so.
fn judge_seccomp(options: &[&str]) -> Result<Seccomp, EngineError> {
    let seccomp = options.iter().find(|option| option_name(option) == "seccomp");
    let profile = seccomp.map(|option| option.split_once(",profile=").map_or("", |(_, profile)| profile));
    match profile {
        // The oldest engines tell no profile, and 24 and later say `builtin`.
        Some("" | "default" | "builtin") => return Ok(Seccomp::Own),
        Some("unconfined") | None => {}
        Some(_) => return Ok(Seccomp::Administrator),
    }
    Err(EngineError::Unfit {
        need: "a seccomp filter on every container",
        found: seccomp.map_or("none", |option| option).to_owned(),
        remedy: "use a kernel with seccomp and remove seccomp-profile from the engine's configuration",
    })
}

/// `name=seccomp,profile=default` → `seccomp`; the oldest engines say `seccomp` alone.
fn option_name(option: &str) -> &str {
    let first = option.split(',').next().unwrap_or_default();
    first.strip_prefix("name=").unwrap_or(first)
}

fn api_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn version(api: &str) -> SystemVersion {
        serde_json::from_value(json!({ "Version": "20.10.24", "ApiVersion": api })).unwrap()
    }

    fn good() -> Value {
        json!({
            "MemoryLimit": true, "SwapLimit": true, "PidsLimit": true, "CpuCfsPeriod": true, "CpuCfsQuota": true,
            "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default", "name=userns"], "NCPU": 2,
            "MemTotal": 1024, "CgroupVersion": "1", "LiveRestoreEnabled": true
        })
    }

    fn judged(info: Value) -> Result<Capabilities, EngineError> {
        judge(&version("1.41"), &serde_json::from_value(info).unwrap())
    }

    #[test]
    fn a_fit_engine_tells_what_it_can_do() {
        let found = judged(good()).unwrap();
        let expected = Capabilities {
            engine_version: "20.10.24".into(),
            api_version: (1, 41),
            cores: 2,
            memory_bytes: Some(1024),
            cgroup_version: Some("1".into()),
            seccomp: Seccomp::Own,
            user_namespaces: true,
            rootless: false,
            live_restore: true,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn api_version_1_41_is_the_oldest() {
        let info: SystemInfo = serde_json::from_value(good()).unwrap();
        for (api, fit) in
            [("1.41", true), ("1.53", true), ("2.0", true), ("1.40", false), ("", false), ("x.y", false)]
        {
            let judged = judge(&version(api), &info);
            assert_eq!(judged.is_ok(), fit, "{api}");
            if let Err(error) = judged {
                assert!(matches!(error, EngineError::Unfit { .. }));
            }
        }
    }

    #[test]
    fn each_missing_limit_makes_an_engine_unfit() {
        for field in ["MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsPeriod", "CpuCfsQuota"] {
            for value in [json!(false), Value::Null] {
                let mut info = good();
                info[field] = value;
                assert!(matches!(judged(info), Err(EngineError::Unfit { .. })), "{field}");
            }
        }
    }

    #[test]
    fn an_engine_without_seccomp_is_unfit() {
        for options in
            [json!([]), Value::Null, json!(["name=apparmor"]), json!(["name=seccomp,profile=unconfined"])]
        {
            let mut info = good();
            info["SecurityOptions"] = options.clone();
            let error = judged(info).unwrap_err();
            assert!(error.to_string().contains("seccomp"), "{options}: {error}");
        }
        for (option, whose) in [
            ("name=seccomp,profile=default", Seccomp::Own),
            ("name=seccomp,profile=builtin", Seccomp::Own),
            ("seccomp", Seccomp::Own),
            ("name=seccomp,profile=/etc/docker/own.json", Seccomp::Administrator),
        ] {
            let mut info = good();
            info["SecurityOptions"] = json!([option]);
            assert_eq!(judged(info).unwrap().seccomp, whose, "{option}");
        }
    }
}
