use std::path::Path;

use super::*;

const STATUS_TEXT: &str = "Package: libssl3\nStatus: install ok installed\nArchitecture: amd64\nSource: openssl\n\
     Version: 3.0.11-1~deb12u2\nDescription: Secure\n Package: not-a-field\n\n\
     Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
     Package: libgcc-s1\nStatus: install ok installed\nArchitecture: amd64\nSource: gcc-12 (12.2.0-14)\n\
     Version: 12.2.0-14+b1\n\n\
     Package: tzdata\nVersion: 2024a-0+deb12u1\nArchitecture: all\n";

const KNOWN: &str = r#"{
  "openssl": {
    "CVE-2024-1": {"scope": "remote", "releases": {
      "bookworm": {"status": "resolved", "fixed_version": "3.0.13-1~deb12u1", "urgency": "not yet assigned"},
      "trixie": {"status": "resolved", "fixed_version": "9", "urgency": "high"}}},
    "CVE-2024-2": {"releases": {"bookworm": {"status": "resolved", "fixed_version": "3.0.11-1~deb12u2", "urgency": "low"}}},
    "CVE-2024-3": {"releases": {"bookworm": {"status": "resolved", "fixed_version": "0", "urgency": "low"}}},
    "CVE-2024-4": {"releases": {"bookworm": {"status": "open", "urgency": "medium"}}},
    "CVE-2024-5": {"releases": {"bookworm": {"status": "open", "urgency": "unimportant"}}},
    "CVE-2024-9": {"releases": {"bookworm": {"status": "undetermined", "urgency": "not yet assigned"}}},
    "CVE-2024-6": {"releases": {"trixie": {"status": "open", "urgency": "high"}}}},
  "gcc-12": {"CVE-2024-7": {"releases": {"bookworm": {"status": "resolved", "fixed_version": "12.2.0-14", "urgency": "low"}}}},
  "gone": {"CVE-2024-8": {"releases": {"bookworm": {"status": "resolved", "fixed_version": "2", "urgency": "high"}}}}
}"#;

#[test]
fn installed_packages_are_read_with_their_sources() {
    let packages = packages(&[STATUS_TEXT.as_bytes().to_vec()]);
    let shown: Vec<_> =
        packages.iter().map(|p| (p.name.as_str(), p.source.as_str(), p.source_version.as_str())).collect();
    assert_eq!(
        shown,
        [
            ("libgcc-s1", "gcc-12", "12.2.0-14"),
            ("libssl3", "openssl", "3.0.11-1~deb12u2"),
            ("tzdata", "tzdata", "2024a-0+deb12u1")
        ]
    );
    assert_eq!(super::packages(&[b"\xff\xfe".to_vec(), Vec::new()]), []);
}

#[test]
fn only_what_a_later_version_of_the_release_closes_is_fixable() {
    let known = Advisories::read(KNOWN.as_bytes()).unwrap();
    assert_eq!(known.sources(), 3);
    let packages = packages(&[STATUS_TEXT.as_bytes().to_vec()]);
    let findings = known.about(&packages, "bookworm");
    let ids: Vec<_> =
        findings.fixable.iter().map(|known| (known.id.as_str(), known.fixed.as_str())).collect();
    assert_eq!((ids, findings.open), (vec![("CVE-2024-1", "3.0.13-1~deb12u1")], 1));
    assert_eq!(findings.undetermined, 1, "neither good news nor bad");
    assert_eq!(known.about(&packages, "sid"), Findings::default());
    assert!(known.knows("bookworm") && known.knows("trixie") && !known.knows("sid") && !known.knows(""));
    assert!(Advisories::read(b"[]").is_err() && Advisories::read(b"<html>").is_err());
}

#[test]
fn the_release_is_debians_alone() {
    let of = |text: &str| Distribution::read(text.as_bytes()).debian_release().map(str::to_owned);
    assert_eq!(of("NAME=x\nID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm".to_owned()));
    assert_eq!(of("ID=\"debian\"\nVERSION_CODENAME=\"trixie\"\n"), Some("trixie".to_owned()));
    assert_eq!(of("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
    assert_eq!(of(""), None);
}

/// Versions in their order.
const IN_ORDER: [&str; 16] = [
    "0",
    "0.9",
    "1~~",
    "1~~a",
    "1~",
    "1",
    "1-1",
    "1a",
    "1+b1",
    "1.2.3-1",
    "1.2.10~rc1-1",
    "1.2.10-1",
    "1.2.10-1+b1",
    "1.10-1",
    "2024a-0+deb12u1",
    "1:0.1",
];

#[test]
fn versions_have_dpkgs_order() {
    for (at, one) in IN_ORDER.iter().enumerate() {
        for (other_at, other) in IN_ORDER.iter().enumerate() {
            assert_eq!(compare(one, other), at.cmp(&other_at), "{one} and {other}");
        }
    }
    assert_eq!(compare("1.0", "1.00"), Ordering::Equal);
    assert_eq!(compare("1.99999999999999999999999", "1.100000000000000000000000"), Ordering::Less);
}

#[test]
fn dpkg_itself_agrees() {
    if !Path::new("/usr/bin/dpkg").exists() {
        return eprintln!("SKIPPED: there is no dpkg here");
    }
    for one in IN_ORDER {
        for other in IN_ORDER {
            #[expect(
                clippy::disallowed_methods,
                reason = "a test asks the real thing, with an argument vector"
            )]
            let is_less = std::process::Command::new("/usr/bin/dpkg")
                .args(["--compare-versions", one, "lt", other])
                .status()
                .unwrap()
                .success();
            assert_eq!(is_less, compare(one, other) == Ordering::Less, "{one} and {other}");
        }
    }
}
