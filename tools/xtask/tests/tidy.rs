//! The walls of the workspace, held by a test: crate floors, sizes, where SQL may stand, and what no file may say.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
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

/// What tells databases apart or opens one, in small letters.
const DATABASE_MARKS: [&str; 7] =
    ["sqlite", "postgres", "caisson.db", "is_shared()", "store::open(", "store::connect(", "place::file"];

/// Files of the binary that are told where the database is, and why they need to know; below its `src`.
const TOLD_OF_THE_DATABASE: [(&str, &str); 8] = [
    ("settings/database.rs", "the setting, and what is opened by it"),
    ("command/db.rs", "what is done with a database as a whole"),
    ("cli/db.rs", "the same, as a person asks for it"),
    ("command/doctor.rs", "a file that cannot be written, a server that does not answer"),
    ("exposure.rs", "a connection without encryption"),
    ("cli/servers.rs", "parts of a server need a database that they can share"),
    ("roles.rs", "the same; and the silence of others, where there may be others"),
    ("server_id.rs", "sandboxes of servers that nobody here knows, where there may be others"),
];

/// Files of end-to-end tests that start servers on one database alone, and why.
const ON_ONE_DATABASE: [(&str, &str); 11] = [
    ("copies.rs", "servers share PostgreSQL"),
    ("database_away.rs", "PostgreSQL is stopped, full, busy"),
    ("lost_home.rs", "servers share PostgreSQL"),
    ("live.rs", "what commands print, as a snapshot; the routes behind them are in stories on each"),
    ("postgres.rs", "PostgreSQL goes away, and servers share it"),
    ("restore.rs", "a test for each: the commands differ"),
    ("servers.rs", "servers share PostgreSQL"),
    ("shared_artifacts.rs", "servers share PostgreSQL"),
    ("silent_database.rs", "the machine of PostgreSQL vanishes"),
    ("upgrade.rs", "a test for each, by `make upgrade`"),
    ("scene.rs", "the scene of workflows.rs, whose stories are told on each"),
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
    let of_tests = test_files(&sources);
    sources
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str() == "src") && !of_tests.contains(path))
        .collect()
}

/// The files of modules that are declared for tests alone, and of the modules in them.
fn test_files(sources: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending = Vec::new();
    for path in sources {
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        pending.extend(test_items(&lines).into_iter().flat_map(|range| modules(path, &lines[range])));
    }
    while let Some(path) = pending.pop() {
        let text = fs::read_to_string(&path).unwrap();
        if found.insert(path.clone()) {
            pending.extend(modules(&path, &text.lines().collect::<Vec<_>>()));
        }
    }
    found
}

/// The files of the modules that these lines of a file declare.
fn modules(path: &Path, lines: &[&str]) -> Vec<PathBuf> {
    let mut given = None;
    let mut found = Vec::new();
    for line in lines.iter().map(|line| line.trim()) {
        let attribute = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]"));
        given = attribute.or(given);
        let is_visible = |before: &str| before.is_empty() || before.starts_with("pub");
        let declared = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
        if let Some((_, name)) = declared.filter(|(before, _)| is_visible(before)) {
            let file = given.take().map_or(format!("{name}.rs"), str::to_owned);
            found.push(path.with_file_name(file));
            for directory in [path.with_file_name(name), path.with_extension("").join(name)] {
                found.extend([directory.with_extension("rs"), directory.join("mod.rs")]);
            }
        }
    }
    found.retain(|place| place.is_file());
    found
}

/// Which lines are items for tests alone: each from its `#[cfg(test)]` to its end, which formatted code has at the same depth.
fn test_items(lines: &[&str]) -> Vec<Range<usize>> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut found: Vec<Range<usize>> = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let inside = found.last().is_some_and(|last| last.contains(&start));
        if inside || line.trim() != "#[cfg(test)]" {
            continue;
        }
        let ends = |other: &&str| {
            let text = other.trim();
            depth(other) == depth(line)
                && !text.starts_with("#[")
                && !text.starts_with("//")
                && (text.starts_with('}') || text.ends_with([';', ',', '}']))
        };
        let length = lines[start..].iter().position(ends).expect("an item has an end");
        found.push(start..start + length + 1);
    }
    found
}

/// The lines of a file with their numbers, without its tests.
fn product_lines(text: &str) -> Vec<(usize, &str)> {
    let lines: Vec<_> = text.lines().collect();
    let of_tests = test_items(&lines);
    let is_product = |number: &usize| !of_tests.iter().any(|range| range.contains(number));
    (0..lines.len()).filter(is_product).map(|number| (number + 1, lines[number])).collect()
}

/// `path:line: text` of every product line for which `bad` says yes.
fn offences(paths: &[PathBuf], bad: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        for (number, line) in product_lines(&fs::read_to_string(path).unwrap()) {
            if bad(line) {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    found
}

#[test]
fn product_code_behind_tests_is_product_code() {
    let text = "\
fn first() {}

#[cfg(test)]
use std::fs;

#[cfg(test)]
#[path = \"x_tests.rs\"]
mod tests;

impl Second {
    #[cfg(test)]
    fn for_tests(
        &self,
    ) -> u8 {
        7
    }

    fn second(&self) {}
}

#[cfg(test)]
mod more {
    #[cfg(test)]
    fn inside() {}

    fn beside() {}
}
fn last() {}";
    let product: Vec<_> = product_lines(text).into_iter().filter(|(_, line)| line.contains("fn ")).collect();
    let found = offences(&product_sources(), |line| line.trim() == "#[test]");
    assert!(found.is_empty(), "tests are taken for product code: {found:#?}");
    assert_eq!(product, [(1, "fn first() {}"), (18, "    fn second(&self) {}"), (28, "fn last() {}")]);
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
fn nobody_outside_the_store_knows_which_database_there_is() {
    let told = TOLD_OF_THE_DATABASE.map(|(file, _)| root().join("crates/caisson/src").join(file));
    let knows = |line: &str| {
        let line = line.to_lowercase();
        DATABASE_MARKS.iter().any(|mark| line.contains(mark))
    };
    let mut others = product_sources();
    others.retain(|path| !path.starts_with(root().join("crates/store")) && !told.contains(path));
    let found = offences(&others, knows);
    assert!(found.is_empty(), "the store answers alike on each of them: {found:#?}");
    let idle: Vec<_> =
        told.iter().filter(|&path| offences(std::slice::from_ref(path), knows).is_empty()).collect();
    assert!(idle.is_empty(), "these need not be told any more: {idle:#?}");
}

#[test]
fn every_story_is_told_on_every_database() {
    let mut on_one = Vec::new();
    for path in files(&root().join("crates/caisson/tests"), ".rs") {
        let text = fs::read_to_string(&path).unwrap();
        let on_every = ["on_every_engine_and_database! {", "on_every_database! {"];
        if text.contains("World::start(") && !on_every.iter().any(|told| text.contains(told)) {
            on_one.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    let listed = ON_ONE_DATABASE.map(|(file, _)| file);
    assert_eq!(on_one, listed, "a story is named in one of testkit's macros, or says here why it is not");
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
fn no_script_and_no_example_puts_a_key_into_an_argument() {
    let mut shown: Vec<_> = ["scripts", "examples", "docs", "deploy"]
        .iter()
        .flat_map(|name| files(&root().join(name), ""))
        .collect();
    shown.push(root().join("README.md"));
    let found = offences(&shown, |line| {
        let line = line.to_lowercase();
        line.contains("-h \"authorization:") || line.contains("-h \"x-api-key:")
    });
    assert!(
        found.is_empty(),
        "any user of the machine can read arguments; give it by -H @<(printf …): {found:#?}"
    );
}

#[test]
fn only_the_controls_of_the_adversary_leave_checks_out() {
    let named =
        |file: &str| std::fs::read_to_string(root().join(file)).unwrap().matches("checks-off").count();
    // The feature itself, the gateway's, and the binary's, which turns both on; nothing has it by default.
    let features = ["domain", "gateway", "caisson"].map(|name| named(&format!("crates/{name}/Cargo.toml")));
    assert_eq!(features, [1, 2, 3]);
    for file in ["Cargo.toml", "scripts/setup", "scripts/test", "crates/store/Cargo.toml"] {
        assert_eq!(named(file), 0, "{file}");
    }
    let only = "\tcargo build --quiet --locked -p caisson --features checks-off";
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    assert_eq!(makefile.lines().filter(|line| line.contains("--features")).collect::<Vec<_>>(), [only]);
}

/// The texts in quotation marks that look like `thing.verb`.
fn actions_in(text: &str) -> Vec<String> {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let quoted = text.split('"').skip(1).step_by(2);
    quoted
        .filter(move |text| text.split_once('.').is_some_and(|(thing, verb)| part(thing) && part(verb)))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_action_of_the_audit_log_is_in_its_documents_table_and_no_other() {
    let makers = [
        "NewAudit::new(",
        "NewAudit::of_run(",
        " changed(",
        "&changed(",
        ".audit(",
        "audit::record(",
        " record(tx, ",
        " write(&mut tx, &expired, ",
    ];
    let mut written = BTreeSet::new();
    for path in product_sources() {
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<_> = product_lines(&text).into_iter().map(|(_, line)| line).collect();
        let text = lines.join("\n");
        for maker in makers {
            let calls = text.split(maker).skip(1).filter_map(|rest| rest.split(';').next());
            written.extend(calls.flat_map(actions_in));
        }
    }
    let document = fs::read_to_string(root().join("docs/audit.md")).unwrap();
    let first_column = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
    let told: BTreeSet<_> =
        first_column.flat_map(|cell| actions_in(&format!("`{cell}").replace('`', "\""))).collect();
    assert!(written.contains("run.create") && written.contains("egress.deny"), "{written:?}");
    assert_eq!(written, told);
}

#[test]
fn every_purpose_of_a_credential_is_in_the_audit_logs_document_and_no_other() {
    let mut written = BTreeSet::new();
    for path in product_sources().into_iter().filter(|path| path.starts_with(root().join("crates/gateway"))) {
        let text = fs::read_to_string(path).unwrap();
        let mut is_choosing = false;
        for (_, line) in product_lines(&text) {
            is_choosing |= line.contains("fn purpose(");
            // Where a use is made, and where its purpose is chosen.
            let made = line.split_once("purpose: ").map(|(_, rest)| rest);
            if let Some(rest) = made.or_else(|| is_choosing.then_some(line)) {
                written.extend(rest.split('"').skip(1).step_by(2).map(str::to_owned));
            }
            is_choosing &= !line.starts_with("    }");
        }
    }
    let document = fs::read_to_string(root().join("docs/audit.md")).unwrap();
    let row = document.lines().find(|line| line.starts_with("| `credential.use` |")).unwrap();
    let told: BTreeSet<_> =
        row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(written.contains("registry") && written.contains("git push"), "{written:?}");
    assert_eq!(written, told);
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

#[test]
fn files_that_documents_name_are_there() {
    let mut gone = Vec::new();
    let mut named = 0;
    for path in files(&root(), ".md") {
        let text = fs::read_to_string(&path).unwrap();
        for code in text.split('`').skip(1).step_by(2) {
            let ours =
                ["crates/", "tools/", "deploy/", "scripts/", "docs/", "examples/", "fuzz/", "workflows/"];
            // A pattern, a command line and a block of code are no files.
            let is_path = ours.iter().any(|begin| code.starts_with(begin))
                && !code.contains(['*', '{', '<', '…'])
                && !code.contains(char::is_whitespace);
            if is_path {
                named += 1;
                if !root().join(code).exists() {
                    gone.push(format!("{}: {code}", path.display()));
                }
            }
        }
    }
    assert!(gone.is_empty(), "{gone:#?}");
    assert!(named > 20, "{named}");
}
