//! The walls of the workspace, held by a test: crate floors, sizes, where SQL may stand, and what no file may say.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest Rust file, in lines.
const FILE_LINES: usize = 500;

/// What each crate may import of ours; the floors of ARCHITECTURE.md.
const FLOORS: [(&str, &[&str]); 9] = [
    ("domain", &[]),
    ("store", &["domain"]),
    ("sandbox", &["domain"]),
    ("claude", &["domain"]),
    ("api", &["domain", "store"]),
    ("worker", &["domain", "store", "sandbox"]),
    ("gateway", &["domain", "store"]),
    ("shim", &["domain", "claude"]),
    ("caisson", &["domain", "store", "sandbox", "claude", "api", "worker", "gateway", "scripted-model"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every file of the project below `directory`, without build output and local state.
fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            let skipped = ["target", ".git", ".caisson"].iter().any(|skipped| name == *skipped);
            if entry.file_type().unwrap().is_dir() && !skipped {
                pending.push(entry.path());
            } else if name.to_string_lossy().ends_with(ending) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty() || ending.is_empty(), "no {ending} below {}", directory.display());
    found
}

fn product_sources() -> Vec<PathBuf> {
    let sources = files(&root().join("crates"), ".rs");
    let of_tests: BTreeSet<PathBuf> = sources.iter().flat_map(|path| test_modules(path)).collect();
    sources
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str() == "src") && !of_tests.contains(path))
        .collect()
}

/// The files of modules that `path` declares for tests alone.
fn test_modules(path: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    lines
        .windows(2)
        .filter(|pair| pair[0] == "#[cfg(test)]")
        .filter_map(|pair| pair[1].trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';'))
        .map(|name| path.with_file_name(format!("{name}.rs")))
        .collect()
}

/// The lines of a file, those of its unit tests left empty.
fn product_lines(path: &Path) -> Vec<String> {
    let of_tests = path.components().any(|part| part.as_os_str() == "tests");
    if of_tests || path.to_string_lossy().ends_with("_tests.rs") || path.ends_with("tests.rs") {
        return Vec::new();
    }
    let text = fs::read_to_string(path).unwrap();
    without_tests(&text)
}

/// Empties every item behind `#[cfg(test)]`, as rustfmt lays it out: up to the line that closes it.
fn without_tests(text: &str) -> Vec<String> {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim() != "#[cfg(test)]" {
            kept.push(line.to_owned());
            continue;
        }
        kept.push(String::new());
        for line in lines.by_ref() {
            kept.push(String::new());
            let Some(rest) = line.strip_prefix(indent) else { continue };
            let same_level = !rest.starts_with([' ', '#']);
            if same_level && (rest.starts_with('}') || rest.ends_with([';', '}'])) {
                break;
            }
        }
    }
    kept
}

#[test]
fn what_comes_behind_a_files_tests_is_looked_at_as_well() {
    let text = "a\n#[cfg(test)]\n#[path = \"x.rs\"]\nmod tests;\nb\n    #[cfg(test)]\n    fn t() {\n        c();\n    }\n    d\n\
                #[cfg(test)]\nmod tests {\n    use x;\n\n    fn e() {}\n}\nf\n";
    let kept: Vec<_> = without_tests(text).into_iter().filter(|line| !line.is_empty()).collect();
    assert_eq!(kept, ["a", "b", "    d", "f"]);
    assert_eq!(without_tests(text).len(), text.lines().count(), "lines keep their numbers");
}

/// `path:line: text` of every product line for which `bad` says yes.
fn offences(paths: &[PathBuf], bad: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        for (number, line) in product_lines(path).iter().enumerate() {
            if bad(line) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn crates_import_only_what_their_floor_allows() {
    for (name, allowed) in FLOORS {
        let manifest: toml::Table =
            fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap().parse().unwrap();
        let ours: BTreeSet<_> = manifest["dependencies"]
            .as_table()
            .unwrap()
            .keys()
            .filter_map(|key| {
                key.strip_prefix("caisson-").or((key == "scripted-model").then_some("scripted-model"))
            })
            .collect();
        let extra: Vec<_> = ours.iter().filter(|dependency| !allowed.contains(dependency)).collect();
        assert!(extra.is_empty(), "{name} imports {extra:?}");
    }
    let crates = fs::read_dir(root().join("crates")).unwrap().count();
    assert_eq!(crates, FLOORS.len(), "a crate has no floor");
}

#[test]
fn no_rust_file_is_longer_than_500_lines() {
    let mut sources = files(&root().join("crates"), ".rs");
    sources.extend(files(&root().join("tools"), ".rs"));
    let long: BTreeMap<_, _> = sources
        .iter()
        .map(|path| (path, fs::read_to_string(path).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES)
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn only_the_store_knows_sql() {
    let others: Vec<_> =
        product_sources().into_iter().filter(|path| !path.starts_with(root().join("crates/store"))).collect();
    let found = offences(&others, |line| line.contains("sqlx"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_the_sandbox_crate_knows_the_engines_api() {
    let others: Vec<_> = product_sources()
        .into_iter()
        .filter(|path| !path.starts_with(root().join("crates/sandbox")))
        .collect();
    let found = offences(&others, |line| line.contains("bollard"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_the_binary_and_the_shim_read_the_environment() {
    let others: Vec<_> = product_sources()
        .into_iter()
        .filter(|path| {
            !["caisson", "shim"].iter().any(|name| path.starts_with(root().join("crates").join(name)))
        })
        .collect();
    let found = offences(&others, |line| line.contains("env::var") || line.contains("env::args"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn no_product_line_is_unfinished_or_silences_a_lint() {
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), "todo!(", "unimplemented!(", "#[allow(", "#![allow("];
    let found = offences(&product_sources(), |line| marks.iter().any(|mark| line.contains(mark)));
    assert!(found.is_empty(), "{found:#?}");
    let found = offences(&product_sources(), |line| line.contains(".unwrap()"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn unsafe_code_is_forbidden_everywhere() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    assert_eq!(manifest["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for directory in ["crates", "tools"] {
        for entry in fs::read_dir(root().join(directory)).unwrap().map(Result::unwrap) {
            let manifest: toml::Table =
                fs::read_to_string(entry.path().join("Cargo.toml")).unwrap().parse().unwrap();
            assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{}", entry.path().display());
        }
    }
}

#[test]
fn documents_have_no_placeholders() {
    let holds = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        text.split('@')
            .skip(1)
            .step_by(2)
            .any(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase()))
    };
    let found: Vec<_> = files(&root(), ".md").into_iter().filter(holds).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for path in files(&root(), ".md") {
        let text = fs::read_to_string(&path).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let outside = file.is_empty() || file.contains("://") || file.contains(char::is_whitespace);
            if !outside && !path.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
