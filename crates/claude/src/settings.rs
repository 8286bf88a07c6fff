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

/// The same settings, with rules for calls that the CLI asks about in every permission mode; without rules they stay as they are.
#[must_use]
pub fn asking(settings: Option<Value>, rules: &[String]) -> Option<Value> {
    if rules.is_empty() {
        return settings;
    }
    let mut settings = settings.unwrap_or_else(|| json!({}));
    let mut all = settings["permissions"]["ask"].as_array().cloned().unwrap_or_default();
    all.extend(rules.iter().map(|rule| Value::from(rule.as_str())));
    settings["permissions"]["ask"] = all.into();
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_asking_are_added_and_take_nothing_away() {
        let rules = ["Bash(git push *)".to_owned()];
        assert_eq!(asking(None, &[]), None);
        assert_eq!(asking(None, &rules), Some(json!({"permissions": {"ask": ["Bash(git push *)"]}})));
        let settings = json!({"permissions": {"ask": ["Write"], "deny": ["Edit"]}, "a": 1});
        let all = asking(Some(settings), &rules).unwrap();
        let permissions = json!({"ask": ["Write", "Bash(git push *)"], "deny": ["Edit"]});
        assert_eq!(all, json!({"permissions": permissions, "a": 1}));
    }

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
