//! Settings by which whoever starts the CLI keeps it from being steered by others.

use serde_json::{Value, json};

/// The CLI's own directory in its home.
const DIRECTORY: &str = "~/.claude";

/// Rules that keep the CLI's tools from writing what would steer it from then on, in every permission mode: its own files in
/// its home, and the directory `own` there, in which the caller puts such files.
#[must_use]
pub fn closed_to_tools(own: &str) -> Vec<String> {
    let directories = ["agents", "commands", "output-styles", "plugins", "rules", "skills"];
    let files = ["settings*.json", "CLAUDE.md", "AGENTS.md"];
    let own = [format!("Edit(~/{own}/**)"), "Edit(~/.claude.json)".to_owned()];
    let files = files.map(|name| format!("Edit({DIRECTORY}/{name})"));
    let directories = directories.map(|name| format!("Edit({DIRECTORY}/{name}/**)"));
    own.into_iter().chain(files).chain(directories).collect()
}

/// Settings for a CLI that follows no repository's: no hook runs, and [`closed_to_tools`].
#[must_use]
pub fn settings_of_no_repository(own: &str) -> Value {
    json!({ "disableAllHooks": true, "permissions": { "deny": closed_to_tools(own) } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_hook_runs_and_what_steers_is_closed() {
        let settings = settings_of_no_repository(".own");
        assert_eq!(settings["disableAllHooks"], true);
        let denied = settings["permissions"]["deny"].as_array().unwrap();
        for rule in [
            "Edit(~/.own/**)",
            "Edit(~/.claude.json)",
            "Edit(~/.claude/settings*.json)",
            "Edit(~/.claude/rules/**)",
        ] {
            assert!(denied.contains(&rule.into()), "{rule}");
        }
    }
}
