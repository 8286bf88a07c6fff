//! Which engine makes this server's sandboxes, and whether it can.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use caisson_domain::id::ServerId;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_sandbox::docker::{DEFAULT_IMAGE, DockerConfig, DockerEngine};
use caisson_sandbox::local::{ControlGroups, LocalConfig, LocalEngine};
use caisson_sandbox::{Engine, EngineError, SHARED_UID};
use caisson_store::Store;

use crate::images::ImageKeeper;
use crate::serve::chain;
use crate::settings::{EngineChoice, Settings};
use crate::shared_paths::SharedPaths;

/// How long a Docker Engine may take to say that it is there.
const ANSWER: Duration = Duration::from_secs(5);
/// Name of the Docker engine in the store.
const DOCKER: &str = "docker";
/// Name of the local engine in the store.
const LOCAL: &str = "local";
/// The local engine's records in the state directory.
const RECORDS: &str = "local";

/// What an engine is taken for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose<'a> {
    /// To make sandboxes.
    Serving,
    /// To be looked at: it changes nothing of the machine, and what it keeps in a server's state directory is put into this one.
    LookingAt(&'a Path),
}

impl<'a> Purpose<'a> {
    /// Where the engine keeps its files.
    fn place(self, settings: &'a Settings) -> &'a Path {
        match self {
            Self::Serving => &settings.state_dir,
            Self::LookingAt(elsewhere) => elsewhere,
        }
    }
}

/// The engine of this server.
#[derive(Debug, Clone)]
pub(crate) enum ActiveEngine {
    /// A Docker Engine, and the image of runs that name none.
    Docker(Arc<DockerEngine>, String),
    /// Bubblewrap on this machine.
    Local(Arc<LocalEngine>),
}

impl ActiveEngine {
    /// Takes the engine that the settings choose. One whose sandboxes still live is kept: another would not see them.
    ///
    /// # Errors
    /// The chosen engine cannot be used, or living sandboxes are another's.
    pub(crate) async fn choose(
        settings: &Settings,
        server: &ServerId,
        store: Option<&Store>,
        purpose: Purpose<'_>,
    ) -> anyhow::Result<Self> {
        let living = match store {
            Some(store) => living(server, store).await?,
            None => None,
        };
        match (settings.engine, living.as_deref()) {
            (EngineChoice::Docker, Some(LOCAL)) => anyhow::bail!(another(DOCKER, LOCAL)),
            (EngineChoice::Local, Some(DOCKER)) => anyhow::bail!(another(LOCAL, DOCKER)),
            (EngineChoice::Docker, _) | (EngineChoice::Auto, Some(DOCKER)) => {
                Self::docker(settings, server, purpose)
            }
            (EngineChoice::Local, _) | (EngineChoice::Auto, Some(LOCAL)) => {
                Self::local(settings, server, purpose)
            }
            (EngineChoice::Auto, _) => Self::by_itself(settings, server, purpose).await,
        }
    }

    /// Docker where an engine answers, else local.
    ///
    /// # Errors
    /// The engine cannot be used.
    async fn by_itself(settings: &Settings, server: &ServerId, purpose: Purpose<'_>) -> anyhow::Result<Self> {
        let docker = Self::docker(settings, server, purpose);
        if let Ok(Self::Docker(engine, _)) = &docker {
            let answer = tokio::time::timeout(ANSWER, engine.check()).await;
            let away = |error: &EngineError| {
                matches!(error, EngineError::Unavailable { .. } | EngineError::NotPermitted { .. })
            };
            // One that is there and not fit is told of: whoever runs it means it to be used.
            if answer.is_ok_and(|answer| answer.as_ref().err().is_none_or(|error| !away(error))) {
                return docker;
            }
        }
        Self::local(settings, server, purpose)
    }

    fn docker(settings: &Settings, server: &ServerId, purpose: Purpose<'_>) -> anyhow::Result<Self> {
        let config = DockerConfig { host: settings.docker.host.clone() };
        let engine = DockerEngine::connect(&config, server.clone())
            .and_then(|engine| engine.with_hosts_file_in(purpose.place(settings)))
            .context("the Docker Engine cannot be used")?;
        let image = settings.default_image.clone().unwrap_or_else(|| DEFAULT_IMAGE.to_owned());
        Ok(Self::Docker(Arc::new(engine), image))
    }

    fn local(settings: &Settings, server: &ServerId, purpose: Purpose<'_>) -> anyhow::Result<Self> {
        anyhow::ensure!(
            settings.default_image.is_none(),
            "default_image is set, but the local engine has no images; leave it out, or choose --engine docker"
        );
        let config = LocalConfig {
            records_dir: purpose.place(settings).join(RECORDS),
            bubblewrap: settings.local.bubblewrap.clone(),
            read_only: settings.local.read_only.clone(),
            toolchains: settings.local.toolchains.clone(),
            hidden: settings.own_paths().context("the working directory cannot be used")?,
            control_groups: match purpose {
                _ if !settings.local.control_groups => ControlGroups::Off,
                Purpose::Serving => ControlGroups::Use,
                Purpose::LookingAt(_) => ControlGroups::Look,
            },
            // This very program, also when another version has been put in its place meanwhile.
            supervisor: (PathBuf::from("/proc/self/exe"), vec!["supervise".to_owned()]),
        };
        let engine = LocalEngine::open(config, server.clone()).context("the local engine cannot be used")?;
        Ok(Self::Local(Arc::new(engine)))
    }

    /// Its name in the store and in events.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Docker(..) => DOCKER,
            Self::Local(_) => LOCAL,
        }
    }

    /// What looks whether it finds the server's files by their paths; none if it is this very process that mounts them.
    pub(crate) fn shared_paths(&self, state_dir: &Path) -> Option<SharedPaths> {
        match self {
            Self::Docker(engine, image) => {
                Some(SharedPaths::new(Arc::clone(engine), image.clone(), state_dir))
            }
            Self::Local(_) => None,
        }
    }

    /// What removes images that nothing uses; none without images, or if they are kept for ever.
    pub(crate) fn image_keeper(&self, settings: &Settings, store: &Store) -> Option<ImageKeeper> {
        match self {
            Self::Docker(engine, _) => ImageKeeper::new(settings, engine, store),
            Self::Local(_) => None,
        }
    }

    /// The engine, whichever it is.
    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        match self {
            Self::Docker(engine, _) => Arc::clone(engine) as Arc<dyn Engine>,
            Self::Local(engine) => Arc::clone(engine) as Arc<dyn Engine>,
        }
    }

    /// Image of runs and workflows that name none; none without images.
    pub(crate) fn default_image(&self) -> Option<String> {
        match self {
            Self::Docker(_, image) => Some(image.clone()),
            Self::Local(_) => None,
        }
    }

    /// What of walls and limits is weaker here than it could be.
    pub(crate) fn weaknesses(&self) -> Vec<String> {
        match self {
            Self::Docker(..) => {
                if nix::unistd::geteuid().is_root() {
                    Vec::new()
                } else {
                    vec![SHARED_UID.to_owned()]
                }
            }
            Self::Local(engine) => engine.weaknesses(),
        }
    }

    /// What keeps it from making sandboxes.
    pub(crate) async fn problems(&self) -> Vec<PlacementProblem> {
        let problem = |code, message| vec![PlacementProblem { code, message }];
        let (engine, image) = match self {
            Self::Docker(engine, image) => (engine, image),
            Self::Local(engine) => {
                return match engine.look().await {
                    Ok(_) => Vec::new(),
                    Err(error) => problem(ProblemCode::EngineUnavailable, chain(&error)),
                };
            }
        };
        if let Err(error) = engine.check().await {
            return problem(ProblemCode::EngineUnavailable, chain(&error));
        }
        match engine.image_present(image).await {
            Ok(true) => Vec::new(),
            Ok(false) => {
                problem(ProblemCode::ImageMissing, format!("the sandbox image {}", image_remedy(image)))
            }
            Err(error) => problem(ProblemCode::EngineUnavailable, chain(&error)),
        }
    }
}

/// How an image comes onto the engine that is not there.
pub(crate) fn image_remedy(image: &str) -> String {
    if image == DEFAULT_IMAGE {
        return format!("{image} is missing; run `caisson image build`");
    }
    format!("{image} is missing; pull or load it on the engine, as by `docker pull {image}`")
}

/// The engine of this server's living sandboxes; none without any.
async fn living(server: &ServerId, store: &Store) -> anyhow::Result<Option<String>> {
    Ok(store.sandboxes_of(server).await?.into_iter().next().map(|row| row.engine))
}

fn another(asked: &str, living: &str) -> String {
    format!(
        "the engine is to be {asked}, but sandboxes of the {living} engine still live; start with --engine {living} until their runs have ended"
    )
}
