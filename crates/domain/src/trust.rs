//! Whose files steer the agent: which branches a workflow trusts, and what of a repository's configuration it lets act.
//!
//! What a run works on does not steer its agent by being there. Instructions and settings come from the *anchor*: a
//! branch that the workflow trusts, and where neither run nor workflow names one, the repository's default branch.

use serde::{Deserialize, Serialize};

use crate::git::BranchName;
use crate::run::cut;

/// Most branches that a workflow trusts.
pub const TRUSTED_BRANCHES: usize = 50;
/// Most paths that tell whose files steer the agent, of each kind.
pub const STEERING_PATHS: usize = 100;
/// Longest of those paths as told, in bytes.
pub const STEERING_PATH_BYTES: usize = 300;

/// What the names of branches begin with that are made for runs and name none.
pub const MADE_BRANCHES: &str = "caisson/";

/// What a workflow trusts. Without it: the repository's default branch, for instructions alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrustBlock {
    /// Branches that may steer the agent, beside the repository's default branch: names, and prefixes that end in `/*`.
    pub branches: Vec<String>,
    /// Whether the agent is given the instructions of the anchor (`CLAUDE.md`, `AGENTS.md`, `.claude/rules`).
    pub instructions: bool,
    /// Whether the settings of the anchor act: hooks, MCP servers, subagents, commands, skills.
    pub settings: bool,
    /// Whether a run may push to a branch whose files steer agents: the repository's default branch, and those that a
    /// workflow of the project names. Otherwise an agent could write what the next one obeys.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub publish: bool,
}

impl Default for TrustBlock {
    fn default() -> Self {
        Self { branches: Vec::new(), instructions: true, settings: false, publish: false }
    }
}

/// The block as written: a key that is not known is a mistake of whoever wrote the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TrustFront {
    branches: Vec<String>,
    instructions: Option<bool>,
    settings: Option<bool>,
    publish: bool,
}

impl From<TrustFront> for TrustBlock {
    fn from(front: TrustFront) -> Self {
        let TrustFront { branches, instructions, settings, publish } = front;
        let default = Self::default();
        Self {
            branches,
            instructions: instructions.unwrap_or(default.instructions),
            settings: settings.unwrap_or(default.settings),
            publish,
        }
    }
}

/// The run names an anchor that its workflow does not trust.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the workflow does not trust branch \"{0}\" to steer the agent: leave the anchor out for the repository's default branch, or name the branch in the workflow's caisson.trust.branches"
)]
pub struct NotTrusted(pub BranchName);

impl TrustBlock {
    /// Checks its values.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.branches.len() > TRUSTED_BRANCHES {
            return Err(format!("it has more than {TRUSTED_BRANCHES} entries"));
        }
        let fits = |entry: &&String| {
            let name = entry.strip_suffix("/*").unwrap_or(entry);
            name.parse::<BranchName>().is_ok()
        };
        match self.branches.iter().find(|entry| !fits(entry)) {
            None => Ok(()),
            Some(entry) => Err(format!(
                "\"{}\" is neither a branch nor a prefix that ends in /*, such as release/*",
                cut(entry, 64).escape_debug()
            )),
        }
    }

    /// As [`TrustBlock::check`], and that a workflow of this name, whose runs push or not, does not trust the branches that
    /// are made for its own runs: no push would pass.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check_of(&self, workflow: &str, pushes: bool) -> Result<(), String> {
        self.check()?;
        let made = format!("{MADE_BRANCHES}{workflow}/");
        let covers = |entry: &&String| entry.strip_suffix('*').is_some_and(|prefix| made.starts_with(prefix));
        match self.branches.iter().find(covers).filter(|_| pushes && !self.publish) {
            None => Ok(()),
            Some(entry) => Err(format!(
                "\"{entry}\" names the branches that its own runs push, and what an agent wrote there would steer the next \
                 one; name others, or add \"publish: true\" beside it"
            )),
        }
    }

    /// Whether the workflow names the branch. The repository's default branch is trusted too, whatever its name.
    #[must_use]
    pub fn names(&self, branch: &BranchName) -> bool {
        self.branches.iter().any(|entry| match entry.strip_suffix('*') {
            Some(prefix) => branch.as_str().len() > prefix.len() && branch.as_str().starts_with(prefix),
            None => branch.as_str() == entry,
        })
    }

    /// The branch that steers a run which starts from `base` and asks for `asked`; none is the repository's default
    /// branch.
    ///
    /// # Errors
    /// [`NotTrusted`] if it asks for a branch that the workflow does not name.
    pub fn anchor(
        &self,
        base: Option<&BranchName>,
        asked: Option<&BranchName>,
    ) -> Result<Option<BranchName>, NotTrusted> {
        match asked {
            Some(asked) if self.names(asked) => Ok(Some(asked.clone())),
            Some(asked) => Err(NotTrusted(asked.clone())),
            None => Ok(base.filter(|base| self.names(base)).cloned()),
        }
    }
}

/// What of the anchor acts, as the shim is told. Nothing unless it is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trust {
    /// Its instructions.
    pub instructions: bool,
    /// Its settings, hooks, MCP servers, subagents, commands and skills.
    pub settings: bool,
}

/// Whose files steer the agent of a run, as the shim tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    /// The anchor; none is the repository's default branch.
    pub anchor: Option<BranchName>,
    /// Its commit.
    pub commit: String,
    /// Whether its settings act.
    pub settings: bool,
    /// Files of the anchor that the agent is given, at most [`STEERING_PATHS`].
    pub files: Vec<String>,
    /// How many there are.
    pub files_count: u64,
    /// Configuration that is another one on the run's branch: what is there steers nothing. At most [`STEERING_PATHS`].
    pub replaced: Vec<String>,
    /// How many there are.
    pub replaced_count: u64,
}

impl Steering {
    /// The same within the bounds of its lists and texts.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for paths in [&mut self.files, &mut self.replaced] {
            paths.truncate(STEERING_PATHS);
            for path in paths.iter_mut() {
                path.truncate(cut(path, STEERING_PATH_BYTES).len());
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(name: &str) -> BranchName {
        name.parse().unwrap()
    }

    fn trusting(branches: &[&str]) -> TrustBlock {
        TrustBlock {
            branches: branches.iter().map(|&name| name.to_owned()).collect(),
            ..TrustBlock::default()
        }
    }

    #[test]
    fn without_a_word_only_the_default_branch_steers_and_no_settings_act() {
        let trust = TrustBlock::default();
        assert!(trust.instructions && !trust.settings);
        assert_eq!(trust.anchor(None, None), Ok(None));
        assert_eq!(trust.anchor(Some(&branch("pr/1")), None), Ok(None));
        let asked = branch("pr/1");
        assert_eq!(trust.anchor(Some(&asked), Some(&asked)), Err(NotTrusted(asked.clone())));
        // Nor "main" by its name: only the repository says what its default branch is.
        assert_eq!(trust.anchor(None, Some(&branch("main"))), Err(NotTrusted(branch("main"))));
        assert_eq!(Trust::default(), Trust { instructions: false, settings: false });
        assert_eq!(serde_json::from_str::<Trust>("{}").unwrap(), Trust::default());
    }

    #[test]
    fn a_branch_that_is_named_steers_a_run_that_starts_from_it_or_asks_for_it() {
        let trust = trusting(&["stable", "release/*"]);
        for name in ["stable", "release/1", "release/1/a"] {
            assert_eq!(trust.anchor(Some(&branch(name)), None), Ok(Some(branch(name))), "{name}");
            let asked = trust.anchor(Some(&branch("pr/1")), Some(&branch(name)));
            assert_eq!(asked, Ok(Some(branch(name))), "{name}");
        }
        for name in ["stables", "Stable", "release", "release2/x", "x/stable", "x/release/1"] {
            assert_eq!(trust.anchor(Some(&branch(name)), None), Ok(None), "{name}");
            assert!(trust.anchor(None, Some(&branch(name))).is_err(), "{name}");
        }
    }

    #[test]
    fn what_names_no_branch_is_refused() {
        for good in ["main", "release/*", "a/b/*"] {
            assert_eq!(trusting(&[good]).check(), Ok(()), "{good}");
        }
        for bad in ["", "*", "**", "/*", "rel*", "a/*/b", "a b", "-x", "a/**", "refs/heads/\u{7}"] {
            assert!(trusting(&[bad]).check().is_err(), "{bad}");
        }
        assert!(trusting(&["x"; TRUSTED_BRANCHES]).check().is_ok());
        assert!(trusting(&["x"; TRUSTED_BRANCHES + 1]).check().is_err());
    }

    #[test]
    fn a_workflow_does_not_trust_what_its_own_runs_push_unless_it_says_so() {
        let of = |entry: &str, pushes: bool| trusting(&[entry]).check_of("fix", pushes);
        for covering in ["caisson/*", "caisson/fix/*"] {
            assert!(of(covering, true).unwrap_err().contains("publish: true"), "{covering}");
            assert_eq!(of(covering, false), Ok(()), "{covering}");
            let told = TrustBlock { publish: true, ..trusting(&[covering]) };
            assert_eq!(told.check_of("fix", true), Ok(()), "{covering}");
        }
        for other in ["caisson/fixer/*", "caisson/fix", "caisson/fix/x/*", "release/*", "caisson"] {
            assert_eq!(of(other, true), Ok(()), "{other}");
        }
        assert!(of("*", false).is_err());
    }

    #[test]
    fn what_is_not_said_is_not_written_down() {
        // A definition that says nothing new is the same text as before, and no new version.
        let text = serde_json::to_string(&TrustBlock::default()).unwrap();
        assert!(!text.contains("publish"), "{text}");
        let said = TrustBlock { publish: true, ..TrustBlock::default() };
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(serde_json::from_str::<TrustBlock>(&text).unwrap(), said);
        assert_eq!(serde_json::from_str::<TrustBlock>("{}").unwrap(), TrustBlock::default());
    }

    #[test]
    fn what_is_told_has_its_bounds() {
        let long = "ä".repeat(STEERING_PATH_BYTES);
        let told = Steering {
            anchor: None,
            commit: String::new(),
            settings: false,
            files: vec![long.clone(); STEERING_PATHS + 1],
            files_count: 101,
            replaced: vec![long; STEERING_PATHS + 1],
            replaced_count: 101,
        }
        .bounded();
        assert_eq!((told.files.len(), told.replaced.len()), (STEERING_PATHS, STEERING_PATHS));
        assert!(told.files.iter().chain(&told.replaced).all(|path| path.len() == STEERING_PATH_BYTES));
        assert_eq!((told.files_count, told.replaced_count), (101, 101));
    }
}
