//! What `docs/configuration.md` says of how large a push may be is what the gateway has.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A bound as `crates/gateway/src/bounds.rs` has it, the beginning of its row in the document, and how that says it.
const BOUNDS: [(&str, &str, &str); 16] = [
    ("objects: 500_000", "the push as it comes", "500,000 objects"),
    ("commits: 10_000", "commits |", "10,000 commits"),
    ("tree_bytes: 128 * 1024 * 1024", "commits, directories and tags, unpacked", "128 MiB"),
    ("delta_depth: 4095", "chains of deltas in the pack", "4095 deltas"),
    ("path_depth: 128", "directories below one another", "128 directories"),
    ("paths: 5_000_000", "files that a checkout of one commit makes", "5,000,000 files"),
    ("candidates: 1_000", "texts that look like secrets", "1,000 texts"),
    ("old_files: 2_000", "older files that are read", "2,000 files"),
    ("base_bytes: 256 * 1024 * 1024", "what is fetched of the repository", "256 MiB"),
    ("gitmodules_bytes: 16 * 1024 * 1024", "all versions of `.gitmodules`", "16 MiB"),
    ("gitmodules_urls: 200_000", "all versions of `.gitmodules`", "200,000 URLs"),
    ("difference_bytes: 64 * 1024 * 1024", "paths in which", "64 MiB"),
    ("cpu_s: 60", "each process of git", "60 seconds"),
    ("memory_bytes: 1024 * 1024 * 1024", "each process of git", "1 GiB of memory"),
    ("time: Duration::from_mins(5)", "looking at it", "5 minutes"),
    ("free_bytes: 256 * 1024 * 1024", "A push for which the server's disk", "less than 256 MiB"),
];
/// Bounds that are constants elsewhere in the gateway: the file, the line, and the same of the document.
const OTHERS: [(&str, &str, &str, &str); 3] = [
    ("bounds.rs", "PUSH_BYTES: u64 = 1024 * 1024 * 1024;", "the push as it comes", "1 GiB"),
    ("git/commit.rs", "PARENTS: usize = 100;", "commits |", "100 parents"),
    (
        "git/directories.rs",
        "OUTER_DIRECTORIES: usize = 200_000;",
        "directories that the repository has",
        "200,000 directories",
    ),
];

fn text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)).unwrap()
}

/// The part of the document.
fn documented() -> String {
    let document = text("docs/configuration.md");
    let (_, behind) = document.split_once("### How large a push may be\n").unwrap();
    behind.split("\n## ").next().unwrap().split("\n### ").next().unwrap().to_owned()
}

/// Whether the line that begins so says this.
fn says(part: &str, begins: &str, bound: &str) -> bool {
    let line = part.lines().find(|line| line.trim_start_matches("| ").starts_with(begins));
    line.is_some_and(|line| line.contains(bound))
}

#[test]
fn every_bound_of_a_push_is_in_the_document_as_the_gateway_has_it() {
    let source = text("crates/gateway/src/bounds.rs");
    let (_, behind) = source.split_once("impl Default for PushBounds {").unwrap();
    let (values, _) = behind.split_once("\n        }\n").unwrap();
    let values: BTreeSet<_> = values
        .lines()
        .filter_map(|line| line.trim().strip_suffix(','))
        .filter(|line| line.contains(": "))
        .collect();
    assert_eq!(values, BOUNDS.iter().map(|(value, ..)| *value).collect());
    let part = documented();
    for (value, begins, bound) in BOUNDS {
        assert!(says(&part, begins, bound), "{value}: \"{bound}\" is not what \"{begins}\" says");
    }
}

#[test]
fn bounds_of_a_push_that_stand_elsewhere_are_in_the_document_too() {
    let part = documented();
    for (file, line, begins, bound) in OTHERS {
        assert!(text(&format!("crates/gateway/src/{file}")).contains(line), "{file}: {line}");
        assert!(says(&part, begins, bound), "{line}: \"{bound}\" is not what \"{begins}\" says");
    }
    assert!(!says(&part, "the push as it comes", "2 GiB"), "what is not there is not found");
}
