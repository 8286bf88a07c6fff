//! Git repositories for tests: made by the real git with a clean configuration.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};

/// A git command with nothing of this machine's configuration.
#[must_use]
pub fn git(directory: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "git is started here, with an argument vector")]
    let mut command = Command::new("git");
    command
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "Test")
        .env("GIT_AUTHOR_EMAIL", "test@example.com")
        .env("GIT_COMMITTER_NAME", "Test")
        .env("GIT_COMMITTER_EMAIL", "test@example.com")
        .stdin(Stdio::null());
    command
}

/// Runs git and returns its standard output.
///
/// # Errors
/// Git failed; the error holds its standard error.
pub fn run_git(directory: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = git(directory).args(arguments).output().context("git cannot be started")?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "git {arguments:?} failed: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Makes a bare repository in `root/name` whose branch `main` holds a copy of `project`.
///
/// # Errors
/// The disk or git refuses.
pub fn bare_from(root: &Path, name: &str, project: &Path) -> anyhow::Result<PathBuf> {
    let bare = root.join(name);
    let tree = tempfile::tempdir()?;
    copy_tree(project, tree.path())?;
    run_git(tree.path(), &["init", "-q", "-b", "main"])?;
    run_git(tree.path(), &["add", "-A"])?;
    run_git(tree.path(), &["commit", "-q", "-m", "feat: add the cart"])?;
    run_git(tree.path(), &["clone", "-q", "--bare", ".", path_text(&bare)?])?;
    run_git(&bare, &["config", "http.receivepack", "true"])?;
    Ok(bare)
}

/// Clones `branch` of a local repository into a fresh directory.
///
/// # Errors
/// The branch is missing, or git fails.
pub fn clone_branch(bare: &Path, branch: &str) -> anyhow::Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    run_git(
        directory.path(),
        &["clone", "-q", "--branch", branch, "--single-branch", path_text(bare)?, "checkout"],
    )?;
    Ok(directory)
}

/// Runs the example project's tests.
///
/// # Errors
/// Python cannot be started.
pub fn run_python_tests(checkout: &Path) -> anyhow::Result<Output> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the example's tests are started here, with an argument vector"
    )]
    let output = Command::new("python3")
        .args(["-m", "unittest", "discover", "-s", "tests"])
        .current_dir(checkout)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .context("python3 cannot be started")?;
    Ok(output)
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a temporary path is not UTF-8")
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("\"{}\" cannot be read", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir_all(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
