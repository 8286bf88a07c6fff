//! `caisson project`: the tenants, made on the server's machine.

use anyhow::{bail, ensure};
use caisson_api::view::ProjectView;
use caisson_domain::id::ProjectId;
use caisson_domain::limits::{PAGE_ITEMS, PROJECTS};
use caisson_store::{Actor, ChangeShare, CreateProject, Project as Stored, Store};
use comfy_table::{Table, presets};

use super::machine::{Machine, look};
use super::{DONE, print, print_json, settings, tell};
use crate::cli::{Project, SetProject};
use crate::render::utc;
use crate::settings::Environment;

/// Makes or lists.
///
/// # Errors
/// The database cannot be used, the name is bad or taken, or there are too many.
pub(crate) async fn run(command: Project, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Project::Create { server, name, output } => {
            let id: ProjectId = name.parse()?;
            let machine = Machine::open(&server, environment).await?;
            let made = machine.store.create_project(&id, Actor::Operator).await;
            machine.close().await;
            match made? {
                CreateProject::Created(project) => {
                    let words = format!("project {} is made", project.id);
                    tell(output, &serde_json::to_value(ProjectView::from(project))?, &words)?;
                }
                CreateProject::Exists => bail!("there is a project \"{id}\" already; choose another name"),
                CreateProject::Full => {
                    bail!("there are {PROJECTS} projects already, and more there may not be")
                }
            }
        }
        Project::Set(flags) => set(&flags, environment).await?,
        Project::Retention(flags) => return super::gc::retention(flags, environment).await,
        Project::List { server, json } => {
            let store = look(&settings(&server, environment)?).await?;
            let projects = store.list_projects(None, PAGE_ITEMS).await;
            store.close().await.ok();
            let projects = projects?;
            if json {
                for project in projects {
                    print_json(&ProjectView::from(project))?;
                }
            } else {
                print(&table(&projects));
            }
        }
    }
    Ok(DONE)
}

async fn set(flags: &SetProject, environment: &Environment) -> anyhow::Result<()> {
    let id: ProjectId = flags.name.parse()?;
    let change = ChangeShare {
        weight: flags.weight,
        max_running: flags.max_running.map(|cap| cap.0),
        max_queued: flags.max_queued.map(|cap| cap.0),
    };
    let machine = Machine::open(&flags.server, environment).await?;
    let set = machine.store.change_share(&id, &change, Actor::Operator).await;
    machine.close().await;
    match set? {
        Some(project) if flags.output.json => print_json(&ProjectView::from(project))?,
        Some(project) => print(&table(&[project])),
        None => bail!("there is no project \"{id}\"; `caisson project list` shows those there are"),
    }
    Ok(())
}

/// That there is such a project.
///
/// # Errors
/// There is none, or the store cannot be read.
pub(super) async fn require(store: &Store, project: &ProjectId) -> anyhow::Result<()> {
    ensure!(
        store.project(project).await?.is_some(),
        "there is no project \"{project}\"; `caisson project list` shows those there are, and `caisson project create` makes one"
    );
    Ok(())
}

fn table(projects: &[Stored]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["PROJECT", "WEIGHT", "MAX RUNNING", "MAX QUEUED", "MADE"]);
    let cap = |cap: Option<i64>| cap.map_or_else(|| "settings".to_owned(), |cap| cap.to_string());
    for project in projects {
        let made =
            if project.created_at_ms == 0 { "from the start".to_owned() } else { utc(project.created_at_ms) };
        let share = project.share;
        let (weight, running, queued) =
            (share.weight.to_string(), cap(share.max_running), cap(share.max_queued));
        table.add_row([project.id.as_str(), &weight, &running, &queued, &made]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_tells_since_when_there_is_a_project() {
        let project = |name: &str, created_at_ms| Stored {
            id: name.parse().unwrap(),
            created_at_ms,
            share: caisson_domain::queue::ProjectShare::default(),
        };
        let text = table(&[project("default", 0), project("team-a", 1_700_000_000_000)]);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].starts_with("default") && lines[1].ends_with("from the start"), "{text}");
        assert!(lines[2].starts_with("team-a") && lines[2].ends_with("2023-11-14T22:13:20Z"), "{text}");
    }
}
