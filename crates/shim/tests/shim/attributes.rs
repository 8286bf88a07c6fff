//! Attributes of the checkout: those of the branch that steers count, whatever files of attributes lie in it, tracked or not, and with every
//! git.

use caisson_domain::protocol::{Ending, RunWork};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::WorkspaceAccess;

use crate::kept::{KEEPING, next};
use crate::pristine::{noted, reading, with_set_up};
use crate::sandbox::{SEARCH_PATH, Sandbox, failed, git};

/// Search paths with the git that there is, and with that of the operating system, which may be older.
pub(crate) const PATHS: [&str; 2] = [SEARCH_PATH, "/usr/bin:/bin"];

/// Tells what is read.
const READING: &str = "
FILES = ['src/ident.txt', 'src/wide.py', 'top.txt']

def tell():
    def told(*arguments):
        return subprocess.run(['git', *arguments], stdout=subprocess.PIPE).stdout.decode()
    shown = told('diff', 'HEAD~1', 'HEAD')
    log('shown ' + str('+more of it' in shown and 'Binary' not in shown))
    for name in FILES:
        log('bytes ' + open(name, 'rb').read().decode('latin-1').strip())
    log('left ' + str(os.path.exists('src/.gitattributes')))
";

/// Hides a file's change, and gives others bytes that git takes for those of the commit.
const HIDING: &str = "
def put(name, content):
    with open(name, 'wb') as file:
        file.write(content)

put('src/.gitattributes', b'hidden.txt -diff\\nident.txt ident\\nwide.py working-tree-encoding=UTF-16\\n')
put('src/ident.txt', b'$Id: obey $\\n')
put('src/wide.py', 'print(1)\\n'.encode('utf-16'))
# A file of the commit.
with open('.gitattributes', 'a') as file:
    file.write('top.txt ident\\n')
put('top.txt', b'$Id: obey $\\n')
";

/// A repository whose set-up command does that, with attributes of its own, and with a change in its last commit.
fn hiding(agent: &str, attributes: &str) -> Sandbox {
    let sandbox = with_set_up(agent, HIDING);
    let seed = sandbox.place("seed");
    std::fs::create_dir(seed.join("src")).unwrap();
    for (name, content) in [
        (".gitattributes", attributes),
        ("src/ident.txt", "$Id$\n"),
        ("src/wide.py", "print(1)\n"),
        ("top.txt", "$Id$\n"),
    ] {
        std::fs::write(seed.join(name), content).unwrap();
    }
    sandbox.seed("src/hidden.txt", "some of it\n", "feat: add files");
    sandbox.seed("src/hidden.txt", "more of it\n", "feat: go on");
    sandbox
}

#[tokio::test]
async fn attributes_that_a_set_up_command_writes_neither_hide_a_change_nor_keep_its_bytes() {
    let agent = format!("{READING}\ndef prompt(uuid, text, number):\n    tell()\n    done(uuid)\n");
    for path in PATHS {
        for anchor in [None, Some("main".parse().unwrap())] {
            let mut sandbox = hiding(&agent, "*.md text\n");
            sandbox.set("path", path);
            for number in [1, 2] {
                let mut work = reading(number);
                work.git.as_mut().unwrap().anchor.clone_from(&anchor);
                let outcome = sandbox.run(work).await;
                assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
                let log = sandbox.agent_log();
                let found = (noted(&log, "shown "), noted(&log, "bytes "));
                let expected =
                    (vec!["True".to_owned()], ["$Id$", "print(1)", "$Id$"].map(str::to_owned).to_vec());
                assert_eq!(found, expected);
                assert_eq!(noted(&log, "left "), ["True"], "what it builds stays");
                let note = "the set-up command has changed files of the commit, which the agent only reads: \
                            .gitattributes, src/ident.txt, src/wide.py, top.txt; they were put back";
                assert!(sandbox.notes().iter().any(|told| told == note), "{:?}", sandbox.notes());
                sandbox.begin_anew();
            }
        }
    }
}

#[tokio::test]
async fn attributes_that_a_set_up_command_has_left_do_not_count_for_an_agent_that_waited() {
    let agent = format!(
        "{READING}{KEEPING}\ndef prompt(uuid, text, number):\n    tell()\n    keep(uuid)\n    done(uuid)\n"
    );
    for path in PATHS {
        let mut sandbox = hiding(&agent, "*.md text\n");
        sandbox.set("path", path);
        let first = RunWork { keep: true, ..reading(1) };
        sandbox.deliver(first.clone());
        sandbox.start();
        let outcome = sandbox.outcome(&first.run).await;
        assert!(outcome.kept, "{outcome:?} {}", sandbox.shim_log());
        // It is written anew by the git that brings the newest commit.
        let seed = sandbox.place("seed");
        std::fs::write(seed.join("src/hidden.txt"), "more of it, and more\n").unwrap();
        sandbox.seed("src/wide.py", "print(2)\n", "fix: print another");
        let second = next(&first, "Look again");
        sandbox.deliver(second.clone());
        let outcome = sandbox.outcome(&second.run).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        sandbox.exit().await;
        let log = sandbox.agent_log();
        assert_eq!(
            log.iter().filter(|line| line.starts_with("--session-id ")).count(),
            2,
            "the same process"
        );
        assert_eq!(noted(&log, "shown "), ["True", "True"], "{log:?}");
        assert_eq!(noted(&log, "left "), ["True", "True"]);
        assert_eq!(noted(&log, "bytes ")[3..], ["$Id$", "print(2)", "$Id$"]);
    }
}

/// Beyond the bounds they cannot be said again; without a set-up command nothing could be left beside them.
#[tokio::test]
async fn attributes_beyond_the_bounds_fail_a_run_that_reads_only_where_there_is_a_set_up_command() {
    let agent = "\ndef prompt(uuid, text, number):\n    done(uuid)\n";
    for (bytes, fits) in [(512 * 1024, true), (512 * 1024 + 1, false)] {
        let attributes = format!("#{}", "x".repeat(bytes - 1));
        let mut sandbox = hiding(agent, &attributes);
        let outcome = sandbox.run(reading(1)).await;
        if fits {
            assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        } else {
            let said = failed(&outcome, FailureKind::PolicyDenied);
            assert!(said.contains("more of them than can be replaced"), "{said}");
        }
        git(&sandbox.place("seed"), &["rm", "-q", ".caisson.yaml"]);
        sandbox.seed("top.txt", "$Id$\n", "build: need no set-up");
        for number in [2, 3] {
            sandbox.begin_anew();
            let outcome = sandbox.run(reading(number)).await;
            assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        }
    }
}

/// An agent that may write has the files' own where they are the anchor's.
#[tokio::test]
async fn where_agents_write_and_attributes_are_alike_the_repository_has_none_of_its_own() {
    let agent = "\ndef prompt(uuid, text, number):\n    done(uuid)\n";
    let mut sandbox = hiding(agent, "*.md text\n");
    let work = RunWork { workspace: WorkspaceAccess::ReadWrite, ..reading(1) };
    let outcome = sandbox.run(work).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert!(!sandbox.place("workspace/.git/info/attributes").exists());
}
