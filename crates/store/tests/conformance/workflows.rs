//! Workflows.

use std::ops::ControlFlow;

use caisson_domain::limits::PAGE_ITEMS;

use caisson_domain::limits::WORKFLOWS;
use caisson_store::{Actor, PutWorkflow, RemoveWorkflow, StoredWorkflow};

use crate::fixture::{Fixture, START_MS, project, workflow};

conformance! {
    a_workflow_reads_back_as_it_was_put,
    only_a_changed_definition_raises_the_version,
    workflows_are_listed_by_name_up_to_a_page,
    a_workflow_of_the_projects_own_goes_over_the_servers_and_gives_way_again,
    a_project_has_only_so_many_workflows,
    the_workflow_that_trusts_a_branch_is_found_however_many_there_are,
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
    assert!(listed.is_sorted_by(|left, right| left.name < right.name));
    assert_eq!(listed[0].name, "w000");
    let names = fixture.store.workflow_names(&project(), u32::MAX).await.unwrap();
    assert_eq!(names, listed.iter().map(|one| one.name.clone()).collect::<Vec<_>>());
    assert_eq!(fixture.store.workflow_names(&project(), 2).await.unwrap(), ["w000", "w001"]);
    let mut first = Vec::new();
    let each = |stored: StoredWorkflow| {
        first.push(stored.workflow.name);
        if first.len() < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    fixture.store.each_workflow(&project(), each).await.unwrap();
    assert_eq!(first, ["w000", "w001"]);
}

async fn a_workflow_of_the_projects_own_goes_over_the_servers_and_gives_way_again(fixture: Fixture) {
    let (store, project) = (&fixture.store, project());
    let server = workflow("bug-fixer");
    store.put_workflow(&project, &server).await.unwrap();
    let mut own = server.clone();
    own.prompt.push_str(" Ours.");
    let put = store.put_own_workflow(&project, &own, Actor::Operator).await.unwrap();
    let PutWorkflow::Put(stored, false) = put else { panic!("{put:?}") };
    assert_eq!((stored.version, stored.is_own, &stored.workflow), (2, true, &own));
    // A server that starts says again what its settings say.
    let mut newer = server.clone();
    newer.prompt.push_str(" Newer.");
    store.put_workflow(&project, &newer).await.unwrap();
    let stored = store.workflow(&project, "bug-fixer").await.unwrap().unwrap();
    assert_eq!((stored.version, &stored.workflow), (2, &own));
    let remove = |name: &'static str| store.remove_own_workflow(&project, name, Actor::Operator);
    assert_eq!(remove("bug-fixer").await.unwrap(), RemoveWorkflow::Restored);
    let stored = store.workflow(&project, "bug-fixer").await.unwrap().unwrap();
    assert_eq!((stored.version, stored.is_own, &stored.workflow), (3, false, &newer));
    assert_eq!(remove("bug-fixer").await.unwrap(), RemoveWorkflow::OfServer);
    assert_eq!(remove("other").await.unwrap(), RemoveWorkflow::Unknown);
    let put = store.put_own_workflow(&project, &workflow("other"), Actor::Operator).await.unwrap();
    assert!(matches!(put, PutWorkflow::Put(_, true)));
    assert_eq!(remove("other").await.unwrap(), RemoveWorkflow::Removed);
    assert_eq!(store.workflow(&project, "other").await.unwrap(), None);
}

async fn a_project_has_only_so_many_workflows(fixture: Fixture) {
    let (store, project) = (&fixture.store, project());
    for number in 0..WORKFLOWS {
        let one = workflow(&format!("w{number}"));
        let put = store.put_own_workflow(&project, &one, Actor::Operator).await.unwrap();
        assert!(matches!(put, PutWorkflow::Put(..)), "{number}");
    }
    let more = store.put_own_workflow(&project, &workflow("more"), Actor::Operator).await.unwrap();
    assert_eq!(more, PutWorkflow::Full);
    let again = store.put_own_workflow(&project, &workflow("w0"), Actor::Operator).await.unwrap();
    assert!(matches!(again, PutWorkflow::Put(_, false)));
}

async fn the_workflow_that_trusts_a_branch_is_found_however_many_there_are(fixture: Fixture) {
    let store = &fixture.store;
    for number in 0..=PAGE_ITEMS {
        store.put_workflow(&project(), &workflow(&format!("w{number:03}"))).await.unwrap();
    }
    let trusting = |name: &str, entry: &str| {
        let mut workflow = workflow(name);
        workflow.caisson.trust.branches = vec![entry.to_owned()];
        workflow
    };
    let asked = async |branch: &str| store.workflow_trusting(&project(), &branch.parse().unwrap()).await;
    assert_eq!(asked("release/1").await.unwrap(), None);
    // Behind a whole page.
    store.put_workflow(&project(), &trusting("z", "release/*")).await.unwrap();
    assert_eq!(asked("release/1").await.unwrap().as_deref(), Some("z"));
    assert_eq!(asked("release").await.unwrap(), None);
    store.put_workflow(&project(), &trusting("a", "release/1")).await.unwrap();
    assert_eq!(asked("release/1").await.unwrap().as_deref(), Some("a"));
    assert_eq!(asked("release/2").await.unwrap().as_deref(), Some("z"));
    // What is in effect counts: the project's own, over the server's.
    store.put_own_workflow(&project(), &workflow("z"), Actor::Operator).await.unwrap();
    assert_eq!(asked("release/2").await.unwrap(), None);
    let other = "other".parse().unwrap();
    assert_eq!(store.workflow_trusting(&other, &"release/1".parse().unwrap()).await.unwrap(), None);
}
