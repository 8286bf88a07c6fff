//! `caisson image scan`: which packages an image has, and which of them have holes that a later version closes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use caisson_sandbox::docker::{DEFAULT_IMAGE, DockerEngine};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use url::Url;

use super::{DONE, complain, print};
use crate::cli::{ScanFormat, ScanImage};
use crate::debian::{Advisories, Findings, OS_RELEASE, Package, STATUS, STATUS_DIR, packages, release};
use crate::render::{clean, pretty};

/// Exit code when a later version closes a hole in an installed package.
const FIXABLE: u8 = 3;
/// Exit code when the packages could not be compared with anything.
const NOT_COMPARED: u8 = 4;
/// Debian's security tracker.
const TRACKER: &str = "https://security-tracker.debian.org/tracker/data/json";
/// Most bytes of a source of advisories; Debian's has some 70 MB.
const ADVISORIES_BYTES: usize = 256 * 1024 * 1024;
/// How long a host may take to be connected to.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the whole answer may take.
const DOWNLOAD: Duration = Duration::from_mins(3);

/// Reads the image's package database through the engine, without running anything of the image, and tells what is known.
///
/// # Errors
/// The engine is away, the image is missing or has no package database, or what is said to be known is nothing of the kind.
pub(super) async fn run(flags: ScanImage, engine: &DockerEngine) -> anyhow::Result<u8> {
    let image = flags.image.as_deref().unwrap_or(DEFAULT_IMAGE);
    let databases = engine.image_files(image, &[STATUS, STATUS_DIR]).await?;
    let packages = packages(&databases);
    ensure!(
        !packages.is_empty(),
        "the image {image} has no Debian package database; only such images can be looked at"
    );
    let os_release = engine.image_files(image, &[OS_RELEASE]).await?;
    let release = os_release.first().and_then(|text| release(text));
    if flags.format == ScanFormat::Cyclonedx {
        print(&pretty(&bill(image, release.as_deref(), &packages)));
        return Ok(DONE);
    }
    let source = flags.advisories.as_deref().unwrap_or(TRACKER);
    let compared = compare(source, release.as_deref(), &packages).await?;
    match flags.format {
        ScanFormat::Json => {
            let (findings, why) = match &compared {
                Ok(findings) => (json!(findings), Value::Null),
                Err(why) => (Value::Null, json!(why)),
            };
            let told = json!({"image": image, "release": release, "source": source, "packages": packages,
                "findings": findings, "not_compared": why});
            print(&pretty(&told));
        }
        ScanFormat::Text | ScanFormat::Cyclonedx => tell(image, release.as_deref(), &packages, &compared),
    }
    Ok(match compared {
        Err(_) => NOT_COMPARED,
        Ok(findings) if findings.fixable.is_empty() => DONE,
        Ok(_) => FIXABLE,
    })
}

/// What is known of the packages, or why nothing could be compared. A file that was named and cannot be used is an error.
async fn compare(
    source: &str,
    release: Option<&str>,
    packages: &[Package],
) -> anyhow::Result<Result<Findings, String>> {
    let Some(release) = release else {
        return Ok(Err("the image does not say which release of Debian it is".to_owned()));
    };
    let bytes = match source.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") => match download(&url).await {
            Ok(bytes) => bytes,
            Err(error) => {
                let remedy = "fetch it where it can be reached and give the file with --advisories FILE";
                return Ok(Err(format!("{source} cannot be had ({error:#}); {remedy}")));
            }
        },
        _ => read(Path::new(source))?,
    };
    let known = Advisories::read(&bytes)
        .with_context(|| format!("\"{source}\" is no JSON of Debian's security tracker"))?;
    ensure!(known.sources() > 0, "\"{source}\" knows nothing about any package");
    if !known.knows(release) {
        return Ok(Err(format!("\"{source}\" says nothing about the release {}", clean(release))));
    }
    Ok(Ok(known.about(packages, release)))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = file.display();
    let bytes = std::fs::metadata(file).with_context(|| format!("\"{shown}\" cannot be read"))?.len();
    ensure!(bytes <= ADVISORIES_BYTES as u64, "\"{shown}\" has more than {ADVISORIES_BYTES} bytes");
    std::fs::read(file).with_context(|| format!("\"{shown}\" cannot be read"))
}

async fn download(url: &Url) -> anyhow::Result<Vec<u8>> {
    let client = reqwest::Client::builder().connect_timeout(CONNECT).timeout(DOWNLOAD).build()?;
    let mut response = client.get(url.clone()).send().await?.error_for_status()?;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        ensure!(bytes.len() + chunk.len() <= ADVISORIES_BYTES, "it has more than {ADVISORIES_BYTES} bytes");
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn tell(image: &str, release: Option<&str>, packages: &[Package], compared: &Result<Findings, String>) {
    let release =
        release.map_or("no known release".to_owned(), |release| format!("Debian {}", clean(release)));
    let sources: std::collections::BTreeSet<_> = packages.iter().map(|package| &package.source).collect();
    let count = packages.len();
    print(&format!("{image}: {count} packages from {} sources, {release}", sources.len()));
    let findings = match compared {
        Ok(findings) => findings,
        Err(why) => {
            for package in packages {
                print(&format!("{} {}", clean(&package.name), clean(&package.version)));
            }
            return complain(&format!("NOT COMPARED with known holes: {why}"));
        }
    };
    if !findings.fixable.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["SOURCE", "INSTALLED", "FIXED IN", "ID", "URGENCY"]);
        for known in &findings.fixable {
            let cells = [&known.source, &known.installed, &known.fixed, &known.id, &known.urgency];
            table.add_row(cells.map(|text| clean(text)));
        }
        print(&table.trim_fmt());
    }
    print(&format!(
        "{} known holes are closed by later versions (rebuild the image: `caisson image build`); {} are open in this release",
        findings.fixable.len(),
        findings.open
    ));
}

/// The packages as a `CycloneDX` 1.5 bill of materials. It has no time and no serial number, so that the same image has the same.
fn bill(image: &str, release: Option<&str>, packages: &[Package]) -> Value {
    let distro = release.map(|release| format!("&distro={release}")).unwrap_or_default();
    let components: Vec<Value> = packages
        .iter()
        .map(|package| {
            let encoded = |text: &str| text.replace('%', "%25").replace('+', "%2B").replace('~', "%7E").replace(':', "%3A");
            let (name, version) = (encoded(&package.name), encoded(&package.version));
            let purl = format!("pkg:deb/debian/{name}@{version}?arch={}{distro}", package.architecture);
            json!({
                "type": "library", "name": package.name, "version": package.version, "purl": purl, "bom-ref": purl,
                "properties": [
                    {"name": "caisson:deb:source", "value": package.source},
                    {"name": "caisson:deb:source_version", "value": package.source_version},
                ],
            })
        })
        .collect();
    json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "caisson", "version": env!("CARGO_PKG_VERSION")}]},
            "component": {"type": "container", "name": image, "bom-ref": image},
        },
        "components": components,
    })
}
