//! Images that were built here and that nothing needs any more: found by their label, removed only if the engine knows of
//! nothing that uses them.
//!
//! A label is inherited by every image that is made FROM one of ours, so that it alone proves nothing: an image is ours if
//! the label is the last thing that was done to it.

use std::collections::HashMap;

use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, RemoveImageOptions};

use super::DockerEngine;
use super::fault::{CONFLICT, NOT_FOUND};
use crate::EngineError;

/// Names the tag with which an image was built.
pub(super) const LABEL_BUILT: &str = "caisson.image";
/// Most images that one look goes through; more are found once these are gone.
pub const LIST_IMAGES: usize = 200;
/// What an engine calls the name of an image that has none.
const NO_NAME: &str = "<none>:<none>";

/// An image that was built by [`DockerEngine::build_image`] and has no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedImage {
    /// The engine's id of it.
    pub id: String,
    /// What it is called; empty if another one has its name by now.
    pub tags: Vec<String>,
    /// When it was made, Unix seconds.
    pub made_at_s: i64,
    /// Its size in bytes; layers that it shares with others are counted in.
    pub bytes: u64,
}

impl DockerEngine {
    /// The images that were built here before `made_before_s` (Unix seconds), have no name of `keep`, and of which there is
    /// no container, oldest first. An image that somebody else made is never among them. Of those with the label,
    /// [`LIST_IMAGES`] are looked at.
    ///
    /// # Errors
    /// The general ones.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn unused_images(
        &self,
        keep: &[String],
        made_before_s: i64,
    ) -> Result<Vec<UnusedImage>, EngineError> {
        let options = ListImagesOptions { filters: Some(filter("label", LABEL_BUILT)), ..Default::default() };
        let listed =
            self.read(LISTING, |docker| async move { docker.list_images(Some(options)).await }).await?;
        let mut unused = Vec::new();
        for image in listed.into_iter().take(LIST_IMAGES) {
            let tags: Vec<String> = image.repo_tags.into_iter().filter(|tag| tag != NO_NAME).collect();
            if image.created >= made_before_s || tags.iter().any(|tag| keep.contains(tag)) {
                continue;
            }
            if self.is_ours(&image.id).await? && !self.has_container(&image.id).await? {
                let bytes = u64::try_from(image.size).unwrap_or(0);
                unused.push(UnusedImage { id: image.id, tags, made_at_s: image.created, bytes });
            }
        }
        unused.sort_by_key(|image| image.made_at_s);
        Ok(unused)
    }

    /// Removes an image; `false` if the engine keeps it, because it is in use by now or another image is made from it, or has
    /// it no more. One that another is made from loses its name, and goes with the other.
    ///
    /// # Errors
    /// The general ones.
    /// # Cancel safety
    /// Safe: removed or not, and repeatable.
    pub async fn remove_unused_image(&self, image: &UnusedImage) -> Result<bool, EngineError> {
        // Without force the engine refuses what has a container. Name by name, since it refuses an id with several.
        let names =
            if image.tags.is_empty() { std::slice::from_ref(&image.id) } else { image.tags.as_slice() };
        let mut gone = false;
        for name in names {
            let options = RemoveImageOptions { force: false, noprune: false, ..Default::default() };
            let removed = self
                .change("removing an image", |docker| async move {
                    docker.remove_image(name, Some(options), None).await
                })
                .await;
            match removed {
                Ok(done) => gone = done.iter().any(|item| item.deleted.is_some()),
                Err(fault) if matches!(fault.code(), Some(CONFLICT | NOT_FOUND)) => return Ok(false),
                Err(fault) => return Err(fault.into()),
            }
        }
        Ok(gone)
    }

    async fn is_ours(&self, id: &str) -> Result<bool, EngineError> {
        let history = self.read(LISTING, |docker| async move { docker.image_history(id).await }).await;
        match history {
            Ok(history) => Ok(history.first().is_some_and(|last| ends_with_our_label(&last.created_by))),
            Err(fault) if fault.code() == Some(NOT_FOUND) => Ok(false),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Whether there is a container of it, or of an image made from it.
    async fn has_container(&self, id: &str) -> Result<bool, EngineError> {
        let options = ListContainersOptions {
            all: true,
            limit: Some(1),
            filters: Some(filter("ancestor", id)),
            ..Default::default()
        };
        let listed =
            self.read(LISTING, |docker| async move { docker.list_containers(Some(options)).await }).await?;
        Ok(!listed.is_empty())
    }
}

const LISTING: &str = "looking for unused images";

fn filter(name: &str, value: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([(name.to_owned(), vec![value.to_owned()])])
}

/// The classic builder writes `/bin/sh -c #(nop)  LABEL name=value`, others leave the beginning out.
fn ends_with_our_label(instruction: &str) -> bool {
    let words = instruction.trim_start_matches("/bin/sh -c #(nop)").trim_start();
    words
        .strip_prefix("LABEL")
        .is_some_and(|label| label.trim_start().starts_with(&format!("{LABEL_BUILT}=")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::docker::fake::{FakeEngine, Reply, engine, refusal, reply};

    fn image(id: &str, tag: &str, created: i64) -> serde_json::Value {
        json!({
            "Id": id, "ParentId": "", "RepoTags": [tag], "RepoDigests": [], "Created": created, "Size": 5,
            "SharedSize": -1, "VirtualSize": 5, "Labels": {LABEL_BUILT: "caisson-sandbox:1"}, "Containers": -1,
        })
    }

    fn history(instruction: &str) -> Reply {
        reply(
            200,
            &json!([{"Id": "x", "Created": 1, "CreatedBy": instruction, "Tags": [], "Size": 0, "Comment": ""}]),
        )
    }

    const OURS: &str = "/bin/sh -c #(nop)  LABEL caisson.image=caisson-sandbox:1";

    /// Six images: one is kept by its name, one is young, one is made from ours, one has a container, two may go.
    fn answer(request: &str) -> Reply {
        if request.contains("/images/json") {
            return reply(
                200,
                &json!([
                    image("kept", "caisson-sandbox:2", 1),
                    image("young", NO_NAME, 100),
                    image("theirs", NO_NAME, 1),
                    image("used", "caisson-sandbox:0", 1),
                    image("old", "caisson-sandbox:1", 7),
                    image("older", NO_NAME, 6),
                ]),
            );
        }
        if request.contains("/history") {
            let theirs = "/bin/sh -c apt-get install -y cargo";
            return history(if request.contains("/theirs/") { theirs } else { OURS });
        }
        if request.contains("/containers/json") {
            let containers = if request.contains("used") { json!([{"Id": "c"}]) } else { json!([]) };
            return reply(200, &containers);
        }
        match request {
            r if r.starts_with("DELETE") && r.contains("busy") => refusal(409, "image is being used"),
            r if r.starts_with("DELETE") && r.contains("gone") => refusal(404, "no such image"),
            r if r.starts_with("DELETE") && r.contains("broken") => refusal(500, "the disk is broken"),
            _ => reply(200, &json!([{"Deleted": "x"}])),
        }
    }

    #[tokio::test]
    async fn old_images_of_ours_that_nothing_uses_are_found_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let _fake = FakeEngine::start(directory.path(), |request, _| answer(request));
        let keep = ["caisson-sandbox:2".to_owned()];
        let unused = engine(directory.path()).unused_images(&keep, 100).await.unwrap();
        let found: Vec<_> = unused.iter().map(|image| (image.id.as_str(), image.tags.len())).collect();
        assert_eq!(found, [("older", 0), ("old", 1)], "oldest first");
        assert_eq!((unused[1].made_at_s, unused[1].bytes), (7, 5));
    }

    #[tokio::test]
    async fn no_more_images_than_the_bound_are_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let fake = FakeEngine::start(directory.path(), |request, _| {
            if request.contains("/images/json") {
                let images = (0..=LIST_IMAGES).map(|number| image(&format!("i{number}"), NO_NAME, 1));
                return reply(200, &images.collect());
            }
            answer(request)
        });
        let unused = engine(directory.path()).unused_images(&[], 100).await.unwrap();
        assert_eq!(unused.len(), LIST_IMAGES);
        assert!(!fake.requests().iter().any(|request| request.contains(&format!("/i{LIST_IMAGES}/"))));
    }

    #[tokio::test]
    async fn an_image_that_came_into_use_is_kept_and_a_name_is_removed_without_force() {
        let directory = tempfile::tempdir().unwrap();
        let fake = FakeEngine::start(directory.path(), |request, _| answer(request));
        let engine = engine(directory.path());
        let image = |id: &str, tags: &[&str]| UnusedImage {
            id: id.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            made_at_s: 1,
            bytes: 1,
        };
        assert!(engine.remove_unused_image(&image("id", &["a:1", "a:2"])).await.unwrap());
        assert!(engine.remove_unused_image(&image("id", &[])).await.unwrap());
        assert!(!engine.remove_unused_image(&image("busy", &[])).await.unwrap());
        assert!(!engine.remove_unused_image(&image("gone", &[])).await.unwrap());
        let broken = engine.remove_unused_image(&image("broken", &[])).await.unwrap_err();
        assert!(broken.to_string().contains("the disk is broken"), "{broken}");
        let removals: Vec<_> =
            fake.requests().into_iter().filter(|request| request.starts_with("DELETE")).collect();
        assert_eq!(removals.len(), 6);
        assert!(removals.iter().all(|request| request.contains("force=false")), "{removals:?}");
    }

    #[test]
    fn ours_is_what_ends_with_the_label_however_the_builder_writes_it() {
        for ours in [OURS, "LABEL caisson.image=x", "LABEL  caisson.image=caisson-sandbox:2 # buildkit"] {
            assert!(ends_with_our_label(ours), "{ours}");
        }
        for theirs in [
            "",
            "RUN echo LABEL caisson.image=x",
            "/bin/sh -c #(nop)  LABEL caisson.server=x",
            "LABEL caisson.images=x",
            "/bin/sh -c echo LABEL caisson.image=x",
        ] {
            assert!(!ends_with_our_label(theirs), "{theirs}");
        }
    }
}
