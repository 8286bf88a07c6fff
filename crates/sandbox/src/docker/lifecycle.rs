//! A container's life: made, started, stopped, removed, found again.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, ListContainersOptions, RemoveContainerOptions,
    StartContainerOptions, StatsOptions, StopContainerOptions,
};
use caisson_domain::id::SandboxId;
use futures_util::StreamExt;
use tracing::warn;

use super::check::Seccomp;
use super::fault::{CONFLICT, Fault, NOT_FOUND, unavailable};
use super::profile::{self, Profile, container_name};
use super::{CHANGE_TIMEOUT_S, DockerEngine, reading, verify};
use crate::local::cgroup::Group;
use crate::mounts;
use crate::spec::within;
use crate::{EngineError, Liveness, OwnedSandbox, STOP_GRACE_S_MAX, SandboxSpec, SandboxUsage, SpecError};

/// Most containers that one list asks for, the newest first; a server that has more is far past any use it was made for, and
/// finds the others once these are gone.
pub const LIST_CONTAINERS: i32 = 10_000;
/// Time between looks at a container that somebody else is removing already.
const REMOVAL_LOOK: Duration = Duration::from_millis(100);

impl DockerEngine {
    pub(super) async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<(), EngineError> {
        spec.validate()?;
        if spec.image.is_none() {
            return Err(SpecError::ImageMissing.into());
        }
        if spec.server != self.server {
            return Err(SpecError::Server { asked: spec.server.clone(), own: self.server.clone() }.into());
        }
        let capabilities = self.capabilities().await?;
        let (asked, socket) = (spec.mounts.clone(), self.socket.clone());
        let looked = tokio::task::spawn_blocking(move || mounts::resolve(&asked, Some(&socket))).await;
        // It neither panics nor is aborted, but its handle cannot know that.
        let binds =
            looked.map_err(|error| unavailable("looking at the mounts", &self.host, error.into()))??;
        let hosts_file = self.hosts_file.as_ref().and_then(|file| file.to_str()).map(str::to_owned);
        let (cores, own_seccomp) = (capabilities.cores, capabilities.seccomp == Seccomp::Own);
        let profile = Profile { spec, binds, cores, own_seccomp, hosts_file };
        self.ask_for(&profile).await?;
        let made = match self.inspect(&spec.id).await {
            Ok(found) => verify::verify(&profile, &found),
            Err(error) => Err(error),
        };
        if made.is_err()
            && let Err(error) = self.destroy_sandbox(&spec.id).await
        {
            // The label makes it an orphan that the next reconcile pass finds.
            warn!(sandbox.id = %spec.id, %error, "could not remove sandbox {} that is not as asked", spec.id);
        }
        made
    }

    async fn ask_for(&self, profile: &Profile<'_>) -> Result<(), EngineError> {
        let spec = profile.spec;
        let name = CreateContainerOptions { name: Some(container_name(&spec.id)), ..Default::default() };
        let body = profile.body();
        let made =
            self.change("creating a sandbox", |docker| async move {
                docker.create_container(Some(name), body).await
            })
            .await;
        match made {
            Ok(answer) => {
                for warning in answer.warnings {
                    warn!(sandbox.id = %spec.id, "the engine warned about sandbox {}: {warning}", spec.id);
                }
                Ok(())
            }
            Err(fault) if fault.code() == Some(NOT_FOUND) => {
                Err(EngineError::ImageMissing { image: spec.image.clone().unwrap_or_default() })
            }
            Err(fault) if fault.code() == Some(CONFLICT) => {
                Err(EngineError::AlreadyExists { id: spec.id.clone() })
            }
            Err(fault) => Err(fault.into()),
        }
    }

    pub(super) async fn inspect(&self, id: &SandboxId) -> Result<ContainerInspectResponse, EngineError> {
        let name = container_name(id);
        self.read("inspecting a sandbox", |docker| async move {
            docker.inspect_container(&name, None::<InspectContainerOptions>).await
        })
        .await
        .map_err(|fault| of_sandbox(id, fault))
    }

    pub(super) async fn start_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        // Docker would start an ended container again, which no sandbox may be.
        match reading::liveness(&self.inspect(id).await?)? {
            Liveness::Running => return Ok(()),
            Liveness::Exited(_) => return Err(EngineError::Ended { id: id.clone() }),
            Liveness::Created => {}
        }
        let name = container_name(id);
        self.change("starting a sandbox", |docker| async move {
            docker.start_container(&name, None::<StartContainerOptions>).await
        })
        .await
        .map_err(|fault| of_sandbox(id, fault))
    }

    pub(super) async fn stop_sandbox(&self, id: &SandboxId, grace_s: u32) -> Result<(), EngineError> {
        within("grace_s", grace_s.into(), 0, STOP_GRACE_S_MAX.into())?;
        let name = container_name(id);
        let options = StopContainerOptions { t: i32::try_from(grace_s).ok(), ..Default::default() };
        let limit = Duration::from_secs(CHANGE_TIMEOUT_S + u64::from(grace_s));
        self.call("stopping a sandbox", limit, |docker| async move {
            docker.stop_container(&name, Some(options)).await
        })
        .await
        .map_err(|fault| of_sandbox(id, fault))
    }

    pub(super) async fn destroy_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        let name = container_name(id);
        // `v`: with the volumes that an image may declare, should one ever have come through.
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        let removed = self
            .change("removing a sandbox", |docker| async move {
                docker.remove_container(&name, Some(options)).await
            })
            .await;
        match removed {
            Ok(()) => Ok(()),
            Err(fault) if fault.code() == Some(NOT_FOUND) => Ok(()),
            Err(fault) if fault.code() == Some(CONFLICT) => self.removed_by_another(id).await,
            Err(fault) => Err(fault.into()),
        }
    }

    /// Waits until a removal that was under way before is done: only then are the mounts free.
    async fn removed_by_another(&self, id: &SandboxId) -> Result<(), EngineError> {
        let gone = async {
            loop {
                match self.inspect(id).await {
                    Ok(_) => tokio::time::sleep(REMOVAL_LOOK).await,
                    Err(EngineError::NotFound { .. }) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(CHANGE_TIMEOUT_S), gone)
            .await
            .map_err(|elapsed| unavailable("removing a sandbox", &self.host, elapsed.into()))?
    }

    pub(super) async fn list_sandboxes(&self) -> Result<Vec<OwnedSandbox>, EngineError> {
        let options = ListContainersOptions {
            all: true,
            limit: Some(LIST_CONTAINERS),
            filters: Some(HashMap::from([("label".to_owned(), vec![profile::owner_filter(&self.server)])])),
            ..Default::default()
        };
        let listed = self
            .read("listing sandboxes", |docker| async move { docker.list_containers(Some(options)).await })
            .await?;
        let mut owned = Vec::with_capacity(listed.len());
        for container in listed {
            let Some((id, session)) = reading::ids(&container) else {
                let name = container.id.unwrap_or_default();
                warn!("container {name} has this server's label, but none that names a sandbox");
                continue;
            };
            let liveness = match reading::listed_liveness(&container) {
                Some(liveness) => liveness,
                // How it ended, a list does not say.
                None => match self.inspect(&id).await {
                    Ok(found) => reading::liveness(&found)?,
                    Err(EngineError::NotFound { .. }) => continue,
                    Err(error) => return Err(error),
                },
            };
            owned.push(OwnedSandbox { id, session, liveness });
        }
        Ok(owned)
    }

    pub(super) async fn read_usage(&self, id: &SandboxId) -> Result<SandboxUsage, EngineError> {
        let container = self.inspect(id).await?;
        if let Some((pid, name)) = reading::first_process(&container) {
            let read = move || Group::of_process(pid, &name).and_then(|group| group.usage().ok());
            if let Ok(Some(usage)) = tokio::task::spawn_blocking(read).await {
                return Ok(usage);
            }
        }
        // Whose processes this one does not see. An engine before 23 answers within its next second.
        let name = container_name(id);
        let options = StatsOptions { stream: false, one_shot: true };
        let read = self
            .read("reading a sandbox's usage", |docker| async move {
                docker.stats(&name, Some(options)).next().await.transpose()
            })
            .await
            .map_err(|fault| of_sandbox(id, fault))?;
        read.as_ref().and_then(reading::usage).ok_or_else(|| EngineError::NotRunning { id: id.clone() })
    }
}

/// What a fault means in a call about one sandbox.
fn of_sandbox(id: &SandboxId, fault: Fault) -> EngineError {
    if fault.code() == Some(NOT_FOUND) { EngineError::NotFound { id: id.clone() } } else { fault.into() }
}
