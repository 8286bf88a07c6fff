//! A repository of forty files with commands of its own, and what is asked of the runs that work on it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::{bare_from, clone_branch, run_git};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(5);
/// Modules of the generated project; each has a test beside it.
const MODULES: usize = 18;

/// Its linter: no space at the end of a line.
const LINT: &str = "import pathlib, sys\nbad = [f'{p}:{n}: space at the end' for p in sorted(pathlib.Path('ledger').glob('*.py'))\n       for n, line in enumerate(p.read_text().splitlines(), 1) if line != line.rstrip()]\nprint('\\n'.join(bad) or 'clean')\nsys.exit(bool(bad))\n";
// -B: a file that is changed within a second, and not in its length, is read from what Python has compiled before.
const FILE: &str = "setup: python3 scripts/setup.py\nlint: python3 scripts/lint.py\ntest: [python3, -B, -m, unittest, discover, -s, tests]\ncaches: [build]\n";

/// A project of forty files whose suite is red: one rule is wrong.
fn project(root: &Path) {
    for directory in ["ledger", "tests", "scripts"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    let write = |path: &str, text: &str| std::fs::write(root.join(path), text).unwrap();
    write("ledger/__init__.py", "");
    write("tests/__init__.py", "");
    for number in 0..MODULES {
        let sign = if number == 7 { "-" } else { "+" };
        write(
            &format!("ledger/rule_{number:02}.py"),
            &format!(
                "\"\"\"Rule {number}.\"\"\"\n\nFEE = {number}\n\n\ndef total(cents):\n    \"\"\"Adds the fee of the rule.\"\"\"\n    return cents {sign} FEE\n"
            ),
        );
        write(
            &format!("tests/test_rule_{number:02}.py"),
            &format!(
                "import unittest\n\nfrom ledger import rule_{number:02}\n\n\nclass Total(unittest.TestCase):\n    def test_adds_the_fee(self):\n        self.assertEqual(rule_{number:02}.total(100), {})\n",
                100 + number
            ),
        );
    }
    write("scripts/lint.py", LINT);
    write(
        "scripts/setup.py",
        "import pathlib\npathlib.Path('build').mkdir(exist_ok=True)\npathlib.Path('build/ready').write_text('ready')\n",
    );
    write(".caisson.yaml", FILE);
    write(".gitignore", "__pycache__/\n");
    write("README.md", "# Ledger\n\nRules that add fees.\n");
}

pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) bare: PathBuf,
}

impl Scene {
    pub(crate) async fn start(ground: Ground, scenario: &Value) -> Option<Self> {
        Self::start_with(ground, scenario, &[]).await
    }

    pub(crate) async fn start_with(
        ground: Ground,
        scenario: &Value,
        variables: &[(&str, &str)],
    ) -> Option<Self> {
        Self::start_with_all(ground, &[("scene", scenario)], variables).await
    }

    /// The same with others, which prompts name by `[[scn:NAME]]`.
    pub(crate) async fn start_with_all(
        ground: Ground,
        scenarios: &[(&str, &Value)],
        variables: &[(&str, &str)],
    ) -> Option<Self> {
        let named: serde_json::Map<String, Value> =
            scenarios.iter().map(|(name, scenario)| ((*name).to_owned(), (*scenario).clone())).collect();
        let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
        let spec = WorldSpec {
            scenario: "scene".to_owned(),
            scenarios: vec![Value::from(named).to_string()],
            variables: variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            ..WorldSpec::on(ground)
        };
        let world = World::start(&parts, spec).await.unwrap();
        let source = tempfile::tempdir().unwrap();
        project(source.path());
        let bare =
            bare_from(&world.directory.path().join("repositories"), "ledger.git", source.path()).unwrap();
        let files = run_git(&bare, &["ls-tree", "-r", "--name-only", "main"]).unwrap();
        assert!(files.lines().count() >= 30, "{files}");
        Some(Self { world, bare })
    }

    pub(crate) fn body(&self, workflow: &str, prompt: &str) -> Value {
        json!({"workflow": workflow, "prompt": prompt, "repository": self.world.host.url("ledger.git")})
    }

    pub(crate) async fn run(&self, body: &Value) -> (Value, Vec<Value>) {
        let id = self.world.api.submit(body).await.unwrap();
        let run = self.world.api.wait_end(&id, END).await.unwrap();
        let events = self.world.api.events(&id).await.unwrap();
        (run, events)
    }

    /// The first lines of the commits that a branch has and `main` has not, newest first.
    pub(crate) fn subjects(&self, branch: &str) -> String {
        run_git(&self.bare, &["log", "--format=%s", &format!("main..{branch}")]).unwrap()
    }

    /// Pushes `text` as `path` to `branch`, which begins at `main`.
    pub(crate) fn push(&self, branch: &str, files: &[(&str, &str)]) {
        self.push_onto("main", branch, files);
    }

    /// The same for one that begins at, or is, another branch.
    pub(crate) fn push_onto(&self, from: &str, branch: &str, files: &[(&str, &str)]) {
        let clone = clone_branch(&self.bare, from).unwrap();
        let checkout = clone.path().join("checkout");
        for (path, text) in files {
            std::fs::write(checkout.join(path), text).unwrap();
        }
        run_git(&checkout, &["add", "-A"]).unwrap();
        run_git(&checkout, &["commit", "-q", "-m", "feat: change rules"]).unwrap();
        run_git(
            &checkout,
            &["push", "-q", self.bare.to_str().unwrap(), &format!("HEAD:refs/heads/{branch}")],
        )
        .unwrap();
    }
}

pub(crate) fn bash(command: &str) -> Value {
    json!({"tool": {"name": "Bash", "input": {"description": "Work", "command": command}}})
}

/// What the tools answered, in order: whether it was an error, and the text.
pub(crate) fn answers(events: &[Value]) -> Vec<(bool, String)> {
    let lines =
        events.iter().filter(|event| event["kind"] == "agent.line" && event["data"]["type"] == "user");
    let blocks = lines.filter_map(|event| event["data"]["message"]["content"].as_array()).flatten();
    let results = blocks.filter(|block| block["type"] == "tool_result");
    results.map(|block| (block["is_error"] == true, block["content"].to_string())).collect()
}

/// The agent's commands and what they answered, in the order of the events.
pub(crate) fn done(events: &[Value]) -> Vec<String> {
    let blocks = events
        .iter()
        .filter(|event| event["kind"] == "agent.line")
        .filter_map(|event| event["data"]["message"]["content"].as_array())
        .flatten();
    let said = blocks.filter_map(|block| match block["type"].as_str() {
        Some("tool_use") => Some(format!("call {}", block["input"])),
        Some("tool_result") => Some(format!("answer {}", block["content"])),
        _ => None,
    });
    said.collect()
}

pub(crate) fn notes(events: &[Value]) -> String {
    let notes = events.iter().filter(|event| event["kind"] == "note");
    notes.fold(String::new(), |mut all, event| {
        let _written = writeln!(all, "{}", event["data"]["message"].as_str().unwrap());
        all
    })
}
