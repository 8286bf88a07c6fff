//! The names that clients know: workflows by other names, and the agent.

use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::principal::Principal;
use caisson_store::{Store, StoreError};

use super::refusal::Refusal;

/// Names of the original's workflows, each with the workflow that does such work here. Where a project has a workflow of
/// the name itself, that one is meant.
pub(super) const ALIASES: [(&str, &str); 16] = [
    ("surgeon", "bug-fixer"),
    ("fix", "bug-fixer"),
    ("guardian", "pr-reviewer"),
    ("shipper", "pr-reviewer"),
    ("review", "pr-reviewer"),
    ("pr", "pr-reviewer"),
    ("builder", "code-task"),
    ("implement", "code-task"),
    ("brain", "code-task"),
    ("genie", "code-task"),
    ("lina", "code-task"),
    ("claude", "code-task"),
    ("flashinho_thinker", "code-task"),
    ("refactor", "code-task"),
    ("document", "code-task"),
    ("test", "code-task"),
];
/// What a run of the agent follows that names no workflow: the first of these that there is.
const DEFAULTS: [&str; 2] = ["code-task", "bug-fixer"];
/// The agent, as it is called here.
pub(super) const AGENT: &str = "claude-code";
/// Its number.
pub(super) const AGENT_NUMBER: i64 = 1;

/// Whether a text names the agent: by either spelling, or by its number.
pub(super) fn is_agent(name: &str) -> bool {
    matches!(name, AGENT | "claude_code" | "1")
}

/// Every name that a run can be asked for by, each with its workflow: the workflows themselves, then the aliases.
pub(super) fn all<'w>(workflows: &[&'w str]) -> Vec<(&'w str, &'w str)> {
    let own = workflows.iter().map(|name| (*name, *name));
    let aliases = ALIASES.iter().filter(|(alias, _)| !workflows.contains(alias));
    let aliases = aliases.filter_map(|(alias, target)| {
        workflows.iter().find(|name| *name == target).map(|name| (*alias, *name))
    });
    own.chain(aliases).collect()
}

/// The workflow that a name means, `_` and `-` being the same.
///
/// # Errors
/// [`Refusal::Told`] if there is none, with those that there are.
pub(super) async fn workflow(store: &Store, caller: &Principal, name: &str) -> Result<String, Refusal> {
    let known = names(store, caller).await?;
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let all = all(&known);
    let same = |known: &str| known == name || known.replace('_', "-") == name.replace('_', "-");
    if let Some((_, workflow)) = all.iter().find(|(known, _)| same(known)) {
        return Ok((*workflow).to_owned());
    }
    let name: String = name.chars().take(64).collect();
    let available: Vec<String> = all.iter().map(|(name, _)| format!("'{name}'")).collect();
    let detail =
        format!("Workflow '{}' not found. Available: [{}]", name.escape_debug(), available.join(", "));
    Err(Refusal::not_found("unknown_workflow", detail))
}

/// What a run of the agent follows that names no workflow.
///
/// # Errors
/// As [`workflow`].
pub(super) async fn default_workflow(store: &Store, caller: &Principal) -> Result<String, Refusal> {
    let known = names(store, caller).await?;
    match DEFAULTS.iter().find(|name| known.iter().any(|known| known == *name)) {
        Some(name) => Ok((*name).to_owned()),
        None => workflow(store, caller, DEFAULTS[0]).await,
    }
}

async fn names(store: &Store, caller: &Principal) -> Result<Vec<String>, StoreError> {
    store.workflow_names(&caller.project, PAGE_ITEMS).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_there_if_its_workflow_is_and_a_workflow_goes_before_it() {
        assert_eq!(
            all(&["bug-fixer", "fix"]),
            [("bug-fixer", "bug-fixer"), ("fix", "fix"), ("surgeon", "bug-fixer")]
        );
        assert_eq!(all(&[]), []);
    }

    #[test]
    fn the_second_clients_workflows_are_aliases() {
        let names = [
            "brain",
            "builder",
            "genie",
            "shipper",
            "surgeon",
            "guardian",
            "lina",
            "flashinho_thinker",
            "claude",
        ];
        let known = all(&["bug-fixer", "code-task", "pr-reviewer"]);
        for name in names {
            assert!(known.iter().any(|(known, _)| *known == name), "{name}");
        }
    }
}
