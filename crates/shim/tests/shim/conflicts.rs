//! Conflicts with a branch that others push too: what the agent makes of them, and what is left if it makes nothing.

use caisson_domain::protocol::{Ending, RunWork};
use caisson_domain::run::FailureKind;

use crate::sandbox::{Sandbox, failed, git, git_work};

/// A branch of a name that a person gave it.
const SHARED: &str = "feat/shared";

fn racing(solving: &str) -> (Sandbox, RunWork) {
    racing_with("two\\n", solving)
}

/// An agent that writes this into `a.txt`, and on its second prompt does `solving`, while somebody else has pushed the branch.
fn racing_with(content: &str, solving: &str) -> (Sandbox, RunWork) {
    let script = format!(
        "
def prompt(uuid, text, number):
    if number == 0:
        write('a.txt', '{content}'); commit('fix: two')
    else:
        log('asked of a.txt' if '- \"a.txt\"' in text else text)
        {solving}
    done(uuid)
"
    );
    let sandbox = Sandbox::with_repository(&script);
    git(&sandbox.place("seed"), &["checkout", "-q", "-b", SHARED]);
    sandbox.seed("a.txt", "somebody else\n", "docs: somebody else");
    let mut work = git_work("Fix it");
    work.git.as_mut().unwrap().branch = SHARED.parse().unwrap();
    (sandbox, work)
}

#[tokio::test]
async fn a_rebase_that_the_agent_only_stages_for_is_finished_behind_it() {
    for solving in [
        "write('a.txt', 'both\\n'); sh('git', 'add', 'a.txt')",
        "write('a.txt', 'both\\n'); sh('git', 'add', 'a.txt'); sh('git', '-c', 'core.editor=true', 'rebase', '--continue')",
        "sh('git', 'rebase', '--abort'); subprocess.run(['git', 'merge', '-q', 'refs/remotes/origin/feat/shared'], stdout=subprocess.DEVNULL); write('a.txt', 'both\\n'); commit('fix: bring both together')",
    ] {
        let (mut sandbox, work) = racing(solving);
        let before = sandbox.remote(&["rev-parse", SHARED]);
        let outcome = sandbox.run(work).await;
        assert_eq!(outcome.ending, Ending::Completed, "{solving}: {}", sandbox.shim_log());
        assert!(outcome.pushed, "{solving}");
        assert_eq!(outcome.head, Some(sandbox.remote(&["rev-parse", SHARED])), "{solving}");
        assert_eq!(sandbox.remote(&["show", &format!("{SHARED}:a.txt")]), "both");
        sandbox.remote(&["merge-base", "--is-ancestor", &before, SHARED]);
        assert!(sandbox.agent_log().contains(&"asked of a.txt".to_owned()), "{:?}", sandbox.agent_log());
        assert!(sandbox.notes().iter().any(|note| note.contains("the agent was asked to solve it")));
    }
}

#[tokio::test]
async fn what_is_not_solved_leaves_the_work_as_it_was() {
    for (solving, why) in [
        ("pass", "a.txt still has it"),
        (
            "write('a.txt', '<<<<<<< a\\nx\\n=======\\ny\\n>>>>>>> b\\n'); sh('git', 'add', 'a.txt')",
            "it left a mark of it in a.txt",
        ),
        ("sh('git', 'rebase', '--abort')", "does not come after what the branch has"),
        (
            "sh('git', 'rebase', '--abort'); sh('git', 'checkout', '-q', '--detach', 'refs/remotes/origin/feat/shared')",
            "does not come after",
        ),
        ("sys.exit(3)", "a.txt still has it"),
        ("sh('git', 'rebase', '--skip')", "of 1 commits of the work 0 are left"),
        (
            "write('a.txt', 'somebody else\\n'); sh('git', 'add', 'a.txt'); sh('git', 'rebase', '--skip')",
            "of 1 commits of the work 0 are left",
        ),
    ] {
        let (mut sandbox, work) = racing(solving);
        let before = sandbox.remote(&["rev-parse", SHARED]);
        let outcome = sandbox.run(work).await;
        let message = failed(&outcome, FailureKind::Conflict);
        assert!(message.contains(why), "{solving}: {message}");
        assert_eq!(sandbox.remote(&["rev-parse", SHARED]), before, "{solving}");
        assert_eq!(sandbox.workspace(&["log", "-1", "--format=%s"]), "fix: two", "{solving}");
        assert_eq!(sandbox.workspace(&["branch", "--show-current"]), SHARED, "{solving}");
        assert_eq!(sandbox.workspace(&["status", "--porcelain"]), "", "{solving}");
        assert!(sandbox.artifact("work.bundle").is_some() && !outcome.pushed);
    }
}

#[tokio::test]
async fn a_heading_that_looks_like_a_mark_is_none() {
    let solving = "write('a.txt', 'Both\\n=======\\n'); sh('git', 'add', 'a.txt')";
    let (mut sandbox, work) = racing_with("Two\\n=======\\n", solving);
    let outcome = sandbox.run(work).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(sandbox.remote(&["show", &format!("{SHARED}:a.txt")]), "Both\n=======");
}
