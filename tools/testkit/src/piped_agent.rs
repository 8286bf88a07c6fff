//! The real agent behind pipes. The shim gives it sockets, which nobody can open; what it starts can open a pipe by its name in
//! `/proc`, and speak for it. With these in between whatever the agent could be made to say can be tried: lines and output without
//! end, and what it never said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::parts::Parts;

/// Stands where the agent stood, which is beside it now. It ends when the agent does: what copies the input, which stays open,
/// is not waited for.
const PROGRAM: &str = "#!/bin/bash\n\"${0%/*}/agent\" \"$@\" < <(cat) | cat\nexit \"${PIPESTATUS[0]}\"\n";
/// The agent's standard output, as a tool of it reaches it where that is a pipe.
pub const STREAM: &str = "/proc/$PPID/fd/1";

/// The same parts with such an agent, which is put into `directory`.
///
/// # Errors
/// No agent is installed, or the disk refuses.
pub fn behind_pipes(parts: &Parts, directory: &Path) -> anyhow::Result<Parts> {
    let installed =
        fs::read_dir(parts.agents_dir.join("claude-code"))?.next().context("no agent is installed")??;
    let agents_dir = directory.join("agents");
    let place = agents_dir.join("claude-code").join(installed.file_name());
    fs::create_dir_all(&place)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let (agent, given) = (installed.path().join("claude"), place.join("agent"));
    // A link takes no room, but does not lead to another disk.
    fs::hard_link(&agent, &given).or_else(|_| fs::copy(&agent, &given).map(drop))?;
    let program = place.join("claude");
    fs::write(&program, PROGRAM)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mut manifest: Value = serde_json::from_slice(&fs::read(installed.path().join("manifest.json"))?)?;
    manifest["sha256"] = json!(hex::encode(Sha256::digest(PROGRAM)));
    manifest["trust"] = json!("given");
    fs::write(place.join("manifest.json"), manifest.to_string())?;
    Ok(Parts { agents_dir, ..parts.clone() })
}
