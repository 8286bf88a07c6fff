//! Sandbox images that this program built, an earlier version of it above all: removed when they were made long ago and
//! nothing uses them. They belong to the engine and to no project, so that the settings alone say how long they are kept.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use caisson_domain::id::ProjectId;
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::run::RunStatus;
use caisson_sandbox::docker::{DEFAULT_IMAGE, DockerEngine, UnusedImage};
use caisson_store::{RunFilter, Store, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::settings::Settings;

/// Time between two looks of a server.
const LOOK: Duration = Duration::from_hours(1);
const DAY_S: i64 = 24 * 60 * 60;
/// Most pages of a project's runs in one status that a look reads; queue and slots are bounded below that.
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

    /// What can go: made longer ago than the days that images are kept, named by no workflow and no run that waits or runs,
    /// and without a container.
    ///
    /// # Errors
    /// The engine or the database cannot be asked.
    pub(crate) async fn unused(&self) -> anyhow::Result<Vec<UnusedImage>> {
        let before_s = self.store.now_ms() / 1000 - self.days * DAY_S;
        let named = named(&self.store, self.default_image.as_deref()).await?;
        let unused = self.engine.unused_images(&named, before_s).await;
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
}

/// The images that somebody may ask for by name.
async fn named(store: &Store, default_image: Option<&str>) -> Result<Vec<String>, StoreError> {
    let mut named = vec![DEFAULT_IMAGE.to_owned()];
    named.extend(default_image.map(str::to_owned));
    for project in store.list_projects(None, PAGE_ITEMS).await? {
        let workflows = store.list_workflows(&project.id).await?;
        named.extend(workflows.into_iter().filter_map(|stored| stored.image));
        // A run that runs may go back to the queue, and its image has no container then.
        for status in [RunStatus::Queued, RunStatus::Running] {
            named.extend(images_of_runs(store, &project.id, status).await?);
        }
    }
    Ok(named)
}

/// The images of which sandboxes for the project's runs in that status may be made.
async fn images_of_runs(
    store: &Store,
    project: &ProjectId,
    status: RunStatus,
) -> Result<Vec<String>, StoreError> {
    let filter = RunFilter { status: Some(status), ..RunFilter::default() };
    let (mut images, mut after) = (Vec::new(), None);
    for _ in 0..PAGES {
        let runs = store.list_runs(project, &filter, after.as_ref(), PAGE_ITEMS).await?;
        let Some(last) = runs.last() else { break };
        after = Some(last.id.clone());
        for run in runs {
            images.extend(run.spec.image.or(run.spec.workflow.caisson.image));
            images.extend(run.repository_image);
        }
    }
    Ok(images)
}

/// What people call it.
pub(crate) fn name(image: &UnusedImage) -> &str {
    image.tags.first().map_or(image.id.as_str(), String::as_str)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use caisson_domain::id::ServerId;
    use caisson_domain::run::{Resources, RunSpec};
    use caisson_domain::workflow::Workflow;
    use caisson_store::{Clock, NewRun};

    use super::*;

    fn spec(image: Option<&str>) -> RunSpec {
        RunSpec {
            workflow: Workflow::parse("---\nname: fix\ndescription: d\n---\nFix it.\n").unwrap(),
            prompt: "fix it".to_owned(),
            repository: None,
            base: None,
            anchor: None,
            branch: None,
            model: None,
            max_turns: None,
            image: image.map(str::to_owned),
            timeout_s: 600,
            budget_micro_usd: None,
            budget_soft_percent: None,
            resources: Resources::default(),
            environment: BTreeMap::new(),
            priority: 0,
            start_at_ms: None,
            parameters: caisson_domain::parameters::Values::new(),
            output_schema: None,
            attachments: Vec::new(),
            workflow_version: None,
        }
    }

    #[tokio::test]
    async fn images_of_runs_that_wait_or_run_are_kept_also_those_that_their_repositories_chose() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("db"), Clock::system()).await.unwrap();
        let server = ServerId::new(1, [1; 10]);
        store.register_server(&server).await.unwrap();
        let project = ProjectId::default_project();
        let queue = async |image: Option<&str>| {
            let new =
                NewRun { project: project.clone(), created_by: None, spec: spec(image), idempotency: None };
            store.create_run(new).await.unwrap();
        };
        queue(None).await;
        let chosen = store.claim(&server).await.unwrap().unwrap();
        assert!(store.choose_image(&chosen.run.id, chosen.epoch, "team:chosen").await.unwrap());
        queue(Some("team:runs")).await;
        store.claim(&server).await.unwrap().unwrap();
        queue(Some("team:waits")).await;
        let of = async || {
            let mut found = named(&store, Some("team:default")).await.unwrap();
            found.sort();
            found
        };
        let all = [DEFAULT_IMAGE, "team:chosen", "team:default", "team:runs", "team:waits"];
        assert_eq!(of().await, all, "while it runs");
        assert!(store.requeue(&chosen.run.id, chosen.epoch, "for its image", 0).await.unwrap());
        assert_eq!(of().await, all, "while it waits");
        store.request_cancel(&project, &chosen.run.id, None).await.unwrap();
        assert_eq!(of().await, [DEFAULT_IMAGE, "team:default", "team:runs", "team:waits"]);
        store.close().await.unwrap();
    }
}
