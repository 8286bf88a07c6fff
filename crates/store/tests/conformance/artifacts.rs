//! Artifacts.

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::limits::RUN_ARTIFACTS;
use caisson_store::{NewArtifact, PutArtifact};
use serde_json::json;

use crate::fixture::{Fixture, START_MS, assert_corrupt, project, server_id};

conformance! {
    an_artifact_reads_back_and_is_told_of,
    a_second_artifact_of_a_name_replaces_the_first,
    a_run_keeps_its_bound_of_artifacts_and_not_one_more,
    artifacts_are_listed_by_name_and_by_run,
    an_artifact_of_an_unknown_run_is_refused,
    a_negative_size_is_refused,
    an_artifact_after_the_end_is_kept_without_an_event,
    what_another_server_keeps_is_elsewhere_where_servers_share_the_database,
}

fn artifact(name: &str, size_bytes: i64) -> NewArtifact {
    NewArtifact {
        name: name.to_owned(),
        size_bytes,
        sha256: "ab".repeat(32),
        path: format!("artifacts/{name}"),
    }
}

async fn an_artifact_reads_back_and_is_told_of(fixture: Fixture) {
    let run = fixture.queued().await;
    let put = fixture.store.put_artifact(&run.id, &artifact("changes.patch", 12)).await.unwrap();
    assert_eq!(put, PutArtifact::Stored);
    let stored = fixture.store.artifact(&run.id, "changes.patch").await.unwrap().unwrap();
    assert_eq!((stored.name.as_str(), stored.size_bytes), ("changes.patch", 12));
    assert_eq!((stored.sha256, stored.path.as_str()), ("ab".repeat(32), "artifacts/changes.patch"));
    assert_eq!(stored.created_at_ms, START_MS);
    assert_eq!(fixture.store.artifact(&run.id, "other").await.unwrap(), None);
    let data = fixture.data(&run.id, EventKind::ArtifactStored).await;
    assert_eq!(data, json!({"name": "changes.patch", "size_bytes": 12, "sha256": "ab".repeat(32)}));
}

async fn a_second_artifact_of_a_name_replaces_the_first(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.store.put_artifact(&run.id, &artifact("a", 1)).await.unwrap();
    let first = fixture.store.artifact(&run.id, "a").await.unwrap().unwrap();
    fixture.clock.advance(5);
    fixture.store.put_artifact(&run.id, &artifact("a", 2)).await.unwrap();
    let second = fixture.store.artifact(&run.id, "a").await.unwrap().unwrap();
    assert_eq!((second.size_bytes, second.created_at_ms), (2, START_MS + 5));
    assert_eq!(second.id, first.id);
    assert_eq!(fixture.store.artifacts(&run.id).await.unwrap(), [second]);
}

async fn a_run_keeps_its_bound_of_artifacts_and_not_one_more(fixture: Fixture) {
    let run = fixture.queued().await;
    for number in 0..RUN_ARTIFACTS {
        let put = fixture.store.put_artifact(&run.id, &artifact(&format!("a{number:03}"), 1)).await.unwrap();
        assert_eq!(put, PutArtifact::Stored);
    }
    let put = fixture.store.put_artifact(&run.id, &artifact("one more", 1)).await.unwrap();
    assert_eq!(put, PutArtifact::TooMany);
    let put = fixture.store.put_artifact(&run.id, &artifact("a000", 2)).await.unwrap();
    assert_eq!(put, PutArtifact::Stored, "replacing one adds none");
    let stored = fixture.store.artifacts(&run.id).await.unwrap();
    assert_eq!(i64::try_from(stored.len()), Ok(RUN_ARTIFACTS));
    assert_eq!(fixture.store.artifact(&run.id, "one more").await.unwrap(), None);
}

async fn artifacts_are_listed_by_name_and_by_run(fixture: Fixture) {
    let run = fixture.queued().await;
    let other = fixture.queued().await;
    for name in ["b", "a", "c"] {
        fixture.store.put_artifact(&run.id, &artifact(name, 1)).await.unwrap();
    }
    let names = fixture.store.artifacts(&run.id).await.unwrap();
    assert_eq!(names.iter().map(|stored| stored.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(fixture.store.artifacts(&other.id).await.unwrap(), []);
    assert_eq!(fixture.store.artifact(&other.id, "a").await.unwrap(), None);
}

async fn an_artifact_of_an_unknown_run_is_refused(fixture: Fixture) {
    let unknown = RunId::new(1, [9; 10]);
    assert_corrupt(fixture.store.put_artifact(&unknown, &artifact("a", 1)).await, unknown.as_str());
}

async fn a_negative_size_is_refused(fixture: Fixture) {
    let run = fixture.queued().await;
    assert_corrupt(fixture.store.put_artifact(&run.id, &artifact("a", -1)).await, "a constraint");
    assert_eq!(fixture.kinds(&run.id).await, [EventKind::RunQueued], "the event went with it");
}

async fn an_artifact_after_the_end_is_kept_without_an_event(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
    let put = fixture.store.put_artifact(&run.id, &artifact("late", 1)).await.unwrap();
    assert_eq!(put, PutArtifact::Stored);
    assert!(fixture.store.artifact(&run.id, "late").await.unwrap().is_some());
    assert_eq!(fixture.kinds(&run.id).await.last(), Some(&EventKind::RunFinished));
}

async fn what_another_server_keeps_is_elsewhere_where_servers_share_the_database(fixture: Fixture) {
    let (one, other, shared) = (server_id(1), server_id(2), fixture.store.is_shared());
    let is_elsewhere = |keeper, own| fixture.store.is_elsewhere(keeper, own);
    assert!(!is_elsewhere(Some(&one), Some(&one)), "its own");
    for (keeper, own) in [(Some(&other), Some(&one)), (None, Some(&one)), (Some(&one), None), (None, None)] {
        assert_eq!(is_elsewhere(keeper, own), shared, "{keeper:?}, {own:?}");
    }
}
