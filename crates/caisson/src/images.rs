//! Sandbox images that this program built, an earlier version of it above all: removed when they were made long ago and
//! nothing uses them. They belong to the engine and to no project, so that the settings alone say how long they are kept.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::run::RunStatus;
use caisson_sandbox::docker::{DEFAULT_IMAGE, DockerEngine, UnusedImage};
use caisson_store::{RunFilter, Store};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::settings::Settings;

/// Time between two looks of a server.
const LOOK: Duration = Duration::from_hours(1);
const DAY_S: i64 = 24 * 60 * 60;
/// Most pages of waiting runs that a look reads; the queue is bounded below that.
const PAGES: usize = 100;

/// Finds and removes images.
#[derive(Debug)]
pub(crate) struct ImageKeeper {
    engine: Arc<DockerEngine>,
    store: Store,
    days: i64,
    default_image: Option<String>,
}

impl ImageKeeper {
    /// None where images are kept for ever.
    pub(crate) fn new(settings: &Settings, engine: &Arc<DockerEngine>, store: &Store) -> Option<Self> {
        let days = settings.retention.images_days;
        let default_image = settings.default_image.clone();
        (days > 0).then(|| Self { engine: Arc::clone(engine), store: store.clone(), days, default_image })
    }

    /// What can go: made longer ago than the days that images are kept, named by no workflow and no waiting run, and without
    /// a container.
    ///
    /// # Errors
    /// The engine or the database cannot be asked.
    pub(crate) async fn unused(&self) -> anyhow::Result<Vec<UnusedImage>> {
        let before_s = self.store.now_ms() / 1000 - self.days * DAY_S;
        let unused = self.engine.unused_images(&self.named().await?, before_s).await;
        unused.context("the engine cannot be asked for its images")
    }

    /// Removes one; `false` if the engine keeps it after all.
    ///
    /// # Errors
    /// The engine refuses.
    pub(crate) async fn remove(&self, image: &UnusedImage) -> anyhow::Result<bool> {
        let gone = self.engine.remove_unused_image(image).await?;
        if gone {
            info!(image.id = %image.id, retention.bytes = image.bytes, "removed image {}: nothing uses it", name(image));
        }
        Ok(gone)
    }

    /// Looks again and again until the server goes down.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.pass().await {
                warn!("could not remove unused images, trying again later: {error:#}");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn pass(&self) -> anyhow::Result<()> {
        for image in self.unused().await? {
            self.remove(&image).await?;
        }
        Ok(())
    }

    /// The images that somebody may ask for by name.
    async fn named(&self) -> anyhow::Result<Vec<String>> {
        let mut named = vec![DEFAULT_IMAGE.to_owned()];
        named.extend(self.default_image.clone());
        for project in self.store.list_projects(None, PAGE_ITEMS).await? {
            let workflows = self.store.list_workflows(&project.id).await?;
            named.extend(workflows.into_iter().filter_map(|stored| stored.workflow.caisson.image));
            let waiting = RunFilter { status: Some(RunStatus::Queued), ..RunFilter::default() };
            let mut after = None;
            for _ in 0..PAGES {
                let runs = self.store.list_runs(&project.id, &waiting, after.as_ref(), PAGE_ITEMS).await?;
                let Some(last) = runs.last() else { break };
                after = Some(last.id.clone());
                let images = runs.into_iter().map(|run| run.spec.image.or(run.spec.workflow.caisson.image));
                named.extend(images.flatten());
            }
        }
        Ok(named)
    }
}

/// What people call it.
pub(crate) fn name(image: &UnusedImage) -> &str {
    image.tags.first().map_or(image.id.as_str(), String::as_str)
}
