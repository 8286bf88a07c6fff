//! Workflows.

use caisson_domain::limits::PAGE_ITEMS;

use crate::fixture::{Fixture, START_MS, project, workflow};

conformance! {
    a_workflow_reads_back_as_it_was_put,
    only_a_changed_definition_raises_the_version,
    workflows_are_listed_by_name_up_to_a_page,
}

async fn a_workflow_reads_back_as_it_was_put(fixture: Fixture) {
    let mut put = workflow("bug-fixer");
    put.mcp_servers.insert("z".to_owned(), serde_json::json!({"command": "a\u{0}b"}));
    fixture.store.put_workflow(&project(), &put).await.unwrap();
    let stored = fixture.store.workflow(&project(), "bug-fixer").await.unwrap().unwrap();
    assert_eq!(stored.workflow, put);
    assert_eq!((stored.version, stored.updated_at_ms), (1, START_MS));
    assert_eq!(fixture.store.workflow(&project(), "other").await.unwrap(), None);
    let other = "other".parse().unwrap();
    assert_eq!(fixture.store.workflow(&other, "bug-fixer").await.unwrap(), None);
}

async fn only_a_changed_definition_raises_the_version(fixture: Fixture) {
    let mut put = workflow("bug-fixer");
    fixture.store.put_workflow(&project(), &put).await.unwrap();
    fixture.clock.advance(10);
    fixture.store.put_workflow(&project(), &put).await.unwrap();
    let stored = fixture.store.workflow(&project(), "bug-fixer").await.unwrap().unwrap();
    assert_eq!((stored.version, stored.updated_at_ms), (1, START_MS));
    put.prompt.push('!');
    fixture.store.put_workflow(&project(), &put).await.unwrap();
    let stored = fixture.store.workflow(&project(), "bug-fixer").await.unwrap().unwrap();
    assert_eq!((stored.version, stored.updated_at_ms, stored.workflow), (2, START_MS + 10, put));
}

async fn workflows_are_listed_by_name_up_to_a_page(fixture: Fixture) {
    for number in (0..=PAGE_ITEMS).rev() {
        fixture.store.put_workflow(&project(), &workflow(&format!("w{number:03}"))).await.unwrap();
    }
    let listed = fixture.store.list_workflows(&project()).await.unwrap();
    assert_eq!(listed.len(), PAGE_ITEMS as usize);
    assert!(listed.is_sorted_by(|left, right| left.workflow.name < right.workflow.name));
    assert_eq!(listed[0].workflow.name, "w000");
}
