//! `caisson artifacts`: what was kept for a run, work that was not pushed among it.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use comfy_table::{Table, presets};
use sha2::{Digest, Sha256};

use super::{DONE, client, complain, print, print_json, write_out};
use crate::cli::Artifacts;
use crate::client::{ArtifactInfo, Chunks, Client, RunInfo};
use crate::render::clean;

/// The change as a patch; of a run that pushed, its branch has the same.
const DIFF: &str = "diff.patch";
/// As any new file.
const READABLE_AS_THE_UMASK_SAYS: u32 = 0o666;

/// Lists, or fetches one.
///
/// # Errors
/// The server refuses, is not there or has no such artifact, or the file cannot be written.
pub(crate) async fn run(flags: Artifacts) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_run(flags.run.as_deref()).await?;
    match (&flags.name, &flags.output) {
        (None, _) => list(&client, &id, flags.client.json).await?,
        (Some(name), Some(file)) => fetch_to(&client, (&id, name), file).await?,
        (Some(name), None) => fetch(&client, &id, name).await?,
    }
    Ok(DONE)
}

async fn list(client: &Client, id: &str, json: bool) -> anyhow::Result<()> {
    let kept = client.artifacts(id).await?;
    if json {
        return kept.iter().try_for_each(print_json);
    }
    if kept.is_empty() {
        complain(&format!("nothing is kept for run {id}"));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "SIZE", "SHA256"]);
    for artifact in &kept {
        table.add_row([&clean(&artifact.name), &size(artifact.size_bytes), &clean(&artifact.sha256)]);
    }
    print(&table.trim_fmt());
    Ok(())
}

/// Writes into the file that was named and nowhere else: the artifact's own name says nothing about a place. What was there before
/// stays until the artifact is there whole.
async fn fetch_to(client: &Client, (id, name): (&str, &str), path: &Path) -> anyhow::Result<()> {
    // Asked for before the file is made: a wrong name must not leave an empty one.
    let chunks = Checked::begin(client, id, name).await?;
    let cannot = || format!("\"{}\" cannot be written", path.display());
    let size_bytes = match path.canonicalize() {
        // A pipe or a device.
        Ok(place) if !place.is_file() => {
            let mut file = File::options().write(true).open(place).with_context(cannot)?;
            chunks.write_to(&mut file).await?
        }
        place => {
            let place = place.unwrap_or_else(|_| path.to_owned());
            let beside = place.parent().filter(|parent| !parent.as_os_str().is_empty());
            let mut file = tempfile::Builder::new()
                .permissions(Permissions::from_mode(READABLE_AS_THE_UMASK_SAYS))
                .tempfile_in(beside.unwrap_or(Path::new(".")))
                .with_context(cannot)?;
            let size_bytes = chunks.write_to(file.as_file_mut()).await.with_context(cannot)?;
            file.as_file().sync_all().with_context(cannot)?;
            file.persist(&place).with_context(cannot)?;
            size_bytes
        }
    };
    complain(&format!("{} in \"{}\"", size(size_bytes), path.display()));
    Ok(())
}

/// Writes to standard output: to a terminal only text, and without control characters.
async fn fetch(client: &Client, id: &str, name: &str) -> anyhow::Result<()> {
    let chunks = Checked::begin(client, id, name).await?;
    let mut out = std::io::stdout();
    if out.is_terminal() {
        let mut bytes = Vec::new();
        chunks.write_to(&mut bytes).await?;
        let text = String::from_utf8(bytes).ok();
        write_out(&clean(&text.with_context(|| format!("{name} is no text; fetch it with -o FILE"))?));
        return Ok(());
    }
    match chunks.write_to(&mut out).await {
        // A reader that has gone away is no error.
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        written => written.map(drop),
    }
}

/// An artifact on its way, of which it is known what it must come to.
struct Checked {
    chunks: Chunks,
    sha256: String,
}

impl Checked {
    async fn begin(client: &Client, id: &str, name: &str) -> anyhow::Result<Self> {
        let chunks = client.artifact(id, name).await?;
        let kept = client.artifacts(id).await?;
        let artifact = kept.into_iter().find(|artifact| artifact.name == name);
        let sha256 = artifact.with_context(|| format!("{name} is no longer kept"))?.sha256;
        Ok(Self { chunks, sha256 })
    }

    /// Passes it on whole; how many bytes it has.
    async fn write_to(mut self, out: &mut impl Write) -> anyhow::Result<i64> {
        let (mut size_bytes, mut hash) = (0, Sha256::new());
        while let Some(chunk) = self.chunks.next().await.context("the artifact is incomplete")? {
            size_bytes += i64::try_from(chunk.len())?;
            hash.update(&chunk);
            out.write_all(&chunk)?;
        }
        out.flush()?;
        let found = hex::encode(hash.finalize());
        anyhow::ensure!(
            found == self.sha256,
            "the artifact is damaged: its SHA-256 is {found}, not {}",
            self.sha256
        );
        Ok(size_bytes)
    }
}

/// What a person should know of a run's artifacts when it has ended; none when its branch has everything.
pub(crate) fn told(run: &RunInfo, kept: &[ArtifactInfo]) -> Option<String> {
    let pushed = run.text("pushed_commit").is_some();
    // A run that changed nothing has an empty patch.
    let is_work = |artifact: &&ArtifactInfo| artifact.size_bytes > 0 && (!pushed || artifact.name != DIFF);
    let kept: Vec<_> = kept.iter().filter(is_work).cloned().collect();
    // Without its commits beside it, the patch tells of a change that the branch had before.
    let had = run.status == "succeeded" && kept.iter().all(|artifact| artifact.name == DIFF);
    let what =
        if had { "nothing was pushed; the run's change is kept" } else { "work that was not pushed is kept" };
    (!kept.is_empty()).then(|| format!("{what}: {}\n{}", names(&kept), how_to_fetch(&run.id)))
}

/// Names and sizes, in one line.
pub(crate) fn names(kept: &[ArtifactInfo]) -> String {
    let of = |artifact: &ArtifactInfo| format!("{} ({})", clean(&artifact.name), size(artifact.size_bytes));
    kept.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// The command that fetches an artifact.
fn how_to_fetch(run: &str) -> String {
    format!("fetch it with: caisson artifacts {run} NAME -o FILE")
}

/// Why there is no diff, with what is kept instead.
pub(crate) fn without_patch(run: &str, kept: &[ArtifactInfo], refused: anyhow::Error) -> anyhow::Error {
    if kept.is_empty() {
        return refused;
    }
    let (names, fetch) = (names(kept), how_to_fetch(run));
    anyhow::anyhow!("run {run} has no patch of commits, but its work is kept: {names}\n{fetch}")
}

/// A size for people.
fn size(bytes: i64) -> String {
    const KIB: i64 = 1024;
    match bytes {
        ..KIB => format!("{bytes} B"),
        _ => format!("{} KiB", (bytes + KIB - 1) / KIB),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn artifact(name: &str, size_bytes: i64) -> ArtifactInfo {
        let json = json!({"name": name, "size_bytes": size_bytes, "sha256": "00", "created_at_ms": 1});
        serde_json::from_value(json).unwrap()
    }

    fn ended(pushed: Option<&str>) -> RunInfo {
        serde_json::from_value(json!({"id": "run_1", "status": "cancelled", "pushed_commit": pushed}))
            .unwrap()
    }

    #[test]
    fn only_work_that_the_branch_does_not_have_is_told_of() {
        let kept = [artifact("diff.patch", 9), artifact("uncommitted.patch", 1025)];
        let told_of = told(&ended(None), &kept).unwrap();
        assert!(told_of.contains("diff.patch (9 B), uncommitted.patch (2 KiB)"), "{told_of}");
        assert!(told_of.contains("caisson artifacts run_1 NAME -o FILE"), "{told_of}");
        assert!(!told(&ended(Some("abc")), &kept).unwrap().contains("diff.patch"));
        assert_eq!(told(&ended(Some("abc")), &kept[..1]), None);
        assert_eq!(told(&ended(None), &[]), None);
        assert_eq!(told(&ended(None), &[artifact("diff.patch", 0)]), None, "nothing was changed");
        let had = RunInfo { status: "succeeded".to_owned(), ..ended(None) };
        assert!(told(&had, &kept[..1]).unwrap().starts_with("nothing was pushed; "));
        assert!(told(&had, &kept).unwrap().starts_with("work that was not pushed is kept: "));
    }
}
