//! The example project and its scenarios, without an agent.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use git_conventional::Commit;
use scripted_model::{Catalogue, Choice, ToolCall};

pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Copies the example project into a new directory.
pub(crate) fn copy_of_cart() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for file in [
        ".gitignore",
        "README.md",
        "shop/__init__.py",
        "shop/cart.py",
        "shop/pricing.py",
        "tests/test_cart.py",
        "tests/test_pricing.py",
    ] {
        let target = dir.path().join(file);
        std::fs::create_dir_all(target.parent().expect("a parent")).expect("a directory");
        std::fs::copy(examples().join("cart").join(file), target).expect("a copy");
    }
    dir
}

/// Runs the example's tests as its README says.
pub(crate) fn run_its_tests(directory: &Path) -> Output {
    run(directory, "python3", &["-m", "unittest", "discover", "-s", "tests"])
}

pub(crate) fn run(directory: &Path, program: &str, arguments: &[&str]) -> Output {
    #[expect(clippy::disallowed_methods, reason = "the tests of the example are a process")]
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).env("PYTHONDONTWRITEBYTECODE", "1");
    command.output().unwrap_or_else(|error| panic!("{program} does not start: {error}"))
}

/// The verdict of Python's unittest, in its last lines.
pub(crate) fn verdict(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().lines().last().unwrap_or_default().to_owned()
}

fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::built_in();
    catalogue.add_path(&examples()).expect("usable scenarios");
    catalogue
}

fn tool_calls(name: &str) -> Vec<ToolCall> {
    let catalogue = catalogue();
    let scenario = catalogue.find(name).expect("the scenario");
    scenario.steps().flat_map(|step| step.reply.tools.clone()).collect()
}

const SCENARIOS: [&str; 3] = ["cart", "cart-commits", "cart-slow"];

#[test]
fn every_scenario_edits_the_file_so_that_the_failing_test_passes() {
    for name in SCENARIOS {
        let dir = copy_of_cart();
        let before = run_its_tests(dir.path());
        assert_eq!((before.status.code(), verdict(&before).as_str()), (Some(1), "FAILED (failures=1)"));
        let edit = tool_calls(name).into_iter().find(|call| call.name == "Edit").expect("an edit");
        let text = |key: &str| edit.input[key].as_str().expect("text").to_owned();
        let file = dir.path().join(text("file_path").strip_prefix("$CWD/").expect("in the project"));
        let source = std::fs::read_to_string(&file).expect("the file");
        assert_eq!(source.matches(&text("old_string")).count(), 1, "the CLI wants exactly one place");
        std::fs::write(&file, source.replace(&text("old_string"), &text("new_string"))).expect("the edit");
        let after = run_its_tests(dir.path());
        assert_eq!((after.status.code(), verdict(&after).as_str()), (Some(0), "OK"), "{name}");
    }
}

#[test]
fn every_scenario_runs_the_tests_as_the_example_says() {
    let readme = std::fs::read_to_string(examples().join("cart/README.md")).expect("a README");
    for name in SCENARIOS {
        let calls = tool_calls(name);
        let commands: Vec<&str> = calls.iter().filter_map(|call| call.input["command"].as_str()).collect();
        let tests = commands.iter().filter(|command| readme.contains(*command)).count();
        assert_eq!(tests, 2, "{name}: before and after the edit");
        let first_of = |tool: &str| calls.iter().position(|call| call.name == tool);
        assert!(first_of("Read") < first_of("Edit"), "the CLI edits only what it has read");
        assert_eq!(commands.iter().any(|command| command.contains("git commit")), name == "cart-commits");
    }
}

#[test]
fn the_question_for_a_commit_message_is_answered_with_exactly_one() {
    let catalogue = catalogue();
    for name in SCENARIOS {
        let scenario = catalogue.find(name).expect("the scenario");
        let said = |prompts: &[&str]| {
            let prompts: Vec<String> = prompts.iter().map(ToString::to_string).collect();
            let Choice { step, .. } = scenario.choose(&prompts, 0);
            step.reply.text.clone().expect("text")
        };
        for prompts in [&["fix it", "Write a commit message"][..], &["fix it", "again", "a commit message"]] {
            let message = said(prompts);
            let commit = Commit::parse(message.trim_end()).expect("a Conventional Commits message");
            assert_eq!(
                (commit.type_().as_str(), commit.scope().map(|scope| scope.as_str())),
                ("fix", Some("cart"))
            );
            assert!(commit.body().is_some() && message.lines().next().is_some_and(|line| line.len() <= 72));
        }
        assert!(said(&["fix it", "thanks"]).starts_with("There is nothing more to do"));
    }
}

#[test]
fn the_demo_is_short_and_the_slow_scenario_has_three_long_pauses() {
    let catalogue = catalogue();
    let pauses = |name: &str| -> Vec<u64> {
        let steps = catalogue.find(name).expect("the scenario").steps();
        let words = |text: Option<&str>| text.unwrap_or_default().split_whitespace().count() as u64;
        let pause = |step: &scripted_model::Step| {
            let chunks = words(step.reply.text.as_deref()) + words(step.reply.thinking.as_deref());
            step.delay_ms + chunks * step.chunk_delay_ms
        };
        steps.map(pause).collect()
    };
    for name in ["cart", "cart-commits"] {
        assert!(pauses(name).iter().sum::<u64>() < 5_000, "{name}: {:?}", pauses(name));
    }
    let long = pauses("cart-slow").into_iter().filter(|pause| *pause >= 6_000).count();
    assert_eq!(long, 2, "before a first byte and in mid-stream: {:?}", pauses("cart-slow"));
    let waits =
        |call: &ToolCall| call.input["command"].as_str().is_some_and(|text| text.contains("time.sleep(6)"));
    assert_eq!(tool_calls("cart-slow").iter().filter(|call| waits(call)).count(), 1);
}

#[test]
fn the_scenario_in_the_readme_is_usable() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```json\n").expect("an example");
    let (text, _) = rest.split_once("```").expect("its end");
    let mut catalogue = Catalogue::built_in();
    catalogue.add_text("README", text).expect("a usable scenario");
    assert!(catalogue.find("greeting").is_some());
}
