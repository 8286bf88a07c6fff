//! Projects.

use caisson_domain::id::ProjectId;
use caisson_domain::limits::PROJECTS;
use caisson_domain::principal::Scope;
use caisson_store::{Actor, AuditFilter, CreateProject};

use crate::fixture::{Fixture, START_MS, project, workflow};

conformance! {
    a_project_is_made_once_and_listed_by_name,
    a_new_project_has_the_workflows_of_the_default_one_and_nothing_else,
    making_a_project_is_audited_in_the_default_one_alone,
    projects_are_bounded,
}

fn named(name: &str) -> ProjectId {
    name.parse().unwrap()
}

async fn a_project_is_made_once_and_listed_by_name(fixture: Fixture) {
    let store = &fixture.store;
    let before = store.list_projects(None, 10).await.unwrap();
    assert_eq!(before.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["default"]);
    for name in ["zebra", "ant"] {
        let made = store.create_project(&named(name), Actor::Operator).await.unwrap();
        let CreateProject::Created(made) = made else { panic!("{made:?}") };
        assert_eq!((made.id.as_str(), made.created_at_ms), (name, START_MS));
        assert_eq!(store.project(&made.id).await.unwrap(), Some(made));
    }
    fixture.clock.advance(5);
    for name in ["ant", "default"] {
        let again = store.create_project(&named(name), Actor::Operator).await.unwrap();
        assert_eq!(again, CreateProject::Exists, "{name}");
    }
    let names = |projects: Vec<caisson_store::Project>| {
        projects.into_iter().map(|one| one.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(store.list_projects(None, 10).await.unwrap()), ["ant", "default", "zebra"]);
    assert_eq!(names(store.list_projects(Some(&named("ant")), 1).await.unwrap()), ["default"]);
    assert_eq!(store.project(&named("ant")).await.unwrap().unwrap().created_at_ms, START_MS, "unchanged");
    assert_eq!(store.project(&named("bee")).await.unwrap(), None);
}

async fn a_new_project_has_the_workflows_of_the_default_one_and_nothing_else(fixture: Fixture) {
    let store = &fixture.store;
    store.create_api_key(&project(), "ci", &[Scope::Admin]).await.unwrap();
    for name in ["bug-fixer", "reviewer"] {
        store.put_workflow(&project(), &workflow(name)).await.unwrap();
    }
    let workflows = store.list_workflows(&project()).await.unwrap();
    assert_eq!(workflows.len(), 2);
    store.create_project(&named("other"), Actor::Operator).await.unwrap();
    let theirs = store.list_workflows(&named("other")).await.unwrap();
    assert_eq!(theirs.len(), 2);
    for of_default in &workflows {
        let one = store.workflow(&project(), &of_default.name).await.unwrap().unwrap();
        let other = store.workflow(&named("other"), &of_default.name).await.unwrap().unwrap();
        assert_eq!(one.workflow, other.workflow);
    }
    assert!(theirs.iter().all(|one| one.version == 1));
    assert!(store.list_api_keys(&named("other")).await.unwrap().is_empty());
    let spending = store.project_spending(&named("other")).await.unwrap().unwrap();
    assert_eq!((spending.spent_micro_usd, spending.budgets.total_micro_usd), (0, None));
}

async fn making_a_project_is_audited_in_the_default_one_alone(fixture: Fixture) {
    let store = &fixture.store;
    store.create_project(&named("other"), Actor::Operator).await.unwrap();
    store.create_project(&named("other"), Actor::Operator).await.unwrap();
    let records = |project: ProjectId| async move {
        store.list_audit(&project, &AuditFilter::default(), None, 100).await.unwrap()
    };
    let ours = records(project()).await;
    let made: Vec<_> = ours.iter().filter(|record| record.action == "project.create").collect();
    assert_eq!(made.iter().map(|one| one.subject.as_str()).collect::<Vec<_>>(), ["other"]);
    assert_eq!(made[0].actor, "operator");
    assert!(records(named("other")).await.is_empty());
}

async fn projects_are_bounded(fixture: Fixture) {
    let store = &fixture.store;
    for number in 1..PROJECTS {
        let made = store.create_project(&named(&format!("p{number}")), Actor::Operator).await.unwrap();
        assert!(matches!(made, CreateProject::Created(_)), "{number}");
    }
    let over = store.create_project(&named("over"), Actor::Operator).await.unwrap();
    assert_eq!(over, CreateProject::Full);
    assert_eq!(store.project(&named("over")).await.unwrap(), None);
    assert_eq!(store.create_project(&named("p1"), Actor::Operator).await.unwrap(), CreateProject::Exists);
}
