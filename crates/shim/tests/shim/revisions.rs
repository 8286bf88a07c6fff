//! What a run can compare with: commits that its parameters name, the anchor, and for agents that only read the newest commit.

use caisson_domain::protocol::{Ending, JournalBody, RunWork};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::{Publish, WorkspaceAccess};

use crate::sandbox::{Sandbox, failed, git, git_work, kinds, run_id};

/// An agent that notes where things are.
const LOOKING: &str = "
def prompt(uuid, text, number):
    for name in ['HEAD', 'refs/caisson/anchor', 'refs/caisson/revision/base']:
        found = subprocess.run(['git', 'rev-parse', '--verify', '-q', name + '^{commit}'], capture_output=True, text=True)
        log(name + ' ' + found.stdout.strip())
    log('a.txt ' + open('a.txt').read().strip())
    done(uuid)
";

fn work(number: i64, access: WorkspaceAccess) -> RunWork {
    let mut work = git_work("Look");
    (work.run, work.publish, work.workspace) = (run_id(number), Publish::None, access);
    work
}

/// What the last agent noted of something.
fn noted(sandbox: &Sandbox, name: &str) -> String {
    let log = sandbox.agent_log();
    let line = log.iter().rev().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name} in {log:?}")).trim().to_owned()
}

/// A repository with a branch that no clone of `main` has, and a tag of its first commit; the branch's commits, newest first.
fn with_release() -> (Sandbox, [String; 2]) {
    let sandbox = Sandbox::with_repository(LOOKING);
    let seed = sandbox.place("seed");
    git(&seed, &["checkout", "-q", "-b", "release/1"]);
    sandbox.seed("b.txt", "b\n", "feat: release");
    git(&seed, &["tag", "-a", "-m", "one", "v1"]);
    git(&seed, &["push", "-q", "origin", "v1"]);
    sandbox.seed("c.txt", "c\n", "feat: mend the release");
    git(&seed, &["checkout", "-q", "main"]);
    let commits = ["release/1", "release/1~1"].map(|name| sandbox.remote(&["rev-parse", name]));
    (sandbox, commits)
}

#[tokio::test]
async fn a_commit_that_a_parameter_names_is_there_when_the_agent_starts() {
    let main = |sandbox: &Sandbox| sandbox.remote(&["rev-parse", "main"]);
    for wanted in ["branch", "tag", "commit", "beginning", "nothing"] {
        let (mut sandbox, [newest, tagged]) = with_release();
        let main = main(&sandbox);
        let (name, commit) = match wanted {
            "branch" => ("release/1".to_owned(), newest),
            "tag" => ("v1".to_owned(), tagged),
            "commit" => (tagged.clone(), tagged),
            "beginning" => (main[..9].to_owned(), main.clone()),
            _ => (String::new(), main.clone()),
        };
        let mut work = work(1, WorkspaceAccess::ReadWrite);
        work.git.as_mut().unwrap().revisions.insert("base".to_owned(), name);
        let outcome = sandbox.run(work).await;
        assert_eq!(outcome.ending, Ending::Completed, "{wanted}: {}", sandbox.shim_log());
        assert_eq!(noted(&sandbox, "refs/caisson/revision/base "), commit, "{wanted}");
        assert_eq!(noted(&sandbox, "HEAD "), main, "{wanted}");
    }
}

#[tokio::test]
async fn a_commit_that_the_repository_does_not_have_fails_the_set_up() {
    let nowhere = "c0ffee".repeat(7)[..40].to_owned();
    // A branch that the clone had and the repository has no more is none.
    for name in ["release/9", nowhere.as_str(), "c0ffee1", "main~1", "--upload-pack=x"] {
        let (mut sandbox, _) = with_release();
        let mut work = work(1, WorkspaceAccess::ReadWrite);
        work.git.as_mut().unwrap().revisions.insert("base".to_owned(), name.to_owned());
        let message = failed(&sandbox.run(work).await, FailureKind::SetupFailed);
        let told = format!(
            "the parameter \"base\" names \"{name}\", which is no branch, tag or commit of the repository"
        );
        assert!(message.starts_with(&told), "{message}");
        assert!(!kinds(&sandbox.bodies()).contains(&"agent_started".to_owned()));
    }
}

#[tokio::test]
async fn a_name_of_several_commits_is_not_guessed_and_one_of_a_commit_in_two_ways_is_taken() {
    for (shadows, cloned) in [(true, false), (true, true), (false, false), (false, true)] {
        for beginning in [true, false] {
            let (mut sandbox, [newest, tagged]) = with_release();
            let main = sandbox.remote(&["rev-parse", "main"]);
            let (name, meant) =
                if beginning { (main[..9].to_owned(), main) } else { ("v1".to_owned(), tagged) };
            let branch = format!("refs/heads/{name}");
            sandbox.remote(&["update-ref", &branch, if shadows { &newest } else { &meant }]);
            let mut work = work(1, WorkspaceAccess::ReadWrite);
            let of = work.git.as_mut().unwrap();
            of.revisions.insert("base".to_owned(), name.clone());
            if cloned {
                of.base = Some(name.parse().unwrap());
            }
            let outcome = sandbox.run(work).await;
            if shadows {
                let message = failed(&outcome, FailureKind::SetupFailed);
                assert!(
                    message.contains(&format!("\"{name}\", which is the name of more than one commit")),
                    "{message}"
                );
                assert!(message.contains(&newest) && message.contains(&meant), "{message}");
            } else {
                assert_eq!(outcome.ending, Ending::Completed, "{name}: {}", sandbox.shim_log());
                assert_eq!(noted(&sandbox, "refs/caisson/revision/base "), meant, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_branch_is_not_taken_for_the_beginning_of_a_commit_that_the_clone_lacks() {
    let (mut sandbox, [newest, _]) = with_release();
    let named = &newest[..7];
    sandbox.remote(&["update-ref", &format!("refs/heads/{named}"), "main"]);
    let mut work = work(1, WorkspaceAccess::ReadWrite);
    work.git.as_mut().unwrap().revisions.insert("base".to_owned(), named.to_owned());
    let message = failed(&sandbox.run(work).await, FailureKind::SetupFailed);
    assert!(message.contains("may as well be the beginning of a commit's own name"), "{message}");
}

#[tokio::test]
async fn the_anchors_commit_has_a_ref_whatever_the_run_starts_from() {
    for base in [None, Some("main"), Some("release/1")] {
        for anchor in [None, Some("main")] {
            let (mut sandbox, _) = with_release();
            let mut work = work(1, WorkspaceAccess::ReadWrite);
            let of = work.git.as_mut().unwrap();
            (of.base, of.anchor) =
                (base.map(|name| name.parse().unwrap()), anchor.map(|name| name.parse().unwrap()));
            let outcome = sandbox.run(work).await;
            assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
            let main = sandbox.remote(&["rev-parse", "main"]);
            assert_eq!(noted(&sandbox, "refs/caisson/anchor "), main, "{base:?} {anchor:?}");
        }
    }
}

/// The commits that were told to be prepared.
fn prepared(sandbox: &Sandbox) -> Vec<String> {
    let commit = |body| match body {
        JournalBody::Prepared { base_commit, .. } => base_commit,
        _ => None,
    };
    sandbox.bodies().into_iter().filter_map(commit).collect()
}

#[tokio::test]
async fn a_follow_up_of_agents_that_only_read_has_the_newest_commit_and_others_keep_theirs() {
    for access in [WorkspaceAccess::ReadOnly, WorkspaceAccess::ReadWrite] {
        let mut sandbox = Sandbox::with_repository(LOOKING);
        sandbox.run(work(1, access)).await;
        let before = noted(&sandbox, "HEAD ");
        // What a set-up command may have left, and what came meanwhile.
        std::fs::write(sandbox.place("workspace/a.txt"), "made by set-up").unwrap();
        std::fs::write(sandbox.place("workspace/new.txt"), "made by set-up").unwrap();
        sandbox.seed("new.txt", "new\n", "feat: add a file");
        sandbox.seed("a.txt", "two\n", "feat: go on");
        let newest = sandbox.remote(&["rev-parse", "main"]);
        sandbox.begin_anew();
        let outcome = sandbox.run(work(2, access)).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        let (commit, text) = match access {
            WorkspaceAccess::ReadOnly => (&newest, "two"),
            WorkspaceAccess::ReadWrite => (&before, "made by set-up"),
        };
        assert_eq!((&noted(&sandbox, "HEAD "), noted(&sandbox, "a.txt ").as_str()), (commit, text));
        assert_eq!(prepared(&sandbox), std::slice::from_ref(commit), "which commit it is, is told");
        let note =
            format!("brought to commit {newest}, the newest of branch \"main\"; the run before had {before}");
        let told = sandbox.notes().iter().any(|told| told.contains(&note));
        assert_eq!(told, access == WorkspaceAccess::ReadOnly, "{:?}", sandbox.notes());
        if access == WorkspaceAccess::ReadOnly {
            assert_eq!(std::fs::read_to_string(sandbox.place("workspace/new.txt")).unwrap(), "new\n");
            assert_eq!(outcome.head, Some(newest));
        }
    }
}

#[tokio::test]
async fn a_branch_that_is_gone_leaves_what_was_read_and_says_so() {
    let (mut sandbox, [newest, _]) = with_release();
    let from_release = |number| {
        let mut work = work(number, WorkspaceAccess::ReadOnly);
        work.git.as_mut().unwrap().base = Some("release/1".parse().unwrap());
        work
    };
    sandbox.run(from_release(1)).await;
    sandbox.remote(&["branch", "-q", "-D", "release/1"]);
    sandbox.begin_anew();
    let outcome = sandbox.run(from_release(2)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(noted(&sandbox, "HEAD "), newest);
    let note = format!(
        "branch \"release/1\" is not in the repository any more; the workspace stays at commit {newest}"
    );
    assert_eq!(sandbox.notes(), [note]);
}

#[tokio::test]
async fn a_fork_stays_at_the_commit_that_its_conversation_is_about() {
    let mut sandbox = Sandbox::with_repository(LOOKING);
    let start = sandbox.remote(&["rev-parse", "main"]);
    for number in [1, 2] {
        let mut work = work(number, WorkspaceAccess::ReadOnly);
        work.git.as_mut().unwrap().start = Some(start.clone());
        sandbox.begin_anew();
        let outcome = sandbox.run(work).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        assert_eq!(noted(&sandbox, "HEAD "), start);
        sandbox.seed("a.txt", &format!("{number}\n"), "feat: go on");
    }
}
