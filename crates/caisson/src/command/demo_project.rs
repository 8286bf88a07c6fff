//! The demo's repository: the example project that ships inside the binary, with the bug that the demo fixes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};

/// The example's files.
const FILES: [(&str, &str); 7] = [
    (".gitignore", include_str!("../../../../examples/cart/.gitignore")),
    ("README.md", include_str!("../../../../examples/cart/README.md")),
    ("shop/__init__.py", include_str!("../../../../examples/cart/shop/__init__.py")),
    ("shop/cart.py", include_str!("../../../../examples/cart/shop/cart.py")),
    ("shop/pricing.py", include_str!("../../../../examples/cart/shop/pricing.py")),
    ("tests/test_cart.py", include_str!("../../../../examples/cart/tests/test_cart.py")),
    ("tests/test_pricing.py", include_str!("../../../../examples/cart/tests/test_pricing.py")),
];

/// The scenario in which the scripted model has the bug fixed.
pub(super) const SCENARIO: &str = include_str!("../../../../examples/cart.scenario.json");

/// A bare repository on this machine.
#[derive(Debug)]
pub(super) struct DemoRepository {
    bare: PathBuf,
}

impl DemoRepository {
    /// Makes it in `directory`, in place of an earlier one.
    ///
    /// # Errors
    /// The disk or git refuses.
    pub(super) fn create(directory: &Path) -> anyhow::Result<Self> {
        let bare = directory.join("cart.git");
        if bare.exists() {
            fs::remove_dir_all(&bare)?;
        }
        let tree = tempfile::tempdir_in(directory)?;
        for (name, text) in FILES {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().context("every file has a directory")?)?;
            fs::write(path, text)?;
        }
        git(tree.path(), &["init", "-q", "-b", "main"])?;
        git(tree.path(), &["add", "-A"])?;
        git(tree.path(), &["commit", "-q", "-m", "feat: add the cart"])?;
        let target = bare.to_str().context("the state directory's path is not UTF-8")?;
        git(tree.path(), &["clone", "-q", "--bare", ".", target])?;
        Ok(Self { bare })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.bare
    }

    /// Clones a branch afresh and runs its tests; returns whether they pass, and what they said.
    ///
    /// # Errors
    /// The branch is missing, or git or python3 cannot be started.
    pub(super) fn test(&self, branch: &str) -> anyhow::Result<(bool, String)> {
        let directory = tempfile::tempdir()?;
        let source = self.bare.to_str().context("the state directory's path is not UTF-8")?;
        git(directory.path(), &["clone", "-q", "--branch", branch, "--", source, "checkout"])?;
        let output = clean_command("python3", &directory.path().join("checkout"))
            .args(["-m", "unittest", "discover", "-s", "tests"])
            .output()
            .context("python3 is not installed; the demo runs the example's tests with it")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let verdict = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output");
        Ok((output.status.success(), verdict.to_owned()))
    }

    /// Commits of a branch that `main` does not have: id and whole message, newest first.
    ///
    /// # Errors
    /// The branch is missing.
    pub(super) fn new_commits(&self, branch: &str) -> anyhow::Result<Vec<(String, String)>> {
        let range = format!("main..{branch}");
        let ids = git(&self.bare, &["rev-list", &range, "--"])?;
        ids.lines()
            .map(|id| Ok((id.to_owned(), git(&self.bare, &["show", "-s", "--format=%B", id, "--"])?)))
            .collect()
    }
}

/// Runs git with nothing of the user's configuration.
fn git(directory: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output: Output = clean_command("git", directory)
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "Demo")
        .env("GIT_AUTHOR_EMAIL", "demo@localhost")
        .env("GIT_COMMITTER_NAME", "Demo")
        .env("GIT_COMMITTER_EMAIL", "demo@localhost")
        .output()
        .context("git is not installed")?;
    ensure!(output.status.success(), "git {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn clean_command(program: &str, directory: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "git and python3 are started here, with argument vectors")]
    let mut command = Command::new(program);
    command
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_holds_every_file_of_the_example() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/cart");
        let output = git(&root, &["ls-files"]).unwrap();
        let mut listed: Vec<_> = output.lines().filter(|line| !line.is_empty()).collect();
        let mut held: Vec<_> = FILES.iter().map(|(name, _)| *name).collect();
        listed.sort_unstable();
        held.sort_unstable();
        assert_eq!(held, listed);
    }

    #[test]
    fn the_example_fails_before_it_is_fixed() {
        let directory = tempfile::tempdir().unwrap();
        let repository = DemoRepository::create(directory.path()).unwrap();
        let (passes, verdict) = repository.test("main").unwrap();
        assert!(!passes, "{verdict}");
        assert!(verdict.contains("FAILED"), "{verdict}");
        assert!(repository.new_commits("main").unwrap().is_empty());
    }
}
