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
use crate::debian::{Advisories, Distribution, Findings, OS_RELEASE, Package, STATUS, STATUS_DIR, packages};
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
    let distribution = Distribution::read(os_release.first().map_or(&[], Vec::as_slice));
    if flags.format == ScanFormat::Cyclonedx {
        print(&pretty(&bill(image, &distribution, &packages)));
        return Ok(DONE);
    }
    let source = flags.advisories.as_deref().unwrap_or(TRACKER);
    let compared = compare(source, &distribution, &packages).await?;
    match if flags.json { ScanFormat::Json } else { flags.format } {
        ScanFormat::Json => {
            let (findings, why) = match &compared {
                Ok(findings) => (json!(findings), Value::Null),
                Err(why) => (Value::Null, json!(why)),
            };
            let told = json!({"image": image, "distribution": distribution.id, "release": distribution.codename, "source": source, "packages": packages,
                "findings": findings, "not_compared": why});
            print(&pretty(&told));
        }
        ScanFormat::Text | ScanFormat::Cyclonedx => tell(image, &distribution, &packages, &compared),
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
    distribution: &Distribution,
    packages: &[Package],
) -> anyhow::Result<Result<Findings, String>> {
    let Some(release) = distribution.debian_release() else {
        return Ok(Err(match distribution.id.as_str() {
            "debian" => "the image does not say which release of Debian it is".to_owned(),
            id => format!("the image is of \"{id}\", and what is known here is about Debian alone"),
        }));
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

fn tell(image: &str, distribution: &Distribution, packages: &[Package], compared: &Result<Findings, String>) {
    let release =
        format!("{} {}", distribution.id, distribution.codename.as_deref().unwrap_or("of no known release"));
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
        "{} known holes are closed by later versions (rebuild the image: `caisson image build`); {} are open in this release; of {} \
         nobody has said whether it has them",
        findings.fixable.len(),
        findings.open,
        findings.undetermined
    ));
}

/// The packages as a `CycloneDX` 1.5 bill of materials. It has no time and no serial number, so that the same image has the same.
fn bill(image: &str, distribution: &Distribution, packages: &[Package]) -> Value {
    let namespace = encoded(&distribution.id);
    let codename = distribution.codename.as_deref();
    let distro = codename.map(|release| format!("&distro={}", encoded(release))).unwrap_or_default();
    let components: Vec<Value> = packages
        .iter()
        .map(|package| {
            let (name, version) = (encoded(&package.name), encoded(&package.version));
            let arch = encoded(&package.architecture);
            let purl = format!("pkg:deb/{namespace}/{name}@{version}?arch={arch}{distro}");
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

/// A part of a package URL. What would begin another part is no letter of it, whoever has written the image's files.
///
/// Source: the purl specification, "Character encoding"; `~` is encoded as well, as it always was here.
fn encoded(text: &str) -> String {
    let each = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::Distribution;

    #[test]
    fn packages_are_named_for_the_distribution_that_they_are_of() {
        let status = b"Package: libc6\nStatus: install ok installed\nVersion: 2.39-0ubuntu8\nArchitecture: amd64\nSource: glibc\n";
        let packages = packages(&[status.to_vec()]);
        let purl = |os_release: &str| {
            let bill = bill("x", &Distribution::read(os_release.as_bytes()), &packages);
            bill["components"][0]["purl"].as_str().unwrap().to_owned()
        };
        assert_eq!(
            purl("ID=ubuntu\nVERSION_CODENAME=noble\n"),
            "pkg:deb/ubuntu/libc6@2.39-0ubuntu8?arch=amd64&distro=noble"
        );
        assert_eq!(
            purl("ID=debian\nVERSION_CODENAME=bookworm\n"),
            "pkg:deb/debian/libc6@2.39-0ubuntu8?arch=amd64&distro=bookworm"
        );
        assert_eq!(purl("ID=\"a/b&c\"\n"), "pkg:deb/linux/libc6@2.39-0ubuntu8?arch=amd64");
    }

    #[test]
    fn no_part_of_a_package_url_begins_another() {
        let status = "Package: a/b?c\nStatus: install ok installed\nVersion: 1:2+3~4@5#6 \u{e9}%\nArchitecture: amd64&distro=x#y\n";
        let found = packages(&[status.as_bytes().to_vec()]);
        let distribution =
            Distribution { id: "de/bian".to_owned(), codename: Some("book&arch=worm".to_owned()) };
        let bill = bill("x", &distribution, &found);
        assert_eq!(
            bill["components"][0]["purl"],
            "pkg:deb/de%2Fbian/a%2Fb%3Fc@1%3A2%2B3%7E4%405%236%20%C3%A9%25?arch=amd64%26distro%3Dx%23y&distro=book%26arch%3Dworm"
        );
    }

    #[tokio::test]
    async fn another_distribution_is_not_compared_with_debians_holes() {
        let ubuntu = Distribution::read(b"ID=ubuntu\nVERSION_CODENAME=noble\n");
        let why = compare("/nonexistent", &ubuntu, &[]).await.unwrap().unwrap_err();
        assert!(why.contains("\"ubuntu\"") && why.contains("Debian alone"), "{why}");
        let unnamed = Distribution::read(b"ID=debian\n");
        let why = compare("/nonexistent", &unnamed, &[]).await.unwrap().unwrap_err();
        assert!(why.contains("which release of Debian"), "{why}");
    }
}
