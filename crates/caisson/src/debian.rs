//! Debian packages of an image, and what is known about holes in them. Pure: it is given the bytes of files.
//!
//! Sources: deb-control(5) and deb-version(7) for the package database and the order of versions; the Debian security
//! tracker's JSON for what is known.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The package database of an image.
pub(crate) const STATUS: &str = "/var/lib/dpkg/status";
/// Where images without a package manager keep the same, one file for each package.
pub(crate) const STATUS_DIR: &str = "/var/lib/dpkg/status.d";
/// What names the release. `/etc/os-release` is a link to it.
pub(crate) const OS_RELEASE: &str = "/usr/lib/os-release";

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it was built for.
    pub architecture: String,
    /// The source package that it was built from, which advisories are about.
    pub source: String,
    /// The source package's version.
    pub source_version: String,
}

/// A hole in an installed package that is closed in a later version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Known {
    /// The source package.
    pub source: String,
    /// What is installed of it.
    pub installed: String,
    /// Its name, such as `CVE-2024-0001`.
    pub id: String,
    /// The version that closes it.
    pub fixed: String,
    /// How pressing the tracker holds it to be.
    pub urgency: String,
}

/// What the tracker says about one hole in one release.
#[derive(Debug, Clone, Default, Deserialize)]
struct Release {
    #[serde(default)]
    status: String,
    #[serde(default)]
    fixed_version: String,
    #[serde(default)]
    urgency: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Hole {
    #[serde(default)]
    releases: BTreeMap<String, Release>,
}

/// What is known: by source package, then by the hole's name.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct Advisories(BTreeMap<String, BTreeMap<String, Hole>>);

/// What came of comparing packages with what is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Findings {
    /// Holes that a later version closes.
    pub fixable: Vec<Known>,
    /// How many are known that no version of the release closes yet.
    pub open: usize,
    /// How many are known of which nobody has said yet whether the release has them.
    pub undetermined: usize,
}

/// Reads package databases: all packages that are installed, sorted.
pub(crate) fn packages(databases: &[Vec<u8>]) -> Vec<Package> {
    let mut packages = Vec::new();
    for bytes in databases {
        let text = String::from_utf8_lossy(bytes);
        packages.extend(text.split("\n\n").filter_map(package));
    }
    packages.sort();
    packages.dedup();
    packages
}

fn package(paragraph: &str) -> Option<Package> {
    let mut fields = BTreeMap::new();
    for line in paragraph.lines().filter(|line| !line.starts_with([' ', '\t'])) {
        if let Some((name, value)) = line.split_once(':') {
            fields.insert(name.to_ascii_lowercase(), value.trim());
        }
    }
    // Images without a package manager leave the status out.
    if fields.get("status").is_some_and(|status| !status.ends_with(" installed")) {
        return None;
    }
    let (name, version) = (*fields.get("package")?, *fields.get("version")?);
    let source = fields.get("source").copied().unwrap_or(name);
    let (source, source_version) = match source.split_once(" (") {
        Some((source, version)) => (source, version.trim_end_matches(')')),
        None => (source, version),
    };
    Some(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: fields.get("architecture").copied().unwrap_or_default().to_owned(),
        source: source.to_owned(),
        source_version: source_version.to_owned(),
    })
}

/// The distribution that an image is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Distribution {
    /// Such as `debian` or `ubuntu`; the namespace of its packages.
    pub id: String,
    /// Its release's code name, such as `bookworm`.
    pub codename: Option<String>,
}

impl Distribution {
    /// Reads os-release(5), as far as it says what it may; one that says nothing is of `linux`, by that page.
    pub(crate) fn read(os_release: &[u8]) -> Self {
        let text = String::from_utf8_lossy(os_release);
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            let value = value.map(|value| value.trim().trim_matches(['"', '\'']).to_owned())?;
            let is_word =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
            (!value.is_empty() && value.chars().all(is_word)).then_some(value)
        };
        Self { id: field("ID").unwrap_or_else(|| "linux".to_owned()), codename: field("VERSION_CODENAME") }
    }

    /// The release's code name if this is Debian itself, which alone its security tracker knows.
    pub(crate) fn debian_release(&self) -> Option<&str> {
        self.codename.as_deref().filter(|_| self.id == "debian")
    }
}

impl Advisories {
    /// Reads the tracker's JSON.
    ///
    /// # Errors
    /// It is not that.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// How many source packages something is known about.
    pub(crate) fn sources(&self) -> usize {
        self.0.len()
    }

    /// Whether anything at all is said about the release. The tracker forgets old ones, and silence is no good news.
    pub(crate) fn knows(&self, release: &str) -> bool {
        self.0.values().flat_map(BTreeMap::values).any(|hole| hole.releases.contains_key(release))
    }

    /// What is known about these packages in this release.
    pub(crate) fn about(&self, packages: &[Package], release: &str) -> Findings {
        let mut installed: Vec<(&str, &str)> = packages
            .iter()
            .map(|package| (package.source.as_str(), package.source_version.as_str()))
            .collect();
        installed.sort_unstable();
        installed.dedup();
        let mut findings = Findings::default();
        for (source, version) in installed {
            for (id, hole) in self.0.get(source).into_iter().flatten() {
                let Some(here) = hole.releases.get(release) else { continue };
                match here.status.as_str() {
                    // A fixed version of 0 says that the release never had the hole.
                    "resolved" if compare(version, &here.fixed_version) == Ordering::Less => {
                        findings.fixable.push(Known {
                            source: source.to_owned(),
                            installed: version.to_owned(),
                            id: id.clone(),
                            fixed: here.fixed_version.clone(),
                            urgency: here.urgency.clone(),
                        });
                    }
                    "open" if here.urgency != "unimportant" => findings.open += 1,
                    "undetermined" => findings.undetermined += 1,
                    _ => {}
                }
            }
        }
        findings.fixable.sort();
        findings
    }
}

/// Compares two versions as `dpkg` does: epoch, upstream version, revision.
pub(crate) fn compare(one: &str, other: &str) -> Ordering {
    let (one, other) = (parts(one), parts(other));
    one.0.cmp(&other.0).then_with(|| part(one.1, other.1)).then_with(|| part(one.2, other.2))
}

fn parts(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// Texts and numbers in turns.
fn part(mut one: &str, mut other: &str) -> Ordering {
    while !(one.is_empty() && other.is_empty()) {
        let (left, right) = (split_text(&mut one), split_text(&mut other));
        let texts = text(left, right);
        let numbers = || number(&mut one).cmp(&number(&mut other));
        let ordering = texts.then_with(numbers);
        if ordering != Ordering::Equal {
            return ordering;
        }
    }
    Ordering::Equal
}

fn split_text<'t>(rest: &mut &'t str) -> &'t str {
    let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
    let (text, behind) = rest.split_at(end);
    *rest = behind;
    text
}

/// The number's digits without leading zeros, longer ones being larger.
fn number<'t>(rest: &mut &'t str) -> (usize, &'t str) {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, behind) = rest.split_at(end);
    *rest = behind;
    let digits = digits.trim_start_matches('0');
    (digits.len(), digits)
}

/// A tilde comes before everything, even the end; letters come before all other characters.
fn text(one: &str, other: &str) -> Ordering {
    let rank = |c: Option<char>| match c {
        Some('~') => (0, '~'),
        None => (1, '\0'),
        Some(c) if c.is_ascii_alphabetic() => (2, c),
        Some(c) => (3, c),
    };
    let (mut one, mut other) = (one.chars(), other.chars());
    loop {
        let (left, right) = (one.next(), other.next());
        let ordering = rank(left).cmp(&rank(right));
        if ordering != Ordering::Equal || (left.is_none() && right.is_none()) {
            return ordering;
        }
    }
}

#[cfg(test)]
#[path = "debian_tests.rs"]
mod tests;
