//! The real agent with a small program before it that stamps each line as the agent writes it.

use std::fs;
use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;
use testkit::parts::Parts;

use crate::bench::stage::installed_version;
use crate::bench::stand_in;

/// Where that program looks for the agent.
const ITSELF: &str = "claude-itself";

/// Makes a directory below `local` with the installed agent behind the program `stamp`; service and script both take it.
/// It goes with what is returned first.
///
/// # Errors
/// There is no such program or agent, or the disk refuses.
pub(crate) fn agents(parts: &Parts, local: &Path, stamp: &Path) -> anyhow::Result<(TempDir, Parts)> {
    let program =
        fs::read(stamp).with_context(|| format!("cannot read \"{}\"; run `make load`", stamp.display()))?;
    let version = installed_version(&parts.agents_dir)?;
    fs::create_dir_all(local)?;
    let kept = tempfile::Builder::new().prefix("load-agents-").tempdir_in(local)?;
    let agents_dir = kept.path().canonicalize()?;
    let directory = stand_in::install(&agents_dir, &version, &program)?;
    // A link to the same file, so that nothing is read twice from the disk.
    let (from, to) = (parts.claude(&version), directory.join(ITSELF));
    fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
    Ok((kept, Parts { agents_dir, ..parts.clone() }))
}
