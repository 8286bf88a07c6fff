//! Bounds on the files that steer an agent, and what happens beyond them; with scripted agents.

use std::path::Path;

use caisson_domain::protocol::{Ending, JournalBody, NoteLevel, RunWork};
use caisson_domain::run::FailureKind;
use caisson_domain::trust::{STEERING_PATHS, Steering, Trust};

use crate::sandbox::{Sandbox, failed, git, git_work};

const DOING_NOTHING: &str = "
def prompt(uuid, text, number):
    done(uuid)
";

fn sandbox(fill: impl FnOnce(&Path)) -> Sandbox {
    let sandbox = Sandbox::with_repository(DOING_NOTHING);
    fill(&sandbox.place("seed"));
    let seed = sandbox.place("seed");
    git(&seed, &["add", "-A"]);
    git(&seed, &["commit", "-q", "-m", "docs: instruct"]);
    git(&seed, &["push", "-q", "origin", "HEAD"]);
    sandbox
}

fn work(settings: bool) -> RunWork {
    RunWork { trust: Trust { instructions: true, settings }, ..git_work("x") }
}

fn write(seed: &Path, name: &str, content: &str) {
    let file = seed.join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, content).unwrap();
}

fn told(sandbox: &Sandbox) -> Steering {
    let steered = |body| match body {
        JournalBody::Steered(steering) => Some(steering),
        _ => None,
    };
    sandbox.bodies().into_iter().find_map(steered).unwrap()
}

/// Warnings on what was left out.
fn left_out(sandbox: &Sandbox) -> Vec<String> {
    let warning = |body| match body {
        JournalBody::Note { level: NoteLevel::Warn, message } => Some(message),
        _ => None,
    };
    sandbox.bodies().into_iter().filter_map(warning).filter(|note| note.contains("left out")).collect()
}

#[tokio::test]
async fn a_file_of_the_bound_steers_and_a_longer_one_is_left_out() {
    let mut sandbox = sandbox(|seed| {
        write(seed, "CLAUDE.md", &"x".repeat(512 * 1024));
        write(seed, "sub/CLAUDE.md", &"x".repeat(512 * 1024 + 1));
    });
    assert_eq!(sandbox.run(work(false)).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(told(&sandbox).files, ["CLAUDE.md"]);
    let notes = left_out(&sandbox);
    assert!(
        notes.len() == 1 && notes[0].starts_with("sub/CLAUDE.md is left out: at most 1000 files"),
        "{notes:?}"
    );
    assert!(sandbox.place("home/.claude/CLAUDE.md").exists());
    assert!(!sandbox.place("home/.claude/rules/directory-1.md").exists());
}

/// Attributes that cannot be replaced would count.
#[tokio::test]
async fn attributes_of_the_bound_are_replaced_and_longer_ones_fail_the_run() {
    for (bytes, fits) in [(512 * 1024, true), (512 * 1024 + 1, false)] {
        let mut sandbox = sandbox(|seed| write(seed, "CLAUDE.md", "text"));
        let seed = sandbox.place("seed");
        git(&seed, &["checkout", "-q", "-b", "odd"]);
        let attributes = "* -diff\n#";
        write(&seed, ".gitattributes", &format!("{attributes}{}", "x".repeat(bytes - attributes.len())));
        git(&seed, &["add", "-A"]);
        git(&seed, &["commit", "-q", "-m", "chore: set attributes"]);
        git(&seed, &["push", "-q", "origin", "HEAD"]);
        let mut work = work(false);
        work.git.as_mut().unwrap().base = Some("odd".parse().unwrap());
        let outcome = sandbox.run(work).await;
        if fits {
            assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
            assert!(sandbox.place("workspace/.git/info/attributes").exists());
        } else {
            let said = failed(&outcome, FailureKind::PolicyDenied);
            assert!(said.contains("more of them than can be replaced"), "{said}");
        }
    }
}

#[tokio::test]
async fn all_files_together_have_a_bound_in_bytes() {
    let mut sandbox = sandbox(|seed| {
        for name in ["a", "b", "c", "d", "e"] {
            write(seed, &format!("{name}/CLAUDE.md"), &"x".repeat(512 * 1024));
        }
    });
    assert_eq!(sandbox.run(work(false)).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!((told(&sandbox).files_count, left_out(&sandbox).len()), (4, 1));
}

#[tokio::test]
async fn all_files_together_have_a_bound_in_number_and_notes_too() {
    let mut sandbox = sandbox(|seed| {
        for number in 0..1030 {
            write(seed, &format!(".claude/rules/{number:04}.md"), "x");
        }
    });
    assert_eq!(sandbox.run(work(false)).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    let told = told(&sandbox);
    assert_eq!((told.files_count, told.files.len()), (1000, STEERING_PATHS));
    assert_eq!(left_out(&sandbox).len(), 20);
}

#[tokio::test]
async fn imports_are_followed_five_times_and_rounds_end() {
    let mut sandbox = sandbox(|seed| {
        for number in 0..7 {
            write(seed, &format!("docs/{number}.md"), &format!("@{}.md @0.md @../../../outside", number + 1));
        }
        write(seed, "CLAUDE.md", "@docs/0.md @absent.md @docs");
    });
    assert_eq!(sandbox.run(work(false)).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    let expected = ["CLAUDE.md", "docs/0.md", "docs/1.md", "docs/2.md", "docs/3.md", "docs/4.md"];
    assert_eq!(told(&sandbox).files, expected);
    assert!(left_out(&sandbox).is_empty());
}

#[tokio::test]
async fn links_are_followed_within_the_tree_alone() {
    let mut sandbox = sandbox(|seed| {
        write(seed, "docs/agents.md", "linked");
        for (target, name) in [
            ("docs/agents.md", "CLAUDE.md"),
            ("/etc/passwd", "CLAUDE.local.md"),
            ("../../../etc/passwd", "AGENTS.md"),
        ] {
            std::os::unix::fs::symlink(target, seed.join(name)).unwrap();
        }
    });
    assert_eq!(sandbox.run(work(false)).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(told(&sandbox).files, ["CLAUDE.md"]);
    let copy = sandbox.place("home/.caisson/anchor/CLAUDE.md");
    assert!(copy.symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read_to_string(copy).unwrap(), "linked");
}

#[tokio::test]
async fn settings_beyond_the_bounds_fail_the_run() {
    let mut sandbox = sandbox(|seed| write(seed, ".claude/hooks/big", &"x".repeat(512 * 1024 + 1)));
    let message = failed(&sandbox.run(work(true)).await, FailureKind::BadWorkflow);
    assert!(message.contains(".claude/hooks/big is left out"), "{message}");
    // Where they do not act, it does not matter.
    sandbox.begin_anew();
    let work = RunWork { run: crate::sandbox::run_id(2), ..work(false) };
    assert_eq!(sandbox.run(work).await.ending, Ending::Completed, "{}", sandbox.shim_log());
}

#[tokio::test]
async fn the_agent_is_told_which_paths_it_must_not_touch() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    log('|'.join(argument for argument in sys.argv if argument.startswith('--append-system-prompt=')).replace(chr(10), ' '))
    done(uuid)
",
    );
    let mut work = git_work("x");
    work.forbidden_paths = vec!["docs/**".to_owned()];
    work.agent.system_prompt = Some("Be careful.".to_owned());
    assert_eq!(sandbox.run(work).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    let log = sandbox.agent_log().join("\n");
    assert!(log.contains("=Be careful.  Your work is pushed only if") && log.contains("- docs/**"), "{log}");
}
