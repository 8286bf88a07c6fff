//! Installed agents: exact versions of Claude Code side by side, each fetched through the npm client (so that a
//! user's mirror and credentials for it work), checked against its integrity, and never changed afterwards.
//!
//! Layout: `<agents>/claude-code/<version>/{claude,manifest.json}`. The directory is what a sandbox mounts.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha512};

/// The platform package; the wrapper package would pick an older version on a machine with an old Node.js.
const PACKAGE: &str = "@anthropic-ai/claude-code-linux-x64";
/// Directory of this agent in the cache.
const FOLDER: &str = "claude-code";
/// Name of the binary in the package and in the cache.
const BINARY: &str = "claude";
/// Integrity of the versions that this release knows: measured on 2026-11-22 from the registry's package.
const KNOWN: [(&str, &str); 1] = [(
    "2.1.330",
    "sha512-9Gn+V7DtJ8M1nztP9CeDVl9g3RtrepI7rOFTyPRRnZe8D6zebIHKmC7OvBauucuAP0X0k85SDN/LPVZyjsGezQ==",
)];
/// Largest unpacked binary, in bytes.
const BINARY_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Largest `package.json`, in bytes.
const PACKAGE_JSON_BYTES: u64 = 1024 * 1024;

/// What is known of an installed version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The version.
    pub version: String,
    /// Integrity of the package it came from.
    pub integrity: String,
    /// SHA-256 of the binary.
    pub sha256: String,
    /// How the integrity was judged.
    pub trust: Trust,
}

/// Where an expected integrity came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Trust {
    /// It is compiled into this release.
    Pinned,
    /// The person who installed it gave it.
    Given,
    /// The registry said so.
    Registry,
}

/// Which package to install.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Exact version; with a file it must be the file's.
    pub version: Option<String>,
    /// A package file instead of the registry.
    pub from: Option<PathBuf>,
    /// Expected integrity.
    pub integrity: Option<String>,
}

/// The cache of agents.
#[derive(Debug, Clone)]
pub(crate) struct Agents {
    root: PathBuf,
}

impl Agents {
    /// The cache in `root`.
    #[must_use]
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Directory that holds `version`, installed or not.
    #[must_use]
    pub(crate) fn directory(&self, version: &str) -> PathBuf {
        self.root.join(FOLDER).join(version)
    }

    /// The installed version's manifest; none if it is not (wholly) installed.
    #[must_use]
    pub(crate) fn installed(&self, version: &str) -> Option<Manifest> {
        let directory = self.directory(version);
        let text = fs::read_to_string(directory.join("manifest.json")).ok()?;
        let manifest: Manifest = serde_json::from_str(&text).ok()?;
        directory.join(BINARY).is_file().then_some(manifest)
    }

    /// Every installed version.
    #[must_use]
    pub(crate) fn list(&self) -> Vec<Manifest> {
        let entries = fs::read_dir(self.root.join(FOLDER)).into_iter().flatten().flatten();
        let mut found: Vec<_> =
            entries.filter_map(|entry| self.installed(entry.file_name().to_str()?)).collect();
        found.sort_by(|left, right| left.version.cmp(&right.version));
        found
    }

    /// Checks that the binary is still the one that was installed.
    ///
    /// # Errors
    /// It is missing or was changed.
    pub(crate) fn verify(&self, version: &str) -> anyhow::Result<Manifest> {
        let manifest = self.installed(version).with_context(|| {
            format!("Claude Code {version} is not installed; run `caisson agent install --version {version}`")
        })?;
        let found = sha256_of(&self.directory(version).join(BINARY))?;
        ensure!(
            found == manifest.sha256,
            "the binary of Claude Code {version} was changed after it was installed; remove \"{}\" and install it again",
            self.directory(version).display()
        );
        Ok(manifest)
    }

    /// Installs a version, or finds it installed already.
    ///
    /// # Errors
    /// It cannot be fetched, has another integrity than expected, or the disk refuses it. Nothing is left behind.
    pub(crate) fn install(&self, request: &Request, default_version: &str) -> anyhow::Result<Manifest> {
        let folder = self.root.join(FOLDER);
        fs::create_dir_all(&folder)
            .with_context(|| format!("the directory \"{}\" cannot be made", folder.display()))?;
        if let Some(version) = &request.version {
            check_version(version)?;
        }
        if request.from.is_none() {
            let version = request.version.as_deref().unwrap_or(default_version);
            if let Some(manifest) = self.installed(version) {
                return Ok(manifest);
            }
        }
        let work = tempfile::Builder::new().prefix(".install-").tempdir_in(&folder)?;
        let (package, expected) = match &request.from {
            Some(file) => (file.clone(), None),
            None => fetch(request.version.as_deref().unwrap_or(default_version), work.path())?,
        };
        self.unpack(&package, request, expected, work.path())
    }

    fn unpack(
        &self,
        package: &Path,
        request: &Request,
        registry: Option<String>,
        work: &Path,
    ) -> anyhow::Result<Manifest> {
        let integrity = integrity_of(package)?;
        let staged = work.join("staged");
        fs::create_dir(&staged)?;
        let version = extract(package, &staged)?;
        if let Some(wanted) = &request.version {
            ensure!(*wanted == version, "the package holds version {version}, not {wanted}");
        }
        let (expected, trust) = expected_integrity(&version, request, registry)?;
        ensure!(
            expected == integrity,
            "the package of Claude Code {version} has another integrity than expected: it is {integrity}, expected was {expected}"
        );
        let binary = staged.join(BINARY);
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o555))?;
        let manifest = Manifest { sha256: sha256_of(&binary)?, version, integrity, trust };
        fs::write(staged.join("manifest.json"), serde_json::to_string_pretty(&manifest)?)?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o755))?;
        fs::File::open(&binary)?.sync_all()?;
        self.publish(&staged, &manifest)?;
        Ok(manifest)
    }

    /// Moves a staged version to its place; a complete one that stands there already wins.
    fn publish(&self, staged: &Path, manifest: &Manifest) -> anyhow::Result<()> {
        let place = self.directory(&manifest.version);
        if self.installed(&manifest.version).is_some() {
            return Ok(());
        }
        if place.exists() {
            fs::remove_dir_all(&place)
                .with_context(|| format!("the incomplete \"{}\" cannot be removed", place.display()))?;
        }
        fs::rename(staged, &place)
            .with_context(|| format!("the agent cannot be put at \"{}\"", place.display()))?;
        Ok(())
    }
}

/// An exact semantic version: three numbers, and what may follow them; never a range, tag or path.
fn check_version(version: &str) -> anyhow::Result<()> {
    let (numbers, rest) = version.split_once(['-', '+']).unwrap_or((version, "x"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let exact = version.len() <= 64
        && numbers.split('.').count() == 3
        && numbers.split('.').all(is_number)
        && !rest.is_empty()
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+'));
    ensure!(exact, "\"{version}\" is not an exact version; give one such as 2.1.330");
    Ok(())
}

fn expected_integrity(
    version: &str,
    request: &Request,
    registry: Option<String>,
) -> anyhow::Result<(String, Trust)> {
    if let Some((_, known)) = KNOWN.iter().find(|(known, _)| *known == version) {
        return Ok(((*known).to_owned(), Trust::Pinned));
    }
    match (&request.integrity, registry) {
        (Some(given), _) => Ok((given.clone(), Trust::Given)),
        (None, Some(said)) => Ok((said, Trust::Registry)),
        (None, None) => bail!(
            "this release does not know the integrity of version {version}; give it with --integrity sha512-…"
        ),
    }
}

/// Fetches the package of `version` with the npm client; returns the file and the integrity that the registry names.
fn fetch(version: &str, into: &Path) -> anyhow::Result<(PathBuf, Option<String>)> {
    #[derive(Deserialize)]
    struct Packed {
        filename: String,
        integrity: String,
    }
    #[expect(clippy::disallowed_methods, reason = "the npm client is started here, with an argument vector")]
    let output = std::process::Command::new("npm")
        .args(["pack", "--json", "--silent", "--pack-destination"])
        .arg(into)
        .arg(format!("{PACKAGE}@{version}"))
        .current_dir(into)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "the npm client is not installed, and it is what fetches Claude Code; install it, or fetch the package of {PACKAGE}@{version} elsewhere and give it with --from FILE"
        ),
        Err(error) => return Err(error).context("the npm client cannot be started"),
    };
    ensure!(output.status.success(), refusal(version, &output.stdout, &output.stderr));
    let packed: Vec<Packed> =
        serde_json::from_slice(&output.stdout).context("npm's answer is not the expected JSON")?;
    let packed = packed.into_iter().next().context("npm fetched no package")?;
    let name = Path::new(&packed.filename).file_name().context("npm named no package file")?.to_owned();
    Ok((into.join(name), Some(packed.integrity)))
}

/// Why npm fetched nothing. With `--json` it says so on its standard output.
fn refusal(version: &str, stdout: &[u8], stderr: &[u8]) -> String {
    let said: serde_json::Value = serde_json::from_slice(stdout).unwrap_or_default();
    let error = &said["error"];
    if matches!(error["code"].as_str(), Some("ETARGET" | "E404")) {
        return format!(
            "the registry has no version {version} of {PACKAGE}; this release was tested with {}",
            crate::settings::AGENT_VERSION
        );
    }
    let stderr = String::from_utf8_lossy(stderr);
    let words = error["summary"].as_str().or_else(|| stderr.trim().lines().last());
    format!("npm could not fetch {PACKAGE}@{version}: {}", words.unwrap_or("it gave no reason"))
}

/// Takes the binary out of a package and returns the package's version.
fn extract(package: &Path, into: &Path) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct PackageJson {
        name: String,
        version: String,
    }
    let file = fs::File::open(package)
        .with_context(|| format!("the package file \"{}\" cannot be opened", package.display()))?;
    let not_a_package = || format!("\"{}\" is not a package of {PACKAGE}", package.display());
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let (mut version, mut binary) = (None, false);
    for entry in archive.entries().with_context(not_a_package)? {
        let mut entry = entry.with_context(not_a_package)?;
        let path = entry.path()?.into_owned();
        if path == Path::new("package/package.json") {
            let mut text = String::new();
            entry.by_ref().take(PACKAGE_JSON_BYTES).read_to_string(&mut text)?;
            let json: PackageJson = serde_json::from_str(&text).with_context(not_a_package)?;
            ensure!(json.name == PACKAGE, "the package is {}, not {PACKAGE}", json.name);
            check_version(&json.version)?;
            version = Some(json.version);
        } else if path == Path::new("package").join(BINARY) {
            let mut out = fs::File::create_new(into.join(BINARY))?;
            let copied = std::io::copy(&mut entry.by_ref().take(BINARY_BYTES + 1), &mut out)
                .context("the binary cannot be unpacked; is the disk full?")?;
            ensure!(copied <= BINARY_BYTES, "the binary is larger than {BINARY_BYTES} bytes");
            binary = true;
        }
    }
    ensure!(binary, not_a_package());
    version.with_context(not_a_package)
}

fn integrity_of(file: &Path) -> anyhow::Result<String> {
    Ok(format!("sha512-{}", BASE64.encode(digest_of::<Sha512>(file)?)))
}

fn sha256_of(file: &Path) -> anyhow::Result<String> {
    Ok(hex::encode(digest_of::<Sha256>(file)?))
}

fn digest_of<D: Digest>(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut reader =
        fs::File::open(file).with_context(|| format!("\"{}\" cannot be opened", file.display()))?;
    let mut digest = D::new();
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok(digest.finalize().to_vec());
        }
        digest.update(&buffer[..read]);
    }
}

#[cfg(test)]
#[path = "agents_tests.rs"]
mod tests;
