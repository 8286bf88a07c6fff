//! Where the checkout of a fork begins: at its commit, wherever the repository has it, or not at all.

use caisson_domain::protocol::{Ending, Outcome};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::Publish;

use crate::attributes::PATHS;
use crate::sandbox::{BRANCH, Sandbox, failure, git, git_work};

const LOOKING: &str = "
def prompt(uuid, text, number):
    log(' '.join(sorted(os.listdir('.'))))
    done(uuid)
";
/// The branch of the session that the fork comes from.
const ORIGINS: &str = "origins";

/// A repository whose base has moved on since another session pushed a commit, and that commit.
fn forked() -> (Sandbox, String) {
    let sandbox = Sandbox::with_repository(LOOKING);
    let seed = sandbox.place("seed");
    git(&seed, &["checkout", "-q", "-b", ORIGINS]);
    sandbox.seed("pushed.txt", "x\n", "feat: pushed");
    let commit = sandbox.remote(&["rev-parse", ORIGINS]);
    sandbox.seed("since.txt", "x\n", "feat: go on");
    git(&seed, &["checkout", "-q", "main"]);
    sandbox.seed("later.txt", "x\n", "feat: later");
    (sandbox, commit)
}

async fn run(sandbox: &mut Sandbox, start: &str) -> Outcome {
    let mut work = git_work("Go on");
    work.publish = Publish::None;
    let of = work.git.as_mut().unwrap();
    of.start = Some(start.to_owned());
    of.start_branch = Some(ORIGINS.parse().unwrap());
    sandbox.run(work).await
}

/// Runs it, and sees that it began at the commit and nowhere else.
async fn assert_begins(mut sandbox: Sandbox, start: &str) {
    let outcome = run(&mut sandbox, start).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(sandbox.agent_log()[1], ".git a.txt pushed.txt");
    assert_eq!(sandbox.workspace(&["rev-parse", "HEAD"]), start);
    assert_eq!(sandbox.workspace(&["branch", "--show-current"]), BRANCH);
}

#[tokio::test]
async fn a_fork_begins_at_its_commit_however_branches_have_moved_on() {
    let (sandbox, start) = forked();
    assert_begins(sandbox, &start).await;
}

#[tokio::test]
async fn a_fork_begins_at_its_commit_when_the_branch_that_it_was_pushed_to_is_gone() {
    let (sandbox, start) = forked();
    sandbox.remote(&["branch", "-q", "-D", ORIGINS]);
    assert_begins(sandbox, &start).await;
}

#[tokio::test]
async fn a_fork_begins_at_its_commit_when_its_base_is_gone() {
    let (sandbox, start) = forked();
    sandbox.remote(&["branch", "-q", "trunk", "main"]);
    sandbox.remote(&["symbolic-ref", "HEAD", "refs/heads/trunk"]);
    sandbox.remote(&["branch", "-q", "-D", "main"]);
    assert_begins(sandbox, &start).await;
}

#[tokio::test]
async fn a_fork_that_works_on_its_base_begins_at_its_commit_as_well() {
    let (mut sandbox, start) = forked();
    let mut work = git_work("Go on");
    work.publish = Publish::None;
    let of = work.git.as_mut().unwrap();
    of.start = Some(start.clone());
    of.branch = of.base.clone().unwrap();
    let outcome = sandbox.run(work).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(sandbox.workspace(&["rev-parse", "main"]), start);
}

/// Its files are those of its commit, whose attributes may be others than those of its base.
#[tokio::test]
async fn a_fork_has_the_attributes_of_the_branch_that_steers_and_not_those_of_its_commit() {
    for path in PATHS {
        let mut sandbox = Sandbox::with_repository(LOOKING);
        sandbox.set("path", path);
        let seed = sandbox.place("seed");
        git(&seed, &["checkout", "-q", "-b", ORIGINS]);
        std::fs::write(seed.join(".gitattributes"), "a.txt -diff\nb.txt text eol=crlf\n").unwrap();
        sandbox.seed("b.txt", "x\n", "feat: set attributes");
        let start = sandbox.remote(&["rev-parse", ORIGINS]);
        let outcome = run(&mut sandbox, &start).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        assert_eq!(sandbox.workspace(&["rev-parse", "HEAD"]), start);
        assert_eq!(std::fs::read(sandbox.place("workspace/b.txt")).unwrap(), b"x\n");
        std::fs::write(sandbox.place("workspace/a.txt"), "changed\n").unwrap();
        assert!(sandbox.workspace(&["diff"]).contains("+changed"));
    }
}

#[tokio::test]
async fn a_fork_whose_commit_is_not_to_be_had_fails_and_says_what_to_do() {
    let nowhere = "c0ffee".repeat(7)[..40].to_owned();
    for start in [nowhere.as_str(), "HEAD", "--upload-pack=x"] {
        let (mut sandbox, _) = forked();
        let outcome = run(&mut sandbox, start).await;
        let failure = failure(&outcome);
        assert_eq!(failure.kind, FailureKind::RepoUnreachable, "{failure:?}");
        for part in [start, "branch \"origins\" of the other session", "push a branch", "begin a new session"]
        {
            assert!(failure.message.contains(part), "{part}: {}", failure.message);
        }
        assert!(!sandbox.agent_log().iter().any(|line| line.contains("a.txt")), "no agent worked elsewhere");
    }
}
